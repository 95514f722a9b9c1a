// Philox4x32-10, a counter-based random generator: block n of a seed is a function of n alone, so that any
// thread, device or stride draws the same numbers for the same place.
//
// Source: Salmon, Moraes, Dror and Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011. No torch
// here, and no vector type: W is uint64_t, or a vector of them, of which the lower 32 bits of a lane count. W
// needs
// ^, low_product(a, m), the 64-bit product of the lower 32 bits of a and m, and high_word(a), a >> 32.
#pragma once
#include <cstdint>

namespace inplace_ext {
namespace philox {

// Functions, not arrays: device code cannot read an array of the host, and nvcc would not say so.
constexpr uint32_t multiplier(int i) {
  return i == 0 ? 0xd2511f53 : 0xcd9e8d57;
}
constexpr uint32_t step(int i) {
  return i == 0 ? 0x9e3779b9 : 0xbb67ae85;
}
constexpr int kRounds = 10;

constexpr uint64_t low_product(uint64_t a, uint64_t m) {
  return (a & 0xffffffff) * m;
}
constexpr uint64_t high_word(uint64_t a) {
  return a >> 32;
}

// The keys of all rounds.
template <class W>
struct Keys {
  W word[kRounds][2];
  constexpr explicit Keys(uint64_t seed) : word{} {
    uint32_t k[2] = {static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32)};
    for (int r = 0; r < kRounds; ++r) {
      for (int i = 0; i < 2; ++i) {
        word[r][i] = W(uint64_t{k[i]});
        k[i] += step(i);
      }
    }
  }
};

template <class W>
struct Block {
  W word[4]; // in the lower 32 bits; those above are rubbish
};

// Round r of a counter or of what the rounds before have made of it.
template <class W>
constexpr Block<W> mix(const Block<W>& c, const W* key, W m0, W m1) {
  const W p0 = low_product(c.word[0], m0), p1 = low_product(c.word[2], m1);
  return {{high_word(p1) ^ c.word[1] ^ key[0], p1, high_word(p0) ^ c.word[3] ^ key[1], p0}};
}

// The block of a counter.
constexpr Block<uint64_t> block(Block<uint64_t> c, uint64_t seed) {
  const Keys<uint64_t> keys(seed);
  for (int r = 0; r < kRounds; ++r) c = mix<uint64_t>(c, keys.word[r], multiplier(0), multiplier(1));
  for (uint64_t& w : c.word) w &= 0xffffffff;
  return c;
}

// Version 1 of how an element of a tensor gets its number: element i, in C order, takes word i % 4 of block
// offset + i / 4 (modulo 2^64), whose counter is (its lower, its upper 32 bits, 0, 0), and the number is the
// lower 24 bits of the word times 2^-24. People keep seeds: what comes of them never changes.
constexpr int kWords = 4, kBits = 24;
constexpr uint32_t kMaxDraw = (1u << kBits) - 1;
constexpr Block<uint64_t> counter(uint64_t n) {
  return {{n & 0xffffffff, n >> 32, 0, 0}};
}
constexpr uint32_t draw(uint64_t seed, uint64_t offset, uint64_t i) {
  return static_cast<uint32_t>(block(counter(offset + i / kWords), seed).word[i % kWords]) & kMaxDraw;
}

// The known answers of its authors.
constexpr bool answers(uint64_t w0, uint64_t w1, uint64_t w2, uint64_t w3, const Block<uint64_t>& b) {
  return b.word[0] == w0 && b.word[1] == w1 && b.word[2] == w2 && b.word[3] == w3;
}
static_assert(answers(0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8, block({{0, 0, 0, 0}}, 0)));
static_assert(answers(0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd,
                      block({{0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff}}, ~uint64_t{0})));
static_assert(answers(0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1,
                      block({{0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}}, 0x299f31d0a4093822)));

} // namespace philox
} // namespace inplace_ext
