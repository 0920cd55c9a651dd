"""Models that are sums of columns: of several variables, of functions, or a long series."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch

from . import _C, _check, extended, regression
from .backends.reference import kept
from .bases import products
from .exponents import firsts, name_of
from .fused import Fused, fused
from .linear import PART, Held, Source, linear
from .nn.module import Module
from .nn.polynomial import Polynomial, name_of_function
from .polynomials import PLAIN
from .recognise import refuse_own
from .stacked import Stacked, stacked_surfaces
from .static import columns_of, promise, promise_of

if TYPE_CHECKING:
    from .statistics import Statistics


def is_surface(model: Any) -> bool:
    """Whether a model is a sum of columns: of several variables, of functions, or of a series that
    is not expanded in powers."""
    if not isinstance(model, Polynomial) or model.batch_shape:
        return False
    return model.variables > 1 or model.by_columns


class Columns(Module):
    """A model whose terms are columns of x that are there already."""

    def __init__(self, coefficients: torch.nn.Parameter):
        super().__init__()
        self.coefficients = coefficients

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ self.coefficients

    def trace_stacked(self) -> Stacked | None:
        """Of several outputs: what kernels compute."""
        p = self.coefficients
        return None if p.ndim == 1 else stacked_surfaces(p, firsts(len(p)), (PLAIN,) * len(p))


_promised: weakref.WeakKeyDictionary[Polynomial, Any] = weakref.WeakKeyDictionary()
_of_columns: weakref.WeakKeyDictionary[Polynomial, Columns] = weakref.WeakKeyDictionary()


def read_surface(model: Any, x: Any, y: Any) -> tuple[Fused, torch.Tensor, torch.Tensor]:
    """`fused.read_data` of such a model: its trace, the columns that kernels read, and y [N]."""
    if reason := refuse_own(model):
        raise ValueError(f"model: {reason}")
    xs, ys = flattened(model, x, y)
    p = model.coefficients
    if p.dtype is not xs.dtype or p.device != xs.device:
        raise TypeError(
            f"x: expected {p.dtype} on {p.device}, as the model's coefficients, "
            f"got {xs.dtype} on {xs.device}"
        )
    known, rows = read_rows(model, x, xs)
    return known, rows, ys.to(rows.dtype)


def read_rows(model: Any, x: torch.Tensor, xs: torch.Tensor) -> tuple[Fused, torch.Tensor]:
    """The trace of such a model, and what kernels read of x, as it was given and flat."""
    if not model.by_columns:
        return fused(model, xs.dtype, xs.device, (model.variables,)), xs
    p = model.coefficients
    known = fused(_model_of_columns(model), xs.dtype, xs.device, (len(p),))
    with torch.no_grad():
        if found := columns_of(model, x):
            columns = found[1]
        elif model.functions:
            columns = model.columns(xs)
        else:  # whose digits the data's dtype would not hold
            columns = model.columns(xs.double())
    return known, columns[:, 0] if p.numel() == 1 and p.ndim == 1 else columns


def _model_of_columns(model: Polynomial) -> Columns:
    of_columns = _of_columns.get(model)
    if of_columns is None or of_columns.coefficients is not model.coefficients:
        of_columns = _of_columns[model] = Columns(model.coefficients)
    return of_columns


def of_promised(model: Any, x: torch.Tensor) -> tuple[Columns, torch.Tensor] | None:
    """`static.columns_of` of x that stays as it is."""
    if not is_surface(model) or refuse_own(model):
        return None
    promised = _promised.get(model)
    if promised is None or promised[0] is not promise_of(x):
        with torch.enable_grad():
            columns = model.columns(x)
        if columns.requires_grad:
            return None  # the functions learn too
        promise(columns)
        promised = _promised[model] = promise_of(x), columns
    return _model_of_columns(model), promised[1]


def flattened(model: Any, x: Any, y: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """x [N, variables], or [N] of one, and y [N]."""
    if model.variables > 1:
        return _check.columns(x, y, model.variables)
    return _check.data(x, y)


@dataclass(frozen=True)
class Terms:
    """The columns of terms in a basis, or of functions."""

    basis: str
    exponents: tuple[tuple[int, ...], ...]
    variables: tuple[tuple[float, float], ...]
    functions: tuple[Callable[[torch.Tensor], torch.Tensor], ...] | None = None

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """x [N], or [N, V] of several variables, -> [N, K], or [N] of a single one"""
        if self.functions:
            columns = [f(x) for f in self.functions]
        else:
            of_each = x.reshape(len(x), -1).T
            u = [
                (v - shift) * scale
                for v, (shift, scale) in zip(of_each, self.variables, strict=True)
            ]
            columns = products(self.basis, self.exponents, u)
        return torch.stack(columns, 1) if len(columns) > 1 else columns[0]


def source_of(model: Any, x: torch.Tensor) -> Source:
    """What the statistics of such a model are told of x."""
    names = columns = None
    if model.functions:
        names = [name_of_function(f) for f in model.functions]
    elif model.variables > 1 and model.basis == "monomial":
        names = [name_of(powers) for powers in model.exponents]
    if model.by_columns or model.variables == 1:
        columns = Terms(model.basis, model.exponents, model.variable, model.functions)
    if model.variables == 1:
        return Source(_check.flat(x), columns, names)
    return Source(x.detach().resolve_neg().reshape(-1, model.variables), columns, names)


class Table(NamedTuple):
    """The columns of the trainable parameters: that of the constant, if there is one, first."""

    data: Held
    columns: Callable[[Any], np.ndarray]  # of x as the model takes it -> [N, F]
    offset: np.ndarray  # [K], the coefficients of what is fixed
    order: np.ndarray  # [F], the parameters
    names: list[str]
    constant: bool
    n: int  # samples that count
    shift: np.ndarray  # [F] of the columns that the equations are about
    solution: _C.Solution
    backend: str

    @classmethod
    def of(
        cls, data: Held, params: np.ndarray, named: list[str], ridge: float = 0.0,
        backend: str = "auto",
    ) -> Table:  # fmt: skip
        """params, named: [P]; those that are not trainable stay."""
        problem = data.unchanged()
        x, y, w = kept(problem, data.source.x)
        form = linear(problem.model, params)
        everything = torch.from_numpy(form.jacobian).to(x.device)
        units = [(data.terms(some) @ everything == 1).all(dim=0) for some in x.split(PART)]
        ones = torch.stack(units).all(dim=0).cpu().numpy()
        order = np.argsort(~ones, kind="stable")
        jacobian, offset = form.jacobian[:, order], form.offset[:, 0]
        constant = len(order) > 1 and bool(ones.any())
        names = [named[form.free[i]] for i in order]
        if constant and isinstance(data.source.columns, Terms) and data.source.columns.functions:
            names[0] = "constant"
        of_params, fixed = (torch.from_numpy(t).to(x.device) for t in (jacobian, offset))

        def part(x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            terms = data.terms(x)
            return terms @ of_params, y - terms @ fixed

        weight = None if problem.weight is None else w
        if backend == "auto":
            backend = "cpu" if x.device.type == "cpu" else "reference"
        if backend == "cpu":
            columns, rest = (t.cpu().numpy() for t in part(x, y))
            equations, shift = regression.equations_of(
                columns[:, int(constant) :], rest, None if weight is None else weight.cpu().numpy(),
                constant,
            )  # fmt: skip
        else:
            equations, shift = extended.equations_of(part, x, y, weight, constant)
        solution = equations.solve(None, None, [ridge] * len(order) if ridge else [], True)
        return cls(
            data, lambda x: data.design(x) @ jacobian, offset, np.array(form.free)[order], names,
            constant, len(y), shift, solution, backend,
        )  # fmt: skip

    def statistics(self, params: np.ndarray, elsewhere: bool = False) -> Statistics:
        """elsewhere: the parameters [P] are not those of the solution."""
        from .statistics import Statistics

        data = self.data

        def rows(x: Any) -> np.ndarray:
            return self.columns(x) - self.shift

        def fitted(x: Any) -> np.ndarray:
            terms = data.design(x)
            if elsewhere:
                return terms @ data.problem.model.coefficients(params)
            return rows(x) @ self.solution.coefficients + terms @ self.offset

        values = params[self.order] if elsewhere else self.solution.params
        return Statistics(
            self.names, values, list(range(len(self.order))), self.solution, rows,
            fitted, data.samples, self.n, self.constant,
            data.sum_of_squares(params) if elsewhere else None, data.problem.weight is not None,
        )  # fmt: skip
