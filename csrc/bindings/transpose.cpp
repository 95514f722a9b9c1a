// In-place transposition of large matrices by a few passes over memory, each of which reads and writes long
// runs of bytes. Catanzaro, Keller and Garland (PPoPP 2014) permute rows and columns, with the longer of them
// as scratch memory; here, as in Gustavson's blocked formats, a matrix is cut into blocks that are turned in
// a buffer in cache and moved whole along the cycles of the permutation of the blocks. What is left over at
// the lower and right edge is kept in scratch memory meanwhile, which prime sides need, and nothing is
// padded.
#include "transpose.h"

#include <algorithm>
#include <map>
#include <queue>
#include <utility>

namespace inplace_ext {
namespace {

// Dims up to which the cheapest sequence of transpositions is looked for.
constexpr int kMaxSearched = 6;

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
template <class Cost>
std::vector<Swap> cheapest(const std::vector<int64_t>& sizes, const std::vector<int>& first,
                           const std::vector<int>& last, int64_t item, const Cost& passes) {
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

std::vector<Swap> Transposer::plan_swaps(const std::vector<int64_t>& sizes, const std::vector<int>& order,
                                         int64_t item) const {
  const int dims = static_cast<int>(sizes.size());
  std::vector<int> now(dims);
  for (int d = 0; d < dims; ++d) now[d] = d;
  if (dims <= kMaxSearched)
    return cheapest(sizes, now, order, item, [&](const Swap& s) { return passes(s); });
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

Transposer::Scratch::Scratch(Transposer& owner, int64_t bytes)
    : owner_(owner), bytes_((bytes + 63) / 64 * 64) {
  if (!owner_.planning_) data_ = owner_.memory_ + owner_.used_;
  owner_.used_ += bytes_;
  owner_.needed_ = std::max(owner_.needed_, owner_.used_);
}
Transposer::Scratch::~Scratch() {
  owner_.used_ -= bytes_;
}

void Transposer::run(char* data, const Gather* first, const std::vector<Swap>& swaps, int64_t item) {
  const auto all = [&] {
    if (first != nullptr) gather(data, *first, item);
    for (const Swap& s : swaps) transpose(data, s);
  };
  planning_ = true;
  all();
  planning_ = false;
  memory_ = allocate(needed_);
  all();
}

int64_t Transposer::scratch_bytes(const Swap& swap) {
  planning_ = true;
  alignas(16) char nothing[16];
  transpose(nothing, swap);
  planning_ = false;
  return needed_;
}

// ---- what a pass is made of -----------------------------------------------------------------------------

// By the program of a move, which knows all strides.
int64_t Transposer::move_of(const Gather& g, int64_t item, Program& move, Space& space) {
  const DType dtype = item == 1 ? DType::u8 : item == 2 ? DType::i16 : item == 4 ? DType::i32 : DType::i64;
  move.compute = compute_dtype(dtype);
  move.stages = 2;
  move.stage[0] = {kLoad, Operand::tensor, Operand::none, 1, 0, 0};
  move.stage[1] = {kStore, Operand::tensor, Operand::none, 0, 0, 0};
  space.tensors = 2;
  space.tensor[0] = {nullptr, dtype, true, {}, nullptr};
  space.tensor[1] = {nullptr, dtype, false, {}, nullptr};
  int64_t step = item_size(dtype);
  const auto add = [&](int64_t size, int64_t from_step) {
    space.size[space.dims] = size;
    space.tensor[0].stride[space.dims] = step;
    space.tensor[1].stride[space.dims++] = from_step;
    step *= size;
  };
  const int64_t words = item / item_size(dtype);
  if (words > 1) add(words, item_size(dtype));
  for (size_t d = 0; d < g.sizes.size(); ++d) {
    if (g.sizes[d] > 1 || space.dims == 0) add(g.sizes[d], g.steps[d]);
  }
  return words;
}

void Transposer::spread(char* to, int64_t pitch, const char* from, int64_t rows, int64_t bytes) {
  if (rows > 0 && bytes > 0) turn({to, pitch, from, rows * bytes, 1, rows, bytes});
}

void Transposer::repitch_by(int64_t group_bytes, char* data, int64_t rows, int64_t bytes, int64_t from_pitch,
                            int64_t to_pitch) {
  const bool down = to_pitch < from_pitch;
  const int64_t group = std::max<int64_t>(group_bytes / bytes, 1), piece = std::min(bytes, group_bytes);
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

// ---- ways to transpose ----------------------------------------------------------------------------------

// Few rows: a part of each of them side by side fits the buffer. First the parts, which are wide, then what
// is within.
void Transposer::wide_strips(char* data, const Swap& s, const Cut& c) {
  const int64_t row = s.rows * s.bytes; // of the result
  const Scratch edge(*this, c.rest * row);
  if (c.rest > 0)
    turn({edge.data(), row, data + c.whole() * s.bytes, s.columns * s.bytes, s.rows, c.rest, s.bytes});
  repitch(data, s.rows, c.whole() * s.bytes, s.columns * s.bytes, c.whole() * s.bytes);
  transpose(data, {s.batch, s.rows, c.parts, c.part * s.bytes});
  transpose(data, {s.batch * c.parts, s.rows, c.part, s.bytes});
  copy(data + c.whole() * row, edge.data(), c.rest * row);
}

// Few columns: the same the other way round.
void Transposer::tall_strips(char* data, const Swap& s, const Cut& c) {
  const int64_t row = s.columns * s.bytes, column = s.rows * s.bytes;
  const Scratch edge(*this, c.rest * row);
  if (c.rest > 0)
    turn({edge.data(), c.rest * s.bytes, data + c.whole() * row, row, c.rest, s.columns, s.bytes});
  transpose(data, {s.batch * c.parts, c.part, s.columns, s.bytes});
  transpose(data, {s.batch, c.parts, s.columns, c.part * s.bytes});
  repitch(data, s.columns, c.whole() * s.bytes, c.whole() * s.bytes, column);
  spread(data + c.whole() * s.bytes, column, edge.data(), s.columns, c.rest * s.bytes);
}

// So many of both that no panel fits: the same with wide parts, each step where the data lies.
void Transposer::large_panels(char* data, const Swap& s, const Cut& down, const Cut& across) {
  const int64_t row = s.columns * s.bytes, column = s.rows * s.bytes;
  const int64_t rest = down.rest * s.bytes, block = down.part * s.bytes;
  const int64_t inner = down.whole() * s.bytes, packed = across.whole() * s.bytes;
  const Scratch bottom(*this, s.columns * rest), right(*this, across.rest * column);
  if (rest > 0) turn({bottom.data(), rest, data + down.whole() * row, row, down.rest, s.columns, s.bytes});
  if (across.rest > 0) turn({right.data(), column, data + packed, row, s.rows, across.rest, s.bytes});
  repitch(data, down.whole(), packed, row, packed);
  transpose(data, {s.batch * down.parts, down.part, across.parts, across.part * s.bytes});
  transpose(data, {s.batch * down.parts * across.parts, down.part, across.part, s.bytes});
  transpose(data, {s.batch, down.parts, across.parts, across.part * block});
  transpose(data, {s.batch * across.parts, down.parts, across.part, block});
  repitch(data, across.whole(), inner, inner, column);
  if (!planning_) spread(data + inner, column, bottom.data(), across.whole(), rest);
  copy(data + across.whole() * column, right.data(), across.rest * column);
}

} // namespace inplace_ext
