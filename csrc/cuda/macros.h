// The CUDA runtime, or what stands in for it in the tests; nothing else asks which of them it is.
#pragma once

#include <cuda_runtime.h>

#define PF_DEVICE __device__ __forceinline__

namespace polyfuse {

#if defined(__CUDACC__)
PF_DEVICE char* dynamic_shared() {
  extern __shared__ __align__(16) char bytes[];
  return bytes;
}
PF_DEVICE void wait_a_little() {}
#else
inline char* dynamic_shared() { return emulation::dynamic_shared(); }
inline void wait_a_little() { emulation::wait_a_little(); }
#endif

constexpr int kProductDepth = 4;  // samples of a product on tensor cores

// sum += a^T diag(w) b of 4 samples, 8 columns of each `pitch` apart: lane l of a warp has row l /
// 4 of the result, columns 2 (l % 4) and the next.
PF_DEVICE void multiply_add(const double* a, const double* b, const double* w, int pitch,
                            double (&sum)[2]) {
  const int lane = threadIdx.x % 32;
#if defined(__CUDACC__)
  const int row = lane % 4, at = lane / 4 * pitch + row;
  asm volatile("mma.sync.aligned.m8n8k4.row.col.f64.f64.f64.f64 {%0, %1}, {%2}, {%3}, {%0, %1};"
               : "+d"(sum[0]), "+d"(sum[1])
               : "d"(a[at] * w[row]), "d"(b[at]));
#else
  for (int h = 0; h < 2; ++h)
    for (int row = 0; row < kProductDepth; ++row)
      sum[h] += a[lane / 4 * pitch + row] * w[row] * b[(lane % 4 * 2 + h) * pitch + row];
#endif
}

// Shared memory for one T, whose constructor does not run.
#define PF_SHARED(T, name)                                   \
  __shared__ __align__(16) unsigned char name##_[sizeof(T)]; \
  T& name = *reinterpret_cast<T*>(name##_)

}  // namespace polyfuse
