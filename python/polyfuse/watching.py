"""What a traced forward rests on besides its input: hooks, and all that the module holds."""

from __future__ import annotations

import collections
from typing import Any

import numpy as np
import torch

from . import _C

_GLOBAL_HOOKS = [
    hooks
    for name in ("_global_forward_hooks", "_global_forward_pre_hooks", "_global_backward_hooks",
                 "_global_backward_pre_hooks")
    if isinstance(hooks := getattr(torch.nn.modules.module, name, None), dict)
]  # fmt: skip
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_PLAIN = (int, float, complex, str, bytes, bool, type(None), torch.Tensor, list, tuple, dict, set)
MAX_BYTES = 4096  # of a tensor whose values are compared; beyond, its version is


def has_hooks(module: torch.nn.Module) -> bool:
    """Whether calling the module calls anything besides its forward."""
    return any(_GLOBAL_HOOKS) or any(getattr(module, name, None) for name in _HOOKS)


def watched(module: torch.nn.Module) -> list[Any]:
    """What says which hooks are called, and the module's own attributes, for `_C.Watch`."""
    inner = [v for k, v in module.__dict__.items() if isinstance(v, dict) and k.startswith("_")]
    return [*_GLOBAL_HOOKS, module.__dict__, *inner]


class Contents:
    """Everything a module and its submodules hold.

    `cheap` goes to `_C.Watch`, which compares it without Python; `unchanged` compares the rest.
    Looked into are lists, tuples, dicts, sets, arrays, tensors and objects that hold nothing else.
    """

    def __init__(self, module: torch.nn.Module):
        self.cheap: list[Any] = []
        self.copies: list[tuple[Any, Any]] = []  # containers, and what they held
        self.tensors: list[tuple[torch.Tensor, int]] = []  # with their versions
        self._seen: set[int] = set()
        for m in module.modules():
            self.cheap += [m, *watched(m)]
            self._seen.update(id(v) for v in self.cheap)
            for name, value in m.__dict__.items():
                if name != "_non_persistent_buffers_set":  # which forward does not read
                    self.add(value)
            for value in m._buffers.values():
                self.add(value)

    def add(self, value: Any) -> None:
        """Watches a value, and what it holds."""
        if id(value) in self._seen or isinstance(value, (torch.nn.Parameter, torch.nn.Module)):
            return
        if isinstance(value, torch.Tensor):
            self._seen.add(id(value))
            self._add_tensor(value)
        elif isinstance(value, (dict, list, tuple)):
            self._seen.add(id(value))
            if not isinstance(value, tuple):
                self.cheap.append(value)
            for v in value.values() if isinstance(value, dict) else value:
                self.add(v)
        elif isinstance(value, (set, np.ndarray, collections.deque)):
            self.copies.append((value, _copy(value)))
        elif isinstance(held := getattr(value, "__dict__", None), dict) and all(
            isinstance(v, _PLAIN) for v in held.values()
        ):
            self.add(held)

    def _add_tensor(self, t: torch.Tensor) -> None:
        on_cpu = t.device.type == "cpu" and t.layout is torch.strided
        if on_cpu and t.is_contiguous() and t.nbytes <= MAX_BYTES and t.data_ptr():
            self.cheap.append(t)
        else:
            self.tensors.append((t, _version(t)))

    def unchanged(self) -> bool:
        """Whether what `cheap` leaves out is as it was."""
        return all(_copy(c) == kept for c, kept in self.copies) and all(
            _version(t) == version for t, version in self.tensors
        )

    def all_unchanged(self, watch: _C.Watch) -> bool:
        return watch.unchanged() and self.unchanged()


def _version(t: torch.Tensor) -> int:
    return -1 if t.is_inference() else t._version


def _copy(container: Any) -> Any:
    if isinstance(container, np.ndarray):
        return container.shape, container.tobytes()
    return set(container) if isinstance(container, set) else list(container)
