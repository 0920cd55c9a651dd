// What cross entropy is told of one sample: its class, or the probability of each.
#pragma once

#include "../core/cross_entropy.h"
#include "passes.cuh"

namespace polyfuse {

// One class, with no share for the others: their terms are no part of the loss.
PF_DEVICE bool is_alone(const Run& run) { return run.index && run.criterion.smoothing == 0.0; }

// y: probabilities of T, or int64.
struct Target {
  int64_t of_class = -1;  // -1: y are probabilities
  double weight = 0.0;    // 0: the sample is left out; nan: there is no such class
  double of_mean = 1.0;   // what it counts for in the mean, times weight

  static PF_DEVICE Target of(const Run& run, int64_t i, double weight) {
    Target target;
    target.weight = weight;
    if (weight == 0.0 || !run.index) return target;
    const int64_t t = static_cast<const int64_t*>(run.data.y)[i * run.data.y_stride];
    target.of_class = t;
    if (t == run.criterion.ignore)
      target.weight = 0.0;
    else if (t < 0 || t >= run.n_outputs)
      target.weight = NAN;
    else
      target.of_mean = weight_of(run.criterion, static_cast<int>(t));
    return target;
  }

  PF_HD bool kept() const { return weight != 0.0; }

  // What class c gets; y: where probabilities are.
  template <class Y>
  PF_HD double share(const Run& run, const Y& y, int64_t i, int c) const {
    if (!kept()) return 0.0;
    const double q =
        run.index ? double(of_class == c) : double(y[i * run.data.y_stride + c * run.y_output]);
    return weight * share_of(run.criterion, run.n_outputs, c, q);
  }
};

}  // namespace polyfuse
