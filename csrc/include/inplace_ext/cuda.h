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
// The operation of one's own in a program, of which a library of kernels has one at most: its code, kNoOwn
// where there is none, and kSeveralOwn.
constexpr int kNoOwn = -1, kSeveralOwn = -2;
inline int own_code(const Program& program) {
  int own = kNoOwn;
  for (int i = 0; i < program.stages; ++i) {
    const int code = program.stage[i].code;
    if (code < kFirstAdded || code >= kOpCodes || code == own) continue;
    own = own == kNoOwn ? code : kSeveralOwn;
  }
  return own;
}
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

// The points of an index in the order of their places, stably. Places are numbers that are the same where the
// indices mean the same, of int64 or int32; `point` says which point each is of, in C order. Null both where
// the order does not matter.
struct PointOrder {
  const void* place = nullptr;
  const int64_t* point = nullptr;
  bool wide = false;
};
// Whether places take 64 bits.
inline bool wide_places(const Indexed& call) {
  int64_t places = 1;
  for (int k = 0; k < call.indices; ++k) {
    if (call.index[k].length > INT32_MAX / places) return true;
    places *= call.index[k].length;
  }
  return false;
}

// The parts of a mask, whose true elements are counted before each can have its own of the source.
constexpr int64_t kMaskParts = 4096;
inline bool counts_mask(const Masked& call) {
  return call.put == Put::copy && call.source_step != 0;
}

// The same turn of each of `batch` matrices, so many bytes apart, which are whole blocks. `to` may be `from`,
// without gaps and with the same steps, where a block of threads holds a matrix.
struct Turns {
  Turn each;
  int64_t batch, to_step, from_step;
};
// Matrices one behind the other.
struct Matrices {
  Matrix first;
  int64_t batch;
};
// Blocks of so many bytes are moved as a whole, two sectors or nearly so: with larger ones cut, prime sides
// leave too much over.
constexpr int64_t kWholeBytes = 48;
// The bytes, up to 16, by which something of this size at these places can be moved.
inline int word_of(int64_t bytes, const void* a, const void* b) {
  const uint64_t bits =
      static_cast<uint64_t>(bytes) | reinterpret_cast<uint64_t>(a) | reinterpret_cast<uint64_t>(b) | 16;
  return static_cast<int>(bits & (~bits + 1));
}
// The shared memory of a block of threads, as much as every device has, and whether it holds a matrix, whose
// words have four bytes at least there.
constexpr int64_t kHeldBytes = 48 << 10;
inline bool holds(const Matrix& m) {
  const int word = word_of(m.bytes, m.data, nullptr);
  const int64_t line = m.columns * (m.bytes / word) | 1;
  return m.rows <= kHeldBytes / (line * (word < 4 ? 4 : word));
}

} // namespace cuda

// Every launch goes to the stream, a cudaStream_t of the current device, and waits for nothing. What comes
// back is a cudaError_t.
constexpr uint32_t kCudaAbiVersion = 3;
struct CudaKernels {
  uint32_t abi, table; // kCudaAbiVersion and table_fingerprint() of the build
  int toolkit;         // CUDART_VERSION
  const char* architectures;
  const char* (*message)(int error);
  int (*device)(int index, Device&);
  // Whether there is an interpreter for programs of this kind.
  bool (*serves)(const Program&, const DType* dtypes, int tensors);
  // Not for spaces, rows or lists without elements.
  int (*run)(const Program&, const Space&, const Device&, void* stream, Path&);
  int (*run_list)(const cuda::List&, void* stream);
  int (*softmax)(const Softmax&, const Device&, void* stream, Path&);
  int (*dropout)(const Dropout&, const Device&, void* stream, Path&);
  // The parts of a tensor, of which each has a sum; the sums of the parts of a list; what the norm and the
  // factor of clipping to `most` are, of the dtype and of its compute type in device memory; the scaling.
  int64_t (*norm_parts_of)(int64_t count);
  int (*norm_parts)(const cuda::TensorList&, DType, Norm, double* sums, const Device&, void* stream);
  int (*norm_final)(const double* sums, int64_t parts, DType, Norm, double most, void* total, void* factor,
                    void* stream);
  int (*scale_by)(const cuda::TensorList&, DType, const void* factor, const Device&, void* stream);
  // Ends all work of the context where an index is out of range. Writes the place of each point to `places`
  // unless that is null; then only the indices are looked at.
  int (*check_indices)(const Indexed&, bool negative, void* places, const Device&, void* stream);
  // For indices in range. `bits` are those of an element that is filled with.
  int (*put_indexed)(const Indexed&, const cuda::PointOrder&, uint64_t bits, const Device&, void* stream);
  // `counts` is room for kMaskParts numbers where counts_mask(): all work of the context ends then where the
  // source's parts for `available` elements are too few, or with `exactly` another number.
  int (*put_masked)(const Masked&, uint64_t bits, int64_t available, bool exactly, int64_t* counts,
                    const Device&, void* stream);
  // Layouts, of matrices with elements: turned; squares of less than kWholeBytes a block transposed in place;
  // any matrices of at most 2^32 - 1 blocks transposed along their cycles. Of these one block in each 2^shift
  // is kept in `saved` meanwhile; none where the shift is 0.
  int (*turn)(const cuda::Turns&, const Device&, void* stream);
  int (*swap_squares)(const cuda::Matrices&, const Device&, void* stream);
  int (*move_cycles)(const cuda::Matrices&, int shift, void* saved, const Device&, void* stream);
};

// What a library of one operation of one's own exports: the interpreters, with that operation beside the
// table's. They run programs that have it, whatever its code.
struct CudaOperation {
  uint32_t abi, table; // kCudaAbiVersion, table_fingerprint()
  OpInfo info;
  int (*run)(const Program&, const Space&, const Device&, void* stream, Path&);
  int (*run_list)(const cuda::List&, void* stream);
};

} // namespace inplace_ext
