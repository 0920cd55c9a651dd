#pragma once

#include <pybind11/pybind11.h>

namespace polyfuse {

void bind_cuda_fits(pybind11::module_&);

}  // namespace polyfuse
