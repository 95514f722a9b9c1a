// The error function and GELU on Vec<float> and Vec<double>.
#pragma once
#include "inplace_ext/math_exp.h"
#include "inplace_ext/math_tables.h"

namespace inplace_ext {
namespace math {

template <class T>
struct error_function;
template <>
struct error_function<float> {
  static constexpr float kJoin = 0.9375f, kOne = 3.95f;
  static constexpr const auto& kErf = tables::kErfF;
  static constexpr const auto& kLogErfc = tables::kLogErfcF;
};
template <>
struct error_function<double> {
  static constexpr double kJoin = 1., kOne = 6.;
  static constexpr const auto& kErf = tables::kErf;
  static constexpr const auto& kLogErfc = tables::kLogErfc;
};

#if defined(INPLACE_EXT_AVX512)
IE_INLINE Vec<float> erf_in_pieces(Vec<float> x) {
  constexpr const auto& kPieces = tables::kErfPiecesF;
  const Vec<float> a = min(Vec<float>(3.99f), abs(x));
  const Vec<int32_t> index = quarter_octave(a);
  const Vec<float> d = a - lookup(kPieces[7], index);
  const Vec<float> first = select(a < Vec<float>(1.25f * kFirstPiece), a, lookup(kPieces[0], index));
  return copysign(piece(d, index, kPieces, 6, first), x);
}
IE_INLINE Vec<double> erf_in_pieces(Vec<double> x) {
  constexpr const auto& kPieces = tables::kErfPieces;
  const Vec<double> a = min(Vec<double>(5.93), abs(x)), round(format<double>::kRound);
  const Vec<double> sum = fma(a, Vec<double>(128. / 49), round);
  const Vec<int64_t> index = bitcast<int64_t>(sum);
  const Vec<double> d = a - lookup(kPieces[14], index);
  const Vec<double> first = select(sum == round, a, lookup(kPieces[0], index));
  return copysign(piece(d, index, kPieces, 13, first), x);
}
#endif

// 1 / a to 28 bits.
IE_INLINE Both inverse_for_float(Both a) {
#if defined(INPLACE_EXT_AVX512)
  Both r(0.);
  r.lo.v = _mm512_rcp14_pd(a.lo.v);
  r.hi.v = _mm512_rcp14_pd(a.hi.v);
  return fma(Both(1.) - a * r, r, r);
#else
  return Both(1.) / a;
#endif
}

} // namespace math

// erf x = x + x P(x^2) near 0, 1 - e^Q(|x|) beyond, with polynomials for both.
// AVX-512: a polynomial for each piece, in the first one of erf x - x.
template <class T>
IE_INLINE Vec<T> erf(Vec<T> x) {
#if defined(INPLACE_EXT_AVX512)
  return math::erf_in_pieces(x);
#endif
  using N = math::error_function<T>;
  const Vec<T> a = min(Vec<T>(N::kOne), abs(x)), x2 = x * x;
  const Vec<T> near = fma(x, math::polynomial<0>(x2, N::kErf), x);
  const math::Reduced<T> r(math::polynomial<0>(a - Vec<T>(N::kJoin), N::kLogErfc));
  const Vec<T> far = Vec<T>(T(1)) - math::scale(Vec<T>(T(1)) + r.expm1(), r.e);
  return select(a < Vec<T>(N::kJoin), near, copysign(far, x));
}

#if defined(INPLACE_EXT_AVX512)
namespace math {

// x P(X <= x) for x <= -4: x e^(-a^2/2) Q(a) with a = -x and Q in pieces; what a^2 loses goes into the
// exponent, which is applied last, so that a small result keeps its bits.
IE_OUTLINE Vec<float> gelu_tail(Vec<float> x) {
  using V = Vec<float>;
  constexpr const auto& kPieces = tables::kMillsPiecesF;
  const V a = min(V(14.6f), max(V(4.f), -x)), half = a * V(-0.5f), square = half * a;
  Reduced<float> r(square);
  r.low = r.low + fma(half, a, -square);
  const Vec<int32_t> index = bitcast<int32_t>(a) >> 19;
  const V q = piece(a - lookup(kPieces[5], index), index, kPieces, 4);
  const V product = -a * q, product_low = fma(-a, q, -product);
  const V tail = scale(product + fma(product, r.expm1(), product_low), r.e);
  const V none = select(x == -V(std::numeric_limits<float>::infinity()), x - x, V(-0.f)); // NaN for -inf
  return select(x < V(-14.6f), none, tail);
}

} // namespace math

// x P(X <= x) for normal X, the probability in pieces. NaN for -inf.
IE_INLINE Vec<float> gelu(Vec<float> x) {
  using V = Vec<float>;
  constexpr const auto& kPieces = tables::kNormalPiecesF;
  const Vec<int32_t> index = bitcast<int32_t>(fma(x, V(3.2f), V(math::format<float>::kRound)));
  const V p = math::piece(x - lookup(kPieces[8], index), index, kPieces, 7);
  const V near = x * select(x < V(5.45f), p, V(1.f)), bound(4.f);
  if (__builtin_expect(all_less(-x, bound), 1)) return near;
  return select(-x < bound, near, select(x == x, math::gelu_tail(x), x));
}

#else

// x P(X <= x) for normal X. With a = |x|: P(X > a) = e^(-a^2/2) u Q(u), u = 1 / (k + a). NaN for -inf.
IE_INLINE Vec<float> gelu(Vec<float> x) {
  using math::Both;
  const Vec<float> top(14.6f);
  const Both wide(widen(min(top, max(-top, x)))), a(abs(wide.lo), abs(wide.hi));
  const Both inverse = Both(1.) / (a + Both(tables::kNormalKForFloat));
  const Both q = inverse * math::horner<0>(inverse, tables::kNormalForFloat);
  const Both product = wide * q * math::exp2_for_float(a * a * Both(-0.5 * tables::kLog2e));
  const Vec<float> tail = narrow({product.lo, product.hi});
  const Vec<float> result = copysign(select(x < Vec<float>(0.f), tail, x - tail), x);    // for -0.0
  return select(x > Vec<float>(-std::numeric_limits<float>::infinity()), result, x - x); // NaN for -inf
}

#endif

// What a^2, u and the products lose to rounding is carried along: that of a^2 and u goes into the exponent.
IE_INLINE Vec<double> gelu(Vec<double> x) {
  using V = Vec<double>;
  if constexpr (!kHasFma) {
    return math::map_long_double([](long double v) { return v * 0.5L * std::erfc(-v / std::sqrt(2.L)); }, x);
  }
  const V zero(0.), one(1.), k(tables::kNormalK), top(39.);
  const V a = min(top, abs(x)), square = a * a, bottom = a + k, u = k * math::inverse_of(bottom);
  math::Reduced<double> r(square * V(-0.5));
  const V lost = fma(-u, a - (bottom - k), fma(-u, bottom, k));
  // d log(u Q(u)) / d log(u) goes from 1 at u = 0 to 2.4 at u = 1.
  const V slope = fma(u, V(1.39 / tables::kNormalK), V(1. / tables::kNormalK));
  r.low = r.low + fma(fma(a, a, -square), V(-0.5), lost * slope);

  const V v = u - V(tables::kNormalMiddle), bounded = min(top, max(-top, x));
  // The two lowest terms with what their sums lose.
  const V first(tables::kNormal[0]), second(tables::kNormal[1]), rest = math::horner<2>(v, tables::kNormal);
  const V slope_sum = fma(v, rest, second), slope_low = fma(v, rest, second - slope_sum);
  const V p = fma(v, slope_sum, first), p_low = fma(v, slope_low, fma(v, slope_sum, first - p));
  const V q = u * p, q_low = fma(u, p_low, fma(u, p, -q));
  const V product = bounded * q, product_low = fma(bounded, q_low, fma(bounded, q, -product));
  const V head = one + r.high, head_low = (r.high - (head - one)) + r.tail();
  const V whole = product * head;
  const V sum = whole + (fma(product, head, -whole) + fma(product, head_low, product_low * head));
  const V tail = math::scale(sum, r.e);
  const V result = copysign(select(x < zero, tail, x - tail), x); // for -0.0
  return select(x > V(-std::numeric_limits<double>::infinity()), result, x - x);
}

// x / (1 + e^-v), v = 2 sqrt(2/pi) (x + 0.044715 x^3). NaN for -inf.
IE_INLINE Vec<float> gelu_tanh(Vec<float> x) {
  const math::Both wide(widen(max(Vec<float>(-24.f), x))), one(1.);
  const math::Both v =
      wide * fma(wide * wide, math::Both(tables::kGeluThreeHi), math::Both(tables::kGeluOneHi));
  const math::Both z = math::exp_for_float(math::Both(-abs(v.lo), -abs(v.hi)));
  const math::Both q = wide * math::inverse_for_float(one + z), low = q * z;
  const Vec<float> result = select(x < Vec<float>(0.f), narrow({low.lo, low.hi}), narrow({q.lo, q.hi}));
  return select(x == Vec<float>(-std::numeric_limits<float>::infinity()),
                Vec<float>(std::numeric_limits<float>::quiet_NaN()), result);
}
IE_INLINE Vec<double> gelu_tanh(Vec<double> x) {
  using V = Vec<double>;
  if constexpr (!kHasFma) {
    constexpr long double kOne = 1.595769121605730711759784L; // 2 sqrt(2/pi)
    return math::map_long_double(
        [](long double v) { return v / (1 + std::exp(-kOne * (v + 0.044715L * v * v * v))); }, x);
  }
  const V zero(0.);
  // Beyond, the result is x or 0.
  const V a = min(V(24.), abs(x)), square = a * a;
  const V cube = square * V(tables::kGeluThreeHi), factor = cube + V(tables::kGeluOneHi);
  const V v = a * factor;
  math::Reduced<double> r(-v);
  {
    // The rounding errors of the products and of the sum, and the low parts of the constants.
    const V small = select(cube < V(tables::kGeluOneHi), cube, V(tables::kGeluOneHi));
    const V large = select(cube < V(tables::kGeluOneHi), V(tables::kGeluOneHi), cube);
    V lost = small - (factor - large);
    lost = lost + fma(square, V(tables::kGeluThreeHi), -cube);
    lost = lost + fma(fma(a, a, -square), V(tables::kGeluThreeHi),
                      fma(square, V(tables::kGeluThreeLo), V(tables::kGeluOneLo)));
    r.low = r.low - fma(a, lost, fma(a, factor, -v));
  }
  const V bounded = max(V(-24.), x);
  const math::Logistic<double> f(x, r);
  V result = bounded * f.q;
  result = result + fma(bounded * f.inverse, f.remainder, fma(bounded, f.q, -result));
  result = select(x < V(-15.), math::scale(bounded * f.p, f.e), result);
  result = copysign(select(abs(x) < V(24.), result, select(x > zero, x, zero)), x);
  return select(x > V(-std::numeric_limits<double>::infinity()), result, x - x);
}

} // namespace inplace_ext
