"""The single step, for people who keep their own loop."""

from __future__ import annotations

from typing import Any

import torch

from . import _check
from .backends import choose
from .batch import is_batch, spread
from .classes import has_outputs
from .criteria import CROSS_ENTROPY, GAUSSIAN, Criterion
from .device_loop import DeviceLoop
from .fused import Fused, fused
from .gaussian import extra_of, of_variances
from .optim.owners import Holding
from .outputs import check_stacked
from .prepare import prepare
from .problem import Problem, Schedule
from .recognise import read_criterion, refuse_parameters
from .records import Forward, Objective
from .stacked import Stacked
from .static import columns_of
from .surface import is_surface, read_rows


class FusedStep:
    """``step(x, y)``: forward, loss, backward and update in one launch. Made by `fuse`."""

    def __init__(self, model: Any, criterion: Any, optimizer: Any):
        self.model, self.criterion, self.optimizer = model, criterion, optimizer
        self._known: Fused | None = None
        self._read: tuple[Criterion, bool] | None = None

    def __call__(
        self, x: torch.Tensor, y: torch.Tensor, *, sample_weight: torch.Tensor | None = None,
        mask: torch.Tensor | None = None, sigma: torch.Tensor | None = None,
    ) -> torch.Tensor:  # fmt: skip
        """One training step; returns the loss before it, a detached scalar tensor.

        Args:
            x, y, sample_weight, mask, sigma: as for `polyfuse.fit`. Whether y is in the domain of
                the criterion is looked at when a tensor comes for the first time; weights are
                checked at every call.
        """
        known, criterion, optimizer = self._known, self.criterion, self.optimizer
        weights: Any = sample_weight, mask, sigma
        given, (_, x) = x, columns_of(self.model, x) or (None, x)
        if (
            known is None
            or not known.loop.sees(x)
            or not known.loop.sees_target(y)
            or not known.valid()
            or not known.loop.sees_criterion(criterion)
            or refuse_parameters(known.tensors)
        ):
            by_columns = is_surface(self.model) and self.model.by_columns
            one = by_columns and self.model.variables == 1
            if (
                is_batch(self.model)
                or has_outputs(self.model)
                or (one and not self.model.functions and given.device.type == "cpu")
            ):
                read: Any = check_stacked(self.model, criterion, optimizer, given, y, weights)
                if by_columns and has_outputs(self.model):
                    known, x = read_rows(self.model, given, given)
                    x = x.to(given.dtype)
                else:
                    known = fused(self.model, x.dtype, x.device)
                if known.traced is None:
                    raise ValueError(f"model: Polynomial is not fused: {known.reason}")
                if reason := known.refuse_step(y, read[0]):
                    raise ValueError(f"model: {reason}")
            else:
                known, held, problem = prepare(
                    self.model, criterion, optimizer, given, y, weights=weights
                )
                if by_columns:  # what the kernels read are its terms at x
                    x = problem.x.to(given.dtype) if x is given else x
                    y = y if y.ndim == 1 else problem.y
                on_device = isinstance(known.loop, DeviceLoop) and problem.x.dtype is known.dtype
                if not (known.on_host or on_device):
                    return self._run(known, held, problem)
                read = read_criterion(criterion, x, *extra_of(criterion))
                assert not isinstance(read, str), read  # prepare has asked
            if not known.accepts(y, x, read[0]):  # of another layout, or in need of a gradient
                x, y = (t.detach().resolve_neg().clone().contiguous() for t in (x, y))
            if read[0].kind is not GAUSSIAN:  # a call of it takes a variance as well
                known.see_criterion(criterion, *read)
            self._known, self._read = known, read
        assert self._read is not None
        kind, mean = self._read
        of = y
        if kind.kind is CROSS_ENTROPY:
            of = x if x.ndim == 1 else x[:, 0]
        weight: torch.Tensor | None
        if kind.kind is GAUSSIAN:
            kind, mean, weight = of_variances(kind, mean, x, y, weights)
        else:
            if of is y and isinstance(known.traced, Stacked):
                weights = spread(weights, y)
            weight = _check.weight(of, *weights)
        weight = None if weight is None else weight.view(of.shape)
        objective = Objective(Forward(known, x), y, y._version, kind, mean, weight)
        if not objective.launch(optimizer):
            raise ValueError(f"x, y: expected plain dense tensors, got {type(x).__name__}")
        optimizer.zero_grad()
        objective.backward()
        if not known.loop.install(optimizer):
            optimizer.step()
        else:
            self._note_step()
        return objective.plain()

    def _note_step(self) -> None:
        """What a scheduler's patch of `optimizer.step` would note."""
        if "step" in self.optimizer.__dict__:
            self.optimizer._opt_called = True

    def _run(self, known: Fused, held: Holding, problem: Problem) -> torch.Tensor:
        """The same as a run of one epoch, where there is no loop."""
        runner = choose("auto", problem)
        state = known.state(held, runner)
        run = runner.descend(problem, "stream", None, Schedule(0, 1, 1), state)
        self.optimizer.zero_grad()
        known.commit(state, held, stepped=True)
        self._note_step()
        return torch.tensor(float(run.recorded[0]), dtype=known.dtype, device=known.device)


def fuse(model: Any, criterion: Any, optimizer: Any) -> FusedStep:
    """Compile one training step of a polynomial model.

    Args:
        model, criterion, optimizer: as for `polyfuse.fit`.

    Returns:
        FusedStep: call it as ``loss = step(x, y)``. It leaves parameters, ``.grad`` and optimizer
        state as zero_grad, forward, backward and step of a loop would. After three steps on a GPU
        the next can be captured in a CUDA graph, as in torch on a side stream: keep the step, and
        give no weights, while the graph is replayed. An optimizer that counts its steps needs
        ``fused=True``, which has them counted on the device.

    Raises:
        TypeError, ValueError: at the call, naming the argument; nothing is changed.

    Example:
        >>> import torch, polyfuse as pf, polyfuse.nn as nn, polyfuse.optim as optim
        >>> model = nn.Polynomial(1)
        >>> step = pf.fuse(model, nn.MSELoss(), optim.SGD(model.parameters(), lr=0.1))
        >>> step(torch.tensor([1.0, 2.0]), torch.tensor([1.0, 2.0])).item()
        2.5
    """
    return FusedStep(model, criterion, optimizer)
