"""`static`: the user's promise that data stays as it is, so that its moments serve every step."""

from __future__ import annotations

import logging
import weakref
from functools import partial
from typing import Any, NamedTuple

import torch

from . import _C, _check
from .backends.native import make_data
from .bases import terms
from .problem import Problem
from .stacked import Stacked

PILOT = 1024  # samples, about whose optimum the sums are taken
BLOCK = 1 << 20  # terms of samples

logger = logging.getLogger("polyfuse")


class Promise(NamedTuple):
    tensor: weakref.ref
    version: int
    address: int
    shape: torch.Size


_promises: dict[int, Promise] = {}


def _forget(key: int, _: Any = None, promises: Any = _promises, end: Any = _C.end_promise) -> None:
    promises.pop(key, None)  # bound as defaults: a tensor may outlive the names of this module
    end(key)


def static(x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Promise that x and y stay as they are: the training loop then steps from moments.

    The first iteration reads the data once; every later one costs the same for 9 samples and for
    10 million. An in-place change that torch can see (version counter, exchanged storage) voids
    the promise; one that it cannot see (through a numpy array that shares the memory) breaks it.
    Steps from moments are those of the squared error without weights, of one variable or several,
    of outputs, batches and any basis, functions of x too, which are called once; other steps read
    the data.

    Args:
        x, y: data of as many samples, float32 or float64, in any shapes that the model takes.

    Returns:
        The same two tensors.

    Raises:
        TypeError, ValueError: naming the argument, what came and what was expected.

    Example:
        >>> import torch, polyfuse as pf
        >>> xs, ys = pf.static(torch.arange(9.0), torch.arange(9.0) ** 2)
    """
    _check.alike(x, y=y)
    _check.memory(x=x, y=y)
    if x.numel() == 0:
        raise ValueError(f"x: expected at least one sample, got shape {tuple(x.shape)}")
    if x.shape[:1] != y.shape[:1]:
        raise ValueError(
            f"y: expected as many samples as x, of shape {tuple(x.shape)}, got {tuple(y.shape)}"
        )
    for t in (x, y):
        promise(t)
    return x, y


def by_columns(model: Any) -> bool:
    """Whether the loop computes a model's terms once, for promised x; of a series, whose terms
    kernels read as well, it takes the recurrence."""
    known = getattr(model, "by_columns", False)
    return bool(known and (model.variables > 1 or model.functions))


def columns_of(model: Any, x: Any) -> tuple[Any, torch.Tensor] | None:
    """What stands for a model of functions, or of other terms that kernels read the values of, and
    for promised x, at which they are computed once: the model of these values, and they [N, K];
    None for any other."""
    if id(x) not in _promises or not by_columns(model):
        return None
    from .surface import of_promised

    n_dims = 1 if model.variables == 1 else 2
    return of_promised(model, x) if x.ndim == n_dims and not x.requires_grad and _kept(x) else None


def promise_of(t: torch.Tensor) -> Promise:
    return _promises[id(t)]


def promise(t: torch.Tensor) -> None:
    key = id(t)
    _promises[key] = Promise(
        weakref.ref(t, partial(_forget, key)), t._version, t.data_ptr(), t.shape
    )
    _C.promise(t)


def _kept(t: torch.Tensor) -> bool:
    made = _promises.get(id(t))
    if made is None:
        return False
    if (
        made.tensor() is t
        and made.version == t._version
        and made.address == t.data_ptr()
        and made.shape == t.shape
    ):
        return True
    logger.info("pf.static: the data was changed in place; the promise is void")
    _forget(id(t))
    return False


def moments_of(known: Any, x: torch.Tensor, y: torch.Tensor) -> Any:
    """The moments of promised data, computed once; None for any other."""
    if (
        known.traced is None
        or not _promises
        or not (known.on_host or known.polynomial or known.traced.exponents)
        or not _kept(x)
        or not _kept(y)
    ):
        return None
    promises = (_promises[id(x)], _promises[id(y)])
    cached = known.moments
    if cached is None or cached[0][0] is not promises[0] or cached[0][1] is not promises[1]:
        cached = known.moments = (promises, _accumulate(known, x, y))
    return cached[1]


def _accumulate(known: Any, x: torch.Tensor, y: torch.Tensor) -> Any:
    traced = known.traced
    if isinstance(traced, Stacked) and not traced.exponents:
        return moments_side_by_side(traced, x, y)
    if isinstance(traced, Stacked):
        return known.runner.accumulate(Problem(traced, "mean", (), x.detach(), y.detach()))
    xs, ys = known.rows_of(x.detach()), _check.flat(y)
    if traced.exponents and known.on_host:
        data = make_data(traced, xs, ys)
        return _C.accumulate_surface(known.plan, data, torch.get_num_threads())
    return known.runner.accumulate(Problem(traced, "mean", (), xs, ys))


def moments_side_by_side(traced: Stacked, x: torch.Tensor, y: torch.Tensor) -> _C.StackedMoments:
    """About the optimum of some samples, in the terms of the model's basis, block by block."""
    outputs, n_terms = traced.outputs, traced.n_terms
    y = y.detach().reshape(-1, outputs)
    x = x.detach().reshape(len(y), -1)  # [N, C], or [N, 1] of what all share

    def columns(rows: slice) -> tuple[torch.Tensor, torch.Tensor]:
        u = (x[rows].double() - traced.shift) * traced.scale
        return torch.stack(terms(traced.basis, n_terms, u), 1), y[rows].double()  # [n, K, C]

    v, of_some = columns(slice(None, None, max(1, len(y) // PILOT)))
    v, of_some = (t.nan_to_num(0.0, 0.0, 0.0) for t in (v, of_some))
    right = of_some.T[..., None] if v.shape[2] > 1 else of_some
    found = torch.linalg.lstsq(v.permute(2, 0, 1), right, driver="gelsd").solution
    reference = found[..., 0].T if v.shape[2] > 1 else found[0]  # [K, C]
    power, cross, square = torch.zeros(()), torch.zeros(()), 0.0
    block = max(1, BLOCK // (n_terms * outputs))
    for first in range(0, len(y), block):
        v, target = columns(slice(first, first + block))
        r = (v * reference).sum(1) - target
        power = power + torch.einsum("njc,nkc->jkc", v, v)
        cross = cross + (v * r[:, None]).sum(0)
        square += float(r.square().sum())
    reference, cross, power = (t.reshape(-1) for t in (reference, cross, power))
    return _C.StackedMoments(
        reference.numpy(), cross.numpy(), power.numpy(), square, float(y.numel())
    )
