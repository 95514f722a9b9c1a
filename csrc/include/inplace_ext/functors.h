// The arithmetic of every operation, one functor each.
//
// V is a SIMD vector on the CPU (cpu/simd.h) and a scalar on the device. `a` is the element of the tensor
// that is changed, b and c are the operands and d is a number, all in the compute type. Functors know nothing
// of memory; the loops that call them know nothing of arithmetic. A functor must not trap on any bits, since
// the tail of an array is computed in a vector padded with zeros.
#pragma once
#include <limits>
#include <type_traits>

#include "inplace_ext/op_table.h"
#include "inplace_ext/target.h"

namespace inplace_ext {

template <class V>
constexpr bool is_floating_v = std::is_floating_point_v<typename V::lane>;

struct Add {
  template <class V>
  static IE_BOTH V apply(V a, V b) {
    return a + b;
  }
};
struct Sub {
  template <class V>
  static IE_BOTH V apply(V a, V b) {
    return a - b;
  }
};
struct Mul {
  template <class V>
  static IE_BOTH V apply(V a, V b) {
    return a * b;
  }
};
struct Div {
  template <class V>
  static IE_BOTH V apply(V a, V b) {
    return a / b;
  }
};
// a + b * alpha, fused where torch fuses it.
struct AddScaled {
  template <class V>
  static IE_BOTH V apply(V a, V b, V alpha) {
    return fma(b, alpha, a);
  }
};

// max(lo, a) keeps a where a is NaN or equal, so NaN stays and so does -0.0. A NaN bound is not seen here:
// as a number it is a fill_ of NaN, in a tensor it is Maximum's business.
struct ClampMin {
  template <class V>
  static IE_BOTH V apply(V a, V lo) {
    return max(lo, a);
  }
};
struct ClampMax {
  template <class V>
  static IE_BOTH V apply(V a, V hi) {
    return min(hi, a);
  }
};
// The upper bound wins where the two cross, as in torch.
struct Clamp {
  template <class V>
  static IE_BOTH V apply(V a, V lo, V hi) {
    return min(hi, max(lo, a));
  }
};
// NaN on either side gives NaN; the second operand wins a tie of zeros, as in torch's vector loops.
struct Maximum {
  template <class V>
  static IE_BOTH V apply(V a, V b) {
    if constexpr (is_floating_v<V>) {
      return select(a != a, a, max(a, b));
    } else {
      return max(a, b);
    }
  }
};
struct Minimum {
  template <class V>
  static IE_BOTH V apply(V a, V b) {
    if constexpr (is_floating_v<V>) {
      return select(a != a, a, min(a, b));
    } else {
      return min(a, b);
    }
  }
};
// Clamp with bounds from tensors, whose NaN reaches the result.
struct ClampBetween {
  template <class V>
  static IE_BOTH V apply(V a, V lo, V hi) {
    return Minimum::apply(Maximum::apply(a, lo), hi);
  }
};
struct Relu {
  template <class V>
  static IE_BOTH V apply(V a) {
    return max(V(0), a);
  }
};

// A functor of one call of the function of the same arithmetic.
#define IE_UNARY(NAME, EXPRESSION) \
  struct NAME {                    \
    template <class V>             \
    static IE_BOTH V apply(V a) {  \
      return EXPRESSION;           \
    }                              \
  };
IE_UNARY(Sqrt, square_root(a))
IE_UNARY(Rsqrt, inverse_square_root(a))
IE_UNARY(Reciprocal, V(1) / a)
IE_UNARY(Square, a* a)
IE_UNARY(Cube, a * a * a)
IE_UNARY(ReciprocalSquare, V(1) / (a * a))
IE_UNARY(Floor, floor(a))
IE_UNARY(Ceil, ceil(a))
IE_UNARY(Trunc, trunc(a))
IE_UNARY(Round, rint(a))
IE_UNARY(Frac, a - trunc(a))
IE_UNARY(Exp, exp(a))
IE_UNARY(Exp2, exp2(a))
IE_UNARY(Expm1, expm1(a))
IE_UNARY(Log, log(a))
IE_UNARY(Log2, log2(a))
IE_UNARY(Log10, log10(a))
IE_UNARY(Log1p, log1p(a))
IE_UNARY(Sin, sin(a))
IE_UNARY(Cos, cos(a))
IE_UNARY(Tanh, tanh(a))
IE_UNARY(Sigmoid, sigmoid(a))
IE_UNARY(Erf, erf(a))
IE_UNARY(Silu, silu(a))
IE_UNARY(Mish, mish(a))
IE_UNARY(Gelu, gelu(a))
IE_UNARY(GeluTanh, gelu_tanh(a))
#undef IE_UNARY
// Those that only touch the sign have a form on the bits of 16-bit floats.
struct Neg {
  template <class V>
  static IE_BOTH V apply(V a) {
    return -a;
  }
  template <class V>
  static IE_BOTH V apply_bits(V h) {
    return h ^ V(0x8000);
  }
};
struct Abs {
  template <class V>
  static IE_BOTH V apply(V a) {
    return abs(a);
  }
  template <class V>
  static IE_BOTH V apply_bits(V h) {
    return h & V(0x7fff);
  }
};
// 0 for NaN and for either zero.
struct Sign {
  template <class V>
  static IE_BOTH V apply(V a) {
    using T = typename V::lane;
    const V zero(T(0)), one(T(1));
    const V positive = select(a > zero, one, zero);
    if constexpr (std::is_signed_v<T>) {
      return select(a < zero, V(T(-1)), positive);
    } else {
      return positive;
    }
  }
};
// To b's power of ten: rint(a * 10^n) / 10^n, and for whole tens rint(a / 10^n) * 10^n.
struct RoundPlaces {
  template <class V>
  static IE_BOTH V apply(V a, V power) {
    return rint(a * power) / power;
  }
};
struct RoundTens {
  template <class V>
  static IE_BOTH V apply(V a, V power) {
    return rint(a / power) * power;
  }
};

// Float: math.h. Integers: by squaring, modulo 2^bits; a negative exponent gives 0 but for bases 1 and -1.
struct Pow {
  template <class V>
  static IE_BOTH V apply(V a, V b) {
    if constexpr (is_floating_v<V>) {
      return pow(a, b);
    } else {
      using T = typename V::lane;
      const V zero(T(0)), one(T(1));
      V result = one, base = a, e = b;
      if constexpr (std::is_signed_v<T>) e = select(b < zero, zero, b);
      while (any(e != zero)) {
        result = select((e & one) != zero, result * base, result);
        base = base * base;
        e = e >> 1;
      }
      if constexpr (std::is_signed_v<T>) {
        const V minus_one(T(-1));
        const V unit =
            select(a == minus_one, select((b & one) != zero, minus_one, one), select(a == one, one, zero));
        result = select(b < zero, unit, result);
      }
      return result;
    }
  }
};

// Integer quotients. A divisor of zero is refused before any kernel runs; the guard keeps padded lanes from
// trapping, as it does for the one quotient that overflows, MIN / -1, which wraps to MIN.
template <class V>
IE_BOTH V safe_divisor(V b) {
  using T = typename V::lane;
  auto bad = b == V(T(0));
  if constexpr (std::is_signed_v<T>) bad = bad | (b == V(T(-1)));
  return select(bad, V(T(1)), b);
}
template <class V>
IE_BOTH V integer_quotient(V a, V b) {
  using T = typename V::lane;
  V q = quotient(a, safe_divisor(b));
  if constexpr (std::is_signed_v<T>) q = select(b == V(T(-1)), V(T(0)) - a, q);
  return q;
}
struct DivTrunc {
  template <class V>
  static IE_BOTH V apply(V a, V b) {
    if constexpr (is_floating_v<V>) {
      return trunc(a / b);
    } else {
      return integer_quotient(a, b);
    }
  }
};
// Python's floor division, as torch computes it: from the exact remainder, so that floor_divide(1, 0.1) is 9.
struct DivFloor {
  template <class V>
  static IE_BOTH V apply(V a, V b) {
    using T = typename V::lane;
    const V zero(T(0)), one(T(1));
    if constexpr (is_floating_v<V>) {
      const V quotient = a / b;
      const V mod = fmod(a, b);
      V div = (a - mod) / b;
      div = select((mod != zero) & ((b < zero) ^ (mod < zero)), div - one, div);
      V result = floor(div);
      result = select(div - result > V(T(0.5)), result + one, result);
      result = select(div != zero, result, copysign(zero, quotient));
      return select(b == zero, quotient, result);
    } else {
      const V q = integer_quotient(a, b);
      if constexpr (std::is_signed_v<T>) {
        const V remainder = a - q * b;
        return select((remainder != zero) & ((remainder < zero) ^ (b < zero)), q - one, q);
      } else {
        return q;
      }
    }
  }
};

// The remainder with the sign of a, and with that of b as Python has it. Integers: see safe_divisor; the
// remainder of a division by -1 is 0.
struct Fmod {
  template <class V>
  static IE_BOTH V apply(V a, V b) {
    if constexpr (is_floating_v<V>) {
      return fmod(a, b);
    } else {
      return a - integer_quotient(a, b) * b;
    }
  }
};
struct Remainder {
  template <class V>
  static IE_BOTH V apply(V a, V b) {
    using T = typename V::lane;
    const V mod = Fmod::apply(a, b), zero(T(0));
    if constexpr (std::is_signed_v<T>) {
      return select((mod != zero) & ((b < zero) ^ (mod < zero)), mod + b, mod);
    } else {
      return mod;
    }
  }
};

// Fused where torch's are: its addcmul and lerp round once, its addcdiv does not.
struct Addcmul {
  template <class V>
  static IE_BOTH V apply(V a, V b, V c, V value) {
    return fma(value * b, c, a);
  }
};
struct Addcdiv {
  template <class V>
  static IE_BOTH V apply(V a, V b, V c, V value) {
    return a + value * b / c;
  }
};
// From the nearer end, so that weight 1 gives `end` itself.
struct Lerp {
  template <class V>
  static IE_BOTH V apply(V a, V end, V weight) {
    using T = typename V::lane;
    const auto near = abs(weight) < V(T(0.5));
    return fma(select(near, weight, weight - V(T(1))), end - a, select(near, a, end));
  }
};

// 1 where it holds, else 0.
#define IE_COMPARISON(NAME, OP)                \
  struct NAME {                                \
    template <class V>                         \
    static IE_BOTH V apply(V a, V b) {         \
      using T = typename V::lane;              \
      return select(a OP b, V(T(1)), V(T(0))); \
    }                                          \
  };
IE_COMPARISON(Equal, ==)
IE_COMPARISON(NotEqual, !=)
IE_COMPARISON(Less, <)
IE_COMPARISON(LessEqual, <=)
IE_COMPARISON(Greater, >)
IE_COMPARISON(GreaterEqual, >=)
#undef IE_COMPARISON

// The mask is true where it is not zero. On the bits of 16-bit floats, so that a NaN keeps its own.
struct MaskedFill {
  template <class V>
  static IE_BOTH V apply(V a, V mask, V value) {
    return select(mask != V(typename V::lane(0)), value, a);
  }
  template <class V>
  static IE_BOTH V apply_bits(V a, V mask, V value) {
    return apply(a, mask, value);
  }
};
struct Where {
  template <class V>
  static IE_BOTH V apply(V a, V mask, V other) {
    return select(mask != V(typename V::lane(0)), a, other);
  }
  template <class V>
  static IE_BOTH V apply_bits(V a, V mask, V other) {
    return apply(a, mask, other);
  }
};
// Dropout: what is dropped is multiplied by 0, so that NaN and inf leave a NaN, as in torch.
struct Drop {
  template <class V>
  static IE_BOTH V apply(V a, V draw, V threshold, V scale) {
    return a * select(draw >= threshold, scale, V(0));
  }
};
struct NanToNum {
  template <class V>
  static IE_BOTH V apply(V a, V nan, V posinf, V neginf) {
    const V inf(std::numeric_limits<typename V::lane>::infinity());
    return select(a != a, nan, select(a == inf, posinf, select(a == -inf, neginf, a)));
  }
};
// + and * of bool tensors, on bytes of which any that is not zero counts as true.
struct LogicalOr {
  template <class V>
  static IE_BOTH V apply(V a, V b) {
    return select((a | b) != V(0), V(1), V(0));
  }
};
struct LogicalAnd {
  template <class V>
  static IE_BOTH V apply(V a, V b) {
    return select((a != V(0)) & (b != V(0)), V(1), V(0));
  }
};

// Activations. NaN stays NaN, as comparisons and the order of max and min have it.
struct Threshold {
  template <class V>
  static IE_BOTH V apply(V a, V threshold, V value) {
    return select(a <= threshold, value, a);
  }
};
struct LeakyRelu {
  template <class V>
  static IE_BOTH V apply(V a, V slope) {
    return select(a > V(0), a, a * slope);
  }
};
struct Hardsigmoid {
  template <class V>
  static IE_BOTH V apply(V a) {
    return sixth(min(V(6), max(V(0), a + V(3))));
  }
};
struct Hardswish {
  template <class V>
  static IE_BOTH V apply(V a) {
    return a * min(V(6), max(V(0), a + V(3))) / V(6);
  }
};
// b and c are the factors of the negative and of the positive side, d that of the exponent.
struct Elu {
  template <class V>
  static IE_BOTH V apply(V a, V negative, V positive, V input) {
    return select(a > V(0), a * positive, expm1(a * input) * negative);
  }
};
struct Softplus {
  template <class V>
  static IE_BOTH V apply(V a, V beta, V threshold) {
    return softplus(a, beta, threshold);
  }
};

// A functor with the operands that its form takes.
template <class Functor, Form F, class V>
IE_INLINE V apply(V a, V b, V c, V d) {
  if constexpr (takes_third(F)) {
    return Functor::apply(a, b, c, d);
  } else if constexpr (operands_of(F) == 0) {
    return Functor::apply(a);
  } else if constexpr (operands_of(F) == 1) {
    return Functor::apply(a, b);
  } else {
    return Functor::apply(a, b, c);
  }
}

} // namespace inplace_ext
