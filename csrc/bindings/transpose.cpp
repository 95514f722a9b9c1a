// In-place transposition of large matrices by a few passes over memory, each of which reads and writes long
// runs of bytes. Catanzaro, Keller and Garland (PPoPP 2014) permute rows and columns, with the longer of them
// as scratch memory; here, as in Gustavson's blocked formats, a matrix is cut into blocks that are turned in
// a buffer in cache and moved whole along the cycles of the permutation of the blocks. What is left over at
// the lower and right edge is kept in scratch memory meanwhile, which prime sides need, and nothing is
// padded.
#include "transpose.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <map>
#include <queue>
#include <utility>

#include "parallel.h"

namespace inplace_ext {

// As much as a second-level cache holds beside other things, and with the edges under 1% of 64 MB. No less
// than kMinPanelBytes: a square of wide lines, of any item, has to fit.
int64_t panel_bytes = 384 << 10;

namespace {

// Matrices of so many bytes are turned in a buffer on the stack of their thread.
constexpr int64_t kStackBytes = 16 << 10;
// Edges are no larger than this where a side can be cut so.
constexpr int64_t kEdgeBytes = 96 << 10;
// Blocks of at least so many bytes are moved by themselves: about as fast as memory allows.
constexpr int64_t kWideBytes = 256;
// The leaders of the cycles of so many blocks are found once for all threads and written down.
constexpr int64_t kMaxLeaders = 1 << 18;
// The share of a block that a thread moves, at least.
constexpr int64_t kMinPiece = 256;
// Ways to cut a side that are looked at.
constexpr int kMaxCuts = 512;
// Dims up to which the cheapest sequence of transpositions is looked for.
constexpr int kMaxSearched = 6;

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

// How often a transposition reads and writes the data, about.
double passes(const Swap& s) {
  if (s.rows == 1 || s.columns == 1) return 0;
  const double odd = s.bytes >= kWideBytes || (s.bytes & (s.bytes - 1)) == 0 ? 1 : 1.3;
  if (s.matrix_bytes() <= panel_bytes) return odd;
  if (s.rows == s.columns) return 1.2 * odd;
  if (s.bytes >= kWideBytes) return 1.3;
  return (std::min(s.rows, s.columns) * wide(s.bytes) <= panel_bytes ? 2.3 : 3.3) * odd;
}

// Dims [i, j) and [j, l) of an order exchanged.
struct Exchange {
  int i, j, l;
};
Swap swap_of(const std::vector<int64_t>& sizes, const std::vector<int>& order, Exchange e, int64_t item) {
  Swap s{1, 1, 1, item};
  const int dims = static_cast<int>(order.size());
  for (int d = 0; d < dims; ++d)
    (d < e.i ? s.batch : d < e.j ? s.rows : d < e.l ? s.columns : s.bytes) *= sizes[order[d]];
  return s;
}
std::vector<int> exchanged(std::vector<int> order, Exchange e) {
  std::rotate(order.begin() + e.i, order.begin() + e.j, order.begin() + e.l);
  return order;
}

// The cheapest sequence, by Dijkstra's algorithm over the orders of the dims.
std::vector<Swap> cheapest(const std::vector<int64_t>& sizes, const std::vector<int>& first,
                           const std::vector<int>& last, int64_t item) {
  struct Reached {
    double cost;
    std::vector<int> from;
    Exchange by;
  };
  std::map<std::vector<int>, Reached> reached{{first, {0, {}, {}}}};
  using Entry = std::pair<double, std::vector<int>>;
  std::priority_queue<Entry, std::vector<Entry>, std::greater<>> open;
  open.push({0, first});
  const int dims = static_cast<int>(first.size());
  while (open.top().second != last) {
    const auto [cost, order] = open.top();
    open.pop();
    if (cost > reached[order].cost) continue;
    for (int i = 0; i < dims; ++i) {
      for (int j = i + 1; j < dims; ++j) {
        for (int l = j + 1; l <= dims; ++l) {
          const Exchange e{i, j, l};
          const double total = cost + passes(swap_of(sizes, order, e, item));
          std::vector<int> next = exchanged(order, e);
          const auto [at, added] = reached.insert({next, {total, order, e}});
          if (!added && at->second.cost <= total) continue;
          at->second = {total, order, e};
          open.push({total, std::move(next)});
        }
      }
    }
  }
  std::vector<Swap> swaps;
  for (std::vector<int> order = last; order != first; order = reached[order].from)
    swaps.push_back(swap_of(sizes, reached[order].from, reached[order].by, item));
  std::reverse(swaps.begin(), swaps.end());
  return swaps;
}

} // namespace

std::vector<Swap> plan_swaps(const std::vector<int64_t>& sizes, const std::vector<int>& order, int64_t item) {
  const int dims = static_cast<int>(sizes.size());
  std::vector<int> now(dims);
  for (int d = 0; d < dims; ++d) now[d] = d;
  if (dims <= kMaxSearched) return cheapest(sizes, now, order, item);
  // Of many dims: each run of them to its place, from the outermost on.
  std::vector<Swap> swaps;
  for (int d = 0; d < dims; ++d) {
    if (now[d] == order[d]) continue;
    const int at = static_cast<int>(std::find(now.begin(), now.end(), order[d]) - now.begin());
    int end = at + 1;
    while (end < dims && now[end] == order[d + end - at]) ++end;
    swaps.push_back(swap_of(sizes, now, {d, at, end}, item));
    now = exchanged(now, {d, at, end});
  }
  return swaps;
}

class Transposer::Scratch {
 public:
  Scratch(Transposer& owner, int64_t bytes) : owner_(owner), bytes_(ceil_div(bytes, 64) * 64) {
    if (!owner_.planning_) data_ = owner_.memory_.get() + owner_.used_;
    owner_.used_ += bytes_;
    owner_.needed_ = std::max(owner_.needed_, owner_.used_);
  }
  ~Scratch() {
    owner_.used_ -= bytes_;
  }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  char* data() const {
    return data_;
  }

