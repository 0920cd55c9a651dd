#include <algorithm>
#include <cmath>

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

// The optimum, by Cholesky's factorisation; directions that the data hardly determines stay as in
// the reference.
std::vector<double> optimum_of(const Surface& s, const SurfaceMoments& moments) {
  const int terms = s.n_terms;
  std::vector<double> lower(static_cast<size_t>(terms * terms)), step(terms);
  const auto at = [&](int i, int j) -> double& { return lower[i * terms + j]; };
  const auto gram = [&](int i, int j) { return moments.power[s.moment_of[i * terms + j]]; };
  for (int j = 0; j < terms; ++j) {
    double pivot = gram(j, j), rest = -moments.cross[j];
    for (int m = 0; m < j; ++m) {
      pivot -= at(j, m) * at(j, m);
      rest -= at(j, m) * step[m];
    }
    const bool use = pivot > kPivot * gram(j, j) &&
                     rest * rest * gram(j, j) <= kSwell * moments.square * pivot * pivot;
    at(j, j) = use ? std::sqrt(pivot) : 0.0;
    step[j] = use ? rest / at(j, j) : 0.0;
    for (int i = j + 1; i < terms; ++i) {
      double entry = gram(i, j);
      for (int m = 0; m < j; ++m) entry -= at(i, m) * at(j, m);
      at(i, j) = use ? entry / at(j, j) : 0.0;
    }
  }
  // The last directions stay out as well where all together would swell: columns that are nearly
  // collinear have pivots that do not tell.
  const std::vector<double> along = step;
  for (int used = terms; used >= 0; --used) {
    double swell = 0.0;
    for (int j = terms - 1; j >= 0; --j) {
      step[j] = j < used ? along[j] : 0.0;
      for (int i = j + 1; i < used; ++i) step[j] -= at(i, j) * step[i];
      step[j] = at(j, j) > 0.0 ? step[j] / at(j, j) : 0.0;
      swell += step[j] * step[j] * gram(j, j);
    }
    if (swell <= kSwell * moments.square) break;
  }
  for (int j = 0; j < terms; ++j) step[j] += moments.reference[j];
  return step;
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
  std::vector<double> nothing(static_cast<size_t>(s.n_terms));
  return accumulate_about(s, optimum_of(s, accumulate_about(pilot, nothing, 1)), threads);
}

}  // namespace polyfuse
