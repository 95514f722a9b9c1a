#include "layout.h"

#include <c10/core/MemoryFormat.h>
#include <c10/util/strides.h>

#include <algorithm>
#include <memory>
#include <optional>
#include <stdexcept>

#include "device.h"
#include "libraries.h"
#include "overlap.h"
#include "parallel.h"
#include "tensors.h"
#include "transpose.h"

namespace inplace_ext {
namespace {

// One dim of the tensor: elements and bytes from each to the next.
struct Dim {
  int64_t size, step;
};

// The work of a call: dims of more than one element, the outermost first, in the order in which they lie and
// in the order in which they are to lie.
struct Layout {
  std::vector<Dim> dims;  // in memory
  std::vector<int> order; // order[i] is to be dim i
  int64_t item;

  int64_t bytes(size_t first) const {
    int64_t n = item;
    for (size_t d = first; d < dims.size(); ++d) n *= dims[d].size;
    return n;
  }
  bool has_gaps() const {
    int64_t step = item;
    for (size_t d = dims.size(); d-- > 0; step *= dims[d].size) {
      if (dims[d].step != step) return true;
    }
    return false;
  }
  bool stays(size_t d) const {
    return order[d] == static_cast<int>(d);
  }
  // The dims before this one stay where they are.
  size_t first_moved() const {
    size_t d = 0;
    while (d < order.size() && stays(d)) ++d;
    return d;
  }
  // Dims from there to the last one that does not stay.
  size_t moved() const {
    size_t end = order.size();
    while (end > 0 && stays(end - 1)) --end;
    return end == 0 ? 0 : end - first_moved();
  }
};

Layout layout_of(const at::Tensor& x, at::IntArrayRef strides) {
  Layout layout;
  layout.item = static_cast<int64_t>(x.element_size());
  auto lying = dims_in_memory(x);
  std::reverse(lying.begin(), lying.end());
  std::vector<int> wanted(lying.size());
  for (size_t d = 0; d < lying.size(); ++d) {
    layout.dims.push_back({x.size(lying[d]), x.stride(lying[d]) * layout.item});
    wanted[d] = static_cast<int>(d);
  }
  std::sort(wanted.begin(), wanted.end(),
            [&](int a, int b) { return strides[lying[a]] > strides[lying[b]]; });
  layout.order = std::move(wanted);
  return layout;
}

// The same with dims that stay neighbours merged, of a tensor without gaps.
Layout merged(const Layout& layout) {
  Layout result{{}, {}, layout.item};
  const int dims = static_cast<int>(layout.dims.size());
  std::vector<int> place(dims), group(dims);
  for (int i = 0; i < dims; ++i) place[layout.order[i]] = i;
  for (int d = 0; d < dims; ++d) {
    const bool joined = d > 0 && place[d] == place[d - 1] + 1;
    if (joined) {
      result.dims.back().size *= layout.dims[d].size;
    } else {
      result.dims.push_back(layout.dims[d]);
    }
    group[d] = static_cast<int>(result.dims.size()) - 1;
  }
  for (int i = 0; i < dims; ++i) {
    if (i == 0 || group[layout.order[i]] != group[layout.order[i - 1]])
      result.order.push_back(group[layout.order[i]]);
  }
  return result;
}

// The tensor in one order of its dims; units of what lies from dim `first` on.
Gather gather_of(const Layout& layout, const std::vector<int>& order, size_t first) {
  Gather g{{}, {}, layout.bytes(first) / layout.item};
  for (size_t i = order.size(); i-- > 0;) {
    const Dim& d = layout.dims[order[i]];
    if (!g.sizes.empty() && d.step == g.steps.back() * g.sizes.back()) {
      g.sizes.back() *= d.size;
    } else {
      g.sizes.push_back(d.size);
      g.steps.push_back(d.step);
    }
  }
  return g;
}

// Of data of so many bytes, on the device that is to be launched to, if any.
std::unique_ptr<Transposer> transposer_for(int64_t bytes, const at::TensorOptions& options,
                                           const std::optional<Launch>& launch) {
  if (launch) {
    return std::make_unique<DeviceTransposer>(*cuda_kernels, launch->device(), launch->stream(), bytes,
                                              options);
  }
  if (const CudaKernels* const emulated = active_emulation()) {
    Device device{};
    emulated->device(0, device);
    return std::make_unique<DeviceTransposer>(*emulated, device, nullptr, bytes, options);
  }
  return std::make_unique<HostTransposer>(*active_kernels);
}

// A device reads no element that is not aligned, and its kernels count the blocks of a matrix in 32 bits.
bool fits_device(const at::Tensor& x) {
  const auto item = static_cast<uintptr_t>(x.element_size());
  return reinterpret_cast<uintptr_t>(x.const_data_ptr()) % std::min<uintptr_t>(item, 8) == 0 &&
         x.nbytes() / cuda::kWholeBytes <= UINT32_MAX;
}

} // namespace

int64_t scratch_bytes(int64_t batch, int64_t rows, int64_t columns, int64_t bytes) {
  const Swap swap{batch, rows, columns, bytes};
  return transposer_for(batch * swap.matrix_bytes(), {}, {})->scratch_bytes(swap);
}

bool rearrange(const at::Tensor& x, bool channels_last) {
  const int64_t item = static_cast<int64_t>(x.element_size());
  if (active_kernels == nullptr || x.dim() >= kMaxDims || item > 16 || (item & (item - 1)) != 0 ||
      ((on_device(x) || active_emulation() != nullptr) && !fits_device(x)))
    return false;
  std::vector<int64_t> strides;
  if (channels_last) {
    strides = x.dim() == 4 ? c10::get_channels_last_strides_2d(x.sizes())
                           : c10::get_channels_last_strides_3d(x.sizes());
  } else {
    const auto contiguous = c10::contiguous_strides(x.sizes());
    strides.assign(contiguous.begin(), contiguous.end());
  }
  if (may_overlap_itself(x)) {
    throw std::runtime_error(
        "unsupported operation: more than one element of the written-to tensor refers to a single memory "
        "location. Please clone() the tensor before performing the operation.");
  }
  const Layout layout = layout_of(x, strides);
  c10::TensorImpl* const impl = x.unsafeGetTensorImpl();
  if (!impl->allow_tensor_metadata_change())
    throw std::runtime_error(
        "set_sizes_and_strides is not allowed on a Tensor created from .data or .detach()");
  const size_t first = layout.first_moved();
  const bool gaps = layout.has_gaps(), moves = first < layout.order.size();
  LastPath taken{on_device(x) ? Taken::device : Taken::native, Path::gathered};
  if (x.numel() > 0 && (gaps || moves)) {
    std::vector<int> lying(layout.dims.size());
    for (size_t d = 0; d < lying.size(); ++d) lying[d] = static_cast<int>(d);
    const Layout joined = merged(layout);
    std::optional<Launch> launch;
    if (on_device(x)) launch.emplace(x);
    const auto transposer = transposer_for(layout.bytes(0), x.options(), launch);
    // At once where what changes places fits the buffer; of two dims a transposition does that better.
    const bool at_once = (gaps || joined.moved() > 2) && layout.bytes(first) <= transposer->panel();
    Gather gather;
    std::vector<Swap> swaps;
    if (at_once) {
      gather = gather_of(layout, layout.order, first);
    } else {
      if (gaps) gather = gather_of(layout, lying, layout.dims.size());
      if (moves) {
        std::vector<int64_t> sizes;
        for (const Dim& d : joined.dims) sizes.push_back(d.size);
        swaps = transposer->plan_swaps(sizes, joined.order, item);
      }
    }
    char* const data = static_cast<char*>(x.mutable_data_ptr());
    PyThreadState* const state = PyGILState_Check() ? PyEval_SaveThread() : nullptr;
    try {
      transposer->run(data, at_once || gaps ? &gather : nullptr, swaps, item);
    } catch (...) {
      if (state != nullptr) PyEval_RestoreThread(state);
      throw;
    }
    if (state != nullptr) PyEval_RestoreThread(state);
    taken.path = transposer->path();
  }
  last_path = taken;
  impl->set_sizes_and_strides(x.sizes().vec(), strides);
  bump_version(x);
  return true;
}

} // namespace inplace_ext
