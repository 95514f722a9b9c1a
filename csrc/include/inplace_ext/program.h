// Programs: what the bindings hand to a backend. Plain data, no torch, the same for CPU and device.
//
// A program is a list of stages over an accumulator. A stage loads the accumulator, changes it with an
// operation of the op table whose operands are scalars, tensors or temporaries, or stores it. Every tensor
// element is read and written once, in the order of the stages; temporaries never reach memory.
// A single in-place operation is the program {load 0; op; store 0}.
#pragma once
#include <cstdint>

#include "inplace_ext/dtype.h"
#include "inplace_ext/op_table.h"

namespace inplace_ext {

constexpr int kMaxTensors = 16;
constexpr int kMaxStages = 96;
constexpr int kMaxScalars = 64;
constexpr int kMaxTemporaries = 8;
constexpr int kMaxDraws = 4;
constexpr int kMaxDims = 16;

// Stage codes beside the operations of the table. kRound rounds the accumulator to the dtype `b`, as a store
// and a load would: a chain uses it where each operation must round on its own.
enum StageCode : uint16_t { kLoad = kOpCodes, kStore, kRound, kStageCodes };

enum class Operand : uint8_t { none, scalar, tensor, temporary };

struct Stage {
  uint16_t code;
  Operand b_kind, c_kind;
  uint8_t b, c; // index of the scalar, tensor or temporary; for kRound the dtype
  uint8_t d;    // index of the scalar that is the third operand, where the operation has one
};

// A scalar of the program in the form of its compute type: d for float32 and float64, i for integers.
union Scalar {
  double d;
  int64_t i;
};

// Random numbers, one for each element of a mask, as philox.h says.
struct Draws {
  uint64_t seed, offset;
  // Drawn by a generator of a device the seed is known to that alone, also where a CUDA graph draws another
  // at each replay: it is here then, in memory of the device, and what is added to the offset after it.
  const int64_t* state;
};

struct Program {
  DType compute;
  int stages;
  Stage stage[kMaxStages];
  Scalar scalar[kMaxScalars];
  // The tensors that are no memory but draws, each as a number of the compute type.
  int draws = 0;
  struct {
    uint8_t tensor;
    Draws from;
  } draw[kMaxDraws];

  const Draws* drawn(int tensor) const {
    for (int i = 0; i < draws; ++i) {
      if (draw[i].tensor == tensor) return &draw[i].from;
    }
    return nullptr;
  }
};

struct TensorArg {
  char* data;
  DType dtype;
  bool mutated;
  int64_t stride[kMaxDims]; // bytes; dim 0 is the innermost; 0 broadcasts
  // Of a tensor that is drawn, else null: `data` points to anything then, and from there to an element are as
  // many bytes as the element's place in the mask says.
  const Draws* drawn;
};

// The index space that all tensors of a program are walked over, dims already merged where they can be.
struct Space {
  int dims;
  int64_t size[kMaxDims]; // dim 0 is the innermost
  int tensors;
  TensorArg tensor[kMaxTensors];

  int64_t numel() const {
    int64_t n = 1;
    for (int d = 0; d < dims; ++d) n *= size[d];
    return n;
  }
};

// softmax or log_softmax of each row: the elements along one dim, at each index of the other dims.
struct Softmax {
  bool logarithm;
  DType dtype, mask_dtype; // the mask is of bools or of the dtype
  char* data;
  int64_t shift;    // bytes from an element to its result: 0 in place
  const char* mask; // null where there is none
  double scale;
  int64_t length, stride, mask_stride; // along the dim; strides in bytes
  int dims;                            // the others, already merged where they can be; dim 0 is the innermost
  int64_t size[kMaxDims], step[kMaxDims], mask_step[kMaxDims];

