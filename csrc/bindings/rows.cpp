// The operations on rows: softmax and its kin along one dim.
#include <ATen/ops/empty_like.h>

#include <algorithm>

#include "binders.h"
#include "device.h"
#include "kernels.h"
#include "overlap.h"
#include "parallel.h"

namespace inplace_ext {
namespace {

// What an element costs, in multiplications.
constexpr int64_t kSoftmaxCost = 8;

// Bytes between neighbours along dim d of x in a tensor that broadcasts to x.
int64_t stride_along(const at::Tensor& t, int64_t d, int64_t rank, int item) {
  const int64_t own = d - (rank - t.dim());
  return own < 0 || t.size(own) == 1 ? 0 : t.stride(own) * item;
}

// The dims beside the one of the rows, ordered by the strides of x and merged where x and the mask allow.
// False if more dims remain than fit.
bool lay_out(Softmax& call, const at::Tensor& x, const at::Tensor* mask, int64_t dim) {
  const int64_t rank = x.dim();
  const int item = item_size(call.dtype), mask_item = item_size(call.mask_dtype);
  const auto mask_stride = [&](int64_t d) {
    return mask == nullptr ? 0 : stride_along(*mask, d, rank, mask_item);
  };
  call.length = rank == 0 ? 1 : x.size(dim);
  // One element is contiguous, whatever its stride.
  call.stride = call.length == 1 ? item : x.stride(dim) * item;
  call.mask_stride = rank == 0 ? 0 : mask_stride(dim);
  call.dims = 0;
  for (const int64_t d : dims_in_memory(x)) {
    if (d == dim) continue;
    const int64_t step = x.stride(d) * item, mask_step = mask_stride(d);
    if (const int last = call.dims - 1; last >= 0 && step == call.step[last] * call.size[last] &&
                                        mask_step == call.mask_step[last] * call.size[last]) {
      call.size[last] *= x.size(d);
      continue;
    }
    if (call.dims == kMaxDims) return false;
    call.size[call.dims] = x.size(d);
    call.step[call.dims] = step;
    call.mask_step[call.dims++] = mask_step;
  }
  return true;
}

// (input, dim=-1, *, scale=1.0, mask=None); false where torch is to complain, or to do it.
bool read_softmax(Slots slot, SoftmaxArguments& arguments) {
  Number given;
  if (slot[1] != nullptr) {
    if (!to_number(slot[1], given) || given.category != Number::integer) return false;
    arguments.dim = given.i;
  }
  if (slot[2] != nullptr) {
    if (!to_number(slot[2], given)) return false;
    arguments.scale = given.as_double();
  }
  if (slot[3] != nullptr && slot[3] != Py_None) {
    arguments.mask = plain_tensor(slot[3]);
    if (arguments.mask == nullptr) return false;
  }
  return true;
}

// What softmax leaves is no less than 0, so that a relu after it changes nothing.
template <bool Logarithm>
Outcome bind_softmax(Op, Slots slot) {
  const at::Tensor* const x = writable_tensor(slot[0]);
  SoftmaxArguments arguments;
  arguments.logarithm = Logarithm;
  return x != nullptr && read_softmax(slot, arguments) && takes_softmax(*x, arguments) &&
                 run_softmax(*x, *x, arguments)
             ? Outcome::done
             : Outcome::delegate;
}
template <bool Logarithm>
Outcome make_softmax(Slots slot, at::Tensor& result) {
  const at::Tensor* const x = plain_tensor(slot[0]);
  SoftmaxArguments arguments;
  arguments.logarithm = Logarithm;
  if (x == nullptr || !read_softmax(slot, arguments) || !takes_softmax(*x, arguments))
    return Outcome::delegate;
  const Result made = make_result(*x);
  result = made.tensor;
  return run_softmax(made.source(*x), result, arguments) ? Outcome::done : Outcome::delegate;
}

} // namespace

Result make_result(const at::Tensor& x) {
  if (x.unsafeGetTensorImpl()->is_non_overlapping_and_dense()) return {at::empty_like(x), false};
  return {x.clone(), true};
}

bool takes_softmax(const at::Tensor& x, SoftmaxArguments& arguments) {
  DType dtype, mask_dtype;
  if (!to_dtype(x.scalar_type(), dtype) || !is_floating(dtype)) return false;
  const int64_t dims = std::max<int64_t>(x.dim(), 1); // a number is a row of one element
  if (arguments.dim < -dims || arguments.dim >= dims) return false;
  if (arguments.dim < 0) arguments.dim += dims;
  if (arguments.mask == nullptr) return true;
  return same_device(*arguments.mask, x) && to_dtype(arguments.mask->scalar_type(), mask_dtype) &&
         (mask_dtype == DType::b8 || mask_dtype == dtype) && broadcasts_to(*arguments.mask, x);
}

bool run_softmax(const at::Tensor& x, const at::Tensor& out, const SoftmaxArguments& arguments) {
  Softmax call;
  to_dtype(x.scalar_type(), call.dtype);
  call.scale = arguments.scale;
  call.logarithm = arguments.logarithm;
  call.mask_dtype = call.dtype;
  at::Tensor mask;
  if (arguments.mask != nullptr) {
    mask = *arguments.mask;
    to_dtype(mask.scalar_type(), call.mask_dtype);
    // Written before it is read, it would be another mask.
    if (may_share(out, item_size(call.dtype), mask, item_size(call.mask_dtype))) mask = mask.clone();
  }
  if (!lay_out(call, x, mask.defined() ? &mask : nullptr, arguments.dim)) return false;
  if (x.numel() == 0) {
    last_path = {on_device(x) ? Taken::device : Taken::native, Path::rows};
    return true;
  }
  call.data = static_cast<char*>(const_cast<void*>(x.const_data_ptr()));
  call.shift = static_cast<char*>(out.mutable_data_ptr()) - call.data;
  call.mask = mask.defined() ? static_cast<const char*>(mask.const_data_ptr()) : nullptr;
  if (on_device(x)) {
    softmax_on_device(call, x);
    return true;
  }
  const CpuKernels& kernels = *active_kernels;
  Path path = Path::rows;
  parallel(call.rows(), call.length * kSoftmaxCost, [&](int64_t begin, int64_t end) {
    const Path taken = kernels.softmax(call, begin, end);
    if (begin == 0) path = taken; // not last_path, which is another one on another thread
  });
  last_path = {Taken::native, path};
  return true;
}

std::span<const Binding> row_bindings() {
  static constexpr Binding bindings[] = {
      {"softmax_", bind_softmax<false>, make_softmax<false>},
      {"log_softmax_", bind_softmax<true>, make_softmax<true>},
      {"softmax_relu_", bind_softmax<false>, make_softmax<false>},
  };
  return bindings;
}

} // namespace inplace_ext
