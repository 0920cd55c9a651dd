// Sums over all samples: threads take blocks, partial sums are added in the order of the blocks.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "../core/problem.h"

namespace polyfuse {

constexpr int64_t kBlock = 16384;     // samples; a multiple of the lanes
constexpr int64_t kMaxBlocks = 4096;  // bounds the partial sums
constexpr int64_t kParallelFrom = 4 * kBlock;

inline int64_t block_size(int64_t n) {
  const int64_t grown = (n + kMaxBlocks - 1) / kMaxBlocks;
  return std::max(kBlock, (grown + kBlock - 1) / kBlock * kBlock);
}

// Every so many of the samples.
inline Data thinned(Data data, int64_t every) {
  data.n = (data.n + every - 1) / every;
  data.x_stride *= every;
  data.y_stride *= every;
  data.w_stride *= every;
  return data;
}

// out = sum over blocks, in order, of pass(begin, end, partial).
template <class Sum, class Pass>
void reduce(int64_t n, int n_sums, int threads, Sum* out, Pass&& pass) {
  const int64_t block = block_size(n);
  const int64_t n_blocks = std::max<int64_t>(1, (n + block - 1) / block);
  if (n_blocks == 1) return pass(int64_t(0), n, out);
  std::vector<Sum> many(static_cast<size_t>(n_blocks * n_sums));
  const bool parallel = threads > 1 && n >= kParallelFrom;
#pragma omp parallel for num_threads(threads) schedule(static) if (parallel)
  for (int64_t b = 0; b < n_blocks; ++b)
    pass(b * block, std::min(n, (b + 1) * block), &many[static_cast<size_t>(b * n_sums)]);
  std::fill(out, out + n_sums, Sum{});
  for (int64_t b = 0; b < n_blocks; ++b)
    for (int s = 0; s < n_sums; ++s) out[s] += many[static_cast<size_t>(b * n_sums + s)];
}

}  // namespace polyfuse
