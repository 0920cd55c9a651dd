#include "bindings_batch.h"

#include <pybind11/stl.h>

#include <optional>
#include <tuple>

#include "cpu/batch.h"
#include "plan.h"
#include "step.h"

namespace polyfuse {
namespace {

using Address = uintptr_t;

template <class T>
T* at(Address address) {
  return reinterpret_cast<T*>(address);
}

Series series(std::optional<std::tuple<Address, int64_t, int64_t, bool>> of) {
  if (!of) return {};
  const auto [address, sample, fit, float64] = *of;
  return {at<const void>(address), sample, fit, float64 ? Dtype::Float64 : Dtype::Float32};
}

}  // namespace

void bind_batch(py::module_& m) {
  const auto address = [](auto Batch::* member) {
    return [member](Batch& batch, Address value) {
      batch.*member = reinterpret_cast<std::remove_reference_t<decltype(batch.*member)>>(value);
    };
  };
  const auto of_series = [](Series Batch::* member) {
    return
        [member](Batch& batch, std::optional<std::tuple<Address, int64_t, int64_t, bool>> value) {
          batch.*member = series(value);
        };
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
                    [](Batch& b, std::tuple<int64_t, int64_t, double> value) {
                      const auto [epochs, record_every, tol] = value;
                      b.schedule = {0, epochs, record_every, tol, 0.0, NAN};
                    })
      .def_property("rule", unread, [](Batch& b, py::handle row) { b.rule = rule_from(row); })
      .def("keep",
           [](Batch& b, int row, Address all, double scalar) {
             b.kept[row] = at<void>(all);
             b.kept_scalar[row] = scalar;
           })
      .def_property("params", unread, address(&Batch::params))
      .def_property("grad", unread, address(&Batch::grad))
      .def_property("loss", unread, address(&Batch::loss))
      .def_property("recorded", unread, address(&Batch::recorded))
      .def_property("determination", unread, address(&Batch::determination))
      .def_property("covariance", unread, address(&Batch::covariance))
      .def_property("counted", unread, address(&Batch::counted))
      .def_property("epochs", unread, address(&Batch::epochs))
      .def_property("rank", unread, address(&Batch::rank))
      .def_property("status", unread, address(&Batch::status))
      .def("run", [](const Batch& batch, int64_t first, double seconds, int threads) {
        count_launch();
        py::gil_scoped_release release;
        return run_batch(batch, first, seconds, threads);
      });
}

}  // namespace polyfuse
