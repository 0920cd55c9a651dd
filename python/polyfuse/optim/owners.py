"""Which optimizer owns a model's parameters: what lets backward compute the step as well."""

from __future__ import annotations

import weakref
from typing import Any

import torch

from .. import _C

_alive: dict[int, weakref.ref] = {}
_generation = 0


def register(optimizer: torch.optim.Optimizer) -> None:
    """Takes note of an optimizer, or of a change in what it holds."""

    def gone(_: Any, key: int = id(optimizer)) -> None:
        global _generation
        _generation += 1
        _alive.pop(key, None)

    global _generation
    _generation += 1
    _alive[id(optimizer)] = weakref.ref(optimizer, gone)


def owner_of(tensors: Any) -> Any:
    """The one fused optimizer that holds any of the tensors; None for none or several."""
    wanted = {id(t) for t in tensors}
    alive = [o for o in (r() for r in _alive.values()) if o is not None]
    owners = [o for o in alive if any(id(p) in wanted for g in o.param_groups for p in g["params"])]
    return owners[0] if len(owners) == 1 else None


def bind(known: Any, optimizer: Any = None) -> bool:
    """Brings known's update rule up to date; False where backward cannot know the step.

    The rule is that of `optimizer`, or where None of the fused optimizer that owns the parameters.
    """
    groups = known.groups
    if (
        optimizer is None
        and groups is not None
        and known.generation == _generation
        and groups.watch.unchanged()
        and not groups.numbers
    ):
        return not known.has_momentum or known.bind_momentum(known.owner())
    if optimizer is not None:
        owner = optimizer
        if known.owner is None or known.owner() is not owner:
            known.owner, known.groups, known.generation = weakref.ref(owner), None, None
    else:
        if known.generation != _generation:
            known.generation = _generation
            found = owner_of(known.tensors)
            known.owner = None if found is None else weakref.ref(found)
            known.groups = None
        owner = known.owner and known.owner()
        if owner is None:
            return False
    if known.groups is None or not known.groups.unchanged(owner):
        if optimizer is None and not owner.compiled():
            return False
        known.set_rule(owner)
    return not known.has_momentum or known.bind_momentum(owner)


class Groups:
    """The hyper-parameters of an optimizer as they were when its rule was compiled."""

    def __init__(self, owner: Any):
        self.groups = owner.param_groups
        self.watch = _C.Watch(list(self.groups))
        self.count = len(self.groups)
        self.numbers = self.tensors()

    def tensors(self) -> list[float]:
        """Hyper-parameters that are tensors, which keep their identity when they change."""
        return [v.item() for g in self.groups for v in g.values() if isinstance(v, torch.Tensor)]

    def unchanged(self, owner: Any) -> bool:
        return (
            owner.param_groups is self.groups
            and len(self.groups) == self.count
            and self.watch.unchanged()
            and (not self.numbers or self.numbers == self.tensors())
        )
