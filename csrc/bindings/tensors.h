// What the fast path takes and how it lays tensors out for a kernel. Everything here only looks: a tensor is
// written by execute() alone, after every check has passed.
#pragma once
#include <Python.h>

#include <ATen/core/Tensor.h>

#include "inplace_ext/operations.h"
#include "inplace_ext/program.h"

namespace inplace_ext {

// Kernels in use, or null where none is loaded (everything delegates then).
extern const CpuKernels* active_kernels;
// Kernels for cheap loops over several tensors that no cache holds; the active ones where there are no
// better.
extern const CpuKernels* streaming_kernels;
// Bytes from which a fill or copy writes past the caches.
extern int64_t streaming_move_bytes;

// Which path the last call on this thread took.
enum class Taken : uint8_t { none, torch, native, device };
struct LastPath {
  Taken taken = Taken::none;
  Path path = Path::loop;
};
extern thread_local LastPath last_path;

// Dtypes that have kernels.
bool to_dtype(at::ScalarType type, DType& out);

// A Python number, or the value of a CPU tensor of no dims: what torch calls a scalar.
struct Number {
  enum Category : uint8_t { boolean, integer, floating } category;
  union {
    int64_t i;
    double d;
  };
  double as_double() const {
    return category == floating ? d : static_cast<double>(i);
  }
};
// False (and no Python error) where the object is no number that the fast path takes.
bool to_number(PyObject* object, Number& out);

// True if no mode, functorch level, tracer or the like stands between the caller and the kernels.
bool no_modes();

// A plain dense tensor with nothing to record, on the CPU, or on a CUDA device where the kernels for it are
// loaded: the only kind that the fast path takes. The tensors of a call must be on one device.
// Null where the object is anything else.
const at::Tensor* plain_tensor(PyObject* object);
// The same for the tensor that is written: in addition no two of its elements may share memory.
const at::Tensor* writable_tensor(PyObject* object);

// Whether programs on x run as on a device: without plain loops beside them, and with one operation of one's
// own in a program, whose library runs it. So it is too where the tests emulate a device.
bool runs_as_device(const at::Tensor& x);

// A tensor without memory, of no dims.
at::Tensor shape_only(at::ScalarType dtype, c10::Device device);

// The dims of x that have more than one element, those of neighbours in memory first.
c10::SmallVector<int64_t, kMaxDims> dims_in_memory(const at::Tensor& x);

// Whether an in-place operation on x may have t as an operand: t broadcasts to x and leaves its shape, and is
// on its device.
bool broadcasts_to(const at::Tensor& t, const at::Tensor& x);

// An operand of an operation: absent, a number in the form of the compute type, or a tensor.
struct Argument {
  Operand kind = Operand::none;
  Scalar scalar{};
  const at::Tensor* tensor = nullptr;
};

// How a call ended: done, or done with nothing to change, or torch is to do it (and to raise what is to be
// raised), or a Python error is set.
enum class Outcome : uint8_t { done, unchanged, delegate, error };

// x = op(x, b, c, d) computed in `compute`; x and the tensors have passed the checks above. Checks what is
// left, shapes and overlap, then runs.
Outcome execute(Op op, const at::Tensor& x, DType x_dtype, DType compute, Argument b = {}, Argument c = {},
                Scalar d = {});
// x = source, converted.
Outcome execute_move(const at::Tensor& x, DType x_dtype, Argument source);
// Any program; the first mutated tensor gives the shape. The tensors are taken as they come from Python and
// checked here; sets a Python error where they do not fit.
Outcome execute_program(const Program& program, const at::Tensor* const* tensors, const bool* mutated,
                        int count);

// The same for tensors of which all that is known to fit.
Outcome execute_pass(const Program& program, const at::Tensor* const* tensors, const bool* mutated,
                     int count);
// Many programs, each on tensors that are known to fit it and have at most kMaxDims dims.
struct Work {
  const Program* program;
  const at::Tensor* const* tensors;
  const bool* mutated;
  int count;
};
// Runs them in order, or with `concurrently` at the same time, the elements of all together shared evenly
// among the threads.
void execute_all(const Work* work, int64_t count, bool concurrently);
// Whether two tensors may share memory without lying at the same places in it.
bool share_memory(const at::Tensor& a, const at::Tensor& b);

// Finds out whether the operand can be read while elements of x are written in another order than its own,
// and as what: itself, or a copy where they share memory and it is small. Leaves to torch what torch refuses.
Outcome take_unshared(const at::Tensor& x, const at::Tensor& operand, bool torch_refuses, at::Tensor& copy,
                      const at::Tensor*& out);

// True if an integer tensor holds a zero.
bool holds_zero(const at::Tensor& t, DType dtype);

// x has changed: tell autograd, as torch's in-place operations do.
void bump_version(const at::Tensor& x);

} // namespace inplace_ext
