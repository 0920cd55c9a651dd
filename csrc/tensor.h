// What a torch tensor is, read without Python's look-up of attributes by name.
#pragma once

#include <pybind11/pybind11.h>

#include <utility>

#include "shim.h"

namespace polyfuse {

namespace py = pybind11;

// An attribute of plain tensors and parameters.
class TensorAttribute {
 public:
  explicit TensorAttribute(const char* name);
  py::object get(PyObject* tensor) const;
  bool is(PyObject* tensor, PyObject* value) const;  // the very same object
  void set(PyObject* tensor, PyObject* value) const;

 private:
  PyObject* name_;
  PyGetSetDef* getset_ = nullptr;
};

// A dictionary of hooks of a tensor.
class TensorHooks {
 public:
  explicit TensorHooks(const char* name);
  bool none(PyObject* tensor) const;

 private:
  TensorAttribute attribute_;
  Field field_;
};

// A method of tensors without arguments.
class TensorMethod {
 public:
  explicit TensorMethod(const char* name);
  py::object call(PyObject* tensor) const;

 private:
  PyObject* name_;
  PyCFunction function_ = nullptr;
};

// A function of torch's, of one argument or of none.
class TorchFunction {
 public:
  TorchFunction() = default;
  explicit TorchFunction(py::object function) : function_(std::move(function)) {}
  py::object operator()(PyObject* argument = nullptr) const;
  bool is_none() const { return function_.is_none(); }

 private:
  py::object function_ = py::none();
};

// The names of torch that are read here. They are looked up when the module is imported: later, a
// look-up could let another thread in, half-way.
struct Torch {
  TensorAttribute grad{"grad"}, requires_grad{"requires_grad"}, version{"_version"};
  TensorAttribute data{"data"}, dtype{"dtype"}, shape{"shape"};
  TensorHooks backward_hooks{"_backward_hooks"}, accumulate_hooks{"_post_accumulate_grad_hooks"};
  TensorMethod stride{"stride"}, data_ptr{"data_ptr"}, use_count{"_use_count"};
  TensorMethod detach{"detach"}, is_inference{"is_inference"}, is_neg{"is_neg"};
  py::object tensor, tensor_base, distributed, active_ddp_module, cpu, params, param_groups;
  TorchFunction is_grad_enabled, is_autocast_enabled, tracing_state, function_modes, dispatch_modes;
  TorchFunction is_anomaly_enabled, saved_tensors_hooks;  // the latter None where torch has none
  TorchFunction storage_use_count, increment_version, get_num_threads;
  const void* exchange = nullptr;  // DLPack's, where torch has one
  Shim shim;

  static void find();
  static bool use_shim(bool use);  // whether it is in use now
};
const Torch& torch();

// Where a tensor lies and how, through DLPack's exchange interface (torch 2.10 and later) or else
// through attributes; whether it still does, through torch's shim.
struct Layout {
  static constexpr int kMaxDims = 8;
  char* address = nullptr;
  uint64_t kind = 0;  // dtype and type of device, opaque
  int n_dims = -1;    // of a tensor with more than kMaxDims: equal to no other
  int64_t shape[kMaxDims], stride[kMaxDims];

  static Layout of(PyObject* tensor);
  static Layout of_any(PyObject* tensor);  // equal to no other where there is no memory to lie in
  bool still_that_of(PyObject* tensor) const;
  int64_t numel() const;
  bool same_shape(const Layout& other) const;
  // Whether kernels that read the other read this: one stride, or none broken.
  bool serves_as(const Layout& other) const;
  bool operator==(const Layout& other) const;
};

inline long number(const py::object& object) { return PyLong_AsLong(object.ptr()); }
char* address_of(PyObject* tensor);
long version_of(PyObject* tensor);

}  // namespace polyfuse
