// Polynomials in the same terms side by side, under one loss: several outputs of one x, such as the
// logits of classes, or the fits of a batch in a training loop.
#pragma once

#include <vector>

#include "../core/team.h"
#include "surface.h"

namespace polyfuse {

struct Stacked {
  int32_t n_terms = 0, n_outputs = 0;
  double shift = 0.0, scale = 1.0;
  Recurrence basis;
  const Surface* surface = nullptr;  // the terms of several variables; null: of one

  Series x;     // [N], or [N, C] of neighbours; of several variables [N, v]
  Series y, w;  // [N, C], of one variable neighbours; w.at null: 1 everywhere; of classes w [N]
  const int64_t* index = nullptr;  // [N], classes in place of y
  int64_t index_stride = 1;
  int64_t n = 0;
  Criterion criterion;
  bool mean = true;
};

// Loss and gradient; parameters are [K, C]. The loss is nan where a class is out of range.
struct StackedStream {
  Stacked stacked;
  int threads;
  double operator()(Alone, const double* params, double* grad) const;
};

// Of squared errors, about reference coefficients, with r = V reference - y.
struct StackedMoments {
  std::vector<double> reference, cross;  // [K, C], [K, C]: sum phi r
  std::vector<double> power;             // [K, K]: sum phi phi; [K, K, C] where each has its x
  double square = 0.0;                   // sum r^2
  double weight = 0.0;                   // how many elements y has
};

// Those of several variables.
StackedMoments accumulate(const Stacked&, int threads);

// Loss and gradient from the moments.
double objective(const Stacked&, const StackedMoments&, const double* params, double* grad);

Report descend(const Problem&, Engine, const StackedMoments*, const Schedule&, State);

Stacked stacked_of(const Problem&);
const int64_t* class_out_of_range(const Stacked&);  // the first; null: none

}  // namespace polyfuse
