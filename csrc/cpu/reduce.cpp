#include "reduce.h"

#include <algorithm>
#include <cmath>

#include "../core/team.h"
#include "blocks.h"

namespace polyfuse {
namespace {

constexpr int64_t kSingleFrom = kParallelFrom;  // fewer samples are cheap enough in float64
constexpr int64_t kPilot = 1024;                // samples of the pilot fit
constexpr int kMaxSums = 3 * kMaxTerms + 2;

double element(const void* p, Dtype dtype, int64_t i) {
  return dtype == Dtype::Float32 ? static_cast<const float*>(p)[i]
                                 : static_cast<const double*>(p)[i];
}

Moments accumulate_about(const Data& data, Moments about, int threads) {
  const int terms = about.n_terms, powers = 2 * terms - 1;
  double sums[kMaxSums];
  reduce(data.n, powers + terms + 1, threads, sums, [&](int64_t begin, int64_t end, double* out) {
    passes_for(data.n).moments(data, about.reference, terms, begin, end, out);
  });
  std::copy(sums, sums + powers, about.power);
  std::copy(sums + powers, sums + powers + terms, about.cross);
  about.square = sums[powers + terms];
  return about;
}

struct Range {
  double low = INFINITY, high = -INFINITY;
};

Range range_of_x(const Data& data) {
  Range range;
  for (int64_t i = 0; i < data.n; ++i) {
    const double x = element(data.x, data.dtype, i * data.x_stride);
    if (!std::isfinite(x) || (data.w && element(data.w, data.dtype, i * data.w_stride) == 0.0))
      continue;
    range.low = std::min(range.low, x);
    range.high = std::max(range.high, x);
  }
  return range;
}

}  // namespace

Loss loss_and_gradient(const Data& data, const Criterion& criterion, const double* coef,
                       int n_terms, bool single, int threads, double* grad_coef) {
  double sums[kMaxSums];
  single = single && data.n >= kSingleFrom && data.dtype == Dtype::Float32 && !data.omit &&
           !data.w && data.x_stride == 1 && data.y_stride == 1 && data.shift == 0.0 &&
           data.scale == 1.0;
  reduce(data.n, n_terms + 2, threads, sums, [&](int64_t begin, int64_t end, double* out) {
    passes_for(data.n).loss(data, criterion, coef, n_terms, single, begin, end, out);
  });
  std::copy(sums + 1, sums + 1 + n_terms, grad_coef);
  return {sums[0], sums[1 + n_terms]};
}

// A pilot fit of at most kPilot samples, or of all where those are left out, gives centre, scale
// and reference; then one read of all.
Moments accumulate(const Data& data, int n_terms, int threads) {
  Data pilot = thinned(data, std::max<int64_t>(1, data.n / kPilot));
  Range range = range_of_x(pilot);
  if (range.low > range.high) range = range_of_x(pilot = data);
  const auto [low, high] = range;
  Moments moments;
  moments.n_terms = n_terms;
  if (low <= high) moments.shift = 0.5 * low + 0.5 * high;
  if (low < high) moments.scale = 1.0 / (0.5 * high - 0.5 * low);

  Data scaled = data;
  scaled.shift = pilot.shift = moments.shift;
  scaled.scale = pilot.scale = moments.scale;
  pilot.omit = true;
  double work[kMaxTerms * (kMaxTerms + 1)];
  accumulate_about(pilot, moments, 1).solve(Alone{}, moments.reference, work);
  return accumulate_about(scaled, moments, threads);
}

void evaluate(const Data& data, const double* coef, int n_terms, int threads, void* y) {
  const int64_t block = block_size(data.n);
  const int64_t n_blocks = (data.n + block - 1) / block;
  const bool parallel = threads > 1 && data.n >= kParallelFrom;
#pragma omp parallel for num_threads(threads) schedule(static) if (parallel)
  for (int64_t b = 0; b < n_blocks; ++b)
    passes_for(data.n).evaluate(data, coef, n_terms, b * block, std::min(data.n, (b + 1) * block),
                                y);
}

void project(const Data& data, int n_terms, int threads, double* out) {
  reduce(data.n, n_terms, threads, out, [&](int64_t begin, int64_t end, double* sums) {
    passes_for(data.n).project(data, n_terms, begin, end, sums);
  });
}

int64_t count_nonfinite(const Data& data, int threads) {
  double count;
  reduce(data.n, 1, threads, &count, [&](int64_t begin, int64_t end, double* sums) {
    passes_for(data.n).count_nonfinite(data, begin, end, sums);
  });
  return static_cast<int64_t>(count);
}

}  // namespace polyfuse
