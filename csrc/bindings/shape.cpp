// Shape and strides in place where the data stays: what torch's methods do behind their parser and the
// dispatcher. Whatever they would refuse, or would have to record, is left to them.
#include <ATen/TensorUtils.h>
#include <c10/util/safe_numerics.h>
#include <c10/util/strides.h>
#include <torch/csrc/MemoryFormat.h>

#include <algorithm>
#include <optional>

#include "binders.h"
#include "device.h"

namespace inplace_ext {
namespace {

using Sizes = at::DimVector;

// A tensor of any dtype whose sizes and strides may be changed.
const at::Tensor* open(PyObject* object) {
  const at::Tensor* const x = plain_tensor(object);
  if (x == nullptr || (x->is_inference() && !c10::InferenceMode::is_enabled())) return nullptr;
  return x->unsafeGetTensorImpl()->allow_tensor_metadata_change() ? x : nullptr;
}

bool to_int(PyObject* object, int64_t& out) {
  Number number;
  if (!to_number(object, number) || number.category != Number::integer) return false;
  out = number.i;
  return true;
}
bool to_dim(PyObject* object, int64_t dims, int64_t& out) {
  dims = std::max<int64_t>(dims, 1);
  if (!to_int(object, out) || out < -dims || out >= dims) return false;
  out += out < 0 ? dims : 0;
  return true;
}
bool to_ints(PyObject* object, Sizes& out) {
  if (!PyTuple_Check(object) && !PyList_Check(object)) return false;
  out.resize(PySequence_Fast_GET_SIZE(object));
  for (size_t i = 0; i < out.size(); ++i) {
    if (!to_int(PySequence_Fast_GET_ITEM(object, i), out[i])) return false;
  }
  return true;
}
// What stands in the place of *shape: ints, or a sequence of them alone.
bool to_shape(PyObject* rest, Sizes& out) {
  PyObject* const first = PyTuple_GET_SIZE(rest) == 1 ? PyTuple_GET_ITEM(rest, 0) : nullptr;
  const bool nested = first != nullptr && (PyTuple_Check(first) || PyList_Check(first));
  return PyTuple_GET_SIZE(rest) > 0 && to_ints(nested ? first : rest, out);
}

Outcome unchanged(const at::Tensor& x) {
  last_path = {on_device(x) ? Taken::device : Taken::native, Path::metadata};
  return Outcome::unchanged;
}
Outcome adopt(const at::Tensor& x, at::IntArrayRef sizes, at::IntArrayRef strides,
              std::optional<int64_t> offset = std::nullopt) {
  x.unsafeGetTensorImpl()->set_sizes_and_strides(sizes, strides, offset);
  unchanged(x);
  return Outcome::done;
}
// Whether the storage has room for them: numbers of elements and bytes that overflow have none.
bool holds(const at::Tensor& x, at::IntArrayRef sizes, at::IntArrayRef strides, int64_t offset) {
  const auto negative = [](int64_t n) { return n < 0; };
  uint64_t n = 1;
  if (offset < 0 || std::any_of(sizes.begin(), sizes.end(), negative) ||
      std::any_of(strides.begin(), strides.end(), negative) || c10::safe_multiplies_u64(sizes, &n) ||
      n > static_cast<uint64_t>(INT64_MAX))
    return false;
  try {
    return at::detail::computeStorageNbytes(sizes, strides, x.element_size(), offset) <= x.storage().nbytes();
  } catch (const c10::Error&) {
    return false;
  }
}

Outcome swap_dims(const at::Tensor& x, int64_t a, int64_t b) {
  Sizes sizes(x.sizes()), strides(x.strides());
  if (!sizes.empty()) {
    std::swap(sizes[a], sizes[b]);
    std::swap(strides[a], strides[b]);
  }
  return adopt(x, sizes, strides);
}
// (input, dim0, dim1)
Outcome bind_transpose(Op, Slots slot) {
  const at::Tensor* const x = open(slot[0]);
  int64_t a, b;
  if (x == nullptr || !to_dim(slot[1], x->dim(), a) || !to_dim(slot[2], x->dim(), b))
    return Outcome::delegate;
  return swap_dims(*x, a, b);
}
// (input)
Outcome bind_t(Op, Slots slot) {
  const at::Tensor* const x = open(slot[0]);
  if (x == nullptr || x->dim() > 2) return Outcome::delegate;
  return swap_dims(*x, 0, std::max<int64_t>(x->dim() - 1, 0));
}
// (input, dim=None)
Outcome bind_squeeze(Op, Slots slot) {
  const at::Tensor* const x = open(slot[0]);
  if (x == nullptr) return Outcome::delegate;
  int64_t dim = -1;
  if (slot[1] != nullptr && slot[1] != Py_None && !to_dim(slot[1], x->dim(), dim)) return Outcome::delegate;
  Sizes sizes, strides;
  for (int64_t d = 0; d < x->dim(); ++d) {
    if (x->size(d) == 1 && (dim == -1 || dim == d)) continue;
    sizes.push_back(x->size(d));
    strides.push_back(x->stride(d));
  }
  return adopt(*x, sizes, strides);
}
// (input, dim)
Outcome bind_unsqueeze(Op, Slots slot) {
  const at::Tensor* const x = open(slot[0]);
  int64_t dim;
  if (x == nullptr || !to_dim(slot[1], x->dim() + 1, dim)) return Outcome::delegate;
  Sizes sizes(x->sizes()), strides(x->strides());
  const int64_t stride = dim < x->dim() ? sizes[dim] * strides[dim] : 1;
  sizes.insert(sizes.begin() + dim, 1);
  strides.insert(strides.begin() + dim, stride);
  return adopt(*x, sizes, strides);
}
// (input, size, stride, storage_offset=None)
Outcome bind_as_strided(Op, Slots slot) {
  const at::Tensor* const x = open(slot[0]);
  Sizes sizes, strides;
  if (x == nullptr || !to_ints(slot[1], sizes) || !to_ints(slot[2], strides) ||
      sizes.size() != strides.size())
    return Outcome::delegate;
  int64_t offset = x->storage_offset();
  if (slot[3] != nullptr && slot[3] != Py_None && !to_int(slot[3], offset)) return Outcome::delegate;
  if (!holds(*x, sizes, strides, offset)) return Outcome::delegate;
  return adopt(*x, sizes, strides, offset);
}
// (input, *size, memory_format=None): where the storage is large enough
Outcome bind_resize(Op, Slots slot) {
  const at::Tensor* const x = open(slot[0]);
  Sizes sizes;
  if (x == nullptr || x->requires_grad() || (slot[2] != nullptr && slot[2] != Py_None) ||
      !to_shape(slot[1], sizes))
    return Outcome::delegate;
  if (x->sizes() == sizes) return unchanged(*x);
  const Sizes strides = c10::contiguous_strides(sizes);
  if (!holds(*x, sizes, strides, x->storage_offset())) return Outcome::delegate;
  return adopt(*x, sizes, strides);
}

// (input, *shape): where the strides allow it
Outcome bind_view(Op, Slots slot) {
  const at::Tensor* const x = open(slot[0]);
  Sizes given;
  if (x == nullptr || !to_shape(slot[1], given)) return Outcome::delegate;
  // The size in the place of a -1, or an error of torch's.
  const int64_t n = x->numel();
  int64_t known = 1, inferred = -1;
  for (size_t d = 0; d < given.size(); ++d) {
    if (given[d] < 0 && (given[d] != -1 || inferred >= 0)) return Outcome::delegate;
    if (given[d] < 0) {
      inferred = static_cast<int64_t>(d);
    } else if (__builtin_mul_overflow(known, given[d], &known)) {
      return Outcome::delegate;
    }
  }
  if (inferred >= 0 ? known == 0 || n % known != 0 : known != n) return Outcome::delegate;
  if (inferred >= 0) given[inferred] = n / known;
  const auto strides = at::detail::computeStride(x->sizes(), x->strides(), given);
  return strides.has_value() ? adopt(*x, given, *strides) : Outcome::delegate;
}
// (input, memory_format=None): where it lies so already
Outcome bind_contiguous(Op, Slots slot) {
  const at::Tensor* const x = open(slot[0]);
  auto format = at::MemoryFormat::Contiguous;
  if (x == nullptr) return Outcome::delegate;
  if (slot[1] != nullptr && slot[1] != Py_None) {
    if (!THPMemoryFormat_Check(slot[1])) return Outcome::delegate;
    format = reinterpret_cast<THPMemoryFormat*>(slot[1])->memory_format;
  }
  return format != at::MemoryFormat::Preserve && x->is_contiguous(format) ? unchanged(*x) : Outcome::delegate;
}

} // namespace

std::span<const Binding> shape_bindings() {
  static constexpr Binding bindings[] = {
      {"transpose_", bind_transpose, nullptr},
      {"t_", bind_t, nullptr},
      {"squeeze_", bind_squeeze, nullptr},
      {"unsqueeze_", bind_unsqueeze, nullptr},
      {"as_strided_", bind_as_strided, nullptr},
      {"resize_", bind_resize, nullptr},
      {"view_", bind_view, nullptr},
      {"reshape_", bind_view, nullptr},
      {"contiguous_", bind_contiguous, nullptr},
  };
  return bindings;
}

} // namespace inplace_ext
