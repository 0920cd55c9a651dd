// Polynomials that are orthogonal on the points of a fit, by Forsythe's recurrence (Generation and
// use of orthogonal polynomials for data-fitting with a digital computer, 1957). No Gram matrix is
// formed: the square root of its condition number is all that rounding is multiplied by. For one
// fit (V = double) and for several in the lanes of a pack.
#pragma once

#include <cmath>

#include "criterion.h"
#include "macros.h"
#include "problem.h"

namespace polyfuse {
inline namespace PF_ISA {

using std::sqrt;

// Monic polynomials whose mean square on points in [-1, 1] is less are rounding alone: the points
// are fewer than the terms.
constexpr double kDetermined = 1e-26;

template <class V>
struct Orthogonal {
  V mean[kMaxTerms];   // t q_k = size[k + 1] q_{k+1} + mean[k] q_k + size[k] q_{k-1}
  V size[kMaxTerms];   // 0 where the points do not determine q_k
  V along[kMaxTerms];  // <q_k, y>
  V first;             // norm of the constant 1
  V rest;              // sum of squared residuals
  V rank;
};

// Points t in [-1, 1] with weights w (null: 1), values r, which become the residuals. keep(k, i, v)
// is given the monic polynomials, v of degree k at point i.
template <class V, class Keep>
PF_HD void orthogonalise(int64_t n, int n_terms, const V* t, const V* w, V* r, V* now, V* before,
                         Orthogonal<V>& result, Keep&& keep) {
  V square{}, weighted{}, along{};  // <p, p>, <t p, p>, <r, p>
  for (int64_t i = 0; i < n; ++i) {
    const V one = like(t[i], 1.0), wi = w ? w[i] : one;
    now[i] = one;
    before[i] = V{};
    square += wi;
    weighted += wi * t[i];
    along += wi * r[i];
    keep(0, i, one);
  }
  const V least = kDetermined * square;
  V former{}, determined = like(square, 1.0), size{};
  result.rank = result.rest = V{};
  for (int k = 0; k < n_terms; ++k) {
    determined = if_less(least - square, 0.0, determined, V{});
    const V per_square = if_zero(determined, V{}, 1.0 / square);
    const V step = k > 0 ? if_zero(determined, V{}, square * former) : V{};
    size = k > 0 ? sqrt(step) : V{};
    former = per_square;
    const V mean = weighted * per_square, slope = along * per_square;
    if (k == 0) result.first = if_zero(determined, V{}, sqrt(square));
    result.mean[k] = mean;
    result.size[k] = size;
    result.along[k] = if_zero(determined, V{}, along * sqrt(per_square));
    result.rank += determined;
    square = weighted = along = result.rest = V{};
    for (int64_t i = 0; i < n; ++i) {
      const V residual = r[i] - slope * now[i], next = (t[i] - mean) * now[i] - step * before[i];
      const V wi = w ? w[i] : like(next, 1.0), of_next = wi * next;
      r[i] = residual;
      before[i] = now[i];
      now[i] = next;
      result.rest += wi * residual * residual;
      square += of_next * next;
      weighted += of_next * (next * t[i]);
      along += of_next * residual;
      if (k + 1 < n_terms) keep(k + 1, i, next);
    }
  }
}

// factor[k, j] = <q_k, u^j> with t = slope u + offset, upper triangular: the QR factorisation of
// the design matrix of powers of u.
template <class V>
PF_HD void factorise(int n_terms, const Orthogonal<V>& q, V per_slope, V offset, V* factor) {
  const auto at = [&](int k, int j) -> V& { return factor[k * n_terms + j]; };
  for (int k = 0; k < n_terms; ++k) at(k, 0) = k == 0 ? q.first : V{};
  for (int j = 0; j + 1 < n_terms; ++j)
    for (int k = 0; k < n_terms; ++k) {
      V sum = (q.mean[k] - offset) * at(k, j);
      if (k > 0) sum += q.size[k] * at(k - 1, j);
      if (k + 1 < n_terms) sum += q.size[k + 1] * at(k + 1, j);
      at(k, j + 1) = k <= j + 1 ? sum * per_slope : V{};
    }
}

// The coefficients in u of the optimum, 0 where it is not determined.
template <class F, class V>
PF_HD void back_substitute(int n_terms, const F* factor, const V* along, V* coef) {
  for (int k = n_terms - 1; k >= 0; --k) {
    const F pivot = factor[k * n_terms + k];
    V rest = along[k];
    for (int j = k + 1; j < n_terms; ++j) rest = rest - factor[k * n_terms + j] * coef[j];
    coef[k] = rest * if_zero(pivot, like(pivot, 0.0), 1.0 / pivot);
  }
}

}  // namespace PF_ISA
}  // namespace polyfuse
