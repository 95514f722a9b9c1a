#include "recorder.h"

#include "inplace_ext/cuda.h"

#include <algorithm>

namespace inplace_ext {

constinit thread_local Recorder* recorder = nullptr;

int Recorder::find(const at::Tensor& tensor) const {
  for (size_t v = 0; v < values.size(); ++v) {
    const at::Tensor& other = *values[v].tensor;
    if (values[v].drawing.has_value()) continue;
    if (other.unsafeGetTensorImpl() == tensor.unsafeGetTensorImpl()) return static_cast<int>(v);
  }
  return -1;
}

int Recorder::add(const at::Tensor& tensor, bool temporary) {
  if (const int v = find(tensor); v >= 0) return v; // given twice
  values.push_back({.tensor = &tensor, .temporary = temporary});
  return static_cast<int>(values.size()) - 1;
}

bool Recorder::is_settled(const at::Tensor& tensor) const {
  const int v = find(tensor);
  return v < 0 || !(values[v].temporary || values[v].changed);
}

bool Recorder::take(const Argument& argument, const at::Tensor& x, DType compute, StepOperand& out) const {
  out.kind = argument.kind;
  out.scalar = argument.scalar;
  if (argument.kind != Operand::tensor) return true;
  out.value = find(*argument.tensor);
  if (out.value < 0 || !broadcasts_to(*argument.tensor, x)) return false;
  const Value& value = values[out.value];
  return !value.temporary || value.held == compute;
}

Outcome Recorder::record(Op op, const at::Tensor& x, DType x_dtype, DType compute, const Argument& b,
                         const Argument& c, Scalar d) {
  const int target = find(x);
  if (target < 0) return Outcome::delegate;
  Value& value = values[target];
  bool floating = false; // the numbers are to be, and are not yet
  if (value.temporary && x_dtype == DType::b8 && value.held != DType::u8) {
    // A bool that came of a comparison is 0 or 1 of the type that was compared.
    if (op == Op::logical_and) op = Op::mul_;
    if (op == Op::logical_or) op = Op::maximum_;
    compute = value.held;
    floating = is_floating(compute);
  }
  Step step{static_cast<uint16_t>(op), target, x_dtype, compute, {}, {}, d};
  if (!has_form(op_info(step.op).types, compute) || (value.temporary && value.held != compute) ||
      !take(b, x, compute, step.b) || !take(c, x, compute, step.c))
    return Outcome::delegate;
  for (Scalar* s : {&step.b.scalar, &step.c.scalar, &step.d}) {
    if (floating) s->d = static_cast<double>(s->i);
  }
  value.changed = true;
  steps.push_back(step);
  return Outcome::done;
}

Outcome Recorder::record_move(const at::Tensor& x, DType x_dtype, const Argument& source) {
  Step step{Step::kMove, find(x), x_dtype, compute_dtype(x_dtype), {}, {}, {}};
  if (step.target < 0) return Outcome::delegate;
  if (source.kind == Operand::tensor) {
    const int from = find(*source.tensor);
    DType dtype;
    if (from < 0 || !to_dtype(source.tensor->scalar_type(), dtype)) return Outcome::delegate;
    step.rounds = is_reduced_floating(x_dtype) && dtype != x_dtype;
    // A comparison's result stays in its type.
    if (values[from].temporary && dtype == DType::b8 && x_dtype == DType::b8)
      step.compute = values[from].held;
  }
  if (!take(source, x, step.compute, step.b)) return Outcome::delegate;
  Value& value = values[step.target];
  value.held = step.compute;
  value.changed = true;
  steps.push_back(step);
  return Outcome::done;
}

Outcome Recorder::record_dropout(const at::Tensor& x, DType x_dtype, const Drawing& drawing, double threshold,
                                 double scale) {
  const int target = find(x);
  const DType compute = compute_dtype(x_dtype);
  if (target < 0 || (values[target].temporary && values[target].held != compute)) return Outcome::delegate;
  masks_.push_back(std::make_unique<at::Tensor>(shape_only(at::kFloat, x.device())));
  masks_.back()->unsafeGetTensorImpl()->set_sizes_contiguous(x.sizes());
  values[target].changed = true;
  values.push_back({.tensor = masks_.back().get(), .drawing = drawing});
  Step step{static_cast<uint16_t>(Op::drop), target, x_dtype, compute, {}, {}, {}};
  step.b = {Operand::tensor, static_cast<int>(values.size()) - 1, {}};
  step.c.kind = Operand::scalar;
  step.c.scalar.d = threshold;
  step.d.d = scale;
  steps.push_back(step);
  return Outcome::done;
}

namespace {

// Turns steps into the stages of one program.
class Lowering {
 public:
  Lowering(const Recorder& recorded, bool round_each) : recorded_(recorded), round_each_(round_each) {
    const int n = static_cast<int>(recorded.values.size());
    slot_.resize(n, -1);
    register_.resize(n, -1);
    last_use_.resize(n, -1);
    live_.resize(recorded.steps.size(), false);
    // Steps whose result nobody reads are left out. `wanted` holds of a value where the steps after read it.
    c10::SmallVector<bool, 16> wanted(n, false);
    for (int v = 0; v < n; ++v) wanted[v] = !recorded.values[v].temporary;
    for (int i = static_cast<int>(recorded.steps.size()) - 1; i >= 0; --i) {
      const Step& s = recorded.steps[i];
      if (!wanted[s.target]) continue;
      live_[i] = true;
      if (s.op == Step::kMove) wanted[s.target] = false; // overwritten
      const auto reads = [&](int v) {
        wanted[v] = true;
        last_use_[v] = std::max(last_use_[v], i);
      };
      if (s.op != Step::kMove) reads(s.target);
      if (s.b.kind == Operand::tensor) reads(s.b.value);
      if (s.c.kind == Operand::tensor) reads(s.c.value);
    }
  }

