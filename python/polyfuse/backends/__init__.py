"""The backends: where kernels run. One protocol, and the choice among those that are there."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any, Protocol

import torch

from ..problem import Problem, Report, Schedule, State


class Backend(Protocol):
    """N samples, K coefficients, P scalar parameters."""

    name: str
    max_params: int
    max_surface_terms: int  # of several variables, in the loop

    def missing(self) -> str | None:
        """None, or why this backend is not there."""

    def refuse(self, problem: Problem) -> str | None:
        """None, or why this backend cannot serve the problem."""

    def refuse_outputs(self, model: Any) -> str | None:
        """None, or why this backend cannot serve a `Stacked` model under one loss: cross entropy,
        or any of outputs of several variables."""

    def refuse_engine(self, problem: Problem, engine: str) -> str | None:
        """None, or why this backend has no such engine for the problem."""

    def evaluate(self, model: Any, coef: Any, x: torch.Tensor) -> torch.Tensor:
        """V c: [K], [N] -> [N]."""

    def project(self, model: Any, x: torch.Tensor, g: torch.Tensor) -> Any:
        """V^T g: [N], [N] -> [K]."""

    def loss_and_gradient(self, problem: Problem, params: Any) -> tuple[Any, Any]:
        """Loss and gradient [P] at params [P] of the data's dtype, from one read of the data."""

    def accumulate(self, problem: Problem) -> Any:
        """The moments of the data, from one read of it."""

    def descend(
        self, problem: Problem, engine: str, moments: Any, schedule: Schedule, state: State
    ) -> Report:
        """The fused run, in one launch; moments that are None are accumulated in it.

        A backend that is `in_place` takes a `resident.Resident` for the state as well.
        """

    def nonfinite(self, problem: Problem) -> int:
        """How many samples hold a nan or inf."""

    def launches(self) -> int:
        """Kernel launches so far in this process."""


HOMES = {"cpu": "native", "cuda": "cuda", "triton": "triton", "reference": "reference"}

if TYPE_CHECKING:  # that each is a Backend
    from .cuda import Cuda
    from .native import Cpu
    from .reference import Reference
    from .triton import Triton

    CLASSES: tuple[type[Backend], ...] = (Cpu, Cuda, Triton, Reference)


class Registry(dict[str, Backend]):
    """The backends by name, each imported when it is first asked for."""

    def __missing__(self, name: str) -> Backend:
        module = import_module(f".{HOMES[name]}", __name__)
        backend: Backend = getattr(module, name.capitalize())()
        return self.setdefault(name, backend)


REGISTRY = Registry()
# By type of device, those that `auto` takes: the first that serves.
AUTO = {"cpu": ("cpu",), "cuda": ("cuda", "triton")}


def backends() -> dict[str, str]:
    """Every backend's name, with 'available' or the reason why it is missing.

    >>> import polyfuse as pf
    >>> pf.backends()["cpu"]
    'available'
    """
    return {name: REGISTRY[name].missing() or "available" for name in HOMES}


def backend_of(device: torch.device, n_params: int, n_surface_terms: int = 0) -> Backend | None:
    """The backend of the training loop of a model on a device; None where there is none."""
    for backend in (REGISTRY[name] for name in AUTO.get(device.type, ())):
        fits = n_params <= backend.max_params and n_surface_terms <= backend.max_surface_terms
        if fits and not backend.missing():
            return backend
    return None


def backend_of_outputs(device: torch.device, model: Any) -> Backend | None:
    """The same of polynomials side by side under one loss, as `Backend.refuse_outputs` has it."""
    for backend in (REGISTRY[name] for name in AUTO.get(device.type, ())):
        if not (backend.refuse_outputs(model) or backend.missing()):
            return backend
    return None


def choose(name: str, problem: Problem) -> Backend:
    """The backend called `name`, or for 'auto' the first compiled one of the data's device."""
    if name not in ("auto", *HOMES, *REGISTRY):
        known = ", ".join(("auto", *HOMES))
        raise ValueError(f"backend: expected one of {known}, got {name!r}")
    device = problem.x.device
    reasons = []
    for candidate in AUTO.get(device.type, ()) if name == "auto" else (name,):
        backend = REGISTRY[candidate]
        reason = backend.missing()
        reason = f"not available: {reason}" if reason else backend.refuse(problem)
        if reason is None:
            return backend
        reasons.append(f"{candidate}: {reason}")
    why = "; ".join(reasons) or "none does"
    raise ValueError(f"backend: {name} cannot serve this problem on {device}: {why}")
