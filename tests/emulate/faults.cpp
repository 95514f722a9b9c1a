// Kernels with a fault each, which the emulation must report.
#include <cstdio>
#include <stdexcept>
#include <string_view>

#include "control.h"
#include "device.cuh"

namespace inplace_ext {
namespace faults { // with names that the reports can give

constexpr int kThreads = 64;

// Each thread doubles what its neighbour has put into shared memory.
template <bool Barrier>
IE_GLOBAL void neighbours(float* x) {
  IE_SHARED(float, shared, kThreads);
  const int t = static_cast<int>(threadIdx.x);
  shared[t] = load_global(x + t);
  if (Barrier) __syncthreads();
  store_global(x + t, shared[(t + 1) % kThreads] * 2);
}
// The same within a warp, where a barrier of the warp will do.
template <bool Barrier>
IE_GLOBAL void warp_neighbours(float* x) {
  IE_SHARED(float, shared, kThreads);
  const int t = static_cast<int>(threadIdx.x), first = t / kWarp * kWarp;
  shared[t] = load_global(x + t);
  if (Barrier) __syncwarp();
  const float next = shared[first + (t + 1) % kWarp];
  store_global(x + t, next);
}
IE_GLOBAL void barrier_of_some(float* x) {
  if (threadIdx.x < 40) __syncthreads();
  store_global(x + threadIdx.x, 0);
}
IE_GLOBAL void barriers_apart(float* x) {
  if (threadIdx.x < 40) {
    __syncthreads();
  } else {
    __syncthreads();
  }
  store_global(x + threadIdx.x, 0);
}
template <int More>
IE_GLOBAL void tail(float* x, int n) {
  const int t = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  if (t < n + More) store_global(x + t, load_global(x + t) + 1);
}
IE_GLOBAL void shuffle_from_gone(float* x, int n) {
  const int t = static_cast<int>(threadIdx.x);
  if (t >= n) return;
  store_global(x + t, __shfl_down_sync(kAllLanes, load_global(x + t), 1));
}
IE_GLOBAL void shuffle_from_outside(float* x) {
  const int t = static_cast<int>(threadIdx.x);
  if (t % kWarp >= 16) return;
  store_global(x + t, __shfl_xor_sync(0xffffu, load_global(x + t), 16));
}
IE_GLOBAL void shuffle_in_branch(float* x) {
  const int t = static_cast<int>(threadIdx.x);
  float v = load_global(x + t);
  if (t % 2 == 0) {
    v += __shfl_xor_sync(kAllLanes, v, 2);
  } else {
    __syncthreads();
  }
  store_global(x + t, v);
}
IE_GLOBAL void vote_without_itself(float* x) {
  const int t = static_cast<int>(threadIdx.x);
  store_global(x + t, static_cast<float>(__any_sync(0xffff0000u, t == 3)));
}
IE_GLOBAL void pack(float* x, int from) {
  const auto at = reinterpret_cast<uint4*>(x + from);
  if (threadIdx.x < 4) store_global(at + threadIdx.x, load_global(at + threadIdx.x));
}
IE_GLOBAL void beyond_shared(float* x) {
  IE_SHARED(float, shared, kThreads);
  const int t = static_cast<int>(threadIdx.x);
  shared[t + 1] = 1;
  __syncthreads();
  store_global(x + t, shared[t + 1]);
}
IE_GLOBAL void beyond_dynamic(float* x) {
  IE_DYNAMIC_SHARED(float, shared);
  const int t = static_cast<int>(threadIdx.x);
  shared[t] = 1;
  store_global(x + t, shared[t]);
}
IE_GLOBAL void never_written(float* x) {
  IE_SHARED(float, shared, 2 * kThreads);
  const int t = static_cast<int>(threadIdx.x);
  shared[t] = 1;
  __syncthreads();
  store_global(x + t, shared[2 * t]);
}
// Blocks that write what others read.
IE_GLOBAL void across_blocks(float* x, int n) {
  const int t = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  if (t < n) store_global(x + t, load_global(x + (t + kThreads) % n));
}
IE_GLOBAL void all_write_one(float* x) {
  store_global(x, static_cast<float>(threadIdx.x));
}
IE_GLOBAL void not_the_same(float* x) {
  store_same(x, static_cast<float>(threadIdx.x / 2));
}
IE_GLOBAL void same_beside_others(float* x) {
  if (threadIdx.x == 0) {
    store_global(x, 1.0f);
  } else {
    store_same(x, 1.0f);
  }
}
IE_GLOBAL void assertion(float* x) {
  device_assert(load_global(x + threadIdx.x) < 2, "x is too large");
}
// No faults: what the device allows.
IE_GLOBAL void all_write_the_same(float* x) {
  store_same(x, 1.0f);
}
IE_GLOBAL void sums_of_all(float* x, unsigned* count) {
  IE_SHARED(float, part, kThreads / kWarp);
  const int t = static_cast<int>(threadIdx.x);
  float v = load_global(x + t);
  for (int half = kWarp / 2; half > 0; half /= 2) v += __shfl_xor_sync(kAllLanes, v, half);
  if (t % kWarp == 0) part[t / kWarp] = v;
  const int positive = __syncthreads_count(v > 0);
  v = part[0] + part[1];
  const unsigned even = __ballot_sync(kAllLanes, t % 2 == 0);
  atomic_add(count, even == 0x55555555u && positive == kThreads ? 1u : 0u);
  __syncthreads();
  store_global(x + t, v);
}
// Half of a warp at a time.
IE_GLOBAL void half_warps(float* x) {
  const int t = static_cast<int>(threadIdx.x);
  const unsigned mask = t % kWarp < 16 ? 0xffffu : 0xffff0000u;
  float v = load_global(x + t);
  if (t % kWarp < 16) {
    v = __shfl_sync(mask, v, 0, 16);
  } else {
    v = __shfl_up_sync(mask, v, 1, 16);
  }
  __syncwarp();
  store_global(x + t, v);
}

} // namespace faults
} // namespace inplace_ext

