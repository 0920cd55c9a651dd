"""A traced forward whose x has a known shape: columns, stacks, matrix products and reshapes."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch

from .polynomials import NotPolynomial
from .symbolic import Recorder, Symbol

# What a torch function does here, by its name without underscores.
_OPERATIONS = {
    "matmul": "matmul", "mv": "mv", "mm": "mm", "linear": "linear", "sum": "sum",
    "stack": "stack", "cat": "cat", "concat": "cat", "concatenate": "cat",
    "getitem": "getitem", "unbind": "unbind", "unsqueeze": "unsqueeze", "squeeze": "squeeze",
    "flatten": "flatten", "view": "reshape", "reshape": "reshape",
    "t": "transpose", "T": "transpose", "dim": "dim", "size": "size",
}  # fmt: skip


class ShapedRecorder(Recorder):
    """Traces a forward of x [N, *of_x], N > 1; the samples stay the first dimension throughout."""

    operations = Recorder.operations | _OPERATIONS

    def __init__(
        self,
        module: torch.nn.Module,
        dtype: torch.dtype,
        device: torch.device,
        of_x: tuple[int, ...],
    ):
        super().__init__(module, dtype, device)
        self.of_x, self.n_variables = of_x, math.prod(of_x)

    def axis(self, a: Symbol, dim: Any, more: int = 0) -> int:
        """Dimension dim of a, or of what has `more`, as an axis of its array."""
        n_dims = a.array.ndim + a.rows + more
        if not isinstance(dim, int) or not -n_dims <= dim < n_dims:
            raise NotPolynomial(f"dimension {dim!r} of {n_dims}")
        axis = dim % n_dims - a.rows
        if axis < 0:
            raise NotPolynomial("an operation along the samples")
        return axis

    def view(self, a: Symbol, array: Any) -> Symbol:
        """Shares its memory with a in torch: neither may be changed in place."""
        a.shared = a.shared or "a tensor with views"
        seen = Symbol(self, array, rows=a.rows, shared="a view")
        if seen.array.size == 0:
            raise NotPolynomial("a tensor without elements")
        return seen

    def _dim(self, a: Symbol) -> int:
        return a.array.ndim + a.rows

    def _size(self, a: Symbol, dim: Any = None) -> int:
        return a.array.shape[self.axis(a, dim)]

    def _matmul(self, a: Any, b: Any) -> Symbol:
        a, b = self.lift(a), self.lift(b)
        if b.rows or (a.rows and a.array.ndim == 0):
            raise NotPolynomial("a matrix product over the samples")
        if b.array.ndim > 2:
            raise NotPolynomial("a product with a batch of matrices")
        return Symbol(self, np.matmul(a.array, b.array), rows=a.rows)

    def _mv(self, a: Any, b: Any) -> Symbol:
        return self._product(a, b, (2, 1))

    def _mm(self, a: Any, b: Any) -> Symbol:
        return self._product(a, b, (2, 2))

    def _product(self, a: Any, b: Any, n_dims: tuple[int, int]) -> Symbol:
        a, b = self.lift(a), self.lift(b)
        if (found := (self._dim(a), self._dim(b))) != n_dims:
            raise NotPolynomial(f"a product of {found[0]} and {found[1]} dimensions")
        return self._matmul(a, b)

    def _linear(self, input: Any, weight: Any, bias: Any = None) -> Symbol:
        weight = self.lift(weight)
        if bias is not None and weight.array.ndim != 2:
            raise NotPolynomial("a bias with a weight that is no matrix")
        product = self._matmul(input, self._transpose(weight))
        return product if bias is None else self._add(product, bias)

    def _transpose(self, a: Any) -> Symbol:
        a = self.lift(a)
        if a.rows or a.array.ndim > 2:
            raise NotPolynomial("a transpose of the samples")
        return self.view(a, a.array.T)

    def _sum(self, a: Any, dim: Any = None, keepdim: bool = False) -> Symbol:
        a, dims = self.lift(a), dim if isinstance(dim, (tuple, list)) else (dim,)
        if dim is None or not dims:
            raise NotPolynomial("the sum over the samples")
        axes = tuple(self.axis(a, d) for d in dims)
        return Symbol(self, np.sum(a.array, axis=axes, keepdims=keepdim), rows=a.rows)

    def _listed(self, tensors: Any) -> list[Symbol]:
        parts = [self.lift(t) for t in tensors]
        if len({(p.rows, p.array.ndim) for p in parts}) != 1:
            raise NotPolynomial("tensors of different dimensions are joined")
        return parts

    def _stack(self, tensors: Any, dim: int = 0) -> Symbol:
        parts = self._listed(tensors)
        axis = self.axis(parts[0], dim, more=1)
        return Symbol(self, np.stack([p.array for p in parts], axis), rows=parts[0].rows)

    def _cat(self, tensors: Any, dim: int = 0) -> Symbol:
        parts = self._listed(tensors)
        axis = self.axis(parts[0], dim)
        return Symbol(self, np.concatenate([p.array for p in parts], axis), rows=parts[0].rows)

    def _getitem(self, a: Symbol, index: Any) -> Symbol:
        parts = list(index) if isinstance(index, tuple) else [index]
        if not all(type(p) in (int, slice) or p is None or p is ... for p in parts):
            raise NotPolynomial("an index that is no number, slice or None")
        if ... not in parts:
            parts.append(...)
        if a.rows and parts[0] is not ...:
            if parts[0] != slice(None):
                raise NotPolynomial("forward takes some of the samples ('__getitem__')")
            del parts[0]
        elif a.rows and sum(p is not None for p in parts[1:]) > a.array.ndim:
            raise NotPolynomial("forward takes some of the samples ('__getitem__')")
        return self.view(a, a.array[tuple(parts)])

    def _unbind(self, a: Symbol, dim: int = 0) -> tuple[Symbol, ...]:
        a = self.lift(a)
        parts = np.moveaxis(a.array, self.axis(a, dim), 0)
        return tuple(self.view(a, part) for part in parts)

    def _unsqueeze(self, a: Symbol, dim: int) -> Symbol:
        a = self.lift(a)
        return self.view(a, np.expand_dims(a.array, self.axis(a, dim, more=1)))

    def _squeeze(self, a: Symbol, dim: Any = None) -> Symbol:
        a = self.lift(a)
        axes = range(a.array.ndim) if dim is None else [self.axis(a, dim)]
        return self.view(a, a.array.squeeze(tuple(i for i in axes if a.array.shape[i] == 1)))

    def _flatten(self, a: Symbol, start_dim: int = 0, end_dim: int = -1) -> Symbol:
        a = self.lift(a)
        shape = (*((-1,) if a.rows else ()), *a.array.shape)
        start, end = (d % len(shape) for d in (start_dim, end_dim))
        merged = math.prod(shape[start : end + 1])
        if a.rows and start == 0 and merged != -1:
            raise NotPolynomial("samples are joined with their columns")
        return self._reshape(a, *shape[:start], merged, *shape[end + 1 :])

    def _reshape(self, a: Symbol, *shape: Any) -> Symbol:
        if len(shape) == 1 and isinstance(shape[0], (tuple, list)):
            shape = tuple(shape[0])
        a = self.lift(a)
        if a.rows:
            if shape[:1] != (-1,) or math.prod(shape[1:]) != a.array.size:
                raise NotPolynomial(f"samples get the shape {shape}")
            shape = shape[1:]
        return self.view(a, a.array.reshape(shape))
