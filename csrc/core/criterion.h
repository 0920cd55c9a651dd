// Criteria: the value of one sample, and its slope, the derivative by the prediction; for double
// and for packs of doubles. The slope lacks the constant kFactor, which a sum of slopes is
// multiplied by in the end. Values and subgradients are torch's, those of infinite predictions as
// well.
#pragma once

#include <cmath>
#include <limits>

#include "macros.h"
#include "problem.h"

namespace polyfuse {
inline namespace PF_ISA {

using std::abs;
using std::exp;
using std::log;
using std::log1p;

PF_HD double like(double, double value) { return value; }
PF_HD double if_less(double a, double b, double then, double otherwise) {
  return a < b ? then : otherwise;
}

// 1, 0 or -1
template <class T>
PF_HD T sign(T x) {
  return if_less(x, 0.0, like(x, -1.0), if_less(-x, 0.0, like(x, 1.0), like(x, 0.0)));
}

// x, but at least -most and at most most
template <class T>
PF_HD T clamp(T x, double most) {
  return if_less(x, -most, like(x, -most), if_less(-x, -most, like(x, most), x));
}

// r^2 with r = prediction - target
struct SquaredError {
  static constexpr double kFactor = 2.0;
  template <class T>
  static PF_HD T value(T prediction, T target, const Criterion&) {
    const T r = prediction - target;
    return r * r;
  }
  template <class T>
  static PF_HD T slope(T prediction, T target, const Criterion&) {
    return prediction - target;
  }
};

// |r|
struct AbsoluteError {
  static constexpr double kFactor = 1.0;
  template <class T>
  static PF_HD T value(T prediction, T target, const Criterion&) {
    return abs(prediction - target);
  }
  template <class T>
  static PF_HD T slope(T prediction, T target, const Criterion&) {
    return sign(prediction - target);
  }
};

// r^2 / (2 beta) where |r| < beta, |r| - beta / 2 beyond
struct SmoothL1 {
  static constexpr double kFactor = 1.0;
  template <class T>
  static PF_HD T value(T prediction, T target, const Criterion& c) {
    const T r = abs(prediction - target);
    return if_less(r, c.beta, 0.5 * r * r / c.beta, r - 0.5 * c.beta);
  }
  template <class T>
  static PF_HD T slope(T prediction, T target, const Criterion& c) {
    return clamp(prediction - target, c.beta) / c.beta;
  }
};

// r^2 / 2 where |r| < delta, delta (|r| - delta / 2) beyond
struct Huber {
  static constexpr double kFactor = 1.0;
  template <class T>
  static PF_HD T value(T prediction, T target, const Criterion& c) {
    const T r = abs(prediction - target);
    return if_less(r, c.delta, 0.5 * r * r, c.delta * (r - 0.5 * c.delta));
  }
  template <class T>
  static PF_HD T slope(T prediction, T target, const Criterion& c) {
    return clamp(prediction - target, c.delta);
  }
};

// log(1 + exp(-target prediction)), the targets being 1 and -1
struct SoftMargin {
  static constexpr double kFactor = 1.0;
  template <class T>
  static PF_HD T value(T prediction, T target, const Criterion&) {
    return log1p(exp(-(target * prediction)));
  }
  template <class T>
  static PF_HD T slope(T prediction, T target, const Criterion&) {
    const T e = exp(-(target * prediction));
    return -(target * e) / (e + 1.0);
  }
};

// -pos_weight target log s - (1 - target) log(1 - s) with s = sigmoid(prediction)
struct BCEWithLogits {
  static constexpr double kFactor = 1.0;
  template <class T>
  static PF_HD T value(T prediction, T target, const Criterion& c) {
    const T log_sigmoid =
        if_less(prediction, 0.0, prediction, like(prediction, 0.0)) - log1p(exp(-abs(prediction)));
    return (1.0 - target) * prediction - ((c.pos_weight - 1.0) * target + 1.0) * log_sigmoid;
  }
  template <class T>
  static PF_HD T slope(T prediction, T target, const Criterion& c) {
    const T e = exp(-abs(prediction));
    const T sigmoid = if_less(prediction, 0.0, e, like(e, 1.0)) / (e + 1.0);
    const T positive = c.pos_weight * target;
    return (positive + 1.0 - target) * sigmoid - positive;
  }
};

// exp(p) - target p, or with a prediction that is no logarithm p - target log(p + eps); full adds
// Stirling's log(target!) where the target is above 1
struct PoissonNLL {
  static constexpr double kFactor = 1.0;
  template <class T>
  static PF_HD T value(T prediction, T target, const Criterion& c) {
    constexpr double two_pi = 6.283185307179586;
    T loss = c.log_input ? exp(prediction) - target * prediction
                         : prediction - target * log(prediction + c.eps);
    if (!c.full) return loss;
    const T stirling = target * log(target) - target + 0.5 * log(two_pi * target);
    return loss + if_less(-target, -1.0, stirling, like(target, 0.0));
  }
  template <class T>
  static PF_HD T slope(T prediction, T target, const Criterion& c) {
    return c.log_input ? exp(prediction) - target : 1.0 - target / (prediction + c.eps);
  }
};

// target (log(target) - prediction), or with log(target) as the target
struct KLDiv {
  static constexpr double kFactor = 1.0;
  template <class T>
  static PF_HD T value(T prediction, T target, const Criterion& c) {
    if (c.log_target) return exp(target) * (target - prediction);
    constexpr double least = std::numeric_limits<double>::denorm_min();
    const T entropy = if_less(abs(target), least, like(target, 0.0), target * log(target));
    return entropy - target * prediction;
  }
  template <class T>
  static PF_HD T slope(T, T target, const Criterion& c) {
    return c.log_target ? -exp(target) : -target;
  }
};

// (log(variance) + r^2 / variance) / 2, and log(2 pi) / 2 with full
struct GaussianNLL {
  static constexpr double kFactor = 1.0;
  template <class T>
  static PF_HD T value(T prediction, T target, const Criterion& c) {
    constexpr double log_two_pi = 1.8378770664093453;
    const T r = prediction - target;
    return 0.5 * (r * r / c.variance + (c.log_variance + (c.full ? log_two_pi : 0.0)));
  }
  template <class T>
  static PF_HD T slope(T prediction, T target, const Criterion& c) {
    return (prediction - target) / c.variance;
  }
};

}  // namespace PF_ISA
}  // namespace polyfuse
