#include <algorithm>
#include <utility>

#include "surface_objective.h"

namespace polyfuse {
namespace {

constexpr int64_t kPilotSamples = 1024;

SurfaceMoments accumulate_about(const Surface& s, std::vector<double> reference, int threads) {
  const int n_params = s.n_terms * s.n_outputs;
  std::vector<double> sums(static_cast<size_t>(2 + n_params + s.n_products));
  reduce(s.n, 2 + n_params + s.n_products, threads, sums.data(),
         [&](int64_t begin, int64_t end, double* out) {
           passes().surface_moments(s, reference.data(), begin, end, out);
         });
  SurfaceMoments moments;
  moments.square = sums[0];
  moments.weight = sums[1];
  moments.cross.assign(sums.begin() + 2, sums.begin() + 2 + n_params);
  moments.power.assign(sums.begin() + 2 + n_params, sums.end());
  moments.reference = std::move(reference);
  return moments;
}

Series column(Series of, int64_t c) {
  const int64_t size = of.dtype == Dtype::Float32 ? sizeof(float) : sizeof(double);
  if (of.at) of.at = static_cast<const char*>(of.at) + c * of.fit * size;
  return of;
}

}  // namespace

Surface surface_of(const Problem& problem) {
  Surface s = *problem.surface;
  const Data& data = problem.data;
  s.x = {data.x, data.x_stride, data.x_column, data.dtype};
  s.y = {data.y, data.y_stride, 0, data.dtype};
  s.w = {data.w, data.w_stride, 0, data.dtype};
  s.n = data.n;
  s.omit = data.omit;
  s.criterion = problem.criterion;
  s.mean = problem.mean;
  return s;
}

Surface output_of(const Surface& s, int c) {
  Surface one = s;
  one.y = column(s.y, c);
  one.w = column(s.w, c);
  one.n_outputs = 1;
  return one;
}

// A pilot fit of some samples gives the reference; then one read of all.
SurfaceMoments accumulate(const Surface& s, int threads) {
  const int64_t every = std::max<int64_t>(1, s.n / kPilotSamples);
  std::vector<double> reference(static_cast<size_t>(s.n_terms * s.n_outputs));
  std::vector<double> optimum(static_cast<size_t>(s.n_terms)), work(gram_work(s.n_terms));
  for (int c = 0; c < s.n_outputs; ++c) {
    Surface pilot = output_of(s, c);
    pilot.n = (s.n + every - 1) / every;
    pilot.x.sample *= every;
    pilot.y.sample *= every;
    pilot.w.sample *= every;
    pilot.omit = true;
    std::fill(optimum.begin(), optimum.end(), 0.0);
    const SurfaceMoments about_zero = accumulate_about(pilot, optimum, 1);
    gram_moments(s, about_zero).solve(Alone{}, optimum.data(), work.data());
    for (int k = 0; k < s.n_terms; ++k) reference[k * s.n_outputs + c] = optimum[k];
  }
  return accumulate_about(s, std::move(reference), threads);
}

}  // namespace polyfuse
