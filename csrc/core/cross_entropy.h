// Cross entropy of the logits of one sample, as torch's; for double and for packs of doubles.
#pragma once

#include <cmath>
#include <type_traits>

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
template <class T>
PF_HD T share_of(const Criterion& criterion, int n_classes, int c, const T& q) {
  const double whole = 1.0 - criterion.smoothing, rest = criterion.smoothing / n_classes;
  return (q * whole + rest) * weight_of(criterion, c);
}

template <class T>
PF_HD T largest_of(T a, T b) {
  return if_less(a - b, 0.0, b, a);
}

// All classes are here.
struct InTurn {
  int n_classes;

  template <class F>
  PF_HD void each(F&& f) const {
    PF_ROLLED
    for (int c = 0; c < n_classes; ++c) f(c);
  }
  template <class T>
  PF_HD T largest(const T& v) const {
    return v;
  }
  template <class T>
  PF_HD T sum(const T& v) const {
    return v;
  }
};

// Of logits z and shares a: -sum_c a_c log p_c with p = softmax(z), of those terms that
// part(c, term) hands on and does not make 0. z becomes the derivatives, (sum a) p_c - a_c.
// share[c] and z[c] are those of class c; classes: each(f) calls f(c) for those classes c that are
// here, whose terms are returned; largest(v) and sum(v) are over those elsewhere as well.
template <class Classes, class Share, class Logits, class Part>
PF_HD auto cross_entropy(const Classes& classes, const Share& share, const Logits& z, Part&& part) {
  using T = std::decay_t<decltype(z[0])>;
  T largest = like(z[0], -HUGE_VAL), value = like(z[0], 0.0), sum = value, all = value;
  classes.each([&](int c) {
    largest = largest_of(largest, z[c]);
    all = all + share[c];
  });
  largest = classes.largest(largest);
  all = classes.sum(all);
  classes.each([&](int c) {
    value = value + part(c, share[c] * (largest - z[c]));
    z[c] = exp(z[c] - largest);
    sum = sum + z[c];
  });
  sum = classes.sum(sum);
  const T logarithm = log(sum), per_sum = all / sum;
  classes.each([&](int c) {
    value = value + share[c] * logarithm;
    z[c] = z[c] * per_sum - share[c];
  });
  return value;
}

// What sums over samples are multiplied by; as torch, the mean of nothing is nan.
PF_HD double factor_of(bool mean, double counted) {
  return !mean ? 1.0 : counted != 0.0 ? 1.0 / counted : NAN;
}

}  // namespace PF_ISA
}  // namespace polyfuse
