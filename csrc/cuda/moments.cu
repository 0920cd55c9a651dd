// The fused run that reads the data once: a pilot fit in every block, the moments about it, and all
// epochs in the block that comes last; also the moments alone, and the run from moments given.
#include "../core/quiet.h"
#include "descend.cuh"
#include "launch.cuh"
#include "launch.h"
#include "passes.cuh"

namespace polyfuse {
namespace {

struct Board {
  Desk desk;
  Moments moments;
  MomentsObjective objective;
  QuietMoments quiet;

  // Where the pilot fit works: the objective comes later.
  PF_DEVICE double* work() { return reinterpret_cast<double*>(&objective); }
};
static_assert(sizeof(MomentsObjective) >= sizeof(double) * kMaxTerms * (kMaxTerms + 1), "work()");
static_assert(sizeof(Board) + 64 <= kDeclared);

// Centre and half width of the pilot's finite x that count; whether there are any.
template <class T>
PF_DEVICE bool measure(const Block& block, Board& board, const Data& pilot, int n_terms) {
  double bounds[2] = {INFINITY, INFINITY};  // least x, least -x
  const Samples<T> samples = Samples<T>::of(pilot);
  for (int64_t i = threadIdx.x; i < samples.n; i += blockDim.x) {
    const double x = samples.x[i * samples.x_stride];
    if (!finite(x) || samples.weight(i) == T(0)) continue;
    bounds[0] = fmin(bounds[0], x);
    bounds[1] = fmin(bounds[1], -x);
  }
  Desk& desk = board.desk;
  fold_block(bounds, desk.scratch, desk.sums, [](double a, double b) { return fmin(a, b); });
  block.one([&] {
    Moments& moments = board.moments;
    const double low = desk.sums[0], high = -desk.sums[1];
    moments.n_terms = n_terms;
    moments.shift = low <= high ? 0.5 * low + 0.5 * high : 0.0;
    moments.scale = low < high ? 1.0 / (0.5 * high - 0.5 * low) : 1.0;
  });
  block.each(n_terms, [&](int k) { board.moments.reference[k] = 0.0; });
  return desk.sums[0] <= -desk.sums[1];
}

// The moments from sums of MomentSums<K>.
template <int K>
PF_DEVICE void take_sums(const Block& block, Board& board, const Data& data) {
  Moments& moments = board.moments;
  const double* const sums = board.desk.sums;
  const int terms = moments.n_terms;
  block.each(2 * terms - 1, [&](int k) { moments.power[k] = sums[k]; });
  block.each(terms, [&](int k) { moments.cross[k] = sums[2 * K - 1 + k]; });
  block.one([&] {
    if (!counted(data)) moments.power[0] = static_cast<double>(data.n);
    moments.square = sums[3 * K - 1];
  });
}

// True in the one block that has the moments of all the data.
template <class T, int K>
PF_DEVICE bool accumulate(const Block& block, Board& board, const Run& run) {
  Desk& desk = board.desk;
  Moments& moments = board.moments;
  Data pilot = pilot_of(run.data);
  if (!measure<T>(block, board, pilot, run.n_coefficients)) {  // weights of 0 leave it out
    pilot = thinned(run.data, 1);
    measure<T>(block, board, pilot, run.n_coefficients);
  }
#pragma unroll 1  // one body for both
  for (int pass = 0; pass < 2; ++pass) {
    const bool whole = pass == 1;
    Data data = whole ? run.data : pilot;
    data.shift = moments.shift;
    data.scale = moments.scale;
    MomentSums<K> sums;
    take_coefficients(moments.reference, moments.n_terms, sums.coef);
    add_samples(data, Samples<T>::of(data), whole ? Ranks::grid() : Ranks::block(), sums);
    sum_block(sums.sum, desk.scratch, desk.sums);
    if (whole && !sum_grid(workspace_of(run), 3 * K, desk.scratch, desk.sums)) return false;
    take_sums<K>(block, board, data);
    if (!whole) moments.solve(block, moments.reference, board.work());
  }
  return true;
}

// The moments buffer, read or written.
template <class F>
PF_DEVICE void each_entry(const Block& block, Moments& moments, double* buffer, int terms, F&& f) {
  double *const power = buffer + 3 + terms, *const cross = power + 2 * terms - 1;
  block.each(terms, [&](int k) {
    f(moments.reference[k], buffer[3 + k]);
    f(moments.cross[k], cross[k]);
  });
  block.each(2 * terms - 1, [&](int k) { f(moments.power[k], power[k]); });
  block.one([&] {
    moments.n_terms = terms;
    f(moments.shift, buffer[0]);
    f(moments.scale, buffer[1]);
    f(moments.square, buffer[2]);
  });
}

// Not inlined: the compiler then optimises it once for all kernels.
__device__ __noinline__ void descend_on(Board& board, const Run& run) {
  const Crew crew = crew_of(run);
  if (static_cast<int>(threadIdx.x) >= crew.size()) return;
  Desk& desk = board.desk;
  MomentsObjective& objective = board.objective;
  desk.load_map(crew, run);
  objective.start(crew, desk.map, board.moments, run.data.shift, run.data.scale, run.mean);
  board.quiet.start(crew);
  double* const behind = workspace_of(run)->sums() + int64_t(gridDim.x) * kMaxSums;
  double* const work = run.grid.shared ? reinterpret_cast<double*>(dynamic_shared()) : behind;
  State state = desk.state();
  if (!run.bounds) state.low = state.high = nullptr;
  descend_on_moments(crew, desk, run, objective, board.moments.square, work,
                     [&](const Descent& descent, Outcome& out, int64_t change, Recorder&) {
                       const int64_t quiet = quiet_epochs(descent.schedule, out.epochs, change);
                       if (quiet > 0 && board.quiet(crew, objective, descent, quiet, change, state))
                         out.epochs += quiet;
                     });
}

template <class T, int K>
__global__ void __launch_bounds__(kPassThreads, 1) moments(const __grid_constant__ Run run) {
  PF_SHARED(Board, board);
  const Block block;
  if (!accumulate<T, K>(block, board, run)) return;
  each_entry(block, board.moments, run.moments, run.n_coefficients,
             [](double& here, double& there) { there = here; });
  if (!(run.flags & kMoments)) descend_on(board, run);
}

__global__ void __launch_bounds__(kPassThreads, 1) epochs(const __grid_constant__ Run run) {
  PF_SHARED(Board, board);
  const Block block;
  each_entry(block, board.moments, run.moments, run.n_coefficients,
             [](double& here, double& there) { here = there; });
  descend_on(board, run);
}

}  // namespace

void launch_moments(const Run& run, void* stream) {
  if (run.has_moments) return launch(epochs, run, stream);
  with_dtype(run.data.dtype, [&](auto value) {
    with_bucket(run.n_coefficients,
                [&](auto k) { launch(moments<decltype(value), k()>, run, stream); });
  });
}

}  // namespace polyfuse
