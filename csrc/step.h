// The five-line training loop's hot path: one launch, with everything else Python would be asked
// for on every iteration (has the module changed, where do its parameters lie) checked in C++.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <vector>

#include "cpu/run.h"
#include "watch.h"

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

  bool unchanged() const;  // modules and parameters are what they were

  void see(py::object x, py::object y);  // data that Python has found acceptable; y may be None
  bool matches(py::handle x) const;      // x is the one seen, and nothing changed
  bool matches_target(py::handle y) const;
  // Where all is as seen, a wrapper out of the pool with its record begun anew, otherwise None.
  py::object predict(py::handle x, py::list pool) const;
  py::object objective(py::handle y, py::handle forward, py::handle reduction, py::list pool) const;
  long snapshot(uintptr_t to, py::handle x) const;  // parameters [P]; returns the version of x

  void store(py::array_t<double> params);  // parameters [P]
  double launch(uintptr_t params, const Data& data, int threads, bool with_update);
  double launch_moments(uintptr_t params, const Moments& moments, bool with_update);
  py::array_t<double> grads() const;  // [P], of the last launch

  void set_momentum(py::list tensors);  // momentum buffers, None where there is none yet
  // Tensors that backward fills; they share one storage, with `uses` users.
  void set_grads(py::tuple grads, uintptr_t storage, long uses);
  enum Given { kGiven, kHooked, kAccumulate, kHeld };
  int give_grads();  // p.grad = gradient, unless hooks, a gradient, or a holder of it is there
  // The next parameters, if nothing changed since the launch; advances the versions of `moved`.
  bool install(const Watch& groups, py::handle moved);

 private:
  bool hooked() const;
  bool grads_are_free() const;
  double finish(const double* params, double loss, bool with_update);
  double read(const void* base, int64_t element) const;
  void write(void* base, int64_t element, double value) const;
  std::vector<char*> addresses(const std::vector<py::object>& tensors) const;

  Plan& plan_;
  Dtype dtype_;
  std::vector<py::object> tensors_, grads_;
  std::vector<char*> param_at_, grad_at_, momentum_at_;
  std::vector<bool> trainable_;
  std::vector<Slot> slots_;
  Watch watched_;
  Seen x_, y_;
  py::object storage_;
  long uses_ = 0;
  std::vector<double> params_, grad_, next_, momentum_, next_momentum_;
  bool updated_ = false;
};

}  // namespace polyfuse
