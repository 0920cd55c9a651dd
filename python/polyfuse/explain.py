"""Says in words what is fused, which engine runs, and what stopped the rest."""

from __future__ import annotations

from typing import Any

import torch

from .backends import choose
from .batch import is_batch
from .classes import has_outputs, read_classes
from .criteria import CROSS_ENTROPY, kind_of
from .fused import fused, of_sample
from .prepare import choose_for, prepare, refuse
from .recognise import refuse_criterion, refuse_optimizer
from .stacked import Stacked
from .static import by_columns
from .surface import is_surface


def explain(
    model: Any,
    criterion: Any = None,
    optimizer: Any = None,
    x: Any = None,
    y: Any = None,
    epochs: int = 1000,
) -> str:
    """Print, and return as text, what polyfuse makes of these objects.

    Args:
        model: torch or polyfuse module; criterion, optimizer, x, y: as for `polyfuse.fit`, each
            optional.
        epochs: of the run whose engine is told.

    Returns:
        The text, as printed.

    Raises:
        TypeError: for a model that is no module, or data that `polyfuse.fit` does not take.

    Example:
        >>> import polyfuse as pf, polyfuse.nn as nn
        >>> text = pf.explain(nn.Polynomial(2))
        model: fused, degree 2, coefficients affine in 3 parameters
          p0 + p1*x + p2*x^2
    """
    if not isinstance(model, torch.nn.Module):
        raise TypeError(f"model: expected a torch.nn.Module, got {type(model).__name__}")
    first = next(model.parameters(), None)
    like = x if isinstance(x, torch.Tensor) else first
    dtype, device = (torch.float32, torch.device("cpu"))
    if like is not None:
        dtype, device = like.dtype, like.device
    known = fused(model, dtype, device, of_sample(x) if isinstance(x, torch.Tensor) else None)
    lines = []
    if isinstance(known.traced, Stacked):
        lines.append(f"model: fused, {known.traced.formula()}")
    elif known.traced is None and is_surface(model) and by_columns(model):
        lines.append(
            "model: fused in fit, solve and fuse, and in a loop over data that static promises; "
            f"any other loop runs as torch: {known.reason}"
        )
    elif known.traced is None and (is_batch(model) or is_surface(model) or has_outputs(model)):
        lines.append(f"model: fused in fit and solve; a loop over it runs as torch: {known.reason}")
    elif known.traced is None:
        lines.append(f"model: not fused, runs as torch: {known.reason}")
    else:
        kind = "affine in" if known.traced.affine else "products of"
        count = len(known.traced.slots)
        lines.append(
            f"model: fused, degree {known.traced.degree}, coefficients {kind} {count} parameters"
        )
        lines.append(f"  {known.traced.formula()}")
    classes = has_outputs(model) and kind_of(type(criterion)) is CROSS_ENTROPY
    for name, value, refused in (
        ("criterion", criterion, read_classes if classes else refuse_criterion),
        ("optimizer", optimizer, refuse_optimizer),
    ):
        if value is not None:
            reason = refused(value)
            state = f"not fused: {reason}" if isinstance(reason, str) else "fused"
            lines.append(f"{name}: {type(value).__name__}, {state}")
    if x is not None and y is not None and None not in (known.polynomial, criterion, optimizer):
        try:
            _, _, problem = prepare(model, criterion, optimizer, x, y)
        except ValueError as error:
            lines.append(f"fit: refuses, {error}")
        else:
            runner = choose("auto", problem)
            lines.append(f"backend: {runner.name}")
            for engine in ("closed_form", "moments", "stream"):
                reason = refuse(problem, runner, engine, -1.0)
                chosen = engine == choose_for(problem, runner, "auto", epochs, -1.0)
                note = f"no: {reason}" if reason else ("chosen by auto" if chosen else "possible")
                lines.append(f"engine {engine}: {note}")
    text = "\n".join(lines)
    print(text)
    return text
