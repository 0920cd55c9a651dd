#include <algorithm>
#include <chrono>
#include <cmath>

#include "../core/closed_form.h"
#include "../core/team.h"
#include "surface.h"

namespace polyfuse {
namespace {

constexpr int64_t kBlock = 8192;  // samples of one partial sum; a multiple of a pass's packs
constexpr int64_t kMaxBlocks = 1024;
constexpr int64_t kPilot = 1024;

int64_t block_of(int64_t n) {
  const int64_t grown = (n + kMaxBlocks - 1) / kMaxBlocks;
  return std::max(kBlock, (grown + kBlock - 1) / kBlock * kBlock);
}

// Sums over blocks, in their order whatever the number of threads.
template <class Pass>
std::vector<double> reduce(int64_t n, int n_sums, int threads, Pass&& pass) {
  const int64_t block = block_of(n), n_blocks = (n + block - 1) / block;
  std::vector<double> parts(static_cast<size_t>(n_blocks * n_sums)), sums(n_sums);
#pragma omp parallel for num_threads(threads) schedule(static) if (threads > 1 && n_blocks > 1)
  for (int64_t b = 0; b < n_blocks; ++b)
    pass(b * block, std::min(n, (b + 1) * block), &parts[static_cast<size_t>(b * n_sums)]);
  for (int64_t b = 0; b < n_blocks; ++b)
    for (int s = 0; s < n_sums; ++s) sums[s] += parts[static_cast<size_t>(b * n_sums + s)];
  return sums;
}

SurfaceMoments accumulate_about(const Surface& s, std::vector<double> reference, int threads) {
  const int terms = s.n_terms;
  const auto sums =
      reduce(s.n, 2 + terms + s.n_products, threads, [&](int64_t begin, int64_t end, double* out) {
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
  for (int j = terms - 1; j >= 0; --j) {
    for (int i = j + 1; i < terms; ++i) step[j] -= at(i, j) * step[i];
    step[j] = at(j, j) > 0.0 ? step[j] / at(j, j) : 0.0;
  }
  for (int j = 0; j < terms; ++j) step[j] += moments.reference[j];
  return step;
}

// Loss and gradient from the moments.
struct SurfaceObjective {
  const Surface& s;
  const SurfaceMoments& moments;
  double weight;

  static bool identity() { return true; }
  bool reference(double* into) const {
    std::copy(moments.reference.begin(), moments.reference.end(), into);
    return std::all_of(into, into + s.n_terms, [](double v) { return std::isfinite(v); });
  }
  double operator()(Alone, const double* params, double* grad) const {
    return look(params, moments.reference.data(), moments.cross.data(), grad);
  }
  void curvature(Alone, const double* params, double* grad) const {
    look(params, nullptr, nullptr, grad);
  }

 private:
  double look(const double* params, const double* from, const double* cross, double* grad) const {
    const int terms = s.n_terms;
    double value = moments.square;
    for (int j = 0; j < terms; ++j) {
      double product = 0.0;
      for (int k = 0; k < terms; ++k)
        product += moments.power[s.moment_of[j * terms + k]] * (params[k] - (from ? from[k] : 0.0));
      const double c = cross ? cross[j] : 0.0;
      value += (params[j] - (from ? from[j] : 0.0)) * (2.0 * c + product);
      grad[j] = 2.0 * weight * (c + product);
    }
    return value * weight;
  }
};

// Loss and gradient from the data, every time.
struct SurfaceStream {
  const Surface& s;
  int threads;
  double operator()(Alone, const double* params, double* grad) const {
    const auto sums =
        reduce(s.n, 2 + s.n_terms, threads, [&](int64_t begin, int64_t end, double* out) {
          passes().surface_loss(s, params, begin, end, out);
        });
    const double weight = s.criterion.weight * (s.mean ? 1.0 / sums[1] : 1.0);
    for (int k = 0; k < s.n_terms; ++k) grad[k] = weight * sums[2 + k];
    return weight * sums[0];
  }
};

}  // namespace

// A pilot fit of some samples gives the reference; then one read of all.
SurfaceMoments accumulate(const Surface& s, int threads) {
  Surface pilot = s;
  const int64_t every = std::max<int64_t>(1, s.n / kPilot);
  pilot.n = (s.n + every - 1) / every;
  pilot.x.sample *= every;
  pilot.y.sample *= every;
  pilot.w.sample *= every;
  pilot.omit = true;
  std::vector<double> nothing(static_cast<size_t>(s.n_terms));
  return accumulate_about(s, optimum_of(s, accumulate_about(pilot, nothing, 1)), threads);
}

Report descend(const Surface& s, Engine engine, const SurfaceMoments* moments,
               const UpdateRule* rule, const Schedule& schedule, int threads, State state) {
  using Clock = std::chrono::steady_clock;
  const Clock::time_point start = Clock::now();
  std::vector<double> grad(static_cast<size_t>(s.n_terms));
  const Descent descent{s.n_terms, rule, schedule, grad.data()};
  Report out;
  out.previous = schedule.previous;
  const auto record = [&](double loss) { out.recorded.push_back(loss); };
  const auto pause = [&] {
    return schedule.seconds <= 0.0 ||
           std::chrono::duration<double>(Clock::now() - start).count() <= schedule.seconds;
  };
  if (engine == Engine::Stream) {
    SurfaceStream stream{s, threads};
    step_by_step(Alone{}, stream, descent, out, state, record, pause);
    return out;
  }
  SurfaceObjective objective{s, *moments, s.mean ? 1.0 / moments->weight : 1.0};
  if (engine == Engine::Moments) {
    step_by_step(Alone{}, objective, descent, out, state, record, pause);
    return out;
  }
  std::vector<double> work(static_cast<size_t>(closed_form_work(s.n_terms)));
  closed_form(Alone{}, objective, descent, out, state, record, work.data());
  return out;
}

}  // namespace polyfuse
