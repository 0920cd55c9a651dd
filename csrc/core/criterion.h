// Criteria: value and slope (derivative) of one residual r = prediction - target.
#pragma once

#include "macros.h"

namespace polyfuse {
inline namespace PF_ISA {

// r^2
struct SquaredError {
  template <class T>
  static PF_HD T value(T r) {
    return r * r;
  }
  template <class T>
  static PF_HD T slope(T r) {
    return r + r;
  }
};

}  // namespace PF_ISA
}  // namespace polyfuse
