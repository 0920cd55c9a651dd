#include <algorithm>
#include <utility>

#include "surface_objective.h"

namespace polyfuse {
namespace {

constexpr int64_t kPilotSamples = 1024;

SurfaceMoments accumulate_about(const Surface& s, std::vector<double> reference, int threads) {
  const int terms = s.n_terms;
  std::vector<double> sums(static_cast<size_t>(2 + terms + s.n_products));
  reduce(s.n, 2 + terms + s.n_products, threads, sums.data(),
         [&](int64_t begin, int64_t end, double* out) {
           passes().surface_moments(s, reference.data(), begin, end, out);
         });
  SurfaceMoments moments;
  moments.square = sums[0];
  moments.weight = sums[1];
  moments.cross.assign(sums.begin() + 2, sums.begin() + 2 + terms);
  moments.power.assign(sums.begin() + 2 + terms, sums.end());
  moments.reference = std::move(reference);
  return moments;
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

// A pilot fit of some samples gives the reference; then one read of all.
SurfaceMoments accumulate(const Surface& s, int threads) {
  Surface pilot = s;
  const int64_t every = std::max<int64_t>(1, s.n / kPilotSamples);
  pilot.n = (s.n + every - 1) / every;
  pilot.x.sample *= every;
  pilot.y.sample *= every;
  pilot.w.sample *= every;
  pilot.omit = true;
  std::vector<double> reference(static_cast<size_t>(s.n_terms)), work(gram_work(s.n_terms));
  const SurfaceMoments about_zero = accumulate_about(pilot, reference, 1);
  gram_moments(s, about_zero).solve(Alone{}, reference.data(), work.data());
  return accumulate_about(s, std::move(reference), threads);
}

}  // namespace polyfuse
