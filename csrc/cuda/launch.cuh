// One way to launch: every kernel takes a Run, or what else tells it of its grid, by value.
#pragma once

#include <map>
#include <stdexcept>
#include <utility>

#include "../core/run.h"
#include "macros.h"

namespace polyfuse {

// Bytes of shared memory: what a kernel declares, at most, and what it may have beyond without its
// consent.
constexpr int64_t kDeclared = 32 * 1024;
constexpr int64_t kSharedByDefault = 48 * 1024 - kDeclared;

inline void check(cudaError_t status) {
  if (status != cudaSuccess) throw std::runtime_error(cudaGetErrorString(status));
}

// Never less than before: a graph may hold an earlier launch.
inline void allow_shared(const void* kernel, int32_t device, int64_t bytes) {
  static std::map<std::pair<const void*, int32_t>, int64_t> allowed;
  int64_t& most = allowed[{kernel, device}];
  if (bytes <= most) return;
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                             static_cast<int>(bytes)));
  most = bytes;
}

template <class Told>
void launch(void (*kernel)(Told), const Told& run, void* stream) {
  const Geometry& grid = run.grid;
  check(cudaSetDevice(run.device));  // the runtime linked here has a current device of its own
  if (grid.shared > kSharedByDefault)
    allow_shared(reinterpret_cast<const void*>(kernel), run.device, grid.shared);
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
