// All epochs of SGD on a quadratic loss, as a power of the affine map that one epoch is.
#pragma once

#include "affine.h"
#include "descent.h"

namespace polyfuse {
inline namespace PF_ISA {

PF_HD int closed_form_work(int n_params) { return 4 * affine_entries(2 * n_params) + 8 * n_params; }

// One epoch as an affine map of (params - origin, momentum buffers).
template <class Team, class Objective>
PF_HD void one_epoch(const Team& team, Objective& objective, const Descent& descent,
                     const double* origin, double* epoch, double* work /* [3 P] */) {
  const int n = descent.n_params, width = 2 * n + 1;
  double *at_zero = work, *shifted = work + n, *point = work + 2 * n;
  const auto fill = [&](int column, int i, double p, double g, double b) {
    const UpdateRule& rule = descent.rule[i];
    double p_next = p, kept[kKept] = {b};
    const double filled[kRates] = {};
    if (rule.method == Method::Sgd) Sgd::update(rule.option, filled, p_next, g, kept);
    epoch[i * width + column] = p_next - p;
    epoch[(n + i) * width + column] = kept[Sgd::kBuffer] - b;
  };
  team.each(affine_entries(2 * n), [&](int e) { epoch[e] = 0.0; });
  // The gradient is affine in the parameters: H[:, j] = grad(origin + e_j) - grad(origin) would
  // cancel, so it comes from moments whose cross is zero at their own reference.
  team.each(n, [&](int i) { point[i] = 0.0; });
  objective.curvature(team, point, at_zero);
  PF_ROLLED
  for (int j = 0; j < n; ++j) {
    team.each(n, [&](int i) { point[i] = i == j ? 1.0 : 0.0; });
    objective.curvature(team, point, shifted);
    team.each(n, [&](int i) {
      fill(j, i, i == j ? 1.0 : 0.0, shifted[i] - at_zero[i], 0.0);
      if (i == j) fill(n + j, j, 0.0, 0.0, 1.0);
    });
  }
  objective(team, origin, shifted);
  team.each(n, [&](int i) { fill(2 * n, i, origin[i], shifted[i], 0.0); });
}

// After the first step: all epochs to just before the last. The first is taken apart because it
// fills the momentum buffers, the last because its gradient stays behind.
template <class Team, class Objective, class Record>
PF_HD void jump_ahead(const Team& team, Objective& objective, const Descent& descent, Outcome& out,
                      State s, Record&& record, double* work) {
  if (out.epochs != 1 || descent.schedule.epochs < 4) return;
  const int n = descent.n_params;
  double *const epoch = work, *const powers = epoch + affine_entries(2 * n);
  double *const origin = powers + 3 * affine_entries(2 * n), *const state = origin + n;
  double *const change = state + 2 * n, *const rest = change + 2 * n;
  double *const buffer = s.kept + Sgd::kBuffer * n, *const filled = s.kept + Sgd::kFilled * n;
  team.one([&] {
    const bool near = objective.identity() && objective.reference(origin);
    PF_ROLLED
    for (int i = 0; i < n; ++i) {
      if (!near || descent.rule[i].method == Method::None) origin[i] = s.params[i];
      state[i] = s.params[i] - origin[i];
      state[n + i] = filled[i] != 0.0 ? buffer[i] : 0.0;
    }
  });
  one_epoch(team, objective, descent, origin, epoch, rest);

  const int64_t every = descent.schedule.record_every, first = descent.schedule.first_epoch;
  const int64_t last = descent.schedule.epochs - 1;
  const double* jump = powers;
  int64_t jump_length = 0;
  while (out.epochs < last) {
    const int64_t now = first + out.epochs;
    if (records(descent.schedule, now)) record(objective(team, s.params, descent.grad));
    const int64_t next = every > 0 ? now / every * every + every - first : last;
    const int64_t target = next < last ? next : last;
    if (target - out.epochs != jump_length) {
      jump_length = target - out.epochs;
      jump = power(team, 2 * n, epoch, jump_length, powers);
    }
    apply(team, 2 * n, jump, state, change);
    out.epochs = target;
    team.each(n, [&](int i) { s.params[i] = origin[i] + state[i]; });
  }
  team.each(n, [&](int i) {
    if (filled[i] != 0.0 && fills_momentum(descent.rule[i])) buffer[i] = state[n + i];
  });
}

}  // namespace PF_ISA
}  // namespace polyfuse
