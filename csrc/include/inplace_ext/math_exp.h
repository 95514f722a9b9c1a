// The exponential family on Vec<float> and Vec<double>: exp2, expm1, tanh, sigmoid, silu, mish, softplus.
#pragma once
#include "inplace_ext/math_log.h"
#include "inplace_ext/math_tables.h"

namespace inplace_ext {
namespace math {

template <class T>
struct exp_limits;
template <>
struct exp_limits<float> {
  static constexpr float kOverflow = 89.f, kUnderflow = -104.f;
  static constexpr float kExpm1Low = -80.f; // from here down expm1 is -1, and 2^n still a normal number
  static constexpr float kTanhOne = 10.f;   // from here on tanh is 1
};
template <>
struct exp_limits<double> {
  static constexpr double kOverflow = 710., kUnderflow = -746.;
  static constexpr double kExpm1Low = -700.;
  static constexpr double kTanhOne = 20.;
};
template <class T>
struct exp_constants;
template <>
struct exp_constants<float> {
  static constexpr float kLog2e = tables::kLog2eF, kLn2Hi = tables::kLn2HiF, kLn2Lo = tables::kLn2LoF;
  static constexpr const auto& kExp = tables::kExpF;
  static constexpr const auto& kExp2 = tables::kExp2F;
  static constexpr const auto& kTanh = tables::kTanhF;
};
template <>
struct exp_constants<double> {
  static constexpr double kLog2e = tables::kLog2e, kLn2Hi = tables::kLn2Hi, kLn2Lo = tables::kLn2Lo;
  static constexpr const auto& kExp = tables::kExp;
  static constexpr const auto& kExp2 = tables::kExp2;
  static constexpr const auto& kTanh = tables::kTanh;
};

// 2^(n - 1) for 2 - bias <= n <= bias + 1.
template <class T>
IE_INLINE Vec<T> half_power(Exponent<T> e) {
#if defined(INPLACE_EXT_AVX512)
  return scale(Vec<T>(T(0.5)), e);
#else
  using U = typename format<T>::unsigned_bits;
  return bitcast<T>((bitcast<U>(e.sum) - Vec<U>(U(Exponent<T>::kBias + 1))) << format<T>::kMantissa);
#endif
}

// x = n ln2 + r, with r in an exact and a small part.
template <class T>
struct Reduced {
  Exponent<T> e;
  Vec<T> high, low;
  IE_INLINE explicit Reduced(Vec<T> x) : e(x, exp_constants<T>::kLog2e) {
    high = fma(e.n, Vec<T>(-exp_constants<T>::kLn2Hi), x);
    low = e.n * Vec<T>(-exp_constants<T>::kLn2Lo);
  }
  // e^r - 1 - high.
  IE_INLINE Vec<T> tail() const {
    const Vec<T> r = high + low;
    return fma(r * r, polynomial<2>(r, exp_constants<T>::kExp), low);
  }
  IE_INLINE Vec<T> expm1() const {
    return high + tail();
  }
  IE_INLINE Vec<T> quick_exp() const {
    const Vec<T> r = high + low;
    return fma(r, fma(r, polynomial<2>(r, exp_constants<T>::kExp), Vec<T>(T(1))), Vec<T>(T(1)));
  }
  // e^r, with what 1 + high loses added to the rest: hardly more than one rounding.
  IE_INLINE Vec<T> exp() const {
    const Vec<T> one(T(1)), head = one + high;
    return head + ((high - (head - one)) + tail());
  }
};

// expm1 of x where kExpm1Low <= x and 2^n does not overflow.
template <class T>
IE_INLINE Vec<T> expm1_bounded(Vec<T> x) {
  const Reduced<T> reduced(x);
  const Vec<T> s = half_power(reduced.e), p = reduced.expm1();
  const Vec<T> half = fma(s, p, s - Vec<T>(T(0.5)));
  return half + half;
}

} // namespace math

// 2^x: the integer part goes to the exponent, the rest into a polynomial.
template <class T>
IE_INLINE Vec<T> exp2(Vec<T> x) {
  using L = std::numeric_limits<T>;
  x = min(Vec<T>(T(L::max_exponent + 1)), max(Vec<T>(T(L::min_exponent - L::digits - 2)), x));
  const math::Exponent<T> e(x, T(1));
  const Vec<T> f = x - e.n;
  return math::scale(f, math::polynomial<1>(f, math::exp_constants<T>::kExp2), e);
}

// e^x - 1 = 2^n (e^r - 1) + (2^n - 1). Halved, so that 2^n does not overflow before the result does; where
// halving would lose the last bit, the result is x.
template <class T>
IE_INLINE Vec<T> expm1(Vec<T> x) {
  using L = math::exp_limits<T>;
  const Vec<T> bounded = min(Vec<T>(L::kOverflow), max(Vec<T>(L::kExpm1Low), x));
  const Vec<T> tiny(std::numeric_limits<T>::epsilon() / 4);
  return select(abs(x) < tiny, x, math::expm1_bounded(bounded));
}

// tanh |x| = e / (e + 2) with e = expm1(2 |x|); near 0, where three roundings would add up, a polynomial.
template <class T>
IE_INLINE Vec<T> tanh(Vec<T> x) {
#if defined(INPLACE_EXT_AVX512)
  if constexpr (sizeof(T) == 4) {
    constexpr const auto& kPieces = tables::kTanhPiecesF;
    const Vec<float> a = min(Vec<float>(9.5f), abs(x));
    const Vec<int32_t> index = math::quarter_octave(a);
    return copysign(math::piece(a - lookup(kPieces[6], index), index, kPieces, 5), x);
  }
#endif
  const Vec<T> x2 = x * x, a = min(Vec<T>(math::exp_limits<T>::kTanhOne), abs(x));
  const Vec<T> e = math::expm1_bounded(a + a);
  const Vec<T> near = fma(x2 * x, math::polynomial<0>(x2, math::exp_constants<T>::kTanh), x);
  return copysign(select(a < Vec<T>(T(0.4)), near, e / (e + Vec<T>(T(2)))), x);
}

namespace math {

#if defined(INPLACE_EXT_AVX512)
// 1 / a for normal a to 14 bits, for double to 28: where a remainder doubles them.
template <class T>
IE_INLINE Vec<T> estimated_inverse(Vec<T> a) {
  Vec<T> r;
  if constexpr (sizeof(T) == 4) {
    r.v = _mm512_rcp14_ps(a.v);
  } else {
    r.v = _mm512_rcp14_pd(a.v);
    r = fma(fma(-r, a, Vec<T>(T(1))), r, r);
  }
  return r;
}
#endif
// The same, nearly to the last bit: where a remainder makes good what is missing. An estimate, which Newton's
// step doubles, costs less than a division where there is one.
template <class T>
IE_INLINE Vec<T> inverse_of(Vec<T> a) {
#if defined(INPLACE_EXT_AVX512)
  const Vec<T> r = estimated_inverse(a);
  return fma(fma(-r, a, Vec<T>(T(1))), r, r);
#else
  return Vec<T>(T(1)) / a;
#endif
}

// e^t for float results, in double arithmetic: overflow and denormals are left to narrow().
IE_INLINE Both exp_for_float(Both t) {
  return exp2_for_float(t * Both(tables::kLog2e));
}

// f(v) to the precision of long double, an element at a time: where nothing makes good what products lose.
template <class F>
IE_INLINE Vec<double> map_long_double(F f, Vec<double> x) {
  return map_lanes([f](double v) { return static_cast<double>(f(static_cast<long double>(v))); }, x);
}

// sigmoid x, or x sigmoid x, of floats in double arithmetic.
template <class T>
IE_INLINE Vec<T> logistic_in_double(Vec<T> x, bool times_x) {
  const Both wide(widen(max(Vec<T>(T(-120)), x))), one(1.);
  const Both z = exp_for_float(Both(-abs(wide.lo), -abs(wide.hi)));
  Both q = one / (one + z);
  if (times_x) q = q * wide;
  const Both low = q * z;
  const Vec<T> r = select(x < Vec<T>(T(0)), narrow({low.lo, low.hi}), narrow({q.lo, q.hi}));
  if (!times_x) return r;
  return select(x == Vec<T>(-std::numeric_limits<T>::infinity()), Vec<T>(std::numeric_limits<T>::quiet_NaN()),
                r);
}

// The logistic function as q + correction: e^-|x| and 1 over 1 + e^-|x|, with what the sum and the quotient
// lose, so that hardly more than the error of the exponential is left.
template <class T>
struct Logistic {
  Vec<T> q, remainder, inverse, p; // p 2^n = e^-|x|; the correction is remainder * inverse
  Exponent<T> e;
  IE_INLINE explicit Logistic(Vec<T> x) : Logistic(x, lowest(x)) {}
  // Given -|x|, above where the exponential vanishes.
#if defined(INPLACE_EXT_AVX512)
  IE_INLINE Logistic(Vec<double> x, Vec<double> minus_a) : Logistic(x, Power(minus_a, Power::kExact)) {}
  IE_INLINE Logistic(Vec<double> x, const Power& power) : Logistic(x, power.p, power.e) {}
  IE_INLINE Logistic(Vec<float> x, Vec<float> minus_a) : Logistic(x, Reduced<T>(minus_a)) {}
#else
  IE_INLINE Logistic(Vec<T> x, Vec<T> minus_a) : Logistic(x, Reduced<T>(minus_a)) {}
#endif
  IE_INLINE Logistic(Vec<T> x, const Reduced<T>& r) : Logistic(x, kHasFma ? r.quick_exp() : r.exp(), r.e) {}
  // Given e^-|x| as factor 2^power.
  IE_INLINE Logistic(Vec<T> x, Vec<T> factor, Exponent<T> power) : p(factor), e(power) {
    const Vec<T> one(T(1)), z = scale(p, e), top = select(x < Vec<T>(T(0)), z, one);
    const Vec<T> bottom = one + z;
#if defined(INPLACE_EXT_AVX512)
    inverse = estimated_inverse(bottom);
    q = top * inverse;
#else
    // For the correction alone, which is small, any inverse will do.
    inverse = fma(z, Vec<T>(T(-0.5)), Vec<T>(T(0.97)));
    q = top / bottom;
    remainder = Vec<T>(T(0)); // without a fused product there is none to be had
    if constexpr (!kHasFma) return;
#endif
    const Vec<T> gained = (bottom - one) - z;
    remainder = fma(q, gained, fma(-q, bottom, top));
  }

