// softmax and log_softmax along one dim, in place or into a tensor of the same layout, for any layout.
//
// A row is read as scores (scaled, masked, in the compute type) into registers, of a part of a warp, of a
// warp or of a block, its exponentials are taken and summed there, and the results are stored: one read and
// one write of memory. Rows that the registers of a block do not hold are read twice. Rows side by side are
// worked on in columns: lanes next to each other have rows next to each other.
//
// The sum of a row is taken in an order that depends on its length and dtype alone: groups of 16 bytes of
// elements go to L partial sums in turn, L is 32, or 512 for the longer rows, and those are folded in halves.
// So strides, alignment, the way the row was read and the grid change no bit.
#pragma once
#include "inplace_ext/program.h"
#include "rows.cuh"

#include "inplace_ext/math_softmax.h" // after what says what a Vec is

namespace inplace_ext::cuda {
namespace rowwise {

constexpr int kWarpsOfBlock = 4;               // where a row has a warp or a part of one
constexpr int kRowThreads = 512;               // where it has a block
constexpr int kRowWarps = kRowThreads / kWarp; // and L / 32
constexpr int kHeldBytes = 128;                // of scores in the registers of a thread
// Of a block at most: rows side by side, of which fewer leave more registers to scores of more than 32 bytes,
// and steps along them.
constexpr int kMaxColumns = 32, kColumnSteps = 32;
template <class S, int Groups>
constexpr int kColumns = Groups * kPack<S> * sizeof(ComputeOf<S>) > 32 ? kMaxColumns / 2 : kMaxColumns;
template <class S>
constexpr int kLongColumns = sizeof(S) == 8 ? kMaxColumns / 2 : kMaxColumns;
template <class C>
constexpr int kHeld = kHeldBytes / static_cast<int>(sizeof(C));
// The groups of scores that a thread holds at most.
template <class S>
constexpr int kMaxGroups = kHeld<ComputeOf<S>> / kPack<S>;
// The longest rows whose sum has 32 parts, and of those of 512 the longest that a block holds.
template <class S>
constexpr int64_t kShortRow = kWarp * kHeld<ComputeOf<S>>;
template <class S>
constexpr int64_t kLongRow = kRowThreads * kHeld<ComputeOf<S>>;

// ---- numbers ----------------------------------------------------------------------------------------------

template <class C>
IE_DEVICE C larger(C a, C b) {
  return a > b ? a : b;
}
// x 2^power for a power that is no more than 0, or not a number to multiply 0 by.
template <class C>
IE_DEVICE C scaled_down(C x, C power) {
  constexpr C kLeast = sizeof(C) == 4 ? -250 : -2000;
  return math::scale(Vec<C>(x), math::Exponent<C>(Vec<C>(larger(power, kLeast)), C(1))).v;
}

// The sum of a row whose largest score is not known yet, or is: exponentials relative to a power of two, by
// which the sum is multiplied, exactly, when a larger score comes. Large scores need more than that: they are
// summed again.
template <class C>
IE_DEVICE SoftmaxBase<C> running_base(C top) {
  constexpr C kLog2e = sizeof(C) == 4 ? tables::kLog2eF : static_cast<C>(tables::kLog2e);
  SoftmaxBase<C> base(Vec<C>(top), false);
  base.shift = Vec<C>(C(0));
  base.power = rint(Vec<C>(top * kLog2e));
  return base;
}
// An exponential to be summed: 0 where there is no score, also where there is none in the row so far.
template <class C>
IE_DEVICE C term(C score, const SoftmaxBase<C>& base) {
  return score == kMinusInf<C> ? C(0) : exp_over(Vec<C>(score), base).v;
}
template <int N, class C>
IE_DEVICE C sum_of_terms(const C* score, const SoftmaxBase<C>& base, C part = 0) {
  IE_UNROLL(32)
  for (int i = 0; i < N; ++i) part += term(score[i], base);
  return part;
}
// The same, and leaves the exponentials in place of the scores, unless those are what is needed.
template <int N, class C>
IE_DEVICE C take_terms(C* score, const SoftmaxBase<C>& base, bool logarithm) {
  C part = 0;
  IE_UNROLL(32)
  for (int i = 0; i < N; ++i) {
    const C e = term(score[i], base);
    part += e;
    score[i] = logarithm ? score[i] : e;
  }
  return part;
}
template <int N, class C>
IE_DEVICE C largest_of(const C* score, C top) {
  IE_UNROLL(32)
  for (int i = 0; i < N; ++i) top = larger(score[i], top);
  return top;
}

// What makes results: of scores, or of exponentials that were kept.
template <class C, bool Kept>
struct Result {
  SoftmaxBase<C> base;
  Vec<C> sum, inverse;
  bool logarithm;

