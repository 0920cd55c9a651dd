// Module _cuda: a table of contents. Python checks, C++ trusts.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "cuda/launch.h"

namespace py = pybind11;
namespace pf = polyfuse;

namespace {

// A property of Owner that Python sees as an int: an address.
template <class Owner, class T>
void def_address(py::class_<Owner>& type, const char* name, T Owner::* member) {
  type.def_property(
      name, [member](const Owner& o) { return reinterpret_cast<uintptr_t>(o.*member); },
      [member](Owner& o, uintptr_t address) { o.*member = reinterpret_cast<T>(address); });
}

template <class Owner, class T>
void def_tag(py::class_<Owner>& type, const char* name, T Owner::* member) {
  type.def_property(
      name, [member](const Owner& o) { return static_cast<int>(o.*member); },
      [member](Owner& o, int tag) { o.*member = static_cast<T>(tag); });
}

using Launch = void (*)(const pf::Run&, void*);

template <Launch launch>
void launch_on(const pf::Run& run, uintptr_t stream) {
  launch(run, reinterpret_cast<void*>(stream));
}

}  // namespace

PYBIND11_MODULE(_cuda, m) {
  m.attr("MAX_TERMS") = pf::kMaxTerms;
  m.attr("MAX_PARAMS") = pf::kMaxParams;
  m.attr("LOAD") = static_cast<int>(pf::kLoad);
  m.attr("STORE") = static_cast<int>(pf::kStore);
  m.attr("STEP") = static_cast<int>(pf::kStep);
  m.attr("MOMENTS") = static_cast<int>(pf::kMoments);

  py::class_<pf::Data> data(m, "Data", py::module_local());
  data.def(py::init<>())
      .def_readwrite("n", &pf::Data::n)
      .def_readwrite("x_stride", &pf::Data::x_stride)
      .def_readwrite("y_stride", &pf::Data::y_stride)
      .def_readwrite("w_stride", &pf::Data::w_stride)
      .def_readwrite("omit", &pf::Data::omit)
      .def_readwrite("shift", &pf::Data::shift)
      .def_readwrite("scale", &pf::Data::scale);
  def_address(data, "x", &pf::Data::x);
  def_address(data, "y", &pf::Data::y);
  def_address(data, "w", &pf::Data::w);
  def_tag(data, "dtype", &pf::Data::dtype);

  py::class_<pf::Schedule>(m, "Schedule", py::module_local())
      .def(py::init([](int64_t first_epoch, int64_t epochs, int64_t record_every, double tol,
                       double previous) {
        return pf::Schedule{first_epoch, epochs, record_every, tol, 0.0, previous};
      }));

  py::class_<pf::Geometry>(m, "Geometry", py::module_local())
      .def(py::init<>())
      .def_readwrite("blocks", &pf::Geometry::blocks)
      .def_readwrite("threads", &pf::Geometry::threads)
      .def_readwrite("shared", &pf::Geometry::shared)
      .def_readwrite("chunk", &pf::Geometry::chunk)
      .def_readwrite("resident", &pf::Geometry::resident)
      .def_readwrite("cooperative", &pf::Geometry::cooperative);

  py::class_<pf::Run> run(m, "Run", py::module_local());
  run.def(py::init<>())
      .def_readwrite("data", &pf::Run::data)
      .def_readwrite("mean", &pf::Run::mean)
      .def_readwrite("schedule", &pf::Run::schedule)
      .def_readwrite("flags", &pf::Run::flags)
      .def_readwrite("single", &pf::Run::single)
      .def_readwrite("n_params", &pf::Run::n_params)
      .def_readwrite("n_coefficients", &pf::Run::n_coefficients)
      .def_readwrite("n_terms", &pf::Run::n_terms)
      .def_readwrite("n_slots", &pf::Run::n_slots)
      .def_readwrite("identity", &pf::Run::identity)
      .def_readwrite("has_moments", &pf::Run::has_moments)
      .def_readwrite("device", &pf::Run::device)
      .def_readwrite("grid", &pf::Run::grid)
      .def("set_criterion", [](pf::Run& run, uintptr_t address) {
        run.criterion = *reinterpret_cast<const pf::Criterion*>(address);
      });
  def_tag(run, "engine", &pf::Run::engine);
  def_address(run, "factor", &pf::Run::factor);
  def_address(run, "spans", &pf::Run::spans);
  def_address(run, "slots", &pf::Run::slots);
  def_address(run, "rule", &pf::Run::rule);
  def_address(run, "changes", &pf::Run::changes);
  def_address(run, "state", &pf::Run::state);
  def_address(run, "moments", &pf::Run::moments);
  def_address(run, "tables", &pf::Run::tables);
  def_address(run, "out", &pf::Run::out);
  def_address(run, "workspace", &pf::Run::workspace);

  m.def("step", &launch_on<pf::launch_step>);
  m.def("stream", &launch_on<pf::launch_stream>);
  m.def("moments", &launch_on<pf::launch_moments>);
  m.def("evaluate", &launch_on<pf::launch_evaluate>);
  m.def("project", &launch_on<pf::launch_project>);
  m.def("count_nonfinite", &launch_on<pf::launch_count_nonfinite>);
  m.def("update", &launch_on<pf::launch_update>);
  m.def("store", &launch_on<pf::launch_store>);

  py::class_<pf::Device>(m, "Device", py::module_local())
      .def(py::init<int32_t, int64_t>())
      .def_readonly("processors", &pf::Device::processors)
      .def_readonly("shared", &pf::Device::shared);
  m.def("device", &pf::device);
  m.def("missing", &pf::missing);
  m.def("kernels", &pf::kernels);
  m.def("workspace_bytes", &pf::workspace_bytes);
  m.def(
      "geometry",
      [](const std::string& kernel, int64_t n, int dtype, int n_terms, int n_params,
         const pf::Device& device, bool weighted) {
        return pf::geometry(pf::kernel_named(kernel), n, static_cast<pf::Dtype>(dtype), n_terms,
                            n_params, device, weighted);
      },
      py::arg("kernel"), py::arg("n"), py::arg("dtype"), py::arg("n_terms"), py::arg("n_params"),
      py::arg("device"), py::arg("weighted") = false);
  m.def("epochs_within", [](double seconds, int engine, int64_t n, int dtype, int n_terms,
                            const pf::Device& device) {
    return pf::epochs_within(seconds, static_cast<pf::Engine>(engine), n,
                             static_cast<pf::Dtype>(dtype), n_terms, device);
  });
}
