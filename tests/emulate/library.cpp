// The kernels of csrc/cuda on the emulated device, behind the interface of the CPU's kernel libraries, so
// that the tests run on it what they run on those.
#include <algorithm>
#include <sstream>
#include <stdexcept>

#include "control.h"
#include "softmax.cuh"

namespace inplace_ext {
namespace {

// Small enough for the loops over the grid to be taken.
Device device{2, 99 << 10, 1024};

// Lets the kernels touch the elements of a view, and nothing else.
void allow_view(const char* p, const int64_t* size, const int64_t* stride, int dims, int item, bool writable) {
  if (dims == 0) return emulate::allow(p, item, item, writable);
  const int d = dims - 1; // outermost first, so that runs are contiguous
  if (dims == 1 && stride[0] == item) {
    if (size[0] > 0) emulate::allow(p, size[0] * item, item, writable);
    return;
  }
  for (int64_t i = 0; i < (stride[d] == 0 ? std::min<int64_t>(size[d], 1) : size[d]); ++i)
    allow_view(p + i * stride[d], size, stride, d, item, writable);
}

class Memory {
 public:
  Memory() = default;
  ~Memory() {
    emulate::clear_memory();
  }
  Memory(const Memory&) = delete;
};

void whole(int64_t begin, int64_t end, int64_t n) {
  if (begin != 0 || end != n) throw std::runtime_error("emulated device: runs with one thread alone");
}
void check(cudaError_t error) {
  if (error != cudaSuccess) throw std::runtime_error("emulated device: error " + std::to_string(error));
}

Path run_softmax(const Softmax& call, int64_t begin, int64_t end) {
  whole(begin, end, call.rows());
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

const LoopFn no_loops[kOps][kDTypes][kLoopVariants] = {};

} // namespace
} // namespace inplace_ext

extern "C" {

__attribute__((visibility("default"))) const inplace_ext::CpuKernels* inplace_ext_cpu_kernels() {
  using namespace inplace_ext;
  static const CpuKernels kernels = {kAbiVersion, 16,      "emulated",  no_loops, nullptr, nullptr,
                                     nullptr,     nullptr, run_softmax, nullptr,  nullptr};
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
// The launches since the last call, a line each, columns apart by tabs.
__attribute__((visibility("default"))) const char* inplace_ext_emulate_launches() {
  static std::string text;
  std::ostringstream out;
  for (const emulate::Launch& l : emulate::take_launches()) {
    out << l.kernel << '\t' << static_cast<uint64_t>(l.grid.x) * l.grid.y * l.grid.z << '\t'
        << l.block.x * l.block.y * l.block.z << '\t' << l.bytes_read << '\t' << l.bytes_written << '\t'
        << l.sectors_read << '\t' << l.sectors_written << '\t' << l.instructions << '\t' << l.widest_read << '\t'
        << l.widest_write << '\n';
  }
  text = out.str();
  return text.c_str();
}
}
