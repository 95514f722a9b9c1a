// The numbers of softmax: exponentials relative to the largest score, quotients and logarithms of sums.
//
// Include after what says what a Vec is.
#pragma once
#include <limits>

#include "inplace_ext/math.h"
#include "inplace_ext/math_exp.h"
#include "inplace_ext/math_log.h"
#include "inplace_ext/math_tables.h"

namespace inplace_ext {

template <class C>
constexpr C kMinusInf = -std::numeric_limits<C>::infinity();

// What the exponentials of a row are taken relative to: e^s 2^-power for s - shift = x, which is near
// e^(s - top). Of a largest score that is not large nothing is subtracted (shift = 0), and of another one it
// is itself: every score that counts is then within a factor of two of it. Either way the difference is
// exact, where s - top would be rounded, and the error of a result be that of this rounding times |s - top|.
template <class T>
struct SoftmaxBase {
  // Below `bottom` an exponential is 0, without the way through denormal numbers, which processors take in
  // microcode: scores that a mask drops are as fast as others.
  Vec<T> top, shift, power, bottom;

  IE_INLINE SoftmaxBase(Vec<T> t, Vec<T> s, Vec<T> p, Vec<T> b) : top(t), shift(s), power(p), bottom(b) {}
  IE_INLINE SoftmaxBase(Vec<T> t, bool logarithm) : top(t) {
    // Without fma the product of an exponent and the upper part of ln2, which has 15 bits in float, must be
    // exact of itself: up to 738, and scores count that are 104 below -near.
    const T near = logarithm ? T(-1) : sizeof(T) == 4 ? T(400) : T(512);
    constexpr T kVanish = sizeof(T) == 4 ? -104 : -746;
    constexpr T kLog2e = sizeof(T) == 4 ? tables::kLog2eF : static_cast<T>(tables::kLog2e);
    shift = select(abs(t) <= Vec<T>(near), Vec<T>(T(0)), t);
    power = rint((t - shift) * Vec<T>(kLog2e));
    bottom = t + Vec<T>(kVanish);
  }
};
// e^(s - shift) 2^-power; NaN for NaN, and where the largest score is inf or -inf and the score is too.
#if defined(INPLACE_EXT_AVX512)
IE_INLINE Vec<float> exp_over(Vec<float> s, const SoftmaxBase<float>& base) {
  const Vec<float> x = s - base.shift, one(1.f);
  const math::Exponent<float> e(x, tables::kLog2eF);
  const Vec<float> r = fma(e.n, Vec<float>(-tables::kLn2LoF), fma(e.n, Vec<float>(-tables::kLn2HiF), x));
  const Vec<float> p = fma(r, fma(r, math::polynomial<2>(r, tables::kExpF), one), one);
  const __mmask16 counts = _mm512_cmp_ps_mask(s.v, base.bottom.v, _CMP_NLT_UQ);
  return _mm512_maskz_scalef_ps(counts, p.v, (e.n - base.power).v);
}
IE_INLINE Vec<double> exp_over(Vec<double> s, const SoftmaxBase<double>& base) {
  const math::Power power(s - base.shift, math::Power::kAny);
  const __mmask8 counts = _mm512_cmp_pd_mask(s.v, base.bottom.v, _CMP_NLT_UQ);
  return _mm512_maskz_scalef_pd(counts, power.p.v, (power.e.n - base.power).v);
}
#else
template <class T>
IE_INLINE Vec<T> exp_over(Vec<T> s, const SoftmaxBase<T>& base) {
  using K = math::exp_constants<T>;
  const auto vanishes = s < base.bottom;
  const Vec<T> x = select(vanishes, base.top, s) - base.shift;
  math::Exponent<T> e(x, K::kLog2e);
  const Vec<T> high = fma(e.n, Vec<T>(-K::kLn2Hi), x);
  e.sum = e.sum - base.power; // which the result is scaled by; integers in one binade
  return select(vanishes, Vec<T>(T(0)), math::exp_reduced(high, Vec<T>(-K::kLn2Lo), e, K::kExp));
}
#endif

// e / sum, given 1 / sum: the product, corrected by what it lacks.
template <class C>
IE_INLINE Vec<C> quotient(Vec<C> e, Vec<C> sum, Vec<C> inverse) {
  if constexpr (kHasFma) {
    const Vec<C> q = e * inverse;
    return fma(fma(-q, sum, e), inverse, q);
  } else {
    return e / sum;
  }
}

// log(sum) in two parts; of a double the second is not worth its while.
IE_INLINE void log_parts(Vec<float> sum, Vec<float>& high, Vec<float>& low) {
  const DoublePair s = widen(sum), l = {log(s.lo), log(s.hi)};
  high = narrow(l);
  const DoublePair h = widen(high);
  low = narrow({l.lo - h.lo, l.hi - h.hi});
}
IE_INLINE void log_parts(Vec<double> sum, Vec<double>& high, Vec<double>& low) {
  high = log(sum);
  low = Vec<double>(0.);
}
// What every score of a row is less than, top + log(sum), in place of the two: rounded, and what that lost.
template <class C>
IE_INLINE void normalize(Vec<C>& top, Vec<C>& sum) {
  Vec<C> high, low;
  log_parts(sum, high, low);
  const Vec<C> n = top + high, part = n - top;
  sum = ((top - (n - part)) + (high - part)) + low;
  top = n;
}
// s - (high + low), with hardly more than one rounding; -inf stays.
template <class C>
IE_INLINE Vec<C> difference(Vec<C> s, Vec<C> high, Vec<C> low) {
  const Vec<C> d = s - high, part = d - s;
  const Vec<C> lost = (s - (d - part)) - (high + part);
  return select(abs(d) < Vec<C>(std::numeric_limits<C>::infinity()), d + (lost - low), d);
}

} // namespace inplace_ext
