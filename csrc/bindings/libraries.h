// The kernel libraries: which are loaded, which is in use, and what operations were added to them.
#pragma once
#include <Python.h>

#include <string>
#include <utility>
#include <vector>

#include "tensors.h"

namespace inplace_ext {

// Loads the kernels of an instruction set; returns its name. Those that were loaded before are replaced, and
// the operations that were added stay.
std::string load_kernels(const std::string& path);
// Loads the library of the device's kernels; says of which toolkit they are and of which architectures.
std::pair<int, std::string> load_cuda_kernels(const std::string& path);
void use_capability(const std::string& name);
// Whether what is bound by memory may be left to kernels of a narrower instruction set; true at first.
void let_stream(bool streams);
std::vector<std::string> loaded_capabilities();

// An operation whose kernels come from libraries of their own (inplace_ext/jit.py).
struct AddedOp {
  static constexpr int kMaxOperands = 3;
  std::string name;
  // Beside the tensor that is changed: operands that may be tensors, then numbers.
  int tensors = 0, operands = 0;
  PyObject* otherwise[kMaxOperands] = {}; // the defaults; null where there is none
};
// Gives an operation a code. `otherwise` has an item for each operand: its default, or None.
int add_operation(const std::string& name, int tensors, const std::vector<PyObject*>& otherwise);
// Loads the kernels of one operation, for one instruction set, and lets the code mean them. The code is one
// of add_operation(), or that of an operation of the table, which they replace.
std::string load_operation(int code, const std::string& path);
// Loads the device's kernels of an operation that was added.
void load_cuda_operation(int code, const std::string& path);
// The code of an operation of the table, or -1.
int code_named(const std::string& name);

const AddedOp& added_op(Op op);
// Whether the CPU's kernels in use have the operation in a compute type.
inline bool has_kernels(Op op, DType compute) {
  const LoopFn* const loop = active_kernels->loop[static_cast<int>(op)][static_cast<int>(compute)];
  return loop[0] != nullptr || loop[kLoopVariants - 1] != nullptr || loop[kScalarB] != nullptr;
}
// What an added operation is called as a kernel: "@" and its code.
bool find_added(const std::string& kernel, Op& op);

} // namespace inplace_ext
