#include "bindings_fits.h"

#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include <optional>
#include <tuple>

#include "cpu/batch.h"
#include "cpu/stacked.h"
#include "plan.h"
#include "step.h"

namespace polyfuse {
namespace {

using Address = uintptr_t;

template <class T>
T* at(Address address) {
  return reinterpret_cast<T*>(address);
}

// Address, strides, and whether it is float64.
using SeriesTuple = std::optional<std::tuple<Address, int64_t, int64_t, bool>>;

Series series(const SeriesTuple& of) {
  if (!of) return {};
  const auto [address, sample, fit, float64] = *of;
  return {at<const void>(address), sample, fit, float64 ? Dtype::Float64 : Dtype::Float32};
}

using Array = py::array_t<double, py::array::c_style>;

Array array_of(const std::vector<double>& numbers) {
  return Array(static_cast<py::ssize_t>(numbers.size()), numbers.data());
}

}  // namespace

void bind_surface(py::module_& m) {
  py::class_<SurfaceMoments>(m, "SurfaceMoments")
      .def_readonly("square", &SurfaceMoments::square)
      .def_readonly("weight", &SurfaceMoments::weight);
}

void bind_stacked(py::module_& m) {
  py::class_<StackedMoments>(m, "StackedMoments")
      .def(
          py::init<std::vector<double>, std::vector<double>, std::vector<double>, double, double>())
      .def_readonly("square", &StackedMoments::square);
  py::class_<Stacked>(m, "Stacked")
      .def(py::init([](int n_terms, int n_outputs, double shift, double scale,
                       std::tuple<Address, Address, Address> basis) {
        const auto [alpha, beta, gamma] = basis;
        Stacked s;
        s.n_terms = n_terms;
        s.n_outputs = n_outputs;
        s.shift = shift;
        s.scale = scale;
        s.basis = {at<const double>(alpha), at<const double>(beta), at<const double>(gamma)};
        return s;
      }))
      .def("read", [](Stacked& s, const SeriesTuple& x, const SeriesTuple& y, const SeriesTuple& w,
                      Address index, int64_t index_stride, int64_t n) {
        s.x = series(x);
        s.y = series(y);
        s.w = series(w);
        s.index = at<const int64_t>(index);
        s.index_stride = index_stride;
        s.n = n;
      });
}

void bind_batch(py::module_& m) {
  const auto address = [](auto Batch::* member) {
    return [member](Batch& batch, Address value) {
      batch.*member = reinterpret_cast<std::remove_reference_t<decltype(batch.*member)>>(value);
    };
  };
  const auto of_series = [](Series Batch::* member) {
    return [member](Batch& batch, const SeriesTuple& value) { batch.*member = series(value); };
  };
  const auto unread = [](const Batch&) { return py::none(); };
  py::class_<Batch>(m, "Batch")
      .def(py::init<>())
      .def_property("x", unread, of_series(&Batch::x))
      .def_property("y", unread, of_series(&Batch::y))
      .def_property("w", unread, of_series(&Batch::w))
      .def_readwrite("n", &Batch::n)
      .def_readwrite("fits", &Batch::fits)
      .def_property("float64", unread,
                    [](Batch& b, bool yes) { b.dtype = yes ? Dtype::Float64 : Dtype::Float32; })
      .def_readwrite("omit", &Batch::omit)
      .def_readwrite("n_terms", &Batch::n_terms)
      .def_readwrite("shift", &Batch::shift)
      .def_readwrite("scale", &Batch::scale)
      .def_readwrite("mean", &Batch::mean)
      .def_readwrite("criterion", &Batch::criterion)
      .def_readwrite("solve", &Batch::solve)
      .def_property("engine", unread,
                    [](Batch& b, int engine) { b.engine = static_cast<Engine>(engine); })
      .def_property("schedule", unread,
                    [](Batch& b, std::tuple<int64_t, int64_t, int64_t, double> value) {
                      const auto [first, epochs, record_every, tol] = value;
                      b.schedule = {first, epochs, record_every, tol, 0.0, NAN};
                    })
      .def_property("rule", unread, [](Batch& b, py::handle row) { b.rule = rule_from(row); })
      .def("change", [](Batch& b, int64_t epoch,
                        py::handle row) { b.changes.push_back({epoch, rule_from(row)}); })
      .def_property("basis", unread,
                    [](Batch& b, std::tuple<Address, Address, Address> rows) {
                      const auto [alpha, beta, gamma] = rows;
                      b.basis = {at<const double>(alpha), at<const double>(beta),
                                 at<const double>(gamma)};
                    })
      .def("keep", [](Batch& b, int row, Address all) { b.kept[row] = at<void>(all); })
      .def("keep_once", [](Batch& b, int row, double value) { b.kept_once[row] = value; })
      .def("kept_after", kept_once_after)
      .def("rates",
           [](const Batch& b, int64_t epochs) {
             return Array({epochs, static_cast<int64_t>(kRates)}, rates_of(b, epochs).data());
           })
      .def("leaps",
           [](const Batch& b) {
             const OwnedDesign design = design_of(b);
             const OwnedLeaps leaps = leaps_of(b, design.view);
             const Jump* const jump = leaps.view.jump;
             return py::make_tuple(array_of(design.q), array_of(design.factor),
                                   array_of(leaps.maps), design.view.weight, design.view.rank,
                                   std::make_tuple(jump[0].epochs, jump[1].epochs, jump[2].epochs),
                                   leaps.view.at_once, leaps.view.buffer, leaps.view.decay);
           })
      .def_property("low", unread, address(&Batch::low))
      .def_property("high", unread, address(&Batch::high))
      .def_property("params", unread, address(&Batch::params))
      .def_property("grad", unread, address(&Batch::grad))
      .def_property("loss", unread, address(&Batch::loss))
      .def_property("recorded", unread, address(&Batch::recorded))
      .def_property("determination", unread, address(&Batch::determination))
      .def_property("covariance", unread, address(&Batch::covariance))
      .def_property("counted", unread, address(&Batch::counted))
      .def_property("weight_sum", unread, address(&Batch::weight_sum))
      .def_property("previous", unread, address(&Batch::previous))
      .def_property("epochs", unread, address(&Batch::epochs))
      .def_property("degree_by", unread,
                    [](Batch& b, int by) { b.degree_by = static_cast<DegreeBy>(by); })
      .def_property("degree", unread, address(&Batch::degree))
      .def_property("rank", unread, address(&Batch::rank))
      .def_property("status", unread, address(&Batch::status))
      .def("run", [](const Batch& batch, int64_t first, double seconds, int threads) {
        count_launch();
        py::gil_scoped_release release;
        return run_batch(batch, first, seconds, threads);
      });
}

}  // namespace polyfuse
