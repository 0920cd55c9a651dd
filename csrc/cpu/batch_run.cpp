#include <algorithm>
#include <chrono>
#include <cmath>
#include <vector>

#include "../core/affine.h"
#include "../core/orthogonal.h"
#include "../core/team.h"
#include "batch.h"

namespace polyfuse {
namespace {

struct OwnedDesign {
  std::vector<double> q, factor, u, root;
  Design view;
};

double number(const Series& series, int64_t i) {
  const int64_t at = i * series.sample;
  return series.dtype == Dtype::Float32 ? static_cast<const float*>(series.at)[at]
                                        : static_cast<const double*>(series.at)[at];
}

OwnedDesign design_of(const Batch& batch) {
  const auto n = static_cast<size_t>(batch.n);
  const int terms = batch.n_terms;
  std::vector<double> t(n), w(n, 1.0), now(n), before(n), nothing(n);
  OwnedDesign design;
  design.u.resize(n);
  design.view.weight = design.view.counted = static_cast<double>(n);
  if (batch.w.at) {
    design.root.resize(n);
    design.view.weight = design.view.counted = 0.0;
    for (size_t i = 0; i < n; ++i) {
      w[i] = number(batch.w, static_cast<int64_t>(i));
      design.root[i] = std::sqrt(w[i]);
      design.view.weight += w[i];
      design.view.counted += w[i] > 0.0 ? 1.0 : 0.0;
    }
  }
  for (size_t i = 0; i < n; ++i) {
    const double x = number(batch.x, static_cast<int64_t>(i));
    design.u[i] = (x - batch.shift) * batch.scale;
    if (w[i] > 0.0) t[i] = x;
  }
  design.q.resize(n * static_cast<size_t>(terms));
  design.factor.resize(static_cast<size_t>(terms) * static_cast<size_t>(terms));
  Orthogonal<double> orthogonal;
  orthogonalise<true>(batch.n, terms, t.data(), w.data(), nothing.data(), now.data(), before.data(),
                      orthogonal, [&](int k, int64_t i, double v) { design.q[i * terms + k] = v; });
  double norm = orthogonal.first;
  for (int k = 0; k < terms; ++k) {
    if (k > 0) norm *= orthogonal.size[k];
    for (size_t i = 0; i < n; ++i)
      design.q[i * terms + k] *=
          (design.root.empty() ? 1.0 : design.root[i]) * (norm > 0.0 ? 1.0 / norm : 0.0);
  }
  factorise(terms, batch.basis, orthogonal, batch.scale / orthogonal.scale,
            orthogonal.offset(batch.shift), design.factor.data());
  design.view.q = design.q.data();
  design.view.factor = design.factor.data();
  design.view.u = design.u.data();
  design.view.root = design.root.empty() ? nullptr : design.root.data();
  design.view.rank = orthogonal.rank;
  return design;
}

// How SGD's step responds to parameter, gradient and buffer, once that is filled.
LinearStep linear_step(const UpdateRule& rule) {
  const auto respond = [&](double p, double g, double b, double& to_p, double& to_b) {
    double kept[kKept] = {b, 1.0};
    update(rule, p, g, kept);
    to_p = p, to_b = kept[Sgd::kBuffer];
  };
  LinearStep step;
  respond(1.0, 0.0, 0.0, step.p_p, step.b_p);
  respond(0.0, 1.0, 0.0, step.p_g, step.b_g);
  respond(0.0, 0.0, 1.0, step.p_b, step.b_b);
  return step;
}

constexpr int64_t kMostPaced = 1 << 16;

// Powers of numbers cost as much as an epoch of a pack of fits: they are taken once for all.
std::vector<double> pace(BatchPlan& plan) {
  const UpdateRule& rule = plan.batch.rule;
  const bool settles = rule.method == Method::None || rule.method == Method::Sgd;
  plan.paced = std::min(plan.batch.schedule.epochs, settles ? 1 : kMostPaced);
  std::vector<double> rates(static_cast<size_t>(plan.paced * kRates));
  std::copy_n(plan.batch.kept_once, kKept, plan.kept);
  with_rule(rule.method, [&](auto of) {
    for (int64_t epoch = 0; epoch < plan.paced; ++epoch)
      of.advance(rule.option, plan.kept, rates.data() + epoch * kRates);
  });
  plan.rates = rates.data();
  return rates;
}

// One epoch of (parameters - optimum, buffer, optimum), less the identity; [3 K, 3 K + 1].
std::vector<double> epoch_map(const Batch& batch, const Design& design, const LinearStep& step) {
  const int terms = batch.n_terms, width = 3 * terms + 1;
  const double weight = 2.0 * batch.criterion.weight / (batch.mean ? design.weight : 1.0);
  std::vector<double> map(static_cast<size_t>(affine_entries(3 * terms)));
  for (int i = 0; i < terms; ++i) {
    double* const p = map.data() + i * width;
    double* const b = map.data() + (terms + i) * width;
    for (int j = 0; j < terms; ++j) {
      double gram = 0.0;
      for (int k = 0; k <= std::min(i, j); ++k)
        gram += design.factor[k * terms + i] * design.factor[k * terms + j];
      p[j] = step.p_g * weight * gram;
      b[j] = step.b_g * weight * gram;
    }
    p[i] += step.p_p - 1.0;
    b[i] += step.b_p;
    p[terms + i] = step.p_b;
    b[terms + i] = step.b_b - 1.0;
    p[2 * terms + i] = step.p_p - 1.0;
    b[2 * terms + i] = step.b_p;
  }
  return map;
}

// The maps of the jumps that the schedule makes.
std::vector<std::vector<double>> jumps_of(BatchPlan& plan) {
  const Schedule& schedule = plan.batch.schedule;
  const int terms = plan.batch.n_terms, n = 3 * terms;
  const int64_t last = schedule.epochs - 1, every = schedule.record_every;
  const std::vector<double> epoch = epoch_map(plan.batch, *plan.design, plan.step);
  const int64_t lengths[3] = {every > 0 ? std::min(every, last) - 1 : last - 1, every,
                              every > 0 ? last - last / every * every : 0};
  std::vector<std::vector<double>> maps;
  std::vector<double> work(static_cast<size_t>(3 * affine_entries(n)));
  for (int i = 0; i < 3; ++i) {
    maps.emplace_back(static_cast<size_t>(2 * terms * n));
    plan.jump[i] = {lengths[i], maps.back().data()};
    if (lengths[i] <= 0) continue;
    const double* power_of = power(Alone{}, n, epoch.data(), lengths[i], work.data());
    for (int row = 0; row < 2 * terms; ++row)
      std::copy_n(power_of + row * (n + 1), n, maps.back().data() + row * n);
  }
  return maps;
}

}  // namespace

void advance(const UpdateRule& rule, int64_t epochs, double* kept) {
  double rate[kRates];
  with_rule(rule.method, [&](auto of) {
    for (int64_t epoch = 0; epoch < epochs; ++epoch) of.advance(rule.option, kept, rate);
  });
}

int64_t run_batch(const Batch& batch, int64_t first, double seconds, int threads) {
  using Clock = std::chrono::steady_clock;
  const Clock::time_point start = Clock::now();
  BatchPlan plan;
  plan.batch = batch;
  const std::vector<double> rates = pace(plan);
  OwnedDesign design;
  std::vector<std::vector<double>> maps;
  const bool streams = !batch.solve && batch.engine == Engine::Stream;
  if (batch.x.fit == 0 && (!batch.w.at || (batch.w.fit == 0 && !streams))) {
    design = design_of(batch);
    plan.design = &design.view;
    if (!batch.solve && batch.engine == Engine::ClosedForm) {
      plan.step = linear_step(batch.rule);
      maps = jumps_of(plan);
    }
  }
  // A share of the fits for every thread, many times over where a look at the clock is wanted.
  const auto pass = passes().batch;
  const int64_t share = std::max<int64_t>(kTileFits, (1 << 15) / batch.n / kTileFits * kTileFits);
  for (int64_t at = first; at < batch.fits;) {
    const int64_t shares = std::min<int64_t>((batch.fits - at + share - 1) / share, 16 * threads);
#pragma omp parallel for num_threads(threads) schedule(dynamic) if (threads > 1 && shares > 1)
    for (int64_t s = 0; s < shares; ++s)
      pass(plan, at + s * share, std::min(batch.fits, at + (s + 1) * share));
    at = std::min(batch.fits, at + shares * share);
    if (at < batch.fits && std::chrono::duration<double>(Clock::now() - start).count() > seconds)
      return at;
  }
  return batch.fits;
}

}  // namespace polyfuse
