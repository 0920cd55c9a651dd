#include "watch.h"

#include <cstring>

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

Watch::Watch(py::list things) {
  for (py::handle thing : things) {
    if (PyDict_Check(thing.ptr())) {
      dicts_.push_back({py::reinterpret_borrow<py::dict>(thing), {}});
      for (auto [key, value] : dicts_.back().dict)
        dicts_.back().items.emplace_back(py::reinterpret_borrow<py::object>(key),
                                         py::reinterpret_borrow<py::object>(value));
    } else if (PyList_Check(thing.ptr())) {
      lists_.push_back({py::reinterpret_borrow<py::list>(thing), {}});
      for (py::handle item : lists_.back().list)
        lists_.back().items.push_back(py::reinterpret_borrow<py::object>(item));
    } else {
      char* address = address_of(thing.ptr());
      const auto size = thing.attr("nbytes").cast<size_t>();
      values_.push_back({py::reinterpret_borrow<py::object>(thing), thing.attr("untyped_storage")(),
                         address, std::string(address, size)});
    }
  }
}

bool Watch::unchanged() const {
  for (const Dict& d : dicts_) {
    if (PyDict_Size(d.dict.ptr()) != static_cast<Py_ssize_t>(d.items.size())) return false;
    Py_ssize_t position = 0;
    PyObject *key, *value;
    for (size_t i = 0; PyDict_Next(d.dict.ptr(), &position, &key, &value); ++i)
      if (key != d.items[i].first.ptr() || value != d.items[i].second.ptr()) return false;
  }
  for (const List& l : lists_) {
    if (PyList_GET_SIZE(l.list.ptr()) != static_cast<Py_ssize_t>(l.items.size())) return false;
    for (size_t i = 0; i < l.items.size(); ++i)
      if (PyList_GET_ITEM(l.list.ptr(), i) != l.items[i].ptr()) return false;
  }
  for (const Values& v : values_)
    if (address_of(v.tensor.ptr()) != v.address ||
        std::memcmp(v.address, v.bytes.data(), v.bytes.size()) != 0)
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

Seen::Seen(py::object tensor)
    : tensor_(tensor),
      storage_(tensor.attr("untyped_storage")()),
      stride_(tensor.attr("stride")()),
      dtype_(tensor.attr("dtype")),
      numel_(tensor.attr("numel")().cast<long long>()),
      address_(address_of(tensor.ptr())) {}

bool Seen::same(PyObject* tensor) const {
  static const TensorAttribute dtype("dtype"), requires_grad("requires_grad");
  static const TensorMethod numel("numel"), stride("stride");
  if (tensor != tensor_.ptr() || address_of(tensor) != address_ ||
      !requires_grad.is(tensor, Py_False) || !dtype.is(tensor, dtype_.ptr()))
    return false;
  // For the layouts that are accepted, one stride or none broken, these two give the shape.
  return PyLong_AsLongLong(numel.call(tensor).ptr()) == numel_ &&
         PyObject_RichCompareBool(stride.call(tensor).ptr(), stride_.ptr(), Py_EQ) == 1;
}

int Seen::visit(visitproc visit, void* arg) const {
  Py_VISIT(tensor_.ptr());
  return 0;
}

}  // namespace polyfuse
