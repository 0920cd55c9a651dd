#include "run.h"

#include <algorithm>
#include <chrono>
#include <cmath>

#include "../core/affine.h"
#include "../core/optimizer.h"

namespace polyfuse {
namespace {

// Loss and gradient from the data, every time.
struct StreamObjective {
  const Problem& problem;
  double operator()(const double* params, double* grad) const {
    double coef[kMaxTerms], grad_coef[kMaxTerms];
    const CoefficientMap& map = problem.map;
    map.evaluate(params, coef);
    const Loss loss = loss_and_gradient(problem.data, problem.criterion, coef, map.n_coefficients,
                                        problem.threads, grad_coef);
    const double weight = problem.mean ? 1.0 / loss.count : 1.0;
    for (int k = 0; k < map.n_coefficients; ++k) grad_coef[k] *= weight;
    map.pull_back(params, grad_coef, grad);
    return loss.value * weight;
  }
};

// The same from the moments.
struct MomentsObjective {
  const Problem& problem;
  const Moments& moments;
  double weight;
  double change[kMaxTerms * kMaxTerms];  // coefficients of the model to those of the moments

  MomentsObjective(const Problem& p, const Moments& m)
      : problem(p), moments(m), weight(p.mean ? 1.0 / m.power[0] : 1.0) {
    change_of_variable(p.data.scale / m.scale, (m.shift - p.data.shift) * p.data.scale, m.n_terms,
                       change);
  }
  double operator()(const double* params, double* grad) const {
    const int terms = moments.n_terms;
    double coef[kMaxTerms], moved[kMaxTerms], grad_moved[kMaxTerms], grad_coef[kMaxTerms];
    problem.map.evaluate(params, coef);
    for (int j = 0; j < terms; ++j) {
      moved[j] = 0.0;
      for (int k = j; k < terms; ++k) moved[j] += change[j * terms + k] * coef[k];
    }
    const double loss = moments.sum_of_squares(moved, grad_moved) * weight;
    for (int k = 0; k < terms; ++k) {
      grad_coef[k] = 0.0;
      for (int j = 0; j <= k; ++j) grad_coef[k] += change[j * terms + k] * grad_moved[j];
      grad_coef[k] *= weight;
    }
    problem.map.pull_back(params, grad_coef, grad);
    return loss;
  }
  // The coefficients of the model that give the reference polynomial.
  bool reference(double* coef) const {
    const int terms = moments.n_terms;
    bool finite = true;
    for (int k = terms - 1; k >= 0; --k) {
      coef[k] = moments.reference[k];
      for (int m = k + 1; m < terms; ++m) coef[k] -= change[k * terms + m] * coef[m];
      coef[k] /= change[k * terms + k];
      finite = finite && std::isfinite(coef[k]);
    }
    return finite;
  }
};

void update(const Problem& problem, const State& s) {
  for (int i = 0; i < problem.map.n_params; ++i) {
    const SgdOptions& rule = problem.rule[i];
    Sgd::update(rule, s.params[i], s.grad[i], s.momentum[i], !s.has_momentum[i]);
    if (rule.owned && rule.momentum != 0.0) s.has_momentum[i] = true;
  }
}

bool records(const Schedule& schedule, int64_t epoch) {
  return schedule.record_every > 0 && epoch % schedule.record_every == 0;
}

// Epochs that need no loss and no gradient to be left behind, on few samples; true if done.
bool run_resident(const Problem& problem, int64_t epochs, const State& s) {
  const int n = problem.map.n_params;
  if (!problem.map.identity || problem.criterion != Criterion::SquaredError || problem.data.omit ||
      problem.data.n > kResidentSamples || n > kResidentTerms)
    return false;
  LinearStep steps[kResidentTerms];
  bool with_momentum = false;
  const double slope = 2.0 * (problem.mean ? 1.0 / static_cast<double>(problem.data.n) : 1.0);
  for (int i = 0; i < n; ++i) {
    const SgdOptions& rule = problem.rule[i];
    if (rule.owned && rule.momentum != 0.0) {
      with_momentum = true;
      if (!s.has_momentum[i]) return false;  // the first step fills the buffer in its own way
    }
    const auto respond = [&](double p, double g, double b, double& to_p, double& to_b) {
      Sgd::update(rule, p, g, b, false);
      to_p = p, to_b = b;
    };
    LinearStep& step = steps[i];
    respond(1.0, 0.0, 0.0, step.p_p, step.b_p);
    respond(0.0, slope, 0.0, step.p_g, step.b_g);
    respond(0.0, 0.0, 1.0, step.p_b, step.b_b);
  }
  passes_for(problem.data.n)
      .resident(problem.data, n, steps, with_momentum, epochs, s.params, s.momentum);
  return true;
}

bool run_resident(const MomentsObjective&, int64_t, const State&) { return false; }
bool run_resident(const StreamObjective& stream, int64_t epochs, const State& s) {
  return run_resident(stream.problem, epochs, s);
}

constexpr int64_t kLook = 1 << 20;  // samples read between two looks at the clock

template <class Objective>
Outcome step_by_step(const Problem& problem, const Objective& objective, const Schedule& schedule,
                     State s) {
  using Clock = std::chrono::steady_clock;
  const Clock::time_point start = Clock::now();
  const int n_params = problem.map.n_params;
  std::vector<double> grad(n_params);
  Outcome out;
  out.previous = schedule.previous;
  int64_t unlooked = 0;  // samples read since the last look at the clock
  for (; out.epochs < schedule.epochs; ++out.epochs) {
    const int64_t epoch = schedule.first_epoch + out.epochs;
    out.loss = objective(s.params, grad.data());
    if (records(schedule, epoch)) out.recorded.push_back(out.loss);
    if (std::isfinite(out.loss) &&
        std::fabs(out.previous - out.loss) <= schedule.tol * std::fabs(out.loss)) {
      out.converged = true;
      return out;
    }
    out.previous = out.loss;
    std::copy(grad.begin(), grad.end(), s.grad);
    update(problem, s);
    if (schedule.tol < 0.0) {
      // Up to the next recorded epoch, or the last, whose gradient stays behind.
      const int64_t most = std::max<int64_t>(1, kLook / problem.data.n);
      int64_t quiet = std::min<int64_t>(schedule.epochs - out.epochs - 2, most);
      if (schedule.record_every > 0)
        quiet = std::min(quiet, schedule.record_every - epoch % schedule.record_every - 1);
      if (quiet > 0 && run_resident(objective, quiet, s)) {
        out.epochs += quiet;
        unlooked += quiet * problem.data.n;
      }
    }
    unlooked += problem.data.n;
    if (schedule.seconds > 0.0 && unlooked >= kLook) {
      unlooked = 0;
      if (std::chrono::duration<double>(Clock::now() - start).count() > schedule.seconds) {
        ++out.epochs;
        break;
      }
    }
  }
  out.loss = objective(s.params, grad.data());
  return out;
}

// One epoch as an affine map of (params - origin, momentum buffers).
Affine one_epoch(const Problem& problem, const MomentsObjective& objective,
                 const std::vector<double>& origin) {
  const int n = problem.map.n_params;
  std::vector<double> base(n), shifted(n), point(n);
  objective(origin.data(), base.data());
  Affine epoch(2 * n);
  const auto fill = [&](int column, int i, double p, double g, double b) {
    double p_next = p, b_next = b;
    Sgd::update(problem.rule[i], p_next, g, b_next, false);
    epoch.at(i, column) += p_next - p;
    epoch.at(n + i, column) += b_next - b;
  };
  // The gradient is affine in the parameters: H[:, j] = grad(origin + e_j) - grad(origin) would
  // cancel, so it comes from an objective whose cross moments are zero at its own reference.
  Moments flat = objective.moments;
  for (int k = 0; k < flat.n_terms; ++k) flat.cross[k] = flat.reference[k] = 0.0;
  const MomentsObjective curvature(problem, flat);
  std::vector<double> zero(n), at_zero(n);
  curvature(zero.data(), at_zero.data());
  for (int j = 0; j < n; ++j) {
    std::fill(point.begin(), point.end(), 0.0);
    point[j] = 1.0;
    curvature(point.data(), shifted.data());
    for (int i = 0; i < n; ++i) fill(j, i, i == j ? 1.0 : 0.0, shifted[i] - at_zero[i], 0.0);
    fill(n + j, j, 0.0, 0.0, 1.0);
  }
  for (int i = 0; i < n; ++i) fill(2 * n, i, origin[i], base[i], 0.0);
  return epoch;
}

Outcome closed_form(const Problem& problem, const MomentsObjective& objective,
                    const Schedule& schedule, State s) {
  const int n = problem.map.n_params;
  Schedule one = schedule;
  one.epochs = 1;
  Outcome out;
  // The first step is taken apart because it fills the momentum buffers, the last because its
  // gradient stays behind.
  const auto step = [&] {
    one.first_epoch = schedule.first_epoch + out.epochs;
    const Outcome stepped = step_by_step(problem, objective, one, s);
    out.recorded.insert(out.recorded.end(), stepped.recorded.begin(), stepped.recorded.end());
    out.loss = stepped.loss;
    ++out.epochs;
  };
  if (schedule.epochs < 4) {
    while (out.epochs < schedule.epochs) step();
    return out;
  }
  step();

  std::vector<double> origin(s.params, s.params + n), state(2 * n), grad(n);
  double reference[kMaxTerms];
  if (problem.map.identity && objective.reference(reference))
    origin.assign(reference, reference + n);
  for (int i = 0; i < n; ++i) {
    if (!problem.rule[i].owned) origin[i] = s.params[i];
    state[i] = s.params[i] - origin[i];
    state[n + i] = s.has_momentum[i] ? s.momentum[i] : 0.0;
  }
  const Affine epoch = one_epoch(problem, objective, origin);
  Affine jump(2 * n);
  int64_t jump_length = 0;
  const auto jump_to = [&](int64_t target) {
    if (target == out.epochs) return;
    if (target - out.epochs != jump_length) {
      jump_length = target - out.epochs;
      jump = epoch.power(jump_length);
    }
    jump.apply(state.data());
    out.epochs = target;
    for (int i = 0; i < n; ++i) s.params[i] = origin[i] + state[i];
  };
  const int64_t every = schedule.record_every, first = schedule.first_epoch;
  const int64_t last = schedule.epochs - 1;  // taken apart
  if (every > 0) {
    for (int64_t e = (first + out.epochs + every - 1) / every * every; e - first < last;
         e += every) {
      jump_to(e - first);
      out.recorded.push_back(objective(s.params, grad.data()));
    }
  }
  jump_to(last);
  for (int i = 0; i < n; ++i)
    if (s.has_momentum[i] && problem.rule[i].owned && problem.rule[i].momentum != 0.0)
      s.momentum[i] = state[n + i];
  step();
  return out;
}

}  // namespace

double objective(const Problem& problem, const Moments* moments, const double* params,
                 double* grad) {
  if (moments) return MomentsObjective(problem, *moments)(params, grad);
  return StreamObjective{problem}(params, grad);
}

Outcome descend(const Problem& problem, Engine engine, const Moments* moments,
                const Schedule& schedule, State s) {
  if (engine == Engine::Stream) return step_by_step(problem, StreamObjective{problem}, schedule, s);
  const MomentsObjective objective(problem, *moments);
  if (engine == Engine::Moments) return step_by_step(problem, objective, schedule, s);
  return closed_form(problem, objective, schedule, s);
}

}  // namespace polyfuse
