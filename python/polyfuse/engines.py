"""Which engines can compute a run exactly, and which of them `auto` takes."""

from __future__ import annotations

import math
from collections.abc import Callable

from . import _check
from .criteria import Criterion


def refuse_engine(
    engine: str,
    criterion: Criterion,
    tol: float,
    *,
    linear: bool,
    affine: bool = True,
    shared: bool = True,
    scheduled: bool = False,
    bounded: bool = False,
) -> str | None:
    """None, or why the engine cannot compute this run exactly.

    linear: the update is linear in the gradient; affine: so are the coefficients in the parameters;
    shared: all fits of a batch have the same x and weights.
    """
    if engine != "stream" and not criterion.squared:
        return f"{criterion.kind.name} is no function of the moments of the data"
    if engine != "closed_form":
        return None
    if scheduled:
        return "a scheduler changes the update from epoch to epoch; use moments or stream"
    if bounded:
        return "bounds change the update where they hold; use moments or stream"
    if not shared:
        return "fits with x or weights of their own have no update in common; use moments"
    if not linear:
        return "the update is not linear in the gradient; use moments or stream"
    if not affine:
        return "the coefficients are not affine in the parameters (products of parameters)"
    if tol >= 0:
        return "tol needs the loss of every epoch; use moments or stream"
    return None


def choose_engine(engine: str, refused: Callable[[str], str | None], leap: bool = True) -> str:
    """The engine, or for 'auto' the fastest that is not refused; leap: closed_form is worth it."""
    _check.one_of("engine", engine, _check.ENGINES)
    if engine == "auto":
        fastest_first = ("closed_form", "moments", "stream") if leap else ("moments", "stream")
        return next(e for e in fastest_first if not refused(e))
    if reason := refused(engine):
        raise ValueError(f"engine: {engine} cannot serve this case: {reason}")
    return engine


def leap_pays(n_params: int, epochs: int, per_epoch: int) -> bool:
    """Whether powers of a matrix of 2 P + 1 rows take fewer operations than all epochs."""
    return 2 * (2 * n_params + 1) ** 3 * math.log2(epochs + 2) < epochs * per_epoch
