// The only file that asks which compiler runs.
#pragma once

#if defined(__CUDACC__)
#define PF_HD __host__ __device__ __forceinline__
#elif defined(__GNUC__)
#define PF_HD inline __attribute__((always_inline))
#else
#define PF_HD inline
#endif

// The CPU kernels are compiled once per instruction set. Everything inlined into them lives in a
// namespace of that instruction set, so that the linker never hands AVX code to an older machine.
#if !defined(PF_ISA)
#define PF_ISA portable
#endif
