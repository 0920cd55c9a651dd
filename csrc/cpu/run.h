// Training runs: the engines stream, moments and closed_form, and the single step.
#pragma once

#include <vector>

#include "../core/descent.h"
#include "reduce.h"

namespace polyfuse {

struct Surface;
struct Stacked;

struct Problem {
  Data data;
  const Surface* surface = nullptr;  // the terms of several variables; null: of one
  const Stacked* stacked = nullptr;  // polynomials side by side, in place of data
  Criterion criterion;
  bool mean = true;  // reduction: mean, else sum
  CoefficientMap map;
  const UpdateRule* rule = nullptr;  // [1 + C, P]; of those side by side [1 + C], for all
  // The epochs of the launch, ascending, from which on the next row of rules holds.
  const int64_t* changes = nullptr;  // [C]
  int n_changes = 0;
  int threads = 1;
};

struct Report : Outcome {
  std::vector<double> recorded;  // loss at first_epoch <= e < first_epoch + epochs, e % every == 0
};

// Loss and gradient at params, from the data or, where given, from the moments.
double objective(const Problem&, const Moments* moments, const double* params, double* grad);

Report descend(const Problem&, Engine, const Moments* moments, const Schedule&, State);

}  // namespace polyfuse
