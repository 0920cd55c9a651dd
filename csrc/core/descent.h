// Gradient descent, one epoch at a time; and the objective that needs the moments alone.
#pragma once

#include <cmath>
#include <cstdint>

#include "coefficients.h"
#include "moments.h"
#include "optimizer.h"

namespace polyfuse {

// What a run reads and leaves behind, one number per parameter, in float64.
struct State {
  double* params;
  double* kept;                                  // [kKept, P], what the update rules keep
  double* grad;                                  // of the last step taken
  const double *low = nullptr, *high = nullptr;  // that parameters are kept within; null: nowhere
};

struct Schedule {
  int64_t first_epoch = 0;
  int64_t epochs = 0;
  int64_t record_every = 0;  // 0: record nothing
  double tol = -HUGE_VAL;    // stop when the loss changes by less than tol * loss; -inf: never
  double seconds = 0.0;      // come back after the first epoch past this; 0: no limit
  double previous = NAN;     // loss of the epoch before the first
};

struct Outcome {
  int64_t epochs = 0;
  bool converged = false;
  double loss = 0.0;      // at the parameters left behind
  double previous = NAN;  // of the last epoch, before its step
};

inline namespace PF_ISA {

PF_HD bool records(const Schedule& schedule, int64_t epoch) {
  return schedule.record_every > 0 && epoch % schedule.record_every == 0;
}

// Loss and gradient from the moments.
struct MomentsObjective {
  const CoefficientMap* map;
  const Moments* moments;
  double weight;
  double change[kMaxTerms * kMaxTerms];  // coefficients of the model to those of the moments
  double coef[kMaxTerms], delta[kMaxTerms], part[kMaxTerms];
  double grad_moved[kMaxTerms], grad_coef[kMaxTerms];

  template <class Team>
  PF_HD void start(const Team& team, const CoefficientMap& m, const Moments& of, double shift,
                   double scale, bool mean) {
    team.one([&] {
      map = &m;
      moments = &of;
      weight = mean ? 1.0 / of.power[0] : 1.0;
      change_of_variable(scale / of.scale, (of.shift - shift) * scale, of.n_terms, change);
    });
  }

  template <class Team>
  PF_HD double operator()(const Team& team, const double* params, double* grad) {
    move(team, params, moments->reference);
    const double loss = moments->sum_of_squares(team, delta, grad_moved, part) * weight;
    pull_back(team, params, grad);
    return loss;
  }

  // The gradient of the same moments but for a cross and a reference of zero.
  template <class Team>
  PF_HD void curvature(const Team& team, const double* params, double* grad) {
    move(team, params, nullptr);
    moments->curvature(team, delta, grad_moved);
    pull_back(team, params, grad);
  }

  PF_HD bool identity() const { return map->identity; }

  // The coefficients of the model that give the reference polynomial.
  PF_HD bool reference(double* into) const {
    const int terms = moments->n_terms;
    bool finite = true;
    PF_ROLLED
    for (int k = terms - 1; k >= 0; --k) {
      into[k] = moments->reference[k];
      PF_ROLLED
      for (int m = k + 1; m < terms; ++m) into[k] -= change[k * terms + m] * into[m];
      into[k] /= change[k * terms + k];
      finite = finite && into[k] - into[k] == 0.0;
    }
    return finite;
  }

 private:
  template <class Team>
  PF_HD void move(const Team& team, const double* params, const double* from) {
    const int terms = moments->n_terms;
    map->evaluate(team, params, coef);
    team.each(terms, [&](int j) {
      double moved = 0.0;
      PF_ROLLED
      for (int k = j; k < terms; ++k) moved += change[j * terms + k] * coef[k];
      delta[j] = from ? moved - from[j] : moved;
    });
  }

  template <class Team>
  PF_HD void pull_back(const Team& team, const double* params, double* grad) {
    const int terms = moments->n_terms;
    team.each(terms, [&](int k) {
      double sum = 0.0;
      PF_ROLLED
      for (int j = 0; j <= k; ++j) sum += change[j * terms + k] * grad_moved[j];
      grad_coef[k] = sum * weight;
    });
    map->pull_back(team, params, grad_coef, grad);
  }
};

struct Descent {
  int n_params;
  const UpdateRule* rule;  // [P]
  Schedule schedule;
  double* grad;         // [P], of the epoch that is looked at
  bool single = false;  // loss, gradient and update in float32
  bool alike = false;   // rule [1]: that of all parameters

  PF_HD const UpdateRule& rule_of(int i) const { return rule[alike ? 0 : i]; }
};

// The update of parameter i of n, in the precision of T.
template <class T>
PF_HD void update_one(const UpdateRule& rule, int i, int n, State s) {
  T p = T(s.params[i]), kept[kKept];
  PF_UNROLL
  for (int r = 0; r < kKept; ++r) kept[r] = T(s.kept[r * n + i]);
  update(rule, p, T(s.grad[i]), kept);
  if (s.low) p = projected(p, T(s.low[i]), T(s.high[i]));
  s.params[i] = p;
  PF_UNROLL
  for (int r = 0; r < kKept; ++r) s.kept[r * n + i] = kept[r];
}

// Of single steps, never in a loop over epochs: code that is long and seldom run.
PF_HD_APART void update_one_in_float32(const UpdateRule& rule, int i, int n, State s) {
  update_one<float>(rule, i, n, s);
}

// The update of every parameter, in the precision of T.
template <class T, class Team>
PF_HD void update_all(const Team& team, const Descent& descent, State s) {
  const int n = descent.n_params;
  team.each(n, [&](int i) { update_one<T>(descent.rule_of(i), i, n, s); });
}

template <class Team, class Objective>
PF_HD void look(const Team& team, Objective& objective, const Descent& descent, Outcome& out,
                State s) {
  out.loss = objective(team, s.params, descent.grad);
  if (descent.single) out.loss = static_cast<float>(out.loss);
}

// The rest of an epoch after its look; false where the loss has settled, and nothing was changed.
template <class Team, class Record>
PF_HD bool move(const Team& team, const Descent& descent, Outcome& out, State s, Record&& record) {
  const Schedule& schedule = descent.schedule;
  if (records(schedule, schedule.first_epoch + out.epochs)) record(out.loss);
  const double settled = schedule.tol * std::fabs(out.loss);
  if (out.loss - out.loss == 0.0 && std::fabs(out.previous - out.loss) <= settled) {
    out.converged = true;
    return false;
  }
  out.previous = out.loss;
  const bool single = descent.single;
  const int n = descent.n_params;
  team.each(n, [&](int i) {
    s.grad[i] = single ? static_cast<float>(descent.grad[i]) : descent.grad[i];
  });
  if (single)
    team.each(n, [&](int i) { update_one_in_float32(descent.rule_of(i), i, n, s); });
  else
    update_all<double>(team, descent, s);
  ++out.epochs;
  return true;
}

// All epochs, each followed by pause(): false to come back early.
template <class Team, class Objective, class Record, class Pause>
PF_HD void step_by_step(const Team& team, Objective& objective, const Descent& descent,
                        Outcome& out, State s, Record&& record, Pause&& pause) {
  for (bool more = true;;) {
    look(team, objective, descent, out, s);
    if (!more || out.epochs >= descent.schedule.epochs) return;
    if (!move(team, descent, out, s, record)) return;
    more = pause();
  }
}

}  // namespace PF_ISA
}  // namespace polyfuse
