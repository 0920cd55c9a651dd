// Moments of a least-squares fit, about a reference polynomial: with u = (x - shift) * scale,
// r = reference(u) - y and weights w they are sum w u^k, sum w u^k r, sum w r^2. A reference near
// the optimum keeps the loss and the gradient near the optimum free of cancellation.
#pragma once

#include "basis.h"
#include "macros.h"
#include "problem.h"

namespace polyfuse {
inline namespace PF_ISA {

// What `solve` leaves out: directions whose pivot is rounding alone, relative to the diagonal, and
// those where a term would get a sum of squares so many times that of the residuals it is to fit
// (points that nearly coincide); far from such an optimum, the loss would be lost to cancellation.
constexpr double kPivot = 1e-13;
constexpr double kSwell = 1e5;

struct Moments {
  int n_terms = 0;
  double shift = 0.0, scale = 1.0;
  double reference[kMaxTerms] = {};      // coefficients in u
  double power[2 * kMaxTerms - 1] = {};  // sum w u^k, k = 0 .. 2 K - 2
  double cross[kMaxTerms] = {};          // sum w u^k r
  double square = 0.0;                   // sum w r^2

  // For coefficients reference + delta: returns the sum of squared residuals, and its derivative.
  template <class Team>
  PF_HD double sum_of_squares(const Team& team, const double* delta, double* grad,
                              double* part /* [K] */) const {
    team.each(n_terms, [&](int j) {
      double gram_delta = 0.0;
      PF_ROLLED
      for (int k = 0; k < n_terms; ++k) gram_delta += power[j + k] * delta[k];
      part[j] = delta[j] * (2.0 * cross[j] + gram_delta);
      grad[j] = 2.0 * (cross[j] + gram_delta);
    });
    double value = square;
    PF_ROLLED
    for (int j = 0; j < n_terms; ++j) value += part[j];
    return value;
  }

  // The derivative's derivative, times delta.
  template <class Team>
  PF_HD void curvature(const Team& team, const double* delta, double* product) const {
    team.each(n_terms, [&](int j) {
      double gram_delta = 0.0;
      PF_ROLLED
      for (int k = 0; k < n_terms; ++k) gram_delta += power[j + k] * delta[k];
      product[j] = 2.0 * gram_delta;
    });
  }

  // The least-squares optimum, by Cholesky's factorisation of the Gram matrix; directions that the
  // data hardly determines stay as in the reference.
  template <class Team>
  PF_HD void solve(const Team& team, double* optimum, double* work /* [K (K + 1)] */) const {
    double* const step = work + n_terms * n_terms;
    const auto lower = [&](int i, int j) -> double& { return work[i * n_terms + j]; };
    const auto used = [&](int j) { return lower(j, j) > 0.0; };
    PF_ROLLED
    for (int j = 0; j < n_terms; ++j) {
      team.one([&] {
        double pivot = power[2 * j];
        PF_ROLLED
        for (int m = 0; m < j; ++m) pivot -= lower(j, m) * lower(j, m);
        double rest = -cross[j];
        PF_ROLLED
        for (int m = 0; m < j; ++m) rest -= lower(j, m) * step[m];
        const bool use = pivot > kPivot * power[2 * j] &&
                         rest * rest * power[2 * j] <= kSwell * square * pivot * pivot;
        lower(j, j) = use ? __builtin_sqrt(pivot) : 0.0;
        step[j] = use ? rest / lower(j, j) : 0.0;
      });
      team.each(n_terms - j - 1, [&](int below) {
        const int i = j + 1 + below;
        double entry = power[i + j];
        PF_ROLLED
        for (int m = 0; m < j; ++m) entry -= lower(i, m) * lower(j, m);
        lower(i, j) = used(j) ? entry / lower(j, j) : 0.0;
      });
    }
    team.one([&] {
      PF_ROLLED
      for (int j = n_terms - 1; j >= 0; --j) {
        PF_ROLLED
        for (int i = j + 1; i < n_terms; ++i) step[j] -= lower(i, j) * step[i];
        step[j] = used(j) ? step[j] / lower(j, j) : 0.0;
      }
    });
    team.each(n_terms, [&](int k) { optimum[k] = reference[k] + step[k]; });
  }
};

}  // namespace PF_ISA
}  // namespace polyfuse
