#include "device.h"

#include <ATen/core/Generator.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/sort.h>
#include <c10/core/impl/VirtualGuardImpl.h>

#include <algorithm>
#include <array>
#include <cmath>

namespace inplace_ext {

const CudaKernels* cuda_kernels = nullptr;
const CudaKernels* emulated_kernels = nullptr;
std::array<const CudaOperation*, kMaxAdded> cuda_operations{};

namespace {

// Runs f(kernels) with those that have what the program does.
template <class F>
int with_kernels_of(const Program& program, const F& f) {
  const int own = cuda::own_code(program);
  return own < 0 ? f(*cuda_kernels) : f(*cuda_operations[own - kFirstAdded]);
}

constexpr int kMaxDevices = 64;

// Asked for once for each device; the GIL, or the driver's own lock, keeps two threads from harm: both write
// the same.
const Device& properties_of(int index) {
  static std::array<Device, kMaxDevices> known{};
  TORCH_CHECK(index >= 0 && index < kMaxDevices, "inplace_ext: device ", index, " is one too many");
  Device& device = known[index];
  if (device.processors == 0) {
    Device fresh{};
    const int error = cuda_kernels->device(index, fresh);
    TORCH_CHECK(error == 0, "CUDA error: ", cuda_kernels->message(error));
    device = fresh;
  }
  return device;
}

} // namespace

// The emulated device has a size of its own, and no streams.
Launch::Launch(const at::Tensor& x)
    : kernels_(device_kernels(x)),
      guard_(x.device()),
      device_(on_device(x) ? properties_of(x.device().index()) : Device{}),
      stream_(on_device(x)
                  ? c10::impl::VirtualGuardImpl(x.device().type()).getStream(x.device()).native_handle()
                  : nullptr) {}

void Launch::check(int error) const {
  TORCH_CHECK(error == 0, "CUDA error: ", kernels_->message(error));
}

void Launch::took(Path path) const {
  last_path = {kernels_ == cuda_kernels ? Taken::device : Taken::native, path};
}

void run_on_device(const Program& program, const Space& space, const at::Tensor& x) {
  const Launch launch(x);
  Path path = Path::flat;
  launch.check(with_kernels_of(program, [&](const auto& kernels) {
    return kernels.run(program, space, launch.device(), launch.stream(), path);
  }));
  launch.took(path);
}

void run_list_on_device(const cuda::List& list, const at::Tensor& x) {
  const Launch launch(x);
  launch.check(with_kernels_of(*list.program,
                               [&](const auto& kernels) { return kernels.run_list(list, launch.stream()); }));
  launch.took(Path::listed);
}

void softmax_on_device(const Softmax& call, const at::Tensor& x) {
  const Launch launch(x);
  Path path = Path::rows;
  launch.check(cuda_kernels->softmax(call, launch.device(), launch.stream(), path));
  launch.took(path);
}

void dropout_on_device(const Dropout& call, const at::Tensor& x) {
  const Launch launch(x);
  Path path = Path::draws;
  launch.check(cuda_kernels->dropout(call, launch.device(), launch.stream(), path));
  launch.took(path);
}

namespace {

// Of an element of the dtype, from a number in the form of the moves.
uint64_t bits_of(DType dtype, Scalar value) {
  uint64_t bits = 0;
  const auto set = [&](auto v) { std::memcpy(&bits, &v, sizeof(v)); };
  switch (dtype) {
    case DType::f32:
      set(static_cast<float>(value.d));
      break;
    case DType::f16:
      set(static_cast<at::Half>(static_cast<float>(value.d)));
      break;
    case DType::bf16:
      set(static_cast<at::BFloat16>(static_cast<float>(value.d)));
      break;
    case DType::b8:
      bits = value.i != 0;
      break;
    default:
      set(value.i); // of doubles their bits
  }
  return bits;
}

} // namespace

void put_indexed_on_device(const Indexed& call, bool negative, const at::Tensor& x) {
  const Launch launch(x);
  int64_t points = 1;
  bool differ = call.put == Put::add; // what is put at two points of one place
  for (int d = 0; d < call.dims; ++d) {
    if (call.step[d] != 0) continue;
    points *= call.size[d];
    differ = differ || (call.source != nullptr && call.source_step[d] != 0);
  }
  const auto check = [&](void* places) {
    launch.check(launch->check_indices(call, negative, places, launch.device(), launch.stream()));
  };
  cuda::PointOrder order;
  at::Tensor places, sorted, which;
  if (points > 1 && differ) {
    order.wide = cuda::wide_places(call);
    places = at::empty({points}, at::TensorOptions(x.device()).dtype(order.wide ? at::kLong : at::kInt));
    check(places.mutable_data_ptr());
    std::tie(sorted, which) = at::sort(places, /*stable=*/true, /*dim=*/0, /*descending=*/false);
    order.place = sorted.const_data_ptr();
    order.point = which.const_data_ptr<int64_t>();
  } else {
    check(nullptr);
  }
  const uint64_t bits = call.put == Put::fill ? bits_of(call.dtype, call.scalar) : 0;
  launch.check(launch->put_indexed(call, order, bits, launch.device(), launch.stream()));
  launch.took(call.rows ? Path::index_rows : Path::index_elements);
}

void put_masked_on_device(const Masked& call, int64_t available, bool exactly, const at::Tensor& x) {
  const Launch launch(x);
  at::Tensor counts;
  if (cuda::counts_mask(call))
    counts = at::empty({cuda::kMaskParts}, at::TensorOptions(x.device()).dtype(at::kLong));
  const uint64_t bits = call.put == Put::fill ? bits_of(call.dtype, call.scalar) : 0;
  launch.check(launch->put_masked(call, bits, available, exactly,
                                  counts.defined() ? counts.mutable_data_ptr<int64_t>() : nullptr,
                                  launch.device(), launch.stream()));
  launch.took(call.row > 1                            ? Path::mask_rows
              : call.step[0] == item_size(call.dtype) ? Path::mask_blocks
                                                      : Path::mask_elements);
}

at::Tensor draw_state(c10::Device device, const std::optional<at::Generator>& generator) {
  return at::empty({2}, at::TensorOptions(device).dtype(at::kLong)).random_(generator);
}

bool takes_clipping(const std::vector<at::Tensor>& tensors, double order) {
  if (order != 1 && order != 2 && !(std::isinf(order) && order > 0)) return false;
  DType dtype;
  return !tensors.empty() && std::all_of(tensors.begin(), tensors.end(), [&](const at::Tensor& t) {
    return on_device(t) && same_device(t, tensors[0]) && t.scalar_type() == tensors[0].scalar_type() &&
           to_dtype(t.scalar_type(), dtype) && is_floating(dtype) &&
           t.unsafeGetTensorImpl()->is_non_overlapping_and_dense();
  });
}

at::Tensor clip_on_device(const std::vector<at::Tensor>& tensors, double order, double most, bool look) {
  const at::Tensor& first = tensors[0];
  const Norm norm = order == 2 ? Norm::squares : order == 1 ? Norm::magnitudes : Norm::largest;
  DType dtype;
  to_dtype(first.scalar_type(), dtype);
  const Launch launch(first);

  // Lists that follow each other, each with the number of its first part.
  std::vector<cuda::TensorList> lists;
  std::vector<int64_t> before;
  int64_t parts = 0;
  for (const at::Tensor& t : tensors) {
    if (t.numel() == 0) continue;
    if (lists.empty() || lists.back().tensors == cuda::kListed) {
      lists.emplace_back();
      lists.back().tensors = 0;
      before.push_back(parts);
    }
    cuda::TensorList& list = lists.back();
    const int at = list.tensors++;
    list.data[at] = static_cast<char*>(t.mutable_data_ptr());
    list.count[at] = t.numel();
    list.first[at] = parts - before.back();
    parts += cuda_kernels->norm_parts_of(t.numel());
    list.first[at + 1] = parts - before.back();
  }
  const at::TensorOptions options = first.options().requires_grad(false);
  const at::Tensor sums = at::empty({std::max<int64_t>(parts, 1)}, options.dtype(at::kDouble));
  const at::Tensor total = at::empty({}, options);
  const at::Tensor factor = at::empty({}, options.dtype(dtype == DType::f64 ? at::kDouble : at::kFloat));
  double* const sum = sums.mutable_data_ptr<double>();
  for (size_t i = 0; i < lists.size(); ++i) {
    launch.check(
        cuda_kernels->norm_parts(lists[i], dtype, norm, sum + before[i], launch.device(), launch.stream()));
  }
  launch.check(cuda_kernels->norm_final(sum, parts, dtype, norm, most, total.mutable_data_ptr(),
                                        factor.mutable_data_ptr(), launch.stream()));
  if (look && !std::isfinite(total.item().toDouble())) return {};
  for (const cuda::TensorList& list : lists) {
    launch.check(
        cuda_kernels->scale_by(list, dtype, factor.const_data_ptr(), launch.device(), launch.stream()));
  }
  launch.took(Path::listed);
  return total;
}

} // namespace inplace_ext
