"""The whole run: `fit` chooses an engine, launches it and leaves things as the loop would have."""

from __future__ import annotations

import math
import time
import warnings
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from . import _C, _check
from .backends import choose
from .backends.resident import Resident
from .batch import fit_batch, is_batch
from .bounds import with_bounds
from .classes import has_outputs
from .criteria import GAUSSIAN
from .engines import choose_engine, leap_pays, refuse_engine
from .fused import Fused, read_data
from .gaussian import extra_of, of_variances
from .linear import Held
from .optim.owners import Holding, holding, options_watched
from .outputs import fit_outputs
from .problem import Problem, Schedule, Wanted
from .recognise import (
    read_criterion,
    refuse_optimizer,
    refuse_parameters,
    refuse_shape,
)
from .result import FitResult
from .rules import SgdOptions, is_sgd
from .schedulers import Schedulers
from .surface import fit_surface, is_surface
from .watching import watched

# Polynomials that have kernels of their own.
OTHERS: tuple[tuple[Any, Any, str], ...] = (
    (is_batch, fit_batch, "a batch of fits"),
    (is_surface, fit_surface, "several variables"),
    (has_outputs, fit_outputs, "several outputs"),
)
SLICE_SECONDS = 0.2  # a launch comes back this often, so that Ctrl-C is heard


Callback = Callable[[int, float], Any]


def prepare(
    model: Any,
    criterion: Any,
    optimizer: Any,
    x: Any,
    y: Any,
    nan_policy: str = "propagate",
    weights: tuple[Any, Any, Any] = (None, None, None),
) -> tuple[Fused, Holding, Problem]:
    """The problem that these objects state; raises what `fit` documents."""
    if not isinstance(model, torch.nn.Module):
        raise TypeError(f"model: expected a torch.nn.Module, got {type(model).__name__}")
    known, xs, ys = read_data(model, x, y)
    last = known.last_fit
    if last is None or not last.holds(criterion, optimizer, y):
        read = read_criterion(criterion, y, *extra_of(criterion))
        if isinstance(read, str):
            raise ValueError(f"criterion: {read}")
        reason = refuse_optimizer(optimizer)
        if reason:
            raise ValueError(f"optimizer: {reason}")
        if known.polynomial is None:
            raise ValueError(f"model: {type(model).__name__} is not fused: {known.reason}")
        last = LastFit(known, criterion, optimizer, y, read)
    assert known.traced is not None
    reason = refuse_parameters(known.tensors) or refuse_shape(known.traced, x)
    if reason:
        raise ValueError(f"model: {reason}")
    kind, mean = last.read
    omit = nan_policy == "omit"
    weight: torch.Tensor | None
    if kind.kind is GAUSSIAN:
        kind, mean, weight = of_variances(kind, mean, xs, ys, weights, omit)
    else:
        weight = _check.weight(y, *weights)
    reason = kind.refuse_targets(ys, weight)
    if reason:
        raise ValueError(f"y: {reason}")
    held = Holding(optimizer, *last.held)
    problem = Problem(
        known.traced, "mean" if mean else "sum", held.rule, xs, ys,
        omit, criterion=kind.over_rows_of(y), weight=weight,
    )  # fmt: skip
    return known, held, problem


class LastFit:
    """What `prepare` found a criterion and an optimizer to be, good while they stay as they are.

    Kept with the model's trace until the optimizer goes.
    """

    def __init__(self, known: Fused, criterion: Any, optimizer: Any, y: torch.Tensor, read: Any):
        trace = weakref.ref(known)

        def forget(_: Any) -> None:
            if (alive := trace()) is not None:
                alive.last_fit = None

        held = holding(known, optimizer)
        self.criterion, self.optimizer = weakref.ref(criterion), weakref.ref(optimizer, forget)
        self.y_ndim, self.read = y.ndim, read
        self.held = held[1:]
        known.last_fit = self
        options, complete = options_watched(optimizer)
        buffers = [b for b in criterion._buffers.values() if b is not None]
        self.watch = None
        # numbers that torch keeps in tensors: their type is part of the options
        if complete and not any(hasattr(o, "single") for o in held.tensors.values()):
            self.watch = _C.Watch([*options, criterion, *watched(criterion), *buffers])

    def holds(self, criterion: Any, optimizer: Any, y: torch.Tensor) -> bool:
        return (
            self.watch is not None
            and self.criterion() is criterion
            and self.optimizer() is optimizer
            and self.y_ndim == y.ndim
            and self.watch.unchanged()
        )


def refuse(problem: Problem, engine: str, tol: float, scheduled: bool = False) -> str | None:
    """None, or why the engine cannot compute this run exactly."""
    return refuse_engine(
        engine, problem.criterion, tol, linear=is_sgd(problem.rule), affine=problem.model.affine,
        scheduled=scheduled, bounded=problem.bounds is not None,
    )  # fmt: skip


