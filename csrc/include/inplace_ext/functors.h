// The arithmetic of every operation, one functor each.
//
// V is a SIMD vector on the CPU (cpu/simd.h) and a scalar on the device. `a` is the element of the tensor
// that is changed, b and c are the operands, already in the compute type. Functors know nothing of memory;
// the loops that call them know nothing of arithmetic. A functor must not trap on any bits, since the tail of
// an array is computed in a vector padded with zeros.
#pragma once
#include <type_traits>

namespace inplace_ext {

template <class V>
constexpr bool is_floating_v = std::is_floating_point_v<typename V::lane>;

struct Add {
  template <class V>
  static V apply(V a, V b) {
    return a + b;
  }
};
struct Sub {
  template <class V>
  static V apply(V a, V b) {
    return a - b;
  }
};
struct Mul {
  template <class V>
  static V apply(V a, V b) {
    return a * b;
  }
};
struct Div {
  template <class V>
  static V apply(V a, V b) {
    return a / b;
  }
};
// a + b * alpha, fused where torch fuses it.
struct AddScaled {
  template <class V>
  static V apply(V a, V b, V alpha) {
    return fma(b, alpha, a);
  }
};

// max(lo, a) keeps a where a is NaN or equal, so NaN stays and so does -0.0. A NaN bound is not seen here:
// as a number it is a fill_ of NaN, in a tensor it is Maximum's business.
struct ClampMin {
  template <class V>
  static V apply(V a, V lo) {
    return max(lo, a);
  }
};
struct ClampMax {
  template <class V>
  static V apply(V a, V hi) {
    return min(hi, a);
  }
};
// The upper bound wins where the two cross, as in torch.
struct Clamp {
  template <class V>
  static V apply(V a, V lo, V hi) {
    return min(hi, max(lo, a));
  }
};
// NaN on either side gives NaN; the second operand wins a tie of zeros, as in torch's vector loops.
struct Maximum {
  template <class V>
  static V apply(V a, V b) {
    if constexpr (is_floating_v<V>) {
      return select(a != a, a, max(a, b));
    } else {
      return max(a, b);
    }
  }
};
struct Minimum {
  template <class V>
  static V apply(V a, V b) {
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
  static V apply(V a, V lo, V hi) {
    return Minimum::apply(Maximum::apply(a, lo), hi);
  }
};
struct Relu {
  template <class V>
  static V apply(V a) {
    return max(V(0), a);
  }
};

struct Neg {
  template <class V>
  static V apply(V a) {
    return -a;
  }
  // On the bits of 16-bit floats.
  template <class V>
  static V apply_bits(V h) {
    return h ^ V(0x8000);
  }
};
struct Exp {
  template <class V>
  static V apply(V a) {
    return exp(a);
  }
};
struct Sqrt {
  template <class V>
  static V apply(V a) {
    return sqrt(a);
  }
};
struct Rsqrt {
  template <class V>
  static V apply(V a) {
    return V(1) / sqrt(a);
  }
};
struct Reciprocal {
  template <class V>
  static V apply(V a) {
    return V(1) / a;
  }
};
struct Square {
  template <class V>
  static V apply(V a) {
    return a * a;
  }
};
struct Cube {
  template <class V>
  static V apply(V a) {
    return a * a * a;
  }
};
struct ReciprocalSquare {
  template <class V>
  static V apply(V a) {
    return V(1) / (a * a);
  }
};

// Float: math.h. Integers: by squaring, modulo 2^bits; a negative exponent gives 0 but for bases 1 and -1.
struct Pow {
  template <class V>
  static V apply(V a, V b) {
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
V safe_divisor(V b) {
  using T = typename V::lane;
  auto bad = b == V(T(0));
  if constexpr (std::is_signed_v<T>) bad = bad | (b == V(T(-1)));
  return select(bad, V(T(1)), b);
}
template <class V>
V integer_quotient(V a, V b) {
  using T = typename V::lane;
  V q = quotient(a, safe_divisor(b));
  if constexpr (std::is_signed_v<T>) q = select(b == V(T(-1)), V(T(0)) - a, q);
  return q;
}
struct DivTrunc {
  template <class V>
  static V apply(V a, V b) {
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
  static V apply(V a, V b) {
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

// + and * of bool tensors, on bytes of which any that is not zero counts as true.
struct LogicalOr {
  template <class V>
  static V apply(V a, V b) {
    return select((a | b) != V(0), V(1), V(0));
  }
};
struct LogicalAnd {
  template <class V>
  static V apply(V a, V b) {
    return select((a != V(0)) & (b != V(0)), V(1), V(0));
  }
};

} // namespace inplace_ext
