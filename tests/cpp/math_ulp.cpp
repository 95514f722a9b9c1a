// Measures the vector math against the C library in a wider type, and holds it to bounds.
//
//   math_ulp                   everything: each function of one float on all 2^32 inputs, dense samples of
//   the
//                              rest (minutes); every 16th input without fused multiply-add, where it is slow
//   math_ulp --quick           the same in seconds, on samples
//   math_ulp --dump NAME N     N inputs of a function of one double, each followed by its value, in binary
//   math_ulp --time            ns per element in cache, nothing checked
//
// tools/measure_ulp.py compiles and runs it for each instruction set. A line of output has seven columns
// between tabs: function, type, inputs, their number, largest error in ulp, bound, where. Exit status 1 when
// a bound is exceeded.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <limits>
#include <string>
#include <vector>

#include "simd.h"

#include "inplace_ext/math.h"
#include "inplace_ext/math_erf.h"
#include "inplace_ext/math_exp.h"
#include "inplace_ext/math_log.h"
#include "inplace_ext/math_root.h"
#include "inplace_ext/math_trig.h"

namespace {

using namespace inplace_ext;

// Functions of one argument: X(name, bound for float, bound for double, reference, ordinary range). The
// bounds are in ulp, and a little above what is measured; the comments in the headers quote that.
#define MATH_ULP_UNARY(X)                                               \
  X(exp, 1.0, 1.25, std::exp(x), -104, 89)                              \
  X(exp2, 1.75, 2.0, std::exp2(x), -150, 128)                           \
  X(expm1, 2.0, 2.0, std::expm1(x), -20, 89)                            \
  X(log, 1.5, 1.5, std::log(x), 0, 100)                                 \
  X(log2, 2.0, 2.0, std::log2(x), 0, 100)                               \
  X(log10, 2.0, 2.0, std::log10(x), 0, 100)                             \
  X(log1p, 1.75, 1.75, std::log1p(x), -1, 100)                          \
  X(sin, 1.75, 1.75, std::sin(x), -100, 100)                            \
  X(cos, 1.75, 1.75, std::cos(x), -100, 100)                            \
  X(tanh, 1.75, 1.75, std::tanh(x), -10, 10)                            \
  X(sigmoid, 1.75, 2.0, 1 / (1 + std::exp(-x)), -100, 20)               \
  X(erf, 1.5, 1.75, std::erf(x), -4, 4)                                 \
  X(silu, 1.75, 1.75, x / (1 + std::exp(-x)), -100, 20)                 \
  X(mish, 1.0, 1.75, x* std::tanh(std::log1p(std::exp(x))), -100, 20)   \
  X(softplus, 1.0, 2.0, x > 20 ? x : std::log1p(std::exp(x)), -100, 30) \
  X(gelu, 1.9, 1.5, normal_gelu(x), -15, 15)                            \
  X(gelu_tanh, 1.0, 1.75,                                               \
    x / (1 + std::exp(-kGelu<decltype(x)> * (x + decltype(x)(0.044715L) * x * x * x))), -10, 10)

// x P(X <= x). Far out, where erfc is off by what rounding its argument's square makes of it, as an
// exponential of exact arguments times a continued fraction.
template <class W>
W normal_gelu(W x) {
  const W root = std::sqrt(W(0.5)), y = -x * root;
  if (!(x < -10 && x > -100)) return x > 100 ? x : x * (std::erfc(y) / 2);
  const W high = static_cast<float>(x), low = x - high;
  W fraction = y;
  for (int k = 80; k > 0; --k) fraction = y + W(k) / 2 / fraction;
  const W exponential = std::exp(-high * high / 2) * std::exp(-low * (high + low / 2));
  return x * exponential * W(0.564189583547756286948079451560772586L) / (2 * fraction);
}
template <class W>
constexpr W kGelu = W(1.595769121605730711759784L); // 2 sqrt(2/pi)

// Largest errors of the functions of two arguments.
struct Bounds {
  double pow_float = 1.0;
  // The fallback without fused multiply-add is the C library's.
  double pow_double = kHasFma ? 0.85 : 1.0;
  double fmod = 0.0;
} constexpr kBounds;

template <class T>
struct Traits;
template <>
struct Traits<float> {
  using Bits = uint32_t;
  using Wide = double;
  static constexpr const char* kName = "float";
};
template <>
struct Traits<double> {
  using Bits = uint64_t;
  using Wide = long double;
  static constexpr const char* kName = "double";
};

template <class T>
T from_bits(typename Traits<T>::Bits b) {
  T r;
  std::memcpy(&r, &b, sizeof r);
  return r;
}
template <class T>
typename Traits<T>::Bits to_bits(T x) {
  typename Traits<T>::Bits r;
  std::memcpy(&r, &x, sizeof r);
  return r;
}

// |got - want| in ulp of T at `want`; overflow counts from 2^max_exponent, a wrong NaN as infinity.
template <class T>
double error_ulp(T got, typename Traits<T>::Wide want) {
  using W = typename Traits<T>::Wide;
  using L = std::numeric_limits<T>;
  constexpr double inf = std::numeric_limits<double>::infinity();
  if (want != want || got != got) return (want != want) == (got != got) ? 0 : inf;
  if (static_cast<W>(got) == want && std::signbit(got) == std::signbit(want)) return 0;
  const W top = std::ldexp(W(1), L::max_exponent);
  if (std::signbit(got) != std::signbit(want)) return inf;
  const W g = std::min(std::fabs(static_cast<W>(got)), top), w = std::min(std::fabs(want), top);
  const int exponent =
      w == 0 ? L::min_exponent : std::max(std::min(std::ilogb(w), L::max_exponent - 1) + 1, L::min_exponent);
  return static_cast<double>(std::ldexp(std::fabs(g - w), L::digits - exponent));
}

template <class T>
struct Worst {
  double error = 0;
  T x{}, y{};
  uint64_t count = 0;
  void add(double e, T a, T b = T(0)) {
    ++count;
    if (e > error) error = e, x = a, y = b;
  }
};

bool failed = false;

template <class T>
void report(const char* function, const char* inputs, const Worst<T>& w, double bound) {
  failed |= !(w.error <= bound);
  std::printf("%s\t%s\t%s\t%llu\t%.4f\t%g\t%a", function, Traits<T>::kName, inputs,
              static_cast<unsigned long long>(w.count), w.error, bound, static_cast<double>(w.x));
  if (w.y != T(0)) std::printf(", %a", static_cast<double>(w.y));
  std::printf("\n");
  std::fflush(stdout);
}

struct Random {
  uint64_t state;
  uint64_t bits() { // splitmix64
    uint64_t z = state += 0x9e3779b97f4a7c15u;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
  }
  double unit() {
    return static_cast<double>(bits() >> 11) * 0x1p-53;
  }
  double between(double lo, double hi) {
    return lo + (hi - lo) * unit();
  }
  int below(int n) {
    return static_cast<int>((bits() >> 32) * static_cast<uint64_t>(n) >> 32);
  }
};

constexpr int kBatch = 4096;

template <class T, class F>
void apply(F f, const T* x, const T* y, T* out) {
  for (int i = 0; i < kBatch; i += Vec<T>::N) f(Vec<T>::load(x + i), Vec<T>::load(y + i)).store(out + i);
}
// softplus with the parameters that torch gives it.
template <class V>
IE_INLINE V softplus(V x) {
  return softplus(x, V(1), V(20));
}
// A function as functor of vectors, of which the second is not used, and its reference.
template <int>
struct Unary;
enum Index {
#define MATH_ULP_ENUM(NAME, ...) k_##NAME,
  MATH_ULP_UNARY(MATH_ULP_ENUM)
#undef MATH_ULP_ENUM
};
#define MATH_ULP_FUNCTOR(NAME, FLOAT, DOUBLE, REFERENCE, LOW, HIGH)   \
  template <>                                                         \
  struct Unary<k_##NAME> {                                            \
    static constexpr const char* kName = #NAME;                       \
    static constexpr double kLow = LOW, kHigh = HIGH;                 \
    template <class T>                                                \
    static constexpr double kBound = sizeof(T) == 4 ? FLOAT : DOUBLE; \
    template <class V>                                                \
    IE_INLINE V operator()(V x, V) const {                            \
      return NAME(x);                                                 \
    }                                                                 \
    template <class W>                                                \
    static W exact(W x) {                                             \
      return REFERENCE;                                               \
    }                                                                 \
  };
