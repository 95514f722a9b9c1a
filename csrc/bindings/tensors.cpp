#include "tensors.h"

#include <ATen/MemoryOverlap.h>
#include <ATen/PythonTorchFunctionTLS.h>
#include <ATen/core/grad_mode.h>
#include <c10/core/InferenceMode.h>
#include <c10/core/impl/LocalDispatchKeySet.h>
#include <torch/csrc/autograd/python_variable.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <numeric>

#include "device.h"
#include "overlap.h"
#include "parallel.h"
#include "recorder.h"

namespace inplace_ext {

const CpuKernels* active_kernels = nullptr;
const CpuKernels* streaming_kernels = nullptr;
// Where the last level of cache holds what is written it is there when it is read again, and writing past it
// took 1.6 times as long where the lines were in it. Beyond that, reading a line only to overwrite it costs
// as much as writing it.
int64_t streaming_move_bytes = std::max<int64_t>(16 << 20, sysconf(_SC_LEVEL3_CACHE_SIZE));
thread_local LastPath last_path;

namespace {

// Bytes of all tensors together from which a cheap loop over several of them is left to streaming_kernels.
constexpr int64_t kStreamingBytes = 4 << 20;
// An operand that shares memory with the tensor is copied first if it is no larger than this.
constexpr int64_t kOperandBuffer = 1 << 20;

// The dispatch keys of a plain tensor made outside and inside inference mode. Subclasses, wrappers, lazy
// conjugates and negatives, named, sparse, quantized and functional tensors all differ in some key.
struct PlainKeys {
  uint64_t normal, inference;
  PlainKeys(c10::DispatchKey backend, c10::DeviceType device) {
    // Of a tensor without memory: there may be no such device.
    const c10::DispatchKeySet some = shape_only(at::kFloat, device).key_set();
    const auto autograd =
        c10::getAutogradRelatedKeySetFromBackend(c10::DispatchKeySet(backend).highestBackendKey());
    normal = (some | autograd).raw_repr();
    inference = (some - c10::autograd_dispatch_keyset_with_ADInplaceOrView).raw_repr();
  }
};
// Of the tensors that the kernels take; null for others.
const PlainKeys* plain_keys(const at::Tensor& t) {
  static const PlainKeys cpu(c10::DispatchKey::CPU, at::kCPU), cuda(c10::DispatchKey::CUDA, at::kCUDA);
  const PlainKeys* const keys = t.is_cpu() ? &cpu : on_device(t) && cuda_kernels != nullptr ? &cuda : nullptr;
  if (keys == nullptr) return nullptr;
  const uint64_t own = t.unsafeGetTensorImpl()->key_set().raw_repr();
  return own == keys->normal || own == keys->inference ? keys : nullptr;
}

bool has_forward_grad(const at::Tensor& t) {
  auto* meta = t.unsafeGetTensorImpl()->autograd_meta();
  return meta != nullptr && t._fw_grad(/*level=*/0).defined();
}

int cost_of(const Program& program) {
  int cost = 0;
  for (int i = 0; i < program.stages; ++i) {
    if (program.stage[i].code < kOpCodes) cost += op_info(program.stage[i].code).cost;
  }
  return std::max(cost, 1);
}

// The same elements at the same places: any order of the dims will do.
bool same_layout(const at::Tensor& a, const at::Tensor& b) {
  return a.sizes() == b.sizes() && a.strides() == b.strides();
}

char* data_of(const at::Tensor& t, bool mutated) {
  return static_cast<char*>(mutated ? t.mutable_data_ptr() : const_cast<void*>(t.const_data_ptr()));
}

// The common index space of x and the tensors that broadcast to it: dims ordered by the strides of x, so that
// memory is walked in order, and merged where all tensors allow. False if more dims remain than fit.
bool make_space(Space& space, const at::Tensor* const* tensors, const DType* dtypes, const bool* mutated,
                int count, const at::Tensor& x, const Program& program) {
  const int rank = static_cast<int>(x.dim());
  space.dims = 0;
  space.tensors = count;
  const auto stride_of = [&](int t, int64_t d) -> int64_t {
    const at::Tensor& a = *tensors[t];
    const int64_t own = d - (rank - a.dim());
    if (own < 0 || a.size(own) == 1) return 0;
    return a.stride(own) * (space.tensor[t].drawn != nullptr ? 1 : item_size(dtypes[t]));
  };
  for (int t = 0; t < count; ++t) {
    TensorArg& arg = space.tensor[t];
    arg.dtype = dtypes[t];
    arg.mutated = mutated[t];
    arg.drawn = program.drawn(t);
    if (arg.drawn != nullptr) {
      arg.dtype = program.compute;
      arg.data = reinterpret_cast<char*>(&space);
      continue;
    }
    arg.data = data_of(*tensors[t], mutated[t]);
  }
  for (const int64_t d : dims_in_memory(x)) {
    bool merge = space.dims > 0;
    for (int t = 0; t < count && merge; ++t) {
      merge = stride_of(t, d) == space.tensor[t].stride[space.dims - 1] * space.size[space.dims - 1];
    }
    if (merge) {
      space.size[space.dims - 1] *= x.size(d);
      continue;
    }
    if (space.dims == kMaxDims) return false;
    space.size[space.dims] = x.size(d);
    for (int t = 0; t < count; ++t) space.tensor[t].stride[space.dims] = stride_of(t, d);
    ++space.dims;
  }
  if (space.dims == 0 && program.draws > 0) { // what is drawn has a place along some dim
    space.dims = 1;
    space.size[0] = 1;
    for (int t = 0; t < count; ++t) space.tensor[t].stride[0] = item_size(dtypes[t]);
  }
  return true;
}

Outcome buffer_operand(const at::Tensor& operand, at::Tensor& copy, const at::Tensor*& out) {
  if (static_cast<int64_t>(operand.numel() * operand.element_size()) > kOperandBuffer) {
    PyErr_Format(
        PyExc_RuntimeError,
        "unsupported operation: an operand shares memory with input, at other positions, and is too large "
        "to buffer (%lld elements). Pass operand.clone().",
        static_cast<long long>(operand.numel()));
    return Outcome::error;
  }
  copy = operand.clone();
  out = &copy;
  return Outcome::done;
}

// Finds out whether the operand can be read while x is written, and as what. Its elements may lie at the same
// places as those of x, or nowhere in x; else it is copied first if it is small, and refused if not: a copy
// would cost what an in-place operation is there to save.
Outcome take_operand(const at::Tensor& x, DType x_dtype, const at::Tensor& operand, DType& dtype,
                     at::Tensor& copy, const at::Tensor*& out) {
  if (!to_dtype(operand.scalar_type(), dtype) || !broadcasts_to(operand, x)) return Outcome::delegate;
  out = &operand;
  if (!may_share(x, item_size(x_dtype), operand, item_size(dtype))) return Outcome::done;
  // Torch has an error of its own for the simple cases; what it would compute wrongly is seen to here.
  if (at::get_overlap_status(x, operand) == at::MemOverlapStatus::Partial) return Outcome::delegate;
  return buffer_operand(operand, copy, out);
}

void run_space(const Program& program, const Space& space, const at::Tensor& x) {
  if (on_device(x)) {
    last_path = {Taken::device, Path::flat};
    if (space.numel() > 0) run_on_device(program, space, x);
    return;
  }
  const CpuKernels& kernels = *active_kernels;
  Path path = Path::loop;
  parallel(space.numel(), cost_of(program), [&](int64_t begin, int64_t end) {
    const Path taken = kernels.run(program, space, begin, end);
    if (begin == 0) path = taken;
  });
  last_path = {Taken::native, path};
}

Outcome run_on(const Program& program, const at::Tensor* const* tensors, const DType* dtypes,
               const bool* mutated, int count, const at::Tensor& x) {
  Space space;
  if (!make_space(space, tensors, dtypes, mutated, count, x, program)) return Outcome::delegate;
  run_space(program, space, x);
  return Outcome::done;
}

} // namespace

bool runs_as_device(const at::Tensor& x) {
  return on_device(x) || active_kernels->fill == nullptr;
}

at::Tensor shape_only(at::ScalarType dtype, c10::Device device) {
  const auto key = device.is_cuda() ? c10::DispatchKey::CUDA : c10::DispatchKey::CPU;
  return at::detail::make_tensor<c10::TensorImpl>(c10::DispatchKeySet(key), c10::scalarTypeToTypeMeta(dtype),
                                                  device);
}

c10::SmallVector<int64_t, kMaxDims> dims_in_memory(const at::Tensor& x) {
  c10::SmallVector<int64_t, kMaxDims> order;
  const auto sizes = x.sizes(), strides = x.strides();
  for (int64_t d = x.dim() - 1; d >= 0; --d) {
    if (sizes[d] == 1) continue;
    auto at = order.end();
    while (at != order.begin() && strides[*(at - 1)] > strides[d]) --at;
    order.insert(at, d);
  }
  return order;
}

bool broadcasts_to(const at::Tensor& t, const at::Tensor& x) {
  const auto from = t.sizes(), to = x.sizes();
  if (from.size() > to.size() || !same_device(t, x)) return false;
  for (size_t i = 1; i <= from.size(); ++i) {
    const int64_t size = from[from.size() - i];
    if (size != 1 && size != to[to.size() - i]) return false;
  }
  return true;
}

bool to_dtype(at::ScalarType type, DType& out) {
  switch (type) {
    case at::kFloat:
      out = DType::f32;
      return true;
    case at::kDouble:
      out = DType::f64;
      return true;
    case at::kHalf:
      out = DType::f16;
      return true;
    case at::kBFloat16:
      out = DType::bf16;
      return true;
    case at::kByte:
      out = DType::u8;
      return true;
    case at::kChar:
      out = DType::i8;
      return true;
    case at::kShort:
      out = DType::i16;
      return true;
    case at::kInt:
      out = DType::i32;
      return true;
    case at::kLong:
      out = DType::i64;
      return true;
    case at::kBool:
      out = DType::b8;
      return true;
    default:
      return false;
  }
}

bool to_number(PyObject* object, Number& out) {
  if (PyFloat_Check(object)) {
    out.category = Number::floating;
    out.d = PyFloat_AS_DOUBLE(object);
    return true;
  }
  if (PyBool_Check(object)) {
    out.category = Number::boolean;
    out.i = object == Py_True;
    return true;
  }
  if (PyLong_Check(object)) {
    int overflow = 0;
    out.category = Number::integer;
    out.i = PyLong_AsLongLongAndOverflow(object, &overflow);
    return overflow == 0;
  }
  return false;
}

bool no_modes() {
  if (at::impl::torch_function_mode_enabled()) return false;
  const auto tls = c10::impl::tls_local_dispatch_key_set();
  return (tls.included_ - c10::default_included_set).empty();
}

const at::Tensor* plain_tensor(PyObject* object) {
  if (!THPVariable_CheckExact(object)) return nullptr;
  const at::Tensor& t = THPVariable_Unpack(object);
  if (plain_keys(t) == nullptr) return nullptr;
  if (t.unsafeGetTensorImpl()->autograd_meta() != nullptr) {
    if (at::GradMode::is_enabled() && t.requires_grad()) return nullptr;
    if (has_forward_grad(t)) return nullptr;
  }
  return &t;
}

const at::Tensor* writable_tensor(PyObject* object) {
  const at::Tensor* t = plain_tensor(object);
  if (t == nullptr) return nullptr;
  c10::TensorImpl* impl = t->unsafeGetTensorImpl();
  if (t->is_inference() && !c10::InferenceMode::is_enabled()) return nullptr;
  if (!impl->is_non_overlapping_and_dense() && may_overlap_itself(*t)) return nullptr;
  return t;
}

void bump_version(const at::Tensor& x) {
  c10::TensorImpl* impl = x.unsafeGetTensorImpl();
  if (!impl->is_inference()) impl->bump_version();
}

Outcome execute(Op op, const at::Tensor& x, DType x_dtype, DType compute, Argument b, Argument c, Scalar d) {
  if (recorder != nullptr) return recorder->record(op, x, x_dtype, compute, b, c, d);
  const CpuKernels& kernels = *active_kernels;
  const int64_t n = x.numel();
  Argument* const arguments[2] = {&b, &c};
  // The plain case first: one loop over memory.
  bool flat = compute_dtype(x_dtype) == compute && !runs_as_device(x) &&
              x.unsafeGetTensorImpl()->is_non_overlapping_and_dense();
  int variant = 0;
  const void* pointer[2] = {};
  const Scalar scalar[3] = {b.scalar, c.scalar, d};
  char* const data = static_cast<char*>(flat ? x.mutable_data_ptr() : nullptr);
  const OpInfo& info = op_info(op);
  const int item = item_size(x_dtype);
  const DType operand_dtype[2] = {info.form == Form::kMasked ? DType::b8 : x_dtype, x_dtype};
  const int b_item = item_size(operand_dtype[0]);
  for (int i = 0; i < 2 && flat; ++i) {
    const Argument& a = *arguments[i];
    if (a.kind == Operand::scalar) {
      variant |= i == 0 ? kScalarB : kScalarC;
    } else if (a.kind == Operand::tensor) {
      DType dtype;
      flat = a.tensor->is_cpu() && same_layout(x, *a.tensor) && to_dtype(a.tensor->scalar_type(), dtype) &&
             dtype == operand_dtype[i];
      if (!flat) break;
      const char* p = static_cast<const char*>(a.tensor->const_data_ptr());
      // The same memory, or none in common.
      flat = (p == data && dtype == x_dtype) || p + n * item_size(dtype) <= data || data + n * item <= p;
      pointer[i] = p;
    }
  }
  if (flat) {
    const int cost = info.cost;
    const int tensors = 1 + (pointer[0] != nullptr) + (pointer[1] != nullptr);
    const auto loop_of = [&](const CpuKernels& from) {
      return from.loop[static_cast<int>(op)][static_cast<int>(x_dtype)][variant];
    };
    const bool streaming = tensors > 1 && cost == 1 && tensors * n * item >= kStreamingBytes &&
                           streaming_kernels != active_kernels && loop_of(*streaming_kernels) != nullptr;
    const LoopFn loop = loop_of(streaming ? *streaming_kernels : kernels);
    if (loop == nullptr) return Outcome::delegate;
    const char* pb = static_cast<const char*>(pointer[0]);
    const char* pc = static_cast<const char*>(pointer[1]);
    parallel(n, cost, [&](int64_t begin, int64_t end) {
      const int64_t offset = begin * item;
      loop(data + offset, pb ? pb + begin * b_item : nullptr, pc ? pc + offset : nullptr, scalar,
           end - begin);
    });
    last_path = {Taken::native, streaming ? Path::streaming : Path::loop};
    return Outcome::done;
  }

  const at::Tensor* tensors[3] = {&x};
  DType dtypes[3] = {x_dtype};
  const bool mutated[3] = {true};
  at::Tensor copies[2];
  Program program;
  program.compute = compute;
  program.stages = 3;
  program.stage[0] = {kLoad, Operand::tensor, Operand::none, 0, 0, 0};
  program.stage[1] = {static_cast<uint16_t>(op), b.kind, c.kind, 0, 1, 2};
  program.stage[2] = {kStore, Operand::tensor, Operand::none, 0, 0, 0};
  program.scalar[2] = d;
  int count = 1;
  for (int i = 0; i < 2; ++i) {
    Argument& a = *arguments[i];
    program.scalar[i] = a.scalar;
    if (a.kind != Operand::tensor) continue;
    const Outcome taken = take_operand(x, x_dtype, *a.tensor, dtypes[count], copies[i], tensors[count]);
    if (taken != Outcome::done) return taken;
    (i == 0 ? program.stage[1].b : program.stage[1].c) = static_cast<uint8_t>(count);
    ++count;
  }
  return run_on(program, tensors, dtypes, mutated, count, x);
}

Outcome execute_move(const at::Tensor& x, DType x_dtype, Argument source) {
  if (recorder != nullptr) return recorder->record_move(x, x_dtype, source);
  const CpuKernels& kernels = *active_kernels;
  const int64_t n = x.numel();
  const int item = item_size(x_dtype);
  const bool dense = !runs_as_device(x) && x.unsafeGetTensorImpl()->is_non_overlapping_and_dense();
  const bool stream = n * item >= streaming_move_bytes;
  const LastPath moved = {Taken::native, stream ? Path::streaming : Path::move};
  if (source.kind == Operand::scalar) {
    if (dense) {
      char* const data = static_cast<char*>(x.mutable_data_ptr());
      parallel(n, 1, [&](int64_t begin, int64_t end) {
        kernels.fill(data + begin * item, x_dtype, source.scalar, end - begin, stream);
      });
      last_path = moved;
      return Outcome::done;
    }
  } else if (dense && source.tensor->is_cpu() && same_layout(x, *source.tensor)) {
    DType dtype;
    if (!to_dtype(source.tensor->scalar_type(), dtype)) return Outcome::delegate;
    char* const data = static_cast<char*>(x.mutable_data_ptr());
    const char* const from = static_cast<const char*>(source.tensor->const_data_ptr());
    const int from_item = item_size(dtype);
    if (from == data && dtype == x_dtype) {
      last_path = {Taken::native, Path::move};
      return Outcome::done;
    }
    if (from + n * from_item <= data || data + n * item <= from) {
      parallel(n, 1, [&](int64_t begin, int64_t end) {
        kernels.convert(data + begin * item, x_dtype, from + begin * from_item, dtype, end - begin, stream);
      });
      last_path = moved;
      return Outcome::done;
    }
  }
  const at::Tensor* tensors[2] = {&x, source.tensor};
  DType dtypes[2] = {x_dtype, x_dtype};
  const bool mutated[2] = {true, false};
  Program program;
  program.compute = compute_dtype(x_dtype);
  program.stages = 2;
  program.stage[0] = {
      kLoad, source.kind, Operand::none, static_cast<uint8_t>(source.kind == Operand::tensor), 0, 0};
  program.stage[1] = {kStore, Operand::tensor, Operand::none, 0, 0, 0};
  program.scalar[0] = source.scalar;
  at::Tensor copy;
  int count = 1;
  if (source.kind == Operand::tensor) {
    const Outcome taken = take_operand(x, x_dtype, *source.tensor, dtypes[1], copy, tensors[1]);
    if (taken != Outcome::done) return taken;
    count = 2;
  }
  return run_on(program, tensors, dtypes, mutated, count, x);
}

Outcome take_unshared(const at::Tensor& x, const at::Tensor& operand, bool torch_refuses, at::Tensor& copy,
                      const at::Tensor*& out) {
  out = &operand;
  const bool same = x.numel() != 0 && operand.numel() != 0 && x.const_data_ptr() == operand.const_data_ptr();
  if (!same && !share_memory(x, operand)) return Outcome::done;
  const at::MemOverlapStatus status = at::get_overlap_status(x, operand);
  const bool plain = status == at::MemOverlapStatus::Full || status == at::MemOverlapStatus::Partial;
  return torch_refuses && plain ? Outcome::delegate : buffer_operand(operand, copy, out);
}

bool share_memory(const at::Tensor& a, const at::Tensor& b) {
  return may_share(a, static_cast<int>(a.element_size()), b, static_cast<int>(b.element_size()));
}

Outcome execute_pass(const Program& program, const at::Tensor* const* tensors, const bool* mutated,
                     int count) {
  const at::Tensor* x = nullptr;
  DType dtypes[kMaxTensors];
  for (int t = 0; t < count; ++t) {
    if (mutated[t] && x == nullptr) x = tensors[t];
    if (!to_dtype(tensors[t]->scalar_type(), dtypes[t])) return Outcome::delegate;
  }
  return run_on(program, tensors, dtypes, mutated, count, *x);
}

namespace {

const at::Tensor& shape_of(const Work& w) {
  int t = 0;
  while (!w.mutated[t]) ++t;
  return *w.tensors[t];
}
void space_of(const Work& w, Space& space) {
  DType dtypes[kMaxTensors];
  for (int t = 0; t < w.count; ++t) to_dtype(w.tensors[t]->scalar_type(), dtypes[t]);
  make_space(space, w.tensors, dtypes, w.mutated, w.count, shape_of(w), *w.program);
}

// Whether an item of a list: dense tensors that lie alike.
bool fits_list(const Work& w) {
  const at::Tensor& x = shape_of(w);
  if (!cuda::fits_list(*w.program, x.numel()) || !x.unsafeGetTensorImpl()->is_non_overlapping_and_dense())
    return false;
  return std::all_of(w.tensors, w.tensors + w.count, [&](const at::Tensor* t) { return same_layout(*t, x); });
}
// Whether two items can be of one list.
bool alike(const Work& a, const Work& b) {
  if (a.program != b.program || a.count != b.count || !same_device(shape_of(a), shape_of(b))) return false;
  for (int t = 0; t < a.count; ++t) {
    if (a.tensors[t]->scalar_type() != b.tensors[t]->scalar_type()) return false;
  }
  return true;
}

// Work of which some is on a device: lists as long as they get, and one launch for each of the others.
void execute_lists(const Work* work, int64_t count, bool concurrently) {
  std::vector<uint64_t> words;
  for (int64_t i = 0; i < count;) {
    const Work& first = work[i];
    const at::Tensor& x = shape_of(first);
    int64_t end = i;
    words.clear();
    while (concurrently && end < count && on_device(x) && alike(first, work[end]) && fits_list(work[end])) {
      const Work& w = work[end++];
      for (int t = 0; t < w.count; ++t)
        words.push_back(reinterpret_cast<uint64_t>(data_of(*w.tensors[t], w.mutated[t])));
      words.push_back(static_cast<uint64_t>(shape_of(w).numel()));
    }
    if (end > i + 1) {
      DType dtypes[kMaxTensors];
      for (int t = 0; t < first.count; ++t) to_dtype(first.tensors[t]->scalar_type(), dtypes[t]);
      run_list_on_device({first.program, first.count, dtypes, end - i, words.data()}, x);
      i = end;
      continue;
    }
    Space space;
    space_of(first, space);
    run_space(*first.program, space, x);
    ++i;
  }
}

// Runs work[i] whole, and what follows it up to `end` and differs in nothing but where its tensors lie: what
// is found out about the first holds for all. Returns where the next begins.
int64_t run_alike(const Work* work, int64_t i, int64_t end, Space& space, std::vector<char*>& data,
                  Path& path) {
  const Work& first = work[i];
  const auto add = [&](const Work& w) {
    for (int t = 0; t < w.count; ++t) data.push_back(data_of(*w.tensors[t], w.mutated[t]));
  };
  const auto lies_alike = [&](const Work& w) {
    return std::equal(w.tensors, w.tensors + w.count, first.tensors,
                      [](const at::Tensor* a, const at::Tensor* b) { return same_layout(*a, *b); });
  };
  data.clear();
  int64_t next = i + 1;
  if (active_kernels->run_each != nullptr && first.program->draws == 0) { // draws are in no memory
    add(first);
    for (; next < end && alike(first, work[next]) && lies_alike(work[next]); ++next) add(work[next]);
  }
  space_of(first, space);
  const int64_t n = space.numel();
  if (n > 0) {
    path = next == i + 1 ? active_kernels->run(*first.program, space, 0, n)
                         : active_kernels->run_each(*first.program, space, data.data(), next - i);
  }
  return next;
}

} // namespace

void execute_all(const Work* work, int64_t count, bool concurrently) {
  if (std::any_of(work, work + count, [](const Work& w) { return on_device(shape_of(w)); }))
    return execute_lists(work, count, concurrently);
  const CpuKernels& kernels = *active_kernels;
  // Where the work of each begins, in element-costs.
  std::vector<int64_t> begin(count + 1, 0);
  for (int64_t i = 0; i < count; ++i)
    begin[i + 1] = begin[i] + shape_of(work[i]).numel() * cost_of(*work[i].program);
  const int64_t total = begin[count];
  if (total == 0) return;
  const int64_t threads = std::min<int64_t>(at::get_num_threads(), std::max<int64_t>(total / kGrain, 1));
  Path path = Path::program;
  PyThreadState* const state = total > kKeepGil && PyGILState_Check() ? PyEval_SaveThread() : nullptr;
  const auto cost = [&](int64_t i) { return begin[i + 1] - begin[i]; };
  if (threads <= 1 || !concurrently) {
    Space space;
    std::vector<char*> data;
    for (int64_t i = 0; i < count;) {
      int64_t end = i;
      while (end < count && (threads <= 1 || cost(end) <= kGrain)) ++end;
      while (i < end) i = run_alike(work, i, end, space, data, path);
      if (i == count) break;
      space_of(work[i], space);
      const auto run = [&](int64_t first, int64_t last) {
        const Path taken = kernels.run(*work[i].program, space, first, last);
        if (first == 0) path = taken;
      };
      at::parallel_for(0, space.numel(), std::max<int64_t>(kGrain / cost_of(*work[i].program), 1), run);
      ++i;
    }
  } else {
    at::parallel_for(0, threads, 1, [&](int64_t first, int64_t last) {
      Space space;
      std::vector<char*> data;
      Path taken{};
      // Both sides of a border come from the same formula.
      const int64_t from = total / threads * first + total % threads * first / threads;
      const int64_t to = total / threads * last + total % threads * last / threads;
      int64_t i = std::upper_bound(begin.begin(), begin.end(), from) - begin.begin() - 1;
      // Of those at the borders a part may be another thread's.
      const int64_t end = std::upper_bound(begin.begin(), begin.end(), to) - begin.begin() - 1;
      while (i < count && begin[i] < to) {
        if (begin[i] >= from && i < end) {
          i = run_alike(work, i, end, space, data, taken);
        } else {
          const int64_t each = cost_of(*work[i].program), n = cost(i) / each;
          const int64_t a = std::max<int64_t>(0, (from - begin[i]) / each);
          const int64_t b = to >= begin[i + 1] ? n : (to - begin[i]) / each;
          if (a < b) {
            space_of(work[i], space);
            taken = kernels.run(*work[i].program, space, a, b);
          }
          ++i;
        }
      }
      if (first == 0) path = taken;
    });
  }
  if (state != nullptr) PyEval_RestoreThread(state);
  last_path = {Taken::native, path};
}

Outcome execute_program(const Program& program, const at::Tensor* const* tensors, const bool* mutated,
                        int count) {
  const at::Tensor* x = nullptr;
  for (int t = 0; t < count; ++t) {
    DType dtype;
    if (mutated[t] && x == nullptr) x = tensors[t];
    if (!to_dtype(tensors[t]->scalar_type(), dtype)) {
      PyErr_Format(PyExc_TypeError, "program: tensor %d has a dtype without kernels", t);
      return Outcome::error;
    }
  }
  if (x == nullptr) {
    PyErr_SetString(PyExc_ValueError, "program: no tensor is written");
    return Outcome::error;
  }
  for (int t = 0; t < count; ++t) {
    if (mutated[t] ? tensors[t]->sizes() != x->sizes() : !broadcasts_to(*tensors[t], *x)) {
      PyErr_Format(PyExc_RuntimeError,
                   "program: the shape of tensor %d does not fit the shape of the written tensors", t);
      return Outcome::error;
    }
    for (int u = 0; u < t; ++u) {
      if ((mutated[t] || mutated[u]) && share_memory(*tensors[u], *tensors[t])) {
        PyErr_Format(PyExc_RuntimeError, "program: tensors %d and %d share memory at different positions", u,
                     t);
        return Outcome::error;
      }
    }
  }
  const Outcome outcome = execute_pass(program, tensors, mutated, count);
  if (outcome == Outcome::done) {
    for (int t = 0; t < count; ++t) {
      if (mutated[t]) bump_version(*tensors[t]);
    }
  }
  return outcome;
}

bool holds_zero(const at::Tensor& t, DType dtype) {
  const int item = item_size(dtype);
  const char* p = static_cast<const char*>(t.const_data_ptr());
  if (t.unsafeGetTensorImpl()->is_non_overlapping_and_dense())
    return active_kernels->contains_zero(p, dtype, t.numel());
  // Row by row of the last dim.
  const int rank = static_cast<int>(t.dim());
  const int64_t row = t.size(rank - 1), step = t.stride(rank - 1) * item;
  const int64_t rows = row == 0 ? 0 : t.numel() / row;
  for (int64_t r = 0; r < rows; ++r) {
    int64_t offset = 0, rest = r;
    for (int d = rank - 2; d >= 0; --d) {
      offset += rest % t.size(d) * t.stride(d) * item;
      rest /= t.size(d);
    }
    if (step == item) {
      if (active_kernels->contains_zero(p + offset, dtype, row)) return true;
    } else {
      for (int64_t i = 0; i < row; ++i) {
        if (active_kernels->contains_zero(p + offset + i * step, dtype, 1)) return true;
      }
    }
  }
  return false;
}

} // namespace inplace_ext
