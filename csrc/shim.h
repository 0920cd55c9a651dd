// torch's stable C interface ("shim"), found among the libraries that are loaded already. Source:
// torch/csrc/inductor/aoti_torch/c/shim.h.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>
#include <vector>

namespace polyfuse {

namespace py = pybind11;

// Where in torch's Python object of a tensor a word lies, found by trying; 0: nowhere, ask torch.
class Field {
 public:
  Field() = default;
  // `holders` are tensors whose objects hold the `words`, each its own.
  Field(const py::list& holders, const std::vector<const void*>& words);
  explicit operator bool() const { return offset_ != 0; }
  void* at(PyObject* tensor) const { return reinterpret_cast<char*>(tensor) + offset_; }
  PyObject* object(PyObject* tensor) const { return *static_cast<PyObject**>(at(tensor)); }

 private:
  Py_ssize_t offset_ = 0;
};

struct Shim {
  using Handle = void*;  // at::Tensor*
  using Failed = int32_t;
  bool (*grad_mode_is_enabled)() = nullptr;
  Failed (*get_data_ptr)(Handle, void**) = nullptr;
  Failed (*get_dim)(Handle, int64_t*) = nullptr;
  Failed (*get_sizes)(Handle, int64_t**) = nullptr;
  Failed (*get_strides)(Handle, int64_t**) = nullptr;
  Failed (*get_dtype)(Handle, int32_t*) = nullptr;
  Failed (*get_device_type)(Handle, int32_t*) = nullptr;
  Field handle;  // of a tensor; none where this torch lacks any of the above

  static Shim find();
};

}  // namespace polyfuse