  bool is_whole() const {
    return std::find(live_.begin(), live_.end(), false) == live_.end();
  }
  // Steps from `begin` on as one pass, as many as fit; the end, or -1 where not even one step does.
  int run(int begin, Pass& pass, const char*& reason) {
    pass_ = &pass;
    pass.program.stages = 0;
    scalars_ = 0;
    accumulator_ = -1;
    dirty_ = false;
    std::fill(slot_.begin(), slot_.end(), -1);
    free_ = (1u << kMaxTemporaries) - 1;
    bool started = false;
    const int count = static_cast<int>(recorded_.steps.size()), end = end_by_own(begin, reason);
    int i = begin;
    for (; i < end; ++i) {
      if (!live_[i]) continue;
      const Step& s = recorded_.steps[i];
      if (!started) pass.program.compute = s.compute;
      if (s.compute != pass.program.compute) {
        reason = "the operations compute in several types";
        break;
      }
      // What the step and the stores at the end take at most.
      if (pass.program.stages + 8 + 2 * kMaxTemporaries > kMaxStages || scalars_ + 3 > kMaxScalars ||
          pass.tensors + 4 > kMaxTensors || pass.program.draws == kMaxDraws) {
        reason = "there are more stages, numbers, tensors or draws than a program holds";
        break;
      }
      started = true;
      if (!step(s, i)) {
        reason = "more temporaries are in use at a time than there are registers";
        return -1;
      }
      release(i);
    }
    if (!started && i < count) return -1;
    if (i < count && is_outlived(i)) return -1;
    finish();
    return i;
  }

 private:
  const Value& value(int v) const {
    return recorded_.values[v];
  }
  // 16-bit floats stay in a register until the end: stored in between, they would be rounded.
  bool lives_in_register(int v) const {
    return value(v).temporary || at::isReducedFloatingType(value(v).tensor->scalar_type());
  }
  bool is_defined_before(int v, int end) const {
    for (int i = 0; i < end; ++i) {
      if (live_[i] && recorded_.steps[i].target == v) return true;
    }
    return false;
  }

  // Whether temporaries outlive a pass that ends before step i, which they cannot.
  bool is_outlived(int i) const {
    for (size_t v = 0; v < recorded_.values.size(); ++v) {
      if (recorded_.values[v].temporary && last_use_[v] >= i && is_defined_before(static_cast<int>(v), i))
        return true;
    }
    return false;
  }
  // The step before which a pass ends at the latest, for on a device it has one operation of one's own.
  int end_by_own(int begin, const char*& reason) const {
    int own = cuda::kNoOwn, i = begin;
    const int count = static_cast<int>(recorded_.steps.size());
    for (; i < count; ++i) {
      const Step& s = recorded_.steps[i];
      if (!live_[i] || s.op < kFirstAdded || !runs_as_device(*value(s.target).tensor)) continue;
      if (own != cuda::kNoOwn && own != s.op) {
        reason = "a kernel on a device has one operation of one's own";
        break;
      }
      own = s.op;
    }
    while (i < count && i > begin && is_outlived(i)) --i;
    return i;
  }

