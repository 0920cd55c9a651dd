// Rows of the design over several variables, P packs of samples at a time.
#pragma once

#include <algorithm>

#include "pack.h"
#include "surface.h"

namespace polyfuse {
inline namespace PF_ISA {

// phi [K, P] of u [V, P]
template <int P>
PF_INLINE void fill_terms(const Surface& s, const Pack (*u)[P], Pack* phi) {
  for (int k = 0; k < s.n_terms; ++k) {
    const Term term = s.terms[k];
    Pack* const into = phi + k * P;
    const Pack *const parent = phi + std::max(term.parent, 0) * P,
                      *const factor = u[std::max(term.variable, 0)];
    if (term.variable < 0)
      for (int p = 0; p < P; ++p) into[p] = Pack::all(1.0);
    else if (term.parent < 0)
      for (int p = 0; p < P; ++p) into[p] = factor[p];
    else
      for (int p = 0; p < P; ++p) into[p] = parent[p] * factor[p];
  }
}

}  // namespace PF_ISA
}  // namespace polyfuse
