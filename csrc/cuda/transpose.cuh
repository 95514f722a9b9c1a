// What the change of a layout in place is made of: matrices of blocks of bytes turned on their way, squares
// swapped across the diagonal, and blocks moved along the cycles of the permutation. Nothing is computed: an
// element is so many bytes, and they move in words of up to 16.
#pragma once
#include <algorithm>

#include "rows.cuh"

namespace inplace_ext::cuda {

namespace layouts {

constexpr int kThreads = 256;
constexpr int kAhead = 4; // words that a thread has on their way
constexpr int64_t kTileBytes = 17 << 10;

// A word in shared memory: of four bytes at least, so that lanes beside each other find theirs in different
// banks.
template <int W>
using Slot = std::conditional_t<(W < 4), uint32_t, Chunk<W>>;

template <int W>
IE_DEVICE Slot<W> load_word(const char* p) {
  const auto word = load_global(reinterpret_cast<const Chunk<W>*>(p));
  if constexpr (W < 4) {
    return word.word[0];
  } else {
    return word;
  }
}
template <int W>
IE_DEVICE void store_word(char* p, Slot<W> slot) {
  Chunk<W> word;
  if constexpr (W < 4) {
    word.word[0] = static_cast<typename Chunk<W>::Word>(slot);
  } else {
    word = slot;
  }
  store_global(reinterpret_cast<Chunk<W>*>(p), word);
}

// f(the bytes of a word as a constant).
template <class F>
cudaError_t with_word(int bytes, const F& f) {
  switch (bytes) {
    case 1:
      return f(std::integral_constant<int, 1>{});
    case 2:
      return f(std::integral_constant<int, 2>{});
    case 4:
      return f(std::integral_constant<int, 4>{});
    case 8:
      return f(std::integral_constant<int, 8>{});
    default:
      return f(std::integral_constant<int, 16>{});
  }
}

// ---- tiles ----------------------------------------------------------------------------------------------

// The words of rows `pitch` bytes apart into shared memory, where they are `stride` slots apart.
template <int W, class Tile>
IE_DEVICE void load_rows(const Tile& tile, const char* from, int64_t pitch, uint32_t rows, uint32_t words,
                         uint32_t stride) {
  IE_UNROLL(4)
  for (uint32_t at = threadIdx.x; at < rows * words; at += kThreads) {
    const uint32_t row = at / words, word = at - row * words;
    tile[row * stride + word] = load_word<W>(from + row * pitch + word * W);
  }
}
// `group` matrices of rows x columns blocks, which lie in shared memory one below the other, turned: the
// columns of all of them, `pitch` bytes apart.
template <int W, class Tile>
IE_DEVICE void store_turned(const Tile& tile, char* to, int64_t pitch, uint32_t rows, uint32_t columns,
                            uint32_t words, uint32_t stride, uint32_t group) {
  const uint32_t length = rows * words;
  IE_UNROLL(4)
  for (uint32_t at = threadIdx.x; at < group * columns * length; at += kThreads) {
    const uint32_t line = at / length, within = at - line * length;
    const uint32_t block = words == 1 ? within : within / words, word = within - block * words;
    const uint32_t matrix = group == 1 ? 0 : line / columns, column = line - matrix * columns;
    const Slot<W> slot = tile[(matrix * rows + block) * stride + column * words + word];
    store_word<W>(to + line * pitch + within * W, slot);
  }
}

struct Tiles {
  const char* from;
  char* to;
  int64_t from_pitch, to_pitch, from_step, to_step; // bytes to the next row and to the next matrix
  int64_t rows, columns, batch;                     // in blocks
  uint32_t words;                                   // of a block
  uint32_t tile_rows, tile_columns, stride;
  uint32_t group; // matrices of a tile; of more than one it holds the whole
};

// A tile is read whole before any of it is written: where it is a whole matrix, `to` may be `from`.
template <int W>
IE_GLOBAL void IE_LAUNCH_BOUNDS(kThreads, 4) turn_tiles(IE_GRID_CONSTANT const Tiles t) {
  IE_DYNAMIC_SHARED(Slot<W>, tile);
  const int64_t down = (t.rows + t.tile_rows - 1) / t.tile_rows;
  const int64_t across = (t.columns + t.tile_columns - 1) / t.tile_columns;
  const int64_t tiles = (t.batch + t.group - 1) / t.group * down * across;
  const int64_t bytes = static_cast<int64_t>(t.words) * W;
  for (int64_t at = blockIdx.x; at < tiles; at += gridDim.x) {
    const int64_t line = divide(at, across), column = (at - line * across) * t.tile_columns;
    const int64_t groups = divide(line, down), row = (line - groups * down) * t.tile_rows;
    const int64_t matrix = groups * t.group;
    const auto least = [](int64_t a, int64_t b) { return static_cast<uint32_t>(a < b ? a : b); };
    const uint32_t rows = least(t.tile_rows, t.rows - row), group = least(t.group, t.batch - matrix);
    const uint32_t columns = least(t.tile_columns, t.columns - column);
    load_rows<W>(tile, t.from + matrix * t.from_step + row * t.from_pitch + column * bytes, t.from_pitch,
                 rows * group, columns * t.words, t.stride);
    __syncthreads();
    store_turned<W>(tile, t.to + matrix * t.to_step + column * t.to_pitch + row * bytes, t.to_pitch, rows,
                    columns, t.words, t.stride, group);
    __syncthreads();
  }
}

struct Squares {
  char* data;
  int64_t step, side, batch; // bytes to the next matrix; blocks
  uint32_t words, tile, stride;
};

// A tile and the one across the diagonal change places. The triangle of pairs is folded: row r and the r-th
// from below have together one more than a row has tiles.
template <int W>
IE_GLOBAL void IE_LAUNCH_BOUNDS(kThreads, 4) swap_tiles(IE_GRID_CONSTANT const Squares s) {
  IE_DYNAMIC_SHARED(Slot<W>, upper);
  const auto lower = upper + static_cast<int64_t>(s.tile) * s.stride;
  const int64_t tiles = (s.side + s.tile - 1) / s.tile, folded = (tiles + 1) / 2 * (tiles + 1);
  const int64_t bytes = static_cast<int64_t>(s.words) * W, pitch = s.side * bytes;
  for (int64_t at = blockIdx.x; at < s.batch * folded; at += gridDim.x) {
    const int64_t matrix = divide(at, folded), pair = at - matrix * folded;
    int64_t row = divide(pair, tiles + 1), column = row + (pair - row * (tiles + 1));
    if (column >= tiles) {
      if (tiles - 1 - row == row) continue; // the row in the middle is alone
      row = tiles - 1 - row;
      column += row - tiles;
    }
    const auto extent = [&](int64_t first) {
      const int64_t rest = s.side - first * s.tile;
      return static_cast<uint32_t>(rest < s.tile ? rest : s.tile);
    };
    const uint32_t rows = extent(row), columns = extent(column);
    char* const data = s.data + matrix * s.step;
    char* const above = data + row * s.tile * pitch + column * s.tile * bytes;
    char* const below = data + column * s.tile * pitch + row * s.tile * bytes;
    load_rows<W>(upper, above, pitch, rows, columns * s.words, s.stride);
    if (row != column) load_rows<W>(lower, below, pitch, columns, rows * s.words, s.stride);
    __syncthreads();
    store_turned<W>(upper, below, pitch, rows, columns, s.words, s.stride, 1);
    if (row != column) store_turned<W>(lower, above, pitch, columns, rows, s.words, s.stride, 1);
    __syncthreads();
  }
}

// ---- blocks ---------------------------------------------------------------------------------------------

// The lanes that move a block together, and the parts of a block that they take at a time.
struct Teams {
  int64_t words, slices; // of a block
  uint32_t lanes;
};
inline Teams teams_of(int64_t words, int at_once) {
  uint32_t lanes = 1;
  while (lanes < kWarp && lanes < words) lanes *= 2;
  const int64_t slice = lanes * at_once;
  return {words, (words + slice - 1) / slice, lanes};
}

struct Blocks {
  const char* from;
  char* to;
  int64_t from_pitch, to_pitch, from_step, to_step;
  int64_t rows, columns, batch;
  Teams teams;
};

// Block (i, j) becomes block (j, i), each as a whole.
template <int W>
IE_GLOBAL void IE_LAUNCH_BOUNDS(kThreads, 4) copy_blocks(IE_GRID_CONSTANT const Blocks b) {
  const uint32_t lane = threadIdx.x % b.teams.lanes;
  const int64_t units = b.batch * b.rows * b.columns * b.teams.slices, bytes = b.teams.words * W;
  const int64_t teams = static_cast<int64_t>(gridDim.x) * kThreads / b.teams.lanes;
  for (int64_t unit = (static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x) / b.teams.lanes;
       unit < units; unit += teams) {
    const int64_t block = divide(unit, b.teams.slices), slice = unit - block * b.teams.slices;
    const int64_t line = divide(block, b.columns), column = block - line * b.columns;
    const int64_t matrix = divide(line, b.rows), row = line - matrix * b.rows;
    const char* const from = b.from + matrix * b.from_step + row * b.from_pitch + column * bytes;
    char* const to = b.to + matrix * b.to_step + column * b.to_pitch + row * bytes;
    const int64_t first = slice * b.teams.lanes * kAhead + lane;
    Slot<W> words[kAhead];
    IE_UNROLL(4)
    for (int i = 0; i < kAhead; ++i) {
      const int64_t word = first + i * b.teams.lanes;
      if (word < b.teams.words) words[i] = load_word<W>(from + word * W);
    }
    IE_UNROLL(4)
    for (int i = 0; i < kAhead; ++i) {
      const int64_t word = first + i * b.teams.lanes;
      if (word < b.teams.words) store_word<W>(to + word * W, words[i]);
    }
  }
}

// The cycles of the permutation that a transposition is: place p of the result takes the block from
// source(p); places are counted row by row. Of each 2^shift places one is a mark, at which the cycles are
// cut: what was there is kept in `saved` before anything moves, and the piece of a cycle from one mark to the
// next is moved without a word of the others. Without a shift there are no marks.
struct Cycles {
  char* data;
  char* saved;
  int64_t step, batch; // bytes to the next matrix
  uint32_t rows, columns;
  int shift;
  Teams teams;

