// What deferred tensors know: one call of the model, one of the criterion.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>
#include <optional>
#include <vector>

#include "core/problem.h"

namespace polyfuse {

namespace py = pybind11;

// One call model(x): the data, and the parameters as they were. Python's Forward adds the rest.
struct Forward {
  std::vector<double> params;  // [P]
  py::object x = py::none();
  long x_version = 0;
  py::object plain = py::none();  // the values, once somebody looked
  std::optional<uint64_t> plain_hash;
  py::object real = py::none();  // the values with their graph
  bool freed = false;

  explicit Forward(size_t n_params) : params(n_params) {}
  void start(py::object data);  // a call of the model anew
  bool untouched() const;       // nobody looked at the prediction in a way that torch must know of
  // plain = values, which may be written to from now on; `hashed`: without moving a version, too.
  void show(py::object values, bool hashed);
  bool plain_changed() const;
  int visit(visitproc visit, void* arg) const;
  void clear();
};

// One call criterion(model(x), y): its value once launched.
struct Objective {
  py::object forward_object = py::none();
  Forward* forward = nullptr;
  py::object y = py::none();
  long y_version = 0;
  py::object weight = py::none();  // of every sample, where there is one
  long weight_version = 0;
  bool weighted_mean = false;                // a mean is the sum over that of the weights
  py::object criterion_object = py::none();  // Python's, which knows torch's own as well
  Criterion criterion;
  bool mean = true;
  std::optional<double> value;
  py::object real = py::none();  // the loss with its graph
  bool freed = false;
  int64_t launch = 0;  // number of the launch that holds its gradient; 0: none yet

  void take_weight(const py::object& of_samples);
  bool weight_unchanged() const;
  int visit(visitproc visit, void* arg) const;
  void clear();
};

}  // namespace polyfuse
