// Square roots on Vec<float> and Vec<double>, correctly rounded.
#pragma once
#include "inplace_ext/math.h"

namespace inplace_ext {
#if defined(INPLACE_EXT_AVX512)
namespace math {

// Roots of ordinary numbers from an estimate of 14 bits: products where the instruction of the hardware keeps
// its unit busy for up to 20 cycles. Goldschmidt's steps double the bits of s = sqrt a and h = 1 / (2 s); the
// last one adds h times the exact remainder to s, which rounds correctly (Markstein). tests/cpp/math_ulp.cpp
// goes through every float and, for double, through the roots that lie nearest to the middle of two numbers.
template <class T>
struct Root {
  Vec<T> s, h;
  bool ordinary; // every a; else s and h are rubbish
  IE_INLINE explicit Root(Vec<T> a) {
    using U = typename format<T>::unsigned_bits;
    // From 2^-100 or 2^-900 on, where the remainder does not underflow, up to the largest number.
    constexpr U kFirst = U(sizeof(T) == 4 ? 27 : 123) << format<T>::kMantissa;
    constexpr U kEnd = U(2 * std::numeric_limits<T>::max_exponent - 1) << format<T>::kMantissa;
    const Vec<U> above = bitcast<U>(a) - Vec<U>(kFirst);
    const Vec<T> half(T(0.5));
    if constexpr (sizeof(T) == 4) {
      ordinary = _mm512_cmpge_epu32_mask((__m512i)above.v, _mm512_set1_epi32(kEnd - kFirst)) == 0;
      h.v = _mm512_rsqrt14_ps(a.v);
    } else {
      ordinary = _mm512_cmpge_epu64_mask((__m512i)above.v, _mm512_set1_epi64(kEnd - kFirst)) == 0;
      h.v = _mm512_rsqrt14_pd(a.v);
    }
    s = a * h;
    h = h * half;
    for (int i = 0; i < (sizeof(T) == 4 ? 1 : 2); ++i) {
      const Vec<T> e = fma(-s, h, half);
      s = fma(s, e, s), h = fma(h, e, h);
    }
    s = fma(fma(-s, s, a), h, s);
  }
};

} // namespace math

template <class T>
IE_INLINE Vec<T> square_root(Vec<T> a) {
  const math::Root<T> root(a);
  return __builtin_expect(root.ordinary, 1) ? root.s : sqrt(a);
}
// 1 / sqrt(a), both rounded. Of two of Newton's steps the last rounds correctly as well.
template <class T>
IE_INLINE Vec<T> inverse_square_root(Vec<T> a) {
  using I = typename math::format<T>::bits;
  const math::Root<T> root(a);
  const Vec<T> one(T(1));
  Vec<T> y = root.h + root.h;
  y = fma(y, fma(-root.s, y, one), y);
  y = fma(y, fma(-root.s, y, one), y);
  // Not for the one mantissa that is all ones.
  const Vec<I> ones =
      bitcast<I>(root.s) | Vec<I>(static_cast<I>(~((I(1) << math::format<T>::kMantissa) - 1)));
  if (__builtin_expect(!root.ordinary || any(ones == Vec<I>(I(-1))), 0)) return one / sqrt(a);
  return y;
}

#else

template <class V>
IE_INLINE V square_root(V a) {
  return sqrt(a);
}
template <class V>
IE_INLINE V inverse_square_root(V a) {
  return V(1) / sqrt(a);
}

#endif
} // namespace inplace_ext
