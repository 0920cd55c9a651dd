// Epochs of any objective on the CPU, one after the other, until the clock calls.
#pragma once

#include <chrono>

#include "../core/team.h"
#include "run.h"

namespace polyfuse {

// Run(Descent, Report&, record, pause) takes the epochs.
template <class Run>
Report with_clock(int n_params, const UpdateRule* rule, const Schedule& schedule, Run&& run) {
  using Clock = std::chrono::steady_clock;
  const Clock::time_point start = Clock::now();
  std::vector<double> grad(static_cast<size_t>(n_params));
  const Descent descent{n_params, rule, schedule, grad.data()};
  Report out;
  out.previous = schedule.previous;
  const auto record = [&](double loss) { out.recorded.push_back(loss); };
  const auto pause = [&] {
    return schedule.seconds <= 0.0 ||
           std::chrono::duration<double>(Clock::now() - start).count() <= schedule.seconds;
  };
  run(descent, out, record, pause);
  return out;
}

}  // namespace polyfuse
