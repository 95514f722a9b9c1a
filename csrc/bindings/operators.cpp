// The operators of torch's dispatcher: softmax and dropout with autograd, for torch.compile, and for calls
// that have something to record.
//
// softmax saves its output for the backward, dropout the tensor of its seed and offset: no mask, and no
// second buffer.
#include <ATen/MemoryOverlap.h>
#include <ATen/core/Tensor.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/_log_softmax_backward_data.h>
#include <ATen/ops/_softmax_backward_data.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <c10/core/WrapDimMinimal.h>
#include <torch/csrc/autograd/VariableTypeUtils.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include "device.h"
#include "kernels.h"

namespace inplace_ext {
namespace {

using at::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;
using Mask = std::optional<Tensor>;

// ---- the operators, as calls ------------------------------------------------------------------------------

struct SoftmaxInPlace {
  static constexpr const char* kName = "inplace_ext::softmax_";
  using Signature = Tensor&(Tensor&, int64_t, double, const Mask&, bool);
};
struct SoftmaxNew {
  static constexpr const char* kName = "inplace_ext::softmax";
  using Signature = Tensor(const Tensor&, int64_t, double, const Mask&, bool);
};
struct DropoutInPlace {
  static constexpr const char* kName = "inplace_ext::dropout_";
  using Signature = Tensor&(Tensor&, double, const Tensor&, bool, bool);
};
struct DropoutNew {
  static constexpr const char* kName = "inplace_ext::dropout";
  using Signature = Tensor(const Tensor&, double, const Tensor&, bool, bool);
};
struct DropoutBackward {
  static constexpr const char* kName = "inplace_ext::dropout_backward";
  using Signature = Tensor(const Tensor&, double, const Tensor&, bool, bool);
};
template <class Operator>
const c10::TypedOperatorHandle<typename Operator::Signature>& handle() {
  static const auto found = c10::Dispatcher::singleton()
                                .findSchemaOrThrow(Operator::kName, "")
                                .template typed<typename Operator::Signature>();
  return found;
}

// ---- kernels ---------------------------------------------------------------------------------------------

void require_kernels(const Tensor& self) {
  TORCH_CHECK(active_kernels != nullptr, "inplace_ext: no kernels are loaded");
  TORCH_CHECK(!on_device(self) || cuda_kernels != nullptr,
              "inplace_ext: built without kernels for CUDA devices; inplace_ext.info() says why");
}

SoftmaxArguments softmax_arguments(const Tensor& self, int64_t dim, double scale, const Mask& mask,
                                   bool logarithm) {
  SoftmaxArguments arguments{dim, scale, mask.has_value() && mask->defined() ? &*mask : nullptr, logarithm};
  TORCH_CHECK_NOT_IMPLEMENTED(at::isFloatingType(self.scalar_type()) && !at::isFloat8Type(self.scalar_type()),
                              "softmax: input must be float32, float64, float16 or bfloat16, got ",
                              self.scalar_type());
  c10::maybe_wrap_dim(dim, self.dim()); // which raises
  TORCH_CHECK(takes_softmax(self, arguments), "softmax: mask must be bool or of the dtype of input, ",
              self.scalar_type(), ", and broadcast to its shape, ", self.sizes(), "; got ",
              arguments.mask->scalar_type(), " of shape ", arguments.mask->sizes());
  return arguments;
}

Tensor& softmax_in_place(Tensor& self, int64_t dim, double scale, const Mask& mask, bool logarithm) {
  require_kernels(self);
  const SoftmaxArguments arguments = softmax_arguments(self, dim, scale, mask, logarithm);
  at::assert_no_internal_overlap(self);
  TORCH_CHECK(run_softmax(self, self, arguments), "softmax_: input has more than ", kMaxDims, " dims");
  return self;
}
Tensor softmax_new(const Tensor& self, int64_t dim, double scale, const Mask& mask, bool logarithm) {
  require_kernels(self);
  const SoftmaxArguments arguments = softmax_arguments(self, dim, scale, mask, logarithm);
  Result made = make_result(self);
  TORCH_CHECK(run_softmax(made.source(self), made.tensor, arguments), "softmax: input has more than ",
              kMaxDims, " dims");
  return made.tensor;
}

DropoutArguments dropout_arguments(const Tensor& self, double p, const Tensor& state, bool feature,
                                   bool alpha) {
  DropoutArguments arguments;
  arguments.p = p;
  arguments.feature = feature;
  arguments.alpha = alpha;
  TORCH_CHECK_VALUE(p >= 0 && p <= 1, "dropout: p must be in [0, 1], got ", p);
  TORCH_CHECK(takes_dropout(self, arguments),
              "dropout: input must be float32, float64, float16 or bfloat16 with at most ", kMaxDims, " dims",
              feature ? " and at least 2" : "", ", got ", self.scalar_type(), " of shape ", self.sizes());
  TORCH_CHECK(state.scalar_type() == at::kLong && state.dim() == 1 && state.size(0) == 2 &&
                  (state.device().is_cpu() || same_device(state, self)),
              "dropout: state must be an int64 tensor of two elements, seed and offset, on the CPU or on the "
              "device of input; got ",
              state.scalar_type(), " of shape ", state.sizes(), " on ", state.device());
  const Tensor words = state.contiguous();
  if (on_device(words)) {
    arguments.state = words;
    return arguments;
  }
  arguments.seed = static_cast<uint64_t>(words.const_data_ptr<int64_t>()[0]);
  arguments.offset = static_cast<uint64_t>(words.const_data_ptr<int64_t>()[1]);
  return arguments;
}

Tensor& dropout_in_place(Tensor& self, double p, const Tensor& state, bool feature, bool alpha) {
  require_kernels(self);
  const DropoutArguments arguments = dropout_arguments(self, p, state, feature, alpha);
  at::assert_no_internal_overlap(self);
  TORCH_CHECK(run_dropout(self, self, arguments), "dropout_: input has more than ", kMaxDims, " dims");
  return self;
}
template <bool Bias>
Tensor dropout_new(const Tensor& self, double p, const Tensor& state, bool feature, bool alpha) {
  require_kernels(self);
  DropoutArguments arguments = dropout_arguments(self, p, state, feature, alpha);
  arguments.bias = Bias;
  Result made = make_result(self);
  TORCH_CHECK(run_dropout(made.source(self), made.tensor, arguments), "dropout: input has more than ",
              kMaxDims, " dims");
  return made.tensor;
}

Tensor dropout_state(const Tensor& self, std::optional<at::Generator> generator) {
  TORCH_CHECK(!generator.has_value() || generator->device().type() == self.device().type(),
              "dropout: expected a generator of the ", self.device().type(), ", got one of ",
              generator->device());
  if (on_device(self)) return draw_state(self.device(), generator);
  const Tensor state = at::empty({2}, at::kLong);
  state.mutable_data_ptr<int64_t>()[0] = static_cast<int64_t>(draw_seed(generator));
  state.mutable_data_ptr<int64_t>()[1] = 0;
  return state;
}

// ---- shapes alone -----------------------------------------------------------------------------------------

Tensor& softmax_in_place_meta(Tensor& self, int64_t dim, double scale, const Mask& mask, bool logarithm) {
  softmax_arguments(self, dim, scale, mask, logarithm);
  return self;
}
Tensor softmax_new_meta(const Tensor& self, int64_t dim, double scale, const Mask& mask, bool logarithm) {
  softmax_arguments(self, dim, scale, mask, logarithm);
  return at::empty_like(self);
}
Tensor& dropout_in_place_meta(Tensor& self, double, const Tensor&, bool, bool) {
  return self;
}
Tensor dropout_new_meta(const Tensor& self, double, const Tensor&, bool, bool) {
  return at::empty_like(self);
}
Tensor dropout_state_meta(const Tensor& self, std::optional<at::Generator>) {
  return at::empty({2}, self.options().dtype(at::kLong));
}

// ---- versions and views -----------------------------------------------------------------------------------

// Says that a tensor has changed, as torch's in-place operations do.
template <class Operator, class... Args>
Tensor& tracked(c10::DispatchKeySet keys, Tensor& self, Args... args) {
  TORCH_CHECK(!self.is_inference(),
              "Inplace update to inference tensor outside InferenceMode is not allowed. You can make a clone "
              "to get a "
              "normal tensor before doing inplace update.");
  {
    const at::AutoDispatchBelowADInplaceOrView below;
    handle<Operator>().redispatch(keys & c10::after_ADInplaceOrView_keyset, self, args...);
  }
  torch::autograd::impl::bump_version(self);
  return self;
}

// ---- autograd ---------------------------------------------------------------------------------------------

// Whether to record: refuses what would be recorded wrongly, before anything is written.
bool needs_grad(const char* name, const Tensor& self, const Mask& mask = std::nullopt) {
  TORCH_CHECK_NOT_IMPLEMENTED(
      !self._fw_grad(/*level=*/0).defined() && !(mask.has_value() && mask->_fw_grad(/*level=*/0).defined()),
      name, ": the operator has no forward-mode AD; inplace_ext.", name, "() has");
  return at::GradMode::is_enabled() && (self.requires_grad() || (mask.has_value() && mask->requires_grad()));
}
template <class Operator, bool InPlace, class Self, class... Args>
Tensor call_below(AutogradContext* ctx, Self self, Args... args) {
  // mark_dirty() changes the version, and so ADInplaceOrView must not.
  const at::AutoDispatchBelowADInplaceOrView below;
  if constexpr (InPlace) {
    handle<Operator>().call(self, args...);
    ctx->mark_dirty({self});
    return self;
  } else {
    return handle<Operator>().call(self, args...);
  }
}

template <class Operator, bool InPlace>
struct SoftmaxFunction : torch::autograd::Function<SoftmaxFunction<Operator, InPlace>> {
  static Tensor forward(AutogradContext* ctx, Tensor self, int64_t dim, double scale, const Mask& mask,
                        bool logarithm) {
    const Tensor output = call_below<Operator, InPlace>(ctx, self, dim, scale, mask, logarithm);
    const bool keeps = mask.has_value() && mask->scalar_type() == at::kBool;
    ctx->saved_data["dim"] = dim;
    ctx->saved_data["scale"] = scale;
    ctx->saved_data["logarithm"] = logarithm;
    ctx->saved_data["keeps"] = keeps;
    if (mask.has_value() && !keeps) {
      ctx->saved_data["mask_sizes"] = mask->sym_sizes();
      ctx->saved_data["mask_grad"] = mask->requires_grad();
    }
    if (keeps) {
      ctx->save_for_backward({output, *mask});
    } else {
      ctx->save_for_backward({output});
    }
    return output;
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const variable_list saved = ctx->get_saved_variables();
    const int64_t dim = ctx->saved_data["dim"].toInt();
    const double scale = ctx->saved_data["scale"].toDouble();
    const bool keeps = ctx->saved_data["keeps"].toBool();
    const at::ScalarType dtype = saved[0].scalar_type();
    const bool masked = keeps || ctx->saved_data.count("mask_sizes") != 0;
    // As the forward rounds once, scaled and masked.
    const bool widens = at::isReducedFloatingType(dtype) && (scale != 1 || masked);
    const Tensor output = widens ? saved[0].to(at::kFloat) : saved[0];
    const Tensor grad = grads[0].to(output.scalar_type());
    Tensor result = ctx->saved_data["logarithm"].toBool()
                        ? at::_log_softmax_backward_data(grad, output, dim, output.scalar_type())
                        : at::_softmax_backward_data(grad, output, dim, output.scalar_type());
    if (keeps) result = result.masked_fill(saved[1].logical_not(), 0);
    Tensor grad_mask;
    if (masked && !keeps && ctx->saved_data["mask_grad"].toBool())
      grad_mask = result.sum_to_size_symint(ctx->saved_data["mask_sizes"].toSymIntVector()).to(dtype);
    if (scale != 1) result = result.mul(scale);
    return {result.to(dtype), Tensor(), Tensor(), grad_mask, Tensor()};
  }
};

Tensor& softmax_in_place_autograd(c10::DispatchKeySet keys, Tensor& self, int64_t dim, double scale,
                                  const Mask& mask, bool logarithm) {
  if (!needs_grad("softmax_", self, mask)) {
    const at::AutoDispatchBelowAutograd below;
    return handle<SoftmaxInPlace>().redispatch(keys & c10::after_autograd_keyset, self, dim, scale, mask,
                                               logarithm);
  }
  torch::autograd::check_inplace(self, true);
  softmax_arguments(self, dim, scale, mask, logarithm);
  SoftmaxFunction<SoftmaxInPlace, true>::apply(self, dim, scale, mask, logarithm);
  return self;
}
Tensor softmax_new_autograd(c10::DispatchKeySet keys, const Tensor& self, int64_t dim, double scale,
                            const Mask& mask, bool logarithm) {
  if (!needs_grad("softmax", self, mask)) {
    const at::AutoDispatchBelowAutograd below;
    return handle<SoftmaxNew>().redispatch(keys & c10::after_autograd_keyset, self, dim, scale, mask,
                                           logarithm);
  }
  return SoftmaxFunction<SoftmaxNew, false>::apply(self, dim, scale, mask, logarithm);
}

template <class Operator, bool InPlace>
struct DropoutFunction : torch::autograd::Function<DropoutFunction<Operator, InPlace>> {
  static Tensor forward(AutogradContext* ctx, Tensor self, double p, const Tensor& state, bool feature,
                        bool alpha) {
    const Tensor output = call_below<Operator, InPlace>(ctx, self, p, state, feature, alpha);
    ctx->saved_data["p"] = p;
    ctx->saved_data["feature"] = feature;
    ctx->saved_data["alpha"] = alpha;
    ctx->save_for_backward({state});
    return output;
  }

