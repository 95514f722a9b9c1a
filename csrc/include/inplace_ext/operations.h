// What is known of each code at run time: the op table, and the operations that were added to it
// (inplace_ext/jit.py). For the host.
#pragma once
#include "inplace_ext/op_table.h"

namespace inplace_ext {

// The bindings and each kernel library have their own, which are filled alike.
inline constinit OpInfo operations[kOpCodes] = {
#define INPLACE_EXT_INFO(NAME, FUNCTOR, FORM, TYPES, COST) {#NAME, Form::FORM, Types::TYPES, COST},
    INPLACE_EXT_OPS(INPLACE_EXT_INFO)
#undef INPLACE_EXT_INFO
};
inline const OpInfo& op_info(int code) {
  return operations[code];
}
inline const OpInfo& op_info(Op op) {
  return operations[static_cast<int>(op)];
}

} // namespace inplace_ext