MATH_ULP_UNARY(MATH_ULP_FUNCTOR)
#undef MATH_ULP_FUNCTOR
struct Pow {
  template <class V>
  IE_INLINE V operator()(V x, V y) const {
    return pow(x, y);
  }
};
struct Fmod {
  template <class V>
  IE_INLINE V operator()(V x, V y) const {
    return fmod(x, y);
  }
};

// `n` pairs from `draw(random, x, y)` through f, each compared by `error(got, x, y)`.
template <class T, class F, class Draw, class Error>
Worst<T> sample(F f, uint64_t n, Draw draw, Error error) {
  alignas(64) static T x[kBatch], y[kBatch], out[kBatch];
  Worst<T> worst;
  Random random{n + sizeof(T)};
  for (uint64_t done = 0; done < n; done += kBatch) {
    for (int i = 0; i < kBatch; ++i) draw(random, x[i], y[i]);
    apply<T>(f, x, y, out);
    for (int i = 0; i < kBatch; ++i) worst.add(error(out[i], x[i], y[i]), x[i], y[i]);
  }
  return worst;
}

template <class T>
std::vector<T> special_values() {
  using L = std::numeric_limits<T>;
  const T digits = std::ldexp(T(1), L::digits), e = L::epsilon();
  const T positive[] = {0,
                        L::denorm_min(),
                        L::denorm_min() * 3,
                        L::min() - L::denorm_min(),
                        L::min(),
                        L::min() * T(1.5),
                        e,
                        T(0.25),
                        T(0.5),
                        T(0.75),
                        1 - e / 2,
                        1,
                        1 + e,
                        T(1.5),
                        2,
                        T(2.5),
                        3,
                        4,
                        5,
                        7,
                        T(88.5),
                        89,
                        103,
                        104,
                        127,
                        128,
                        149,
                        150,
                        709,
                        710,
                        745,
                        746,
                        1023,
                        1024,
                        1074,
                        1075,
                        digits / 4 + T(0.5),
                        digits / 4 + 1,
                        digits / 2 - T(0.5),
                        digits / 2 - 1,
                        digits / 2,
                        digits / 2 + 1,
                        digits - 1,
                        digits,
                        digits * 2 - 2,
                        digits * 2,
                        T(0x1p31f),
                        T(0x1p32f),
                        T(0x1p63f),
                        T(0x1p64f),
                        L::max() / 2,
                        L::max(),
                        L::infinity(),
                        L::quiet_NaN()};
  std::vector<T> all;
  for (T v : positive) all.push_back(v), all.push_back(-v);
  return all;
}

