#include "watch.h"

namespace polyfuse {

char* address_of(PyObject* tensor) {
  static PyObject* data_ptr = PyUnicode_InternFromString("data_ptr");
  const auto result =
      py::reinterpret_steal<py::object>(PyObject_CallMethodNoArgs(tensor, data_ptr));
  if (!result) throw py::error_already_set();
  return reinterpret_cast<char*>(PyLong_AsUnsignedLongLong(result.ptr()));
}

long version_of(PyObject* tensor) {
  static PyObject* version = PyUnicode_InternFromString("_version");
  const auto result = py::reinterpret_steal<py::object>(PyObject_GetAttr(tensor, version));
  if (!result) throw py::error_already_set();
  return PyLong_AsLong(result.ptr());
}

PyObject* attribute(PyObject* object, PyObject* name) {
  PyObject* value = PyObject_GetAttr(object, name);
  if (!value) throw py::error_already_set();
  Py_DECREF(value);
  return value;
}

Watch::Watch(py::list dicts) {
  for (py::handle d : dicts) {
    const auto dict = py::reinterpret_borrow<py::dict>(d);
    watched_.emplace_back(dict, std::vector<std::pair<py::object, py::object>>());
    for (auto [key, value] : dict)
      watched_.back().second.emplace_back(py::reinterpret_borrow<py::object>(key),
                                          py::reinterpret_borrow<py::object>(value));
  }
}

bool Watch::unchanged() const {
  for (const auto& [dict, items] : watched_) {
    if (PyDict_Size(dict.ptr()) != static_cast<Py_ssize_t>(items.size())) return false;
    Py_ssize_t position = 0;
    PyObject *key, *value;
    for (size_t i = 0; PyDict_Next(dict.ptr(), &position, &key, &value); ++i)
      if (key != items[i].first.ptr() || value != items[i].second.ptr()) return false;
  }
  return true;
}

Seen::Seen(py::object tensor)
    : tensor_(tensor),
      shape_(tensor.attr("shape")),
      stride_(tensor.attr("stride")()),
      dtype_(tensor.attr("dtype")),
      address_(address_of(tensor.ptr())) {}

bool Seen::same(py::handle tensor) const {
  static PyObject* names[] = {
      PyUnicode_InternFromString("shape"), PyUnicode_InternFromString("stride"),
      PyUnicode_InternFromString("dtype"), PyUnicode_InternFromString("requires_grad")};
  PyObject* t = tensor.ptr();
  if (t != tensor_.ptr() || address_of(t) != address_ || attribute(t, names[3]) != Py_False ||
      attribute(t, names[2]) != dtype_.ptr())
    return false;
  const auto shape = py::reinterpret_steal<py::object>(PyObject_GetAttr(t, names[0]));
  const auto stride = py::reinterpret_steal<py::object>(PyObject_CallMethodNoArgs(t, names[1]));
  if (!shape || !stride) throw py::error_already_set();
  return PyObject_RichCompareBool(shape.ptr(), shape_.ptr(), Py_EQ) == 1 &&
         PyObject_RichCompareBool(stride.ptr(), stride_.ptr(), Py_EQ) == 1;
}

}  // namespace polyfuse
