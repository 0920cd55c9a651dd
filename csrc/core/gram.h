// Least squares of terms of any kind, from sums of their products: with r = V reference - y and
// weights w they are gram(i, j) = sum w phi_i phi_j, sum w phi_i r, sum w r^2. As moments.h, where
// the terms are powers.
#pragma once

#include "coefficients.h"
#include "moments.h"

namespace polyfuse {
inline namespace PF_ISA {

PF_HD int gram_work(int n_terms) { return n_terms * (n_terms + 2); }

template <class Gram>
struct GramMoments {
  int n_terms;
  Gram gram;
  const double *reference, *cross;  // [K], or [K, C] of outputs that share the gram
  double square;
  int n_outputs = 1;

  PF_HD int size() const { return n_terms * n_outputs; }

  // The sum of squared residuals, and its derivative.
  template <class Team>
  PF_HD double sum_of_squares(const Team& team, const double* coef, double* grad,
                              double* part /* [K, C] */) const {
    team.each(size(), [&](int j) {
      const double product = times(j, [&](int i) { return coef[i] - reference[i]; });
      part[j] = (coef[j] - reference[j]) * (2.0 * cross[j] + product);
      grad[j] = 2.0 * (cross[j] + product);
    });
    double value = square;
    PF_ROLLED
    for (int j = 0; j < size(); ++j) value += part[j];
    return value;
  }

  // The derivative's derivative, times delta.
  template <class Team>
  PF_HD void curvature(const Team& team, const double* delta, double* product) const {
    team.each(size(), [&](int j) { product[j] = 2.0 * times(j, [&](int i) { return delta[i]; }); });
  }

  // The optimum of one output, by Cholesky's factorisation; directions that the data hardly
  // determines stay as in the reference.
  template <class Team>
  PF_HD void solve(const Team& team, double* optimum, double* work /* gram_work(K) */) const {
    double *const along = work + n_terms * n_terms, *const step = along + n_terms;
    const auto lower = [&](int i, int j) -> double& { return work[i * n_terms + j]; };
    PF_ROLLED
    for (int j = 0; j < n_terms; ++j) {
      team.one([&] {
        double pivot = gram(j, j), rest = -cross[j];
        PF_ROLLED
        for (int m = 0; m < j; ++m) {
          pivot -= lower(j, m) * lower(j, m);
          rest -= lower(j, m) * along[m];
        }
        const bool use = pivot > kPivot * gram(j, j) &&
                         rest * rest * gram(j, j) <= kSwell * square * pivot * pivot;
        lower(j, j) = use ? __builtin_sqrt(pivot) : 0.0;
        along[j] = use ? rest / lower(j, j) : 0.0;
      });
      team.each(n_terms - j - 1, [&](int below) {
        const int i = j + 1 + below;
        double entry = gram(i, j);
        PF_ROLLED
        for (int m = 0; m < j; ++m) entry -= lower(i, m) * lower(j, m);
        lower(i, j) = lower(j, j) > 0.0 ? entry / lower(j, j) : 0.0;
      });
    }
    // The last directions stay out as well where all together would swell: terms that are nearly
    // collinear have pivots that do not tell.
    team.one([&] {
      PF_ROLLED
      for (int used = n_terms; used >= 0; --used) {
        double swell = 0.0;
        PF_ROLLED
        for (int j = n_terms - 1; j >= 0; --j) {
          double rest = j < used ? along[j] : 0.0;
          PF_ROLLED
          for (int i = j + 1; i < used; ++i) rest -= lower(i, j) * step[i];
          step[j] = lower(j, j) > 0.0 ? rest / lower(j, j) : 0.0;
          swell += step[j] * step[j] * gram(j, j);
        }
        if (swell <= kSwell * square) break;
      }
    });
    team.each(n_terms, [&](int k) { optimum[k] = reference[k] + step[k]; });
  }

 private:
  // Entry j of the gram times v of each output.
  template <class F>
  PF_HD double times(int j, F&& v) const {
    const int row = n_outputs == 1 ? j : j / n_outputs;
    double sum = 0.0;
    PF_ROLLED
    for (int k = 0, i = j - row * n_outputs; k < n_terms; ++k, i += n_outputs)
      sum += gram(row, k) * v(i);
    return sum;
  }
};

// Loss and gradient of the parameters.
template <class Gram>
struct GramObjective {
  const CoefficientMap& map;
  GramMoments<Gram> moments;
  double weight;
  double *coef, *grad_coef, *part;  // as coefficients

  template <class Team>
  PF_HD double operator()(const Team& team, const double* params, double* grad) {
    map.evaluate(team, params, coef);
    const double loss = moments.sum_of_squares(team, coef, grad_coef, part) * weight;
    pull_back(team, params, grad);
    return loss;
  }

  // The gradient of the same moments but for a cross and a reference of zero.
  template <class Team>
  PF_HD void curvature(const Team& team, const double* params, double* grad) {
    map.evaluate(team, params, coef);
    moments.curvature(team, coef, grad_coef);
    pull_back(team, params, grad);
  }

  PF_HD bool identity() const { return map.identity; }

  PF_HD bool reference(double* into) const {
    bool finite = true;
    PF_ROLLED
    for (int k = 0; k < moments.size(); ++k) {
      into[k] = moments.reference[k];
      finite = finite && into[k] - into[k] == 0.0;
    }
    return finite;
  }

 private:
  template <class Team>
  PF_HD void pull_back(const Team& team, const double* params, double* grad) {
    team.each(moments.size(), [&](int k) { grad_coef[k] *= weight; });
    map.pull_back(team, params, grad_coef, grad);
  }
};

}  // namespace PF_ISA
}  // namespace polyfuse
