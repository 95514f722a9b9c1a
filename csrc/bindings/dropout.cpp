// dropout and its kin: which elements are kept is a function of seed, offset and the place of the element.
#include <ATen/CPUGeneratorImpl.h>
#include <torch/csrc/Generator.h>

#include <algorithm>
#include <cmath>
#include <mutex>

#include "binders.h"
#include "device.h"
#include "inplace_ext/philox.h"
#include "kernels.h"
#include "overlap.h"
#include "parallel.h"
#include "recorder.h"

namespace inplace_ext {
namespace {

// What an element costs, in multiplications.
constexpr int64_t kDropoutCost = 4;

// What a kept element is multiplied by and what is added, as torch computes them: in float, or in double.
template <class C>
void factors(Dropout& call, const DropoutArguments& a) {
  const double q = 1 - a.p;
  call.scale = call.kept = call.dropped = 0;
  call.shifts = false;
  if (q == 0) return; // torch multiplies by zero then, whatever the kind
  if (!a.alpha) {
    call.scale = C(1) / static_cast<C>(q);
    return;
  }
  constexpr double kAlpha = 1.7580993408473766; // of selu: its limit at -inf, negated
  const double scale = 1 / std::sqrt((kAlpha * kAlpha * a.p + 1) * q);
  call.scale = static_cast<C>(scale);
  if (!a.bias) return;
  call.shifts = true;
  call.kept = static_cast<C>(kAlpha * scale * a.p);
  call.dropped = static_cast<C>(static_cast<C>(call.kept) - static_cast<C>(kAlpha * scale));
}

void find_factors(Dropout& call, const DropoutArguments& arguments) {
  call.dtype == DType::f64 ? factors<double>(call, arguments) : factors<float>(call, arguments);
}

// Dim 0 is one along which the mask goes from element to element, or stays: one of neighbours in memory if
// there is such a one, and then the last. The others follow as they lie in memory. False if more remain than
// fit.
bool lay_out(Dropout& call, const at::Tensor& x, bool feature) {
  const int item = item_size(call.dtype);
  c10::SmallVector<int64_t, kMaxDims> place(x.dim());
  int64_t elements = 1, last = -1;
  for (int64_t d = x.dim() - 1; d >= 0; --d) {
    place[d] = feature && d > 1 ? 0 : elements;
    if (!feature || d <= 1) elements *= x.size(d);
    if (last < 0 && x.size(d) != 1) last = d;
  }
  call.dims = 1;
  call.size[0] = 1, call.step[0] = item, call.place[0] = 1;
  auto order = dims_in_memory(x);
  const auto first =
      std::find_if(order.begin(), order.end(), [&](int64_t d) { return x.stride(d) == 1 && place[d] <= 1; });
  // Of the others none moves: the neighbours in memory, if there are, stay next.
  const auto front = first != order.end() ? first : std::find(order.begin(), order.end(), last);
  if (front != order.end()) std::rotate(order.begin(), front, front + 1);
  bool any = false;
  for (const int64_t d : order) {
    const int64_t step = x.stride(d) * item;
    const int at = call.dims - 1;
    if (any && step == call.step[at] * call.size[at] && place[d] == call.place[at] * call.size[at]) {
      call.size[at] *= x.size(d);
      continue;
    }
    if (any && call.dims++ == kMaxDims) return false;
    any = true;
    call.size[call.dims - 1] = x.size(d);
    call.step[call.dims - 1] = step;
    call.place[call.dims - 1] = place[d];
  }
  return true;
}

// An int of 64 bits, with or without a sign.
bool to_word(PyObject* object, bool negative, uint64_t& out) {
  if (!PyLong_Check(object)) return false;
  int overflow = 0;
  const long long word = PyLong_AsLongLongAndOverflow(object, &overflow);
  out = static_cast<uint64_t>(word);
  if (overflow == 0) return negative || word >= 0;
  if (overflow < 0) return false;
  out = PyLong_AsUnsignedLongLong(object);
  if (PyErr_Occurred() == nullptr) return true;
  PyErr_Clear();
  return false;
}

// A draw is a multiple of 2^-24 and p a double: what is no less than p is no less than p rounded up.
uint32_t threshold_of(double p) {
  return static_cast<uint32_t>(std::ceil(std::ldexp(p, philox::kBits)));
}

// (input, p=0.5, training=True, *, seed=None, offset=0, generator=None) of a call that drops something;
// `unchanged` where it drops nothing. Where there is to be a seed from the generator, `generator` points to
// it.
Outcome read_dropout(Slots slot, const at::Tensor& x, DropoutArguments& arguments, Drawing& drawing) {
  Number p;
  if (slot[1] != nullptr) {
    if (!to_number(slot[1], p)) return Outcome::delegate;
    arguments.p = p.as_double();
  }
  if (!(arguments.p >= 0 && arguments.p <= 1)) return Outcome::delegate;
  if (slot[2] != nullptr && !PyBool_Check(slot[2])) return Outcome::delegate;
  std::optional<at::Generator>& generator = drawing.generator;
  if (slot[5] != nullptr && slot[5] != Py_None) {
    if (!THPGenerator_Check(slot[5])) return Outcome::delegate;
    generator = THPGenerator_Unwrap(slot[5]);
  }
  const bool seeded = slot[3] != nullptr && slot[3] != Py_None;
  if (seeded && (generator.has_value() || !to_word(slot[3], true, arguments.seed))) return Outcome::delegate;
  if (slot[4] != nullptr && !to_word(slot[4], false, arguments.offset)) return Outcome::delegate;
  if (!takes_dropout(x, arguments)) return Outcome::delegate;
  if (slot[2] == Py_False || arguments.p == 0 || x.numel() == 0) return Outcome::unchanged;
  drawing.seeded = seeded || arguments.p == 1;
  if (!drawing.seeded && generator.has_value() && generator->device().type() != x.device().type())
    return Outcome::delegate;
  drawing.from = {arguments.seed, arguments.offset, nullptr};
  return Outcome::done;
}

void seed_from(const std::optional<at::Generator>& generator, const at::Tensor& x,
               DropoutArguments& arguments) {
  if (on_device(x)) {
    arguments.state = draw_state(x.device(), generator);
  } else {
    arguments.seed = draw_seed(generator);
  }
}

template <bool Feature, bool Alpha>
Outcome bind_dropout(Op, Slots slot) {
  const at::Tensor* const x = writable_tensor(slot[0]);
  if (x == nullptr) return Outcome::delegate;
  DropoutArguments arguments{.feature = Feature, .alpha = Alpha};
  Drawing drawing;
  const Outcome outcome = read_dropout(slot, *x, arguments, drawing);
  if (outcome != Outcome::done) return outcome;
  if (recorder != nullptr) {
    if (Feature || Alpha) return Outcome::delegate;
    Dropout call;
    to_dtype(x->scalar_type(), call.dtype);
    find_factors(call, arguments);
    return recorder->record_dropout(*x, call.dtype, drawing, threshold_of(arguments.p), call.scale);
  }
  if (!drawing.seeded) seed_from(drawing.generator, *x, arguments);
  return run_dropout(*x, *x, arguments) ? Outcome::done : Outcome::delegate;
}
template <bool Feature, bool Alpha>
Outcome make_dropout(Slots slot, at::Tensor& result) {
  const at::Tensor* const x = plain_tensor(slot[0]);
  if (x == nullptr) return Outcome::delegate;
  DropoutArguments arguments{.feature = Feature, .alpha = Alpha};
  Drawing drawing;
  const Outcome outcome = read_dropout(slot, *x, arguments, drawing);
  if (outcome != Outcome::done) return outcome;
  if (!drawing.seeded) seed_from(drawing.generator, *x, arguments);
  const Result made = make_result(*x);
  result = made.tensor;
  return run_dropout(made.source(*x), result, arguments) ? Outcome::done : Outcome::delegate;
}

} // namespace

uint64_t draw_seed(const std::optional<at::Generator>& generator) {
  at::Generator from = generator.has_value() ? *generator : at::detail::getDefaultCPUGenerator();
  const std::lock_guard<std::mutex> lock(from.mutex());
  return at::check_generator<at::CPUGeneratorImpl>(from)->random64();
}

bool takes_dropout(const at::Tensor& x, const DropoutArguments& arguments) {
  DType dtype;
  // More dims than fit are seen to before a seed is drawn.
  return to_dtype(x.scalar_type(), dtype) && is_floating(dtype) && x.dim() <= kMaxDims &&
         !(arguments.feature && x.dim() < 2);
}

bool run_dropout(const at::Tensor& x, const at::Tensor& out, const DropoutArguments& arguments) {
  Dropout call;
  to_dtype(x.scalar_type(), call.dtype);
  const at::Tensor& state = arguments.state;
  call.from = {arguments.seed, arguments.offset, state.defined() ? state.const_data_ptr<int64_t>() : nullptr};
  call.threshold = threshold_of(arguments.p);
  find_factors(call, arguments);
  if (!lay_out(call, x, arguments.feature)) return false;
  if (x.numel() == 0) {
    last_path = {on_device(x) ? Taken::device : Taken::native, Path::draws};
    return true;
  }
  call.data = static_cast<char*>(const_cast<void*>(x.const_data_ptr()));
  call.shift = static_cast<char*>(out.mutable_data_ptr()) - call.data;
  if (on_device(x)) {
    dropout_on_device(call, x);
    return true;
  }
  const CpuKernels& kernels = *active_kernels;
  const bool flat = call.dims == 1;
  Path path = Path::draws;
  parallel(flat ? call.size[0] : call.lines(), (flat ? 1 : call.size[0]) * kDropoutCost,
           [&](int64_t begin, int64_t end) {
             const Path taken = kernels.dropout(call, begin, end);
             if (begin == 0) path = taken;
           });
  last_path = {Taken::native, path};
  return true;
}

std::span<const Binding> dropout_bindings() {
  static constexpr Binding bindings[] = {
      {"dropout_", bind_dropout<false, false>, make_dropout<false, false>},
      {"feature_dropout_", bind_dropout<true, false>, make_dropout<true, false>},
      {"alpha_dropout_", bind_dropout<false, true>, make_dropout<false, true>},
      {"feature_alpha_dropout_", bind_dropout<true, true>, make_dropout<true, true>},
  };
  return bindings;
}

} // namespace inplace_ext
