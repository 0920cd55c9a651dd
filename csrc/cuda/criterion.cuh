// Criteria as kernels are compiled for them: squared error by itself, and all others together, of
// which every sample takes the one that the run names.
#pragma once

#include "../core/criterion.h"
#include "macros.h"

namespace polyfuse {

struct AnyOther {
  static constexpr double kFactor = 1.0;  // as that of each of them
  static PF_DEVICE ValueAndSlope<double> at(double prediction, double target, const Criterion& c) {
    switch (c.kind) {
      case CriterionKind::AbsoluteError: return AbsoluteError::at(prediction, target, c);
      case CriterionKind::SmoothL1: return SmoothL1::at(prediction, target, c);
      case CriterionKind::Huber: return Huber::at(prediction, target, c);
      case CriterionKind::GaussianNLL: return GaussianNLL::at(prediction, target, c);
      default: return with_exp_or_log(prediction, target, c);
    }
  }

 private:
  // Long code, of which a kernel has one copy.
  static __device__ __noinline__ ValueAndSlope<double> with_exp_or_log(double prediction,
                                                                       double target,
                                                                       const Criterion& c) {
    switch (c.kind) {
      case CriterionKind::SoftMargin: return SoftMargin::at(prediction, target, c);
      case CriterionKind::BCEWithLogits: return BCEWithLogits::at(prediction, target, c);
      case CriterionKind::PoissonNLL: return PoissonNLL::at(prediction, target, c);
      default: return KLDiv::at(prediction, target, c);
    }
  }
};

struct Any {
  static constexpr double kFactor = 1.0;
  static PF_DEVICE ValueAndSlope<double> at(double prediction, double target, const Criterion& c) {
    if (c.kind != CriterionKind::SquaredError) return AnyOther::at(prediction, target, c);
    const auto rho = SquaredError::at(prediction, target, c);
    return {rho.value, SquaredError::kFactor * rho.slope};
  }
};

// f(a value of the type that the kernels of a criterion are compiled for).
template <class F>
void with_criterion(CriterionKind kind, F&& f) {
  if (kind == CriterionKind::SquaredError) return f(SquaredError{});
  return f(AnyOther{});
}

}  // namespace polyfuse
