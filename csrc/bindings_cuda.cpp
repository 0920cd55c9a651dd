// Module _cuda: a table of contents. Python checks, C++ trusts.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "bindings_cuda_fits.h"
#include "cuda/launch.h"
#include "cuda/surface.h"

namespace py = pybind11;
namespace pf = polyfuse;

namespace {

template <class T>
T* at(uintptr_t address) {
  return reinterpret_cast<T*>(address);
}

template <class Told, void (*launch)(const Told&, void*)>
void launch_on(const Told& run, uintptr_t stream) {
  launch(run, reinterpret_cast<void*>(stream));
}

}  // namespace

PYBIND11_MODULE(_cuda, m) {
  m.attr("MAX_TERMS") = pf::kMaxTerms;
  m.attr("MAX_PARAMS") = pf::kMaxParams;
  m.attr("HEADER") = pf::kHeader;
  m.attr("LOAD") = static_cast<int>(pf::kLoad);
  m.attr("STORE") = static_cast<int>(pf::kStore);
  m.attr("STEP") = static_cast<int>(pf::kStep);
  m.attr("MOMENTS") = static_cast<int>(pf::kMoments);

  py::class_<pf::Data>(m, "Data", py::module_local())
      .def(py::init([](uintptr_t x, uintptr_t y, uintptr_t w, int64_t n, int64_t x_stride,
                       int64_t y_stride, int64_t w_stride, bool is64, bool omit, double shift,
                       double scale) {
        return pf::Data{at<void>(x), at<void>(y),     at<void>(w), n,     x_stride, y_stride,
                        w_stride,    pf::Dtype(is64), omit,        shift, scale};
      }))
      .def_readonly("n", &pf::Data::n)
      .def_property_readonly("dtype", [](const pf::Data& d) { return static_cast<int>(d.dtype); })
      .def_property_readonly("weighted", [](const pf::Data& d) { return d.w != nullptr; });

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

  py::class_<pf::Run>(m, "Run", py::module_local())
      .def(py::init([](const pf::Data& data, uintptr_t criterion, bool mean, int engine,
                       const pf::Schedule& schedule, int flags, int n_params, int n_coefficients,
                       int n_terms, int n_slots, bool identity, uintptr_t factor, uintptr_t spans,
                       uintptr_t slots, uintptr_t rule, uintptr_t changes, uintptr_t bounds,
                       uintptr_t state, uintptr_t moments, bool has_moments, uintptr_t tables,
                       int single, uintptr_t out, uintptr_t workspace, int device,
                       const pf::Geometry& grid) {
        pf::Run run;
        run.data = data;
        run.criterion = *at<const pf::Criterion>(criterion);
        run.mean = mean;
        run.engine = static_cast<pf::Engine>(engine);
        run.schedule = schedule;
        run.flags = flags;
        run.n_params = n_params;
        run.n_coefficients = n_coefficients;
        run.n_terms = n_terms;
        run.n_slots = n_slots;
        run.identity = identity;
        run.factor = at<const double>(factor);
        run.spans = at<const pf::Span>(spans);
        run.slots = at<const int32_t>(slots);
        run.rule = at<const double>(rule);
        run.changes = at<const int64_t>(changes);
        run.bounds = at<const double>(bounds);
        run.state = at<double>(state);
        run.moments = at<double>(moments);
        run.has_moments = has_moments;
        run.tables = at<const int64_t>(tables);
        run.single = single;
        run.out = at<void>(out);
        run.workspace = at<void>(workspace);
        run.device = device;
        run.grid = grid;
        return run;
      }))
      .def("set_outputs",
           [](pf::Run& run, int n_outputs, int64_t y_output, int64_t w_output) {
             run.n_outputs = n_outputs;
             run.y_output = y_output;
             run.w_output = w_output;
           })
      .def("set_classes",
           [](pf::Run& run, bool index, uintptr_t weight) {
             run.index = index;
             run.criterion.class_weight = at<const double>(weight);
           })
      .def("set_basis", [](pf::Run& run, uintptr_t alpha, uintptr_t beta, uintptr_t gamma) {
        run.basis = {at<const double>(alpha), at<const double>(beta), at<const double>(gamma)};
      });

  py::class_<pf::SurfaceRun>(m, "SurfaceRun", py::module_local())
      .def(py::init([](const pf::Run& run, int n_variables, int64_t x_column, uintptr_t variable,
                       uintptr_t frame, int depth, int columns, int one) {
        pf::SurfaceRun surface;
        static_cast<pf::Run&>(surface) = run;
        surface.data.x_column = x_column;
        surface.n_variables = n_variables;
        surface.factors = {at<const int32_t>(variable), at<const double>(frame), depth, columns,
                           one};
        return surface;
      }));

  m.def("surface_step", &launch_on<pf::SurfaceRun, pf::launch_surface_step>);
  m.def("surface_stream", &launch_on<pf::SurfaceRun, pf::launch_surface_stream>);
  m.def("surface_moments", &launch_on<pf::SurfaceRun, pf::launch_surface_moments>);
  m.def("step", &launch_on<pf::Run, pf::launch_step>);
  m.def("stream", &launch_on<pf::Run, pf::launch_stream>);
  m.def("classes", &launch_on<pf::Run, pf::launch_classes>);
  m.def("moments", &launch_on<pf::Run, pf::launch_moments>);
  m.def("evaluate", &launch_on<pf::Run, pf::launch_evaluate>);
  m.def("project", &launch_on<pf::Run, pf::launch_project>);
  m.def("count_nonfinite", &launch_on<pf::Run, pf::launch_count_nonfinite>);
  m.def("update", &launch_on<pf::Run, pf::launch_update>);
  m.def("store", &launch_on<pf::Run, pf::launch_store>);

  py::class_<pf::Device>(m, "Device", py::module_local())
      .def(py::init<int32_t, int64_t>())
      .def_readonly("processors", &pf::Device::processors)
      .def_readonly("shared", &pf::Device::shared);
  pf::bind_cuda_fits(m);
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
  m.def("surface_geometry", [](const std::string& kernel, int64_t n, int columns, int outputs,
                               int n_params, bool closed, const pf::Device& device) {
    return pf::surface_geometry(pf::kernel_named(kernel), n, columns, outputs, n_params, closed,
                                device);
  });
  m.def("surface_workspace_bytes", &pf::surface_workspace_bytes);
  m.def("surface_width", &pf::surface_width);
  m.def("epochs_within", [](double seconds, int engine, int64_t n, int dtype, int n_terms,
                            bool elementary, const pf::Device& device) {
    return pf::epochs_within(seconds, static_cast<pf::Engine>(engine), n,
                             static_cast<pf::Dtype>(dtype), n_terms, elementary, device);
  });
}
