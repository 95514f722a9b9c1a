// Transposition where the data lies, with scratch memory that does not grow with it.
#pragma once
#include <cstdint>
#include <memory>
#include <vector>

#include "inplace_ext/program.h"

namespace inplace_ext {

// Bytes of the scratch memory through which data is turned. Tests make it small.
extern int64_t panel_bytes;
constexpr int64_t kMinPanelBytes = 64 << 10;

// `batch` matrices of `rows` x `columns` blocks of `bytes`, one behind the other without gaps, each of which
// is to be transposed.
struct Swap {
  int64_t batch, rows, columns, bytes;

  int64_t matrix_bytes() const {
    return rows * columns * bytes;
  }
};

// The transpositions, in order, that bring dims of these sizes, the outermost first, into another order:
// order[i] is the dim that becomes dim i.
std::vector<Swap> plan_swaps(const std::vector<int64_t>& sizes, const std::vector<int>& order, int64_t item);

// Elements to be moved together, towards the first of them: the tensor in the order in which they are to lie,
// dim 0 the innermost, steps in bytes. Every `unit` elements come from memory that the units after them do
// not lie in.
struct Gather {
  std::vector<int64_t> sizes, steps;
  int64_t unit;
};

// Carries transpositions out. What they need of memory is found out and allocated before anything is written,
// so that nothing can fail half-way.
class Transposer {
 public:
  explicit Transposer(const CpuKernels& kernels);
  // Gathers first, if `first` is not null, then makes the transpositions one after the other, of elements of
  // `item` bytes. Throws std::bad_alloc before it has written anything.
  void run(char* data, const Gather* first, const std::vector<Swap>& swaps, int64_t item);
  // The way that the last of them went, and the scratch memory that all needed.
  Path path() const {
    return path_;
  }
  int64_t scratch_bytes() const {
    return needed_;
  }

 private:
  // A side in parts of the same length, and what is left of it.
  struct Cut {
    int64_t part, parts, rest;
    int64_t whole() const {
      return part * parts;
    }
  };
  static Cut cut(int64_t side, int64_t least, int64_t most, int64_t rest_bytes);

  void gather(char* data, const Gather& g, int64_t item);
  void transpose(char* data, const Swap& swap);
  void buffered(char* data, const Swap& swap);
  void tiles(char* data, const Swap& swap);
  void cycles(char* data, const Swap& swap);
  void wide_strips(const Matrix& m);
  void tall_strips(const Matrix& m);
  void panels(const Matrix& m, const Cut& down, const Cut& across);
  void large_panels(const Matrix& m);

  void turn(const Turn& t);
  void copy(char* to, const char* from, int64_t bytes);
  void spread(char* to, int64_t pitch, const char* from, int64_t rows, int64_t bytes);
  void repitch(char* data, int64_t rows, int64_t bytes, int64_t from_pitch, int64_t to_pitch);

  // Scratch memory beside what is in use, for as long as this lives.
  class Scratch;

  const CpuKernels& kernels_;
  const int64_t threads_;
  Path path_ = Path::gathered;
  bool planning_ = false; // only what is needed is to be found out
  int64_t used_ = 0, needed_ = 0;
  std::unique_ptr<char[]> memory_;
};

} // namespace inplace_ext
