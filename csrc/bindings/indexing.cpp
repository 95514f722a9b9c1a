// Writing where an index or a mask says: index_fill_ and its kin, scatter_, put_, and x[index] = value.
#include <ATen/ops/empty.h>
#include <ATen/ops/nonzero.h>
#include <torch/csrc/autograd/python_variable.h>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <optional>

#include "binders.h"
#include "device.h"
#include "overlap.h"
#include "parallel.h"

namespace inplace_ext {
namespace {

// What an element costs that goes to a place of its own, and one of a row, in multiplications.
constexpr int64_t kElementCost = 4, kRowCost = 1;
// A row is shared among threads where each gets this much of it at least, in bytes.
constexpr int64_t kSharedRow = 1024;
// From which on rows, in bytes, and lines of elements are filled by the kernels for masks.
constexpr int64_t kLeastRow = 64, kLeastLine = 8;

template <class T>
using Dims = c10::SmallVector<T, kMaxDims>;

// ---- indices ----------------------------------------------------------------------------------------------

bool is_index(const at::Tensor& t) {
  return t.scalar_type() == at::kLong || t.scalar_type() == at::kInt;
}

// Calls f(first element, step in bytes, n) for lines that together are all of a tensor's memory.
template <class F>
bool all_lines(const at::Tensor& t, F f) {
  const int64_t item = t.element_size();
  const char* const data = static_cast<const char*>(t.const_data_ptr());
  if (t.unsafeGetTensorImpl()->is_non_overlapping_and_dense()) return f(data, item, t.numel());
  Dims<int64_t> dims = dims_in_memory(t);
  // What is expanded is looked at once.
  dims.erase(std::remove_if(dims.begin(), dims.end(), [&](int64_t d) { return t.stride(d) == 0; }),
             dims.end());
  if (dims.empty()) return f(data, item, 1);
  int64_t lines = 1;
  for (size_t k = 1; k < dims.size(); ++k) lines *= t.size(dims[k]);
  for (int64_t i = 0; i < lines; ++i) {
    int64_t rest = i, offset = 0;
    for (size_t k = 1; k < dims.size(); rest /= t.size(dims[k++]))
      offset += rest % t.size(dims[k]) * t.stride(dims[k]) * item;
    if (!f(data + offset, t.stride(dims[0]) * item, t.size(dims[0]))) return false;
  }
  return true;
}

// How an operation reads an index: its name, and what torch raises.
struct Rule {
  const char* name;
  bool negative;    // counts from the end
  PyObject** error; // where it is out of range
};

// Whether all indices are in range, and whether some count from the end; else a Python error that names the
// first one is set. Those on a device are looked at there.
bool check_range(const Rule& rule, Indexed& call, const at::Tensor& index, int64_t length, int64_t dim) {
  if (device_kernels(index) != nullptr) return true;
  const bool wide = index.scalar_type() == at::kLong;
  const int64_t item = index.element_size();
  const CpuKernels& kernels = *active_kernels;
  const auto are_from = [&](int64_t low) {
    std::atomic<bool> good{true};
    return all_lines(index, [&](const char* p, int64_t step, int64_t n) {
      parallel(n, 1, [&](int64_t begin, int64_t end) {
        if (!kernels.in_range(p + begin * step, wide, step, end - begin, low, length)) good = false;
      });
      return good.load();
    });
  };
  if (are_from(0)) return true;
  const int64_t low = rule.negative ? -length : 0;
  call.negative = rule.negative && are_from(low);
  if (call.negative) return true;
  const char* const data = static_cast<const char*>(index.const_data_ptr());
  for (int64_t i = 0; i < index.numel(); ++i) {
    int64_t rest = i, offset = 0;
    for (int64_t d = index.dim() - 1; d >= 0; rest /= index.size(d--))
      offset += rest % index.size(d) * index.stride(d) * item;
    int64_t at = 0;
    int32_t narrow = 0;
    wide ? std::memcpy(&at, data + offset, sizeof(at)) : std::memcpy(&narrow, data + offset, sizeof(narrow));
    if (!wide) at = narrow;
    if (at >= low && at < length) continue;
    PyErr_Format(*rule.error,
                 "%s: index %lld is out of bounds for dimension %lld with size %lld: it must be in [%lld, "
                 "%lld), and element %lld of the index is not. input is unchanged.",
                 rule.name, static_cast<long long>(at), static_cast<long long>(dim),
                 static_cast<long long>(length), static_cast<long long>(low), static_cast<long long>(length),
                 static_cast<long long>(i));
    return false;
  }
  return true;
}

// ---- loops ------------------------------------------------------------------------------------------------

// A dim of what is indexed: of the indices, or of x beside them. Steps in bytes.
struct Loop {
  int64_t size, step = 0, source_step = 0;
  int64_t index_step[kMaxIndices] = {};
  bool is_point() const {
    return step == 0;
  }
};
using Loops = Dims<Loop>;

// Puts the dims, which come in C order, into the order in which x is walked through best. False if they are
// too many.
bool lay_out(Indexed& call, const Loops& loops, const at::Tensor& x) {
  int64_t stride = INT64_MAX; // between neighbours by index
  for (int k = 0; k < call.indices; ++k) stride = std::min(stride, call.index[k].stride);
  Loops near, points, far;
  for (auto loop = loops.rbegin(); loop != loops.rend(); ++loop) {
    if (loop->size == 1) continue;
    (loop->is_point() ? points : loop->step < stride ? near : far).push_back(*loop);
  }
  const auto by_step = [](const Loop& a, const Loop& b) { return a.step < b.step; };
  std::stable_sort(near.begin(), near.end(), by_step);
  // Where the index moves along both, what is read decides which is walked first: the places are anywhere. A
  // device keeps its threads on neighbours in x.
  const auto reads = [](const Loop& loop) {
    return std::abs(loop.index_step[0]) + std::abs(loop.source_step);
  };
  const bool points_first = device_kernels(x) == nullptr && !near.empty() && !points.empty() &&
                            near[0].index_step[0] != 0 && reads(points[0]) < reads(near[0]);
  std::stable_sort(far.begin(), far.end(), by_step);
  call.dims = 0;
  const auto append = [&](const Loop& loop) {
    if (call.dims == kMaxDims) return false;
    const int d = call.dims++;
    call.size[d] = loop.size, call.step[d] = loop.step, call.source_step[d] = loop.source_step;
    for (int k = 0; k < call.indices; ++k) call.index[k].step[d] = loop.index_step[k];
    return true;
  };
  for (const Loops* part : {points_first ? &points : &near, points_first ? &near : &points, &far}) {
    for (const Loop& loop : *part) {
      const int d = call.dims - 1;
      bool merge = d >= 0 && loop.step == call.step[d] * call.size[d] &&
                   loop.source_step == call.source_step[d] * call.size[d];
      for (int k = 0; k < call.indices && merge; ++k)
        merge = loop.index_step[k] == call.index[k].step[d] * call.size[d];
      if (merge) {
        call.size[d] *= loop.size;
      } else if (!append(loop)) {
        return false;
      }
    }
  }
  if (call.dims == 0) append({.size = 1});
  call.rows = call.step[0] != 0;
  for (int k = 0; k < call.indices; ++k) call.rows = call.rows && call.index[k].step[0] == 0;
  return !call.rows || call.dims > 1 || append({.size = 1});
}

// Runs a call that has passed all checks but that of the range, which the kernels of a device see to.
void run(Indexed& call, const Rule& rule, const at::Tensor& x) {
  if (device_kernels(x) != nullptr) return put_indexed_on_device(call, rule.negative, x);
  int64_t total = call.rows ? kRowCost : kElementCost;
  for (int d = 0; d < call.dims; ++d) total *= call.size[d];
  const int64_t threads = at::get_num_threads();
  // A dim of x beside the index, the outermost that does for all threads; else each takes part of the places.
  call.shared = kByDestination;
  for (int d = 0; d < call.dims; ++d) {
    const int64_t least = call.step[d] < kSharedRow ? kSharedRow / std::max<int64_t>(call.step[d], 1) : 1;
    if (call.step[d] != 0 && call.size[d] >= threads * least) call.shared = d;
  }
  if (call.shared == kByDestination) { // of which there are the most by the longest dim
    const auto longest = std::max_element(call.index, call.index + call.indices,
                                          [](const Index& a, const Index& b) { return a.length < b.length; });
    std::swap(call.index[0], *longest);
  }
  const int64_t n = call.shared == kByDestination ? call.index[0].length : call.size[call.shared];
  const CpuKernels& kernels = *active_kernels;
  Path path = Path::index_rows;
  parallel(n, std::max<int64_t>(total / n, 1), [&](int64_t begin, int64_t end) {
    const Path taken = kernels.put_indexed(call, begin, end);
    if (begin == 0) path = taken;
  });
  last_path = {Taken::native, path};
}

// Takes a tensor that is read while places of x are written: sees to shared memory, and to the device.
struct Reader {
  at::Tensor copy;
  const at::Tensor* tensor = nullptr;
  Outcome open(const at::Tensor& x, const at::Tensor& operand, bool torch_refuses = true) {
    return same_device(x, operand) ? take_unshared(x, operand, torch_refuses, copy, tensor)
                                   : Outcome::delegate;
  }
};

void set_index(Indexed& call, int k, const at::Tensor& index, int64_t length, int64_t stride) {
  call.index[k].data = static_cast<const char*>(index.const_data_ptr());
  call.index[k].wide = index.scalar_type() == at::kLong;
  call.index[k].length = length;
  call.index[k].stride = stride;
}

// ---- along one dim ----------------------------------------------------------------------------------------

// x and the dim that is indexed; a number has one of one element.
struct Target {
  const at::Tensor* x;
  DType dtype;
  int64_t dim, length, step; // step in bytes
  bool open(PyObject* object, PyObject* dim_object) {
    x = writable_tensor(object);
    Number given;
    if (x == nullptr || !to_dtype(x->scalar_type(), dtype) || !to_number(dim_object, given) ||
        given.category != Number::integer) {
      return false;
    }
    dim = given.i;
    const int64_t dims = std::max<int64_t>(x->dim(), 1);
    if (dim < -dims || dim >= dims || x->numel() == 0) return false;
    if (dim < 0) dim += dims;
    const int64_t item = item_size(dtype);
    length = x->dim() == 0 ? 1 : x->size(dim);
    step = x->dim() == 0 ? item : x->stride(dim) * item;
    return true;
  }
};

Indexed begin_call(Put put, const at::Tensor& x, DType dtype) {
  Indexed call{};
  call.put = put;
  call.dtype = dtype;
  call.data = static_cast<char*>(x.mutable_data_ptr());
  return call;
}

// index_fill_, index_copy_ and index_add_: `source`, if there is one, has the dims of x, with those of the
// index for the one that is indexed.
Outcome run_along(const Rule& rule, Put put, const Target& t, const at::Tensor& given, Scalar scalar,
                  bool scaled, const at::Tensor* source) {
  const at::Tensor& x = *t.x;
  if (given.dim() > 1 || given.numel() == 0) return Outcome::delegate;
  if (source != nullptr) {
    if (source->scalar_type() != x.scalar_type() || source->dim() != x.dim()) return Outcome::delegate;
    for (int64_t d = 0; d < x.dim(); ++d) {
      if (source->size(d) != (d == t.dim ? given.numel() : x.size(d))) return Outcome::delegate;
    }
  }
  Reader reads_index, reads_source;
  Outcome taken = reads_index.open(x, given);
  if (taken == Outcome::done && source != nullptr) taken = reads_source.open(x, *source);
  if (taken != Outcome::done) return taken;
  const at::Tensor& index = *reads_index.tensor;
  source = reads_source.tensor;
  const int64_t item = item_size(t.dtype);
  Indexed call = begin_call(put, x, t.dtype);
  call.scalar = scalar;
  call.scaled = scaled;
  call.indices = 1;
  set_index(call, 0, index, t.length, t.step);
  if (source != nullptr) call.source = static_cast<const char*>(source->const_data_ptr());
  Loops loops;
  for (int64_t d = 0; d < std::max<int64_t>(x.dim(), 1); ++d) {
    Loop loop{.size = d == t.dim ? index.numel() : x.size(d)};
    if (source != nullptr && x.dim() > 0) loop.source_step = source->stride(d) * item;
    if (d != t.dim) {
      loop.step = x.stride(d) * item;
    } else if (index.dim() > 0) {
      loop.index_step[0] = index.stride(0) * static_cast<int64_t>(index.element_size());
    }
    loops.push_back(loop);
  }
  if (!lay_out(call, loops, x)) return Outcome::delegate;
  if (!check_range(rule, call, index, t.length, t.dim)) return Outcome::error;
  run(call, rule, x);
  return Outcome::done;
}

// (input, dim, index, value)
Outcome bind_index_fill(Op, Slots slot) {
  static const Rule rule{"index_fill_", true, &PyExc_IndexError};
  Target t;
  Scalar value;
  const at::Tensor* const index = plain_tensor(slot[2]);
  if (!t.open(slot[0], slot[1]) || index == nullptr || index->scalar_type() != at::kLong ||
      !fill_value(*t.x, t.dtype, slot[3], value)) {
    return Outcome::delegate;
  }
  return run_along(rule, Put::fill, t, *index, value, false, nullptr);
}
// (input, dim, index, source)
Outcome bind_index_copy(Op, Slots slot) {
  static const Rule rule{"index_copy_", false, &PyExc_IndexError};
  Target t;
  const at::Tensor *const index = plain_tensor(slot[2]), *const source = plain_tensor(slot[3]);
  if (!t.open(slot[0], slot[1]) || index == nullptr || source == nullptr ||
      index->scalar_type() != at::kLong) {
    return Outcome::delegate;
  }
  return run_along(rule, Put::copy, t, *index, {}, false, source);
}
// (input, dim, index, source, *, alpha=1)
Outcome bind_index_add(Op, Slots slot) {
  static const Rule rule{"index_add_", false, &PyExc_IndexError};
  Target t;
  Scalar alpha{};
  bool one = true;
  const at::Tensor *const index = plain_tensor(slot[2]), *const source = plain_tensor(slot[3]);
  if (!t.open(slot[0], slot[1]) || index == nullptr || source == nullptr || !is_index(*index) ||
      (slot[4] != nullptr && !alpha_value(t.dtype, slot[4], alpha, one))) {
    return Outcome::delegate;
  }
  return run_along(rule, Put::add, t, *index, alpha, !one, source);
}

// A device keeps the order of points that are the same for all of the other dims. Those along which both x
// and the index move become dims of the points: with the numbers from 0 on, which are held by the caller, as
// an index of their own. False where the indices would be too many.
bool make_points(Indexed& call, const at::Tensor& x, at::Tensor& numbers) {
  int64_t longest = 0;
  for (int d = 0; d < call.dims; ++d) {
    if (call.step[d] == 0 || call.index[0].step[d] == 0) continue;
    if (call.indices == kMaxIndices) return false;
    Index& index = call.index[call.indices++];
    index = {nullptr, /*wide=*/true, call.size[d], call.step[d], {}};
    index.step[d] = sizeof(int64_t);
    call.step[d] = 0;
    longest = std::max(longest, call.size[d]);
  }
  if (longest == 0) return true;
  numbers = at::arange(longest, at::TensorOptions(x.device()).dtype(at::kLong));
  for (int k = 1; k < call.indices; ++k)
    call.index[k].data = reinterpret_cast<const char*>(numbers.const_data_ptr<int64_t>());
  // Side by side, behind the dims that are none.
  int order[kMaxDims], dims = 0;
  for (const bool points : {false, true}) {
    for (int d = 0; d < call.dims; ++d) {
      if ((call.step[d] == 0) == points) order[dims++] = d;
    }
  }
  const Indexed given = call;
  for (int d = 0; d < call.dims; ++d) {
    call.size[d] = given.size[order[d]], call.step[d] = given.step[order[d]];
    call.source_step[d] = given.source_step[order[d]];
    for (int k = 0; k < call.indices; ++k) call.index[k].step[d] = given.index[k].step[order[d]];
  }
  return true;
}

// scatter_ and scatter_add_: an index for each element of the source.
Outcome run_scatter(const Rule& rule, Put put, const Target& t, const at::Tensor& given, Scalar scalar,
                    const at::Tensor* source) {
  const at::Tensor& x = *t.x;
  const int64_t dims = x.dim(), item = item_size(t.dtype);
  if (!is_index(given) || given.dim() != dims || given.numel() == 0) return Outcome::delegate;
  if (source != nullptr && (source->scalar_type() != x.scalar_type() || source->dim() != dims))
    return Outcome::delegate;
  for (int64_t d = 0; d < dims; ++d) {
    if (d != t.dim && given.size(d) > x.size(d)) return Outcome::delegate;
    if (source != nullptr && given.size(d) > source->size(d)) return Outcome::delegate;
  }
  Reader reads_index, reads_source;
  Outcome taken = reads_index.open(x, given);
  if (taken == Outcome::done && source != nullptr) taken = reads_source.open(x, *source);
  if (taken != Outcome::done) return taken;
  const at::Tensor& index = *reads_index.tensor;
  source = reads_source.tensor;
  Indexed call = begin_call(put, x, t.dtype);
  call.scalar = scalar;
  call.indices = 1;
  set_index(call, 0, index, t.length, t.step);
  if (source != nullptr) call.source = static_cast<const char*>(source->const_data_ptr());
  Loops loops;
  for (int64_t d = 0; d < dims; ++d) {
    Loop loop{.size = index.size(d)};
    if (d != t.dim) loop.step = x.stride(d) * item;
    if (source != nullptr) loop.source_step = source->stride(d) * item;
    loop.index_step[0] = index.stride(d) * static_cast<int64_t>(index.element_size());
    loops.push_back(loop);
  }
  if (!lay_out(call, loops, x)) return Outcome::delegate;
  at::Tensor numbers;
  if (source != nullptr && device_kernels(x) != nullptr && !make_points(call, x, numbers))
    return Outcome::delegate;
  if (!check_range(rule, call, index, t.length, t.dim)) return Outcome::error;
  run(call, rule, x);
  return Outcome::done;
}
// (input, dim, index, src, *, reduce=None), src a tensor or a number
Outcome bind_scatter(Op, Slots slot) {
  static const Rule rule{"scatter_", false, &PyExc_RuntimeError};
  Target t;
  Scalar value{};
  Number number;
  const at::Tensor* const index = plain_tensor(slot[2]);
  if (slot[4] != nullptr && slot[4] != Py_None) return Outcome::delegate;
  if (!t.open(slot[0], slot[1]) || index == nullptr) return Outcome::delegate;
  if (to_number(slot[3], number)) {
    if (!fill_value(*t.x, t.dtype, slot[3], value)) return Outcome::delegate;
    return run_scatter(rule, Put::fill, t, *index, value, nullptr);
  }
  const at::Tensor* const source = plain_tensor(slot[3]);
  return source == nullptr ? Outcome::delegate : run_scatter(rule, Put::copy, t, *index, value, source);
}
// (input, dim, index, src)
Outcome bind_scatter_add(Op, Slots slot) {
  static const Rule rule{"scatter_add_", false, &PyExc_RuntimeError};
  Target t;
  const at::Tensor *const index = plain_tensor(slot[2]), *const source = plain_tensor(slot[3]);
  if (!t.open(slot[0], slot[1]) || index == nullptr || source == nullptr) return Outcome::delegate;
  return run_scatter(rule, Put::add, t, *index, {}, source);
}

// (input, index, source, accumulate=False): x as one dim, whatever its shape
Outcome bind_put(Op, Slots slot) {
  static const Rule rule{"put_", true, &PyExc_IndexError};
  const at::Tensor* const x = writable_tensor(slot[0]);
  const at::Tensor *index = plain_tensor(slot[1]), *source = plain_tensor(slot[2]);
  DType dtype;
  if (x == nullptr || index == nullptr || source == nullptr || !to_dtype(x->scalar_type(), dtype) ||
      (slot[3] != nullptr && !PyBool_Check(slot[3])) || x->numel() == 0 || index->numel() == 0 ||
      !x->is_contiguous() || index->scalar_type() != at::kLong || source->scalar_type() != x->scalar_type() ||
      index->numel() != source->numel()) {
    return Outcome::delegate;
  }
  // Either in the order of its elements: of different shapes they have to lie in that order.
  const bool flat = index->is_contiguous() && source->is_contiguous();
  if (!flat && index->sizes() != source->sizes()) return Outcome::delegate;
  Reader reads_index, reads_source;
  Outcome taken = reads_index.open(*x, *index);
  if (taken == Outcome::done) taken = reads_source.open(*x, *source);
  if (taken != Outcome::done) return taken;
  index = reads_index.tensor, source = reads_source.tensor;
  const int64_t item = item_size(dtype), index_item = index->element_size();
  Indexed call = begin_call(slot[3] == Py_True ? Put::add : Put::copy, *x, dtype);
  call.indices = 1;
  set_index(call, 0, *index, x->numel(), item);
  call.source = static_cast<const char*>(source->const_data_ptr());
  Loops loops;
  if (flat) {
    Loop loop{.size = index->numel(), .source_step = item};
    loop.index_step[0] = index_item;
    loops.push_back(loop);
  } else {
    for (int64_t d = 0; d < index->dim(); ++d) {
      Loop loop{.size = index->size(d), .source_step = source->stride(d) * item};
      loop.index_step[0] = index->stride(d) * index_item;
      loops.push_back(loop);
    }
  }
  if (!lay_out(call, loops, *x)) return Outcome::delegate;
  if (!check_range(rule, call, *index, x->numel(), 0)) return Outcome::error;
  run(call, rule, *x);
  return Outcome::done;
}

// ---- masks ------------------------------------------------------------------------------------------------

// Lays out x and a mask that broadcasts to it. With `rows` trailing dims of x over which the mask does not go
// and which lie side by side are a row of each of its elements; `order` is that of the other dims, innermost
// first. False where that is no layout for the kernels.
bool lay_out_mask(Masked& call, const at::Tensor& x, const at::Tensor& mask, bool in_memory_order) {
  const int64_t item = item_size(call.dtype), rank = x.dim();
  const auto mask_step = [&](int64_t d) {
    const int64_t own = d - (rank - mask.dim());
    return own < 0 || mask.size(own) == 1 ? int64_t(0) : mask.stride(own);
  };
  const auto is_wide = [&](int64_t d) {
    return d >= rank - mask.dim() && mask.size(d - (rank - mask.dim())) != 1;
  };
  int64_t inner = rank;
  call.row = 1;
  while (inner > 0 && (x.size(inner - 1) == 1 || (!is_wide(inner - 1) && x.stride(inner - 1) == call.row)))
    call.row *= x.size(--inner);
  Dims<int64_t> order;
  if (in_memory_order) {
    for (const int64_t d : dims_in_memory(x)) {
      if (d < inner) order.push_back(d);
    }
  } else {
    for (int64_t d = inner - 1; d >= 0; --d) {
      if (x.size(d) != 1) order.push_back(d);
    }
  }
  call.dims = 0;
  for (const int64_t d : order) {
    const int64_t step = x.stride(d) * item, own = mask_step(d);
    if (const int last = call.dims - 1; last >= 0 && step == call.step[last] * call.size[last] &&
                                        own == call.mask_step[last] * call.size[last]) {
      call.size[last] *= x.size(d);
      continue;
    }
    if (call.dims == kMaxDims) return false;
    call.size[call.dims] = x.size(d), call.step[call.dims] = step, call.mask_step[call.dims++] = own;
  }
  if (call.dims == 0) call.size[0] = 1, call.step[0] = item, call.mask_step[0] = 1, call.dims = 1;
  call.data = static_cast<char*>(x.mutable_data_ptr());
  call.mask = static_cast<const char*>(mask.const_data_ptr());
  return true;
}

int64_t numel(const Masked& call) {
  int64_t n = 1;
  for (int d = 0; d < call.dims; ++d) n *= call.size[d];
  return n;
}

// The elements of the mask in as many parts as there are threads, and how many are true before each.
struct MaskParts {
  const Masked& call;
  int64_t n, parts;
  c10::SmallVector<int64_t, 8> before;
  // With `enough` for all of its elements the count is of use to threads alone.
  explicit MaskParts(const Masked& masked, bool enough = false) : call(masked), n(numel(masked)) {
    const int64_t work = n * std::max<int64_t>(masked.row * kRowCost, 1);
    parts = std::clamp<int64_t>(work / kGrain, 1, at::get_num_threads());
    before.resize(parts + 1, 0);
    if (enough && parts == 1) return;
    for_parts([&](int64_t part, int64_t begin, int64_t end) {
      before[part + 1] = active_kernels->count_mask(call, begin, end);
    });
    for (int64_t p = 0; p < parts; ++p) before[p + 1] += before[p];
  }
  int64_t count() const {
    return before[parts];
  }
  void run() const {
    Path path = Path::mask_elements;
    for_parts([&](int64_t part, int64_t begin, int64_t end) {
      const Path taken = active_kernels->put_masked(call, begin, end, before[part]);
      if (part == 0) path = taken;
    });
    last_path = {Taken::native, path};
  }