  // Linear in its gradient, and so its own backward.
  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const Tensor result = handle<DropoutBackward>().call(
        grads[0], ctx->saved_data["p"].toDouble(), ctx->get_saved_variables()[0],
        ctx->saved_data["feature"].toBool(), ctx->saved_data["alpha"].toBool());
    return {result, Tensor(), Tensor(), Tensor(), Tensor()};
  }
};

Tensor& dropout_in_place_autograd(c10::DispatchKeySet keys, Tensor& self, double p, const Tensor& state,
                                  bool feature, bool alpha) {
  if (!needs_grad("dropout_", self)) {
    const at::AutoDispatchBelowAutograd below;
    return handle<DropoutInPlace>().redispatch(keys & c10::after_autograd_keyset, self, p, state, feature,
                                               alpha);
  }
  torch::autograd::check_inplace(self, true);
  DropoutFunction<DropoutInPlace, true>::apply(self, p, state, feature, alpha);
  return self;
}
template <class Operator>
Tensor dropout_new_autograd(c10::DispatchKeySet keys, const Tensor& self, double p, const Tensor& state,
                            bool feature, bool alpha) {
  if (!needs_grad("dropout", self)) {
    const at::AutoDispatchBelowAutograd below;
    return handle<Operator>().redispatch(keys & c10::after_autograd_keyset, self, p, state, feature, alpha);
  }
  return DropoutFunction<Operator, false>::apply(self, p, state, feature, alpha);
}

} // namespace

