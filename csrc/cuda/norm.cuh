// The norm of many tensors together and the scaling by what is made of it, for the clipping of gradients: the
// norm, and the factor that follows from it, stay in device memory.
//
// Each tensor is cut into parts of kPart elements, the sums of parts are taken in double precision by a block
// each, and one block adds them up. A sum is taken in an order that depends on the length of the part alone,
// so that alignment and the grid change no bit.
#pragma once
#include "inplace_ext/program.h"
#include "rows.cuh"

namespace inplace_ext::cuda {

namespace norms {

constexpr int kThreads = 512, kWarps = kThreads / kWarp;
constexpr int64_t kPart = 1 << 16;

// The tensor that a part is of.
IE_DEVICE int tensor_of(const TensorList& list, int64_t part) {
  int low = 0, high = list.tensors; // first[low] <= part < first[high]
  while (high - low > 1) {
    const int middle = (low + high) / 2;
    (list.first[middle] <= part ? low : high) = middle;
  }
  return low;
}

struct Squares {
  IE_DEVICE static double add(double sum, double x) {
    return ::fma(x, x, sum);
  }
  IE_DEVICE static double join(double a, double b) {
    return a + b;
  }
};
struct Magnitudes {
  IE_DEVICE static double add(double sum, double x) {
    return sum + ::fabs(x);
  }
  IE_DEVICE static double join(double a, double b) {
    return a + b;
  }
};
// NaN where there is one.
struct Largest {
  IE_DEVICE static double join(double a, double b) {
    return a > b || a != a ? a : b;
  }
  IE_DEVICE static double add(double most, double x) {
    return join(most, ::fabs(x));
  }
};

// Of a block; the first thread gets it.
template <class F, class Array>
IE_DEVICE double fold(double value, Array shared) {
  const int t = static_cast<int>(threadIdx.x);
  for (int half = kWarp / 2; half > 0; half /= 2)
    value = F::join(value, __shfl_xor_sync(kAllLanes, value, half));
  __syncthreads(); // what was there has been read
  if (t % kWarp == 0) shared[t / kWarp] = value;
  __syncthreads();
  double sum = shared[0];
  for (int w = 1; w < kWarps; ++w) sum = F::join(sum, shared[w]);
  return sum;
}

template <class S, class F>
IE_GLOBAL void IE_LAUNCH_BOUNDS(kThreads, 1)
    norm_parts(IE_GRID_CONSTANT const TensorList list, double* const sums) {
  constexpr int N = kPack<S>;
  IE_SHARED(double, shared, kWarps);
  const int64_t parts = list.first[list.tensors];
  for (int64_t part = blockIdx.x; part < parts; part += gridDim.x) {
    const int t = tensor_of(list, part);
    const int64_t from = (part - list.first[t]) * kPart;
    const int64_t rest = list.count[t] - from, n = rest < kPart ? rest : kPart;
    const char* const x = list.data[t] + from * static_cast<int64_t>(sizeof(S));
    const bool aligned = reinterpret_cast<uintptr_t>(x) % kPackBytes == 0;
    double sum = 0;
    // A chunk is N elements of each thread.
    for (int64_t i = static_cast<int64_t>(threadIdx.x) * N; i < n; i += kThreads * N) {
      if (aligned && i + N <= n) {
        const Pack<S, N> in = read_pack<S, N>(x + i * sizeof(S));
        IE_UNROLL(8)
        for (int j = 0; j < N; ++j) sum = F::add(sum, static_cast<double>(cast<ComputeOf<S>>(in.get(j))));
      } else {
        IE_UNROLL(8)
        for (int j = 0; j < N; ++j) {
          if (i + j < n) sum = F::add(sum, static_cast<double>(load_element<S>(x + (i + j) * sizeof(S))));
        }
      }
    }
    sum = fold<F>(sum, shared);
    if (threadIdx.x == 0) store_global(sums + part, sum);
  }
}

// Makes of the sums of all parts the norm, in the dtype of the tensors, and the factor that brings it down to
// `most`, as torch computes it: 1 / (norm + 1e-6) * most, each rounded to the dtype, and 1 at most.
template <class S, class F>
IE_GLOBAL void IE_LAUNCH_BOUNDS(kThreads, 1)
    norm_final(const double* const sums, const int64_t parts, const bool root, const double most,
               char* const norm, ComputeOf<S>* const factor) {
  using C = ComputeOf<S>;
  IE_SHARED(double, shared, kWarps);
  double sum = 0;
  for (int64_t i = threadIdx.x; i < parts; i += kThreads) sum = F::join(sum, load_global(sums + i));
  sum = fold<F>(sum, shared);
  if (threadIdx.x != 0) return;
  const auto round = [](C value) { return cast<C>(cast<S>(value)); };
  const C total = cast<C>(cast<S>(static_cast<C>(root ? ::sqrt(sum) : sum)));
  store_element<S>(norm, total);
  const C inverse = round(C(1) / round(total + static_cast<C>(1e-6)));
  const C scaled = round(inverse * static_cast<C>(most));
  store_global(factor, scaled > C(1) ? C(1) : scaled);
}

// x * factor, which is read from device memory; nothing is read or written where it is 1.
template <class S>
IE_GLOBAL void IE_LAUNCH_BOUNDS(kThreads, 2)
    scale_parts(IE_GRID_CONSTANT const TensorList list, const ComputeOf<S>* const factor) {
  using C = ComputeOf<S>;
  constexpr int N = kPack<S>;
  const C f = load_global(factor);
  if (f == C(1)) return;
  const int64_t parts = list.first[list.tensors];
  for (int64_t part = blockIdx.x; part < parts; part += gridDim.x) {
    const int t = tensor_of(list, part);
    const int64_t from = (part - list.first[t]) * kPart;
    const int64_t rest = list.count[t] - from, n = rest < kPart ? rest : kPart;
    char* const x = list.data[t] + from * static_cast<int64_t>(sizeof(S));
    const auto head = static_cast<int>(reinterpret_cast<uintptr_t>(x) % kPackBytes / sizeof(S));
    for (int64_t i = static_cast<int64_t>(threadIdx.x) * N - head; i < n; i += kThreads * N) {
      char* const p = x + i * static_cast<int64_t>(sizeof(S));
      if (i >= 0 && i + N <= n) {
        const Pack<S, N> in = read_pack<S, N>(p);
        Pack<S, N> out{};
        IE_UNROLL(8)
        for (int j = 0; j < N; ++j) out.set(j, cast<S>(cast<C>(in.get(j)) * f));
        write_pack<S, N>(p, out);
      } else {
        IE_UNROLL(8)
        for (int j = 0; j < N; ++j) {
          char* const q = p + j * static_cast<int>(sizeof(S));
          if (i + j >= 0 && i + j < n) store_element<S>(q, load_element<S>(q) * f);
        }
      }
    }
  }
}

template <class F>
auto with_norm(Norm norm, const F& f) {
  switch (norm) {
    case Norm::squares:
      return f(Squares{});
    case Norm::magnitudes:
      return f(Magnitudes{});
    default:
      return f(Largest{});
  }
}

} // namespace norms

inline int64_t norm_parts_of(int64_t count) {
  return (count + norms::kPart - 1) / norms::kPart;
}

// The sums of the parts of a list go to sums[0 .. first[tensors]). Lists follow each other: each begins where
// the one before has ended.
inline cudaError_t norm_parts(const TensorList& list, DType dtype, Norm norm, double* sums,
                              const Device& device, cudaStream_t stream) {
  return with_floating(dtype, [&](auto s) {
    return norms::with_norm(norm, [&](auto f) {
      return launch(norms::norm_parts<decltype(s), decltype(f)>,
                    grid_for(list.first[list.tensors], device, norms::kThreads), dim3(norms::kThreads), 0,
                    stream, list, sums);
    });
  });
}
// `norm` is of the dtype, `factor` of the type it is computed in, both in device memory.
inline cudaError_t norm_final(const double* sums, int64_t parts, DType dtype, Norm norm, double most,
                              void* total, void* factor, cudaStream_t stream) {
  return with_floating(dtype, [&](auto s) {
    using S = decltype(s);
    return norms::with_norm(norm, [&](auto f) {
      return launch(norms::norm_final<S, decltype(f)>, dim3(1), dim3(norms::kThreads), 0, stream, sums, parts,
                    norm == Norm::squares, most, static_cast<char*>(total),
                    static_cast<ComputeOf<S>*>(factor));
    });
  });
}
inline cudaError_t scale_by(const TensorList& list, DType dtype, const void* factor, const Device& device,
                            cudaStream_t stream) {
  return with_floating(dtype, [&](auto s) {
    using S = decltype(s);
    return launch(norms::scale_parts<S>, grid_for(list.first[list.tensors], device, norms::kThreads),
                  dim3(norms::kThreads), 0, stream, list, static_cast<const ComputeOf<S>*>(factor));
  });
}

} // namespace inplace_ext::cuda
