#include "tensor.h"

#include <algorithm>
#include <cstring>

namespace polyfuse {
namespace {

// The part of DLPack's C interface that is used here. Source: dmlc/dlpack, include/dlpack/dlpack.h,
// version 1.3.
struct DlTensor {
  void* data;
  struct {
    int32_t type, id;
  } device;
  int32_t ndim;
  struct {
    uint8_t code, bits;
    uint16_t lanes;
  } dtype;
  int64_t *shape, *strides;
  uint64_t byte_offset;
};
struct DlExchange {
  struct {
    struct {
      uint32_t major, minor;
    } version;
    void* previous;
  } header;
  void *allocate, *managed_from_object, *managed_to_object;
  int (*tensor_from_object)(void* object, DlTensor* out);
  void* current_stream;
};

const DlExchange* find_exchange() {
  const py::object tensor = py::module_::import("torch").attr("Tensor");
  const py::object capsule = py::getattr(tensor, "__dlpack_c_exchange_api__", py::none());
  if (!PyCapsule_IsValid(capsule.ptr(), "dlpack_exchange_api")) return nullptr;
  const auto* exchange =
      static_cast<DlExchange*>(PyCapsule_GetPointer(capsule.ptr(), "dlpack_exchange_api"));
  return exchange->header.version.major == 1 && exchange->tensor_from_object ? exchange : nullptr;
}

bool describe(PyObject* tensor, DlTensor& out) {
  static const DlExchange* exchange = find_exchange();
  if (!exchange) return false;
  if (exchange->tensor_from_object(tensor, &out) == 0) return true;
  PyErr_Clear();
  return false;
}

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

Layout Layout::of(PyObject* tensor) {
  Layout layout;
  DlTensor described;
  if (describe(tensor, described)) {
    layout.address = static_cast<char*>(described.data) + described.byte_offset;
    uint32_t dtype;
    std::memcpy(&dtype, &described.dtype, sizeof dtype);
    layout.kind = static_cast<uint64_t>(described.device.type) << 32 | dtype;
    if (described.ndim > kMaxDims) return layout;
    layout.n_dims = described.ndim;
    std::copy_n(described.shape, described.ndim, layout.shape);
    std::copy_n(described.strides, described.ndim, layout.stride);
    return layout;
  }
  static const TensorAttribute dtype("dtype"), shape("shape");
  static const TensorMethod stride("stride");
  layout.address = address_of(tensor);
  layout.kind = reinterpret_cast<uintptr_t>(dtype.get(tensor).ptr());
  const py::tuple sizes = shape.get(tensor), strides = stride.call(tensor);
  if (sizes.size() > kMaxDims) return layout;
  layout.n_dims = static_cast<int>(sizes.size());
  for (int i = 0; i < layout.n_dims; ++i) {
    layout.shape[i] = sizes[i].cast<int64_t>();
    layout.stride[i] = strides[i].cast<int64_t>();
  }
  return layout;
}

Layout Layout::of_any(PyObject* tensor) {
  try {
    return of(tensor);
  } catch (py::error_already_set&) {
    return {};
  }
}

int64_t Layout::numel() const {
  int64_t product = 1;
  for (int i = 0; i < n_dims; ++i) product *= shape[i];
  return product;
}

bool Layout::same_shape(const Layout& other) const {
  return n_dims == other.n_dims && n_dims >= 0 && std::equal(shape, shape + n_dims, other.shape);
}

bool Layout::serves_as(const Layout& other) const {
  if (kind != other.kind || n_dims != other.n_dims || n_dims < 0 || numel() == 0) return false;
  int64_t contiguous = 1;
  for (int i = n_dims - 1; n_dims > 1 && i >= 0; --i) {
    if (shape[i] != 1 && stride[i] != contiguous) return false;
    contiguous *= shape[i];
  }
  return true;
}

bool Layout::operator==(const Layout& other) const {
  return address == other.address && kind == other.kind && same_shape(other) &&
         std::equal(stride, stride + n_dims, other.stride);
}

char* address_of(PyObject* tensor) {
  DlTensor described;
  if (describe(tensor, described))
    return static_cast<char*>(described.data) + described.byte_offset;
  static const TensorMethod data_ptr("data_ptr");
  return reinterpret_cast<char*>(PyLong_AsUnsignedLongLong(data_ptr.call(tensor).ptr()));
}

long version_of(PyObject* tensor) {
  static const TensorAttribute version("_version");
  return version.number(tensor);
}

}  // namespace polyfuse
