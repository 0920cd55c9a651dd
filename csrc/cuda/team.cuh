// Teams (core/team.h) of a device: the threads of the first warp, and of a block.
#pragma once

#include "macros.h"

namespace polyfuse {

constexpr int kWarp = 32;

template <class Self>
struct Team {
  template <class F>
  PF_DEVICE void each(int n, F&& f) const {
#pragma unroll 1  // seldom more than once
    for (int i = threadIdx.x; i < n; i += Self::size()) f(i);
    Self::meet();
  }
  template <class F>
  PF_DEVICE void each_of(int rows, int columns, F&& f) const {
    each(rows * columns, [&](int e) { f(e / columns, e % columns); });
  }
  template <class F>
  PF_DEVICE void one(F&& f) const {
    if (threadIdx.x == 0) f();
    Self::meet();
  }
};

struct Warp : Team<Warp> {
  static PF_DEVICE int size() { return kWarp; }
  static PF_DEVICE void meet() { __syncwarp(); }
};

struct Block : Team<Block> {
  static PF_DEVICE int size() { return blockDim.x; }
  static PF_DEVICE void meet() { __syncthreads(); }
};

}  // namespace polyfuse
