// sin and cos on Vec<float> and Vec<double>.
#pragma once
#include "inplace_ext/math.h"
#include "inplace_ext/math_tables.h"

namespace inplace_ext {
namespace math {

template <class T>
struct trig;
template <>
struct trig<float> {
  static constexpr float kInverse = tables::kTwoOverPiF, kLimit = 4096.f;
  static constexpr const auto& kHalfPi = tables::kHalfPiF;
  static constexpr const auto& kSin = tables::kSinF;
  static constexpr const auto& kCos = tables::kCosF;
};
template <>
struct trig<double> {
  static constexpr double kInverse = tables::kTwoOverPi, kLimit = 0x1p20;
  static constexpr const auto& kHalfPi = tables::kHalfPi;
  static constexpr const auto& kSin = tables::kSin;
  static constexpr const auto& kCos = tables::kCos;
};

// +-sin r or +-cos r by the two lowest bits of the quadrant.
template <class T>
IE_INLINE Vec<T> in_quadrant(Vec<T> sine, Vec<T> cosine, Vec<typename format<T>::bits> quadrant) {
  using I = typename format<T>::bits;
  const Vec<I> zero(I(0));
  const Vec<T> s = select((quadrant & Vec<I>(I(1))) != zero, cosine, sine);
  const Vec<I> sign = (quadrant & Vec<I>(I(2))) << (8 * static_cast<int>(sizeof(T)) - 2);
  return bitcast<T>(bitcast<I>(s) ^ sign);
}

// x = n pi/2 + r with |r| <= pi/4, the quadrant n of the sine; the cosine is one further. pi/2 comes in three
// parts, of which the first product cancels exactly.
template <bool Cosine, class T>
IE_INLINE Vec<T> sin_or_cos(Vec<T> x) {
  using I = typename format<T>::bits;
  const Vec<T> round(format<T>::kRound), one(T(1));
  const Vec<T> sum = fma(x, Vec<T>(trig<T>::kInverse), round);
  const Vec<T> n = sum - round;
  Vec<T> r = x;
  for (const T part : trig<T>::kHalfPi) r = fma(n, Vec<T>(-part), r);
  const Vec<T> r2 = r * r;
  const Vec<T> sine = fma(r2 * r, polynomial<0>(r2, trig<T>::kSin), r);
  const Vec<T> cosine = fma(r2 * r2, polynomial<0>(r2, trig<T>::kCos), fma(r2, Vec<T>(T(-0.5)), one));
  Vec<I> quadrant = bitcast<I>(sum);
  if constexpr (Cosine) quadrant = quadrant + Vec<I>(I(1));
  const Vec<T> result = in_quadrant(sine, cosine, quadrant);
  return Cosine ? result : select(x == Vec<T>(T(0)), x, result); // for -0.0
}

// The same in double arithmetic for floats: beyond the limit, and where products round. The parts of pi/2 are
// short enough for exact products up to 2^24.
template <bool Cosine>
IE_OUTLINE Vec<float> sin_or_cos_wide(Vec<float> x) {
  const Both wide(widen(x)), round(format<double>::kRound), one(1.);
  const Both n = (wide * Both(tables::kTwoOverPi) + round) - round;
  Both r = wide;
  for (const double part : tables::kHalfPiShort) r = r - n * Both(part);
  const Both r2 = r * r;
  const Both sine = r + r2 * r * polynomial<0>(r2, tables::kSinForFloat);
  const Both cosine = (one - r2 * Both(0.5)) + r2 * r2 * polynomial<0>(r2, tables::kCosForFloat);
  // n modulo 4, as a float that is exact.
  const Both quarter = n * Both(0.25), whole = (quarter + round) - round;
  const Both rest = (quarter - whole) * Both(4.); // -2 ... 2
  Vec<int32_t> quadrant = convert<int32_t>(narrow({rest.lo, rest.hi}));
  if constexpr (Cosine) quadrant = quadrant + Vec<int32_t>(1);
  const Vec<float> near = in_quadrant(narrow({sine.lo, sine.hi}), narrow({cosine.lo, cosine.hi}), quadrant);
  const Vec<float> result = Cosine ? near : select(x == Vec<float>(0.f), x, near);
  const auto known = abs(x) < Vec<float>(0x1p24f);
  if (all(known)) return result;
  const auto f = [](float v) { return Cosine ? std::cos(v) : std::sin(v); };
  return select(known, result, map_lanes(f, x));
}

template <bool Cosine>
IE_INLINE Vec<float> sin_or_cos_any(Vec<float> x) {
  if constexpr (!kHasFma) {
    return sin_or_cos_wide<Cosine>(x);
  } else {
    const Vec<float> r = sin_or_cos<Cosine>(x);
    const Vec<float> a = abs(x), limit(trig<float>::kLimit);
    return __builtin_expect(all_less(a, limit), 1) ? r : select(a < limit, r, sin_or_cos_wide<Cosine>(x));
  }
}
template <bool Cosine>
IE_INLINE Vec<double> sin_or_cos_any(Vec<double> x) {
  const auto f = [](double v) { return Cosine ? std::cos(v) : std::sin(v); };
  if constexpr (!kHasFma) {
    return map_lanes(f, x);
  } else {
    const Vec<double> r = sin_or_cos<Cosine>(x);
    const Vec<double> a = abs(x), limit(trig<double>::kLimit);
    return __builtin_expect(all_less(a, limit), 1) ? r : select(a < limit, r, map_lanes(f, x));
  }
}

} // namespace math

template <class T>
IE_INLINE Vec<T> sin(Vec<T> x) {
  return math::sin_or_cos_any<false>(x);
}
template <class T>
IE_INLINE Vec<T> cos(Vec<T> x) {
  return math::sin_or_cos_any<true>(x);
}

} // namespace inplace_ext
