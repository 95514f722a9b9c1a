// A library of a single operation: its loops and stages, for the dtypes it is built for. inplace_ext/jit.py
// writes the source that includes this: with a functor, and INPLACE_EXT_OWN(X) with its line of a table (as
// cuda/operation.cuh takes it), or with the name of a functor of functors.h.
#pragma once
#include "kernels.h"

namespace inplace_ext {

template <class Functor, Form F, Types T, int Cost>
OpKernels operation_kernels(const char* name) {
  OpKernels kernels{kAbiVersion, table_fingerprint(), kCapability, {name, F, T, Cost}, {}, {}};
#define INPLACE_EXT_ADD(NAME, STORAGE, COMPUTE)         \
  add_loop<Functor, STORAGE, F, T, Cost>(kernels.loop); \
  if constexpr (std::is_same_v<STORAGE, COMPUTE>)       \
    add_stage<Functor, F, T, Cost, COMPUTE>(kernels.stage[static_cast<int>(DType::NAME)]);
  INPLACE_EXT_FOR_DTYPES(INPLACE_EXT_ADD)
#undef INPLACE_EXT_ADD
  return kernels;
}

#define INPLACE_EXT_KERNELS_OF(NAME, FUNCTOR, FORM, TYPES, COST) \
  operation_kernels<FUNCTOR, FORM, TYPES, COST>(NAME)

// The one symbol of the library; the argument is a call of the function above.
#define INPLACE_EXT_EXPORT_OPERATION(...)                                                                   \
  extern "C" __attribute__((visibility("default"))) const inplace_ext::OpKernels* inplace_ext_operation() { \
    using namespace inplace_ext;                                                                            \
    static const OpKernels kernels = __VA_ARGS__;                                                           \
    return &kernels;                                                                                        \
  }

} // namespace inplace_ext