 private:
  template <class F>
  void for_parts(F f) const {
    parallel(parts, std::max<int64_t>(n * call.row / parts, 1), [&](int64_t first, int64_t last) {
      for (int64_t p = first; p < last; ++p)
        f(p, n / parts * p + n % parts * p / parts, n / parts * (p + 1) + n % parts * (p + 1) / parts);
    });
  }
};

// (input, mask, source)
Outcome bind_masked_scatter(Op, Slots slot) {
  const at::Tensor *const x = writable_tensor(slot[0]), *const mask = plain_tensor(slot[1]),
                          *const source = plain_tensor(slot[2]);
  Masked call{};
  if (x == nullptr || mask == nullptr || source == nullptr || !to_dtype(x->scalar_type(), call.dtype) ||
      mask->scalar_type() != at::kBool || source->scalar_type() != x->scalar_type() || x->numel() == 0 ||
      !broadcasts_to(*mask, *x)) {
    return Outcome::delegate;
  }
  Reader reads_mask, reads_source;
  Outcome taken = reads_mask.open(*x, *mask);
  if (taken == Outcome::done) taken = reads_source.open(*x, *source, /*torch_refuses=*/false);
  if (taken != Outcome::done) return taken;
  const at::Tensor expanded =
      reads_mask.tensor->sizes() == x->sizes() ? *reads_mask.tensor : reads_mask.tensor->expand_as(*x);
  const at::Tensor from = reads_source.tensor->contiguous();
  call.put = Put::copy;
  call.source = static_cast<const char*>(from.const_data_ptr());
  call.source_step = call.source_inner = item_size(call.dtype);
  if (!lay_out_mask(call, *x, expanded, /*in_memory_order=*/false)) return Outcome::delegate;
  if (device_kernels(*x) != nullptr) {
    put_masked_on_device(call, from.numel() / call.row, /*exactly=*/false, *x);
    return Outcome::done;
  }
  const MaskParts parts(call, from.numel() >= x->numel());
  if (parts.count() > from.numel()) {
    PyErr_Format(
        PyExc_RuntimeError,
        "masked_scatter_: the mask is true for %lld elements of input, and source has %lld elements: "
        "give at least as many. input is unchanged.",
        static_cast<long long>(parts.count()), static_cast<long long>(from.numel()));
    return Outcome::error;
  }
  parts.run();
  return Outcome::done;
}

// ---- several dims -----------------------------------------------------------------------------------------

// A view of x, and for some of its dims what they are indexed with: a mask for as many dims as it has.
struct View {
  Dims<int64_t> sizes, strides;
  int64_t offset = 0;
  struct Entry {
    int64_t dim;
    at::Tensor tensor;
  };
  c10::SmallVector<Entry, kMaxIndices> entries;

