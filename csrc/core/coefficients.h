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
  const double* factor = nullptr;  // [n_terms]
  const Span* spans = nullptr;     // [n_terms]
  const int32_t* slots = nullptr;  // indices of parameters
  bool identity = false;           // coef[k] = params[k]
  bool apart = false;              // no two terms share a coefficient or a parameter

  template <class Team>
  PF_HD void evaluate(const Team& team, const double* params, double* coef) const {
    if (identity) {
      team.each(n_coefficients, [&](int k) { coef[k] = params[k]; });
      return;
    }
    team.each(n_coefficients, [&](int k) { coef[k] = 0.0; });
    each_term(team, [&](int t) {
      double product = factor[t];
      PF_ROLLED
      for (int f = spans[t].begin; f < spans[t].end; ++f) product *= params[slots[f]];
      coef[spans[t].coefficient] += product;
    });
  }

  // grad[i] = sum_k grad_coef[k] d coef[k] / d params[i]
  template <class Team>
  PF_HD void pull_back(const Team& team, const double* params, const double* grad_coef,
                       double* grad) const {
    if (identity) {
      team.each(n_coefficients, [&](int k) { grad[k] = grad_coef[k]; });
      return;
    }
    team.each(n_params, [&](int i) { grad[i] = 0.0; });
    each_term(team, [&](int t) {
      PF_ROLLED
      for (int f = spans[t].begin; f < spans[t].end; ++f) {
        double product = factor[t] * grad_coef[spans[t].coefficient];
        PF_ROLLED
        for (int o = spans[t].begin; o < spans[t].end; ++o)
          if (o != f) product *= params[slots[o]];
        grad[slots[f]] += product;
      }
    });
  }

 private:
  template <class Team, class F>
  PF_HD void each_term(const Team& team, F&& f) const {
    if (apart)
      team.each(n_terms, f);
    else
      team.one([&] {
        PF_ROLLED
        for (int t = 0; t < n_terms; ++t) f(t);
      });
  }
};

}  // namespace PF_ISA
}  // namespace polyfuse
