// Coefficients of the polynomial as a function of the model's parameters, and its chain rule:
// coef[k] = sum over terms of factor * prod(params).
#pragma once

#include "macros.h"
#include "problem.h"

namespace polyfuse {
inline namespace PF_ISA {

struct CoefficientMap {
  int n_params = 0;
  int n_coefficients = 0;
  int n_terms = 0;
  const Term* terms = nullptr;       // [n_terms]
  const int32_t* factors = nullptr;  // indices of parameters
  bool identity = false;             // coef[k] = params[k]

  PF_HD void evaluate(const double* params, double* coef) const {
    if (identity) {
      for (int k = 0; k < n_coefficients; ++k) coef[k] = params[k];
      return;
    }
    for (int k = 0; k < n_coefficients; ++k) coef[k] = 0.0;
    for (int t = 0; t < n_terms; ++t) {
      double product = terms[t].factor;
      for (int f = terms[t].begin; f < terms[t].end; ++f) product *= params[factors[f]];
      coef[terms[t].coefficient] += product;
    }
  }

  // grad[i] = sum_k grad_coef[k] d coef[k] / d params[i]
  PF_HD void pull_back(const double* params, const double* grad_coef, double* grad) const {
    if (identity) {
      for (int k = 0; k < n_coefficients; ++k) grad[k] = grad_coef[k];
      return;
    }
    for (int i = 0; i < n_params; ++i) grad[i] = 0.0;
    for (int t = 0; t < n_terms; ++t)
      for (int f = terms[t].begin; f < terms[t].end; ++f) {
        double product = terms[t].factor * grad_coef[terms[t].coefficient];
        for (int o = terms[t].begin; o < terms[t].end; ++o)
          if (o != f) product *= params[factors[o]];
        grad[factors[f]] += product;
      }
  }
};

}  // namespace PF_ISA
}  // namespace polyfuse
