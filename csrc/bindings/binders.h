// From the arguments of a public function to an operation of the table and its operands.
#pragma once
#include <Python.h>

#include <string>
#include <vector>

#include "tensors.h"

namespace inplace_ext {

// The arguments of a call in the order of the parameters; null where one is left to its default.
using Slots = PyObject* const*;
// Runs a call, or says that torch is to do it.
using Binder = Outcome (*)(Op op, Slots slots);

// The binder of a public operation and what to give it as `op`; null where there is no kernel of the name.
Binder find_binder(const std::string& name, Op& op);
// The same of an operation on rows, which is not in the table of elementwise ones.
Binder find_row_binder(const std::string& name);

// Names that have elementwise kernels of their own.
std::vector<std::string> native_names();

} // namespace inplace_ext
