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

// What such a callable does, in Python, for compilers that look a type's methods up by name. Calls
// go on past them.
void show_to_compilers(const py::object& call, const py::object& get);

}  // namespace polyfuse
