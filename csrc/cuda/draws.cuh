// Where a kernel's random numbers begin.
#pragma once
#include "device.cuh"
#include "inplace_ext/program.h"

namespace inplace_ext::cuda {

// The same draws with seed and offset by value.
IE_DEVICE Draws resolved(const Draws& draws) {
  if (draws.state == nullptr) return {draws.seed, draws.offset, nullptr};
  return {static_cast<uint64_t>(load_global(draws.state)),
          draws.offset + static_cast<uint64_t>(load_global(draws.state + 1)), nullptr};
}

} // namespace inplace_ext::cuda