  int64_t rows() const {
    int64_t n = 1;
    for (int d = 0; d < dims; ++d) n *= size[d];
    return n;
  }
};

// Dropout of the elements along dim 0 at each index of the others. Which of them are kept follows from their
// places in the mask, whose elements are drawn as philox.h says.
struct Dropout {
  DType dtype;
  char* data;
  int64_t shift; // bytes from an element to its result: 0 in place
  Draws from;
  uint32_t threshold; // an element is kept where its draw is no less
  // A kept element becomes x * scale + kept, one that is dropped x * 0 + dropped. Without `shifts` the two
  // are 0, and not added: -0.0 stays.
  double scale, kept, dropped;
  bool shifts;
  int dims;                               // at least 1
  int64_t size[kMaxDims], step[kMaxDims]; // steps in bytes
  int64_t place[kMaxDims];                // from an element to the next, in elements of the mask

  int64_t lines() const {
    int64_t n = 1;
    for (int d = 1; d < dims; ++d) n *= size[d];
    return n;
  }
};

// What is done at the places that an index or a mask says.
enum class Put : uint8_t { fill, copy, add };

constexpr int kMaxIndices = 4;
// A tensor of indices, each checked to be in [-length, length).
struct Index {
  const char* data;
  bool wide;              // int64, else int32
  int64_t length, stride; // of the dim of x that it is for; stride in bytes
  int64_t step[kMaxDims]; // bytes
};

// Which part of the work is a thread's own: where the first index is in its range, or a range of a dim along
// which no place of x comes twice.
constexpr int kByDestination = -1;

// x[.., index, ..] = source, or value, or x + alpha * source. The dims are those of the indices and those of
// x beside them in one list, dim 0 the innermost: along the former only the indices say where x is, and
// `step` is 0. Dims of the former kind keep their order.
struct Indexed {
  Put put;
  DType dtype;   // of x and source
  bool scaled;   // `scalar` is alpha
  bool rows;     // no index moves along dim 0
  bool negative; // some index counts from the end
  char* data;
  const char* source;
  Scalar scalar; // in the form of the moves for fill, of the compute type for add
  int dims;      // at least 1, with rows 2
  int64_t size[kMaxDims], step[kMaxDims], source_step[kMaxDims]; // steps in bytes
  int indices;
  Index index[kMaxIndices];
  int shared; // the dim, or kByDestination, whose range is shared among threads
};

// The same where a mask is true; what is copied comes from the source in order. The dims are those of the
// mask, in the order in which the source is taken.
struct Masked {
  Put put;
  DType dtype;
  char* data;
  const char* mask;
  const char* source;
  Scalar scalar;
  int64_t row;          // elements side by side in x for one of the mask
  int64_t source_step;  // bytes from the source of one to that of the next
  int64_t source_inner; // within a row: of neighbours, or 0
  int dims;             // at least 1
  int64_t size[kMaxDims], step[kMaxDims], mask_step[kMaxDims];
};

// What a norm is made of: the sum of the squares or of the magnitudes, or the largest magnitude.
enum class Norm : uint8_t { squares, magnitudes, largest };

// Blocks of so many bytes, in `rows` rows of `columns`: block (i, j) of `from` is to become block (j, i) of
// `to`, which shares no memory with it. Strides are from row to row, in bytes.
struct Turn {
  char* to;
  int64_t to_stride;
  const char* from;
  int64_t from_stride;
  int64_t rows, columns, bytes;
};

// Blocks of so many bytes, row by row without gaps, to be transposed where they are.
struct Matrix {
  char* data;
  int64_t rows, columns, bytes;
};

// Which way an execution went; tests ask for it.
enum class Path : uint8_t {
  loop,
  staged,
  blocked,
  program,
  move,
  streaming,
  rows,
  long_rows,
  columns,
  long_columns,
  gathered_rows,
  long_gathered_rows,
  draws,
  tiled_draws,
  gathered_draws,
  buffered,
  tiles,
  cycles,
  strips,
  panels,
  large_panels,
  gathered,
  index_rows,
  index_elements,
  mask_blocks,
  mask_rows,
  mask_elements,
  // Programs on the device: all tensors in packs of 16 bytes; so, but with rows apart or broadcast operands;
  // an element at a time; with 64-bit indices; lists of tensors.
  flat,
  strided,
  across,
  wide,
  listed,
  // Sizes and strides alone.
  metadata,
};

// One operation over contiguous arrays of its dtype, a mask in bytes:
// x[i] = op(x[i], b[i] or scalar[0], c[i] or scalar[1], scalar[2]).
using LoopFn = void (*)(void* x, const void* b, const void* c, const Scalar* scalar, int64_t n);
// Bits of the variant of a loop.
enum LoopVariant { kTensorOperands = 0, kScalarB = 1, kScalarC = 2, kLoopVariants = 4 };

// What a library of a single operation exports, for one instruction set: one that is added, or one of the
// table that was compiled alone.
struct OpKernels {
  uint32_t abi, table; // as of CpuKernels
  const char* capability;
  OpInfo info;
  LoopFn loop[kDTypes][kLoopVariants];
  void (*stage[kDTypes][kLoopVariants])(); // by compute type
};

// What a CPU kernel library exports, one library per instruction set.
constexpr uint32_t kAbiVersion = 12;
struct CpuKernels {
  uint32_t abi, table; // kAbiVersion and table_fingerprint() of the build
  int vector_bytes;
  const char* capability;
  // Null where the operation has no such form.
  const LoopFn (*loop)[kDTypes][kLoopVariants];
  // Runs elements [begin, end) of the space; ranges that do not meet may run concurrently.
  Path (*run)(const Program&, const Space&, int64_t begin, int64_t end);
  // Contiguous forms of the moves; if `stream`, where the types allow it, with stores that go past the
  // caches.
  void (*fill)(void* x, DType dtype, Scalar value, int64_t n, bool stream);
  void (*convert)(void* dst, DType dst_dtype, const void* src, DType src_dtype, int64_t n, bool stream);
  // True if an array of the integer type holds a zero: asked before a division writes anything.
  bool (*contains_zero)(const void* x, DType dtype, int64_t n);
  // Works on rows [begin, end); ranges that do not meet may run concurrently.
  Path (*softmax)(const Softmax&, int64_t begin, int64_t end);
  // Works on elements [begin, end) where there is one line, else on lines.
  Path (*dropout)(const Dropout&, int64_t begin, int64_t end);
  // Makes the code that of an operation, from now on.
  void (*set_operation)(int code, const OpKernels&);
  // Of an array of float32 or float64.
  double (*norm_part)(const void* x, DType dtype, int64_t n, Norm norm);
  // From one place to another.
  void (*turn)(const Turn&);
  // Transposes a square in place: units [begin, end) of square_units(); they may run concurrently.
  int64_t (*square_units)(int64_t side, int64_t bytes);
  void (*swap_square)(const Matrix&, int64_t begin, int64_t end);
  // Transposes any matrix in place by moving each block along its cycle, bytes [begin, end) of all blocks;
  // ranges that do not meet may run concurrently. `leaders` has a bit set for one block of each cycle; where
  // it is null they are looked for. find_leaders() sets the bits; both arrays are zeros before.
  void (*find_leaders)(const Matrix&, uint64_t* leaders, uint64_t* seen);
  void (*move_cycles)(const Matrix&, const uint64_t* leaders, int64_t begin, int64_t end);
  // Whether n indices, of int64 or int32, are all in [low, high).
  bool (*in_range)(const void* index, bool wide, int64_t step, int64_t n, int64_t low, int64_t high);
  // Works on [begin, end) of what is shared; ranges that do not meet may run concurrently.
  Path (*put_indexed)(const Indexed&, int64_t begin, int64_t end);
  // True elements among [begin, end) of the mask, in C order.
  int64_t (*count_mask)(const Masked&, int64_t begin, int64_t end);
  // Works on elements [begin, end) of the mask, before which `taken` were true.
  Path (*put_masked)(const Masked&, int64_t begin, int64_t end, int64_t taken);
  // Runs the whole space `count` times, each time with its tensors at the next of `data`; null where there is
  // no such form.
  Path (*run_each)(const Program&, Space&, char* const* data, int64_t count);
};

} // namespace inplace_ext
