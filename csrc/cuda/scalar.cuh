// Vec<T> of one lane: the device's twin of cpu/simd.h, in which each thread computes elements of its own.
//
// Arithmetic is never contracted behind our back (nvcc -fmad=false, g++ -ffp-contract=off): with IEEE
// division and square roots that makes the bits of exact operations those of the CPU's kernels.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>

#include "device.cuh"
#include "inplace_ext/dtype.h"
#include "inplace_ext/target.h"

namespace inplace_ext {

constexpr bool kHasFma = true;

// What a comparison of lanes of `Size` bytes gives.
template <int Size>
struct Mask {
  using lane = typename int_of_size<Size>::type;
  static constexpr int N = 1;
  bool m;
  Mask() = default;
  IE_INLINE explicit Mask(bool is) : m(is) {}
};
template <int S>
IE_INLINE Mask<S> operator&(Mask<S> a, Mask<S> b) {
  return Mask<S>(a.m && b.m);
}
template <int S>
IE_INLINE Mask<S> operator|(Mask<S> a, Mask<S> b) {
  return Mask<S>(a.m || b.m);
}
template <int S>
IE_INLINE Mask<S> operator^(Mask<S> a, Mask<S> b) {
  return Mask<S>(a.m != b.m);
}
template <int S>
IE_INLINE Mask<S> operator!(Mask<S> a) {
  return Mask<S>(!a.m);
}
template <int S>
IE_INLINE bool any(Mask<S> a) {
  return a.m;
}
template <int S>
IE_INLINE bool all(Mask<S> a) {
  return a.m;
}

template <class T>
struct Vec {
  using lane = T;
  using mask = Mask<sizeof(T)>;
  static constexpr int N = 1;
  T v;

  Vec() = default;
  IE_INLINE explicit Vec(T s) : v(s) {}
  static IE_INLINE Vec load(const T* p) {
    return Vec(*p);
  }
};
template <class T>
IE_INLINE T lane(Vec<T> a, int) {
  return a.v;
}

// Integers wrap: they are computed without a sign, and the small ones in 32 bits.
template <class T>
struct wrapping {
  using type = std::conditional_t<sizeof(T) < 4, uint32_t, std::make_unsigned_t<T>>;
};
template <>
struct wrapping<float> {
  using type = float;
};
template <>
struct wrapping<double> {
  using type = double;
};
#define IE_ARITHMETIC(OP)                                                      \
  template <class T>                                                           \
  IE_INLINE Vec<T> operator OP(Vec<T> a, Vec<T> b) {                           \
    using W = typename wrapping<T>::type;                                      \
    return Vec<T>(static_cast<T>(static_cast<W>(a.v) OP static_cast<W>(b.v))); \
  }
IE_ARITHMETIC(+)
IE_ARITHMETIC(-)
IE_ARITHMETIC(*)
#undef IE_ARITHMETIC
template <class T>
IE_INLINE Vec<T> operator/(Vec<T> a, Vec<T> b) {
  return Vec<T>(static_cast<T>(a.v / b.v));
}
template <class T>
IE_INLINE Vec<T> operator-(Vec<T> a) {
  if constexpr (std::is_floating_point_v<T>) {
    return Vec<T>(-a.v);
  } else {
    return Vec<T>(T(0)) - a;
  }
}
#define IE_BITWISE(OP)                               \
  template <class T>                                 \
  IE_INLINE Vec<T> operator OP(Vec<T> a, Vec<T> b) { \
    return Vec<T>(static_cast<T>(a.v OP b.v));       \
  }
IE_BITWISE(&)
IE_BITWISE(|)
IE_BITWISE(^)
#undef IE_BITWISE
template <class T>
IE_INLINE Vec<T> operator<<(Vec<T> a, int n) {
  return Vec<T>(static_cast<T>(static_cast<typename wrapping<T>::type>(a.v) << n));
}
template <class T>
IE_INLINE Vec<T> operator>>(Vec<T> a, int n) {
  return Vec<T>(static_cast<T>(a.v >> n));
}
#define IE_COMPARE(OP)                                        \
  template <class T>                                          \
  IE_INLINE Mask<sizeof(T)> operator OP(Vec<T> a, Vec<T> b) { \
    return Mask<sizeof(T)>(a.v OP b.v);                       \
  }
IE_COMPARE(<)
IE_COMPARE(<=)
IE_COMPARE(>)
IE_COMPARE(>=)
IE_COMPARE(==)
IE_COMPARE(!=)
#undef IE_COMPARE

template <class T>
IE_INLINE bool all_less(Vec<T> a, Vec<T> b) {
  return a.v < b.v;
}
template <class T>
IE_INLINE Vec<T> select(Mask<sizeof(T)> m, Vec<T> a, Vec<T> b) {
  return m.m ? a : b;
}

// The same bits read as another type of the same size.
template <class To, class From>
IE_INLINE To bits_as(From a) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  memcpy(&to, &a, sizeof(to));
  return to;
}
template <class To, class T>
IE_INLINE Vec<To> bitcast(Vec<T> a) {
  return Vec<To>(bits_as<To>(a.v));
}
template <class To, class T>
IE_INLINE Vec<To> convert(Vec<T> a) {
  return Vec<To>(static_cast<To>(a.v));
}
template <class F, class T, class... Rest>
IE_INLINE Vec<T> map_lanes(F f, Vec<T> a, Rest... rest) {
  return Vec<T>(f(a.v, rest.v...));
}

