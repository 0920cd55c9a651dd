// Small matrices in double-double arithmetic.
#pragma once

#include <cstddef>
#include <vector>

#include "../core/twofold.h"

namespace polyfuse {

struct Matrix {
  int rows = 0, columns = 0;
  std::vector<Real> entries;

  Matrix() = default;
  Matrix(int rows, int columns)
      : rows(rows), columns(columns), entries(static_cast<std::size_t>(rows) * columns) {}
  static Matrix identity(int n) {
    Matrix one(n, n);
    for (int i = 0; i < n; ++i) one(i, i).hi = 1.0;
    return one;
  }
  static Matrix of(const double* values, int rows, int columns) {
    Matrix result(rows, columns);
    for (std::size_t i = 0; i < result.entries.size(); ++i) result.entries[i].hi = values[i];
    return result;
  }

  Real& operator()(int i, int j) { return entries[static_cast<std::size_t>(i) * columns + j]; }
  const Real& operator()(int i, int j) const {
    return entries[static_cast<std::size_t>(i) * columns + j];
  }

  Matrix transposed() const {
    Matrix result(columns, rows);
    for (int i = 0; i < rows; ++i)
      for (int j = 0; j < columns; ++j) result(j, i) = (*this)(i, j);
    return result;
  }
};

// Skips zeros of both.
inline Matrix operator*(const Matrix& a, const Matrix& b) {
  Matrix product(a.rows, b.columns);
  for (int k = 0; k < a.columns; ++k) {
    int begin = 0, end = b.columns;
    while (begin < end && b(k, begin).hi == 0.0) ++begin;
    while (begin < end && b(k, end - 1).hi == 0.0) --end;
    for (int i = 0; i < a.rows; ++i) {
      if (a(i, k).hi == 0.0) continue;
      for (int j = begin; j < end; ++j) product(i, j) += a(i, k) * b(k, j);
    }
  }
  return product;
}
inline Matrix combined(Matrix a, const Matrix& b, double sign) {
  for (std::size_t i = 0; i < a.entries.size(); ++i) a.entries[i] += b.entries[i] * sign;
  return a;
}
inline Matrix operator+(const Matrix& a, const Matrix& b) { return combined(a, b, 1.0); }
inline Matrix operator-(const Matrix& a, const Matrix& b) { return combined(a, b, -1.0); }

}  // namespace polyfuse
