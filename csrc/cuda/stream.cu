// The fused run that reads the data every epoch. A block keeps its share on chip for the whole run
// and reads from memory what does not fit; every block adds up all partial sums and takes the same
// steps, so that an epoch needs one barrier.
#include "../core/quiet.h"
#include "criterion.cuh"
#include "geometry.h"
#include "launch.cuh"
#include "launch.h"
#include "passes.cuh"
#include "run.cuh"

namespace polyfuse {
namespace {

static_assert(sizeof(Desk) + 64 <= kStreamDeclared);

template <class T, int K, class Rho>
struct StreamObjective {
  using Sums = LossSums<Rho, K>;
  const Run& run;
  Desk& desk;
  Samples<T> near, far;  // of this block: on chip, and in memory
  int64_t looks = 0;

  PF_DEVICE double operator()(const Block& block, const double* params, double* grad) {
    desk.map.evaluate(block, params, desk.coef);
    Sums sums(run.criterion);
    take_coefficients(desk.coef, run.n_coefficients, sums.coef);
    add_samples(run.data, near, Ranks::block(), sums);
    if (far.n > 0) add_samples(run.data, far, Ranks::block(), sums);
    sum_block(sums.sum, desk.scratch, desk.sums);
    sum_everywhere(run, desk, Sums::kSums, looks);
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

// Samples of one lane, and coefficients: more take more registers than there are.
constexpr int kEach = 3;
constexpr int kFewTerms = 3;

// Gradient of squared error on the samples of a warp. Each `sharers` lanes, a power of 2, go
// through all of them and come to the same bits.
template <int K>
struct FewSamples {
  int sharers;
  double u[kEach], y[kEach], slope[kEach][K];  // slope: weight u^k, 0 where there is none

  template <class T>
  PF_DEVICE FewSamples(const Data& data, const Samples<T>& samples, int n_terms, double weight)
      : sharers(4) {
    while (sharers * kEach < samples.n) sharers *= 2;
    PF_UNROLL
    for (int m = 0; m < kEach; ++m) {
      const int i = m * sharers + threadIdx.x % sharers;
      const bool there = i < samples.n;
      u[m] = there ? (samples.x[i * samples.x_stride] - data.shift) * data.scale : 0.0;
      y[m] = there ? samples.y[i * samples.y_stride] : 0.0;
      slope[m][0] = there ? weight : 0.0;
      PF_UNROLL
      for (int k = 1; k < K; ++k) slope[m][k] = k < n_terms ? slope[m][k - 1] * u[m] : 0.0;
    }
  }

  PF_DEVICE void operator()(const double* p, double* grad) const {
    PF_UNROLL
    for (int k = 0; k < K; ++k) grad[k] = 0.0;
    PF_UNROLL
    for (int m = 0; m < kEach; ++m) {
      const double r = horner(p, K, u[m]) - y[m];
      PF_UNROLL
      for (int k = 0; k < K; ++k) grad[k] += slope[m][k] * r;
    }
#pragma unroll 1
    for (int offset = 1; offset < sharers; offset *= 2) {
      PF_UNROLL
      for (int k = 0; k < K; ++k) grad[k] += __shfl_xor_sync(0xffffffffu, grad[k], offset);
    }
  }
};

// Quiet epochs on the samples of one warp, of coefficients that are the parameters.
template <class T, int K>
struct QuietSamples {
  static constexpr int kMost = kEach * kWarp;
  const Block& block;
  Desk& desk;
  const Run& run;

  PF_DEVICE void operator()(const Descent& descent, Outcome& out, int64_t change, Recorder&) const {
    const int64_t quiet = quiet_epochs(descent.schedule, out.epochs, change);
    const Data& data = run.data;
    const bool few = data.n <= kMost && blockDim.x == kWarp && gridDim.x == 1;
    bool momentum;
    if (quiet <= 0 || !few || counted(data) || !run.identity || run.bounds ||
        !steps_are_alike(descent) || !steps_are_linear(descent, desk.state(), momentum))
      return;
    const int n = run.n_params;
    const LinearStep step = linear_step(descent.rule_of(0));
    const double weight = SquaredError::kFactor / (run.mean ? static_cast<double>(data.n) : 1.0);
    const FewSamples<K> gradient(data, Samples<T>::of(data), n, weight);
    double* const buffer = desk.kept + Sgd::kBuffer * n;
    if (momentum)
      repeat<K, true>(block, n, step, quiet, desk.params, buffer, gradient);
    else
      repeat<K, false>(block, n, step, quiet, desk.params, buffer, gradient);
    out.epochs += quiet;
  }
};

template <class T, int K, class Rho>
__global__ void __launch_bounds__(stream_threads(K), 1) stream(const __grid_constant__ Run run) {
  PF_SHARED(Desk, desk);
  const Block block;
  desk.load_map(block, run);
  desk.load_params(block, run);
  const int64_t begin = blockIdx.x * run.grid.chunk;
  const int64_t end = least(begin + run.grid.chunk, run.data.n);
  const int64_t middle = least(begin + run.grid.resident, end);
  const Samples<T> all = Samples<T>::of(run.data);
  StreamObjective<T, K, Rho> objective{run, desk, bring(all.part(begin, middle), run.grid.resident),
                                       all.part(middle, end)};
  if constexpr (std::is_same_v<Rho, SquaredError> && K <= kFewTerms)
    descend_in_all_blocks(block, desk, run, objective, QuietSamples<T, K>{block, desk, run});
  else
    descend_in_all_blocks(block, desk, run, objective, SkipNothing{});
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
