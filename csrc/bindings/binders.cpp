#include "binders.h"

#include <c10/core/DefaultDtype.h>
#include <c10/core/ScalarType.h>

#include <cmath>
#include <limits>

#include "device.h"
#include "libraries.h"
#include "recorder.h"

namespace inplace_ext {
namespace {

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
  if (!same_device(*out.tensor, *x.tensor)) {
    // Of two devices torch takes a number on the CPU alone.
    if (out.tensor->dim() != 0 || on_device(*out.tensor)) return false;
  } else if (on_device(*out.tensor)) {
    // One without dims as an operand like others: reading it would wait for the device.
    return out.tensor->dim() != 0 || out.dtype == x.dtype;
  }
  if (out.tensor->dim() == 0) {
    // One that is still to be computed is no number: an operand like others, where x has no dims either.
    if (recorder != nullptr && !recorder->is_settled(*out.tensor))
      return x.tensor->dim() == 0 && out.dtype == x.dtype;
    // Of two tensors without dims both have a say in the dtype; torch may work that out.
    if (x.tensor->dim() == 0 && out.dtype != x.dtype) return false;
    out.is_number = out.from_tensor = true;
    const void* p = out.tensor->const_data_ptr();
    out.number.category = static_cast<Number::Category>(category(out.dtype));
    if (out.number.category == Number::floating) {
      active_kernels->convert(&out.number.d, DType::f64, p, out.dtype, 1, false);
    } else {
      active_kernels->convert(&out.number.i, DType::i64, p, out.dtype, 1, false);
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

// ---- binders ----------------------------------------------------------------------------------------------

bool is_none(PyObject* object) {
  return object == nullptr || object == Py_None;
}

Types types_of(Op op) {
  return op_info(op).types;
}
bool takes_bool(Op op) {
  return has_form(types_of(op), DType::b8);
}

Outcome run_unary(Op op, const Target& x) {
  const DType compute = compute_dtype(x.dtype);
  if (!has_form(types_of(op), compute) || (x.dtype == DType::b8 && !takes_bool(op))) return Outcome::delegate;
  return execute(op, *x.tensor, x.dtype, compute);
}
Outcome bind_unary(Op op, Slots slot) {
  Target x;
  return x.open(slot[0]) ? run_unary(op, x) : Outcome::delegate;
}
// x is what it should be already.
Outcome leave(const Target& x) {
  last_path = {on_device(*x.tensor) ? Taken::device : Taken::native, Path::loop};
  return Outcome::done;
}
// Integers are round.
Outcome bind_rounding(Op op, Slots slot) {
  Target x;
  if (!x.open(slot[0]) || x.dtype == DType::b8) return Outcome::delegate;
  return x.floating() ? run_unary(op, x) : leave(x);
}
Outcome bind_round(Op op, Slots slot) {
  if (slot[1] == nullptr) return bind_rounding(op, slot);
  Target x;
  Number places;
  if (!x.open(slot[0]) || !to_number(slot[1], places) || places.category != Number::integer)
    return Outcome::delegate;
  if (places.i == 0) return bind_rounding(op, slot);
  if (!x.floating()) return Outcome::delegate;
  const DType compute = compute_dtype(x.dtype);
  Scalar power;
  // inf where the dtype does not hold it, as in torch.
  power.d = rounded_to(compute, std::pow(10.0, std::fabs(static_cast<double>(places.i))));
  return execute(places.i > 0 ? Op::round_places : Op::round_tens, *x.tensor, x.dtype, compute,
                 scalar_argument(power));
}

// x = op(x, other), with + and * of bool tensors turned into what they mean there.
Outcome run_binary(Op op, const Target& x, const Source& other, Op bool_op = Op::count,
                   bool round_scalar = false) {
  DType common = x.dtype;
  if (!promote(x, other, common)) return Outcome::delegate;
  const DType compute = compute_dtype(common);
  if (common == DType::b8 && bool_op != Op::count) op = bool_op;
  if (common == DType::b8 && !takes_bool(op)) return Outcome::delegate;
  const Argument b = round_scalar ? to_rounded_argument(other, compute, common) : to_argument(other, compute);
  return execute(op, *x.tensor, x.dtype, compute, b);
}

Outcome bind_binary(Op op, Slots slot) {
  Target x;
  Source other;
  if (!x.open(slot[0]) || !open(slot[1], x, other)) return Outcome::delegate;
  return run_binary(op, x, other, op == Op::mul_ ? Op::logical_and : Op::count);
}

// add_ and sub_: the alpha, and torch's refusal to subtract booleans. Scalars are rounded to the tensor's
// dtype first, which in torch is true of these two only.
Outcome bind_add(Op op, Slots slot) {
  Target x;
  Source other;
  if (!x.open(slot[0]) || !open(slot[1], x, other)) return Outcome::delegate;
  const bool subtract = op == Op::sub_;
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
  return run_binary(op, x, other, Op::logical_or, /*round_scalar=*/true);
}

// Asked before anything is written: torch raises when it gets to the zero, with part of the tensor changed.
// False with a Python error set where an integer tensor would be divided by zero.
bool check_divisor(const char* name, const Target& x, const Source& other, DType common) {
  if (is_floating(common) || x.tensor->numel() == 0) return true;
  // On a device torch divides by zero without an error, and finding one would wait for it.
  if (on_device(*x.tensor)) return true;
  bool zero;
  if (other.is_number) {
    int64_t divisor = 0;
    active_kernels->convert(&divisor, common, &other.number.i, DType::i64, 1, false);
    zero = divisor == 0;
  } else {
    zero = holds_zero(*other.tensor, other.dtype);
  }
  if (!zero) return true;
  PyErr_Format(PyExc_RuntimeError,
               "%s: ZeroDivisionError: an integer tensor cannot be divided by zero, and `other` holds a "
               "zero. Mask the zeros first, or divide a floating point tensor. input is unchanged.",
               name);
  return false;
}

// Divisions that an integer tensor has as well; `common` is the promoted dtype.
Outcome run_division(const char* name, Op op, const Target& x, const Source& other, bool round_scalar) {
  DType common = x.dtype;
  if (x.dtype == DType::b8 || !promote(x, other, common)) return Outcome::delegate;
  if (recorder != nullptr && other.tensor != nullptr && !recorder->is_settled(*other.tensor) &&
      !is_floating(common))
    return Outcome::delegate; // it may come to hold a zero
  if (!check_divisor(name, x, other, common)) return Outcome::error;
  return run_binary(op, x, other, Op::count, round_scalar);
}
Outcome bind_div(Op, Slots slot) {
  Target x;
  Source other;
  if (!x.open(slot[0]) || !open(slot[1], x, other) || x.dtype == DType::b8) return Outcome::delegate;
  if (is_none(slot[2])) {
    if (!x.floating()) return Outcome::delegate;
    return run_binary(Op::div_, x, other);
  }
  if (!PyUnicode_Check(slot[2])) return Outcome::delegate;
  const bool floor = PyUnicode_CompareWithASCIIString(slot[2], "floor") == 0;
  if (!floor && PyUnicode_CompareWithASCIIString(slot[2], "trunc") != 0) return Outcome::delegate;
  return run_division("div_", floor ? Op::div_floor : Op::div_trunc, x, other, /*round_scalar=*/false);
}
Outcome bind_remainder(Op op, Slots slot) {
  Target x;
  Source other;
  if (!x.open(slot[0]) || !open(slot[1], x, other)) return Outcome::delegate;
  return run_division(op_info(op).name, op, x, other, /*round_scalar=*/true);
}

// addcmul_ and addcdiv_: x + value * tensor1 * tensor2, or / tensor2.
Outcome bind_addc(Op op, Slots slot) {
  Target x;
  Source first, second;
  if (!x.open(slot[0]) || x.dtype == DType::b8 || !open(slot[1], x, first) || !open(slot[2], x, second))
    return Outcome::delegate;
  for (const Source& s : {first, second}) {
    if (s.is_number && !s.from_tensor) return Outcome::delegate;
  }
  Number value;
  value.category = Number::integer;
  value.i = 1;
  if (slot[3] != nullptr && !to_number(slot[3], value)) return Outcome::delegate;
  DType common = x.dtype;
  if (!promote(x, first, common) || !promote(x, second, common)) return Outcome::delegate;
  const DType compute = compute_dtype(common);
  if (!has_form(types_of(op), compute) || value.category == Number::boolean || !fits(value, common))
    return Outcome::delegate;
  return execute(op, *x.tensor, x.dtype, compute, to_rounded_argument(first, compute, common),
                 to_rounded_argument(second, compute, common), to_scalar(value, compute));
}
// All tensors of one dtype: torch promotes nothing here.
Outcome bind_lerp(Op op, Slots slot) {
  Target x;
  Source end, weight;
  if (!x.open(slot[0]) || !x.floating() || !open(slot[1], x, end) || !open(slot[2], x, weight))
    return Outcome::delegate;
  const bool end_is_tensor = !end.is_number || end.from_tensor;
  const bool weight_is_tensor = !weight.is_number || weight.from_tensor;
  if (!end_is_tensor || end.dtype != x.dtype) return Outcome::delegate;
  if (weight_is_tensor ? weight.dtype != x.dtype : !fits(weight.number, compute_dtype(x.dtype)))
    return Outcome::delegate;
  const DType compute = compute_dtype(x.dtype);
  return execute(op, *x.tensor, x.dtype, compute, to_argument(end, compute), to_argument(weight, compute));
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
  return run_binary(upper ? Op::minimum_ : Op::maximum_, x, bound);
}

Outcome bind_clamp(Op, Slots slot) {
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
Outcome bind_clamp_one(Op, Slots slot) {
  Target x;
  Source bound;
  if (!x.open(slot[0]) || !open(slot[1], x, bound)) return Outcome::delegate;
  if (x.dtype == DType::b8 && bound.is_number) return Outcome::delegate;
  return clamp_one(x, bound, Upper);
}

// Exponents that torch computes without a power, in the same way.
Outcome bind_pow(Op, Slots slot) {
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
  const double value = rounded_to(x.dtype, e.as_double());
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
  if (value == 2) return run_unary(Op::square_, x);
  if (value == 3) return run_unary(Op::cube, x);
  if (x.floating()) {
    if (value == 0.5) return run_unary(Op::sqrt_, x);
    if (value == -0.5) return run_unary(Op::rsqrt_, x);
    if (value == -1) return run_unary(Op::reciprocal_, x);
    if (value == -2) return run_unary(Op::reciprocal_square, x);
  }
  return run_binary(Op::pow_, x, exponent, Op::count, /*round_scalar=*/true);
}

// The number as the moves take it; false where torch is to convert it.
bool to_fill(const Target& x, const Number& v, Scalar& s) {
  if (x.floating()) {
    if (!fits(v, x.dtype)) return false;
    s = to_scalar(v, compute_dtype(x.dtype));
    // float16 and bfloat16 are converted from the number, not from its float32.
    if (is_reduced_floating(x.dtype)) s.d = v.as_double();
  } else if (x.dtype == DType::b8) {
    s.i = v.category == Number::floating ? v.d != 0 : v.i != 0;
  } else {
    if (!fits(v, x.dtype)) return false;
    s.i = v.i;
  }
  return true;
}
Outcome fill_number(const Target& x, const Number& v) {
  Scalar s;
  return to_fill(x, v, s) ? execute_move(*x.tensor, x.dtype, scalar_argument(s)) : Outcome::delegate;
}
Outcome bind_fill(Op, Slots slot) {
  Target x;
  Source value;
  if (!x.open(slot[0]) || !open(slot[1], x, value) || !value.is_number) return Outcome::delegate;
  return fill_number(x, value.number);
}
Outcome bind_zero(Op, Slots slot) {
  Target x;
  if (!x.open(slot[0])) return Outcome::delegate;
  Number zero;
  zero.category = Number::integer;
  zero.i = 0;
  return fill_number(x, zero);
}
Outcome bind_copy(Op, Slots slot) {
  Target x;
  if (!x.open(slot[0]) || !(slot[2] == nullptr || PyBool_Check(slot[2]))) return Outcome::delegate;
  Argument source;
  source.kind = Operand::tensor;
  source.tensor = plain_tensor(slot[1]);
  if (source.tensor == nullptr) return Outcome::delegate;
  return execute_move(*x.tensor, x.dtype, source);
}

// ---- selection --------------------------------------------------------------------------------------------

// Where the promoted dtype need not fit x, since the result is 0 or 1.
Outcome bind_comparison(Op op, Slots slot) {
  Target x;
  Source other;
  if (!x.open(slot[0]) || !open(slot[1], x, other)) return Outcome::delegate;
  DType common = x.dtype;
  if (other.is_number) {
    if (other.number.category > category(x.dtype)) {
      const at::ScalarType wider =
          other.number.category == Number::floating ? c10::get_default_dtype_as_scalartype() : at::kLong;
      if (!to_dtype(wider, common)) return Outcome::delegate;
    }
    if (common != DType::b8 && !fits(other.number, common)) return Outcome::delegate;
  } else if (!to_dtype(c10::promoteTypes(x.tensor->scalar_type(), other.tensor->scalar_type()), common)) {
    return Outcome::delegate;
  }
  // An integer x would have to be rounded to the 16-bit float first.
  if (is_reduced_floating(common) && !x.floating()) return Outcome::delegate;
  const DType compute = compute_dtype(common);
  return execute(op, *x.tensor, x.dtype, compute, to_rounded_argument(other, compute, common));
}

// maximum_ and minimum_, of a tensor.
Outcome bind_extremum(Op op, Slots slot) {
  Target x;
  Source other;
  if (!x.open(slot[0]) || !open(slot[1], x, other)) return Outcome::delegate;
  if (other.is_number && !other.from_tensor) return Outcome::delegate;
  return run_binary(op, x, other);
}

// x where the mask has it, and a value or another tensor elsewhere; or the other way round.
Outcome run_masked(Op op, const Target& x, const at::Tensor& mask, Source value) {
  DType common = x.dtype;
  if (op == Op::masked_fill_ && x.dtype == DType::b8 && value.is_number) { // true of all numbers but 0
    value.number.i = value.number.as_double() != 0;
    value.number.category = Number::boolean;
  }
  if (mask.scalar_type() != at::kBool || !same_device(mask, *x.tensor) || !promote(x, value, common))
    return Outcome::delegate;
  if (value.is_number) {
    if (x.dtype != DType::b8 && !fits(value.number, x.dtype)) return Outcome::delegate;
    Scalar s;
    if (op == Op::masked_fill_ && recorder == nullptr && to_fill(x, value.number, s) &&
        fill_blocks(*x.tensor, x.dtype, mask, s)) {
      return Outcome::done;
    }
  } else if (op == Op::masked_fill_) {
    return Outcome::delegate;
  }
  // The elements only pass through, so they are converted to the dtype of x at once.
  const DType compute = compute_dtype(x.dtype);
  Argument m;
  m.kind = Operand::tensor;
  m.tensor = &mask;
  return execute(op, *x.tensor, x.dtype, compute, m, to_argument(value, compute));
}
Outcome bind_masked(Op op, Slots slot) {
  Target x;
  Source value;
  const at::Tensor* const mask = plain_tensor(slot[1]);
  if (!x.open(slot[0]) || mask == nullptr || !open(slot[2], x, value)) return Outcome::delegate;
  return run_masked(op, x, *mask, value);
}

Outcome bind_nan_to_num(Op op, Slots slot) {
  Target x;
  if (!x.open(slot[0])) return Outcome::delegate;
  double value[3] = {0, largest(x.dtype), -largest(x.dtype)};
  for (int i = 0; i < 3; ++i) {
    if (is_none(slot[1 + i])) continue;
    Number given;
    if (!to_number(slot[1 + i], given)) return Outcome::delegate;
    value[i] = given.as_double();
  }
  if (!x.floating()) return leave(x);
  Scalar s[3];
  for (int i = 0; i < 3; ++i) s[i].d = rounded_to(compute_dtype(x.dtype), value[i]);
  return execute(op, *x.tensor, x.dtype, compute_dtype(x.dtype), scalar_argument(s[0]), scalar_argument(s[1]),
                 s[2]);
}

// ---- activations ------------------------------------------------------------------------------------------

// The number in a slot, or its default; false where it is neither.
bool number_or(PyObject* object, double otherwise, double& out) {
  Number given;
  out = otherwise;
  if (object == nullptr) return true;
  if (!to_number(object, given)) return false;
  out = given.as_double();
  return true;
}
// x = op(x, b, c, d), numbers.
Outcome run_numbers(Op op, const Target& x, double b, double c = 0, double d = 0) {
  if (!x.floating()) return Outcome::delegate;
  const DType compute = compute_dtype(x.dtype);
  Scalar s[3];
  s[0].d = rounded_to(compute, b), s[1].d = rounded_to(compute, c), s[2].d = rounded_to(compute, d);
  const bool two = operands_of(op_info(op).form) == 2;
  return execute(op, *x.tensor, x.dtype, compute, scalar_argument(s[0]),
                 two ? scalar_argument(s[1]) : Argument{}, s[2]);
}

Outcome bind_threshold(Op op, Slots slot) {
  Target x;
  Source threshold, value;
  if (!x.open(slot[0]) || x.dtype == DType::b8) return Outcome::delegate;
  Number number[2];
  for (int i = 0; i < 2; ++i) {
    if (!to_number(slot[1 + i], number[i]) || number[i].category > category(x.dtype) ||
        !fits(number[i], x.dtype)) {
      return Outcome::delegate;
    }
  }
  const DType compute = compute_dtype(x.dtype);
  return execute(op, *x.tensor, x.dtype, compute, scalar_argument(to_scalar(number[0], compute)),
                 scalar_argument(to_scalar(number[1], compute)));
}

// hardtanh_ and relu6_ are clamps between numbers, which for integers must be integral.
Outcome clamp_numbers(const Target& x, double low, double high) {
  if (x.dtype == DType::b8 || !(low <= high)) return Outcome::delegate;
  const DType compute = compute_dtype(x.dtype);
  Number bound[2];
  for (int i = 0; i < 2; ++i) {
    const double d = i == 0 ? low : high;
    bound[i].category = x.floating() ? Number::floating : Number::integer;
    if (x.floating()) {
      bound[i].d = d;
    } else if (std::fabs(d) < 0x1p62 && std::trunc(d) == d) {
      bound[i].i = static_cast<int64_t>(d);
    } else {
      return Outcome::delegate;
    }
    if (!fits(bound[i], x.dtype)) return Outcome::delegate;
  }
  return execute(Op::clamp_, *x.tensor, x.dtype, compute, scalar_argument(to_scalar(bound[0], compute)),
                 scalar_argument(to_scalar(bound[1], compute)));
}
Outcome bind_hardtanh(Op, Slots slot) {
  Target x;
  double low, high;
  if (!x.open(slot[0]) || !number_or(slot[1], -1, low) || !number_or(slot[2], 1, high))
    return Outcome::delegate;
  return clamp_numbers(x, low, high);
}
Outcome bind_relu6(Op, Slots slot) {
  Target x;
  return x.open(slot[0]) ? clamp_numbers(x, 0, 6) : Outcome::delegate;
}

Outcome bind_leaky_relu(Op op, Slots slot) {
  Target x;
  double slope;
  if (!x.open(slot[0]) || !number_or(slot[1], 0.01, slope)) return Outcome::delegate;
  return run_numbers(op, x, slope);
}

// scale * (max(0, x) + min(0, alpha * (e^(x * input_scale) - 1))), the factors multiplied in the compute
// type.
Outcome run_elu(const Target& x, double alpha, double scale, double input_scale) {
  if (!x.floating()) return Outcome::delegate;
  const DType compute = compute_dtype(x.dtype);
  return run_numbers(Op::elu_, x, rounded_to(compute, alpha) * rounded_to(compute, scale), scale,
                     input_scale);
}
Outcome bind_elu(Op, Slots slot) {
  Target x;
  double alpha;
  if (!x.open(slot[0]) || !number_or(slot[1], 1, alpha)) return Outcome::delegate;
  return run_elu(x, alpha, 1, 1);
}
Outcome bind_celu(Op, Slots slot) {
  Target x;
  double alpha;
  if (!x.open(slot[0]) || !number_or(slot[1], 1, alpha) || alpha == 0) return Outcome::delegate;
  return run_elu(x, alpha, 1, 1 / alpha);
}
Outcome bind_selu(Op, Slots slot) {
  Target x;
  if (!x.open(slot[0])) return Outcome::delegate;
  return run_elu(x, 1.6732632423543772848170429916717, 1.0507009873554804934193349852946, 1);
}

Outcome bind_softplus(Op op, Slots slot) {
  Target x;
  double beta, threshold;
  if (!x.open(slot[0]) || !number_or(slot[1], 1, beta) || !number_or(slot[2], 20, threshold))
    return Outcome::delegate;
  return run_numbers(op, x, beta, threshold);
}
Outcome bind_gelu(Op op, Slots slot) {
  Target x;
  if (!x.open(slot[0])) return Outcome::delegate;
  if (slot[1] != nullptr) {
    if (!PyUnicode_Check(slot[1])) return Outcome::delegate;
    if (PyUnicode_CompareWithASCIIString(slot[1], "tanh") == 0) {
      op = Op::gelu_tanh;
    } else if (PyUnicode_CompareWithASCIIString(slot[1], "none") != 0) {
      return Outcome::delegate;
    }
  }
  return run_unary(op, x);
}

// ---- operations that are added ----------------------------------------------------------------------------

// Numbers stay in the compute type, as those of mul_ do.
Outcome bind_added(Op op, Slots slot) {
  const OpInfo& info = op_info(op);
  const AddedOp& added = added_op(op);
  Target x;
  if (!x.open(slot[0]) || x.dtype == DType::b8 || !has_form(info.types, x.dtype)) return Outcome::delegate;
  Source source[AddedOp::kMaxOperands];
  DType common = x.dtype;
  for (int i = 0; i < added.operands; ++i) {
    PyObject* const given = slot[1 + i] != nullptr ? slot[1 + i] : added.otherwise[i];
    Source& s = source[i];
    if (given == nullptr || !open(given, x, s) || !promote(x, s, common)) return Outcome::delegate;
    if (s.is_number ? !fits(s.number, x.dtype) : i >= added.tensors) return Outcome::delegate;
  }
  const DType compute = compute_dtype(common);
  if (!has_form(info.types, compute)) return Outcome::delegate;
  if (on_device(*x.tensor) ? cuda_operations[static_cast<int>(op) - kFirstAdded] == nullptr
                           : !has_kernels(op, compute))
    return Outcome::delegate;
  Argument operand[AddedOp::kMaxOperands];
  for (int i = 0; i < added.operands; ++i) operand[i] = to_argument(source[i], compute);
  const bool third = takes_third(info.form);
  return execute(op, *x.tensor, x.dtype, compute, operand[0], operand[1],
                 third ? operand[2].scalar : Scalar{});
}

// ---- by name ----------------------------------------------------------------------------------------------

// The operations whose arguments are not a tensor or number for each operand. Those that are not in the op
// table run as another operation, or as a move.
constexpr struct {
  const char* name;
  Binder binder;
} kBinders[] = {
    {"add_", bind_add},
    {"sub_", bind_add},
    {"div_", bind_div},
    {"remainder_", bind_remainder},
    {"fmod_", bind_remainder},
    {"pow_", bind_pow},
    {"addcmul_", bind_addc},
    {"addcdiv_", bind_addc},
    {"lerp_", bind_lerp},
    {"clamp_", bind_clamp},
    {"clamp_min_", bind_clamp_one<false>},
    {"clamp_max_", bind_clamp_one<true>},
    {"floor_", bind_rounding},
    {"ceil_", bind_rounding},
    {"trunc_", bind_rounding},
    {"round_", bind_round},
    {"fill_", bind_fill},
    {"zero_", bind_zero},
    {"copy_", bind_copy},
    {"maximum_", bind_extremum},
    {"minimum_", bind_extremum},
    {"masked_fill_", bind_masked},
    {"where_", bind_masked},
    {"nan_to_num_", bind_nan_to_num},
    {"eq_", bind_comparison},
    {"ne_", bind_comparison},
    {"lt_", bind_comparison},
    {"le_", bind_comparison},
    {"gt_", bind_comparison},
    {"ge_", bind_comparison},
    {"threshold_", bind_threshold},
    {"hardtanh_", bind_hardtanh},
    {"relu6_", bind_relu6},
    {"leaky_relu_", bind_leaky_relu},
    {"elu_", bind_elu},
    {"celu_", bind_celu},
    {"selu_", bind_selu},
    {"softplus_", bind_softplus},
    {"gelu_", bind_gelu},
};

Op op_named(const std::string& name) {
  const int code = code_named(name);
  return code < 0 ? Op::count : static_cast<Op>(code);
}
// The table's names of public operations end in an underscore.
bool is_public(Op op) {
  return std::string(op_info(op).name).back() == '_';
}

const Binding* find_binding(const std::string& name) {
  for (const auto bindings : {row_bindings(), dropout_bindings(), indexing_bindings(), shape_bindings()}) {
    for (const Binding& binding : bindings) {
      if (name == binding.name) return &binding;
    }
  }
  return nullptr;
}

} // namespace

bool fill_value(const at::Tensor& x, DType dtype, PyObject* value, Scalar& out) {
  const Target target{&x, dtype};
  Source source;
  return open(value, target, source) && source.is_number && to_fill(target, source.number, out);
}
bool alpha_value(DType dtype, PyObject* value, Scalar& out, bool& one) {
  Number alpha;
  if (!to_number(value, alpha) || alpha.category > category(dtype) || alpha.category == Number::boolean)
    return false;
  one = alpha.as_double() == 1;
  if (one) return true;
  if (dtype == DType::b8 || !fits(alpha, dtype)) return false;
  out = to_scalar(alpha, compute_dtype(dtype));
  if (is_reduced_floating(dtype)) out.d = rounded_to(dtype, out.d);
  return true;
}
Outcome fill_masked(const at::Tensor& x, DType dtype, const at::Tensor& mask, PyObject* value) {
  const Target target{&x, dtype};
  Source source;
  return open(value, target, source) ? run_masked(Op::masked_fill_, target, mask, source) : Outcome::delegate;
}

Binder find_binder(const std::string& name, Op& op) {
  if (find_added(name, op)) return bind_added;
  op = op_named(name);
  for (const auto& entry : kBinders) {
    if (name == entry.name) return entry.binder;
  }
  if (op == Op::count) {
    const Binding* const binding = find_binding(name);
    return binding == nullptr ? nullptr : binding->change;
  }
  if (!is_public(op)) return nullptr;
  return op_info(op).form == Form::kUnary ? bind_unary : bind_binary;
}

Maker find_maker(const std::string& name) {
  const Binding* const binding = find_binding(name + "_");
  return binding == nullptr ? nullptr : binding->make;
}

std::vector<std::string> native_names() {
  std::vector<std::string> names;
  for (int i = 0; i < kOps; ++i) {
    if (is_public(static_cast<Op>(i))) names.push_back(kOpInfo[i].name);
  }
  for (const auto& entry : kBinders) {
    if (op_named(entry.name) == Op::count) names.push_back(entry.name);
  }
  return names;
}

} // namespace inplace_ext
