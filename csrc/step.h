// One training step of one module: the launch, with everything it rests on (the module, the data,
// the optimizer) guarded, and the parameters, gradients and optimizer state it writes in place.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <optional>
#include <variant>
#include <vector>

#include "cpu/surface.h"
#include "plan.h"
#include "records.h"
#include "watch.h"

namespace polyfuse {

namespace py = pybind11;

int64_t launches();
void count_launch();

// Moves on when bindings may have become stale that no step can see: optimizers that come and go,
// promises about data.
int64_t generation();
void next_generation();

// Tensors of which the user has said that they stay as they are.
void promise(py::handle tensor);
void end_promise(uintptr_t tensor);

// From so many samples on, a launch lets other threads run meanwhile, and takes several itself.
constexpr int64_t kLongLaunch = 4096;

// Scalar parameters that lie one after the other: those from `begin` on are `count` elements of a
// tensor, from `element` on. One rule updates them.
struct Stretch {
  int tensor;
  int64_t element, count, begin;
};

class Step {
 public:
  Step(Plan& plan, const py::tuple& tensors, const py::list& stretches, Dtype dtype,
       const py::list& watched, std::optional<std::vector<int64_t>> of_y);
  virtual ~Step() = default;
  virtual int visit(visitproc visit, void* arg) const;
  virtual void clear();

  // The module.
  bool unchanged() const { return in_place() && as_trainable(); }
  bool in_place() const;                // the module, and where the parameters lie
  bool as_trainable() const;            // the parameters that need gradients are those that did
  void snapshot(double* params) const;  // [P]
  bool unchanged_since(const Forward& forward) const;  // the parameters, bit for bit
  void store(const py::array_t<double>& params);       // [P]

  // The data that Python has found acceptable; y may be None.
  void see(const py::object& x, const py::object& y);
  // Sees other data, where it is such that what Python has found holds for it as well.
  bool adopt(PyObject* x);
  bool adopt_target(PyObject* y);
  bool sees(PyObject* x) const { return x_.same(x); }
  bool sees_target(PyObject* y) const { return y_.same(y); }
  // Of the target that is seen: classes are for cross entropy alone, and torch refuses
  // probabilities where one is to be left out.
  bool serves(const Criterion& c) const {
    return has_classes() ? c.kind == CriterionKind::CrossEntropy : c.ignore < 0;
  }
  bool fits_target(PyObject* weight) const;  // one for every sample of it, or None
  // Moments of the data, good while the versions of x and y are these; or none, to read it.
  using AnyMoments = std::variant<std::monostate, Moments, SurfaceMoments, StackedMoments>;
  void settle(AnyMoments moments, long x_version, long y_version);

  bool settled(const Objective& objective) const;  // for its criterion and data

  // The optimizer whose rule the plan holds, None where no fused one alone owns the parameters.
  // `watched` is what that rests on; `kept` has for each of `held` the tensors of its state, None
  // where there is none.
  // `found`: Python looked for the owner, rather than being told.
  void bind(const py::object& owner, bool found, const py::list& watched, const py::list& held,
            const py::list& kept, bool updates, bool covers_owner);
  bool bound_to(PyObject* owner) const;     // null: to whoever was found to own the parameters
  std::vector<py::object> trained() const;  // the tensors that needed gradients
  bool covers_owner() const { return covers_owner_; }

  // Loss, gradient and, where `updates`, the next parameters.
  // False where other data was seen meanwhile.
  bool launch(Objective& objective, int threads);
  bool holds(const Objective& objective) const {
    return objective.launch && objective.launch == launch_;
  }
  py::array_t<double> grads() const;  // [P], of the last launch

  // Tensors that backward fills; they share one storage, with `uses` users.
  void set_grads(const py::tuple& grads, uintptr_t storage, long uses);
  enum Given { kGiven, kUnlike, kAccumulate, kHeld, kStale };
  // p.grad = gradient, unless hooks, a gradient, or a holder of it is there, or the parameter lies
  // somewhere else by now, perhaps in another dtype.
  int give_grads(const Objective& objective);
  // p.grad = values [P], whatever was there; false where somebody holds the last gradients.
  bool replace_grads(const py::array_t<double>& values);
  // Parameters, and what is kept of them, take the memory of the spare ones, [T] and [T, kKept],
  // which take theirs (None: stays); false, and nothing done, where somebody else holds any of it.
  bool exchange(const py::list& spares, const py::list& kept_spares);
  // The update that the launch has computed, or from what lies there now where values changed.
  bool install(PyObject* owner);

 protected:
  bool is_shape_of_y(const Layout& y) const;
  bool has_moments() const { return !std::holds_alternative<std::monostate>(moments_); }
  // Loss and gradient, from the moments where `known`.
  double look(const Problem& problem, bool known, const double* params, double* grad) const;
  bool has_classes() const { return y_.layout().kind != x_.layout().kind; }
  // Of polynomials side by side, rather than one for all.
  bool has_own_x() const { return !plan_.problem.surface && x_.layout().n_dims > 1; }
  bool hooked() const;
  bool parameters_in_place() const;
  bool grads_are_free() const;
  void set_grads_to(const double* values);
  static std::vector<Layout> layouts(const std::vector<py::object>& tensors);
  void update();
  // False for a weight that is none of every sample.
  bool weigh(Problem& problem, const Objective& objective) const;
  Stacked stacked_of(const Problem& problem) const;
  int64_t n_elements() const {
    return plan_.stacked ? data_.n * plan_.stacked->n_outputs : data_.n;
  }
  const UpdateRule& rule_of(const Stretch& s) const {
    return plan_.rule[plan_.stacked ? 0 : s.begin];
  }

  Plan& plan_;
  Dtype dtype_;
  std::vector<Stretch> stretches_;
  // Shape of one sample of the output, where x is [N, ...] and y [N, *of_y]; or both are alike.
  std::optional<std::vector<int64_t>> of_y_;
  bool alive_ = true;

  std::vector<py::object> tensors_, storages_;
  std::vector<Layout> param_at_;
  std::vector<bool> trainable_;
  Watch module_watch_;

  Seen x_, y_;
  Layout target_;  // the last that Python has found acceptable
  Data data_;
  AnyMoments moments_;
  long moments_x_version_ = 0, moments_y_version_ = 0;
  bool settled_ = false;  // whether there are moments of this data has been asked

  py::object owner_ = py::none();
  Watch owner_watch_;
  py::object moved_;  // tensors whose versions a step advances
  struct Kept {       // one tensor of the optimizer's state
    py::object tensor = py::none();
    Layout at;
    Dtype dtype = Dtype::Float64;
    bool scalar = false;  // one number for all elements of a parameter
  };
  std::vector<Kept> kept_at_;  // kKept of each tensor
  const Kept& kept_of(const Stretch& s, int row) const {
    return kept_at_[static_cast<size_t>(s.tensor) * kKept + row];
  }
  // f(row, parameter, what is kept of it and of those that follow, element there, count).
  template <class F>
  void for_each_kept(F&& f);
  template <class T>
  void update(const Stretch& s);
  bool covers_owner_ = false, updates_ = false, found_ = false;
  int64_t generation_ = -1;

  std::vector<py::object> grads_;
  std::vector<Layout> grad_at_;
  py::object storage_;
  long uses_ = 0;

  std::vector<double> params_, grad_, next_;            // [P], of the launch
  std::vector<double> kept_[kKept], next_kept_[kKept];  // [P]
  int64_t launch_ = 0;
  bool computed_ = false;  // next_ is there and not yet installed
};

}  // namespace polyfuse
