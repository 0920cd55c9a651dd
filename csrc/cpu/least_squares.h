// The parameters that minimise sum w (y - f(x))^2 + sum ridge params^2, with what statistics need.
#pragma once

#include <vector>

#include "normal_equations.h"

namespace polyfuse {

struct Solution {
  int rank = 0;
  std::vector<double> params;        // [P]
  std::vector<double> coefficients;  // [K], of the terms of the normal equations
  double sum_of_squares = 0.0;       // of residuals, weighted
  double degrees = 0.0;              // of freedom that the fit takes: its rank, less by ridge
  double total = 0.0;                // sum w y^2
  double total_centred = 0.0;        // sum w (y - mean)^2, where term 0 is the constant 1
  // Where asked for. d params / d (V^T W y), and with residuals of variance 1 / w the covariance of
  // the parameters and of the coefficients; the Gram matrix of the parameters.
  std::vector<double> estimator;               // [P, K]
  std::vector<double> influence;               // [K, K], d coefficients / d (V^T W y)
  std::vector<double> covariance;              // [P, P]
  std::vector<double> coefficient_covariance;  // [K, K]
  std::vector<double> gram;                    // [P, P]
};

// The model's coefficients are jacobian [K, P] params + offset [K, 1]; ridge [P], or empty: none.
Solution solve(const NormalEquations&, const Matrix& jacobian, const Matrix& offset,
               const std::vector<double>& ridge, bool with_covariance);

// What is left of the most dependent term by the others, squared and relative.
double least_pivot(const NormalEquations&);

}  // namespace polyfuse
