#include "loop.h"

#include <structmember.h>

#include <type_traits>
#include <unordered_map>
#include <utility>

namespace polyfuse {
namespace {

constexpr size_t kPoolSize = 5;

// Where a wrapper that was pooled comes from; exactly one of the records is there.
struct Origin {
  PyObject* loop_object;
  Loop* loop;
  Forward* forward;
  Objective* objective;
};
std::unordered_map<PyObject*, Origin> origins;

const Origin* origin_of(PyObject* wrapper) {
  const auto found = origins.find(wrapper);
  return found == origins.end() ? nullptr : &found->second;
}

// A __slots__ entry, read past Python's look-up of it by name.
class InstanceSlot {
 public:
  void declare(const py::type& type, const char* name) {
    type_ = reinterpret_cast<PyTypeObject*>(py::object(type).release().ptr());
    const py::object descriptor = type.attr(name);
    offset_ = reinterpret_cast<PyMemberDescrObject*>(descriptor.ptr())->d_member->offset;
  }
  PyObject* get(PyObject* instance) const {  // borrowed; null for other types and while unset
    if (!type_ || !PyObject_TypeCheck(instance, type_)) return nullptr;
    return *reinterpret_cast<PyObject**>(reinterpret_cast<char*>(instance) + offset_);
  }

