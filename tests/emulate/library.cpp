// The kernels of csrc/cuda on the emulated device, behind the interface of the CPU's kernel libraries, so
// that the tests run on it what they run on those.
#include <algorithm>
#include <cstdio>
#include <sstream>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "control.h"
#include "dropout.cuh"
#include "index.cuh"
#include "norm.cuh"
#include "programs.h"
#include "softmax.cuh"
#include "transpose.cuh"

namespace inplace_ext {

// Small enough for the loops over the grid to be taken.
Device device{2, 99 << 10, 1024};

namespace {

Path run_softmax(const Softmax& call, int64_t begin, int64_t) {
  if (begin > 0) return cuda::softmax_path(call); // the thread with the first part does it all
  const Memory memory;
  int64_t size[kMaxDims + 1], step[kMaxDims + 1], mask_step[kMaxDims + 1];
  size[0] = call.length, step[0] = call.stride, mask_step[0] = call.mask_stride;
  std::copy(call.size, call.size + call.dims, size + 1);
  std::copy(call.step, call.step + call.dims, step + 1);
  const int item = item_size(call.dtype), dims = call.dims + 1;
  allow_view(call.data, size, step, dims, item, call.shift == 0);
  if (call.shift != 0) allow_view(call.data + call.shift, size, step, dims, item, true);
  if (call.mask != nullptr) {
    std::copy(call.mask_step, call.mask_step + call.dims, mask_step + 1);
    allow_view(call.mask, size, mask_step, dims, item_size(call.mask_dtype), false);
  }
  check(cuda::softmax(call, device, nullptr));
  return cuda::softmax_path(call);
}

Path run_dropout(const Dropout& call, int64_t begin, int64_t) {
  if (begin > 0) return cuda::dropout_path(call);
  const Memory memory;
  const int item = item_size(call.dtype);
  allow_view(call.data, call.size, call.step, call.dims, item, call.shift == 0);
  if (call.shift != 0) allow_view(call.data + call.shift, call.size, call.step, call.dims, item, true);
  const State state(call.from);
  Dropout with_state = call;
  with_state.from = state.draws;
  check(cuda::dropout(with_state, device, nullptr));
  return cuda::dropout_path(call);
}

// The parts of some tensors, in lists that follow each other.
template <class F>
int64_t each_list(char* const* data, const int64_t* count, int tensors, const F& f) {
  int64_t parts = 0;
  for (int at = 0; at < tensors;) {
    cuda::TensorList list{};
    const int64_t before = parts;
    for (; at < tensors && list.tensors < cuda::kListed; ++at) {
      if (count[at] == 0) continue;
      list.data[list.tensors] = data[at];
      list.count[list.tensors] = count[at];
      list.first[list.tensors++] = parts - before;
      parts += cuda::norm_parts_of(count[at]);
    }
    list.first[list.tensors] = parts - before;
    if (list.tensors > 0) f(list, before);
  }
  return parts;
}
std::vector<double> sums_of(char* const* data, const int64_t* count, int tensors, DType dtype, Norm norm) {
  std::vector<double> sums(each_list(data, count, tensors, [](const cuda::TensorList&, int64_t) {}));
  emulate::allow(sums.data(), sums.size() * sizeof(double), sizeof(double), true);
  each_list(data, count, tensors, [&](const cuda::TensorList& list, int64_t before) {
    check(cuda::norm_parts(list, dtype, norm, sums.data() + before, device, nullptr));
  });
  return sums;
}

double norm_part(const void* x, DType dtype, int64_t n, Norm norm) {
  if (n == 0) return 0;
  const Memory memory;
  emulate::allow(x, n * item_size(dtype), item_size(dtype), false);
  char* const data = static_cast<char*>(const_cast<void*>(x));
  double result = 0;
  for (const double sum : sums_of(&data, &n, 1, dtype, norm)) {
    result = norm != Norm::largest ? result + sum : result != result || result > sum ? result : sum;
  }
  return result;
}

// ---- the interface of a device, for what the bindings do otherwise than for the CPU
// ------------------------

// The dims of a call along which `step` moves, outermost first, so that what lies together is allowed at
// once.
struct Extent {
  int dims = 0;
  int64_t size[2 * kMaxDims], step[2 * kMaxDims];
  void add(int64_t n, int64_t bytes) {
    if (bytes == 0 || n == 1) return;
    int d = dims++;
    for (; d > 0 && step[d - 1] > bytes; --d) size[d] = size[d - 1], step[d] = step[d - 1];
    size[d] = n, step[d] = bytes;
  }
  void allow(const void* p, int item, bool writable) const {
    allow_view(static_cast<const char*>(p), size, step, dims, item, writable);
  }
};
void allow_indices(const Indexed& call) {
  for (int k = 0; k < call.indices; ++k) {
    Extent index;
    for (int d = 0; d < call.dims; ++d) index.add(call.size[d], call.index[k].step[d]);
    index.allow(call.index[k].data, call.index[k].wide ? 8 : 4, false);
  }
}
// The places that the indices, which have been checked, say, and nothing else of x.
void allow_places(const Indexed& call) {
  const int item = item_size(call.dtype);
  const bool runs = call.step[0] == item && call.rows;
  int64_t n = 1;
  for (int d = runs; d < call.dims; ++d) n *= call.size[d];
  for (int64_t i = 0; i < n; ++i) {
    char* x = call.data;
    const char* index[kMaxIndices];
    for (int k = 0; k < call.indices; ++k) index[k] = call.index[k].data;
    int64_t rest = i;
    for (int d = runs; d < call.dims; rest /= call.size[d++]) {
      x += rest % call.size[d] * call.step[d];
      for (int k = 0; k < call.indices; ++k) index[k] += rest % call.size[d] * call.index[k].step[d];
    }
    for (int k = 0; k < call.indices; ++k) {
      int64_t at = 0;
      int32_t narrow = 0;
      std::memcpy(&narrow, index[k], sizeof(narrow));
      at = narrow;
      if (call.index[k].wide) std::memcpy(&at, index[k], sizeof(at));
      x += (at < 0 ? at + call.index[k].length : at) * call.index[k].stride;
    }
    emulate::allow(x, (runs ? call.size[0] : 1) * item, item, true);
  }
}
int64_t points_of(const Indexed& call) {
  int64_t points = 1;
  for (int d = 0; d < call.dims; ++d) points *= call.step[d] == 0 ? call.size[d] : 1;
  return points;
}

int check_indices(const Indexed& call, bool negative, void* places, const Device&, void*) {
  const Memory memory;
  allow_indices(call);
  const int item = cuda::wide_places(call) ? 8 : 4;
  if (places != nullptr) emulate::allow(places, points_of(call) * item, item, true);
  return cuda::check_indices(call, negative, places, device, nullptr);
}
int put_indexed(const Indexed& call, const cuda::PointOrder& order, uint64_t bits, const Device&, void*) {
  const Memory memory;
  const int item = item_size(call.dtype);
  allow_places(call);
  if (call.source != nullptr) {
    Extent source;
    for (int d = 0; d < call.dims; ++d) source.add(call.size[d], call.source_step[d]);
    source.allow(call.source, item, false);
  }
  if (order.place != nullptr) {
    const int64_t points = points_of(call);
    emulate::allow(order.place, points * (order.wide ? 8 : 4), order.wide ? 8 : 4, false);
    emulate::allow(order.point, points * 8, 8, false);
  } else {
    allow_indices(call);
  }
  return cuda::put_indexed(call, order, bits, device, nullptr);
}
int put_masked(const Masked& call, uint64_t bits, int64_t available, bool exactly, int64_t* counts,
               const Device&, void*) {
  const Memory memory;
  const int item = item_size(call.dtype);
  Extent x, mask, source;
  x.add(call.row, item);
  for (int d = 0; d < call.dims; ++d)
    x.add(call.size[d], call.step[d]), mask.add(call.size[d], call.mask_step[d]);
  x.allow(call.data, item, true);
  mask.allow(call.mask, 1, false);
  if (call.put == Put::copy && (available > 0 || call.source_step == 0)) {
    source.add(call.row, call.source_inner);
    source.add(available, call.source_step);
    source.allow(call.source, item, false);
  }
  if (counts != nullptr) emulate::allow(counts, cuda::kMaskParts * 8, 8, true);
  return cuda::put_masked(call, bits, available, exactly, counts, device, nullptr);
}

// What the bindings ask of a device itself, on one that has these kernels only. Of each launch the memory is
// known to which it may go: rows of so many bytes, `pitch` apart.
int properties(int, Device& out) {
  out = device;
  return 0;
}
int run_on_space(const Program& program, const Space& space, const Device&, void*, Path& path) {
  path = run_program(program, space, 0, space.numel());
  return 0;
}
void allow_rows(const char* data, int64_t rows, int64_t pitch, int64_t bytes, int item, bool writable) {
  if (pitch == bytes) bytes *= std::exchange(rows, 1);
  for (int64_t i = 0; i < rows; ++i) emulate::allow(data + i * pitch, bytes, item, writable);
}
int turn(const cuda::Turns& turns, const Device& of, void*) {
  const Memory memory;
  const Turn& t = turns.each;
  const int item =
      cuda::word_of(t.bytes | t.from_stride | t.to_stride | turns.from_step | turns.to_step, t.from, t.to);
  for (int64_t i = 0; i < turns.batch; ++i) {
    allow_rows(t.from + i * turns.from_step, t.rows, t.from_stride, t.columns * t.bytes, item,
               t.from == t.to);
    if (t.from != t.to)
      allow_rows(t.to + i * turns.to_step, t.columns, t.to_stride, t.rows * t.bytes, item, true);
  }
  return cuda::turn(turns, of, nullptr);
}
void allow_all(const cuda::Matrices& m, int item) {
  emulate::allow(m.first.data, m.batch * m.first.rows * m.first.columns * m.first.bytes, item, true);
}
int swap_squares(const cuda::Matrices& squares, const Device& of, void*) {
  const Memory memory;
  allow_all(squares, cuda::word_of(squares.first.bytes, squares.first.data, nullptr));
  return cuda::swap_squares(squares, of, nullptr);
}
int move_cycles(const cuda::Matrices& matrices, int shift, void* saved, const Device& of, void*) {
  const Memory memory;
  const Matrix& m = matrices.first;
  const int item = cuda::word_of(m.bytes, m.data, saved);
  allow_all(matrices, item);
  if (shift != 0) {
    const int64_t marks = ((m.rows * m.columns - 1) >> shift) + 1;
    emulate::allow(saved, matrices.batch * marks * m.bytes, item, true);
  }
  return cuda::move_cycles(matrices, shift, saved, of, nullptr);
}

// Without loops and fills: everything elementwise is a program. Of operations that were added what stands
// here tells that there are kernels, and is not called.
LoopFn loops[kOpCodes][kDTypes][kLoopVariants] = {};

void set_operation(int code, const OpKernels& kernels) {
  own_operations[code] = &static_cast<const OwnOperation&>(kernels);
  std::memcpy(loops[code], kernels.loop, sizeof(kernels.loop));
}

} // namespace
} // namespace inplace_ext

