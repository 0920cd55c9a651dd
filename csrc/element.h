// One number of a tensor in memory.
#pragma once

#include "core/problem.h"

namespace polyfuse {

inline double read(Dtype dtype, const void* base, int64_t element) {
  return dtype == Dtype::Float32 ? static_cast<const float*>(base)[element]
                                 : static_cast<const double*>(base)[element];
}

inline void write(Dtype dtype, void* base, int64_t element, double value) {
  if (dtype == Dtype::Float32)
    static_cast<float*>(base)[element] = static_cast<float>(value);
  else
    static_cast<double*>(base)[element] = value;
}

}  // namespace polyfuse
