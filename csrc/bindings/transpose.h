// Transposition where the data lies, with scratch memory that does not grow with it.
#pragma once
#include <ATen/core/Tensor.h>

#include <algorithm>
#include <cstdint>
#include <memory>
#include <vector>

#include "inplace_ext/cuda.h"
#include "inplace_ext/program.h"

namespace inplace_ext {

// Bytes of the scratch memory through which data is turned on the CPU; a device takes half as much again, or
// more for large tensors. Tests make it small.
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

// Elements to be moved together, towards the first of them: the tensor in the order in which they are to lie,
// dim 0 the innermost, steps in bytes. Every `unit` elements come from memory that the units after them do
// not lie in.
struct Gather {
  std::vector<int64_t> sizes, steps;
  int64_t unit;
};

// Carries transpositions out. What they need of memory is found out and allocated before anything is written,
// so that nothing can fail half-way. What is done with the data, and by which way, is the backend's affair.
class Transposer {
 public:
  virtual ~Transposer() = default;
  Transposer(const Transposer&) = delete;

  // The transpositions, in order, that bring dims of these sizes, the outermost first, into another order:
  // order[i] is the dim that becomes dim i.
  std::vector<Swap> plan_swaps(const std::vector<int64_t>& sizes, const std::vector<int>& order,
                               int64_t item) const;
  // Gathers first, if `first` is not null, then makes the transpositions one after the other, of elements of
  // `item` bytes. Throws before it has written anything where there is not enough memory.
  void run(char* data, const Gather* first, const std::vector<Swap>& swaps, int64_t item);
  // The way that the last of them went.
  Path path() const {
    return path_;
  }
  // The memory that one transposition needs.
  int64_t scratch_bytes(const Swap& swap);
  // Bytes that are gathered at once.
  int64_t panel() const {
    return panel_;
  }

 protected:
  explicit Transposer(int64_t panel) : panel_(panel) {}

  // A side in parts of the same length, and what is left of it.
  struct Cut {
    int64_t part, parts, rest;
    int64_t whole() const {
      return part * parts;
    }
  };
  // Scratch memory beside what is in use, for as long as this lives.
  class Scratch {
   public:
    Scratch(Transposer& owner, int64_t bytes);
    ~Scratch();
    Scratch(const Scratch&) = delete;
    Scratch& operator=(const Scratch&) = delete;
    char* data() const {
      return data_;
    }

   private:
    Transposer& owner_;
    int64_t bytes_;
    char* data_ = nullptr;
  };

  // How often a transposition reads and writes the data, about.
  virtual double passes(const Swap& swap) const = 0;
  // Aligned to 16 bytes, and the caller's until the end of the call.
  virtual char* allocate(int64_t bytes) = 0;
  // While `planning_`, these only ask for scratch memory.
  virtual void gather(char* data, const Gather& g, int64_t item) = 0;
  virtual void transpose(char* data, const Swap& swap) = 0;
  virtual void turn(const Turn& t) = 0;
  virtual void copy(char* to, const char* from, int64_t bytes) = 0;
  // Moves rows nearer together or further apart.
  virtual void repitch(char* data, int64_t rows, int64_t bytes, int64_t from_pitch, int64_t to_pitch) = 0;

  // The gathering of `space.tensor[1]` into `space.tensor[0]` without gaps; the words of an element, of which
  // complex128 has two.
  static int64_t move_of(const Gather& g, int64_t item, Program& move, Space& space);
  // Rows without gaps to places that are `pitch` apart.
  void spread(char* to, int64_t pitch, const char* from, int64_t rows, int64_t bytes);
  // The same through scratch memory, as many bytes of rows at a time.
  void repitch_by(int64_t group_bytes, char* data, int64_t rows, int64_t bytes, int64_t from_pitch,
                  int64_t to_pitch);
  // Ways to transpose: of many matrices where nothing is left over.
  void wide_strips(char* data, const Swap& s, const Cut& c);
  void tall_strips(char* data, const Swap& s, const Cut& c);
  void large_panels(char* data, const Swap& s, const Cut& down, const Cut& across);
  // f(data, swap) for each matrix on its own; one of them tells what all need.
  template <class F>
  void each(char* data, const Swap& s, const F& f) {
    for (int64_t i = 0; i < (planning_ ? 1 : s.batch); ++i)
      f(data + i * s.matrix_bytes(), Swap{1, s.rows, s.columns, s.bytes});
  }

  // What is left of the panel beside the scratch memory in use.
  int64_t room() const {
    return std::max(panel_ - used_, kMinPanelBytes / 4);
  }

  const int64_t panel_;
  Path path_ = Path::gathered;
  bool planning_ = false; // only what is needed is to be found out

 private:
  int64_t used_ = 0, needed_ = 0;
  char* memory_ = nullptr;
};

// By the CPU's kernels, each pass shared among the threads.
class HostTransposer final : public Transposer {
 public:
  explicit HostTransposer(const CpuKernels& kernels);

 private:
  double passes(const Swap& swap) const override;
  char* allocate(int64_t bytes) override;
  void gather(char* data, const Gather& g, int64_t item) override;
  void transpose(char* data, const Swap& swap) override;
  void turn(const Turn& t) override;
  void copy(char* to, const char* from, int64_t bytes) override;
  void repitch(char* data, int64_t rows, int64_t bytes, int64_t from_pitch, int64_t to_pitch) override;

  static Cut cut(int64_t side, int64_t least, int64_t most, int64_t rest_bytes);
  void buffered(char* data, const Swap& swap);
  void tiles(char* data, const Swap& swap);
  void cycles(char* data, const Swap& swap);
  void panels(char* data, const Swap& swap, const Cut& down, const Cut& across);

  const CpuKernels& kernels_;
  const int64_t threads_;
  std::unique_ptr<char[]> memory_;
};

// By the device's kernels, launched on a stream one after the other. Nothing waits for them, and what is
// launched follows from sizes and addresses alone.
class DeviceTransposer final : public Transposer {
 public:
  // For a tensor of so many bytes; scratch memory is had with `options`.
  DeviceTransposer(const CudaKernels& kernels, const Device& device, void* stream, int64_t bytes,
                   const at::TensorOptions& options);

 private:
  double passes(const Swap& swap) const override;
  char* allocate(int64_t bytes) override;
  void gather(char* data, const Gather& g, int64_t item) override;
  void transpose(char* data, const Swap& swap) override;
  void turn(const Turn& t) override;
  void copy(char* to, const char* from, int64_t bytes) override;
  void repitch(char* data, int64_t rows, int64_t bytes, int64_t from_pitch, int64_t to_pitch) override;

  static Cut cut(int64_t side, int64_t least, int64_t most, int64_t bytes, int64_t rest_bytes);
  void gather_box(const Gather& box, char* to, char* from, int64_t item, char* panel);
  void move(const Gather& box, char* to, char* from, int64_t item);
  void turn_all(const cuda::Turns& turns);
  void held(char* data, const Swap& swap);
  void through_panel(char* data, const Swap& swap);
  void tiles(char* data, const Swap& swap);
  void cycles(char* data, const Swap& swap);
  void check(int error) const;

  const CudaKernels& kernels_;
  const Device device_;
  void* const stream_;
  const at::TensorOptions options_;
  at::Tensor memory_;
};

} // namespace inplace_ext