def choose_for(
    problem: Problem, engine: str, epochs: int, tol: float, scheduled: bool = False
) -> str:
    """The engine of a run."""
    if engine == "auto" and epochs == 1:
        return "stream"
    # Operations of an epoch on the moments: K^2 and about 40 more.
    leap = leap_pays(len(problem.rule), epochs, problem.model.n_terms**2 + 40)
    return choose_engine(engine, lambda e: refuse(problem, e, tol, scheduled), leap)


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
        x, y: data of one shape, float32 or float64; or y in the shape of the model's output, where
            that is a polynomial of the columns of x. Of a batch, numpy arrays as well.
        epochs: steps to take, each over all the data.
        engine: ``auto``, ``stream``, ``moments`` or ``closed_form``; `explain` says why.
        backend: ``auto`` or a name that `backends` lists.
        record_every: record the loss after 0, record_every, 2 record_every, ... steps.
        tol: stop after the first epoch that changes the loss by no more than tol * loss.
        scheduler: one of torch's learning-rate schedulers, or a list of them, each stepped after
            every epoch; ``ReduceLROnPlateau`` gets the epoch's loss, and costs a launch an epoch.
        callback: called as ``callback(epoch, loss)`` at every recorded epoch, with the parameters
            in place; the run stops where it returns True.
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
            parameters that no optimizer holds stay. On CPUs, for one variable.

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
    weights = sample_weight, mask, sigma
    for is_one, fit_other, what in OTHERS:
        if is_one(model):
            unserved = {"scheduler": scheduler, "callback": callback, "progress": progress or None}
            if fit_other is not fit_batch:
                unserved["bounds"] = bounds
            for name, value in unserved.items():
                if value is not None:
                    raise ValueError(f"{name}: not for {what}, got {value!r}")
            wanted = Wanted(epochs, engine, backend, every, tolerance, nan_policy, weights, bounds)
            return fit_other(model, criterion, optimizer, x, y, wanted)
    known, held, problem = prepare(model, criterion, optimizer, x, y, nan_policy, weights)
    problem = with_bounds(problem, bounds, known, model)
    schedulers = Schedulers(scheduler, optimizer, lambda: holding(known, optimizer).rule)
    scheduled = bool(schedulers.listed)
    requested, engine = engine, choose_for(problem, engine, epochs, tolerance, scheduled)
    runner = choose(backend, problem)
    before = runner.launches()
    if nan_policy == "raise" and engine == "stream":
        _check.finite(runner.nonfinite(problem), _check.OR_ELSE)
    if nan_policy == "omit" and runner.nonfinite(problem) == _counted(problem):
        raise ValueError("x, y: no sample is left after nan_policy='omit'")

    moments = None
    stays = None if callback is not None else runner  # a callback is shown, and may change, all
    state = begin(known, held, problem, stays)
    bar = _progress_bar(epochs) if progress else None
    history_epochs: list[int] = []
    history: list[float] = []
    done, reason, loss, previous = 0, "epochs", float("nan"), float("nan")
    left: tuple[Any, int, float] | None = None
    try:
        while True:
            stop = epochs
            if callback is not None or bar is not None:
                pause = every or max(1, epochs // 100)
                stop = min(epochs, (done // pause + 1) * pause)
            if scheduled:
                schedulers.settle(done)
                most = getattr(runner, "max_changes", 0)
                taken, rule, changes = schedulers.ahead(stop - done, most)
                stop = done + taken
                problem = problem._replace(rule=rule, changes=changes)
            schedule = Schedule(done, stop - done, every, tolerance, SLICE_SECONDS, previous)
            # Ctrl-C is heard as a launch returns: what it changed must not be half taken over.
            ahead = state.copy() if left else state
            run = runner.descend(problem, engine, moments, schedule, ahead)
            moments, previous = run.moments, run.previous
            if moments is not None and not math.isfinite(moments.square):
                if nan_policy == "raise":
                    _check.finite(runner.nonfinite(problem), _check.OR_ELSE)
                if done == 0 and run.epochs:  # the data overflows its moments: read it every epoch
                    if requested != "auto":
                        warnings.warn(
                            f"engine: moments of this data are not finite; {engine} became stream",
                            RuntimeWarning,
                            stacklevel=2,
                        )
                    engine, moments, previous = "stream", None, float("nan")
                    state = begin(known, held, problem, stays)
                    continue
            if every:
                at = -(-done // every) * every
                history_epochs += range(at, at + len(run.recorded) * every, every)
                history += run.recorded.tolist()
            left = (ahead, done + run.epochs, run.loss)
            state, done, loss = left
            schedulers.settle(done, run.previous)
            if bar is not None:
                bar.update(run.epochs)
                bar.set_postfix(loss=f"{loss:.6g}")
            if run.converged:
                reason = "converged"
                break
            if callback is not None and (done % every == 0 or done == epochs):
                known.commit(state, holding(known, optimizer), done > 0)
                stop_now = callback(done, loss)
                known.take_over(state)
                problem = problem._replace(rule=holding(known, optimizer).rule)
                if stop_now:
                    reason = "callback"
                    break
            if done >= epochs:
                break
    except KeyboardInterrupt:
        reason = "interrupted"
        if isinstance(state, Resident):  # the last launch has changed it, whoever took note of that
            left = state.left()
    finally:
        if bar is not None:
            bar.close()
    schedulers.settle(left[1] if left else 0, previous)
    if left is not None:
        state, done, loss = left
        if scheduled or callback is not None:  # who may have changed the options since
            held = holding(known, optimizer)
        known.commit(state, held, done > 0)
    if history_epochs[-1:] != [done] and reason != "interrupted":
        history_epochs.append(done)
        history.append(loss)
    limit = torch.finfo(problem.x.dtype).max
    if left and not all(-limit <= v <= limit for v in (*state.params.tolist(), loss)):  # or nan
        reason = "diverged" if reason in ("epochs", "converged") else reason
        _warn_diverged(problem)
    return FitResult(
        loss=loss,
        epochs=done,
        converged=reason == "converged",
        stop_reason=reason,
        engine=engine,
        backend=runner.name,
        launches=runner.launches() - before,
        seconds=time.perf_counter() - start,
        history_epochs=np.array(history_epochs, dtype=np.int64),
        history=np.array(history, dtype=np.float64),
        _data=None if problem.model.exponents else Held.of(problem),
        _params=state.params,
        _module=known.module,
    )


def begin(known: Fused, held: Holding, problem: Problem, runner: Any) -> Any:
    """Where a run begins: at the parameters as they are, moved into their bounds."""
    state = known.state(held, runner)
    if problem.bounds is not None:
        np.clip(state.params, *problem.bounds, out=state.params)
    return state


def _counted(problem: Problem) -> int:
    """Samples that are not left out."""
    w = problem.weight
    return problem.x.numel() if w is None else int(torch.count_nonzero(w))


def largest_stable_lr(problem: Problem) -> float | None:
    """The lr above which SGD diverges on this data; None where groups differ or maximize is set,
    and for any other criterion than squared error.

    With c the largest curvature and m the momentum: 2 (1 + m) / (1 - dampening) / c, and
    2 (1 + m) / (1 + 2 m) / c with nesterov. Source: the roots of one step on a quadratic; Polyak,
    Some methods of speeding up the convergence of iteration methods (1964).
    """
    owned = [i for i, o in enumerate(problem.rule) if o is not None]
    options = {o for o in problem.rule if isinstance(o, SgdOptions)}
    if len(options) != 1 or not is_sgd(problem.rule):
        return None
    if not (problem.model.affine and problem.criterion.squared) or problem.model.exponents:
        return None
    o = options.pop()
    if o.maximize or o.dampening == 1:
        return None
    u = (problem.x.double() - problem.model.shift) * problem.model.scale
    w = torch.ones_like(u) if problem.weight is None else problem.weight.double()
    counted = torch.isfinite(u) & torch.isfinite(problem.y) & (w != 0)
    u, w = u[counted], w[counted]
    terms = problem.model.degree + 1
    power = np.array([float((w * u**k).sum()) for k in range(2 * terms - 1)])
    gram = power[np.add.outer(np.arange(terms), np.arange(terms))] * 2
    if problem.reduction == "mean":
        gram /= power[0]
    jacobian = np.zeros((terms, len(problem.model.slots)))
    for factor, degree, slots in problem.model.terms:
        for s in slots:
            jacobian[degree, s] += factor
    hessian = (jacobian.T @ gram @ jacobian)[np.ix_(owned, owned)]
    curvature = float(np.linalg.eigvalsh(hessian)[-1]) + o.weight_decay
    if not (np.isfinite(curvature) and curvature > 0):
        return None
    limit = 2 * (1 + o.momentum) / (1 + 2 * o.momentum if o.nesterov else 1 - o.dampening)
    return limit / curvature


def _warn_diverged(problem: Problem) -> None:
    lr = largest_stable_lr(problem)
    advice = "" if lr is None else f"; the largest stable lr for this data is about {lr:.3g}"
    warnings.warn(f"the fit diverged to inf or nan{advice}", RuntimeWarning, stacklevel=3)


def _progress_bar(epochs: int) -> Any:
    try:
        from tqdm.auto import tqdm
    except ImportError as error:
        raise ImportError("progress: needs tqdm; pip install 'polyfuse[progress]'") from error
    return tqdm(total=epochs, unit="epoch")
