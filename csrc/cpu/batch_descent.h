// Epochs of eight fits: epoch by epoch on any criterion, or by powers of an affine map.
#pragma once

#include <algorithm>
#include <cmath>

#include "../core/orthogonal.h"
#include "lanes.h"

namespace polyfuse {
inline namespace PF_ISA {

// What the epochs of one fit, or the optimum, are computed from: with e = factor p - along, the
// sum of squared residuals is rest + e^2 and its derivative 2 factor^T e, free of cancellation.
// F is double where all fits share the factor; K terms, 0: n_terms of them.
template <class F, int K>
struct AtOptimum {
  static constexpr int kTerms = K;
  int n_terms;
  const F* factor;
  const FitPack* along;
  FitPack rest, weight;

  PF_INLINE FitPack operator()(const FitPack* p, FitPack* grad) const {
    const int terms = K ? K : n_terms;
    FitPack value = rest, sum[K ? K : kMaxTerms] = {};
    for_terms<K>(terms, [&](int k) PF_ALWAYS_INLINE {
      FitPack e = -along[k];
      for (int j = k; j < terms; ++j) e += p[j] * factor[k * terms + j];
      value += e * e;
      for (int j = k; j < terms; ++j) sum[j] += e * factor[k * terms + j];
    });
    for_terms<K>(terms, [&](int j) PF_ALWAYS_INLINE { grad[j] = sum[j] * (2.0 * weight); });
    return value * weight;
  }
};

// Any criterion, from the data in every epoch. U is double where all fits share x.
template <class Rho, class U>
struct FromData {
  static constexpr int kTerms = 0;
  int n_terms;
  int64_t n;
  const U* u;
  const FitPack *y, *w;
  const Criterion& criterion;
  const Recurrence& basis;
  FitPack weight;

  template <class F>
  PF_INLINE void each_term(const U& at, F&& f) const {
    U phi = like(at, 1.0), before{};
    for (int j = 0;; ++j) {
      f(j, phi);
      if (j + 1 == n_terms) return;
      const U next = next_of(basis, j, at, phi, before);
      before = phi;
      phi = next;
    }
  }

  FitPack operator()(const FitPack* p, FitPack* grad) const {
    FitPack value{};
    for (int j = 0; j < n_terms; ++j) grad[j] = FitPack{};
    for (int64_t i = 0; i < n; ++i) {
      FitPack prediction{};
      if (basis.alpha) {
        each_term(u[i], [&](int j, const U& phi) { prediction += p[j] * phi; });
      } else {
        prediction = p[n_terms - 1];
        for (int j = n_terms - 2; j >= 0; --j) prediction = prediction * u[i] + p[j];
      }
      const auto rho = Rho::at(prediction, y[i], criterion);
      const FitPack slope = w ? if_zero(w[i], FitPack{}, w[i] * rho.slope) : rho.slope;
      value += w ? if_zero(w[i], FitPack{}, w[i] * rho.value) : rho.value;
      each_term(u[i], [&](int j, const U& phi) { grad[j] += slope * phi; });
    }
    for (int j = 0; j < n_terms; ++j) grad[j] *= Rho::kFactor * weight;
    return value * weight;
  }
};

// Epoch by epoch; a fit whose loss has settled stays as it is.
template <class Objective>
void descend(const BatchPlan& plan, const Objective& objective, Recorder record, Lanes& s) {
  constexpr int K = Objective::kTerms;
  const Schedule& schedule = plan.batch.schedule;
  const int terms = K ? K : plan.batch.n_terms;
  const FitPack tol = FitPack::all(schedule.tol);
  FitPack previous = FitPack::all(NAN), grad[kMaxTerms];
  Pace pace(plan);
  for (int64_t epoch = 0;; ++epoch) {
    const FitPack loss = objective(s.p, grad);
    s.loss = if_zero(s.active, s.loss, loss);
    if (epoch == 0) s.start_loss = loss;
    if (epoch == schedule.epochs) return;
    if (records(schedule, epoch)) record(s.loss);
    if (schedule.tol >= 0.0) {
      const FitPack change = abs(previous - loss) - tol * abs(loss);  // nan at first
      s.active = if_less(-change, 0.0, s.active, if_zero(change - change, FitPack{}, s.active));
      previous = loss;
      if (!any_goes_on(s)) {
        for (++epoch; epoch < schedule.epochs; ++epoch)
          if (records(schedule, epoch)) record(s.loss);
        return;
      }
    }
    update(plan.batch.rule, pace.at(epoch), terms, grad, s);
    for (int j = 0; j < terms; ++j) s.grad[j] = if_zero(s.active, s.grad[j], grad[j]);
    s.epochs += s.active;
  }
}

template <class U>
void descend_on(const BatchPlan& plan, const U* u, const FitPack* y, const FitPack* w,
                FitPack weight, Recorder record, Lanes& s) {
  const Batch& batch = plan.batch;
  const Criterion& c = batch.criterion;
  const auto run = [&](auto rho) {
    const FromData<decltype(rho), U> objective{batch.n_terms, batch.n, u, y, w, c,
                                               batch.basis,   weight};
    descend(plan, objective, record, s);
  };
  switch (c.kind) {
    case CriterionKind::SquaredError: return run(SquaredError{});
    case CriterionKind::AbsoluteError: return run(AbsoluteError{});
    case CriterionKind::SmoothL1: return run(SmoothL1{});
    case CriterionKind::Huber: return run(Huber{});
    case CriterionKind::SoftMargin: return run(SoftMargin{});
    case CriterionKind::BCEWithLogits: return run(BCEWithLogits{});
    case CriterionKind::PoissonNLL: return run(PoissonNLL{});
    case CriterionKind::KLDiv: return run(KLDiv{});
    case CriterionKind::GaussianNLL: return run(GaussianNLL{});
    case CriterionKind::CrossEntropy: return;  // of several outputs
  }
}

// SGD of fits that share their factor: the first epoch, which fills the buffers, and the last,
// whose gradient stays behind, as they are; those between by powers of the affine map.
template <int K>
void leap(const BatchPlan& plan, const AtOptimum<double, K>& objective, Recorder record, Lanes& s) {
  const Schedule& schedule = plan.batch.schedule;
  const int terms = K ? K : plan.batch.n_terms;
  const bool with_buffer = plan.step.p_b != 0.0 || plan.step.b_b != 0.0;
  const bool with_decay = plan.step.p_p != 1.0 || plan.step.b_p != 0.0;
  FitPack optimum[K ? K : kMaxTerms];
  const auto buffer = [&](int j) -> FitPack& { return s.kept[j][Sgd::kBuffer]; };
  Pace pace(plan);
  back_substitute(terms, objective.factor, objective.along, optimum);
  const int64_t last = schedule.epochs - 1, every = schedule.record_every;
  const auto jump_to = [&](const Jump& jump) PF_ALWAYS_INLINE {
    FitPack from[K ? K : kMaxTerms], to_p[K ? K : kMaxTerms], to_b[K ? K : kMaxTerms] = {};
    for_terms<K>(terms, [&](int j) PF_ALWAYS_INLINE { from[j] = s.p[j] - optimum[j]; });
    const auto row = [&](int i) PF_ALWAYS_INLINE {
      const double* entry = jump.map + i * 3 * terms;
      FitPack change{};
      for (int j = 0; j < terms; ++j) change += from[j] * entry[j];
      if (with_buffer)
        for (int j = 0; j < terms; ++j) change += buffer(j) * entry[terms + j];
      if (with_decay)
        for (int j = 0; j < terms; ++j) change += optimum[j] * entry[2 * terms + j];
      return change;
    };
    for_terms<K>(terms, [&](int i) PF_ALWAYS_INLINE { to_p[i] = row(i); });
    if (with_buffer) for_terms<K>(terms, [&](int i) PF_ALWAYS_INLINE { to_b[i] = row(terms + i); });
    for_terms<K>(terms, [&](int i) PF_ALWAYS_INLINE {
      s.p[i] = (from[i] + to_p[i]) + optimum[i];
      if (with_buffer) buffer(i) += to_b[i];
    });
  };
  for (int64_t epoch = 0;;) {
    s.loss = objective(s.p, s.grad);
    if (epoch == 0) s.start_loss = s.loss;
    if (epoch > last) break;
    if (records(schedule, epoch)) record(s.loss);
    if (epoch == 0 || epoch == last) {
      update(plan.batch.rule, pace.at(epoch), terms, s.grad, s);
      if (++epoch > last) {
        FitPack unused[K ? K : kMaxTerms];
        s.loss = objective(s.p, unused);
        break;
      }
      if (epoch == last || records(schedule, epoch)) continue;
    }
    const int64_t next = every > 0 ? std::min(last, epoch / every * every + every) : last;
    const Jump* jump = plan.jump;
    while (jump->epochs != next - epoch) ++jump;
    if (plan.batch.rule.method != Method::None) jump_to(*jump);
    epoch = next;
  }
  s.epochs = FitPack::all(static_cast<double>(schedule.epochs));
}

}  // namespace PF_ISA
}  // namespace polyfuse