 private:
  Transposer& owner_;
  int64_t bytes_;
  char* data_ = nullptr;
};

Transposer::Transposer(const CpuKernels& kernels) : kernels_(kernels), threads_(at::get_num_threads()) {}

void Transposer::run(char* data, const Gather* first, const std::vector<Swap>& swaps, int64_t item) {
  const auto all = [&] {
    if (first != nullptr) gather(data, *first, item);
    for (const Swap& s : swaps) transpose(data, s);
  };
  planning_ = true;
  all();
  memory_.reset(new char[needed_]);
  planning_ = false;
  all();
}

// ---- what a pass is made of -----------------------------------------------------------------------------

// Shared by the threads along the longer side.
void Transposer::turn(const Turn& t) {
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

void Transposer::copy(char* to, const char* from, int64_t bytes) {
  if (planning_) return;
  constexpr int64_t kUnit = 4096;
  parallel(ceil_div(bytes, kUnit), cost_of(kUnit), [&](int64_t begin, int64_t end) {
    std::memcpy(to + begin * kUnit, from + begin * kUnit, std::min(bytes, end * kUnit) - begin * kUnit);
  });
}

// Rows that lie without gaps, to places that are `pitch` apart.
void Transposer::spread(char* to, int64_t pitch, const char* from, int64_t rows, int64_t bytes) {
  if (rows > 0 && bytes > 0) turn({to, pitch, from, rows * bytes, 1, rows, bytes});
}

// Moves rows nearer together or further apart.
void Transposer::repitch(char* data, int64_t rows, int64_t bytes, int64_t from_pitch, int64_t to_pitch) {
  if (from_pitch == to_pitch) return;
  const bool down = to_pitch < from_pitch;
  if (threads_ == 1) {
    for (int64_t i = 0; i < rows && !planning_; ++i) {
      const int64_t row = down ? i : rows - 1 - i;
      std::memmove(data + row * to_pitch, data + row * from_pitch, bytes);
    }
    return;
  }
  // As many bytes at a time as the panel holds: read by all threads, then written by all.
  const int64_t group = std::max<int64_t>(panel_bytes / bytes, 1), piece = std::min(bytes, panel_bytes);
  const Scratch panel(*this, group * piece);
  if (planning_) return;
  for (int64_t done = 0; done < rows; done += group) {
    const int64_t n = std::min(group, rows - done), row = down ? done : rows - done - n;
    const char* const from = data + row * from_pitch;
    char* const to = data + row * to_pitch;
    if (piece == bytes) {
      turn({panel.data(), bytes, from, from_pitch, n, 1, bytes});
      spread(to, to_pitch, panel.data(), n, bytes);
      continue;
    }
    for (int64_t moved = 0; moved < bytes; moved += piece) {
      const int64_t part = std::min(piece, bytes - moved), at = down ? moved : bytes - moved - part;
      copy(panel.data(), from + at, part);
      copy(to + at, panel.data(), part);
    }
  }
}

// By the program of a move, which knows all strides. No chunk reaches further down than what it is read
// from, nor up to where the next one lies.
void Transposer::gather(char* data, const Gather& g, int64_t item) {
  path_ = Path::gathered;
  const int64_t chunk = std::max<int64_t>(panel_bytes / (g.unit * item), 1) * g.unit;
  const Scratch panel(*this, chunk * item);
  if (planning_) return;
  const DType dtype = item == 1 ? DType::u8 : item == 2 ? DType::i16 : item == 4 ? DType::i32 : DType::i64;
  Program move{};
  move.compute = compute_dtype(dtype);
  move.stages = 2;
  move.stage[0] = {kLoad, Operand::tensor, Operand::none, 1, 0, 0};
  move.stage[1] = {kStore, Operand::tensor, Operand::none, 0, 0, 0};
  Space space{};
  space.tensors = 2;
  space.tensor[0] = {nullptr, dtype, true, {}};
  space.tensor[1] = {data, dtype, false, {}};
  int64_t step = item_size(dtype);
  const auto add = [&](int64_t size, int64_t from_step) {
    space.size[space.dims] = size;
    space.tensor[0].stride[space.dims] = step;
    space.tensor[1].stride[space.dims++] = from_step;
    step *= size;
  };
  const int64_t words = item / item_size(dtype); // of an element: two of complex128
  if (words > 1) add(words, item_size(dtype));
  for (size_t d = 0; d < g.sizes.size(); ++d) add(g.sizes[d], g.steps[d]);
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

void Transposer::transpose(char* data, const Swap& s) {
  if (s.rows == 1 || s.columns == 1 || s.batch == 0) return;
  if (s.matrix_bytes() <= panel_bytes) return buffered(data, s);
  if (s.rows == s.columns) return tiles(data, s);
  if (s.bytes >= kWideBytes) return cycles(data, s);
  for (int64_t i = 0; i < (planning_ ? 1 : s.batch); ++i) {
    const Matrix m{data + i * s.matrix_bytes(), s.rows, s.columns, s.bytes};
    if (std::min(m.rows, m.columns) * wide(m.bytes) <= panel_bytes) {
      m.rows < m.columns ? wide_strips(m) : tall_strips(m);
      path_ = Path::strips;
      continue;
    }
    // Lines of at least half a cache line, blocks that are wide, and panels that fit.
    const auto least = std::max<int64_t>(32 / m.bytes, std::ceil(std::sqrt(kWideBytes / double(m.bytes))));
    const int64_t most = std::max(128 / m.bytes, least);
    const auto cut_side = [&](int64_t side, int64_t other) {
      return cut(side, least, std::min(most, panel_bytes / (other * m.bytes)), other * m.bytes);
    };
    if (least * std::max(m.rows, m.columns) * m.bytes <= panel_bytes) {
      panels(m, cut_side(m.rows, m.columns), cut_side(m.columns, m.rows));
      path_ = Path::panels;
    } else {
      large_panels(m);
      path_ = Path::large_panels;
    }
  }
}

// The longest parts, of at least `least` and at most `most`, that leave nothing; else the longest that leave
// no more than an edge may have, at `rest_bytes` each; else those that leave the least.
Transposer::Cut Transposer::cut(int64_t side, int64_t least, int64_t most, int64_t rest_bytes) {
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
void Transposer::buffered(char* data, const Swap& s) {
  path_ = Path::buffered;
  const int64_t m = s.matrix_bytes();
  const bool on_stack = m <= kStackBytes, apart = on_stack || (s.batch > 1 && m * threads_ <= panel_bytes);
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
void Transposer::tiles(char* data, const Swap& s) {
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
void Transposer::cycles(char* data, const Swap& s) {
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

// Few rows: a part of each of them side by side fits the buffer. First the parts, which are wide, then what
// is within.
void Transposer::wide_strips(const Matrix& m) {
  const int64_t row = m.rows * m.bytes; // of the result
  int64_t most = panel_bytes / row;
  if (most / threads_ * m.bytes >= kWideBytes) most /= threads_;
  const Cut c = cut(m.columns, ceil_div(kWideBytes, m.bytes), most, row);
  const Scratch edge(*this, c.rest * row);
  if (c.rest > 0)
    turn({edge.data(), row, m.data + c.whole() * m.bytes, m.columns * m.bytes, m.rows, c.rest, m.bytes});
  repitch(m.data, m.rows, c.whole() * m.bytes, m.columns * m.bytes, c.whole() * m.bytes);
  transpose(m.data, {1, m.rows, c.parts, c.part * m.bytes});
  transpose(m.data, {c.parts, m.rows, c.part, m.bytes});
  copy(m.data + c.whole() * row, edge.data(), c.rest * row);
}

// Few columns: the same the other way round.
void Transposer::tall_strips(const Matrix& m) {
  const int64_t row = m.columns * m.bytes, column = m.rows * m.bytes;
  int64_t most = panel_bytes / row;
  if (most / threads_ * m.bytes >= kWideBytes) most /= threads_;
  const Cut c = cut(m.rows, ceil_div(kWideBytes, m.bytes), most, row);
  const Scratch edge(*this, c.rest * row);
  if (c.rest > 0)
    turn({edge.data(), c.rest * m.bytes, m.data + c.whole() * row, row, c.rest, m.columns, m.bytes});
  transpose(m.data, {c.parts, c.part, m.columns, m.bytes});
  transpose(m.data, {1, c.parts, m.columns, c.part * m.bytes});
  repitch(m.data, m.columns, c.whole() * m.bytes, c.whole() * m.bytes, column);
  spread(m.data + c.whole() * m.bytes, column, edge.data(), m.columns, c.rest * m.bytes);
}

// Many of both: panels of a few rows are turned in the buffer, which makes blocks of them; the blocks change
// places; panels of blocks are turned. The first and the last pass also move the data together, so that the
// blocks lie without gaps, and apart again.
void Transposer::panels(const Matrix& m, const Cut& down, const Cut& across) {
  const int64_t row = m.columns * m.bytes, column = m.rows * m.bytes; // of the matrix and of the result
  const int64_t rest = down.rest * m.bytes, block = down.part * m.bytes;
  const Scratch bottom(*this, m.columns * rest), right(*this, across.rest * column);
  if (rest > 0) turn({bottom.data(), rest, m.data + down.whole() * row, row, down.rest, m.columns, m.bytes});
  {
    const Scratch panel(*this, m.columns * block);
    const int64_t inner = across.whole() * block;
    for (int64_t i = 0; i < down.parts && !planning_; ++i) {
      turn({panel.data(), block, m.data + i * down.part * row, row, down.part, m.columns, m.bytes});
      copy(m.data + i * inner, panel.data(), inner);
      spread(right.data() + i * block, column, panel.data() + inner, across.rest, block);
    }
  }
  if (!planning_)
    spread(right.data() + down.whole() * m.bytes, column, bottom.data() + across.whole() * rest, across.rest,
           rest);
  transpose(m.data, {1, down.parts, across.parts, across.part * block});
  {
    const Scratch panel(*this, across.part * column);
    const int64_t inner = across.part * down.whole() * m.bytes;
    for (int64_t j = across.parts - 1; j >= 0 && !planning_; --j) {
      turn({panel.data(), column, m.data + j * inner, across.part * block, down.parts, across.part, block});
      spread(panel.data() + down.whole() * m.bytes, column, bottom.data() + j * across.part * rest,
             across.part, rest);
      copy(m.data + j * across.part * column, panel.data(), across.part * column);
    }
  }
  copy(m.data + across.whole() * column, right.data(), across.rest * column);
}

// So many of both that no panel fits: the same with wide parts, each step where the data lies.
void Transposer::large_panels(const Matrix& m) {
  const int64_t row = m.columns * m.bytes, column = m.rows * m.bytes;
  const int64_t least = ceil_div(kWideBytes, m.bytes);
  const int64_t most = std::min<int64_t>(2 * least, std::sqrt(panel_bytes / m.bytes));
  const Cut down = cut(m.rows, least, most, row), across = cut(m.columns, least, most, column);
  const int64_t rest = down.rest * m.bytes, block = down.part * m.bytes;
  const int64_t inner = down.whole() * m.bytes, packed = across.whole() * m.bytes;
  const Scratch bottom(*this, m.columns * rest), right(*this, across.rest * column);
  if (rest > 0) turn({bottom.data(), rest, m.data + down.whole() * row, row, down.rest, m.columns, m.bytes});
  if (across.rest > 0) turn({right.data(), column, m.data + packed, row, m.rows, across.rest, m.bytes});
  repitch(m.data, down.whole(), packed, row, packed);
  transpose(m.data, {down.parts, down.part, across.parts, across.part * m.bytes});
  transpose(m.data, {down.parts * across.parts, down.part, across.part, m.bytes});
  transpose(m.data, {1, down.parts, across.parts, across.part * block});
  transpose(m.data, {across.parts, down.parts, across.part, block});
  repitch(m.data, across.whole(), inner, inner, column);
  if (!planning_) spread(m.data + inner, column, bottom.data(), across.whole(), rest);
  copy(m.data + across.whole() * column, right.data(), across.rest * column);
}

} // namespace inplace_ext
