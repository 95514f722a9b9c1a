// The kernels of csrc/cuda on the emulated device, behind the interface of the CPU's kernel libraries, so
// that the tests run on it what they run on those.
#include <algorithm>
#include <cstdio>
#include <mutex>
#include <sstream>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "control.h"
#include "dropout.cuh"
#include "interpret.h"
#include "norm.cuh"
#include "softmax.cuh"

namespace inplace_ext::cuda {
INPLACE_EXT_FLOATING_INTERPRETERS(INPLACE_EXT_ELSEWHERE)
INPLACE_EXT_INTEGER_INTERPRETERS(INPLACE_EXT_ELSEWHERE)
} // namespace inplace_ext::cuda

namespace inplace_ext {
namespace {

// Small enough for the loops over the grid to be taken.
Device device{2, 99 << 10, 1024};

// Lets the kernels touch the elements of a view, and nothing else.
void allow_view(const char* p, const int64_t* size, const int64_t* stride, int dims, int item,
                bool writable) {
  if (dims == 0) return emulate::allow(p, item, item, writable);
  const int d = dims - 1; // outermost first, so that runs are contiguous
  if (dims == 1 && stride[0] == item) {
    if (size[0] > 0) emulate::allow(p, size[0] * item, item, writable);
    return;
  }
  for (int64_t i = 0; i < (stride[d] == 0 ? std::min<int64_t>(size[d], 1) : size[d]); ++i)
    allow_view(p + i * stride[d], size, stride, d, item, writable);
}

// What the kernels may touch while a call runs; calls run one after the other.
class Memory {
 public:
  Memory() : lock_(one_at_a_time) {}
  ~Memory() {
    emulate::clear_memory();
  }
  Memory(const Memory&) = delete;

