"""Which optimizer owns a model's parameters, and its rule: what lets backward compute the step."""

from __future__ import annotations

import weakref
from typing import Any

import torch
import torch.optim.optimizer as _base

from .. import _C
from ..rules import Options, Rule, is_sgd, kept_of, options_in

_alive: dict[int, weakref.ref] = {}
GLOBAL_HOOKS = [_base._global_optimizer_pre_hooks, _base._global_optimizer_post_hooks]


def register(optimizer: torch.optim.Optimizer) -> None:
    """Takes note of a fused optimizer, or of a change in what it holds."""

    def gone(_: Any, key: int = id(optimizer)) -> None:
        _C.next_generation()
        _alive.pop(key, None)

    _C.next_generation()
    _alive[id(optimizer)] = weakref.ref(optimizer, gone)


def _owner_of(known: Any) -> Any:
    """The one fused optimizer that holds any of the parameters; None for none or several."""
    if known.generation != _C.generation():
        wanted = {id(t) for t in known.tensors}
        alive = [o for o in (r() for r in _alive.values()) if o is not None]
        owners = [
            o for o in alive if any(id(p) in wanted for g in o.param_groups for p in g["params"])
        ]
        known.owner = weakref.ref(owners[0]) if len(owners) == 1 else None
        known.generation = _C.generation()
    return known.owner and known.owner()


def rule_of(model: Any, optimizer: torch.optim.Optimizer) -> Rule:
    """The options of every scalar parameter."""
    by_tensor: dict[int, Options] = {}
    mine = {id(t) for t in model.tensors}
    for group in optimizer.param_groups:
        options = options_in(optimizer, group)
        for p in group["params"]:
            if p.requires_grad and id(p) in mine:
                by_tensor[id(p)] = options(p)
    return tuple(by_tensor.get(id(model.tensors[t])) for t, _ in model.traced.slots)


def _has_place(value: Any, t: torch.Tensor, scalar: bool) -> bool:
    """Whether an update can write to a tensor of the optimizer's state of t."""
    return (
        isinstance(value, torch.Tensor)
        and value.is_contiguous()
        and value.device == t.device
        and value.shape == (() if scalar else t.shape)
        and (value.dtype in (torch.float32, torch.float64) if scalar else value.dtype == t.dtype)
    )


def bind(known: Any, optimizer: Any = None) -> None:
    """Brings the loop's update rule up to date with `optimizer`, or the owner found where None."""
    loop = known.loop
    if loop.bound_to(optimizer):
        return
    owner = _owner_of(known) if optimizer is None else optimizer
    if owner is None or (optimizer is None and not owner.compiled()):
        loop.bind(None, found=True)
        return
    rule = rule_of(known, owner)
    if not (known.on_host or is_sgd(rule)):  # no device has a kernel for its step
        loop.bind(None, found=True)
        return
    groups = owner.param_groups
    numbers = [v for g in groups for v in g.values() if isinstance(v, torch.Tensor)]
    near = [v for v in numbers if v.device.type == "cpu" and v.is_contiguous()]
    hooks = [owner._optimizer_step_pre_hooks, owner._optimizer_step_post_hooks, *GLOBAL_HOOKS]
    known.set_rule(rule)
    by_id = {id(p) for g in groups for p in g["params"]}
    held = [t for t in known.tensors if id(t) in by_id and t.requires_grad]
    options = {
        id(known.tensors[t]): o for (t, _), o in zip(known.traced.slots, rule, strict=True) if o
    }
    kept, ready = [], True
    for t in held:
        rows = kept_of(options[id(t)])
        state = owner.state.get(t, {})
        tensors = [None if row is None else state.get(row.name) for row in rows]
        ready = ready and all(
            row is None or _has_place(value, t, row.scalar)
            for row, value in zip(rows, tensors, strict=True)
        )
        kept.append(tensors)
    loop.bind(
        owner,
        found=optimizer is None,
        watched=[
            owner.__dict__,
            *hooks,
            groups,
            *groups,
            *(g["params"] for g in groups),
            *near,
            owner.state,
            *(owner.state[t] for t in held if t in owner.state),
        ],
        held=held,
        kept=kept if ready else [()] * len(held),
        updates=ready and len(near) == len(numbers) and not any(hooks),
        covers_owner=len(held) == sum(len(g["params"]) for g in groups),
    )
