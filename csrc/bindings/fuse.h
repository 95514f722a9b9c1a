// Fused functions: recorded calls that are bound to the arguments anew at each call, and run as passes over
// memory.
#pragma once
#include <pybind11/pybind11.h>

namespace inplace_ext {

void define_fuse(pybind11::module_& m);

} // namespace inplace_ext
