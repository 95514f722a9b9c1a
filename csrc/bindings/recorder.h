// Operations that are written down instead of run, and turned into programs: what fuse is made of.
#pragma once
#include <ATen/core/Generator.h>
#include <c10/util/SmallVector.h>

#include <memory>
#include <optional>
#include <vector>

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

// What dropout draws. Without a seed it gets one from the generator, the default one of the device where none
// is given, when everything is known to fit.
struct Drawing {
  Draws from{};
  bool seeded = true;
  std::optional<at::Generator> generator;
};

// A value: a tensor among the arguments, a temporary, which never reaches memory, or numbers that are drawn.
struct Value {
  const at::Tensor* tensor; // of the last two only dtype and shape count
  bool temporary = false;
  bool changed = false;    // by a step so far
  DType held = DType::f32; // of a temporary: the compute type of what it holds
  std::optional<Drawing> drawing{};
};

// While one is in force on a thread, execute() and execute_move() add steps to it and run nothing.
class Recorder {
 public:
  // The value that a tensor stands for.
  int add(const at::Tensor& tensor, bool temporary);
  Outcome record(Op op, const at::Tensor& x, DType x_dtype, DType compute, const Argument& b,
                 const Argument& c, Scalar d);
  Outcome record_move(const at::Tensor& x, DType x_dtype, const Argument& source);
  // x = x * scale where its draw is no less than the threshold, else x * 0.
  Outcome record_dropout(const at::Tensor& x, DType x_dtype, const Drawing& drawing, double threshold,
                         double scale);
  // Whether the data of a tensor are what they will be when the steps run.
  bool is_settled(const at::Tensor& tensor) const;

  c10::SmallVector<Value, 8> values;
  c10::SmallVector<Step, 8> steps;

 private:
  int find(const at::Tensor& tensor) const;
  bool take(const Argument& argument, const at::Tensor& x, DType compute, StepOperand& out) const;

  std::vector<std::unique_ptr<at::Tensor>> masks_; // of the shapes of what is drawn, without memory
};
extern constinit thread_local Recorder* recorder;

// A pass over memory: a program and the tensors that it runs on, as indices of values.
struct Pass {
  Program program;
  int tensors = 0;
  int value[kMaxTensors];
  bool mutated[kMaxTensors] = {};
  // The draws of the program that have no seed yet. That of a device is in its memory, which is held here.
  struct Unseeded {
    int draw;
    c10::Device device;
    std::optional<at::Generator> generator;
    at::Tensor state{};
  };
  c10::SmallVector<Unseeded, 1> unseeded;
};
using Passes = c10::SmallVector<Pass, 1>;

// The steps as passes over memory, as few as will do. With `round_each` the 16-bit floats are rounded after
// every step, as eager calls do; without it once, when they are stored. Empty where the steps do not fit: of
// several compute types, or of more temporaries than there are registers; `reason` says so.
// The last answer is kept, and given again while only the numbers of the steps are others: to find it takes a
// small call a tenth of its time. For one trace alone, whose steps are rounded in one way: which values are
// temporary follows from how many there are, and the dtypes of those that change stand in the steps.
class Lowered {
 public:
  Passes of(const Recorder& recorded, bool round_each, const char*& reason);

 private:
  bool is_of(const Recorder& recorded) const;

  c10::SmallVector<Step, 4> steps_; // empty where nothing is kept
  size_t values_ = 0;
  Passes passes_;
};

} // namespace inplace_ext
