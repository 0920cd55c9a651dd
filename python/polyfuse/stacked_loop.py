"""The training loop of polynomials side by side on a device: by the kernels of batches, a fit for
each, whose losses add up; where kernels know them together (under cross entropy, or outputs of
several variables) as any other."""

from __future__ import annotations

from typing import Any

import torch

from .backends.batched import Fits, backend_of_fits
from .backends.batched_device import Pace, Step, pace_of_step
from .backends.device import constants_of
from .criteria import CROSS_ENTROPY, Criterion
from .device_loop import DeviceLoop, Launched, mean_of_weights, share
from .rules import KEPT, Options, Rule, SgdOptions
from .stacked import Stacked

# A thread takes as long for so many terms of samples as torch for its launches, whose threads share
LONG = 1 << 14
FEW = 100  # them: that pays where there are this many times more samples than fits.


class StackedLoop(DeviceLoop):
    """`DeviceLoop` of a `Stacked` model; runner: the backend that knows it as one, or None."""

    traced: Stacked

    def __init__(self, plan: Any, traced: Stacked, runner: Any, watched: list, of_y: Any):
        super().__init__(plan, traced, runner, watched, of_y)
        self.fits = backend_of_fits(self.device, traced.n_terms)
        self.owned: Options | None = None

    def refuse(self, y: torch.Tensor, criterion: Criterion) -> str | None:
        """None, or why no kernel takes a step on targets like y."""
        fits, terms = self.traced.outputs, self.traced.n_terms
        n = y.numel() // fits
        together = self.together(criterion)
        if (self.runner if together else self.fits) is None:
            what = "outputs" if together else "fits"
            return f"no kernels for {fits} {what} of {terms} coefficients on {self.device}"
        if not together and n * terms > LONG and n > FEW * fits:
            return f"{fits} fits of {n} samples are too few for a thread each; pf.fit takes them"
        return None

    def together(self, criterion: Criterion) -> bool:
        """Whether kernels know all of them as one model."""
        return criterion.kind is CROSS_ENTROPY or bool(self.traced.exponents)

    def follow(self, rule: Rule) -> None:
        (self.owned,) = rule
        if self.runner is not None:
            super().follow(rule)

    def knows_step(self, objective: Any) -> bool:
        """Numbers that are kept once for all parameters must lie in the host's memory."""
        at_once = self.together(objective.criterion)
        return self.updates and (at_once or all(t.ndim for t in self.kept.on_device()))

    def compute(
        self, objective: Any, grads: list[torch.Tensor], steps: bool, in_place: bool
    ) -> torch.Tensor:
        if self.together(objective.criterion):
            return super().compute(objective, grads, steps, in_place)
        p, traced = self.traced.tensors[0].detach(), self.traced
        fits, criterion = self.share_of(objective)
        state = self.buffer(p.numel() + traced.outputs)
        before = None if in_place else state[: p.numel()]
        options = self.owned if steps else None
        kept = self.rows(self.kept.rows, steps)
        step = Step(
            fits, criterion, options, self.pace(options), kept,
            None if not steps else p if in_place else self.spares[0],
            kept if in_place else self.rows(self.kept.spares, steps),
            grads[0], state[p.numel() :], before,
        )  # fmt: skip
        self.fits.launch_step(step)
        objective.forward.before = before
        if self.capturing():
            plain = traced.basis == "monomial"
            constants = [] if plain else constants_of(traced, criterion, self.device)
            self.captured.append((step, constants))
        return state

    def share_of(self, objective: Any) -> tuple[Fits, Criterion]:
        """The data as that of fits, and the criterion that gives each its share of the loss."""
        x, y, w = objective.forward.x, objective.y, objective.weight
        criterion, traced = objective.criterion.over_rows_of(y), self.traced
        n = y.numel() // traced.outputs
        if objective.mean and w is not None and mean_of_weights(objective):
            w = w / w.sum()
        elif objective.mean:
            criterion = share(criterion, y.numel())
        p = traced.tensors[0].detach().view(traced.n_terms, -1)
        fits = Fits(
            p, x.reshape(n, -1), y.reshape(n, -1), None if w is None else w.reshape(n, -1), False,
            traced.shift, traced.scale, traced.basis,
        )  # fmt: skip
        return fits, criterion

    def rows(self, of: list[list[Any]], steps: bool) -> list[Any]:
        """What is kept of every parameter."""
        return [t if steps and t is not None and t.ndim else None for (t,) in of]

    def pace(self, options: Options | None) -> Pace:
        numbers = [0.0] * KEPT
        if isinstance(options, SgdOptions):
            numbers[1] = float(self.kept.rows[0][0] is not None)
        for c in self.kept.copied if options is not None else ():
            numbers[c.row] = c.host.item()
        return pace_of_step(options, tuple(numbers), self.device)

    def loss_of(self, objective: Any) -> torch.Tensor:
        if self.together(objective.criterion):
            return super().loss_of(objective)
        return objective.state[self.traced.n_params :].sum()

    def install(self, owner: Any) -> bool:
        last = self.last
        done = super().install(owner)
        if last is not None and not self.together(last.objective.criterion):
            self.kept.seen = []  # the copies on the device are those of before
        return done

    def move(self, last: Launched, unchanged: bool) -> bool:
        if self.together(last.objective.criterion):
            return super().move(last, unchanged)
        if not unchanged:
            return False
        with torch.no_grad():
            for row, spares in zip(
                ([self.traced.tensors[0]], *self.kept.rows), (self.spares, *self.kept.spares),
                strict=True,
            ):  # fmt: skip
                if row[0] is not None and row[0].ndim:
                    row[0].copy_(spares[0])
        return True
