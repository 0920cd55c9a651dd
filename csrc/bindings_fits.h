// Kernels of many fits, several variables and outputs, as Python sees them.
#pragma once

#include <pybind11/pybind11.h>

namespace polyfuse {

void bind_batch(pybind11::module_& m);    // class Batch
void bind_surface(pybind11::module_& m);  // class SurfaceMoments
void bind_stacked(pybind11::module_& m);  // class Stacked

}  // namespace polyfuse
