"""Which optimizer owns a model's parameters, and its rule: what lets backward compute the step."""

from __future__ import annotations

import weakref
from typing import Any, NamedTuple

import torch
import torch.optim.optimizer as _base

from .. import _C
from ..backends.tables import has_place, of_one_dtype
from ..rules import Options, Rule, kept_of, options_in

_alive: dict[int, weakref.ref] = {}
GLOBAL_HOOKS = [_base._global_optimizer_pre_hooks, _base._global_optimizer_post_hooks]


def register(optimizer: torch.optim.Optimizer) -> None:
    """Takes note of a fused optimizer, or of a change in what it holds."""

    # As defaults: the interpreter may have cleared this module when the last optimizer goes.
    def gone(
        _: Any, key: int = id(optimizer), alive: Any = _alive, changed: Any = _C.next_generation
    ) -> None:
        changed()
        alive.pop(key, None)

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


class Holding(NamedTuple):
    """What an optimizer holds of a model: tensors by their number, with the options of each."""

    optimizer: torch.optim.Optimizer
    tensors: dict[int, Options]
    others: list[torch.Tensor]  # that the loss does not train
    rule: Rule
    keeps: bool  # whether the rules keep anything from step to step


def holding(model: Any, optimizer: torch.optim.Optimizer) -> Holding:
    mine = {id(t): i for i, t in enumerate(model.tensors)}
    tensors: dict[int, Options] = {}
    others = []
    for group in optimizer.param_groups:
        options = options_in(optimizer, group)
        for p in group["params"]:
            number = mine.get(id(p))
            if number is not None and p.requires_grad:
                tensors[number] = options(p)
            else:
                others.append(p)
    rule = tuple([tensors.get(t) for t, _ in model.traced.slots])
    keeps = any(kept for options in tensors.values() for kept in kept_of(options))
    return Holding(optimizer, tensors, others, rule, keeps)


def rule_of(model: Any, optimizer: torch.optim.Optimizer) -> Rule:
    """The options of every scalar parameter."""
    return holding(model, optimizer).rule


def options_watched(optimizer: torch.optim.Optimizer) -> tuple[list[Any], bool]:
    """What the options of an optimizer rest on, for `_C.Watch`, and whether that is all."""
    groups = optimizer.param_groups
    options = [v for g in groups for name, v in g.items() if name != "params"]
    inner = [v for o in options if isinstance(o, (tuple, list)) for v in o]  # such as betas
    numbers = [v for v in (*options, *inner) if isinstance(v, torch.Tensor)]
    near = [v for v in numbers if v.device.type == "cpu" and v.is_contiguous()]
    hooks = [optimizer._optimizer_step_pre_hooks, optimizer._optimizer_step_post_hooks]
    lists = [*(g["params"] for g in groups), *(o for o in options if isinstance(o, list))]
    watched = [optimizer.__dict__, *hooks, *GLOBAL_HOOKS, groups, *groups, *lists, *near]
    return watched, len(near) == len(numbers)


def bind(known: Any, optimizer: Any = None) -> None:
    """Brings the loop's update rule up to date with `optimizer`, or the owner found where None."""
    loop = known.loop
    if loop.bound_to(optimizer):
        return
    owner = _owner_of(known) if optimizer is None else optimizer
    if not loop.as_trainable():  # the rule would be that of a moment
        loop.bind(None, found=False)
        return
    if owner is None or (optimizer is None and not owner.compiled()):
        loop.bind(None, found=True)
        return
    held = holding(known, owner)
    rule = held.rule
    watched, all_watched = options_watched(owner)
    hooked = any((owner._optimizer_step_pre_hooks, owner._optimizer_step_post_hooks, *GLOBAL_HOOKS))
    known.set_rule(rule)
    tensors = [known.tensors[i] for i in sorted(held.tensors)]
    kept, ready = [], True
    for i, t in zip(sorted(held.tensors), tensors, strict=True):
        rows = kept_of(held.tensors[i])
        state = owner.state.get(t, {})
        values = [None if row is None else state.get(row.name) for row in rows]
        ready = ready and all(
            row is None or has_place(value, t, row.scalar)
            for row, value in zip(rows, values, strict=True)
        )
        kept.append(values)
    ready = ready and (known.on_host or of_one_dtype(kept))
    loop.bind(
        owner,
        found=optimizer is None,
        watched=[
            *watched,
            owner.state,
            *(owner.state[t] for t in tensors if t in owner.state),
        ],
        held=tensors,
        kept=kept if ready else [()] * len(tensors),
        updates=ready and all_watched and not hooked,
        covers_owner=len(tensors) == sum(len(g["params"]) for g in owner.param_groups),
    )
