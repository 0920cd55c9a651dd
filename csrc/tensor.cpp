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

Torch* found = nullptr;

const DlExchange* find_exchange(const py::object& tensor) {
  const py::object capsule = py::getattr(tensor, "__dlpack_c_exchange_api__", py::none());
  if (!PyCapsule_IsValid(capsule.ptr(), "dlpack_exchange_api")) return nullptr;
  const auto* exchange =
      static_cast<DlExchange*>(PyCapsule_GetPointer(capsule.ptr(), "dlpack_exchange_api"));
  return exchange->header.version.major == 1 && exchange->tensor_from_object ? exchange : nullptr;
}

char* address_in(const DlTensor& tensor) {
  return static_cast<char*>(tensor.data) + tensor.byte_offset;
}

uint64_t kind_of(PyObject* tensor) {
  const Shim& shim = torch().shim;
  if (!shim.handle) return reinterpret_cast<uintptr_t>(torch().dtype.get(tensor).ptr());
  int32_t dtype, device;
  if (shim.get_dtype(shim.handle.at(tensor), &dtype) ||
      shim.get_device_type(shim.handle.at(tensor), &device))
    return 0;
  return static_cast<uint64_t>(device) << 32 | static_cast<uint32_t>(dtype);
}

bool describe(PyObject* tensor, DlTensor& out) {
  const auto* exchange = static_cast<const DlExchange*>(torch().exchange);
  if (!exchange) return false;
  if (exchange->tensor_from_object(tensor, &out) == 0) return true;
  PyErr_Clear();
  return false;
}

py::object interned(const char* text) {
  return py::reinterpret_steal<py::object>(PyUnicode_InternFromString(text));
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

void TensorAttribute::set(PyObject* tensor, PyObject* value) const {
  const int failed = getset_ && getset_->set ? getset_->set(tensor, value, getset_->closure)
                                             : PyObject_SetAttr(tensor, name_, value);
  if (failed) throw py::error_already_set();
}

TensorHooks::TensorHooks(const char* name) : attribute_(name) {
  const py::object make = py::module_::import("torch").attr("empty");
  py::list tensors;
  std::vector<py::dict> hooks(3);
  std::vector<const void*> words;
  for (const py::dict& dict : hooks) {
    const py::object tensor = make(1, py::arg("requires_grad") = true);
    tensor.attr(name) = dict;
    tensors.append(tensor);
    words.push_back(dict.ptr());
  }
  field_ = Field(tensors, words);
}

bool TensorHooks::none(PyObject* tensor) const {
  const PyObject* hooks = field_ ? field_.object(tensor) : attribute_.get(tensor).ptr();
  return !hooks || hooks == Py_None;
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

py::object TorchFunction::operator()(PyObject* argument) const {
  return checked(argument ? PyObject_CallOneArg(function_.ptr(), argument)
                          : PyObject_CallNoArgs(function_.ptr()));
}

const Torch& torch() { return *found; }

void Torch::find() {
  auto* names = new Torch;
  const py::module_ torch = py::module_::import("torch"), c = py::module_::import("torch._C");
  names->tensor = torch.attr("Tensor");
  names->tensor_base = c.attr("TensorBase");
  names->distributed = py::module_::import("torch.nn.parallel").attr("DistributedDataParallel");
  names->active_ddp_module = interned("_active_ddp_module");
  names->cpu = interned("cpu");
  names->params = interned("params");
  names->param_groups = interned("param_groups");
  const auto function = [&](const char* name) { return TorchFunction(c.attr(name)); };
  names->get_num_threads = function("get_num_threads");
  names->is_grad_enabled = function("is_grad_enabled");
  names->is_autocast_enabled = function("is_autocast_enabled");
  names->tracing_state = function("_get_tracing_state");
  names->function_modes = function("_len_torch_function_stack");
  names->dispatch_modes = function("_len_torch_dispatch_stack");
  names->is_anomaly_enabled = function("is_anomaly_enabled");
  names->saved_tensors_hooks = TorchFunction(
      py::getattr(c.attr("_autograd"), "_top_saved_tensors_default_hooks", py::none()));
  names->storage_use_count = function("_storage_Use_Count");
  names->increment_version = function("_increment_version");
  names->exchange = find_exchange(names->tensor);
  found = names;
  use_shim(true);
}

bool Torch::use_shim(bool use) {
  found->shim = use ? Shim::find() : Shim();
  return static_cast<bool>(found->shim.handle);
}

Layout Layout::of(PyObject* tensor) {
  Layout layout;
  layout.kind = kind_of(tensor);
  DlTensor described;
  if (describe(tensor, described)) {
    layout.address = address_in(described);
    if (described.ndim > kMaxDims) return layout;
    layout.n_dims = described.ndim;
    std::copy_n(described.shape, described.ndim, layout.shape);
    std::copy_n(described.strides, described.ndim, layout.stride);
    return layout;
  }
  layout.address = address_of(tensor);
  const py::tuple sizes = torch().shape.get(tensor), strides = torch().stride.call(tensor);
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

bool Layout::still_that_of(PyObject* tensor) const {
  const Shim& shim = torch().shim;
  if (!shim.handle) return of_any(tensor) == *this;
  const auto handle = shim.handle.at(tensor);
  int64_t n_dims_now, *shape_now, *stride_now;
  int32_t dtype;  // what device it lies on, the address says
  if (shim.get_dtype(handle, &dtype) ||
      static_cast<uint32_t>(dtype) != static_cast<uint32_t>(kind) ||
      shim.get_dim(handle, &n_dims_now) || n_dims_now != n_dims ||
      shim.get_sizes(handle, &shape_now) || shim.get_strides(handle, &stride_now))
    return false;
  for (int i = 0; i < n_dims; ++i)
    if (shape_now[i] != shape[i] || stride_now[i] != stride[i]) return false;
  void* now;
  return !shim.get_data_ptr(handle, &now) && now == address;
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
  if (kind != other.kind || n_dims < 0 || numel() == 0) return false;
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
  if (describe(tensor, described)) return address_in(described);
  return reinterpret_cast<char*>(PyLong_AsUnsignedLongLong(torch().data_ptr.call(tensor).ptr()));
}

long version_of(PyObject* tensor) { return number(torch().version.get(tensor)); }

}  // namespace polyfuse
