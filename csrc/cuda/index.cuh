// Writing where an index or a mask says: rows and elements that are filled, copied or added.
//
// The indices are looked at by a kernel of their own, which ends all work of the context where one is out of
// range: nothing has been written then, and nobody has waited. Of several copies to one place the last stays,
// and sums are taken in the order of the index: the points come sorted by their places, stably, so that those
// of one place are a run, of which the last is copied, or which one thread walks through.
//
// A block takes a tile of rows, a row being one element where they do not lie side by side, finds out where
// each is, once, and then moves them with threads along the rows. Fills and copies know the size of an access
// alone, which is as wide as the rows are aligned.
#pragma once
#include <algorithm>

#include "inplace_ext/program.h"
#include "rows.cuh"

namespace inplace_ext::cuda {

namespace indexed {

constexpr int kThreads = 256, kWarps = kThreads / kWarp;
// Accesses of a thread that are on their way together.
template <int Bytes>
constexpr int kTogether = Bytes < 16 ? 4 : 2;
// Accesses of a tile at most, but for rows: a longer one is cut into pieces.
constexpr int64_t kTileUnits = 2048;
constexpr int kEach = kWarp / kWarps; // elements of a mask that a thread looks at together
constexpr int kMaskTile = kThreads * kEach;
constexpr int64_t kNowhere = INT64_MIN;

// How the rows are cut: into tiles of several, or each into pieces.
struct Rows {
  int64_t units, step, source_step; // of a row: its accesses, and bytes from one to the next
  int64_t units_of_piece, pieces;
};
inline Rows rows_of(int64_t units, int64_t step, int64_t source_step) {
  Rows rows{units, step, source_step, std::min(units, kTileUnits), 1};
  rows.pieces = (units + rows.units_of_piece - 1) / rows.units_of_piece;
  return rows;
}

// Moves rows of a tile, a piece of each: x + to[r] = source + from(r), or the value. (Were the choice not
// made at compile time, the loads would not be known to be of global memory.)
template <int Bytes, bool Copies, class Shared, class From>
IE_DEVICE void move_rows(const Rows& rows, int count, int64_t piece, char* x, const char* source, Shared to,
                         const From& from, const Chunk<Bytes>& value) {
  using Unit = Chunk<Bytes>;
  const int64_t begin = piece * rows.units_of_piece, rest = rows.units - begin;
  const auto units = static_cast<unsigned>(rest < rows.units_of_piece ? rest : rows.units_of_piece);
  const unsigned n = static_cast<unsigned>(count) * units;
  x += begin * rows.step;
  if constexpr (Copies) source += begin * rows.source_step;
  for (unsigned first = threadIdx.x; first < n; first += kThreads * kTogether<Bytes>) {
    Unit moved[kTogether<Bytes>];
    char* place[kTogether<Bytes>];
    IE_UNROLL(4)
    for (int j = 0; j < kTogether<Bytes>; ++j) {
      const unsigned u = first + j * kThreads;
      place[j] = nullptr;
      if constexpr (!Copies) moved[j] = value;
      if (u >= n) continue;
      const unsigned r = u / units, i = u - r * units;
      const int64_t at = to[r];
      if (at == kNowhere) continue;
      place[j] = x + at + i * rows.step;
      if constexpr (Copies)
        moved[j] = load_global(reinterpret_cast<const Unit*>(source + from(r) + i * rows.source_step));
    }
    IE_UNROLL(4)
    for (int j = 0; j < kTogether<Bytes>; ++j) {
      if (place[j] != nullptr) store_same(reinterpret_cast<Unit*>(place[j]), moved[j]);
    }
  }
}

// ---- indices ----------------------------------------------------------------------------------------------

IE_DEVICE int64_t load_index(const Index& index, const char* p) {
  return index.wide ? load_global(reinterpret_cast<const int64_t*>(p))
                    : load_global(reinterpret_cast<const int32_t*>(p));
}
IE_DEVICE int64_t load_place(const PointOrder& order, int64_t i) {
  return order.wide ? load_global(static_cast<const int64_t*>(order.place) + i)
                    : load_global(static_cast<const int32_t*>(order.place) + i);
}

// Calls f(d, index along dim d) for line l of dims [from, to).
template <class F>
IE_DEVICE void for_dims(const int64_t* size, int64_t l, int from, int to, const F& f) {
  IE_NO_UNROLL
  for (int d = from; d < to; ++d) {
    const int64_t next = d == to - 1 ? 0 : divide(l, size[d]);
    f(d, l - next * size[d]);
    l = next;
  }
}

// Asserts that all indices are in range. The places of the points, numbers that are the same where the
// indices mean the same, are written unless `places` is null. The dims of the call are those of the points
// alone.
template <class Place>
IE_GLOBAL void IE_LAUNCH_BOUNDS(kThreads, 4)
    check_indices(IE_GRID_CONSTANT const Indexed call, const int64_t points, const bool negative,
                  Place* const places) {
  for (int64_t p = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; p < points;
       p += static_cast<int64_t>(gridDim.x) * kThreads) {
    int64_t offset[kMaxIndices] = {};
    for_dims(call.size, p, 0, call.dims, [&](int d, int64_t i) {
      IE_UNROLL(4)
      for (int k = 0; k < kMaxIndices; ++k) offset[k] += i * call.index[k].step[d];
    });
    int64_t place = 0;
    IE_UNROLL(4)
    for (int k = 0; k < kMaxIndices; ++k) {
      if (k >= call.indices) break;
      const Index& index = call.index[k];
      const int64_t at = load_index(index, index.data + offset[k]);
      device_assert(at >= (negative ? -index.length : 0) && at < index.length, "index out of bounds");
      place = place * index.length + (at < 0 ? at + index.length : at);
    }
    if (places != nullptr) store_global(places + p, static_cast<Place>(place));
  }
}

// How the lines of a call, the dims from `from` on, are walked through: dims [first_point, end_point) are
// those of the points, of which there are `points` for each of the `inner` lines of the dims before them.
struct Lines {
  Rows rows;
  int64_t lines, tiles, inner, points;
  int rows_of_tile, from, first_point, end_point;
};

// A line: where it begins in x and in the source, and which point in their order it is of, at which place.
struct Line {
  int64_t to = 0, from = 0, point = 0, place = 0;
};
// Without an order points come as they are.
IE_DEVICE Line find_line(const Indexed& call, const Lines& lines, const PointOrder& order, int64_t l) {
  Line line;
  if (order.place == nullptr) {
    int64_t offset[kMaxIndices] = {};
    for_dims(call.size, l, lines.from, call.dims, [&](int d, int64_t i) {
      line.to += i * call.step[d];
      line.from += i * call.source_step[d];
      IE_UNROLL(4)
      for (int k = 0; k < kMaxIndices; ++k) offset[k] += i * call.index[k].step[d];
    });
    IE_UNROLL(4)
    for (int k = 0; k < kMaxIndices; ++k) {
      if (k >= call.indices) break;
      const Index& index = call.index[k];
      const int64_t at = load_index(index, index.data + offset[k]);
      line.to += (at < 0 ? at + index.length : at) * index.stride;
    }
    return line;
  }
  const int64_t rest = divide(l, lines.inner), outer = divide(rest, lines.points);
  const auto add = [&](int d, int64_t i) {
    line.to += i * call.step[d];
    line.from += i * call.source_step[d];
  };
  for_dims(call.size, l - rest * lines.inner, lines.from, lines.first_point, add);
  for_dims(call.size, outer, lines.end_point, call.dims, add);
  line.point = rest - outer * lines.points;
  int64_t place = line.place = load_place(order, line.point);
  IE_UNROLL(4)
  for (int k = kMaxIndices - 1; k >= 0; --k) {
    if (k >= call.indices) continue;
    const Index& index = call.index[k];
    const int64_t next = k == 0 ? 0 : divide(place, index.length);
    line.to += (place - next * index.length) * index.stride;
    place = next;
  }
  return line;
}
// Whether point i in the order is there, and of the line's place.
IE_DEVICE bool is_same_place(const Lines& lines, const PointOrder& order, const Line& line, int64_t i) {
  return order.place != nullptr && i >= 0 && i < lines.points && load_place(order, i) == line.place;
}
// Where point i in the order lies in the source, from the first one.
IE_DEVICE int64_t source_of(const Indexed& call, const Lines& lines, const PointOrder& order, int64_t i) {
  if (order.place == nullptr) return 0; // find_line() has added it
  int64_t from = 0;
  for_dims(call.size, load_global(order.point + i), lines.first_point, lines.end_point,
           [&](int d, int64_t at) { from += at * call.source_step[d]; });
  return from;
}

template <int Bytes, bool Copies>
IE_GLOBAL void IE_LAUNCH_BOUNDS(kThreads, 4)
    put_lines(IE_GRID_CONSTANT const Indexed call, IE_GRID_CONSTANT const Lines lines,
              IE_GRID_CONSTANT const PointOrder order, const Chunk<Bytes> value) {
  IE_SHARED(int64_t, to, kThreads);
  IE_SHARED(int64_t, from, kThreads);
  const int t = static_cast<int>(threadIdx.x);
  for (int64_t tile = blockIdx.x; tile < lines.tiles; tile += gridDim.x) {
    const int64_t group = divide(tile, lines.rows.pieces), first = group * lines.rows_of_tile;
    const int64_t left = lines.lines - first;
    const int count = left < lines.rows_of_tile ? static_cast<int>(left) : lines.rows_of_tile;
    __syncthreads(); // what was there has been read
    if (t < count) {
      const Line line = find_line(call, lines, order, first + t);
      const bool stays = !is_same_place(lines, order, line, line.point + 1);
      to[t] = stays ? line.to : kNowhere;
      from[t] = stays && Copies ? line.from + source_of(call, lines, order, line.point) : 0;
    }
    __syncthreads();
    move_rows<Bytes, Copies>(
        lines.rows, count, tile - group * lines.rows.pieces, call.data, call.source, to,
        [&](unsigned r) -> int64_t { return from[r]; }, value);
  }
}

// As the loops of add_: fused where they are, rounded once for 16-bit floats.
template <class S>
struct Adder {
  using C = ComputeOf<S>;
  C alpha;
  bool scaled;
  IE_DEVICE S operator()(S a, S b) const {
    using V = Vec<C>;
    const V x(cast<C>(a)), y(cast<C>(b));
    if constexpr (std::is_same_v<S, bool_t>) return cast<S>((x | y).v);
    return cast<S>((scaled ? fma(y, V(alpha), x) : x + y).v);
  }
};

// x += alpha * source, E neighbours at a time.
template <class S, int E>
IE_GLOBAL void IE_LAUNCH_BOUNDS(kThreads, 4)
    add_lines(IE_GRID_CONSTANT const Indexed call, IE_GRID_CONSTANT const Lines lines,
              IE_GRID_CONSTANT const PointOrder order, const ComputeOf<S> alpha) {
  IE_SHARED(int64_t, to, kThreads);
  IE_SHARED(int64_t, from, kThreads);
  IE_SHARED(int64_t, again, kThreads); // the first point of a place that has others
  const Adder<S> add{alpha, call.scaled};
  const int t = static_cast<int>(threadIdx.x);
  const Rows& rows = lines.rows;
  for (int64_t tile = blockIdx.x; tile < lines.tiles; tile += gridDim.x) {
    const int64_t group = divide(tile, rows.pieces), first = group * lines.rows_of_tile;
    const int64_t left = lines.lines - first;
    const int count = left < lines.rows_of_tile ? static_cast<int>(left) : lines.rows_of_tile;
    __syncthreads(); // what was there has been read
    if (t < count) {
      const Line line = find_line(call, lines, order, first + t);
      const bool begins = !is_same_place(lines, order, line, line.point - 1);
      to[t] = begins ? line.to : kNowhere;
      from[t] = begins ? line.from + source_of(call, lines, order, line.point) : 0;
      again[t] = begins && is_same_place(lines, order, line, line.point + 1) ? line.point : kNowhere;
    }
    __syncthreads();
    const int64_t begin = (tile - group * rows.pieces) * rows.units_of_piece, rest = rows.units - begin;
    const auto units = static_cast<unsigned>(rest < rows.units_of_piece ? rest : rows.units_of_piece);
    for (unsigned u = threadIdx.x; u < count * units; u += kThreads) {
      const unsigned r = u / units;
      const int64_t at = to[r], i = begin + (u - r * units), start = from[r];
      if (at == kNowhere) continue;
      char* const x = call.data + at + i * rows.step;
      const char* source = call.source + start + i * rows.source_step;
      Pack<S, E> sum = read_pack<S, E>(x);
      const auto add_one = [&](const char* p) {
        const Pack<S, E> b = read_pack<S, E>(p);
        IE_UNROLL(16)
        for (int e = 0; e < E; ++e) sum.set(e, add(sum.get(e), b.get(e)));
      };
      add_one(source);
      if (int64_t p = again[r]; p != kNowhere) { // the others of the same place, in their order
        const int64_t place = load_place(order, p);
        source -= source_of(call, lines, order, p);
        while (++p < lines.points && load_place(order, p) == place)
          add_one(source + source_of(call, lines, order, p));
      }
      write_pack<S, E>(x, sum);
    }
  }
}

// ---- masks ------------------------------------------------------------------------------------------------

// The elements of a mask in parts, each of which knows how many are true before it.
struct Parts {
  Rows rows;
  int64_t n, length, parts;
};

IE_DEVICE bool is_true(const Masked& call, int64_t i) {
  int64_t at = 0;
  for_dims(call.size, i, 0, call.dims, [&](int d, int64_t k) { at += k * call.mask_step[d]; });
  return load_global(reinterpret_cast<const uint8_t*>(call.mask) + at) != 0;
}
IE_DEVICE int true_bytes(uint32_t word) {
  return __popc((((word & 0x7f7f7f7f) + 0x7f7f7f7f) | word) & 0x80808080);
}

// The sum of a block's values, for all of its threads.
template <class Shared>
IE_DEVICE int64_t sum_of_block(int64_t value, Shared shared) {
  const int t = static_cast<int>(threadIdx.x);
  for (int half = kWarp / 2; half > 0; half /= 2) value += __shfl_xor_sync(kAllLanes, value, half);
  __syncthreads(); // what was there has been read
  if (t % kWarp == 0) shared[t / kWarp] = value;
  __syncthreads();
  int64_t sum = 0;
  for (int w = 0; w < kWarps; ++w) sum += shared[w];
  return sum;
}

template <bool Dense>
IE_GLOBAL void IE_LAUNCH_BOUNDS(kThreads, 4)
    count_mask(IE_GRID_CONSTANT const Masked call, IE_GRID_CONSTANT const Parts parts,
               int64_t* const counts) {
  using Word = Chunk<kPackBytes>;
  IE_SHARED(int64_t, shared, kWarps);
  const int64_t t = threadIdx.x;
  for (int64_t part = blockIdx.x; part < parts.parts; part += gridDim.x) {
    int64_t i = part * parts.length;
    const int64_t end = i + parts.length < parts.n ? i + parts.length : parts.n;
    int64_t count = 0;
    if constexpr (Dense) { // 16 bytes at a time, but for those at either end
      const auto head = static_cast<int64_t>(-reinterpret_cast<uintptr_t>(call.mask + i) % kPackBytes);
      const int64_t first = i + head < end ? i + head : end, words = (end - first) / kPackBytes;
      for (int64_t k = i + t; k < first; k += kThreads) count += is_true(call, k);
      for (int64_t w = t; w < words; w += kThreads) {
        const Word word = load_global(reinterpret_cast<const Word*>(call.mask + first) + w);
        IE_UNROLL(4)
        for (int k = 0; k < Word::kWords; ++k) count += true_bytes(word.word[k]);
      }
      i = first + words * kPackBytes;
    }
    for (i += t; i < end; i += kThreads) count += is_true(call, i);
    count = sum_of_block(count, shared);
    if (t == 0) store_global(counts + part, count);
  }
}

// Turns the counts of the parts into those of all parts before, and asserts that the source has as many
// elements as the mask asks for.
template <bool Exactly>
IE_GLOBAL void IE_LAUNCH_BOUNDS(kThreads, 4)
    sum_counts(int64_t* const counts, const int64_t parts, const int64_t available) {
  IE_SHARED(int64_t, shared, kWarps);
  const int t = static_cast<int>(threadIdx.x), lane = t % kWarp, warp = t / kWarp;
  int64_t before = 0;
  for (int64_t first = 0; first < parts; first += kThreads) {
    const int64_t own = first + t < parts ? load_global(counts + first + t) : 0;
    int64_t sum = own; // of the lanes up to this one
    for (int step = 1; step < kWarp; step *= 2) {
      const int64_t other = __shfl_up_sync(kAllLanes, sum, step);
      if (lane >= step) sum += other;
    }
    __syncthreads(); // what was there has been read
    if (lane == kWarp - 1) shared[warp] = sum;
    __syncthreads();
    int64_t all = 0;
    for (int w = 0; w < kWarps; ++w) {
      const int64_t of_warp = shared[w];
      if (w < warp) sum += of_warp;
      all += of_warp;
    }
    if (first + t < parts) store_global(counts + first + t, before + sum - own);
    before += all;
  }
  if (t == 0) {
    device_assert(Exactly ? before == available : before <= available,
                  Exactly ? "the mask is true for another number of elements than the value has"
                          : "the mask is true for more elements than source has");
  }
}

template <int Bytes, bool Copies>
IE_GLOBAL void IE_LAUNCH_BOUNDS(kThreads, 4)
    put_mask(IE_GRID_CONSTANT const Masked call, IE_GRID_CONSTANT const Parts parts,
             const int64_t* const before, const Chunk<Bytes> value) {
  IE_SHARED(int64_t, to, kMaskTile);
  IE_SHARED(int, counts, kWarp + 1);
  const int t = static_cast<int>(threadIdx.x), lane = t % kWarp, warp = t / kWarp;
  const int64_t tiles = parts.parts * parts.rows.pieces;
  for (int64_t tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
    const int64_t part = divide(tile, parts.rows.pieces);
    int64_t first = part * parts.length;
    const int64_t end = first + parts.length < parts.n ? first + parts.length : parts.n;
    int64_t taken = before == nullptr ? 0 : load_global(before + part);
    for (; first < end; first += kMaskTile) {
      unsigned votes[kEach];
      IE_UNROLL(4)
      for (int j = 0; j < kEach; ++j) {
        const int64_t i = first + j * kThreads + t;
        votes[j] = __ballot_sync(kAllLanes, i < end && is_true(call, i));
        if (lane == 0) counts[j * kWarps + warp] = __popc(votes[j]);
      }
      __syncthreads();
      if (warp == 0) { // a lane for each count
        const int own = counts[lane];
        int sum = own;
        for (int step = 1; step < kWarp; step *= 2) {
          const int other = __shfl_up_sync(kAllLanes, sum, step);
          if (lane >= step) sum += other;
        }
        counts[lane] = sum - own;
        if (lane == kWarp - 1) counts[kWarp] = sum;
      }
      __syncthreads();
      IE_UNROLL(4)
      for (int j = 0; j < kEach; ++j) {
        if ((votes[j] >> lane & 1) == 0) continue;
        int64_t at = 0;
        for_dims(call.size, first + j * kThreads + t, 0, call.dims,
                 [&](int d, int64_t k) { at += k * call.step[d]; });
        const int slot = counts[j * kWarps + warp];
        to[slot + __popc(votes[j] & ((1u << lane) - 1))] = at;
      }
      const int count = counts[kWarp];
      __syncthreads();
      move_rows<Bytes, Copies>(
          parts.rows, count, tile - part * parts.rows.pieces, call.data, call.source, to,
          [&](unsigned r) { return (taken + r) * call.source_step; }, value);
      taken += count;
      __syncthreads(); // the places have been read
    }
  }
}

// ---- the host's side --------------------------------------------------------------------------------------

// Of rows of so many bytes, the widest access that all addresses are multiples of.
inline int access_of(int64_t row, std::initializer_list<int64_t> multiples) {
  int64_t bits = row | kPackBytes;
  for (const int64_t m : multiples) bits |= m;
  return static_cast<int>(bits & -bits);
}
inline int64_t address(const void* p) {
  return static_cast<int64_t>(reinterpret_cast<uintptr_t>(p));
}

// f(a chunk that repeats the element of these bits) for the size of an access.
template <class F>
cudaError_t with_access(int bytes, uint64_t bits, int item, const F& f) {
  const auto run = [&](auto chunk) {
    char* const p = reinterpret_cast<char*>(&chunk);
    for (size_t i = 0; i < sizeof(chunk); i += item) std::memcpy(p + i, &bits, item);
    return f(chunk);
  };
  switch (bytes) {
    case 1:
      return run(Chunk<1>{});
    case 2:
      return run(Chunk<2>{});
    case 4:
      return run(Chunk<4>{});
    case 8:
      return run(Chunk<8>{});
    default:
      return run(Chunk<16>{});
  }
}
// f(a value of the storage type) for a dtype; of integers of a size those without a sign will do.
template <class F>
cudaError_t with_storage(DType dtype, const F& f) {
  switch (dtype) {
    case DType::b8:
      return f(bool_t{});
    case DType::u8:
    case DType::i8:
      return f(uint8_t{});
    case DType::i16:
      return f(int16_t{});
    case DType::i32:
      return f(int32_t{});
    case DType::i64:
      return f(int64_t{});
    default:
      return with_floating(dtype, f);
  }
}

inline int64_t numel(const int64_t* size, int from, int to) {
  int64_t n = 1;
  for (int d = from; d < to; ++d) n *= size[d];
  return n;
}

inline Lines lines_of(const Indexed& call, const Device& device, int& bytes) {
  Lines lines{};
  const int item = item_size(call.dtype);
  lines.from = call.rows ? 1 : 0;
  lines.first_point = lines.from;
  while (lines.first_point < call.dims && call.step[lines.first_point] != 0) ++lines.first_point;
  lines.end_point = lines.first_point;
  while (lines.end_point < call.dims && call.step[lines.end_point] == 0) ++lines.end_point;
  lines.inner = numel(call.size, lines.from, lines.first_point);
  lines.points = numel(call.size, lines.first_point, lines.end_point);
  lines.lines = numel(call.size, lines.from, call.dims);
  bytes = item;
  if (!call.rows) {
    lines.rows = rows_of(1, 0, 0);
  } else {
    const bool copies = call.source != nullptr;
    if (call.step[0] == item && (!copies || call.source_step[0] == item)) {
      bytes = access_of(call.size[0] * item, {address(call.data), address(call.source)});
      for (int d = 1; d < call.dims; ++d) bytes = access_of(bytes, {call.step[d], call.source_step[d]});
      for (int k = 0; k < call.indices; ++k) bytes = access_of(bytes, {call.index[k].stride});
    }
    const int64_t step = bytes == item ? call.step[0] : bytes;
    const int64_t source_step = bytes == item ? call.source_step[0] : bytes;
    lines.rows = rows_of(call.size[0] * item / bytes, step, source_step);
  }
  // Fewer rows together where there would not be a tile for each processor.
  const int64_t fit = std::max<int64_t>(kTileUnits / lines.rows.units, 1);
  const int64_t share = (lines.lines + 4 * device.processors - 1) / (4 * device.processors);
  lines.rows_of_tile = static_cast<int>(std::min<int64_t>({fit, std::max<int64_t>(share, 1), kThreads}));
  if (lines.rows.units == 1) lines.rows_of_tile = kThreads;
  lines.tiles = (lines.lines + lines.rows_of_tile - 1) / lines.rows_of_tile * lines.rows.pieces;
  return lines;
}

} // namespace indexed

// What CudaKernels says of these.
inline cudaError_t check_indices(const Indexed& call, bool negative, void* places, const Device& device,
                                 cudaStream_t stream) {
  using namespace indexed;
  // Of the dims those of the points, or those along which an index moves.
  Indexed points = call;
  points.dims = 0;
  for (int d = 0; d < call.dims; ++d) {
    bool moves = false;
    for (int k = 0; k < call.indices; ++k) moves = moves || call.index[k].step[d] != 0;
    if (places != nullptr ? call.step[d] != 0 : !moves) continue;
    points.size[points.dims] = call.size[d];
    for (int k = 0; k < call.indices; ++k) points.index[k].step[points.dims] = call.index[k].step[d];
    ++points.dims;
  }
  const int64_t n = numel(points.size, 0, points.dims);
  const auto run = [&](auto place) {
    return launch(check_indices<decltype(place)>, grid_for((n + kThreads - 1) / kThreads, device, kThreads),
                  dim3(kThreads), 0, stream, points, n, negative, static_cast<decltype(place)*>(places));
  };
  return wide_places(call) ? run(int64_t{}) : run(int32_t{});
}

inline cudaError_t put_indexed(const Indexed& call, const PointOrder& order, uint64_t bits,
                               const Device& device, cudaStream_t stream) {
  using namespace indexed;
  int bytes = 0;
  const Lines lines = lines_of(call, device, bytes);
  const dim3 grid = grid_for(lines.tiles, device, kThreads);
  const int item = item_size(call.dtype);
  if (call.put != Put::add) {
    return with_access(bytes, bits, item, [&](const auto& chunk) {
      constexpr int kBytes = sizeof(chunk);
      return launch(call.put == Put::copy ? put_lines<kBytes, true> : put_lines<kBytes, false>, grid,
                    dim3(kThreads), 0, stream, call, lines, order, chunk);
    });
  }
  return with_storage(call.dtype, [&](auto s) {
    using S = decltype(s);
    using C = ComputeOf<S>;
    const auto alpha =
        std::is_floating_point_v<C> ? static_cast<C>(call.scalar.d) : static_cast<C>(call.scalar.i);
    if (bytes == kPackBytes) {
      return launch(add_lines<S, kPack<S>>, grid, dim3(kThreads), 0, stream, call, lines, order, alpha);
    }
    // One element at a time.
    Lines single = lines;
    if (call.rows) single.rows = rows_of(call.size[0], call.step[0], call.source_step[0]);
    single.tiles = (lines.lines + lines.rows_of_tile - 1) / lines.rows_of_tile * single.rows.pieces;
    return launch(add_lines<S, 1>, grid_for(single.tiles, device, kThreads), dim3(kThreads), 0, stream, call,
                  single, order, alpha);
  });
}
inline indexed::Parts parts_of(const Masked& call, int& bytes) {
  using namespace indexed;
  const int item = item_size(call.dtype);
  const bool copies = call.put == Put::copy;
  bytes = item;
  if (call.row > 1 && (!copies || call.source_inner == item)) {
    bytes = access_of(call.row * item,
                      {address(call.data), copies ? address(call.source) : 0, copies ? call.source_step : 0});
    for (int d = 0; d < call.dims; ++d) bytes = access_of(bytes, {call.step[d]});
  }
  Parts parts{rows_of(call.row * item / bytes, bytes, copies && call.source_inner == 0 ? 0 : bytes),
              numel(call.size, 0, call.dims), 0, 0};
  const int64_t least = std::max<int64_t>(4 * kMaskTile / parts.rows.units, 1);
  parts.length = std::max((parts.n + kMaskParts - 1) / kMaskParts, least);
  parts.parts = (parts.n + parts.length - 1) / parts.length;
  return parts;
}
inline cudaError_t put_masked(const Masked& call, uint64_t bits, int64_t available, bool exactly,
                              int64_t* counts, const Device& device, cudaStream_t stream) {
  using namespace indexed;
  int bytes = 0;
  const Parts parts = parts_of(call, bytes);
  if (counts_mask(call)) {
    const bool dense = call.dims == 1 && call.mask_step[0] == 1;
    cudaError_t error =
        launch(dense ? count_mask<true> : count_mask<false>, grid_for(parts.parts, device, kThreads),
               dim3(kThreads), 0, stream, call, parts, counts);
    if (error != cudaSuccess) return error;
    error = launch(exactly ? sum_counts<true> : sum_counts<false>, dim3(1), dim3(kThreads), 0, stream, counts,
                   parts.parts, available);
    if (error != cudaSuccess) return error;
  } else {
    counts = nullptr;
  }
  const dim3 grid = grid_for(parts.parts * parts.rows.pieces, device, kThreads);
  return with_access(bytes, bits, item_size(call.dtype), [&](const auto& chunk) {
    constexpr int kBytes = sizeof(chunk);
    return launch(call.put == Put::copy ? put_mask<kBytes, true> : put_mask<kBytes, false>, grid,
                  dim3(kThreads), 0, stream, call, parts, counts, chunk);
  });
}

} // namespace inplace_ext::cuda
