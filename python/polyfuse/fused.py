"""A module's traced polynomial with its compiled plan, kept while the module stays as it is."""

from __future__ import annotations

import logging
import weakref
from typing import Any

import numpy as np
import torch
from torch.autograd.graph import increment_version

from . import _C
from .backends.native import make_data, make_plan
from .nn.criterion import MSELoss
from .optim.owners import Groups
from .optim.sgd import SGD
from .problem import Rule, SgdOptions, State
from .symbolic import NotPolynomial, Traced, trace

logger = logging.getLogger("polyfuse")

_GLOBAL_HOOKS = [
    hooks
    for name in ("_global_forward_hooks", "_global_forward_pre_hooks", "_global_backward_hooks",
                 "_global_backward_pre_hooks")
    if isinstance(hooks := getattr(torch.nn.modules.module, name, None), dict)
]  # fmt: skip


class Fused:
    """One trace of one module: its polynomial, or the reason why there is none."""

    def __init__(self, module: torch.nn.Module, dtype: torch.dtype, device: torch.device):
        self.module = weakref.ref(module)
        self.dtype, self.device = dtype, device
        self.traced: Traced | None = None
        self.reason = ""
        try:
            self.traced = trace(module, dtype, device)
        except NotPolynomial as error:
            self.reason = str(error)
            logger.info("%s is not fused: %s", type(module).__name__, self.reason)
        self.tensors = self.traced.tensors if self.traced else ()
        self.buffers = self.traced.buffers if self.traced else ()
        slots = list(self.traced.slots) if self.traced else []
        self.plan = make_plan(self.traced) if self.traced else _C.Plan(0, 1, [], 0.0, 1.0)
        float64 = dtype == torch.float64
        self.step = _C.Step(self.plan, self.tensors, slots, float64, _watched(module))
        # An address is only proof of identity while nobody else can be given it.
        self._storages = [t.untyped_storage() for t in self.tensors]
        where = [(t, e, i) for i, (t, e) in enumerate(slots)]
        self.order = np.array([i for _, _, i in sorted(where)], dtype=np.int64)
        self.sizes = [t.numel() for t in self.tensors]
        self.trainable = any(t.requires_grad for t in self.tensors)
        self.containers = [
            (v, list(_elements(v)))
            for m in module.modules()
            for k, v in m.__dict__.items()
            if not k.startswith("_") and isinstance(v, (list, dict, set, np.ndarray))
        ]
        # Whether the checks of `step` are all that a call needs.
        self.deferrable = self.trainable and not self.buffers and not self.containers

        # What the training loop keeps from one iteration to the next.
        self.x: Any = None  # the last x and y, which were found acceptable
        self.y: Any = None
        self.data: Any = None  # where they lie
        self.moments: Any = None
        self.predictions: list = []  # wrappers to hand out again, each followed by its record
        self.losses: list = []
        self.mean = True
        self.current: Any = None  # whose launch the step holds
        self.generation: Any = None
        self.owner: Any = None
        self.groups: Any = None
        self.has_momentum = False
        self.bound: list | None = None  # momentum buffers with their addresses
        self.covers_owner = False
        self.held: list = []  # tensors that the owner updates
        self.moved: list = []  # these and their momentum buffers: a step advances their versions

    def valid(self) -> bool:
        """Whether the module is still what was traced."""
        return (
            self.step.unchanged()
            and all(b._version == v for b, v in self.buffers)
            and all(_same(_elements(c), kept) for c, kept in self.containers)
        )

    def accepts(self, y: torch.Tensor, x: torch.Tensor) -> bool:
        """Whether y is a target that the kernels read; remembers the pair."""
        if (
            y.dtype is not self.dtype
            or y.shape != x.shape
            or y.device != self.device
            or y.requires_grad
            or (y.ndim > 1 and not y.is_contiguous())
            or torch._C._functorch.is_functorch_wrapped_tensor(y)
        ):
            return False
        assert self.traced is not None
        self.step.see(x, y)
        self.x, self.y = x, y
        self.data = make_data(self.traced, x.reshape(-1), y.reshape(-1))
        return True

    def set_rule(self, owner: Any) -> None:
        rule = rule_of(self, owner)
        self.plan.set_rule(list(rule))
        self.groups = Groups(owner)
        self.has_momentum = any(o is not None and o.momentum != 0 for o in rule)
        mine = {id(t) for t in self.tensors}
        self.covers_owner = all(id(p) in mine for g in owner.param_groups for p in g["params"])
        held = {id(p) for g in owner.param_groups for p in g["params"]}
        self.held = [t for t in self.tensors if id(t) in held and t.requires_grad]
        self.moved = list(self.held)
        self.bound = None
        if not self.has_momentum:
            self.step.set_momentum([])

    def bind_momentum(self, owner: Any) -> bool:
        """Points the step to the optimizer's momentum buffers; False while there are none."""
        buffers: list[Any] = [
            owner.state[t].get("momentum_buffer") if t in owner.state else None for t in self.held
        ]
        if any(b is None or not b.is_contiguous() or b.dtype != self.dtype for b in buffers):
            return False
        same = self.bound is not None and all(
            b is known and b.data_ptr() == at
            for b, (known, at) in zip(buffers, self.bound, strict=True)
        )
        if not same:
            self.bound = [(b, b.data_ptr()) for b in buffers]
            by_tensor = {id(t): b for t, b in zip(self.held, buffers, strict=True)}
            self.step.set_momentum([by_tensor.get(id(t)) for t in self.tensors])
            self.moved = self.held + buffers
        return True

    def fresh_grads(self) -> None:
        """New tensors for backward to fill, because somebody holds the last ones."""
        with torch.no_grad():
            flat = torch.zeros(sum(t.numel() for t in self.tensors), dtype=self.dtype)
            parts = flat.split([t.numel() for t in self.tensors])
            grads = tuple(p.view(t.shape) for p, t in zip(parts, self.tensors, strict=True))
        storage = flat.untyped_storage()._cdata
        del parts, flat
        self.step.set_grads(grads, storage, torch._C._storage_Use_Count(storage))

    def offer(self, record: Any) -> None:
        """Tells the optimizer that its next step is computed."""
        owner = self.owner and self.owner()
        if isinstance(owner, SGD):
            if owner._pending:
                owner._pending = [p for p in owner._pending if p[0] is not self]
            owner._pending.append((self, record))

    def install(self, owner: Any, record: Any) -> bool:
        """The next parameters, if nothing changed since they were computed."""
        groups = self.groups
        if (
            self.current is not record
            or owner.param_groups is not groups.groups
            or (groups.numbers and groups.numbers != groups.tensors())
            or (self.has_momentum and not self.bind_momentum(owner))
        ):  # fmt: skip
            return False
        return self.step.install(groups.watch, self.moved)

    def state(self, optimizer: torch.optim.Optimizer | None) -> State:
        """The scalar parameters, and the optimizer's state of them, as float64 [P]."""
        assert self.traced is not None
        slots = len(self.traced.slots)
        state = State(np.empty(slots), np.zeros(slots), np.zeros(slots, dtype=bool))
        self.step.snapshot(state.params.ctypes.data, self.tensors[0])
        if optimizer is not None and optimizer.state:
            for i, (t, e) in enumerate(self.traced.slots):
                buffer = optimizer.state.get(self.tensors[t], {}).get("momentum_buffer")
                if buffer is not None:
                    state.momentum[i] = buffer.reshape(-1)[e].item()
                    state.has_momentum[i] = True
        return state

    def gather(self, values: np.ndarray) -> list[torch.Tensor]:
        """values [P] as one new tensor for every parameter tensor."""
        with np.errstate(over="ignore"):
            flat = torch.from_numpy(values[self.order]).to(self.dtype)
        parts = flat.split(self.sizes) if len(self.sizes) > 1 else (flat,)
        return [p.view(t.shape) for p, t in zip(parts, self.tensors, strict=True)]

    def commit(self, state: State, optimizer: torch.optim.Optimizer | None, stepped: bool) -> None:
        """Writes parameters, .grad and optimizer state as the training loop would have."""
        self.step.store(state.params)
        increment_version(self.tensors)
        if stepped:
            for tensor, grad in zip(self.tensors, self.gather(state.grad), strict=True):
                if tensor.requires_grad:
                    tensor.grad = grad
        if optimizer is None or not stepped:
            return
        if not state.has_momentum.any():
            return
        momenta = {id(t): b for t, b in zip(self.tensors, self.gather(state.momentum), strict=True)}
        for group in optimizer.param_groups:
            for p in group["params"]:
                buffer = momenta.get(id(p))
                if buffer is not None and group["momentum"] != 0 and p.requires_grad:
                    held = optimizer.state[p].get("momentum_buffer")
                    if held is not None:
                        held.copy_(buffer)
                    else:
                        optimizer.state[p]["momentum_buffer"] = buffer


