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

// Epochs that need no loss and no gradient to be left behind, on few samples; true if done.
bool run_resident(const Problem& problem, const UpdateRule* rules, int64_t epochs, const State& s) {
  const int n = problem.map.n_params;
  if (s.low || !problem.map.identity || problem.criterion.kind != CriterionKind::SquaredError ||
      problem.data.omit || problem.data.w || problem.data.n > kResidentSamples ||
      n > kResidentTerms)
    return false;
  LinearStep steps[kResidentTerms];
  bool with_momentum = false;
  const double slope = 2.0 * (problem.mean ? 1.0 / static_cast<double>(problem.data.n) : 1.0);
  for (int i = 0; i < n; ++i) {
    const UpdateRule& rule = rules[i];
    if (rule.method != Method::Sgd && rule.method != Method::None) return false;
    if (fills_momentum(rule)) {
      with_momentum = true;
      // The first step fills the buffer in its own way.
      if (s.kept[Sgd::kFilled * n + i] == 0.0) return false;
    }
    const auto respond = [&](double p, double g, double b, double& to_p, double& to_b) {
      double kept[kKept] = {b, 1.0};
      update(rule, p, g, kept);
      to_p = p, to_b = kept[Sgd::kBuffer];
    };
    LinearStep& step = steps[i];
    respond(1.0, 0.0, 0.0, step.p_p, step.b_p);
    respond(0.0, slope, 0.0, step.p_g, step.b_g);
    respond(0.0, 0.0, 1.0, step.p_b, step.b_b);
  }
  passes_for(problem.data.n)
      .resident(problem.data, n, steps, with_momentum, epochs, s.params, s.kept + Sgd::kBuffer * n);
  return true;
}

template <class Objective>
bool run_resident(const Objective&, const UpdateRule*, int64_t, const State&) {
  return false;
}
bool run_resident(const StreamObjective& stream, const UpdateRule* rules, int64_t epochs,
                  const State& s) {
  return run_resident(stream.problem, rules, epochs, s);
}

constexpr int64_t kLook = 1 << 20;  // samples read between two looks at the clock

template <class Objective>
Report step_by_step(const Problem& problem, Objective& objective, const Schedule& schedule,
                    State s) {
  std::vector<double> grad(static_cast<size_t>(problem.map.n_params));
  const bool alike = problem.stacked;
  Descent descent{problem.map.n_params, problem.rule, schedule, grad.data(), false, alike};
  const int64_t n = alike ? problem.stacked->n * problem.stacked->n_outputs : problem.data.n;
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
  int64_t unlooked = 0;  // samples read since the last look at the clock
  const auto pause = [&] {
    follow();
    if (schedule.tol < 0.0) {
      // Up to the next recorded epoch, or the last, whose gradient stays behind.
      const int64_t epoch = schedule.first_epoch + out.epochs - 1;
      const int64_t most = std::max<int64_t>(1, kLook / n);
      int64_t quiet = std::min<int64_t>(schedule.epochs - out.epochs - 1, most);
      if (schedule.record_every > 0)
        quiet = std::min(quiet, schedule.record_every - epoch % schedule.record_every - 1);
      if (change != last) quiet = std::min(quiet, *change - out.epochs);
      if (quiet > 0 && run_resident(objective, descent.rule, quiet, s)) {
        out.epochs += quiet;
        unlooked += quiet * n;
        follow();
      }
    }
    unlooked += n;
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
  closed_form(Alone{}, objective, descent, out, s, record, work.data());
  return out;
}

MomentsObjective from_moments(const Problem& problem, const Moments& moments) {
  MomentsObjective objective;
  objective.start(Alone{}, problem.map, moments, problem.data.shift, problem.data.scale,
                  problem.mean);
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
    return step_by_step(problem, stream, schedule, s);
  }
  MomentsObjective objective = from_moments(problem, *moments);
  if (engine == Engine::Moments) return step_by_step(problem, objective, schedule, s);
  return in_closed_form(problem, objective, schedule, s);
}

Report descend(const Problem& problem, Engine engine, const SurfaceMoments* moments,
               const Schedule& schedule, State s) {
  const Surface surface = surface_of(problem);
  if (engine == Engine::Stream) {
    SurfaceStream stream{problem.map, surface, problem.threads};
    return step_by_step(problem, stream, schedule, s);
  }
  std::vector<double> work(static_cast<size_t>(3 * surface.n_terms));
  auto objective = from_moments(problem, surface, *moments, work.data());
  if (engine == Engine::Moments) return step_by_step(problem, objective, schedule, s);
  return in_closed_form(problem, objective, schedule, s);
}

Report descend(const Problem& problem, Engine engine, const StackedMoments* moments,
               const Schedule& schedule, State s) {
  const Stacked stacked = stacked_of(problem);
  if (engine == Engine::Stream) {
    StackedStream stream{stacked, problem.threads};
    return step_by_step(problem, stream, schedule, s);
  }
  if (engine == Engine::ClosedForm) return in_closed_form(problem, *moments, schedule, s);
  const auto from_moments = [&](Alone, const double* params, double* grad) {
    return objective(stacked, *moments, params, grad);
  };
  return step_by_step(problem, from_moments, schedule, s);
}

}  // namespace polyfuse
