// What the clipping of gradients needs: the gradients of many parameters, and their norm.
#include <torch/csrc/autograd/python_variable.h>

#include <cmath>

#include "kernels.h"
#include "parallel.h"

namespace inplace_ext {
namespace {

// Elements of a part, whose sum is taken by one thread.
constexpr int64_t kPart = 1 << 16;

struct Part {
  const char* data;
  int64_t count;
};

// The attribute `grad`; of a leaf without asking Python, which takes longer than the gradient takes to clip.
PyObject* gradient(PyObject* parameter) {
  if (THPVariable_CheckExact(parameter)) { // a tensor or a parameter
    const at::Tensor& t = THPVariable_Unpack(parameter);
    if (t.is_leaf()) return THPVariable_Wrap(t.grad());
  }
  return PyObject_GetAttrString(parameter, "grad");
}

} // namespace

PyObject* gradients(PyObject* parameters) {
  PyObject* const all = PySequence_Fast(parameters, "parameters must be a tensor or an iterable of tensors");
  PyObject* const found = all == nullptr ? nullptr : PyList_New(0);
  for (Py_ssize_t i = 0; found != nullptr && i < PySequence_Fast_GET_SIZE(all); ++i) {
    PyObject* const parameter = Py_NewRef(PySequence_Fast_GET_ITEM(all, i));
    PyObject* const grad = gradient(parameter);
    Py_DECREF(parameter);
    if (grad == nullptr || (grad != Py_None && PyList_Append(found, grad) < 0)) {
      Py_XDECREF(grad);
      Py_DECREF(found);
      Py_DECREF(all);
      return nullptr;
    }
    Py_DECREF(grad);
  }
  Py_XDECREF(all);
  return found;
}

std::optional<double> total_norm(const std::vector<at::Tensor>& tensors, double order) {
  if (active_kernels == nullptr) return std::nullopt;
  const Norm norm = order == 2 ? Norm::squares : order == 1 ? Norm::magnitudes : Norm::largest;
  if (norm == Norm::largest && !(std::isinf(order) && order > 0)) return std::nullopt;
  std::vector<Part> parts;
  parts.reserve(tensors.size());
  DType dtype = DType::f32;
  int64_t total = 0;
  for (size_t i = 0; i < tensors.size(); ++i) {
    const at::Tensor& t = tensors[i];
    DType own;
    if (!t.is_cpu() || !to_dtype(t.scalar_type(), own) || (own != DType::f32 && own != DType::f64) ||
        (i > 0 && own != dtype) || !t.unsafeGetTensorImpl()->is_non_overlapping_and_dense()) {
      return std::nullopt;
    }
    dtype = own;
    const int64_t n = t.numel();
    const char* const data = static_cast<const char*>(t.const_data_ptr());
    for (int64_t at = 0; at < n; at += kPart)
      parts.push_back({data + at * item_size(dtype), std::min(kPart, n - at)});
    total += n;
  }
  const CpuKernels& kernels = *active_kernels;
  std::vector<double> sums(parts.size());
  const auto count = static_cast<int64_t>(parts.size());
  parallel(count, std::max<int64_t>(1, total / std::max<int64_t>(1, count)), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i)
      sums[i] = kernels.norm_part(parts[i].data, dtype, parts[i].count, norm);
  });
  double result = 0;
  for (const double sum : sums) {
    if (norm == Norm::largest) {
      result = result != result || result > sum ? result : sum;
    } else {
      result += sum;
    }
  }
  last_path = {Taken::native, Path::loop};
  return norm == Norm::squares ? std::sqrt(result) : result;
}

} // namespace inplace_ext