  at::Tensor of(const at::Tensor& x) const {
    return as_view(x, sizes, strides, offset);
  }
  // Without the dispatcher, for nothing is recorded here.
  static at::Tensor as_view(const at::Tensor& x, at::IntArrayRef sizes, at::IntArrayRef strides,
                            int64_t offset) {
    auto impl = c10::make_intrusive<c10::TensorImpl>(c10::TensorImpl::VIEW, c10::Storage(x.storage()),
                                                     x.key_set(), x.dtype());
    impl->set_storage_offset(offset);
    impl->set_sizes_and_strides(sizes, strides);
    return at::Tensor(std::move(impl));
  }
};

// The sizes of a tensor without those dims of one element that it has in front beyond `dims`, as torch takes
// the value of an assignment; without a change if others are in front.
at::Tensor without_leading(const at::Tensor& value, int64_t dims) {
  int64_t extra = 0;
  while (value.dim() - extra > dims && value.size(extra) == 1) ++extra;
  if (extra == 0) return value;
  return View::as_view(value, value.sizes().slice(extra), value.strides().slice(extra),
                       value.storage_offset());
}

// What is written: a number or a tensor of no dims as it came, or a tensor.
struct Value {
  PyObject* object;
  const at::Tensor* tensor; // null for a number
};

// x[mask] = value for a mask that is all there is in the index; empty where no kernel for masks will do.
std::optional<Outcome> put_mask(const at::Tensor& x, DType dtype, const View::Entry& entry,
                                const Value& value, bool strips) {
  const at::Tensor& mask = entry.tensor;
  if (value.tensor == nullptr || value.tensor->dim() == 0) {
    // Over the dims that it is for, and all of those that follow.
    Dims<int64_t> sizes(mask.sizes().begin(), mask.sizes().end());
    Dims<int64_t> strides(mask.strides().begin(), mask.strides().end());
    sizes.resize(x.dim() - entry.dim, 1);
    strides.resize(x.dim() - entry.dim, 0);
    return fill_masked(x, dtype, View::as_view(mask, sizes, strides, mask.storage_offset()), value.object);
  }
  // The first dims are for the mask, and for each of its elements there is a row of the source.
  const int64_t item = item_size(dtype), rest = x.dim() - mask.dim();
  if (value.tensor->scalar_type() != x.scalar_type()) return Outcome::delegate;
  if (entry.dim != 0) return std::nullopt;
  const at::Tensor source = strips ? without_leading(*value.tensor, rest + 1) : *value.tensor;
  const int64_t own = source.dim();
  if (own > rest + 1) return Outcome::delegate;
  Masked call{};
  call.put = Put::copy;
  call.dtype = dtype;
  call.source_step = own == rest + 1 && source.size(0) != 1 ? source.stride(0) * item : 0;
  int64_t row = 1;
  bool dense = true, repeated = true;
  for (int64_t k = 1; k <= rest; ++k) {
    const int64_t size = x.size(x.dim() - k), given = k <= own - (own == rest + 1) ? source.size(own - k) : 1;
    if (given != 1 && given != size) return Outcome::delegate;
    if (size == 1) continue;
    if (x.stride(x.dim() - k) != row) return std::nullopt; // no row
    dense = dense && given == size && source.stride(own - k) == row;
    repeated = repeated && (given == 1 || source.stride(own - k) == 0);
    row *= size;
  }
  if (!dense && !repeated) return std::nullopt;
  call.source_inner = dense ? item : 0;
  Reader reads_mask, reads_source;
  Outcome taken = reads_mask.open(x, mask);
  if (taken == Outcome::done) taken = reads_source.open(x, source);
  if (taken != Outcome::done) return taken;
  if (reads_source.tensor != &source) return std::nullopt; // laid out in another way
  Dims<int64_t> sizes(mask.sizes().begin(), mask.sizes().end());
  Dims<int64_t> strides(reads_mask.tensor->strides().begin(), reads_mask.tensor->strides().end());
  sizes.resize(x.dim(), 1);
  strides.resize(x.dim(), 0);
  const at::Tensor leading =
      View::as_view(*reads_mask.tensor, sizes, strides, reads_mask.tensor->storage_offset());
  if (!lay_out_mask(call, x, leading, /*in_memory_order=*/false) || call.row != row) return std::nullopt;
  call.source = static_cast<const char*>(source.const_data_ptr());
  const bool counted = own == rest + 1 && source.size(0) != 1;
  if (device_kernels(x) != nullptr) {
    put_masked_on_device(call, counted ? source.size(0) : 1, /*exactly=*/true, x);
    return Outcome::done;
  }
  const MaskParts parts(call);
  if (counted && source.size(0) != parts.count()) return Outcome::delegate;
  parts.run();
  return Outcome::done;
}

// x[indices] = value, or += with `accumulate`; masks count as the indices of their true elements. `strips` as
// an assignment does, which takes a value with more dims of one element in front.
Outcome put_entries(const Rule& rule, const at::Tensor& x, DType dtype, const View& view, const Value& value,
                    bool accumulate, bool strips) {
  if (x.numel() == 0) return Outcome::delegate;
  for (const auto& [dim, tensor] : view.entries) {
    const bool is_mask = tensor.scalar_type() == at::kBool;
    if (is_mask ? tensor.dim() == 0 : !is_index(tensor)) return Outcome::delegate;
    if (!is_mask) continue;
    // Nothing waits for a device to say how many elements are true.
    if (device_kernels(x) != nullptr && (accumulate || view.entries.size() > 1)) return Outcome::delegate;
    if (dim + tensor.dim() > x.dim()) return Outcome::delegate;
    for (int64_t d = 0; d < tensor.dim(); ++d) {
      if (tensor.size(d) != x.size(dim + d)) return Outcome::delegate;
    }
  }
  if (view.entries.size() == 1 && view.entries[0].tensor.scalar_type() == at::kBool && !accumulate) {
    if (const auto done = put_mask(x, dtype, view.entries[0], value, strips)) return *done;
    if (device_kernels(x) != nullptr) return Outcome::delegate;
  }
  if (value.tensor != nullptr && value.tensor->scalar_type() != x.scalar_type()) return Outcome::delegate;
  Indexed call = begin_call(accumulate                ? Put::add
                            : value.tensor == nullptr ? Put::fill
                                                      : Put::copy,
                            x, dtype);
  if (value.tensor == nullptr && !fill_value(x, dtype, value.object, call.scalar)) return Outcome::delegate;

  // One index for each dim.
  c10::SmallVector<View::Entry, kMaxIndices> indices;
  for (const auto& [dim, tensor] : view.entries) {
    if (tensor.scalar_type() != at::kBool) {
      indices.push_back({dim, tensor});
      continue;
    }
    const at::Tensor places = at::nonzero(tensor);
    for (int64_t d = 0; d < tensor.dim(); ++d) indices.push_back({dim + d, places.select(1, d)});
  }
  if (indices.size() > kMaxIndices) return Outcome::delegate;
  Dims<int64_t> points; // their common shape
  for (const auto& [dim, tensor] : indices) {
    if (static_cast<size_t>(tensor.dim()) > points.size())
      points.insert(points.begin(), tensor.dim() - points.size(), 1);
    for (int64_t k = 1; k <= tensor.dim(); ++k) {
      int64_t& size = points[points.size() - k];
      const int64_t own = tensor.size(tensor.dim() - k);
      if (size != 1 && own != 1 && own != size) return Outcome::delegate;
      if (own != 1) size = own;
    }
  }
  int64_t count = 1;
  for (const int64_t size : points) count *= size;
  if (count == 0) return Outcome::delegate;

  Reader reads[kMaxIndices], reads_value;
  const int64_t item = item_size(dtype), first = indices[0].dim, last = indices.back().dim;
  call.indices = static_cast<int>(indices.size());
  for (int k = 0; k < call.indices; ++k) {
    const auto& [dim, tensor] = indices[k];
    if (dim >= x.dim()) return Outcome::delegate;
    if (const Outcome taken = reads[k].open(x, tensor); taken != Outcome::done) return taken;
    set_index(call, k, *reads[k].tensor, x.size(dim), x.stride(dim) * item);
  }
  // The dims of the indices stand where those are that they are for, or in front where others lie between.
  const bool adjacent = last - first + 1 == call.indices;
  Loops loops;
  const auto add_points = [&] {
    for (size_t p = 0; p < points.size(); ++p) {
      Loop loop{.size = points[p]};
      for (int k = 0; k < call.indices; ++k) {
        const at::Tensor& index = *reads[k].tensor;
        const int64_t d = static_cast<int64_t>(p) - (static_cast<int64_t>(points.size()) - index.dim());
        if (d >= 0 && index.size(d) != 1)
          loop.index_step[k] = index.stride(d) * static_cast<int64_t>(index.element_size());
      }
      loops.push_back(loop);
    }
  };
  if (!adjacent) add_points();
  for (int64_t d = 0; d < x.dim(); ++d) {
    if (adjacent && d == first) add_points();
    if (std::any_of(indices.begin(), indices.end(), [d](const View::Entry& e) { return e.dim == d; }))
      continue;
    loops.push_back({.size = x.size(d), .step = x.stride(d) * item});
  }
  at::Tensor given;
  if (value.tensor != nullptr) {
    const int64_t dims = static_cast<int64_t>(loops.size());
    given = strips ? without_leading(*value.tensor, dims) : *value.tensor;
    if (given.dim() > dims) return Outcome::delegate;
    if (const Outcome taken = reads_value.open(x, given); taken != Outcome::done) return taken;
    const at::Tensor& source = *reads_value.tensor;
    for (int64_t k = 1; k <= source.dim(); ++k) {
      Loop& loop = loops[dims - k];
      const int64_t own = source.size(source.dim() - k);
      if (own != 1 && own != loop.size) return Outcome::delegate;
      if (own != 1) loop.source_step = source.stride(source.dim() - k) * item;
    }
    call.source = static_cast<const char*>(source.const_data_ptr());
  }
  if (!lay_out(call, loops, x)) return Outcome::delegate;
  for (int k = 0; k < call.indices; ++k) {
    if (!check_range(rule, call, *reads[k].tensor, call.index[k].length, indices[k].dim))
      return Outcome::error;
  }
  run(call, rule, x);
  return Outcome::done;
}

// (input, indices, values, accumulate=False)
Outcome bind_index_put(Op, Slots slot) {
  static const Rule rule{"index_put_", true, &PyExc_IndexError};
  const at::Tensor *const x = writable_tensor(slot[0]), *const values = plain_tensor(slot[2]);
  DType dtype;
  if (x == nullptr || values == nullptr || !to_dtype(x->scalar_type(), dtype) ||
      !(PyTuple_Check(slot[1]) || PyList_Check(slot[1])) || (slot[3] != nullptr && !PyBool_Check(slot[3]))) {
    return Outcome::delegate;
  }
  View view;
  int64_t dim = 0;
  for (Py_ssize_t i = 0; i < PySequence_Fast_GET_SIZE(slot[1]); ++i) {
    const at::Tensor* const index = plain_tensor(PySequence_Fast_GET_ITEM(slot[1], i));
    if (index == nullptr) return Outcome::delegate;
    view.entries.push_back({dim, *index});
    dim += index->scalar_type() == at::kBool ? index->dim() : 1;
  }
  if (dim > x->dim() || dim == 0) return Outcome::delegate;
  return put_entries(rule, *x, dtype, view, {slot[2], values}, slot[3] == Py_True, /*strips=*/false);
}

// ---- x[index] = value -------------------------------------------------------------------------------------

bool is_int(PyObject* object) {
  return PyLong_Check(object) && !PyBool_Check(object);
}
bool is_int_or_none(PyObject* object) {
  return object == Py_None || is_int(object);
}

// A list of ints or of bools as a tensor; undefined where it is anything else.
at::Tensor list_to_index(PyObject* list) {
  const Py_ssize_t n = PyList_GET_SIZE(list);
  if (n == 0) return {};
  const bool bools = PyBool_Check(PyList_GET_ITEM(list, 0));
  at::Tensor index = at::empty({n}, bools ? at::kBool : at::kLong);
  for (Py_ssize_t i = 0; i < n; ++i) {
    PyObject* const item = PyList_GET_ITEM(list, i);
    if (bools) {
      if (!PyBool_Check(item)) return {};
      static_cast<bool*>(index.mutable_data_ptr())[i] = item == Py_True;
      continue;
    }
    Number number;
    if (!is_int(item) || !to_number(item, number)) return {};
    static_cast<int64_t*>(index.mutable_data_ptr())[i] = number.i;
  }
  return index;
}

// Reads an index item by item: each takes dims of x and leaves some of a view.
class IndexReader {
 public:
  IndexReader(const at::Tensor& x, View& view) : x_(x), view_(view) {}
  // False where torch is to read it, or to refuse it.
  bool read(PyObject* index) {
    if (!PyTuple_Check(index)) {
      if (!take(index, x_.dim() - taken_by(index))) return false;
    } else {
      int64_t taken = 0;
      for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(index); ++i) taken += taken_by(PyTuple_GET_ITEM(index, i));
      for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(index); ++i) {
        if (!take(PyTuple_GET_ITEM(index, i), x_.dim() - taken)) return false;
      }
    }
    keep(x_.dim() - dim_);
    return true;
  }

