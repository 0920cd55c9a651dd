// Normal equations in a basis that is orthonormal or that of the data's own terms, so that their
// condition is that of the data, not of the model's monomials. Sources: Golub and Van Loan, Matrix
// Computations, chapter 5 (modified Gram-Schmidt, rank by pivots, minimum norm); Higham, Accuracy
// and Stability of Numerical Algorithms, chapter 10 (pivoted Cholesky).
#include "least_squares.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <utility>

namespace polyfuse {
namespace {

constexpr double kDependent = 1e-24;  // a column of the model that the others leave so little of

// The model's terms F = inward * jacobian in a basis: coordinates z = forward * params, and of the
// params with these coordinates back * z are some.
struct Basis {
  Matrix terms, basis, forward, back;
};

Real dot(const Matrix& a, int i, const Matrix& b, int j) {
  Real sum{};
  for (int k = 0; k < a.rows; ++k) sum += a(k, i) * b(k, j);
  return sum;
}

// The parameter that alone drives each coefficient, or none where the model is of another kind.
std::vector<int> one_each(const Matrix& jacobian) {
  std::vector<int> row_of;
  if (jacobian.rows != jacobian.columns) return {};
  std::vector<bool> seen(jacobian.rows, false);
  for (int j = 0; j < jacobian.columns; ++j) {
    int found = -1;
    for (int k = 0; k < jacobian.rows; ++k) {
      if (jacobian(k, j).hi == 0.0) continue;
      if (found >= 0 || seen[k]) return {};
      seen[found = k] = true;
    }
    if (found < 0) return {};
    row_of.push_back(found);
  }
  return row_of;
}

// Every parameter scaled by the length of its column alone.
void scale_columns(Basis& b) {
  const int n = b.terms.columns;
  b.basis = b.terms;
  b.forward = b.back = Matrix(n, n);
  for (int j = 0; j < n; ++j) {
    const Real length = square_root(dot(b.terms, j, b.terms, j));
    const Real inverse = length.hi > 0.0 ? Real{1.0} / length : Real{1.0};
    for (int k = 0; k < b.terms.rows; ++k) b.basis(k, j) = b.basis(k, j) * inverse;
    b.back(j, j) = inverse;
    b.forward(j, j) = Real{1.0} / inverse;
  }
}

// Modified Gram-Schmidt, every column twice, without those that depend on others.
void orthonormalise(Basis& b) {
  const int n = b.terms.columns, rows = b.terms.rows;
  Matrix q(rows, 0), back(n, 0);
  const auto append = [](Matrix& to, const Matrix& column) {
    Matrix wider(column.rows, to.columns + 1);
    for (int i = 0; i < column.rows; ++i) {
      for (int j = 0; j < to.columns; ++j) wider(i, j) = to(i, j);
      wider(i, to.columns) = column(i, 0);
    }
    to = std::move(wider);
  };
  for (int j = 0; j < n; ++j) {
    Matrix column(rows, 1), params(n, 1);
    for (int k = 0; k < rows; ++k) column(k, 0) = b.terms(k, j);
    params(j, 0).hi = 1.0;
    const Real before = dot(column, 0, column, 0);
    for (int round = 0; round < 2; ++round)
      for (int i = 0; i < q.columns; ++i) {
        const Real along = dot(q, i, column, 0);
        for (int k = 0; k < rows; ++k) column(k, 0) -= along * q(k, i);
        for (int k = 0; k < n; ++k) params(k, 0) -= along * back(k, i);
      }
    const Real left = square_root(dot(column, 0, column, 0));
    if (!(left.hi * left.hi > kDependent * kDependent * before.hi)) continue;
    for (Real& v : column.entries) v = v / left;
    for (Real& v : params.entries) v = v / left;
    append(q, column);
    append(back, params);
  }
  b.basis = q;
  b.forward = q.transposed() * b.terms;
  b.back = std::move(back);
}

Basis basis_of(const NormalEquations& sums, const Matrix& jacobian, bool penalised) {
  Basis b;
  b.terms = sums.inward * jacobian;
  const std::vector<int> row_of = one_each(jacobian);
  if (penalised) {
    scale_columns(b);
  } else if (row_of.empty()) {
    orthonormalise(b);
  } else {
    b.basis = Matrix::identity(jacobian.rows);
    b.forward = b.terms;
    b.back = Matrix(jacobian.columns, jacobian.rows);
    for (int j = 0; j < jacobian.columns; ++j)
      for (int k = 0; k < jacobian.rows; ++k)
        b.back(j, k) = sums.outward(row_of[j], k) / jacobian(row_of[j], j);
  }
  return b;
}

// Cholesky with diagonal pivots of a matrix scaled to a diagonal of ones.
struct Factor {
  int n = 0, rank = 0;
  double least = 1.0;       // pivot of the independent ones
  std::vector<int> order;   // the first `rank` are independent
  std::vector<Real> scale;  // [n]
  Matrix lower;             // rows and columns in that order