IE_INLINE Vec<float> fma(Vec<float> a, Vec<float> b, Vec<float> c) {
  return Vec<float>(::fmaf(a.v, b.v, c.v));
}
IE_INLINE Vec<double> fma(Vec<double> a, Vec<double> b, Vec<double> c) {
  return Vec<double>(::fma(a.v, b.v, c.v));
}
template <class T>
IE_INLINE Vec<T> fma(Vec<T> a, Vec<T> b, Vec<T> c) {
  return a * b + c;
}
#define IE_ROUNDING(NAME, F32, F64)           \
  IE_INLINE Vec<float> NAME(Vec<float> a) {   \
    return Vec<float>(::F32(a.v));            \
  }                                           \
  IE_INLINE Vec<double> NAME(Vec<double> a) { \
    return Vec<double>(::F64(a.v));           \
  }
IE_ROUNDING(sqrt, sqrtf, sqrt)
IE_ROUNDING(rint, rintf, rint)
IE_ROUNDING(floor, floorf, floor)
IE_ROUNDING(ceil, ceilf, ceil)
IE_ROUNDING(trunc, truncf, trunc)
#undef IE_ROUNDING

// The second operand where either is NaN or the two are equal, as in cpu/simd.h.
template <class T>
IE_INLINE Vec<T> max(Vec<T> x, Vec<T> y) {
  return x.v > y.v ? x : y;
}
template <class T>
IE_INLINE Vec<T> min(Vec<T> x, Vec<T> y) {
  return x.v < y.v ? x : y;
}

template <class T>
IE_INLINE Vec<T> abs(Vec<T> a) {
  using I = typename Mask<sizeof(T)>::lane;
  if constexpr (std::is_floating_point_v<T>) {
    return bitcast<T>(bitcast<I>(a) & Vec<I>(std::numeric_limits<I>::max()));
  } else if constexpr (std::is_signed_v<T>) {
    return a.v < 0 ? -a : a;
  } else {
    return a;
  }
}
// |a| with the sign bit of b.
template <class T>
IE_INLINE Vec<T> copysign(Vec<T> a, Vec<T> b) {
  using I = typename Mask<sizeof(T)>::lane;
  const Vec<I> sign(std::numeric_limits<I>::min()), rest(std::numeric_limits<I>::max());
  return bitcast<T>((bitcast<I>(a) & rest) | (bitcast<I>(b) & sign));
}
// a, negative where b is: copysign for an a that is positive or has the sign of b already.
template <class T>
IE_INLINE Vec<T> with_sign(Vec<T> a, Vec<T> b) {
  using I = typename Mask<sizeof(T)>::lane;
  return bitcast<T>(bitcast<I>(a) | (bitcast<I>(b) & Vec<I>(std::numeric_limits<I>::min())));
}

// The math headers compute floats in pairs of double vectors, each of half the lanes. Here both are the same
// number, of which the compiler keeps one.
struct DoublePair {
  Vec<double> lo, hi;
};
IE_INLINE DoublePair widen(Vec<float> a) {
  const Vec<double> wide(static_cast<double>(a.v));
  return {wide, wide};
}
IE_INLINE Vec<float> narrow(DoublePair p) {
  return Vec<float>(static_cast<float>(p.lo.v));
}

// Integer quotient, truncated; no divisor may be 0, nor -1 of a signed type.
template <class T>
IE_INLINE Vec<T> quotient(Vec<T> a, Vec<T> b) {
  return Vec<T>(static_cast<T>(a.v / b.v));
}

// ---- storage types ----------------------------------------------------------------------------------------

template <class S>
using ComputeOf = typename storage_traits<S>::compute;
template <class S>
constexpr bool is_half_v = std::is_same_v<S, half_t> || std::is_same_v<S, bfloat16_t>;

IE_INLINE float to_float(half_t h) {
  return __half2float(__ushort_as_half(h.bits));
}
IE_INLINE float to_float(bfloat16_t h) {
  return bits_as<float>(static_cast<uint32_t>(h.bits) << 16);
}
// Rounded to nearest, ties to even.
IE_INLINE half_t round_to(float f, half_t) {
  return {__half_as_ushort(__float2half_rn(f))};
}
IE_INLINE bfloat16_t round_to(float f, bfloat16_t) {
  return {__bfloat16_as_ushort(__float2bfloat16_rn(f))};
}

// What a C++ cast gives, as cpu/convert.cpp has it: floats go to the small integers through int32, so that a
// negative number wraps in uint8; 16-bit floats go through float32; a bool is 0 or 1 whatever its byte holds.
template <class D, class S>
IE_INLINE D cast(S s) {
  if constexpr (std::is_same_v<D, S>) {
    return s;
  } else if constexpr (is_half_v<S>) {
    return cast<D>(to_float(s));
  } else if constexpr (std::is_same_v<S, bool_t>) {
    return cast<D>(static_cast<uint8_t>(s.bits != 0));
  } else if constexpr (std::is_same_v<D, bool_t>) {
    return {static_cast<uint8_t>(s != 0)};
  } else if constexpr (is_half_v<D>) {
    return round_to(static_cast<float>(s), D{});
  } else if constexpr (std::is_floating_point_v<S> && std::is_integral_v<D> && sizeof(D) < 4) {
    return static_cast<D>(static_cast<int32_t>(s));
  } else {
    return static_cast<D>(s);
  }
}

} // namespace inplace_ext
