// The generator of philox.h in vectors: a Philox block in each lane of 64 bits.
#pragma once
#include "inplace_ext/philox.h"
#include "kernels.h"

namespace inplace_ext {

using Lanes = Vec<uint64_t>;

// What philox.h asks of a vector.
IE_INLINE Lanes low_product(Lanes a, Lanes b) {
#if defined(INPLACE_EXT_AVX512)
  return (Lanes::raw)_mm512_mul_epu32((__m512i)a.v, (__m512i)b.v);
#elif defined(INPLACE_EXT_AVX2)
  return (Lanes::raw)_mm256_mul_epu32((__m256i)a.v, (__m256i)b.v);
#elif defined(__SSE2__)
  return (Lanes::raw)_mm_mul_epu32((__m128i)a.v, (__m128i)b.v);
#else
  return (a.v & 0xffffffff) * (b.v & 0xffffffff);
#endif
}
IE_INLINE Lanes high_word(Lanes a) {
  return a >> 32;
}
// Blocks that are drawn together, and their words.
constexpr int64_t kBatch = Lanes::N, kBatchWords = kBatch * philox::kWords;

// The lower words of a and of b next to each other.
IE_INLINE Lanes join(Lanes a, Lanes b) {
#if defined(INPLACE_EXT_AVX512)
  return (Lanes::raw)_mm512_mask_shuffle_epi32((__m512i)a.v, 0xaaaa, (__m512i)b.v, _MM_PERM_CCAA);
#elif defined(INPLACE_EXT_AVX2)
  return (Lanes::raw)_mm256_blend_epi32((__m256i)a.v, (__m256i)(b.v << 32), 0xaa);
#else
  return (a.v & 0xffffffff) | (b.v << 32);
#endif
}
// Of each pair of lanes the first of a and of b, and the second ones.
IE_INLINE void interleave(Lanes a, Lanes b, Lanes& first, Lanes& second) {
#if defined(INPLACE_EXT_AVX512)
  first = (Lanes::raw)_mm512_unpacklo_epi64((__m512i)a.v, (__m512i)b.v);
  second = (Lanes::raw)_mm512_unpackhi_epi64((__m512i)a.v, (__m512i)b.v);
#elif defined(INPLACE_EXT_AVX2)
  first = (Lanes::raw)_mm256_unpacklo_epi64((__m256i)a.v, (__m256i)b.v);
  second = (Lanes::raw)_mm256_unpackhi_epi64((__m256i)a.v, (__m256i)b.v);
#else
  first = Lanes::raw{a.v[0], b.v[0]};
  second = Lanes::raw{a.v[1], b.v[1]};
#endif
}

// The numbers of one seed.
class Generator {
 public:
  explicit Generator(uint64_t seed) : keys_(seed), m0_(philox::multiplier(0)), m1_(philox::multiplier(1)) {
    // In an order that interleave() undoes.
    for (int i = 0; i < kBatch; ++i) lane_.v[i] = i % 2 * (kBatch / 2) + i / 2;
  }

  // The numbers of blocks n, n + 1, ..., at least `count` numbers; a batch may go beyond.
  IE_INLINE void operator()(int32_t* out, uint64_t n, int64_t count) const {
    const int64_t batches = (count + kBatchWords - 1) / kBatchWords;
    const uint64_t last = n + static_cast<uint64_t>(batches * kBatch - 1);
    if (last >> 32 == n >> 32) {
      near(out, n, batches);
    } else {
      any(out, n, batches);
    }
  }

  // The numbers at `count` places of the mask, one step after the other from `place` on: a block for each.
  __attribute__((noinline)) void spread(int32_t* out, uint64_t offset, uint64_t place, uint64_t step,
                                        int64_t count) const {
    for (int64_t i = 0; i < count; i += kBatch) {
      const int64_t some = count - i < kBatch ? count - i : kBatch;
      Lanes counter(offset);
      uint64_t word[kBatch];
      for (int64_t k = 0; k < kBatch; ++k, place += step) {
        counter.v[k] += place / philox::kWords;
        word[k] = place % philox::kWords;
      }
      const Block c = blocks(counter);
      for (int64_t k = 0; k < some; ++k)
        out[i + k] = static_cast<int32_t>(c.word[word[k]].v[k]) & philox::kMaxDraw;
    }
  }

 private:
  using Block = philox::Block<Lanes>;

  IE_INLINE void finish(int32_t* out, const Block& c) const {
    const Lanes a = join(c.word[0], c.word[1]), b = join(c.word[2], c.word[3]);
    Lanes first, second;
    interleave(a, b, first, second);
    const Lanes low(philox::kMaxDraw | uint64_t{philox::kMaxDraw} << 32);
    (first & low).store(out);
    (second & low).store(out + kBatchWords / 2);
  }
  // Blocks whose counters agree in the upper word: what the first rounds make of it and of the zeros is the
  // same for all.
  __attribute__((noinline)) void near(int32_t* out, uint64_t n, int64_t batches) const {
    const uint64_t constant = (n >> 32) ^ keys_.word[0][0].v[0];
    const uint64_t product = philox::low_product(constant, philox::multiplier(0));
    const Lanes third(product >> 32 ^ keys_.word[1][1].v[0]), fourth(product);
    Lanes counter = lane_ + Lanes(n);
    for (int64_t b = 0; b < batches; ++b) {
      const Lanes p0 = low_product(counter, m0_), p1 = low_product(high_word(p0) ^ keys_.word[0][1], m1_);
      Block c{{high_word(p1) ^ keys_.word[1][0], p1, p0 ^ third, fourth}};
#pragma GCC unroll 8
      for (int r = 2; r < philox::kRounds; ++r) c = philox::mix(c, keys_.word[r], m0_, m1_);
      finish(out + b * kBatchWords, c);
      counter = counter + Lanes(uint64_t{kBatch});
    }
  }
  __attribute__((noinline)) void any(int32_t* out, uint64_t n, int64_t batches) const {
    for (int64_t b = 0; b < batches; ++b) {
      finish(out + b * kBatchWords, blocks(lane_ + Lanes(n + static_cast<uint64_t>(b * kBatch))));
    }
  }
  Block blocks(Lanes counter) const {
    const Lanes zero(uint64_t{0});
    Block c{{counter, high_word(counter), zero, zero}};
    for (int r = 0; r < philox::kRounds; ++r) c = philox::mix(c, keys_.word[r], m0_, m1_);
    return c;
  }

  philox::Keys<Lanes> keys_;
  Lanes m0_, m1_, lane_;
};

} // namespace inplace_ext