  Factor(const Matrix& h, double tolerance) : n(h.rows), order(n), scale(n), lower(n, n) {
    std::iota(order.begin(), order.end(), 0);
    std::vector<Real> pivot(n);
    for (int i = 0; i < n; ++i) {
      const bool positive = h(i, i).hi > 0.0;
      scale[i] = positive ? Real{1.0} / square_root(h(i, i)) : Real{1.0};
      pivot[i].hi = positive ? 1.0 : 0.0;
    }
    for (; rank < n; ++rank) {
      const int j = rank;
      int best = j;
      for (int i = j + 1; i < n; ++i)
        if (pivot[order[i]].hi > pivot[order[best]].hi) best = i;
      if (!(pivot[order[best]].hi > tolerance)) break;
      std::swap(order[j], order[best]);
      for (int m = 0; m < j; ++m) std::swap(lower(j, m), lower(best, m));
      const int p = order[j];
      least = pivot[p].hi;
      lower(j, j) = square_root(pivot[p]);
      for (int i = j + 1; i < n; ++i) {
        const int q = order[i];
        Real entry = h(p, q) * scale[p] * scale[q];
        for (int m = 0; m < j; ++m) entry -= lower(i, m) * lower(j, m);
        lower(i, j) = entry / lower(j, j);
        pivot[q] -= lower(i, j) * lower(i, j);
      }
    }
  }

  // h^-1 b for the independent ones, 0 for the others.
  Matrix solve(const Matrix& b) const {
    Matrix x(n, b.columns);
    for (int c = 0; c < b.columns; ++c) {
      std::vector<Real> v(rank);
      for (int i = 0; i < rank; ++i) {
        v[i] = b(order[i], c) * scale[order[i]];
        for (int m = 0; m < i; ++m) v[i] -= lower(i, m) * v[m];
        v[i] = v[i] / lower(i, i);
      }
      up(v);
      for (int i = 0; i < rank; ++i) x(order[i], c) = v[i] * scale[order[i]];
    }
    return x;
  }

  // [rank, n]: what of any x the product h x sees; its rows are independent.
  Matrix seen() const {
    Matrix rows(rank, n);
    for (int i = 0; i < rank; ++i)
      for (int j = i; j < n; ++j) rows(i, order[j]) = lower(j, i) / scale[order[j]];
    return rows;
  }

