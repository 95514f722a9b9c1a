// Vec<T>: one vector register of T, for the instruction set this file is compiled for.
//
// GCC's and Clang's vector extensions carry the arithmetic, so one source serves SSE2, AVX2, AVX-512
// and NEON; intrinsics appear only where the extensions have no word for an instruction. Arithmetic is
// never contracted behind our back (-ffp-contract=off): a fused multiply-add is written as fma().
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "inplace_ext/dtype.h"
#include "inplace_ext/target.h"
#if defined(INPLACE_EXT_DEBUG)
#include <cstdio>
#include <cstdlib>
#endif
#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace inplace_ext {

#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512DQ__) && defined(__AVX512VL__)
#define INPLACE_EXT_AVX512 1
#define INPLACE_EXT_AVX2 1
constexpr int kVectorBytes = 64;
constexpr const char* kCapability = "avx512";
#elif defined(__AVX2__) && defined(__FMA__) && defined(__F16C__)
#define INPLACE_EXT_AVX2 1
constexpr int kVectorBytes = 32;
constexpr const char* kCapability = "avx2";
#else
constexpr int kVectorBytes = 16;
constexpr const char* kCapability = "baseline";
#endif

// True where a*b + c rounds once in hardware. Vector math may rely on it; exact operations use it
// exactly where torch does.
#if defined(__FMA__) || defined(__ARM_FEATURE_FMA)
constexpr bool kHasFma = true;
#else
constexpr bool kHasFma = false;
#endif

