// Has anything changed? Cheap answers for the training loop about Python objects and tensors.
#pragma once

#include <string>
#include <utility>
#include <vector>

#include "tensor.h"

namespace polyfuse {

PyObject* referent(PyObject* weak);  // borrowed; null where it is gone

// Dictionaries and lists whose entries must stay the very same objects, small contiguous CPU
// tensors whose values must stay the same, and modules whose class must stay as it is.
class Watch {
 public:
  Watch() = default;
  explicit Watch(const py::list& things);
  bool unchanged() const;
  int visit(visitproc visit, void* arg) const;
  void clear() { *this = {}; }

 private:
  struct Dict {
    py::dict dict;
    std::vector<std::pair<py::object, py::object>> items;
    mutable uint64_t version = 0;  // CPython's own, where it has one: equal, so is the content
    bool unchanged() const;
  };
  struct List {
    py::list list;
    std::vector<py::object> items;
  };
  struct Values {
    py::object tensor, storage;
    Layout layout;
    std::string bytes;
  };
  struct Class {
    py::object module;  // weak reference
    PyTypeObject* type;
    unsigned int version;
  };
  std::vector<Class> classes_;
  std::vector<Dict> dicts_;
  std::vector<List> lists_;
  std::vector<Values> values_;
};

// One tensor whose memory, shape, strides and dtype must stay; its values may change. It is not
// kept alive.
class Seen {
 public:
  Seen() = default;
  explicit Seen(const py::object& tensor);
  bool is(PyObject* tensor) const { return weak_ && referent(weak_.ptr()) == tensor; }
  bool same(PyObject* tensor) const;
  bool in_place(PyObject* tensor) const;  // the same, but that it may need a gradient
  PyObject* tensor() const { return weak_ ? referent(weak_.ptr()) : nullptr; }
  const Layout& layout() const { return layout_; }

 private:
  py::object weak_;
  Layout layout_;
};

}  // namespace polyfuse
