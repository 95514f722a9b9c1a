// Measures exp, pow and fmod of math.h against the C library in a wider type, and holds them to bounds.
//
//   g++ -std=c++20 -O3 -ffp-contract=off -fno-math-errno -fno-trapping-math -Icsrc/include -Icsrc/cpu
//       [-mavx2 -mfma -mf16c] tests/cpp/math_ulp.cpp -o math_ulp
//   math_ulp           everything: float exp on all 2^32 inputs, large samples of the rest (minutes)
//   math_ulp --quick   the same in a few seconds, on samples
//   math_ulp --time    ns per element in cache, nothing checked
//
// Exit status 1 when a bound is exceeded.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <limits>
#include <string>
#include <vector>

#include "simd.h"

#include "inplace_ext/math.h"

namespace {

using namespace inplace_ext;

// Largest error allowed, in ulp. The comments in math.h quote what is measured.
struct Bounds {
  double exp_float = 1.0;
  double exp_double = 1.0;
  double pow_float = 0.6;
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
  const bool bad = !(w.error <= bound);
  failed |= bad;
  std::printf("%-4s %-7s %-34s %11llu  %8.4f  %6.2f  %s", function, Traits<T>::kName, inputs,
              static_cast<unsigned long long>(w.count), w.error, bound, bad ? "FAIL" : "ok");
  if (w.error > 0) std::printf("  (%a, %a)", static_cast<double>(w.x), static_cast<double>(w.y));
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
struct Exp {
  template <class V>
  IE_INLINE V operator()(V x, V) const {
    return exp(x);
  }
};
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

// The wider type's pow and exp; where that is not wider (double as long double on some machines) the bounds
// of double say less.
template <class T>
double exp_error(T got, T x, T) {
  return error_ulp<T>(got, std::exp(static_cast<typename Traits<T>::Wide>(x)));
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

void exp_float_all() {
  static float x[kBatch], out[kBatch];
  Worst<float> worst;
  for (uint64_t start = 0; start < uint64_t(1) << 32; start += kBatch) {
    for (int i = 0; i < kBatch; ++i) x[i] = from_bits<float>(static_cast<uint32_t>(start + i));
    apply<float>(Exp(), x, x, out);
    for (int i = 0; i < kBatch; ++i) {
      // Far beyond the limits the reference is slow and known.
      const float limited = x[i] > 200.f ? 200.f : x[i] < -200.f ? -200.f : x[i];
      worst.add(exp_error<float>(out[i], limited, 0), x[i]);
    }
  }
  report("exp", "all inputs", worst, kBounds.exp_float);
}

template <class T>
void test_exp(uint64_t n, double bound) {
  using L = std::numeric_limits<T>;
  const double log_max = L::max_exponent * 0.6931471805599453,
               log_min = (L::min_exponent - L::digits - 1) * 0.6931471805599453;
  const auto error = exp_error<T>;
  report("exp", "special values", special_grid<T>(Exp(), error), bound);
  report("exp", "full range",
         sample<T>(
             Exp(), n, [=](Random& r, T& x, T&) { x = T(r.between(log_min - 1, log_max + 1)); }, error),
         bound);
  report("exp", "[-1, 1]",
         sample<T>(Exp(), n, [](Random& r, T& x, T&) { x = T(r.between(-1, 1)); }, error), bound);
  report(
      "exp", "denormal results",
      sample<T>(
          Exp(), n / 4,
          [=](Random& r, T& x, T&) { x = T(r.between(log_min - 1, L::min_exponent * 0.6931471805599453)); },
          error),
      bound);
  report("exp", "any bits",
         sample<T>(Exp(), n / 4, [](Random& r, T& x, T&) { x = any_number<T>(r); }, error), bound);
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
  time_one<T>("exp", Exp(), -10, 10, 0, 0);
  time_one<T>("pow", Pow(), 0.1, 4, 0.5, 2.5);
  time_one<T>("pow, y = 1.5", Pow(), 0.1, 4, 1.5, 1.5);
  time_one<T>("pow, x of both signs, y = 3", Pow(), -4, 4, 3, 3);
  time_one<T>("fmod", Fmod(), -10, 10, 0.5, 2.5);
}

} // namespace

int main(int argc, char** argv) {
  const std::string mode = argc > 1 ? argv[1] : "";
  std::printf("%s, %d bytes a vector\n", kCapability, kVectorBytes);
  if (mode == "--time") {
    time_all<float>();
    time_all<double>();
    return 0;
  }
  if (!mode.empty() && mode != "--quick") {
    std::fprintf(stderr, "usage: math_ulp [--quick | --time]\n");
    return 2;
  }
  const bool quick = mode == "--quick";
  std::printf("%-4s %-7s %-34s %11s  %8s  %6s\n", "", "type", "inputs", "samples", "max ulp", "bound");
  if (!quick) exp_float_all();
  const uint64_t n = quick ? 200'000 : 32'000'000;
  test_exp<float>(quick ? 1'000'000 : n, kBounds.exp_float);
  test_pow<float>(quick ? 400'000 : n, kBounds.pow_float);
  test_fmod<float>(n);
  test_exp<double>(n / 2, kBounds.exp_double);
  test_pow<double>(quick ? n : n / 4, kBounds.pow_double);
  test_fmod<double>(n);
  std::printf(failed ? "FAILED\n" : "all within bounds\n");
  return failed;
}
