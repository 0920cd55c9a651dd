// Quiet epochs: nobody looks at their losses, and their gradients do not stay behind. Those of SGD
// on a quadratic loss of few parameters take place in registers.
#pragma once

#include "descent.h"

namespace polyfuse {

constexpr int kQuietTerms = 5;  // parameters, at most

// SGD's step of parameter p with gradient g and momentum buffer b, which is linear in them.
struct LinearStep {
  double p_p = 1.0, p_g = 0.0, p_b = 0.0;  // p <- p_p p + p_g g + p_b b
  double b_p = 0.0, b_g = 0.0, b_b = 1.0;
};

inline namespace PF_ISA {

// Of a buffer that is filled; that of a parameter that stays as it is where the rule is not SGD.
PF_HD LinearStep linear_step(const UpdateRule& rule) {
  LinearStep step;
  if (rule.method != Method::Sgd) return step;
  const auto respond = [&](double p, double g, double b, double& to_p, double& to_b) {
    double kept[kKept] = {b};
    const double filled[kRates] = {};
    Sgd::update(rule.option, filled, p, g, kept);
    to_p = p, to_b = kept[Sgd::kBuffer];
  };
  respond(1.0, 0.0, 0.0, step.p_p, step.b_p);
  respond(0.0, 1.0, 0.0, step.p_g, step.b_g);
  respond(0.0, 0.0, 1.0, step.p_b, step.b_b);
  return step;
}

// Whether all steps from here on are linear: of SGD, with the buffers filled.
PF_HD bool steps_are_linear(const Descent& descent, const State& s, bool& with_momentum) {
  const int n = descent.n_params;
  with_momentum = false;
  PF_ROLLED
  for (int i = 0; i < n; ++i) {
    const UpdateRule& rule = descent.rule_of(i);
    if (rule.method != Method::Sgd && rule.method != Method::None) return false;
    if (!fills_momentum(rule)) continue;
    with_momentum = true;
    if (s.kept[Sgd::kFilled * n + i] == 0.0) return false;
  }
  return true;
}

// Whether all parameters follow the same rule.
PF_HD bool steps_are_alike(const Descent& descent) {
  const UpdateRule& first = descent.rule_of(0);
  PF_ROLLED
  for (int i = 1; i < descent.n_params; ++i) {
    const UpdateRule& rule = descent.rule_of(i);
    if (rule.method != first.method) return false;
    PF_ROLLED
    for (int o = 0; o < kOptions; ++o)
      if (rule.option[o] != first.option[o]) return false;
  }
  return true;
}

// How many quiet epochs follow the `done` ones under the rule that holds before epoch `change`.
PF_HD int64_t quiet_epochs(const Schedule& schedule, int64_t done, int64_t change) {
  if (!(schedule.tol < 0.0)) return 0;
  int64_t until = schedule.epochs - 1;
  if (schedule.record_every > 0) {
    const int64_t last = schedule.first_epoch + done - 1, every = schedule.record_every;
    const int64_t recorded = done + every - 1 - last % every;
    if (recorded < until) until = recorded;
  }
  return (change < until ? change : until) - done;
}

// `epochs` steps of the n <= K parameters on gradient(params, grad); all of a team take them.
template <int K, bool Momentum, class Team, class Gradient>
PF_HD void repeat(const Team& team, int n, const LinearStep& step, int64_t epochs, double* params,
                  double* buffer, const Gradient& gradient) {
  double p[K] = {}, b[K] = {};
  PF_UNROLL
  for (int k = 0; k < K; ++k) {
    if (k >= n) continue;
    p[k] = params[k];
    if (Momentum) b[k] = buffer[k];
  }
  team.meet();
  PF_ROLLED
  for (; epochs > 0; --epochs) {
    double grad[K];
    gradient(p, grad);
    PF_UNROLL
    for (int k = 0; k < K; ++k) {
      double to_p = step.p_p * p[k], to_b = 0.0;
      if (Momentum) {
        to_p += step.p_b * b[k];
        to_b = step.b_p * p[k] + step.b_b * b[k] + step.b_g * grad[k];
      }
      p[k] = to_p + step.p_g * grad[k];
      b[k] = to_b;
    }
  }
  team.one([&] {
    PF_UNROLL
    for (int k = 0; k < K; ++k) {
      if (k >= n) continue;
      params[k] = p[k];
      if (Momentum) buffer[k] = b[k];
    }
  });
}

// at_origin + hessian (p - origin)
template <int K>
struct AffineGradient {
  double origin[K], at_origin[K], hessian[K][K];

  PF_HD void operator()(const double* p, double* grad) const {
    double away[K];
    PF_UNROLL
    for (int k = 0; k < K; ++k) {
      away[k] = p[k] - origin[k];
      grad[k] = at_origin[k];
    }
    PF_UNROLL
    for (int j = 0; j < K; ++j) {
      PF_UNROLL
      for (int k = 0; k < K; ++k) grad[k] += hessian[k][j] * away[j];
    }
  }
};

// Quiet epochs on moments, of coefficients that are the parameters. What they need is computed once
// for every rule.
class QuietMoments {
 public:
  // None is known yet.
  template <class Team>
  PF_HD void start(const Team& team) {
    team.one([&] { until_ = -1; });
  }

  // Takes `quiet` epochs under the rule that holds before epoch `change`; false: it cannot.
  template <class Team>
  PF_HD bool operator()(const Team& team, MomentsObjective& objective, const Descent& descent,
                        int64_t quiet, int64_t change, State s) {
    const int n = descent.n_params;
    bool momentum;
    if (n > kQuietTerms || s.low || !objective.identity() || !steps_are_alike(descent) ||
        !steps_are_linear(descent, s, momentum))
      return false;
    if (until_ != change) {
      if (quiet <= n) return false;  // to prepare takes as long
      prepare(team, objective, n, change, s);
    }
    double* const buffer = s.kept + Sgd::kBuffer * n;
    const LinearStep step = linear_step(descent.rule_of(0));
    const auto run = [&](auto k) {
      constexpr int K = decltype(k)::value;
      const AffineGradient<K> gradient = few<K>(n);
      if (momentum)
        repeat<K, true>(team, n, step, quiet, s.params, buffer, gradient);
      else
        repeat<K, false>(team, n, step, quiet, s.params, buffer, gradient);
    };
    if (n <= 2)
      run(std::integral_constant<int, 2>{});
    else if (n == 3)
      run(std::integral_constant<int, 3>{});
    else
      run(std::integral_constant<int, kQuietTerms>{});
    return true;
  }

 private:
  template <class Team>
  PF_HD void prepare(const Team& team, MomentsObjective& objective, int n, int64_t change,
                     const State& s) {
    team.one([&] {
      const bool near = objective.reference(origin_);
      PF_ROLLED
      for (int i = 0; i < n; ++i) {
        if (!near) origin_[i] = s.params[i];
      }
    });
    PF_ROLLED
    for (int j = 0; j < n; ++j) {
      team.each(n, [&](int i) { point_[i] = i == j ? 1.0 : 0.0; });
      objective.curvature(team, point_, hessian_ + j * n);
    }
    objective(team, origin_, at_origin_);
    team.one([&] { until_ = change; });
  }

  template <int K>
  PF_HD AffineGradient<K> few(int n) const {
    AffineGradient<K> found;
    PF_UNROLL
    for (int j = 0; j < K; ++j) {
      found.origin[j] = j < n ? origin_[j] : 0.0;
      found.at_origin[j] = j < n ? at_origin_[j] : 0.0;
      PF_UNROLL
      for (int k = 0; k < K; ++k) found.hessian[j][k] = j < n && k < n ? hessian_[j * n + k] : 0.0;
    }
    return found;
  }

  int64_t until_;
  double origin_[kQuietTerms], at_origin_[kQuietTerms], point_[kQuietTerms];
  double hessian_[kQuietTerms * kQuietTerms];  // row j: its column j
};

}  // namespace PF_ISA
}  // namespace polyfuse
