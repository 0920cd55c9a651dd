// Powers of an affine recurrence s <- s + E [s; 1]. The difference E = M - I is what is stored and
// doubled, (I + E)^2 - I = 2 E + E^2, so that slow modes keep their relative accuracy.
// E is [n, n + 1], row-major, in memory of the caller.
#pragma once

#include <cstdint>

#include "macros.h"

namespace polyfuse {
inline namespace PF_ISA {

PF_HD int affine_entries(int n) { return n * (n + 1); }

// result = (I + a)(I + b) - I
template <class Team>
PF_HD void compose(const Team& team, int n, const double* a, const double* b, double* result) {
  team.each_of(n, n + 1, [&](int i, int j) {
    const int width = n + 1;
    double sum = 0.0;
    PF_ROLLED
    for (int k = 0; k < n; ++k) sum += a[i * width + k] * b[k * width + j];
    result[i * width + j] = a[i * width + j] + b[i * width + j] + sum;
  });
}

// Returns where in `work` [3 n (n + 1)] the power lies.
template <class Team>
PF_HD const double* power(const Team& team, int n, const double* epoch, int64_t steps,
                          double* work) {
  const int entries = affine_entries(n);
  double *result = work, *square = work + entries, *spare = work + 2 * entries;
  team.each(entries, [&](int e) {
    result[e] = 0.0;
    square[e] = epoch[e];
  });
  const auto advance = [&](const double* a, const double* b, double*& into) {
    compose(team, n, a, b, spare);
    double* const composed = spare;
    spare = into;
    into = composed;
  };
  PF_ROLLED
  for (; steps > 0; steps >>= 1) {
    if (steps & 1) advance(square, result, result);
    if (steps > 1) advance(square, square, square);
  }
  return result;
}

template <class Team>
PF_HD void apply(const Team& team, int n, const double* affine, double* state,
                 double* change /* [n] */) {
  team.each(n, [&](int i) {
    const double* row = affine + i * (n + 1);
    change[i] = row[n];
    PF_ROLLED
    for (int k = 0; k < n; ++k) change[i] += row[k] * state[k];
  });
  team.each(n, [&](int i) { state[i] += change[i]; });
}

}  // namespace PF_ISA
}  // namespace polyfuse
