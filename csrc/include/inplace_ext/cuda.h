// What the device's kernels offer to the bindings. Plain data: no torch here, and no CUDA.
#pragma once
#include <cstdint>

#include "inplace_ext/program.h"

namespace inplace_ext {

// What the choice of grids needs to know of a device.
struct Device {
  int processors;   // streaming multiprocessors
  int shared_bytes; // of a block, at most, where it asks for more than 48 KiB (sharedMemPerBlockOptin)
  int threads_per_processor;
};

namespace cuda {

// Where the seed and the offset of dropout come from. Drawn by a generator of the device they are known to it
// alone, also where a CUDA graph draws others at each replay: `seed_at` is not null then, and the blocks
// begin `offset` after what is at `offset_at`.
struct DropoutSeed {
  uint64_t seed, offset;
  const int64_t *seed_at = nullptr, *offset_at = nullptr;
};

// The same program on each item of lists of tensors: `words` holds the addresses of an item's tensors and
// their number of elements, for all items one after the other. The tensors are dense and those of an item lie
// alike. An item without elements is passed over.
struct List {
  const Program* program;
  int tensors;
  const DType* dtypes;
  int64_t items;
  const uint64_t* words;
};
// Whether a program may run on lists, of items with n elements.
inline bool fits_list(const Program& program, int64_t n) {
  return program.draws == 0 && n <= INT32_MAX / 2;
}

// Dense tensors of one dtype, none of them empty, that a launch works on: a kernel's parameter.
constexpr int kListed = 128;
struct TensorList {
  int tensors;
  char* data[kListed];
  int64_t count[kListed];
  int64_t first[kListed + 1]; // the number of the first part of each, and of all parts
};

} // namespace cuda

// Every launch goes to the stream, a cudaStream_t of the current device, and waits for nothing. What comes
// back is a cudaError_t.
constexpr uint32_t kCudaAbiVersion = 1;
struct CudaKernels {
  uint32_t abi;
  int toolkit; // CUDART_VERSION
  const char* architectures;
  const char* (*message)(int error);
  int (*device)(int index, Device&);
  // Not for spaces, rows or lists without elements.
  int (*run)(const Program&, const Space&, const Device&, void* stream, Path&);
  int (*run_list)(const cuda::List&, void* stream);
  int (*softmax)(const Softmax&, const Device&, void* stream, Path&);
  int (*dropout)(const Dropout&, const cuda::DropoutSeed&, const Device&, void* stream, Path&);
  // The parts of a tensor, of which each has a sum; the sums of the parts of a list; what the norm and the
  // factor of clipping to `most` are, of the dtype and of its compute type in device memory; the scaling.
  int64_t (*norm_parts_of)(int64_t count);
  int (*norm_parts)(const cuda::TensorList&, DType, Norm, double* sums, const Device&, void* stream);
  int (*norm_final)(const double* sums, int64_t parts, DType, Norm, double most, void* total, void* factor,
                    void* stream);
  int (*scale_by)(const cuda::TensorList&, DType, const void* factor, const Device&, void* stream);
};

} // namespace inplace_ext