  Stage& emit(uint16_t code) {
    Stage& stage = pass_->program.stage[pass_->program.stages++];
    stage = {code, Operand::none, Operand::none, 0, 0, 0};
    return stage;
  }
  uint8_t slot(int v) {
    if (slot_[v] < 0) {
      slot_[v] = pass_->tensors;
      pass_->value[pass_->tensors] = v;
      pass_->mutated[pass_->tensors++] = false;
      if (value(v).drawing.has_value()) {
        const Drawing& drawing = *value(v).drawing;
        Program& program = pass_->program;
        if (!drawing.seeded)
          pass_->unseeded.push_back({program.draws, value(v).tensor->device(), drawing.generator});
        program.draw[program.draws++] = {static_cast<uint8_t>(slot_[v]), drawing.from};
      }
    }
    return static_cast<uint8_t>(slot_[v]);
  }
  uint8_t scalar(Scalar s) {
    pass_->program.scalar[scalars_] = s;
    return static_cast<uint8_t>(scalars_++);
  }
  // Where a value that is not in the accumulator alone is read from.
  void place(int v, Operand& kind, uint8_t& index) {
    if (register_[v] >= 0) {
      kind = Operand::temporary;
      index = static_cast<uint8_t>(register_[v]);
    } else {
      kind = Operand::tensor;
      index = slot(v);
    }
  }
  bool save(int v) {
    Stage& stage = emit(kStore);
    if (lives_in_register(v)) {
      if (register_[v] < 0) {
        if (free_ == 0) return false;
        register_[v] = __builtin_ctz(free_);
        free_ &= free_ - 1;
      }
      stage.b_kind = Operand::temporary;
      stage.b = static_cast<uint8_t>(register_[v]);
    } else {
      stage.b_kind = Operand::tensor;
      stage.b = slot(v);
      pass_->mutated[stage.b] = true;
    }
    dirty_ = false;
    return true;
  }
  // Makes room in the accumulator, at step i.
  bool flush(int i) {
    if (accumulator_ < 0 || !dirty_) return true;
    const bool read_later = last_use_[accumulator_] >= i;
    return (value(accumulator_).temporary && !read_later) || save(accumulator_);
  }
  bool operand(const StepOperand& o, Operand& kind, uint8_t& index) {
    kind = o.kind;
    if (o.kind == Operand::scalar) index = scalar(o.scalar);
    if (o.kind != Operand::tensor) return true;
    if (o.value == accumulator_ && dirty_ && !save(o.value)) return false;
    place(o.value, kind, index);
    return true;
  }

  bool step(const Step& s, int i) {
    if (!value(s.target).temporary) slot(s.target); // for the store at the end
    if (s.op == Step::kMove) {
      if (s.b.kind == Operand::tensor && s.b.value == accumulator_) {
        if (s.target != accumulator_ && !flush_for_later(i)) return false;
      } else {
        if (accumulator_ != s.target && !flush(i)) return false;
        Operand kind;
        uint8_t index = 0;
        if (!operand(s.b, kind, index)) return false;
        Stage& stage = emit(kLoad);
        stage.b_kind = kind;
        stage.b = index;
      }
    } else {
      if (accumulator_ != s.target) {
        if (!flush(i)) return false;
        Operand kind;
        uint8_t index;
        place(s.target, kind, index);
        Stage& stage = emit(kLoad);
        stage.b_kind = kind;
        stage.b = index;
        accumulator_ = s.target;
        dirty_ = false;
      }
      Stage out{s.op, Operand::none, Operand::none, 0, 0, 0};
      if (!operand(s.b, out.b_kind, out.b) || !operand(s.c, out.c_kind, out.c)) return false;
      if (takes_third(op_info(s.op).form)) out.d = scalar(s.d);
      emit(s.op) = out;
    }
    accumulator_ = s.target;
    dirty_ = true;
    if (s.rounds || (round_each_ && is_reduced_floating(s.dtype) && s.op != Step::kMove))
      emit(kRound).b = static_cast<uint8_t>(s.dtype);
    return true;
  }
  // The accumulator's value goes on under another name, and is read later under its own.
  bool flush_for_later(int i) {
    if (!dirty_) return true;
    return (value(accumulator_).temporary && last_use_[accumulator_] <= i) || save(accumulator_);
  }
  // Registers of temporaries that are read no more.
  void release(int i) {
    for (size_t v = 0; v < register_.size(); ++v) {
      if (register_[v] >= 0 && value(static_cast<int>(v)).temporary && last_use_[v] <= i) {
        free_ |= 1u << register_[v];
        register_[v] = -1;
      }
    }
  }
  // Stores what is still in registers.
  void finish() {
    const auto to_memory = [&](int v) {
      Stage& stage = emit(kStore);
      stage.b_kind = Operand::tensor;
      stage.b = slot(v);
      pass_->mutated[stage.b] = true;
    };
    if (accumulator_ >= 0 && dirty_ && !value(accumulator_).temporary) {
      to_memory(accumulator_);
      if (register_[accumulator_] >= 0) free_ |= 1u << register_[accumulator_];
      register_[accumulator_] = -1;
    }
    for (size_t v = 0; v < register_.size(); ++v) {
      if (register_[v] < 0) continue;
      if (!value(static_cast<int>(v)).temporary) {
        Stage& stage = emit(kLoad);
        stage.b_kind = Operand::temporary;
        stage.b = static_cast<uint8_t>(register_[v]);
        to_memory(static_cast<int>(v));
      }
      register_[v] = -1;
    }
  }

