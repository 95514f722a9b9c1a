// Loads and stores between memory and vectors of the compute type, for every storage type: conversion happens
// in registers. Partial forms take fewer elements than a register holds and touch no byte beyond them.
#pragma once
#include <cstring>

#include "simd.h"

namespace inplace_ext {

template <class S>
using ComputeOf = typename storage_traits<S>::compute;
template <class S>
using VecOf = Vec<ComputeOf<S>>;

// The bits of half a register of 16-bit floats, one per lane of a float vector.
using half_bits = typename raw_vector<uint16_t, Vec<float>::N>::type;
using float_bits = typename raw_vector<uint32_t, Vec<float>::N>::type;

IE_INLINE Vec<float> from_bits(half_bits h, bfloat16_t) {
  return Vec<float>((Vec<float>::raw)(__builtin_convertvector(h, float_bits) << 16));
}
// The low half of each lane, of values below 2^16.
IE_INLINE half_bits low_words(float_bits bits) {
#if defined(INPLACE_EXT_AVX512)
  return (half_bits)_mm512_cvtepi32_epi16((__m512i)bits);
#elif defined(INPLACE_EXT_AVX2)
  const __m256i packed = _mm256_packus_epi32((__m256i)bits, (__m256i)bits);
  return (half_bits)_mm256_castsi256_si128(_mm256_permute4x64_epi64(packed, 0x08));
#elif defined(__SSE2__)
  // There is no unsigned pack before SSE4.1: make the words signed first.
  const __m128i words = _mm_srai_epi32(_mm_slli_epi32((__m128i)bits, 16), 16);
  const __m128i packed = _mm_packs_epi32(words, words);
  half_bits h;
  std::memcpy(&h, &packed, sizeof(h));
  return h;
#else
  return __builtin_convertvector(bits, half_bits);
#endif
}

// Rounded to nearest, ties to even, in the upper half of each lane; NaN becomes the quiet NaN 0x7fc0.
IE_INLINE float_bits round_to_bfloat16(Vec<float> f) {
#if defined(INPLACE_EXT_AVX512)
  const __m512i u = (__m512i)f.v;
  const __mmask16 odd = _mm512_test_epi32_mask(u, _mm512_set1_epi32(0x10000));
  __m512i r = _mm512_add_epi32(u, _mm512_set1_epi32(0x7fff));
  r = _mm512_mask_add_epi32(r, odd, r, _mm512_set1_epi32(1));
  const __mmask16 nan = _mm512_cmp_ps_mask(f.v, f.v, _CMP_UNORD_Q);
  return (float_bits)_mm512_mask_mov_epi32(r, nan, _mm512_set1_epi32(0x7fc00000));
#else
  const float_bits u = (float_bits)f.v;
  return (f.v == f.v) ? u + 0x7fff + ((u >> 16) & 1) : (float_bits{} + 0x7fc00000);
#endif
}
IE_INLINE half_bits to_bits(Vec<float> f, bfloat16_t) {
  return low_words(round_to_bfloat16(f) >> 16);
}

#if defined(INPLACE_EXT_AVX512)
IE_INLINE Vec<float> from_bits(half_bits h, half_t) {
  return _mm512_cvtph_ps((__m256i)h);
}
IE_INLINE half_bits to_bits(Vec<float> f, half_t) {
  return (half_bits)_mm512_cvtps_ph(f.v, _MM_FROUND_TO_NEAREST_INT);
}
#elif defined(INPLACE_EXT_AVX2)
IE_INLINE Vec<float> from_bits(half_bits h, half_t) {
  return _mm256_cvtph_ps((__m128i)h);
}
IE_INLINE half_bits to_bits(Vec<float> f, half_t) {
  return (half_bits)_mm256_cvtps_ph(f.v, _MM_FROUND_TO_NEAREST_INT);
}
#else
// Without conversion instructions: move the exponent and mantissa into place and let a float multiplication
// by a power of two rescale them, which is exact and also turns denormals right.
IE_INLINE Vec<float> from_bits(half_bits h, half_t) {
  const float_bits u = __builtin_convertvector(h, float_bits);
  const float_bits magnitude = (u & 0x7fff) << 13;
  const Vec<float> scaled = Vec<float>((Vec<float>::raw)magnitude) * Vec<float>(0x1p112f);
  const float_bits inf_or_nan = (u & 0x7fff) >= 0x7c00 ? float_bits{} + 0x7f800000 : float_bits{};
  return Vec<float>((Vec<float>::raw)((float_bits)scaled.v | inf_or_nan | ((u & 0x8000) << 16)));
}
// Rounding happens in one float addition: for normal results of a number that carries the half's ulp, for
// denormal ones of a constant whose own ulp is the smallest half.
IE_INLINE half_bits to_bits(Vec<float> f, half_t) {
  const float_bits u = (float_bits)f.v;
  const float_bits sign = (u >> 16) & 0x8000;
  const float_bits magnitude = u & 0x7fffffff;
  const float_bits normal = (magnitude - 0x38000000 + 0xfff + ((magnitude >> 13) & 1)) >> 13;
  const Vec<float> denormal_sum = Vec<float>((Vec<float>::raw)magnitude) + Vec<float>(0.5f);
  const float_bits denormal = (float_bits)denormal_sum.v - 0x3f000000;
  float_bits result = magnitude < 0x38800000 ? denormal : normal;
  result = magnitude >= 0x477ff000 ? float_bits{} + 0x7c00 : result;
  result = magnitude > 0x7f800000 ? float_bits{} + 0x7e00 : result;
  return low_words(result | sign);
}
#endif

// The first `bytes` of a register, fewer than it has, zeros above.
template <class R>
IE_INLINE R load_bytes(const void* p, int bytes) {
  IE_ASSERT(bytes >= 0 && bytes < static_cast<int>(sizeof(R)));
#if defined(INPLACE_EXT_AVX512)
  return (R)_mm512_maskz_loadu_epi8((__mmask64(1) << bytes) - 1, p);
#else
  R r{};
  std::memcpy(&r, p, bytes);
  return r;
#endif
}
// A few bytes, fewer than a call of memcpy is worth: in words, of which the last overlaps the one before it.
// No masked stores: loads of what lies beside them wait, and what lies beside a short row is the next one.
template <class Word>
IE_INLINE void copy_words(char* dst, const char* src, int64_t bytes) {
  constexpr int64_t kSize = sizeof(Word);
  for (int64_t i = 0; i + kSize <= bytes; i += kSize) std::memcpy(dst + i, src + i, kSize);
  std::memcpy(dst + bytes - kSize, src + bytes - kSize, kSize);
}
IE_INLINE void copy_run(char* dst, const char* src, int64_t bytes) {
  // The widest word: what is read next as a vector should be there in one piece.
  if (kVectorBytes >= 64 && bytes >= 64) {
    copy_words<raw_vector<uint8_t, 64>::type>(dst, src, bytes);
  } else if (kVectorBytes >= 32 && bytes >= 32) {
    copy_words<raw_vector<uint8_t, 32>::type>(dst, src, bytes);
  } else if (bytes >= 16) {
    copy_words<raw_vector<uint8_t, 16>::type>(dst, src, bytes);
  } else if (bytes >= 8) {
    copy_words<uint64_t>(dst, src, bytes);
  } else if (bytes >= 4) {
    copy_words<uint32_t>(dst, src, bytes);
  } else {
    for (int64_t i = 0; i < bytes; ++i) dst[i] = src[i];
  }
}
// Calls f with a word of the size of the elements: fills and copies are the same for all types of a size.
template <class F>
IE_INLINE void with_word(DType dtype, F f) {
  switch (item_size(dtype)) {
    case 1:
      return f(uint8_t{});
    case 2:
      return f(uint16_t{});
    case 4:
      return f(uint32_t{});
    default:
      return f(uint64_t{});
  }
}
// A row of copies of the vector at `pattern`, which holds elements of so many bytes. Stores overlap at the
// ends, where they store the same; from two vectors on those between are aligned, since one across two lines
// of the cache counts twice.
IE_INLINE void fill_row(char* x, const char* pattern, int64_t bytes, int item) {
  if (bytes < kVectorBytes) return copy_run(x, pattern, bytes);
  const auto v = Vec<uint8_t>::load(pattern);
  const auto at = reinterpret_cast<uintptr_t>(x);
  int64_t i = 0;
  if (bytes >= 2 * kVectorBytes && (at & (item - 1)) == 0) {
    v.store(x);
    i = kVectorBytes - static_cast<int64_t>(at % kVectorBytes);
  }
  for (; i + kVectorBytes <= bytes; i += kVectorBytes) v.store(x + i);
  if (i < bytes) v.store(x + bytes - kVectorBytes);
}
#if defined(INPLACE_EXT_AVX512)
// By way of memory; out of line, for it is in every loop, which most end with. GCC 12 does not clear the
// upper halves of the registers behind a function that takes a vector: the caller's SSE code would then run
// at a fraction of its speed (0.3 us for a small call from Python).
__attribute__((noinline)) inline void store_part(void* p, __m512i r, int bytes) {
  alignas(64) char part[64];
  _mm512_store_si512(part, r);
  copy_run(static_cast<char*>(p), part, bytes);
  _mm256_zeroupper();
}
#endif
template <class R>
IE_INLINE void store_bytes(void* p, R r, int bytes) {
  IE_ASSERT(bytes >= 0 && bytes < static_cast<int>(sizeof(R)));
#if defined(INPLACE_EXT_AVX512)
  store_part(p, (__m512i)r, bytes);
#else
  std::memcpy(p, &r, bytes);
#endif
}

template <class S>
constexpr bool is_half_v = std::is_same_v<S, half_t> || std::is_same_v<S, bfloat16_t>;

// One vector of consecutive elements: for the pipeline, where tensors of several dtypes meet in one order.
template <class S>
IE_INLINE VecOf<S> load(const char* p) {
  if constexpr (is_half_v<S>) {
    half_bits h;
    std::memcpy(&h, p, sizeof(h));
    return from_bits(h, S{});
  } else {
    return VecOf<S>::load(p);
  }
}
template <class S>
IE_INLINE void store(char* p, VecOf<S> v) {
  if constexpr (is_half_v<S>) {
    const half_bits h = to_bits(v, S{});
    std::memcpy(p, &h, sizeof(h));
  } else {
    v.store(p);
  }
}

// ---- groups: one register of storage, as one vector of the compute type or two
// --------------------------------
//
// For the plain loops, where all tensors are of one dtype: the two vectors of a 16-bit register need not hold
// its elements in order as long as packing undoes it, which saves the shuffles across lanes.

using Bits16 = Vec<uint16_t>;

template <class S>
struct Group {
  static constexpr int kVectors = is_half_v<S> ? 2 : 1;
  static constexpr int kElements = kVectorBytes / static_cast<int>(sizeof(S));
  VecOf<S> v[kVectors];
};

IE_INLINE Group<bfloat16_t> unpack(Bits16 h, bfloat16_t) {
#if defined(INPLACE_EXT_AVX512)
  const __m512i zero = _mm512_setzero_si512(), bits = (__m512i)h.v;
  return {{Vec<float>((Vec<float>::raw)_mm512_unpacklo_epi16(zero, bits)),
           Vec<float>((Vec<float>::raw)_mm512_unpackhi_epi16(zero, bits))}};
#elif defined(INPLACE_EXT_AVX2)
  const __m256i zero = _mm256_setzero_si256(), bits = (__m256i)h.v;
  return {{Vec<float>((Vec<float>::raw)_mm256_unpacklo_epi16(zero, bits)),
           Vec<float>((Vec<float>::raw)_mm256_unpackhi_epi16(zero, bits))}};
#elif defined(__SSE2__)
  const __m128i zero = _mm_setzero_si128(), bits = (__m128i)h.v;
  return {{Vec<float>((Vec<float>::raw)_mm_unpacklo_epi16(zero, bits)),
           Vec<float>((Vec<float>::raw)_mm_unpackhi_epi16(zero, bits))}};
#else
  half_bits part[2];
  std::memcpy(part, &h, kVectorBytes);
  return {{from_bits(part[0], bfloat16_t{}), from_bits(part[1], bfloat16_t{})}};
#endif
}
IE_INLINE Group<half_t> unpack(Bits16 h, half_t) {
  half_bits part[2];
#if defined(INPLACE_EXT_AVX512)
  part[0] = (half_bits)_mm512_castsi512_si256((__m512i)h.v);
  part[1] = (half_bits)_mm512_extracti64x4_epi64((__m512i)h.v, 1);
#elif defined(INPLACE_EXT_AVX2)
  part[0] = (half_bits)_mm256_castsi256_si128((__m256i)h.v);
  part[1] = (half_bits)_mm256_extracti128_si256((__m256i)h.v, 1);
#else
  std::memcpy(part, &h, kVectorBytes);
#endif
  return {{from_bits(part[0], half_t{}), from_bits(part[1], half_t{})}};
}

IE_INLINE Bits16 pack(const Group<bfloat16_t>& g) {
  const float_bits lo = round_to_bfloat16(g.v[0]), hi = round_to_bfloat16(g.v[1]);
#if defined(INPLACE_EXT_AVX512)
  // The upper halves of the lanes of both, in the order that unpack took them apart.
  alignas(64) static constexpr uint16_t kOrder[32] = {1,  3,  5,  7,  33, 35, 37, 39, 9,  11, 13,
                                                      15, 41, 43, 45, 47, 17, 19, 21, 23, 49, 51,
                                                      53, 55, 25, 27, 29, 31, 57, 59, 61, 63};
  return (Bits16::raw)_mm512_permutex2var_epi16((__m512i)lo, _mm512_load_si512(kOrder), (__m512i)hi);
#elif defined(INPLACE_EXT_AVX2)
  return (Bits16::raw)_mm256_packus_epi32((__m256i)(lo >> 16), (__m256i)(hi >> 16));
#elif defined(__SSE2__)
  // A shift with the sign stands in for the unsigned pack that came with SSE4.1.
  return (Bits16::raw)_mm_packs_epi32(_mm_srai_epi32((__m128i)lo, 16), _mm_srai_epi32((__m128i)hi, 16));
#else
  const half_bits part[2] = {low_words(lo >> 16), low_words(hi >> 16)};
  return Bits16::load(part);
#endif
}
IE_INLINE Bits16 pack(const Group<half_t>& g) {
  const half_bits lo = to_bits(g.v[0], half_t{}), hi = to_bits(g.v[1], half_t{});
#if defined(INPLACE_EXT_AVX512)
  return (Bits16::raw)_mm512_inserti64x4(_mm512_castsi256_si512((__m256i)lo), (__m256i)hi, 1);
#elif defined(INPLACE_EXT_AVX2)
  return (Bits16::raw)_mm256_inserti128_si256(_mm256_castsi128_si256((__m128i)lo), (__m128i)hi, 1);
#else
  const half_bits part[2] = {lo, hi};
  return Bits16::load(part);
#endif
}

template <class S>
IE_INLINE Group<S> load_group(const char* p) {
  if constexpr (std::is_same_v<S, half_t>) {
    return {{load<S>(p), load<S>(p + kVectorBytes / 2)}}; // conversion takes its operand from memory
  } else if constexpr (is_half_v<S>) {
    return unpack(Bits16::load(p), S{});
  } else if constexpr (std::is_same_v<S, bool_t>) {
    return {{min(VecOf<S>::load(p), VecOf<S>(uint8_t(1)))}}; // any byte that is not 0 is true
  } else {
    return {{VecOf<S>::load(p)}};
  }
}
template <class S>
IE_INLINE void store_group(char* p, const Group<S>& g) {
  if constexpr (std::is_same_v<S, half_t>) {
    store<S>(p, g.v[0]);
    store<S>(p + kVectorBytes / 2, g.v[1]);
  } else if constexpr (is_half_v<S>) {
    pack(g).store(p);
  } else {
    g.v[0].store(p);
  }
}
// The first n elements of a group, zeros for the others.
template <class S>
IE_INLINE Group<S> load_partial(const char* p, int n) {
  const int bytes = n * static_cast<int>(sizeof(S));
  if constexpr (is_half_v<S>) {
    return unpack(Bits16(load_bytes<Bits16::raw>(p, bytes)), S{});
  } else if constexpr (std::is_same_v<S, bool_t>) {
    return {{min(VecOf<S>(load_bytes<typename VecOf<S>::raw>(p, bytes)), VecOf<S>(uint8_t(1)))}};
  } else {
    return {{VecOf<S>(load_bytes<typename VecOf<S>::raw>(p, bytes))}};
  }
}
// A mask of bytes for a group of S: lanes that are not 0 where the byte is not. As floats they are NaN, and
// so different from 0 even where denormals count as 0. For the 16-bit floats there is loop_on_bits.
template <class S>
IE_INLINE Group<S> mask_group(Vec<typename int_of_size<sizeof(ComputeOf<S>)>::type> bytes) {
  using I = typename int_of_size<sizeof(ComputeOf<S>)>::type;
  return {{bitcast<ComputeOf<S>>(Vec<I>(I(0)) - bytes)}};
}
template <class S>
IE_INLINE Group<S> load_mask(const char* p) {
  return mask_group<S>(widen_bytes<typename int_of_size<sizeof(ComputeOf<S>)>::type>(p));
}
template <class S>
IE_INLINE Group<S> load_mask_partial(const char* p, int n) {
  return mask_group<S>(widen_some_bytes<typename int_of_size<sizeof(ComputeOf<S>)>::type>(p, n));
}
template <class S>
IE_INLINE void store_partial(char* p, const Group<S>& g, int n) {
  const int bytes = n * static_cast<int>(sizeof(S));
  if constexpr (is_half_v<S>) {
    store_bytes(p, pack(g).v, bytes);
  } else {
    store_bytes(p, g.v[0].v, bytes);
  }
}

// A scalar of the program in the compute type C.
template <class C>
IE_INLINE C scalar_as(Scalar s) {
  if constexpr (std::is_floating_point_v<C>) {
    return static_cast<C>(s.d);
  } else {
    return static_cast<C>(s.i);
  }
}

} // namespace inplace_ext
