// Constants and choices of a number, as packs of numbers have them: one formula serves both.
#pragma once

#include <type_traits>

#include "macros.h"

namespace polyfuse {
inline namespace PF_ISA {

#define PF_OF_REAL template <class S, class = std::enable_if_t<std::is_floating_point<S>::value>>
PF_OF_REAL PF_HD S like(S, double value) { return S(value); }
PF_OF_REAL PF_HD S if_less(S a, double b, S then, S otherwise) { return a < b ? then : otherwise; }
PF_OF_REAL PF_HD S if_zero(S a, S then, S otherwise) { return a == S(0) ? then : otherwise; }
#undef PF_OF_REAL

}  // namespace PF_ISA
}  // namespace polyfuse