  // Given the sum of the exponentials relative to the base. Those of the largest score are not 1: the
  // logarithm is that of the sum relative to it.
  IE_DEVICE Result(const SoftmaxBase<C>& b, C total, bool log) : base(b), sum(total), logarithm(log) {
    // All scores -inf, or one of them inf: not a number.
    if (!(abs(base.top).v < -kMinusInf<C>)) sum = Vec<C>(std::numeric_limits<C>::quiet_NaN());
    if (logarithm) {
      sum = sum / exp_over(base.top, base);
      normalize(base.top, sum);
    } else {
      inverse = Vec<C>(C(1)) / sum;
    }
  }
  IE_DEVICE C operator()(C score) const {
    if (logarithm) return difference(Vec<C>(score), base.top, sum).v;
    const Vec<C> e = Kept ? Vec<C>(score) : exp_over(Vec<C>(score), base);
    return quotient(e, sum, inverse).v;
  }
};

// ---- scores -----------------------------------------------------------------------------------------------

template <class C>
IE_DEVICE C kept(C score, bool keep) {
  return keep ? score : kMinusInf<C>;
}
// The score of the element at x, whose mask is at `mask` where there is one.
template <class S>
IE_DEVICE ComputeOf<S> score_at(const Softmax& call, const char* x, const char* mask) {
  using C = ComputeOf<S>;
  const C score = load_element<S>(x) * static_cast<C>(call.scale);
  if (call.mask == nullptr) return score;
  if (call.mask_dtype == DType::b8) return kept(score, load_global(mask) != 0);
  return score + load_element<S>(mask);
}

// Where row r begins, in bytes from the first.
IE_DEVICE void place_of_row(const Softmax& call, int64_t r, int from, int64_t& x, int64_t& mask) {
  x = mask = 0;
  for (int d = from; d < call.dims; ++d) {
    const bool last = d == call.dims - 1;
    const int64_t next = last ? 0 : divide(r, call.size[d]), i = r - next * call.size[d];
    x += i * call.step[d];
    if (call.mask != nullptr) mask += i * call.mask_step[d];
    r = next;
  }
}

// The threads of a row and their shares of it. Thread t has groups t, t + threads, ...: group k of a thread
// is one of a chunk of threads * kPack elements.
//
// Aligned: x and the mask are read in packs. Else lanes next to each other read elements next to each other
// and hand them over through a tile of shared memory.
template <class S, bool Aligned, class Tile>
struct Share {
  using C = ComputeOf<S>;
  static constexpr int kGroup = kPack<S>;

  const Softmax& call;
  int threads, t;
  int across; // threads of the row in this warp
  Tile tile;  // of those of the warp
  const char *x, *mask;

  IE_DEVICE int64_t first(int k) const {
    return (static_cast<int64_t>(k) * threads + t) * kGroup;
  }
  // The element that the thread reads j-th of the chunk, and its place in the tile.
  IE_DEVICE int in_tile(int j) const {
    return j * across + t % across;
  }
  IE_DEVICE int64_t in_row(int k, int j) const {
    return (static_cast<int64_t>(k) * threads + t - t % across) * kGroup + in_tile(j);
  }

