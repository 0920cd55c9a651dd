"""What a traced forward computes with in place of tensors, and what comes of it.

Every torch function called during the trace is answered on arrays of polynomials, or stops it.
"""

from __future__ import annotations

import itertools
import math
import operator
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
import torch
from torch.overrides import TorchFunctionMode

from .criteria import CROSS_ENTROPY, Criterion
from .polynomials import PLAIN, NotPolynomial, Polynomial

MAX_PARAMS = 256


@dataclass(frozen=True)
class Traced:
    """The polynomial that a forward computes, in terms of scalar parameters ("slots")."""

    tensors: tuple[torch.Tensor, ...]
    slots: tuple[tuple[int, int], ...]  # (tensor, element) of each scalar parameter
    terms: tuple[tuple[float, int, tuple[int, ...]], ...]  # factor, coefficient, slots
    degree: int
    shift: float  # of one variable
    scale: float
    ndim: int  # dimensions of the parameters that broadcast with x
    buffers: tuple[torch.Tensor, ...]  # read as constants
    # Where it holds for x [N, *of_x] alone, N > 1, the output then being [N, *of_y].
    of_x: tuple[int, ...] | None = None
    of_y: tuple[int, ...] = ()
    # Of several variables, the columns of x: their powers in each term [K], shifts and scales.
    exponents: tuple[tuple[int, ...], ...] = ()
    variables: tuple[tuple[float, float], ...] = ()

    @property
    def n_terms(self) -> int:
        """Coefficients: of a degree each, or those of `exponents`."""
        return len(self.exponents) or self.degree + 1

    @property
    def n_params(self) -> int:
        return len(self.slots)

    @property
    def places(self) -> tuple[tuple[int, int], ...]:
        """(tensor, element) of every scalar parameter."""
        return self.slots

    @property
    def stretches(self) -> list[tuple[int, int, int]]:
        """(tensor, element, count) of scalar parameters that follow one another there."""
        found: list[tuple[int, int, int]] = []
        for t, e in self.slots:
            if found and (t, e) == (found[-1][0], sum(found[-1][1:])):
                found[-1] = (*found[-1][:2], found[-1][2] + 1)
            else:
                found.append((t, e, 1))
        return found

    @property
    def rows_of_y(self) -> tuple[int, ...] | None:
        """The shape of a row of the output; None where the output has the shape of x."""
        return None if self.of_x is None else self.of_y

    def takes(self, x: torch.Tensor) -> bool:
        """Whether the output at such x is what was traced."""
        return self.ndim <= x.ndim

    def shape_of(self, x: torch.Tensor) -> tuple[int, ...]:
        """The shape of the output at x."""
        return x.shape if self.of_x is None else torch.Size((x.shape[0], *self.of_y))

    def fits(self, y: torch.Tensor, x: torch.Tensor, criterion: Criterion) -> bool:
        """Whether kernels know this criterion of the output at x and targets like y."""
        alike = y.shape == self.shape_of(x) and y.dtype is x.dtype
        return criterion.kind is not CROSS_ENTROPY and alike

    @cached_property
    def affine(self) -> bool:
        """Whether the coefficients are affine in the parameters."""
        return all(len(slots) <= 1 for _, _, slots in self.terms)

    def coefficients(self, params: np.ndarray) -> np.ndarray:
        """[P] -> [K]"""
        coef = np.zeros(self.n_terms)
        for factor, k, slots in self.terms:
            coef[k] += factor * math.prod(params[s] for s in slots)
        return coef

    def pull_back(self, params: np.ndarray, grad_coef: np.ndarray) -> np.ndarray:
        """Gradient with respect to coefficients [K] -> to parameters [P], by the chain rule."""
        grad = np.zeros(len(self.slots))
        for factor, k, slots in self.terms:
            for i, s in enumerate(slots):
                others = math.prod(params[o] for j, o in enumerate(slots) if j != i)
                grad[s] += factor * grad_coef[k] * others
        return grad

    def formula(self) -> str:
        """The polynomial as text, parameters as p0, p1, ..."""
        columns = [f"x{v + 1}" for v in range(len(self.variables))] or ["x"]
        variables = self.variables or ((self.shift, self.scale),)
        us = [
            x if (shift, scale) == PLAIN else f"(({x} - {shift:g}) * {scale:g})"
            for x, (shift, scale) in zip(columns, variables, strict=True)
        ]
        parts = []
        for factor, k, slots in self.terms:
            names = [f"p{i}" for i in slots]
            if factor != 1 or not names:
                names.insert(0, f"{factor:g}")
            powers = zip(us, self.exponents[k] if self.exponents else (k,), strict=True)
            names += [u if p == 1 else f"{u}^{p}" for u, p in powers if p]
            parts.append("*".join(names))
        return " + ".join(parts)


