// dropout in place or into a tensor of the same layout, for any layout.
//
// The numbers are drawn a chunk at a time into a buffer in the first-level cache, a Philox block in each lane
// of 64 bits, and then applied to the elements; no mask is kept.
#include <algorithm>

#include "draws.h"
#include "rows.h"

namespace inplace_ext {

namespace {

constexpr int64_t kDraws = 512;
// Lines next to each other that are worked on together where the elements of each lie apart, and how many
// elements of each at a time.
constexpr int64_t kTileLines = 32, kTileSteps = 64;
// Numbers that are kept for the lines that all have the same.
constexpr int64_t kHeld = 4096;
// Elements from which a channel is worth a loop of its own.
constexpr int64_t kLongChannel = 64;

template <class S>
class Dropper {
  using C = ComputeOf<S>;
  using V = Vec<C>;
  using I = Vec<typename int_of_size<sizeof(C)>::type>;

 public:
  explicit Dropper(const Dropout& call)
      : call_(call),
        draws_(call.from.seed),
        threshold_(static_cast<typename I::lane>(call.threshold)),
        scale_(static_cast<C>(call.scale)),
        kept_(static_cast<C>(call.kept)),
        dropped_(static_cast<C>(call.dropped)) {}

  // The elements of a line from `begin` to `end`, whose first has its number at `place` in the mask.
  void line(char* x, uint64_t place, int64_t begin, int64_t end) const {
    const int64_t step = call_.step[0];
    x += begin * step;
    if (call_.place[0] == 0)
      return channel(x, philox::draw(call_.from.seed, call_.from.offset, place), end - begin);
    place += static_cast<uint64_t>(begin);
    alignas(64) int32_t number[kDraws + kBatchWords];
    for (int64_t n = end - begin; n > 0;) {
      const auto lead = static_cast<int64_t>(place % philox::kWords);
      const int64_t count = std::min(n, kDraws - lead);
      // Drawing touches no memory, which would idle else.
      for (int64_t i = 0; i < count; i += std::max<int64_t>(1, 64 / std::abs(step)))
        __builtin_prefetch(x + i * step, 1);
      draws_(number, call_.from.offset + place / philox::kWords, lead + count);
      elements(x, count, by(number + lead));
      place += static_cast<uint64_t>(count);
      x += count * step;
      n -= count;
    }
  }

  // `count` lines along dim 1.
  void lines(char* x, uint64_t place, int64_t count) const {
    const int64_t length = call_.size[0], next = call_.step[1];
    if (call_.place[0] == 0 && call_.place[1] == 1) return channels(x, place, count);
    if (call_.place[0] == 1 && call_.place[1] == 0 && length <= kHeld) {
      alignas(64) int32_t number[kHeld + philox::kWords + kBatchWords];
      const int64_t lead = draw(number, place, length);
      for (int64_t l = 0; l < count; ++l, x += next) {
        for (int64_t i = 0; i < length; i += kDraws)
          elements(x + i * call_.step[0], std::min(kDraws, length - i), by(number + lead + i));
      }
      return;
    }
    for (int64_t l = 0; l < count; ++l, x += next, place += static_cast<uint64_t>(call_.place[1]))
      line(x, place, 0, length);
  }

  // `count` lines that begin next to each other.
  void tile(char* x, uint64_t place, int64_t count) const {
    alignas(64) int32_t number[kTileLines][kTileSteps + philox::kWords + kBatchWords];
    int64_t lead[kTileLines];
    alignas(64) int32_t across[kTileLines + kBatchWords];
    const int64_t length = call_.size[0], step = call_.step[0];
    for (int64_t at = 0; at < length; at += kTileSteps) {
      const int64_t steps = std::min(kTileSteps, length - at);
      for (int64_t l = 0; l < count; ++l) {
        lead[l] = draw(number[l], place + static_cast<uint64_t>(l * call_.place[1] + at), steps);
      }
      for (int64_t i = 0; i < steps; ++i) {
        for (int64_t l = 0; l < count; ++l) across[l] = number[l][lead[l] + i];
        char* const p = x + (at + i) * step;
        // Stretches of memory far apart, of which the processor foresees nothing.
        __builtin_prefetch(p + 8 * step, 1);
        __builtin_prefetch(p + 8 * step + count * static_cast<int64_t>(sizeof(S)) - 1, 1);
        contiguous(p, p + call_.shift, count, by(across));
      }
    }
  }

