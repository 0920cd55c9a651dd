// Loops over the terms of a polynomial.
#pragma once

#include <utility>

#include "macros.h"

namespace polyfuse {
inline namespace PF_ISA {

template <int I>
struct Constant {
  PF_HD constexpr operator int() const { return I; }
};

// f(0), f(1), ..., f(N - 1) with constant arguments: arrays indexed by them live in registers.
template <class F, int... I>
PF_HD void unroll(F&& f, std::integer_sequence<int, I...>) {
  (f(Constant<I>{}), ...);
}
template <int N, class F>
PF_HD void unroll(F&& f) {
  unroll(f, std::make_integer_sequence<int, N>{});
}

// f(k) for every k < n, unrolled where the number N is known at compile time.
template <int N, class F>
PF_HD void for_terms(int n, F&& f) {
  if constexpr (N > 0)
    unroll<N>(f);
  else
    for (int k = 0; k < n; ++k) f(k);
}

}  // namespace PF_ISA
}  // namespace polyfuse
