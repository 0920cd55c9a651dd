// Has anything changed? Cheap answers for the training loop about Python dictionaries and tensors.
#pragma once

#include <pybind11/pybind11.h>

#include <utility>
#include <vector>

namespace polyfuse {

namespace py = pybind11;

// An attribute of plain tensors and parameters, read past Python's look-up of it by name.
class TensorAttribute {
 public:
  explicit TensorAttribute(const char* name);
  py::object get(PyObject* tensor) const;
  bool is(PyObject* tensor, PyObject* value) const;  // the very same object
  long number(PyObject* tensor) const;
  void set(PyObject* tensor, PyObject* value) const;

 private:
  PyObject* name_;
  PyGetSetDef* getset_ = nullptr;
};

// A method of tensors without arguments, likewise.
class TensorMethod {
 public:
  explicit TensorMethod(const char* name);
  py::object call(PyObject* tensor) const;

 private:
  PyObject* name_;
  PyCFunction function_ = nullptr;
};

char* address_of(PyObject* tensor);
long version_of(PyObject* tensor);

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
  py::object tensor_, stride_, dtype_;
  long long numel_ = 0;
  char* address_ = nullptr;
};

// From [wrapper, record, wrapper, record, ...], the place of a wrapper that nobody else holds, nor
// its record; -1 for none.
Py_ssize_t find_unheld(py::list pool);

void clear_grads(py::list param_groups);  // p.grad = None

}  // namespace polyfuse
