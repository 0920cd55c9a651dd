#include "normal_equations.h"

#include <algorithm>
#include <cmath>

#include "../core/team.h"
#include "blocks.h"
#include "least_squares.h"
#include "reduce.h"

namespace polyfuse {
namespace {

constexpr int64_t kPilot = 1024;    // samples of the pilot fit, which gives the reference
constexpr double kRefined = 1e-10;  // where the least pivot is below, a second read refines

// As change_of_variable of basis.h: powers of v = a u + b in powers of u.
Matrix powers_of(Real a, Real b, int n) {
  Matrix change(n, n);
  change(0, 0).hi = 1.0;
  for (int k = 1; k < n; ++k)
    for (int j = 0; j <= k; ++j) {
      if (j < k) change(j, k) += b * change(j, k - 1);
      if (j > 0) change(j, k) += a * change(j - 1, k - 1);
    }
  return change;
}

void set_variable(NormalEquations& sums, const Variable& v) {
  const int n = sums.gram.rows;
  const Real one{1.0}, slope = Real{v.scale} / Real{sums.scale};
  const Real offset = two_sum(sums.shift, -v.shift) * v.scale + v.offset;
  sums.inward = powers_of(slope, offset, n);
  sums.outward = powers_of(one / slope, -(offset / slope), n);
}

NormalEquations of_powers(const Real* power, const Real* cross, Real square,
                          const double* reference, int n) {
  NormalEquations sums;
  sums.gram = Matrix(n, n);
  for (int i = 0; i < n; ++i)
    for (int j = 0; j < n; ++j) sums.gram(i, j) = power[i + j];
  sums.cross = Matrix(n, 1);
  std::copy(cross, cross + n, sums.cross.entries.begin());
  sums.square = square;
  sums.reference = Matrix::of(reference, n, 1);
  return sums;
}

NormalEquations about(const Data& data, const double* reference, int n, int threads) {
  Real out[3 * kMaxTerms];
  reduce(data.n, 3 * n, threads, out, [&](int64_t begin, int64_t end, Real* sums) {
    passes_for(data.n).extended_moments(data, reference, n, begin, end, &sums->hi);
  });
  NormalEquations sums = of_powers(out, out + 2 * n - 1, out[3 * n - 1], reference, n);
  sums.shift = data.shift;
  sums.scale = data.scale;
  return sums;
}

NormalEquations extended(Data data, int n, int threads) {
  const Moments pilot =
      accumulate(thinned(data, std::max<int64_t>(1, data.n / kPilot)), n, threads);
  double reference[kMaxTerms], work[kMaxTerms * (kMaxTerms + 1)];
  pilot.solve(Alone{}, reference, work);
  if (!std::all_of(reference, reference + n, [](double c) { return std::isfinite(c); }))
    std::fill(reference, reference + n, 0.0);
  data.shift = pilot.shift;
  data.scale = pilot.scale;
  return about(data, reference, n, threads);
}

NormalEquations about(const Columns& data, const double* reference, int threads) {
  const int n = data.n_terms, n_gram = n * (n + 1) / 2;
  std::vector<Real> out(n_gram + n + 1);
  reduce(data.n, n_gram + n + 1, threads, out.data(), [&](int64_t begin, int64_t end, Real* sums) {
    passes_for(data.n).extended_gram(data, reference, begin, end, &sums->hi);
  });
  NormalEquations sums;
  sums.gram = Matrix(n, n);
  sums.cross = Matrix(n, 1);
  for (int k = 0, at = 0; k < n; ++k) {
    for (int j = 0; j <= k; ++j) sums.gram(k, j) = sums.gram(j, k) = out[at++];
    sums.cross(k, 0) = out[n_gram + k];
  }
  sums.square = out[n_gram + n];
  sums.reference = Matrix::of(reference, n, 1);
  sums.inward = sums.outward = Matrix::identity(n);
  return sums;
}

// Term 0 is the constant 1; the others are columns less their shifts.
void set_shifts(NormalEquations& sums, const double* shift) {
  for (int k = 1; k < sums.gram.rows; ++k) {
    sums.inward(0, k).hi = shift[k];
    sums.outward(0, k).hi = -shift[k];
  }
}

std::vector<double> heads(const Matrix& a) {
  std::vector<double> values(a.entries.size());
  std::transform(a.entries.begin(), a.entries.end(), values.begin(), rounded);
  return values;
}

NormalEquations with_terms_of(const NormalEquations& known, NormalEquations sums) {
  sums.inward = known.inward;
  sums.outward = known.outward;
  return sums;
}

}  // namespace

void NormalEquations::add(const NormalEquations& other) {
  gram = gram + other.gram;
  cross = cross + other.cross;
  square += other.square;
}

NormalEquations NormalEquations::leading(int n) const {
  const auto corner = [n](const Matrix& all, int columns) {
    Matrix part(n, columns);
    for (int i = 0; i < n; ++i)
      for (int j = 0; j < columns; ++j) part(i, j) = all(i, j);
    return part;
  };
  Matrix rest = reference;
  std::fill(rest.entries.begin(), rest.entries.begin() + n, Real{});
  NormalEquations part;
  part.gram = corner(gram, n);
  part.cross = corner(cross - gram * rest, 1);
  part.square = square + (rest.transposed() * (gram * rest - cross - cross))(0, 0);
  part.reference = corner(reference, 1);
  part.inward = corner(inward, n);
  part.outward = corner(outward, n);
  part.shift = shift;
  part.scale = scale;
  part.tolerance = tolerance;
  return part;
}

NormalEquations of_moments(const Moments& m, const Variable& variable) {
  Real power[2 * kMaxTerms - 1], cross[kMaxTerms];
  std::transform(m.power, m.power + 2 * m.n_terms - 1, power, [](double v) { return Real{v}; });
  std::transform(m.cross, m.cross + m.n_terms, cross, [](double v) { return Real{v}; });
  NormalEquations sums = of_powers(power, cross, Real{m.square}, m.reference, m.n_terms);
  sums.shift = m.shift;
  sums.scale = m.scale;
  sums.tolerance = kPivot;
  set_variable(sums, variable);
  return sums;
}

NormalEquations accumulate(const Data& data, int n_terms, bool precise, const Variable& variable,
                           int threads) {
  if (!precise) return of_moments(accumulate(data, n_terms, threads), variable);
  NormalEquations sums = extended(data, n_terms, threads);
  if (least_pivot(sums) < kRefined) {
    const Matrix every = sums.inward = sums.outward = Matrix::identity(n_terms);
    const Solution first = solve(sums, every, Matrix(n_terms, 1), {}, false);
    sums.reference = Matrix::of(first.coefficients.data(), n_terms, 1);
    sums = accumulate_like(sums, data, threads);
  }
  set_variable(sums, variable);
  return sums;
}

NormalEquations accumulate(const Columns& data, bool with_constant, int threads) {
  const std::vector<double> reference(data.n_terms);
  NormalEquations sums = about(data, reference.data(), threads);
  const Matrix every = Matrix::identity(data.n_terms);
  const Solution first = solve(sums, every, Matrix(data.n_terms, 1), {}, false);
  sums = about(data, first.coefficients.data(), threads);
  if (with_constant) set_shifts(sums, data.shift);
  return sums;
}

NormalEquations of_sums(const Matrix& gram, const Matrix& right, const double* reference,
                        const double* shift, bool with_constant) {
  const int n = gram.rows;
  NormalEquations sums;
  sums.gram = gram;
  sums.cross = Matrix(n, 1);
  std::copy_n(right.entries.begin(), n, sums.cross.entries.begin());
  sums.square = right(n, 0);
  sums.reference = Matrix::of(reference, n, 1);
  sums.inward = sums.outward = Matrix::identity(n);
  if (with_constant) set_shifts(sums, shift);
  return sums;
}

NormalEquations accumulate_like(const NormalEquations& known, const Data& data, int threads) {
  Data scaled = data;
  scaled.shift = known.shift;
  scaled.scale = known.scale;
  const std::vector<double> reference = heads(known.reference);
  return with_terms_of(known, about(scaled, reference.data(), known.gram.rows, threads));
}

NormalEquations accumulate_like(const NormalEquations& known, const Columns& data, int threads) {
  return with_terms_of(known, about(data, heads(known.reference).data(), threads));
}

}  // namespace polyfuse
