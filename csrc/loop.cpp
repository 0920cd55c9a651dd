#include "loop.h"

#include <structmember.h>

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
  py::detail::type_caster_generic caster(info);
  return caster.load(object, false) ? static_cast<Loop*>(caster.value) : nullptr;
}

PyObject* imported(const char* module, const char* name) {
  return py::object(py::module_::import(module).attr(name)).release().ptr();
}

bool grad_enabled() {
  static PyObject* is_grad_enabled = imported("torch._C", "is_grad_enabled");
  const auto enabled = py::reinterpret_steal<py::object>(PyObject_CallNoArgs(is_grad_enabled));
  return enabled.ptr() == Py_True;
}

bool inside_ddp() {
  static PyObject* ddp = imported("torch.nn.parallel", "DistributedDataParallel");
  static PyObject* name = PyUnicode_InternFromString("_active_ddp_module");
  const auto active = py::reinterpret_steal<py::object>(PyObject_GetAttr(ddp, name));
  return active.ptr() != Py_None;
}

int torch_threads() {
  static PyObject* get_num_threads = imported("torch", "get_num_threads");
  return py::reinterpret_borrow<py::object>(get_num_threads)().cast<int>();
}

}  // namespace

int Loop::visit(visitproc visit, void* arg) const {
  Py_VISIT(criterion_.ptr());
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
  criterion_ = {};
  criterion_watch_ = {};
  Step::clear();
}

void Loop::forget() {
  for (const auto& p : predictions_) origins.erase(p.wrapper.ptr());
  for (const auto& p : losses_) origins.erase(p.wrapper.ptr());
}

void Loop::begin(Forward& forward, py::object x) const {
  forward.x = x;
  forward.x_version = version_of(x.ptr());
  if (!forward.plain.is_none()) forward.plain = py::none();
  if (!forward.real.is_none()) forward.real = py::none();
  forward.freed = false;
  snapshot(forward.params.data());
}

void Loop::pool_prediction(py::handle self, py::object wrapper, const py::object& record) {
  if (predictions_.size() == kPoolSize) return;
  predictions_.push_back({wrapper, record, record.cast<Forward*>()});
  origins[wrapper.ptr()] = {self.ptr(), this, predictions_.back().record, nullptr};
}

void Loop::pool_loss(py::handle self, py::object wrapper, const py::object& record) {
  if (losses_.size() == kPoolSize) return;
  losses_.push_back({wrapper, record, record.cast<Objective*>()});
  origins[wrapper.ptr()] = {self.ptr(), this, nullptr, losses_.back().record};
}

template <class Record>
const Loop::Pooled<Record>* Loop::unheld(const Pool<Record>& pool) {
  for (const auto& pooled : pool)
    if (pooled.wrapper.ref_count() == 1 &&      // the pool's
        pooled.record_object.ref_count() == 2)  // the pool's and the wrapper's
      return &pooled;
  return nullptr;
}

void Loop::see_criterion(py::object criterion, const py::list& watched, bool mean) {
  criterion_ = std::move(criterion);
  criterion_watch_ = Watch(watched);
  mean_ = mean;
}

void Loop::offer(py::handle self) const {
  if (!computed_ || owner_.is_none()) return;
  PyObject* pending = pending_slot.get(owner_().ptr());
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
  if (!loop || !loop->unchanged() || !grad_enabled() || inside_ddp() ||
      !(loop->sees(args[1]) || loop->adopt(args[1])))
    return nullptr;
  const auto* pooled = unheld(loop->predictions_);
  if (!pooled) return nullptr;
  loop->begin(*pooled->record, py::reinterpret_borrow<py::object>(args[1]));
  return py::object(pooled->wrapper).release().ptr();
}

// loss = criterion(y_pred, y)
PyObject* Loop::objective(PyObject* const* args, size_t n_args) {
  if (n_args != 3) return nullptr;
  const Origin* origin = origin_of(args[1]);
  if (!origin || !origin->forward) return nullptr;
  Loop* loop = origin->loop;
  Forward* forward = origin->forward;
  if (!loop->sees_criterion(args[0]) || !loop->x_.tensor().is(forward->x) ||
      !forward->untouched() || !grad_enabled() ||
      !(loop->sees_target(args[2]) || loop->adopt_target(args[2])))
    return nullptr;
  const auto* pooled = unheld(loop->losses_);
  if (!pooled) return nullptr;
  Objective& objective = *pooled->record;
  for (const auto& p : loop->predictions_)
    if (p.record == forward) objective.forward_object = p.record_object;
  objective.forward = forward;
  objective.y = py::reinterpret_borrow<py::object>(args[2]);
  objective.y_version = version_of(args[2]);
  objective.mean = loop->mean_;
  objective.value.reset();
  if (!objective.real.is_none()) objective.real = py::none();
  objective.freed = false;
  objective.launch = 0;
  return py::object(pooled->wrapper).release().ptr();
}

// optimizer.zero_grad()
PyObject* Loop::zero_grad(PyObject* const* args, size_t n_args) {
  if (n_args != 1 || !pending_slot.get(args[0])) return nullptr;
  static PyObject* name = PyUnicode_InternFromString("param_groups");
  const auto groups = py::reinterpret_steal<py::object>(PyObject_GetAttr(args[0], name));
  if (!groups) throw py::error_already_set();
  clear_grads(groups.ptr());
  Py_RETURN_NONE;
}

// loss.backward()
PyObject* Loop::backward(PyObject* const* args, size_t n_args) {
  if (n_args != 1) return nullptr;
  const Origin* origin = origin_of(args[0]);
  if (!origin || !origin->objective) return nullptr;
  Loop* loop = origin->loop;
  Objective& objective = *origin->objective;
  Forward& forward = *objective.forward;
  if (objective.freed || forward.freed || !objective.real.is_none() || !forward.untouched() ||
      !loop->sees(forward.x.ptr()) || !loop->sees_target(objective.y.ptr()) ||
      version_of(forward.x.ptr()) != forward.x_version ||
      version_of(objective.y.ptr()) != objective.y_version)
    return nullptr;
  if (!loop->holds(objective)) {
    if (!loop->bound_to(nullptr) || !loop->settled(forward.x_version, objective.y_version))
      return nullptr;
    loop->launch(objective, loop->data_.n < 4096 ? 1 : torch_threads());
  }
  if (loop->give_grads() != kGiven) return nullptr;
  loop->offer(origin->loop_object);
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

void clear_grads(PyObject* param_groups) {
  static const TensorAttribute grad("grad");
  static PyObject* params = PyUnicode_InternFromString("params");
  for (py::handle group : py::reinterpret_borrow<py::list>(param_groups)) {
    PyObject* list = PyDict_GetItem(group.ptr(), params);
    for (Py_ssize_t i = 0; list && i < PyList_Size(list); ++i)
      grad.set(PyList_GetItem(list, i), Py_None);
  }
}

}  // namespace polyfuse
