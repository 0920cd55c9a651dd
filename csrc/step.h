// The five-line training loop's hot path: one launch, with everything else Python would be asked
// for on every iteration (has the module changed, where do its parameters lie) checked in C++.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <vector>

#include "cpu/run.h"

namespace polyfuse {

namespace py = pybind11;

// The coefficient map and the update rule, owning what core's plain structs point to.
struct Plan {
  std::vector<Term> terms;
  std::vector<int32_t> factors;
  std::vector<SgdOptions> rule;
  Problem problem;

  Plan(int n_params, int n_coefficients, py::list terms, double shift, double scale);
  void set_rule(py::list options);
};

int64_t launches();
void count_launch();

// Where each scalar parameter lies: tensor, and element of it.
struct Slot {
  int tensor;
  int64_t element;
};

class Step {
 public:
  Step(Plan& plan, py::tuple tensors, py::list slots, Dtype dtype, py::list watched);

  bool unchanged() const;             // modules and parameters are what they were
  void snapshot(uintptr_t to) const;  // the parameters now, float64 [P]
  double launch(uintptr_t params, const Data& data, int threads, bool with_update);
  double launch_moments(uintptr_t params, const Moments& moments, bool with_update);
  void set_momentum(py::list tensors);  // momentum buffers, None where there is none yet
  void set_grads(py::tuple grads);      // tensors that backward fills
  bool grads_are_free() const;          // nobody else holds them
  bool give_grads();                    // p.grad = gradient; false if a p.grad is not None
  py::array_t<double> grads() const;    // [P], of the last launch
  bool install();                       // the next parameters, if nothing changed since the launch
  bool holds(uintptr_t params) const { return params_of_launch_ == params; }
  void forget() { params_of_launch_ = 0; }

 private:
  struct Watch {
    py::dict dict;
    std::vector<std::pair<py::object, py::object>> items;
  };
  double finish(const double* params, double loss, bool with_update);
  double read(const void* base, int64_t element) const;
  void write(void* base, int64_t element, double value) const;
  std::vector<char*> addresses(const std::vector<py::object>& tensors) const;

  Plan& plan_;
  Dtype dtype_;
  std::vector<py::object> tensors_, grads_;
  std::vector<char*> param_at_, grad_at_, momentum_at_;
  std::vector<py::ssize_t> grad_references_;
  std::vector<Slot> slots_;
  std::vector<Watch> watched_;
  std::vector<double> params_, grad_, next_, momentum_, next_momentum_;
  uintptr_t params_of_launch_ = 0;
  bool updated_ = false;
};

}  // namespace polyfuse
