// Writing where an index or a mask says: rows and elements that are filled, copied or added.
//
// The points of one destination are visited in their own order, whatever the order of the other dims, so that
// of several copies to one place the last stays, and sums are taken in the order of the index.
#include <algorithm>
#include <bit>
#include <cstdlib>

#include "rows.h"

namespace inplace_ext {
namespace {

// Points whose destinations are computed together.
constexpr int kPoints = 256;
// How many points ahead the memory of a destination is asked for.
constexpr int kAhead = 16;
// How far ahead, in bytes, what is read one after the other is asked for; with short lines, how many of them.
constexpr int64_t kStreamAhead = 2048, kLinesAhead = 4, kLineBytes = 64;
// Of the second-level cache, what the places of elements may take that are visited again and again.
constexpr int64_t kNear = 256 << 10;
// Elements of a source that is gathered before it is added.
constexpr int64_t kGathered = 512;

template <class F>
void with_storage(DType dtype, F f) {
  switch (dtype) {
#define INPLACE_EXT_CASE(NAME, STORAGE, COMPUTE) \
  case DType::NAME:                              \
    return f(STORAGE{});
    INPLACE_EXT_FOR_DTYPES(INPLACE_EXT_CASE)
#undef INPLACE_EXT_CASE
  }
}
template <class T>
IE_INLINE T read(const char* p) {
  T v;
  std::memcpy(&v, p, sizeof(v));
  return v;
}
template <class T>
IE_INLINE void write(char* p, T v) {
  std::memcpy(p, &v, sizeof(v));
}

// ---- additions of one element -----------------------------------------------------------------------------

template <class S>
IE_INLINE ComputeOf<S> read_compute(const char* p) {
  if constexpr (std::is_same_v<S, bfloat16_t>) {
#if defined(__SSE2__)
    return _mm_cvtss_f32(_mm_castsi128_ps(_mm_slli_epi32(_mm_cvtsi32_si128(read<uint16_t>(p)), 16)));
#else
    return std::bit_cast<float>(uint32_t{read<uint16_t>(p)} << 16);
#endif
  } else if constexpr (is_half_v<S>) {
#if defined(__F16C__)
    return _cvtsh_ss(read<uint16_t>(p));
#else
    return from_bits(half_bits{read<uint16_t>(p)}, S{}).v[0];
#endif
  } else if constexpr (std::is_same_v<S, bool_t>) {
    return read<uint8_t>(p) != 0;
  } else {
    return read<S>(p);
  }
}
// As the vectors of lanes.h round, one at a time.
template <class S>
IE_INLINE void write_compute(char* p, ComputeOf<S> v) {
  if constexpr (std::is_same_v<S, bfloat16_t>) {
    const uint32_t u = std::bit_cast<uint32_t>(v);
    write<uint16_t>(p, (u + 0x7fff + ((u >> 16) & 1)) >> 16);
    if (__builtin_expect(u + u > 0xff000000, 0))
      write<uint16_t>(p, 0x7fc0); // a NaN, after the store: no register waits
  } else if constexpr (is_half_v<S>) {
#if defined(__F16C__)
    write<uint16_t>(p, _cvtss_sh(v, _MM_FROUND_TO_NEAREST_INT));
#else
    write<uint16_t>(p, to_bits(Vec<float>(v), S{})[0]);
#endif
  } else {
    write(p, v);
  }
}
// The loops for rows add the same way: fused where they are, rounded once for 16-bit floats.
template <class S, bool kScaled>
struct Adder {
  using C = ComputeOf<S>;
  C alpha;
  explicit Adder(const Indexed& call) : alpha(scalar_as<C>(call.scalar)) {}
  IE_INLINE void operator()(char* x, const char* source) const {
#if defined(__F16C__)
    if constexpr (std::is_same_v<S, half_t> && !kScaled) { // one conversion for both
      const __m128i both = _mm_insert_epi16(_mm_cvtsi32_si128(read<uint16_t>(x)), read<uint16_t>(source), 1);
      const __m128 wide = _mm_cvtph_ps(both);
      const __m128i sum = _mm_cvtps_ph(_mm_add_ss(wide, _mm_movehdup_ps(wide)), _MM_FROUND_TO_NEAREST_INT);
      return write<uint16_t>(x, _mm_cvtsi128_si32(sum));
    }
#endif
    const C a = read_compute<S>(x), b = read_compute<S>(source);
    if constexpr (std::is_same_v<S, bool_t>) {
      write_compute<S>(x, static_cast<C>(a | b));
    } else if constexpr (std::is_floating_point_v<C> && kHasFma) {
      write_compute<S>(x, kScaled ? std::fma(b, alpha, a) : a + b);
    } else {
      write_compute<S>(x, static_cast<C>(kScaled ? a + b * alpha : a + b));
    }
  }
};

// ---- destinations -----------------------------------------------------------------------------------------

// Where a line of points lies: its first point in x and in the source, and its first index of each tensor.
struct Line {
  char* data;
  const char* source;
  const char* index[kMaxIndices];
};

template <class I>
IE_INLINE void add_offsets(const Index& index, const char* p, int64_t step, int64_t n, int64_t* offset) {
  const auto add = [&](int64_t i, int64_t at) __attribute__((always_inline)) {
    offset[i] += (at + (at < 0 ? index.length : 0)) * index.stride;
  };
  if (step == sizeof(I)) {
    for (int64_t i = 0; i < n; ++i) add(i, read<I>(p + i * static_cast<int64_t>(sizeof(I))));
  } else {
    for (int64_t i = 0; i < n; ++i) add(i, read<I>(p + i * step));
  }
}
// Bytes from line.data to the destinations of n points of dim d, from `first` on.
void compute_offsets(const Indexed& call, const Line& line, int d, int64_t first, int64_t n,
                     int64_t* offset) {
  for (int64_t i = 0; i < n; ++i) offset[i] = (first + i) * call.step[d];
  for (int k = 0; k < call.indices; ++k) {
    const Index& index = call.index[k];
    const char* const p = line.index[k] + first * index.step[d];
    index.wide ? add_offsets<int64_t>(index, p, index.step[d], n, offset)
               : add_offsets<int32_t>(index, p, index.step[d], n, offset);
  }
}
// The points among them whose first index is in [begin, end), in order; returns their number.
int64_t choose(const Indexed& call, const Line& line, int d, int64_t first, int64_t n, int64_t begin,
               int64_t end, int32_t* chosen) {
  const Index& index = call.index[0];
  int64_t count = 0;
  for (int64_t i = 0; i < n; ++i) {
    const char* const p = line.index[0] + (first + i) * index.step[d];
    int64_t at = index.wide ? read<int64_t>(p) : read<int32_t>(p);
    at += at < 0 ? index.length : 0;
    chosen[count] = static_cast<int32_t>(i);
    count += at >= begin && at < end;
  }
  return count;
}

bool shares_places(const Indexed& call, int64_t begin, int64_t end) {
  return call.shared == kByDestination && !(begin == 0 && end == call.index[0].length);
}

// The bytes of x in which all places of a line of elements lie, where they lie close together and those of
// the next line are others; else 0.
int64_t near_places(const Indexed& call) {
  const int64_t bytes = call.index[0].length * call.index[0].stride;
  const bool moves_on = call.dims > 1 && call.step[0] == 0 && call.step[1] != 0;
  return moves_on && bytes <= std::min(kNear, 2 * call.size[0] * item_size(call.dtype)) ? bytes : 0;
}

// Calls f(destination, source) for the points of dim d of a line that are this thread's, of `bytes` in x
// each: stores alone would wait for every line of a row.
template <class F>
IE_INLINE void for_points(const Indexed& call, const Line& line, int d, int64_t bytes, int64_t begin,
                          int64_t end, F f) {
  const int64_t ahead = std::clamp<int64_t>(kStreamAhead / bytes, 1, kAhead);
  const int64_t fetched = std::min(bytes, kStreamAhead);
  const bool some = shares_places(call, begin, end);
  int64_t offset[kPoints];
  int32_t chosen[kPoints];
  for (int64_t first = 0; first < call.size[d]; first += kPoints) {
    const int64_t n = std::min<int64_t>(kPoints, call.size[d] - first);
    const char* const source = line.source + first * call.source_step[d];
    compute_offsets(call, line, d, first, n, offset);
    const int64_t count = some ? choose(call, line, d, first, n, begin, end, chosen) : n;
    for (int64_t j = 0; j < count; ++j) {
      const int64_t i = some ? chosen[j] : j;
      if (j + ahead < count) {
        const int64_t next = some ? chosen[j + ahead] : j + ahead;
        for (int64_t b = 0; b < fetched; b += kLineBytes) __builtin_prefetch(line.data + offset[next] + b, 1);
      }
      f(line.data + offset[i], source + i * call.source_step[d]);
    }
  }
}
// What is known where a loop over elements is compiled. kRow: the places of all points are those of the same
// row, what is read are neighbours, and no index counts from the end; steps known here leave the registers to
// the loop. kForward: no index does. kAny: some do.
enum class Known : uint8_t { kRow, kForward, kAny };

// The same as for_points() for elements of type W with one index, all of them this thread's. What comes
// between two stores counts: a few places are known before the first of them is written. Memory is asked for
// ahead: of what is read one after the other, past the ends of pages, where the processor's own prefetching
// stops; of places that may be in any line; and of the places of the next line of points, which it cannot
// foresee.
template <class I, class W, Known kKnown>
class Elements {
  static constexpr bool kRow = kKnown == Known::kRow;

