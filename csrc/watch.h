// Has anything changed? Cheap answers for the training loop about Python dictionaries and tensors.
#pragma once

#include <pybind11/pybind11.h>

#include <utility>
#include <vector>

namespace polyfuse {

namespace py = pybind11;

char* address_of(PyObject* tensor);
long version_of(PyObject* tensor);
// A borrowed attribute: only for comparing with an object that something else keeps alive.
PyObject* attribute(PyObject* object, PyObject* name);

// Dictionaries whose keys and values must stay the very same objects.
class Watch {
 public:
  explicit Watch(py::list dicts);
  bool unchanged() const;

 private:
  std::vector<std::pair<py::dict, std::vector<std::pair<py::object, py::object>>>> watched_;
};

// One tensor whose memory, shape, strides and dtype must stay; its values may change.
class Seen {
 public:
  Seen() = default;
  explicit Seen(py::object tensor);
  bool same(py::handle tensor) const;

 private:
  py::object tensor_, shape_, stride_, dtype_;
  char* address_ = nullptr;
};

}  // namespace polyfuse
