// The fused run that reads the data every epoch. A block keeps its share on chip for the whole run
// and reads from memory what does not fit; every block adds up all partial sums and takes the same
// steps, so that an epoch needs one barrier.
#include "criterion.cuh"
#include "launch.cuh"
#include "launch.h"
#include "passes.cuh"
#include "run.cuh"

namespace polyfuse {
namespace {

template <class T, int K, class Rho>
struct StreamObjective {
  using Sums = LossSums<Rho, K>;
  const Run& run;
  Desk& desk;
  Samples<T> near, far;  // of this block: on chip, and in memory
  int64_t looks = 0;     // partial sums alternate between two places

  PF_DEVICE double operator()(const Block& block, const double* params, double* grad) {
    desk.map.evaluate(block, params, desk.coef);
    Sums sums(run.criterion);
    take_coefficients(desk.coef, run.n_coefficients, sums.coef);
    add_samples(run.data, near, Ranks::block(), sums);
    if (far.n > 0) add_samples(run.data, far, Ranks::block(), sums);
    sum_block(sums.sum, desk.scratch, desk.sums);
    if (gridDim.x > 1) {
      double* const partial =
          workspace_of(run)->sums() + (looks++ % 2) * int64_t(gridDim.x) * Sums::kSums;
      publish(desk.sums, Sums::kSums, partial);
      meet_grid(workspace_of(run));
      combine(partial, Sums::kSums, desk.scratch, desk.sums);
    }
    const double n = counted(run.data) ? desk.sums[K + 1] : static_cast<double>(run.data.n);
    return desk.gradient(block, run, n, params, grad);
  }
};

// Copies samples into shared memory that has room for so many; y and w are aligned as x is.
template <class T>
PF_DEVICE Samples<T> bring(const Samples<T>& from, int64_t room) {
  T* const x = reinterpret_cast<T*>(dynamic_shared());
  T* const y = x + room;
  T* const w = from.w ? y + room : nullptr;
  for (int64_t i = threadIdx.x; i < from.n; i += blockDim.x) {
    x[i] = from.x[i * from.x_stride];
    y[i] = from.y[i * from.y_stride];
    if (w) w[i] = from.weight(i);
  }
  __syncthreads();
  return {x, y, w, from.n, 1, 1, 1};
}

template <class T, int K, class Rho>
__global__ void __launch_bounds__(stream_threads(K), 1) stream(const __grid_constant__ Run run) {
  PF_SHARED(Desk, desk);
  const Block block;
  const bool writes = blockIdx.x == 0;
  desk.load_map(block, run);
  desk.load_params(block, run);
  desk.load_rest(block, run, writes);
  const int64_t begin = blockIdx.x * run.grid.chunk;
  const int64_t end = least(begin + run.grid.chunk, run.data.n);
  const int64_t middle = least(begin + run.grid.resident, end);
  const Samples<T> all = Samples<T>::of(run.data);
  StreamObjective<T, K, Rho> objective{run, desk, bring(all.part(begin, middle), run.grid.resident),
                                       all.part(middle, end)};
  const Descent descent = desk.descent(run);
  Outcome out;
  out.previous = run.schedule.previous;
  step_by_step(block, objective, descent, out, desk.state(), Recorder::of(run, writes),
               Follow<Block>{block, run, desk, out});
  if (writes) desk.finish(block, run, out, NAN);
  leave_grid(workspace_of(run));
}

}  // namespace

void launch_stream(const Run& run, void* on) {
  with_dtype(run.data.dtype, [&](auto value) {
    with_bucket(run.n_coefficients, [&](auto k) {
      with_criterion(run.criterion.kind, [&](auto rho) {
        launch(stream<decltype(value), k(), decltype(rho)>, run, on);
      });
    });
  });
}

}  // namespace polyfuse
