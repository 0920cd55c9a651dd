"""The backends: where kernels run. One protocol, and the choice among those that are there."""

from __future__ import annotations

from typing import Any, Protocol

import torch

from ..problem import Problem, Schedule, State, Trace
from .native import Cpu
from .reference import Reference
from .triton import Triton


class Backend(Protocol):
    """N samples, K coefficients, P scalar parameters."""

    name: str

    def refuse(self, problem: Problem) -> str | None:
        """None, or why this backend cannot serve the problem."""

    def evaluate(self, model: Any, coef: Any, x: torch.Tensor) -> torch.Tensor:
        """V c: [K], [N] -> [N]."""

    def project(self, model: Any, x: torch.Tensor, g: torch.Tensor) -> Any:
        """V^T g: [N], [N] -> [K]."""

    def accumulate(self, problem: Problem) -> Any:
        """The moments of the data, from one read of it."""

    def descend(
        self, problem: Problem, engine: str, moments: Any, schedule: Schedule, state: State
    ) -> Trace:
        """The fused run, in one launch; moments that are None are accumulated in it."""

    def nonfinite(self, problem: Problem) -> int:
        """How many samples hold a nan or inf."""

    def launches(self) -> int:
        """Kernel launches so far in this process."""


TRITON = Triton()
REGISTRY: dict[str, Backend] = {backend.name: backend for backend in (Cpu(), Reference(), TRITON)}


def backends() -> dict[str, str]:
    """Every backend's name, with 'available' or the reason why it is missing.

    >>> import polyfuse as pf
    >>> pf.backends()["cpu"]
    'available'
    """
    known = {name: "available" for name in REGISTRY}
    return known | {
        "cuda": "not built into this version",
        "triton": TRITON.missing() or "available",
    }


def backend_of(device: torch.device) -> Backend | None:
    """The backend of the training loop for data on a device; None where there is none."""
    if device.type == "cpu":
        return REGISTRY["cpu"]
    return TRITON if device.type == "cuda" and not TRITON.missing() else None


def choose(name: str, problem: Problem) -> Backend:
    """The backend called `name`, or for 'auto' the compiled one of the data's device."""
    if name == "auto":
        name = "cpu" if problem.x.device.type == "cpu" else "triton"
    elif name not in REGISTRY:
        state = backends().get(name)
        why = f"; {name} is {state}" if state else ""
        raise ValueError(f"backend: expected one of auto, {', '.join(REGISTRY)}, got {name!r}{why}")
    reason = REGISTRY[name].refuse(problem)
    if reason:
        raise ValueError(f"backend: {name} cannot serve this problem: {reason}")
    return REGISTRY[name]
