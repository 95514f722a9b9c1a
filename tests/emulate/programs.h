// What the files of the emulated library share.
#pragma once
#include <algorithm>
#include <mutex>
#include <stdexcept>
#include <string>

#include "control.h"
#include "device.cuh"
#include "inplace_ext/program.h"

namespace inplace_ext {

extern Device device;

// How programs run: as the host chooses; with 64-bit indices; or, where all tensors are contiguous, as lists,
// of items of all lengths that begin anywhere, or of long ones that begin where a sector does.
enum class ProgramsAs { chosen, wide, lists, long_lists };
extern ProgramsAs programs_as;

// The kernels of one operation of one's own (own.h), which the bindings take for those of an instruction set.
struct OwnOperation : OpKernels {
  cudaError_t (*run)(const Program&, const Space&, const Device&, Path&, bool wide);
  cudaError_t (*run_list)(const cuda::List&);
};
extern const OwnOperation* own_operations[kOpCodes];
// Whether seeds are in memory of the device, as while a graph is captured.
extern bool seed_in_memory;
// Draws with the seed there, and a part of the offset; what is left of it goes by value.
struct State {
  int64_t words[2];
  Draws draws;
  explicit State(const Draws& from)
      : words{static_cast<int64_t>(from.seed), static_cast<int64_t>(from.offset % 1000)}, draws(from) {
    if (!seed_in_memory) return;
    emulate::allow(words, sizeof(words), sizeof(int64_t), false);
    draws = {0, from.offset - from.offset % 1000, words};
  }
  State(const State&) = delete;
};

Path run_program(const Program& program, const Space& space, int64_t begin, int64_t end);
// Of the host, for numbers.
void convert_all(void* dst, DType dst_dtype, const void* src, DType src_dtype, int64_t n, bool stream);
bool contains_zero(const void* x, DType dtype, int64_t n);

// Lets the kernels touch the elements of a view, and nothing else.
inline void allow_view(const char* p, const int64_t* size, const int64_t* stride, int dims, int item,
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
  static inline std::mutex one_at_a_time;
  std::lock_guard<std::mutex> lock_;
};

inline void check(cudaError_t error) {
  if (error != cudaSuccess) throw std::runtime_error("emulated device: error " + std::to_string(error));
}

} // namespace inplace_ext
