// Contiguous moves: conversion between every two dtypes, and fills.
#include <algorithm>

#include "kernels.h"

namespace inplace_ext {
namespace {

// What a C++ cast gives. Floats go to the small integers through int32, so that a negative number wraps in
// uint8 as it does in torch; out of the range of int32 the value is unspecified, as it is in C++.
template <class D, class S>
IE_INLINE D cast(S s) {
  if constexpr (std::is_same_v<S, bool_t>) {
    return cast<D>(static_cast<uint8_t>(s.bits != 0)); // a bool is 0 or 1 whatever its byte holds
  } else if constexpr (std::is_same_v<D, bool_t>) {
    return {static_cast<uint8_t>(s != 0)};
  } else if constexpr (std::is_floating_point_v<S> && std::is_integral_v<D> && sizeof(D) < 4) {
    return static_cast<D>(static_cast<int32_t>(s));
  } else {
    return static_cast<D>(s);
  }
}

// The lanes of one float vector, as an array that the compiler keeps in registers.
constexpr int kLanes = Vec<float>::N;

// From a 16-bit float: a vector at a time through float32.
template <class D, class S>
IE_INLINE void from_half(D* dst, half_bits h) {
  const Vec<float> v = from_bits(h, S{});
  if constexpr (std::is_same_v<D, float>) {
    v.store(dst);
  } else if constexpr (std::is_same_v<D, double>) {
    const DoublePair p = widen(v);
    p.lo.store(dst);
    p.hi.store(dst + kLanes / 2);
  } else if constexpr (is_half_v<D>) {
    const half_bits out = to_bits(v, D{});
    std::memcpy(dst, &out, sizeof(out));
  } else if constexpr (std::is_same_v<D, bool_t>) {
    for (int i = 0; i < kLanes; ++i) dst[i] = cast<bool_t>(v.v[i]);
  } else if constexpr (std::is_same_v<D, int64_t>) {
    for (int i = 0; i < kLanes; ++i) dst[i] = static_cast<int64_t>(v.v[i]);
  } else {
    store_int32(dst, convert<int32_t>(v));
  }
}
// To a 16-bit float: rounded once from float32, as torch does it.
template <class D, class S>
IE_INLINE half_bits to_half(const S* src) {
  Vec<float> v;
  if constexpr (std::is_same_v<S, float>) {
    v = Vec<float>::load(src);
  } else if constexpr (std::is_same_v<S, double>) {
    v = narrow({Vec<double>::load(src), Vec<double>::load(src + kLanes / 2)});
  } else if constexpr (std::is_same_v<S, bool_t> || std::is_same_v<S, int64_t>) {
    float f[kLanes];
    for (int i = 0; i < kLanes; ++i) f[i] = cast<float>(src[i]);
    v = Vec<float>::load(f);
  } else {
    v = convert<float>(load_int32(src));
  }
  return to_bits(v, D{});
}

template <class D, class S>
void convert_contiguous(char* dst_, const char* src_, int64_t n) {
  const S* src = reinterpret_cast<const S*>(src_);
  D* dst = reinterpret_cast<D*>(dst_);
  if constexpr (is_half_v<S> || is_half_v<D>) {
    const auto vector = [](D* d, const S* s) __attribute__((always_inline)) {
      if constexpr (is_half_v<S>) {
        half_bits h;
        std::memcpy(&h, s, sizeof(h));
        from_half<D, S>(d, h);
      } else {
        const half_bits h = to_half<D, S>(s);
        std::memcpy(d, &h, sizeof(h));
      }
    };
    for (; n >= kLanes; n -= kLanes, src += kLanes, dst += kLanes) vector(dst, src);
    if (n > 0) {
      S in[kLanes] = {};
      D out[kLanes];
      std::memcpy(in, src, n * sizeof(S));
      vector(out, in);
      std::memcpy(dst, out, n * sizeof(D));
    }
  } else {
#pragma GCC ivdep
    for (int64_t i = 0; i < n; ++i) dst[i] = cast<D>(src[i]);
  }
}

using ConvertFn = void (*)(char*, const char*, int64_t);
template <class S>
ConvertFn convert_from(DType dst) {
  switch (dst) {
#define INPLACE_EXT_CASE(NAME, STORAGE, COMPUTE) \
  case DType::NAME:                              \
    return convert_contiguous<STORAGE, S>;
    INPLACE_EXT_FOR_DTYPES(INPLACE_EXT_CASE)
#undef INPLACE_EXT_CASE
  }
  return nullptr;
}
ConvertFn convert_fn(DType dst, DType src) {
  switch (src) {
#define INPLACE_EXT_CASE(NAME, STORAGE, COMPUTE) \
  case DType::NAME:                              \
    return convert_from<STORAGE>(dst);
    INPLACE_EXT_FOR_DTYPES(INPLACE_EXT_CASE)
#undef INPLACE_EXT_CASE
  }
  return nullptr;
}

// Stores past the caches, for whole vectors from the first aligned address on; returns the bytes written.
#if defined(__SSE2__)
#if defined(INPLACE_EXT_AVX512)
using Wide = __m512i;
IE_INLINE void stream(char* p, Wide v) {
  _mm512_stream_si512(reinterpret_cast<__m512i*>(p), v);
}
#elif defined(INPLACE_EXT_AVX2)
using Wide = __m256i;
IE_INLINE void stream(char* p, Wide v) {
  _mm256_stream_si256(reinterpret_cast<__m256i*>(p), v);
}
#else
using Wide = __m128i;
IE_INLINE void stream(char* p, Wide v) {
  _mm_stream_si128(reinterpret_cast<__m128i*>(p), v);
}
#endif
void stream_fill(char* p, const char* pattern, int64_t bytes) {
  Wide v;
  std::memcpy(&v, pattern, sizeof(v));
  int64_t i = 0;
  for (; i + 4 * static_cast<int64_t>(sizeof(v)) <= bytes; i += 4 * sizeof(v)) {
    stream(p + i, v), stream(p + i + sizeof(v), v), stream(p + i + 2 * sizeof(v), v),
        stream(p + i + 3 * sizeof(v), v);
  }
  _mm_sfence();
  for (; i < bytes; ++i) p[i] = pattern[i % sizeof(v)];
}
void stream_copy(char* dst, const char* src, int64_t bytes) {
  const int64_t head = std::min<int64_t>(bytes, -reinterpret_cast<intptr_t>(dst) & (sizeof(Wide) - 1));
  std::memcpy(dst, src, head);
  int64_t i = head;
  for (; i + 4 * static_cast<int64_t>(sizeof(Wide)) <= bytes; i += 4 * sizeof(Wide)) {
    Wide v[4];
    std::memcpy(v, src + i, sizeof(v));
    for (int k = 0; k < 4; ++k) stream(dst + i + k * sizeof(Wide), v[k]);
  }
  _mm_sfence();
  std::memcpy(dst + i, src + i, bytes - i);
}
#else
void stream_copy(char* dst, const char* src, int64_t bytes) {
  std::memcpy(dst, src, bytes);
}
#endif

template <class T>
void fill_with(void* x, T value, int64_t n, bool past_caches) {
  using V = Vec<T>;
  T* p = static_cast<T*>(x);
  T* const end = p + n;
  // Elements lie at multiples of their size, so the pattern fits at any aligned address.
  if (n < V::N || reinterpret_cast<uintptr_t>(p) % sizeof(T) != 0) {
    for (int64_t i = 0; i < n; ++i) std::memcpy(static_cast<char*>(x) + i * sizeof(T), &value, sizeof(T));
    return;
  }
  const V v(value);
  v.store(p);
  p += V::N - reinterpret_cast<uintptr_t>(p) % kVectorBytes / sizeof(T);
#if defined(__SSE2__)
  if (past_caches && p < end) {
    stream_fill(reinterpret_cast<char*>(p), reinterpret_cast<const char*>(&v), (end - p) * sizeof(T));
    return;
  }
#endif
  (void)past_caches;
  // A store across two lines of the cache takes twice as long. One that misses the caches asks for its line,
  // and nothing does before: asked for ahead, 16 MiB take two thirds of the time.
  for (; p + 4 * V::N <= end; p += 4 * V::N) {
    for (int64_t line = 0; line < 4 * kVectorBytes; line += 64)
      __builtin_prefetch(reinterpret_cast<char*>(p) + 2048 + line, 1);
    v.store(p), v.store(p + V::N), v.store(p + 2 * V::N), v.store(p + 3 * V::N);
  }
  for (; p + V::N <= end; p += V::N) v.store(p);
  v.store(end - V::N);
}

// Elements looked at between two decisions whether to go on.
constexpr int64_t kBlock = 1024;

template <class T>
bool any_zero(const void* x, int64_t n) {
  const T* p = static_cast<const T*>(x);
  for (int64_t i = 0; i < n; i += kBlock) {
    const int64_t m = n - i < kBlock ? n - i : kBlock;
    bool zero = false;
    for (int64_t j = 0; j < m; ++j) zero |= p[i + j] == 0;
    if (zero) return true;
  }
  return false;
}

} // namespace

void convert(void* dst, DType dst_dtype, const void* src, DType src_dtype, int64_t n, bool stream) {
  if (dst_dtype == src_dtype) {
    const int64_t bytes = n * item_size(dst_dtype);
    if (stream) {
      stream_copy(static_cast<char*>(dst), static_cast<const char*>(src), bytes);
    } else {
      std::memcpy(dst, src, bytes);
    }
  } else {
    convert_fn(dst_dtype, src_dtype)(static_cast<char*>(dst), static_cast<const char*>(src), n);
  }
}

void splat(void* x, DType dtype, const void* value, DType value_dtype, int64_t n, bool stream) {
  // The bits of one element, whatever its type: fills are the same for all types of a size.
  uint64_t bits = 0;
  const int size = item_size(dtype);
  if (dtype == value_dtype && dtype != DType::b8) {
    // Once a row: worth a way without calls.
    if (size == 8) std::memcpy(&bits, value, 8);
    if (size == 4) std::memcpy(&bits, value, 4);
    if (size == 2) std::memcpy(&bits, value, 2);
    if (size == 1) std::memcpy(&bits, value, 1);
  } else {
    convert(&bits, dtype, value, value_dtype, 1);
  }
  if (bits == 0 || size == 1) {
    std::memset(x, static_cast<int>(bits & 0xff), n * size);
  } else if (size == 2) {
    fill_with(x, static_cast<uint16_t>(bits), n, stream);
  } else if (size == 4) {
    fill_with(x, static_cast<uint32_t>(bits), n, stream);
  } else {
    fill_with(x, bits, n, stream);
  }
}

void fill(void* x, DType dtype, Scalar value, int64_t n, bool stream) {
  splat(x, dtype, &value, is_floating(dtype) ? DType::f64 : DType::i64, n, stream);
}

bool contains_zero(const void* x, DType dtype, int64_t n) {
  switch (dtype) {
    case DType::u8:
    case DType::i8:
    case DType::b8:
      return any_zero<uint8_t>(x, n);
    case DType::i16:
      return any_zero<uint16_t>(x, n);
    case DType::i32:
      return any_zero<uint32_t>(x, n);
    case DType::i64:
      return any_zero<uint64_t>(x, n);
    default:
      return false;
  }
}

Scalar read_converted(const void* p, DType dtype, DType compute) {
  // By way of the compute type, which is what the element is converted to where it is not a scalar.
  uint64_t bits = 0;
  convert(&bits, compute, p, dtype, 1);
  Scalar s;
  if (is_floating(compute)) {
    convert(&s.d, DType::f64, &bits, compute, 1);
  } else {
    convert(&s.i, DType::i64, &bits, compute, 1);
  }
  return s;
}

} // namespace inplace_ext
