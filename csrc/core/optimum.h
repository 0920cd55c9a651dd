// What follows from the orthogonal polynomials of a fit: loss and gradient anywhere, R squared,
// covariance, and the best degree. For one fit (V = double) and for several in the lanes of a pack.
#pragma once

#include "batch.h"
#include "orthogonal.h"
#include "terms.h"

namespace polyfuse {
inline namespace PF_ISA {

// With e = factor p - along, the sum of squared residuals is rest + e^2 and its derivative
// 2 factor^T e, free of cancellation. F is double where all fits share the factor; K terms, 0:
// n_terms of them.
template <class V, class F, int K>
struct Quadratic {
  static constexpr int kTerms = K;
  int n_terms;
  const F* factor;
  const V* along;
  V rest, weight;

  PF_HD V operator()(const V* p, V* grad) const {
    const int terms = K ? K : n_terms;
    V value = rest, sum[K ? K : kMaxTerms] = {};
    for_terms<K>(terms, [&](int k) PF_ALWAYS_INLINE {
      V e = -along[k];
      PF_UNROLL
      for (int j = k; j < terms; ++j) e += p[j] * factor[k * terms + j];
      value += e * e;
      PF_UNROLL
      for (int j = k; j < terms; ++j) sum[j] += e * factor[k * terms + j];
    });
    for_terms<K>(terms, [&](int j) PF_ALWAYS_INLINE { grad[j] = sum[j] * (2.0 * weight); });
    return value * weight;
  }
};

// R squared, where a curve explains so much of the squares beyond a constant; nan where y does not
// vary by more than its rounding.
template <class V>
PF_HD V determination(V of_constant, V explained, V rest) {
  const V least = 1e-30 * of_constant;
  explained = if_less(least - (rest + explained), 0.0, explained, like(rest, NAN));
  return 1.0 - rest / (rest + explained);
}

template <class V>
PF_HD V determination(int n_terms, const V* along, V rest) {
  V explained{};
  PF_UNROLL
  for (int k = 1; k < n_terms; ++k) explained += along[k] * along[k];
  return determination(along[0] * along[0], explained, rest);
}

// The inverse of factor^T factor, given to put(i, j, value) column by column, which takes little
// memory; 0 for terms above the degree.
template <int M, class V, class F, class Put>
PF_HD void covariance(int n_terms, const F* factor, V degree, Put&& put) {
  PF_UNROLL
  for (int j = 0; j < n_terms; ++j) {
    V along[M], column[M];
    PF_UNROLL
    for (int k = 0; k < n_terms; ++k) {
      const F pivot = factor[k * n_terms + k];
      V rest = like(degree, k == j);
      PF_UNROLL
      for (int i = j; i < k; ++i) rest = rest - factor[i * n_terms + k] * along[i];
      rest = rest * if_zero(pivot, like(pivot, 0.0), 1.0 / pivot);
      along[k] = k < j ? V{} : if_less(degree - like(degree, k), 0.0, V{}, rest);
    }
    back_substitute(n_terms, factor, along, column);
    PF_UNROLL
    for (int i = 0; i <= j; ++i) {
      put(i, j, column[i]);
      if (i < j) put(j, i, column[i]);
    }
  }
}

// As select_degree has it, up to what all degrees share: n samples, k terms; total: of squares of
// y, whose rounding bounds what a polynomial leaves.
PF_HD double degree_score(DegreeBy by, double n, int k, double squares, double total) {
  constexpr double rounding = 0x1p-55, smallest = 0x1p-1022;
  double least = rounding * rounding * total;
  if (least < smallest) least = smallest;
  if (squares < least) squares = least;
  const double fit = n * log(squares / n);
  if (by == DegreeBy::Bic) return fit + k * log(n);
  return n > k + 1 ? fit + 2 * k * n / (n - k - 1) : INFINITY;
}

// The degree of least AICc or BIC; terms above it are left out, and what they explained is left
// over.
template <int M>
PF_HD int choose_degree(DegreeBy by, int n_terms, double n, int rank, double* along, double& rest) {
  double total = rest, squares[M];
  PF_UNROLL
  for (int k = n_terms - 1; k >= 0; --k) {
    squares[k] = total;
    total += along[k] * along[k];
  }
  int best = 0;
  double lowest = INFINITY;
  rest = squares[0];
  PF_UNROLL
  for (int k = 0; k < n_terms; ++k) {
    const double score = degree_score(by, n, k + 1, squares[k], total);
    if (k < rank && score < lowest) lowest = score, best = k, rest = squares[k];
  }
  PF_UNROLL
  for (int k = 0; k < n_terms; ++k)
    if (k > best) along[k] = 0.0;
  return best;
}

}  // namespace PF_ISA
}  // namespace polyfuse
