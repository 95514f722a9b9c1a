// Tensors on CUDA devices: the kernels, and the one way to launch them. Devices and streams come by c10's
// interfaces for any device, so that this compiles without CUDA, and the module loads without its libraries.
#pragma once
#include <ATen/core/Tensor.h>
#include <c10/core/DeviceGuard.h>
#include <c10/core/Stream.h>

#include <array>

#include "inplace_ext/cuda.h"
#include "tensors.h"

namespace inplace_ext {

// Null where the library of the device's kernels is not loaded.
extern const CudaKernels* cuda_kernels;
// Those of the emulated device of the tests, on tensors of the CPU, which come with its kernels for programs.
extern const CudaKernels* emulated_kernels;
// Of the operations that were added, by code; null where there are none.
extern std::array<const CudaOperation*, kMaxAdded> cuda_operations;

inline bool on_device(const at::Tensor& t) {
  return t.is_cuda();
}
// Those of the emulated device while it stands for the CPU, else null.
inline const CudaKernels* active_emulation() {
  return active_kernels->put_indexed == nullptr ? emulated_kernels : nullptr;
}
// The kernels of the device that x is on, emulated or not; null where it is for those of the CPU.
inline const CudaKernels* device_kernels(const at::Tensor& x) {
  return on_device(x) ? cuda_kernels : active_emulation();
}
inline bool same_device(const at::Tensor& a, const at::Tensor& b) {
  return a.device() == b.device();
}

// What a launch goes to: the device of a tensor, which is the current one meanwhile, and its current stream.
// Nothing waits for what has been launched.
class Launch {
 public:
  explicit Launch(const at::Tensor& x);
  const CudaKernels* operator->() const {
    return kernels_;
  }
  const Device& device() const {
    return device_;
  }
  void* stream() const {
    return stream_;
  }
  // Raises what the launch came back with.
  void check(int error) const;
  // Notes the path of a call.
  void took(Path path) const;

 private:
  const CudaKernels* kernels_;
  c10::DeviceGuard guard_;
  Device device_;
  void* stream_;
};

// Runs a program on a space that has elements.
void run_on_device(const Program& program, const Space& space, const at::Tensor& x);
void run_list_on_device(const cuda::List& list, const at::Tensor& x);
void softmax_on_device(const Softmax& call, const at::Tensor& x);
void dropout_on_device(const Dropout& call, const at::Tensor& x);
// What Draws::state points to: seed and offset in memory of the device, from a generator of it, the default
// one where none is given. Good while a CUDA graph is captured, of which each replay draws others.
at::Tensor draw_state(c10::Device device, const std::optional<at::Generator>& generator);
// Where an index is out of range, or `available` elements of the source are not what the mask asks for, the
// device ends the work, before anything is written. Nothing waits for that.
void put_indexed_on_device(const Indexed& call, bool negative, const at::Tensor& x);
void put_masked_on_device(const Masked& call, int64_t available, bool exactly, const at::Tensor& x);

// Whether clip_on_device() takes tensors and order.
bool takes_clipping(const std::vector<at::Tensor>& tensors, double order);
// Scales the tensors, all on one device, so that their norm together is at most `most`; the norm as a tensor,
// or with `look` an undefined one where it is not finite, nothing being scaled then. Looking waits for the
// device.
at::Tensor clip_on_device(const std::vector<at::Tensor>& tensors, double order, double most, bool look);

} // namespace inplace_ext
