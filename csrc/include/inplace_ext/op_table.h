// The table of operations. A line here and a functor in functors.h are all that C++ needs to know of an
// elementwise operation: enumeration, plain loop, pipeline stage, dispatch and the public function follow.
#pragma once
#include <cstdint>

#include "inplace_ext/dtype.h"

namespace inplace_ext {

// The dtypes an operation is built for, a bit for each; kAll and kUInt8 are those that bool tensors have as
// well.
constexpr uint16_t bit_of(DType t) {
  return static_cast<uint16_t>(1 << static_cast<int>(t));
}
enum class Types : uint16_t {
  kFloat = bit_of(DType::f32) | bit_of(DType::f64) | bit_of(DType::f16) | bit_of(DType::bf16),
  kNumber = kFloat | bit_of(DType::u8) | bit_of(DType::i8) | bit_of(DType::i16) | bit_of(DType::i32) |
      bit_of(DType::i64),
  kAll = kNumber | bit_of(DType::b8),
  kUInt8 = bit_of(DType::u8) | bit_of(DType::b8),
};
constexpr bool has_form(Types types, DType t) {
  return (static_cast<uint16_t>(types) & bit_of(t)) != 0;
}

// What an operation takes beside the element a of the tensor that is changed.
enum class Form : uint8_t {
  kUnary,    // nothing
  kBinary,   // b
  kTernary,  // b and c
  kScaled,   // b, c and the number d
  kMasked,   // b, read as a byte that is zero or not, and c
  kDrawn,    // b, a tensor that is drawn, and the numbers c and d; a stage only
  kNumber,   // the number b
  kNumbers,  // the numbers b and c
  kNumbers3, // the numbers b, c and d
};
// Operands that a stage may take from a tensor or a number: b and c.
constexpr int operands_of(Form form) {
  return form == Form::kUnary ? 0 : form == Form::kBinary || form == Form::kNumber ? 1 : 2;
}
constexpr bool takes_third(Form form) {
  return form == Form::kScaled || form == Form::kDrawn || form == Form::kNumbers3;
}
constexpr bool only_numbers(Form form) {
  return form >= Form::kNumber;
}

// X(name, functor, form, types, cost)
//
// A name with a trailing underscore is public: inplace_ext/_table.py holds the line that documents it. The
// others are forms that a public operation is turned into (bindings/binders.cpp says when). `cost` is the
// time per element in units of a multiplication in cache; it sets how much work a thread must get.
#define INPLACE_EXT_OPS(X)                                  \
  X(add_, Add, kBinary, kNumber, 1)                         \
  X(sub_, Sub, kBinary, kNumber, 1)                         \
  X(mul_, Mul, kBinary, kNumber, 1)                         \
  X(div_, Div, kBinary, kFloat, 1)                          \
  X(add_scaled, AddScaled, kTernary, kNumber, 1)            \
  X(div_trunc, DivTrunc, kBinary, kNumber, 4)               \
  X(div_floor, DivFloor, kBinary, kNumber, 8)               \
  X(remainder_, Remainder, kBinary, kNumber, 6)             \
  X(fmod_, Fmod, kBinary, kNumber, 5)                       \
  X(pow_, Pow, kBinary, kNumber, 12)                        \
  X(addcmul_, Addcmul, kScaled, kNumber, 1)                 \
  X(addcdiv_, Addcdiv, kScaled, kFloat, 1)                  \
  X(lerp_, Lerp, kTernary, kFloat, 1)                       \
  X(neg_, Neg, kUnary, kNumber, 1)                          \
  X(abs_, Abs, kUnary, kNumber, 1)                          \
  X(sign_, Sign, kUnary, kAll, 1)                           \
  X(square_, Square, kUnary, kNumber, 1)                    \
  X(cube, Cube, kUnary, kNumber, 1)                         \
  X(reciprocal_, Reciprocal, kUnary, kFloat, 1)             \
  X(reciprocal_square, ReciprocalSquare, kUnary, kFloat, 1) \
  X(sqrt_, Sqrt, kUnary, kFloat, 2)                         \
  X(rsqrt_, Rsqrt, kUnary, kFloat, 3)                       \
  X(floor_, Floor, kUnary, kFloat, 1)                       \
  X(ceil_, Ceil, kUnary, kFloat, 1)                         \
  X(trunc_, Trunc, kUnary, kFloat, 1)                       \
  X(round_, Round, kUnary, kFloat, 1)                       \
  X(round_places, RoundPlaces, kNumber, kFloat, 2)          \
  X(round_tens, RoundTens, kNumber, kFloat, 2)              \
  X(frac_, Frac, kUnary, kFloat, 1)                         \
  X(exp_, Exp, kUnary, kFloat, 4)                           \
  X(exp2_, Exp2, kUnary, kFloat, 4)                         \
  X(expm1_, Expm1, kUnary, kFloat, 5)                       \
  X(log_, Log, kUnary, kFloat, 5)                           \
  X(log2_, Log2, kUnary, kFloat, 5)                         \
  X(log10_, Log10, kUnary, kFloat, 5)                       \
  X(log1p_, Log1p, kUnary, kFloat, 6)                       \
  X(sin_, Sin, kUnary, kFloat, 6)                           \
  X(cos_, Cos, kUnary, kFloat, 6)                           \
  X(tanh_, Tanh, kUnary, kFloat, 6)                         \
  X(sigmoid_, Sigmoid, kUnary, kFloat, 6)                   \
  X(erf_, Erf, kUnary, kFloat, 6)                           \
  X(clamp_, Clamp, kTernary, kNumber, 1)                    \
  X(clamp_min_, ClampMin, kBinary, kNumber, 1)              \
  X(clamp_max_, ClampMax, kBinary, kNumber, 1)              \
  X(clamp_between, ClampBetween, kTernary, kNumber, 1)      \
  X(maximum_, Maximum, kBinary, kAll, 1)                    \
  X(minimum_, Minimum, kBinary, kAll, 1)                    \
  X(nan_to_num_, NanToNum, kNumbers3, kFloat, 1)            \
  X(masked_fill_, MaskedFill, kMasked, kAll, 1)             \
  X(where_, Where, kMasked, kAll, 1)                        \
  X(eq_, Equal, kBinary, kAll, 1)                           \
  X(ne_, NotEqual, kBinary, kAll, 1)                        \
  X(lt_, Less, kBinary, kAll, 1)                            \
  X(le_, LessEqual, kBinary, kAll, 1)                       \
  X(gt_, Greater, kBinary, kAll, 1)                         \
  X(ge_, GreaterEqual, kBinary, kAll, 1)                    \
  X(logical_or, LogicalOr, kBinary, kUInt8, 1)              \
  X(logical_and, LogicalAnd, kBinary, kUInt8, 1)            \
  X(relu_, Relu, kUnary, kNumber, 1)                        \
  X(threshold_, Threshold, kNumbers, kNumber, 1)            \
  X(leaky_relu_, LeakyRelu, kNumber, kFloat, 1)             \
  X(hardsigmoid_, Hardsigmoid, kUnary, kFloat, 1)           \
  X(hardswish_, Hardswish, kUnary, kFloat, 1)               \
  X(elu_, Elu, kNumbers3, kFloat, 6)                        \
  X(softplus_, Softplus, kNumbers, kFloat, 10)              \
  X(silu_, Silu, kUnary, kFloat, 6)                         \
  X(mish_, Mish, kUnary, kFloat, 8)                         \
  X(gelu_, Gelu, kUnary, kFloat, 8)                         \
  X(gelu_tanh, GeluTanh, kUnary, kFloat, 8)                 \
  X(drop, Drop, kDrawn, kFloat, 2)

enum class Op : uint16_t {
#define INPLACE_EXT_ENUM(NAME, ...) NAME,
  INPLACE_EXT_OPS(INPLACE_EXT_ENUM)
#undef INPLACE_EXT_ENUM
      count
};
constexpr int kOps = static_cast<int>(Op::count);

struct OpInfo {
  const char* name;
  Form form;
  Types types;
  int cost;
};
constexpr OpInfo kOpInfo[kOps] = {
#define INPLACE_EXT_INFO(NAME, FUNCTOR, FORM, TYPES, COST) {#NAME, Form::FORM, Types::TYPES, COST},
    INPLACE_EXT_OPS(INPLACE_EXT_INFO)
#undef INPLACE_EXT_INFO
};

// Codes above those of the table are for operations that are added at run time (operations.h), whose
// kernels come from libraries of their own. Op::count itself stays free: it stands for no operation.
constexpr int kFirstAdded = kOps + 1, kMaxAdded = 128;
constexpr int kOpCodes = kFirstAdded + kMaxAdded;

// A number that differs where the tables of two builds do: codes mean the same in libraries of one number.
constexpr uint32_t table_fingerprint() {
  uint32_t hash = 2166136261u;
  const auto mix = [&](int value) { hash = (hash ^ static_cast<uint32_t>(value)) * 16777619u; };
  for (const OpInfo& op : kOpInfo) {
    for (const char* p = op.name; *p != 0; ++p) mix(*p);
    mix(static_cast<int>(op.form)), mix(static_cast<int>(op.types)), mix(op.cost);
  }
  return hash;
}

} // namespace inplace_ext
