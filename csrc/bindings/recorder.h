// Operations that are written down instead of run, and turned into programs: what fuse is made of.
#pragma once
#include <c10/util/SmallVector.h>

#include "tensors.h"

namespace inplace_ext {

// An operand of a step: a number, or a value.
struct StepOperand {
  Operand kind = Operand::none; // tensor stands for any value
  int value = -1;
  Scalar scalar{};
};
// x = op(x, b, c, d) on a value, or a move x = b.
struct Step {
  static constexpr uint16_t kMove = kOps;
  uint16_t op;
  int target;
  DType dtype, compute; // of the target, and what is computed in
  StepOperand b, c;
  Scalar d{};
  bool rounds = false; // a move to a narrower type
};

// A value: a tensor among the arguments, or a temporary, which never reaches memory.
struct Value {
  const at::Tensor* tensor; // of a temporary only dtype and shape count
  bool temporary;
  bool changed = false;    // by a step so far
  DType held = DType::f32; // of a temporary: the compute type of what it holds
};

// While one is in force on a thread, execute() and execute_move() add steps to it and run nothing.
class Recorder {
 public:
  // The value that a tensor stands for.
  int add(const at::Tensor& tensor, bool temporary);
  Outcome record(Op op, const at::Tensor& x, DType x_dtype, DType compute, const Argument& b,
                 const Argument& c, Scalar d);
  Outcome record_move(const at::Tensor& x, DType x_dtype, const Argument& source);
  // Whether the data of a tensor are what they will be when the steps run.
  bool is_settled(const at::Tensor& tensor) const;

  c10::SmallVector<Value, 8> values;
  c10::SmallVector<Step, 8> steps;

 private:
  int find(const at::Tensor& tensor) const;
  bool take(const Argument& argument, const at::Tensor& x, DType compute, StepOperand& out) const;
};
extern constinit thread_local Recorder* recorder;

// A pass over memory: a program and the tensors that it runs on, as indices of values.
struct Pass {
  Program program;
  int tensors = 0;
  int value[kMaxTensors];
  bool mutated[kMaxTensors] = {};
};
using Passes = c10::SmallVector<Pass, 1>;
// The steps as passes over memory, as few as will do. With `round_each` the 16-bit floats are rounded after
// every step, as eager calls do; without it once, when they are stored. Empty where the steps do not fit: of
// several compute types, or of more temporaries than there are registers; `reason` says so.
Passes lower(const Recorder& recorded, bool round_each, const char*& reason);

} // namespace inplace_ext