 private:
  static std::mutex one_at_a_time;
  std::lock_guard<std::mutex> lock_;
};
std::mutex Memory::one_at_a_time;

void check(cudaError_t error) {
  if (error != cudaSuccess) throw std::runtime_error("emulated device: error " + std::to_string(error));
}

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

// Where the seed comes from memory of the device, as while a graph is captured.
bool seed_in_memory = false;

Path run_dropout(const Dropout& call, int64_t begin, int64_t) {
  if (begin > 0) return cuda::dropout_path(call);
  const Memory memory;
  const int item = item_size(call.dtype);
  allow_view(call.data, call.size, call.step, call.dims, item, call.shift == 0);
  if (call.shift != 0) allow_view(call.data + call.shift, call.size, call.step, call.dims, item, true);
  cuda::DropoutSeed seed{call.seed, call.offset};
  // The second counts numbers, of which a block has four; what is left of the offset goes by value.
  const int64_t in_memory[2] = {static_cast<int64_t>(call.seed),
                                4 * static_cast<int64_t>(call.offset % 1000)};
  if (seed_in_memory) {
    emulate::allow(in_memory, sizeof(in_memory), sizeof(int64_t), false);
    seed = {0, call.offset - call.offset % 1000, &in_memory[0], &in_memory[1]};
  }
  check(cuda::dropout(call, seed, device, nullptr));
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

// ---- programs ---------------------------------------------------------------------------------------------

Path run_program(const Program& program, const Space& space, int64_t begin, int64_t) {
  if (begin > 0) return Path::flat;
  const Memory memory;
  for (int t = 0; t < space.tensors; ++t) {
    const TensorArg& arg = space.tensor[t];
    if (program.drawn(t) == nullptr)
      allow_view(arg.data, space.size, arg.stride, space.dims, item_size(arg.dtype), arg.mutated);
  }
  Path path;
  check(cuda::run(program, space, device, nullptr, path));
  return path;
}

// Contiguous tensors of n elements, the first of which is changed.
struct Flat {
  Space space{};
  explicit Flat(int64_t n) {
    space.dims = 1;
    space.size[0] = n;
  }
  void add(const void* data, DType dtype) {
    TensorArg& arg = space.tensor[space.tensors];
    arg.data = static_cast<char*>(const_cast<void*>(data));
    arg.dtype = dtype;
    arg.mutated = space.tensors++ == 0;
    arg.stride[0] = item_size(dtype);
  }
  void run(const Program& program) const {
    if (space.size[0] > 0) run_program(program, space, 0, 0);
  }
};

template <int O, DType D, int Variant>
void run_loop(void* x, const void* b, const void* c, const Scalar* scalar, int64_t n) {
  constexpr Form form = kOpInfo[O].form;
  Program program{};
  program.compute = compute_dtype(D);
  program.stages = 3;
  Flat flat(n);
  flat.add(x, D);
  Stage op{};
  op.code = O;
  if (operands_of(form) >= 1) {
    op.b_kind = Variant & kScalarB ? Operand::scalar : Operand::tensor;
    if (op.b_kind == Operand::tensor) {
      op.b = static_cast<uint8_t>(flat.space.tensors);
      flat.add(b, form == Form::kMasked ? DType::b8 : D);
    }
  }
  if (operands_of(form) == 2) {
    op.c_kind = Variant & kScalarC ? Operand::scalar : Operand::tensor;
    op.c = 1;
    if (op.c_kind == Operand::tensor) {
      op.c = static_cast<uint8_t>(flat.space.tensors);
      flat.add(c, D);
    }
  }
  op.d = 2;
  program.stage[0] = {kLoad, Operand::tensor, Operand::none, 0, 0, 0};
  program.stage[1] = op;
  program.stage[2] = {kStore, Operand::tensor, Operand::none, 0, 0, 0};
  std::copy(scalar, scalar + 3, program.scalar);
  flat.run(program);
}

struct Loops {
  LoopFn loop[kOps][kDTypes][kLoopVariants];
};
template <int O, DType D, int... Variants>
constexpr void set_loops(Loops& loops, std::integer_sequence<int, Variants...>) {
  constexpr Types types = kOpInfo[O].types;
  constexpr bool has = D == DType::b8 ? types == Types::kAll || types == Types::kUInt8
                                      : has_form(types, compute_dtype(D)) && types != Types::kUInt8;
  if constexpr (has) {
    ((loops.loop[O][static_cast<int>(D)][Variants] = run_loop<O, D, Variants>), ...);
  }
}
template <int... O>
constexpr Loops all_loops(std::integer_sequence<int, O...>) {
  Loops loops{};
#define INPLACE_EXT_SET(NAME, STORAGE, COMPUTE) \
  (set_loops<O, DType::NAME>(loops, std::make_integer_sequence<int, kLoopVariants>()), ...);
  INPLACE_EXT_FOR_DTYPES(INPLACE_EXT_SET)
#undef INPLACE_EXT_SET
  return loops;
}
constexpr Loops kLoops = all_loops(std::make_integer_sequence<int, kOps>());

void fill(void* x, DType dtype, Scalar value, int64_t n, bool) {
  Program program{};
  program.compute = compute_dtype(dtype);
  program.stages = 2;
  program.stage[0] = {kLoad, Operand::scalar, Operand::none, 0, 0, 0};
  program.stage[1] = {kStore, Operand::tensor, Operand::none, 0, 0, 0};
  program.scalar[0] = value;
  Flat flat(n);
  flat.add(x, dtype);
  flat.run(program);
}
void convert(void* to, DType to_dtype, const void* from, DType from_dtype, int64_t n, bool) {
  Program program{};
  program.compute = compute_dtype(to_dtype);
  program.stages = 2;
  program.stage[0] = {kLoad, Operand::tensor, Operand::none, 1, 0, 0};
  program.stage[1] = {kStore, Operand::tensor, Operand::none, 0, 0, 0};
  Flat flat(n);
  flat.add(to, to_dtype);
  flat.add(from, from_dtype);
  flat.run(program);
}
// By the host: no kernel of the device looks for zeros.
bool contains_zero(const void* x, DType dtype, int64_t n) {
  const auto* p = static_cast<const char*>(x);
  const int item = item_size(dtype);
  for (int64_t i = 0; i < n; ++i, p += item) {
    if (std::all_of(p, p + item, [](char c) { return c == 0; })) return true;
  }
  return false;
}

} // namespace
} // namespace inplace_ext

extern "C" {

__attribute__((visibility("default"))) const inplace_ext::CpuKernels* inplace_ext_cpu_kernels() {
  using namespace inplace_ext;
  static const CpuKernels kernels = {kAbiVersion, 16,          "emulated", kLoops.loop,
                                     run_program, fill,        convert,    contains_zero,
                                     run_softmax, run_dropout, norm_part};
  return &kernels;
}

__attribute__((visibility("default"))) void inplace_ext_emulate_device(int processors, int threads) {
  inplace_ext::device.processors = processors;
  inplace_ext::device.threads_per_processor = threads;
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
