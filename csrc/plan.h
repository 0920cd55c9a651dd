// A model's coefficient map and an update rule, owning what core's plain structs point to.
#pragma once

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <memory>
#include <optional>
#include <vector>

#include "cpu/stacked.h"
#include "surface_tables.h"

namespace polyfuse {

namespace py = pybind11;

UpdateRule rule_from(py::handle row);  // the method's number and its options; None: none

struct Plan {
  std::vector<double> factors;
  std::vector<Span> spans;
  std::vector<int32_t> slots;
  std::vector<UpdateRule> rule;
  std::vector<int64_t> changes;
  std::unique_ptr<SurfaceTables> surface;
  Problem problem;
  std::optional<Stacked> stacked;  // what polynomials side by side have in place of a map

  Plan(const Plan&) = delete;
  Plan& operator=(const Plan&) = delete;
  // surface: the arguments of its tables, or None.
  Plan(int n_params, int n_coefficients, const py::list& terms, double shift, double scale,
       const py::object& surface);
  void set_stacked(const Stacked& of);
  void set_rule(const py::list& options);
  // And a rule for each epoch, counted from a launch's start, from which on another holds.
  void set_changes(const py::list& changes);
};

// What a step makes of the numbers that are kept of a parameter, [kKept], for those that do not
// depend on its gradient: those that torch keeps once per tensor.
std::vector<double> kept_after(const py::object& options, std::vector<double> kept);

}  // namespace polyfuse