@lru_cache(maxsize=64)
def power_series(n_terms: int, shift: float, scale: float) -> Traced:
    """The polynomial whose parameters are its coefficients."""
    slots = tuple((0, k) for k in range(n_terms))
    terms = tuple((1.0, k, (k,)) for k in range(n_terms))
    return Traced((), slots, terms, n_terms - 1, shift, scale, 1, ())


class Symbol:
    """An array of polynomials in x and in parameters, behaving as a tensor in a traced forward.

    With `rows`, it stands for [N, *array.shape]: there is one such array for every sample. Where
    the shape of x is open, the array has no dimensions, and `rows` says that it is shaped like x.
    """

    def __init__(self, trace: Recorder, array: Any, *, rows: Any = False, shared: Any = False):
        self.trace, self.array, self.rows = trace, np.asarray(array, dtype=object), rows
        self.shared = shared  # why it cannot be changed in place, or False

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise NotPolynomial("a symbol was used after its trace")

    def __getattr__(self, name: str) -> Any:
        if name in ("dtype", "device", "layout"):
            return getattr(self.trace, name)
        if name == "requires_grad":
            return True
        if name == "ndim":
            return self.trace.call(torch.Tensor.dim, (self,), {})
        method = getattr(torch.Tensor, name, None)
        if callable(method):
            return lambda *args, **kwargs: self.trace.call(method, (self, *args), kwargs)
        raise NotPolynomial(f"forward reads x.{name}")

    def _stop(self, *_: Any) -> Any:
        raise NotPolynomial("forward depends on the values of its data")

    __bool__ = __float__ = __int__ = __len__ = __iter__ = _stop
    __lt__ = __le__ = __gt__ = __ge__ = _stop


def _method(name: str) -> Any:
    method = getattr(torch.Tensor, name)
    return lambda self, *args: self.trace.call(method, (self, *args), {})


for _name in ("add", "sub", "mul", "truediv", "pow"):
    for _form in ("__{}__", "__r{}__", "__i{}__"):
        setattr(Symbol, _form.format(_name), _method(_form.format(_name)))
for _name in ("__neg__", "__pos__", "__getitem__", "__matmul__", "__rmatmul__"):
    setattr(Symbol, _name, _method(_name))

# What a torch function does here; looked up by name with underscores and a reflecting "r" removed.
_OPERATIONS = {
    "add": "add", "iadd": "add", "radd": "add",
    "sub": "sub", "isub": "sub", "subtract": "sub", "rsub": "rsub",
    "mul": "mul", "imul": "mul", "rmul": "mul", "multiply": "mul",
    "div": "div", "idiv": "div", "truediv": "div", "itruediv": "div", "divide": "div",
    "true_divide": "div",
    "pow": "pow", "ipow": "pow",
    "neg": "neg", "negative": "neg", "pos": "same", "positive": "same",
    "square": "square", "clone": "copy", "contiguous": "same",
    "ones_like": "ones_like", "zeros_like": "zeros_like",
    "addcmul": "addcmul",
}  # fmt: skip
_READS = {"shape", "size", "dim", "ndim", "dtype", "device", "numel", "is_floating_point"}