extern "C" {

__attribute__((visibility("default"))) const inplace_ext::CpuKernels* inplace_ext_cpu_kernels() {
  using namespace inplace_ext;
  static const CpuKernels kernels = {
      kAbiVersion, table_fingerprint(), 16,          "emulated",  loops,         run_program, nullptr,
      convert_all, contains_zero,       run_softmax, run_dropout, set_operation, norm_part};
  return &kernels;
}

__attribute__((visibility("default"))) const inplace_ext::CudaKernels* inplace_ext_cuda_kernels() {
  using namespace inplace_ext;
  static const CudaKernels kernels = [] {
    CudaKernels table{};
    table.abi = kCudaAbiVersion;
    table.table = table_fingerprint();
    table.architectures = "";
    table.message = [](int) { return "emulated"; };
    table.device = properties;
    table.run = run_on_space;
    table.check_indices = check_indices;
    table.put_indexed = put_indexed;
    table.put_masked = put_masked;
    table.turn = turn;
    table.swap_squares = swap_squares;
    table.move_cycles = move_cycles;
    return table;
  }();
  return &kernels;
}
__attribute__((visibility("default"))) void inplace_ext_emulate_device(int processors, int threads) {
  inplace_ext::device.processors = processors;
  inplace_ext::device.threads_per_processor = threads;
}
__attribute__((visibility("default"))) void inplace_ext_emulate_programs(int as) {
  inplace_ext::programs_as = static_cast<inplace_ext::ProgramsAs>(as);
}
__attribute__((visibility("default"))) void inplace_ext_emulate_order(int order) {
  emulate::set_order(static_cast<emulate::Order>(order));
}
__attribute__((visibility("default"))) void inplace_ext_emulate_counting(int on) {
  emulate::set_counting(on != 0);
}
__attribute__((visibility("default"))) void inplace_ext_emulate_seed_in_memory(int on) {
  inplace_ext::seed_in_memory = on != 0;
}
// Clips tensors of one dtype as a whole; 0, or 1 with what went wrong in `message`.
__attribute__((visibility("default"))) int inplace_ext_emulate_clip(char** data, const int64_t* count,
                                                                    int tensors, int dtype, int norm,
                                                                    double most, void* total, void* factor,
                                                                    char* message, int size) {
  using namespace inplace_ext;
  const auto type = static_cast<DType>(dtype);
  const auto kind = static_cast<Norm>(norm);
  const int item = item_size(type);
  try {
    const Memory memory;
    for (int t = 0; t < tensors; ++t) emulate::allow(data[t], count[t] * item, item, true);
    emulate::allow(total, item, item, true);
    emulate::allow(factor, item_size(compute_dtype(type)), item_size(compute_dtype(type)), true);
    const std::vector<double> sums = sums_of(data, count, tensors, type, kind);
    const auto parts = static_cast<int64_t>(sums.size());
    check(cuda::norm_final(sums.data(), parts, type, kind, most, total, factor, nullptr));
    each_list(data, count, tensors, [&](const cuda::TensorList& list, int64_t) {
      check(cuda::scale_by(list, type, factor, device, nullptr));
    });
    return 0;
  } catch (const std::exception& error) {
    std::snprintf(message, static_cast<size_t>(size), "%s", error.what());
    return 1;
  }
}
// The pieces into which the cycles of a transposition are cut: how many, the places of all of them, and those
// of the longest.
__attribute__((visibility("default"))) void inplace_ext_emulate_pieces(int64_t rows, int64_t columns,
                                                                       int shift, int64_t* out) {
  using namespace inplace_ext;
  cuda::layouts::Cycles c{};
  c.rows = static_cast<uint32_t>(rows), c.columns = static_cast<uint32_t>(columns), c.shift = shift;
  std::fill_n(out, 3, 0);
  for (uint32_t first = 0; first < c.blocks(); ++first) {
    if (!c.starts(first)) continue;
    int64_t places = 1;
    for (uint32_t p = c.source(first); p != first && !c.is_mark(p); p = c.source(p)) ++places;
    ++out[0], out[1] += places, out[2] = std::max(out[2], places);
  }
}
// The launches since the last call, a line each, columns apart by tabs.
__attribute__((visibility("default"))) const char* inplace_ext_emulate_launches() {
  static std::string text;
  std::ostringstream out;
  for (const emulate::Launch& l : emulate::take_launches()) {
    out << l.kernel << '\t' << static_cast<uint64_t>(l.grid.x) * l.grid.y * l.grid.z << '\t'
        << l.block.x * l.block.y * l.block.z << '\t' << l.bytes_read << '\t' << l.bytes_written << '\t'
        << l.sectors_read << '\t' << l.sectors_written << '\t' << l.instructions << '\t' << l.widest_read
        << '\t' << l.widest_write << '\n';
  }
  text = out.str();
  return text.c_str();
}
}
