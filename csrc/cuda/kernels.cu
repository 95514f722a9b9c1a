// The table of what the device's kernels offer, the one symbol that this library exports.
#include "dropout.cuh"
#include "index.cuh"
#include "interpret.h"
#include "norm.cuh"
#include "softmax.cuh"
#include "transpose.cuh"

namespace inplace_ext::cuda {
INPLACE_EXT_FLOATING_INTERPRETERS(INPLACE_EXT_ELSEWHERE)
INPLACE_EXT_INTEGER_INTERPRETERS(INPLACE_EXT_ELSEWHERE)
} // namespace inplace_ext::cuda

#ifndef INPLACE_EXT_ARCHITECTURES
#define INPLACE_EXT_ARCHITECTURES ""
#endif

namespace inplace_ext {
namespace {

cudaStream_t stream_of(void* stream) {
  return static_cast<cudaStream_t>(stream);
}

const char* message(int error) {
  return cudaGetErrorString(static_cast<cudaError_t>(error));
}
int properties(int index, Device& device) {
  const auto ask = [&](int& value, cudaDeviceAttr attribute) {
    return cudaDeviceGetAttribute(&value, attribute, index);
  };
  cudaError_t error = ask(device.processors, cudaDevAttrMultiProcessorCount);
  if (error == cudaSuccess) error = ask(device.shared_bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin);
  if (error == cudaSuccess) error = ask(device.threads_per_processor, cudaDevAttrMaxThreadsPerMultiProcessor);
  return error;
}

int run(const Program& program, const Space& space, const Device& device, void* stream, Path& path) {
  return cuda::run(program, space, device, stream_of(stream), path);
}
int run_list(const cuda::List& list, void* stream) {
  return cuda::run_listed(list, stream_of(stream));
}
int softmax(const Softmax& call, const Device& device, void* stream, Path& path) {
  path = cuda::softmax_path(call);
  return cuda::softmax(call, device, stream_of(stream));
}
int dropout(const Dropout& call, const Device& device, void* stream, Path& path) {
  path = cuda::dropout_path(call);
  return cuda::dropout(call, device, stream_of(stream));
}
int norm_parts(const cuda::TensorList& list, DType dtype, Norm norm, double* sums, const Device& device,
               void* stream) {
  return cuda::norm_parts(list, dtype, norm, sums, device, stream_of(stream));
}
int norm_final(const double* sums, int64_t parts, DType dtype, Norm norm, double most, void* total,
               void* factor, void* stream) {
  return cuda::norm_final(sums, parts, dtype, norm, most, total, factor, stream_of(stream));
}
int scale_by(const cuda::TensorList& list, DType dtype, const void* factor, const Device& device,
             void* stream) {
  return cuda::scale_by(list, dtype, factor, device, stream_of(stream));
}
int check_indices(const Indexed& call, bool negative, void* places, const Device& device, void* stream) {
  return cuda::check_indices(call, negative, places, device, stream_of(stream));
}
int put_indexed(const Indexed& call, const cuda::PointOrder& order, uint64_t bits, const Device& device,
                void* stream) {
  return cuda::put_indexed(call, order, bits, device, stream_of(stream));
}
int put_masked(const Masked& call, uint64_t bits, int64_t available, bool exactly, int64_t* counts,
               const Device& device, void* stream) {
  return cuda::put_masked(call, bits, available, exactly, counts, device, stream_of(stream));
}
int turn(const cuda::Turns& turns, const Device& device, void* stream) {
  return cuda::turn(turns, device, stream_of(stream));
}
int swap_squares(const cuda::Matrices& squares, const Device& device, void* stream) {
  return cuda::swap_squares(squares, device, stream_of(stream));
}
int move_cycles(const cuda::Matrices& matrices, int shift, void* saved, const Device& device, void* stream) {
  return cuda::move_cycles(matrices, shift, saved, device, stream_of(stream));
}

} // namespace
} // namespace inplace_ext

extern "C" __attribute__((visibility("default"))) const inplace_ext::CudaKernels* inplace_ext_cuda_kernels() {
  using namespace inplace_ext;
  static const CudaKernels kernels = {
      kCudaAbiVersion,
      table_fingerprint(),
      CUDART_VERSION,
      INPLACE_EXT_ARCHITECTURES,
      message,
      properties,
      cuda::serves,
      run,
      run_list,
      softmax,
      dropout,
      cuda::norm_parts_of,
      norm_parts,
      norm_final,
      scale_by,
      check_indices,
      put_indexed,
      put_masked,
      turn,
      swap_squares,
      move_cycles,
  };
  return &kernels;
}
