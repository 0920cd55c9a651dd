// All epochs of a run in the first threads of the one block that has the moments.
#pragma once

#include "../core/closed_form.h"
#include "run.cuh"

namespace polyfuse {

// The matrices of the closed form are work for a block; an epoch is little for a warp.
PF_DEVICE Crew crew_of(const Run& run) { return Crew(run.engine == Engine::ClosedForm); }

// The map of the desk is loaded; work: that of the closed form. skip: as descend has it, where
// epochs are taken one by one.
template <class Objective, class Skip>
PF_DEVICE void descend_on_moments(const Crew& crew, Desk& desk, const Run& run,
                                  Objective& objective, double square, double* work, Skip&& skip) {
  desk.load_params(crew, run);
  const bool closed = run.engine == Engine::ClosedForm;
  const State state = desk.state();
  Outcome out =
      descend(crew, desk, run, objective, is_single(run), true,
              [&](const Descent& descent, Outcome& now, int64_t change, Recorder& record) {
                if (closed)
                  jump_ahead(crew, objective, descent, now, state, record, work);
                else
                  skip(descent, now, change, record);
              });
  if (is_step(run) && out.epochs > 0) out.loss = out.previous;
  // A run on moments that are not finite comes to nothing.
  desk.finish(crew, run, out, square, is_step(run) || square - square == 0.0);
}

}  // namespace polyfuse
