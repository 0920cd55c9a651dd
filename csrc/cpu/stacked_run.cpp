#include "../core/cross_entropy.h"
#include "blocks.h"
#include "stacked.h"

namespace polyfuse {
namespace {

constexpr int64_t kShare = 64;  // of the outputs, that a thread takes

double class_objective(const Stacked& s, int threads, const double* params, double* grad) {
  const int n_params = s.n_terms * s.n_outputs;
  std::vector<double> sums(static_cast<size_t>(3 + n_params));
  reduce(s.n, 3 + n_params, threads, sums.data(), [&](int64_t begin, int64_t end, double* out) {
    passes_for(s.n).class_loss(s, params, begin, end, out);
  });
  const double weight = factor_of(s.mean, sums[1]);
  // Samples that are left out have no gradient.
  for (int j = 0; j < n_params; ++j) grad[j] = sums[2] > 0.0 ? weight * sums[3 + j] : 0.0;
  return weight * sums[0];
}

Surface surface_of(const Stacked& s) {
  Surface surface = *s.surface;
  surface.x = s.x;
  surface.y = s.y;
  surface.w = s.w;
  surface.n = s.n;
  surface.n_outputs = s.n_outputs;
  surface.criterion = s.criterion;
  return surface;
}

double surface_objective(const Stacked& s, int threads, const double* params, double* grad) {
  const Surface surface = surface_of(s);
  const int n_params = s.n_terms * s.n_outputs;
  std::vector<double> sums(static_cast<size_t>(2 + n_params));
  reduce(s.n, 2 + n_params, threads, sums.data(), [&](int64_t begin, int64_t end, double* out) {
    passes().surface_loss(surface, params, begin, end, out);
  });
  const double weight = s.criterion.weight / (s.mean ? sums[1] : 1.0);
  for (int j = 0; j < n_params; ++j) grad[j] = weight * sums[2 + j];
  return weight * sums[0];
}

}  // namespace

// Threads take shares of the outputs and blocks of the samples, whose sums are added in order.
double StackedStream::operator()(Alone, const double* params, double* grad) const {
  const Stacked& s = stacked;
  if (s.criterion.kind == CriterionKind::CrossEntropy)
    return class_objective(s, threads, params, grad);
  if (s.surface) return surface_objective(s, threads, params, grad);
  const int64_t outputs = s.n_outputs, n_params = s.n_terms * outputs;
  const int64_t n_sums = n_params + 2 * outputs, shares = (outputs + kShare - 1) / kShare;
  const int64_t block = block_size(s.n), n_blocks = (s.n + block - 1) / block;
  const auto pass = passes_for(s.n * outputs).stacked_loss;
  std::vector<double> sums(static_cast<size_t>(n_blocks * n_sums));
  const bool parallel = threads > 1 && s.n * outputs >= kParallelFrom;
#pragma omp parallel for num_threads(threads) schedule(static) if (parallel)
  for (int64_t task = 0; task < n_blocks * shares; ++task) {
    const int64_t b = task / shares, first = task % shares * kShare;
    pass(s, params, first, std::min(outputs, first + kShare), b * block,
         std::min(s.n, (b + 1) * block), &sums[static_cast<size_t>(b * n_sums)]);
  }
  for (int64_t b = 1; b < n_blocks; ++b)
    for (int64_t j = 0; j < n_sums; ++j) sums[j] += sums[b * n_sums + j];
  double value = 0.0, counted = 0.0;
  for (int64_t c = 0; c < outputs; ++c) {
    value += sums[n_params + c];
    counted += sums[n_params + outputs + c];
  }
  const double weight = s.criterion.weight / (s.mean ? counted : 1.0);
  for (int64_t j = 0; j < n_params; ++j) grad[j] = weight * sums[j];
  return weight * value;
}

Stacked stacked_of(const Problem& problem) {
  Stacked s = *problem.stacked;
  s.surface = problem.surface;
  s.criterion = problem.criterion;
  s.mean = problem.mean;
  return s;
}

// One read of the data for outputs that share their weights, else one for each.
StackedMoments accumulate(const Stacked& s, int threads) {
  const Surface surface = surface_of(s);
  const int64_t terms = s.n_terms, outputs = s.n_outputs;
  const bool own = s.w.at && s.w.fit != 0;
  StackedMoments all;
  all.reference.resize(static_cast<size_t>(terms * outputs));
  all.cross.resize(static_cast<size_t>(terms * outputs));
  all.power.resize(static_cast<size_t>(terms * terms * (own ? outputs : 1)));
  const int64_t reads = own ? outputs : 1, each = own ? 1 : outputs;
  for (int64_t c = 0; c < reads; ++c) {
    const SurfaceMoments one =
        accumulate(own ? output_of(surface, static_cast<int>(c)) : surface, threads);
    for (int64_t k = 0; k < terms; ++k)
      for (int64_t i = 0; i < each; ++i) {
        all.reference[k * outputs + c + i] = one.reference[k * each + i];
        all.cross[k * outputs + c + i] = one.cross[k * each + i];
      }
    for (int64_t jk = 0; jk < terms * terms; ++jk)
      all.power[jk * reads + c] = one.power[surface.moment_of[jk]];
    all.square += one.square;
    all.weight += one.weight;
  }
  return all;
}

double objective(const Stacked& s, const StackedMoments& m, const double* params, double* grad) {
  const int64_t terms = s.n_terms, outputs = s.n_outputs;
  const bool own = static_cast<int64_t>(m.power.size()) > terms * terms;
  const double weight = s.criterion.weight * (s.mean ? 1.0 / m.weight : 1.0);
  double value = m.square;
  for (int64_t j = 0; j < terms; ++j) {
    double* const product = grad + j * outputs;
    std::fill_n(product, outputs, 0.0);
    for (int64_t k = 0; k < terms; ++k) {
      const double* const power = &m.power[(j * terms + k) * (own ? outputs : 1)];
      const double *const at = params + k * outputs, *const from = &m.reference[k * outputs];
      for (int64_t c = 0; c < outputs; ++c) product[c] += power[own ? c : 0] * (at[c] - from[c]);
    }
    for (int64_t c = 0; c < outputs; ++c) {
      const double cross = m.cross[j * outputs + c];
      value +=
          (params[j * outputs + c] - m.reference[j * outputs + c]) * (2.0 * cross + product[c]);
      product[c] = 2.0 * weight * (cross + product[c]);
    }
  }
  return weight * value;
}

const int64_t* class_out_of_range(const Stacked& s) {
  for (int64_t i = 0; s.index && i < s.n; ++i) {
    const int64_t* at = s.index + i * s.index_stride;
    if ((*at < 0 || *at >= s.n_outputs) && *at != s.criterion.ignore) return at;
  }
  return nullptr;
}

}  // namespace polyfuse