void register_operators() {
  // Not by static initializers, whose exceptions would end the process where the module is loaded twice.
  static std::vector<torch::Library> libraries;
  const auto library = [&](torch::Library::Kind kind,
                           std::optional<c10::DispatchKey> key) -> torch::Library& {
    return libraries.emplace_back(kind, "inplace_ext", key, __FILE__, __LINE__);
  };
  {
    torch::Library& m = library(torch::Library::DEF, std::nullopt);
    const std::vector<at::Tag> pure = {at::Tag::pt2_compliant_tag},
                               changes = {at::Tag::pt2_compliant_tag, at::Tag::inplace};
    const std::vector<at::Tag> random = {at::Tag::pt2_compliant_tag, at::Tag::nondeterministic_seeded};
    m.def(
        "softmax_(Tensor(a!) self, int dim, float scale=1.0, Tensor? mask=None, bool logarithm=False) -> "
        "Tensor(a!)",
        changes);
    m.def("softmax(Tensor self, int dim, float scale=1.0, Tensor? mask=None, bool logarithm=False) -> Tensor",
          pure);
    m.def(
        "dropout_(Tensor(a!) self, float p, Tensor state, bool feature=False, bool alpha=False) -> "
        "Tensor(a!)",
        changes);
    m.def("dropout(Tensor self, float p, Tensor state, bool feature=False, bool alpha=False) -> Tensor",
          pure);
    m.def(
        "dropout_backward(Tensor grad_output, float p, Tensor state, bool feature=False, bool alpha=False) "
        "-> Tensor",
        pure);
    m.def("dropout_state(Tensor self, Generator? generator=None) -> Tensor", random);
  }
  // The same functions, which look where the tensor is; without the kernels of a device they say so.
  for (const auto key : {c10::DispatchKey::CPU, c10::DispatchKey::CUDA}) {
    torch::Library& m = library(torch::Library::IMPL, key);
    m.impl("softmax_", softmax_in_place);
    m.impl("softmax", softmax_new);
    m.impl("dropout_", dropout_in_place);
    m.impl("dropout", dropout_new<true>);
    m.impl("dropout_backward", dropout_new<false>);
    m.impl("dropout_state", dropout_state);
  }
  {
    torch::Library& m = library(torch::Library::IMPL, c10::DispatchKey::Meta);
    m.impl("softmax_", softmax_in_place_meta);
    m.impl("softmax", softmax_new_meta);
    m.impl("dropout_", dropout_in_place_meta);
    m.impl("dropout", dropout_new_meta);
    m.impl("dropout_backward", dropout_new_meta);
    m.impl("dropout_state", dropout_state_meta);
  }
  {
    torch::Library& m = library(torch::Library::IMPL, c10::DispatchKey::ADInplaceOrView);
    m.impl("softmax_", tracked<SoftmaxInPlace, int64_t, double, const Mask&, bool>);
    m.impl("dropout_", tracked<DropoutInPlace, double, const Tensor&, bool, bool>);
  }
  {
    torch::Library& m = library(torch::Library::IMPL, c10::DispatchKey::Autograd);
    m.impl("softmax_", softmax_in_place_autograd);
    m.impl("softmax", softmax_new_autograd);
    m.impl("dropout_", dropout_in_place_autograd);
    m.impl("dropout", dropout_new_autograd<DropoutNew>);
    m.impl("dropout_backward", dropout_new_autograd<DropoutBackward>);
  }
}

} // namespace inplace_ext