// All pairs of special values, in an order that gives every lane a neighbour of another kind.
template <class T, class F, class Error>
Worst<T> special_grid(F f, Error error) {
  const std::vector<T> v = special_values<T>();
  const size_t total = v.size() * v.size();
  alignas(64) T x[kBatch], y[kBatch], out[kBatch];
  Worst<T> worst;
  for (size_t start = 0; start < total; start += kBatch) {
    for (size_t i = 0; i < kBatch; ++i) {
      const size_t j = (start + i) % total;
      x[i] = v[j % v.size()];
      y[i] = v[j / v.size()];
    }
    apply<T>(f, x, y, out);
    for (int i = 0; i < kBatch; ++i) worst.add(error(out[i], x[i], y[i]), x[i], y[i]);
  }
  return worst;
}

// The wider type's functions; where that is not wider (double as long double on some machines) the bounds of
// double say less.
template <class F, class T>
double unary_error(T got, T x, T) {
  using W = typename Traits<T>::Wide;
  if (x != x) return got != got ? 0 : std::numeric_limits<double>::infinity();
  // Torch's formulas of these have inf / inf there.
  const bool nan = std::isinf(x) && x < 0 &&
                   (std::strcmp(F::kName, "silu") == 0 || std::strcmp(F::kName, "mish") == 0 ||
                    std::strncmp(F::kName, "gelu", 4) == 0);
  if (nan) return got != got ? 0 : std::numeric_limits<double>::infinity();
  if (std::isinf(x) && x > 0 && std::strcmp(F::kName, "mish") == 0)
    return got == x ? 0 : std::numeric_limits<double>::infinity();
  return error_ulp<T>(got, F::template exact<W>(static_cast<W>(x)));
}
template <class T>
double pow_error(T got, T x, T y) {
  using W = typename Traits<T>::Wide;
  // glibc's powl takes 2^63 for odd, so the same type's pow answers where the answer is exact.
  const T narrow = std::pow(x, y);
  const bool exact = !std::isfinite(x) || !std::isfinite(y) || x == 0 || y == 0 || narrow != narrow;
  return error_ulp<T>(got, exact ? static_cast<W>(narrow) : std::pow(static_cast<W>(x), static_cast<W>(y)));
}
template <class T>
double fmod_error(T got, T x, T y) {
  const T want = std::fmod(x, y);
  if (want != want && got != got) return 0;
  return to_bits(got) == to_bits(want) ? 0 : std::numeric_limits<double>::infinity();
}

