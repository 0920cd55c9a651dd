// Numbers of a tensor in memory.
#pragma once

#include <algorithm>

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

// Neighbours, from the element on.
inline void read(Dtype dtype, const void* base, int64_t element, int64_t count, double* into) {
  if (dtype == Dtype::Float32)
    std::copy_n(static_cast<const float*>(base) + element, count, into);
  else
    std::copy_n(static_cast<const double*>(base) + element, count, into);
}

inline void write(Dtype dtype, void* base, int64_t element, int64_t count, const double* values) {
  if (dtype == Dtype::Float32)
    std::transform(values, values + count, static_cast<float*>(base) + element,
                   [](double value) { return static_cast<float>(value); });
  else
    std::copy_n(values, count, static_cast<double*>(base) + element);
}

}  // namespace polyfuse