 private:
  void up(std::vector<Real>& v) const {
    for (int i = rank - 1; i >= 0; --i) {
      for (int m = i + 1; m < rank; ++m) v[i] -= lower(m, i) * v[m];
      v[i] = v[i] / lower(i, i);
    }
  }
};

std::vector<double> rounded(const Matrix& a) {
  std::vector<double> values(a.entries.size());
  std::transform(a.entries.begin(), a.entries.end(), values.begin(),
                 [](Real v) { return rounded(v); });
  return values;
}

// Of all params with the same `seen` those of minimum norm, each parameter in units of 1 / length
// of its column of the design, as numpy.polyfit has it.
Matrix minimum_norm(const Matrix& seen, const Matrix& value, const Matrix& gram) {
  Matrix weighted = seen.transposed();
  for (int i = 0; i < weighted.rows; ++i)
    for (int j = 0; j < weighted.columns && gram(i, i).hi > 0.0; ++j)
      weighted(i, j) = weighted(i, j) / gram(i, i);
  return weighted * Factor(seen * weighted, kExtendedTolerance).solve(value);
}

Real total(const NormalEquations& sums, bool centred) {
  Matrix gram = sums.gram, cross = sums.cross;
  Real square = sums.square;
  if (centred) {
    const Real inverse = Real{1.0} / gram(0, 0);
    const Matrix row = gram, first = cross;
    for (int i = 0; i < gram.rows; ++i) {
      for (int j = 0; j < gram.rows; ++j) gram(i, j) -= row(0, i) * row(0, j) * inverse;
      cross(i, 0) -= row(0, i) * first(0, 0) * inverse;
    }
    square -= first(0, 0) * first(0, 0) * inverse;
  }
  return square + (sums.reference.transposed() * (gram * sums.reference - cross - cross))(0, 0);
}

}  // namespace

double least_pivot(const NormalEquations& sums) { return Factor(sums.gram, sums.tolerance).least; }

Solution solve(const NormalEquations& sums, const Matrix& jacobian, const Matrix& offset,
               const std::vector<double>& ridge, bool with_covariance) {
  const Basis b = basis_of(sums, jacobian, !ridge.empty());
  const Matrix fixed = sums.inward * offset, beyond = sums.reference - fixed;
  const Matrix across = b.basis.transposed();
  const Matrix inner = across * (sums.gram * b.basis);
  Matrix h = inner;
  for (std::size_t i = 0; i < ridge.size(); ++i) h(i, i) += b.back(i, i) * b.back(i, i) * ridge[i];
  const Factor factor(h, sums.tolerance);
  // from the reference on, where the basis has it: what is solved for is as small as its error
  const Matrix start = ridge.empty() ? across * beyond : Matrix(h.rows, 1);
  const Matrix rest = sums.gram * (beyond - b.basis * start) - sums.cross;
  const Matrix z = start + factor.solve(across * rest);

  Solution solution;
  solution.rank = factor.rank;
  solution.degrees = factor.rank;
  Matrix params = b.back * z, coefficients = b.basis * z + fixed;
  const Matrix step = coefficients - sums.reference;
  const Matrix slope = sums.gram * step + sums.cross + sums.cross;
  const double squares = rounded(sums.square + (step.transposed() * slope)(0, 0));
  solution.sum_of_squares = squares < 0.0 ? 0.0 : squares;  // nan stays
  solution.total = rounded(total(sums, false));
  solution.total_centred = rounded(total(sums, true));

  const bool deficient = factor.rank < jacobian.columns;
  Matrix gram;
  if (deficient || with_covariance) gram = b.terms.transposed() * (sums.gram * b.terms);
  if (deficient) {
    const Matrix seen = factor.seen();
    params = minimum_norm(seen * b.forward, seen * z, gram);
    coefficients = b.terms * params + fixed;
  }
  solution.params = rounded(params);
  solution.coefficients = rounded(coefficients);
  if (with_covariance) {
    if (!ridge.empty()) {
      const Matrix hat = factor.solve(inner);
      solution.degrees = 0.0;
      for (int i = 0; i < hat.rows; ++i) solution.degrees += hat(i, i).hi;
    }
    const Matrix spread = factor.solve(across), estimator = b.back * spread;
    const Matrix of_all = sums.gram * estimator.transposed(), own = b.basis * spread;
    solution.estimator = rounded(estimator);
    solution.influence = rounded(own);
    solution.covariance = rounded(estimator * of_all);
    solution.coefficient_covariance = rounded(own * (sums.gram * own.transposed()));
    solution.gram = rounded(gram);
  }
  return solution;
}

}  // namespace polyfuse
