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

// Whether numbers are those of before, bit for bit; and sets those.
bool refresh(double* before, Dtype dtype, const void* base, int64_t element, int64_t count) {
  constexpr int64_t kAtOnce = 64;
  double now[kAtOnce];
  bool same = true;
  for (int64_t i = 0; i < count; i += kAtOnce) {
    const int64_t n = std::min(kAtOnce, count - i);
    read(dtype, base, element + i, n, now);
    if (std::memcmp(before + i, now, sizeof(double) * n) == 0) continue;
    same = false;
    std::copy_n(now, n, before + i);
  }
  return same;
}

bool serves_all_of(const Layout& weight, const Layout& like) {
  return weight.serves_as(like) && weight.same_shape(like);
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

Step::Step(Plan& plan, const py::tuple& tensors, const py::list& stretches, Dtype dtype,
           const py::list& watched, std::optional<std::vector<int64_t>> of_y)
    : plan_(plan), dtype_(dtype), of_y_(std::move(of_y)), module_watch_(watched) {
  for (py::handle t : tensors) {
    tensors_.push_back(py::reinterpret_borrow<py::object>(t));
    storages_.push_back(t.attr("untyped_storage")());
    trainable_.push_back(t.attr("requires_grad").cast<bool>());
  }
  int64_t n = 0;
  for (py::handle s : stretches) {
    const auto [tensor, element, count] = s.cast<std::tuple<int, int64_t, int64_t>>();
    stretches_.push_back({tensor, element, count, n});
    n += count;
  }
  param_at_ = layouts(tensors_);
  for (auto* of_each : {&params_, &grad_, &next_}) of_each->resize(static_cast<size_t>(n));
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
  stretches_.clear();
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

std::vector<py::object> Step::trained() const {
  std::vector<py::object> result;
  for (size_t t = 0; t < tensors_.size(); ++t)
    if (trainable_[t]) result.push_back(tensors_[t]);
  return result;
}

void Step::snapshot(double* params) const {
  for (const Stretch& s : stretches_)
    read(dtype_, param_at_[s.tensor].address, s.element, s.count, params + s.begin);
}

bool Step::unchanged_since(const Forward& forward) const {
  std::vector<double> now(forward.params.size());
  snapshot(now.data());
  return std::memcmp(now.data(), forward.params.data(), now.size() * sizeof(double)) == 0;
}

void Step::store(const py::array_t<double>& params) {
  for (const Stretch& s : stretches_)
    write(dtype_, param_at_[s.tensor].address, s.element, s.count, params.data() + s.begin);
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
  if (has_own_x()) data_.n /= plan_.stacked->n_outputs;
  data_.y_stride = of_y.n_dims == 1 ? of_y.stride[0] : 1;
  data_.dtype = dtype_;
  moments_ = {};
  settled_ = false;
}

bool Step::adopt(PyObject* x) {
  const Layout layout = is_plain(x) ? Layout::of_any(x) : Layout{};
  const Layout& like = x_.layout();
  if (!layout.serves_as(like) || recorded()) return false;
  for (int i = 1; i < layout.n_dims; ++i)
    if (layout.shape[i] != like.shape[i]) return false;
  if (of_y_ && !plan_.stacked && layout.shape[0] < 2) return false;  // one row is traced anew
  see(py::reinterpret_borrow<py::object>(x), py::none());
  return true;
}

bool Step::adopt_target(PyObject* y) {
  if (!x_.tensor()) return false;
  const Layout layout = is_plain(y) ? Layout::of_any(y) : Layout{};
  if (plan_.stacked && target_.kind != x_.layout().kind) {  // classes
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

bool Step::fits_target(PyObject* weight) const {
  return weight == Py_None || serves_all_of(Layout::of_any(weight), y_.layout());
}

void Step::settle(AnyMoments moments, long x_version, long y_version) {
  moments_ = std::move(moments);
  settled_ = true;
  moments_x_version_ = x_version;
  moments_y_version_ = y_version;
}

bool Step::settled(const Objective& objective) const {
  if (objective.criterion.kind != CriterionKind::SquaredError || !objective.weight.is_none())
    return true;
  if (has_moments())
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
        kept_[row].resize(params_.size()), next_kept_[row].resize(params_.size());
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
    problem.criterion.weight *= static_cast<double>(n_elements()) / of_x.shape[0];
  if (!objective.weight.is_none() && !weigh(problem, objective)) return false;
  const bool squared = problem.criterion.kind == CriterionKind::SquaredError && !problem.data.w;
  const bool known = has_moments() && squared;
  const Forward& forward = *objective.forward;
  const Stacked stacked = plan_.stacked ? stacked_of(problem) : Stacked{};
  if (plan_.stacked) problem.stacked = &stacked;
  double loss;
  if (known || n_elements() < kLongLaunch) {
    loss = look(problem, known, forward.params.data(), grad_.data());
  } else {
    std::vector<double> grad(grad_.size());  // other threads may launch meanwhile
    {
      py::gil_scoped_release release;
      loss = look(problem, known, forward.params.data(), grad.data());
    }
    grad_ = std::move(grad);
  }
  if (plan_.stacked && std::isnan(loss)) {
    if (const int64_t* bad = class_out_of_range(polyfuse::stacked_of(problem))) {
      PyErr_Format(PyExc_IndexError, "target: expected classes from 0 to %d, got %lld",
                   stacked.n_outputs - 1, static_cast<long long>(*bad));
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
  for_each_kept([&](int row, int64_t begin, const Kept& kept, int64_t element, int64_t count) {
    read(kept.dtype, kept.at.address, element, count, &kept_[row][begin]);
  });
  update();
  return true;
}

double Step::look(const Problem& problem, bool known, const double* params, double* grad) const {
  if (!known) return polyfuse::objective(problem, nullptr, params, grad);
  if (const auto* moments = std::get_if<StackedMoments>(&moments_))
    return polyfuse::objective(polyfuse::stacked_of(problem), *moments, params, grad);
  if (const auto* moments = std::get_if<SurfaceMoments>(&moments_))
    return polyfuse::objective(problem, *moments, params, grad);
  return polyfuse::objective(problem, &std::get<Moments>(moments_), params, grad);
}

bool Step::weigh(Problem& problem, const Objective& objective) const {
  const Layout of_w = Layout::of_any(objective.weight.ptr());
  Layout like = y_.layout();
  if (objective.criterion.kind == CriterionKind::CrossEntropy) {  // one of every sample, as of x
    like = x_.layout();
    like.n_dims = 1;
  }
  if (!serves_all_of(of_w, like)) return false;
  problem.data.w = of_w.address;
  problem.data.w_stride = of_w.n_dims == 1 ? of_w.stride[0] : 1;
  const CriterionKind kind = problem.criterion.kind;
  // Torch's mean is that of the weights for these two, and over the samples for others.
  if (objective.weighted_mean) return true;
  if (kind == CriterionKind::SquaredError || kind == CriterionKind::AbsoluteError) return true;
  if (problem.mean) problem.criterion.weight /= static_cast<double>(n_elements());
  problem.mean = false;
  return true;
}

Stacked Step::stacked_of(const Problem& problem) const {
  Stacked stacked = plan_.stacked.value_or(Stacked{});
  const int64_t outputs = stacked.n_outputs;
  const int64_t column = x_.layout().n_dims > 1 ? 1 : 0;
  stacked.x = {data_.x, has_own_x() ? outputs : data_.x_stride, column, dtype_};
  stacked.n = data_.n;
  const auto rows = [&](const void* at, int64_t stride) {
    return Series{at, y_.layout().n_dims == 1 ? stride : outputs, 1, dtype_};
  };
  if (has_classes()) {
    stacked.index = static_cast<const int64_t*>(data_.y);
    stacked.index_stride = data_.y_stride;
  } else {
    stacked.y = rows(data_.y, data_.y_stride);
  }
  if (problem.criterion.kind == CriterionKind::CrossEntropy)
    stacked.w = {problem.data.w, problem.data.w_stride, 0, dtype_};
  else
    stacked.w = rows(problem.data.w, problem.data.w_stride);
  return stacked;
}

template <class F>
void Step::for_each_kept(F&& f) {
  for (const Stretch& s : stretches_)
    for (int row = 0; row < kKept; ++row)
      if (const Kept& kept = kept_of(s, row); kept.at.address)
        f(row, s.begin, kept, kept.scalar ? 0 : s.element, kept.scalar ? 1 : s.count);
}

// next_ and next_kept_ from params_, grad_ and kept_, in the precision of the parameters.
void Step::update() {
  for (const Stretch& s : stretches_)
    if (dtype_ == Dtype::Float32)
      update<float>(s);
    else
      update<double>(s);
}

template <class T>
void Step::update(const Stretch& s) {
  const UpdateRule rule = rule_of(s);
  T numbers[kKept] = {};
  double *from[kKept] = {}, *to[kKept] = {};  // of rows with a number for every parameter
  for (int row = 0; row < kKept; ++row) {
    const Kept& kept = kept_of(s, row);
    if (!kept.at.address) continue;
    numbers[row] = T(kept_[row][s.begin]);
    if (!kept.scalar) from[row] = &kept_[row][s.begin], to[row] = &next_kept_[row][s.begin];
  }
  if (rule.method == Method::Sgd)
    numbers[Sgd::kFilled] = kept_of(s, Sgd::kBuffer).at.address ? T(1) : T(0);
  const double *const params = &params_[s.begin], *const grad = &grad_[s.begin];
  double* const next = &next_[s.begin];
  const bool keeps = std::any_of(from, from + kKept, [](const double* row) { return row; });
  with_rule(rule.method, [&](auto of) {
    double rate[kRates];
    of.advance(rule.option, numbers, rate);
    const auto each = [&](auto with_rows) {
      for (int64_t i = 0; i < s.count; ++i) {
        T p = T(params[i]);
        for (int row = 0; with_rows() && row < kKept; ++row)
          if (from[row]) numbers[row] = T(from[row][i]);
        of.update(rule.option, rate, p, T(grad[i]), numbers);
        next[i] = p;
        for (int row = 0; with_rows() && row < kKept; ++row)
          if (to[row]) to[row][i] = numbers[row];
      }
    };
    keeps ? each(std::true_type{}) : each(std::false_type{});
  });
  for (int row = 0; row < kKept; ++row)
    if (kept_of(s, row).scalar) next_kept_[row][s.begin] = numbers[row];
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
  const auto check = [&](double* before, Dtype dtype, const void* base, int64_t element,
                         int64_t count) {
    const bool unchanged = refresh(before, dtype, base, element, count);
    same = same && unchanged;
  };
  for (const Stretch& s : stretches_) {
    check(&params_[s.begin], dtype_, param_at_[s.tensor].address, s.element, s.count);
    if (trainable_[s.tensor])
      check(&grad_[s.begin], dtype_, grad_at_[s.tensor].address, s.element, s.count);
  }
  for_each_kept([&](int row, int64_t begin, const Kept& kept, int64_t element, int64_t count) {
    check(&kept_[row][begin], kept.dtype, kept.at.address, element, count);
  });
  if (!same) {
    count_launch();
    launch_++;  // grad_ is no longer that of an objective
    update();
  }
  for (const Stretch& s : stretches_)
    if (rule_of(s).method != Method::None)
      write(dtype_, param_at_[s.tensor].address, s.element, s.count, &next_[s.begin]);
  for_each_kept([&](int row, int64_t begin, const Kept& kept, int64_t element, int64_t count) {
    write(kept.dtype, kept.at.address, element, count, &next_kept_[row][begin]);
  });
  torch().increment_version(moved_.ptr());
  return true;
}

}  // namespace polyfuse
