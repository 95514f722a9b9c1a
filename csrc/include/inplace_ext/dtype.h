// Element types, shared by the bindings, the CPU kernels and the device code. No torch here.
#pragma once
#include <cstdint>

namespace inplace_ext {

// The order is part of the ABI between the bindings and the kernel libraries.
enum class DType : uint8_t { f32, f64, f16, bf16, u8, i8, i16, i32, i64, b8 };
constexpr int kDTypes = 10;

// The signed integer of as many bytes.
template <int Size>
struct int_of_size;
template <>
struct int_of_size<1> {
  using type = int8_t;
};
template <>
struct int_of_size<2> {
  using type = int16_t;
};
template <>
struct int_of_size<4> {
  using type = int32_t;
};
template <>
struct int_of_size<8> {
  using type = int64_t;
};

// Storage-only types: 16-bit floats are computed in float32, bool in uint8 holding 0 or 1.
struct half_t {
  uint16_t bits;
};
struct bfloat16_t {
  uint16_t bits;
};
struct bool_t {
  uint8_t bits;
};

// X(enumerator, storage type, compute type)
#define INPLACE_EXT_FOR_DTYPES(X) \
  X(f32, float, float)            \
  X(f64, double, double)          \
  X(f16, half_t, float)           \
  X(bf16, bfloat16_t, float)      \
  X(u8, uint8_t, uint8_t)         \
  X(i8, int8_t, int8_t)           \
  X(i16, int16_t, int16_t)        \
  X(i32, int32_t, int32_t)        \
  X(i64, int64_t, int64_t)        \
  X(b8, bool_t, uint8_t)

template <class T>
struct storage_traits;
template <DType D>
struct dtype_traits;
#define INPLACE_EXT_TRAITS(NAME, STORAGE, COMPUTE) \
  template <>                                      \
  struct storage_traits<STORAGE> {                 \
    using compute = COMPUTE;                       \
    static constexpr DType dtype = DType::NAME;    \
  };                                               \
  template <>                                      \
  struct dtype_traits<DType::NAME> {               \
    using storage = STORAGE;                       \
  };
INPLACE_EXT_FOR_DTYPES(INPLACE_EXT_TRAITS)
#undef INPLACE_EXT_TRAITS

constexpr int item_size(DType t) {
  constexpr int size[kDTypes] = {4, 8, 2, 2, 1, 1, 2, 4, 8, 1};
  return size[static_cast<int>(t)];
}
constexpr bool is_floating(DType t) {
  return t <= DType::bf16;
}
constexpr bool is_reduced_floating(DType t) {
  return t == DType::f16 || t == DType::bf16;
}
// The type in which values stored as `t` are computed.
constexpr DType compute_dtype(DType t) {
  return is_reduced_floating(t) ? DType::f32 : t == DType::b8 ? DType::u8 : t;
}

} // namespace inplace_ext
