#include "watch.h"

#include <cstring>

namespace polyfuse {

PyObject* referent(PyObject* weak) {
#if PY_VERSION_HEX >= 0x030D0000
  PyObject* object;
  if (PyWeakref_GetRef(weak, &object) <= 0) return nullptr;
  Py_DECREF(object);
  return object;
#else
  PyObject* object = PyWeakref_GetObject(weak);
  return object == Py_None ? nullptr : object;
#endif
}

Watch::Watch(const py::list& things) {
  for (py::handle thing : things) {
    if (PyDict_Check(thing.ptr())) {
      dicts_.push_back({py::reinterpret_borrow<py::dict>(thing), {}, 0});
      for (auto [key, value] : dicts_.back().dict)
        dicts_.back().items.emplace_back(py::reinterpret_borrow<py::object>(key),
                                         py::reinterpret_borrow<py::object>(value));
    } else if (PyList_Check(thing.ptr())) {
      lists_.push_back({py::reinterpret_borrow<py::list>(thing), {}});
      for (py::handle item : lists_.back().list)
        lists_.back().items.push_back(py::reinterpret_borrow<py::object>(item));
    } else if (py::hasattr(thing, "forward")) {
      PyTypeObject* type = Py_TYPE(thing.ptr());
      py::getattr(py::handle(reinterpret_cast<PyObject*>(type)), "forward");  // gives it a version
      classes_.push_back({py::weakref(thing), type, type->tp_version_tag});
    } else if (!py::isinstance(thing, torch().tensor_base)) {
      if (!PyTuple_Check(thing.ptr()))  // which stays as it is
        throw py::type_error("expected a dict, list, tuple, module or tensor to watch");
    } else {
      const Layout layout = Layout::of(thing.ptr());
      const auto size = thing.attr("nbytes").cast<size_t>();
      values_.push_back({py::reinterpret_borrow<py::object>(thing), thing.attr("untyped_storage")(),
                         layout, std::string(layout.address, size)});
    }
  }
}

bool Watch::Dict::unchanged() const {
#if PY_VERSION_HEX < 0x030C0000
  const uint64_t now = reinterpret_cast<PyDictObject*>(dict.ptr())->ma_version_tag;
  if (now == version) return true;
#endif
  if (PyDict_GET_SIZE(dict.ptr()) != static_cast<Py_ssize_t>(items.size())) return false;
  Py_ssize_t position = 0;
  PyObject *key, *value;
  for (size_t i = 0; PyDict_Next(dict.ptr(), &position, &key, &value); ++i)
    if (key != items[i].first.ptr() || value != items[i].second.ptr()) return false;
#if PY_VERSION_HEX < 0x030C0000
  version = now;
#endif
  return true;
}

bool Watch::unchanged() const {
  for (const Class& c : classes_) {
    PyObject* module = referent(c.module.ptr());
    if (!module || Py_TYPE(module) != c.type || c.type->tp_version_tag != c.version) return false;
  }
  for (const Dict& d : dicts_)
    if (!d.unchanged()) return false;
  for (const List& l : lists_) {
    if (PyList_GET_SIZE(l.list.ptr()) != static_cast<Py_ssize_t>(l.items.size())) return false;
    for (size_t i = 0; i < l.items.size(); ++i)
      if (PyList_GET_ITEM(l.list.ptr(), i) != l.items[i].ptr()) return false;
  }
  for (const Values& v : values_)
    if (!v.layout.still_that_of(v.tensor.ptr()) ||
        std::memcmp(v.layout.address, v.bytes.data(), v.bytes.size()) != 0)
      return false;
  return true;
}

int Watch::visit(visitproc visit, void* arg) const {
  for (const Dict& d : dicts_) {
    Py_VISIT(d.dict.ptr());
    for (const auto& [key, value] : d.items) {
      Py_VISIT(key.ptr());
      Py_VISIT(value.ptr());
    }
  }
  for (const List& l : lists_) {
    Py_VISIT(l.list.ptr());
    for (const py::object& item : l.items) Py_VISIT(item.ptr());
  }
  for (const Values& v : values_) Py_VISIT(v.tensor.ptr());
  return 0;
}

Seen::Seen(const py::object& tensor)
    : weak_(py::weakref(tensor)), layout_(Layout::of(tensor.ptr())) {}

bool Seen::same(PyObject* tensor) const {
  return in_place(tensor) && torch().requires_grad.is(tensor, Py_False);
}

bool Seen::in_place(PyObject* tensor) const { return is(tensor) && layout_.still_that_of(tensor); }

}  // namespace polyfuse
