"""Models as linear functions of their free parameters, and the normal equations of their data."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch

from . import _C
from .backends import Backend
from .backends.device import DeviceMoments
from .backends.native import make_data
from .backends.reference import design, kept
from .problem import Problem
from .symbolic import Traced

if TYPE_CHECKING:
    from .statistics import Samples

PART = 1 << 18  # samples whose terms are there at a time


@dataclass(frozen=True)
class Linear:
    """The coefficients are jacobian @ params[free] + offset."""

    jacobian: np.ndarray  # [K, F]
    offset: np.ndarray  # [K, 1]
    free: list[int]  # the parameters that are trainable

    @property
    def has_constant(self) -> bool:
        """Whether some parameters give a polynomial of 1 alone."""
        one = np.eye(len(self.jacobian))[0]
        found = self.jacobian @ np.linalg.lstsq(self.jacobian, one, rcond=None)[0]
        return bool(np.allclose(found, one, rtol=0, atol=1e-12))


class Source(NamedTuple):
    """Where the columns that the kernels read come from."""

    x: torch.Tensor  # as the model takes it, [N] or [N, V]
    # x -> what they read; a `surface.Terms`
    columns: Callable[[torch.Tensor], torch.Tensor] | None = None
    names: list[str] | None = None  # of the parameters, where not as the module has them

    def refuse_pickle(self) -> str | None:
        try:
            pickle.dumps(self.columns)
        except Exception:  # whatever a user's function raises
            return "statistics: the functions of the model's basis cannot be pickled"
        return None


class Held(NamedTuple):
    """The data of a fit, and what their version counters were."""

    problem: Problem
    source: Source
    versions: tuple[int | None, int | None]

    @classmethod
    def of(cls, problem: Problem, source: Source | None = None) -> Held:
        source = source or Source(problem.x)
        return cls(problem, source, versions_of(source.x, problem.y))

    def unchanged(self) -> Problem:
        versions = versions_of(self.source.x, self.problem.y)
        for name, now, before in zip("xy", versions, self.versions, strict=True):
            if now != before:
                raise RuntimeError(
                    f"{name}: changed in place since the fit, whose statistics need it as it was"
                )
        return self.problem

    def samples(self) -> Samples:
        from .statistics import Samples

        return Samples(*(t.cpu().numpy() for t in kept(self.unchanged(), self.source.x)))

    def design(self, x: Any) -> np.ndarray:
        """V [N, K] at x as the model takes it."""
        x = torch.as_tensor(np.asarray(x, np.float64))
        x = x.reshape(-1) if self.source.x.ndim == 1 else x.reshape(-1, self.source.x.shape[1])
        return self.terms(x).numpy()

    def terms(self, x: torch.Tensor) -> torch.Tensor:
        """V [N, K] where x lies."""
        columns = x if self.source.columns is None else self.source.columns(x)
        return design(self.problem.model, columns)

    def sum_of_squares(self, params: np.ndarray) -> float:
        """Sum w (y - model(x))^2 at params [P], taken where the data lie."""
        samples = kept(self.unchanged(), self.source.x)
        coefficients = self.problem.model.coefficients(params)
        on_device = torch.from_numpy(coefficients).to(samples[1].device)
        return sum(
            float((w * (y - self.terms(x) @ on_device) ** 2).sum())
            for x, y, w in zip(*(t.split(PART) for t in samples), strict=True)
        )


def versions_of(x: torch.Tensor, y: torch.Tensor) -> tuple[int | None, int | None]:
    of_x, of_y = (None if t.is_inference() else t._version for t in (x, y))
    return of_x, of_y


def linear(model: Traced, params: np.ndarray) -> Linear:
    """The model, linearised about params [P] where its coefficients are not affine in them."""
    free = [i for i, (t, _) in enumerate(model.slots) if model.tensors[t].requires_grad]
    rows = [model.pull_back(params, unit) for unit in np.eye(model.n_terms)]
    jacobian = np.ascontiguousarray(np.array(rows)[:, free])
    if model.affine:
        fixed = params.copy()
        fixed[free] = 0.0
        offset = model.coefficients(fixed)
    else:
        offset = model.coefficients(params) - jacobian @ params[free]
    return Linear(jacobian, offset[:, None], free)


def names_of(module: torch.nn.Module | None, model: Traced) -> list[str]:
    """Of the scalar parameters, as the module calls them."""
    known = {} if module is None else {id(p): name for name, p in module.named_parameters()}
    names = []
    for slot, (t, element) in enumerate(model.slots):
        tensor = model.tensors[t]
        name = known.get(id(tensor), f"p{slot}")
        index = ", ".join(map(str, np.unravel_index(element, tensor.shape)))
        names.append(name if tensor.numel() == 1 else f"{name}[{index}]")
    return names


def normal_equations(problem: Problem, runner: Backend, precise: bool) -> _C.NormalEquations:
    model = problem.model
    variable = _C.Variable(model.shift, model.scale, 0.0)
    if runner.name == "cpu":
        data = make_data(model, problem.x, problem.y, problem.omit, problem.weight)
        threads = torch.get_num_threads()
        return _C.NormalEquations.of_data(data, model.degree + 1, precise, variable, None, threads)
    m = runner.accumulate(problem)
    if isinstance(m, DeviceMoments):
        m = m.on_host()
    reference, power, cross = (
        np.asarray(v, np.float64) for v in (m.reference, m.power, m.cross)
    )  # fmt: skip
    return _C.NormalEquations.of_power_sums(
        float(m.shift), float(m.scale), reference, power, cross, float(m.square), variable
    )


def powers(shift: float, scale: float, n_terms: int) -> Callable[[Any], np.ndarray]:
    """x [N] -> V [N, K], V[n, k] = u_n^k with u = (x - shift) * scale."""

    def rows(x: Any) -> np.ndarray:
        u = (np.asarray(x, np.float64).reshape(-1) - shift) * scale
        return np.vander(u, n_terms, increasing=True)

    return rows
