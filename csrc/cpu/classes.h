// Cross entropy of polynomial logits, one polynomial of x for every class.
#pragma once

#include "batch.h"
#include "run.h"

namespace polyfuse {

struct Classes {
  int32_t n_terms = 0, n_classes = 0;
  double shift = 0.0, scale = 1.0;
  Recurrence basis;

  Series x;                        // [N]
  const int64_t* index = nullptr;  // [N], the classes; or
  int64_t index_stride = 1;
  Series share;  // [N, C], the probability of each, `fit` between classes
  Series w;      // [N]; w.at null: 1 everywhere, a sample of weight 0 is left out
  int64_t n = 0;
  Criterion criterion;
  bool mean = true;
};

// Parameters are [K, C]. The loss is nan where a class is out of range.
double objective(const Classes&, int threads, const double* params, double* grad);
const int64_t* class_out_of_range(const Classes&);  // the first; null: none
Report descend(const Classes&, const UpdateRule* rule, const Schedule&, int threads, State);

}  // namespace polyfuse
