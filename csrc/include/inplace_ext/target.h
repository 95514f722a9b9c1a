// How functions and tables are declared that the CPU's and the device's kernels share.
#pragma once

#if defined(__CUDACC__)
// A function of the kernels of both.
#define IE_BOTH __device__
#define IE_INLINE __device__ __forceinline__
// A function that is called rarely: not worth its place in the caller where calls are cheap. On the device
// they are not.
#define IE_OUTLINE __device__
// An array of constants; on the device an access with an index known at compile time becomes the constant.
#define IE_TABLE static __device__ constexpr
#define IE_UNROLL(N) _Pragma("unroll")
#define IE_NO_UNROLL _Pragma("unroll 1")
// References to tables are followed at compile time; long double stands in branches for processors without
// fused multiply-add alone.
#pragma nv_diag_suppress 20094, 20208
#else
#define IE_BOTH
#define IE_INLINE inline __attribute__((always_inline))
#define IE_OUTLINE __attribute__((noinline)) inline
#define IE_TABLE inline constexpr
#define IE_PRAGMA(TEXT) _Pragma(#TEXT)
#define IE_UNROLL(N) IE_PRAGMA(GCC unroll N)
#define IE_NO_UNROLL IE_PRAGMA(GCC unroll 1)
#endif
