#include <algorithm>
#include <vector>

#include "passes_isa.h"
#include "samples.h"
#include "stacked.h"

namespace polyfuse {
inline namespace PF_ISA {
namespace {

// share[c] = probability of class c for eight samples, smoothed, times the weight of the class; 0
// for samples that are left out. Returns what they count in a mean.
Pack load_shares(const Stacked& s, int64_t i, int count, Pack* share) {
  const Criterion& criterion = s.criterion;
  const double rest = criterion.smoothing / s.n_outputs, whole = 1.0 - criterion.smoothing;
  double counted[kLanes] = {}, lane[kLanes];
  for (int c = 0; c < s.n_outputs; ++c) {
    const double weight = criterion.class_weight ? criterion.class_weight[c] : 1.0;
    for (int j = 0; j < kLanes; ++j) {
      lane[j] = 0.0;
      if (j >= count) continue;
      if (s.index) {
        const int64_t t = s.index[(i + j) * s.index_stride];
        if (t == criterion.ignore) continue;
        lane[j] = t < 0 || t >= s.n_outputs ? NAN : weight * ((t == c ? whole : 0.0) + rest);
        if (t == c) counted[j] = weight;
      } else {
        const int64_t at = (i + j) * s.y.sample + c * s.y.fit;
        const double q = s.y.dtype == Dtype::Float32 ? static_cast<const float*>(s.y.at)[at]
                                                     : static_cast<const double*>(s.y.at)[at];
        lane[j] = weight * (q * whole + rest);
        counted[j] = 1.0;
      }
    }
    share[c] = Pack::load(lane);
  }
  return Pack::load(counted);
}

Pack load_x(const Series& x, int64_t i, int count) {
  double lane[kLanes];
  for (int j = 0; j < kLanes; ++j) {
    const int64_t at = (i + std::min(j, count - 1)) * x.sample;
    lane[j] = x.dtype == Dtype::Float32 ? static_cast<const float*>(x.at)[at]
                                        : static_cast<const double*>(x.at)[at];
  }
  return Pack::load(lane);
}

}  // namespace

// With logits z, shares a and p = softmax(z): sum_c a_c (log sum exp z - z_c), whose derivative by
// z_c is (sum a) p_c - a_c. out: [value, what samples count, K C sums of slope phi]
void class_loss(const Stacked& s, const double* coef, int64_t begin, int64_t end, double* out) {
  const int terms = s.n_terms, classes = s.n_outputs;
  std::vector<Pack> memory(static_cast<size_t>(classes * (2 + terms) + terms));
  Pack *const z = memory.data(), *const share = z + classes, *const phi = share + classes;
  Pack* const sums = phi + terms;
  Pack value{}, total{};
  for (int64_t i = begin; i < end; i += kLanes) {
    const int count = static_cast<int>(std::min<int64_t>(kLanes, end - i));
    total += load_shares(s, i, count, share);
    const Pack u = (load_x(s.x, i, count) - s.shift) * s.scale;
    phi[0] = Pack::all(1.0);
    for (int k = 0; k + 1 < terms; ++k)
      phi[k + 1] = next_of(s.basis, k, u, phi[k], k > 0 ? phi[k - 1] : Pack{});
    Pack largest = Pack::all(-INFINITY), sum{}, all{};
    for (int c = 0; c < classes; ++c) {
      Pack logit{};
      for (int k = 0; k < terms; ++k) logit += phi[k] * coef[k * classes + c];
      z[c] = logit;
      largest = if_less(largest - logit, 0.0, logit, largest);
      all += share[c];
    }
    for (int c = 0; c < classes; ++c) {
      value += if_zero(share[c], Pack{}, share[c] * (largest - z[c]));
      z[c] = exp(z[c] - largest);
      sum += z[c];
    }
    value += all * log(sum);
    const Pack per_sum = all / sum;
    for (int c = 0; c < classes; ++c) {
      const Pack slope = if_zero(all, Pack{}, z[c] * per_sum - share[c]);
      for (int k = 0; k < terms; ++k) sums[k * classes + c] += slope * phi[k];
    }
  }
  out[0] = value.total();
  out[1] = total.total();
  for (int j = 0; j < terms * classes; ++j) out[2 + j] = sums[j].total();
}

}  // namespace PF_ISA
}  // namespace polyfuse
