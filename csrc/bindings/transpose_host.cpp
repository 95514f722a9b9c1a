// The ways that the CPU goes: through a buffer that stays in cache.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "parallel.h"
#include "transpose.h"

namespace inplace_ext {

// As much as a second-level cache holds beside other things, and with the edges under 1% of 64 MB. No less
// than kMinPanelBytes: a square of wide lines, of any item, has to fit.
int64_t panel_bytes = 384 << 10;

namespace {

// Matrices of so many bytes are turned in a buffer on the stack of their thread.
constexpr int64_t kStackBytes = 16 << 10;
// What is left of a side is no larger than this where it can be cut so; of both sides together no larger than
// twice that, but for matrices which only the last way is left for.
constexpr int64_t kEdgeBytes = 96 << 10;
// Bytes of rows that are moved by all threads at a time.
constexpr int64_t kRowsBytes = 128 << 10;
// Blocks of at least so many bytes are moved by themselves: about as fast as memory allows.
constexpr int64_t kWideBytes = 256;
// The leaders of the cycles of so many blocks are found once for all threads and written down.
constexpr int64_t kMaxLeaders = 1 << 18;
// The share of a block that a thread moves, at least.
constexpr int64_t kMinPiece = 256;
// Ways to cut a side that are looked at.
constexpr int kMaxCuts = 512;
int64_t ceil_div(int64_t a, int64_t b) {
  return (a + b - 1) / b;
}

// What a number of bytes costs in the units of parallel().
int64_t cost_of(int64_t bytes) {
  return std::max<int64_t>(bytes / 4, 1);
}

// The bytes of as many blocks as make a wide one.
int64_t wide(int64_t bytes) {
  return ceil_div(kWideBytes, bytes) * bytes;
}

} // namespace

HostTransposer::HostTransposer(const CpuKernels& kernels)
    : Transposer(panel_bytes), kernels_(kernels), threads_(at::get_num_threads()) {}

char* HostTransposer::allocate(int64_t bytes) {
  memory_.reset(new char[bytes]);
  return memory_.get();
}

double HostTransposer::passes(const Swap& s) const {
  if (s.rows == 1 || s.columns == 1) return 0;
  const double odd = s.bytes >= kWideBytes || (s.bytes & (s.bytes - 1)) == 0 ? 1 : 1.3;
  if (s.matrix_bytes() <= panel_) return odd;
  if (s.rows == s.columns) return 1.2 * odd;
  if (s.bytes >= kWideBytes) return 1.3;
  return (std::min(s.rows, s.columns) * wide(s.bytes) <= panel_ ? 2.3 : 3.3) * odd;
}

// ---- what a pass is made of -----------------------------------------------------------------------------

// Shared by the threads along the longer side.
void HostTransposer::turn(const Turn& t) {
  if (planning_) return;
  const bool by_rows = t.rows >= t.columns;
  const int64_t n = by_rows ? t.rows : t.columns, across = by_rows ? t.columns : t.rows;
  parallel(n, cost_of(across * t.bytes), [&](int64_t begin, int64_t end) {
    Turn part = t;
    (by_rows ? part.rows : part.columns) = end - begin;
    part.from += begin * (by_rows ? t.from_stride : t.bytes);
    part.to += begin * (by_rows ? t.bytes : t.to_stride);
    kernels_.turn(part);
  });
}

void HostTransposer::copy(char* to, const char* from, int64_t bytes) {
  if (planning_) return;
  constexpr int64_t kUnit = 4096;
  parallel(ceil_div(bytes, kUnit), cost_of(kUnit), [&](int64_t begin, int64_t end) {
    std::memcpy(to + begin * kUnit, from + begin * kUnit, std::min(bytes, end * kUnit) - begin * kUnit);
  });
}

void HostTransposer::repitch(char* data, int64_t rows, int64_t bytes, int64_t from_pitch, int64_t to_pitch) {
  if (from_pitch == to_pitch) return;
  // Read by all threads, then written by all.
  if (threads_ > 1) return repitch_by(kRowsBytes, data, rows, bytes, from_pitch, to_pitch);
  const bool down = to_pitch < from_pitch;
  for (int64_t i = 0; i < rows && !planning_; ++i) {
    const int64_t row = down ? i : rows - 1 - i;
    std::memmove(data + row * to_pitch, data + row * from_pitch, bytes);
  }
}

// By the program of a move, which knows all strides. No chunk reaches further down than what it is read
// from, nor up to where the next one lies.
void HostTransposer::gather(char* data, const Gather& g, int64_t item) {
  path_ = Path::gathered;
  const int64_t chunk = std::max<int64_t>(panel_ / (g.unit * item), 1) * g.unit;
  const Scratch panel(*this, chunk * item);
  if (planning_) return;
  Program move{};
  Space space{};
  const int64_t words = move_of(g, item, move, space);
  space.tensor[1].data = data;
  const int64_t total = space.numel() / words;
  for (int64_t first = 0; first < total; first += chunk) {
    const int64_t n = std::min(chunk, total - first);
    // The program counts from the first element of the space.
    space.tensor[0].data = reinterpret_cast<char*>(reinterpret_cast<intptr_t>(panel.data()) - first * item);
    parallel(n * words, 1, [&](int64_t begin, int64_t end) {
      kernels_.run(move, space, first * words + begin, first * words + end);
    });
    copy(data + first * item, panel.data(), n * item);
  }
}

// ---- ways to transpose ----------------------------------------------------------------------------------

void HostTransposer::transpose(char* data, const Swap& s) {
  if (s.rows == 1 || s.columns == 1 || s.batch == 0) return;
  if (s.matrix_bytes() <= panel_) return buffered(data, s);
  if (s.rows == s.columns) return tiles(data, s);
  if (s.bytes >= kWideBytes) return cycles(data, s);
  const int64_t row = s.columns * s.bytes, column = s.rows * s.bytes; // of the matrix and of the result
  if (const int64_t shorter = std::min(row, column); shorter / s.bytes * wide(s.bytes) <= panel_) {
    int64_t most = panel_ / shorter;
    if (most / threads_ * s.bytes >= kWideBytes) most /= threads_;
    const Cut c = cut(std::max(s.rows, s.columns), ceil_div(kWideBytes, s.bytes), most, shorter);
    if (c.rest * shorter <= 2 * kEdgeBytes) {
      each(data, s, [&](char* m, const Swap& one) {
        s.rows < s.columns ? wide_strips(m, one, c) : tall_strips(m, one, c);
      });
      path_ = Path::strips;
      return;
    }
  }
  // Lines of at least half a cache line, blocks that are wide, and panels that fit.
  const auto least = std::max<int64_t>(32 / s.bytes, std::ceil(std::sqrt(kWideBytes / double(s.bytes))));
  if (least * std::max(row, column) <= panel_) {
    const int64_t most = std::max(128 / s.bytes, least);
    const Cut down = cut(s.rows, least, std::min(most, panel_ / row), row);
    const Cut across = cut(s.columns, least, std::min(most, panel_ / column), column);
    if (down.rest * row + across.rest * column <= 2 * kEdgeBytes) {
      each(data, s, [&](char* m, const Swap& one) { panels(m, one, down, across); });
      path_ = Path::panels;
      return;
    }
  }
  const int64_t part = ceil_div(kWideBytes, s.bytes);
  const int64_t most = std::min<int64_t>(2 * part, std::sqrt(panel_ / s.bytes));
  const Cut down = cut(s.rows, part, most, row), across = cut(s.columns, part, most, column);
  each(data, s, [&](char* m, const Swap& one) { large_panels(m, one, down, across); });
  path_ = Path::large_panels;
}

// The longest parts, of at least `least` and at most `most`, that leave nothing; else the longest that leave
// no more than an edge may have, at `rest_bytes` each; else those that leave the least.
Transposer::Cut HostTransposer::cut(int64_t side, int64_t least, int64_t most, int64_t rest_bytes) {
  most = std::min(most, side);
  Cut best{most, side / most, side % most};
  int64_t part = most;
  for (int i = 0; i < kMaxCuts && best.rest > 0 && part > least; ++i) {
    // The longest that leaves less with one part more.
    part = std::min(part - 1, side / (side / part + 1));
    if (part < least) break;
    const int64_t rest = side % part;
    if (rest == 0 || (best.rest * rest_bytes > kEdgeBytes && rest < best.rest))
      best = {part, side / part, rest};
  }
  return best;
}

// A matrix that fits the buffer: turned into it and copied back.
void HostTransposer::buffered(char* data, const Swap& s) {
  path_ = Path::buffered;
  const int64_t m = s.matrix_bytes();
  const bool on_stack = m <= kStackBytes, apart = on_stack || (s.batch > 1 && m * threads_ <= panel_);
  const Scratch panel(*this, on_stack ? 0 : apart ? m * threads_ : m);
  if (planning_) return;
  const auto turned = [&](char* buffer, const char* from) {
    return Turn{buffer, s.rows * s.bytes, from, s.columns * s.bytes, s.rows, s.columns, s.bytes};
  };
  if (!apart) {
    for (int64_t i = 0; i < s.batch; ++i) {
      turn(turned(panel.data(), data + i * m));
      copy(data + i * m, panel.data(), m);
    }
    return;
  }
  parallel(s.batch, cost_of(m), [&](int64_t begin, int64_t end) {
    alignas(64) char own[kStackBytes];
    char* const buffer = on_stack ? own : panel.data() + at::get_thread_num() % threads_ * m;
    for (int64_t i = begin; i < end; ++i) {
      kernels_.turn(turned(buffer, data + i * m));
      std::memcpy(data + i * m, buffer, m);
    }
  });
}

// A square: what lies on both sides of the diagonal is swapped.
void HostTransposer::tiles(char* data, const Swap& s) {
  path_ = Path::tiles;
  if (planning_) return;
  const int64_t units = kernels_.square_units(s.rows, s.bytes);
  parallel(s.batch * units, cost_of(s.matrix_bytes() / units), [&](int64_t begin, int64_t end) {
    while (begin < end) {
      const int64_t i = begin / units, first = begin % units, n = std::min(end - begin, units - first);
      kernels_.swap_square({data + i * s.matrix_bytes(), s.rows, s.columns, s.bytes}, first, first + n);
      begin += n;
    }
  });
}

// Wide blocks: each to its place, along the cycles of the permutation. Threads share the bytes of the blocks.
void HostTransposer::cycles(char* data, const Swap& s) {
  path_ = Path::cycles;
  const int64_t blocks = s.rows * s.columns, words = ceil_div(blocks, 64);
  const bool marked = blocks <= kMaxLeaders;
  const Scratch marks(*this, marked ? 2 * words * sizeof(uint64_t) : 0);
  if (planning_) return;
  uint64_t* leaders = nullptr;
  if (marked) {
    leaders = reinterpret_cast<uint64_t*>(marks.data());
    std::fill_n(leaders, 2 * words, 0);
    kernels_.find_leaders({data, s.rows, s.columns, s.bytes}, leaders, leaders + words);
  }
  const int64_t wanted = std::clamp<int64_t>(ceil_div(2 * threads_, s.batch), 1, s.bytes / kMinPiece);
  const int64_t piece = ceil_div(ceil_div(s.bytes, std::max<int64_t>(wanted, 1)), 64) * 64;
  const int64_t pieces = ceil_div(s.bytes, piece);
  parallel(s.batch * pieces, cost_of(blocks * piece), [&](int64_t begin, int64_t end) {
    for (int64_t unit = begin; unit < end; ++unit) {
      const int64_t i = unit / pieces, at = unit % pieces * piece;
      kernels_.move_cycles({data + i * s.matrix_bytes(), s.rows, s.columns, s.bytes}, leaders, at,
                           std::min(at + piece, s.bytes));
    }
  });
}

// Many of both: panels of a few rows are turned in the buffer, which makes blocks of them; the blocks change
// places; panels of blocks are turned. The first and the last pass also move the data together, so that the
// blocks lie without gaps, and apart again.
void HostTransposer::panels(char* data, const Swap& s, const Cut& down, const Cut& across) {
  const int64_t row = s.columns * s.bytes, column = s.rows * s.bytes; // of the matrix and of the result
  const int64_t rest = down.rest * s.bytes, block = down.part * s.bytes;
  const Scratch bottom(*this, s.columns * rest), right(*this, across.rest * column);
  if (rest > 0) turn({bottom.data(), rest, data + down.whole() * row, row, down.rest, s.columns, s.bytes});
  {
    const Scratch panel(*this, s.columns * block);
    const int64_t inner = across.whole() * block;
    for (int64_t i = 0; i < down.parts && !planning_; ++i) {
      turn({panel.data(), block, data + i * down.part * row, row, down.part, s.columns, s.bytes});
      copy(data + i * inner, panel.data(), inner);
      spread(right.data() + i * block, column, panel.data() + inner, across.rest, block);
    }
  }
  if (!planning_)
    spread(right.data() + down.whole() * s.bytes, column, bottom.data() + across.whole() * rest, across.rest,
           rest);
  transpose(data, {1, down.parts, across.parts, across.part * block});
  {
    const Scratch panel(*this, across.part * column);
    const int64_t inner = across.part * down.whole() * s.bytes;
    for (int64_t j = across.parts - 1; j >= 0 && !planning_; --j) {
      turn({panel.data(), column, data + j * inner, across.part * block, down.parts, across.part, block});
      spread(panel.data() + down.whole() * s.bytes, column, bottom.data() + j * across.part * rest,
             across.part, rest);
      copy(data + j * across.part * column, panel.data(), across.part * column);
    }
  }
  copy(data + across.whole() * column, right.data(), across.rest * column);
}

} // namespace inplace_ext