template <class T>
T any_number(Random& r) {
  const T x = from_bits<T>(static_cast<typename Traits<T>::Bits>(r.bits() >> (64 - 8 * sizeof(T))));
  return x != x ? std::numeric_limits<T>::quiet_NaN() : x; // C libraries differ on signalling NaN
}
template <class T>
T any_positive(Random& r) {
  return std::fabs(any_number<T>(r));
}

// Every `step`-th float. The double version of the function, which has tests of its own, is the quick
// reference; where an error is the largest so far, the C library decides.
template <class F>
void all_floats(uint64_t step) {
  alignas(64) static float x[kBatch], out[kBatch];
  alignas(64) static double wide[kBatch], reference[kBatch];
  Worst<float> worst;
  for (uint64_t start = 0; start < uint64_t(1) << 32; start += kBatch * step) {
    for (int i = 0; i < kBatch; ++i) {
      x[i] = from_bits<float>(static_cast<uint32_t>(start + i * step));
      wide[i] = x[i];
    }
    apply<float>(F(), x, x, out);
    if constexpr (kHasFma) {
      apply<double>(F(), wide, wide, reference);
    } else {
      for (int i = 0; i < kBatch; ++i) reference[i] = F::template exact<double>(wide[i]);
    }
    alignas(64) static double error[kBatch];
    for (int i = 0; i < kBatch; ++i) {
      // One over the ulp at the reference, from its exponent; NaN and inf make the comparison below fail.
      const int64_t field = (static_cast<int64_t>(to_bits(reference[i])) >> 52) & 0x7ff;
      const int64_t exponent = field < 1023 - 126 ? 1023 - 126 : field;
      const double scale = from_bits<double>(static_cast<uint64_t>(2 * 1023 + 23 - exponent) << 52);
      error[i] = std::fabs(static_cast<double>(out[i]) - reference[i]) * scale;
    }
    worst.count += kBatch;
    for (int i = 0; i < kBatch; ++i) {
      if (!(error[i] <= worst.error)) {
        const double e = unary_error<F, float>(out[i], x[i], 0.f);
        if (e > worst.error) worst.error = e, worst.x = x[i];
      }
    }
  }
  report(F::kName, step == 1 ? "every number" : "every 16th number", worst, F::template kBound<float>);
}

template <class F, class T>
void test_unary(uint64_t n) {
  const auto error = unary_error<F, T>;
  const double bound = F::template kBound<T>;
  const auto run = [&](const char* inputs, uint64_t count, auto draw) {
    report(F::kName, inputs, sample<T>(F(), count, draw, error), bound);
  };
  report(F::kName, "special values", special_grid<T>(F(), error), bound);
  run("ordinary", n, [](Random& r, T& x, T&) { x = T(r.between(F::kLow, F::kHigh)); });
  run("[-2, 2]", n, [](Random& r, T& x, T&) { x = T(r.between(-2, 2)); });
  run("near 1", n / 2,
      [](Random& r, T& x, T&) { x = T(1 + r.between(-1, 1) * std::ldexp(1.0, -r.below(30))); });
  run("any bits", n, [](Random& r, T& x, T&) { x = any_number<T>(r); });
}

