// Has anything changed? Cheap answers for the training loop about Python objects and tensors.
#pragma once

#include <pybind11/pybind11.h>

#include <string>
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

// Dictionaries and lists whose entries must stay the very same objects, and small contiguous CPU
// tensors whose values must stay the same.
class Watch {
 public:
  Watch() = default;
  explicit Watch(py::list things);
  bool unchanged() const;
  int visit(visitproc visit, void* arg) const;

 private:
  struct Dict {
    py::dict dict;
    std::vector<std::pair<py::object, py::object>> items;
  };
  struct List {
    py::list list;
    std::vector<py::object> items;
  };
  struct Values {
    py::object tensor, storage;
    char* address;
    std::string bytes;
  };
  std::vector<Dict> dicts_;
  std::vector<List> lists_;
  std::vector<Values> values_;
};

// One tensor whose memory, shape, strides and dtype must stay; its values may change.
class Seen {
 public:
  Seen() = default;
  explicit Seen(py::object tensor);
  bool is(PyObject* tensor) const { return tensor == tensor_.ptr(); }
  bool same(PyObject* tensor) const;
  int visit(visitproc visit, void* arg) const;

 private:
  py::object tensor_, storage_, stride_, dtype_;  // the storage: what is read cannot be freed
  long long numel_ = 0;
  char* address_ = nullptr;
};

}  // namespace polyfuse
