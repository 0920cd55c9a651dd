// The passes that have a file of their own, compiled once per instruction set.
#pragma once

#include "passes.h"

namespace polyfuse {
inline namespace PF_ISA {

void loss(const Data&, const Criterion&, const double* coef, int n_terms, bool single,
          int64_t begin, int64_t end, double* out);
void resident(const Data&, int n_terms, const LinearStep* step, bool with_momentum, int64_t epochs,
              double* params, double* momentum);
void batch_fits(const BatchPlan&, int64_t begin, int64_t end);
void surface_loss(const Surface&, const double* coef, int64_t begin, int64_t end, double* out);
void surface_moments(const Surface&, const double* coef, int64_t begin, int64_t end, double* out);
void stacked_loss(const Stacked&, const double* coef, int64_t first, int64_t last, int64_t begin,
                  int64_t end, double* out);
void class_loss(const Stacked&, const double* coef, int64_t begin, int64_t end, double* out);
void extended_moments(const Data&, const double* coef, int n_terms, int64_t begin, int64_t end,
                      double* out);
void extended_gram(const Columns&, const double* coef, int64_t begin, int64_t end, double* out);

}  // namespace PF_ISA
}  // namespace polyfuse
