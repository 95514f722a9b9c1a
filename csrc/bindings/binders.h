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
std::span<const Binding> indexing_bindings();
std::span<const Binding> shape_bindings();
// The twin of the name, or null.
Maker find_maker(const std::string& name);

// What fill_ stores of a number, or of a tensor of no dims, in the form of the moves; false where torch is to
// convert it.
bool fill_value(const at::Tensor& x, DType dtype, PyObject* value, Scalar& out);
// The factor of an addition in the form of the compute type; `one` where it changes nothing. False where
// torch is to convert it, or to refuse it.
bool alpha_value(DType dtype, PyObject* value, Scalar& out, bool& one);
// x = value, a number or a tensor of no dims, where a mask that broadcasts to x is true.
Outcome fill_masked(const at::Tensor& x, DType dtype, const at::Tensor& mask, PyObject* value);
// The same of a value in the form of the moves by a kernel that passes over blocks where the mask is false;
// false, and nothing done, where the layout is none for it.
bool fill_blocks(const at::Tensor& x, DType dtype, const at::Tensor& mask, Scalar value);

// Names that have elementwise kernels of their own.
std::vector<std::string> native_names();

} // namespace inplace_ext
