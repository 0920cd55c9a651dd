#include "run.h"

#include <algorithm>
#include <chrono>
#include <cmath>

#include "../core/closed_form.h"
#include "../core/team.h"
#include "stacked.h"
#include "surface_objective.h"

namespace polyfuse {
namespace {

// Loss and gradient from the data, every time.
struct StreamObjective {
  const Problem& problem;
  double operator()(Alone alone, const double* params, double* grad) const {
    double coef[kMaxTerms], grad_coef[kMaxTerms];
    const CoefficientMap& map = problem.map;
    map.evaluate(alone, params, coef);
    const Loss loss = loss_and_gradient(problem.data, problem.criterion, coef, map.n_coefficients,
                                        map.identity || map.apart, problem.threads, grad_coef);
    const double weight = problem.criterion.weight * (problem.mean ? 1.0 / loss.weight : 1.0);
    for (int k = 0; k < map.n_coefficients; ++k) grad_coef[k] *= weight;
    map.pull_back(alone, params, grad_coef, grad);
    return loss.value * weight;
  }
};

// Epochs of few samples whose losses nobody looks at; false: it cannot take them.
bool take_quiet(StreamObjective& stream, const Descent& descent, int64_t quiet, int64_t,
                const State& s) {
  const Problem& problem = stream.problem;
  const int n = problem.map.n_params;
  bool with_momentum;
  if (s.low || !problem.map.identity || problem.criterion.kind != CriterionKind::SquaredError ||
      problem.data.omit || problem.data.w || problem.data.n > kResidentSamples ||
      n > kResidentTerms || !steps_are_linear(descent, s, with_momentum))
    return false;
  LinearStep steps[kResidentTerms];
  const double slope = 2.0 * (problem.mean ? 1.0 / static_cast<double>(problem.data.n) : 1.0);
  for (int i = 0; i < n; ++i) {
    steps[i] = linear_step(descent.rule_of(i));  // on sums, not yet the gradient
    steps[i].p_g *= slope;
    steps[i].b_g *= slope;
  }
  passes_for(problem.data.n)
      .resident(problem.data, n, steps, with_momentum, quiet, s.params, s.kept + Sgd::kBuffer * n);
  return true;
}

struct FromMoments : MomentsObjective {
  QuietMoments quiet;
};

bool take_quiet(FromMoments& moments, const Descent& descent, int64_t quiet, int64_t change,
                const State& s) {
  return moments.quiet(Alone{}, moments, descent, quiet, change, s);
}

template <class Objective>
bool take_quiet(Objective&, const Descent&, int64_t, int64_t, const State&) {
  return false;
}

constexpr int64_t kLook = 1 << 20;  // what is done between two looks at the clock

// cost: of an epoch, in samples read or as much work.
template <class Objective>
Report step_by_step(const Problem& problem, Objective& objective, const Schedule& schedule,
                    int64_t cost, State s) {
  std::vector<double> grad(static_cast<size_t>(problem.map.n_params));
  const bool alike = problem.stacked;
  Descent descent{problem.map.n_params, problem.rule, schedule, grad.data(), false, alike};
  Report out;
  out.previous = schedule.previous;
  using Clock = std::chrono::steady_clock;
  const Clock::time_point start = Clock::now();
  const auto record = [&](double loss) { out.recorded.push_back(loss); };
  const int64_t *change = problem.changes, *const last = change + problem.n_changes;
  const auto follow = [&] {
    for (; change != last && *change <= out.epochs; ++change)
      descent.rule += alike ? 1 : descent.n_params;
  };
  int64_t unlooked = 0;  // cost since the last look at the clock
  const auto pause = [&] {
    follow();
    const int64_t next = change == last ? INT64_MAX : *change;
    const int64_t quiet =
        std::min(quiet_epochs(schedule, out.epochs, next), std::max<int64_t>(1, kLook / cost));
    if (quiet > 0 && take_quiet(objective, descent, quiet, next, s)) {
      out.epochs += quiet;
      unlooked += quiet * cost;
      follow();
    }
    unlooked += cost;
    if (schedule.seconds <= 0.0 || unlooked < kLook) return true;
    unlooked = 0;
    return std::chrono::duration<double>(Clock::now() - start).count() <= schedule.seconds;
  };
  step_by_step(Alone{}, objective, descent, out, s, record, pause);
  return out;
}

template <class Objective>
Report in_closed_form(const Problem& problem, Objective& objective, const Schedule& schedule,
                      State s) {
  const int n = problem.map.n_params;
  std::vector<double> grad(static_cast<size_t>(n)), work(closed_form_work(n));
  const Descent descent{n, problem.rule, schedule, grad.data()};
  Report out;
  out.previous = schedule.previous;
  const auto record = [&](double loss) { out.recorded.push_back(loss); };
  step_by_step(Alone{}, objective, descent, out, s, record, [&] {
    jump_ahead(Alone{}, objective, descent, out, s, record, work.data());
    return true;
  });
  return out;
}

FromMoments from_moments(const Problem& problem, const Moments& moments) {
  FromMoments objective;
  objective.start(Alone{}, problem.map, moments, problem.data.shift, problem.data.scale,
                  problem.mean);
  objective.quiet.start(Alone{});
  return objective;
}

// work: [3 K]
GramObjective<GramOf> from_moments(const Problem& problem, const Surface& surface,
                                   const SurfaceMoments& moments, double* work) {
  const double weight = problem.mean ? 1.0 / moments.weight : 1.0;
  const int terms = surface.n_terms;
  return {problem.map,     gram_moments(surface, moments), weight, work, work + terms,
          work + 2 * terms};
}

// Of one of several outputs.
struct GramOfOutput {
  const StackedMoments& moments;
  int n_terms, n_outputs, output;
  double operator()(int i, int j) const {
    const int at = i * n_terms + j;
    const bool own = static_cast<int64_t>(moments.power.size()) > n_terms * n_terms;
    return own ? moments.power[at * n_outputs + output] : moments.power[at];
  }
};

// Of every output by itself: none knows of the others, and their losses add up.
Report in_closed_form(const Problem& problem, const StackedMoments& moments,
                      const Schedule& schedule, State s) {
  const int terms = problem.stacked->n_terms, outputs = problem.stacked->n_outputs;
  const int n_rows = 2 + kKept, n_params = terms * outputs;
  const double weight = problem.criterion.weight / (problem.mean ? moments.weight : 1.0);
  const std::vector<UpdateRule> rule(static_cast<size_t>(terms), problem.rule[0]);
  Problem one = problem;
  one.rule = rule.data();
  one.map = {terms, terms, 0, nullptr, nullptr, nullptr, true};
  std::vector<double> numbers(static_cast<size_t>((n_rows + 5) * terms));
  double* const own = numbers.data();
  double *const reference = own + n_rows * terms, *const cross = reference + terms;
  double* const work = cross + terms;
  Report all;
  for (int c = 0; c < outputs; ++c) {
    const auto each = [&](auto&& f) {  // of the output's numbers, and where they come from
      for (int k = 0; k < terms; ++k) {
        const int at = k * outputs + c;
        f(own[k], s.params[at]);
        f(own[terms + k], s.grad[at]);
        for (int r = 0; r < kKept; ++r) f(own[(2 + r) * terms + k], s.kept[r * n_params + at]);
      }
    };
    each([](double& mine, double from) { mine = from; });
    for (int k = 0; k < terms; ++k) {
      reference[k] = moments.reference[k * outputs + c];
      cross[k] = moments.cross[k * outputs + c];
    }
    GramObjective<GramOfOutput> objective{
        one.map,
        {terms, {moments, terms, outputs, c}, reference, cross, c ? 0.0 : moments.square},
        weight,
        work,
        work + terms,
        work + 2 * terms};
    const Report found =
        in_closed_form(one, objective, schedule, {own, own + 2 * terms, own + terms});
    each([](double mine, double& to) { to = mine; });
    if (c == 0) {
      all = found;
      continue;
    }
    all.loss += found.loss;
    for (size_t i = 0; i < found.recorded.size(); ++i) all.recorded[i] += found.recorded[i];
  }
  return all;
}

// Of an epoch on moments.
int64_t cost_of(const CoefficientMap& map) {
  return int64_t{map.n_coefficients} * map.n_coefficients;
}

}  // namespace

double objective(const Problem& problem, const Moments* moments, const double* params,
                 double* grad) {
  if (problem.stacked)
    return StackedStream{stacked_of(problem), problem.threads}(Alone{}, params, grad);
  if (problem.surface) {
    const Surface surface = surface_of(problem);
    return SurfaceStream{problem.map, surface, problem.threads}(Alone{}, params, grad);
  }
  if (moments) return from_moments(problem, *moments)(Alone{}, params, grad);
  return StreamObjective{problem}(Alone{}, params, grad);
}

double objective(const Problem& problem, const SurfaceMoments& moments, const double* params,
                 double* grad) {
  const Surface surface = surface_of(problem);
  std::vector<double> work(static_cast<size_t>(3 * surface.n_terms));
  return from_moments(problem, surface, moments, work.data())(Alone{}, params, grad);
}

Report descend(const Problem& problem, Engine engine, const Moments* moments,
               const Schedule& schedule, State s) {
  if (engine == Engine::Stream) {
    StreamObjective stream{problem};
    return step_by_step(problem, stream, schedule, problem.data.n, s);
  }
  FromMoments objective = from_moments(problem, *moments);
  if (engine == Engine::Moments)
    return step_by_step(problem, objective, schedule, cost_of(problem.map), s);
  return in_closed_form(problem, objective, schedule, s);
}

Report descend(const Problem& problem, Engine engine, const SurfaceMoments* moments,
               const Schedule& schedule, State s) {
  const Surface surface = surface_of(problem);
  if (engine == Engine::Stream) {
    SurfaceStream stream{problem.map, surface, problem.threads};
    return step_by_step(problem, stream, schedule, problem.data.n, s);
  }
  std::vector<double> work(static_cast<size_t>(3 * surface.n_terms));
  auto objective = from_moments(problem, surface, *moments, work.data());
  if (engine == Engine::Moments)
    return step_by_step(problem, objective, schedule, cost_of(problem.map), s);
  return in_closed_form(problem, objective, schedule, s);
}

Report descend(const Problem& problem, Engine engine, const StackedMoments* moments,
               const Schedule& schedule, State s) {
  const Stacked stacked = stacked_of(problem);
  if (engine == Engine::Stream) {
    StackedStream stream{stacked, problem.threads};
    return step_by_step(problem, stream, schedule, stacked.n * stacked.n_outputs, s);
  }
  if (engine == Engine::ClosedForm) return in_closed_form(problem, *moments, schedule, s);
  const auto from_moments = [&](Alone, const double* params, double* grad) {
    return objective(stacked, *moments, params, grad);
  };
  const int64_t cost = int64_t{stacked.n_terms} * stacked.n_terms * stacked.n_outputs;
  return step_by_step(problem, from_moments, schedule, cost, s);
}

}  // namespace polyfuse
