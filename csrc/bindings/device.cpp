#include "device.h"

#include <ATen/core/Generator.h>
#include <ATen/ops/empty.h>
#include <c10/core/impl/VirtualGuardImpl.h>

#include <algorithm>
#include <array>
#include <cmath>

namespace inplace_ext {

const CudaKernels* cuda_kernels = nullptr;

namespace {

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

Launch::Launch(const at::Tensor& x)
    : guard_(x.device()),
      device_(properties_of(x.device().index())),
      stream_(c10::impl::VirtualGuardImpl(x.device().type()).getStream(x.device()).native_handle()) {}

void Launch::check(int error) const {
  TORCH_CHECK(error == 0, "CUDA error: ", cuda_kernels->message(error));
}

void run_on_device(const Program& program, const Space& space, const at::Tensor& x) {
  const Launch launch(x);
  Path path = Path::flat;
  launch.check(cuda_kernels->run(program, space, launch.device(), launch.stream(), path));
  last_path = {Taken::device, path};
}

void run_list_on_device(const cuda::List& list, const at::Tensor& x) {
  const Launch launch(x);
  launch.check(cuda_kernels->run_list(list, launch.stream()));
  last_path = {Taken::device, Path::listed};
}

void softmax_on_device(const Softmax& call, const at::Tensor& x) {
  const Launch launch(x);
  Path path = Path::rows;
  launch.check(cuda_kernels->softmax(call, launch.device(), launch.stream(), path));
  last_path = {Taken::device, path};
}

void dropout_on_device(const Dropout& call, const at::Tensor& state, const at::Tensor& x) {
  const Launch launch(x);
  cuda::DropoutSeed seed{call.seed, call.offset};
  if (state.defined()) {
    const int64_t* const words = state.const_data_ptr<int64_t>();
    seed = {0, call.offset, words, words + 1};
  }
  Path path = Path::draws;
  launch.check(cuda_kernels->dropout(call, seed, launch.device(), launch.stream(), path));
  last_path = {Taken::device, path};
}

at::Tensor draw_state(const at::Tensor& x, const std::optional<at::Generator>& generator) {
  return at::empty({2}, x.options().dtype(at::kLong).requires_grad(false)).random_(generator);
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
  last_path = {Taken::device, Path::listed};
  return total;
}

} // namespace inplace_ext