// What must hold of the places that are read and written; checked in builds of jit.load(debug=True) only.
#if defined(INPLACE_EXT_DEBUG)
[[noreturn]] inline void fail_assertion(const char* condition, const char* file, int line) {
  std::fprintf(stderr, "inplace_ext: %s:%d: it does not hold that %s\n", file, line, condition);
  std::abort();
}
#define IE_ASSERT(...) \
  ((__VA_ARGS__) ? static_cast<void>(0) : inplace_ext::fail_assertion(#__VA_ARGS__, __FILE__, __LINE__))
#else
#define IE_ASSERT(...) static_cast<void>(0)
#endif

template <class T, int N>
struct raw_vector {
  typedef T type __attribute__((vector_size(N * sizeof(T))));
};

// A mask: all ones or all zeros in each lane of `Size` bytes.
template <int Size>
struct Mask {
  using lane = typename int_of_size<Size>::type;
  static constexpr int N = kVectorBytes / Size;
  using raw = typename raw_vector<lane, N>::type;
  raw m;
  Mask() = default;
  IE_INLINE Mask(raw r) : m(r) {}
};
template <int S>
IE_INLINE Mask<S> operator&(Mask<S> a, Mask<S> b) {
  return Mask<S>(a.m & b.m);
}
template <int S>
IE_INLINE Mask<S> operator|(Mask<S> a, Mask<S> b) {
  return Mask<S>(a.m | b.m);
}
template <int S>
IE_INLINE Mask<S> operator^(Mask<S> a, Mask<S> b) {
  return Mask<S>(a.m ^ b.m);
}
template <int S>
IE_INLINE Mask<S> operator!(Mask<S> a) {
  return Mask<S>(~a.m);
}
template <int S>
IE_INLINE bool any(Mask<S> a) {
#if defined(INPLACE_EXT_AVX512)
  return _mm512_test_epi8_mask((__m512i)a.m, (__m512i)a.m) != 0;
#elif defined(INPLACE_EXT_AVX2)
  return _mm256_movemask_epi8((__m256i)a.m) != 0;
#elif defined(__SSE2__)
  return _mm_movemask_epi8((__m128i)a.m) != 0;
#else
  typename Mask<S>::lane r = 0;
  for (int i = 0; i < Mask<S>::N; ++i) r |= a.m[i];
  return r != 0;
#endif
}
template <int S>
IE_INLINE bool all(Mask<S> a) {
#if defined(INPLACE_EXT_AVX512)
  return _mm512_movepi8_mask((__m512i)a.m) == ~__mmask64(0);
#elif defined(INPLACE_EXT_AVX2)
  return _mm256_movemask_epi8((__m256i)a.m) == -1;
#elif defined(__SSE2__)
  return _mm_movemask_epi8((__m128i)a.m) == 0xffff;
#else
  return !any(!a);
#endif
}

template <class T>
struct Vec {
  using lane = T;
  using mask = Mask<sizeof(T)>;
  static constexpr int N = kVectorBytes / sizeof(T);
  using raw = typename raw_vector<T, N>::type;
  raw v;

  Vec() = default;
  IE_INLINE Vec(raw r) : v(r) {}
  // Broadcast. s - 0 keeps -0.0, which s + 0 would lose.
  IE_INLINE explicit Vec(T s) : v(s - raw{}) {}

  static IE_INLINE Vec load(const void* p) {
    Vec r;
    std::memcpy(&r.v, p, kVectorBytes);
    return r;
  }
  IE_INLINE void store(void* p) const {
    std::memcpy(p, &v, kVectorBytes);
  }
};

template <class T>
IE_INLINE T lane(Vec<T> a, int i) {
  return a.v[i];
}
template <class T>
IE_INLINE Vec<T> operator+(Vec<T> a, Vec<T> b) {
  return a.v + b.v;
}
template <class T>
IE_INLINE Vec<T> operator-(Vec<T> a, Vec<T> b) {
  return a.v - b.v;
}
template <class T>
IE_INLINE Vec<T> operator*(Vec<T> a, Vec<T> b) {
  return a.v * b.v;
}
template <class T>
IE_INLINE Vec<T> operator/(Vec<T> a, Vec<T> b) {
  return a.v / b.v;
}
#if defined(INPLACE_EXT_AVX512)
// In halves: the divider of 64-byte registers was 7% slower than twice that of 32-byte ones (Intel).
template <>
IE_INLINE Vec<double> operator/(Vec<double> a, Vec<double> b) {
  const __m256d low = _mm256_div_pd(_mm512_castpd512_pd256(a.v), _mm512_castpd512_pd256(b.v));
  const __m256d high = _mm256_div_pd(_mm512_extractf64x4_pd(a.v, 1), _mm512_extractf64x4_pd(b.v, 1));
  return _mm512_insertf64x4(_mm512_castpd256_pd512(low), high, 1);
}
#endif
template <class T>
IE_INLINE Vec<T> operator-(Vec<T> a) {
  return -a.v;
}
template <class T>
IE_INLINE Vec<T> operator&(Vec<T> a, Vec<T> b) {
  return a.v & b.v;
}
template <class T>
IE_INLINE Vec<T> operator|(Vec<T> a, Vec<T> b) {
  return a.v | b.v;
}
template <class T>
IE_INLINE Vec<T> operator^(Vec<T> a, Vec<T> b) {
  return a.v ^ b.v;
}
template <class T>
IE_INLINE Vec<T> operator<<(Vec<T> a, int n) {
  return a.v << n;
}
template <class T>
IE_INLINE Vec<T> operator>>(Vec<T> a, int n) {
  return a.v >> n;
}
#define IE_COMPARE(OP)                                                   \
  template <class T>                                                     \
  IE_INLINE Mask<sizeof(T)> operator OP(Vec<T> a, Vec<T> b) {            \
    return Mask<sizeof(T)>((typename Mask<sizeof(T)>::raw)(a.v OP b.v)); \
  }
IE_COMPARE(<)
IE_COMPARE(<=)
IE_COMPARE(>)
IE_COMPARE(>=)
IE_COMPARE(==)
IE_COMPARE(!=)
#undef IE_COMPARE

// Is a < b everywhere? Where comparisons give bits, without the detour through a register of lanes.
template <class T>
IE_INLINE bool all_less(Vec<T> a, Vec<T> b) {
#if defined(INPLACE_EXT_AVX512)
  if constexpr (std::is_same_v<T, float>) return _mm512_cmp_ps_mask(a.v, b.v, _CMP_NLT_UQ) == 0;
  if constexpr (std::is_same_v<T, double>) return _mm512_cmp_pd_mask(a.v, b.v, _CMP_NLT_UQ) == 0;
#endif
  return all(a < b);
}

template <class T>
IE_INLINE Vec<T> select(Mask<sizeof(T)> m, Vec<T> a, Vec<T> b) {
  return m.m ? a.v : b.v;
}

// The same bits read as another lane type of the same size.
template <class To, class T>
IE_INLINE Vec<To> bitcast(Vec<T> a) {
  static_assert(sizeof(To) == sizeof(T), "lanes must have the same size");
  return (typename Vec<To>::raw)a.v;
}
// Lane by lane conversion between types of the same size (float <-> int32, double <-> int64), truncating.
template <class To, class T>
IE_INLINE Vec<To> convert(Vec<T> a) {
  static_assert(sizeof(To) == sizeof(T), "lanes must have the same size");
  return __builtin_convertvector(a.v, typename Vec<To>::raw);
}

// f applied to each lane: for what has no vector form.
template <class F, class T, class... Rest>
IE_INLINE Vec<T> map_lanes(F f, Vec<T> a, Rest... rest) {
  T out[Vec<T>::N];
  for (int i = 0; i < Vec<T>::N; ++i) out[i] = f(a.v[i], rest.v[i]...);
  return Vec<T>::load(out);
}

// a*b + c: fused where the hardware has it (kHasFma), else rounded twice.
template <class T>
IE_INLINE Vec<T> fma(Vec<T> a, Vec<T> b, Vec<T> c) {
  return a * b + c;
}
template <class T>
IE_INLINE Vec<T> sqrt(Vec<T> a) {
  return map_lanes([](T x) { return std::sqrt(x); }, a);
}
// x > y ? x : y and x < y ? x : y, in exactly this form: the second operand where either is NaN or the
// two are equal (so max(lo, x) keeps the NaN and the -0.0 of x). One instruction on x86.
template <class T>
IE_INLINE Vec<T> max(Vec<T> x, Vec<T> y) {
  return x.v > y.v ? x.v : y.v;
}
template <class T>
IE_INLINE Vec<T> min(Vec<T> x, Vec<T> y) {
  return x.v < y.v ? x.v : y.v;
}
// Nearest integer, ties to even.
template <class T>
IE_INLINE Vec<T> rint(Vec<T> a) {
  return map_lanes([](T x) { return std::nearbyint(x); }, a);
}
template <class T>
IE_INLINE Vec<T> floor(Vec<T> a) {
  return map_lanes([](T x) { return std::floor(x); }, a);
}
template <class T>
IE_INLINE Vec<T> ceil(Vec<T> a) {
  return map_lanes([](T x) { return std::ceil(x); }, a);
}
template <class T>
IE_INLINE Vec<T> trunc(Vec<T> a) {
  return map_lanes([](T x) { return std::trunc(x); }, a);
}

#if defined(INPLACE_EXT_AVX512)
#define IE_X86(SUFFIX, T)                              \
  template <>                                          \
  IE_INLINE Vec<T> fma(Vec<T> a, Vec<T> b, Vec<T> c) { \
    return _mm512_fmadd_##SUFFIX(a.v, b.v, c.v);       \
  }                                                    \
  template <>                                          \
  IE_INLINE Vec<T> sqrt(Vec<T> a) {                    \
    return _mm512_sqrt_##SUFFIX(a.v);                  \
  }                                                    \
  template <>                                          \
  IE_INLINE Vec<T> max(Vec<T> a, Vec<T> b) {           \
    return _mm512_max_##SUFFIX(a.v, b.v);              \
  }                                                    \
  template <>                                          \
  IE_INLINE Vec<T> min(Vec<T> a, Vec<T> b) {           \
    return _mm512_min_##SUFFIX(a.v, b.v);              \
  }                                                    \
  template <>                                          \
  IE_INLINE Vec<T> rint(Vec<T> a) {                    \
    return _mm512_roundscale_##SUFFIX(a.v, 0x08);      \
  }                                                    \
  template <>                                          \
  IE_INLINE Vec<T> floor(Vec<T> a) {                   \
    return _mm512_roundscale_##SUFFIX(a.v, 0x09);      \
  }                                                    \
  template <>                                          \
  IE_INLINE Vec<T> ceil(Vec<T> a) {                    \
    return _mm512_roundscale_##SUFFIX(a.v, 0x0a);      \
  }                                                    \
  template <>                                          \
  IE_INLINE Vec<T> trunc(Vec<T> a) {                   \
    return _mm512_roundscale_##SUFFIX(a.v, 0x0b);      \
  }
IE_X86(ps, float)
IE_X86(pd, double)
#undef IE_X86
#elif defined(INPLACE_EXT_AVX2)
#define IE_X86(SUFFIX, T)                              \
  template <>                                          \
  IE_INLINE Vec<T> fma(Vec<T> a, Vec<T> b, Vec<T> c) { \
    return _mm256_fmadd_##SUFFIX(a.v, b.v, c.v);       \
  }                                                    \
  template <>                                          \
  IE_INLINE Vec<T> sqrt(Vec<T> a) {                    \
    return _mm256_sqrt_##SUFFIX(a.v);                  \
  }                                                    \
  template <>                                          \
  IE_INLINE Vec<T> max(Vec<T> a, Vec<T> b) {           \
    return _mm256_max_##SUFFIX(a.v, b.v);              \
  }                                                    \
  template <>                                          \
  IE_INLINE Vec<T> min(Vec<T> a, Vec<T> b) {           \
    return _mm256_min_##SUFFIX(a.v, b.v);              \
  }                                                    \
  template <>                                          \
  IE_INLINE Vec<T> rint(Vec<T> a) {                    \
    return _mm256_round_##SUFFIX(a.v, 0x08);           \
  }                                                    \
  template <>                                          \
  IE_INLINE Vec<T> floor(Vec<T> a) {                   \
    return _mm256_round_##SUFFIX(a.v, 0x09);           \
  }                                                    \
  template <>                                          \
  IE_INLINE Vec<T> ceil(Vec<T> a) {                    \
    return _mm256_round_##SUFFIX(a.v, 0x0a);           \
  }                                                    \
  template <>                                          \
  IE_INLINE Vec<T> trunc(Vec<T> a) {                   \
    return _mm256_round_##SUFFIX(a.v, 0x0b);           \
  }
IE_X86(ps, float)
IE_X86(pd, double)
#undef IE_X86
#elif defined(__SSE2__)
#define IE_X86(SUFFIX, T)                    \
  template <>                                \
  IE_INLINE Vec<T> sqrt(Vec<T> a) {          \
    return _mm_sqrt_##SUFFIX(a.v);           \
  }                                          \
  template <>                                \
  IE_INLINE Vec<T> max(Vec<T> a, Vec<T> b) { \
    return _mm_max_##SUFFIX(a.v, b.v);       \
  }                                          \
  template <>                                \
  IE_INLINE Vec<T> min(Vec<T> a, Vec<T> b) { \
    return _mm_min_##SUFFIX(a.v, b.v);       \
  }
IE_X86(ps, float)
IE_X86(pd, double)
#undef IE_X86
#elif defined(__ARM_FEATURE_FMA)
template <class T>
IE_INLINE Vec<T> fma_lanes(Vec<T> a, Vec<T> b, Vec<T> c) {
  return map_lanes([](T x, T y, T z) { return std::fma(x, y, z); }, a, b, c);
}
template <>
IE_INLINE Vec<float> fma(Vec<float> a, Vec<float> b, Vec<float> c) {
  return fma_lanes(a, b, c);
}
template <>
IE_INLINE Vec<double> fma(Vec<double> a, Vec<double> b, Vec<double> c) {
  return fma_lanes(a, b, c);
}
#endif

#if defined(INPLACE_EXT_AVX512)
// p, of which the compiler is to know nothing. The instruction of lookup() overwrites one half of the table:
// read anew each time it comes from a load unit that idles, while a copy of a register would take the place
// of arithmetic.
template <class T>
IE_INLINE const T* anew(const T* p) {
  asm volatile("" : "+r"(p));
  return p;
}
// table[index], by the lowest bits of each index: tables that fill two registers.
IE_INLINE Vec<float> lookup(const float (&table)[32], Vec<int32_t> index) {
  return _mm512_permutex2var_ps(_mm512_load_ps(anew(table)), (__m512i)index.v, _mm512_load_ps(table + 16));
}
IE_INLINE Vec<double> lookup(const double (&table)[16], Vec<int64_t> index) {
  return _mm512_permutex2var_pd(_mm512_load_pd(anew(table)), (__m512i)index.v, _mm512_load_pd(table + 8));
}
#endif

template <class T>
IE_INLINE Vec<T> abs(Vec<T> a) {
  using I = typename Mask<sizeof(T)>::lane;
  if constexpr (std::is_floating_point_v<T>) {
    return bitcast<T>(bitcast<I>(a) & Vec<I>(static_cast<I>(~(I(1) << (8 * sizeof(T) - 1)))));
  } else {
    return a.v < typename Vec<T>::raw{} ? -a.v : a.v;
  }
}
// |a| with the sign bit of b.
template <class T>
IE_INLINE Vec<T> copysign(Vec<T> a, Vec<T> b) {
  using I = typename Mask<sizeof(T)>::lane;
  const Vec<I> sign(static_cast<I>(I(1) << (8 * sizeof(T) - 1)));
  return bitcast<T>((bitcast<I>(a) & Vec<I>(~sign.v)) | (bitcast<I>(b) & sign));
}

// a, negative where b is: copysign for an a that is positive or has the sign of b already.
template <class T>
IE_INLINE Vec<T> with_sign(Vec<T> a, Vec<T> b) {
  using I = typename Mask<sizeof(T)>::lane;
  const Vec<I> sign(static_cast<I>(I(1) << (8 * sizeof(T) - 1)));
  return bitcast<T>(bitcast<I>(a) | (bitcast<I>(b) & sign));
}

// A float vector as two double vectors of half the lanes each, and back (rounded to nearest).
struct DoublePair {
  Vec<double> lo, hi;
};
IE_INLINE DoublePair widen(Vec<float> a) {
#if defined(INPLACE_EXT_AVX512)
  return {_mm512_cvtps_pd(_mm512_castps512_ps256(a.v)), _mm512_cvtps_pd(_mm512_extractf32x8_ps(a.v, 1))};
#elif defined(INPLACE_EXT_AVX2)
  return {_mm256_cvtps_pd(_mm256_castps256_ps128(a.v)), _mm256_cvtps_pd(_mm256_extractf128_ps(a.v, 1))};
#else
  using half_raw = typename raw_vector<float, Vec<double>::N>::type;
  half_raw half[2];
  std::memcpy(half, &a.v, kVectorBytes);
  return {__builtin_convertvector(half[0], Vec<double>::raw),
          __builtin_convertvector(half[1], Vec<double>::raw)};
#endif
}
IE_INLINE Vec<float> narrow(DoublePair p) {
#if defined(INPLACE_EXT_AVX512)
  return _mm512_insertf32x8(_mm512_castps256_ps512(_mm512_cvtpd_ps(p.lo.v)), _mm512_cvtpd_ps(p.hi.v), 1);
#elif defined(INPLACE_EXT_AVX2)
  return _mm256_insertf128_ps(_mm256_castps128_ps256(_mm256_cvtpd_ps(p.lo.v)), _mm256_cvtpd_ps(p.hi.v), 1);
#else
  using half_raw = typename raw_vector<float, Vec<double>::N>::type;
  const half_raw half[2] = {__builtin_convertvector(p.lo.v, half_raw),
                            __builtin_convertvector(p.hi.v, half_raw)};
  return Vec<float>::load(half);
#endif
}

// As many small integers as a float vector has lanes, as int32 and back (the low bits), at any address. GCC
// 12 has no vector form of these conversions.
template <class T>
IE_INLINE Vec<int32_t> load_int32(const T* p) {
  typename raw_vector<T, Vec<int32_t>::N>::type in;
  std::memcpy(&in, p, sizeof(in));
#if defined(INPLACE_EXT_AVX512)
  if constexpr (std::is_same_v<T, uint8_t>) return (Vec<int32_t>::raw)_mm512_cvtepu8_epi32((__m128i)in);
  if constexpr (std::is_same_v<T, int8_t>) return (Vec<int32_t>::raw)_mm512_cvtepi8_epi32((__m128i)in);
  if constexpr (std::is_same_v<T, int16_t>) return (Vec<int32_t>::raw)_mm512_cvtepi16_epi32((__m256i)in);
#elif defined(INPLACE_EXT_AVX2)
  if constexpr (sizeof(T) == 1) {
    const __m128i low = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(p));
    return (Vec<int32_t>::raw)(std::is_same_v<T, uint8_t> ? _mm256_cvtepu8_epi32(low)
                                                          : _mm256_cvtepi8_epi32(low));
  }
  if constexpr (std::is_same_v<T, int16_t>) return (Vec<int32_t>::raw)_mm256_cvtepi16_epi32((__m128i)in);
#elif defined(__SSE2__)
  // Unpacked with itself, the value lands in the upper bits, from where a shift extends it.
  if constexpr (sizeof(T) == 1) {
    int bits;
    std::memcpy(&bits, p, sizeof(bits));
    const __m128i bytes = _mm_cvtsi32_si128(bits), words = _mm_unpacklo_epi8(bytes, bytes);
    const __m128i top = _mm_unpacklo_epi16(words, words);
    return (Vec<int32_t>::raw)(std::is_same_v<T, uint8_t> ? _mm_srli_epi32(top, 24)
                                                          : _mm_srai_epi32(top, 24));
  }
  if constexpr (std::is_same_v<T, int16_t>) {
    const __m128i words = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(p));
    return (Vec<int32_t>::raw)_mm_srai_epi32(_mm_unpacklo_epi16(words, words), 16);
  }
#endif
  return __builtin_convertvector(in, Vec<int32_t>::raw);
}
template <class T>
IE_INLINE void store_int32(T* p, Vec<int32_t> a) {
  typename raw_vector<T, Vec<int32_t>::N>::type out;
#if defined(INPLACE_EXT_AVX512)
  if constexpr (sizeof(T) == 1) {
    out = (decltype(out))_mm512_cvtepi32_epi8((__m512i)a.v);
  } else if constexpr (sizeof(T) == 2) {
    out = (decltype(out))_mm512_cvtepi32_epi16((__m512i)a.v);
  } else
#elif defined(INPLACE_EXT_AVX2)
  if constexpr (sizeof(T) <= 2) {
    // The wanted bytes of each half to its bottom, then the two bottoms together.
    const __m256i bytes = _mm256_setr_epi8(0, 4, 8, 12, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, 0, 4,
                                           8, 12, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1);
    const __m256i words = _mm256_setr_epi8(0, 1, 4, 5, 8, 9, 12, 13, -1, -1, -1, -1, -1, -1, -1, -1, 0, 1, 4,
                                           5, 8, 9, 12, 13, -1, -1, -1, -1, -1, -1, -1, -1);
    const __m256i in_half = _mm256_shuffle_epi8((__m256i)a.v, sizeof(T) == 1 ? bytes : words);
    const __m128i low = _mm256_castsi256_si128(in_half), high = _mm256_extracti128_si256(in_half, 1);
    const __m128i both = sizeof(T) == 1 ? _mm_unpacklo_epi32(low, high) : _mm_unpacklo_epi64(low, high);
    std::memcpy(&out, &both, sizeof(out));
  } else
#endif
  {
    out = __builtin_convertvector(a.v, decltype(out));
  }
  std::memcpy(p, &out, sizeof(out));
}