  // The scores of group k of a chunk that begins at element `at`: -inf beyond the row's end at `length`.
  IE_DEVICE void fetch_group(int64_t at, int64_t length, int k, C* score) const {
    if constexpr (Aligned) {
      const int64_t i = at + first(k);
      if (i + kGroup <= length) {
        fetch_pack(i, score);
      } else {
        IE_UNROLL(32)
        for (int j = 0; j < kGroup; ++j) score[j] = one(i + j, length);
      }
    } else {
      IE_UNROLL(32)
      for (int j = 0; j < kGroup; ++j) tile[in_tile(j)] = one(at + in_row(k, j), length);
      __syncwarp();
      IE_UNROLL(32)
      for (int j = 0; j < kGroup; ++j) score[j] = tile[t % across * kGroup + j];
      __syncwarp();
    }
  }
  template <int Groups>
  IE_DEVICE void fetch(int64_t at, int64_t length, C* score) const {
    IE_UNROLL(32)
    for (int k = 0; k < Groups; ++k) fetch_group(at, length, k, score + k * kGroup);
  }
  template <int Groups, class F>
  IE_DEVICE void store(int64_t at, int64_t length, const C* score, const F& result) const {
    char* const to = const_cast<char*>(x) + call.shift;
    IE_UNROLL(32)
    for (int k = 0; k < Groups; ++k) {
      const C* const own = score + k * kGroup;
      if constexpr (Aligned) {
        const int64_t i = at + first(k);
        if (i + kGroup <= length) {
          Pack<S, kGroup> out{};
          IE_UNROLL(32)
          for (int j = 0; j < kGroup; ++j) out.set(j, cast<S>(result(own[j])));
          write_pack<S, kGroup>(to + i * sizeof(S), out);
        } else {
          IE_UNROLL(32)
          for (int j = 0; j < kGroup; ++j) {
            if (i + j < length) store_element<S>(to + (i + j) * sizeof(S), result(own[j]));
          }
        }
      } else {
        IE_UNROLL(32)
        for (int j = 0; j < kGroup; ++j) tile[t % across * kGroup + j] = result(own[j]);
        __syncwarp();
        IE_UNROLL(32)
        for (int j = 0; j < kGroup; ++j) {
          const int64_t i = at + in_row(k, j);
          if (i < length) store_element<S>(to + i * call.stride, tile[in_tile(j)]);
        }
        __syncwarp();
      }
    }
  }