  IE_HOST_DEVICE uint32_t blocks() const {
    return rows * columns;
  }
  IE_HOST_DEVICE uint32_t marks() const {
    return shift == 0 ? 0 : ((blocks() - 1) >> shift) + 1;
  }
  // Spread as if by chance: the cycles are those of a multiplication, which a regular choice might miss.
  IE_HOST_DEVICE uint32_t mark(uint32_t i) const {
    return i << shift | (i * 0x9e3779b9u) >> (32 - shift);
  }
  IE_HOST_DEVICE bool is_mark(uint32_t p) const {
    return shift != 0 && mark(p >> shift) == p;
  }
  IE_HOST_DEVICE uint32_t source(uint32_t p) const {
    const uint32_t column = p / rows;
    return (p - column * rows) * columns + column;
  }
  // Whether a piece begins at p: at a mark, or at the least place of a cycle that has none.
  IE_HOST_DEVICE bool starts(uint32_t p) const {
    uint32_t q = source(p);
    if (q == p) return false;
    if (is_mark(p)) return true;
    while (q > p && !is_mark(q)) q = source(q);
    return q == p;
  }
};

template <int W>
IE_GLOBAL void IE_LAUNCH_BOUNDS(kThreads, 4) save_marks(IE_GRID_CONSTANT const Cycles c) {
  const uint32_t lane = threadIdx.x % c.teams.lanes;
  const int64_t units = c.batch * c.marks() * c.teams.slices, bytes = c.teams.words * W;
  const int64_t teams = static_cast<int64_t>(gridDim.x) * kThreads / c.teams.lanes;
  for (int64_t unit = (static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x) / c.teams.lanes;
       unit < units; unit += teams) {
    const int64_t block = divide(unit, c.teams.slices);
    const int64_t word = (unit - block * c.teams.slices) * c.teams.lanes + lane;
    const int64_t matrix = divide(block, c.marks());
    const uint32_t p = c.mark(static_cast<uint32_t>(block - matrix * c.marks()));
    if (p >= c.blocks() || word >= c.teams.words) continue;
    store_word<W>(c.saved + block * bytes + word * W,
                  load_word<W>(c.data + matrix * c.step + p * bytes + word * W));
  }
}

// A warp looks for starts among as many places as it has lanes, and its teams move a piece each.
template <int W>
IE_GLOBAL void IE_LAUNCH_BOUNDS(kThreads, 4) move_cycles(IE_GRID_CONSTANT const Cycles c) {
  const uint32_t lane = threadIdx.x % kWarp, team = lane / c.teams.lanes, teams = kWarp / c.teams.lanes;
  const int64_t chunks = (static_cast<int64_t>(c.blocks()) + kWarp - 1) / kWarp;
  const int64_t warps = static_cast<int64_t>(gridDim.x) * (kThreads / kWarp);
  const int64_t bytes = c.teams.words * W;
  for (int64_t unit = (static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x) / kWarp;
       unit < c.batch * c.teams.slices * chunks; unit += warps) {
    const int64_t part = divide(unit, chunks), matrix = divide(part, c.teams.slices);
    const int64_t place = (unit - part * chunks) * kWarp;
    const int64_t word = (part - matrix * c.teams.slices) * c.teams.lanes + lane % c.teams.lanes;
    const bool starts = place + lane < c.blocks() && c.starts(static_cast<uint32_t>(place) + lane);
    unsigned found = __ballot_sync(kAllLanes, starts);
    if (word >= c.teams.words) continue;
    char* const data = c.data + matrix * c.step + word * W;
    const char* const saved = c.saved + matrix * c.marks() * bytes + word * W;
    for (uint32_t i = 0; found != 0; ++i, found &= found - 1) {
      if (i % teams != team) continue;
      const uint32_t first = static_cast<uint32_t>(place) + __ffs(static_cast<int>(found)) - 1;
      // What a cycle without marks ends with.
      Slot<W> own{};
      if (!c.is_mark(first)) own = load_word<W>(data + first * bytes);
      uint32_t p = first;
      for (bool open = true; open;) {
        Slot<W> words[kAhead];
        uint32_t to[kAhead];
        bool moves[kAhead];
        IE_UNROLL(4)
        for (int k = 0; k < kAhead; ++k) {
          moves[k] = open;
          if (!open) continue;
          to[k] = p;
          p = c.source(p);
          const bool mark = c.is_mark(p);
          open = !mark && p != first;
          words[k] =
              open || mark ? load_word<W>(mark ? saved + (p >> c.shift) * bytes : data + p * bytes) : own;
        }
        IE_UNROLL(4)
        for (int k = 0; k < kAhead; ++k) {
          if (moves[k]) store_word<W>(data + to[k] * bytes, words[k]);
        }
      }
    }
  }
}

// The side of a tile, in blocks: lines of at least two sectors where they fit.
inline int64_t side_of(int64_t bytes, int word) {
  const int64_t words = bytes / word, slot = std::max(word, 4);
  int64_t side = bytes <= 2 ? 64 : 32;
  while (side * (side * words | 1) * slot > kTileBytes) side /= 2;
  return side;
}
// Blocks of threads for so many units of as many lanes.
inline dim3 grid_of(int64_t units, int64_t lanes, const Device& device) {
  return grid_for((units * lanes + kThreads - 1) / kThreads, device, kThreads);
}

} // namespace layouts

inline cudaError_t turn(const Turns& batch, const Device& device, cudaStream_t stream) {
  const Turn& t = batch.each;
  int64_t sizes = t.bytes;
  if (t.rows > 1) sizes |= t.from_stride;
  if (t.columns > 1) sizes |= t.to_stride;
  return layouts::with_word(word_of(sizes, t.from, t.to), [&](auto word) {
    constexpr int W = word;
    constexpr auto kSlot = static_cast<int64_t>(sizeof(layouts::Slot<W>));
    const int64_t words = t.bytes / W;
    if (t.from != t.to && (t.bytes >= kWholeBytes || t.rows == 1 || t.columns == 1)) {
      layouts::Blocks b{
          t.from,        t.to,   t.from_stride, t.to_stride, batch.from_step,
          batch.to_step, t.rows, t.columns,     batch.batch, layouts::teams_of(words, layouts::kAhead)};
      // Lines without gaps on both sides are one block.
      if ((t.rows == 1 && t.to_stride == t.bytes) || (t.columns == 1 && t.from_stride == t.bytes)) {
        b.teams = layouts::teams_of(words * t.rows * t.columns, layouts::kAhead);
        b.rows = b.columns = 1;
      }
      const int64_t units = b.batch * b.rows * b.columns * b.teams.slices;
      return launch(layouts::copy_blocks<W>, layouts::grid_of(units, b.teams.lanes, device),
                    dim3(layouts::kThreads), 0, stream, b);
    }
    layouts::Tiles tiles{t.from,
                         t.to,
                         t.from_stride,
                         t.to_stride,
                         batch.from_step,
                         batch.to_step,
                         t.rows,
                         t.columns,
                         batch.batch,
                         static_cast<uint32_t>(words),
                         0,
                         0,
                         0,
                         1};
    const auto shaped = [&](int64_t rows, int64_t columns) {
      tiles.tile_rows = static_cast<uint32_t>(rows);
      tiles.tile_columns = static_cast<uint32_t>(columns);
      tiles.stride = static_cast<uint32_t>(columns * words) | 1;
      return rows * tiles.stride * kSlot;
    };
    int64_t shared;
    if (t.from == t.to) {
      shared = shaped(t.rows, t.columns);
      tiles.group = static_cast<uint32_t>(
          std::clamp<int64_t>(layouts::kTileBytes / shared, 1, std::max<int64_t>(batch.batch, 1)));
      shared *= tiles.group;
    } else {
      const int64_t side = layouts::side_of(t.bytes, W), rows = std::min(t.rows, side);
      const int64_t columns = std::min(t.columns, side);
      shared = rows < side ? shaped(rows, std::min(t.columns, side * side / rows))
                           : shaped(std::min(t.rows, side * side / columns), columns);
    }
    const auto pieces = [](int64_t a, int64_t b) { return (a + b - 1) / b; };
    const int64_t count = pieces(t.rows, tiles.tile_rows) * pieces(t.columns, tiles.tile_columns) *
                          pieces(batch.batch, tiles.group);
    return launch(layouts::turn_tiles<W>, grid_for(count, device, layouts::kThreads), dim3(layouts::kThreads),
                  static_cast<size_t>(shared), stream, tiles);
  });
}

inline cudaError_t swap_squares(const Matrices& batch, const Device& device, cudaStream_t stream) {
  const Matrix& m = batch.first;
  return layouts::with_word(word_of(m.bytes, m.data, nullptr), [&](auto word) {
    constexpr int W = word;
    const int64_t words = m.bytes / W, side = layouts::side_of(m.bytes, W),
                  tiles = (m.rows + side - 1) / side;
    const layouts::Squares s{m.data,
                             m.rows * m.rows * m.bytes,
                             m.rows,
                             batch.batch,
                             static_cast<uint32_t>(words),
                             static_cast<uint32_t>(side),
                             static_cast<uint32_t>(side * words) | 1};
    const int64_t shared = 2 * side * s.stride * static_cast<int64_t>(sizeof(layouts::Slot<W>));
    return launch(layouts::swap_tiles<W>,
                  grid_for(batch.batch * ((tiles + 1) / 2 * (tiles + 1)), device, layouts::kThreads),
                  dim3(layouts::kThreads), static_cast<size_t>(shared), stream, s);
  });
}

inline cudaError_t move_cycles(const Matrices& batch, int shift, void* saved, const Device& device,
                               cudaStream_t stream) {
  const Matrix& m = batch.first;
  return layouts::with_word(word_of(m.bytes, m.data, saved), [&](auto word) {
    constexpr int W = word;
    const layouts::Cycles c{m.data,      static_cast<char*>(saved),        m.rows * m.columns * m.bytes,
                            batch.batch, static_cast<uint32_t>(m.rows),    static_cast<uint32_t>(m.columns),
                            shift,       layouts::teams_of(m.bytes / W, 1)};
    if (shift != 0) {
      const int64_t units = c.batch * c.marks() * c.teams.slices;
      const cudaError_t error = launch(layouts::save_marks<W>, layouts::grid_of(units, c.teams.lanes, device),
                                       dim3(layouts::kThreads), 0, stream, c);
      if (error != cudaSuccess) return error;
    }
    const int64_t warps = c.batch * c.teams.slices * ((m.rows * m.columns + kWarp - 1) / kWarp);
    return launch(layouts::move_cycles<W>, layouts::grid_of(warps, kWarp, device), dim3(layouts::kThreads), 0,
                  stream, c);
  });
}

} // namespace inplace_ext::cuda
