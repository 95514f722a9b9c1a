// softmax and log_softmax along one dim, in place or into a tensor of the same layout, for any layout.
//
// A row is fetched as scores (scaled, masked, in the compute type) into a buffer that stays in the caches,
// its exponentials are taken and summed there, and the results are stored: one read and one write of memory.
// Rows longer than the buffer are fetched a block at a time and once more in each of the three passes. Where
// the rows lie side by side, each lane works on a row of its own.
//
// The sum of a row is taken in an order that depends on its length alone: element i goes to partial sum i %
// L, the partial sums of each block of kBlock elements are added to those of the row, and these are folded in
// halves. So threads, strides and the way the row was fetched change no bit.
#include <algorithm>
#include <limits>

#include "rows.h"

#include "inplace_ext/math_softmax.h" // after what says what a Vec is

namespace inplace_ext {
namespace {

// L, the partial sums of a row.
template <class C>
constexpr int kLanes = 64 / static_cast<int>(sizeof(C));
constexpr int64_t kBlock = 1024;
// The buffer, on the stack: within the second-level cache, and a small one for what fits it, since some
// compilers touch every page of a large frame.
constexpr int64_t kBuffer = 256 << 10, kSmallBuffer = 16 << 10;
template <class C>
constexpr int64_t kHeld = kBuffer / static_cast<int64_t>(sizeof(C));
// Rows side by side that are worked on together: at most, and at least if there are as many, since each step
// along the row is another stretch of memory.
constexpr int64_t kMaxColumns = 128, kMinColumns = 16;

// How many steps along such rows their memory is asked for ahead.
constexpr int64_t kStepsAhead = 8;

// The lanes of a register folded in halves.
template <class C, int N, class F>
IE_INLINE C fold(typename raw_vector<C, N>::type v, F f) {
  if constexpr (N == 2) {
    return f(v[0], v[1]);
  } else {
    typename raw_vector<C, N / 2>::type half[2];
    std::memcpy(half, &v, sizeof(v));
    return fold<C, N / 2>(f(half[0], half[1]), f);
  }
}

// The partial sums of one row.
template <class C>
struct Lanes {
  static constexpr int kVectors = kLanes<C> / Vec<C>::N;
  Vec<C> v[kVectors];
  IE_INLINE Lanes() {
    for (Vec<C>& part : v) part = Vec<C>(C(0));
  }
  IE_INLINE C sum() const {
    Vec<C> part[kVectors];
    std::copy(v, v + kVectors, part);
#pragma GCC unroll 4
    for (int half = kVectors / 2; half > 0; half /= 2) {
      for (int i = 0; i < half; ++i) part[i] = part[i] + part[i + half];
    }
    return fold<C, Vec<C>::N>(part[0].v, [](auto a, auto b) { return a + b; });
  }
};

// ---- memory -----------------------------------------------------------------------------------------------

// result(i), the vector from element i on, for n elements. The last vector covers some elements once more.
template <class S, class F>
IE_INLINE void store_results(char* p, int64_t n, F result) {
  constexpr int64_t N = VecOf<S>::N;
  int64_t i = 0;
  for (; i + N <= n; i += N) store<S>(p + i * sizeof(S), result(i));
  if (i == n) return;
  if (n > N) {
    store<S>(p + (n - N) * sizeof(S), result(n - N));
  } else {
    store_some<S>(p, result(0), n);
  }
}
// n elements of the mask as what the scores are combined with: of a bool one 0 where it keeps and -inf where
// it drops, of a floating one the number.
template <class S>
void fetch_mask(const Softmax& call, const char* mask, int64_t stride, int64_t n, ComputeOf<S>* to) {
  using C = ComputeOf<S>;
  using V = Vec<C>;
  if (call.mask_dtype == DType::b8) {
    if (stride == 1) {
      for (int64_t i = 0; i < n; ++i) to[i] = mask[i] != 0 ? C(0) : kMinusInf<C>;
    } else {
      for (int64_t i = 0; i < n; ++i) to[i] = mask[i * stride] != 0 ? C(0) : kMinusInf<C>;
    }
    return;
  }
  S raw[kBlock];
  if (stride != sizeof(S)) {
    gather(raw, mask, stride, n);
    mask = reinterpret_cast<const char*>(raw);
  }
  int64_t i = 0;
  for (; i + V::N <= n; i += V::N) load<S>(mask + i * sizeof(S)).store(to + i);
  if (i < n) load_some<S>(mask + i * sizeof(S), n - i).store(to + i);
}

enum class MaskKind { none, keep, add };

// Calls f(i, scores, how many) for each vector of n contiguous elements. Lanes beyond those hold rubbish.
template <class S, MaskKind M, class F>
IE_INLINE void each_score(const Softmax& call, const char* x, int64_t n, const ComputeOf<S>* mask, F f) {
  using C = ComputeOf<S>;
  using V = Vec<C>;
  const V scale(static_cast<C>(call.scale));
  const auto score = [&](V v, int64_t i) __attribute__((always_inline)) {
    v = v * scale;
    if constexpr (M == MaskKind::keep) {
      const V m = V::load(mask + i);
      return select(m < V(C(0)), m, v);
    } else if constexpr (M == MaskKind::add) {
      return v + V::load(mask + i);
    } else {
      return v;
    }
  };
  int64_t i = 0;
  for (; i + V::N <= n; i += V::N) f(i, score(load<S>(x + i * sizeof(S)), i), V::N);
  if (i < n) f(i, score(load_some<S>(x + i * sizeof(S), n - i), i), n - i);
}
// The same for a mask as it lies in memory; n is at most kBlock.
template <class S, class F>
IE_INLINE void each_score(const Softmax& call, const char* x, int64_t n, const char* mask,
                          int64_t mask_stride, F f) {
  if (mask == nullptr) return each_score<S, MaskKind::none>(call, x, n, nullptr, f);
  alignas(64) ComputeOf<S> buffer[kBlock];
  fetch_mask<S>(call, mask, mask_stride, n, buffer);
  if (call.mask_dtype == DType::b8) {
    each_score<S, MaskKind::keep>(call, x, n, buffer, f);
  } else {
    each_score<S, MaskKind::add>(call, x, n, buffer, f);
  }
}

// ---- results ----------------------------------------------------------------------------------------------

// What the buffer holds when the results are made, and of what.
enum class Finish { divide, exponential, logarithm };

// For a logarithm, the top of the base and `sum` are what normalize() made of them.
template <Finish F, class C>
IE_INLINE Vec<C> finish(Vec<C> v, const SoftmaxBase<C>& base, Vec<C> sum, Vec<C> inverse) {
  if constexpr (F == Finish::logarithm) return difference(v, base.top, sum);
  if constexpr (F == Finish::exponential) v = exp_over(v, base);
  return quotient(v, sum, inverse);
}
Finish finish_of(const Softmax& call, bool held) {
  return call.logarithm ? Finish::logarithm : held ? Finish::divide : Finish::exponential;
}

// ---- a row at a time --------------------------------------------------------------------------------------

template <class S>
struct Row {
  using C = ComputeOf<S>;
  using V = Vec<C>;

