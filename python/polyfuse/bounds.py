"""Box bounds of parameters, onto which every update of `fit` is projected."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from .fused import Fused
from .problem import Problem

Bounds = tuple[torch.Tensor, torch.Tensor]  # lower and upper, float64, in the parameter's shape


def read_bounds(bounds: Any, named: Mapping[str, torch.Tensor]) -> dict[str, Bounds]:
    """The bounds of parameters by name, from a pair (lower, upper) for all, or pairs by name.

    Raises:
        TypeError: for what is no pair of numbers or tensors.
        ValueError: for names of no parameter, shapes that do not broadcast, nan, lower > upper.
    """
    if bounds is None:
        return {}
    if not isinstance(bounds, Mapping):
        return {name: _pair("bounds", bounds, p) for name, p in named.items()}
    if unknown := [name for name in bounds if name not in named]:
        raise ValueError(f"bounds: expected names among {list(named)}, got {unknown[0]!r}")
    return {name: _pair(f"bounds[{name!r}]", pair, named[name]) for name, pair in bounds.items()}


def _pair(where: str, pair: Any, p: torch.Tensor) -> Bounds:
    if not isinstance(pair, (tuple, list)) or len(pair) != 2:
        raise TypeError(f"{where}: expected a pair (lower, upper), got {pair!r}")
    ends = []
    for end in pair:
        try:
            value = torch.as_tensor(end, dtype=torch.float64, device=p.device).detach()
        except (TypeError, ValueError, RuntimeError):
            raise TypeError(f"{where}: expected numbers or tensors, got {end!r}") from None
        try:
            ends.append(value.expand(p.shape))
        except RuntimeError:
            raise ValueError(
                f"{where}: expected shapes that broadcast to {tuple(p.shape)}, "
                f"got {tuple(value.shape)}"
            ) from None
    low, high = ends
    if bad := int((~(low <= high)).sum()):  # or nan
        raise ValueError(f"{where}: expected lower <= upper, got {bad} that are not, or nan")
    return low, high


def with_bounds(problem: Problem, bounds: Any, known: Fused, module: torch.nn.Module) -> Problem:
    """The problem with the bounds of those parameters that an optimizer holds."""
    if bounds is None:
        return problem
    number = {id(t): i for i, t in enumerate(known.tensors)}
    named = {name: p for name, p in module.named_parameters() if id(p) in number}
    pairs = read_bounds(bounds, named)
    ends = torch.full((2, problem.model.n_params), torch.inf, dtype=torch.float64)
    ends[0] = -torch.inf
    for name, pair in pairs.items():
        at = known.at[number[id(named[name])]]
        if problem.rule[at[0]] is not None:
            ends[:, at] = torch.stack([end.reshape(-1) for end in pair]).cpu()
    return problem._replace(bounds=tuple(ends.numpy()))
