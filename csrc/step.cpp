#include "step.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <utility>

#include "core/optimizer.h"
#include "element.h"

namespace polyfuse {
namespace {

int64_t n_launches = 0, n_generations = 0;

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
