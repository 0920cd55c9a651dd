"""A module's traced polynomial with its compiled plan, kept for as long as the module stays as is."""

from __future__ import annotations

import logging
import weakref
from typing import Any

import numpy as np
import torch

from . import _C
from .backends.native import make_plan
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

    def valid(self) -> bool:
        """Whether the module is still what was traced."""
        return self.step.unchanged() and all(b._version == v for b, v in self.buffers)

    def state(self, optimizer: torch.optim.Optimizer | None) -> State:
        """The scalar parameters, and the optimizer's state of them, as float64 [P]."""
        assert self.traced is not None
        values = [t.detach().cpu().double().reshape(-1).numpy() for t in self.tensors]
        state = State(
            np.array([values[t][e] for t, e in self.traced.slots], dtype=np.float64),
            np.zeros(len(self.traced.slots)),
            np.zeros(len(self.traced.slots), dtype=bool),
        )
        if optimizer is not None:
            for i, (t, e) in enumerate(self.traced.slots):
                buffer = optimizer.state.get(self.tensors[t], {}).get("momentum_buffer")
                if buffer is not None:
                    state.momentum[i] = buffer.reshape(-1)[e].item()
                    state.has_momentum[i] = True
        return state

    def gather(self, values: np.ndarray, tensor: int) -> torch.Tensor:
        """The elements of one parameter tensor out of values [P]."""
        assert self.traced is not None
        like = self.tensors[tensor]
        flat = np.zeros(like.numel())
        for value, (t, e) in zip(values, self.traced.slots, strict=True):
            if t == tensor:
                flat[e] = value
        with np.errstate(over="ignore"):
            return torch.from_numpy(flat).to(like.dtype).reshape(like.shape).to(like.device)

    def commit(self, state: State, optimizer: torch.optim.Optimizer | None, stepped: bool) -> None:
        """Writes parameters, .grad and optimizer state as the training loop would have."""
        with torch.no_grad():
            for i, tensor in enumerate(self.tensors):
                tensor.copy_(self.gather(state.params, i))
                if stepped and tensor.requires_grad:
                    tensor.grad = self.gather(state.grad, i)
        if optimizer is None or not stepped:
            return
        for group in optimizer.param_groups:
            for p in group["params"]:
                i = next((i for i, t in enumerate(self.tensors) if t is p), None)
                if i is not None and group["momentum"] != 0 and p.requires_grad:
                    buffer = self.gather(state.momentum, i)
                    held = optimizer.state[p].get("momentum_buffer")
                    if held is not None:
                        held.copy_(buffer)
                    else:
                        optimizer.state[p]["momentum_buffer"] = buffer


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
    from .optim import SGD

    if type(optimizer) not in (torch.optim.SGD, SGD):
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
    from .nn import MSELoss

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