 private:
  IE_DEVICE C one(int64_t i, int64_t length) const {
    return i < length ? score_at<S>(call, x + i * call.stride, mask + i * call.mask_stride) : kMinusInf<C>;
  }
  IE_DEVICE void fetch_pack(int64_t i, C* score) const {
    const Pack<S, kGroup> in = read_pack<S, kGroup>(x + i * sizeof(S));
    const C scale = static_cast<C>(call.scale);
    IE_UNROLL(32)
    for (int j = 0; j < kGroup; ++j) score[j] = cast<C>(in.get(j)) * scale;
    if (call.mask == nullptr) return;
    const char* const m = mask + i * call.mask_stride;
    if (call.mask_dtype == DType::b8) {
      const Pack<uint8_t, kGroup> keep = mask_pack<uint8_t>(m);
      IE_UNROLL(32)
      for (int j = 0; j < kGroup; ++j) score[j] = kept(score[j], keep.get(j) != 0);
    } else {
      const Pack<S, kGroup> add = mask_pack<S>(m);
      IE_UNROLL(32)
      for (int j = 0; j < kGroup; ++j) score[j] += cast<C>(add.get(j));
    }
  }
  template <class M>
  IE_DEVICE Pack<M, kGroup> mask_pack(const char* m) const {
    if (call.mask_stride != 0) return read_pack<M, kGroup>(m);
    Pack<M, kGroup> all;
    all.fill(load_global(reinterpret_cast<const M*>(m)));
    return all;
  }
};

// ---- folding ----------------------------------------------------------------------------------------------

struct Sum {
  template <class C>
  IE_DEVICE static C of(C a, C b) {
    return a + b;
  }
};
struct Largest {
  template <class C>
  IE_DEVICE static C of(C a, C b) {
    return larger(a, b);
  }
};
// Of `width` lanes, a power of two; all of them get it.
template <class F, class C>
IE_DEVICE C fold_lanes(C value, int width = kWarp) {
  for (int half = width / 2; half > 0; half /= 2)
    value = F::of(value, __shfl_xor_sync(kAllLanes, value, half));
  return value;
}
template <class F, int N, class C>
IE_DEVICE C fold_array(C* v) {
  if constexpr (N > 1) {
    IE_UNROLL(32)
    for (int i = 0; i < N / 2; ++i) v[i] = F::of(v[i], v[i + N / 2]);
    return fold_array<F, N / 2>(v);
  } else {
    return v[0];
  }
}
// Of a block of kRowThreads: over its warps first. `part` has room for one of each thread.
template <class F, class C, class Array>
IE_DEVICE C fold_block(C value, Array part) {
  const int t = static_cast<int>(threadIdx.x);
  __syncthreads();
  part[t] = value;
  __syncthreads();
  C of_warp[kRowWarps];
  IE_UNROLL(32)
  for (int w = 0; w < kRowWarps; ++w) of_warp[w] = part[w * kWarp + t % kWarp];
  return fold_lanes<F>(fold_array<F, kRowWarps>(of_warp));
}

// ---- kernels ----------------------------------------------------------------------------------------------

// A row has `width` lanes, a power of two up to 32.
template <class S, int Groups, bool Aligned>
IE_GLOBAL void IE_LAUNCH_BOUNDS(kWarpsOfBlock* kWarp, (Groups < kMaxGroups<S> ? 4 : 1))
    softmax_warp(IE_GRID_CONSTANT const Softmax call, const int64_t rows, const int width) {
  using C = ComputeOf<S>;
  constexpr int N = Groups * kPack<S>;
  IE_SHARED(C, tiles, Aligned ? 1 : kWarpsOfBlock * kWarp * kPack<S>);
  const int lane = static_cast<int>(threadIdx.x) % kWarp, warp = static_cast<int>(threadIdx.x) / kWarp;
  const int rows_of_warp = kWarp / width;
  const auto tile = tiles + (Aligned ? 0 : (warp * kWarp + lane / width * width) * kPack<S>);
  Share<S, Aligned, decltype(tile + 0)> share{call, width, lane % width, width, tile, nullptr, nullptr};
  const int64_t all = static_cast<int64_t>(gridDim.x) * kWarpsOfBlock * rows_of_warp;
  int64_t r = (static_cast<int64_t>(blockIdx.x) * kWarpsOfBlock + warp) * rows_of_warp;
  // All lanes of the warp go on until its last row is done.
  for (; r < rows; r += all) {
    const int64_t own = r + lane / width;
    const int64_t length = own < rows ? call.length : 0;
    int64_t at, mask_at;
    place_of_row(call, own < rows ? own : r, 0, at, mask_at);
    share.x = call.data + at, share.mask = call.mask + mask_at;
    C score[N];
    share.template fetch<Groups>(0, length, score);
    const C top = fold_lanes<Largest>(largest_of<N>(score, kMinusInf<C>), width);
    const SoftmaxBase<C> base(Vec<C>(top), false);
    const C sum = fold_lanes<Sum>(take_terms<N>(score, base, call.logarithm), width);
    share.template store<Groups>(0, length, score, Result<C, true>(base, sum, call.logarithm));
  }
}

template <class S, int Groups, bool Aligned>
IE_GLOBAL void IE_LAUNCH_BOUNDS(kRowThreads, 1)
    softmax_block(IE_GRID_CONSTANT const Softmax call, const int64_t rows) {
  using C = ComputeOf<S>;
  constexpr int N = Groups * kPack<S>;
  IE_SHARED(C, part, kRowThreads);
  IE_SHARED(C, tiles, Aligned ? 1 : kRowThreads * kPack<S>);
  const int t = static_cast<int>(threadIdx.x);
  const auto tile = tiles + (Aligned ? 0 : t / kWarp * kWarp * kPack<S>);
  Share<S, Aligned, decltype(tile + 0)> share{call, kRowThreads, t, kWarp, tile, nullptr, nullptr};
  const int64_t length = call.length;
  for (int64_t r = blockIdx.x; r < rows; r += gridDim.x) {
    int64_t at, mask_at;
    place_of_row(call, r, 0, at, mask_at);
    share.x = call.data + at, share.mask = call.mask + mask_at;
    C score[N];
    share.template fetch<Groups>(0, length, score);
    const C top = fold_block<Largest>(largest_of<N>(score, kMinusInf<C>), part);
    const SoftmaxBase<C> base(Vec<C>(top), false);
    const C sum = fold_block<Sum>(take_terms<N>(score, base, call.logarithm), part);
    share.template store<Groups>(0, length, score, Result<C, true>(base, sum, call.logarithm));
  }
}

// Whether exponentials of these scores are taken relative to their largest one, and not to a power of two.
template <class C>
IE_DEVICE bool is_shifted(const SoftmaxBase<C>& base) {
  return base.shift.v != 0 || base.top.v != base.top.v;
}

// Rows of any length: read once for their sum and once more for the results.
template <class S, bool Aligned>
IE_GLOBAL void IE_LAUNCH_BOUNDS(kRowThreads, 1)
    softmax_long(IE_GRID_CONSTANT const Softmax call, const int64_t rows) {
  using C = ComputeOf<S>;
  constexpr int N = kHeld<C>, kGroups = kMaxGroups<S>;
  IE_SHARED(C, part, kRowThreads);
  IE_SHARED(C, tiles, Aligned ? 1 : kRowThreads * kPack<S>);
  const int t = static_cast<int>(threadIdx.x);
  const auto tile = tiles + (Aligned ? 0 : t / kWarp * kWarp * kPack<S>);
  Share<S, Aligned, decltype(tile + 0)> share{call, kRowThreads, t, kWarp, tile, nullptr, nullptr};
  const int64_t length = call.length;
  for (int64_t r = blockIdx.x; r < rows; r += gridDim.x) {
    int64_t at, mask_at;
    place_of_row(call, r, 0, at, mask_at);
    share.x = call.data + at, share.mask = call.mask + mask_at;
    C score[N];
    C total = 0;
    SoftmaxBase<C> running = running_base(kMinusInf<C>);
    for (int64_t chunk = 0; chunk < length; chunk += kLongRow<S>) {
      share.template fetch<kGroups>(chunk, length, score);
      const C top = largest_of<N>(score, running.top.v);
      if (top > running.top.v) {
        const SoftmaxBase<C> next = running_base(top);
        total = scaled_down(total, running.power.v - next.power.v);
        running = next;
      }
      total += sum_of_terms<N>(score, running);
    }
    const SoftmaxBase<C> base(Vec<C>(fold_block<Largest>(running.top.v, part)), false);
    if (!is_shifted(base)) {
      total = scaled_down(total, running.power.v - base.power.v);
    } else {
      total = 0;
      for (int64_t chunk = 0; chunk < length; chunk += kLongRow<S>) {
        share.template fetch<kGroups>(chunk, length, score);
        total += sum_of_terms<N>(score, base);
      }
    }
    const Result<C, false> result(base, fold_block<Sum>(total, part), call.logarithm);
    for (int64_t chunk = 0; chunk < length; chunk += kLongRow<S>) {
      share.template fetch<kGroups>(chunk, length, score);
      share.template store<kGroups>(chunk, length, score, result);
    }
  }
}

// Rows side by side: blockDim.x of them, a power of two, and kColumnSteps threads of each.
template <class S>
struct Column {
  using C = ComputeOf<S>;
  static constexpr int kGroup = kPack<S>;
  const Softmax& call;
  const char *x, *mask;
  int64_t length; // 0 for a column beyond the last

