// Powers of an affine recurrence s <- s + E [s; 1]. The difference E = M - I is what is stored and
// doubled, (I + E)^2 - I = 2 E + E^2, so that slow modes keep their relative accuracy.
#pragma once

#include <vector>

#include "macros.h"

namespace polyfuse {
inline namespace PF_ISA {

struct Affine {
  int size = 0;               // states, and one row that stays 0 for the constant
  std::vector<double> entry;  // [size + 1, size + 1], row-major

  explicit Affine(int n) : size(n), entry((n + 1) * (n + 1), 0.0) {}
  double& at(int row, int column) { return entry[row * (size + 1) + column]; }
  double at(int row, int column) const { return entry[row * (size + 1) + column]; }

  // (I + a)(I + b) - I
  static Affine compose(const Affine& a, const Affine& b) {
    Affine result(a.size);
    for (int i = 0; i < a.size; ++i)
      for (int j = 0; j <= a.size; ++j) {
        double sum = 0.0;
        for (int k = 0; k < a.size; ++k) sum += a.at(i, k) * b.at(k, j);
        result.at(i, j) = a.at(i, j) + b.at(i, j) + sum;
      }
    return result;
  }

  Affine power(long long steps) const {
    Affine result(size), square = *this;
    for (; steps > 0; steps >>= 1) {
      if (steps & 1) result = compose(square, result);
      if (steps > 1) square = compose(square, square);
    }
    return result;
  }

  void apply(double* state) const {
    std::vector<double> change(size);
    for (int i = 0; i < size; ++i) {
      change[i] = at(i, size);
      for (int k = 0; k < size; ++k) change[i] += at(i, k) * state[k];
    }
    for (int i = 0; i < size; ++i) state[i] += change[i];
  }
};

}  // namespace PF_ISA
}  // namespace polyfuse
