// Samples whose columns lie in shared memory, a column after the other, and sums over them.
#pragma once

#include "criterion.cuh"
#include "passes.cuh"
#include "reduce.cuh"
#include "surface.h"
#include "target.cuh"

namespace polyfuse {

constexpr int kSurfaceWarps = kSurfaceThreads / kWarp;
constexpr int64_t kPilotRows = 16;  // samples of the pilot fit for each of its columns, at least

struct Tile {
  int width, rows, pitch, columns;
  double *phi, *w;  // [W, pitch], [rows]: 0 for what is left out

  static PF_DEVICE Tile of(const SurfaceRun& run) {
    const int columns = run.factors.columns, width = surface_width(columns, run.n_outputs);
    double* const phi = reinterpret_cast<double*>(dynamic_shared());
    return {
        width, tile_rows(width), tile_pitch(width), columns, phi, phi + width * tile_pitch(width)};
  }
  PF_HD double* column(int c) const { return phi + c * pitch; }
  // Of an output: y, from which residuals and derivatives are made.
  PF_HD double& residual(int c, int row) const { return column(columns + c)[row]; }

  // f(c) of the row of this thread, for the outputs that are its own among those of the row.
  template <class F>
  PF_DEVICE void each_output(int outputs, F&& f) const {
    for (int c = threadIdx.x / rows; c < outputs; c += blockDim.x / rows) f(c);
  }
};

// Of the data's dtype, which is known at run time alone: kernels for each take long to compile.
struct Numbers {
  const void* at;
  Dtype dtype;
  PF_HD double operator[](int64_t i) const {
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

// The weight of a sample; of one whose outputs have weights of their own, the first that is not 0.
PF_DEVICE double weight_of_all(const SurfaceRun& run, const Data& data, int64_t i) {
  const Numbers w{data.w, data.dtype};
  if (!w.at) return 1.0;
  double weight = w[i * data.w_stride];
  for (int c = 1; run.w_output != 0 && weight == 0.0 && c < run.n_outputs; ++c)
    weight = w[i * data.w_stride + c * run.w_output];
  return weight;
}

PF_DEVICE bool is_finite(const SurfaceRun& run, const Data& data, int64_t i) {
  const Numbers x{data.x, data.dtype}, y{data.y, data.dtype};
  bool all = true;
  for (int c = 0; c < run.n_outputs; ++c)
    all = all && finite(y[i * data.y_stride + c * run.y_output]);
  for (int v = 0; v < run.n_variables; ++v)
    all = all && finite(x[i * data.x_stride + v * data.x_column]);
  return all;
}

// f(i) with the samples of every tile of this block, one of so many, on chip, i being that of the
// thread's row; all threads come. Residuals hold y, but of classes.
template <class F>
PF_DEVICE void for_each_tile(const SurfaceRun& run, const Data& data, int64_t block, int64_t blocks,
                             const Tile& tile, F&& f) {
  const Numbers x{data.x, data.dtype}, y{data.y, data.dtype};
  const bool classes = run.criterion.kind == CriterionKind::CrossEntropy;
  const int row = threadIdx.x % tile.rows, step = blockDim.x / tile.rows;
  const int filled = tile.columns + (classes ? 0 : run.n_outputs);
#pragma unroll 1
  for (int64_t first = block * tile.rows; first < data.n; first += blocks * tile.rows) {
    const int64_t i = first + row;
    const int64_t at = i * data.x_stride;
    if (static_cast<int>(threadIdx.x) < tile.rows) {
      double weight = i < data.n ? weight_of_all(run, data, i) : 0.0;
      if (weight != 0.0 && data.omit && !is_finite(run, data, i)) weight = 0.0;
      tile.w[row] = weight;
    }
    __syncthreads();
    const bool counts = tile.w[row] != 0.0;
    for (int c = threadIdx.x / tile.rows; c < tile.width; c += step) {
      double value = 0.0;
      if (counts && c < tile.columns)
        value = column_at(run.factors, c, x, at, data.x_column);
      else if (counts && c < filled)
        value = y[i * data.y_stride + (c - tile.columns) * run.y_output];
      tile.column(c)[row] = value;
    }
    __syncthreads();
    f(i);
    __syncthreads();
  }
}

// V coef of a row, in one output of [K, C]
PF_DEVICE double predict(const SurfaceRun& run, const Tile& tile, const double* coef, int c,
                         int row) {
  double value = 0.0;
  const int outputs = run.n_outputs;
#pragma unroll 4
  for (int k = 0, j = c; j < run.n_coefficients; ++k, j += outputs)
    value += tile.column(k)[row] * coef[j];
  return value;
}

// Sums besides those of slope phi: of w value, of what counts in the mean, and of samples kept.
using Rest = double[kSurfaceRest];

struct Logits {
  const Tile& tile;
  int row;
  PF_HD double& operator[](int c) const { return tile.residual(c, row); }
};

struct Shares {
  const SurfaceRun& run;
  const Target& target;
  int64_t i;
  PF_HD double operator[](int c) const {
    return target.share(run, Numbers{run.data.y, run.data.dtype}, i, c);
  }
};

// The terms that are part of the loss.
struct Part {
  bool alone;
  int64_t of_class;
  PF_HD double operator()(int c, double term) const { return alone && of_class != c ? 0.0 : term; }
};

// Of the outputs of a row, predictions become derivatives of their cross entropy.
PF_DEVICE void classes_of_row(const SurfaceRun& run, const Tile& tile, int row, int64_t i,
                              Rest& rest) {
  const Target target = Target::of(run, i, tile.w[row]);
  const Logits z{tile, row};
  const InTurn all{run.n_outputs};
  if (!target.kept()) return all.each([&](int c) { z[c] = 0.0; });
  rest[0] += cross_entropy(all, Shares{run, target, i}, z, Part{is_alone(run), target.of_class});
  rest[1] += target.weight * target.of_mean;
  rest[2] += 1.0;
}

// The residuals of a tile become derivatives of the loss, times weights; all threads come.
PF_DEVICE void take_slopes(const SurfaceRun& run, const Tile& tile, const double* coef, int64_t i,
                           Rest& rest) {
  const bool classes = run.criterion.kind == CriterionKind::CrossEntropy;
  const int row = threadIdx.x % tile.rows;
  const bool counts = tile.w[row] != 0.0;
  tile.each_output(run.n_outputs, [&](int c) {
    double& residual = tile.residual(c, row);
    double w = tile.w[row];
    if (counts && run.w_output != 0)
      w = Numbers{run.data.w, run.data.dtype}[i * run.data.w_stride + c * run.w_output];
    if (w == 0.0) {
      residual = 0.0;
      return;
    }
    const double z = predict(run, tile, coef, c, row);
    if (classes) {
      residual = z;
      return;
    }
    const auto rho = Any::at(z, residual, run.criterion);
    rest[0] += w * rho.value;
    rest[1] += w;
    residual = w * rho.slope;
  });
  __syncthreads();
  if (!classes) return;
  if (static_cast<int>(threadIdx.x) < tile.rows && counts) classes_of_row(run, tile, row, i, rest);
  __syncthreads();
}

// sums [1 + P + 2] over this block's tiles: of w value, w slope phi, and the rest.
PF_DEVICE void sum_loss(const SurfaceRun& run, const double* coef, double* scratch, double* sums) {
  constexpr int kMost = (kMaxParams + kSurfaceWarps - 1) / kSurfaceWarps;  // of a warp
  const Tile tile = Tile::of(run);
  const int n = run.n_coefficients, outputs = run.n_outputs;
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  double slopes[kMost] = {};
  Rest rest = {};
  for_each_tile(run, run.data, blockIdx.x, gridDim.x, tile, [&](int64_t i) {
    take_slopes(run, tile, coef, i, rest);
    PF_UNROLL
    for (int m = 0; m < kMost; ++m) {
      const int j = warp + m * kSurfaceWarps;
      if (j >= n) continue;
      const int k = outputs == 1 ? j : j / outputs;
      const double *const phi = tile.column(k), *const slope = &tile.residual(j - k * outputs, 0);
      for (int r = lane; r < tile.rows; r += kWarp) slopes[m] += phi[r] * slope[r];
    }
  });
  double* const of_all = scratch + kSurfaceRest * kSurfaceWarps;
  sum_block(rest, scratch, of_all);
  if (threadIdx.x == 0) {
    sums[0] = of_all[0];
    for (int r = 1; r < kSurfaceRest; ++r) sums[n + r] = of_all[r];
  }
  PF_UNROLL
  for (int m = 0; m < kMost; ++m) {
    PF_UNROLL
    for (int offset = kWarp / 2; offset > 0; offset /= 2)
      slopes[m] += __shfl_down_sync(0xffffffffu, slopes[m], offset);
    const int j = warp + m * kSurfaceWarps;
    if (lane == 0 && j < n) sums[1 + j] = slopes[m];
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
