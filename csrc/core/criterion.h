// Criteria: the value of one sample, and its slope, the derivative by the prediction; for double
// and for packs of doubles. The slope lacks the constant kFactor, which a sum of slopes is
// multiplied by in the end. Values and subgradients are torch's, those of infinite predictions as
// well.
#pragma once

#include <cmath>

#include "macros.h"
#include "problem.h"
#include "select.h"

namespace polyfuse {
inline namespace PF_ISA {

using std::abs;
using std::exp;
using std::log;
using std::log1p;

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

template <class T>
struct ValueAndSlope {
  T value, slope;
};

// r^2 with r = prediction - target
struct SquaredError {
  static constexpr double kFactor = 2.0;
  template <class T>
  static PF_HD ValueAndSlope<T> at(T prediction, T target, const Criterion&) {
    const T r = prediction - target;
    return {r * r, r};
  }
};

// |r|
struct AbsoluteError {
  static constexpr double kFactor = 1.0;
  template <class T>
  static PF_HD ValueAndSlope<T> at(T prediction, T target, const Criterion&) {
    const T r = prediction - target;
    return {abs(r), sign(r)};
  }
};

constexpr double kLeastBeta = 1e-38;  // with a reciprocal in float32

// r^2 / (2 beta) where |r| < beta, |r| - beta / 2 beyond
struct SmoothL1 {
  static constexpr double kFactor = 1.0;
  template <class T>
  static PF_HD ValueAndSlope<T> at(T prediction, T target, const Criterion& c) {
    const T r = prediction - target, size = abs(r);
    const double beta = c.beta + kLeastBeta, per_beta = 1.0 / beta;
    return {if_less(size, beta, (0.5 * per_beta) * r * r, size - 0.5 * beta),
            clamp(r, beta) * per_beta};
  }
};

// r^2 / 2 where |r| < delta, delta (|r| - delta / 2) beyond
struct Huber {
  static constexpr double kFactor = 1.0;
  template <class T>
  static PF_HD ValueAndSlope<T> at(T prediction, T target, const Criterion& c) {
    const T r = prediction - target, size = abs(r);
    return {if_less(size, c.delta, 0.5 * r * r, c.delta * (size - 0.5 * c.delta)),
            clamp(r, c.delta)};
  }
};

// Those whose formulas rest on an exponential have it apart: at = of(exp(exponent)).

// log(1 + exp(-target prediction)), the targets being 1 and -1
struct SoftMargin {
  static constexpr double kFactor = 1.0;
  template <class T>
  static PF_HD T exponent(T prediction, T target) {
    return -(target * prediction);
  }
  template <class T>
  static PF_HD ValueAndSlope<T> of(T e, T, T target, const Criterion&) {
    return {log1p(e), -(target * e) / (e + 1.0)};
  }
  template <class T>
  static PF_HD ValueAndSlope<T> at(T prediction, T target, const Criterion& c) {
    return of<T>(exp(exponent(prediction, target)), prediction, target, c);
  }
};

// -pos_weight target log s - (1 - target) log(1 - s) with s = sigmoid(prediction)
struct BCEWithLogits {
  static constexpr double kFactor = 1.0;
  template <class T>
  static PF_HD T exponent(T prediction, T) {
    return -abs(prediction);
  }
  template <class T>
  static PF_HD ValueAndSlope<T> of(T e, T prediction, T target, const Criterion& c) {
    const T log_sigmoid = if_less(prediction, 0.0, prediction, like(prediction, 0.0)) - log1p(e);
    const T sigmoid = if_less(prediction, 0.0, e, like(e, 1.0)) / (e + 1.0);
    const T positive = c.pos_weight * target;
    return {(1.0 - target) * prediction - ((c.pos_weight - 1.0) * target + 1.0) * log_sigmoid,
            (positive + 1.0 - target) * sigmoid - positive};
  }
  template <class T>
  static PF_HD ValueAndSlope<T> at(T prediction, T target, const Criterion& c) {
    return of<T>(exp(exponent(prediction, target)), prediction, target, c);
  }
};

// exp(p) - target p, or with a prediction that is no logarithm p - target log(p + eps); full adds
// Stirling's log(target!) where the target is above 1
struct PoissonNLL {
  static constexpr double kFactor = 1.0;
  template <class T>
  static PF_HD ValueAndSlope<T> at(T prediction, T target, const Criterion& c) {
    ValueAndSlope<T> result;
    if (c.log_input) {
      const T mean = exp(prediction);
      result = {mean - target * prediction, mean - target};
    } else {
      const T mean = prediction + c.eps;
      result = {prediction - target * log(mean), 1.0 - target / mean};
    }
    if (c.full) {
      constexpr double two_pi = 6.283185307179586;
      const T stirling = target * log(target) - target + 0.5 * log(two_pi * target);
      result.value = result.value + if_less(-target, -1.0, stirling, like(target, 0.0));
    }
    return result;
  }
};

// target (log(target) - prediction), or with log(target) as the target
struct KLDiv {
  static constexpr double kFactor = 1.0;
  template <class T>
  static PF_HD ValueAndSlope<T> at(T prediction, T target, const Criterion& c) {
    if (c.log_target) {
      const T weight = exp(target);
      return {weight * (target - prediction), -weight};
    }
    const T entropy = if_zero(target, like(target, 0.0), target * log(target));
    return {entropy - target * prediction, -target};
  }
};

// (log(variance) + r^2 / variance) / 2, and log(2 pi) / 2 with full
struct GaussianNLL {
  static constexpr double kFactor = 1.0;
  template <class T>
  static PF_HD ValueAndSlope<T> at(T prediction, T target, const Criterion& c) {
    constexpr double log_two_pi = 1.8378770664093453;
    const T r = prediction - target, slope = r * (1.0 / c.variance);
    return {0.5 * (r * slope + (c.log_variance + (c.full ? log_two_pi : 0.0))), slope};
  }
};

// f(SquaredError{}) and so on, of those of single outputs.
template <class F>
PF_HD void with_rho(CriterionKind kind, F&& f) {
  switch (kind) {
    case CriterionKind::SquaredError: return f(SquaredError{});
    case CriterionKind::AbsoluteError: return f(AbsoluteError{});
    case CriterionKind::SmoothL1: return f(SmoothL1{});
    case CriterionKind::Huber: return f(Huber{});
    case CriterionKind::SoftMargin: return f(SoftMargin{});
    case CriterionKind::BCEWithLogits: return f(BCEWithLogits{});
    case CriterionKind::PoissonNLL: return f(PoissonNLL{});
    case CriterionKind::KLDiv: return f(KLDiv{});
    case CriterionKind::GaussianNLL: return f(GaussianNLL{});
    case CriterionKind::CrossEntropy: return;
  }
}

}  // namespace PF_ISA
}  // namespace polyfuse
