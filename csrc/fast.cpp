#include "fast.h"

#include <structmember.h>

#include <cstddef>

namespace polyfuse {
namespace {

struct Fast {
  PyObject_HEAD vectorcallfunc call;
  Answer answer;
  PyObject* method;
  PyObject* dict;  // torch.compile looks for one
};

PyObject* call(PyObject* self, PyObject* const* args, size_t n_args_flag, PyObject* names) {
  const auto* fast = reinterpret_cast<Fast*>(self);
  if (!names) {
    try {
      PyObject* result = fast->answer(args, static_cast<size_t>(PyVectorcall_NARGS(n_args_flag)));
      if (result || PyErr_Occurred()) return result;
    } catch (py::error_already_set& error) {
      error.restore();
      return nullptr;
    } catch (const std::exception& error) {
      PyErr_SetString(PyExc_RuntimeError, error.what());
      return nullptr;
    }
  }
  return PyObject_Vectorcall(fast->method, args, n_args_flag, names);
}

PyObject* bind(PyObject* self, PyObject* instance, PyObject*) {
  return instance ? PyMethod_New(self, instance) : Py_NewRef(self);
}

PyObject* get_attribute(PyObject* self, PyObject* name) {
  for (const char* own : {"__class__", "__dict__", "__wrapped__", "__get__", "__call__"})
    if (PyUnicode_CompareWithASCIIString(name, own) == 0)
      return PyObject_GenericGetAttr(self, name);
  return PyObject_GetAttr(reinterpret_cast<Fast*>(self)->method, name);
}

int set_attribute(PyObject* self, PyObject* name, PyObject* value) {
  return PyObject_SetAttr(reinterpret_cast<Fast*>(self)->method, name, value);
}

int traverse(PyObject* self, visitproc visit, void* arg) {
  Py_VISIT(Py_TYPE(self));
  Py_VISIT(reinterpret_cast<Fast*>(self)->method);
  Py_VISIT(reinterpret_cast<Fast*>(self)->dict);
  return 0;
}

int clear(PyObject* self) {
  Py_CLEAR(reinterpret_cast<Fast*>(self)->method);
  Py_CLEAR(reinterpret_cast<Fast*>(self)->dict);
  return 0;
}

void dealloc(PyObject* self) {
  PyTypeObject* type = Py_TYPE(self);
  PyObject_GC_UnTrack(self);
  clear(self);
  type->tp_free(self);
  Py_DECREF(type);
}

PyObject* make_type() {
  static PyMemberDef members[] = {
      {"__vectorcalloffset__", T_PYSSIZET, offsetof(Fast, call), READONLY, nullptr},
      {"__dictoffset__", T_PYSSIZET, offsetof(Fast, dict), READONLY, nullptr},
      {"__wrapped__", T_OBJECT, offsetof(Fast, method), READONLY, nullptr},
      {nullptr, 0, 0, 0, nullptr}};
  static PyGetSetDef computed[] = {
      {"__dict__", PyObject_GenericGetDict, PyObject_GenericSetDict, nullptr, nullptr},
      {nullptr, nullptr, nullptr, nullptr, nullptr}};
  static PyType_Slot slots[] = {{Py_tp_call, reinterpret_cast<void*>(PyVectorcall_Call)},
                                {Py_tp_descr_get, reinterpret_cast<void*>(bind)},
                                {Py_tp_getattro, reinterpret_cast<void*>(get_attribute)},
                                {Py_tp_setattro, reinterpret_cast<void*>(set_attribute)},
                                {Py_tp_traverse, reinterpret_cast<void*>(traverse)},
                                {Py_tp_clear, reinterpret_cast<void*>(clear)},
                                {Py_tp_dealloc, reinterpret_cast<void*>(dealloc)},
                                {Py_tp_members, members},
                                {Py_tp_getset, computed},
                                {0, nullptr}};
  static PyType_Spec spec = {"polyfuse._C.Fast", sizeof(Fast), 0,
                             Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_HAVE_VECTORCALL |
                                 Py_TPFLAGS_METHOD_DESCRIPTOR,
                             slots};
  return PyType_FromSpec(&spec);
}

PyObject* fast_type() {
  static PyObject* type = make_type();
  if (!type) throw py::error_already_set();
  return type;
}

}  // namespace

void show_to_compilers(const py::object& call, const py::object& get) {
  auto* type = reinterpret_cast<PyTypeObject*>(fast_type());
  if (PyDict_SetItemString(type->tp_dict, "__call__", call.ptr()) < 0 ||
      PyDict_SetItemString(type->tp_dict, "__get__", get.ptr()) < 0)
    throw py::error_already_set();
  PyType_Modified(type);
}

py::object make_fast(Answer answer, py::object method) {
  PyObject* type = fast_type();
  auto* fast = PyObject_GC_New(Fast, reinterpret_cast<PyTypeObject*>(type));
  if (!fast) throw py::error_already_set();
  fast->call = call;
  fast->answer = answer;
  fast->method = method.release().ptr();
  fast->dict = nullptr;
  PyObject_GC_Track(fast);
  return py::reinterpret_steal<py::object>(reinterpret_cast<PyObject*>(fast));
}

}  // namespace polyfuse