 private:
  static IE_INLINE Vec<T> lowest(Vec<T> x) {
    using I = typename format<T>::bits;
    const Vec<T> negative = bitcast<T>(bitcast<I>(x) | Vec<I>(std::numeric_limits<I>::min()));
    return max(Vec<T>(exp_limits<T>::kUnderflow - T(10)), negative);
  }
};

} // namespace math

namespace math {

// a / (1 + z) for normal results and finite z >= 0, with little more than one rounding: the remainder of the
// quotient makes good what the sum and an estimate of its inverse lack.
template <class T>
IE_INLINE Vec<T> over_one_plus(Vec<T> a, Vec<T> z) {
  const Vec<T> one(T(1)), b = one + z, gained = (b - max(one, z)) - min(one, z);
#if defined(INPLACE_EXT_AVX512)
  const Vec<T> inverse = estimated_inverse(b);
#else
  const Vec<T> inverse = one / b;
#endif
  const Vec<T> q = a * inverse;
  return fma(fma(q, gained, fma(-q, b, a)), inverse, q);
}

// e^x that is far from overflow and from the denormal numbers.
template <class T>
IE_INLINE Vec<T> ordinary_exp(Vec<T> x) {
#if defined(INPLACE_EXT_AVX512)
  if constexpr (sizeof(T) == 8) {
    const Power power(x, Power::kExact);
    return scale(power.p, power.e);
  }
#endif
  const Reduced<T> r(x);
  return scale(r.quick_exp(), r.e);
}

// Any x; by e^-|x|, so that nothing overflows.
template <class T>
IE_OUTLINE Vec<T> sigmoid_special(Vec<T> x) {
  const Logistic<T> f(x);
  return fma(f.remainder, f.inverse, f.q);
}
// Any x. Far down, where the result is x e^x, the exponent is applied last, so that a small result keeps its
// bits. NaN for -inf, as -inf times 0.
template <class T>
IE_OUTLINE Vec<T> silu_special(Vec<T> x) {
  using L = exp_limits<T>;
  const Logistic<T> f(x);
  const Vec<T> bounded = max(Vec<T>(L::kUnderflow - T(10)), x);
  const Vec<T> near = with_sign(fma(x, f.q, x * f.inverse * f.remainder), x); // for -0.0
  const Vec<T> r = select(x < Vec<T>(L::kExpm1Low), scale(bounded * f.p, f.e), near);
  return select(abs(x) < Vec<T>(std::numeric_limits<T>::infinity()), r, x * f.q);
}

} // namespace math

// 1 / (1 + e^-x).
template <class T>
IE_INLINE Vec<T> sigmoid(Vec<T> x) {
  if constexpr (!kHasFma && sizeof(T) == 4) {
    return math::logistic_in_double(x, false);
  } else if constexpr (!kHasFma) {
    return math::map_long_double([](long double v) { return 1 / (1 + std::exp(-v)); }, x);
  } else {
    const Vec<T> r = math::over_one_plus(Vec<T>(T(1)), math::ordinary_exp(-x));
    const Vec<T> a = abs(x), bound(-math::exp_limits<T>::kExpm1Low);
    return __builtin_expect(all_less(a, bound), 1) ? r : select(a < bound, r, math::sigmoid_special(x));
  }
}

// x / (1 + e^-x).
template <class T>
IE_INLINE Vec<T> silu(Vec<T> x) {
  if constexpr (!kHasFma && sizeof(T) == 4) {
    return math::logistic_in_double(x, true);
  } else if constexpr (!kHasFma) {
    return math::map_long_double([](long double v) { return v / (1 + std::exp(-v)); }, x);
  } else {
    const Vec<T> r = with_sign(math::over_one_plus(x, math::ordinary_exp(-x)), x); // for -0.0
    const Vec<T> a = abs(x), bound(-math::exp_limits<T>::kExpm1Low);
    return __builtin_expect(all_less(a, bound), 1) ? r : select(a < bound, r, math::silu_special(x));
  }
}

// x tanh(log(1 + e^x)) = x n / (n + 2) with n = e^x (e^x + 2). NaN for -inf.
IE_INLINE Vec<float> mish(Vec<float> x) {
  const math::Both wide(widen(max(Vec<float>(-120.f), x)));
  // From 20 on the quotient is 1, and inf and NaN pass.
  const math::Both e = math::exp_for_float(min(math::Both(20.), wide));
  const math::Both n = fma(e, e, e + e);
  const math::Both r = wide * n / (n + math::Both(2.));
  return select(x == Vec<float>(-std::numeric_limits<float>::infinity()),
                Vec<float>(std::numeric_limits<float>::quiet_NaN()), narrow({r.lo, r.hi}));
}
IE_INLINE Vec<double> mish(Vec<double> x) {
  using V = Vec<double>;
  if constexpr (!kHasFma) {
    return math::map_long_double([](long double v) { return v * std::tanh(std::log1p(std::exp(v))); }, x);
  }
  const V bounded = max(V(-760.), x), two(2.);
  const math::Reduced<double> reduced(min(V(40.), bounded));
  const V p = reduced.exp(), e = math::scale(p, reduced.e);
  const V n = fma(e, e, e + e), bottom = n + two;
  // Where the quotient nears 1, x less what is missing.
  const auto large = x > V(1.);
  const V top = select(large, two, n), q = top / bottom;
  V r = x * q;
  // What n, its sum with 2, the quotient and the product lose, divided by roughly the bottom.
  const V lost = fma(-q, n - (bottom - two), fma(-q, bottom, n) + fma(e, e, (e + e) - n));
  r = select(large, x - r, r + fma(x, lost * ((V(1.) - q) * V(0.5)), fma(x, q, -r)));
  r = select(x < V(40.), r, x);
  // Far down the quotient is e^x, and the exponent is applied last.
  r = copysign(select(x < V(-60.), math::scale(bounded * p, reduced.e), r), x); // for -0.0
  return select(x == V(-std::numeric_limits<double>::infinity()), V(std::numeric_limits<double>::quiet_NaN()),
                r);
}

// log(1 + e^(beta x)) / beta, x where beta x > threshold: max(z, 0) + log(1 + e^-|z|), z = beta x.
IE_INLINE Vec<float> softplus(Vec<float> x, Vec<float> beta, Vec<float> threshold) {
  const math::Both wide(widen(x)), factor(widen(beta));
  const math::Both z = wide * factor; // exact
  const math::Both w = math::exp_for_float(math::Both(-abs(z.lo), -abs(z.hi)));
  // log(1 + w) = 2 atanh(w / (w + 2)) with w in (0, 1].
  const math::Both s = w / (w + math::Both(2.));
  const math::Both log = s * math::polynomial<0>(s * s, tables::kAtanhForFloat);
  const math::Both r = (max(math::Both(0.), z) + log) / factor;
  return select(x * beta > threshold, x, narrow({r.lo, r.hi}));
}
IE_INLINE Vec<double> softplus(Vec<double> x, Vec<double> beta, Vec<double> threshold) {
  using V = Vec<double>;
  if constexpr (!kHasFma) {
    const auto f = [](double v, double factor, double limit) {
      const long double z = static_cast<long double>(v) * factor;
      return z > limit ? v : static_cast<double>(std::log1p(std::exp(z)) / factor);
    };
    return map_lanes(f, x, beta, threshold);
  }
  const V z = x * beta;
  const math::Reduced<double> reduced(max(V(math::exp_limits<double>::kUnderflow), -abs(z)));
  V w = math::scale(reduced.exp(), reduced.e);
  // What the product lost, where it is a number.
  const V lost = fma(x, beta, -z);
  w = select(abs(z) < V(800.), w * (V(1.) - copysign(V(1.), z) * lost), w);
  const V r = (max(V(0.), z) + log1p(w)) / beta;
  return select(z > threshold, x, r);
}

} // namespace inplace_ext
