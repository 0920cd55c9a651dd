"""Cross entropy of polynomial logits: what is to be computed, and how the CPU runs it."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import torch

from .. import _C
from ..criteria import Criterion
from ..logits import Logits
from ..rules import Options
from . import AUTO, REGISTRY, Backend
from .native import make_classes


class Targets(NamedTuple):
    """Samples and their classes; the coefficients are parameters [K, C]."""

    model: Logits
    criterion: Criterion
    mean: bool
    x: torch.Tensor  # [N]
    y: torch.Tensor  # [N] int64, or the probability of each class [N, C]
    weight: torch.Tensor | None = None  # [N] in the dtype of x, of which 0 leaves a sample out


class Cpu:
    name = "cpu"
    launches: Callable[[], int] = staticmethod(_C.launches)

    def refuse(self, model: Logits, device: torch.device) -> str | None:
        return None if device.type == "cpu" else f"the data is on {device}"

    def run_of(self, targets: Targets, options: Options | None) -> Callable[..., Any]:
        """What `runs.descend` calls."""
        x, y, w = targets.x, targets.y, targets.weight
        kernels, index = make_classes(targets.model), y.ndim == 1
        kernels.read(
            (x.data_ptr(), x.stride(0), 0, x.dtype is torch.float64),
            y.data_ptr() if index else 0,
            y.stride(0),
            None if index else (y.data_ptr(), *y.stride(), y.dtype is torch.float64),
            None if w is None else (w.data_ptr(), w.stride(0), 0, w.dtype is torch.float64),
            len(x), targets.criterion, targets.mean,
        )  # fmt: skip
        return lambda *schedule_and_state: kernels.descend(0, None, *schedule_and_state)


def _triton() -> Any:
    from .classes_triton import Triton

    return Triton()


HOMES: dict[str, Callable[[], Any]] = {"cpu": Cpu, "triton": _triton}  # by name, what makes them


@cache
def backend_called(name: str) -> Any:
    return HOMES[name]()


def refuse(name: str, model: Logits, device: torch.device) -> str | None:
    """None, or why the backend of this name cannot serve the model."""
    reason = REGISTRY[name].missing()
    if reason is not None:
        return f"not available: {reason}"
    answer: str | None = backend_called(name).refuse(model, device)
    return answer


def backend_of(model: Logits, device: torch.device) -> Backend | None:
    """The backend of the model's training loop on a device; None where there is none."""
    for name in AUTO.get(device.type, ()):
        if name in HOMES and refuse(name, model, device) is None:
            return REGISTRY[name]
    return None


def choose(name: str, model: Logits, device: torch.device) -> Any:
    """The backend called `name`, or for 'auto' the first that serves the model on the device."""
    if name not in ("auto", *HOMES):
        known = ", ".join(("auto", *HOMES))
        raise ValueError(f"backend: expected one of {known} for CrossEntropyLoss, got {name!r}")
    reasons = []
    for candidate in AUTO.get(device.type, ()) if name == "auto" else (name,):
        if candidate in HOMES:
            reason = refuse(candidate, model, device)
            if reason is None:
                return backend_called(candidate)
            reasons.append(f"{candidate}: {reason}")
    why = "; ".join(reasons) or "none does"
    raise ValueError(f"backend: {name} cannot serve this model on {device}: {why}")