def _elements(container: Any) -> list:
    """What an attribute holds that can change without being set anew."""
    if isinstance(container, np.ndarray):
        return [container.shape, container.tobytes()]
    return [*container, *(container.values() if isinstance(container, dict) else ())]


def _same(now: list, kept: list) -> bool:
    return len(now) == len(kept) and all(
        a is b or (type(a) in (int, float, str, bytes, tuple) and a == b)
        for a, b in zip(now, kept, strict=True)
    )


def _watched(module: torch.nn.Module) -> list[dict]:
    """The dictionaries whose contents the trace rests on."""
    found = list(_GLOBAL_HOOKS)
    for m in module.modules():
        found.append(m.__dict__)
        found += [v for k, v in m.__dict__.items() if isinstance(v, dict) and k.startswith("_")]
    return found


_kept: weakref.WeakKeyDictionary[torch.nn.Module, Fused] = weakref.WeakKeyDictionary()


def fused(module: torch.nn.Module, dtype: torch.dtype, device: torch.device) -> Fused:
    """The module's current trace, made anew where the module changed."""
    known = _kept.get(module)
    if known is None or known.dtype != dtype or known.device != device or not known.valid():
        known = _kept[module] = Fused(module, dtype, device)
    return known


def sgd_options(group: dict[str, Any]) -> SgdOptions:
    return SgdOptions(
        float(group["lr"]),
        float(group["momentum"]),
        float(group["dampening"]),
        float(group["weight_decay"]),
        bool(group["nesterov"]),
        bool(group["maximize"]),
    )


