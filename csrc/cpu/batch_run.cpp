#include <algorithm>
#include <atomic>
#include <chrono>
#include <cmath>
#include <vector>

#include "../core/affine.h"
#include "../core/orthogonal.h"
#include "../core/team.h"
#include "pace.h"

namespace polyfuse {
namespace {

double number(const Series& series, int64_t i) {
  const int64_t at = i * series.sample;
  return series.dtype == Dtype::Float32 ? static_cast<const float*>(series.at)[at]
                                        : static_cast<const double*>(series.at)[at];
}

}  // namespace

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
  orthogonalise<true>(begin_fit<true>(batch.n, t.data(), w.data(), nothing.data()), batch.n, terms,
                      t.data(), w.data(), nothing.data(), now.data(), before.data(), orthogonal,
                      [&](int k, int64_t i, double v) { design.q[i * terms + k] = v; });
  double norm = orthogonal.first;
  for (int k = 0; k < terms; ++k) {
    if (k > 0) norm *= orthogonal.size[k];
    for (size_t i = 0; i < n; ++i) design.q[i * terms + k] *= norm > 0.0 ? 1.0 / norm : 0.0;
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

namespace {

constexpr int64_t kMostPaced = 1 << 16;

// Whether what all fits share stays as the first epoch of a rule leaves it.
bool settles(const UpdateRule& rule) {
  return rule.method == Method::None || rule.method == Method::Sgd;
}

// The rates of the first epochs, and what all fits share after them.
void tabulate(const BatchPlan& plan, int64_t epochs, double* rates, double* kept) {
  Pace pace(plan);
  for (int64_t epoch = 0; epoch < epochs; ++epoch)
    std::copy_n(pace.at(epoch), kRates, rates + epoch * kRates);
  std::copy_n(pace.kept(), kKept, kept);
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

}  // namespace

OwnedLeaps leaps_of(const Batch& batch, const Design& design) {
  const Schedule& schedule = batch.schedule;
  const UpdateRule& rule = batch.rule;
  const int terms = batch.n_terms, n = 3 * terms;
  const int64_t last = schedule.epochs - 1, every = schedule.record_every;
  const LinearStep step = linear_step(rule);
  const std::vector<double> epoch = epoch_map(batch, design, step);
  OwnedLeaps owned;
  Leaps& leaps = owned.view;
  leaps.buffer = fills_momentum(rule);
  leaps.decay = step.p_p != 1.0 || step.b_p != 0.0;
  leaps.at_once = every == 0 && last > 0 && rule.method == Method::Sgd && !leaps.buffer;
  const int64_t first = every > 0 ? std::min(every, last) : last;
  const int64_t lengths[3] = {leaps.at_once ? first : first - 1, every,
                              every > 0 ? last - last / every * every : 0};
  const size_t size = static_cast<size_t>(2 * terms) * static_cast<size_t>(n);
  owned.maps.resize(3 * size);
  std::vector<double> work(static_cast<size_t>(3 * affine_entries(n)));
  for (int i = 0; i < 3; ++i) {
    double* const map = owned.maps.data() + i * size;
    leaps.jump[i] = {lengths[i], rule.method == Method::None ? nullptr : map, false};
    if (lengths[i] <= 0) continue;
    const double* power_of = power(Alone{}, n, epoch.data(), lengths[i], work.data());
    for (int row = 0; row < 2 * terms; ++row)
      std::copy_n(power_of + row * (n + 1), n, map + row * n);
    leaps.jump[i].overflows =
        !std::all_of(map, map + size, [](double entry) { return std::isfinite(entry); });
  }
  return owned;
}

namespace {

constexpr double kShare = 1 << 16;  // terms of samples, or of the moments, between two looks

// Fits that a thread takes at once.
int64_t share_of(const Batch& batch) {
  const double terms = batch.n_terms, epochs = static_cast<double>(batch.schedule.epochs);
  const double read = static_cast<double>(batch.n) * terms;
  double work = read;
  if (!batch.solve && batch.engine == Engine::Stream) work *= std::max(1.0, epochs);
  if (!batch.solve && batch.engine == Engine::Moments) work += epochs * terms * terms;
  return std::max<int64_t>(1, static_cast<int64_t>(kShare / work) / kTile) * kTile;
}

}  // namespace

std::vector<double> rates_of(const Batch& batch, int64_t epochs) {
  std::vector<double> rates(static_cast<size_t>(epochs * kRates));
  double kept[kKept];
  tabulate(BatchPlan(batch), epochs, rates.data(), kept);
  return rates;
}

std::vector<double> kept_once_after(const Batch& batch, int64_t epochs) {
  const BatchPlan plan(batch);
  Pace pace(plan);
  if (settles(batch.rule)) {
    if (epochs > 0) pace.at(0);
    for (const Change& change : batch.changes)
      if (change.epoch < epochs) pace.at(change.epoch);
  } else {
    for (int64_t epoch = 0; epoch < epochs; ++epoch) pace.at(epoch);
  }
  return {pace.kept(), pace.kept() + kKept};
}

int64_t run_batch(const Batch& batch, int64_t first, double seconds, int threads) {
  using Clock = std::chrono::steady_clock;
  const Clock::time_point start = Clock::now();
  BatchPlan plan(batch);
  // Powers of numbers cost as much as an epoch of a pack of fits: they are taken once for all.
  const int64_t paced = std::min(batch.schedule.epochs, settles(batch.rule) ? 1 : kMostPaced);
  std::vector<double> rates(static_cast<size_t>(paced * kRates));
  tabulate(plan, paced, rates.data(), plan.kept);
  plan.rates = rates.data();
  plan.paced = paced;
  OwnedDesign design;
  OwnedLeaps leaps;
  const bool streams = !batch.solve && batch.engine == Engine::Stream;
  if (batch.x.fit == 0 && (!batch.w.at || (batch.w.fit == 0 && !streams))) {
    design = design_of(batch);
    for (size_t e = 0; e < design.q.size() && !design.root.empty(); ++e)
      design.q[e] *= design.root[e / static_cast<size_t>(batch.n_terms)];
    plan.design = &design.view;
    if (!batch.solve && batch.engine == Engine::ClosedForm) {
      leaps = leaps_of(batch, design.view);
      plan.leaps = leaps.view;
    }
  }
  // A thread looks at the clock before every share but its first.
  const auto pass = passes().batch;
  const int64_t share = share_of(batch);
  std::atomic<int64_t> next{first};
#pragma omp parallel num_threads(threads) if (threads > 1 && batch.fits - first > share)
  for (int64_t at = next.fetch_add(share); at < batch.fits; at = next.fetch_add(share)) {
    pass(plan, at, std::min(batch.fits, at + share));
    if (std::chrono::duration<double>(Clock::now() - start).count() > seconds) break;
  }
  return std::min(next.load(), batch.fits);
}

}  // namespace polyfuse