// For mpmath: ordinary numbers, small ones, and any bits.
template <class F>
void dump(uint64_t n) {
  Random random{n};
  alignas(64) static double x[kBatch], y[kBatch];
  for (uint64_t done = 0; done < n; done += kBatch) {
    for (int i = 0; i < kBatch; ++i) {
      const int kind = i % 4;
      x[i] = kind == 0   ? random.between(-2, 2)
             : kind == 1 ? any_number<double>(random)
                         : random.between(F::kLow, F::kHigh);
    }
    apply<double>(F(), x, x, y);
    for (int i = 0; i < kBatch && done + i < n; ++i) {
      std::fwrite(&x[i], sizeof(double), 1, stdout);
      std::fwrite(&y[i], sizeof(double), 1, stdout);
    }
  }
}

template <class T>
void test_pow(uint64_t n, double bound) {
  using L = std::numeric_limits<T>;
  const double top = L::max_exponent, bottom = L::min_exponent - L::digits - 1;
  const auto error = pow_error<T>;
  const auto run = [&](const char* name, uint64_t count, auto draw) {
    report("pow", name, sample<T>(Pow(), count, draw, error), bound);
  };
  report("pow", "special values", special_grid<T>(Pow(), error), bound);
  // y such that the result has an exponent between lo and hi.
  const auto exponent_for = [](Random& r, T x, double lo, double hi) {
    const double log = std::log2(static_cast<double>(x));
    return T(log == 0 ? r.between(-1e6, 1e6) : r.between(lo, hi) / log);
  };
  run("any x > 0, result in range", n, [=](Random& r, T& x, T& y) {
    x = any_positive<T>(r);
    y = exponent_for(r, x, bottom - 2, top + 2);
  });
  run("x in [0.5, 2], y in [-10, 10]", n, [](Random& r, T& x, T& y) {
    x = T(r.between(0.5, 2));
    y = T(r.between(-10, 10));
  });
  run("x in [0.5, 2], result in range", n, [=](Random& r, T& x, T& y) {
    x = T(r.between(0.5, 2));
    y = exponent_for(r, x, bottom - 2, top + 2);
  });
  run("x near 1, result in range", n, [=](Random& r, T& x, T& y) {
    x = T(1 + std::ldexp(r.between(-1, 1), -1 - r.below(L::digits)));
    y = exponent_for(r, x, bottom - 2, top + 2);
  });
  run("results near overflow", n / 2, [=](Random& r, T& x, T& y) {
    x = T(r.between(0.5, 20));
    y = exponent_for(r, x, top - 2, top + 0.01);
  });
  run("denormal results", n / 2, [=](Random& r, T& x, T& y) {
    x = any_positive<T>(r);
    y = exponent_for(r, x, bottom, L::min_exponent + 1);
  });
  run("denormal x", n / 2, [=](Random& r, T& x, T& y) {
    x = T(r.between(0, 1)) * L::min();
    y = exponent_for(r, x, bottom - 1, top + 1);
  });
  run("negative x, integer y", n / 2, [](Random& r, T& x, T& y) {
    x = T(r.between(-30, 2));
    y = T(r.below(41) - 20);
  });
  run("y in {-2, -1.5 ... 3}", n / 2, [](Random& r, T& x, T& y) {
    x = any_positive<T>(r);
    y = T(r.below(11)) / 2 - 2;
  });
  run("any bits", n, [](Random& r, T& x, T& y) {
    x = any_number<T>(r);
    y = any_number<T>(r);
  });
}

template <class T>
void test_fmod(uint64_t n) {
  using L = std::numeric_limits<T>;
  const auto error = fmod_error<T>;
  const auto run = [&](const char* name, uint64_t count, auto draw) {
    report("fmod", name, sample<T>(Fmod(), count, draw, error), kBounds.fmod);
  };
  report("fmod", "special values", special_grid<T>(Fmod(), error), kBounds.fmod);
  run("a in [-100, 100], b in [-5, 5]", n, [](Random& r, T& a, T& b) {
    a = T(r.between(-100, 100));
    b = T(r.between(-5, 5));
  });
  run("a within an ulp of a multiple of b", n, [](Random& r, T& a, T& b) {
    b = T(r.between(0.5, 2));
    a = b * T(r.bits() >> (64 - 1 - r.below(L::digits)));
    a = from_bits<T>(to_bits(a) + static_cast<typename Traits<T>::Bits>(r.below(3) - 1));
    if (r.below(2)) a = -a;
  });
  run("quotients about the limit", n, [](Random& r, T& a, T& b) {
    b = T(r.between(0.5, 2));
    a = b * T(std::ldexp(r.between(0.25, 8), L::digits - 3));
  });
  run("denormals", n / 4, [](Random& r, T& a, T& b) {
    a = T(r.between(-1, 1)) * L::min() * T(1 << r.below(8));
    b = T(r.between(-1, 1)) * L::min() * T(r.below(3));
  });
  run("any bits", n / 16, [](Random& r, T& a, T& b) {
    a = any_number<T>(r);
    b = any_number<T>(r);
  });
}

