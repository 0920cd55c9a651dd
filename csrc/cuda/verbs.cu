// The rest of the verbs: evaluate and project for autograd, the count of samples with a nan or inf,
// the update apart from its step, and the store of a step computed before.
#include "launch.cuh"
#include "launch.h"
#include "passes.cuh"
#include "run.cuh"

namespace polyfuse {
namespace {

template <class T>
__global__ void __launch_bounds__(kPassThreads) evaluate(const Run run) {
  PF_SHARED(Desk, desk);
  const Block block;
  desk.load_map(block, run);
  desk.load_params(block, run);
  desk.map.evaluate(block, desk.params, desk.coef);
  using Pack = Vector<T>;
  const double shift = run.data.shift, scale = run.data.scale;
  const auto value = [&](T x) {
    return T(horner(desk.coef, run.n_coefficients, (x - shift) * scale));
  };
  const T* const x = static_cast<const T*>(run.data.x);
  T* const y = static_cast<T*>(run.out);
  const Ranks ranks = Ranks::grid();
  int64_t begin = 0;
  if (run.data.x_stride == 1 && aligned(x) && aligned(y)) {
    const int64_t whole = run.data.n / Pack::kWidth;
    for (int64_t v = ranks.rank; v < whole; v += ranks.count) {
      const Pack from = reinterpret_cast<const Pack*>(x)[v];
      Pack to;
      PF_UNROLL
      for (int j = 0; j < Pack::kWidth; ++j) to.at[j] = value(from.at[j]);
      reinterpret_cast<Pack*>(y)[v] = to;
    }
    begin = whole * Pack::kWidth;
  }
  for (int64_t i = begin + ranks.rank; i < run.data.n; i += ranks.count)
    y[i] = value(x[i * run.data.x_stride]);
}

template <class T, int K>
__global__ void __launch_bounds__(kPassThreads, 1) project(const Run run) {
  PF_SHARED(Desk, desk);
  const Block block;
  ProjectSums<K> sums;
  add_samples(run.data, Samples<T>::of(run.data), Ranks::grid(), sums);
  sum_block(sums.sum, desk.scratch, desk.sums);
  if (!sum_grid(workspace_of(run), K, desk.scratch, desk.sums)) return;
  desk.load_map(block, run);
  desk.load_params(block, run);
  desk.map.pull_back(block, desk.params, desk.sums, desk.grad);
  block.each(run.n_params, [&](int i) { static_cast<double*>(run.out)[i] = desk.grad[i]; });
}

template <class T>
__global__ void __launch_bounds__(kPassThreads) count_nonfinite(const Run run) {
  PF_SHARED(Desk, desk);
  const Block block;
  double count[1] = {0.0};
  for_each_sample<1>(Samples<T>::of(run.data), Ranks::grid(), [&](T x, T y, T w) {
    if (w != T(0) && !(finite(x) && finite(y))) count[0] += 1.0;
  });
  sum_block(count, desk.scratch, desk.sums);
  if (!sum_grid(workspace_of(run), 1, desk.scratch, desk.sums)) return;
  block.one([&] { *static_cast<int64_t*>(run.out) = static_cast<int64_t>(desk.sums[0]); });
}

template <class T>
__global__ void __launch_bounds__(kMaxParams) update(const Run run) {
  PF_SHARED(Desk, desk);
  const Block block;
  desk.load_params(block, run);
  desk.load_rest(block, run, false);
  block.each(run.n_params, [&](int i) {
    if (const int64_t g = run.tables[kGradAt * run.n_params + i])
      desk.grad[i] = read(run.data.dtype, g);
    else
      desk.rule[i].method = Method::None;
  });
  const Descent descent{run.n_params, desk.rule};
  update_all<T>(block, descent, desk.state());
  desk.store_owned(block, run);
}

__global__ void __launch_bounds__(kMaxParams) store(const Run run) {
  PF_SHARED(Desk, desk);
  const Block block;
  desk.load_params(block, run);
  desk.load_rest(block, run, false);
  desk.store_owned(block, run);
}

}  // namespace

void launch_evaluate(const Run& run, void* stream) {
  with_dtype(run.data.dtype, [&](auto value) { launch(evaluate<decltype(value)>, run, stream); });
}

void launch_project(const Run& run, void* stream) {
  with_dtype(run.data.dtype, [&](auto value) {
    with_bucket(run.n_coefficients,
                [&](auto k) { launch(project<decltype(value), k()>, run, stream); });
  });
}

void launch_count_nonfinite(const Run& run, void* stream) {
  with_dtype(run.data.dtype,
             [&](auto value) { launch(count_nonfinite<decltype(value)>, run, stream); });
}

void launch_update(const Run& run, void* stream) {
  with_dtype(run.data.dtype, [&](auto value) { launch(update<decltype(value)>, run, stream); });
}

void launch_store(const Run& run, void* stream) { launch(store, run, stream); }

}  // namespace polyfuse
