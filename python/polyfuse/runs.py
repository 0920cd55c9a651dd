"""A run of the compiled kernels on one parameter tensor, and what it leaves behind."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from .optim.kept import read_kept, write_kept
from .problem import SLICE_SECONDS
from .result import FitResult
from .rules import KEPT, Options, kept_of, row_of


def descend(
    run: Callable[..., Any],
    engine: str,
    p: torch.Tensor,
    options: Options | None,
    optimizer: torch.optim.Optimizer,
    epochs: int,
    record_every: int,
    tol: float,
    start: float,
    runner: Any,
    evidence: Callable[[np.ndarray], Any],
) -> FitResult:
    """All epochs; then parameters, .grad and optimizer state are as the loop would leave them.

    start: when the call began; runner: the backend; evidence: of the parameters that it leaves.
    """
    before = runner.launches()
    params = p.detach().double().reshape(-1).cpu().numpy().copy()
    kept = np.zeros((KEPT, p.numel()))
    if options is not None:
        kept = read_kept(options, optimizer.state.get(p, {}), p.numel())
    grad = np.zeros(p.numel())
    rows = [None if options is None else row_of(options)] * p.numel()
    done, converged, loss, previous = 0, False, math.nan, math.nan
    history: list[float] = []
    while True:
        taken, converged, loss, recorded, previous = run(
            rows, done, epochs - done, record_every, tol, SLICE_SECONDS, previous,
            torch.get_num_threads(), params, kept, grad,
        )  # fmt: skip
        done += taken
        history += recorded.tolist()
        if converged or done >= epochs:
            break
    at = list(range(0, len(history) * record_every, record_every)) if record_every else []
    with torch.no_grad(), np.errstate(over="ignore"):
        p.copy_(torch.from_numpy(params).view(p.shape))
        if done and p.requires_grad:
            p.grad = torch.from_numpy(grad).to(p.device, p.dtype).view(p.shape)
    if done and options is not None and any(kept_of(options)):
        write_kept(options, optimizer, p, kept)
    if at[-1:] != [done]:
        at.append(done)
        history.append(loss)
    reason = "converged" if converged else "epochs"
    if not (math.isfinite(loss) and np.isfinite(params).all()):
        reason = "diverged"
        warnings.warn("the fit diverged to inf or nan", RuntimeWarning, stacklevel=4)
    return FitResult(
        loss=loss,
        epochs=done,
        converged=converged,
        stop_reason=reason,
        engine=engine,
        backend=runner.name,
        launches=runner.launches() - before,
        seconds=time.perf_counter() - start,
        history_epochs=np.array(at, dtype=np.int64),
        history=np.array(history),
        _evidence=evidence(params),
    )