  const Softmax& call;
  char* x;
  const char* mask;
  C* buffer; // of the whole row where it is held, else of a block

  bool contiguous() const {
    return call.stride == sizeof(S);
  }

  // The scores of n elements, at most kBlock, padded with -inf to whole lanes; their maximum joins `top`, of
  // which NaN may or may not be part: it comes back with the sum.
  IE_INLINE V fetch(int64_t at, int64_t n, C* to, V top) const {
    S raw[kBlock];
    const char* from = x + at * call.stride;
    if (!contiguous()) {
      gather(raw, from, call.stride, n);
      from = reinterpret_cast<const char*>(raw);
    }
    alignas(64) static constexpr typename int_of_size<sizeof(C)>::type kIndex[16] = {
        0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    using I = Vec<typename int_of_size<sizeof(C)>::type>;
    const V none(kMinusInf<C>);
    const char* const m = mask == nullptr ? nullptr : mask + at * call.mask_stride;
    each_score<S>(call, from, n, m, call.mask_stride,
                  [&](int64_t i, V s, int64_t valid) __attribute__((always_inline)) {
                    if (valid < V::N)
                      s = select(I::load(kIndex) < I(static_cast<typename I::lane>(valid)), s, none);
                    s.store(to + i);
                    top = max(s, top);
                  });
    for (int64_t i = (n + V::N - 1) / V::N * V::N; i % kLanes<C> != 0; i += V::N) none.store(to + i);
    return top;
  }
  // The exponentials of a block of scores, added to the partial sums, and left in place of the scores.
  // Meanwhile the memory of the next row is asked for, which would idle else.
  template <bool Keep>
  IE_INLINE void sum_block(C* p, int64_t n, const char* next, const SoftmaxBase<C>& base,
                           Lanes<C>& total) const {
    Lanes<C> part;
    for (int64_t i = 0; i < n; i += kLanes<C>) {
      __builtin_prefetch(next + i * sizeof(S), 1);
#pragma GCC unroll 4
      for (int k = 0; k < Lanes<C>::kVectors; ++k) {
        C* const at = p + i + k * V::N;
        const V e = exp_over(V::load(at), base);
        if constexpr (Keep) e.store(at);
        part.v[k] = part.v[k] + e;
      }
    }
    for (int k = 0; k < Lanes<C>::kVectors; ++k) total.v[k] = total.v[k] + part.v[k];
  }
  template <Finish F>
  IE_INLINE void put(int64_t at, int64_t n, const C* p, const SoftmaxBase<C>& base, V sum, V inverse) const {
    S raw[kBlock];
    char* const to = x + call.shift + at * call.stride;
    char* out = contiguous() ? to : reinterpret_cast<char*>(raw);
    store_results<S>(out, n, [&](int64_t i) __attribute__((always_inline)) {
      return finish<F>(V::load(p + i), base, sum, inverse);
    });
    if (!contiguous()) scatter(to, raw, call.stride, n);
  }

  void run(bool held) const {
    const int64_t length = call.length;
    const auto block = [&](int64_t at) { return std::min(kBlock, length - at); };
    const auto place = [&](int64_t at) { return held ? buffer + at : buffer; };
    V top(kMinusInf<C>);
    for (int64_t at = 0; at < length; at += kBlock) top = fetch(at, block(at), place(at), top);
    top = V(fold<C, V::N>(top.v, [](auto a, auto b) { return a > b ? a : b; }));
    SoftmaxBase<C> base(top, call.logarithm);
    Lanes<C> total;
    // The next row, or of short ones one farther on.
    const int64_t ahead = std::max<int64_t>(1, kPrefetchAhead / (length * static_cast<int64_t>(sizeof(S))));
    const char* const next = x + (call.dims > 0 ? call.step[0] * ahead : 0);
    for (int64_t at = 0; at < length; at += kBlock) {
      if (!held) fetch(at, block(at), place(at), top);
      if (held && !call.logarithm) {
        sum_block<true>(place(at), block(at), next + at * sizeof(S), base, total);
      } else {
        sum_block<false>(place(at), block(at), next + at * sizeof(S), base, total);
      }
    }
    V sum(total.sum());
    const V inverse = V(C(1)) / sum;
    if (call.logarithm) normalize(base.top, sum);
    for (int64_t at = 0; at < length; at += kBlock) {
      if (!held) fetch(at, block(at), place(at), top);
      switch (finish_of(call, held)) {
        case Finish::divide:
          put<Finish::divide>(at, block(at), place(at), base, sum, inverse);
          break;
        case Finish::exponential:
          put<Finish::exponential>(at, block(at), place(at), base, sum, inverse);
          break;
        case Finish::logarithm:
          put<Finish::logarithm>(at, block(at), place(at), base, sum, inverse);
          break;
      }
    }
  }
};

// ---- rows side by side ------------------------------------------------------------------------------------

template <class S>
struct Columns {
  using C = ComputeOf<S>;
  using V = Vec<C>;

