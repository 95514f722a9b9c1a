// exp, pow and fmod on Vec<float> and Vec<double>.
//
// Include after simd.h, which says what a Vec is: nothing below depends on its width, and the few
// instructions that only some processors have stand in small helpers with a portable twin. No result depends
// on the other lanes of its vector. The errors quoted are those that tests/cpp/math_ulp.cpp measures and
// bounds; 1 ulp is the distance of two neighbouring numbers at the exact result, denormals included.
#pragma once
#include <cmath>
#include <cstdint>
#include <limits>

#include "inplace_ext/math_tables.h"

namespace inplace_ext {
namespace math {

// c[First] + c[First+1] x + ... by Estrin's scheme: a few products more than Horner's, but an out-of-order
// core cannot hold enough vectors to hide so long a chain.
template <int First, int Count, class V, class T, int Size>
IE_INLINE V estrin(const V* power, const T (&c)[Size]) {
  if constexpr (Count == 1) {
    return V(c[First]);
  } else {
    constexpr int kLog = Count <= 2 ? 0 : Count <= 5 ? 1 : Count <= 10 ? 2 : 3, kHalf = 1 << kLog;
    return fma(estrin<First + kHalf, Count - kHalf>(power, c), power[kLog], estrin<First, kHalf>(power, c));
  }
}
template <int First, class V, class T, int Size>
IE_INLINE V polynomial(V x, const T (&c)[Size]) {
  const V x2 = x * x, x4 = x2 * x2;
  const V power[4] = {x, x2, x4, x4 * x4};
  return estrin<First, Size - First>(power, c);
}

// The same by Horner's scheme, the fewest instructions: inside long functions, whose other parts fill the
// gaps.
template <int First, class V, class T, int Size>
IE_INLINE V horner(V x, const T (&c)[Size]) {
  V r(c[Size - 1]);
  IE_UNROLL(32)
  for (int i = Size - 2; i >= First; --i) r = fma(r, x, V(c[i]));
  return r;
}

#if defined(INPLACE_EXT_AVX512)
// A polynomial in d whose coefficients, lowest first, are looked up for each lane; the lowest may be given.
template <class V, class I, class T, int Rows, int Size>
IE_INLINE V piece(V d, I index, const T (&c)[Rows][Size], int degree, V first) {
  V r = lookup(c[degree], index);
  IE_UNROLL(16)
  for (int i = degree - 1; i > 0; --i) r = fma(r, d, lookup(c[i], index));
  return fma(r, d, first);
}
template <class V, class I, class T, int Rows, int Size>
IE_INLINE V piece(V d, I index, const T (&c)[Rows][Size], int degree) {
  return piece(d, index, c, degree, V(lookup(c[0], index)));
}
// The pieces of a function of a = |x| that are quarters of octaves from 2^-4 on, the first from 0: rows of
// coefficients and, last, their centers.
constexpr float kFirstPiece = 0x1p-4f;
IE_INLINE Vec<int32_t> quarter_octave(Vec<float> a) {
  return bitcast<int32_t>(max(Vec<float>(kFirstPiece), a)) >> 21;
}
#endif

template <class T>
struct format;
template <>
struct format<float> {
  using bits = int32_t;
  using unsigned_bits = uint32_t;
  static constexpr int kMantissa = 23;
  // Adding it to a number leaves the nearest integer in the low bits of the sum.
  static constexpr float kRound = 0x1.8p23f;
  static constexpr float kIntegral = 0x1p23f; // from here on every number is an integer
  static constexpr bits kSqrtHalf = 0x3f3504f3;
  static constexpr float kToNormal = 0x1p24f;
  static constexpr int kToNormalLog2 = 24;
};
template <>
struct format<double> {
  using bits = int64_t;
  using unsigned_bits = uint64_t;
  static constexpr int kMantissa = 52;
  static constexpr double kRound = 0x1.8p52;
  static constexpr double kIntegral = 0x1p52;
  static constexpr bits kSqrtHalf = 0x3fe6a09e667f3bcd;
  static constexpr double kToNormal = 0x1p54;
  static constexpr int kToNormalLog2 = 54;
};

// n = the integer nearest to x * m, with what scale() needs to multiply by 2^n.
#if defined(INPLACE_EXT_AVX512)
template <class T>
struct Exponent {
  Vec<T> n, sum;
  // A smaller number to round with leaves a fraction.
  IE_INLINE Exponent(Vec<T> x, T m, T rounder = format<T>::kRound) {
    const Vec<T> round(rounder);
    sum = fma(x, Vec<T>(m), round);
    n = sum - round;
  }
};
// p 2^n for any n. A denormal result is rounded twice.
IE_INLINE Vec<float> scale(Vec<float> p, Exponent<float> e) {
  return _mm512_scalef_ps(p.v, e.n.v);
}
IE_INLINE Vec<double> scale(Vec<double> p, Exponent<double> e) {
  return _mm512_scalef_pd(p.v, e.n.v);
}
// (1 + r u) 2^n.
template <class T>
IE_INLINE Vec<T> scale(Vec<T> r, Vec<T> u, Exponent<T> e) {
  return scale(fma(r, u, Vec<T>(T(1))), e);
}
#else
template <class T>
struct Exponent {
  // The low bits of the rounded sum hold n + 2 * bias, of which each half is the exponent field of a power
  // of two.
  static constexpr int kBias = std::numeric_limits<T>::max_exponent - 1;
  Vec<T> n, sum;
  IE_INLINE Exponent(Vec<T> x, T m) {
    const Vec<T> round(format<T>::kRound + 2 * kBias);
    sum = fma(x, Vec<T>(m), round);
    n = sum - round;
  }
};
// 2^n in two factors, since it may itself overflow or be denormal.
template <class T>
struct Factors {
  Vec<T> first, second;
  IE_INLINE explicit Factors(Exponent<T> e) {
    using U = typename format<T>::unsigned_bits;
    const Vec<U> i = bitcast<U>(e.sum), half = i >> 1;
    first = bitcast<T>(half << format<T>::kMantissa);
    second = bitcast<T>((i - half) << format<T>::kMantissa);
  }
};
// p 2^n for any n. A denormal result is rounded twice. Products and not additions to the exponent, because
// those would turn a NaN into a number.
template <class T>
IE_INLINE Vec<T> scale(Vec<T> p, Exponent<T> e) {
  const Factors<T> f(e);
  return p * f.first * f.second;
}
// (1 + r u) 2^n, the first factor inside the sum.
template <class T>
IE_INLINE Vec<T> scale(Vec<T> r, Vec<T> u, Exponent<T> e) {
  const Factors<T> f(e);
  return fma(r * f.first, u, f.first) * f.second;
}
#endif

// e^x for x = n ln2 + r, given high = x - n ln2Hi (exact) and -ln2Lo.
template <class T, int Size>
IE_INLINE Vec<T> exp_reduced(Vec<T> high, Vec<T> minus_ln2_low, Exponent<T> e, const T (&c)[Size]) {
  const Vec<T> one(T(1));
  if constexpr (kHasFma) {
    const Vec<T> r = fma(e.n, minus_ln2_low, high);
    return scale(r, fma(r, polynomial<2>(r, c), one), e);
  } else {
    // Products round here, so the small terms are summed before high joins them.
    const Vec<T> low = e.n * minus_ln2_low, r = high + low;
    return scale(one + (high + (r * r * polynomial<2>(r, c) + low)), e);
  }
}

#if defined(INPLACE_EXT_AVX512)
// e^x = p 2^n with n in sixteenths, of which scale() takes the integer below: 2^(i/16) from a table and a
// short polynomial.
struct Power {
  // Any x: far out r is not a number or out of bounds, and whatever p is then, n decides. Exact: less than
  // 0.6 ulp off, by what the table lacks, where it is 1.1 else; for x that is bounded.
  enum Kind { kAny, kExact };
  Vec<double> p;
  Exponent<double> e;
  IE_INLINE explicit Power(Vec<double> x, Kind kind) : e(x, tables::kLog2e, 0x1.8p48) {
    const Vec<int64_t> index = bitcast<int64_t>(e.sum);
    Vec<double> r = fma(e.n, Vec<double>(-tables::kLn2Hi), x);
    r = fma(e.n, Vec<double>(-tables::kLn2Lo), r);
    if (kind == kAny) r.v = _mm512_range_pd(r.v, _mm512_set1_pd(1), 0x02); // the smaller magnitude; 1 for NaN
    const Vec<double> top = lookup(tables::kExp2Sixteenths, index);
    const Vec<double> first = kind == kExact ? r + lookup(tables::kExp2SixteenthsLow, index) : r;
    p = fma(top, fma(r * r, polynomial<0>(r, tables::kExpPiece), first), top);
  }
};
#endif

} // namespace math

// exp(x): x = n ln2 + r with |r| <= ln(2)/2 (Cody and Waite: ln 2 in two parts, the first product exact), a
// polynomial in r, and a scaling in steps that cannot overflow before the result does.
// Max Error: float 1 ulp, double 1.25 (docs/accuracy.md has what is measured). NaN gives NaN: the order of
// the operands of max and min keeps it.
IE_INLINE Vec<float> exp(Vec<float> x) {
  // Beyond these the result is inf or 0 whatever x is.
  x = min(Vec<float>(89.f), max(Vec<float>(-104.f), x));
  const math::Exponent<float> e(x, tables::kLog2eF);
  return math::exp_reduced(fma(e.n, Vec<float>(-tables::kLn2HiF), x), Vec<float>(-tables::kLn2LoF), e,
                           tables::kExpF);
}
IE_INLINE Vec<double> exp(Vec<double> x) {
#if defined(INPLACE_EXT_AVX512)
  const math::Power power(x, math::Power::kAny);
  return math::scale(power.p, power.e);
#endif
  x = min(Vec<double>(710.), max(Vec<double>(-746.), x));
  const math::Exponent<double> e(x, tables::kLog2e);
  return math::exp_reduced(fma(e.n, Vec<double>(-tables::kLn2Hi), x), Vec<double>(-tables::kLn2Lo), e,
                           tables::kExp);
}

// a / 6 for 0 and 2^-100 <= a <= 6, correctly rounded without the divider (Markstein): a product with 1 / 6,
// corrected by its exact remainder.
template <class T>
IE_INLINE Vec<T> sixth(Vec<T> a) {
  const Vec<T> six(T(6));
  if constexpr (kHasFma) {
    const Vec<T> inverse(T(1) / T(6)), q = a * inverse;
    return fma(fma(-q, six, a), inverse, q);
  } else {
    return a / six;
  }
}

namespace math {

// For |y|: is it an integer?
template <class T>
IE_INLINE Mask<sizeof(T)> is_integer(Vec<T> ay) {
  const Vec<T> big(format<T>::kIntegral);
  return (ay >= big) | ((ay + big) - big == ay);
}

// The cases of C99's pow outside positive normal x and finite y. r = |x|^y where both are finite and x is not
// zero, anything elsewhere.
template <class T>
IE_OUTLINE Vec<T> pow_special(Vec<T> x, Vec<T> y, Vec<T> r) {
  using I = typename format<T>::bits;
  const Vec<T> zero(T(0)), one(T(1)), inf(std::numeric_limits<T>::infinity());
  const Vec<T> ax = abs(x), ay = abs(y);
  const auto integer = is_integer(ay);
  const auto odd = integer & !is_integer(ay * Vec<T>(T(0.5)));
  // Zero and infinite bases and infinite exponents: a limit, 0 or inf.
  const auto limit = (ax == zero) | (ax == inf) | (ay == inf);
  const auto shrinks = (ax > one) ^ (y > zero);
  r = select(limit, select(shrinks, zero, inf), r);
  r = select((ax == one) & (ay == inf), one, r);
  const Vec<I> sign(std::numeric_limits<I>::min());
  const Vec<I> flip = select(odd, bitcast<I>(x) & sign, Vec<I>(I(0)));
  r = bitcast<T>(bitcast<I>(r) ^ flip);
  const Vec<T> nan(std::numeric_limits<T>::quiet_NaN());
  r = select((x < zero) & (ax < inf) & (ay < inf) & !integer, nan, r);
  r = select((x != x) | (y != y), nan, r);
  return select((x == one) | (y == zero), one, r);
}

// Is every x positive and normal and every y finite?
template <class T>
IE_INLINE bool all_plain(Vec<T> x, Vec<T> y) {
#if defined(INPLACE_EXT_AVX512)
  // Classes: for x all that there are (positive normal is none), for y NaN and inf.
  if constexpr (sizeof(T) == 4) {
    return (_mm512_fpclass_ps_mask(x.v, 0xff) | _mm512_fpclass_ps_mask(y.v, 0x99)) == 0;
  } else {
    return (_mm512_fpclass_pd_mask(x.v, 0xff) | _mm512_fpclass_pd_mask(y.v, 0x99)) == 0;
  }
#else
  const Vec<T> inf(std::numeric_limits<T>::infinity());
  return all((x >= Vec<T>(std::numeric_limits<T>::min())) & (x < inf) & (abs(y) < inf));
#endif
}

// x = z * 2^k with sqrt(1/2) <= z < sqrt(2), from the bits of x.
template <class T>
struct Split {
  using I = typename format<T>::bits;
  Vec<I> shifted; // k in the exponent field and rubbish below
  Vec<T> z;
  IE_INLINE explicit Split(Vec<I> bits) {
    shifted = bits - Vec<I>(format<T>::kSqrtHalf);
    const Vec<I> field(static_cast<I>(~((I(1) << format<T>::kMantissa) - 1)));
    z = bitcast<T>(bits - (shifted & field));
  }
};

// The bits of |x|; a denormal as if the exponent field had no lower end.
template <class T>
IE_INLINE Vec<typename format<T>::bits> normalized_bits(Vec<T> x) {
  using F = format<T>;
  using I = typename F::bits;
  const Vec<T> ax = abs(x);
  const Vec<I> scaled = bitcast<I>(ax * Vec<T>(F::kToNormal)) - Vec<I>(I(F::kToNormalLog2) << F::kMantissa);
  const Mask<sizeof(T)> tiny = ax < Vec<T>(std::numeric_limits<T>::min());
  return select(tiny, scaled, bitcast<I>(ax));
}

// The two halves of a float vector, through every step together: each hides the latency of the other.
struct Both {
  Vec<double> lo, hi;
  IE_INLINE explicit Both(double s) : lo(s), hi(s) {}
  IE_INLINE Both(Vec<double> l, Vec<double> h) : lo(l), hi(h) {}
  IE_INLINE explicit Both(DoublePair p) : lo(p.lo), hi(p.hi) {}
};
IE_INLINE Both operator+(Both a, Both b) {
  return {a.lo + b.lo, a.hi + b.hi};
}
IE_INLINE Both operator-(Both a, Both b) {
  return {a.lo - b.lo, a.hi - b.hi};
}
IE_INLINE Both operator*(Both a, Both b) {
  return {a.lo * b.lo, a.hi * b.hi};
}
IE_INLINE Both operator/(Both a, Both b) {
  return {a.lo / b.lo, a.hi / b.hi};
}
IE_INLINE Both fma(Both a, Both b, Both c) {
  return {fma(a.lo, b.lo, c.lo), fma(a.hi, b.hi, c.hi)};
}
IE_INLINE Both max(Both a, Both b) {
  return {max(a.lo, b.lo), max(a.hi, b.hi)};
}
IE_INLINE Both min(Both a, Both b) {
  return {min(a.lo, b.lo), min(a.hi, b.hi)};
}

// 2^t for a float result: overflow and denormals are left to narrow().
#if defined(INPLACE_EXT_AVX512)
// Sixteenths from a table in two registers; what is left of t, and its integer part, come out of single
// instructions, which round down like the sum that finds the row.
IE_INLINE Vec<double> exp2_for_float(Vec<double> t) {
  const __m512d row =
      _mm512_add_round_pd(t.v, _mm512_set1_pd(0x1.8p48), _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);
  const Vec<double> power = lookup(tables::kExp2Sixteenths, bitcast<int64_t>(Vec<double>(row)));
  const Vec<double> f(_mm512_reduce_pd(t.v, 0x49));
  const Vec<double> p = polynomial<0>(f, tables::kExp2SixteenthForFloat);
  return _mm512_scalef_pd((power * p).v, t.v);
}
IE_INLINE Both exp2_for_float(Both t) {
  return {exp2_for_float(t.lo), exp2_for_float(t.hi)};
}
#else
IE_INLINE Vec<double> add_exponent(Vec<double> p, Vec<double> sum) {
  return bitcast<double>(bitcast<int64_t>(p) + (bitcast<int64_t>(sum) << 52));
}
IE_INLINE Both exp2_for_float(Both t) {
  const Both round(format<double>::kRound);
  // Bounds that keep the result in the range of double, and overflow and vanish in float.
  t = min(Both(200.), max(Both(-200.), t));
  const Both sum = t + round;
  const Both p = polynomial<0>(t - (sum - round), tables::kExp2ForFloat);
  return {add_exponent(p.lo, sum.lo), add_exponent(p.hi, sum.hi)};
}
#endif

// (2^k z)^y with sqrt(1/2) <= z < sqrt(2), y finite.
IE_INLINE Vec<float> pow_core(Vec<float> z, Vec<float> k, Vec<float> y) {
  const Both one(1.), wide(widen(z));
  const Both s = (wide - one) / (wide + one);
  const Both log2 = fma(s, polynomial<0>(s * s, tables::kLog2ForFloat), Both(widen(k)));
  const Both r = exp2_for_float(Both(widen(y)) * log2);
  return narrow({r.lo, r.hi});
}

} // namespace math

// pow(x, y) for float: 2^(y log2 x) in double arithmetic, rounded once; log2 by the series of atanh.
// Max Error: 0.6 ulp (measured: 0.534, 2.4e8 samples). Special values and NaN as C99 Annex F: NaN gives NaN,
// but pow(1, y) and pow(x, 0) are 1. Lanes outside positive normal x and finite y are repaired in a branch,
// itself without branches, so negative bases and zeros stay vectors.
IE_INLINE Vec<float> pow(Vec<float> x, Vec<float> y) {
  const bool special = !math::all_plain(x, y);
  Vec<int32_t> bits = bitcast<int32_t>(x);
  if (__builtin_expect(special, 0)) bits = math::normalized_bits(x);
  const math::Split<float> split(bits);
  const Vec<float> r = math::pow_core(split.z, convert<float>(split.shifted >> 23), y);
  if (__builtin_expect(special, 0)) return math::pow_special(x, y, r);
  return r;
}

namespace math {

struct LogRow {
  Vec<double> hi, lo;
};
// The rows of kLogTable for j = index + kLogFirst. Plain loads: gather instructions are microcode on many
// processors, and slower here.
IE_INLINE LogRow log_rows(Vec<int64_t> index) {
  double hi[Vec<double>::N], lo[Vec<double>::N];
  for (int i = 0; i < Vec<double>::N; ++i) {
    const double* row = tables::kLogTable[lane(index, i)];
    hi[i] = row[0];
    lo[i] = row[1];
  }
  return {Vec<double>::load(hi), Vec<double>::load(lo)};
}

} // namespace math

// pow(x, y) for double. log x in two doubles: c = j/256 nearest to 1/z, r = z c - 1 exact (fma), -log c from
// a table, log(1 + r) with its first two terms kept exact; then y log x in two doubles and exp of it with the
// rounding errors of the reduction and of 1 + r carried along. The method is that of table-driven logarithms
// (Tang; also in the ARM and musl libraries), with tables and polynomials of our own.
// Max Error: 0.85 ulp (measured: 0.787, 5.8e7 samples). Special values and NaN as for float. Without fused
// multiply-add each lane is a call of the C library.
IE_INLINE Vec<double> pow(Vec<double> x, Vec<double> y) {
  if constexpr (!kHasFma) {
    return map_lanes([](double a, double b) { return std::pow(a, b); }, x, y);
  } else {
    using V = Vec<double>;
    using I = Vec<int64_t>;
    const V inf(std::numeric_limits<double>::infinity()), one(1.);
    const bool special = !math::all_plain(x, y);
    I bits = bitcast<int64_t>(x);
    // NaN and inf become an ordinary number, to stay inside the table.
    if (__builtin_expect(special, 0))
      bits = select(abs(x) < inf, math::normalized_bits(x), I(0x3ff0000000000000));
    const math::Split<double> split(bits);
    const V z = split.z;
    // k + 2^11 as a double: its 12 bits under an exponent that makes the last of them worth 1.
    const Vec<uint64_t> biased = (bitcast<uint64_t>(split.shifted) ^ Vec<uint64_t>(uint64_t(1) << 63)) >> 52;
    const V k = bitcast<double>(biased | Vec<uint64_t>(0x4330000000000000u)) - V(0x1p52 + 2048.);
    const V round(0x1.8p44);
    const V j = one / z + round;
    const math::LogRow c =
        math::log_rows(bitcast<int64_t>(j) - bitcast<int64_t>(V(0x1.8p44 + tables::kLogFirst / 256.)));
    const V r = fma(z, j - round, -one);

    const V t1 = fma(k, V(tables::kLn2Hi), c.hi);
    const V t2 = t1 + r;
    const V half = V(-0.5) * r, square = r * half;
    const V sum = t2 + square;
    const V tail = fma(k, V(tables::kLn2Lo), c.lo) + ((t1 - t2) + r) + ((t2 - sum) + square) +
                   fma(half, r, -square) + (r * r) * (r * math::polynomial<0>(r, tables::kLog1p));
    const V log = sum + tail;
    const V log_tail = (sum - log) + tail;

    const V product = y * log;
    V low = fma(y, log_tail, fma(y, log, -product));
    const V bounded = min(V(710.), max(V(-746.), product));
    // Out of bounds the tail may be inf or NaN.
    low = select(bounded == product, low, V(0.));
    const math::Exponent<double> e(bounded, tables::kLog2e);
    const V f = fma(e.n, V(-tables::kLn2Hi), bounded);
    low = fma(e.n, V(-tables::kLn2Lo), low);
    const V g = f + low;
    low = (f - g) + low;
    const V head = one + g;
    const V rest = fma(g * g, math::polynomial<2>(g, tables::kExp), ((one - head) + g) + low);
    const V result = math::scale(head + rest, e);
    if (__builtin_expect(special, 0)) return math::pow_special(x, y, result);
    return result;
  }
}

namespace math {

template <class T>
IE_INLINE Vec<T> fmod_lanes(Vec<T> a, Vec<T> b) {
  return map_lanes([](T x, T y) { return std::fmod(x, y); }, a, b);
}

// a - trunc(a/b) b is exact in one fused multiply-add, and so is its repair by b: where a/b was rounded up to
// an integer, the remainder lies just below 0. Only for quotients in which every integer has room for a
// fraction bit, and finite b.
template <class T>
IE_INLINE Vec<T> fmod_fused(Vec<T> a, Vec<T> b, Mask<sizeof(T)>& done) {
  const Vec<T> aa = abs(a), ab = abs(b);
  const Vec<T> q = trunc(aa / ab);
  done = (q < Vec<T>(format<T>::kIntegral / 2)) & (ab < Vec<T>(std::numeric_limits<T>::infinity()));
  const Vec<T> r = fma(-q, ab, aa);
  return copysign(select(r < Vec<T>(T(0)), r + ab, r), a);
}

} // namespace math

// fmod(a, b), exact, bit for bit C's (NaN for b = 0, infinite a and NaN; the sign of a on zeros). Lanes with
// huge quotients or infinities send the whole vector to the C library; it gives the same bits.
IE_INLINE Vec<double> fmod(Vec<double> a, Vec<double> b) {
  if constexpr (kHasFma) {
    Mask<8> done;
    const Vec<double> r = math::fmod_fused(a, b, done);
    if (__builtin_expect(all(done), 1)) return r;
  }
  return math::fmod_lanes(a, b);
}
IE_INLINE Vec<float> fmod(Vec<float> a, Vec<float> b) {
  if constexpr (kHasFma) {
    Mask<4> done;
    const Vec<float> r = math::fmod_fused(a, b, done);
    if (__builtin_expect(all(done), 1)) return r;
    // Quotients of floats have at most 278 bits, and most fit the wider format.
    const DoublePair wa = widen(a), wb = widen(b);
    return narrow({fmod(wa.lo, wb.lo), fmod(wa.hi, wb.hi)});
  }
  return math::fmod_lanes(a, b);
}

} // namespace inplace_ext
