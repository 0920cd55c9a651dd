#include "step.h"

#include <cstring>
#include <initializer_list>

#include "core/optimizer.h"

namespace polyfuse {
namespace {

int64_t n_launches = 0;

const TensorAttribute& grad_of() {
  static const TensorAttribute grad("grad");
  return grad;
}

PyObject* torch_function(const char* name) {
  return py::object(py::module_::import("torch._C").attr(name)).release().ptr();
}

long number(PyObject* result) {
  const auto value = py::reinterpret_steal<py::object>(result);
  if (!value) throw py::error_already_set();
  return PyLong_AsLong(value.ptr());
}

bool grad_enabled() {
  static PyObject* is_grad_enabled = torch_function("is_grad_enabled");
  const auto enabled = py::reinterpret_steal<py::object>(PyObject_CallNoArgs(is_grad_enabled));
  return enabled.ptr() == Py_True;
}

// The slots of a record, by position.
class Fields {
 public:
  Fields(std::initializer_list<const char*> names) {
    for (const char* name : names) names_.push_back(PyUnicode_InternFromString(name));
  }
  py::object get(PyObject* record, size_t i) const {
    return py::reinterpret_steal<py::object>(PyObject_GetAttr(record, names_[i]));
  }
  void set(PyObject* record, size_t first, std::initializer_list<PyObject*> values) const {
    for (PyObject* value : values)
      if (PyObject_SetAttr(record, names_[first++], value) < 0) throw py::error_already_set();
  }

