// Bases: powers, evaluated by Horner's rule; others by their recurrences.
#pragma once

#include "macros.h"
#include "problem.h"

namespace polyfuse {
inline namespace PF_ISA {

// phi_0 = 1, phi_{j+1} = (alpha_j u + beta_j) phi_j + gamma_j phi_{j-1}; null: powers of u.
struct Recurrence {
  const double* alpha = nullptr;  // [K]
  const double* beta = nullptr;
  const double* gamma = nullptr;
};

// phi_{j+1}
template <class T>
PF_HD T next_of(const Recurrence& basis, int j, T u, T phi, T before) {
  if (!basis.alpha) return phi * u;
  return (u * basis.alpha[j] + basis.beta[j]) * phi + before * basis.gamma[j];
}

// sum_k coef[k] u^k
template <class T>
PF_HD T horner(const double* coef, int n_terms, T u) {
  if (n_terms == 1) return u * 0.0 + coef[0];
  T value = u * coef[n_terms - 1] + coef[n_terms - 2];
  PF_UNROLL
  for (int k = n_terms - 3; k >= 0; --k) value = value * u + coef[k];
  return value;
}

// The upper triangular matrix of a change of variable v = a u + b, so that the polynomial with
// coefficients c in v has coefficients `change * c` in u: change[j, k] = C(k, j) a^j b^(k-j).
PF_HD void change_of_variable(double a, double b, int n_terms, double* change /* [K, K] */) {
  PF_ROLLED
  for (int i = 0; i < n_terms * n_terms; ++i) change[i] = 0.0;
  change[0] = 1.0;
  PF_ROLLED
  for (int k = 1; k < n_terms; ++k) {
    PF_ROLLED
    for (int j = 0; j <= k; ++j) {
      double stay = j < k ? b * change[j * n_terms + k - 1] : 0.0;
      double rise = j > 0 ? a * change[(j - 1) * n_terms + k - 1] : 0.0;
      change[j * n_terms + k] = stay + rise;
    }
  }
}

}  // namespace PF_ISA
}  // namespace polyfuse