 private:
  static int64_t taken_by(PyObject* item) {
    if (item == Py_None || item == Py_Ellipsis) return 0;
    const at::Tensor* const tensor = plain_tensor(item);
    return tensor != nullptr && tensor->scalar_type() == at::kBool ? tensor->dim() : 1;
  }
  void keep(int64_t dims) {
    for (; dims > 0; --dims, ++dim_) push(x_.size(dim_), x_.stride(dim_));
  }
  void push(int64_t size, int64_t stride) {
    view_.sizes.push_back(size);
    view_.strides.push_back(stride);
  }
  bool select(int64_t at) {
    const int64_t size = x_.size(dim_);
    if (at < -size || at >= size) return false;
    view_.offset += (at < 0 ? at + size : at) * x_.stride(dim_++);
    return true;
  }
  bool slice(PyObject* item) {
    const auto* const s = reinterpret_cast<PySliceObject*>(item);
    if (!is_int_or_none(s->start) || !is_int_or_none(s->stop) || !is_int_or_none(s->step)) return false;
    Py_ssize_t start, stop, step;
    if (PySlice_Unpack(item, &start, &stop, &step) < 0) {
      PyErr_Clear();
      return false;
    }
    if (step < 1) return false;
    const Py_ssize_t n = PySlice_AdjustIndices(x_.size(dim_), &start, &stop, step);
    view_.offset += start * x_.stride(dim_);
    push(n, x_.stride(dim_++) * step);
    return true;
  }
  bool add(const at::Tensor& index) {
    const int64_t dims = index.scalar_type() == at::kBool ? index.dim() : 1;
    if (dims == 0 || dim_ + dims > x_.dim()) return false;
    view_.entries.push_back({static_cast<int64_t>(view_.sizes.size()), index});
    keep(dims);
    return true;
  }
  // `rest` is what an ellipsis stands for.
  bool take(PyObject* item, int64_t rest) {
    if (rest < 0 || PyBool_Check(item)) return false;
    if (item == Py_None) {
      push(1, 1);
      return true;
    }
    if (item == Py_Ellipsis) {
      if (ellipsis_) return false;
      ellipsis_ = true;
      keep(rest);
      return true;
    }
    if (dim_ >= x_.dim()) return false;
    if (PySlice_Check(item)) return slice(item);
    Number number;
    if (PyLong_Check(item)) return to_number(item, number) && select(number.i);
    if (PyList_CheckExact(item)) {
      if (on_device(x_)) return false; // torch takes it there
      const at::Tensor index = list_to_index(item);
      return index.defined() && add(index);
    }
    const at::Tensor* const index = plain_tensor(item);
    if (index == nullptr || !(is_index(*index) || index->scalar_type() == at::kBool)) return false;
    if (index->dim() > 0 || index->scalar_type() == at::kBool) return add(*index);
    if (device_kernels(*index) != nullptr) return false; // whose memory cannot be read here
    const void* const p = index->const_data_ptr();
    return select(index->scalar_type() == at::kLong ? *static_cast<const int64_t*>(p)
                                                    : *static_cast<const int32_t*>(p));
  }

