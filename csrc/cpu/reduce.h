// Passes over all samples: threads take blocks, partial sums are added in the order of the blocks.
#pragma once

#include "../core/coefficients.h"
#include "../core/moments.h"
#include "passes.h"

namespace polyfuse {

struct Loss {
  double value;   // sum over the samples that count
  double weight;  // sum of theirs
};

// single: coefficients that float32 holds as well as torch's own; much data in float32 is then
// computed in float32.
Loss loss_and_gradient(const Data&, const Criterion&, const double* coef, int n_terms, bool single,
                       int threads, double* grad_coef /* [K] */);
Moments accumulate(const Data&, int n_terms, int threads);
void evaluate(const Data&, const double* coef, int n_terms, int threads, void* y);
void project(const Data&, int n_terms, int threads, double* out /* [K] */);
int64_t count_nonfinite(const Data&, int threads);

}  // namespace polyfuse