 private:
  IE_INLINE V shifted(V v, V shift) const {
    return call_.shifts ? v + shift : v;
  }
  // The numbers of n places of the mask; the first lies at the index that is returned.
  IE_INLINE int64_t draw(int32_t* number, uint64_t place, int64_t n) const {
    const auto lead = static_cast<int64_t>(place % philox::kWords);
    draws_(number, call_.from.offset + place / philox::kWords, lead + n);
    return lead;
  }
  // n elements that have one number.
  IE_INLINE void channel(char* x, uint32_t number, int64_t n) const {
    const bool keep = number >= call_.threshold;
    const V factor = keep ? scale_ : V(C(0)), shift = keep ? kept_ : dropped_;
    const auto all = [=, this](V v, int64_t)
                         __attribute__((always_inline)) { return shifted(v * factor, shift); };
    for (; n > 0; n -= kDraws, x += kDraws * call_.step[0]) elements(x, std::min(n, kDraws), all);
  }
  // Lines of one number each, which follow each other in the mask.
  void channels(char* x, uint64_t place, int64_t count) const {
    alignas(64) int32_t number[kDraws + philox::kWords + kBatchWords], spread[kDraws];
    const int64_t length = call_.size[0], step = call_.step[0];
    const bool adjacent = call_.step[1] == length * step && length < kLongChannel;
    for (int64_t at = 0; at < count; at += kDraws) {
      const int64_t some = std::min(kDraws, count - at);
      const int32_t* const own = number + draw(number, place + static_cast<uint64_t>(at), some);
      if (!adjacent) {
        for (int64_t l = 0; l < some; ++l, x += call_.step[1])
          channel(x, static_cast<uint32_t>(own[l]), length);
        continue;
      }
      // As many at a time as the buffer has room for, with a number for each element.
      for (int64_t l = 0; l < some;) {
        const int64_t together = std::min(kDraws / length, some - l);
        int32_t* to = spread;
        for (int64_t k = 0; k < together; ++k) {
          for (int64_t i = 0; i < length; ++i) *to++ = own[l + k];
        }
        elements(x, together * length, by(spread));
        x += together * length * step;
        l += together;
      }
    }
  }
  // What becomes of the elements that have these numbers.
  IE_INLINE auto by(const int32_t* number) const {
    return [number, this](V v, int64_t i) __attribute__((always_inline)) {
      typename raw_vector<int32_t, V::N>::type n;
      std::memcpy(&n, number + i, sizeof(n));
      const auto keep = I(__builtin_convertvector(n, typename I::raw)) >= threshold_;
      return shifted(v * select(keep, scale_, V(C(0))), select(keep, kept_, dropped_));
    };
  }
  template <class F>
  IE_INLINE void contiguous(const char* x, char* to, int64_t n, F f) const {
    int64_t i = 0;
    for (; i + V::N <= n; i += V::N) store<S>(to + i * sizeof(S), f(load<S>(x + i * sizeof(S)), i));
    if (i < n) store_some<S>(to + i * sizeof(S), f(load_some<S>(x + i * sizeof(S), n - i), i), n - i);
  }
  // At most kDraws elements of a line.
  template <class F>
  IE_INLINE void elements(char* x, int64_t n, F f) const {
    const int64_t step = call_.step[0];
    if (step == sizeof(S)) return contiguous(x, x + call_.shift, n, f);
    S raw[kDraws];
    gather(raw, x, step, n);
    char* const p = reinterpret_cast<char*>(raw);
    contiguous(p, p, n, f);
    scatter(x + call_.shift, raw, step, n);
  }

  const Dropout& call_;
  Generator draws_;
  I threshold_;
  V scale_, kept_, dropped_;
};

template <class S>
Path run(const Dropout& call, int64_t begin, int64_t end) {
  const Dropper<S> drop(call);
  const bool contiguous = call.step[0] == sizeof(S);
  const Path path = contiguous ? Path::draws : Path::gathered_draws;
  if (call.dims == 1) {
    drop.line(call.data, 0, begin, end);
    return path;
  }
  char* x = call.data;
  uint64_t place = 0;
  const auto move = [&](int d, int64_t n) {
    x += n * call.step[d + 1];
    place += static_cast<uint64_t>(n * call.place[d + 1]);
  };
  Cursor at(call.size + 1, call.dims - 1, begin, move);
  const bool tiled = !contiguous && call.place[0] != 0 && call.step[1] == sizeof(S);
  for (int64_t l = begin; l < end;) {
    const int64_t count = std::min(at.left(), end - l);
    if (tiled) {
      for (int64_t k = 0; k < count; k += kTileLines) {
        drop.tile(x + k * call.step[1], place + static_cast<uint64_t>(k * call.place[1]),
                  std::min(kTileLines, count - k));
      }
    } else {
      drop.lines(x, place, count);
    }
    l += count;
    at.advance(count, move);
  }
  return tiled ? Path::tiled_draws : path;
}

} // namespace

Path dropout(const Dropout& call, int64_t begin, int64_t end) {
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
