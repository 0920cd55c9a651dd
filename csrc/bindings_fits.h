// Kernels of many fits, several variables and several classes, as Python sees them.
#pragma once

#include <pybind11/pybind11.h>

namespace polyfuse {

void bind_batch(pybind11::module_& m);    // class Batch
void bind_surface(pybind11::module_& m);  // class SurfaceMoments
void bind_classes(pybind11::module_& m);  // class Classes

}  // namespace polyfuse