 private:
  std::vector<PyObject*> names_;
};

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
    : plan_(plan), dtype_(dtype), watched_(watched) {
  for (py::handle t : tensors) {
    tensors_.push_back(py::reinterpret_borrow<py::object>(t));
    trainable_.push_back(t.attr("requires_grad").cast<bool>());
  }
  for (py::handle s : slots) {
    const auto [tensor, element] = s.cast<std::pair<int, int64_t>>();
    slots_.push_back({tensor, element});
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
  if (!watched_.unchanged()) return false;
  static const TensorAttribute requires_grad("requires_grad");
  for (size_t t = 0; t < tensors_.size(); ++t) {
    if (address_of(tensors_[t].ptr()) != param_at_[t]) return false;
    if (!requires_grad.is(tensors_[t].ptr(), trainable_[t] ? Py_True : Py_False)) return false;
  }
  return true;
}

bool Step::hooked() const {
  static const TensorAttribute backward_hooks("_backward_hooks"),
      accumulate_hooks("_post_accumulate_grad_hooks");
  for (const py::object& tensor : tensors_)
    if (!backward_hooks.is(tensor.ptr(), Py_None) || !accumulate_hooks.is(tensor.ptr(), Py_None))
      return true;
  return false;
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

void Step::see(py::object x, py::object y) {
  x_ = Seen(x);
  y_ = y.is_none() ? Seen() : Seen(y);
}

bool Step::matches(py::handle x) const { return x_.same(x) && unchanged(); }

bool Step::matches_target(py::handle y) const { return y_.same(y); }

py::object Step::predict(py::handle x, py::list pool) const {
  if (!x_.same(x) || !grad_enabled() || !unchanged()) return py::none();
  const Py_ssize_t found = find_unheld(pool);
  if (found < 0) return py::none();
  static const Fields fields{"at", "x", "x_version", "plain", "real", "freed"};
  PyObject* record = PyList_GET_ITEM(pool.ptr(), found + 1);
  const py::object at = fields.get(record, 0);
  const py::int_ version(snapshot(PyLong_AsUnsignedLongLong(at.ptr()), x));
  fields.set(record, 1, {x.ptr(), version.ptr(), Py_None, Py_None, Py_False});
  return py::reinterpret_borrow<py::object>(PyList_GET_ITEM(pool.ptr(), found));
}

py::object Step::objective(py::handle y, py::handle forward, py::handle reduction,
                           py::list pool) const {
  if (!y_.same(y) || !grad_enabled()) return py::none();
  const Py_ssize_t found = find_unheld(pool);
  if (found < 0) return py::none();
  static const Fields fields{"forward", "y", "reduction", "y_version", "value_", "real", "freed"};
  PyObject* record = PyList_GET_ITEM(pool.ptr(), found + 1);
  const py::int_ version(version_of(y.ptr()));
  fields.set(record, 0,
             {forward.ptr(), y.ptr(), reduction.ptr(), version.ptr(), Py_None, Py_None, Py_False});
  return py::reinterpret_borrow<py::object>(PyList_GET_ITEM(pool.ptr(), found));
}

long Step::snapshot(uintptr_t to, py::handle x) const {
  auto* params = reinterpret_cast<double*>(to);
  for (size_t i = 0; i < slots_.size(); ++i)
    params[i] = read(param_at_[slots_[i].tensor], slots_[i].element);
  return version_of(x.ptr());
}

void Step::store(py::array_t<double> params) {
  for (size_t i = 0; i < slots_.size(); ++i)
    write(param_at_[slots_[i].tensor], slots_[i].element, params.data()[i]);
}

double Step::launch(uintptr_t params, const Data& data, int threads, bool with_update) {
  Problem problem = plan_.problem;
  problem.data = data;
  problem.threads = threads;
  const auto* p = reinterpret_cast<const double*>(params);
  double loss;
  if (data.n < 4096) {
    loss = polyfuse::objective(problem, nullptr, p, grad_.data());
  } else {
    py::gil_scoped_release release;
    loss = polyfuse::objective(problem, nullptr, p, grad_.data());
  }
  return finish(p, loss, with_update);
}

double Step::launch_moments(uintptr_t params, const Moments& moments, bool with_update) {
  const auto* p = reinterpret_cast<const double*>(params);
  return finish(p, polyfuse::objective(plan_.problem, &moments, p, grad_.data()), with_update);
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

void Step::set_grads(py::tuple grads, uintptr_t storage, long uses) {
  grads_.clear();
  for (py::handle g : grads) grads_.push_back(py::reinterpret_borrow<py::object>(g));
  grad_at_ = addresses(grads_);
  storage_ = py::int_(storage);
  uses_ = uses;
}

bool Step::grads_are_free() const {
  static const TensorMethod use_count("_use_count");
  static PyObject* storage_use_count = torch_function("_storage_Use_Count");
  for (const py::object& g : grads_) {
    if (g.ref_count() != 1) return false;
    if (PyLong_AsLong(use_count.call(g.ptr()).ptr()) != 1) return false;
  }
  return !grads_.empty() && number(PyObject_CallOneArg(storage_use_count, storage_.ptr())) == uses_;
}

int Step::give_grads() {
  if (hooked()) return kHooked;
  for (const py::object& tensor : tensors_)
    if (!grad_of().is(tensor.ptr(), Py_None)) return kAccumulate;
  if (!grads_are_free()) return kHeld;
  for (size_t i = 0; i < slots_.size(); ++i)
    write(grad_at_[slots_[i].tensor], slots_[i].element, grad_[i]);
  for (size_t t = 0; t < tensors_.size(); ++t)
    if (trainable_[t]) grad_of().set(tensors_[t].ptr(), grads_[t].ptr());
  return kGiven;
}

py::array_t<double> Step::grads() const {
  return py::array_t<double>(static_cast<py::ssize_t>(grad_.size()), grad_.data());
}

bool Step::install(const Watch& groups, py::handle moved) {
  static PyObject* increment_version = torch_function("_increment_version");
  if (!updated_ || !groups.unchanged()) return false;
  for (size_t t = 0; t < tensors_.size(); ++t) {
    if (address_of(tensors_[t].ptr()) != param_at_[t]) return false;
    if (!trainable_[t]) continue;
    if (!grad_of().is(tensors_[t].ptr(), grads_[t].ptr())) return false;
    if (address_of(grads_[t].ptr()) != grad_at_[t]) return false;
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
  const auto done =
      py::reinterpret_steal<py::object>(PyObject_CallOneArg(increment_version, moved.ptr()));
  if (!done) throw py::error_already_set();
  return true;
}

}  // namespace polyfuse
