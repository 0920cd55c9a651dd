// One number of a tensor in memory, and the number that a call of Python answers.
#pragma once

#include <pybind11/pybind11.h>

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

inline long number(PyObject* result) {
  const auto value = pybind11::reinterpret_steal<pybind11::object>(result);
  if (!value) throw pybind11::error_already_set();
  return PyLong_AsLong(value.ptr());
}

}  // namespace polyfuse
