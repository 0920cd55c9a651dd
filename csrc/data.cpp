// What a step does with data: which it reads as that before, and what it tells the kernels of it.
#include <algorithm>
#include <unordered_set>
#include <utility>

#include "step.h"

namespace polyfuse {
namespace {

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

bool serves_all_of(const Layout& weight, const Layout& like) {
  return weight.serves_as(like) && weight.same_shape(like);
}

}  // namespace

void promise(py::handle tensor) {
  promised.insert(tensor.ptr());
  next_generation();
}
void end_promise(uintptr_t tensor) { promised.erase(reinterpret_cast<PyObject*>(tensor)); }

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
  if (plan_.stacked && has_own_x()) data_.n /= plan_.stacked->n_outputs;
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

}  // namespace polyfuse
