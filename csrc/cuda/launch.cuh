// One way to launch: every kernel takes a Run, or what else tells it of its grid, by value.
#pragma once

#include <stdexcept>
#include <string>

#include "../core/run.h"
#include "macros.h"

namespace polyfuse {

// More needs a kernel's consent: 48 KiB, of which a kernel may have declared 32.
constexpr int64_t kSharedByDefault = 16 * 1024;

inline void check(cudaError_t status) {
  if (status != cudaSuccess) throw std::runtime_error(cudaGetErrorString(status));
}

template <class Told>
void launch(void (*kernel)(Told), const Told& run, void* stream) {
  const Geometry& grid = run.grid;
  check(cudaSetDevice(run.device));  // the runtime linked here has a current device of its own
  if (grid.shared > kSharedByDefault)
    check(cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel),
                               cudaFuncAttributeMaxDynamicSharedMemorySize,
                               static_cast<int>(grid.shared)));
  cudaLaunchAttribute attribute;
  attribute.id = cudaLaunchAttributeCooperative;
  attribute.val.cooperative = 1;
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(grid.blocks);
  config.blockDim = dim3(grid.threads);
  config.dynamicSmemBytes = static_cast<size_t>(grid.shared);
  config.stream = static_cast<cudaStream_t>(stream);
  config.attrs = &attribute;
  config.numAttrs = grid.cooperative ? 1 : 0;
  check(cudaLaunchKernelEx(&config, kernel, run));
}

}  // namespace polyfuse
