"""Which optimizer owns a model's parameters, and its rule: what lets backward compute the step."""

from __future__ import annotations

import weakref
from typing import Any

import torch
import torch.optim.optimizer as _base

from .. import _C
from ..problem import Rule, SgdOptions

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


def sgd_options(group: dict[str, Any]) -> SgdOptions:
    return SgdOptions(
        float(group["lr"]),
        float(group["momentum"]),
        float(group["dampening"]),
        float(group["weight_decay"]),
        bool(group["nesterov"]),
        bool(group["maximize"]),
    )


def rule_of(model: Any, optimizer: torch.optim.Optimizer) -> Rule:
    """The options of every scalar parameter."""
    by_tensor: dict[int, SgdOptions] = {}
    for group in optimizer.param_groups:
        options = sgd_options(group)
        by_tensor.update((id(p), options) for p in group["params"] if p.requires_grad)
    return tuple(by_tensor.get(id(model.tensors[t])) for t, _ in model.traced.slots)


def bind(known: Any, optimizer: Any = None) -> None:
    """Brings the loop's update rule up to date with `optimizer`, or the owner found where None."""
    loop = known.loop
    if loop.bound_to(optimizer):
        return
    owner = _owner_of(known) if optimizer is None else optimizer
    if owner is None or (optimizer is None and not owner.compiled()):
        loop.bind(None, found=True)
        return
    groups = owner.param_groups
    numbers = [v for g in groups for v in g.values() if isinstance(v, torch.Tensor)]
    near = [v for v in numbers if v.device.type == "cpu" and v.is_contiguous()]
    hooks = [owner._optimizer_step_pre_hooks, owner._optimizer_step_post_hooks, *GLOBAL_HOOKS]
    rule = rule_of(known, owner)
    known.set_rule(rule)
    by_id = {id(p) for g in groups for p in g["params"]}
    held = [t for t in known.tensors if id(t) in by_id and t.requires_grad]
    with_momentum = {
        id(known.tensors[t])
        for (t, _), o in zip(known.traced.slots, rule, strict=True)
        if o is not None and o.momentum != 0
    }
    buffers = [
        owner.state.get(t, {}).get("momentum_buffer") if id(t) in with_momentum else None
        for t in held
    ]
    ready = all(
        b is not None and b.shape == t.shape and b.is_contiguous() and b.dtype == known.dtype
        for t, b in zip(held, buffers, strict=True)
        if id(t) in with_momentum
    )
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
        momentum=buffers if ready else [None] * len(held),
        updates=ready and len(near) == len(numbers) and not any(hooks),
        covers_owner=len(held) == sum(len(g["params"]) for g in groups),
    )