 public:
  explicit Elements(const Indexed& call)
      : n_(call.size[0]),
        length_(call.index[0].length),
        stride_(call.index[0].stride),
        step_(call.step[0]),
        source_step_(call.source_step[0]),
        index_step_(call.index[0].step[0]) {
    const bool lines = call.dims > 1;
    const auto ahead = [&](int64_t own, int64_t next) {
      return lines && n_ * own < kStreamAhead ? kLinesAhead * next : kStreamAhead;
    };
    index_ahead_ = ahead(index_step_, call.index[0].step[1]);
    source_ahead_ = ahead(source_step_, call.source_step[1]);
    next_line_ = lines ? call.step[1] : 0;
    next_step_ = near_places(call) * kBlock / n_;
  }
  template <class F>
  IE_INLINE void run(const Line& line, F f) const {
    const int64_t n = n_, length = length_;
    const int64_t stride = kRow ? kItem : stride_, step = kRow ? 0 : step_;
    const int64_t source_step = kRow ? kItem : source_step_, index_step = kRow ? kIndex : index_step_;
    char* x = line.data;
    const char *source = line.source, *p = line.index[0];
    const auto put = [&](auto count) __attribute__((always_inline)) {
      char* to[count];
      for (int k = 0; k < count; ++k) {
        int64_t at = read<I>(p);
        if (kKnown == Known::kAny) at += (at >> 63) & length;
        to[k] = x + at * stride;
        if (!kRow) __builtin_prefetch(to[k], 1);
        x += step, p += index_step;
      }
      for (int k = 0; k < count; ++k) f(to[k], source), source += source_step;
    };
    const char* next = line.data + next_line_;
    int64_t i = 0;
    for (; i + kBlock <= n; i += kBlock) {
      // What is read with steps is in cache from the line before, or asked for by the processor.
      for (int b = 0; b < kBlock * kItem && kRow; b += kLineBytes)
        __builtin_prefetch(source + source_ahead_ + b);
      for (int b = 0; b < kBlock * kIndex && kRow; b += kLineBytes) __builtin_prefetch(p + index_ahead_ + b);
      for (int64_t b = 0; b < next_step_; b += kLineBytes) __builtin_prefetch(next + b, 1);
      next += next_step_;
#pragma GCC unroll 4
      for (int k = 0; k < kBlock; k += kBatch) put(std::integral_constant<int, kBatch>());
    }
    for (; i + kBatch <= n; i += kBatch) put(std::integral_constant<int, kBatch>());
    for (; i < n; ++i) put(std::integral_constant<int, 1>());
  }
  static bool fits(const Indexed& call) {
    return call.step[0] == 0 && call.index[0].stride == kItem && call.index[0].step[0] == kIndex &&
           (call.put == Put::fill || call.source_step[0] == kItem);
  }

