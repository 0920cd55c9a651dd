"""The whole run: `fit` chooses an engine, launches it and leaves things as the loop would have."""

from __future__ import annotations

import time
from typing import Any, cast

import numpy as np
import torch

from . import _check
from .backends import choose
from .batch import fit_batch, is_batch
from .bounds import with_bounds
from .classes import has_outputs
from .evidence import Evidence
from .linear import Held
from .optim.owners import holding
from .outputs import evidence_of_outputs, fit_apart
from .prepare import choose_for, prepare
from .problem import Problem, Wanted
from .recognise import check_domain
from .result import FitResult
from .schedulers import Schedulers
from .single import Single
from .stability import warn_diverged
from .surface import is_surface, source_of
from .training import Between, Callback, train


def fit(
    model: torch.nn.Module,
    criterion: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    x: torch.Tensor,
    y: torch.Tensor,
    *,
    epochs: int,
    engine: str = "auto",
    backend: str = "auto",
    record_every: int | None = None,
    tol: float | None = None,
    scheduler: Any = None,
    callback: Callback | None = None,
    progress: bool = False,
    nan_policy: str = "raise",
    sample_weight: torch.Tensor | None = None,
    mask: torch.Tensor | None = None,
    sigma: torch.Tensor | None = None,
    bounds: Any = None,
) -> FitResult:
    """Train a polynomial model for many epochs in one kernel launch.

    Parameters, ``.grad`` and optimizer state are left as the training loop would leave them; plain
    PyTorch can go on from there. (A parameter that no optimizer holds stays, and gets the last
    epoch's gradient, where a loop would pile up those of all epochs.) Arithmetic is in float64
    whatever the dtype of the data. One exception: of 65,536 contiguous samples of float32 and more,
    without weights or omitted ones, that a CPU reads in every epoch (``stream``), each is computed
    in float32, as torch does, and summed in float64.

    Args:
        model: torch or polyfuse module whose output is a polynomial of its input.
        criterion: one that `polyfuse.nn` has of its own, or torch's of that name, with a
            reduction to a scalar. What all but ``MSELoss`` need is read in every epoch.
        optimizer: torch's or polyfuse's SGD, Adam, AdamW, ASGD, Rprop, RMSprop, Adagrad, Adadelta,
            Adamax, NAdam or RAdam.
        x, y: tensors or numpy arrays of one shape, float32 or float64; or y in the shape of the
            model's output, where that is a polynomial of the columns of x.
        epochs: steps to take, each over all the data.
        engine: ``auto``, ``stream``, ``moments`` or ``closed_form``; `explain` says why.
        backend: ``auto`` or a name that `backends` lists.
        record_every: record the loss after 0, record_every, 2 record_every, ... steps.
        tol: stop after the first epoch that changes the loss by no more than tol * loss.
        scheduler: one of torch's learning-rate schedulers, or a list of them, each stepped after
            every epoch; ``ReduceLROnPlateau`` gets the epoch's loss (of a batch the mean over the
            fits whose loss is finite), and costs a launch an epoch.
        callback: called as ``callback(epoch, loss)`` at every recorded epoch, with the parameters
            in place, and with a loss ``[*batch_shape]`` of a batch; the run stops where it returns
            True.
        progress: show a bar (needs tqdm).
        nan_policy: ``raise`` on nan or inf in the data, ``omit`` those samples, or ``propagate``.
        sample_weight: weight >= 0 of every sample, in the shape of x: a loss that is a sum becomes
            sum w_i l_i, a mean the weighted mean sum w_i l_i / sum w_i, a batchmean that times
            samples per row. A sample of weight 0 is
            left out, whatever it holds.
        mask: bool, in the shape of x: samples where it is False are left out.
        sigma: standard deviation > 0 of every y, in the shape of x: a weight of 1 / sigma^2, with
            which the sum of squared errors is chi-squared; for ``GaussianNLLLoss`` the square root
            of the variance that a call of it takes.
        bounds: a pair (lower, upper) of numbers or tensors that broadcast to every parameter, or a
            dict of such pairs by a parameter's name; infinite where there is none. Parameters are
            moved to the nearest value within before the first epoch and after every update;
            parameters that no optimizer holds stay.

    Returns:
        FitResult: final loss, history, engine, launches and why the run stopped; for a
        `nn.Polynomial` with a batch_shape a `BatchResult` with those of every fit.

    Raises:
        TypeError, ValueError: naming the argument, what came and what was expected; nothing is
            changed.

    Example:
        >>> import torch, polyfuse as pf, polyfuse.nn as nn, polyfuse.optim as optim
        >>> x = torch.linspace(-1, 1, 50)
        >>> model = nn.Polynomial(2)
        >>> optimizer = optim.SGD(model.parameters(), lr=0.1)
        >>> result = pf.fit(model, nn.MSELoss(), optimizer, x, 1 + 2 * x + 3 * x**2, epochs=2000)
        >>> [round(c, 3) for c in model.coefficients.tolist()]
        [1.0, 2.0, 3.0]
    """
    start = time.perf_counter()
    epochs = _check.epochs(epochs)
    every, tolerance = _check.record_every(record_every), _check.tolerance(tol)
    _check.one_of("nan_policy", nan_policy, _check.NAN_POLICIES)
    if callback is not None and not callable(callback):
        raise TypeError(f"callback: expected a function, got {callback!r}")
    if callback is not None and not every:
        raise ValueError("callback: needs record_every, the epochs at which it is called")
    x, y = _check.as_tensor(x), _check.as_tensor(y)
    weights = tuple(map(_check.as_tensor, (sample_weight, mask, sigma)))
    check_domain(model, x, weights)
    between = Between(scheduler, callback, progress)
    wanted = Wanted(epochs, engine, backend, every, tolerance, nan_policy, weights, bounds)
    if is_batch(model):
        return cast(FitResult, fit_batch(model, criterion, optimizer, x, y, wanted, between))
    if several := has_outputs(model):
        apart = fit_apart(model, criterion, optimizer, x, y, wanted, between)
        if apart is not None:
            return apart
    known, held, problem = prepare(model, criterion, optimizer, x, y, nan_policy, weights)
    problem = with_bounds(problem, bounds, known, model)
    schedulers = None
    if scheduled := bool(scheduler):
        schedulers = Schedulers(scheduler, optimizer, lambda: holding(known, optimizer).rule)
    runner = choose(backend, problem)
    chosen = choose_for(problem, runner, engine, epochs, tolerance, scheduled)
    before = runner.launches()
    if nan_policy == "raise" and chosen == "stream":
        _check.finite(runner.nonfinite(problem), _check.OR_ELSE)
    if nan_policy == "omit" and runner.nonfinite(problem) == _counted(problem):
        raise ValueError("x, y: no sample is left after nan_policy='omit'")
    run = Single(
        known, held, problem, runner, chosen, record_every=every, tol=tolerance,
        nan_policy=nan_policy, shown=callback is not None,
        varies=scheduled or callback is not None, forced=engine != "auto",
    )  # fmt: skip
    reason, history_epochs, history = train(run, epochs, every, schedulers, between)
    limit = torch.finfo(known.dtype).max
    if run.started and not all(
        -limit <= v <= limit for v in (*run.state.params.tolist(), run.loss)
    ):
        reason = "diverged" if reason in ("epochs", "converged") else reason  # or nan
        warn_diverged(problem)
    return FitResult(
        loss=run.loss,
        epochs=run.done,
        converged=reason == "converged",
        stop_reason=reason,
        engine=run.engine,
        backend=runner.name,
        launches=runner.launches() - before,
        seconds=time.perf_counter() - start,
        history_epochs=history_epochs,
        history=history[0] if len(history) == 1 else np.concatenate([np.zeros(0), *history]),
        _evidence=evidence_of_outputs(model, x, problem, run.state.params)
        if several
        else Evidence(
            Held.of(problem, source_of(model, x) if is_surface(model) else None),
            run.state.params,
            known.module(),
        ),
    )


def _counted(problem: Problem) -> int:
    """Samples that are not left out."""
    w = problem.weight
    return problem.y.numel() if w is None else int(torch.count_nonzero(w))
