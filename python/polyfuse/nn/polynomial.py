"""The ready-made model: a polynomial, or many of them at once."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import combinations_with_replacement
from typing import Any

import numpy as np
import torch

from ..bases import BASES, name_of, products, series, terms
from ..exponents import parent_of
from ..stacked import Stacked, stacked, stacked_surfaces
from .module import Module

MOST_EXPANDED = 8  # degree of a series in another basis whose powers of u keep its digits


class Polynomial(Module):
    """A polynomial, ``sum_k coefficients[k] * u**k``, or one of several variables.

    With a batch_shape, as many independent polynomials, which `polyfuse.fit` and `polyfuse.solve`
    fit in one launch, each with a loss and a status of its own.

    Args:
        degree: highest power, >= 0; of several variables the highest total degree, or, with
            total_degree=False, one degree for each variable (or for all); not with functions.
        variables: how many variables.
        batch_shape: shape of the batch of polynomials of one variable; () for a single one.
        outputs: how many polynomials of the same x make up one output, under one loss: y
            ``[N, outputs]``, or the logits of so many classes for ``CrossEntropyLoss``; of one
            variable, of several, or in a basis of functions. None: y has no dimension of outputs.
        basis: ``monomial``, ``chebyshev``, ``legendre``, ``hermite``, ``hermite_e`` or
            ``laguerre``, as in `numpy.polynomial`; of several variables a term is the product of
            one of each, ``phi_p(x_1) phi_q(x_2)`` for the powers (p, q). Or a list of functions,
            each of a tensor in the shape of x: any model that is linear in its coefficients.
            (Columns that are there already are x [N, K] of a model of degree 1 in K variables with
            intercept=False.)
        domain: (low, high), the range of x that is mapped to the window of the basis as in
            `numpy.polynomial`: u from -1 to 1, for ``laguerre`` from 0 to 1; of several variables a
            sequence of one for each. `fit` and `solve` of a Chebyshev or Legendre basis refuse x
            outside of it. None: u is x. Give one where x is far from zero (Unix time,
            wavelengths): coefficients in x would lose what float32 cannot hold.
        total_degree: whether degree bounds the sum of the powers of a term, or each of them.
        intercept: whether the constant is a term; of several variables.
        dtype, device: of the one parameter ``coefficients``, ``[K, *batch_shape]``, which starts at
            zero. Its terms are those of ``exponents`` [K][variables], in the order of
            `sklearn.preprocessing.PolynomialFeatures`.

    Shapes: a single polynomial of one variable takes x of any shape, and gives the shape of x. One
    of several variables takes x [..., variables], and gives [...]; with outputs either gives
    [..., outputs]. A batch takes x [N], shared by
    all, or ``[N, *batch_shape]``, and gives ``[N, *batch_shape]``: samples come first, as in
    `numpy.polyfit`. Data that has them last is handed over as ``y.movedim(-1, 0)``, a view.

    Raises:
        ValueError: naming the argument, what came and what was expected.

    Example:
        >>> import torch, polyfuse.nn as nn
        >>> model = nn.Polynomial(2)
        >>> model(torch.tensor([1.0, 2.0])).tolist()
        [0.0, 0.0]
        >>> pixels = nn.Polynomial(1, batch_shape=(480, 640), domain=(0, 3600))
        >>> pixels(torch.arange(0.0, 3600.0, 60.0)).shape
        torch.Size([60, 480, 640])
        >>> nn.Polynomial(2, variables=2).exponents
        ((0, 0), (1, 0), (0, 1), (2, 0), (1, 1), (0, 2))
        >>> nn.Polynomial(basis=[torch.ones_like, torch.sin, torch.cos]).coefficients.shape
        torch.Size([3])
    """

    __jit_unused_properties__ = ("by_columns", "degree", "variable")

    def __init__(
        self,
        degree: int | Sequence[int] | None = None,
        *,
        variables: int = 1,
        batch_shape: tuple[int, ...] = (),
        outputs: int | None = None,
        basis: str | Sequence[Callable[[torch.Tensor], torch.Tensor]] = "monomial",
        domain: Any = None,
        total_degree: bool = True,
        intercept: bool = True,
        dtype: Any = None,
        device: Any = None,
    ):
        super().__init__()
        if not _is_int(variables) or variables < 1:
            raise ValueError(f"variables: expected an int >= 1, got {variables!r}")
        shape = tuple(batch_shape) if isinstance(batch_shape, (tuple, list)) else None
        if shape is None or not all(_is_int(s) and s >= 1 for s in shape):
            raise ValueError(f"batch_shape: expected a tuple of sizes >= 1, got {batch_shape!r}")
        if variables > 1 and shape:
            raise ValueError(f"batch_shape: expected () for {variables} variables, got {shape}")
        if outputs is not None and (not _is_int(outputs) or outputs < 1):
            raise ValueError(f"outputs: expected None or an int >= 1, got {outputs!r}")
        if outputs is not None and shape:
            raise ValueError(f"outputs: expected None for a batch, got {outputs}")
        if not intercept and variables == 1:
            raise ValueError("intercept: expected True for one variable, got False")
        functions = None if isinstance(basis, str) else _functions(basis)
        if functions and (degree is not None or shape or variables > 1 or domain is not None):
            raise ValueError(
                "degree, variables, batch_shape, domain: expected None, 1, () and None for a basis "
                f"of functions, got {degree!r}, {variables}, {shape} and {domain!r}"
            )
        if functions:  # each is a variable of its own, to the first power
            degree = 1
        family = basis if isinstance(basis, str) else "functions"
        several = isinstance(degree, (tuple, list)) and not total_degree
        degrees: Any = tuple(degree) if several else (degree,) * variables  # type: ignore[arg-type]
        if len(degrees) != variables or not all(_is_int(d) and d >= 0 for d in degrees):
            wanted = "an int >= 0" if total_degree else f"an int >= 0 or {variables} of them"
            if total_degree and isinstance(degree, (tuple, list)):
                wanted += ", or one for each variable with total_degree=False"
            raise ValueError(f"degree: expected {wanted}, got {degree!r}")
        if not functions and family not in BASES:
            raise ValueError(f"basis: expected one of {', '.join(BASES)}, got {basis!r}")
        self.variables, self.batch_shape, self.basis = variables, shape, family
        self.outputs, self.functions = outputs, functions
        self.domain = _domain(domain, variables)
        self.plain = not (shape or self.domain) and (variables, family) == (1, "monomial")
        self.plain = self.plain and outputs is None
        if functions:
            self.exponents = _exponents((1,) * len(functions), True, False)
        else:
            self.exponents = _exponents(degrees, total_degree, intercept)
        if not self.exponents:
            raise ValueError(f"degree: expected a term at least, got {degree!r} without intercept")
        sizes = shape if outputs is None else (outputs,)
        self.coefficients = torch.nn.Parameter(
            torch.zeros(len(self.exponents), *sizes, dtype=dtype, device=device)
        )

    @property
    def degree(self) -> int:
        """The highest total degree."""
        return max(sum(powers) for powers in self.exponents)

    @property
    def variable(self) -> tuple[tuple[float, float], ...]:
        """(shift, scale) of every variable, u = (x - shift) * scale."""
        if self.domain is None:
            return ((0.0, 1.0),) * len(self.exponents[0])
        first, last = BASES[self.basis].window
        scales = [(last - first) / (high - low) for low, high in self.domain]
        middle, centre = (
            0.5 * first + 0.5 * last,
            [0.5 * low + 0.5 * high for low, high in self.domain],
        )
        return tuple((c - middle / s, s) for c, s in zip(centre, scales, strict=True))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.plain:
            y = self.coefficients[-1] * torch.ones_like(x)
            for k in range(self.coefficients.shape[0] - 2, -1, -1):
                y = y * x + self.coefficients[k]
            return y
        return self._of_any(x)

    @torch.jit.unused
    def _of_any(self, x: torch.Tensor) -> torch.Tensor:
        if self.variables > 1 or self.functions:
            return self.columns(x) @ self.coefficients
        if self.outputs is not None:
            x = x.unsqueeze(-1)
        elif self.batch_shape and x.ndim == 1:
            x = x.reshape(-1, *(1 for _ in self.batch_shape))
        ((shift, scale),) = self.variable
        u = x if self.domain is None else (x - shift) * scale
        return series(self.basis, self.coefficients, u)

    def trace_stacked(self) -> Stacked | None:
        """What kernels compute of a batch, of several outputs, or of a series that is not expanded
        in powers; None for any other."""
        own = type(self).forward is Polynomial.forward and "forward" not in self.__dict__
        several = self.outputs is not None or self.batch_shape or self.refuse_powers()
        if not several or not own or "coefficients" not in self._parameters:
            return None
        if self.functions or (self.variables > 1 and self.basis != "monomial"):
            return None
        if self.variables > 1:
            return stacked_surfaces(self.coefficients, self.exponents, self.variable)
        ((shift, scale),) = self.variable
        return stacked(self.coefficients, self.basis, shift, scale, batch=self.outputs is None)

    @property
    def by_columns(self) -> bool:
        """Whether kernels read the values of its terms, rather than what these are made of."""
        if self.outputs is None:
            return bool(self.functions or self.refuse_powers())
        return bool(self.functions) or (self.variables > 1 and self.basis != "monomial")

    def refuse_powers(self) -> str | None:
        """None, or why powers of u would not serve this model."""
        if self.basis in ("monomial", "functions") or self.degree <= MOST_EXPANDED:
            return None
        return f"a {self.basis} series of degree {self.degree}, whose powers of u would lose digits"

    def to_numpy(self) -> Any:
        """The same as an object of `numpy.polynomial`, in float64.

        Example:
            >>> import polyfuse.nn as nn
            >>> nn.Polynomial(2, basis="legendre", domain=(0, 10)).to_numpy().domain.tolist()
            [0.0, 10.0]
        """
        several = self.variables > 1 or self.batch_shape or self.outputs is not None
        if several or self.functions:
            raise ValueError("to_numpy: expected a single polynomial of one variable")
        series, window = BASES[self.basis].series, BASES[self.basis].window
        coefficients = self.coefficients.detach().double().cpu().numpy()
        domain = window if self.domain is None else self.domain[0]
        return series(coefficients, domain=domain, window=window)

    @classmethod
    def from_numpy(cls, series: Any, *, dtype: Any = None, device: Any = None) -> Polynomial:
        """A model from an object of `numpy.polynomial`.

        Raises:
            TypeError: where it is none; ValueError: where its window is not that of its class.

        Example:
            >>> import numpy as np, polyfuse.nn as nn
            >>> nn.Polynomial.from_numpy(np.polynomial.Chebyshev([1.0, 2.0])).basis
            'chebyshev'
        """
        basis = name_of(series)
        window = BASES[basis].window
        if tuple(series.window) != window:
            raise ValueError(f"series: expected the window {window}, got {tuple(series.window)}")
        domain = tuple(float(end) for end in series.domain)
        model = cls(
            len(series.coef) - 1, basis=basis, domain=None if domain == window else domain,
            dtype=dtype, device=device,
        )  # fmt: skip
        with torch.no_grad():
            model.coefficients.copy_(torch.from_numpy(np.asarray(series.coef, dtype=np.float64)))
        return model

    def deriv(self, m: int = 1) -> Polynomial:
        """The m-th derivative by x, as a new model."""
        return self._from(self.to_numpy().deriv(m))

    def integ(self, m: int = 1) -> Polynomial:
        """The m-th integral over x, as a new model."""
        return self._from(self.to_numpy().integ(m))

    def _from(self, series: Any) -> Polynomial:
        p = self.coefficients
        return type(self).from_numpy(series, dtype=p.dtype, device=p.device)

    def roots(self) -> Any:
        """The x where it is zero, complex, in a numpy array."""
        return self.to_numpy().roots()

    @torch.jit.unused
    def columns(self, x: torch.Tensor) -> torch.Tensor:
        """The terms at x [..., variables], or [...] of one variable, -> [..., K]."""
        if self.functions:
            return torch.stack([_values(f, k, x) for k, f in enumerate(self.functions)], -1)
        if self.variables == 1:
            ((shift, scale),) = self.variable
            return torch.stack(terms(self.basis, len(self.exponents), (x - shift) * scale), -1)
        if x.ndim == 0 or x.size(-1) != self.variables:
            raise ValueError(f"x: expected shape (..., {self.variables}), got {tuple(x.shape)}")
        u = [(x[..., v] - shift) * scale for v, (shift, scale) in enumerate(self.variable)]
        if self.basis != "monomial":
            return torch.stack(products(self.basis, self.exponents, u), -1)
        features: dict[tuple[int, ...], torch.Tensor] = {}
        for powers in self.exponents:
            parent, v = parent_of(powers)
            if v is None:
                features[powers] = torch.ones_like(u[0])
            else:
                features[powers] = features[parent] * u[v] if parent in features else u[v]
        return torch.stack([features[powers] for powers in self.exponents], -1)

    # torch.jit does not read annotations that are strings.
    for _method in (_of_any, columns):
        _method.__annotations__ = {"x": torch.Tensor, "return": torch.Tensor}
    del _method

    def extra_repr(self) -> str:
        names = self.functions and ", ".join(map(name_of_function, self.functions))
        parts = [f"basis=[{names}]" if names else f"degree={self.degree}"]
        if self.variables > 1:
            constant = not sum(self.exponents[0])
            n_terms = len(self.exponents) + (not constant)
            if n_terms < math.comb(self.degree + self.variables, self.variables):
                highest = tuple(map(max, zip(*self.exponents, strict=True)))
                parts = [f"degree={highest}", "total_degree=False"]
            parts.append(f"variables={self.variables}")
            parts += [] if constant else ["intercept=False"]
        if self.batch_shape:
            parts.append(f"batch_shape={self.batch_shape}")
        if self.outputs is not None:
            parts.append(f"outputs={self.outputs}")
        if self.basis not in ("monomial", "functions"):
            parts.append(f"basis={self.basis!r}")
        if self.domain is not None:
            parts.append(f"domain={self.domain[0] if self.variables == 1 else self.domain}")
        return ", ".join(parts)


def name_of_function(function: Any) -> str:
    return getattr(function, "__name__", type(function).__name__)


def _functions(basis: Any) -> tuple[Callable[[torch.Tensor], torch.Tensor], ...]:
    if not isinstance(basis, (tuple, list)) or not basis or not all(map(callable, basis)):
        raise ValueError(f"basis: expected a name or a list of functions, got {basis!r}")
    return tuple(basis)


def _values(function: Any, k: int, x: torch.Tensor) -> torch.Tensor:
    values: torch.Tensor = function(x)
    if not isinstance(x, torch.Tensor):  # a symbol, while the model is traced
        return values
    if not isinstance(values, torch.Tensor) or values.shape != x.shape or values.dtype != x.dtype:
        raise ValueError(
            f"basis: expected {name_of_function(function)}, function {k}, to give {x.dtype} of "
            f"shape {tuple(x.shape)}, got "
            + (
                f"{values.dtype} of shape {tuple(values.shape)}"
                if isinstance(values, torch.Tensor)
                else type(values).__name__
            )
        )
    return values


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _exponents(
    degrees: tuple[int, ...], total: bool, intercept: bool
) -> tuple[tuple[int, ...], ...]:
    """Powers of the variables in every term: by total degree, then as combinations of variables."""
    n = len(degrees)
    highest = degrees[0] if total else sum(degrees)
    terms = []
    for d in range(0 if intercept else 1, highest + 1):
        for chosen in combinations_with_replacement(range(n), d):
            powers = tuple(chosen.count(v) for v in range(n))
            if total or all(p <= most for p, most in zip(powers, degrees, strict=True)):
                terms.append(powers)
    return tuple(terms)


def _domain(domain: Any, variables: int) -> tuple[tuple[float, float], ...] | None:
    if domain is None:
        return None
    if variables == 1:
        return (_interval(domain),)
    if not isinstance(domain, (tuple, list)) or len(domain) != variables:
        raise ValueError(f"domain: expected {variables} pairs (low, high), got {domain!r}")
    return tuple(_interval(one) for one in domain)


def _interval(domain: Any) -> tuple[float, float]:
    try:
        low, high = (float(end) for end in domain)
    except (TypeError, ValueError):
        low = high = math.nan
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise ValueError(f"domain: expected two finite numbers, low < high, got {domain!r}")
    return low, high
