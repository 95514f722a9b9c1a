// The elements that a thread holds of a tensor, and how they get there.
#pragma once
#include "scalar.cuh"

namespace inplace_ext::cuda {

// E elements of T in as many registers as their bytes fill. Every index is known at compile time once loops
// are unrolled; a loop that is not works on the first element and turns the pack.
template <class T, int E>
struct Pack {
  static constexpr int kBytes = E * static_cast<int>(sizeof(T));
  static constexpr int kWords = (kBytes + 3) / 4;
  static constexpr int kPerWord = 4 / static_cast<int>(sizeof(T)); // 0 of 8 bytes
  uint32_t word[kWords];

  IE_INLINE T get(int i) const {
    if constexpr (sizeof(T) == 8) {
      return bits_as<T>(word[2 * i] | static_cast<uint64_t>(word[2 * i + 1]) << 32);
    } else if constexpr (sizeof(T) == 4) {
      return bits_as<T>(word[i]);
    } else {
      using U = std::conditional_t<sizeof(T) == 2, uint16_t, uint8_t>;
      return bits_as<T>(static_cast<U>(word[i / kPerWord] >> (i % kPerWord * 8 * sizeof(T))));
    }
  }
  IE_INLINE void set(int i, T value) {
    if constexpr (sizeof(T) == 8) {
      const uint64_t bits = bits_as<uint64_t>(value);
      word[2 * i] = static_cast<uint32_t>(bits);
      word[2 * i + 1] = static_cast<uint32_t>(bits >> 32);
    } else if constexpr (sizeof(T) == 4) {
      word[i] = bits_as<uint32_t>(value);
    } else {
      const int shift = i % kPerWord * 8 * static_cast<int>(sizeof(T));
      const uint32_t field = (sizeof(T) == 2 ? 0xffffu : 0xffu) << shift;
      uint32_t& w = word[i / kPerWord];
      w = (w & ~field) | low_bits(value) << shift;
    }
  }
  // Drops the first element and appends one.
  IE_INLINE void push(T value) {
    constexpr int kShift = 8 * static_cast<int>(sizeof(T)) % 32;
    if constexpr (sizeof(T) >= 4) {
      constexpr int kStep = sizeof(T) / 4;
      IE_UNROLL(16)
      for (int j = 0; j + kStep < kWords; ++j) word[j] = word[j + kStep];
      set(E - 1, value);
    } else {
      IE_UNROLL(16)
      for (int j = 0; j + 1 < kWords; ++j) word[j] = word[j] >> kShift | word[j + 1] << (32 - kShift);
      word[kWords - 1] >>= kShift;
      set(E - 1, value);
    }
  }
  IE_INLINE void turn() {
    push(get(0));
  }
  IE_INLINE void fill(T value) {
    if constexpr (sizeof(T) >= 4) {
      IE_UNROLL(16)
      for (int i = 0; i < E; ++i) set(i, value);
    } else {
      const uint32_t w = low_bits(value) * (sizeof(T) == 2 ? 0x10001u : 0x1010101u);
      IE_UNROLL(16)
      for (int j = 0; j < kWords; ++j) word[j] = w;
    }
  }

