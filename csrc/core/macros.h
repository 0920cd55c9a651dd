// The only file that asks which compiler runs.
#pragma once

#if defined(__CUDACC__)
#define PF_HD __host__ __device__ __forceinline__
#define PF_HD_APART inline __host__ __device__ __noinline__  // in a function of its own
#define PF_ALWAYS_INLINE
#define PF_UNROLL _Pragma("unroll")
#define PF_ROLLED _Pragma("unroll 1")  // few rounds, seldom run: a device's code stays small
#elif defined(__GNUC__)
#define PF_ALWAYS_INLINE __attribute__((always_inline))  // of a lambda
#define PF_HD inline PF_ALWAYS_INLINE
#else
#define PF_ALWAYS_INLINE
#define PF_HD inline
#endif
#if !defined(PF_UNROLL)
#define PF_HD_APART PF_HD
#define PF_UNROLL
#define PF_ROLLED
#endif

// The CPU kernels are compiled once per instruction set. Everything inlined into them lives in a
// namespace of that instruction set, so that the linker never hands AVX code to an older machine.
#if !defined(PF_ISA)
#define PF_ISA portable
#endif
