// Samples whose columns lie in shared memory, a column after the other, and sums over them.
#pragma once

#include "criterion.cuh"
#include "passes.cuh"
#include "reduce.cuh"
#include "surface.h"

namespace polyfuse {

constexpr int kSurfaceWarps = kSurfaceThreads / kWarp;

struct Tile {
  int width, rows, pitch;
  double *phi, *y, *w;  // [W, pitch], [rows], [rows]: 0 for what is left out

  static PF_DEVICE Tile of(const Factors& factors) {
    const int width = surface_width(factors.columns), rows = tile_rows(width);
    double* const phi = reinterpret_cast<double*>(dynamic_shared());
    double* const y = phi + width * tile_pitch(width);
    return {width, rows, tile_pitch(width), phi, y, y + rows};
  }
  PF_DEVICE double* column(int c) const { return phi + c * pitch; }
};

// Of the data's dtype, which is known at run time alone: kernels for each take long to compile.
struct Numbers {
  const void* at;
  Dtype dtype;
  PF_DEVICE double operator[](int64_t i) const {
    return dtype == Dtype::Float32 ? static_cast<const float*>(at)[i]
                                   : static_cast<const double*>(at)[i];
  }
};

// A column of the sample whose x are at[first], at[first + stride], ...
PF_DEVICE double column_at(const Factors& f, int c, const Numbers& at, int64_t first,
                           int64_t stride) {
  double phi = 1.0;
  for (int d = 0, size = f.depth * f.columns; d < f.depth; ++d) {
    const int i = d * f.columns + c;
    const int32_t v = f.variable[i];
    if (v < 0) break;
    phi *= (at[first + v * stride] - f.frame[i]) * f.frame[size + i] - f.frame[2 * size + i];
  }
  return phi;
}

// f() with the samples of every tile of this block, one of so many, on chip; all threads come.
template <class F>
PF_DEVICE void for_each_tile(const SurfaceRun& run, const Data& data, int64_t block, int64_t blocks,
                             const Tile& tile, F&& f) {
  const Numbers x{data.x, data.dtype}, y{data.y, data.dtype}, w{data.w, data.dtype};
  const int row = threadIdx.x % tile.rows, step = blockDim.x / tile.rows;
#pragma unroll 1
  for (int64_t first = block * tile.rows; first < data.n; first += blocks * tile.rows) {
    const int64_t i = first + row;
    const int64_t at = i * data.x_stride;
    if (static_cast<int>(threadIdx.x) < tile.rows) {
      double weight = 0.0, value = 0.0;
      if (i < data.n) {
        weight = w.at ? w[i * data.w_stride] : 1.0;
        value = y[i * data.y_stride];
        bool keep = !data.omit || finite(value);
        for (int v = 0; data.omit && v < run.n_variables; ++v)
          keep = keep && finite(x[at + v * data.x_column]);
        if (!keep) weight = 0.0;
      }
      tile.w[row] = weight;
      tile.y[row] = weight == 0.0 ? 0.0 : value;
    }
    __syncthreads();
    const bool counts = tile.w[row] != 0.0;
    for (int c = threadIdx.x / tile.rows; c < tile.width; c += step) {
      const bool there = counts && c < run.factors.columns;
      tile.column(c)[row] = there ? column_at(run.factors, c, x, at, data.x_column) : 0.0;
    }
    __syncthreads();
    f();
    __syncthreads();
  }
}

// V coef of a row
PF_DEVICE double predict(const Tile& tile, const double* coef, int terms, int row) {
  double value = 0.0;
#pragma unroll 4
  for (int k = 0; k < terms; ++k) value += tile.column(k)[row] * coef[k];
  return value;
}

// sums [K + 2] of w value, w slope phi_k and w over this block's tiles.
PF_DEVICE void sum_loss(const SurfaceRun& run, const double* coef, double* scratch, double* sums) {
  constexpr int kMost = (kMaxParams + kSurfaceWarps - 1) / kSurfaceWarps;  // terms of a warp
  const Tile tile = Tile::of(run.factors);
  const int terms = run.n_coefficients, row = threadIdx.x;
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  double ends[2] = {}, slopes[kMost] = {};
  for_each_tile(run, run.data, blockIdx.x, gridDim.x, tile, [&] {
    if (row < tile.rows && tile.w[row] != 0.0) {
      const double w = tile.w[row];
      const auto rho = Any::at(predict(tile, coef, terms, row), tile.y[row], run.criterion);
      ends[0] += w * rho.value;
      ends[1] += w;
      tile.y[row] = w * rho.slope;
    }
    __syncthreads();
    PF_UNROLL
    for (int m = 0; m < kMost; ++m) {
      const int k = warp + m * kSurfaceWarps;
      if (k < terms)
        for (int r = lane; r < tile.rows; r += kWarp) slopes[m] += tile.column(k)[r] * tile.y[r];
    }
  });
  double* const of_all = scratch + 2 * kSurfaceWarps;
  sum_block(ends, scratch, of_all);
  if (threadIdx.x == 0) sums[0] = of_all[0], sums[terms + 1] = of_all[1];
  PF_UNROLL
  for (int m = 0; m < kMost; ++m) {
    PF_UNROLL
    for (int offset = kWarp / 2; offset > 0; offset /= 2)
      slopes[m] += __shfl_down_sync(0xffffffffu, slopes[m], offset);
    const int k = warp + m * kSurfaceWarps;
    if (lane == 0 && k < terms) sums[1 + k] = slopes[m];
  }
  __syncthreads();
}

// The upper triangle of a matrix of products in blocks of 8 x 8, some to a warp; where there are
// fewer blocks than warps, these share the rows.
struct GramSums {
  static constexpr int kMost = 6;  // blocks of a warp
  static_assert(kMost * kSurfaceWarps >= 45, "9 blocks a side");
  double sum[kMost][2] = {};  // of row lane / 4, two columns from 2 (lane % 4) on

