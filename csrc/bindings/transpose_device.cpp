// The ways that a device goes. A launch costs as much as a few hundred KB of memory traffic, and so each is
// over all matrices and blocks where that can be: what the shared memory of a block of threads holds is
// turned there, blocks move along cycles that are cut in pieces, and larger matrices are made of the two.
#include <ATen/ops/empty.h>

#include <algorithm>
#include <cmath>

#include "transpose.h"

namespace inplace_ext {
namespace {

// Scratch memory is so much of the tensor's, up to a bound, and half as much again as the CPU's at least:
// under 1% of 64 MB. The more there is the fewer are the launches where it is filled and emptied many times.
constexpr int64_t kShare = 112;
constexpr int64_t kMostPanel = 16 << 20;
// What is left of a side is no larger than this where it can be cut so.
constexpr int64_t kEdgeBytes = 96 << 10;
// How often the panel is filled and emptied rather than that the data goes another way.
constexpr int64_t kMaxFills = 64;
// One block in 2^kMarkShift, or fewer, is a mark at which the cycles are cut.
constexpr int kMarkShift = 7;
// Ways to cut a side that are looked at.
constexpr int kMaxCuts = 512;

int64_t ceil_div(int64_t a, int64_t b) {
  return (a + b - 1) / b;
}

} // namespace

DeviceTransposer::DeviceTransposer(const CudaKernels& kernels, const Device& device, void* stream,
                                   int64_t bytes, const at::TensorOptions& options)
    : Transposer(std::clamp(bytes / kShare, panel_bytes / 2 * 3, kMostPanel)),
      kernels_(kernels),
      device_(device),
      stream_(stream),
      options_(options) {}

char* DeviceTransposer::allocate(int64_t bytes) {
  memory_ = at::empty({bytes}, options_.dtype(at::kByte).requires_grad(false));
  return static_cast<char*>(memory_.mutable_data_ptr());
}

void DeviceTransposer::check(int error) const {
  TORCH_CHECK(error == 0, "CUDA error: ", kernels_.message(error));
}

double DeviceTransposer::passes(const Swap& s) const {
  if (s.rows == 1 || s.columns == 1) return 0;
  if (cuda::holds({nullptr, s.rows, s.columns, s.bytes})) return 1;
  if (s.bytes >= cuda::kWholeBytes) return 1.3;
  if (s.rows == s.columns) return 1;
  return std::min(s.rows, s.columns) * cuda::kWholeBytes <= cuda::kHeldBytes ? 2.3 : 4.3;
}

// ---- what a pass is made of -----------------------------------------------------------------------------

void DeviceTransposer::turn_all(const cuda::Turns& turns) {
  if (planning_) return;
  check(kernels_.turn(turns, device_, stream_));
}
void DeviceTransposer::turn(const Turn& t) {
  turn_all({t, 1, 0, 0});
}
void DeviceTransposer::copy(char* to, const char* from, int64_t bytes) {
  if (bytes > 0) turn({to, bytes, from, bytes, 1, 1, bytes});
}

void DeviceTransposer::repitch(char* data, int64_t rows, int64_t bytes, int64_t from_pitch,
                               int64_t to_pitch) {
  if (from_pitch != to_pitch) repitch_by(room(), data, rows, bytes, from_pitch, to_pitch);
}

void DeviceTransposer::gather(char* data, const Gather& g, int64_t item) {
  path_ = Path::gathered;
  int64_t bytes = item;
  for (const int64_t size : g.sizes) bytes *= size;
  const Scratch panel(*this, std::min(panel_, bytes));
  if (!planning_) gather_box(g, data, data, item, panel.data());
}

// In parts of the outermost dim: straight to their places where these end before what is read begins, which
// is where most gaps are before them, else through the panel.
void DeviceTransposer::gather_box(const Gather& box, char* to, char* from, int64_t item, char* panel) {
  int64_t inner = item;
  for (size_t d = 0; d + 1 < box.sizes.size(); ++d) inner *= box.sizes[d];
  const int64_t size = box.sizes.back(), step = box.steps.back();
  Gather part = box;
  for (int64_t i = 0; i < size;) {
    char* const target = to + i * inner;
    char* const source = from + i * step;
    const int64_t straight = std::min((source - target) / inner, size - i);
    const int64_t turned = std::min(panel_ / inner, size - i);
    if (straight == 0 && turned == 0) {
      Gather within{{box.sizes.begin(), box.sizes.end() - 1}, {box.steps.begin(), box.steps.end() - 1}, 0};
      gather_box(within, target, source, item, panel);
      ++i;
      continue;
    }
    part.sizes.back() = 2 * straight >= turned ? straight : turned;
    if (part.sizes.back() == straight) {
      move(part, target, source, item);
    } else {
      move(part, panel, source, item);
      copy(target, panel, turned * inner);
    }
    i += part.sizes.back();
  }
}

void DeviceTransposer::move(const Gather& box, char* to, char* from, int64_t item) {
  Program program{};
  Space space{};
  move_of(box, item, program, space);
  space.tensor[0].data = to;
  space.tensor[1].data = from;
  Path path;
  check(kernels_.run(program, space, device_, stream_, path));
}

// ---- ways to transpose ----------------------------------------------------------------------------------

void DeviceTransposer::transpose(char* data, const Swap& s) {
  if (s.rows == 1 || s.columns == 1 || s.batch == 0) return;
  const auto holds = [&](int64_t rows, int64_t columns) {
    return cuda::holds({data, rows, columns, s.bytes});
  };
  if (holds(s.rows, s.columns)) return held(data, s);
  if (s.bytes >= cuda::kWholeBytes) return cycles(data, s);
  if (s.rows == s.columns) return tiles(data, s);
  const int64_t fills = s.matrix_bytes() > room() ? INT64_MAX : ceil_div(s.batch, room() / s.matrix_bytes());
  if (fills == 1) return through_panel(data, s);

  const int64_t row = s.columns * s.bytes, column = s.rows * s.bytes; // of the matrix and of the result
  const int64_t least = ceil_div(cuda::kWholeBytes, s.bytes);
  const bool wide = s.rows < s.columns;
  const auto longest = [&](int64_t across, bool is_row) {
    int64_t n = cuda::kHeldBytes / (across * s.bytes);
    while (n > 0 && !(is_row ? holds(across, n) : holds(n, across))) n -= ceil_div(n, 16);
    return n;
  };
  // A part of each of the long lines fits the shared memory.
  if (const int64_t most = longest(std::min(s.rows, s.columns), wide); most >= least) {
    const Cut c = cut(std::max(s.rows, s.columns), least, most, s.bytes, std::min(row, column));
    const auto strips = [&](char* m, const Swap& some) {
      wide ? wide_strips(m, some, c) : tall_strips(m, some, c);
    };
    if (c.rest == 0 || fills > kMaxFills) {
      c.rest == 0 ? strips(data, s) : each(data, s, strips);
      path_ = Path::strips;
      return;
    }
  }
  if (fills <= kMaxFills) return through_panel(data, s);

  // The side first of which more is left over, about as much of it as of the other one, or more where that
  // leaves less.
  const int64_t first_side = wide ? s.rows : s.columns, first_rest = std::max(row, column);
  const int64_t second_side = wide ? s.columns : s.rows;
  int64_t side = 1;
  while (holds(side + 1, side + 1)) ++side;
  Cut first = cut(first_side, least, side, s.bytes, first_rest);
  if (first.rest * first_rest > kEdgeBytes) {
    const Cut other = cut(first_side, least, longest(least, !wide), s.bytes, first_rest);
    if (other.rest < first.rest) first = other;
  }
  const Cut second = cut(second_side, least, longest(first.part, wide), s.bytes, std::min(row, column));
  const auto panels = [&](char* m, const Swap& some) {
    wide ? large_panels(m, some, first, second) : large_panels(m, some, second, first);
  };
  first.rest == 0 && second.rest == 0 ? panels(data, s) : each(data, s, panels);
  path_ = Path::large_panels;
}

// Parts that leave nothing if there are any, else little, and which packs of 16 bytes fill; the longer the
// better.
Transposer::Cut DeviceTransposer::cut(int64_t side, int64_t least, int64_t most, int64_t bytes,
                                      int64_t rest_bytes) {
  most = std::min(most, side);
  Cut best{most, side / most, side % most};
  double lowest = HUGE_VAL;
  for (int64_t part = most, i = 0; i < kMaxCuts && (part >= least || part == most); --part, ++i) {
    const int64_t rest = side % part;
    const double cost = (rest == 0 ? 0 : 2 + 8 * static_cast<double>(rest * rest_bytes) / kEdgeBytes) +
                        (part * bytes % 16 == 0 ? 0 : 0.5) + static_cast<double>(most - part) / most;
    if (cost < lowest) {
      lowest = cost;
      best = {part, side / part, rest};
    }
  }
  return best;
}

// In shared memory, each matrix by one block of threads.
void DeviceTransposer::held(char* data, const Swap& s) {
  path_ = Path::buffered;
  const int64_t m = s.matrix_bytes();
  turn_all({{data, s.rows * s.bytes, data, s.columns * s.bytes, s.rows, s.columns, s.bytes}, s.batch, m, m});
}

// As many matrices at a time as the panel holds.
void DeviceTransposer::through_panel(char* data, const Swap& s) {
  path_ = Path::buffered;
  const int64_t m = s.matrix_bytes(), group = std::min(room() / m, s.batch);
  const Scratch panel(*this, group * m);
  for (int64_t i = 0; i < s.batch && !planning_; i += group) {
    const int64_t n = std::min(group, s.batch - i);
    char* const from = data + i * m;
    turn_all(
        {{panel.data(), s.rows * s.bytes, from, s.columns * s.bytes, s.rows, s.columns, s.bytes}, n, m, m});
    copy(from, panel.data(), n * m);
  }
}

void DeviceTransposer::tiles(char* data, const Swap& s) {
  path_ = Path::tiles;
  if (planning_) return;
  check(kernels_.swap_squares({{data, s.rows, s.columns, s.bytes}, s.batch}, device_, stream_));
}

void DeviceTransposer::cycles(char* data, const Swap& s) {
  path_ = Path::cycles;
  const int64_t blocks = s.rows * s.columns;
  const auto marks = [&](int shift) { return s.batch * (((blocks - 1) >> shift) + 1) * s.bytes; };
  int shift = 0;
  // Cycles of squares have two blocks, and where there are many bytes side by side that is work enough.
  if (s.rows != s.columns && blocks > 1 << kMarkShift && s.batch * s.bytes <= room()) {
    shift = kMarkShift;
    while (marks(shift) > room()) ++shift;
  }
  const Scratch saved(*this, shift == 0 ? 0 : marks(shift));
  if (planning_) return;
  check(kernels_.move_cycles({{data, s.rows, s.columns, s.bytes}, s.batch}, shift,
                             shift == 0 ? nullptr : saved.data(), device_, stream_));
}

} // namespace inplace_ext