  // The bases of the rows, to be had from any of them on.
  struct Bases {
    alignas(64) C top[kMaxColumns], shift[kMaxColumns], power[kMaxColumns], bottom[kMaxColumns];
    IE_INLINE SoftmaxBase<C> at(int64_t i) const {
      return {V::load(top + i), V::load(shift + i), V::load(power + i), V::load(bottom + i)};
    }
    IE_INLINE void set(int64_t i, const SoftmaxBase<C>& base) {
      base.top.store(top + i);
      base.shift.store(shift + i);
      base.power.store(power + i);
      base.bottom.store(bottom + i);
    }
  };

  const Softmax& call;
  char* x;
  const char* mask;
  C* buffer;     // of all steps along the rows where they are held, else of one
  int64_t count; // rows
  int64_t width; // the same in whole vectors

  // Stretches of memory far apart, of which the processor foresees nothing.
  IE_INLINE void prefetch_step(int64_t at) const {
    const char* const p = x + (at + kStepsAhead) * call.stride;
    for (int64_t i = 0; i < count; i += 64 / static_cast<int>(sizeof(S)))
      __builtin_prefetch(p + i * sizeof(S), 1);
  }
  IE_INLINE void fetch(int64_t at, C* to) const {
    prefetch_step(at);
    const char* const m = mask == nullptr ? nullptr : mask + at * call.mask_stride;
    each_score<S>(call, x + at * call.stride, count, m, call.mask_step[0],
                  [&](int64_t i, V s, int64_t) __attribute__((always_inline)) { s.store(to + i); });
  }
  template <bool Keep>
  IE_INLINE void sum_step(C* p, const Bases& base, C* part) const {
    for (int64_t i = 0; i < width; i += V::N) {
      const V e = exp_over(V::load(p + i), base.at(i));
      if constexpr (Keep) e.store(p + i);
      (V::load(part + i) + e).store(part + i);
    }
  }
  template <Finish F>
  IE_INLINE void put(char* to, const C* p, const Bases& base, const C* sum, const C* inverse) const {
    store_results<S>(to, count, [&](int64_t i) __attribute__((always_inline)) {
      return finish<F>(V::load(p + i), base.at(i), V::load(sum + i), V::load(inverse + i));
    });
  }
  static void add(C* to, const C* from, int64_t n) {
    for (int64_t i = 0; i < n; i += V::N) (V::load(to + i) + V::load(from + i)).store(to + i);
  }

