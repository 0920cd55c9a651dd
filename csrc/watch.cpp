#include "watch.h"

namespace polyfuse {

namespace {

py::object tensor_base() { return py::module_::import("torch._C").attr("TensorBase"); }

py::object checked(PyObject* result) {
  if (!result) throw py::error_already_set();
  return py::reinterpret_steal<py::object>(result);
}

}  // namespace

TensorAttribute::TensorAttribute(const char* name) : name_(PyUnicode_InternFromString(name)) {
  const py::object descriptor = tensor_base().attr(name);
  if (Py_TYPE(descriptor.ptr()) == &PyGetSetDescr_Type)
    getset_ = reinterpret_cast<PyGetSetDescrObject*>(descriptor.ptr())->d_getset;
}

py::object TensorAttribute::get(PyObject* tensor) const {
  return checked(getset_ ? getset_->get(tensor, getset_->closure)
                         : PyObject_GetAttr(tensor, name_));
}

bool TensorAttribute::is(PyObject* tensor, PyObject* value) const {
  return get(tensor).ptr() == value;
}

long TensorAttribute::number(PyObject* tensor) const { return PyLong_AsLong(get(tensor).ptr()); }

void TensorAttribute::set(PyObject* tensor, PyObject* value) const {
  const int failed = getset_ && getset_->set ? getset_->set(tensor, value, getset_->closure)
                                             : PyObject_SetAttr(tensor, name_, value);
  if (failed) throw py::error_already_set();
}

TensorMethod::TensorMethod(const char* name) : name_(PyUnicode_InternFromString(name)) {
  const py::object descriptor = tensor_base().attr(name);
  if (Py_TYPE(descriptor.ptr()) != &PyMethodDescr_Type) return;
  const PyMethodDef* method = reinterpret_cast<PyMethodDescrObject*>(descriptor.ptr())->d_method;
  if (method->ml_flags == METH_NOARGS) function_ = method->ml_meth;
}

py::object TensorMethod::call(PyObject* tensor) const {
  return checked(function_ ? function_(tensor, nullptr) : PyObject_CallMethodNoArgs(tensor, name_));
}

char* address_of(PyObject* tensor) {
  static const TensorMethod data_ptr("data_ptr");
  return reinterpret_cast<char*>(PyLong_AsUnsignedLongLong(data_ptr.call(tensor).ptr()));
}

long version_of(PyObject* tensor) {
  static const TensorAttribute version("_version");
  return version.number(tensor);
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
      stride_(tensor.attr("stride")()),
      dtype_(tensor.attr("dtype")),
      numel_(tensor.attr("numel")().cast<long long>()),
      address_(address_of(tensor.ptr())) {}

bool Seen::same(py::handle tensor) const {
  static const TensorAttribute dtype("dtype"), requires_grad("requires_grad");
  static const TensorMethod numel("numel"), stride("stride");
  PyObject* t = tensor.ptr();
  if (t != tensor_.ptr() || address_of(t) != address_ || !requires_grad.is(t, Py_False) ||
      !dtype.is(t, dtype_.ptr()))
    return false;
  // For the layouts that are accepted, one stride or none broken, these two give the shape.
  return PyLong_AsLongLong(numel.call(t).ptr()) == numel_ &&
         PyObject_RichCompareBool(stride.call(t).ptr(), stride_.ptr(), Py_EQ) == 1;
}

Py_ssize_t find_unheld(py::list pool) {
  for (Py_ssize_t i = 0; i + 1 < PyList_GET_SIZE(pool.ptr()); i += 2)
    if (Py_REFCNT(PyList_GET_ITEM(pool.ptr(), i)) == 1 &&      // the pool's
        Py_REFCNT(PyList_GET_ITEM(pool.ptr(), i + 1)) == 2) {  // the pool's and the wrapper's
      return i;
    }
  return -1;
}

void clear_grads(py::list param_groups) {
  static const TensorAttribute grad("grad");
  static PyObject* params = PyUnicode_InternFromString("params");
  for (py::handle group : param_groups) {
    PyObject* list = PyDict_GetItem(group.ptr(), params);
    for (Py_ssize_t i = 0; list && i < PyList_Size(list); ++i)
      grad.set(PyList_GetItem(list, i), Py_None);
  }
}

}  // namespace polyfuse
