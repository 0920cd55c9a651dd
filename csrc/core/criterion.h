// Criteria: value and slope (derivative) of one residual r = prediction - target. The slope lacks
// the constant kFactor, which a sum of slopes is multiplied by in the end.
#pragma once

#include "macros.h"

namespace polyfuse {
inline namespace PF_ISA {

// r^2
struct SquaredError {
  static constexpr double kFactor = 2.0;
  template <class T>
  static PF_HD T value(T r) {
    return r * r;
  }
  template <class T>
  static PF_HD T slope(T r) {
    return r;
  }
};

}  // namespace PF_ISA
}  // namespace polyfuse
