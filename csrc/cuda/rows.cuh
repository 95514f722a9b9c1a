// What the kernels share that walk over a tensor line by line: whole packs or single elements, and grids.
#pragma once
#include "device.cuh"
#include "inplace_ext/program.h"
#include "pack.cuh"

namespace inplace_ext::cuda {

constexpr int kPackBytes = 16;
// Elements of a pack of 16 bytes.
template <class S>
constexpr int kPack = kPackBytes / static_cast<int>(sizeof(S));

template <class S>
IE_DEVICE ComputeOf<S> load_element(const char* p) {
  return cast<ComputeOf<S>>(load_global(reinterpret_cast<const S*>(p)));
}
template <class S>
IE_DEVICE void store_element(char* p, ComputeOf<S> value) {
  store_global(reinterpret_cast<S*>(p), cast<S>(value));
}

// a / b for numbers that are not negative: in 32 bits where they will do.
IE_DEVICE int64_t divide(int64_t a, int64_t b) {
  if (((a | b) >> 32) == 0) return static_cast<uint32_t>(a) / static_cast<uint32_t>(b);
  return a / b;
}

inline bool is_aligned(int64_t bytes, int to = kPackBytes) {
  return bytes % to == 0;
}
inline bool is_aligned(const void* p, int to = kPackBytes) {
  return reinterpret_cast<uintptr_t>(p) % to == 0;
}

// f(a value of the storage type) for a floating dtype.
template <class F>
auto with_floating(DType dtype, const F& f) {
  switch (dtype) {
    case DType::f64:
      return f(double{});
    case DType::f16:
      return f(half_t{});
    case DType::bf16:
      return f(bfloat16_t{});
    default:
      return f(float{});
  }
}

// As many blocks as there is work for, and no more than keep the device busy: the others go on from there.
inline dim3 grid_for(int64_t pieces, const Device& device, int threads) {
  const int resident = device.threads_per_processor / threads;
  const int64_t blocks = static_cast<int64_t>(device.processors) * (resident > 0 ? resident : 1);
  return dim3(static_cast<unsigned>(pieces < blocks ? pieces : blocks));
}

} // namespace inplace_ext::cuda
