// An operation of one's own on the emulated device: follows the source that jit.py writes for CUDA in a
// library that is linked with that of the device.
#pragma once
#include "operation.cuh"
#include "programs.h"

extern "C" __attribute__((visibility("default"))) const inplace_ext::OpKernels* inplace_ext_operation() {
  using namespace inplace_ext;
  static const OwnOperation operation = [] {
    const OpInfo& info = inplace_ext_cuda_operation()->info;
    OwnOperation made{};
    made.abi = kAbiVersion, made.table = table_fingerprint(), made.capability = "emulated", made.info = info;
    for (int t = 0; t < kDTypes; ++t) {
      if (has_form(info.types, static_cast<DType>(t)))
        made.loop[t][0] = [](void*, const void*, const void*, const Scalar*, int64_t) { __builtin_trap(); };
    }
    made.run = [](const Program& program, const Space& space, const Device& on, Path& path, bool wide) {
      return cuda::run(program, space, on, nullptr, path, wide);
    };
    made.run_list = [](const cuda::List& list) { return cuda::run_listed(list, nullptr); };
    return made;
  }();
  return &operation;
}
