// The fused step: forward, criterion, backward and update from one read of the data. The block that
// comes last adds the partial sums and updates.
#include "criterion.cuh"
#include "launch.cuh"
#include "launch.h"
#include "passes.cuh"
#include "run.cuh"

namespace polyfuse {
namespace {

template <class T, int K, class Rho>
__global__ void __launch_bounds__(kPassThreads, 1) step(const __grid_constant__ Run run) {
  PF_SHARED(Desk, desk);
  const Block block;
  desk.load_map(block, run);
  desk.load_params(block, run);
  desk.map.evaluate(block, desk.params, desk.coef);
  using Sums = LossSums<Rho, K>;
  Sums sums(run.criterion);
  take_coefficients(desk.coef, run.n_coefficients, sums.coef);
  add_samples(run.data, Samples<T>::of(run.data), Ranks::grid(), sums);
  sum_block(sums.sum, desk.scratch, desk.sums);
  if (!sum_grid(workspace_of(run), Sums::kSums, desk.scratch, desk.sums)) return;
  const double n = counted(run.data) ? desk.sums[K + 1] : static_cast<double>(run.data.n);
  step_on_sums(block, desk, run, Summed{run, desk, n});
}

}  // namespace

void launch_step(const Run& run, void* stream) {
  with_dtype(run.data.dtype, [&](auto value) {
    with_bucket(run.n_coefficients, [&](auto k) {
      with_criterion(run.criterion.kind, [&](auto rho) {
        launch(step<decltype(value), k(), decltype(rho)>, run, stream);
      });
    });
  });
}

}  // namespace polyfuse
