"""The random numbers that a forward may draw: a model that draws any is no fixed polynomial."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import numpy as np
import torch

Access = tuple[Callable[[], Any], Callable[[Any], Any]]  # get and set the state


@cache
def _accessor(cls: type) -> Callable[[Any], Access] | None:
    """How the state of a generator of this class is reached; None where it is none."""
    if issubclass(cls, random.Random) and not issubclass(cls, random.SystemRandom):
        return lambda source: (source.getstate, source.setstate)
    if issubclass(cls, np.random.RandomState):
        return lambda source: (lambda: source.get_state(legacy=False), source.set_state)
    if issubclass(cls, np.random.Generator):
        return lambda source: (
            lambda: source.bit_generator.state,
            lambda state: setattr(source.bit_generator, "state", state),
        )
    if issubclass(cls, torch.Generator):
        return lambda source: (source.get_state, source.set_state)
    return None


def _same(a: Any, b: Any) -> bool:
    """Whether two states of a generator are equal."""
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(_same(v, b[k]) for k, v in a.items())
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    return bool(np.array_equal(a, b)) if isinstance(a, np.ndarray) else bool(a == b)


def _held(module: torch.nn.Module) -> Iterator[Any]:
    """What the forward can name: attributes, globals and enclosing variables."""
    seen = set()
    for m in module.modules():
        yield from m.__dict__.values()
        forward = getattr(type(m).forward, "__func__", type(m).forward)
        if id(forward) in seen:
            continue
        seen.add(id(forward))
        yield from getattr(forward, "__globals__", {}).values()
        for cell in getattr(forward, "__closure__", None) or ():
            yield getattr(cell, "cell_contents", None)


class Chance:
    """The states of the generators that a module's forward may draw from.

    They are those of `random`, numpy and torch, and every generator that the forward can name;
    what asks the operating system for chance (`secrets`, `os.urandom`) is not seen.
    """

    def __init__(self, module: torch.nn.Module):
        self.sources: list[Access] = [(torch.get_rng_state, torch.set_rng_state)]
        own: list[Any] = [random.getstate.__self__]  # type: ignore[attr-defined]
        if "numpy.random" in sys.modules:
            own.append(np.random.get_state.__self__)  # type: ignore[attr-defined]
        for source in [*own, *_held(module)]:
            cls: Any = type(source)
            if accessor := _accessor(cls):
                self.sources.append(accessor(source))
        self.before = [get() for get, _ in self.sources]

    def drawn(self) -> bool:
        """Whether any number was drawn; if so, as if none had been."""
        changed = False
        for (get, put), before in zip(self.sources, self.before, strict=True):
            if not _same(get(), before):
                put(before)
                changed = True
        return changed
