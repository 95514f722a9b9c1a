// Which memory tensors share, decided from sizes and strides alone.
#pragma once
#include <ATen/core/TensorBase.h>

#include <cstdint>

namespace inplace_ext {

// Bytes from the first element to the end of the last, of a tensor that has elements.
int64_t extent(const at::TensorBase& t, int item);

// False only if no two elements of t share memory. Exact for every layout that slicing, permuting and
// expanding a tensor can give; windows made by as_strided or unfold may be called overlapping when they are
// not.
bool may_overlap_itself(const at::TensorBase& t);

// False only if writing x element by element leaves every element of `operand` (which broadcasts to x) unread
// or read before: either they share no byte, or the operand's elements are those of x, each at its own place.
// Exact but for layouts whose decision would take long.
bool may_share(const at::TensorBase& x, int item, const at::TensorBase& operand, int operand_item);

} // namespace inplace_ext
