// The kernels that are no operation of the op table, as calls on tensors: what the public functions and the
// dispatcher's operators share.
#pragma once
#include <optional>
#include <vector>

#include "tensors.h"

namespace inplace_ext {

// A tensor for the result of an operation on x, and whether x is copied to it already: the kernels read x and
// write a tensor of the same layout, which is to be had where the elements of x are dense.
struct Result {
  at::Tensor tensor;
  bool copied;
  const at::Tensor& source(const at::Tensor& x) const {
    return copied ? tensor : x;
  }
};
Result make_result(const at::Tensor& x);

// softmax of scale * x + mask along dim, or its logarithm; a bool mask keeps where it is true.
struct SoftmaxArguments {
  int64_t dim = -1;
  double scale = 1;
  const at::Tensor* mask = nullptr;
  bool logarithm = false;
};
// Whether the kernel takes x and the arguments; `dim` is brought into range.
bool takes_softmax(const at::Tensor& x, SoftmaxArguments& arguments);
// Reads x and writes `out`, x itself or a tensor of its layout. False, and nothing done, where the tensors
// have too many dims.
bool run_softmax(const at::Tensor& x, const at::Tensor& out, const SoftmaxArguments& arguments);

// dropout, with the mask of philox.h. With `feature` an element of the mask is for all elements of a channel;
// `alpha` keeps the mean and variance of what selu leaves; without `bias` that is only scaled, as gradients
// are.
struct DropoutArguments {
  double p = 0.5;
  uint64_t seed = 0, offset = 0;
  bool feature = false, alpha = false, bias = true;
  at::Tensor state{}; // seed and offset in device memory, instead of those above
};
bool takes_dropout(const at::Tensor& x, const DropoutArguments& arguments);
bool run_dropout(const at::Tensor& x, const at::Tensor& out, const DropoutArguments& arguments);
// A seed from a generator of the CPU, the default one where none is given.
uint64_t draw_seed(const std::optional<at::Generator>& generator);

// A list of the gradients of tensors, of those that have one; null with a Python error set.
PyObject* gradients(PyObject* parameters);
// The norm of all elements of all tensors together, of order 1, 2 or infinity, in double precision; empty
// where a tensor is none that the kernels take: plain, dense, of one dtype, float32 or float64. The same for
// any number of threads.
std::optional<double> total_norm(const std::vector<at::Tensor>& tensors, double order);

// Registers the operators inplace_ext::softmax_ and so on with torch's dispatcher.
void register_operators();

} // namespace inplace_ext
