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

// Shared memory for one T, whose constructor does not run.
#define PF_SHARED(T, name)                                   \
  __shared__ __align__(16) unsigned char name##_[sizeof(T)]; \
  T& name = *reinterpret_cast<T*>(name##_)

}  // namespace polyfuse
