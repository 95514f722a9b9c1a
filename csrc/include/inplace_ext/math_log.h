// Logarithms on Vec<float> and Vec<double>: log, log2, log10, log1p.
#pragma once
#include "inplace_ext/math.h"
#include "inplace_ext/math_tables.h"

namespace inplace_ext {
namespace math {

// log(1 + f) - f for sqrt(1/2) - 1 <= f < sqrt(2) - 1.
IE_INLINE Vec<float> log1p_tail(Vec<float> f) {
  const Vec<float> f2 = f * f;
  return fma(f2 * f, polynomial<0>(f, tables::kLog1pF), Vec<float>(-0.5f) * f2);
}
// By the series of atanh in s = f / (2 + f), which needs half the terms.
IE_INLINE Vec<double> log1p_tail(Vec<double> f) {
  const Vec<double> s = f / (f + Vec<double>(2.)), half = Vec<double>(0.5) * f * f, z = s * s;
  return s * fma(z, polynomial<0>(z, tables::kLogAtanh), half) - half;
}

// The base of a logarithm: k units, f times the factor, each as a high and a low part. The high part of the
// unit has so few bits that k * high is exact. The last two are what log_in_pieces looks up.
template <class T>
struct Base {
  T unit, unit_low, factor, factor_low;
  const T (&pieces)[2][sizeof(T) == 4 ? 32 : 16];
  const T (&series)[sizeof(T) == 4 ? 4 : 10];
};

// log of 2^k (1 + f) in the base, with the rounding error of its largest sum carried along.
template <class T>
IE_INLINE Vec<T> log_of(Vec<T> k, Vec<T> f, const Base<T>& base, bool natural) {
  const Vec<T> tail = log1p_tail(f);
  const Vec<T> units = k * Vec<T>(base.unit);
  Vec<T> head = f, rest = fma(k, Vec<T>(base.unit_low), tail);
  if (!natural) {
    head = f * Vec<T>(base.factor);
    rest = fma(tail, Vec<T>(base.factor), k * Vec<T>(base.unit_low));
    rest = fma(f, Vec<T>(base.factor_low), rest);
    if constexpr (kHasFma) rest = rest + fma(f, Vec<T>(base.factor), -head);
  }
  const Vec<T> sum = units + head;
  return sum + (((units - sum) + head) + rest);
}

// Lanes that are not positive and normal: -inf for 0, NaN below it, inf and NaN as they are.
template <class T>
IE_OUTLINE Vec<T> log_special(Vec<T> x, Vec<T> r) {
  const Vec<T> zero(T(0)), inf(std::numeric_limits<T>::infinity());
  r = select(x == zero, -inf, r);
  r = select(x < zero, Vec<T>(std::numeric_limits<T>::quiet_NaN()), r);
  return select((x == inf) | (x != x), x, r);
}

// The exponent k of Split as a number.
IE_INLINE Vec<float> exponent_of(const Split<float>& split) {
  return convert<float>(split.shifted >> format<float>::kMantissa);
}
IE_INLINE Vec<double> exponent_of(const Split<double>& split) {
  // Its 12 bits under an exponent that makes the last of them worth 1.
  const Vec<uint64_t> biased = (bitcast<uint64_t>(split.shifted) ^ Vec<uint64_t>(uint64_t(1) << 63)) >> 52;
  return bitcast<double>(biased | Vec<uint64_t>(0x4330000000000000u)) - Vec<double>(0x1p52 + 2048.);
}

#if defined(INPLACE_EXT_AVX512)
// log of m 2^k = k unit + log(1 / c) + log(1 + r) with r = m c - 1, c from a table by the leading bits of m;
// the first two terms and their sum are exact. k and m come out of instructions that know denormals, and make
// of 0, infinities, NaN and negative numbers what the logarithm does.
template <class T>
IE_INLINE Vec<T> log_in_pieces(Vec<T> x, const Base<T>& base, bool natural) {
  constexpr auto kRange = _MM_MANT_NORM_p75_1p5;
  constexpr auto kSign = _MM_MANT_SIGN_nan;
  const Vec<T> one(T(1));
  Vec<T> m, k;
  // m runs from 0.75 to 1.5, the exponent from 1 to 2.
  if constexpr (sizeof(T) == 4) {
    m.v = _mm512_getmant_ps(x.v, kRange, kSign), k.v = _mm512_getexp_ps(x.v);
    k.v = _mm512_mask_add_ps(k.v, _mm512_cmp_ps_mask(m.v, one.v, _CMP_LT_OQ), k.v, one.v);
  } else {
    m.v = _mm512_getmant_pd(x.v, kRange, kSign), k.v = _mm512_getexp_pd(x.v);
    k.v = _mm512_mask_add_pd(k.v, _mm512_cmp_pd_mask(m.v, one.v, _CMP_LT_OQ), k.v, one.v);
  }
  constexpr int kIndexBits = sizeof(T) == 4 ? 5 : 4;
  const auto index = bitcast<typename format<T>::bits>(m) >> (format<T>::kMantissa - kIndexBits);
  const Vec<T> r = fma(m, lookup(base.pieces[0], index), -one);
  const Vec<T> head = fma(k, Vec<T>(base.unit), lookup(base.pieces[1], index));
  const Vec<T> p = polynomial<0>(r, base.series), r2 = r * r;
  if (natural) return head + (r + fma(r2, p, k * Vec<T>(base.unit_low)));
  Vec<T> rest = fma(r2, p, r * Vec<T>(base.factor_low));
  if (base.unit_low != 0) rest = fma(k, Vec<T>(base.unit_low), rest);
  return head + fma(r, Vec<T>(base.factor), rest);
}
#endif

template <class T>
IE_INLINE Vec<T> log_base(Vec<T> x, const Base<T>& base, bool natural) {
#if defined(INPLACE_EXT_AVX512)
  return log_in_pieces(x, base, natural);
#endif
  const bool special = !all_plain(x, Vec<T>(T(0)));
  Vec<typename format<T>::bits> bits = bitcast<typename format<T>::bits>(x);
  if (__builtin_expect(special, 0)) bits = normalized_bits(x);
  const Split<T> split(bits);
  const Vec<T> r = log_of(exponent_of(split), split.z - Vec<T>(T(1)), base, natural);
  if (__builtin_expect(special, 0)) return log_special(x, r);
  return r;
}

// Functions, since the device has no constants of class type.
template <class T>
struct bases;
template <>
struct bases<float> {
  static IE_BOTH constexpr Base<float> e() {
    return {tables::kLn2HiF, tables::kLn2LoF, 1.f, 0.f, tables::kLogPiecesF, tables::kLogPieceF};
  }
  static IE_BOTH constexpr Base<float> two() {
    return {1.f, 0.f, tables::kLog2eHiF, tables::kLog2eLoF, tables::kLog2PiecesF, tables::kLog2PieceF};
  }
  static IE_BOTH constexpr Base<float> ten() {
    return {tables::kLog10Of2HiF, tables::kLog10Of2LoF,  tables::kLog10eHiF,
            tables::kLog10eLoF,   tables::kLog10PiecesF, tables::kLog10PieceF};
  }
};
template <>
struct bases<double> {
  static IE_BOTH constexpr Base<double> e() {
    return {tables::kLn2Hi, tables::kLn2Lo, 1., 0., tables::kLogPieces, tables::kLogPiece};
  }
  static IE_BOTH constexpr Base<double> two() {
    return {1., 0., tables::kLog2eHi, tables::kLog2eLo, tables::kLog2Pieces, tables::kLog2Piece};
  }
  static IE_BOTH constexpr Base<double> ten() {
    return {tables::kLog10Of2Hi, tables::kLog10Of2Lo,  tables::kLog10eHi,
            tables::kLog10eLo,   tables::kLog10Pieces, tables::kLog10Piece};
  }
};

} // namespace math

// log x = k ln2 + log(1 + f) for x = 2^k (1 + f), |log(1 + f)| <= ln(2)/2. Positive normal numbers go
// straight through; the others are repaired in a branch.
template <class T>
IE_INLINE Vec<T> log(Vec<T> x) {
  return math::log_base(x, math::bases<T>::e(), true);
}
template <class T>
IE_INLINE Vec<T> log2(Vec<T> x) {
  return math::log_base(x, math::bases<T>::two(), false);
}
template <class T>
IE_INLINE Vec<T> log10(Vec<T> x) {
  return math::log_base(x, math::bases<T>::ten(), false);
}

// log(1 + x): as log(u), u = 1 + x rounded, with what the sum lost added to f in its scale.
template <class T>
IE_INLINE Vec<T> log1p(Vec<T> x) {
  using F = math::format<T>;
  using I = typename F::bits;
  const Vec<T> one(T(1)), zero(T(0)), u = one + x;
  const bool special = !math::all_plain(u, zero);
  const math::Split<T> split(bitcast<I>(u));
  const Vec<T> lost = select(x < one, x - (u - one), one - (u - x));
  // 2^-k, 0 where the exponent runs out.
  const Vec<I> field(static_cast<I>(~((I(1) << F::kMantissa) - 1)));
  const Vec<T> power = max(zero, bitcast<T>(bitcast<I>(one) - (split.shifted & field)));
  const Vec<T> f = fma(lost, power, split.z - one);
  Vec<T> r = math::log_of(math::exponent_of(split), f, math::bases<T>::e(), true);
  r = copysign(r, x); // for -0.0
  if (__builtin_expect(special, 0)) return math::log_special(u, r);
  return r;
}

} // namespace inplace_ext
