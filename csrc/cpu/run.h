// Training runs: the engines stream, moments and closed_form, and the single step.
#pragma once

#include <cmath>
#include <vector>

#include "reduce.h"

namespace polyfuse {

enum class Engine : int32_t { Stream = 0, Moments = 1, ClosedForm = 2 };

struct Problem {
  Data data;
  Criterion criterion = Criterion::SquaredError;
  bool mean = true;  // reduction: mean, else sum
  CoefficientMap map;
  const SgdOptions* rule = nullptr;  // [P]
  int threads = 1;
};

// What a run reads and leaves behind, one number per parameter, in float64.
struct State {
  double* params;
  double* momentum;
  bool* has_momentum;
  double* grad;  // of the last step taken
};

struct Schedule {
  int64_t first_epoch = 0;
  int64_t epochs = 0;
  int64_t record_every = 0;  // 0: record nothing
  double tol = -1.0;         // stop when the loss changes by less than tol * loss; < 0: never
  double seconds = 0.0;      // come back after the first epoch past this; 0: no limit
  double previous = NAN;     // loss of the epoch before the first
};

struct Outcome {
  int64_t epochs = 0;
  bool converged = false;
  double loss = 0.0;             // at the parameters left behind
  double previous = NAN;         // of the last epoch, before its step
  std::vector<double> recorded;  // loss at first_epoch <= e < first_epoch + epochs, e % every == 0
};

// Loss and gradient at params, from the data or, where given, from the moments.
double objective(const Problem&, const Moments* moments, const double* params, double* grad);

Outcome descend(const Problem&, Engine, const Moments* moments, const Schedule&, State);

}  // namespace polyfuse
