#include "functions.h"

#include <ATen/core/Tensor.h>
#include <ATen/record_function.h>
#include <c10/core/InferenceMode.h>
#include <c10/core/ScalarType.h>
#include <torch/csrc/Exceptions.h>
#include <torch/csrc/autograd/python_variable.h>

#include <array>
#include <cmath>
#include <limits>
#include <utility>

#include "overlap.h"
#include "tensors.h"

namespace inplace_ext {
namespace {

constexpr int kMaxParameters = 6;
// Public functions are C functions without a self, so that they pickle by name and look as torch's own
// built-ins do; each needs a C entry point of its own to know which it is.
constexpr int kMaxFunctions = 256;

using Slots = PyObject* const*;
struct Function;
using Binder = Outcome (*)(const Function&, Slots);

struct Function {
  PyMethodDef definition{};
  std::string name, doc;
  PyObject* parameter[kMaxParameters] = {}; // interned names
  int parameters = 0, positional = 0;
  int required = 0;  // those without a default, which come first
  Op op = Op::count; // what a generic binder runs
  Binder binder = nullptr;
  PyObject* delegate = nullptr; // torch's method
  PyObject* guarded = nullptr;  // the same behind the checks of _delegate.py
  bool divides = false;
};
std::array<Function, kMaxFunctions> functions;
int function_count = 0;
PyObject* error_hook = nullptr;
bool enabled = true;

// ---- operands ---------------------------------------------------------------------------------------------

// The tensor that is changed.
struct Target {
  const at::Tensor* tensor;
  DType dtype;
  bool open(PyObject* object) {
    tensor = writable_tensor(object);
    return tensor != nullptr && to_dtype(tensor->scalar_type(), dtype);
  }
  bool floating() const {
    return is_floating(dtype);
  }
};

double largest(DType t) {
  switch (t) {
    case DType::f16:
      return 65504.0;
    case DType::bf16:
      return 0x1.fep127;
    case DType::f32:
      return std::numeric_limits<float>::max();
    default:
      return std::numeric_limits<double>::max();
  }
}
// Whether torch converts the number to the dtype without an overflow error.
bool fits(const Number& v, DType t) {
  if (is_floating(t)) {
    const double d = v.as_double();
    return !std::isfinite(d) || std::fabs(d) <= largest(t);
  }
  if (v.category == Number::floating) return false;
  switch (t) {
    case DType::u8:
      return v.i >= 0 && v.i <= 255;
    case DType::i8:
      return v.i >= -128 && v.i <= 127;
    case DType::i16:
      return v.i >= -32768 && v.i <= 32767;
    case DType::i32:
      return v.i >= INT32_MIN && v.i <= INT32_MAX;
    default:
      return true;
  }
}

// The nearest number that the floating dtype holds.
double rounded_to(DType t, double d) {
  if (t == DType::f32) return static_cast<double>(static_cast<float>(d));
  if (t == DType::f16) return static_cast<double>(static_cast<float>(at::Half(static_cast<float>(d))));
  if (t == DType::bf16) return static_cast<double>(static_cast<float>(at::BFloat16(static_cast<float>(d))));
  return d;
}

// The number in the form of the compute type.
Scalar to_scalar(const Number& v, DType compute) {
  Scalar s;
  if (is_floating(compute)) {
    // An integer is converted at once, not by way of double, where the type is float32.
    s.d = v.category == Number::floating ? v.d
          : compute == DType::f32        ? static_cast<double>(static_cast<float>(v.i))
                                         : static_cast<double>(v.i);
  } else {
    s.i = v.i;
  }
  return s;
}

int category(DType t) {
  return t == DType::b8 ? Number::boolean : is_floating(t) ? Number::floating : Number::integer;
}

// An operand as Python passes it: a number, or a tensor, of which one without dims counts as a number.
struct Source {
  bool is_number = false;
  bool from_tensor = false; // a number that was a tensor
  Number number{};
  const at::Tensor* tensor = nullptr;
  DType dtype{};
};
bool open(PyObject* object, const Target& x, Source& out) {
  if (to_number(object, out.number)) {
    out.is_number = true;
    return true;
  }
  out.tensor = plain_tensor(object);
  if (out.tensor == nullptr || !to_dtype(out.tensor->scalar_type(), out.dtype)) return false;
  if (out.tensor->dim() == 0) {
    // Of two tensors without dims both have a say in the dtype; torch may work that out.
    if (x.tensor->dim() == 0 && out.dtype != x.dtype) return false;
    out.is_number = out.from_tensor = true;
    const void* p = out.tensor->const_data_ptr();
    out.number.category = static_cast<Number::Category>(category(out.dtype));
    if (out.number.category == Number::floating) {
      active_kernels->convert(&out.number.d, DType::f64, p, out.dtype, 1);
    } else {
      active_kernels->convert(&out.number.i, DType::i64, p, out.dtype, 1);
    }
  }
  return true;
}

// The dtype that x and the operands are computed in, by torch's promotion; false where the result could not
// be put back into x. `common` is the promoted dtype on entry (x's own for the first operand).
bool promote(const Target& x, const Source& operand, DType& common) {
  if (operand.is_number) return operand.number.category <= category(x.dtype);
  if (operand.dtype == common) return true;
  const auto result = c10::promoteTypes(x.tensor->scalar_type(), operand.tensor->scalar_type());
  DType promoted;
  if (!c10::canCast(result, x.tensor->scalar_type()) || !to_dtype(result, promoted)) return false;
  if (common != x.dtype && common != promoted) return false;
  common = promoted;
  return true;
}

Argument to_argument(const Source& s, DType compute) {
  Argument a;
  if (s.is_number) {
    a.kind = Operand::scalar;
    a.scalar = to_scalar(s.number, compute);
  } else {
    a.kind = Operand::tensor;
    a.tensor = s.tensor;
  }
  return a;
}
// The same with a number rounded to the promoted dtype, where that is narrower than the compute type.
Argument to_rounded_argument(const Source& s, DType compute, DType common) {
  Argument a = to_argument(s, compute);
  if (s.is_number && is_reduced_floating(common)) a.scalar.d = rounded_to(common, a.scalar.d);
  return a;
}
Argument scalar_argument(Scalar s) {
  Argument a;
  a.kind = Operand::scalar;
  a.scalar = s;
  return a;
}

// ---- binders: from Python arguments to an operation of the table
// --------------------------------------------

bool is_none(PyObject* object) {
  return object == nullptr || object == Py_None;
}

Outcome bind_unary(const Function& f, Slots slot) {
  Target x;
  if (!x.open(slot[0]) || x.dtype == DType::b8) return Outcome::delegate;
  const DType compute = compute_dtype(x.dtype);
  if (!has_form(kOpInfo[static_cast<int>(f.op)].types, compute)) return Outcome::delegate;
  return execute(f.op, *x.tensor, x.dtype, compute, {}, {});
}

// x = op(x, other), with + and * of bool tensors turned into what they mean there.
Outcome run_binary(Op op, const Target& x, const Source& other, Op bool_op = Op::count,
                   bool round_scalar = false) {
  DType common = x.dtype;
  if (!promote(x, other, common)) return Outcome::delegate;
  DType compute = compute_dtype(common);
  if (common == DType::b8) {
    if (bool_op == Op::count) return Outcome::delegate;
    op = bool_op;
  }
  const Argument b = round_scalar ? to_rounded_argument(other, compute, common) : to_argument(other, compute);
  return execute(op, *x.tensor, x.dtype, compute, b, {});
}

Outcome bind_binary(const Function& f, Slots slot) {
  Target x;
  Source other;
  if (!x.open(slot[0]) || !open(slot[1], x, other)) return Outcome::delegate;
  return run_binary(f.op, x, other, f.op == Op::mul_ ? Op::logical_and : Op::count);
}

// add_ and sub_: the alpha, and torch's refusal to subtract booleans. Scalars are rounded to the tensor's
// dtype first, which in torch is true of these two only.
Outcome bind_add(const Function& f, Slots slot) {
  Target x;
  Source other;
  if (!x.open(slot[0]) || !open(slot[1], x, other)) return Outcome::delegate;
  const bool subtract = f.op == Op::sub_;
  if (subtract) {
    if (x.dtype == DType::b8) return Outcome::delegate;
    if (other.is_number ? other.number.category == Number::boolean : other.dtype == DType::b8)
      return Outcome::delegate;
  }
  if (slot[2] != nullptr) {
    Number alpha;
    if (!to_number(slot[2], alpha)) return Outcome::delegate;
    if (alpha.category == Number::boolean) return Outcome::delegate;
    if (alpha.as_double() != 1.0) {
      DType common = x.dtype;
      if (x.dtype == DType::b8 || !promote(x, other, common)) return Outcome::delegate;
      if (!fits(alpha, common)) return Outcome::delegate;
      // Torch subtracts by adding with -alpha, which must fit as well.
      Number negated = alpha;
      if (subtract && alpha.category == Number::integer && common != DType::u8) {
        if (alpha.i == INT64_MIN) return Outcome::delegate;
        negated.i = -alpha.i;
        if (!fits(negated, common)) return Outcome::delegate;
      }
      const DType compute = compute_dtype(common);
      Scalar scale = to_scalar(alpha, compute);
      const Argument b = to_rounded_argument(other, compute, common);
      if (is_floating(compute)) {
        if (is_reduced_floating(common)) scale.d = rounded_to(common, scale.d);
        if (subtract) scale.d = -scale.d;
      } else if (subtract) {
        scale.i = static_cast<int64_t>(-static_cast<uint64_t>(scale.i));
      }
      return execute(Op::add_scaled, *x.tensor, x.dtype, compute, b, scalar_argument(scale));
    }
    if (alpha.category == Number::floating && !x.floating()) return Outcome::delegate;
  }
  return run_binary(f.op, x, other, Op::logical_or, /*round_scalar=*/true);
}

Outcome bind_div(const Function&, Slots slot) {
  Target x;
  Source other;
  if (!x.open(slot[0]) || !open(slot[1], x, other) || x.dtype == DType::b8) return Outcome::delegate;
  if (is_none(slot[2])) {
    if (!x.floating()) return Outcome::delegate;
    return run_binary(Op::div_, x, other);
  }
  if (!PyUnicode_Check(slot[2])) return Outcome::delegate;
  Op op;
  if (PyUnicode_CompareWithASCIIString(slot[2], "floor") == 0) {
    op = Op::div_floor;
  } else if (PyUnicode_CompareWithASCIIString(slot[2], "trunc") == 0) {
    op = Op::div_trunc;
  } else {
    return Outcome::delegate;
  }
  DType common = x.dtype;
  if (!promote(x, other, common)) return Outcome::delegate;
  if (!is_floating(common)) {
    // Asked before anything is written: torch raises when it gets there, with part of the tensor changed.
    bool zero;
    if (other.is_number) {
      int64_t divisor = 0;
      active_kernels->convert(&divisor, common, &other.number.i, DType::i64, 1);
      zero = divisor == 0;
    } else {
      zero = x.tensor->numel() > 0 && holds_zero(*other.tensor, other.dtype);
    }
    if (zero && x.tensor->numel() > 0) {
      PyErr_SetString(
          PyExc_RuntimeError,
          "div_: ZeroDivisionError: an integer tensor cannot be divided by zero, and `other` holds a zero. "
          "Mask the zeros first, or divide a floating point tensor. input is unchanged.");
      return Outcome::error;
    }
  }
  return run_binary(op, x, other);
}

// A bound of clamp_ as a number that torch takes for x.
bool is_bound(const Source& s, const Target& x) {
  return s.is_number && s.number.category <= category(x.dtype) && fits(s.number, x.dtype);
}

// A NaN bound makes everything NaN.
Outcome fill_nan(const Target& x) {
  Scalar nan;
  nan.d = std::numeric_limits<double>::quiet_NaN();
  return execute_move(*x.tensor, x.dtype, scalar_argument(nan));
}
bool is_nan(const Source& s) {
  return s.is_number && s.number.category == Number::floating && std::isnan(s.number.d);
}

Outcome clamp_one(const Target& x, const Source& bound, bool upper) {
  if (bound.is_number && !bound.from_tensor) {
    if (!is_bound(bound, x)) return Outcome::delegate;
    if (is_nan(bound)) return fill_nan(x);
    return run_binary(upper ? Op::clamp_max_ : Op::clamp_min_, x, bound);
  }
  return run_binary(upper ? Op::minimum : Op::maximum, x, bound);
}

Outcome bind_clamp(const Function&, Slots slot) {
  Target x;
  if (!x.open(slot[0]) || x.dtype == DType::b8) return Outcome::delegate;
  const bool has_lo = !is_none(slot[1]), has_hi = !is_none(slot[2]);
  Source lo, hi;
  if (has_lo && !open(slot[1], x, lo)) return Outcome::delegate;
  if (has_hi && !open(slot[2], x, hi)) return Outcome::delegate;
  if (has_lo && !has_hi) return clamp_one(x, lo, false);
  if (has_hi && !has_lo) return clamp_one(x, hi, true);
  if (!has_lo) return Outcome::delegate;
  const DType compute = compute_dtype(x.dtype);
  if (lo.is_number && hi.is_number && !lo.from_tensor && !hi.from_tensor) {
    if (!is_bound(lo, x) || !is_bound(hi, x)) return Outcome::delegate;
    if (is_nan(lo) || is_nan(hi)) return fill_nan(x);
    return execute(Op::clamp_, *x.tensor, x.dtype, compute, to_argument(lo, compute),
                   to_argument(hi, compute));
  }
  // A number beside a tensor is torch's to sort out.
  if ((lo.is_number && !lo.from_tensor) || (hi.is_number && !hi.from_tensor)) return Outcome::delegate;
  DType common = x.dtype;
  if (!promote(x, lo, common) || !promote(x, hi, common)) return Outcome::delegate;
  const DType type = compute_dtype(common);
  return execute(Op::clamp_between, *x.tensor, x.dtype, type, to_argument(lo, type), to_argument(hi, type));
}
template <bool Upper>
Outcome bind_clamp_one(const Function&, Slots slot) {
  Target x;
  Source bound;
  if (!x.open(slot[0]) || x.dtype == DType::b8 || !open(slot[1], x, bound)) return Outcome::delegate;
  return clamp_one(x, bound, Upper);
}

// Exponents that torch computes without a power, in the same way.
Outcome bind_pow(const Function&, Slots slot) {
  Target x;
  Source exponent;
  if (!x.open(slot[0]) || x.dtype == DType::b8 || !open(slot[1], x, exponent)) return Outcome::delegate;
  if (!exponent.is_number || exponent.from_tensor) {
    return run_binary(Op::pow_, x, exponent, Op::count, /*round_scalar=*/true);
  }
  const Number& e = exponent.number;
  if (e.category == Number::boolean || e.category > category(x.dtype)) return Outcome::delegate;
  if (!x.floating() && e.i < 0) return Outcome::delegate;
  if ((!x.floating() || is_reduced_floating(x.dtype)) && !fits(e, x.dtype)) return Outcome::delegate;
  const DType compute = compute_dtype(x.dtype);
  const double value = rounded_to(x.dtype, e.as_double());
  const auto unary = [&](Op op) { return execute(op, *x.tensor, x.dtype, compute, {}, {}); };
  if (value == 0) {
    Scalar one;
    x.floating() ? (void)(one.d = 1) : (void)(one.i = 1);
    return execute_move(*x.tensor, x.dtype, scalar_argument(one));
  }
  if (value == 1) {
    Argument self;
    self.kind = Operand::tensor;
    self.tensor = x.tensor;
    return execute_move(*x.tensor, x.dtype, self);
  }
  if (value == 2) return unary(Op::square);
  if (value == 3) return unary(Op::cube);
  if (x.floating()) {
    if (value == 0.5) return unary(Op::sqrt_);
    if (value == -0.5) return unary(Op::rsqrt);
    if (value == -1) return unary(Op::reciprocal);
    if (value == -2) return unary(Op::reciprocal_square);
  }
  return run_binary(Op::pow_, x, exponent, Op::count, /*round_scalar=*/true);
}

Outcome fill_number(const Target& x, const Number& v) {
  Scalar s;
  if (x.floating()) {
    if (!fits(v, x.dtype)) return Outcome::delegate;
    s = to_scalar(v, compute_dtype(x.dtype));
    // float16 and bfloat16 are converted from the number, not from its float32.
    if (is_reduced_floating(x.dtype)) s.d = v.as_double();
  } else if (x.dtype == DType::b8) {
    s.i = v.category == Number::floating ? v.d != 0 : v.i != 0;
  } else {
    if (!fits(v, x.dtype)) return Outcome::delegate;
    s.i = v.i;
  }
  return execute_move(*x.tensor, x.dtype, scalar_argument(s));
}
Outcome bind_fill(const Function&, Slots slot) {
  Target x;
  Source value;
  if (!x.open(slot[0]) || !open(slot[1], x, value) || !value.is_number) return Outcome::delegate;
  return fill_number(x, value.number);
}
Outcome bind_zero(const Function&, Slots slot) {
  Target x;
  if (!x.open(slot[0])) return Outcome::delegate;
  Number zero;
  zero.category = Number::integer;
  zero.i = 0;
  return fill_number(x, zero);
}
Outcome bind_copy(const Function&, Slots slot) {
  Target x;
  if (!x.open(slot[0]) || !(slot[2] == nullptr || PyBool_Check(slot[2]))) return Outcome::delegate;
  Argument source;
  source.kind = Operand::tensor;
  source.tensor = plain_tensor(slot[1]);
  if (source.tensor == nullptr) return Outcome::delegate;
  return execute_move(*x.tensor, x.dtype, source);
}

Binder special_binder(const std::string& kernel) {
  if (kernel == "add_" || kernel == "sub_") return bind_add;
  if (kernel == "div_") return bind_div;
  if (kernel == "clamp_") return bind_clamp;
  if (kernel == "clamp_min_") return bind_clamp_one<false>;
  if (kernel == "clamp_max_") return bind_clamp_one<true>;
  if (kernel == "pow_") return bind_pow;
  if (kernel == "fill_") return bind_fill;
  if (kernel == "zero_") return bind_zero;
  if (kernel == "copy_") return bind_copy;
  return nullptr;
}

// ---- calls ------------------------------------------------------------------------------------------------

// Puts the arguments where the parameters are; false if they do not fit, which torch then says better.
bool parse(const Function& f, PyObject* const* args, Py_ssize_t nargs, PyObject* kwnames, PyObject** slot) {
  if (nargs > f.positional) return false;
  for (Py_ssize_t i = 0; i < nargs; ++i) slot[i] = args[i];
  const Py_ssize_t keywords = kwnames == nullptr ? 0 : PyTuple_GET_SIZE(kwnames);
  for (Py_ssize_t k = 0; k < keywords; ++k) {
    PyObject* const name = PyTuple_GET_ITEM(kwnames, k);
    int at = 0;
    while (at < f.parameters && f.parameter[at] != name) ++at;
    if (at == f.parameters) {
      for (at = 0; at < f.parameters && PyUnicode_Compare(f.parameter[at], name) != 0; ++at) {
      }
    }
    if (at == f.parameters || slot[at] != nullptr) return false;
    slot[at] = args[nargs + k];
  }
  for (int i = 0; i < f.required; ++i) {
    if (slot[i] == nullptr) return false;
  }
  return true;
}

// The native path, or Outcome::delegate.
Outcome run_native(const Function& f, PyObject* const* args, Py_ssize_t nargs, PyObject* kwnames,
                   PyObject*& result) {
  if (f.binder == nullptr || active_kernels == nullptr || !enabled || !no_modes()) return Outcome::delegate;
  PyObject* slot[kMaxParameters] = {};
  if (!parse(f, args, nargs, kwnames, slot)) return Outcome::delegate;
  RECORD_FUNCTION(f.name, c10::ArrayRef<const c10::IValue>{});
  const Outcome outcome = f.binder(f, slot);
  if (outcome == Outcome::done) {
    bump_version(THPVariable_Unpack(slot[0]));
    result = Py_NewRef(slot[0]);
  }
  return outcome;
}

// Gives the error of a delegate to the hook, which may say more.
void explain(const Function& f, PyObject* const* args, Py_ssize_t nargs, PyObject* kwnames) {
  if (error_hook == nullptr) return;
  PyObject *type = nullptr, *value = nullptr, *trace = nullptr;
  PyErr_Fetch(&type, &value, &trace);
  PyErr_NormalizeException(&type, &value, &trace);
  if (trace != nullptr && value != nullptr) PyException_SetTraceback(value, trace);
  PyObject* positional = PyTuple_New(nargs);
  PyObject* keywords = PyDict_New();
  PyObject* replaced = nullptr;
  if (positional != nullptr && keywords != nullptr) {
    for (Py_ssize_t i = 0; i < nargs; ++i) PyTuple_SET_ITEM(positional, i, Py_NewRef(args[i]));
    const Py_ssize_t count = kwnames == nullptr ? 0 : PyTuple_GET_SIZE(kwnames);
    for (Py_ssize_t k = 0; k < count; ++k)
      PyDict_SetItem(keywords, PyTuple_GET_ITEM(kwnames, k), args[nargs + k]);
    replaced = PyObject_CallFunction(error_hook, "OsOO", value, f.name.c_str(), positional, keywords);
  }
  Py_XDECREF(positional);
  Py_XDECREF(keywords);
  if (replaced == nullptr) PyErr_Clear(); // the hook's own failure must not hide the error
  if (replaced != nullptr && PyExceptionInstance_Check(replaced)) {
    PyErr_SetObject(reinterpret_cast<PyObject*>(Py_TYPE(replaced)), replaced);
    Py_XDECREF(type);
    Py_XDECREF(value);
    Py_XDECREF(trace);
  } else {
    PyErr_Restore(type, value, trace);
  }
  Py_XDECREF(replaced);
}

// A tensor that the guard can look at: with memory of its own, and nothing wrapped around it.
const at::Tensor* guardable(PyObject* object) {
  if (!THPVariable_CheckExact(object)) return nullptr;
  const at::Tensor& t = THPVariable_Unpack(object);
  const c10::DispatchKeySet keys = t.key_set();
  const bool dense = keys.has(c10::DispatchKey::CPU) || keys.has(c10::DispatchKey::CUDA);
  const c10::DispatchKeySet wrappers =
      c10::python_ks | c10::functorch_transforms_ks | c10::DispatchKeySet(c10::DispatchKey::Functionalize);
  return dense && !keys.has_any(wrappers) && t.unsafeGetTensorImpl()->has_storage() ? &t : nullptr;
}
// Whether torch, left alone with these arguments, might write before it raises or read what it has written.
// The guard looks closer; this only spares the other calls its cost.
bool needs_guard(const Function& f, PyObject* const* args, Py_ssize_t count) {
  if (!no_modes()) return false;
  const at::Tensor* const x = guardable(args[0]);
  if (x == nullptr) return false;
  if (x->is_inference() && !c10::InferenceMode::is_enabled()) return true;
  if (f.divides && !x->is_floating_point() && !x->is_complex()) return true;
  for (Py_ssize_t i = 1; i < count; ++i) {
    const at::Tensor* const operand = guardable(args[i]);
    if (operand != nullptr && operand->device() == x->device() &&
        may_share(*x, static_cast<int>(x->element_size()), *operand,
                  static_cast<int>(operand->element_size()))) {
      return true;
    }
  }
  return false;
}

PyObject* call_delegate(const Function& f, PyObject* const* args, Py_ssize_t nargs, PyObject* kwnames) {
  last_path = {Taken::torch, Path::loop};
  PyObject* result;
  // Torch's methods take the tensor as self, by position only.
  Py_ssize_t at = -1;
  const Py_ssize_t keywords = kwnames == nullptr || nargs > 0 ? 0 : PyTuple_GET_SIZE(kwnames);
  for (Py_ssize_t k = 0; k < keywords; ++k) {
    if (PyUnicode_Compare(PyTuple_GET_ITEM(kwnames, k), f.parameter[0]) == 0) at = k;
  }
  if (at >= 0) {
    std::vector<PyObject*> values{args[at]};
    PyObject* names = PyTuple_New(keywords - 1);
    if (names == nullptr) return nullptr;
    for (Py_ssize_t k = 0, out = 0; k < keywords; ++k) {
      if (k == at) continue;
      values.push_back(args[k]);
      PyTuple_SET_ITEM(names, out++, Py_NewRef(PyTuple_GET_ITEM(kwnames, k)));
    }
    result = PyObject_Vectorcall(f.guarded, values.data(), 1, names);
    Py_DECREF(names);
  } else {
    const Py_ssize_t count = nargs + (kwnames == nullptr ? 0 : PyTuple_GET_SIZE(kwnames));
    PyObject* const callee = nargs > 0 && needs_guard(f, args, count) ? f.guarded : f.delegate;
    result = PyObject_Vectorcall(callee, args, nargs, kwnames);
  }
  if (result == nullptr) explain(f, args, nargs, kwnames);
  return result;
}

PyObject* call(const Function& f, PyObject* const* args, Py_ssize_t nargs, PyObject* kwnames) {
  HANDLE_TH_ERRORS
  PyObject* result = nullptr;
  switch (run_native(f, args, nargs, kwnames, result)) {
    case Outcome::done:
      return result;
    case Outcome::error:
      return nullptr;
    case Outcome::delegate:
      break;
  }
  return call_delegate(f, args, nargs, kwnames);
  END_HANDLE_TH_ERRORS
}

template <int I>
PyObject* entry(PyObject*, PyObject* const* args, Py_ssize_t nargs, PyObject* kwnames) {
  return call(functions[I], args, nargs, kwnames);
}
using Entry = PyObject* (*)(PyObject*, PyObject* const*, Py_ssize_t, PyObject*);
template <int... I>
constexpr std::array<Entry, sizeof...(I)> make_entries(std::integer_sequence<int, I...>) {
  return {entry<I>...};
}
constexpr auto entries = make_entries(std::make_integer_sequence<int, kMaxFunctions>{});

// Reads "(input, other, *, alpha=1)".
bool parse_signature(const std::string& signature, Function& f) {
  bool keyword_only = false;
  std::string name;
  bool in_default = false;
  int depth = 0;
  for (size_t i = 1; i < signature.size(); ++i) {
    const char ch = signature[i];
    const bool last = ch == ')' && depth == 0;
    if (last || (ch == ',' && depth == 0)) {
      if (name == "*") {
        keyword_only = true;
      } else if (!name.empty() && name != "/") {
        if (f.parameters == kMaxParameters) return false;
        f.parameter[f.parameters++] = PyUnicode_InternFromString(name.c_str());
        if (!in_default && !keyword_only) f.required = f.parameters;
        if (!keyword_only) f.positional = f.parameters;
      }
      name.clear();
      in_default = false;
      if (last) return f.parameters > 0;
      continue;
    }
    if (ch == '(' || ch == '[') ++depth;
    if (ch == ')' || ch == ']') --depth;
    if (ch == '=' || ch == ':') in_default = true;
    if (!in_default && ch != ' ') name += ch;
  }
  return false;
}

} // namespace

std::vector<std::string> native_names() {
  std::vector<std::string> names;
  for (const OpInfo& info : kOpInfo) {
    const std::string name = info.name;
    if (name.back() == '_') names.push_back(name);
  }
#define INPLACE_EXT_NAME(NAME) names.push_back(#NAME);
  INPLACE_EXT_MOVES(INPLACE_EXT_NAME)
#undef INPLACE_EXT_NAME
  return names;
}

PyObject* make_function(const std::string& name, const std::string& kernel, const std::string& signature,
                        const std::string& doc, PyObject* delegate, PyObject* guarded, bool divides) {
  if (function_count == kMaxFunctions) {
    PyErr_SetString(PyExc_RuntimeError, "make_function: no more entry points; raise kMaxFunctions");
    return nullptr;
  }
  Function f;
  f.name = name;
  // The form from which inspect.signature() reads the signature of a built-in.
  f.doc = name + signature + "\n--\n\n" + doc;
  if (!parse_signature(signature, f)) {
    PyErr_Format(PyExc_ValueError, "make_function: cannot read the signature %s of %s", signature.c_str(),
                 name.c_str());
    return nullptr;
  }
  if (!kernel.empty()) {
    for (int i = 0; i < kOps; ++i) {
      if (kernel == kOpInfo[i].name) f.op = static_cast<Op>(i);
    }
    f.binder = special_binder(kernel);
    if (f.binder == nullptr && f.op != Op::count && kernel.back() == '_') {
      f.binder = kOpInfo[static_cast<int>(f.op)].operands == 0 ? bind_unary : bind_binary;
    }
    if (f.binder == nullptr) {
      PyErr_Format(PyExc_ValueError, "make_function: no kernel named %s", kernel.c_str());
      return nullptr;
    }
  }
  f.delegate = Py_NewRef(delegate);
  f.guarded = Py_NewRef(guarded);
  f.divides = divides;
  Function& stored = functions[function_count];
  stored = std::move(f);
  stored.definition.ml_name = stored.name.c_str();
  stored.definition.ml_meth =
      reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(entries[function_count]));
  stored.definition.ml_flags = METH_FASTCALL | METH_KEYWORDS;
  stored.definition.ml_doc = stored.doc.c_str();
  ++function_count;
  PyObject* module = PyUnicode_InternFromString("inplace_ext");
  PyObject* function = PyCFunction_NewEx(&stored.definition, nullptr, module);
  Py_XDECREF(module);
  return function;
}

void set_error_hook(PyObject* hook) {
  Py_XSETREF(error_hook, hook == Py_None ? nullptr : Py_NewRef(hook));
}
void set_enabled(bool value) {
  enabled = value;
}

} // namespace inplace_ext
