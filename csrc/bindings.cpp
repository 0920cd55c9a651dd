// Module _C: a table of contents. Python checks, C++ trusts.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cmath>
#include <optional>
#include <utility>

#include "bindings_fits.h"
#include "bindings_solve.h"
#include "loop.h"

namespace py = pybind11;
namespace pf = polyfuse;

namespace {

using Array = py::array_t<double, py::array::c_style>;

pf::Data make_data(uintptr_t x, uintptr_t y, uintptr_t w, int64_t n, int64_t x_stride,
                   int64_t y_stride, int64_t w_stride, bool float64, bool omit, double shift,
                   double scale, int64_t x_column) {
  const pf::Dtype dtype = float64 ? pf::Dtype::Float64 : pf::Dtype::Float32;
  return {reinterpret_cast<const void*>(x),
          reinterpret_cast<const void*>(y),
          reinterpret_cast<const void*>(w),
          n,
          x_stride,
          y_stride,
          w_stride,
          dtype,
          omit,
          shift,
          scale,
          x_column};
}

pf::Moments moments_of(const pf::Problem& problem, const pf::Moments*) {
  return pf::accumulate(problem.data, problem.map.n_coefficients, problem.threads);
}
pf::SurfaceMoments moments_of(const pf::Problem& problem, const pf::SurfaceMoments*) {
  return pf::accumulate(pf::surface_of(problem), problem.threads);
}
pf::StackedMoments moments_of(const pf::Problem& problem, const pf::StackedMoments*) {
  return pf::accumulate(pf::stacked_of(problem), problem.threads);
}

template <class Moments>
py::tuple descend(const pf::Plan& plan, const pf::Data& data, int engine,
                  std::optional<Moments> moments, int64_t first_epoch, int64_t epochs,
                  int64_t record_every, double tol, double seconds, double previous, int threads,
                  Array params, Array kept, Array grad,
                  const std::optional<std::pair<Array, Array>>& bounds) {
  pf::Problem problem = plan.problem;
  problem.data = data;
  problem.threads = threads;
  pf::State state{params.mutable_data(), kept.mutable_data(), grad.mutable_data()};
  if (bounds) state.low = bounds->first.data(), state.high = bounds->second.data();
  pf::Report out;
  pf::count_launch();
  {
    py::gil_scoped_release release;
    const auto kind = static_cast<pf::Engine>(engine);
    const Moments* known = moments ? &*moments : nullptr;
    if (kind != pf::Engine::Stream && !moments)
      known = &moments.emplace(moments_of(problem, known));
    out = pf::descend(problem, kind, known,
                      {first_epoch, epochs, record_every, tol, seconds, previous}, state);
  }
  Array recorded(static_cast<py::ssize_t>(out.recorded.size()), out.recorded.data());
  return py::make_tuple(out.epochs, out.converged, out.loss, recorded, moments, out.previous);
}

py::tuple loss_and_gradient(const pf::Plan& plan, const pf::Data& data, const Array& params,
                            int threads) {
  pf::Problem problem = plan.problem;
  problem.data = data;
  problem.threads = threads;
  Array grad(params.size());
  const double* at = params.data();
  double* into = grad.mutable_data();
  double loss;
  pf::count_launch();
  {
    py::gil_scoped_release release;
    loss = pf::objective(problem, nullptr, at, into);
  }
  return py::make_tuple(loss, grad);
}

pf::Moments accumulate_powers(const pf::Data& data, int n_terms, int threads) {
  pf::count_launch();
  py::gil_scoped_release release;
  return pf::accumulate(data, n_terms, threads);
}

// Of several variables; one polynomial, or several side by side.
template <class Moments>
Moments accumulate(const pf::Plan& plan, const pf::Data& data, int threads) {
  pf::Problem problem = plan.problem;
  problem.data = data;
  problem.threads = threads;
  pf::count_launch();
  py::gil_scoped_release release;
  return moments_of(problem, static_cast<const Moments*>(nullptr));
}

// Python's garbage collector is told what T holds.
template <class T>
py::custom_type_setup collected() {
  return py::custom_type_setup([](PyHeapTypeObject* heap) {
    heap->ht_type.tp_flags |= Py_TPFLAGS_HAVE_GC;
    heap->ht_type.tp_traverse = [](PyObject* self, visitproc visit, void* arg) {
      Py_VISIT(Py_TYPE(self));
      if (!py::detail::is_holder_constructed(self)) return 0;
      return py::cast<const T&>(py::handle(self)).visit(visit, arg);
    };
    heap->ht_type.tp_clear = [](PyObject* self) {
      if (py::detail::is_holder_constructed(self)) py::cast<T&>(py::handle(self)).clear();
      return 0;
    };
  });
}

Array as_array(const double* values, py::ssize_t n) { return Array(n, values); }

}  // namespace

