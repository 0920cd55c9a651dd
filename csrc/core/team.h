// Who computes: a team shares the iterations of a loop, and meets after it. On a device it is the
// threads of a warp or a block; what its members read and write in common lies in shared memory.
#pragma once

#include "macros.h"

namespace polyfuse {
inline namespace PF_ISA {

struct Alone {
  template <class F>
  PF_HD void each(int n, F&& f) const {
    for (int i = 0; i < n; ++i) f(i);
  }
  template <class F>
  PF_HD void each_of(int rows, int columns, F&& f) const {
    for (int i = 0; i < rows; ++i)
      for (int j = 0; j < columns; ++j) f(i, j);
  }
  template <class F>
  PF_HD void one(F&& f) const {
    f();
  }
  PF_HD void meet() const {}
};

}  // namespace PF_ISA
}  // namespace polyfuse
