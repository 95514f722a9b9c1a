// The table of operations. A line here and a functor in functors.h are all that C++ needs to know of an
// elementwise operation: enumeration, plain loop, pipeline stage, dispatch and the public function follow.
#pragma once
#include <cstdint>

#include "inplace_ext/dtype.h"

namespace inplace_ext {

// The compute types an operation is built for.
enum class Types : uint8_t { kNumber, kFloat, kUInt8 };
constexpr bool has_form(Types types, DType compute) {
  return types == Types::kNumber || (types == Types::kFloat && is_floating(compute)) ||
         (types == Types::kUInt8 && compute == DType::u8);
}

// X(name, functor, operands beside the tensor itself, types, cost)
//
// A name with a trailing underscore is public: inplace_ext/_table.py holds the line that documents it. The
// others are forms that a public operation is turned into (bindings/functions.cpp says when). `cost` is the
// time per element in units of a multiplication in cache; it sets how much work a thread must get.
#define INPLACE_EXT_OPS(X)                             \
  X(add_, Add, 1, kNumber, 1)                          \
  X(sub_, Sub, 1, kNumber, 1)                          \
  X(mul_, Mul, 1, kNumber, 1)                          \
  X(div_, Div, 1, kFloat, 1)                           \
  X(clamp_, Clamp, 2, kNumber, 1)                      \
  X(clamp_min_, ClampMin, 1, kNumber, 1)               \
  X(clamp_max_, ClampMax, 1, kNumber, 1)               \
  X(pow_, Pow, 1, kNumber, 12)                         \
  X(exp_, Exp, 0, kFloat, 4)                           \
  X(sqrt_, Sqrt, 0, kFloat, 2)                         \
  X(neg_, Neg, 0, kNumber, 1)                          \
  X(relu_, Relu, 0, kNumber, 1)                        \
  X(add_scaled, AddScaled, 2, kNumber, 1)              \
  X(div_trunc, DivTrunc, 1, kNumber, 4)                \
  X(div_floor, DivFloor, 1, kNumber, 8)                \
  X(square, Square, 0, kNumber, 1)                     \
  X(cube, Cube, 0, kNumber, 1)                         \
  X(rsqrt, Rsqrt, 0, kFloat, 3)                        \
  X(reciprocal, Reciprocal, 0, kFloat, 1)              \
  X(reciprocal_square, ReciprocalSquare, 0, kFloat, 1) \
  X(maximum, Maximum, 1, kNumber, 1)                   \
  X(minimum, Minimum, 1, kNumber, 1)                   \
  X(clamp_between, ClampBetween, 2, kNumber, 1)        \
  X(logical_or, LogicalOr, 1, kUInt8, 1)               \
  X(logical_and, LogicalAnd, 1, kUInt8, 1)

// Public operations that move data and compute nothing: programs of a load and a store.
#define INPLACE_EXT_MOVES(X) X(fill_) X(zero_) X(copy_)

enum class Op : uint16_t {
#define INPLACE_EXT_ENUM(NAME, ...) NAME,
  INPLACE_EXT_OPS(INPLACE_EXT_ENUM)
#undef INPLACE_EXT_ENUM
      count
};
constexpr int kOps = static_cast<int>(Op::count);

struct OpInfo {
  const char* name;
  int operands;
  Types types;
  int cost;
};
constexpr OpInfo kOpInfo[kOps] = {
#define INPLACE_EXT_INFO(NAME, FUNCTOR, OPERANDS, TYPES, COST) {#NAME, OPERANDS, Types::TYPES, COST},
    INPLACE_EXT_OPS(INPLACE_EXT_INFO)
#undef INPLACE_EXT_INFO
};

} // namespace inplace_ext