def refuse_optimizer(optimizer: Any) -> str | None:
    """None, or why this optimizer's step is not one that is compiled."""
    if not isinstance(optimizer, torch.optim.Optimizer):
        return f"expected a torch.optim.Optimizer, got {type(optimizer).__name__}"
    if not (type(optimizer) is torch.optim.SGD or type(optimizer) is SGD):
        return f"{type(optimizer).__name__} has no compiled update rule; fused: SGD"
    if any(g["differentiable"] for g in optimizer.param_groups):
        return "differentiable=True is not fused"
    if optimizer._optimizer_step_pre_hooks or optimizer._optimizer_step_post_hooks:
        return "the optimizer has step hooks, which a fused run would pass over"
    return None


def refuse_criterion(criterion: Any) -> str | None:
    """None, or why this criterion is not one that is compiled."""
    if not isinstance(criterion, torch.nn.Module):
        return f"expected a criterion module such as nn.MSELoss(), got {type(criterion).__name__}"
    if type(criterion) not in (torch.nn.MSELoss, MSELoss):
        return f"{type(criterion).__name__} is not fused; fused: MSELoss"
    if criterion.reduction not in ("mean", "sum"):
        return f"reduction {criterion.reduction!r} gives no scalar loss; expected mean or sum"
    return None


def rule_of(model: Fused, optimizer: torch.optim.Optimizer) -> Rule:
    """The options of every scalar parameter."""
    assert model.traced is not None
    by_tensor: dict[int, SgdOptions] = {}
    for group in optimizer.param_groups:
        options = sgd_options(group)
        by_tensor.update((id(p), options) for p in group["params"] if p.requires_grad)
    return tuple(by_tensor.get(id(model.tensors[t])) for t, _ in model.traced.slots)
