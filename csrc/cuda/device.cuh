// What the kernels are written in: CUDA, with a few names that nvcc and the emulated device of the tests
// (tests/emulate) both understand. No torch here, and no kernel is started but by launch().
//
// Global memory is read and written through load_global() and store_global() alone, shared memory is had from
// IE_SHARED and IE_DYNAMIC_SHARED and only indexed: that is how the emulation sees every access, checks its
// bounds, alignment and order, and counts the sectors that it moves.
//
// Kernels are templates, so that a header may be included twice:
//
//   template <class T>
//   IE_GLOBAL void IE_LAUNCH_BOUNDS(256, 4) scale(IE_GRID_CONSTANT const Parameters p) {
//     IE_SHARED(float, part, 32);
//     ...
//   }
//   return launch(scale<float>, grid, block, shared_bytes, stream, parameters);
#pragma once
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "inplace_ext/cuda.h"

#if defined(INPLACE_EXT_EMULATE)
#include "emulate.h"
#else
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#include <cassert>

#define IE_DEVICE __device__ __forceinline__
#define IE_HOST_DEVICE __host__ __device__ __forceinline__
#define IE_GLOBAL __global__
#define IE_LAUNCH_BOUNDS(...) __launch_bounds__(__VA_ARGS__)
#define IE_GRID_CONSTANT __grid_constant__
// Constants that are looked up: __constant__ where all lanes ask for the same one, plain device memory else.
#define IE_CONSTANT static __constant__ const

// Arrays of shared memory. A dynamic one begins where the block's dynamic memory does: one for each kernel.
#define IE_SHARED(TYPE, NAME, COUNT) __shared__ TYPE NAME[COUNT]
#define IE_DYNAMIC_SHARED(TYPE, NAME)                   \
  extern __shared__ uint4 inplace_ext_dynamic_shared[]; \
  TYPE* const NAME = reinterpret_cast<TYPE*>(inplace_ext_dynamic_shared)

namespace inplace_ext {

template <int Bytes>
struct raw_bytes;
template <>
struct raw_bytes<1> {
  using type = uint8_t;
};
template <>
struct raw_bytes<2> {
  using type = uint16_t;
};
template <>
struct raw_bytes<4> {
  using type = uint32_t;
};
template <>
struct raw_bytes<8> {
  using type = uint2;
};
template <>
struct raw_bytes<16> {
  using type = uint4;
};

// One access of 1, 2, 4, 8 or 16 bytes, aligned to as many, whatever T is made of.
template <class T>
IE_DEVICE T load_global(const T* p) {
  using Raw = typename raw_bytes<sizeof(T)>::type;
  static_assert(std::is_trivially_copyable_v<T>);
  const Raw raw = *static_cast<const Raw*>(__builtin_assume_aligned(p, sizeof(T)));
  T value;
  memcpy(&value, &raw, sizeof(T));
  return value;
}
template <class T>
IE_DEVICE void store_global(T* p, std::type_identity_t<T> value) {
  using Raw = typename raw_bytes<sizeof(T)>::type;
  static_assert(std::is_trivially_copyable_v<T>);
  Raw raw;
  memcpy(&raw, &value, sizeof(T));
  *static_cast<Raw*>(__builtin_assume_aligned(p, sizeof(T))) = raw;
}
// The same where several threads may write the same to a place.
template <class T>
IE_DEVICE void store_same(T* p, std::type_identity_t<T> value) {
  store_global(p, value);
}

// Ends the kernel, and all work of the context, where `good` does not hold; the message goes to the standard
// error, and the next call that waits for the device comes back with an error.
IE_DEVICE void device_assert(bool good, const char* message) {
  if (!good) __assert_fail(message, "inplace_ext", 0, "");
}

// Atomics on global memory, of int, unsigned, unsigned long long, and for the sum of float and double.
template <class T>
IE_DEVICE T atomic_add(T* p, std::type_identity_t<T> value) {
  return atomicAdd(p, value);
}
template <class T>
IE_DEVICE T atomic_max(T* p, std::type_identity_t<T> value) {
  return atomicMax(p, value);
}
template <class T>
IE_DEVICE T atomic_exchange(T* p, std::type_identity_t<T> value) {
  return atomicExch(p, value);
}

// Starts a kernel; what went wrong with that is the result. Nothing waits for the kernel.
template <class... P>
cudaError_t launch(void (*kernel)(P...), dim3 grid, dim3 block, size_t shared_bytes, cudaStream_t stream,
                   const std::type_identity_t<std::remove_cv_t<P>>&... parameters) {
  constexpr size_t kWithoutAsking = 48 << 10;
  const void* const function = reinterpret_cast<const void*>(kernel);
  if (shared_bytes > kWithoutAsking) {
    const cudaError_t error = cudaFuncSetAttribute(function, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                                   static_cast<int>(shared_bytes));
    if (error != cudaSuccess) return error;
  }
  void* pointers[] = {const_cast<void*>(static_cast<const void*>(&parameters))..., nullptr};
  return cudaLaunchKernel(function, grid, block, pointers, shared_bytes, stream);
}

} // namespace inplace_ext
#endif

namespace inplace_ext {

constexpr int kWarp = 32;
constexpr unsigned kAllLanes = 0xffffffff;

} // namespace inplace_ext
