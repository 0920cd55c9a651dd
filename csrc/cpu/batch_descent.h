// Epochs of a pack of fits: one by one, on any criterion, or by leaps.
#pragma once

#include <cmath>

#include "../core/optimum.h"
#include "lanes.h"

namespace polyfuse {
inline namespace PF_ISA {

// What the epochs of eight fits, or their optima, are computed from.
template <class F, int K>
using AtOptimum = Quadratic<FitPack, F, K>;

// Any criterion, from the data in every epoch. u[i] are doubles where all fits share x; w is false
// where all samples count alike.
template <class Rho, int K, class U, class Y = const FitPack*>
struct FromData {
  static constexpr int kTerms = K;
  int n_terms;
  int64_t n;
  U u;
  Y y, w;
  const Criterion& criterion;
  const Recurrence& basis;
  FitPack weight;

  template <class V, class F>
  PF_INLINE void each_term(const V& at, F&& f) const {
    V phi = like(at, 1.0), before{};
    for_terms<K>(n_terms, [&](int j) PF_ALWAYS_INLINE {
      f(j, phi);
      if (j + 1 == n_terms) return;
      const V next = next_of(basis, j, at, phi, before);
      before = phi;
      phi = next;
    });
  }

  FitPack operator()(const FitPack* p, FitPack* grad) const {
    const int terms = K ? K : n_terms;
    FitPack value{}, sum[K ? K : kMaxTerms];
    for_terms<K>(terms, [&](int j) PF_ALWAYS_INLINE { sum[j] = FitPack{}; });
    for (int64_t i = 0; i < n; ++i) {
      const auto at = u[i];
      FitPack prediction{};
      if (basis.alpha) {
        each_term(at, [&](int j, const auto& phi) PF_ALWAYS_INLINE { prediction += p[j] * phi; });
      } else {
        prediction = p[terms - 1];
        for_terms<K - 1>(terms - 1, [&](int j) PF_ALWAYS_INLINE {
          prediction = prediction * at + p[terms - 2 - j];
        });
      }
      const auto rho = Rho::at(prediction, y[i], criterion);
      const FitPack slope = w ? if_zero(w[i], FitPack{}, w[i] * rho.slope) : rho.slope;
      value += w ? if_zero(w[i], FitPack{}, w[i] * rho.value) : rho.value;
      each_term(at, [&](int j, const auto& phi) PF_ALWAYS_INLINE { sum[j] += slope * phi; });
    }
    for_terms<K>(terms,
                 [&](int j) PF_ALWAYS_INLINE { grad[j] = sum[j] * (Rho::kFactor * weight); });
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
  FitPack grad[kMaxTerms];
  Pace pace(plan);
  for (int64_t epoch = 0;; ++epoch) {
    s.loss = objective(s.p, grad);
    if (epoch == schedule.epochs) return;
    if (records(schedule, schedule.first_epoch + epoch)) record(s.loss);
    if (schedule.tol >= 0.0) {
      const FitPack change = abs(s.previous - s.loss) - tol * abs(s.loss);  // nan at first
      s.active = if_less(-change, 0.0, s.active, if_zero(change - change, FitPack{}, s.active));
      if (!any_goes_on(s)) {
        for (++epoch; epoch < schedule.epochs; ++epoch)
          if (records(schedule, schedule.first_epoch + epoch)) record(s.loss);
        return;
      }
    }
    s.previous = s.loss;
    const double* const rate = pace.at(epoch);
    update(pace.rule(), rate, terms, grad, s);
    for (int j = 0; j < terms; ++j) s.grad[j] = if_zero(s.active, s.grad[j], grad[j]);
    s.epochs += s.active;
  }
}

template <class U>
void descend_on(const BatchPlan& plan, const U* u, const FitPack* y, const FitPack* w,
                FitPack weight, Recorder record, Lanes& s) {
  const Batch& batch = plan.batch;
  const Criterion& c = batch.criterion;
  with_rho(c.kind, [&](auto rho) {
    const FromData<decltype(rho), 0, const U*> objective{batch.n_terms, batch.n, u, y, w, c,
                                                         batch.basis,   weight};
    descend(plan, objective, record, s);
  });
}

template <int K>
void leap(const BatchPlan& plan, const AtOptimum<double, K>& objective, Recorder record, Lanes& s) {
  const Batch& batch = plan.batch;
  Pace pace(plan);
  const auto step = [&](int64_t epoch) {
    update(batch.rule, pace.at(epoch), batch.n_terms, s.grad, s);
  };
  leap(plan.leaps, batch.schedule, batch.n_terms, objective, s, step, record);
}

}  // namespace PF_ISA
}  // namespace polyfuse