  const at::Tensor& x_;
  View& view_;
  int64_t dim_ = 0; // of x, that comes next
  bool ellipsis_ = false;
};

// (input, index, value)
Outcome bind_setitem(Op, Slots slot) {
  static const Rule rule{"setitem_", true, &PyExc_IndexError};
  const at::Tensor* const x = writable_tensor(slot[0]);
  DType dtype;
  if (x == nullptr || !to_dtype(x->scalar_type(), dtype)) return Outcome::delegate;
  Value value{slot[2], nullptr};
  Number number;
  if (!to_number(slot[2], number)) {
    value.tensor = plain_tensor(slot[2]);
    if (value.tensor == nullptr) return Outcome::delegate;
  }
  View view;
  view.offset = x->storage_offset();
  if (!IndexReader(*x, view).read(slot[1])) return Outcome::delegate;
  const at::Tensor target = view.of(*x);
  if (!view.entries.empty()) return put_entries(rule, target, dtype, view, value, false, /*strips=*/true);
  Argument source;
  if (value.tensor == nullptr) {
    source.kind = Operand::scalar;
    if (!fill_value(target, dtype, value.object, source.scalar)) return Outcome::delegate;
    return execute_move(target, dtype, source);
  }
  const at::Tensor given = without_leading(*value.tensor, target.dim());
  source.kind = Operand::tensor;
  source.tensor = &given;
  return execute_move(target, dtype, source);
}

} // namespace

