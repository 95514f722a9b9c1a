// Blocks of elements turned on their way from one place to another: rows become columns.
#pragma once
#include "inplace_ext/program.h"
#include "kernels.h"

namespace inplace_ext {

// A square of elements turned in registers: row i of `from` becomes column i of `to`; strides in bytes.
template <class T>
struct InRegisters {
  static constexpr int kSide = sizeof(T) == 8 ? 4 : 8;
  using row = typename raw_vector<T, kSide>::type;
  using index = typename raw_vector<typename int_of_size<sizeof(T)>::type, kSide>::type;

  // Exchanges the blocks off the diagonal of every 2 x 2 arrangement of blocks of Step x Step elements.
  template <int Step>
  static IE_INLINE void exchange(row* r) {
    index upper, lower;
    for (int i = 0; i < kSide; ++i) {
      const bool second = i & Step;
      upper[i] = second ? kSide + i - Step : i;
      lower[i] = second ? kSide + i : i + Step;
    }
#pragma GCC unroll 8
    for (int i = 0; i < kSide; ++i) {
      if (i & Step) continue;
      const row a = r[i], b = r[i + Step];
      r[i] = __builtin_shuffle(a, b, upper);
      r[i + Step] = __builtin_shuffle(a, b, lower);
    }
    if constexpr (Step * 2 < kSide) exchange<Step * 2>(r);
  }
  static IE_INLINE void turn(char* to, int64_t to_stride, const char* from, int64_t from_stride) {
    row r[kSide];
    for (int i = 0; i < kSide; ++i) std::memcpy(&r[i], from + i * from_stride, sizeof(row));
    exchange<1>(r);
    for (int i = 0; i < kSide; ++i) std::memcpy(to + i * to_stride, &r[i], sizeof(row));
  }
};

// `rows` rows of `columns` elements, turned; what is left of whole squares goes an element at a time.
template <class T>
inline void turn(char* to, int64_t to_stride, const char* from, int64_t from_stride, int64_t rows,
                 int64_t columns) {
  constexpr int64_t kSide = InRegisters<T>::kSide, kItem = sizeof(T);
  int64_t j = 0;
  for (; j + kSide <= columns; j += kSide) {
    int64_t i = 0;
    for (; i + kSide <= rows; i += kSide) {
      InRegisters<T>::turn(to + j * to_stride + i * kItem, to_stride, from + i * from_stride + j * kItem,
                           from_stride);
    }
    for (; i < rows; ++i) {
      for (int64_t k = j; k < j + kSide; ++k)
        std::memcpy(to + k * to_stride + i * kItem, from + i * from_stride + k * kItem, kItem);
    }
  }
  for (; j < columns; ++j) {
    for (int64_t i = 0; i < rows; ++i)
      std::memcpy(to + j * to_stride + i * kItem, from + i * from_stride + j * kItem, kItem);
  }
}
// The same of blocks of so many bytes, which nothing turns in registers.
inline void turn_blocks(int64_t bytes, char* to, int64_t to_stride, const char* from, int64_t from_stride,
                        int64_t rows, int64_t columns) {
  for (int64_t i = 0; i < rows; ++i) {
    for (int64_t j = 0; j < columns; ++j)
      copy_run(to + j * to_stride + i * bytes, from + i * from_stride + j * bytes, bytes);
  }
}
inline void turn(int64_t bytes, char* to, int64_t to_stride, const char* from, int64_t from_stride,
                 int64_t rows, int64_t columns) {
  switch (bytes) {
    case 1:
      return turn<uint8_t>(to, to_stride, from, from_stride, rows, columns);
    case 2:
      return turn<uint16_t>(to, to_stride, from, from_stride, rows, columns);
    case 4:
      return turn<uint32_t>(to, to_stride, from, from_stride, rows, columns);
    case 8:
      return turn<uint64_t>(to, to_stride, from, from_stride, rows, columns);
    default:
      return turn_blocks(bytes, to, to_stride, from, from_stride, rows, columns);
  }
}

} // namespace inplace_ext