 private:
  static constexpr int kBatch = 4, kBlock = 16, kIndex = sizeof(I), kItem = sizeof(W);
  int64_t n_, length_, stride_, step_, source_step_, index_step_;
  int64_t index_ahead_, source_ahead_, next_line_, next_step_;
};

// Calls f(line) for each index of the dims from `from` on.
template <class F>
void for_lines(const Indexed& call, int from, F f) {
  const int dims = call.dims - from;
  if (dims < 0 || dims > kMaxDims) __builtin_unreachable(); // GCC 12 warns of an overflow otherwise
  Line line{call.data, call.source, {}};
  for (int k = 0; k < call.indices; ++k) line.index[k] = call.index[k].data;
  int64_t lines = 1;
  for (int d = from; d < call.dims; ++d) lines *= call.size[d];
  const auto move = [&](int d, int64_t n) {
    line.data += n * call.step[from + d];
    line.source += n * call.source_step[from + d];
    for (int k = 0; k < call.indices; ++k) line.index[k] += n * call.index[k].step[from + d];
  };
  Cursor cursor(call.size + from, dims, 0, move);
  for (int64_t i = 0; i < lines; ++i) {
    f(line);
    if (i + 1 < lines) cursor.advance(1, move);
  }
}

// ---- elements ---------------------------------------------------------------------------------------------

void put_elements(const Indexed& call, int64_t begin, int64_t end) {
  const bool simple = call.indices == 1 && !shares_places(call, begin, end);
  const auto run = [&](auto word, auto put, auto for_rows) {
    using W = decltype(word);
    const auto run_as = [&]<class I, Known kKnown>() {
      const Elements<I, W, kKnown> elements(call);
      for_lines(call, 1, [&](const Line& line) { elements.run(line, put); });
    };
    const auto with_index = [&]<class I>() {
      if constexpr (for_rows) {
        if (Elements<I, W, Known::kRow>::fits(call)) return run_as.template operator()<I, Known::kRow>();
      }
      run_as.template operator()<I, Known::kForward>();
    };
    if (!simple || (call.negative && !call.index[0].wide)) {
      for_lines(call, 1,
                [&](const Line& line) { for_points(call, line, 0, item_size(call.dtype), begin, end, put); });
    } else if (call.negative) {
      run_as.template operator()<int64_t, Known::kAny>();
    } else {
      call.index[0].wide ? with_index.template operator()<int64_t>()
                         : with_index.template operator()<int32_t>();
    }
  };
  if (call.put == Put::add) {
    with_storage(call.dtype, [&](auto s) {
      using S = decltype(s);
      call.scaled ? run(s, Adder<S, true>(call), std::false_type{})
                  : run(s, Adder<S, false>(call), std::true_type{});
    });
  } else {
    with_word(call.dtype, [&](auto word) {
      using W = decltype(word);
      if (call.put == Put::fill) {
        W value;
        fill(&value, call.dtype, call.scalar, 1);
        run(
            word, [value](char* x, const char*) __attribute__((always_inline)) { write(x, value); },
            std::true_type{});
      } else {
        run(
            word, [](char* x, const char* s) __attribute__((always_inline)) { write(x, read<W>(s)); },
            std::true_type{});
      }
    });
  }
}

// Elements side by side whose index says which row each goes to, in a matrix that no cache holds: each would
// bring in a line and have it written back. A strip of columns at a time is copied to where it stays in cache
// and back, since rows of a power of two would share too few places of it. False where that is no help.
bool put_columns(const Indexed& call, int64_t begin, int64_t end) {
  constexpr int64_t kStripBytes = 1 << 20, kLeastBytes = 8 << 20;
  constexpr int64_t kRowsAhead = 8;
  const Index& index = call.index[0];
  const int64_t item = item_size(call.dtype), columns = call.size[0], rows = index.length,
                pitch = index.stride;
  const bool fits = call.dims == 2 && call.indices == 1 && call.step[0] == item && call.step[1] == 0 &&
                    pitch >= columns * item && call.size[1] >= rows / 2 && !shares_places(call, begin, end);
  if (!fits || rows * columns * item <= kLeastBytes || rows * kLineBytes > kStripBytes) return false;
  const int64_t strip_bytes = std::min(kStripBytes / rows & -kLineBytes, 4 * kLineBytes);
  char* const strip = static_cast<char*>(std::aligned_alloc(kLineBytes, rows * strip_bytes));
  if (strip == nullptr) return false;
  for (int64_t first = 0; first < columns; first += strip_bytes / item) {
    Indexed part = call;
    part.size[0] = std::min(strip_bytes / item, columns - first);
    const int64_t bytes = part.size[0] * item;
    char* const x = call.data + first * item;
    for (int64_t r = 0; r < rows; ++r) {
      __builtin_prefetch(x + (r + kRowsAhead) * pitch, 1);
      copy_run(strip + r * strip_bytes, x + r * pitch, bytes);
    }
    part.data = strip;
    part.source += first * call.source_step[0];
    part.index[0].data += first * index.step[0];
    part.index[0].stride = strip_bytes;
    put_elements(part, begin, end);
    for (int64_t r = 0; r < rows; ++r) copy_run(x + r * pitch, strip + r * strip_bytes, bytes);
  }
  std::free(strip);
  return true;
}

// ---- rows: dim 0 lies the same way from every point -------------------------------------------------------

// Rows of this many bytes are left to memcpy.
constexpr int64_t kLongRow = 2048;
IE_INLINE void copy_row(char* x, const char* source, int64_t bytes) {
  if (bytes >= kLongRow) {
    std::memcpy(x, source, bytes);
  } else {
    copy_run(x, source, bytes);
  }
}

// n elements with steps between them.
template <class W>
void copy_strided(char* x, int64_t step, const char* source, int64_t source_step, int64_t n) {
  for (int64_t i = 0; i < n; ++i) write(x + i * step, read<W>(source + i * source_step));
}

class RowAdder {
 public:
  explicit RowAdder(const Indexed& call)
      : call_(call),
        item_(item_size(call.dtype)),
        loop_(kernel_tables().loop[static_cast<int>(call.scaled               ? Op::add_scaled
                                                    : call.dtype == DType::b8 ? Op::logical_or
                                                                              : Op::add_)]
                                  [static_cast<int>(call.dtype)][call.scaled ? kScalarC : kTensorOperands]) {}
  void operator()(char* x, const char* source) const {
    const int64_t n = call_.size[0], source_step = call_.source_step[0];
    const Scalar scalar[3] = {call_.scalar, call_.scalar, call_.scalar};
    if (source_step == item_) return loop_(x, source, nullptr, scalar, n);
    alignas(64) char row[kGathered * kMaxItem];
    for (int64_t i = 0; i < n; i += kGathered) {
      const int64_t m = std::min(kGathered, n - i);
      with_word(call_.dtype, [&](auto word) {
        copy_strided<decltype(word)>(row, item_, source + i * source_step, source_step, m);
      });
      loop_(x + i * item_, row, nullptr, scalar, m);
    }
  }