  const Recorder& recorded_;
  const bool round_each_;
  c10::SmallVector<int, 16> slot_, register_, last_use_;
  c10::SmallVector<bool, 16> live_;
  Pass* pass_ = nullptr;
  int scalars_ = 0;
  int accumulator_ = -1;
  bool dirty_ = false; // the accumulator holds what its value's place does not
  unsigned free_ = 0;
};

// `whole` where no step is left out.
Passes lower(const Recorder& recorded, bool round_each, const char*& reason, bool& whole) {
  Lowering lowering(recorded, round_each);
  whole = lowering.is_whole();
  Passes passes;
  for (int i = 0; i < static_cast<int>(recorded.steps.size());) {
    passes.emplace_back();
    i = lowering.run(i, passes.back(), reason);
    if (i < 0) return {};
    if (passes.back().program.stages == 0) passes.pop_back();
  }
  return passes;
}

// Calls f with each number of the steps, in the order in which Lowering puts those of one pass into it.
template <class F>
void each_scalar(const Recorder& recorded, F f) {
  for (const Step& s : recorded.steps) {
    if (s.b.kind == Operand::scalar) f(s.b.scalar);
    if (s.c.kind == Operand::scalar) f(s.c.scalar);
    if (s.op != Step::kMove && takes_third(op_info(s.op).form)) f(s.d);
  }
}

} // namespace

bool Lowered::is_of(const Recorder& recorded) const {
  if (steps_.empty() || steps_.size() != recorded.steps.size() || values_ != recorded.values.size())
    return false;
  for (size_t i = 0; i < steps_.size(); ++i) {
    const Step &a = steps_[i], &b = recorded.steps[i];
    if (a.op != b.op || a.target != b.target || a.dtype != b.dtype || a.compute != b.compute ||
        a.rounds != b.rounds || a.b.kind != b.b.kind || a.b.value != b.b.value || a.c.kind != b.c.kind ||
        a.c.value != b.c.value)
      return false;
  }
  return true;
}

Passes Lowered::of(const Recorder& recorded, bool round_each, const char*& reason) {
  if (is_of(recorded)) {
    Passes passes = passes_;
    Scalar* scalar = passes[0].program.scalar;
    each_scalar(recorded, [&](Scalar s) { *scalar++ = s; });
    return passes;
  }
  bool whole = false;
  Passes passes = lower(recorded, round_each, reason, whole);
  steps_.clear();
  // Not kept: steps of which some are left out, or that make several passes, so that the numbers are not in
  // their order; draws, which have seeds; operations that are added, whose passes depend on the device.
  bool keeps = whole && passes.size() == 1 && passes[0].program.draws == 0;
  for (const Step& s : recorded.steps) keeps = keeps && s.op < kFirstAdded;
  if (keeps) {
    steps_.append(recorded.steps.begin(), recorded.steps.end());
    values_ = recorded.values.size();
    passes_ = passes;
  }
  return passes;
}

} // namespace inplace_ext
