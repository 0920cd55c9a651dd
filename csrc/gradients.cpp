// What a step does with gradients: the tensors that backward fills, and when it may.
#include <utility>

#include "element.h"
#include "step.h"

namespace polyfuse {

bool Step::hooked() const {
  for (const py::object& tensor : tensors_)
    if (!torch().backward_hooks.none(tensor.ptr()) || !torch().accumulate_hooks.none(tensor.ptr()))
      return true;
  return false;
}

void Step::set_grads(const py::tuple& grads, uintptr_t storage, long uses) {
  std::vector<py::object> fresh;
  for (py::handle g : grads) fresh.push_back(py::reinterpret_borrow<py::object>(g));
  grad_at_ = layouts(fresh);
  grads_.swap(fresh);
  storage_ = py::int_(storage);
  uses_ = uses;
}

bool Step::grads_are_free() const {
  for (size_t t = 0; t < grads_.size(); ++t) {
    const py::object& g = grads_[t];
    if (g.ref_count() != 1 || !grad_at_[t].still_that_of(g.ptr())) return false;
    if (number(torch().use_count.call(g.ptr())) != 1) return false;
  }
  return !grads_.empty() && number(torch().storage_use_count(storage_.ptr())) == uses_;
}

int Step::give_grads(const Objective& objective) {
  if (!holds(objective)) return kStale;
  if (hooked() || !parameters_in_place()) return kUnlike;
  for (const py::object& tensor : tensors_)
    if (!torch().grad.is(tensor.ptr(), Py_None)) return kAccumulate;
  if (!grads_are_free()) return kHeld;
  set_grads_to(grad_.data());
  return kGiven;
}

bool Step::replace_grads(const py::array_t<double>& values) {
  for (size_t t = 0; t < tensors_.size(); ++t)
    if (trainable_[t]) torch().grad.set(tensors_[t].ptr(), Py_None);
  if (!grads_are_free()) return false;
  set_grads_to(values.data());
  return true;
}

void Step::set_grads_to(const double* values) {
  for (const Stretch& s : stretches_)
    write(dtype_, grad_at_[s.tensor].address, s.element, s.count, values + s.begin);
  for (size_t t = 0; t < tensors_.size(); ++t)
    if (trainable_[t]) torch().grad.set(tensors_[t].ptr(), grads_[t].ptr());
}

py::array_t<double> Step::grads() const {
  return py::array_t<double>(static_cast<py::ssize_t>(grad_.size()), grad_.data());
}

bool Step::exchange(const py::list& spares, const py::list& kept_spares) {
  // References to a storage and its Python object, one of which is held here; what they are where
  // nobody else holds any differs between versions of torch.
  const auto holders = [](py::handle tensor) {
    const py::object storage = tensor.attr("untyped_storage")(), address = storage.attr("_cdata");
    return std::pair<Py_ssize_t, long>(storage.ref_count(),
                                       number(torch().storage_use_count(address.ptr())));
  };
  static const auto fewest = holders(torch().tensor(1));
  const auto alone = [&](PyObject* tensor, int held_here) {
    const auto [objects, uses] = holders(tensor);
    return objects == fewest.first + held_here && uses == fewest.second;
  };
  for (size_t t = 0; t < tensors_.size(); ++t)
    if (!spares[t].is_none() && !alone(tensors_[t].ptr(), 1)) return false;
  for (size_t k = 0; k < kept_at_.size(); ++k)
    if (!kept_spares[k].is_none() && !alone(kept_at_[k].tensor.ptr(), 0)) return false;
  const auto swap = [](PyObject* tensor, const py::list& from, size_t t) {
    if (from[t].is_none()) return false;
    const py::object now = torch().detach.call(tensor), next = from[t];
    torch().data.set(tensor, next.ptr());
    from[t] = now;
    return true;
  };
  for (size_t t = 0; t < tensors_.size(); ++t)
    if (swap(tensors_[t].ptr(), spares, t)) {
      storages_[t] = tensors_[t].attr("untyped_storage")();
      param_at_[t] = Layout::of(tensors_[t].ptr());
    }
  for (size_t k = 0; k < kept_at_.size(); ++k)
    if (Kept& kept = kept_at_[k]; swap(kept.tensor.ptr(), kept_spares, k))
      kept.at = Layout::of(kept.tensor.ptr());
  return true;
}

}  // namespace polyfuse