 private:
  static constexpr int kMaxItem = 8;
  const Indexed& call_;
  const int64_t item_;
  const LoopFn loop_;
};

void put_rows(const Indexed& call, int64_t begin, int64_t end) {
  // In bytes; of rows that are read by the addition itself, but for 16-bit floats, the first line is enough.
  const bool reads = call.put == Put::add && item_size(call.dtype) >= 4;
  const int64_t row = reads ? kLineBytes : call.size[0] * call.step[0];
  const auto run = [&](auto put) {
    for_lines(call, 2, [&](const Line& line) { for_points(call, line, 1, row, begin, end, put); });
  };
  const int64_t item = item_size(call.dtype), n = call.size[0], step = call.step[0];
  const int64_t source_step = call.source_step[0], bytes = n * item;
  if (call.put == Put::add) {
    if (step == item) return run(RowAdder(call));
    return with_storage(call.dtype, [&](auto s) {
      const auto each = [&](auto add) {
        run([&](char* x, const char* source) {
          for (int64_t i = 0; i < n; ++i) add(x + i * step, source + i * source_step);
        });
      };
      call.scaled ? each(Adder<decltype(s), true>(call)) : each(Adder<decltype(s), false>(call));
    });
  }
  alignas(64) char value[kVectorBytes];
  if (call.put == Put::fill) fill(value, call.dtype, call.scalar, kVectorBytes / item);
  if (step == item && call.put == Put::fill) {
    run([&](char* x, const char*) { fill_row(x, value, bytes, item); });
  } else if (step == item && source_step == item) {
    run([&](char* x, const char* source) { copy_row(x, source, bytes); });
  } else if (step == item && source_step == 0) {
    run([&](char* x, const char* source) { splat(x, call.dtype, source, call.dtype, n); });
  } else {
    const bool filling = call.put == Put::fill;
    with_word(call.dtype, [&](auto word) {
      run([&](char* x, const char* source) {
        copy_strided<decltype(word)>(x, step, filling ? value : source, filling ? 0 : source_step, n);
      });
    });
  }
}

// ---- masks ------------------------------------------------------------------------------------------------

constexpr int kMaskBlock = 64;

// Bit i tells whether byte i of a block of the mask is not 0.
IE_INLINE uint64_t block_bits(const char* mask) {
#if defined(INPLACE_EXT_AVX512)
  const __m512i m = _mm512_loadu_si512(mask);
  return _mm512_test_epi8_mask(m, m);
#elif defined(INPLACE_EXT_AVX2)
  uint64_t bits = 0;
  for (int i = 0; i < 2; ++i) {
    const __m256i m = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(mask + 32 * i));
    const uint32_t zero = _mm256_movemask_epi8(_mm256_cmpeq_epi8(m, _mm256_setzero_si256()));
    bits |= static_cast<uint64_t>(~zero) << (32 * i);
  }
  return bits;
#elif defined(__SSE2__)
  uint64_t bits = 0;
  for (int i = 0; i < 4; ++i) {
    const __m128i m = _mm_loadu_si128(reinterpret_cast<const __m128i*>(mask + 16 * i));
    const uint32_t zero = _mm_movemask_epi8(_mm_cmpeq_epi8(m, _mm_setzero_si128()));
    bits |= static_cast<uint64_t>(~zero & 0xffff) << (16 * i);
  }
  return bits;
#else
  uint64_t bits = 0;
  for (int i = 0; i < kMaskBlock; ++i) bits |= static_cast<uint64_t>(mask[i] != 0) << i;
  return bits;
#endif
}
// The same of n bytes, fewer than a block, with a step between them.
IE_INLINE uint64_t some_bits(const char* mask, int64_t step, int64_t n) {
  uint64_t bits = 0;
#if defined(INPLACE_EXT_AVX512)
  if (step == 1) {
    const __m512i m = _mm512_maskz_loadu_epi8((uint64_t(1) << n) - 1, mask);
    return _mm512_test_epi8_mask(m, m);
  }
#endif
  for (int64_t i = 0; i < n; ++i) bits |= static_cast<uint64_t>(mask[i * step] != 0) << i;
  return bits;
}
// Calls f(first, n, bits) for each block of n bytes of a line of the mask.
template <class F>
IE_INLINE void for_blocks(const char* mask, int64_t step, int64_t n, F f) {
  int64_t i = 0;
  if (step == 1) {
    for (; i + kMaskBlock <= n; i += kMaskBlock) f(i, kMaskBlock, block_bits(mask + i));
  }
  for (; i < n; i += kMaskBlock) {
    const int64_t m = std::min<int64_t>(kMaskBlock, n - i);
    f(i, m, some_bits(mask + i * step, step, m));
  }
}
template <class F>
IE_INLINE void for_bits(uint64_t bits, F f) {
  for (; bits != 0; bits &= bits - 1) f(__builtin_ctzll(bits));
}

// Elements of a block that are stored one at a time rather than by reading and writing all of it: each then
// touches its own line of the cache alone.
constexpr int kFew = 4;

#if defined(INPLACE_EXT_AVX512)
// The lanes whose bit is set, and no other memory.
template <class W>
IE_INLINE void store_where(char* p, uint64_t bits, Vec<W> v) {
  const __m512i lanes = (__m512i)v.v;
  if constexpr (sizeof(W) == 1) {
    _mm512_mask_storeu_epi8(p, bits, lanes);
  } else if constexpr (sizeof(W) == 2) {
    _mm512_mask_storeu_epi16(p, static_cast<__mmask32>(bits), lanes);
  } else if constexpr (sizeof(W) == 4) {
    _mm512_mask_storeu_epi32(p, static_cast<__mmask16>(bits), lanes);
  } else {
    _mm512_mask_storeu_epi64(p, static_cast<__mmask8>(bits), lanes);
  }
}
#endif

// x = value where the mask is true, of elements side by side.
template <class W>
void fill_block(char* x, const char* mask, int64_t n, uint64_t bits, W value) {
  if (bits == 0) return;
  const uint64_t all = n == kMaskBlock ? ~uint64_t(0) : (uint64_t(1) << n) - 1;
  using V = Vec<W>;
  const V v(value);
#if defined(INPLACE_EXT_AVX512)
  if (n < kMaskBlock) {
    for (int i = 0; i < n; i += V::N) store_where(x + i * sizeof(W), bits >> i, v);
    return;
  }
#endif
  if (n < kMaskBlock || (bits != all && __builtin_popcountll(bits) <= kFew)) {
    for_bits(bits, [&](int i) { write(x + i * sizeof(W), value); });
    return;
  }
  if (bits == all) {
#pragma GCC unroll 8
    for (int i = 0; i < kMaskBlock; i += V::N) v.store(x + i * sizeof(W));
    return;
  }
#pragma GCC unroll 8
  for (int i = 0; i < kMaskBlock; i += V::N) {
    char* const p = x + i * sizeof(W);
    select(widen_bytes<W>(mask + i) != V(W(0)), v, V::load(p)).store(p);
  }
}

// x = the next elements of the source where the mask is true; returns where the source goes on.
template <class W>
const char* expand_block(char* x, int64_t n, uint64_t bits, const char* source) {
#if defined(INPLACE_EXT_AVX512)
  if constexpr (sizeof(W) >= 4) {
    constexpr int kLanes = 64 / sizeof(W);
    if (__builtin_popcountll(bits) > kFew) {
#pragma GCC unroll 8
      for (int i = 0; i < kMaskBlock; i += kLanes) {
        if (i >= n) break;
        using M = std::conditional_t<sizeof(W) == 4, __mmask16, __mmask8>;
        const M m = static_cast<M>(bits >> i);
        __m512i next;
        if constexpr (sizeof(W) == 4) {
          next = _mm512_maskz_expandloadu_epi32(m, source);
        } else {
          next = _mm512_maskz_expandloadu_epi64(m, source);
        }
        store_where(x + i * sizeof(W), m, Vec<W>((typename Vec<W>::raw)next));
        source += __builtin_popcount(m) * sizeof(W);
      }
      return source;
    }
  }
#endif
  (void)n;
  for_bits(bits, [&](int i) {
    write(x + i * sizeof(W), read<W>(source));
    source += sizeof(W);
  });
  return source;
}

// Calls f(x, mask, n) for the parts of lines that elements [begin, end) of the mask make.
template <class F>
void for_mask_lines(const Masked& call, int64_t begin, int64_t end, F f) {
  char* x = call.data;
  const char* mask = call.mask;
  const auto move = [&](int d, int64_t n) {
    x += n * call.step[d];
    mask += n * call.mask_step[d];
  };
  Cursor cursor(call.size, call.dims, begin, move);
  while (begin < end) {
    const int64_t n = std::min(cursor.left(), end - begin);
    f(x, mask, n);
    begin += n;
    if (begin < end) cursor.advance(n, move);
  }
}

template <class W>
Path put_masked(const Masked& call, int64_t begin, int64_t end, const char* source) {
  const int64_t item = sizeof(W), step = call.step[0], mask_step = call.mask_step[0];
  const int64_t bytes = call.row * item;
  const bool filling = call.put == Put::fill, flat = call.row == 1 && step == item;
  alignas(64) char pattern[kVectorBytes] = {};
  if (filling) fill(pattern, call.dtype, call.scalar, kVectorBytes / item);
  const W value = read<W>(pattern);
  const bool expands = flat && !filling && call.source_step == item;
  for_mask_lines(call, begin, end, [&](char* x, const char* mask, int64_t n) {
    if (flat && filling && mask_step == 1) {
      for_blocks(mask, 1, n, [&](int64_t i, int64_t m, uint64_t bits) {
        fill_block<W>(x + i * item, mask + i, m, bits, value);
      });
    } else if (expands) {
      for_blocks(mask, mask_step, n, [&](int64_t i, int64_t m, uint64_t bits) {
        source = expand_block<W>(x + i * item, m, bits, source);
      });
    } else {
      for_blocks(mask, mask_step, n, [&](int64_t first, int64_t, uint64_t bits) {
        for_bits(bits, [&](int i) {
          char* const p = x + (first + i) * step;
          if (filling) {
            call.row == 1 ? write(p, value) : fill_row(p, pattern, bytes, item);
          } else if (call.row == 1) {
            write(p, read<W>(source));
          } else if (call.source_inner == 0) {
            splat(p, call.dtype, source, call.dtype, call.row);
          } else {
            copy_row(p, source, bytes);
          }
          if (!filling) source += call.source_step;
        });
      });
    }
  });
  return flat ? Path::mask_blocks : call.row > 1 ? Path::mask_rows : Path::mask_elements;
}

template <class I>
bool all_in_range(const char* p, int64_t step, int64_t n, int64_t low, int64_t high) {
  using U = std::make_unsigned_t<I>;
  if (static_cast<uint64_t>(high - low) > static_cast<U>(-1)) return true; // whatever the type holds
  const U span = static_cast<U>(high - low);
  // Elements looked at between two decisions whether to go on.
  constexpr int64_t kBlock = 4096;
  for (int64_t first = 0; first < n; first += kBlock) {
    const int64_t m = std::min(kBlock, n - first);
    const char* const block = p + first * step;
    U outside = 0;
    const auto look = [&](int64_t from, int64_t to, int64_t item) __attribute__((always_inline)) {
      for (int64_t i = from; i < to; ++i)
        outside |= static_cast<U>(static_cast<U>(read<I>(block + i * item)) - static_cast<U>(low)) >= span;
    };
    if (step == sizeof(I)) {
      constexpr int64_t kLine = kLineBytes / sizeof(I);
      int64_t i = 0;
      for (; i + kLine <= m; i += kLine) {
        __builtin_prefetch(block + i * static_cast<int64_t>(sizeof(I)) + 2 * kStreamAhead);
        look(i, i + kLine, sizeof(I));
      }
      look(i, m, sizeof(I));
    } else {
      look(0, m, step);
    }
    if (outside != 0) return false;
  }
  return true;
}

} // namespace

