// From the arguments of a public function to an operation of the table and its operands.
#pragma once
#include <Python.h>

#include <span>
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

// Runs a call that returns a new tensor, and puts it there; `unchanged` where it returns its input.
using Maker = Outcome (*)(Slots slots, at::Tensor& result);
// An operation that is not in the table of elementwise ones, by its name in place; the name without the
// underscore is that of its twin.
struct Binding {
  const char* name;
  Binder change;
  Maker make;
};
std::span<const Binding> row_bindings();
std::span<const Binding> dropout_bindings();
// The twin of the name, or null.
Maker find_maker(const std::string& name);

// Names that have elementwise kernels of their own.
std::vector<std::string> native_names();

} // namespace inplace_ext