 private:
  static IE_INLINE uint32_t low_bits(T value) {
    using U = std::conditional_t<sizeof(T) == 2, uint16_t, uint8_t>;
    return bits_as<U>(value);
  }
};

// As many bytes as one access moves.
template <int Bytes>
struct alignas(Bytes) Chunk {
  using Word = std::conditional_t<(Bytes < 4), std::conditional_t<Bytes == 2, uint16_t, uint8_t>, uint32_t>;
  static constexpr int kWords = Bytes < 4 ? 1 : Bytes / 4;
  Word word[kWords];
};

// E neighbours in memory, at an address aligned to their bytes, of which 16 are moved at a time.
template <class S, int E>
constexpr int kAccess = E * static_cast<int>(sizeof(S)) < 16 ? E * static_cast<int>(sizeof(S)) : 16;
template <class S, int E>
IE_INLINE Pack<S, E> read_pack(const char* p) {
  using Part = Chunk<kAccess<S, E>>;
  Pack<S, E> pack;
  IE_UNROLL(4)
  for (int i = 0; i < Pack<S, E>::kBytes / kAccess<S, E>; ++i) {
    const Part part = load_global(reinterpret_cast<const Part*>(p) + i);
    IE_UNROLL(4)
    for (int j = 0; j < Part::kWords; ++j) pack.word[i * Part::kWords + j] = part.word[j];
  }
  return pack;
}
template <class S, int E>
IE_INLINE void write_pack(char* p, const Pack<S, E>& pack) {
  using Part = Chunk<kAccess<S, E>>;
  IE_UNROLL(4)
  for (int i = 0; i < Pack<S, E>::kBytes / kAccess<S, E>; ++i) {
    Part part;
    IE_UNROLL(4)
    for (int j = 0; j < Part::kWords; ++j)
      part.word[j] = static_cast<typename Part::Word>(pack.word[i * Part::kWords + j]);
    store_global(reinterpret_cast<Part*>(p) + i, part);
  }
}

template <class S, int E>
constexpr bool is_vector = E * sizeof(S) <= 16;
// The same, converted to the compute type C and back.
template <class C, int E>
IE_INLINE void read_converted(Pack<C, E>& out, DType dtype, const char* p) {
  const auto read = [&](auto storage) {
    using S = decltype(storage);
    if constexpr (is_vector<S, E>) {
      const Pack<S, E> in = read_pack<S, E>(p);
      IE_UNROLL(16)
      for (int i = 0; i < E; ++i) out.set(i, cast<C>(in.get(i)));
    }
  };
  switch (dtype) {
#define INPLACE_EXT_CASE(NAME, STORAGE, COMPUTE) \
  case DType::NAME:                              \
    return read(STORAGE{});
    INPLACE_EXT_FOR_DTYPES(INPLACE_EXT_CASE)
#undef INPLACE_EXT_CASE
  }
}
template <class C, int E>
IE_INLINE void write_converted(const Pack<C, E>& in, DType dtype, char* p) {
  const auto write = [&](auto storage) {
    using S = decltype(storage);
    if constexpr (is_vector<S, E>) {
      Pack<S, E> out{};
      IE_UNROLL(16)
      for (int i = 0; i < E; ++i) out.set(i, cast<S>(in.get(i)));
      write_pack<S, E>(p, out);
    }
  };
  switch (dtype) {
#define INPLACE_EXT_CASE(NAME, STORAGE, COMPUTE) \
  case DType::NAME:                              \
    return write(STORAGE{});
    INPLACE_EXT_FOR_DTYPES(INPLACE_EXT_CASE)
#undef INPLACE_EXT_CASE
  }
}
template <class C>
IE_INLINE C read_element(DType dtype, const char* p) {
  switch (dtype) {
#define INPLACE_EXT_CASE(NAME, STORAGE, COMPUTE) \
  case DType::NAME:                              \
    return cast<C>(load_global(reinterpret_cast<const STORAGE*>(p)));
    INPLACE_EXT_FOR_DTYPES(INPLACE_EXT_CASE)
#undef INPLACE_EXT_CASE
  }
  return C(0);
}
template <class C>
IE_INLINE void write_element(C value, DType dtype, char* p) {
  switch (dtype) {
#define INPLACE_EXT_CASE(NAME, STORAGE, COMPUTE) \
  case DType::NAME:                              \
    return store_global(reinterpret_cast<STORAGE*>(p), cast<STORAGE>(value));
    INPLACE_EXT_FOR_DTYPES(INPLACE_EXT_CASE)
#undef INPLACE_EXT_CASE
  }
}

// Through the bits of a floating dtype and back, as a store and a load would.
template <class C>
IE_INLINE C rounded(C value, DType dtype) {
  switch (dtype) {
    case DType::f16:
      return cast<C>(cast<half_t>(value));
    case DType::bf16:
      return cast<C>(cast<bfloat16_t>(value));
    case DType::f32:
      return cast<C>(cast<float>(value));
    default:
      return value;
  }
}

} // namespace inplace_ext::cuda
