// What a run over a surface descends: its loss and gradient by the coefficients, or by parameters
// that these are a map of.
#pragma once

#include <algorithm>
#include <cmath>
#include <vector>

#include "../core/team.h"
#include "blocks.h"
#include "surface.h"

namespace polyfuse {

// Loss and gradient from the moments.
struct SurfaceObjective {
  const Surface& s;
  const SurfaceMoments& moments;
  double weight;

  static bool identity() { return true; }
  bool reference(double* into) const {
    std::copy(moments.reference.begin(), moments.reference.end(), into);
    return std::all_of(into, into + s.n_terms, [](double v) { return std::isfinite(v); });
  }
  double operator()(Alone, const double* params, double* grad) const {
    return look(params, moments.reference.data(), moments.cross.data(), grad);
  }
  void curvature(Alone, const double* params, double* grad) const {
    look(params, nullptr, nullptr, grad);
  }

 private:
  double look(const double* params, const double* from, const double* cross, double* grad) const {
    const int terms = s.n_terms;
    double value = moments.square;
    for (int j = 0; j < terms; ++j) {
      double product = 0.0;
      for (int k = 0; k < terms; ++k)
        product += moments.power[s.moment_of[j * terms + k]] * (params[k] - (from ? from[k] : 0.0));
      const double c = cross ? cross[j] : 0.0;
      value += (params[j] - (from ? from[j] : 0.0)) * (2.0 * c + product);
      grad[j] = 2.0 * weight * (c + product);
    }
    return value * weight;
  }
};

// Loss and gradient from the data, every time.
struct SurfaceStream {
  const Surface& s;
  int threads;
  double operator()(Alone, const double* params, double* grad) const {
    std::vector<double> sums(static_cast<size_t>(2 + s.n_terms));
    reduce(s.n, 2 + s.n_terms, threads, sums.data(), [&](int64_t begin, int64_t end, double* out) {
      passes().surface_loss(s, params, begin, end, out);
    });
    const double weight = s.criterion.weight * (s.mean ? 1.0 / sums[1] : 1.0);
    for (int k = 0; k < s.n_terms; ++k) grad[k] = weight * sums[2 + k];
    return weight * sums[0];
  }
};

// An objective of the coefficients as one of the parameters.
template <class Objective>
struct Mapped {
  const CoefficientMap& map;
  Objective of_coefficients;
  std::vector<double> coef = std::vector<double>(static_cast<size_t>(map.n_coefficients));
  std::vector<double> grad_coef = coef;

  double operator()(Alone alone, const double* params, double* grad) {
    map.evaluate(alone, params, coef.data());
    const double loss = of_coefficients(alone, coef.data(), grad_coef.data());
    map.pull_back(alone, params, grad_coef.data(), grad);
    return loss;
  }
  void curvature(Alone alone, const double* params, double* grad) {
    map.evaluate(alone, params, coef.data());
    of_coefficients.curvature(alone, coef.data(), grad_coef.data());
    map.pull_back(alone, params, grad_coef.data(), grad);
  }
  bool identity() const { return map.identity; }
  bool reference(double* into) const { return of_coefficients.reference(into); }
};

}  // namespace polyfuse
