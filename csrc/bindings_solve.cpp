// The exact solutions in module _C.
#include "bindings_solve.h"

#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include <cmath>
#include <optional>

#include "cpu/least_squares.h"
#include "loop.h"

namespace py = pybind11;

namespace polyfuse {
namespace {

using Array = py::array_t<double, py::array::c_style>;

Array array_of(const std::vector<double>& values, py::ssize_t rows, py::ssize_t columns) {
  return values.empty() ? Array() : Array({rows, columns}, values.data());
}

NormalEquations of_power_sums(double shift, double scale, const Array& reference,
                              const Array& power, const Array& cross, double square,
                              const Variable& variable) {
  Moments m;
  m.n_terms = static_cast<int>(reference.size());
  m.shift = shift;
  m.scale = scale;
  std::copy_n(reference.data(), m.n_terms, m.reference);
  std::copy_n(power.data(), 2 * m.n_terms - 1, m.power);
  std::copy_n(cross.data(), m.n_terms, m.cross);
  m.square = square;
  return of_moments(m, variable);
}

// x [K, N], y [N], w [N], shift [K]. known: whose terms and reference to take.
NormalEquations of_columns(const Array& x, const Array& y, const std::optional<Array>& w,
                           const Array& shift, bool with_constant, const NormalEquations* known,
                           int threads) {
  const Columns data{x.data(),     y.data(), w ? w->data() : nullptr,
                     shift.data(), y.size(), static_cast<int>(shift.size())};
  count_launch();
  py::gil_scoped_release release;
  return known ? accumulate_like(*known, data, threads) : accumulate(data, with_constant, threads);
}

NormalEquations of_data(const Data& data, int n_terms, bool precise, const Variable& variable,
                        const NormalEquations* known, int threads) {
  count_launch();
  py::gil_scoped_release release;
  return known ? accumulate_like(*known, data, threads)
               : accumulate(data, n_terms, precise, variable, threads);
}

// hi and lo: [rows, columns, 2]
Array array_of(const Matrix& a) {
  return Array({py::ssize_t(a.rows), py::ssize_t(a.columns), py::ssize_t(2)},
               reinterpret_cast<const double*>(a.entries.data()));
}
Matrix matrix_of(const py::handle& from) {
  const auto values = from.cast<Array>();
  Matrix a(static_cast<int>(values.shape(0)), static_cast<int>(values.shape(1)));
  std::copy_n(values.data(), values.size(), reinterpret_cast<double*>(a.entries.data()));
  return a;
}

Solution solve_for(const NormalEquations& sums, const std::optional<Array>& jacobian,
                   const std::optional<Array>& offset, const std::vector<double>& ridge,
                   bool with_covariance) {
  const int n = sums.gram.rows;
  const Matrix map = jacobian
                         ? Matrix::of(jacobian->data(), n, static_cast<int>(jacobian->shape(1)))
                         : Matrix::identity(n);
  const Matrix fixed = offset ? Matrix::of(offset->data(), n, 1) : Matrix(n, 1);
  py::gil_scoped_release release;
  return solve(sums, map, fixed, ridge, with_covariance);
}

// Powers of v = scale * x + offset up to n_terms - 1: coefficients [K, M] for every row of y [M,
// N], by falling degree where asked, rank, sums of squares [M] and unscaled covariance [K, K].
py::tuple polyfit(const Array& x, const Array& y, const std::optional<Array>& w, int n_terms,
                  const std::optional<Array>& jacobian, double scale, double offset, bool falling,
                  bool with_covariance, int threads) {
  const py::ssize_t rows = y.ndim() == 2 ? y.shape(0) : 1, n = x.size();
  const int n_params = jacobian ? static_cast<int>(jacobian->shape(1)) : n_terms;
  Array coef({py::ssize_t(n_params), rows}), residuals(rows), covariance({n_params, n_params});
  Data data;
  data.x = x.data();
  data.w = w ? w->data() : nullptr;
  data.n = n;
  const Matrix map =
      jacobian ? Matrix::of(jacobian->data(), n_terms, n_params) : Matrix::identity(n_terms);
  int rank = 0;
  bool finite = true;
  count_launch();
  {
    auto c = coef.mutable_unchecked<2>();
    auto left = residuals.mutable_unchecked<1>();
    double* spread = covariance.mutable_data();
    const double* values = y.data();
    py::gil_scoped_release release;
    for (py::ssize_t m = 0; m < rows; ++m) {
      data.y = values + m * n;
      const Solution found = solve(accumulate(data, n_terms, true, {0.0, scale, offset}, threads),
                                   map, Matrix(n_terms, 1), {}, with_covariance && m == 0);
      const auto place = [&](int k) { return falling ? n_params - 1 - k : k; };
      for (int k = 0; k < n_params; ++k) c(place(k), m) = found.params[k];
      left(m) = found.sum_of_squares;
      finite = finite && std::isfinite(found.sum_of_squares);
      rank = found.rank;
      if (with_covariance && m == 0)
        for (int i = 0; i < n_params; ++i)
          for (int k = 0; k < n_params; ++k)
            spread[place(i) * n_params + place(k)] = found.covariance[i * n_params + k];
    }
  }
  if (!finite) throw py::value_error("x, y, w: expected finite data, got nan, inf or an overflow");
  return py::make_tuple(coef, rank, residuals, covariance);
}

}  // namespace

void bind_solve(py::module_& m) {
  py::class_<Variable>(m, "Variable").def(py::init([](double shift, double scale, double offset) {
    return Variable{shift, scale, offset};
  }));

  py::class_<NormalEquations>(m, "NormalEquations")
      .def_static("of_data", &of_data)
      .def_static("of_power_sums", &of_power_sums)
      .def_static("of_columns", &of_columns)
      .def_static("of_sums",  // gram [K, K, 2], right [K + 1, 1, 2], reference and shift [K]
                  [](const Array& gram, const Array& right, const Array& reference,
                     const Array& shift, bool with_constant) {
                    return of_sums(matrix_of(gram), matrix_of(right), reference.data(),
                                   shift.data(), with_constant);
                  })
      .def("add", &NormalEquations::add)
      .def(py::pickle(
          [](const NormalEquations& s) {
            return py::make_tuple(array_of(s.gram), array_of(s.cross), s.square.hi, s.square.lo,
                                  array_of(s.reference), array_of(s.inward), array_of(s.outward),
                                  s.shift, s.scale, s.tolerance);
          },
          [](const py::tuple& t) {
            return NormalEquations{matrix_of(t[0]),
                                   matrix_of(t[1]),
                                   {t[2].cast<double>(), t[3].cast<double>()},
                                   matrix_of(t[4]),
                                   matrix_of(t[5]),
                                   matrix_of(t[6]),
                                   t[7].cast<double>(),
                                   t[8].cast<double>(),
                                   t[9].cast<double>()};
          }))
      .def("leading", &NormalEquations::leading)
      .def("solve", &solve_for)
      .def_readonly("shift", &NormalEquations::shift)
      .def_readonly("scale", &NormalEquations::scale)
      .def_property_readonly("weight",
                             [](const NormalEquations& sums) { return rounded(sums.gram(0, 0)); });

  py::class_<Solution>(m, "Solution")
      .def_readonly("rank", &Solution::rank)
      .def_readonly("degrees", &Solution::degrees)
      .def_readonly("sum_of_squares", &Solution::sum_of_squares)
      .def_readonly("total", &Solution::total)
      .def_readonly("total_centred", &Solution::total_centred)
      .def_property_readonly("params",
                             [](const Solution& s) {
                               return Array(static_cast<py::ssize_t>(s.params.size()),
                                            s.params.data());
                             })
      .def_property_readonly("coefficients",
                             [](const Solution& s) {
                               return Array(static_cast<py::ssize_t>(s.coefficients.size()),
                                            s.coefficients.data());
                             })
      .def_property_readonly("estimator",
                             [](const Solution& s) {
                               return array_of(s.estimator, s.params.size(), s.coefficients.size());
                             })
      .def_property_readonly("influence",
                             [](const Solution& s) {
                               return array_of(s.influence, s.coefficients.size(),
                                               s.coefficients.size());
                             })
      .def_property_readonly("covariance",
                             [](const Solution& s) {
                               return array_of(s.covariance, s.params.size(), s.params.size());
                             })
      .def_property_readonly("coefficient_covariance",
                             [](const Solution& s) {
                               return array_of(s.coefficient_covariance, s.coefficients.size(),
                                               s.coefficients.size());
                             })
      .def_property_readonly("gram", [](const Solution& s) {
        return array_of(s.gram, s.params.size(), s.params.size());
      });
  m.def("polyfit", &polyfit);
}

}  // namespace polyfuse
