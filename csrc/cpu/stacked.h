// Polynomials of one degree side by side, under one loss: several outputs of one x, such as the
// logits of classes, or the fits of a batch in a training loop.
#pragma once

#include "../core/team.h"
#include "batch.h"
#include "run.h"

namespace polyfuse {

struct Stacked {
  int32_t n_terms = 0, n_outputs = 0;
  double shift = 0.0, scale = 1.0;
  Recurrence basis;

  Series x;                        // [N], or [N, C] of neighbours
  Series y, w;                     // [N, C], neighbours; w.at null: 1 everywhere; of classes w [N]
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

Stacked stacked_of(const Problem&);
const int64_t* class_out_of_range(const Stacked&);  // the first; null: none

}  // namespace polyfuse
