// Cross entropy of polynomial logits: the fused step and the fused run. Neighbouring threads take
// the classes of a sample, and warps the samples in turn.
#include "launch.cuh"
#include "launch.h"
#include "passes.cuh"
#include "run.cuh"
#include "target.cuh"

namespace polyfuse {
namespace {

constexpr int kRest =
    3;  // sums besides those of slope phi: loss, what counts, samples that are kept

// Threads of one sample, `lanes` of them, each of which has a class: one of core's `classes`.
struct Neighbours {
  int lanes;

  template <class F>
  PF_DEVICE void each(F&& f) const {
    f(0);
  }
  template <class Fold>
  PF_DEVICE double fold(double v, int from, int to, Fold&& of) const {
    for (int offset = from; offset < to; offset *= 2) v = of(v, __shfl_xor_sync(~0u, v, offset));
    return v;
  }
  PF_DEVICE double largest(double v) const {
    return fold(v, 1, lanes, [](double a, double b) { return largest_of(a, b); });
  }
  PF_DEVICE double sum(double v) const { return fold(v, 1, lanes, plus); }

  static PF_DEVICE double plus(double a, double b) { return a + b; }
};

template <int K>
struct ClassSums {
  double slope[K] = {}, rest[kRest] = {};
};

// What one thread adds up: its class of its samples.
template <class T, int K>
PF_DEVICE ClassSums<K> add_classes(const Run& run, const Neighbours& neighbours, int c,
                                   const double* params) {
  const Data& data = run.data;
  const Samples<T> samples = Samples<T>::of(data);
  const bool inside = c < run.n_outputs, alone = is_alone(run);
  const Ranks ranks = Ranks::grid();
  double coef[K];
  PF_UNROLL
  for (int k = 0; k < K; ++k)
    coef[k] = inside && k < run.n_coefficients ? params[k * run.n_outputs + c] : 0.0;
  ClassSums<K> sums;
  const int64_t first = ranks.rank / kWarp * kWarp / neighbours.lanes;  // of the warp
  for (int64_t begin = first; begin < data.n; begin += ranks.count / neighbours.lanes) {
    const int64_t i = begin + threadIdx.x % kWarp / neighbours.lanes;
    const double weight = i < data.n ? samples.weight(i) : 0.0;
    const double u = weight == 0.0 ? 0.0 : (samples.x[i * data.x_stride] - data.shift) * data.scale;
    const Target target = Target::of(run, i, weight);
    const bool kept = target.kept();
    const bool part = kept && inside && (!alone || target.of_class == c);
    const double share = inside ? target.share(run, samples.y, i, c) : 0.0;
    double phi[K], z = coef[0];
    phi[0] = 1.0;
    PF_UNROLL
    for (int k = 0; k + 1 < K; ++k) {
      phi[k + 1] = k + 1 < run.n_coefficients
                       ? next_of(run.basis, k, u, phi[k], k > 0 ? phi[k - 1] : 0.0)
                       : 0.0;
      z += coef[k + 1] * phi[k + 1];
    }
    if (!inside) z = -HUGE_VAL;
    const double value =
        cross_entropy(neighbours, &share, &z, [&](int, double term) { return part ? term : 0.0; });
    if (inside && kept) sums.rest[0] += value;
    if (c == 0 && kept) {
      sums.rest[1] += target.weight * target.of_mean;
      sums.rest[2] += 1.0;
    }
    PF_UNROLL
    for (int k = 0; k < K; ++k) sums.slope[k] += z * phi[k];
  }
  return sums;
}

// The sums of the block, in the order of the parameters; then the rest.
template <class T, int K>
PF_DEVICE void sum_classes(const Run& run, const double* params, Desk& desk) {
  int lanes = 1;
  while (lanes < run.n_outputs) lanes *= 2;
  const Neighbours neighbours{lanes};
  const int lane = threadIdx.x % kWarp, c = lane % lanes;
  const int n = run.n_params + kRest, warps = blockDim.x / kWarp;
  double* const mine = desk.scratch + threadIdx.x / kWarp * n;
  const ClassSums<K> sums = add_classes<T, K>(run, neighbours, c, params);
  PF_UNROLL
  for (int k = 0; k < K; ++k) {
    const double v = neighbours.fold(sums.slope[k], lanes, kWarp, Neighbours::plus);
    if (lane < run.n_outputs && k < run.n_coefficients) mine[k * run.n_outputs + lane] = v;
  }
  PF_UNROLL
  for (int r = 0; r < kRest; ++r) {
    const double v = neighbours.fold(sums.rest[r], 1, kWarp, Neighbours::plus);
    if (lane == 0) mine[run.n_params + r] = v;
  }
  __syncthreads();
  for (int s = threadIdx.x; s < n; s += blockDim.x) {
    double v = desk.scratch[s];
    for (int w = 1; w < warps; ++w) v += desk.scratch[w * n + s];
    desk.sums[s] = v;
  }
  __syncthreads();
}

// Loss and gradient from `desk.sums`; samples that are left out have no gradient.
PF_DEVICE double mean_of_classes(const Block& block, const Run& run, const Desk& desk,
                                 double* grad) {
  const double* const rest = desk.sums + run.n_params;
  const double factor = factor_of(run.mean, rest[1]), kept = rest[2];
  block.each(run.n_params, [&](int i) { grad[i] = kept > 0.0 ? factor * desk.sums[i] : 0.0; });
  return factor * rest[0];
}

struct SummedClasses {
  const Run& run;
  Desk& desk;
  PF_DEVICE double operator()(const Block& block, const double*, double* grad) const {
    return mean_of_classes(block, run, desk, grad);
  }
};

template <class T, int K>
struct Read {
  const Run& run;
  Desk& desk;
  int64_t looks = 0;

  PF_DEVICE double operator()(const Block& block, const double* params, double* grad) {
    sum_classes<T, K>(run, params, desk);
    sum_everywhere(run, desk, run.n_params + kRest, looks);
    return mean_of_classes(block, run, desk, grad);
  }
};

template <class T, int K>
__global__ void __launch_bounds__(kPassThreads, 1) classes_step(const __grid_constant__ Run run) {
  PF_SHARED(Desk, desk);
  const Block block;
  desk.load_params(block, run);
  sum_classes<T, K>(run, desk.params, desk);
  if (!sum_grid(workspace_of(run), run.n_params + kRest, desk.scratch, desk.sums)) return;
  step_on_sums(block, desk, run, SummedClasses{run, desk});
}

template <class T, int K>
__global__ void __launch_bounds__(kPassThreads, 1) classes_stream(const __grid_constant__ Run run) {
  PF_SHARED(Desk, desk);
  const Block block;
  desk.load_params(block, run);
  Read<T, K> objective{run, desk};
  descend_in_all_blocks(block, desk, run, objective, SkipNothing{});
}

}  // namespace

void launch_classes(const Run& run, void* stream) {
  with_dtype(run.data.dtype, [&](auto value) {
    with_bucket(run.n_coefficients, [&](auto k) {
      using T = decltype(value);
      launch(run.flags & kStep ? classes_step<T, k()> : classes_stream<T, k()>, run, stream);
    });
  });
}

}  // namespace polyfuse
