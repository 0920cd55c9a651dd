#include "step.h"

#include <cstring>

#include "core/optimizer.h"

namespace polyfuse {
namespace {

int64_t n_launches = 0;

PyObject* name_of(const char* text) { return PyUnicode_InternFromString(text); }

char* address_of(PyObject* tensor) {
  static PyObject* data_ptr = name_of("data_ptr");
  PyObject* result = PyObject_CallMethodNoArgs(tensor, data_ptr);
  if (!result) throw py::error_already_set();
  char* address = reinterpret_cast<char*>(PyLong_AsUnsignedLongLong(result));
  Py_DECREF(result);
  return address;
}

}  // namespace

int64_t launches() { return n_launches; }
void count_launch() { ++n_launches; }

Plan::Plan(int n_params, int n_coefficients, py::list term_list, double shift, double scale) {
  for (py::handle item : term_list) {
    const auto [factor, coefficient, params] =
        item.cast<std::tuple<double, int32_t, std::vector<int32_t>>>();
    const auto begin = static_cast<int32_t>(factors.size());
    factors.insert(factors.end(), params.begin(), params.end());
    terms.push_back({factor, coefficient, begin, static_cast<int32_t>(factors.size())});
  }
  bool identity = n_params == n_coefficients && static_cast<int>(terms.size()) == n_params;
  std::vector<bool> seen(static_cast<size_t>(n_coefficients));
  for (const Term& t : terms) {
    identity = identity && t.factor == 1.0 && t.end == t.begin + 1 &&
               factors[t.begin] == t.coefficient && !seen[t.coefficient];
    seen[t.coefficient] = true;
  }
  problem.map = {n_params,     n_coefficients, static_cast<int>(terms.size()),
                 terms.data(), factors.data(), identity};
  problem.data.shift = shift;
  problem.data.scale = scale;
  rule.resize(static_cast<size_t>(n_params));
  problem.rule = rule.data();
}

void Plan::set_rule(py::list options) {
  for (size_t i = 0; i < rule.size(); ++i) {
    rule[i] = {};
    if (options[i].is_none()) continue;
    const auto [lr, momentum, dampening, decay, nesterov, maximize] =
        options[i].cast<std::tuple<double, double, double, double, bool, bool>>();
    rule[i] = {lr, momentum, dampening, decay, nesterov, maximize, true};
  }
}

Step::Step(Plan& plan, py::tuple tensors, py::list slots, Dtype dtype, py::list watched)
    : plan_(plan), dtype_(dtype) {
  for (py::handle t : tensors) tensors_.push_back(py::reinterpret_borrow<py::object>(t));
  for (py::handle s : slots) {
    const auto [tensor, element] = s.cast<std::pair<int, int64_t>>();
    slots_.push_back({tensor, element});
  }
  for (py::handle d : watched) {
    Watch watch{py::reinterpret_borrow<py::dict>(d), {}};
    for (auto [key, value] : watch.dict)
      watch.items.emplace_back(py::reinterpret_borrow<py::object>(key),
                               py::reinterpret_borrow<py::object>(value));
    watched_.push_back(std::move(watch));
  }
  param_at_ = addresses(tensors_);
  const size_t n = slots_.size();
  params_.resize(n), grad_.resize(n), next_.resize(n), momentum_.resize(n),
      next_momentum_.resize(n);
}

std::vector<char*> Step::addresses(const std::vector<py::object>& tensors) const {
  std::vector<char*> result;
  for (const py::object& t : tensors) result.push_back(t.is_none() ? nullptr : address_of(t.ptr()));
  return result;
}

bool Step::unchanged() const {
  for (const Watch& watch : watched_) {
    if (PyDict_Size(watch.dict.ptr()) != static_cast<Py_ssize_t>(watch.items.size())) return false;
    for (const auto& [key, value] : watch.items)
      if (PyDict_GetItem(watch.dict.ptr(), key.ptr()) != value.ptr()) return false;
  }
  for (size_t t = 0; t < tensors_.size(); ++t)
    if (address_of(tensors_[t].ptr()) != param_at_[t]) return false;
  return true;
}

double Step::read(const void* base, int64_t element) const {
  return dtype_ == Dtype::Float32 ? static_cast<const float*>(base)[element]
                                  : static_cast<const double*>(base)[element];
}

void Step::write(void* base, int64_t element, double value) const {
  if (dtype_ == Dtype::Float32)
    static_cast<float*>(base)[element] = static_cast<float>(value);
  else
    static_cast<double*>(base)[element] = value;
}

void Step::snapshot(uintptr_t to) const {
  auto* params = reinterpret_cast<double*>(to);
  for (size_t i = 0; i < slots_.size(); ++i)
    params[i] = read(param_at_[slots_[i].tensor], slots_[i].element);
}

double Step::launch(uintptr_t params, const Data& data, int threads, bool with_update) {
  Problem problem = plan_.problem;
  problem.data = data;
  problem.threads = threads;
  params_of_launch_ = params;
  const auto* p = reinterpret_cast<const double*>(params);
  double loss;
  if (data.n < 4096) {
    loss = objective(problem, nullptr, p, grad_.data());
  } else {
    py::gil_scoped_release release;
    loss = objective(problem, nullptr, p, grad_.data());
  }
  return finish(p, loss, with_update);
}

double Step::launch_moments(uintptr_t params, const Moments& moments, bool with_update) {
  params_of_launch_ = params;
  const auto* p = reinterpret_cast<const double*>(params);
  return finish(p, objective(plan_.problem, &moments, p, grad_.data()), with_update);
}

double Step::finish(const double* params, double loss, bool with_update) {
  count_launch();
  const size_t n = slots_.size();
  std::memcpy(params_.data(), params, n * sizeof(double));
  updated_ = with_update;
  if (dtype_ == Dtype::Float32) {
    loss = static_cast<float>(loss);
    for (double& g : grad_) g = static_cast<float>(g);
  }
  for (size_t i = 0; with_update && i < n; ++i) {
    const Slot slot = slots_[i];
    const bool first = momentum_at_.empty() || !momentum_at_[slot.tensor];
    momentum_[i] = first ? 0.0 : read(momentum_at_[slot.tensor], slot.element);
    const auto update = [&](auto p, auto g, auto b) {
      Sgd::update(plan_.rule[i], p, g, b, first);
      next_[i] = p;
      next_momentum_[i] = b;
    };
    if (dtype_ == Dtype::Float32)
      update(float(params[i]), float(grad_[i]), float(momentum_[i]));
    else
      update(params[i], grad_[i], momentum_[i]);
  }
  return loss;
}

void Step::set_momentum(py::list tensors) {
  std::vector<py::object> buffers;
  for (py::handle t : tensors) buffers.push_back(py::reinterpret_borrow<py::object>(t));
  momentum_at_ = addresses(buffers);
}

void Step::set_grads(py::tuple grads) {
  grads_.clear();
  grad_references_.clear();
  for (py::handle g : grads) grads_.push_back(py::reinterpret_borrow<py::object>(g));
  grad_at_ = addresses(grads_);
  for (const py::object& g : grads_) grad_references_.push_back(g.ref_count());
}

bool Step::grads_are_free() const {
  static PyObject* use_count = name_of("_use_count");
  for (size_t t = 0; t < grads_.size(); ++t) {
    // the tuple that set_grads was called with held one reference more
    if (grads_[t].ref_count() > grad_references_[t]) return false;
    PyObject* uses = PyObject_CallMethodNoArgs(grads_[t].ptr(), use_count);
    if (!uses) throw py::error_already_set();
    const long count = PyLong_AsLong(uses);
    Py_DECREF(uses);
    if (count != 1) return false;
  }
  return !grads_.empty();
}

bool Step::give_grads() {
  static PyObject* grad = name_of("grad");
  for (const py::object& tensor : tensors_) {
    PyObject* current = PyObject_GetAttr(tensor.ptr(), grad);
    if (!current) throw py::error_already_set();
    Py_DECREF(current);
    if (current != Py_None) return false;
  }
  for (size_t i = 0; i < slots_.size(); ++i)
    write(grad_at_[slots_[i].tensor], slots_[i].element, grad_[i]);
  for (size_t t = 0; t < tensors_.size(); ++t)
    if (PyObject_SetAttr(tensors_[t].ptr(), grad, grads_[t].ptr()) < 0)
      throw py::error_already_set();
  return true;
}

py::array_t<double> Step::grads() const {
  return py::array_t<double>(static_cast<py::ssize_t>(grad_.size()), grad_.data());
}

bool Step::install() {
  static PyObject* grad = name_of("grad");
  if (!updated_ || !params_of_launch_) return false;
  for (size_t t = 0; t < tensors_.size(); ++t) {
    PyObject* current = PyObject_GetAttr(tensors_[t].ptr(), grad);
    if (!current) throw py::error_already_set();
    Py_DECREF(current);
    if (current != grads_[t].ptr()) return false;
    if (address_of(tensors_[t].ptr()) != param_at_[t]) return false;
    if (address_of(current) != grad_at_[t]) return false;
  }
  const auto same = [](double a, double b) { return std::memcmp(&a, &b, sizeof a) == 0; };
  for (size_t i = 0; i < slots_.size(); ++i) {
    const Slot slot = slots_[i];
    if (!same(read(param_at_[slot.tensor], slot.element), params_[i])) return false;
    if (!same(read(grad_at_[slot.tensor], slot.element), grad_[i])) return false;
    if (!momentum_at_.empty() && momentum_at_[slot.tensor] &&
        !same(read(momentum_at_[slot.tensor], slot.element), momentum_[i]))
      return false;
  }
  for (size_t i = 0; i < slots_.size(); ++i) {
    const Slot slot = slots_[i];
    if (!plan_.rule[i].owned) continue;
    write(param_at_[slot.tensor], slot.element, next_[i]);
    if (!momentum_at_.empty() && momentum_at_[slot.tensor])
      write(momentum_at_[slot.tensor], slot.element, next_momentum_[i]);
  }
  updated_ = false;
  return true;
}

}  // namespace polyfuse
