// Cross entropy of polynomial logits, one polynomial of x for every class.
#pragma once

#include "batch.h"
#include "run.h"

namespace polyfuse {

struct Classes {
  Series x;                        // [N]
  const int64_t* index = nullptr;  // [N], the classes; or
  Series share;                    // [N, C], the probability of each, `fit` between classes
  const double* weight = nullptr;  // [C] of the classes
  int64_t n = 0, ignore = -100;    // samples of the class `ignore` are left out
  int32_t n_terms = 0, n_classes = 0;
  double shift = 0.0, scale = 1.0, smoothing = 0.0;
  Recurrence basis;
  bool mean = true;
};

// Parameters are [K, C].
Report descend(const Classes&, const UpdateRule* rule, const Schedule&, int threads, State);

}  // namespace polyfuse
