// The operations on rows: softmax and its kin along one dim.
#include <algorithm>

#include "binders.h"
#include "overlap.h"
#include "parallel.h"
#include "tensors.h"

namespace inplace_ext {
namespace {

// What an element costs, in multiplications.
constexpr int64_t kSoftmaxCost = 8;

// The dim of a Python number that counts from the end where it is negative; false where torch is to complain.
bool to_dim(PyObject* object, int64_t rank, int64_t& dim) {
  Number given;
  given.i = -1;
  if (object != nullptr && !(to_number(object, given) && given.category == Number::integer)) return false;
  const int64_t dims = std::max<int64_t>(rank, 1); // a number is a row of one element
  if (given.i < -dims || given.i >= dims) return false;
  dim = given.i < 0 ? given.i + dims : given.i;
  return true;
}

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
  c10::SmallVector<int64_t, kMaxDims> order;
  for (int64_t d = rank - 1; d >= 0; --d) {
    if (d == dim || x.size(d) == 1) continue;
    auto at = order.end();
    while (at != order.begin() && x.stride(*(at - 1)) > x.stride(d)) --at;
    order.insert(at, d);
  }
  call.dims = 0;
  for (const int64_t d : order) {
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

// softmax_(input, dim=-1, *, scale=1.0, mask=None) and the others. What softmax leaves is no less than 0, so
// that a relu after it changes nothing.
template <bool Logarithm>
Outcome bind_softmax(Op, Slots slot) {
  const at::Tensor* const x = writable_tensor(slot[0]);
  Softmax call;
  int64_t dim = 0;
  if (x == nullptr || !to_dtype(x->scalar_type(), call.dtype) || !is_floating(call.dtype) ||
      !to_dim(slot[1], x->dim(), dim)) {
    return Outcome::delegate;
  }
  Number scale;
  scale.category = Number::floating;
  scale.d = 1;
  if (slot[2] != nullptr && !to_number(slot[2], scale)) return Outcome::delegate;
  call.scale = scale.as_double();
  call.logarithm = Logarithm;
  call.mask_dtype = call.dtype;
  const at::Tensor* mask = nullptr;
  if (slot[3] != nullptr && slot[3] != Py_None) {
    mask = plain_tensor(slot[3]);
    if (mask == nullptr || !to_dtype(mask->scalar_type(), call.mask_dtype) ||
        (call.mask_dtype != DType::b8 && call.mask_dtype != call.dtype) || !broadcasts_to(*mask, *x) ||
        may_share(*x, item_size(call.dtype), *mask, item_size(call.mask_dtype))) {
      return Outcome::delegate;
    }
  }
  if (!lay_out(call, *x, mask, dim)) return Outcome::delegate;
  if (x->numel() == 0) {
    last_path = {Taken::native, Path::rows};
    return Outcome::done;
  }
  call.data = static_cast<char*>(x->mutable_data_ptr());
  call.mask = mask == nullptr ? nullptr : static_cast<const char*>(mask->const_data_ptr());
  const CpuKernels& kernels = *active_kernels;
  Path path = Path::rows;
  parallel(call.rows(), call.length * kSoftmaxCost, [&](int64_t begin, int64_t end) {
    const Path taken = kernels.softmax(call, begin, end);
    if (begin == 0) path = taken; // not last_path, which is another one on another thread
  });
  last_path = {Taken::native, path};
  return Outcome::done;
}

constexpr struct {
  const char* name;
  Binder binder;
} kRowBinders[] = {
    {"softmax_", bind_softmax<false>},
    {"log_softmax_", bind_softmax<true>},
    {"softmax_relu_", bind_softmax<false>},
};

} // namespace

Binder find_row_binder(const std::string& name) {
  for (const auto& entry : kRowBinders) {
    if (name == entry.name) return entry.binder;
  }
  return nullptr;
}

} // namespace inplace_ext
