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

PF_DEVICE int terms_of(const SurfaceRun& run) { return run.n_coefficients / run.n_outputs; }

// Parameters are [K, C].
struct Board {
  Desk desk;
  double reference[kMaxParams], cross[kMaxParams];

  // The optimum of the data whose residuals are those of a reference of 0, from their moments.
  PF_DEVICE void solve(const Block& block, const SurfaceRun& run, const Tile& tile,
                       double* matrix) {
    const int terms = terms_of(run), outputs = run.n_outputs;
    block.each(terms, [&](int k) { desk.fresh[k] = 0.0; });
    for (int c = 0; c < outputs; ++c) {
      const double* const row = matrix + (tile.columns + c) * tile.width;
      const GramMoments<MatrixAt> one{
          terms, {matrix, tile.width}, desk.fresh, row, row[tile.columns + c]};
      one.solve(block, desk.grad, matrix + tile.width * tile.width);
      block.each(terms, [&](int k) { reference[k * outputs + c] = desk.grad[k]; });
    }
  }

  template <class Team>
  PF_DEVICE GramMoments<MatrixAt> moments(const Team& team, const SurfaceRun& run,
                                          const double* matrix) {
    const int columns = run.factors.columns, outputs = run.n_outputs;
    const int width = surface_width(columns, outputs);
    double square = 0.0;
    for (int c = columns; c < columns + outputs; ++c) square += matrix[c * width + c];
    team.each(run.n_coefficients,
              [&](int j) { cross[j] = matrix[(columns + j % outputs) * width + j / outputs]; });
    return {terms_of(run), {matrix, width}, reference, cross, square, outputs};
  }
};

static_assert(sizeof(Board) + 64 <= kSurfaceDeclared);

// True in the one block whose `matrix` has the moments of all the data.
PF_DEVICE bool accumulate(const Block& block, Board& board, const SurfaceRun& run, double* matrix) {
  const Tile tile = Tile::of(run);
  const int row = threadIdx.x % tile.rows;
  block.each(run.n_coefficients, [&](int j) { board.reference[j] = 0.0; });
#pragma unroll 1  // one body for the pilot and the whole
  for (int pass = 0; pass < 2; ++pass) {
    const bool whole = pass == 1;
    const Data data = whole ? run.data : pilot_of(run.data, kPilotRows * tile.width);
    GramSums sums;
    for_each_tile(run, data, whole ? blockIdx.x : 0, whole ? gridDim.x : 1, tile, [&](int64_t) {
      tile.each_output(run.n_outputs, [&](int c) {
        if (tile.w[row] == 0.0) return;
        double& residual = tile.residual(c, row);
        residual = predict(run, tile, board.reference, c, row) - residual;
      });
      __syncthreads();
      sums.add(tile);
    });
    sums.gather(tile, matrix);
    if (!whole) board.solve(block, run, tile, matrix);
  }
  return sum_grid(workspace_of(run), tile.width * tile.width, matrix, matrix);
}

// The moments buffer, read or written.
template <class F>
PF_DEVICE void each_entry(const Block& block, Board& board, const SurfaceRun& run, double* matrix,
                          F&& f) {
  const int width = surface_width(run.factors.columns, run.n_outputs), size = width * width;
  block.each(size, [&](int e) { f(matrix[e], run.moments[e]); });
  block.each(run.n_coefficients, [&](int k) { f(board.reference[k], run.moments[size + k]); });
}

PF_DEVICE void descend_on(Board& board, const SurfaceRun& run, const double* matrix) {
  const Crew crew = crew_of(run);
  if (static_cast<int>(threadIdx.x) >= crew.size()) return;
  Desk& desk = board.desk;
  const GramMoments<MatrixAt> moments = board.moments(crew, run, matrix);
  const int one = run.factors.one, width = moments.gram.width, size = width * width;
  desk.load_map(crew, run);
  const double counted = moments.gram(one, one) * run.n_outputs;
  const double weight = run.criterion.weight * (run.mean ? 1.0 / counted : 1.0);
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

PF_DEVICE int n_sums_of(const SurfaceRun& run) { return run.n_coefficients + kSurfaceRest; }

// Loss and gradient from the desk's sums; where cross entropy leaves all samples out, of zero.
struct OfSums {
  const SurfaceRun& run;
  Desk& desk;

  PF_DEVICE double operator()(const Block& block, const double* params, double* grad) const {
    const double counted = desk.sums[run.n_coefficients + 1];
    const double kept = desk.sums[run.n_coefficients + 2];
    const double loss = desk.gradient(block, run, counted, params, grad);
    if (run.criterion.kind == CriterionKind::CrossEntropy && kept == 0.0)
      block.each(run.n_params, [&](int i) { grad[i] = 0.0; });
    return loss;
  }
};

__global__ void __launch_bounds__(kSurfaceThreads, 2)
    surface_step(const __grid_constant__ SurfaceRun run) {
  PF_SHARED(Desk, desk);
  const Block block;
  desk.load_map(block, run);
  desk.load_params(block, run);
  desk.map.evaluate(block, desk.params, desk.coef);
  sum_loss(run, desk.coef, desk.scratch, desk.sums);
  if (!sum_grid(workspace_of(run), n_sums_of(run), desk.scratch, desk.sums)) return;
  step_on_sums(block, desk, run, OfSums{run, desk});
}

struct StreamObjective {
  const SurfaceRun& run;
  Desk& desk;
  int64_t looks = 0;

  PF_DEVICE double operator()(const Block& block, const double* params, double* grad) {
    desk.map.evaluate(block, params, desk.coef);
    sum_loss(run, desk.coef, desk.scratch, desk.sums);
    sum_everywhere(run, desk, n_sums_of(run), looks);
    return OfSums{run, desk}(block, params, grad);
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
