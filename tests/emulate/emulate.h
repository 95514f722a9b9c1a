// The CUDA execution model on the CPU, for tests: the kernel headers of csrc/cuda, unchanged, compiled by a
// C++ compiler. Included by csrc/cuda/device.cuh where INPLACE_EXT_EMULATE is defined.
//
// The threads of a block are fibers on one thread, each run until it waits or ends. With
// INPLACE_EXT_EMULATE_THREADS they are threads of the system, for ThreadSanitizer. Blocks run one after the
// other. See emulate.cpp for what is checked, and control.h for what the tests ask of it.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <driver_types.h>
#include <vector_types.h>

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>

#define IE_DEVICE inline __attribute__((always_inline))
#define IE_HOST_DEVICE inline __attribute__((always_inline))
#define IE_GLOBAL __attribute__((visibility("default"), noinline))
#define IE_LAUNCH_BOUNDS(...)
#define IE_GRID_CONSTANT
#define IE_CONSTANT static const

#define IE_SHARED(TYPE, NAME, COUNT)   \
  static constexpr char NAME##_site{}; \
  const ::emulate::Shared<TYPE> NAME = ::emulate::static_shared<TYPE>(&NAME##_site, #NAME, COUNT)
#define IE_DYNAMIC_SHARED(TYPE, NAME) \
  const ::emulate::Shared<TYPE> NAME = ::emulate::dynamic_shared<TYPE>(#NAME)

namespace emulate {

// What a thread knows of itself.
struct Thread {
  uint3 thread, block;
  dim3 threads, blocks;
};
extern thread_local constinit Thread* self __attribute__((tls_model("initial-exec")));

// `same` is a write that other threads may make as well, of the same bytes.
enum class Access { read, write, same, atomic };
// Before an access of global memory: the return address tells instructions apart.
void global_access(const void* p, size_t bytes, Access access, const void* value = nullptr);
[[noreturn]] void fail_assertion(const char* message);

// A store that is no data race beside another one of the same.
inline void store_unordered(void* p, const void* value, size_t bytes) {
  const auto part = [&](auto word) {
    for (size_t i = 0; i < bytes; i += sizeof(word)) {
      std::memcpy(&word, static_cast<const char*>(value) + i, sizeof(word));
      __atomic_store_n(reinterpret_cast<decltype(word)*>(static_cast<char*>(p) + i), word, __ATOMIC_RELAXED);
    }
  };
  bytes == 1   ? part(uint8_t{})
  : bytes == 2 ? part(uint16_t{})
  : bytes == 4 ? part(uint32_t{})
               : part(uint64_t{});
}

// ---- shared memory ----------------------------------------------------------------------------------------

struct SharedArray {
  char* data;
  size_t bytes;
  const char* name;
};
SharedArray static_shared_bytes(const void* site, const char* name, size_t bytes, size_t alignment);
SharedArray dynamic_shared_bytes(const char* name);
void shared_access(const SharedArray& array, int64_t offset, size_t bytes, Access access);

template <class T>
class Shared {
 public:
  // An element. A copy of it is none of its value: write `T v = array[i]`, not `auto`.
  class Element {
   public:
    Element(const SharedArray& array, int64_t offset) : array_(array), offset_(offset) {}
    Element(const Element&) = delete;
    operator T() const {
      shared_access(array_, offset_, sizeof(T), Access::read);
      T value;
      std::memcpy(&value, array_.data + offset_, sizeof(T));
      return value;
    }
    const Element& operator=(T value) const {
      shared_access(array_, offset_, sizeof(T), Access::write);
      std::memcpy(array_.data + offset_, &value, sizeof(T));
      return *this;
    }
    const Element& operator=(const Element& other) const {
      return *this = static_cast<T>(other);
    }
    const Element& operator+=(T value) const {
      return *this = static_cast<T>(*this) + value;
    }

   private:
    const SharedArray& array_;
    int64_t offset_;
  };

  explicit Shared(const SharedArray& array) : array_(array) {}
  template <class I>
  Element operator[](I i) const {
    return {array_, start_ + static_cast<int64_t>(i) * static_cast<int64_t>(sizeof(T))};
  }
  Shared operator+(int64_t elements) const {
    Shared result = *this;
    result.start_ += elements * static_cast<int64_t>(sizeof(T));
    return result;
  }

 private:
  SharedArray array_;
  int64_t start_ = 0;
};
template <class T>
Shared<T> static_shared(const void* site, const char* name, size_t count) {
  static_assert(std::is_trivially_copyable_v<T>);
  return Shared<T>(static_shared_bytes(site, name, count * sizeof(T), alignof(T)));
}
template <class T>
Shared<T> dynamic_shared(const char* name) {
  static_assert(std::is_trivially_copyable_v<T> && alignof(T) <= 16);
  return Shared<T>(dynamic_shared_bytes(name));
}

// ---- what threads do together -----------------------------------------------------------------------------

enum class Meeting : uint8_t { sync_warp, shuffle, shuffle_up, shuffle_down, shuffle_xor, any, all, ballot };
// `value` of the lane that is asked for, or the outcome of a vote.
uint64_t meet_warp(Meeting kind, unsigned mask, uint64_t value, int argument, int width, const char* file,
                   int line);
// The number of threads whose `value` is not 0.
int meet_block(bool value, const char* file, int line);

template <class T>
T shuffle(Meeting kind, unsigned mask, T value, int argument, int width, const char* file, int line) {
  static_assert(std::is_trivially_copyable_v<T> && sizeof(T) <= sizeof(uint64_t));
  uint64_t word = 0;
  std::memcpy(&word, &value, sizeof(T));
  word = meet_warp(kind, mask, word, argument, width, file, line);
  std::memcpy(&value, &word, sizeof(T));
  return value;
}

// ---- kernels ----------------------------------------------------------------------------------------------

void run(const void* kernel, dim3 grid, dim3 block, size_t shared_bytes, size_t parameter_bytes,
         void (*body)(const void*), const void* closure);

} // namespace emulate

#define threadIdx (::emulate::self->thread)
#define blockIdx (::emulate::self->block)
#define blockDim (::emulate::self->threads)
#define gridDim (::emulate::self->blocks)
#define warpSize 32

#define IE_HERE const char *file = __builtin_FILE(), int line = __builtin_LINE()
inline void __syncthreads(IE_HERE) {
  ::emulate::meet_block(false, file, line);
}
inline int __syncthreads_count(int predicate, IE_HERE) {
  return ::emulate::meet_block(predicate != 0, file, line);
}
inline int __syncthreads_or(int predicate, IE_HERE) {
  return ::emulate::meet_block(predicate != 0, file, line) != 0;
}
inline int __syncthreads_and(int predicate, IE_HERE) {
  return ::emulate::meet_block(predicate == 0, file, line) == 0;
}
inline void __syncwarp(unsigned mask = 0xffffffff, IE_HERE) {
  ::emulate::meet_warp(::emulate::Meeting::sync_warp, mask, 0, 0, 32, file, line);
}
template <class T>
T __shfl_sync(unsigned mask, T value, int lane, int width = 32, IE_HERE) {
  return ::emulate::shuffle(::emulate::Meeting::shuffle, mask, value, lane, width, file, line);
}
template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32, IE_HERE) {
  return ::emulate::shuffle(::emulate::Meeting::shuffle_up, mask, value, static_cast<int>(delta), width, file,
                            line);
}
template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32, IE_HERE) {
  return ::emulate::shuffle(::emulate::Meeting::shuffle_down, mask, value, static_cast<int>(delta), width,
                            file, line);
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int lanes, int width = 32, IE_HERE) {
  return ::emulate::shuffle(::emulate::Meeting::shuffle_xor, mask, value, lanes, width, file, line);
}
inline int __any_sync(unsigned mask, int predicate, IE_HERE) {
  return ::emulate::meet_warp(::emulate::Meeting::any, mask, predicate != 0, 0, 32, file, line) != 0;
}
inline int __all_sync(unsigned mask, int predicate, IE_HERE) {
  return ::emulate::meet_warp(::emulate::Meeting::all, mask, predicate != 0, 0, 32, file, line) != 0;
}
inline unsigned __ballot_sync(unsigned mask, int predicate, IE_HERE) {
  return static_cast<unsigned>(
      ::emulate::meet_warp(::emulate::Meeting::ballot, mask, predicate != 0, 0, 32, file, line));
}
#undef IE_HERE