  // The scores of Groups groups of one of L partial sums.
  template <int Groups, int L>
  IE_DEVICE void fetch(int64_t at, int lane, C* score) const {
    IE_UNROLL(32)
    for (int k = 0; k < Groups; ++k) {
      IE_UNROLL(32)
      for (int j = 0; j < kGroup; ++j) {
        const int64_t i = at + (k * L + lane) * kGroup + j;
        score[k * kGroup + j] =
            i < length ? score_at<S>(call, x + i * call.stride, mask + i * call.mask_stride) : kMinusInf<C>;
      }
    }
  }
  template <int Groups, int L, class R>
  IE_DEVICE void store(int64_t at, int lane, const C* score, const R& result) const {
    char* const to = const_cast<char*>(x) + call.shift;
    IE_UNROLL(32)
    for (int k = 0; k < Groups; ++k) {
      IE_UNROLL(32)
      for (int j = 0; j < kGroup; ++j) {
        const int64_t i = at + (k * L + lane) * kGroup + j;
        if (i < length) store_element<S>(to + i * call.stride, result(score[k * kGroup + j]));
      }
    }
  }

  // Of the steps of each column; `part` has room for one more column than there are.
  template <class F, class Array>
  IE_DEVICE static C fold(C value, Array part, Array whole) {
    const int columns = static_cast<int>(blockDim.x), pitch = columns + 1;
    const int column = static_cast<int>(threadIdx.x), step = static_cast<int>(threadIdx.y);
    const int t = step * columns + column;
    part[step * pitch + column] = value;
    __syncthreads();
    // A warp for each column.
    const C folded = fold_lanes<F>(static_cast<C>(part[t % kWarp * pitch + t / kWarp]));
    if (t % kWarp == 0) whole[t / kWarp] = folded;
    __syncthreads();
    return whole[column];
  }
};
// The columns that the block works on; false beyond the last.
template <class S>
IE_DEVICE Column<S> column_of(const Softmax& call, int64_t piece, int64_t pieces_of_line) {
  const int64_t line = divide(piece, pieces_of_line);
  const int64_t first = (piece - line * pieces_of_line) * blockDim.x + threadIdx.x;
  const bool inside = first < call.size[0];
  int64_t at, mask_at;
  place_of_row(call, line, 1, at, mask_at);
  const int64_t i = inside ? first : 0;
  if (call.mask != nullptr) mask_at += i * call.mask_step[0];
  return {call, call.data + at + i * call.step[0], call.mask + mask_at, inside ? call.length : 0};
}

template <class S, int Groups>
IE_GLOBAL void IE_LAUNCH_BOUNDS(kColumns<S, Groups>* kColumnSteps, 1)
    softmax_columns(IE_GRID_CONSTANT const Softmax call, const int64_t pieces, const int64_t pieces_of_line) {
  using C = ComputeOf<S>;
  constexpr int N = Groups * kPack<S>;
  constexpr int kWidth = kColumns<S, Groups>;
  IE_SHARED(C, part, kColumnSteps * (kWidth + 1));
  IE_SHARED(C, whole, kWidth);
  const int lane = static_cast<int>(threadIdx.y);
  for (int64_t piece = blockIdx.x; piece < pieces; piece += gridDim.x) {
    const Column<S> column = column_of<S>(call, piece, pieces_of_line);
    C score[N];
    column.template fetch<Groups, kWarp>(0, lane, score);
    const C top = Column<S>::template fold<Largest>(largest_of<N>(score, kMinusInf<C>), part, whole);
    const SoftmaxBase<C> base(Vec<C>(top), false);
    const C sum = Column<S>::template fold<Sum>(take_terms<N>(score, base, call.logarithm), part, whole);
    column.template store<Groups, kWarp>(0, lane, score, Result<C, true>(base, sum, call.logarithm));
  }
}

// Columns that are longer: read once for their sum and once more for the results. A thread has the partial
// sums lane, lane + 32, ... of its column.
template <class S>
IE_GLOBAL void IE_LAUNCH_BOUNDS(kLongColumns<S>* kColumnSteps, 1)
    softmax_long_columns(IE_GRID_CONSTANT const Softmax call, const int64_t pieces,
                         const int64_t pieces_of_line) {
  using C = ComputeOf<S>;
  constexpr int N = kPack<S>;
  IE_SHARED(C, part, kColumnSteps * (kLongColumns<S> + 1));
  IE_SHARED(C, whole, kLongColumns<S>);
  const int lane = static_cast<int>(threadIdx.y);
  for (int64_t piece = blockIdx.x; piece < pieces; piece += gridDim.x) {
    const Column<S> column = column_of<S>(call, piece, pieces_of_line);
    // Calls group(at, lane) for each group of the thread's, and end(w) after those that are added up before
    // they join partial sum w.
    const auto each = [&](const auto& group, const auto& end) {
      for (int64_t chunk = 0; chunk < call.length; chunk += kLongRow<S>) {
        for (int w = 0; w < kRowWarps; ++w) {
          for (int k = 0; k < kMaxGroups<S>; ++k) {
            const int64_t at = chunk + static_cast<int64_t>(k) * kRowThreads * kPack<S>;
            if (at + (w * kWarp + lane) * kPack<S> < call.length) group(at, w * kWarp + lane);
          }
          end(w);
        }
      }
    };
    C score[N], total[kRowWarps], sum = 0;
    const auto clear = [&] {
      IE_UNROLL(16)
      for (int w = 0; w < kRowWarps; ++w) total[w] = 0;
    };
    const auto add = [&](int to) {
      IE_UNROLL(16)
      for (int w = 0; w < kRowWarps; ++w) total[w] = w == to ? total[w] + sum : total[w];
      sum = 0;
    };
    const auto scale_down = [&](C power) {
      sum = scaled_down(sum, power);
      IE_UNROLL(16)
      for (int w = 0; w < kRowWarps; ++w) total[w] = scaled_down(total[w], power);
    };
    clear();
    SoftmaxBase<C> running = running_base(kMinusInf<C>);
    each(
        [&](int64_t at, int of) {
          column.template fetch<1, kRowThreads>(at, of, score);
          const C top = largest_of<N>(score, running.top.v);
          if (top > running.top.v) {
            const SoftmaxBase<C> next = running_base(top);
            scale_down(running.power.v - next.power.v);
            running = next;
          }
          sum = sum_of_terms<N>(score, running, sum);
        },
        add);
    const SoftmaxBase<C> base(Vec<C>(Column<S>::template fold<Largest>(running.top.v, part, whole)), false);
    if (!is_shifted(base)) {
      scale_down(running.power.v - base.power.v);
    } else {
      clear();
      each(
          [&](int64_t at, int of) {
            column.template fetch<1, kRowThreads>(at, of, score);
            sum = sum_of_terms<N>(score, base, sum);
          },
          add);
    }
    const C all = Column<S>::template fold<Sum>(fold_array<Sum, kRowWarps>(total), part, whole);
    const Result<C, false> result(base, all, call.logarithm);
    each(
        [&](int64_t at, int of) {
          column.template fetch<1, kRowThreads>(at, of, score);
          column.template store<1, kRowThreads>(at, of, score, result);
        },
        [](int) {});
  }
}

// ---- the choice of a kernel -------------------------------------------------------------------------------

inline int next_power_of_two(int64_t n, int most) {
  int p = 1;
  while (p < n && p < most) p *= 2;
  return p;
}
// Whether x, its results and the mask can be read in packs.
template <class S>
bool in_packs(const Softmax& call) {
  if (call.stride != sizeof(S) || !is_aligned(call.data) || !is_aligned(call.shift)) return false;
  const bool flags = call.mask_dtype == DType::b8;
  const int item = flags ? 1 : static_cast<int>(sizeof(S)), pack = kPack<S> * item;
  const bool mask_in_packs = call.mask != nullptr && call.mask_stride != 0;
  if (mask_in_packs && (call.mask_stride != item || !is_aligned(call.mask, pack))) return false;
  for (int d = 0; d < call.dims; ++d) {
    if (call.size[d] == 1) continue;
    if (!is_aligned(call.step[d]) || (mask_in_packs && !is_aligned(call.mask_step[d], pack))) return false;
  }
  return true;
}
template <class S>
Path path_of(const Softmax& call) {
  constexpr int64_t kMinColumns = 4;
  if (call.stride != sizeof(S) && call.length > 1 && call.dims > 0 && call.step[0] == sizeof(S) &&
      call.size[0] >= kMinColumns) {
    return call.length <= kShortRow<S> ? Path::columns : Path::long_columns;
  }
  const bool held = call.length <= kLongRow<S>;
  if (call.stride == sizeof(S)) return held ? Path::rows : Path::long_rows;
  return held ? Path::gathered_rows : Path::long_gathered_rows;
}

// Calls f(std::integral_constant) with the fewest groups of those there are kernels for.
template <int Groups, int Most, int Factor, class F>
cudaError_t with_groups(int64_t needed, const F& f) {
  if constexpr (Groups < Most) {
    if (needed > Groups) return with_groups<Groups * Factor, Most, Factor>(needed, f);
  }
  return f(std::integral_constant<int, (Groups < Most ? Groups : Most)>());
}

template <class S>
cudaError_t run_columns(const Softmax& call, const Device& device, cudaStream_t stream) {
  const auto run = [&](auto kernel, int most) {
    const int columns = next_power_of_two(call.size[0], most);
    const int64_t of_line = (call.size[0] + columns - 1) / columns;
    const int64_t pieces = call.rows() / call.size[0] * of_line;
    return launch(kernel, grid_for(pieces, device, columns * kColumnSteps),
                  dim3(static_cast<unsigned>(columns), kColumnSteps), 0, stream, call, pieces, of_line);
  };
  if (call.length > kShortRow<S>) return run(softmax_long_columns<S>, kLongColumns<S>);
  const int64_t chunk = kColumnSteps * kPack<S>;
  return with_groups<1, kMaxGroups<S>, 2>((call.length + chunk - 1) / chunk, [&](auto groups) {
    return run(softmax_columns<S, groups()>, kColumns<S, groups()>);
  });
}
template <class S, bool Aligned>
cudaError_t run_rows(const Softmax& call, const Device& device, cudaStream_t stream) {
  const int64_t rows = call.rows(), groups_of_row = (call.length + kPack<S> - 1) / kPack<S>;
  if (call.length <= kShortRow<S>) {
    const int width = next_power_of_two(groups_of_row, kWarp);
    const int64_t of_block = kWarpsOfBlock * kWarp / width;
    const dim3 grid = grid_for((rows + of_block - 1) / of_block, device, kWarpsOfBlock * kWarp);
    return with_groups<1, kMaxGroups<S>, 2>((groups_of_row + width - 1) / width, [&](auto groups) {
      return launch(softmax_warp<S, groups(), Aligned>, grid, dim3(kWarpsOfBlock * kWarp), 0, stream, call,
                    rows, width);
    });
  }
  const dim3 grid = grid_for(rows, device, kRowThreads), block(kRowThreads);
  if (call.length > kLongRow<S>) return launch(softmax_long<S, Aligned>, grid, block, 0, stream, call, rows);
  return with_groups<1, kMaxGroups<S>, 8>((groups_of_row + kRowThreads - 1) / kRowThreads, [&](auto groups) {
    return launch(softmax_block<S, groups(), Aligned>, grid, block, 0, stream, call, rows);
  });
}
template <class S>
cudaError_t run(const Softmax& call, const Device& device, cudaStream_t stream) {
  const Path path = path_of<S>(call);
  if (path == Path::columns || path == Path::long_columns) return run_columns<S>(call, device, stream);
  return in_packs<S>(call) ? run_rows<S, true>(call, device, stream)
                           : run_rows<S, false>(call, device, stream);
}

} // namespace rowwise

inline Path softmax_path(const Softmax& call) {
  return with_floating(call.dtype, [&](auto s) { return rowwise::path_of<decltype(s)>(call); });
}
// Not for no rows, or rows of no elements.
inline cudaError_t softmax(const Softmax& call, const Device& device, cudaStream_t stream) {
  return with_floating(call.dtype, [&](auto s) { return rowwise::run<decltype(s)>(call, device, stream); });
}

} // namespace inplace_ext::cuda