// Runs the kernel of that name on n floats, after which lie `guarded` ones that are only to be read; 0, or 1
// with the report.
extern "C" __attribute__((visibility("default"))) int inplace_ext_emulate_fault(const char* name, float* x,
                                                                                int n, int guarded,
                                                                                char* report, int size) {
  using namespace inplace_ext;
  using namespace inplace_ext::faults;
  const std::string_view wanted(name);
  unsigned count = 0;
  emulate::allow(x, static_cast<size_t>(n) * sizeof(float), sizeof(float), true);
  emulate::allow(x + n, static_cast<size_t>(guarded) * sizeof(float), sizeof(float), false);
  emulate::allow(&count, sizeof(count), sizeof(count), true);
  const dim3 one(1), two(2), block(kThreads);
  bool found = false;
  int result = 0;
  const auto is = [&](const char* what) { return wanted == what && (found = true); };
  try {
    if (is("sums_of_all")) launch(sums_of_all, one, block, 0, nullptr, x, &count);
    if (is("half_warps")) launch(half_warps, one, block, 0, nullptr, x);
    if (is("neighbours")) launch(neighbours<true>, one, block, 0, nullptr, x);
    if (is("neighbours_without_barrier")) launch(neighbours<false>, one, block, 0, nullptr, x);
    if (is("warp_neighbours")) launch(warp_neighbours<true>, one, block, 0, nullptr, x);
    if (is("warp_neighbours_without_barrier")) launch(warp_neighbours<false>, one, block, 0, nullptr, x);
    if (is("barrier_of_some")) launch(barrier_of_some, one, block, 0, nullptr, x);
    if (is("barriers_apart")) launch(barriers_apart, one, block, 0, nullptr, x);
    if (is("tail")) launch(tail<0>, two, block, 0, nullptr, x, n);
    if (is("tail_too_long")) launch(tail<1>, two, block, 0, nullptr, x, n);
    if (is("shuffle_from_gone")) launch(shuffle_from_gone, one, block, 0, nullptr, x, 50);
    if (is("shuffle_from_outside")) launch(shuffle_from_outside, one, block, 0, nullptr, x);
    if (is("shuffle_in_branch")) launch(shuffle_in_branch, one, block, 0, nullptr, x);
    if (is("vote_without_itself")) launch(vote_without_itself, one, block, 0, nullptr, x);
    if (is("pack")) launch(pack, one, block, 0, nullptr, x, 0);
    if (is("pack_misaligned")) launch(pack, one, block, 0, nullptr, x, 1);
    if (is("beyond_shared")) launch(beyond_shared, one, block, 0, nullptr, x);
    if (is("beyond_dynamic")) launch(beyond_dynamic, one, block, 8, nullptr, x);
    if (is("never_written")) launch(never_written, one, block, 0, nullptr, x);
    if (is("across_blocks")) launch(across_blocks, two, block, 0, nullptr, x, n);
    if (is("not_the_same")) launch(not_the_same, one, block, 0, nullptr, x);
    if (is("same_beside_others")) launch(same_beside_others, one, block, 0, nullptr, x);
    if (is("assertion")) launch(assertion, two, block, 0, nullptr, x + (n - kThreads - 10));
    if (is("all_write_the_same")) launch(all_write_the_same, two, block, 0, nullptr, x);
    if (is("all_write_one")) launch(all_write_one, one, block, 0, nullptr, x);
    if (is("too_many_threads")) launch(all_write_one, one, dim3(2048), 0, nullptr, x);
    if (is("too_much_shared")) launch(all_write_one, one, block, 1 << 20, nullptr, x);
    if (!found) throw std::runtime_error("no such kernel");
    if (is("sums_of_all") && count != kThreads) throw std::runtime_error("wrong count");
  } catch (const std::exception& error) {
    std::snprintf(report, static_cast<size_t>(size), "%s", error.what());
    result = 1;
  }
  emulate::clear_memory();
  return result;
}
