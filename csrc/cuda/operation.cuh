// A library of a single operation of one's own for the device: the interpreters with that operation beside
// the table's. inplace_ext/jit.py writes the source, which defines INPLACE_EXT_OWN (arguments.h) and then
// includes this.
#pragma once
#include "interpret.h"

static_assert(inplace_ext::cuda::kHasOwn);

extern "C" __attribute__((visibility("default"))) const inplace_ext::CudaOperation*
inplace_ext_cuda_operation() {
  using namespace inplace_ext;
  static const CudaOperation operation = {
      kCudaAbiVersion,
      table_fingerprint(),
      cuda::kOwn[0],
      [](const Program& program, const Space& space, const Device& device, void* stream, Path& path) -> int {
        return cuda::run(program, space, device, static_cast<cudaStream_t>(stream), path);
      },
      [](const cuda::List& list, void* stream) -> int {
        return cuda::run_listed(list, static_cast<cudaStream_t>(stream));
      },
  };
  return &operation;
}