class Recorder(TorchFunctionMode):
    """Runs a module's forward on a `Symbol` and collects the polynomial it computes.

    Here x has any shape, and every sample is a number.
    """

    of_x: tuple[int, ...] | None = None  # shape of one sample of x, where that is known
    operations = _OPERATIONS

    def __init__(self, module: torch.nn.Module, dtype: torch.dtype, device: torch.device):
        super().__init__()
        self.dtype, self.device, self.layout = dtype, device, torch.strided
        self.params = {id(p): p for p in module.parameters()}
        self.n_variables = 1
        self.tensors: list[torch.Tensor] = []
        self.slot_of: dict[tuple[int, int], int] = {}
        self.buffers: dict[int, torch.Tensor] = {}
        self.ndim = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        listed = [a for a in (*args, *kwargs.values()) if isinstance(a, (list, tuple))]
        involved = itertools.chain(args, kwargs.values(), *listed)
        if any(isinstance(a, Symbol) or id(a) in self.params for a in involved):
            return self.call(func, args, kwargs)
        return func(*args, **kwargs)

    def call(self, func: Any, args: Any, kwargs: Any) -> Any:
        with torch._C.DisableTorchFunction():
            return self.answer(func, args, kwargs)

    def answer(self, func: Any, args: Any, kwargs: Any) -> Any:
        """func's result on polynomials; raises `NotPolynomial`."""
        name = getattr(func, "__name__", str(func))
        if name == "__get__":
            name = getattr(getattr(func, "__self__", None), "__name__", name)
        bare = name.strip("_")
        if not torch.is_grad_enabled():
            raise NotPolynomial("forward switches gradients off")
        if bare in _READS and args and isinstance(args[0], torch.Tensor):
            return func(*args, **kwargs)
        if bare == "getitem" and isinstance(args[0], torch.Tensor):
            return self.element(*args)
        operation = self.operations.get(bare)
        allowed = {"other", "exponent", "alpha", "input", "value"}
        if operation is None or (bare in _OPERATIONS and set(kwargs) - allowed):
            raise NotPolynomial(f"torch operation '{name}' is not polynomial arithmetic")
        if bare in _OPERATIONS:
            if "input" in kwargs:
                args = (kwargs.pop("input"), *args)
            for key in ("other", "exponent"):
                if key in kwargs:
                    args = (*args, kwargs.pop(key))
        result = getattr(self, "_" + operation)(*args, **kwargs)
        in_place = (name.endswith("_") and not name.startswith("__")) or name.startswith("__i")
        if in_place and isinstance(args[0], torch.Tensor):
            raise NotPolynomial(f"forward changes a parameter or buffer in place ('{name}')")
        if in_place and isinstance(args[0], Symbol):
            target = args[0]
            if target.shared:
                raise NotPolynomial(f"forward changes {target.shared} in place ('{name}')")
            if self.of_x is not None and (result.rows, result.array.shape) != (
                target.rows,
                target.array.shape,
            ):
                raise NotPolynomial(f"forward changes a shape in place ('{name}')")
            target.array, target.rows = result.array, result.rows
            return target
        return result

    # -- what goes in ------------------------------------------------------------------------

    def x(self) -> Symbol:
        n = self.n_variables
        columns = np.empty(n, dtype=object)
        columns[:] = [Polynomial.variable(v, n) for v in range(n)]
        return Symbol(self, columns.reshape(self.of_x or ()), rows=True, shared="its input")

    def constant(self, value: float, slots: tuple[int, ...] = ()) -> Polynomial:
        return Polynomial.constant(value, self.n_variables, slots)

    def like(self, a: Symbol, value: float) -> Symbol:
        array = np.full(a.array.shape, self.constant(value), dtype=object)
        return Symbol(self, array, rows=a.rows)

    def element(self, tensor: torch.Tensor, index: Any) -> Symbol:
        """Elements of a parameter: scalars the polynomial may contain."""
        if id(tensor) not in self.params:
            raise NotPolynomial("forward indexes a tensor that is not a parameter")
        if tensor.numel() > MAX_PARAMS:
            raise NotPolynomial(f"a parameter has more than {MAX_PARAMS} elements")
        numbers = torch.arange(tensor.numel()).reshape(tensor.shape)[index]
        if numbers.numel() != 1 and self.of_x is None:
            raise NotPolynomial("forward takes several elements of a parameter at once")
        self.ndim = max(self.ndim, numbers.ndim)
        if not tensor.is_contiguous():
            raise NotPolynomial("a parameter is not contiguous")
        return self.array_of(numbers, lambda i: self.constant(1.0, (self.slot(tensor, int(i)),)))

    def array_of(self, values: torch.Tensor, entry: Any) -> Symbol:
        """entry(number) for each of values; of an open shape, the only one."""
        array = np.empty(values.numel(), dtype=object)
        array[:] = [entry(value) for value in values.reshape(-1).tolist()]
        return Symbol(self, array.reshape(() if self.of_x is None else tuple(values.shape)))

    def slot(self, tensor: torch.Tensor, element: int) -> int:
        number = next((i for i, t in enumerate(self.tensors) if t is tensor), len(self.tensors))
        if number == len(self.tensors):
            self.tensors.append(tensor)
            for i in range(tensor.numel()):
                self.slot_of[number, i] = len(self.slot_of)
            if len(self.slot_of) > MAX_PARAMS:
                raise NotPolynomial(f"the model has more than {MAX_PARAMS} scalar parameters")
        return self.slot_of[number, element]

    def lift(self, value: Any) -> Symbol:
        if isinstance(value, Symbol):
            return value
        if isinstance(value, torch.Tensor):
            if value.dtype not in (self.dtype, torch.int64, torch.int32) and value.ndim > 0:
                raise NotPolynomial(f"a tensor of {value.dtype} meets x of {self.dtype}")
            if id(value) in self.params:
                return self.element(value, ...)
            if value.requires_grad:
                raise NotPolynomial("a tensor with a gradient that is not a parameter of the model")
            if value.numel() != 1 and (self.of_x is None or value.numel() > MAX_PARAMS):
                raise NotPolynomial("a constant with more than one element")
            self.buffers[id(value)] = value
            self.ndim = max(self.ndim, value.ndim)
            return self.array_of(value, self.constant)
        if isinstance(value, (bool, int, float)):
            if not math.isfinite(value):
                raise NotPolynomial(f"a constant is {value}")
            return Symbol(self, self.constant(value))
        raise NotPolynomial(f"arithmetic with a {type(value).__name__}")

    # -- arithmetic --------------------------------------------------------------------------

    def each(self, function: Any, a: Any, b: Any) -> Symbol:
        """function(polynomial, polynomial), element by element as torch broadcasts."""
        a, b = self.lift(a), self.lift(b)
        of_a, of_b = a.array, b.array
        if a.rows and b.rows and of_a.ndim != of_b.ndim:
            raise NotPolynomial("samples meet other samples")
        if a.rows != b.rows:
            n_dims = of_a.ndim if a.rows else of_b.ndim
            of_a, of_b = self.beside(of_a, n_dims), self.beside(of_b, n_dims)
        return Symbol(self, np.frompyfunc(function, 2, 1)(of_a, of_b), rows=a.rows or b.rows)

    def beside(self, array: np.ndarray, n_dims: int) -> np.ndarray:
        """What has no rows, to be broadcast with rows of n_dims dimensions."""
        if array.ndim == n_dims + 1 and array.shape[0] == 1:
            return array[0]
        if array.ndim > n_dims:
            raise NotPolynomial(f"values of shape {array.shape} meet the samples of x")
        return array

    def _add(self, a: Any, b: Any, alpha: Any = 1) -> Any:
        return self.each(operator.add, a, self._mul(b, alpha) if alpha != 1 else b)

    def _sub(self, a: Any, b: Any, alpha: Any = 1) -> Any:
        return self._add(a, self._neg(b), alpha)

    def _rsub(self, a: Any, b: Any, alpha: Any = 1) -> Any:
        return self._sub(b, a, alpha)

    def _neg(self, a: Any) -> Any:
        return self._mul(a, -1)

    def _copy(self, a: Any) -> Any:
        a = self.lift(a)
        return Symbol(self, a.array.copy(), rows=a.rows)

    def _same(self, a: Any) -> Any:
        return a

    def _mul(self, a: Any, b: Any) -> Any:
        return self.each(operator.mul, a, b)

    def _square(self, a: Any) -> Any:
        return self._mul(a, a)

    def _addcmul(self, a: Any, b: Any, c: Any, value: Any = 1) -> Any:
        return self._add(a, self._mul(b, c), value)

    def _div(self, a: Any, b: Any) -> Any:
        return self.each(operator.truediv, a, b)

    def _pow(self, a: Any, exponent: Any) -> Any:
        return self.each(operator.pow, a, exponent)

    def _ones_like(self, a: Any) -> Any:
        return self.like(self.lift(a), 1.0)

    def _zeros_like(self, a: Any) -> Any:
        return self.like(self.lift(a), 0.0)
