// Cross entropy of the logits of one sample, as torch's; for double and for packs of doubles.
#pragma once

#include <cmath>

#include "macros.h"
#include "problem.h"
#include "select.h"

namespace polyfuse {
inline namespace PF_ISA {

using std::exp;
using std::log;

PF_HD double weight_of(const Criterion& criterion, int c) {
  return criterion.class_weight ? criterion.class_weight[c] : 1.0;
}

// What class c gets of a target that gives it the probability q.
PF_HD double share_of(const Criterion& criterion, int n_classes, int c, double q) {
  const double whole = 1.0 - criterion.smoothing, rest = criterion.smoothing / n_classes;
  return weight_of(criterion, c) * (q * whole + rest);
}

// Logits z and shares a [C]: -sum_c a_c log p_c with p = softmax(z), of those terms that
// part(c, term) hands on and does not make 0. z becomes the derivatives, (sum a) p_c - a_c.
template <class T, class Part>
PF_HD T cross_entropy(int n_classes, const T* share, T* z, Part&& part) {
  T largest = like(z[0], -HUGE_VAL), value = like(z[0], 0.0), sum = value, all = value;
  for (int c = 0; c < n_classes; ++c) {
    largest = if_less(largest - z[c], 0.0, z[c], largest);
    all = all + share[c];
  }
  for (int c = 0; c < n_classes; ++c) {
    value = value + part(c, share[c] * (largest - z[c]));
    z[c] = exp(z[c] - largest);
    sum = sum + z[c];
  }
  const T per_sum = all / sum;
  for (int c = 0; c < n_classes; ++c) z[c] = z[c] * per_sum - share[c];
  return value + all * log(sum);
}

}  // namespace PF_ISA
}  // namespace polyfuse
