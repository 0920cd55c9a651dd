#include "step.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <unordered_set>
#include <utility>

#include "core/optimizer.h"
#include "element.h"

namespace polyfuse {
namespace {

int64_t n_launches = 0, n_generations = 0;
std::unordered_set<PyObject*> promised;

// A tensor of torch's own class, without gradient and with a version.
bool is_plain(PyObject* tensor) {
  return reinterpret_cast<PyObject*>(Py_TYPE(tensor)) == torch().tensor.ptr() &&
         torch().requires_grad.is(tensor, Py_False) &&
         torch().is_inference.call(tensor).is(py::bool_(false)) &&
         torch().is_neg.call(tensor).is(py::bool_(false));
}

// Whether torch's operations are being recorded, or compute in other types.
bool recorded() {
  return !torch().tracing_state().is_none() ||
         number(torch().is_autocast_enabled(torch().cpu.ptr()));
}

uint64_t bits_of(double value) {
  uint64_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}

template <class Objects>
int visit_all(const Objects& objects, visitproc visit, void* arg) {
  for (const py::object& object : objects) Py_VISIT(object.ptr());
  return 0;
}

}  // namespace

int64_t launches() { return n_launches; }
void count_launch() { ++n_launches; }
int64_t generation() { return n_generations; }
void next_generation() { ++n_generations; }

void promise(py::handle tensor) {
  promised.insert(tensor.ptr());
  next_generation();
}
void end_promise(uintptr_t tensor) { promised.erase(reinterpret_cast<PyObject*>(tensor)); }

Step::Step(Plan& plan, const py::tuple& tensors, const py::list& slots, Dtype dtype,
           const py::list& watched, std::optional<std::vector<int64_t>> of_y)
    : plan_(plan), dtype_(dtype), of_y_(std::move(of_y)), module_watch_(watched) {
  for (py::handle t : tensors) {
    tensors_.push_back(py::reinterpret_borrow<py::object>(t));
    storages_.push_back(t.attr("untyped_storage")());
    trainable_.push_back(t.attr("requires_grad").cast<bool>());
  }
  for (py::handle s : slots) {
    const auto [tensor, element] = s.cast<std::pair<int, int64_t>>();
    slots_.push_back({tensor, element});
  }
  param_at_ = layouts(tensors_);
  const size_t n = slots_.size();
  params_.resize(n), grad_.resize(n), next_.resize(n), kept_.resize(n * kKept),
      next_kept_.resize(n * kKept);
  kept_at_.resize(tensors_.size() * kKept);
}

int Step::visit(visitproc visit, void* arg) const {
  Py_VISIT(owner_.ptr());
  Py_VISIT(moved_.ptr());
  for (const auto* objects : {&tensors_, &grads_})
    if (const int stop = visit_all(*objects, visit, arg)) return stop;
  for (const Kept& kept : kept_at_) Py_VISIT(kept.tensor.ptr());
  for (const Watch* watch : {&module_watch_, &owner_watch_})
    if (const int stop = watch->visit(visit, arg)) return stop;
  return 0;
}

void Step::clear() {
  alive_ = false;
  slots_.clear();
  tensors_.clear(), kept_at_.clear(), grads_.clear();
  module_watch_ = owner_watch_ = {};
  x_ = y_ = {};
  owner_ = moved_ = py::none();
}

std::vector<Layout> Step::layouts(const std::vector<py::object>& tensors) {
  std::vector<Layout> result;
  result.reserve(tensors.size());
  for (const py::object& t : tensors)
    result.push_back(t.is_none() ? Layout{} : Layout::of(t.ptr()));
  return result;
}

// -- the module

bool Step::in_place() const { return alive_ && module_watch_.unchanged() && parameters_in_place(); }

bool Step::parameters_in_place() const {
  for (size_t t = 0; t < tensors_.size(); ++t)
    if (!param_at_[t].still_that_of(tensors_[t].ptr())) return false;
  return true;
}

bool Step::as_trainable() const {
  for (size_t t = 0; t < tensors_.size(); ++t)
    if (!torch().requires_grad.is(tensors_[t].ptr(), trainable_[t] ? Py_True : Py_False))
      return false;
  return true;
}

void Step::snapshot(double* params) const {
  for (size_t i = 0; i < slots_.size(); ++i)
    params[i] = read(dtype_, param_at_[slots_[i].tensor].address, slots_[i].element);
}

bool Step::unchanged_since(const Forward& forward) const {
  for (size_t i = 0; i < slots_.size(); ++i) {
    const Slot slot = slots_[i];
    if (bits_of(read(dtype_, param_at_[slot.tensor].address, slot.element)) !=
        bits_of(forward.params[i]))
      return false;
  }
  return true;
}

void Step::store(const py::array_t<double>& params) {
  for (size_t i = 0; i < slots_.size(); ++i)
    write(dtype_, param_at_[slots_[i].tensor].address, slots_[i].element, params.data()[i]);
}

// -- the data

void Step::see(const py::object& x, const py::object& y) {
  x_ = Seen(x);
  y_ = y.is_none() ? Seen() : Seen(y);
  if (!y.is_none()) target_ = y_.layout();
  const Layout &of_x = x_.layout(), &of_y = y_.layout();
  data_ = plan_.problem.data;
  data_.x = of_x.address;
  data_.y = of_y.address;
  data_.n = of_x.numel();
  data_.x_stride = of_x.n_dims == 1 ? of_x.stride[0] : 1;
  if (plan_.problem.surface) {  // contiguous [N, V]
    data_.n = of_x.shape[0];
    data_.x_stride = of_x.shape[1];
  }
  data_.y_stride = of_y.n_dims == 1 ? of_y.stride[0] : 1;
  data_.dtype = dtype_;
  moments_.reset();
  settled_ = false;
}

bool Step::adopt(PyObject* x) {
  const Layout layout = is_plain(x) ? Layout::of_any(x) : Layout{};
  const Layout& like = x_.layout();
  if (!layout.serves_as(like) || recorded()) return false;
  for (int i = 1; i < layout.n_dims; ++i)
    if (layout.shape[i] != like.shape[i]) return false;
  if (of_y_ && layout.shape[0] < 2) return false;  // one row is traced anew
  see(py::reinterpret_borrow<py::object>(x), py::none());
  return true;
}

bool Step::adopt_target(PyObject* y) {
  if (!x_.tensor()) return false;
  const Layout layout = is_plain(y) ? Layout::of_any(y) : Layout{};
  if (plan_.classes) {
    Layout like = target_;
    like.shape[0] = x_.layout().shape[0];
    if (!layout.serves_as(like) || !layout.same_shape(like)) return false;
  } else if (!layout.serves_as(x_.layout()) || !is_shape_of_y(layout)) {
    return false;
  }
  see(py::reinterpret_borrow<py::object>(x_.tensor()), py::reinterpret_borrow<py::object>(y));
  return true;
}

bool Step::is_shape_of_y(const Layout& y) const {
  const Layout& x = x_.layout();
  if (!of_y_) return y.same_shape(x);
  return y.n_dims == 1 + static_cast<int>(of_y_->size()) && y.shape[0] == x.shape[0] &&
         std::equal(of_y_->begin(), of_y_->end(), y.shape + 1);
}

void Step::settle(std::optional<Moments> moments, long x_version, long y_version) {
  moments_ = moments;
  settled_ = true;
  moments_x_version_ = x_version;
  moments_y_version_ = y_version;
}

bool Step::settled(const Objective& objective) const {
  if (objective.criterion.kind != CriterionKind::SquaredError || !objective.weight.is_none())
    return true;
  if (moments_)
    return moments_x_version_ == objective.forward->x_version &&
           moments_y_version_ == objective.y_version;
  return settled_ || !promised.count(x_.tensor()) || !promised.count(y_.tensor());
}

// -- the optimizer

void Step::bind(const py::object& owner, bool found, const py::list& watched, const py::list& held,
                const py::list& kept, bool updates, bool covers_owner) {
  owner_ = owner.is_none() ? owner : py::weakref(owner);
  found_ = found;
  Watch watch(watched);
  std::swap(owner_watch_, watch);
  std::vector<Kept> all(tensors_.size() * kKept);
  py::list moved;
  for (py::handle tensor : held) moved.append(tensor);
  for (size_t i = 0; i < kept.size(); ++i) {
    size_t t = 0;
    while (t < tensors_.size() && !tensors_[t].is(held[i])) ++t;
    size_t row = 0;
    for (py::handle tensor : kept[i]) {
      if (!tensor.is_none() && row < kKept && t < tensors_.size()) {
        moved.append(tensor);
        const Layout at = Layout::of(tensor.ptr());
        const bool single = tensor.attr("itemsize").cast<int>() == sizeof(float);
        all[t * kKept + row] = {py::reinterpret_borrow<py::object>(tensor), at,
                                single ? Dtype::Float32 : Dtype::Float64, at.numel() == 1};
      }
      ++row;
    }
  }
  moved_ = std::move(moved);
  std::swap(kept_at_, all);
  updates_ = updates;
  covers_owner_ = covers_owner;
  generation_ = generation();
}

bool Step::bound_to(PyObject* owner) const {
  if (owner) {
    if (owner_.is_none() || referent(owner_.ptr()) != owner) return false;
  } else if (!found_ || generation_ != generation()) {
    return false;
  }
  if (!owner_watch_.unchanged()) return false;
  for (const Kept& kept : kept_at_)
    if (kept.at.address && !kept.at.still_that_of(kept.tensor.ptr())) return false;
  return true;
}

// -- launch and update

bool Step::launch(Objective& objective, int threads) {
  if (!x_.in_place(objective.forward->x.ptr()) || !y_.in_place(objective.y.ptr())) return false;
  Problem problem = plan_.problem;
  problem.data = data_;
  problem.criterion = objective.criterion;
  problem.mean = objective.mean;
  problem.threads = threads;
  const Layout& of_x = x_.layout();
  if (problem.criterion.per_row && of_x.n_dims > 0)
    problem.criterion.weight *= static_cast<double>(data_.n) / static_cast<double>(of_x.shape[0]);
  if (!objective.weight.is_none() && !weigh(problem, objective)) return false;
  const bool squared = problem.criterion.kind == CriterionKind::SquaredError && !problem.data.w;
  const Moments* moments = moments_ && squared ? &*moments_ : nullptr;
  const Forward& forward = *objective.forward;
  const auto look = [&](double* grad) {
    const double* params = forward.params.data();
    return plan_.classes
               ? polyfuse::objective(classes_of(objective, problem.data), threads, params, grad)
               : polyfuse::objective(problem, moments, params, grad);
  };
  double loss;
  if (moments || data_.n < kLongLaunch) {
    loss = look(grad_.data());
  } else {
    std::vector<double> grad(grad_.size());  // other threads may launch meanwhile
    {
      py::gil_scoped_release release;
      loss = look(grad.data());
    }
    grad_ = std::move(grad);
  }
  if (plan_.classes && std::isnan(loss)) {
    const Classes classes = classes_of(objective, problem.data);
    if (const int64_t* bad = class_out_of_range(classes)) {
      PyErr_Format(PyExc_IndexError, "target: expected classes from 0 to %d, got %lld",
                   classes.n_classes - 1, static_cast<long long>(*bad));
      throw py::error_already_set();
    }
  }
  count_launch();
  if (dtype_ == Dtype::Float32) {
    loss = static_cast<float>(loss);
    for (double& g : grad_) g = static_cast<float>(g);
  }
  params_ = forward.params;
  objective.value = loss;
  objective.launch = ++launch_;
  computed_ = updates_;
  if (!updates_) return true;
  for_each_kept([](double& number, const Kept& kept, int64_t element) {
    number = read(kept.dtype, kept.at.address, element);
  });
  update();
  return true;
}

bool Step::weigh(Problem& problem, const Objective& objective) const {
  const Layout of_w = Layout::of_any(objective.weight.ptr());
  const Layout& like = plan_.classes ? x_.layout() : y_.layout();
  if (!of_w.serves_as(like) || !of_w.same_shape(like)) return false;
  problem.data.w = of_w.address;
  problem.data.w_stride = of_w.n_dims == 1 ? of_w.stride[0] : 1;
  const CriterionKind kind = problem.criterion.kind;
  // Torch's mean is that of the weights for these two, and over the samples for others.
  if (objective.weighted_mean) return true;
  if (kind == CriterionKind::SquaredError || kind == CriterionKind::AbsoluteError) return true;
  if (problem.mean) problem.criterion.weight /= static_cast<double>(data_.n);
  problem.mean = false;
  return true;
}

Classes Step::classes_of(const Objective& objective, const Data& data) const {
  Classes classes = plan_.classes.value_or(Classes{});
  classes.x = {data.x, data.x_stride, 0, dtype_};
  classes.w = {data.w, data.w_stride, 0, dtype_};
  classes.n = data.n;
  if (y_.layout().n_dims == 1) {
    classes.index = static_cast<const int64_t*>(data.y);
    classes.index_stride = data.y_stride;
  } else {
    classes.share = {data.y, classes.n_classes, 1, dtype_};
  }
  classes.criterion = objective.criterion;
  classes.mean = objective.mean;
  return classes;
}

template <class F>
void Step::for_each_kept(F&& f) {
  for (size_t i = 0; i < slots_.size(); ++i)
    for (int row = 0; row < kKept; ++row) {
      const Kept& kept = kept_of(slots_[i], row);
      if (kept.at.address) f(kept_[i * kKept + row], kept, kept.scalar ? 0 : slots_[i].element);
    }
}

// next_ and next_kept_ from params_, grad_ and kept_, in the precision of the parameters.
void Step::update() {
  for (size_t i = 0; i < slots_.size(); ++i) {
    double *const kept = &kept_[i * kKept], *const next = &next_kept_[i * kKept];
    const UpdateRule& rule = plan_.rule[i];
    if (rule.method == Method::Sgd)
      kept[Sgd::kFilled] = kept_of(slots_[i], Sgd::kBuffer).at.address ? 1.0 : 0.0;
    const auto in = [&](auto p, auto g) {
      decltype(p) numbers[kKept];
      std::copy(kept, kept + kKept, numbers);
      polyfuse::update(rule, p, g, numbers);
      next_[i] = p;
      std::copy(numbers, numbers + kKept, next);
    };
    if (dtype_ == Dtype::Float32)
      in(float(params_[i]), float(grad_[i]));
    else
      in(params_[i], grad_[i]);
  }
}

bool Step::install(PyObject* owner) {
  if (!computed_ || !bound_to(owner) || grads_.empty()) return false;
  computed_ = false;
  for (size_t t = 0; t < tensors_.size(); ++t) {
    if (!param_at_[t].still_that_of(tensors_[t].ptr())) return false;
    if (!trainable_[t]) continue;
    if (!torch().grad.is(tensors_[t].ptr(), grads_[t].ptr())) return false;
    if (!grad_at_[t].still_that_of(grads_[t].ptr())) return false;
  }
  bool same = true;
  const auto refresh = [&](double& was, double is) {
    same = same && bits_of(was) == bits_of(is);
    was = is;
  };
  for (size_t i = 0; i < slots_.size(); ++i) {
    const Slot slot = slots_[i];
    refresh(params_[i], read(dtype_, param_at_[slot.tensor].address, slot.element));
    if (trainable_[slot.tensor])
      refresh(grad_[i], read(dtype_, grad_at_[slot.tensor].address, slot.element));
  }
  for_each_kept([&](double& number, const Kept& kept, int64_t element) {
    refresh(number, read(kept.dtype, kept.at.address, element));
  });
  if (!same) {
    count_launch();
    launch_++;  // grad_ is no longer that of an objective
    update();
  }
  for (size_t i = 0; i < slots_.size(); ++i) {
    const Slot slot = slots_[i];
    if (plan_.rule[i].method == Method::None) continue;
    write(dtype_, param_at_[slot.tensor].address, slot.element, next_[i]);
    for (int row = 0; row < kKept; ++row)
      if (const Kept& kept = kept_of(slot, row); kept.at.address)
        write(kept.dtype, kept.at.address, kept.scalar ? 0 : slot.element,
              next_kept_[i * kKept + row]);
  }
  torch().increment_version(moved_.ptr());
  return true;
}

}  // namespace polyfuse
