// All epochs of a run in the one block that has the moments.
#pragma once

#include "../core/closed_form.h"
#include "run.cuh"

namespace polyfuse {

// The map of the desk is loaded; work: that of the closed form.
template <Engine engine, class Team, class Objective>
PF_DEVICE void descend_by(const Team& team, Desk& desk, const Run& run, Objective& objective,
                          double square, double* work) {
  desk.load_params(team, run);
  desk.load_rest(team, run, true);
  const Descent descent = desk.descent(run);
  Recorder record = Recorder::of(run, true);
  Outcome out;
  out.previous = run.schedule.previous;
  const State state = desk.state();
  if constexpr (engine == Engine::ClosedForm)
    closed_form(team, objective, descent, out, state, record, work);
  else
    step_by_step(team, objective, descent, out, state, record, Follow<Team>{team, run, desk, out});
  if ((run.flags & kStep) && out.epochs > 0) out.loss = out.previous;
  // A run on moments that are not finite comes to nothing.
  desk.finish(team, run, out, square, (run.flags & kStep) || square - square == 0.0);
}

}  // namespace polyfuse
