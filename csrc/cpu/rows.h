// What the kernels share that walk over a tensor line by line: softmax and dropout.
#pragma once
#include "kernels.h"

namespace inplace_ext {

// The first n elements, fewer than a vector has, zeros above.
template <class S>
IE_INLINE VecOf<S> load_some(const char* p, int64_t n) {
  if constexpr (is_half_v<S>) {
#if defined(INPLACE_EXT_AVX512)
    const __mmask16 first = static_cast<__mmask16>((1u << n) - 1);
    return from_bits((half_bits)_mm256_maskz_loadu_epi16(first, p), S{});
#endif
    S in[VecOf<S>::N] = {};
    std::memcpy(in, p, n * sizeof(S));
    return load<S>(reinterpret_cast<const char*>(in));
  } else {
    return VecOf<S>(load_bytes<typename VecOf<S>::raw>(p, static_cast<int>(n * sizeof(S))));
  }
}
// Not with a masked store: to the processor it covers the whole vector, and the loads of what follows wait.
template <class S>
IE_INLINE void store_some(char* p, VecOf<S> v, int64_t n) {
  S out[VecOf<S>::N];
  store<S>(reinterpret_cast<char*>(out), v);
  std::memcpy(p, out, n * sizeof(S));
}
template <class S>
void gather(S* to, const char* from, int64_t stride, int64_t n) {
  for (int64_t i = 0; i < n; ++i) std::memcpy(to + i, from + i * stride, sizeof(S));
}
template <class S>
void scatter(char* to, const S* from, int64_t stride, int64_t n) {
  for (int64_t i = 0; i < n; ++i) std::memcpy(to + i * stride, from + i, sizeof(S));
}

// Where a line lies among the others, dim 0 the innermost. move(d, n) goes n steps along dim d.
class Cursor {
 public:
  template <class Move>
  Cursor(const int64_t* size, int dims, int64_t line, Move move) : size_(size), dims_(dims) {
    for (int d = 0; d < dims; ++d) {
      index_[d] = line % size[d];
      line /= size[d];
      move(d, index_[d]);
    }
  }
  // Lines from here to the end of dim 0.
  int64_t left() const {
    return dims_ == 0 ? 1 : size_[0] - index_[0];
  }
  // n lines on, none of them beyond the end of dim 0.
  template <class Move>
  void advance(int64_t n, Move move) {
    for (int d = 0; d < dims_; ++d, n = 1) {
      index_[d] += n;
      move(d, n);
      if (index_[d] < size_[d]) return;
      move(d, -index_[d]);
      index_[d] = 0;
    }
  }

 private:
  const int64_t* size_;
  int dims_;
  int64_t index_[kMaxDims];
};

} // namespace inplace_ext
