"""Cross entropy of polynomial logits: what is to be computed, and how the CPU runs it."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple

import torch

from .. import _C
from ..criteria import Criterion
from ..logits import Logits
from ..problem import Schedule, State
from ..rules import Options
from . import AUTO, REGISTRY, Backend
from .device import DeviceState, n_recorded
from .native import make_classes

CLASS_COST = 60  # of exp and log, in multiplications and additions
MAX_EPOCHS = 1 << 62


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


Start = Callable[[torch.Tensor, Schedule], None]  # launches, from what is in a state buffer


def on_device(start: Start, at_once: int, device: torch.device) -> Callable[..., Any]:
    """What `runs.descend` calls, of a kernel that takes so many epochs at once."""

    def run(
        rows: Any, first: int, epochs: int, every: int, tol: float, seconds: float,
        previous: float, threads: int, params: Any, kept: Any, grad: Any,
    ) -> Any:  # fmt: skip
        schedule = Schedule(first, min(epochs, at_once), every, tol, seconds, previous)
        state = DeviceState(State(params, kept, grad), schedule, device)
        assert state.buffer is not None
        start(state.buffer, schedule)
        state.finish()
        out = state.outcome()
        done, converged = int(out["epochs"]), bool(out["converged"])
        taken = n_recorded(schedule._replace(epochs=min(schedule.epochs, done + converged)))
        return done, converged, out["loss"], state.recorded(taken), out["previous"]

    return run


@lru_cache(maxsize=64)
def class_weights(
    weight: tuple[float, ...] | None, outputs: int, device: torch.device
) -> torch.Tensor:
    """[C]"""
    return torch.tensor(weight or (1.0,) * outputs, dtype=torch.float64, device=device)


def _cuda() -> Any:
    from .classes_cuda import Cuda

    return Cuda(REGISTRY["cuda"])


def _triton() -> Any:
    from .classes_triton import Triton

    return Triton()


# By name, what makes them.
HOMES: dict[str, Callable[[], Any]] = {"cpu": Cpu, "cuda": _cuda, "triton": _triton}


def refuse(name: str, model: Logits, device: torch.device) -> str | None:
    """None, or why the backend of this name cannot serve the model."""
    reason = REGISTRY[name].missing()
    if reason is not None:
        return f"not available: {reason}"
    answer: str | None = HOMES[name]().refuse(model, device)
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
                return HOMES[candidate]()
            reasons.append(f"{candidate}: {reason}")
    why = "; ".join(reasons) or "none does"
    raise ValueError(f"backend: {name} cannot serve this model on {device}: {why}")