  static PF_DEVICE int sides(const Tile& tile) { return tile.width / kBlockColumns; }
  static PF_DEVICE int blocks(const Tile& tile) { return sides(tile) * (sides(tile) + 1) / 2; }
  // Warps that share a block's rows: 8, 2 or 1.
  static PF_DEVICE int shares(const Tile& tile) {
    return blocks(tile) <= kSurfaceWarps / 2 ? kSurfaceWarps / blocks(tile) : 1;
  }

  // f(m, i, j) for this warp's blocks, whose share of the rows is `share`.
  template <class F>
  PF_DEVICE void each(const Tile& tile, int& share, F&& f) {
    const int per_share = kSurfaceWarps / shares(tile), warp = threadIdx.x / kWarp;
    share = warp / per_share;
    PF_UNROLL
    for (int m = 0; m < kMost; ++m) {
      int j = warp % per_share + m * per_share, i = 0;
      if (j >= blocks(tile)) continue;
      for (; j >= sides(tile) - i; ++i) j -= sides(tile) - i;
      f(m, i * kBlockColumns, (i + j) * kBlockColumns);
    }
  }

  PF_DEVICE void add(const Tile& tile) {
    int share;
    const int rows = tile.rows / shares(tile);
    each(tile, share, [&](int m, int i, int j) {
      for (int r = share * rows; r < (share + 1) * rows; r += kProductDepth)
        multiply_add(tile.column(i) + r, tile.column(j) + r, tile.w + r, tile.pitch, sum[m]);
    });
  }

  // Into `matrix` [W, W], which may lie where the tile does.
  PF_DEVICE void gather(const Tile& tile, double* matrix) {
    const int lane = threadIdx.x % kWarp;
    for (int turn = 0; turn < shares(tile); ++turn) {
      __syncthreads();
      int share;
      each(tile, share, [&](int m, int i, int j) {
        if (share != turn) return;
        for (int h = 0; h < 2; ++h) {
          const int a = i + lane / 4, b = j + 2 * (lane % 4) + h;
          double& upper = matrix[a * tile.width + b];
          upper = turn == 0 ? sum[m][h] : upper + sum[m][h];
          if (i != j) matrix[b * tile.width + a] = upper;
        }
      });
    }
    __syncthreads();
  }
};

}  // namespace polyfuse
