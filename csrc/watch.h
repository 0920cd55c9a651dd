// Has anything changed? Cheap answers for the training loop about Python objects and tensors.
#pragma once

#include <string>
#include <utility>
#include <vector>

#include "tensor.h"

namespace polyfuse {

// Dictionaries and lists whose entries must stay the very same objects, and small contiguous CPU
// tensors whose values must stay the same.
class Watch {
 public:
  Watch() = default;
  explicit Watch(const py::list& things);
  bool unchanged() const;
  int visit(visitproc visit, void* arg) const;

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
  bool same(PyObject* tensor) const;
  const py::object& tensor() const { return tensor_; }
  const Layout& layout() const { return layout_; }
  int visit(visitproc visit, void* arg) const;

 private:
  py::object tensor_;
  Layout layout_;
};

}  // namespace polyfuse
