// Moments of a least-squares fit, about a reference polynomial: with u = (x - shift) * scale and
// r = reference(u) - y they are sum u^k, sum u^k r, sum r^2. A reference near the optimum keeps
// the loss and the gradient near the optimum free of cancellation.
#pragma once

#include "basis.h"
#include "macros.h"
#include "problem.h"

namespace polyfuse {
inline namespace PF_ISA {

struct Moments {
  int n_terms = 0;
  double shift = 0.0, scale = 1.0;
  double reference[kMaxTerms] = {};      // coefficients in u
  double power[2 * kMaxTerms - 1] = {};  // sum u^k, k = 0 .. 2 K - 2; power[0] is the count
  double cross[kMaxTerms] = {};          // sum u^k r
  double square = 0.0;                   // sum r^2

  // For coefficients coef in u: returns the sum of squared residuals, and its derivative.
  PF_HD double sum_of_squares(const double* coef, double* grad) const {
    double delta[kMaxTerms];
    double value = square;
    for (int k = 0; k < n_terms; ++k) delta[k] = coef[k] - reference[k];
    for (int j = 0; j < n_terms; ++j) {
      double gram_delta = 0.0;
      for (int k = 0; k < n_terms; ++k) gram_delta += power[j + k] * delta[k];
      value += delta[j] * (2.0 * cross[j] + gram_delta);
      grad[j] = 2.0 * (cross[j] + gram_delta);
    }
    return value;
  }

  // The least-squares optimum, by Cholesky's factorisation of the Gram matrix; directions that the
  // data does not determine stay as in the reference.
  PF_HD void solve(double* optimum) const {
    double lower[kMaxTerms][kMaxTerms];
    double step[kMaxTerms];
    bool used[kMaxTerms];
    for (int j = 0; j < n_terms; ++j) {
      double pivot = power[2 * j];
      for (int m = 0; m < j; ++m) pivot -= lower[j][m] * lower[j][m];
      used[j] = pivot > 1e-13 * power[2 * j];
      lower[j][j] = used[j] ? __builtin_sqrt(pivot) : 1.0;
      for (int i = j + 1; i < n_terms; ++i) {
        double entry = power[i + j];
        for (int m = 0; m < j; ++m) entry -= lower[i][m] * lower[j][m];
        lower[i][j] = used[j] ? entry / lower[j][j] : 0.0;
      }
      step[j] = -cross[j];
      for (int m = 0; m < j; ++m) step[j] -= lower[j][m] * step[m];
      step[j] = used[j] ? step[j] / lower[j][j] : 0.0;
    }
    for (int j = n_terms - 1; j >= 0; --j) {
      for (int i = j + 1; i < n_terms; ++i) step[j] -= lower[i][j] * step[i];
      step[j] = used[j] ? step[j] / lower[j][j] : 0.0;
    }
    for (int k = 0; k < n_terms; ++k) optimum[k] = reference[k] + step[k];
  }
};

}  // namespace PF_ISA
}  // namespace polyfuse
