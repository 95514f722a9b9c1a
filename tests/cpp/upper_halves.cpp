// Calls the kernels of a CPU library, given by its path, at many lengths, and counts the calls after which
// upper halves of vector registers are in use: code for SSE, of which Python and torch are full, would then
// run at a fraction of its speed. Run by tests/test_build.py. The processor itself says what is in use
// (XGETBV).
#include <dlfcn.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <initializer_list>

#include "inplace_ext/program.h"

using namespace inplace_ext;

namespace {

constexpr size_t kBytes = 1 << 20;
constexpr int64_t kLengths[] = {1, 3, 8, 15, 16, 17, 31, 33, 64, 65, 1000, 2500};

bool in_use() {
  unsigned low, high;
  asm volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(1));
  return (low & (1u << 2 | 1u << 6)) != 0; // of the first 16 registers: of 256 bits, and of 512
}

int calls = 0, faults = 0;

template <class F>
void check(const char* what, int code, int dtype, int64_t n, F call) {
  asm volatile("vzeroupper" ::: "memory");
  call();
  const bool used = in_use();
  asm volatile("vzeroupper" ::: "memory");
  ++calls;
  if (used && faults++ < 20) std::printf("%s %d, dtype %d, %lld elements\n", what, code, dtype, (long long)n);
}

char* array(int byte) {
  char* p = static_cast<char*>(std::aligned_alloc(64, kBytes));
  std::memset(p, byte, kBytes);
  return p;
}

} // namespace

int main(int, char** argv) {
  const auto is_seen = [] {
    asm volatile("vzeroupper\n vcmpps $15, %%ymm1, %%ymm1, %%ymm1" ::: "xmm1", "memory");
    const bool used = in_use();
    asm volatile("vzeroupper" ::: "memory");
    return used && !in_use();
  };
  if (!is_seen()) {
    std::puts("the processor does not say what is in use");
    return 2;
  }
  void* const library = dlopen(argv[1], RTLD_NOW);
  if (library == nullptr) {
    std::puts(dlerror());
    return 2;
  }
  const CpuKernels& kernels =
      *reinterpret_cast<const CpuKernels* (*)()>(dlsym(library, "inplace_ext_cpu_kernels"))();
  char *const x = array(0), *const y = array(1), *const z = array(1);
  Scalar one[3];
  for (Scalar& s : one) s.i = 1;

  for (const int64_t n : kLengths) {
    for (int d = 0; d < kDTypes; ++d) {
      const auto dtype = static_cast<DType>(d);
      const int64_t item = item_size(dtype);
      for (int op = 0; op < static_cast<int>(Op::count); ++op) {
        for (int variant = 0; variant < kLoopVariants; ++variant) {
          const LoopFn loop = kernels.loop[op][d][variant];
          if (loop != nullptr) check("operation", op, d, n, [&] { loop(x, y, z, one, n); });
        }
      }
      for (int e = 0; e < kDTypes; ++e) {
        for (const bool stream : {false, true})
          check("conversion", e, d, n,
                [&] { kernels.convert(x, dtype, y, static_cast<DType>(e), n, stream); });
      }
      check("fill", 0, d, n, [&] { kernels.fill(x, dtype, one[0], n, false); });
      check("look for zeros", 0, d, n, [&] { kernels.contains_zero(y, dtype, n); });
      if (is_floating(dtype)) {
        Softmax rows{};
        rows.dtype = dtype, rows.data = x, rows.scale = 1, rows.length = n, rows.stride = item;
        check("softmax", 0, d, n, [&] { kernels.softmax(rows, 0, 1); });
        Dropout dropout{};
        dropout.dtype = dtype, dropout.data = x, dropout.threshold = 1 << 23, dropout.scale = 2;
        dropout.dims = 1, dropout.size[0] = n, dropout.step[0] = item, dropout.place[0] = 1;
        check("dropout", 0, d, n, [&] { kernels.dropout(dropout, 0, n); });
      }
      if (dtype == DType::f32 || dtype == DType::f64)
        check("norm", 0, d, n, [&] { kernels.norm_part(y, dtype, n, Norm::squares); });

      Program program{};
      program.compute = compute_dtype(dtype);
      program.stages = 4;
      program.stage[0] = {kLoad, Operand::tensor, Operand::none, 0, 0, 0};
      program.stage[1] = {static_cast<uint16_t>(Op::maximum_), Operand::scalar, Operand::none, 0, 0, 0};
      program.stage[2] = {static_cast<uint16_t>(Op::minimum_), Operand::scalar, Operand::none, 0, 0, 0};
      program.stage[3] = {kStore, Operand::tensor, Operand::none, 0, 0, 0};
      Space space{};
      space.dims = 1, space.size[0] = n, space.tensors = 1;
      space.tensor[0] = {x, dtype, true, {}, nullptr};
      for (const int64_t step : {1, 2, 3}) {
        space.tensor[0].stride[0] = step * item;
        check("chain", static_cast<int>(step), d, n, [&] { kernels.run(program, space, 0, n); });
      }

      for (const Put put : {Put::fill, Put::copy, Put::add}) {
        std::memset(y, 0, kBytes); // indices; and below a mask
        Indexed indexed{};
        indexed.put = put, indexed.dtype = dtype, indexed.rows = true, indexed.data = x, indexed.source = z;
        indexed.dims = 2, indexed.size[0] = n, indexed.size[1] = 2;
        indexed.step[0] = indexed.source_step[0] = item;
        indexed.indices = 1, indexed.index[0] = {y, true, 1, n * item, {0, 8}},
        indexed.shared = kByDestination;
        check("rows", static_cast<int>(put), d, n, [&] { kernels.put_indexed(indexed, 0, 1); });
        indexed.rows = false, indexed.dims = 1, indexed.step[0] = 0,
        indexed.index[0] = {y, true, 1, item, {8}};
        check("elements", static_cast<int>(put), d, n, [&] { kernels.put_indexed(indexed, 0, 1); });
        if (put == Put::add) continue;
        std::memset(y, 1, kBytes);
        Masked masked{};
        masked.put = put, masked.dtype = dtype, masked.data = x, masked.mask = y, masked.source = z;
        masked.row = 1, masked.source_step = masked.source_inner = item;
        masked.dims = 1, masked.size[0] = n, masked.step[0] = item, masked.mask_step[0] = 1;
        check("mask", static_cast<int>(put), d, n, [&] {
          kernels.count_mask(masked, 0, n);
          kernels.put_masked(masked, 0, n, 0);
        });
      }
      if (n <= 65) {
        const Turn turn{x, n * item, z, n * item, n, n, item};
        check("turn", 0, d, n, [&] { kernels.turn(turn); });
        const Matrix square{x, n, n, item};
        check("square", 0, d, n, [&] { kernels.swap_square(square, 0, kernels.square_units(n, item)); });
      }
    }
  }
  std::printf("%d of %d calls\n", faults, calls);
  return faults == 0 ? 0 : 1;
}
