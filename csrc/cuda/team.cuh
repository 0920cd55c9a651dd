// Teams (core/team.h) of a device: the threads of a block, and the first of them.
#pragma once

#include "macros.h"

namespace polyfuse {

constexpr int kWarp = 32;

template <class Self>
struct Team {
  template <class F>
  PF_DEVICE void each(int n, F&& f) const {
    const Self& self = static_cast<const Self&>(*this);
#pragma unroll 1  // seldom more than once
    for (int i = threadIdx.x; i < n; i += self.size()) f(i);
    self.meet();
  }
  template <class F>
  PF_DEVICE void each_of(int rows, int columns, F&& f) const {
    each(rows * columns, [&](int e) { f(e / columns, e % columns); });
  }
  template <class F>
  PF_DEVICE void one(F&& f) const {
    if (threadIdx.x == 0) f();
    static_cast<const Self&>(*this).meet();
  }
};

struct Block : Team<Block> {
  static PF_DEVICE int size() { return blockDim.x; }
  static PF_DEVICE void meet() { __syncthreads(); }
};

// The first warp of a block, or all.
struct Crew : Team<Crew> {
  bool whole;

  PF_DEVICE explicit Crew(bool whole) : whole(whole) {}
  PF_DEVICE int size() const { return whole ? blockDim.x : kWarp; }
  PF_DEVICE void meet() const {
    if (whole)
      __syncthreads();
    else
      __syncwarp();
  }
};

}  // namespace polyfuse
