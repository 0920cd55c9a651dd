// A Python method that C++ answers where it can: `@_C.fast("step")` before `def step(...)`.
#pragma once

#include <pybind11/pybind11.h>

namespace polyfuse {

namespace py = pybind11;

// The result as a new reference; null, without an error set, where Python must run. Arguments are
// positional, self among them.
using Answer = PyObject* (*)(PyObject* const* args, size_t n_args);

// A callable that asks `answer` first and then `method`, whose attributes it shows as its own.
py::object make_fast(Answer answer, py::object method);

}  // namespace polyfuse
