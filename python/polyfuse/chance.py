"""The random numbers that a forward may draw: a model that draws any is no fixed polynomial."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch

Access = tuple[Callable[[], Any], Callable[[Any], Any]]  # get and set the state


def _access(source: Any) -> Access | None:
    if isinstance(source, random.Random) and not isinstance(source, random.SystemRandom):
        return source.getstate, source.setstate
    if isinstance(source, np.random.RandomState):
        return source.get_state, source.set_state
    if isinstance(source, np.random.Generator):
        bits = source.bit_generator
        return lambda: bits.state, lambda state: setattr(bits, "state", state)
    if isinstance(source, torch.Generator):
        return source.get_state, source.set_state
    return None


def _key(state: Any) -> Any:
    """A generator's state in a form that can be compared."""
    if isinstance(state, (torch.Tensor, np.ndarray)):
        return np.asarray(state).tobytes()
    if isinstance(state, dict):
        return {k: _key(v) for k, v in state.items()}
    return tuple(map(_key, state)) if isinstance(state, tuple) else state


def _held(module: torch.nn.Module) -> Iterator[Any]:
    """What the forward can name: attributes, globals and enclosing variables."""
    for m in module.modules():
        yield from m.__dict__.values()
        forward = getattr(type(m).forward, "__func__", type(m).forward)
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
            self.sources.append((np.random.get_state, np.random.set_state))
        for source in [*own, *_held(module)]:
            if access := _access(source):
                self.sources.append(access)
        self.before = [get() for get, _ in self.sources]

    def drawn(self) -> bool:
        """Whether any number was drawn; if so, as if none had been."""
        changed = False
        for (get, put), before in zip(self.sources, self.before, strict=True):
            if _key(get()) != _key(before):
                put(before)
                changed = True
        return changed
