"""The polynomial that stands in for x while a forward is traced.

A value is a sum of products ``factor * params * u**degree`` with u = (x - shift) * scale; every
torch function called during the trace is answered on such sums, or stops the trace.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
import torch
from torch.overrides import TorchFunctionMode

from .criteria import CROSS_ENTROPY, Criterion

MAX_DEGREE = 32
MAX_TERMS = 4096
MAX_PARAMS = 256

Products = dict[tuple[int, tuple[int, ...]], float]  # (degree, scalar parameters) -> factor


class NotPolynomial(BaseException):
    """The forward is not a polynomial; the message says which operation stopped the trace.

    Not an Exception, so that a forward that handles its own errors does not swallow it.
    """

    def __init__(self, reason: str, for_good: bool = False):
        super().__init__(reason)
        self.for_good = for_good  # whatever changes in the module: no need to ask again


@dataclass(frozen=True)
class Traced:
    """The polynomial that a forward computes, in terms of scalar parameters ("slots")."""

    tensors: tuple[torch.Tensor, ...]
    slots: tuple[tuple[int, int], ...]  # (tensor, element) of each scalar parameter
    terms: tuple[tuple[float, int, tuple[int, ...]], ...]  # factor, degree, slots
    degree: int
    shift: float
    scale: float
    ndim: int  # dimensions of the parameters that broadcast with x
    buffers: tuple[torch.Tensor, ...]  # read as constants

    def shape_of(self, x: torch.Tensor) -> tuple[int, ...]:
        """The shape of the output at x."""
        return x.shape

    def fits(self, y: torch.Tensor, x: torch.Tensor, criterion: Criterion) -> bool:
        """Whether kernels know this criterion of the output at x and targets like y."""
        return criterion.kind is not CROSS_ENTROPY and y.shape == x.shape and y.dtype is x.dtype

    @cached_property
    def affine(self) -> bool:
        """Whether the coefficients are affine in the parameters."""
        return all(len(slots) <= 1 for _, _, slots in self.terms)

    def coefficients(self, params: np.ndarray) -> np.ndarray:
        """[P] -> [K]"""
        coef = np.zeros(self.degree + 1)
        for factor, degree, slots in self.terms:
            coef[degree] += factor * math.prod(params[s] for s in slots)
        return coef

    def pull_back(self, params: np.ndarray, grad_coef: np.ndarray) -> np.ndarray:
        """Gradient with respect to coefficients [K] -> to parameters [P], by the chain rule."""
        grad = np.zeros(len(self.slots))
        for factor, degree, slots in self.terms:
            for i, s in enumerate(slots):
                others = math.prod(params[o] for j, o in enumerate(slots) if j != i)
                grad[s] += factor * grad_coef[degree] * others
        return grad

    def formula(self) -> str:
        """The polynomial as text, parameters as p0, p1, ..."""
        u = "x"
        if (self.shift, self.scale) != (0.0, 1.0):
            u = f"((x - {self.shift:g}) * {self.scale:g})"
        parts = []
        for factor, degree, slots in self.terms:
            names = [f"p{i}" for i in slots]
            if factor != 1 or not names:
                names.insert(0, f"{factor:g}")
            if degree:
                names.append(u if degree == 1 else f"{u}^{degree}")
            parts.append("*".join(names))
        return " + ".join(parts)


@lru_cache(maxsize=64)
def power_series(n_terms: int, shift: float, scale: float) -> Traced:
    """The polynomial whose parameters are its coefficients."""
    slots = tuple((0, k) for k in range(n_terms))
    terms = tuple((1.0, k, (k,)) for k in range(n_terms))
    return Traced((), slots, terms, n_terms - 1, shift, scale, 1, ())


class Symbol:
    """A polynomial in x and in parameters, behaving as a tensor in a traced forward."""

    def __init__(
        self,
        trace: Recorder,
        products: Products,
        *,
        var: Any = None,
        of_x: Any = False,
        is_x: Any = False,
    ) -> None:
        self.trace, self.products, self.var = trace, products, var
        self.of_x, self.is_x = of_x, is_x  # shaped like x; is the caller's own x

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise NotPolynomial("a symbol was used after its trace")

    def __getattr__(self, name: str) -> Any:
        if name in ("dtype", "device", "layout"):
            return getattr(self.trace, name)
        if name == "requires_grad":
            return True
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
for _name in ("__neg__", "__pos__", "__getitem__"):
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
    """Runs a module's forward on a `Symbol` and collects the polynomial it computes."""

    def __init__(self, module: torch.nn.Module, dtype: torch.dtype, device: torch.device):
        super().__init__()
        self.dtype, self.device, self.layout = dtype, device, torch.strided
        self.params = {id(p): p for p in module.parameters()}
        self.tensors: list[torch.Tensor] = []
        self.slot_of: dict[tuple[int, int], int] = {}
        self.buffers: dict[int, torch.Tensor] = {}
        self.ndim = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        involved = [a for a in (*args, *kwargs.values()) if isinstance(a, (Symbol, torch.Tensor))]
        if any(isinstance(a, Symbol) or id(a) in self.params for a in involved) or any(
            isinstance(s, Symbol) for a in args if isinstance(a, (list, tuple)) for s in a
        ):
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
        operation = _OPERATIONS.get(bare)
        if operation is None or set(kwargs) - {"other", "exponent", "alpha", "input", "value"}:
            raise NotPolynomial(f"torch operation '{name}' is not polynomial arithmetic")
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
            if args[0].is_x:
                raise NotPolynomial(f"forward changes its input in place ('{name}')")
            target = args[0]
            target.products, target.var, target.of_x = result.products, result.var, result.of_x
            return target
        return result

    # -- what goes in ------------------------------------------------------------------------

    def x(self) -> Symbol:
        return Symbol(self, {(1, ()): 1.0}, var=(0.0, 1.0), of_x=True, is_x=True)

    def constant(self, value: float, of_x: bool = False) -> Symbol:
        return Symbol(self, {(0, ()): float(value)}, of_x=of_x)

    def element(self, tensor: torch.Tensor, index: Any) -> Symbol:
        """One element of a parameter: a scalar the polynomial may contain."""
        if id(tensor) not in self.params:
            raise NotPolynomial("forward indexes a tensor that is not a parameter")
        if tensor.numel() > MAX_PARAMS:
            raise NotPolynomial(f"a parameter has more than {MAX_PARAMS} elements")
        numbers = torch.arange(tensor.numel()).reshape(tensor.shape)[index]
        if numbers.numel() != 1:
            raise NotPolynomial("forward takes several elements of a parameter at once")
        self.ndim = max(self.ndim, numbers.ndim)
        if not tensor.is_contiguous():
            raise NotPolynomial("a parameter is not contiguous")
        return Symbol(self, {(0, (self.slot(tensor, int(numbers)),)): 1.0})

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
            if value.numel() != 1:
                raise NotPolynomial("a constant with more than one element")
            self.buffers[id(value)] = value
            self.ndim = max(self.ndim, value.ndim)
            return self.constant(value.item())
        if isinstance(value, (bool, int, float)):
            if not math.isfinite(value):
                raise NotPolynomial(f"a constant is {value}")
            return self.constant(value)
        raise NotPolynomial(f"arithmetic with a {type(value).__name__}")

    # -- arithmetic --------------------------------------------------------------------------

    def same_variable(self, a: Symbol, b: Symbol) -> tuple[Symbol, Symbol]:
        """Both in one variable u; the shifted one, whose powers are the better conditioned."""
        if a.var is None or b.var is None or a.var == b.var:
            return a, b
        if a.var == (0.0, 1.0):
            return self.moved(a, b.var), b
        return a, self.moved(b, a.var)

    def moved(self, a: Symbol, var: tuple[float, float]) -> Symbol:
        """a's polynomial in another variable: v = slope * u + offset."""
        (old_shift, old_scale), (shift, scale) = a.var, var
        slope, offset = old_scale / scale, (shift - old_shift) * old_scale
        products: Products = {}
        for (degree, slots), factor in a.products.items():
            for j in range(degree + 1):
                part = factor * math.comb(degree, j) * slope**j * offset ** (degree - j)
                products[j, slots] = products.get((j, slots), 0.0) + part
        return Symbol(self, products, var=var, of_x=a.of_x)

    def _add(self, a: Any, b: Any, alpha: Any = 1) -> Any:
        a, b = self.same_variable(self.lift(a), self.lift(b))
        b = self._mul(b, alpha) if alpha != 1 else b
        products = dict(a.products)
        for key, factor in b.products.items():
            products[key] = products.get(key, 0.0) + factor
        if len(products) > MAX_TERMS:
            raise NotPolynomial(f"the polynomial has more than {MAX_TERMS} terms")
        return self.renamed(Symbol(self, products, var=a.var or b.var, of_x=a.of_x or b.of_x))

    def renamed(self, a: Symbol) -> Symbol:
        """A pure shift or scaling of x becomes the variable itself: (x - 1.7e9)**2 stays exact."""
        if a.var is None or any(slots or degree > 1 for degree, slots in a.products):
            return a
        slope, offset = a.products.get((1, ()), 0.0), a.products.get((0, ()), 0.0)
        if slope == 0.0 or (slope, offset) == (1.0, 0.0):
            return a
        shift, scale = a.var
        var = (shift - offset / (slope * scale), slope * scale)
        return Symbol(self, {(1, ()): 1.0}, var=var, of_x=a.of_x)

    def _sub(self, a: Any, b: Any, alpha: Any = 1) -> Any:
        return self._add(a, self._neg(b), alpha)

    def _rsub(self, a: Any, b: Any, alpha: Any = 1) -> Any:
        return self._sub(b, a, alpha)

    def _neg(self, a: Any) -> Any:
        return self._mul(a, -1)

    def _copy(self, a: Any) -> Any:
        a = self.lift(a)
        return Symbol(self, dict(a.products), var=a.var, of_x=a.of_x)

    def _same(self, a: Any) -> Any:
        return a

    def _mul(self, a: Any, b: Any) -> Any:
        a, b = self.same_variable(self.lift(a), self.lift(b))
        products: Products = {}
        for (da, sa), fa in a.products.items():
            for (db, sb), fb in b.products.items():
                key = (da + db, tuple(sorted(sa + sb)))
                if key[0] > MAX_DEGREE:
                    raise NotPolynomial(f"the degree is above {MAX_DEGREE}")
                products[key] = products.get(key, 0.0) + fa * fb
        if len(products) > MAX_TERMS:
            raise NotPolynomial(f"the polynomial has more than {MAX_TERMS} terms")
        return self.renamed(Symbol(self, products, var=a.var or b.var, of_x=a.of_x or b.of_x))

    def _square(self, a: Any) -> Any:
        return self._mul(a, a)

    def _addcmul(self, a: Any, b: Any, c: Any, value: Any = 1) -> Any:
        return self._add(a, self._mul(b, c), value)

    def _div(self, a: Any, b: Any) -> Any:
        divisor = self.lift(b)
        if divisor.of_x or set(divisor.products) != {(0, ())} or not divisor.products[0, ()]:
            raise NotPolynomial("division by something that is not a non-zero constant")
        return self._mul(a, 1.0 / divisor.products[0, ()])

    def _pow(self, a: Any, exponent: Any) -> Any:
        power = self.lift(exponent)
        if power.of_x or set(power.products) - {(0, ())}:
            raise NotPolynomial("an exponent that is not a constant")
        n = power.products.get((0, ()), 0.0)
        if n < 0 or n != int(n):
            raise NotPolynomial(f"the exponent {n:g}, which is not a whole number >= 0")
        a = self.lift(a)
        result = self.constant(1.0, of_x=a.of_x)
        for _ in range(int(n)):
            result = self._mul(result, a)
        return result

    def _ones_like(self, a: Any) -> Any:
        return self.constant(1.0, of_x=self.lift(a).of_x)

    def _zeros_like(self, a: Any) -> Any:
        return self.constant(0.0, of_x=self.lift(a).of_x)