bool fill_blocks(const at::Tensor& x, DType dtype, const at::Tensor& mask, Scalar value) {
  if (x.numel() == 0 || !broadcasts_to(mask, x) || share_memory(x, mask)) return false;
  Masked call{};
  call.put = Put::fill;
  call.dtype = dtype;
  call.scalar = value;
  if (!lay_out_mask(call, x, mask, /*in_memory_order=*/true)) return false;
  const int64_t item = item_size(dtype);
  const bool rows = call.row * item >= kLeastRow;
  const bool flat = call.row == 1 && call.step[0] == item && call.mask_step[0] == 1 &&
                    (call.dims == 1 || call.size[0] >= kLeastLine);
  if (device_kernels(x) != nullptr) { // an element at a time is for programs
    if (rows) put_masked_on_device(call, /*available=*/0, /*exactly=*/false, x);
    return rows;
  }
  if (!rows && !flat) return false;
  const CpuKernels& kernels = *active_kernels;
  Path path = Path::mask_blocks;
  parallel(numel(call), call.row, [&](int64_t begin, int64_t end) {
    const Path taken = kernels.put_masked(call, begin, end, 0);
    if (begin == 0) path = taken;
  });
  last_path = {Taken::native, path};
  return true;
}

std::span<const Binding> indexing_bindings() {
  static constexpr Binding bindings[] = {
      {"index_fill_", bind_index_fill, nullptr},
      {"index_copy_", bind_index_copy, nullptr},
      {"index_add_", bind_index_add, nullptr},
      {"index_put_", bind_index_put, nullptr},
      {"masked_scatter_", bind_masked_scatter, nullptr},
      {"scatter_", bind_scatter, nullptr},
      {"scatter_add_", bind_scatter_add, nullptr},
      {"put_", bind_put, nullptr},
      {"setitem_", bind_setitem, nullptr},
  };
  return bindings;
}

} // namespace inplace_ext
