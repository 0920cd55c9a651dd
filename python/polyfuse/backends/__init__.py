"""The backends: where kernels run. One protocol, and the choice among those that are there."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch

from ..problem import Problem, Schedule, State, Trace
from . import cuda
from .native import Cpu
from .reference import Reference


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


REGISTRY: dict[str, Backend] = {backend.name: backend for backend in (Cpu(), Reference())}

# Backends that may be missing: asked for the reason only when somebody wants to know.
OPTIONAL: dict[str, tuple[Backend, Callable[[], str | None]]] = {
    "cuda": (cuda.Cuda(), cuda.missing),
}


def backends() -> dict[str, str]:
    """Every backend's name, with 'available' or the reason why it is missing.

    >>> import polyfuse as pf
    >>> pf.backends()["cpu"]
    'available'
    """
    known = {name: "available" for name in REGISTRY}
    known |= {name: missing() or "available" for name, (_, missing) in OPTIONAL.items()}
    return {"triton": "not built into this version"} | known


def choose(name: str, problem: Problem) -> Backend:
    """The backend called `name`, or for 'auto' the compiled one of the data's device."""
    if name == "auto":
        name = "cuda" if problem.x.device.type == "cuda" else "cpu"
    known = dict(REGISTRY)
    if name in OPTIONAL and OPTIONAL[name][1]() is None:
        known[name] = OPTIONAL[name][0]
    if name not in known:
        state = backends().get(name)
        why = f"; {name} is not available: {state}" if state else ""
        raise ValueError(f"backend: expected one of auto, {', '.join(known)}, got {name!r}{why}")
    reason = known[name].refuse(problem)
    if reason:
        raise ValueError(f"backend: {name} cannot serve this problem: {reason}")
    return known[name]
