// What a least-squares solution needs of the data, in double-double arithmetic: sums over the
// samples about a reference, and the change between the terms they are taken of (powers of a
// centred and scaled variable, centred columns) and the terms of the model.
#pragma once

#include "../core/moments.h"
#include "matrix.h"
#include "passes.h"

namespace polyfuse {

constexpr double kExtendedTolerance = 2e-28;  // (64 eps)^2; rounding alone leaves 1e-30

struct NormalEquations {
  Matrix gram;                      // V^T W V, [K, K]
  Matrix cross;                     // V^T W r, [K, 1]; r = V reference - y
  Real square;                      // r^T W r
  Matrix reference;                 // [K, 1]
  Matrix inward;                    // [K, K]: of the model's terms -> of these
  Matrix outward;                   // its inverse
  double shift = 0.0, scale = 1.0;  // of powers of u = (x - shift) * scale
  // A term counts as a combination of the others where what they leave of it, squared and relative,
  // is no more than this.
  double tolerance = kExtendedTolerance;

  // Of both: of the same terms about the same reference.
  void add(const NormalEquations&);
  // Of the first n terms alone.
  NormalEquations leading(int n) const;
};

// (x - shift) * scale + offset: of which the model's terms are powers.
struct Variable {
  double shift, scale, offset;
};

NormalEquations of_moments(const Moments&, const Variable&);
// precise: in double-double arithmetic from the data on.
NormalEquations accumulate(const Data&, int n_terms, bool precise, const Variable&, int threads);
// Term 0, where with_constant, is the constant 1; the others are the columns less their shifts.
NormalEquations accumulate(const Columns&, bool with_constant, int threads);
// The same of sums taken elsewhere; right [K + 1, 1]: the cross, and the square below it.
NormalEquations of_sums(const Matrix& gram, const Matrix& right, const double* reference,
                        const double* shift, bool with_constant);
// Of these data in the terms of others, and about their reference.
NormalEquations accumulate_like(const NormalEquations&, const Data&, int threads);
NormalEquations accumulate_like(const NormalEquations&, const Columns&, int threads);

}  // namespace polyfuse