PYBIND11_MODULE(_C, m) {
  pf::Torch::find();
  pf::passes();
  m.def("isa", [] { return pf::passes().isa; });
  m.def("noop", [] {});
  m.def("launches", &pf::launches);
  m.def("use_shim", &pf::Torch::use_shim);

  py::class_<pf::Data>(m, "Data").def(py::init(&make_data));

  py::class_<pf::Criterion>(m, "Criterion")
      .def(py::init([](int kind, double weight, double beta, double delta, double pos_weight,
                       double eps, double variance, bool log_input, bool full, bool log_target,
                       bool per_row, uintptr_t class_weight, int64_t ignore, double smoothing) {
             return pf::Criterion{static_cast<pf::CriterionKind>(kind),
                                  weight,
                                  beta,
                                  delta,
                                  pos_weight,
                                  eps,
                                  variance,
                                  std::log(variance),
                                  log_input,
                                  full,
                                  log_target,
                                  per_row,
                                  reinterpret_cast<const double*>(class_weight),
                                  ignore,
                                  smoothing};
           }),
           py::arg("kind"), py::kw_only(), py::arg("weight") = 1.0, py::arg("beta") = 1.0,
           py::arg("delta") = 1.0, py::arg("pos_weight") = 1.0, py::arg("eps") = 0.0,
           py::arg("variance") = 1.0, py::arg("log_input") = true, py::arg("full") = false,
           py::arg("log_target") = false, py::arg("per_row") = false, py::arg("class_weight") = 0,
           py::arg("ignore") = -100, py::arg("smoothing") = 0.0)
      .def_readonly("per_row", &pf::Criterion::per_row)
      .def_property_readonly("address", [](const pf::Criterion& criterion) {
        return reinterpret_cast<uintptr_t>(&criterion);
      });

  py::class_<pf::Plan>(m, "Plan")
      .def(py::init<int, int, py::list, double, double, py::object>())
      .def("set_rule", &pf::Plan::set_rule)
      .def("set_stacked", &pf::Plan::set_stacked)
      .def("set_changes", &pf::Plan::set_changes)
      .def_property(
          "criterion", [](const pf::Plan& p) { return p.problem.criterion; },
          [](pf::Plan& p, const pf::Criterion& criterion) { p.problem.criterion = criterion; })
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

  m.def("descend", &descend<pf::Moments>);
  m.def("descend_surface", &descend<pf::SurfaceMoments>);
  m.def("descend_stacked", &descend<pf::StackedMoments>);
  m.def("loss_and_gradient", &loss_and_gradient);
  m.def("accumulate", &accumulate_powers);
  m.def("accumulate_surface", &accumulate<pf::SurfaceMoments>);
  m.def("accumulate_stacked", &accumulate<pf::StackedMoments>);
  m.def("count_nonfinite", &pf::count_nonfinite, py::call_guard<py::gil_scoped_release>());
  m.def("evaluate", [](const pf::Data& data, const Array& coef, int threads, uintptr_t y) {
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

  pf::bind_batch(m);
  pf::bind_surface(m);
  pf::bind_stacked(m);
  pf::bind_solve(m);

  m.def("generation", &pf::generation);
  m.def("next_generation", &pf::next_generation);
  m.def("promise", &pf::promise);
  m.def("end_promise", &pf::end_promise);
  m.def("clear_grads", [](py::handle groups) { return pf::clear_grads(groups.ptr()); });

  py::class_<pf::Forward>(m, "Forward", collected<pf::Forward>())
      .def(py::init<size_t>())
      .def_property_readonly("params",
                             [](const pf::Forward& f) {
                               return as_array(f.params.data(),
                                               static_cast<py::ssize_t>(f.params.size()));
                             })
      .def_readonly("x", &pf::Forward::x)
      .def_readonly("x_version", &pf::Forward::x_version)
      .def_readonly("plain", &pf::Forward::plain)
      .def("show", &pf::Forward::show)
      .def_readwrite("real", &pf::Forward::real)
      .def_readwrite("freed", &pf::Forward::freed)
      .def("start", &pf::Forward::start)
      .def("untouched", &pf::Forward::untouched)
      .def("plain_changed", &pf::Forward::plain_changed);

  py::class_<pf::Objective>(m, "Objective", collected<pf::Objective>())
      .def(py::init([](const py::object& forward, py::object y, long y_version,
                       py::object criterion, bool mean, const py::object& weight) {
             auto objective = std::make_unique<pf::Objective>();
             objective->forward_object = forward;
             objective->forward = forward.cast<pf::Forward*>();
             objective->y = std::move(y);
             objective->y_version = y_version;
             objective->criterion = criterion.cast<const pf::Criterion&>();
             objective->weighted_mean = !weight.is_none();
             objective->take_weight(weight.is_none() ? criterion.attr("samples") : weight);
             objective->criterion_object = std::move(criterion);
             objective->mean = mean;
             return objective;
           }),
           py::arg("forward"), py::arg("y"), py::arg("y_version"), py::arg("criterion"),
           py::arg("mean"), py::arg("weight") = py::none())
      .def_readonly("weighted_mean", &pf::Objective::weighted_mean)
      .def_readonly("forward", &pf::Objective::forward_object)
      .def_readonly("y", &pf::Objective::y)
      .def_readonly("y_version", &pf::Objective::y_version)
      .def_readonly("weight_version", &pf::Objective::weight_version)
      .def_readonly("criterion", &pf::Objective::criterion_object)
      .def_readonly("mean", &pf::Objective::mean)
      .def_readonly("weight", &pf::Objective::weight)
      .def_readonly("number", &pf::Objective::value)
      .def_readwrite("real", &pf::Objective::real)
      .def_readwrite("freed", &pf::Objective::freed);

  py::class_<pf::Loop>(m, "Loop", collected<pf::Loop>())
      .def(py::init([](pf::Plan& plan, const py::tuple& tensors, const py::list& stretches,
                       bool float64, const py::list& watched,
                       std::optional<std::vector<int64_t>> of_y) {
             const pf::Dtype dtype = float64 ? pf::Dtype::Float64 : pf::Dtype::Float32;
             return new pf::Loop(plan, tensors, stretches, dtype, watched, std::move(of_y));
           }),
           py::keep_alive<1, 2>())
      .def("unchanged", &pf::Loop::unchanged)
      .def("as_trainable", &pf::Loop::as_trainable)
      .def("snapshot",
           [](const pf::Loop& loop, py::ssize_t n_params) {
             Array params(n_params);
             loop.snapshot(params.mutable_data());
             return params;
           })
      .def("unchanged_since", &pf::Loop::unchanged_since)
      .def("store", &pf::Loop::store)
      .def("see", &pf::Loop::see)
      .def("sees", [](const pf::Loop& loop, py::handle x) { return loop.sees(x.ptr()); })
      .def("sees_target",
           [](const pf::Loop& loop, py::handle y) { return loop.sees_target(y.ptr()); })
      .def("settle", &pf::Loop::settle)
      .def("bind", &pf::Loop::bind, py::arg("owner"), py::kw_only(), py::arg("found"),
           py::arg("watched") = py::list(), py::arg("held") = py::list(),
           py::arg("kept") = py::list(), py::arg("updates") = false,
           py::arg("covers_owner") = false)
      .def("bound_to",
           [](const pf::Loop& loop, py::handle owner) {
             return loop.bound_to(owner.is_none() ? nullptr : owner.ptr());
           })
      .def("launch", &pf::Loop::launch)
      .def("holds", &pf::Loop::holds)
      .def("grads", &pf::Loop::grads)
      .def("set_grads", &pf::Loop::set_grads)
      .def("give_grads", &pf::Loop::give_grads)
      .def("exchange", &pf::Loop::exchange)
      .def("replace_grads", &pf::Loop::replace_grads)
      .def("install", [](pf::Loop& loop, py::handle owner) { return loop.install(owner.ptr()); })
      .def_property_readonly("trained", &pf::Loop::trained)
      .def_property_readonly("covers_owner", &pf::Loop::covers_owner)
      .def("begin", &pf::Loop::begin)
      .def("pool_prediction",
           [](const py::object& self, py::object wrapper, const py::object& record) {
             self.cast<pf::Loop&>().pool_prediction(self, std::move(wrapper), record);
           })
      .def("pool_loss",
           [](const py::object& self, py::object wrapper, const py::object& record) {
             self.cast<pf::Loop&>().pool_loss(self, std::move(wrapper), record);
           })
      .def("sees_criterion",
           [](const pf::Loop& loop, py::handle c) { return loop.sees_criterion(c.ptr()); })
      .def("see_criterion", &pf::Loop::see_criterion)
      .def("offer", [](const py::object& self) { self.cast<const pf::Loop&>().offer(self); });

  py::class_<pf::Watch>(m, "Watch", collected<pf::Watch>())
      .def(py::init<const py::list&>())
      .def("unchanged", &pf::Watch::unchanged);

  m.def("advance", &pf::kept_after);
  m.def("show_to_compilers", &pf::show_to_compilers);
  m.def("unpool", &pf::Loop::unpool);
  m.def("declare_module", &pf::Loop::declare_module);
  m.def("declare_optimizer", &pf::Loop::declare_optimizer);

  m.def("fast", [](const std::string& name) {
    return py::cpp_function(
        [name](py::object method) { return pf::Loop::fast(name, std::move(method)); });
  });
}
