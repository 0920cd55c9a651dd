// Module _C: a table of contents. Python checks, C++ trusts.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <optional>

#include "step.h"

namespace py = pybind11;
namespace pf = polyfuse;

namespace {

using Array = py::array_t<double, py::array::c_style>;

pf::Data make_data(uintptr_t x, uintptr_t y, int64_t n, int64_t x_stride, int64_t y_stride,
                   bool float64, bool omit, double shift, double scale) {
  const pf::Dtype dtype = float64 ? pf::Dtype::Float64 : pf::Dtype::Float32;
  return {reinterpret_cast<const void*>(x),
          reinterpret_cast<const void*>(y),
          n,
          x_stride,
          y_stride,
          dtype,
          omit,
          shift,
          scale};
}

py::tuple descend(const pf::Plan& plan, const pf::Data& data, int engine,
                  std::optional<pf::Moments> moments, int64_t first_epoch, int64_t epochs,
                  int64_t record_every, double tol, double seconds, int threads, Array params,
                  Array momentum, py::array_t<bool> has_momentum, Array grad) {
  pf::Problem problem = plan.problem;
  problem.data = data;
  problem.threads = threads;
  const pf::State state{params.mutable_data(), momentum.mutable_data(), has_momentum.mutable_data(),
                        grad.mutable_data()};
  pf::Outcome out;
  pf::count_launch();
  {
    py::gil_scoped_release release;
    const auto kind = static_cast<pf::Engine>(engine);
    if (kind != pf::Engine::Stream && !moments)
      moments = pf::accumulate(data, problem.map.n_coefficients, threads);
    out = pf::descend(problem, kind, moments ? &*moments : nullptr,
                      {first_epoch, epochs, record_every, tol, seconds}, state);
  }
  Array recorded(static_cast<py::ssize_t>(out.recorded.size()), out.recorded.data());
  return py::make_tuple(out.epochs, out.converged, out.loss, recorded, moments);
}

pf::Moments accumulate(const pf::Data& data, int n_terms, int threads) {
  pf::count_launch();
  py::gil_scoped_release release;
  return pf::accumulate(data, n_terms, threads);
}

Array as_array(const double* values, py::ssize_t n) { return Array(n, values); }

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.attr("MAX_TERMS") = pf::kMaxTerms;
  m.def("isa", [] { return pf::passes().isa; });
  m.def("noop", [] {});
  m.def("launches", &pf::launches);

  py::class_<pf::Data>(m, "Data").def(py::init(&make_data));

  py::class_<pf::Plan>(m, "Plan")
      .def(py::init<int, int, py::list, double, double>())
      .def("set_rule", &pf::Plan::set_rule)
      .def_property(
          "mean", [](const pf::Plan& p) { return p.problem.mean; },
          [](pf::Plan& p, bool mean) { p.problem.mean = mean; })
      .def_property_readonly("identity", [](const pf::Plan& p) { return p.problem.map.identity; });

  py::class_<pf::Moments>(m, "Moments")
      .def_readonly("n_terms", &pf::Moments::n_terms)
      .def_readonly("shift", &pf::Moments::shift)
      .def_readonly("scale", &pf::Moments::scale)
      .def_readonly("square", &pf::Moments::square)
      .def_property_readonly("reference",
                             [](const pf::Moments& s) { return as_array(s.reference, s.n_terms); })
      .def_property_readonly(
          "power", [](const pf::Moments& s) { return as_array(s.power, 2 * s.n_terms - 1); })
      .def_property_readonly("cross",
                             [](const pf::Moments& s) { return as_array(s.cross, s.n_terms); });

  m.def("descend", &descend);
  m.def("accumulate", &accumulate);
  m.def("count_nonfinite", &pf::count_nonfinite, py::call_guard<py::gil_scoped_release>());
  m.def("evaluate", [](const pf::Data& data, Array coef, int threads, uintptr_t y) {
    pf::count_launch();
    const double* c = coef.data();
    const int n_terms = static_cast<int>(coef.size());
    py::gil_scoped_release release;
    pf::evaluate(data, c, n_terms, threads, reinterpret_cast<void*>(y));
  });
  m.def("project", [](const pf::Data& data, int n_terms, int threads) {
    pf::count_launch();
    Array out(n_terms);
    double* values = out.mutable_data();
    {
      py::gil_scoped_release release;
      pf::project(data, n_terms, threads, values);
    }
    return out;
  });

  py::class_<pf::Watch>(m, "Watch")
      .def(py::init<py::list>())
      .def("unchanged", &pf::Watch::unchanged);

  m.def("clear_grads", &pf::clear_grads);

  py::class_<pf::Step>(m, "Step")
      .def(py::init([](pf::Plan& plan, py::tuple tensors, py::list slots, bool float64,
                       py::list watched) {
             const pf::Dtype dtype = float64 ? pf::Dtype::Float64 : pf::Dtype::Float32;
             return new pf::Step(plan, tensors, slots, dtype, watched);
           }),
           py::keep_alive<1, 2>())
      .def("unchanged", &pf::Step::unchanged)
      .def("see", &pf::Step::see)
      .def("matches", &pf::Step::matches)
      .def("matches_target", &pf::Step::matches_target)
      .def("predict", &pf::Step::predict)
      .def("objective", &pf::Step::objective)
      .def("snapshot", &pf::Step::snapshot)
      .def("store", &pf::Step::store)
      .def("launch", &pf::Step::launch)
      .def("launch_moments", &pf::Step::launch_moments)
      .def("set_momentum", &pf::Step::set_momentum)
      .def("set_grads", &pf::Step::set_grads)
      .def("give_grads", &pf::Step::give_grads)
      .def("grads", &pf::Step::grads)
      .def("install", &pf::Step::install);
}
