// What a run over a surface descends: its loss and gradient from the moments, or from the data.
#pragma once

#include <vector>

#include "../core/gram.h"
#include "../core/team.h"
#include "blocks.h"
#include "surface.h"

namespace polyfuse {

struct GramOf {
  const Surface& s;
  const SurfaceMoments& moments;
  double operator()(int i, int j) const { return moments.power[s.moment_of[i * s.n_terms + j]]; }
};

inline GramMoments<GramOf> gram_moments(const Surface& s, const SurfaceMoments& moments) {
  return {s.n_terms, {s, moments}, moments.reference.data(), moments.cross.data(), moments.square};
}

// Loss and gradient from the data, every time.
struct SurfaceStream {
  const CoefficientMap& map;
  const Surface& s;
  int threads;
  std::vector<double> coef = std::vector<double>(static_cast<size_t>(s.n_terms));
  std::vector<double> grad_coef = coef;

  double operator()(Alone alone, const double* params, double* grad) {
    map.evaluate(alone, params, coef.data());
    std::vector<double> sums(static_cast<size_t>(2 + s.n_terms));
    reduce(s.n, 2 + s.n_terms, threads, sums.data(), [&](int64_t begin, int64_t end, double* out) {
      passes().surface_loss(s, coef.data(), begin, end, out);
    });
    const double weight = s.criterion.weight * (s.mean ? 1.0 / sums[1] : 1.0);
    for (int k = 0; k < s.n_terms; ++k) grad_coef[k] = weight * sums[2 + k];
    map.pull_back(alone, params, grad_coef.data(), grad);
    return weight * sums[0];
  }
};

}  // namespace polyfuse
