// The five lines of the training loop, answered without Python while everything is as it was.
#pragma once

#include "fast.h"
#include "step.h"

namespace polyfuse {

// A step with what the loop hands out: deferred tensors ("wrappers"), each with its record. They
// are handed out again once nobody holds them any more.
class Loop : public Step {
 public:
  using Step::Step;
  ~Loop() override { forget(); }
  int visit(visitproc visit, void* arg) const override;
  void clear() override;

  void begin(Forward& forward, py::object x) const;  // the parameters as they are now
  // `self` is the Python object of this.
  void pool_prediction(py::handle self, py::object wrapper, const py::object& record);
  void pool_loss(py::handle self, py::object wrapper, const py::object& record);
  bool sees_criterion(PyObject* module) const {
    return module == criterion_module_.ptr() && criterion_watch_.unchanged();
  }
  // The module that Python has found to be this criterion; `watched` is what that rests on.
  void see_criterion(py::object module, const py::list& watched, py::object criterion, bool mean);
  static void unpool(py::handle wrapper);  // it is never handed out again
  // Lists the step with the owner's pending ones, where backward has computed its update.
  void offer(py::handle self) const;

  static py::object fast(const std::string& name, py::object method);
  // The classes whose slots the answers read: Module._loop, SGD._pending.
  static void declare_module(const py::type& module);
  static void declare_optimizer(const py::type& optimizer);

 private:
  template <class Record>
  struct Pooled {
    py::object wrapper, record_object;
    Record* record = nullptr;
    Layout of_x;  // whose shape a prediction has
  };
  template <class Record>
  using Pool = std::vector<Pooled<Record>>;
  void forget();
  template <class Record>
  void add(Pool<Record>& pool, py::handle self, py::object wrapper, const py::object& record);
  template <class Record>
  static Pooled<Record> unheld(const Pool<Record>& pool, const Layout* of_x = nullptr);

  static PyObject* predict(PyObject* const* args, size_t n_args);
  static PyObject* objective(PyObject* const* args, size_t n_args);
  static PyObject* zero_grad(PyObject* const* args, size_t n_args);
  static PyObject* backward(PyObject* const* args, size_t n_args);
  static PyObject* step(PyObject* const* args, size_t n_args);

  Pool<Forward> predictions_;
  Pool<Objective> losses_;
  py::object criterion_module_, criterion_object_, criterion_weight_;
  Watch criterion_watch_;
  Criterion criterion_;
  bool mean_ = true;
};

bool clear_grads(PyObject* param_groups);  // p.grad = None; false for odd groups, left alone

}  // namespace polyfuse