  void run(bool held) const {
    constexpr int L = kLanes<C>;
    const int64_t length = call.length;
    Bases base;
    alignas(64) C inverse[kMaxColumns];
    alignas(64) C total[L * kMaxColumns], part[L * kMaxColumns];
    const auto place = [&](int64_t at) { return held ? buffer + at * width : buffer; };
    std::fill(base.top, base.top + width, kMinusInf<C>);
    for (int64_t at = 0; at < length; ++at) {
      C* const p = place(at);
      fetch(at, p);
      for (int64_t i = 0; i < width; i += V::N)
        max(V::load(p + i), V::load(base.top + i)).store(base.top + i);
    }
    for (int64_t i = 0; i < width; i += V::N)
      base.set(i, SoftmaxBase<C>(V::load(base.top + i), call.logarithm));
    // Partial sums that no element goes to stay 0, and adding them would change nothing.
    int64_t lanes = std::min<int64_t>(L, length);
    std::fill(total, total + lanes * width, C(0));
    for (int64_t block = 0; block < length; block += kBlock) {
      std::fill(part, part + lanes * width, C(0));
      for (int64_t at = block; at < std::min(length, block + kBlock); ++at) {
        if (!held) fetch(at, place(at));
        if (held && !call.logarithm) {
          sum_step<true>(place(at), base, part + at % L * width);
        } else {
          sum_step<false>(place(at), base, part + at % L * width);
        }
      }
      add(total, part, lanes * width);
    }
    for (int64_t half = L / 2; half > 0; half /= 2) {
      if (lanes > half) add(total, total + half * width, (lanes - half) * width);
      lanes = std::min(lanes, half);
    }
    for (int64_t i = 0; i < width; i += V::N) {
      V sum = V::load(total + i), top = V::load(base.top + i);
      (V(C(1)) / sum).store(inverse + i);
      if (call.logarithm) normalize(top, sum);
      top.store(base.top + i);
      sum.store(total + i);
    }
    for (int64_t at = 0; at < length; ++at) {
      if (held) prefetch_step(at);
      if (!held) fetch(at, place(at));
      char* const to = x + call.shift + at * call.stride;
      switch (finish_of(call, held)) {
        case Finish::divide:
          put<Finish::divide>(to, place(at), base, total, inverse);
          break;
        case Finish::exponential:
          put<Finish::exponential>(to, place(at), base, total, inverse);
          break;
        case Finish::logarithm:
          put<Finish::logarithm>(to, place(at), base, total, inverse);
          break;
      }
    }
  }
};

// ---- all rows ---------------------------------------------------------------------------------------------

// How the rows are worked on.
struct Plan {
  Path path;
  bool held;
  int64_t columns; // rows at a time
  int64_t buffer;  // elements
};
template <class S>
Plan plan_of(const Softmax& call) {
  using C = ComputeOf<S>;
  constexpr int64_t N = Vec<C>::N;
  const int64_t length = call.length;
  // Fewer rows side by side than a quarter of a vector are gathered.
  const bool side_by_side = call.dims > 0 && call.step[0] == sizeof(S) && call.size[0] >= N / 4;
  if (call.stride != sizeof(S) && length > 1 && side_by_side) {
    const int64_t fit = std::min(kHeld<C> / length / N * N, kMaxColumns);
    const bool held = fit >= std::min(kMinColumns, call.size[0]);
    const int64_t columns = std::min(held ? fit : kMaxColumns, (call.size[0] + N - 1) / N * N);
    return {held ? Path::columns : Path::long_columns, held, columns, columns * (held ? length : 1)};
  }
  const bool held = length <= kHeld<C>;
  const int64_t buffer = held ? (length + kLanes<C> - 1) / kLanes<C> * kLanes<C> : kBlock;
  if (call.stride == sizeof(S)) return {held ? Path::rows : Path::long_rows, held, 0, buffer};
  return {held ? Path::gathered_rows : Path::long_gathered_rows, held, 0, buffer};
}

template <class S, int64_t Bytes>
__attribute__((noinline)) void run_rows(const Softmax& call, const Plan& plan, int64_t begin, int64_t end) {
  using C = ComputeOf<S>;
  alignas(64) C buffer[Bytes / sizeof(C)];
  char* x = call.data;
  const char* mask = call.mask;
  const auto move = [&](int d, int64_t n) {
    x += n * call.step[d];
    if (mask != nullptr) mask += n * call.mask_step[d];
  };
  Cursor at(call.size, call.dims, begin, move);
  if (plan.columns == 0) {
    for (int64_t r = begin; r < end; ++r, at.advance(1, move)) Row<S>{call, x, mask, buffer}.run(plan.held);
    return;
  }
  constexpr int64_t N = Vec<C>::N;
  for (int64_t r = begin; r < end;) {
    const int64_t count = std::min({plan.columns, at.left(), end - r});
    Columns<S>{call, x, mask, buffer, count, (count + N - 1) / N * N}.run(plan.held);
    r += count;
    at.advance(count, move);
  }
}
template <class S>
Path run(const Softmax& call, int64_t begin, int64_t end) {
  const Plan plan = plan_of<S>(call);
  const auto f = plan.buffer * static_cast<int64_t>(sizeof(ComputeOf<S>)) <= kSmallBuffer
                     ? run_rows<S, kSmallBuffer>
                     : run_rows<S, kBuffer>;
  f(call, plan, begin, end);
  return plan.path;
}

} // namespace

Path softmax(const Softmax& call, int64_t begin, int64_t end) {
  switch (call.dtype) {
    case DType::f64:
      return run<double>(call, begin, end);
    case DType::f16:
      return run<half_t>(call, begin, end);
    case DType::bf16:
      return run<bfloat16_t>(call, begin, end);
    default:
      return run<float>(call, begin, end);
  }
}

} // namespace inplace_ext