// A root and its inverse are exact to the bit: every float, and for double the numbers whose roots lie
// nearest to the middle between two numbers, found as the roots of small numbers modulo a power of two.
struct SquareRoot {
  template <class V>
  IE_INLINE V operator()(V x, V) const {
    return square_root(x);
  }
};
struct InverseSquareRoot {
  template <class V>
  IE_INLINE V operator()(V x, V) const {
    return inverse_square_root(x);
  }
};
template <class T>
double same_bits(T got, T want) {
  if (got != got && want != want) return 0;
  return to_bits(got) == to_bits(want) ? 0 : std::numeric_limits<double>::infinity();
}
void test_roots(bool quick) {
  alignas(64) static float x[kBatch], out[kBatch];
  Worst<float> root, inverse;
  const uint64_t step = quick ? 1009 : 1;
  for (uint64_t start = 0; start < uint64_t(1) << 32; start += kBatch * step) {
    for (int i = 0; i < kBatch; ++i) x[i] = from_bits<float>(static_cast<uint32_t>(start + i * step));
    apply<float>(SquareRoot(), x, x, out);
    for (int i = 0; i < kBatch; ++i) root.add(same_bits(out[i], std::sqrt(x[i])), x[i]);
    apply<float>(InverseSquareRoot(), x, x, out);
    for (int i = 0; i < kBatch; ++i) inverse.add(same_bits(out[i], 1 / std::sqrt(x[i])), x[i]);
  }
  const char* const inputs = quick ? "every 1009th number" : "every number";
  report("sqrt", inputs, root, 0);
  report("rsqrt", inputs, inverse, 0);

  // m^2 = r modulo 2^n, bit by bit; then a = (m^2 - r) / 2^n has a root next to m / 2^(n/2), halfway between
  // two numbers of 53 bits.
  using Wide = unsigned __int128;
  std::vector<double> hard;
  const auto add = [&](uint64_t m, int64_t r, int n) {
    const Wide square = Wide(m) * m - Wide(__int128(r));
    const uint64_t a = static_cast<uint64_t>(square >> n);
    if (m >> 53 != 1 || (Wide(a) << n) != square || a >> 52 != 1) return;
    hard.push_back(std::ldexp(static_cast<double>(a), n % 2));
  };
  for (int64_t r = -8 * 4000 + 1; r < 8 * 4000; r += 8) {
    for (const int n : {54, 55}) {
      uint64_t m = 1;
      for (int k = 3; k < n; ++k) {
        if ((m * m - static_cast<uint64_t>(r)) >> k & 1) m += uint64_t(1) << (k - 1);
      }
      const uint64_t modulus = uint64_t(1) << n, half = modulus / 2;
      for (const uint64_t s : {m, modulus - m, m + half, modulus - m + half}) {
        add(s % modulus, r, n);
        add(s % modulus + modulus, r, n);
      }
    }
  }
  size_t next = 0;
  const auto compare = [&](const char* name, const char* what, auto f, uint64_t n, auto draw, auto want) {
    const auto error = [&](double got, double a, double) { return same_bits(got, want(a)); };
    report(name, what, sample<double>(f, n, draw, error), 0);
  };
  const auto root_of = [](double a) { return std::sqrt(a); };
  const auto inverse_of = [](double a) { return 1 / std::sqrt(a); };
  const auto hardest = [&](Random&, double& a, double&) { a = hard[next++ % hard.size()]; };
  const auto any = [](Random& r, double& a, double&) { a = any_number<double>(r); };
  // Roots whose mantissa is all ones, or nearly.
  const auto ones = [](Random& r, double& a, double&) {
    a = std::ldexp(4 - std::ldexp(static_cast<double>(1 + r.below(8)), -51), 2 * r.below(500) - 500);
  };
  const uint64_t n = quick ? 40'000 : 40'000'000;
  compare("sqrt", "roots halfway", SquareRoot(), hard.size(), hardest, root_of);
  compare("rsqrt", "roots halfway", InverseSquareRoot(), hard.size(), hardest, inverse_of);
  compare("sqrt", "any bits", SquareRoot(), n, any, root_of);
  compare("rsqrt", "any bits", InverseSquareRoot(), n, any, inverse_of);
  compare("sqrt", "roots of ones", SquareRoot(), 40'000, ones, root_of);
  compare("rsqrt", "roots of ones", InverseSquareRoot(), 40'000, ones, inverse_of);
}

template <class T, class F>
void time_one(const char* name, F f, double xlo, double xhi, double ylo, double yhi) {
  static T x[kBatch], y[kBatch], out[kBatch];
  Random random{1};
  for (int i = 0; i < kBatch; ++i) {
    x[i] = T(random.between(xlo, xhi));
    y[i] = ylo == yhi ? T(ylo) : T(random.between(ylo, yhi));
  }
  double best = 1e9;
  for (int round = 0; round < 2000; ++round) {
    const auto start = std::chrono::steady_clock::now();
    for (int i = 0; i < 4; ++i) {
      apply<T>(f, x, y, out);
      asm volatile("" ::: "memory");
    }
    const std::chrono::duration<double, std::nano> t = std::chrono::steady_clock::now() - start;
    best = std::min(best, t.count() / (4.0 * kBatch));
  }
  std::printf("%-26s %-7s %8.3f ns/element\n", name, Traits<T>::kName, best);
}
template <class T>
void time_all() {
#define MATH_ULP_TIME(NAME, ...) time_one<T>(#NAME, Unary<k_##NAME>(), 0.1, 4, 0, 0);
  MATH_ULP_UNARY(MATH_ULP_TIME)
#undef MATH_ULP_TIME
  time_one<T>("sqrt", SquareRoot(), 0.1, 4, 0, 0);
  time_one<T>("rsqrt", InverseSquareRoot(), 0.1, 4, 0, 0);
  time_one<T>("pow", Pow(), 0.1, 4, 0.5, 2.5);
  time_one<T>("pow, y = 1.5", Pow(), 0.1, 4, 1.5, 1.5);
  time_one<T>("pow, x of both signs, y = 3", Pow(), -4, 4, 3, 3);
  time_one<T>("fmod", Fmod(), -10, 10, 0.5, 2.5);
}

} // namespace

int main(int argc, char** argv) {
  const std::string mode = argc > 1 ? argv[1] : "";
  if (mode == "--time") {
    std::printf("%s, %d bytes a vector\n", kCapability, kVectorBytes);
    time_all<float>();
    time_all<double>();
    return 0;
  }
  if (mode == "--dump" && argc == 4) {
    const std::string name = argv[2];
    const uint64_t n = std::stoull(argv[3]);
#define MATH_ULP_DUMP(NAME, ...) \
  if (name == #NAME) return dump<Unary<k_##NAME>>(n), 0;
    MATH_ULP_UNARY(MATH_ULP_DUMP)
#undef MATH_ULP_DUMP
    std::fprintf(stderr, "math_ulp: no function of one argument is called %s\n", argv[2]);
    return 2;
  }
  if (!mode.empty() && mode != "--quick") {
    std::fprintf(stderr, "usage: math_ulp [--quick | --time | --dump NAME N]\n");
    return 2;
  }
  const bool quick = mode == "--quick";
  const uint64_t n = quick ? 20'000 : 1'000'000;
#define MATH_ULP_TEST(NAME, ...)                   \
  if (quick) {                                     \
    test_unary<Unary<k_##NAME>, float>(n);         \
  } else {                                         \
    all_floats<Unary<k_##NAME>>(kHasFma ? 1 : 16); \
  }                                                \
  test_unary<Unary<k_##NAME>, double>(n);
  MATH_ULP_UNARY(MATH_ULP_TEST)
#undef MATH_ULP_TEST
  test_pow<float>(quick ? 400'000 : 32'000'000, kBounds.pow_float);
  test_pow<double>(quick ? 200'000 : 8'000'000, kBounds.pow_double);
  test_fmod<float>(quick ? 200'000 : 32'000'000);
  test_fmod<double>(quick ? 200'000 : 32'000'000);
  test_roots(quick);
  return failed;
}