// As many bytes as a vector of T has lanes, each extended with zeros; T is an integer.
template <class T>
IE_INLINE Vec<T> widen_bytes(const char* p) {
  if constexpr (sizeof(T) == 1) {
    return Vec<T>::load(p);
  } else if constexpr (sizeof(T) == 4) {
    return bitcast<T>(load_int32(reinterpret_cast<const uint8_t*>(p)));
  } else {
    typename raw_vector<uint8_t, Vec<T>::N>::type in;
    std::memcpy(&in, p, sizeof(in));
    using raw = typename Vec<T>::raw;
#if defined(INPLACE_EXT_AVX512)
    if constexpr (sizeof(T) == 2) return (raw)_mm512_cvtepu8_epi16((__m256i)in);
    if constexpr (sizeof(T) == 8) return (raw)_mm512_cvtepu8_epi64(_mm_loadl_epi64((const __m128i*)p));
#elif defined(INPLACE_EXT_AVX2)
    if constexpr (sizeof(T) == 2) return (raw)_mm256_cvtepu8_epi16((__m128i)in);
    if constexpr (sizeof(T) == 8) {
      int bits;
      std::memcpy(&bits, p, sizeof(bits));
      return (raw)_mm256_cvtepu8_epi64(_mm_cvtsi32_si128(bits));
    }
#endif
    return __builtin_convertvector(in, raw);
  }
}
// The first n of them, fewer than there are lanes, zeros above.
template <class T>
IE_INLINE Vec<T> widen_some_bytes(const char* p, int n) {
  char in[Vec<T>::N] = {};
  for (int i = 0; i < n; ++i) in[i] = p[i];
  return widen_bytes<T>(in);
}