bool in_range(const void* index, bool wide, int64_t step, int64_t n, int64_t low, int64_t high) {
  const char* const p = static_cast<const char*>(index);
  if (wide) return all_in_range<int64_t>(p, step, n, low, high);
  return all_in_range<int32_t>(p, step, n, std::max<int64_t>(low, INT32_MIN),
                               std::min<int64_t>(high, int64_t(INT32_MAX) + 1));
}

Path put_indexed(const Indexed& given, int64_t begin, int64_t end) {
  Indexed call = given;
  if (const int d = call.shared; d != kByDestination) {
    call.size[d] = end - begin;
    call.data += begin * call.step[d];
    call.source += begin * call.source_step[d];
    for (int k = 0; k < call.indices; ++k) call.index[k].data += begin * call.index[k].step[d];
  }
  if (call.rows) {
    put_rows(call, begin, end);
    return Path::index_rows;
  }
  if (put_columns(call, begin, end)) return Path::columns;
  put_elements(call, begin, end);
  return Path::index_elements;
}

int64_t count_mask(const Masked& call, int64_t begin, int64_t end) {
  int64_t count = 0;
  for_mask_lines(call, begin, end, [&](char*, const char* mask, int64_t n) {
    for_blocks(mask, call.mask_step[0], n,
               [&](int64_t, int64_t, uint64_t bits)
                   __attribute__((always_inline)) { count += __builtin_popcountll(bits); });
  });
  return count;
}

Path put_masked(const Masked& call, int64_t begin, int64_t end, int64_t taken) {
  const char* const source = call.put == Put::fill ? nullptr : call.source + taken * call.source_step;
  Path path = Path::mask_elements;
  with_word(call.dtype, [&](auto word) { path = put_masked<decltype(word)>(call, begin, end, source); });
  return path;
}

} // namespace inplace_ext
