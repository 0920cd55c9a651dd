#include "shim.h"

#ifdef __linux__
#include <dlfcn.h>
#endif

#include <string>

namespace polyfuse {
namespace {

void* symbol(const std::string& name) {
#ifdef __linux__
  static void* library = dlopen("libtorch_cpu.so", RTLD_LAZY | RTLD_NOLOAD);
  return library ? dlsym(library, name.c_str()) : nullptr;
#else
  return nullptr;
#endif
}

template <class Function>
bool look_up(Function*& function, const std::string& name) {
  function = reinterpret_cast<Function*>(symbol("aoti_torch_" + name));
  return function;
}

}  // namespace

Field::Field(const py::list& holders, const std::vector<const void*>& words) {
  const Py_ssize_t size = Py_TYPE(holders[0].ptr())->tp_basicsize, word = sizeof(void*);
  int found = 0;
  for (Py_ssize_t offset = sizeof(PyObject); offset + word <= size; offset += word) {
    bool holds = true;
    for (size_t i = 0; i < words.size(); ++i) {
      const char* object = reinterpret_cast<const char*>(py::object(holders[i]).ptr());
      holds = holds && *reinterpret_cast<void* const*>(object + offset) == words[i];
    }
    if (holds && ++found) offset_ = offset;
  }
  if (found != 1) offset_ = 0;
}

Shim Shim::find() {
  Shim shim;
  const bool complete =
      look_up(shim.grad_mode_is_enabled, "grad_mode_is_enabled") &&
      look_up(shim.get_data_ptr, "get_data_ptr") && look_up(shim.get_dim, "get_dim") &&
      look_up(shim.get_sizes, "get_sizes") && look_up(shim.get_strides, "get_strides") &&
      look_up(shim.get_dtype, "get_dtype") && look_up(shim.get_device_type, "get_device_type");
  if (!complete) return {};
  const py::object make = py::module_::import("torch").attr("empty");
  py::list tensors;
  std::vector<const void*> words;
  for (int n = 1; n < 4; ++n) {
    const py::object tensor = make(n);
    tensors.append(tensor);
    words.push_back(reinterpret_cast<void*>(tensor.attr("_cdata").cast<uintptr_t>()));
  }
  shim.handle = Field(tensors, words);
  return shim;
}

}  // namespace polyfuse