// int64 as double and back for |a| < 2^51, where adding 1.5 * 2^52 puts an integer into the low bits of a
// double: before AVX-512 there is no instruction for it.
IE_INLINE Vec<double> small_to_double(Vec<int64_t> a) {
  const Vec<double> magic(0x1.8p52);
  return bitcast<double>(a + bitcast<int64_t>(magic)) - magic;
}
IE_INLINE Vec<int64_t> small_to_int(Vec<double> integral) {
  const Vec<double> magic(0x1.8p52);
  return bitcast<int64_t>(integral + magic) - bitcast<int64_t>(magic);
}

// Integer quotient, truncated; no divisor may be 0, nor -1 of a signed type. Processors divide integers one
// at a time, so it is computed in floating point wherever that is exact: the quotient lies at least 1/b away
// from the next integer, more than the rounding can move it, if the type has twice the bits (or the numbers
// are small).
template <class T>
IE_INLINE Vec<T> quotient(Vec<T> a, Vec<T> b) {
  if constexpr (sizeof(T) == 8) {
    const Vec<T> limit(T(1) << 51), zero(T(0));
    if (all((a < limit) & (zero - limit < a) & (b < limit) & (zero - limit < b))) {
      return small_to_int(trunc(small_to_double(a) / small_to_double(b)));
    }
    return map_lanes([](T x, T y) { return x / y; }, a, b);
  } else if constexpr (sizeof(T) == 4) {
    using half = typename raw_vector<T, Vec<double>::N>::type;
    half x[2], y[2];
    std::memcpy(x, &a, kVectorBytes);
    std::memcpy(y, &b, kVectorBytes);
    for (int i = 0; i < 2; ++i) {
      const auto q =
          __builtin_convertvector(x[i], Vec<double>::raw) / __builtin_convertvector(y[i], Vec<double>::raw);
      x[i] = __builtin_convertvector(q, half);
    }
    return Vec<T>::load(x);
  } else {
    T x[Vec<T>::N], y[Vec<T>::N];
    a.store(x);
    b.store(y);
    for (int i = 0; i < Vec<T>::N; i += Vec<float>::N) {
      const Vec<float> q = convert<float>(load_int32(x + i)) / convert<float>(load_int32(y + i));
      store_int32(x + i, convert<int32_t>(q));
    }
    return Vec<T>::load(x);
  }
}

} // namespace inplace_ext
