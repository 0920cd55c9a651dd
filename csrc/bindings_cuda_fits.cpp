#include "bindings_cuda_fits.h"

#include <pybind11/stl.h>

#include <algorithm>
#include <tuple>

#include "cuda/fits.h"

namespace py = pybind11;

namespace polyfuse {
namespace {

using Address = uintptr_t;

template <class T>
T* at(Address address) {
  return reinterpret_cast<T*>(address);
}

UpdateRule rule_of(const std::vector<double>& row) {
  UpdateRule rule;
  if (row.empty()) return rule;
  rule.method = static_cast<Method>(static_cast<int>(row[0]));
  std::copy(row.begin() + 1, row.end(), rule.option);
  return rule;
}

}  // namespace

void bind_cuda_fits(py::module_& m) {
  m.attr("MAX_FIT_TERMS") = kMaxFitTerms;
  const auto address = [](auto Fits::* member) {
    return [member](Fits& fits, Address value) {
      fits.*member = reinterpret_cast<std::remove_reference_t<decltype(fits.*member)>>(value);
    };
  };
  const auto series = [](Series Fits::* member) {
    return [member](Fits& fits, std::tuple<Address, int64_t, int64_t> value) {
      const auto [at_, sample, fit] = value;
      fits.*member = {at<const void>(at_), sample, fit, fits.dtype};
    };
  };
  const auto unread = [](const Fits&) { return py::none(); };
  py::class_<Fits>(m, "Fits", py::module_local())
      .def(py::init([](int64_t n, int64_t count, int n_terms, bool is64, bool omit, double shift,
                       double scale, int device) {
        Fits fits;
        fits.n = n;
        fits.fits = count;
        fits.n_terms = n_terms;
        fits.dtype = is64 ? Dtype::Float64 : Dtype::Float32;
        fits.omit = omit;
        fits.shift = shift;
        fits.scale = scale;
        fits.device = device;
        return fits;
      }))
      .def_property("x", unread, series(&Fits::x))
      .def_property("y", unread, series(&Fits::y))
      .def_property("w", unread, series(&Fits::w))
      .def_property("basis", unread,
                    [](Fits& fits, Address rows) {  // [3, K]
                      const double* const alpha = at<const double>(rows);
                      const int64_t k = fits.n_terms;
                      fits.basis = {alpha, alpha + k, alpha + 2 * k};
                    })
      .def_property("degree_by", unread,
                    [](Fits& fits, int by) { fits.degree_by = static_cast<DegreeBy>(by); })
      .def_property("engine", unread,
                    [](Fits& fits, int engine) { fits.engine = static_cast<Engine>(engine); })
      .def_property(
          "criterion", unread,
          [](Fits& fits, Address criterion) { fits.criterion = *at<const Criterion>(criterion); })
      .def_readwrite("mean", &Fits::mean)
      .def_readwrite("step", &Fits::step)
      .def_property("schedule", unread,
                    [](Fits& fits, std::tuple<int64_t, int64_t, int64_t, double> value) {
                      const auto [first, epochs, record_every, tol] = value;
                      fits.schedule = {first, epochs, record_every, tol, 0.0, NAN};
                    })
      .def_readwrite("wide", &Fits::wide)
      .def_property("rule", unread,
                    [](Fits& fits, const std::vector<double>& row) { fits.rule = rule_of(row); })
      .def("keep",
           [](Fits& fits, int row, Address from, Address to) {
             fits.kept_from[row] = at<const void>(from);
             fits.kept[row] = at<void>(to);
           })
      .def("pace",
           [](Fits& fits, Address rates, int64_t paced) {
             fits.rates = at<const double>(rates);
             fits.paced = paced;
           })
      .def("follow",
           [](Fits& fits, Address changes, Address rules) {
             fits.changes = at<const int64_t>(changes);
             fits.rules = at<const double>(rules);
           })
      .def(
          "leap",
          [](Fits& fits, Address q, Address factor, Address maps, double weight, double rank,
             std::tuple<int64_t, int64_t, int64_t> lengths, bool at_once, bool buffer, bool decay) {
            fits.design = {at<const double>(q), at<const double>(factor), weight,
                           static_cast<int32_t>(rank)};
            const auto [first, between, last] = lengths;
            const double* const map = at<const double>(maps);
            const int64_t size = 6 * fits.n_terms * fits.n_terms;
            const bool moves = fits.rule.method != Method::None;
            const auto jump = [&](int64_t epochs, int64_t i) {
              return Jump{epochs, moves ? map + i * size : nullptr, true};
            };
            fits.leaps = {
                {jump(first, 0), jump(between, 1), jump(last, 2)}, at_once, buffer, decay};
          })
      .def_property("low", unread, address(&Fits::low))
      .def_property("high", unread, address(&Fits::high))
      .def_property("start", unread, address(&Fits::start))
      .def_property("params", unread, address(&Fits::params))
      .def_property("before", unread, address(&Fits::before))
      .def_property("grad", unread, address(&Fits::grad))
      .def_property("loss", unread, address(&Fits::loss))
      .def_property("recorded", unread, address(&Fits::recorded))
      .def_property("determination", unread, address(&Fits::determination))
      .def_property("covariance", unread, address(&Fits::covariance))
      .def_property("counted", unread, address(&Fits::counted))
      .def_property("weight_sum", unread, address(&Fits::weight_sum))
      .def_property("previous", unread, address(&Fits::previous))
      .def_property("epochs", unread, address(&Fits::epochs))
      .def_property("degree", unread, address(&Fits::degree))
      .def_property("rank", unread, address(&Fits::rank))
      .def_property("status", unread, address(&Fits::status))
      .def_readonly("on_chip", &Fits::on_chip)
      .def_readonly("alike", &Fits::alike)
      .def_readwrite("grid", &Fits::grid)
      .def("lay_out", &lay_out, py::arg("solve"), py::arg("device"))
      .def("solve",
           [](const Fits& fits, Address stream) { launch_solve_fits(fits, at<void>(stream)); })
      .def("descend", [](const Fits& fits, Address stream) {
        const bool leaps = fits.engine == Engine::ClosedForm;
        (leaps ? launch_leap_fits : launch_descend_fits)(fits, at<void>(stream));
      });
}

}  // namespace polyfuse
