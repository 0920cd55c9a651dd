// Polynomials of several variables, and any model that is linear in its parameters: terms
// phi_k = phi_parent * u_variable, the parameters being their coefficients [K], or [K, C] of
// several outputs.
#pragma once

#include <vector>

#include "batch.h"
#include "run.h"

namespace polyfuse {

constexpr int kMaxVariables = 64;
constexpr int kMaxSurfaceTerms = 256;

// phi[k] = (parent < 0 ? 1 : phi[parent]) * (variable < 0 ? 1 : u[variable]), parent < k
struct Term {
  int32_t parent, variable;
};
// Entry `moment` of the moments is sum w phi[a] phi[b].
struct Product {
  int32_t a, b, moment;
};

struct Surface {
  Series x;     // [N, v]: `fit` is the stride between variables
  Series y, w;  // [N, C]; w.at null: 1 everywhere, a sample of weight 0 is left out
  int64_t n = 0;
  bool omit = false;  // leave out samples with a nan or inf
  int32_t n_variables = 0, n_terms = 0, n_products = 0, n_outputs = 1;
  const double* shift = nullptr;  // [v] of u = (x - shift) * scale
  const double* scale = nullptr;
  const Term* terms = nullptr;
  const Product* products = nullptr;   // one of each moment, those with the same a together
  const int32_t* moment_of = nullptr;  // [K, K]
  Criterion criterion;
  bool mean = true;
};

// About reference coefficients, with r = V reference - y.
struct SurfaceMoments {
  std::vector<double> reference, cross;  // [K, C], [K, C]: sum w phi r
  std::vector<double> power;             // [M]: sum w phi phi, of outputs that share their weights
  double square = 0.0, weight = 0.0;     // sum w r^2, sum w
};

// The problem's surface with its data.
Surface surface_of(const Problem&);
Surface output_of(const Surface&, int c);

SurfaceMoments accumulate(const Surface&, int threads);

// Loss and gradient from the moments.
double objective(const Problem&, const SurfaceMoments&, const double* params, double* grad);

Report descend(const Problem&, Engine, const SurfaceMoments*, const Schedule&, State);

}  // namespace polyfuse
