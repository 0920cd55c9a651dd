// Models of several variables, and any that are linear in columns: the fused step and whole runs. A
// block takes tiles of samples; sums of products of columns are matrix products on tensor cores.
#include "../core/gram.h"
#include "descend.cuh"
#include "launch.cuh"
#include "launch.h"
#include "surface.h"
#include "tile.cuh"

namespace polyfuse {
namespace {

struct MatrixAt {
  const double* at;
  int width;
  PF_DEVICE double operator()(int i, int j) const { return at[i * width + j]; }
};

struct Board {
  Desk desk;
  double reference[kMaxSurfaceColumns];

  PF_DEVICE GramMoments<MatrixAt> moments(const SurfaceRun& run, const double* matrix) const {
    const int residual = run.factors.columns, width = surface_width(residual);
    const double* const row = matrix + residual * width;
    return {run.n_coefficients, {matrix, width}, reference, row, row[residual]};
  }
};

// True in the one block whose `matrix` has the moments of all the data.
PF_DEVICE bool accumulate(const Block& block, Board& board, const SurfaceRun& run, double* matrix) {
  const Tile tile = Tile::of(run.factors);
  const int terms = run.n_coefficients, row = threadIdx.x;
  double* const residual = tile.column(run.factors.columns);
  block.each(terms, [&](int k) { board.reference[k] = 0.0; });
#pragma unroll 1  // one body for the pilot and the whole
  for (int pass = 0; pass < 2; ++pass) {
    const bool whole = pass == 1;
    const Data data = whole ? run.data : pilot_of(run.data);
    GramSums sums;
    for_each_tile(run, data, whole ? blockIdx.x : 0, whole ? gridDim.x : 1, tile, [&] {
      if (row < tile.rows && tile.w[row] != 0.0)
        residual[row] = predict(tile, board.reference, terms, row) - tile.y[row];
      __syncthreads();
      sums.add(tile);
    });
    sums.gather(tile, matrix);
    if (!whole)
      board.moments(run, matrix).solve(block, board.reference, matrix + tile.width * tile.width);
  }
  return sum_grid(workspace_of(run), tile.width * tile.width, matrix, matrix);
}

// The moments buffer, read or written.
template <class F>
PF_DEVICE void each_entry(const Block& block, Board& board, const SurfaceRun& run, double* matrix,
                          F&& f) {
  const int width = surface_width(run.factors.columns), size = width * width;
  block.each(size, [&](int e) { f(matrix[e], run.moments[e]); });
  block.each(run.n_coefficients, [&](int k) { f(board.reference[k], run.moments[size + k]); });
}

PF_DEVICE void descend_on(Board& board, const SurfaceRun& run, const double* matrix) {
  const Crew crew = crew_of(run);
  if (static_cast<int>(threadIdx.x) >= crew.size()) return;
  Desk& desk = board.desk;
  const GramMoments<MatrixAt> moments = board.moments(run, matrix);
  const int one = run.factors.one, width = moments.gram.width, size = width * width;
  desk.load_map(crew, run);
  const double weight = run.criterion.weight * (run.mean ? 1.0 / moments.gram(one, one) : 1.0);
  GramObjective<MatrixAt> objective{desk.map, moments, weight, desk.coef, desk.sums, desk.scratch};
  const int64_t on_chip = (size + closed_form_work(run.n_params)) * int64_t{sizeof(double)};
  double* const work = on_chip <= run.grid.shared
                           ? reinterpret_cast<double*>(dynamic_shared()) + size
                           : workspace_of(run)->sums() + int64_t(gridDim.x) * size;
  descend_on_moments(crew, desk, run, objective, moments.square, work, SkipNothing{});
}

__global__ void __launch_bounds__(kSurfaceThreads, 2)
    surface_moments(const __grid_constant__ SurfaceRun run) {
  PF_SHARED(Board, board);
  const Block block;
  double* const matrix = reinterpret_cast<double*>(dynamic_shared());
  if (!accumulate(block, board, run, matrix)) return;
  each_entry(block, board, run, matrix, [](double& here, double& there) { there = here; });
  if (!(run.flags & kMoments)) descend_on(board, run, matrix);
}

__global__ void __launch_bounds__(kSurfaceThreads, 2)
    surface_epochs(const __grid_constant__ SurfaceRun run) {
  PF_SHARED(Board, board);
  const Block block;
  double* const matrix = reinterpret_cast<double*>(dynamic_shared());
  each_entry(block, board, run, matrix, [](double& here, double& there) { here = there; });
  descend_on(board, run, matrix);
}

__global__ void __launch_bounds__(kSurfaceThreads, 2)
    surface_step(const __grid_constant__ SurfaceRun run) {
  PF_SHARED(Desk, desk);
  const Block block;
  const int terms = run.n_coefficients;
  desk.load_map(block, run);
  desk.load_params(block, run);
  desk.map.evaluate(block, desk.params, desk.coef);
  sum_loss(run, desk.coef, desk.scratch, desk.sums);
  if (!sum_grid(workspace_of(run), terms + 2, desk.scratch, desk.sums)) return;
  step_on_sums(block, desk, run, Summed{run, desk, desk.sums[terms + 1]});
}

struct StreamObjective {
  const SurfaceRun& run;
  Desk& desk;
  int64_t looks = 0;

  PF_DEVICE double operator()(const Block& block, const double* params, double* grad) {
    const int sums = run.n_coefficients + 2;
    desk.map.evaluate(block, params, desk.coef);
    sum_loss(run, desk.coef, desk.scratch, desk.sums);
    sum_everywhere(run, desk, sums, looks);
    return desk.gradient(block, run, desk.sums[sums - 1], params, grad);
  }
};

__global__ void __launch_bounds__(kSurfaceThreads, 2)
    surface_stream(const __grid_constant__ SurfaceRun run) {
  PF_SHARED(Desk, desk);
  const Block block;
  desk.load_map(block, run);
  desk.load_params(block, run);
  StreamObjective objective{run, desk};
  descend_in_all_blocks(block, desk, run, objective, SkipNothing{});
}

}  // namespace

void launch_surface_step(const SurfaceRun& run, void* stream) { launch(surface_step, run, stream); }

void launch_surface_stream(const SurfaceRun& run, void* stream) {
  launch(surface_stream, run, stream);
}

void launch_surface_moments(const SurfaceRun& run, void* stream) {
  launch(run.has_moments ? surface_epochs : surface_moments, run, stream);
}

}  // namespace polyfuse
