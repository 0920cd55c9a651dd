// Sums over a block and over the grid, in a fixed order: the same bits from launch to launch. Not
// CUB's, which takes the same shuffles, but a pair of barriers for each of the K + 2 to 3 K sums.
#pragma once

#include "../core/problem.h"
#include "macros.h"
#include "team.cuh"

namespace polyfuse {

constexpr int kMaxSums = 3 * kMaxTerms;
constexpr int kOnTheirWay = 8;          // partial sums of a thread
constexpr int kScratch = 8 * kMaxSums;  // 8 warps of the most sums; 16 of at most half as many

// Counters that every launch leaves at 0; partial sums follow them.
struct alignas(64) Workspace {
  unsigned ticket;
  unsigned leaving;
  unsigned long long arrived;

  PF_DEVICE double* sums() { return reinterpret_cast<double*>(this + 1); }
};

// out[s] = value[s] of all threads, folded; every thread of the block may read it.
template <int S, class Fold>
PF_DEVICE void fold_block(const double (&value)[S], double* scratch, double* out, Fold&& fold) {
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp, warps = blockDim.x / kWarp;
  PF_UNROLL
  for (int s = 0; s < S; ++s) {
    double v = value[s];
    PF_UNROLL
    for (int offset = kWarp / 2; offset > 0; offset /= 2)
      v = fold(v, __shfl_down_sync(0xffffffffu, v, offset));
    if (lane == 0) scratch[warp * S + s] = v;
  }
  __syncthreads();
  for (int s = threadIdx.x; s < S; s += blockDim.x) {
    double v = scratch[s];
    for (int w = 1; w < warps; ++w) v = fold(v, scratch[w * S + s]);
    out[s] = v;
  }
  __syncthreads();
}

template <int S>
PF_DEVICE void sum_block(const double (&value)[S], double* scratch, double* out) {
  fold_block(value, scratch, out, [](double a, double b) { return a + b; });
}

// This block's sums, for the others.
PF_DEVICE void publish(const double* sums, int n_sums, double* partial /* [blocks, n_sums] */) {
  for (int s = threadIdx.x; s < n_sums; s += blockDim.x)
    partial[int64_t(blockIdx.x) * n_sums + s] = sums[s];
}

// sums[s] = all blocks' partial sums, added in the order of groups of blocks.
PF_DEVICE void combine(const double* partial, int n_sums, double* scratch, double* sums) {
  const int blocks = gridDim.x, threads = blockDim.x;
  const int groups = threads > n_sums ? threads / n_sums : 1;
  for (int e = threadIdx.x; e < groups * n_sums; e += threads) {
    const double* const from = partial + e % n_sums;
    double v = 0.0;
#pragma unroll 1
    for (int b = e / n_sums; b < blocks; b += kOnTheirWay * groups) {
      double part[kOnTheirWay];  // loaded before any is added: the compiler does not reorder __ldcg
      PF_UNROLL
      for (int i = 0; i < kOnTheirWay; ++i) {
        const int at = b + i * groups;
        part[i] = at < blocks ? __ldcg(from + int64_t(at) * n_sums) : 0.0;
      }
      PF_UNROLL
      for (int i = 0; i < kOnTheirWay; ++i) v += part[i];
    }
    scratch[e] = v;
  }
  __syncthreads();
  for (int s = threadIdx.x; s < n_sums; s += threads) {
    double v = scratch[s];
    for (int g = 1; g < groups; ++g) v += scratch[g * n_sums + s];
    sums[s] = v;
  }
  __syncthreads();
}

// True in the block that comes last, which sees what the others have published.
PF_DEVICE bool comes_last(Workspace* workspace) {
  __shared__ bool last;
  __threadfence();
  __syncthreads();
  if (threadIdx.x == 0) {
    last = atomicInc(&workspace->ticket, gridDim.x - 1) == gridDim.x - 1;
    __threadfence();
  }
  __syncthreads();
  return last;
}

// Sums of the whole grid in the block that comes last; false in the others.
PF_DEVICE bool sum_grid(Workspace* workspace, int n_sums, double* scratch, double* sums) {
  if (gridDim.x == 1) return true;
  publish(sums, n_sums, workspace->sums());
  if (!comes_last(workspace)) return false;
  combine(workspace->sums(), n_sums, scratch, sums);
  return true;
}

// All blocks of a cooperative grid meet.
PF_DEVICE void meet_grid(Workspace* workspace) {
  __syncthreads();
  if (threadIdx.x == 0) {
    __threadfence();
    const unsigned long long blocks = gridDim.x;
    const unsigned long long before = atomicAdd(&workspace->arrived, 1ull);
    const unsigned long long all = (before / blocks + 1) * blocks;
    const volatile unsigned long long* const arrived = &workspace->arrived;
    while (*arrived < all) wait_a_little();
    __threadfence();
  }
  __syncthreads();
}

// After the last meeting.
PF_DEVICE void leave_grid(Workspace* workspace) {
  if (threadIdx.x != 0 || gridDim.x == 1) return;
  if (atomicInc(&workspace->leaving, gridDim.x - 1) != gridDim.x - 1) return;
  workspace->arrived = 0;
}

}  // namespace polyfuse