inline void __threadfence() {
  std::atomic_thread_fence(std::memory_order_seq_cst);
}

// Intrinsics that the kernels use.
inline unsigned __umulhi(unsigned a, unsigned b) {
  return static_cast<unsigned>(static_cast<uint64_t>(a) * b >> 32);
}
inline int __popc(unsigned a) {
  return __builtin_popcount(a);
}
inline int __ffs(int a) {
  return __builtin_ffs(a);
}
inline int __clz(int a) {
  return a == 0 ? 32 : __builtin_clz(static_cast<unsigned>(a));
}
template <class To, class From>
To emulate_bits(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  std::memcpy(&to, &from, sizeof(To));
  return to;
}
inline int __float_as_int(float a) {
  return emulate_bits<int>(a);
}
inline unsigned __float_as_uint(float a) {
  return emulate_bits<unsigned>(a);
}
inline float __int_as_float(int a) {
  return emulate_bits<float>(a);
}
inline float __uint_as_float(unsigned a) {
  return emulate_bits<float>(a);
}
inline long long __double_as_longlong(double a) {
  return emulate_bits<long long>(a);
}
inline double __longlong_as_double(long long a) {
  return emulate_bits<double>(a);
}

namespace inplace_ext {

template <class T>
IE_DEVICE T load_global(const T* p) {
  static_assert(std::is_trivially_copyable_v<T> && (sizeof(T) & (sizeof(T) - 1)) == 0 && sizeof(T) <= 16);
  emulate::global_access(p, sizeof(T), emulate::Access::read);
  T value;
  std::memcpy(&value, p, sizeof(T));
  return value;
}
template <class T>
IE_DEVICE void store_global(T* p, std::type_identity_t<T> value) {
  static_assert(std::is_trivially_copyable_v<T> && (sizeof(T) & (sizeof(T) - 1)) == 0 && sizeof(T) <= 16);
  emulate::global_access(p, sizeof(T), emulate::Access::write);
  std::memcpy(p, &value, sizeof(T));
}
template <class T>
IE_DEVICE void store_same(T* p, std::type_identity_t<T> value) {
  emulate::global_access(p, sizeof(T), emulate::Access::same, &value);
  emulate::store_unordered(p, &value, sizeof(T));
}
IE_DEVICE void device_assert(bool good, const char* message) {
  if (!good) emulate::fail_assertion(message);
}
template <class T, class F>
IE_DEVICE T atomic_update(T* p, F f) {
  emulate::global_access(p, sizeof(T), emulate::Access::atomic);
  std::atomic_ref<T> cell(*p);
  T before = cell.load(std::memory_order_relaxed);
  while (!cell.compare_exchange_weak(before, f(before), std::memory_order_relaxed)) {
  }
  return before;
}
template <class T>
IE_DEVICE T atomic_add(T* p, std::type_identity_t<T> value) {
  return atomic_update(p, [=](T before) { return static_cast<T>(before + value); });
}
template <class T>
IE_DEVICE T atomic_max(T* p, std::type_identity_t<T> value) {
  return atomic_update(p, [=](T before) { return before < value ? value : before; });
}
template <class T>
IE_DEVICE T atomic_exchange(T* p, std::type_identity_t<T> value) {
  return atomic_update(p, [=](T) { return value; });
}

// Runs the kernel to its end. What it did wrong is thrown as std::runtime_error.
template <class... P>
cudaError_t launch(void (*kernel)(P...), dim3 grid, dim3 block, size_t shared_bytes, cudaStream_t,
                   const std::type_identity_t<std::remove_cv_t<P>>&... parameters) {
  const auto call = [&] { kernel(parameters...); };
  emulate::run(
      reinterpret_cast<const void*>(kernel), grid, block, shared_bytes, (sizeof(P) + ... + 0),
      [](const void* closure) { (*static_cast<const decltype(call)*>(closure))(); }, &call);
  return cudaSuccess;
}

} // namespace inplace_ext
