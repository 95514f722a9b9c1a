// dropout in place or into a tensor of the same layout, for any layout, with the mask of philox.h.
//
// A thread draws the numbers of the elements it has in a pack of 16 bytes, two Philox blocks at most for each
// four of them, and no mask is kept. Where elements are not to be had in packs, the lanes of a warp draw the
// blocks of 128 elements of a line in turn and hand the numbers over, so that lanes next to each other touch
// elements next to each other; and lines next to each other are worked on together where the elements of
// each lie apart.
#pragma once
#include "draws.cuh"
#include "inplace_ext/philox.h"
#include "rows.cuh"

namespace inplace_ext::cuda {

namespace draws {

constexpr int kThreads = 256;
constexpr int kWarpDraws = kWarp * philox::kWords;                // a warp's at a time
constexpr int kTileLines = kWarp, kTileGroups = kThreads / kWarp; // of a block, where lines lie side by side

struct Generator {
  uint64_t seed, offset;
  IE_DEVICE explicit Generator(const Draws& from) {
    const Draws known = resolved(from);
    seed = known.seed, offset = known.offset;
  }

  // The numbers of block n.
  IE_DEVICE void block(uint64_t n, uint32_t* number) const {
    const philox::Block<uint64_t> b = philox::block(philox::counter(offset + n), seed);
    IE_UNROLL(4)
    for (int w = 0; w < philox::kWords; ++w) number[w] = static_cast<uint32_t>(b.word[w]) & philox::kMaxDraw;
  }
  IE_DEVICE uint32_t one(uint64_t place) const {
    uint32_t number[philox::kWords];
    block(place / philox::kWords, number);
    return pick(number, static_cast<int>(place % philox::kWords));
  }
  // Those of N places from `place` on, which may lie before the first: what is drawn for them counts nothing.
  template <int N>
  IE_DEVICE void several(int64_t place, uint32_t* number) const {
    constexpr int kBlocks = (N + philox::kWords - 1) / philox::kWords;
    uint32_t drawn[(kBlocks + 1) * philox::kWords] = {};
    const int lead = static_cast<int>(place & (philox::kWords - 1));
    const auto first = static_cast<uint64_t>(place >> 2);
    IE_UNROLL(4)
    for (int b = 0; b < kBlocks; ++b) block(first + b, drawn + b * philox::kWords);
    if (lead + N > kBlocks * philox::kWords) block(first + kBlocks, drawn + kBlocks * philox::kWords);
    IE_UNROLL(8)
    for (int i = 0; i < N; ++i) number[i] = pick(drawn + i, lead);
  }
  // number[i] for i from 0 to 3, from registers.
  IE_DEVICE static uint32_t pick(const uint32_t* number, int i) {
    const uint32_t low = i % 2 == 0 ? number[0] : number[1], high = i % 2 == 0 ? number[2] : number[3];
    return i < 2 ? low : high;
  }
};

template <class S>
struct Dropper {
  using C = ComputeOf<S>;
  C scale, kept, dropped;
  uint32_t threshold;
  bool shifts;
  IE_DEVICE explicit Dropper(const Dropout& call)
      : scale(static_cast<C>(call.scale)),
        kept(static_cast<C>(call.kept)),
        dropped(static_cast<C>(call.dropped)),
        threshold(call.threshold),
        shifts(call.shifts) {}
  IE_DEVICE S operator()(S x, uint32_t number) const {
    const bool keep = number >= threshold;
    const C v = cast<C>(x) * (keep ? scale : C(0));
    return cast<S>(shifts ? v + (keep ? kept : dropped) : v);
  }
};

// Line l along dims `from` and on.
IE_DEVICE void place_of_line(const Dropout& call, int64_t l, int from, int64_t& x, int64_t& place) {
  x = place = 0;
  for (int d = from; d < call.dims; ++d) {
    const int64_t next = d == call.dims - 1 ? 0 : divide(l, call.size[d]), i = l - next * call.size[d];
    x += i * call.step[d];
    place += i * call.place[d];
    l = next;
  }
}

template <class S>
IE_DEVICE void drop_element(const Dropout& call, const Dropper<S>& drop, char* x, uint32_t number) {
  const S value = load_global(reinterpret_cast<const S*>(x));
  store_global(reinterpret_cast<S*>(x + call.shift), drop(value, number));
}

// ---- kernels ----------------------------------------------------------------------------------------------

// Lines of neighbours, the first of which lies where a pack does or `head` elements after it.
template <class S>
IE_GLOBAL void IE_LAUNCH_BOUNDS(kThreads, 4)
    dropout_packs(IE_GRID_CONSTANT const Dropout call, const int64_t packs, const int64_t packs_of_line) {
  constexpr int N = kPack<S>;
  const Generator generator(call.from);
  const Dropper<S> drop(call);
  const int64_t all = static_cast<int64_t>(gridDim.x) * kThreads;
  for (int64_t p = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; p < packs; p += all) {
    const int64_t line = call.dims == 1 ? 0 : divide(p, packs_of_line);
    int64_t at, place;
    place_of_line(call, line, 1, at, place);
    char* const x = call.data + at;
    const auto head = static_cast<int>(reinterpret_cast<uintptr_t>(x) % kPackBytes / sizeof(S));
    const int64_t i = (p - line * packs_of_line) * N - head;
    if (i >= call.size[0]) continue; // the last pack of a line that had no need of it
    uint32_t number[N];
    if (call.place[0] == 0) {
      const uint32_t one = generator.one(static_cast<uint64_t>(place));
      IE_UNROLL(8)
      for (int j = 0; j < N; ++j) number[j] = one;
    } else {
      generator.several<N>(place + i, number);
    }
    char* const from = x + i * static_cast<int64_t>(sizeof(S));
    if (i >= 0 && i + N <= call.size[0]) {
      const Pack<S, N> in = read_pack<S, N>(from);
      Pack<S, N> out{};
      IE_UNROLL(8)
      for (int j = 0; j < N; ++j) out.set(j, drop(in.get(j), number[j]));
      write_pack<S, N>(from + call.shift, out);
    } else {
      IE_UNROLL(8)
      for (int j = 0; j < N; ++j) {
        if (i + j >= 0 && i + j < call.size[0])
          drop_element(call, drop, from + j * static_cast<int>(sizeof(S)), number[j]);
      }
    }
  }
}

// Lines of any step, a warp for each `chunk` of one. A chunk begins where a block of the generator does.
template <class S>
IE_GLOBAL void IE_LAUNCH_BOUNDS(kThreads, 4)
    dropout_lanes(IE_GRID_CONSTANT const Dropout call, const int64_t chunks, const int64_t chunks_of_line) {
  const Generator generator(call.from);
  const Dropper<S> drop(call);
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int64_t all = static_cast<int64_t>(gridDim.x) * (kThreads / kWarp);
  for (int64_t c = (static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x) / kWarp; c < chunks;
       c += all) {
    const int64_t line = divide(c, chunks_of_line);
    int64_t at, place;
    place_of_line(call, line, 1, at, place);
    const bool same = call.place[0] == 0;
    const int64_t lead = same ? 0 : place % philox::kWords;
    const int64_t first = (c - line * chunks_of_line) * kWarpDraws - lead;
    uint32_t own[philox::kWords];
    generator.block(static_cast<uint64_t>(same ? place : place + first) / philox::kWords +
                        (same ? 0 : static_cast<uint64_t>(lane)),
                    own);
    const int word = static_cast<int>(same ? place : lane) % philox::kWords;
    IE_UNROLL(4)
    for (int j = 0; j < philox::kWords; ++j) {
      uint32_t given[philox::kWords];
      IE_UNROLL(4)
      for (int w = 0; w < philox::kWords; ++w)
        given[w] = __shfl_sync(kAllLanes, own[w], (j * kWarp + lane) / philox::kWords);
      const int64_t i = first + j * kWarp + lane;
      if (i >= 0 && i < call.size[0])
        drop_element(call, drop, call.data + at + i * call.step[0], Generator::pick(given, word));
    }
  }
}

// Lines side by side: a lane has four elements of its own line.
template <class S>
IE_GLOBAL void IE_LAUNCH_BOUNDS(kThreads, 4)
    dropout_tiles(IE_GRID_CONSTANT const Dropout call, const int64_t tiles, const int64_t tiles_along,
                  const int64_t tiles_across) {
  const Generator generator(call.from);
  const Dropper<S> drop(call);
  const int lane = static_cast<int>(threadIdx.x) % kWarp, group = static_cast<int>(threadIdx.x) / kWarp;
  for (int64_t tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
    const int64_t row = divide(tile, tiles_across), outer = divide(row, tiles_along);
    const int64_t line = (tile - row * tiles_across) * kTileLines + lane;
    const int64_t i = ((row - outer * tiles_along) * kTileGroups + group) * philox::kWords;
    if (line >= call.size[1] || i >= call.size[0]) continue;
    int64_t at, place;
    place_of_line(call, outer, 2, at, place);
    char* const x = call.data + at + line * call.step[1] + i * call.step[0];
    uint32_t number[philox::kWords];
    generator.several<philox::kWords>(place + line * call.place[1] + i, number);
    IE_UNROLL(4)
    for (int j = 0; j < philox::kWords; ++j) {
      if (i + j < call.size[0]) drop_element(call, drop, x + j * call.step[0], number[j]);
    }
  }
}

// ---- the choice of a kernel -------------------------------------------------------------------------------

template <class S>
Path path_of(const Dropout& call) {
  if (call.step[0] == sizeof(S)) return Path::draws;
  const bool side_by_side = call.dims > 1 && call.step[1] == sizeof(S) && call.place[0] != 0;
  return side_by_side ? Path::tiled_draws : Path::gathered_draws;
}
inline int64_t pieces_of(int64_t n, int64_t piece) {
  return (n + piece - 1) / piece;
}

template <class S>
cudaError_t run(const Dropout& call, const Device& device, cudaStream_t stream) {
  const int64_t length = call.size[0], lines = call.lines();
  const Path path = path_of<S>(call);
  if (path == Path::tiled_draws) {
    const int64_t along = pieces_of(length, kTileGroups * philox::kWords);
    const int64_t across = pieces_of(call.size[1], kTileLines);
    const int64_t tiles = lines / call.size[1] * along * across;
    return launch(dropout_tiles<S>, grid_for(tiles, device, kThreads), dim3(kThreads), 0, stream, call, tiles,
                  along, across);
  }
  if (path == Path::draws && is_aligned(call.shift)) {
    constexpr int N = kPack<S>;
    bool aligned = is_aligned(call.data);
    for (int d = 1; d < call.dims; ++d) aligned = aligned && (call.size[d] == 1 || is_aligned(call.step[d]));
    // Of a line that begins within a pack there may be one pack more.
    const int64_t of_line = pieces_of(length + (aligned ? 0 : N - 1), N), packs = lines * of_line;
    return launch(dropout_packs<S>, grid_for(pieces_of(packs, kThreads), device, kThreads), dim3(kThreads), 0,
                  stream, call, packs, of_line);
  }
  const int64_t of_line = pieces_of(length + (call.place[0] == 0 ? 0 : philox::kWords - 1), kWarpDraws);
  const int64_t chunks = lines * of_line;
  return launch(dropout_lanes<S>, grid_for(pieces_of(chunks, kThreads / kWarp), device, kThreads),
                dim3(kThreads), 0, stream, call, chunks, of_line);
}

} // namespace draws

inline Path dropout_path(const Dropout& call) {
  return with_floating(call.dtype, [&](auto s) { return draws::path_of<decltype(s)>(call); });
}
// Not for a call without elements.
inline cudaError_t dropout(const Dropout& call, const Device& device, cudaStream_t stream) {
  return with_floating(call.dtype, [&](auto s) { return draws::run<decltype(s)>(call, device, stream); });
}

} // namespace inplace_ext::cuda
