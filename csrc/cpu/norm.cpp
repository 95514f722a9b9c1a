// Sums for norms: of squares or of magnitudes, and the largest magnitude, in double precision. The order of
// the additions depends on the length alone.
#include <limits>

#include "rows.h"

namespace inplace_ext {
namespace {

constexpr int kParts = 4; // sums side by side, which hide the latency of an addition

struct Squares {
  IE_INLINE static Vec<double> add(Vec<double> sum, Vec<double> x) {
    return fma(x, x, sum);
  }
};
struct Magnitudes {
  IE_INLINE static Vec<double> add(Vec<double> sum, Vec<double> x) {
    return sum + abs(x);
  }
};
// NaN where there is one: no number is larger.
struct Largest {
  IE_INLINE static Vec<double> add(Vec<double> most, Vec<double> x) {
    const Vec<double> a = abs(x);
    return select((a > most) | (a != a), a, most);
  }
};

template <class S, class F, class Add>
double reduce(const char* x, int64_t n, Add add) {
  using C = ComputeOf<S>;
  using V = Vec<C>;
  using D = Vec<double>;
  D part[kParts];
  for (D& p : part) p = D(0.);
  const auto take = [&](V v, int i) __attribute__((always_inline)) {
    if constexpr (std::is_same_v<C, double>) {
      part[i] = F::add(part[i], v);
    } else {
      const DoublePair d = widen(v);
      part[2 * i % kParts] = F::add(part[2 * i % kParts], d.lo);
      part[(2 * i + 1) % kParts] = F::add(part[(2 * i + 1) % kParts], d.hi);
    }
  };
  constexpr int64_t kStep = V::N * static_cast<int64_t>(sizeof(S));
  for (; n >= kParts * V::N; n -= kParts * V::N, x += kParts * kStep) {
#pragma GCC unroll 4
    for (int i = 0; i < kParts; ++i) take(load<S>(x + i * kStep), i);
  }
  for (; n >= V::N; n -= V::N, x += kStep) take(load<S>(x), 0);
  if (n > 0) take(load_some<S>(x, n), 0);
  double result = 0;
  for (const D& p : part) {
    for (int i = 0; i < D::N; ++i) result = add(result, p.v[i]);
  }
  return result;
}

template <class S>
double reduce(const char* x, int64_t n, Norm norm) {
  const auto sum = [](double a, double b) { return a + b; };
  switch (norm) {
    case Norm::squares:
      return reduce<S, Squares>(x, n, sum);
    case Norm::magnitudes:
      return reduce<S, Magnitudes>(x, n, sum);
    case Norm::largest:
      break;
  }
  // Once it is NaN it stays.
  return reduce<S, Largest>(x, n, [](double a, double b) { return a != a || a > b ? a : b; });
}

} // namespace

double norm_part(const void* x, DType dtype, int64_t n, Norm norm) {
  const char* const p = static_cast<const char*>(x);
  return dtype == DType::f64 ? reduce<double>(p, n, norm) : reduce<float>(p, n, norm);
}

} // namespace inplace_ext
