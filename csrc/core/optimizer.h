// Optimizers: the update of one parameter.
#pragma once

#include "macros.h"
#include "problem.h"

namespace polyfuse {
inline namespace PF_ISA {

// d = +-g + weight_decay p;  b = momentum b + (1 - dampening) d, at first b = d;
// p = p - lr (d | b | d + momentum b) for (momentum = 0 | momentum | nesterov).
// For a given `first` it is linear in (p, g, b), which is what the closed form rests on.
struct Sgd {
  template <class T>
  static PF_HD void update(const SgdOptions& o, T& p, T g, T& buffer, bool first) {
    if (!o.owned) return;
    T d = o.maximize ? -g : g;
    if (o.weight_decay != 0.0) d += T(o.weight_decay) * p;
    if (o.momentum != 0.0) {
      buffer = first ? d : T(o.momentum) * buffer + T(1.0 - o.dampening) * d;
      d = o.nesterov ? d + T(o.momentum) * buffer : buffer;
    }
    p -= T(o.lr) * d;
  }
};

}  // namespace PF_ISA
}  // namespace polyfuse