 private:
  PyTypeObject* type_ = nullptr;
  Py_ssize_t offset_ = 0;
};
InstanceSlot loop_slot, pending_slot;

Loop* loop_of(PyObject* object) {
  static const auto* info = py::detail::get_type_info(typeid(Loop));
  if (!object || Py_TYPE(object) != info->type) return nullptr;
  const auto* instance = reinterpret_cast<py::detail::instance*>(object);
  return instance->simple_layout ? static_cast<Loop*>(instance->simple_value_holder[0]) : nullptr;
}

// Whether gradients are recorded, and nothing looks on at torch's functions.
bool undisturbed() {
  const Torch& names = torch();
  const bool recording = names.shim.handle ? names.shim.grad_mode_is_enabled()
                                           : names.is_grad_enabled().is(py::bool_(true));
  return recording && number(names.function_modes()) == 0 && number(names.dispatch_modes()) == 0;
}

// Whether something looks on at what torch saves for backward, or at its results there.
bool backward_watched() {
  const Torch& names = torch();
  if (names.is_anomaly_enabled().is(py::bool_(true))) return true;
  return !names.saved_tensors_hooks.is_none() && !names.saved_tensors_hooks(Py_False).is_none();
}

bool inside_ddp() {
  const auto active = py::reinterpret_steal<py::object>(
      PyObject_GetAttr(torch().distributed.ptr(), torch().active_ddp_module.ptr()));
  return !active.is_none();
}

}  // namespace

int Loop::visit(visitproc visit, void* arg) const {
  Py_VISIT(criterion_module_.ptr());
  Py_VISIT(criterion_object_.ptr());
  Py_VISIT(criterion_weight_.ptr());
  for (const auto& p : predictions_) {
    Py_VISIT(p.wrapper.ptr());
    Py_VISIT(p.record_object.ptr());
  }
  for (const auto& p : losses_) {
    Py_VISIT(p.wrapper.ptr());
    Py_VISIT(p.record_object.ptr());
  }
  if (const int stop = criterion_watch_.visit(visit, arg)) return stop;
  return Step::visit(visit, arg);
}

void Loop::clear() {
  forget();
  predictions_.clear();
  losses_.clear();
  criterion_module_ = criterion_object_ = criterion_weight_ = {};
  criterion_watch_ = {};
  Step::clear();
}

void Loop::forget() {
  for (const auto& p : predictions_) origins.erase(p.wrapper.ptr());
  for (const auto& p : losses_) origins.erase(p.wrapper.ptr());
}

void Loop::begin(Forward& forward, py::object x) const {
  forward.start(std::move(x));
  snapshot(forward.params.data());
}

// The last reference to a tensor may let other threads run: what is dropped is kept in a variable
// until the pools are whole again.
template <class Record>
void Loop::add(Pool<Record>& pool, py::handle self, py::object wrapper, const py::object& record) {
  Pooled<Record> dropped;
  if (pool.size() == kPoolSize) {  // somebody keeps all of them, the first for longest
    dropped = std::move(pool.front());
    origins.erase(dropped.wrapper.ptr());
    pool.erase(pool.begin());
  }
  auto* known = record.cast<Record*>();
  Origin origin{self.ptr(), this, nullptr, nullptr};
  Layout of_x;
  if constexpr (std::is_same_v<Record, Forward>) {
    origin.forward = known;
    of_x = Layout::of(known->x.ptr());
  } else {
    origin.objective = known;
  }
  origins[wrapper.ptr()] = origin;
  pool.push_back({std::move(wrapper), record, known, of_x});
}

void Loop::pool_prediction(py::handle self, py::object wrapper, const py::object& record) {
  add(predictions_, self, std::move(wrapper), record);
}

void Loop::pool_loss(py::handle self, py::object wrapper, const py::object& record) {
  add(losses_, self, std::move(wrapper), record);
}

void Loop::unpool(py::handle wrapper) {
  const auto found = origins.find(wrapper.ptr());
  if (found == origins.end()) return;
  Loop& loop = *found->second.loop;
  origins.erase(found);
  const auto drop = [&](auto& pool) {
    for (auto p = pool.begin(); p != pool.end(); ++p)
      if (p->wrapper.is(wrapper)) {
        const auto dropped = std::move(*p);
        pool.erase(p);
        return;
      }
  };
  drop(loop.predictions_);
  drop(loop.losses_);
}

template <class Record>
Loop::Pooled<Record> Loop::unheld(const Pool<Record>& pool, const Layout* of_x) {
  Pooled<Record> found, idle;
  for (const auto& pooled : pool) {
    if (pooled.wrapper.ref_count() != 1 ||         // the pool's
        pooled.record_object.ref_count() != 2 ||   // the pool's and the wrapper's
        (of_x && !pooled.of_x.same_shape(*of_x)))  // the wrapper keeps its shape
      continue;
    if (found.record) {
      idle = pooled;
      break;
    }
    found = pooled;
  }
  if (idle.record) idle.record->clear();  // lets go of its data
  return found;
}

void Loop::see_criterion(py::object module, const py::list& watched, py::object criterion,
                         bool mean) {
  std::swap(criterion_module_, module);
  std::swap(criterion_object_, criterion);
  criterion_ = criterion_object_.cast<const Criterion&>();
  criterion_weight_ = criterion_object_.attr("samples");
  Watch watch(watched);
  std::swap(criterion_watch_, watch);
  mean_ = mean;
}

void Loop::offer(py::handle self) const {
  if (!computed_ || owner_.is_none()) return;
  PyObject* owner = referent(owner_.ptr());
  PyObject* pending = owner ? pending_slot.get(owner) : nullptr;
  if (!pending) return;
  for (Py_ssize_t i = 0; i < PyList_GET_SIZE(pending); ++i)
    if (PyList_GET_ITEM(pending, i) == self.ptr()) return;
  if (PyList_Append(pending, self.ptr()) < 0) throw py::error_already_set();
}

void Loop::declare_module(const py::type& module) { loop_slot.declare(module, "_loop"); }

void Loop::declare_optimizer(const py::type& optimizer) {
  pending_slot.declare(optimizer, "_pending");
}

// y_pred = model(x)
PyObject* Loop::predict(PyObject* const* args, size_t n_args) {
  if (n_args != 2) return nullptr;
  Loop* loop = loop_of(loop_slot.get(args[0]));
  if (!loop || !loop->in_place() || !undisturbed() || backward_watched() || inside_ddp() ||
      !(loop->sees(args[1]) || loop->adopt(args[1])))
    return nullptr;
  auto pooled = unheld(loop->predictions_, &loop->x_.layout());
  if (!pooled.record) return nullptr;
  loop->begin(*pooled.record, py::reinterpret_borrow<py::object>(args[1]));
  return pooled.wrapper.release().ptr();
}

// loss = criterion(y_pred, y)
PyObject* Loop::objective(PyObject* const* args, size_t n_args) {
  if (n_args != 3) return nullptr;
  const Origin* origin = origin_of(args[1]);
  if (!origin || !origin->forward) return nullptr;
  Loop* loop = origin->loop;
  Forward* forward = origin->forward;
  py::object forward_object;  // held from here on: other threads may run below
  for (const auto& p : loop->predictions_)
    if (p.record == forward) forward_object = p.record_object;
  if (!loop->sees_criterion(args[0]) || !loop->x_.is(forward->x.ptr()) || !forward->untouched() ||
      !undisturbed() || !(loop->sees_target(args[2]) || loop->adopt_target(args[2])) ||
      !loop->serves(loop->criterion_) || !loop->fits_target(loop->criterion_weight_.ptr()))
    return nullptr;
  auto pooled = unheld(loop->losses_);
  if (!pooled.record) return nullptr;
  Objective& objective = *pooled.record;
  auto y = py::reinterpret_borrow<py::object>(args[2]);
  std::swap(objective.forward_object, forward_object);
  std::swap(objective.y, y);
  objective.forward = forward;
  objective.y_version = version_of(args[2]);
  auto criterion_object = loop->criterion_object_;
  std::swap(objective.criterion_object, criterion_object);
  objective.criterion = loop->criterion_;
  objective.take_weight(loop->criterion_weight_);
  objective.mean = loop->mean_;
  objective.value.reset();
  if (!objective.real.is_none()) objective.real = py::none();
  objective.freed = false;
  objective.launch = 0;
  return pooled.wrapper.release().ptr();
}

// optimizer.zero_grad()
PyObject* Loop::zero_grad(PyObject* const* args, size_t n_args) {
  if (n_args != 1 || !pending_slot.get(args[0])) return nullptr;
  const auto groups =
      py::reinterpret_steal<py::object>(PyObject_GetAttr(args[0], torch().param_groups.ptr()));
  if (!groups) throw py::error_already_set();
  if (!clear_grads(groups.ptr())) return nullptr;
  Py_RETURN_NONE;
}

// loss.backward()
PyObject* Loop::backward(PyObject* const* args, size_t n_args) {
  if (n_args != 1) return nullptr;
  const Origin* found = origin_of(args[0]);
  if (!found || !found->objective) return nullptr;
  const Origin origin = *found;  // a copy, and a reference: other threads may run in the launch
  const auto keep = py::reinterpret_borrow<py::object>(origin.loop_object);
  Loop* loop = origin.loop;
  Objective& objective = *origin.objective;
  Forward& forward = *objective.forward;
  if (!loop->as_trainable() || objective.freed || forward.freed || !objective.real.is_none() ||
      !forward.untouched() || version_of(forward.x.ptr()) != forward.x_version ||
      version_of(objective.y.ptr()) != objective.y_version || !objective.weight_unchanged())
    return nullptr;
  if (!loop->holds(objective)) {
    if (!loop->bound_to(nullptr) || !loop->settled(objective) ||
        !loop->launch(objective, loop->n_elements() < kLongLaunch
                                     ? 1
                                     : static_cast<int>(number(torch().get_num_threads()))))
      return nullptr;
  }
  if (loop->give_grads(objective) != kGiven) return nullptr;
  loop->offer(keep);
  objective.freed = forward.freed = true;
  Py_RETURN_NONE;
}

// optimizer.step()
PyObject* Loop::step(PyObject* const* args, size_t n_args) {
  if (n_args != 1) return nullptr;
  PyObject* pending = pending_slot.get(args[0]);
  if (!pending || PyList_GET_SIZE(pending) != 1) return nullptr;
  Loop* loop = loop_of(PyList_GET_ITEM(pending, 0));
  if (!loop || !loop->covers_owner() || !loop->install(args[0])) return nullptr;
  if (PyList_SetSlice(pending, 0, 1, nullptr) < 0) throw py::error_already_set();
  Py_RETURN_NONE;
}

py::object Loop::fast(const std::string& name, py::object method) {
  static const std::unordered_map<std::string, Answer> answers = {{"predict", predict},
                                                                  {"objective", objective},
                                                                  {"zero_grad", zero_grad},
                                                                  {"backward", backward},
                                                                  {"step", step}};
  return make_fast(answers.at(name), std::move(method));
}

bool clear_grads(PyObject* param_groups) {
  auto* base = reinterpret_cast<PyTypeObject*>(torch().tensor_base.ptr());
  const auto params_of = [](PyObject* group) {
    PyObject* list = PyDict_Check(group) ? PyDict_GetItem(group, torch().params.ptr()) : nullptr;
    return list && PyList_Check(list) ? list : nullptr;
  };
  if (!PyList_Check(param_groups)) return false;
  for (py::handle group : py::reinterpret_borrow<py::list>(param_groups)) {
    PyObject* list = params_of(group.ptr());
    if (!list) return false;
    for (Py_ssize_t i = 0; i < PyList_GET_SIZE(list); ++i)
      if (!PyObject_TypeCheck(PyList_GET_ITEM(list, i), base)) return false;
  }
  for (py::handle group : py::reinterpret_borrow<py::list>(param_groups)) {
    PyObject* list = params_of(group.ptr());
    for (Py_ssize_t i = 0; i < PyList_GET_SIZE(list); ++i)
      torch().grad.set(PyList_GET_ITEM(list, i), Py_None);
  }
  return true;
}

}  // namespace polyfuse
