"""A module's traced polynomial with its compiled plan, kept while the module stays as it is."""

from __future__ import annotations

import logging
import weakref
from collections import OrderedDict
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch.autograd.graph import increment_version

from . import _C, _check
from .backends import backend_of, backend_of_outputs
from .backends.native import make_plan
from .backends.reference import coefficients
from .backends.resident import Resident, resident
from .criteria import SQUARED, Criterion
from .device_loop import DeviceLoop
from .optim.kept import read_kept, write_kept
from .optim.owners import Holding
from .polynomials import NotPolynomial
from .problem import State
from .rules import Rule, rows_of
from .stacked import Stacked
from .symbolic import Traced
from .tracing import trace
from .watching import Contents, watched

logger = logging.getLogger("polyfuse")
MOST_UNFUSED, TRY_AGAIN = 8, 64  # predictions that are deferred in vain, and that then are not


class Fused:
    """One trace of one module: its polynomial, or the reason why there is none."""

    def __init__(
        self,
        module: torch.nn.Module,
        dtype: torch.dtype,
        device: torch.device,
        of_x: tuple[int, ...] | None = None,
        traced: Traced | None = None,  # where that is known
    ):
        self.module = weakref.ref(module)
        self.dtype, self.device, self.of_x = dtype, device, of_x
        self.on_host = device.type == "cpu"
        self.traced = traced
        self.reason, self.for_good = "", False
        # For x of any shape, where it is such a polynomial; or else for x of this shape.
        for shape in () if traced else (None,) if of_x is None else (None, of_x):
            try:
                self.traced, self.reason = trace(module, dtype, device, shape), ""
            except NotPolynomial as error:
                self.reason, self.for_good = str(error), error.for_good
            if self.traced is not None or self.for_good:
                break
        if self.traced is None:
            logger.info("%s is not fused: %s", type(module).__name__, self.reason)
        if isinstance(self.traced, Stacked):
            self.reason = "it is a batch" if self.traced.batch else "it has several outputs"
        self.tensors = self.traced.tensors if self.traced else ()
        stretches = self.traced.stretches if self.traced else []
        self.plan = make_plan(self.traced) if self.traced else _C.Plan(0, 1, [], 0.0, 1.0, None)
        self.contents = contents = Contents(module)
        for b in self.traced.buffers if self.traced else ():
            contents.add(b)
        # Whether the checks of the loop are all that a call needs.
        self.cheap = not contents.copies and not contents.tensors
        # None: torch runs what is on this device.
        surface = len(self.polynomial.exponents) if self.polynomial else 0
        n_slots = len(self.traced.slots) if self.traced else 0
        self.runner: Any
        self.loop: Any
        of_y = self.traced.rows_of_y if self.traced else None
        if isinstance(self.traced, Stacked) and not self.on_host:
            from .stacked_loop import StackedLoop

            together = backend_of_outputs(device, self.traced)
            self.loop = StackedLoop(self.plan, self.traced, together, contents.cheap, of_y)
            self.runner = together or self.loop.fits
        else:
            self.runner = backend_of(device, n_slots, surface)
            if self.on_host or self.runner is None or self.traced is None:
                is64 = dtype == torch.float64
                self.loop = _C.Loop(self.plan, self.tensors, stretches, is64, contents.cheap, of_y)
            else:
                self.loop = DeviceLoop(self.plan, self.traced, self.runner, contents.cheap, of_y)
        starts = np.cumsum([0, *(count for _, _, count in stretches)]).tolist()
        parts = sorted(zip(stretches, pairwise(starts), strict=True))
        self.order = np.concatenate([np.zeros(0, np.int64), *(np.arange(*at) for _, at in parts)])
        self.sizes = [t.numel() for t in self.tensors]
        ends = np.cumsum([0, *self.sizes])
        # The slots of each tensor, by element.
        self.at = [self.order[a:b] for a, b in pairwise(ends.tolist())]
        self.trainable = any(t.requires_grad for t in self.tensors)
        self.moments: Any = None
        self.criterion: tuple[Criterion, bool] | None = None  # that the loop sees
        self.last_fit: Any = None  # what it found out about criterion and optimizer
        self.resident: Any = None  # what the last one left on the device
        # The fused optimizer that owns the parameters, and when it was looked for.
        self.owner: Any = None
        self.generation = -1
        # Predictions in a row, without a launch between them, that torch went on with.
        self.unfused, self.launched = 0, -1
        self._reshaped: dict[Any, Fused] = {}
        self.last_view: Any = None  # weak, of a prediction in another shape

    @property
    def polynomial(self) -> Traced | None:
        """What was traced, where it is a single polynomial."""
        return None if isinstance(self.traced, Stacked) else self.traced

    def holds_for(self, of_x: tuple[int, ...] | None) -> bool:
        """Whether it says of samples of this shape all that there is to say."""
        if self.traced is None:
            return self.for_good or self.of_x == of_x
        return self.traced.of_x is None or self.traced.of_x == of_x

    def leaves_to_torch(self, x: Any) -> bool:
        """Whether calls of the module, or those with the like of x, are known to be torch's."""
        if self.for_good:
            return True
        if self.unfused >= MOST_UNFUSED:
            self.unfused += 1
            if self.unfused == MOST_UNFUSED + TRY_AGAIN:
                self.unfused = MOST_UNFUSED - 1
            return self.unfused >= MOST_UNFUSED
        return (
            self.traced is None
            and type(x) is torch.Tensor
            and x.dtype is self.dtype
            and x.device == self.device
            and self.of_x == of_sample(x)
            and self.valid()
        )

    def note_value(self) -> None:
        """A prediction became a tensor of torch's: where all do, deferring them is in vain."""
        launched = self.runner.launches() if self.runner is not None else 0
        self.unfused = self.unfused + 1 if launched == self.launched else 0
        self.launched = launched
        if self.unfused >= MOST_UNFUSED:
            self.retire()

    def reshaped(self, x: torch.Tensor, shape: torch.Size) -> Fused | None:
        """The same polynomial, whose output at x has this shape; None where there is none."""
        of_x, of_y = tuple(x.shape[1:]), tuple(shape[1:])
        if (known := self._reshaped.get((of_x, of_y))) is None:
            module = self.module()
            if module is None or type(self.traced) is not Traced or not self.on_host:
                return None
            traced = replace(self.traced, of_x=of_x, of_y=of_y)
            known = Fused(module, self.dtype, self.device, of_x, traced)
            self._reshaped[of_x, of_y] = known
        return known

    def rows_of(self, x: torch.Tensor) -> torch.Tensor:
        """x as the kernels read it: [N], or [N, V] of several variables."""
        several = self.traced is not None and self.traced.exponents
        return x if several else x.reshape(-1)

    def valid(self) -> bool:
        """Whether the module is still what was traced."""
        return self.for_good or (
            self.loop.unchanged() and (self.cheap or self.contents.unchanged())
        )

    def retire(self) -> None:
        """The next call of the module looks at it anew."""
        module = self.module()
        if module is not None and hasattr(type(module), "_loop"):
            object.__setattr__(module, "_loop", None)

    def reads(self, t: torch.Tensor) -> bool:
        """Whether the kernels read a tensor as it lies."""
        return (
            t.device == self.device
            and t.layout is torch.strided
            and (t.ndim < 2 or t.is_contiguous())
            and not t.is_inference()
            and not t.is_neg()
            and not torch._C._functorch.is_functorch_wrapped_tensor(t)
            and t.data_ptr() != 0
        )

    def accepts(self, y: torch.Tensor, x: torch.Tensor, criterion: Criterion = SQUARED) -> bool:
        """Whether kernels read y as a target of this criterion; tells the loop of the pair."""
        if self.traced is None or not self.traced.fits(y, x, criterion):
            return False
        w = criterion.samples
        if self.refuse_step(y, criterion):
            return False
        if w is not None and not (w.shape == y.shape and w.dtype is x.dtype and self.reads(w)):
            return False
        if self.loop.sees(x) and self.loop.sees_target(y):
            return True
        if x.dtype is not self.dtype or not (self.reads(x) and self.reads(y)) or y.requires_grad:
            return False
        traced = self.traced
        if isinstance(traced, Stacked) and criterion.out_of_range(y, traced.outputs) is not None:
            return False
        self.loop.see(x, y)
        return True

    def refuse_step(self, y: torch.Tensor, criterion: Criterion) -> str | None:
        """None, or why no kernel takes a step on targets like y."""
        if self.on_host or not isinstance(self.traced, Stacked):
            return None
        reason: str | None = self.loop.refuse(y, criterion)
        return reason

    def see_criterion(self, module: torch.nn.Module, criterion: Criterion, mean: bool) -> None:
        """Tells the loop which criterion, mean or sum, a module is."""
        buffers = module._buffers.values()
        options = [b for b in buffers if b is not None and b is not criterion.samples]
        watch = [module, *watched(module), *options]
        self.loop.see_criterion(module, watch, criterion, mean)
        self.criterion = criterion, mean

    def fresh_grads(self) -> None:
        """New tensors for backward to fill, because somebody holds the last ones."""
        with torch.inference_mode(False), torch.no_grad():
            flat = torch.zeros(sum(self.sizes), dtype=self.dtype, device=self.device)
            memory, offset, grads = flat.untyped_storage(), 0, []
            for t in self.tensors:  # not views: a gradient can be detached in place
                grads.append(torch.empty(0, dtype=self.dtype, device=self.device))
                grads[-1].set_(memory, offset, t.shape, t.stride())
                offset += t.numel()
        storage = memory._cdata
        del flat, memory
        self.loop.set_grads(tuple(grads), storage, torch._C._storage_Use_Count(storage))

    def state(self, held: Holding, runner: Any = None) -> Any:
        """The scalar parameters, and the optimizer's state of them, as float64 [P].

        For a run of a device's backend that stay there, where they can.
        """
        if not self.on_host and getattr(runner, "in_place", False):
            there = resident(self, held)
            if there is not None:
                return there
        state, optimizer = State.of(self.read()), held.optimizer
        if not optimizer.state and isinstance(optimizer, torch.optim.SGD):
            return state  # SGD keeps nothing before its first step
        for t, options in held.tensors.items():
            there = optimizer.state.get(self.tensors[t], {})
            state.kept[:, self.at[t]] = read_kept(options, there, self.sizes[t])
        return state

    def read(self) -> np.ndarray:
        """The scalar parameters as they are now, float64 [P]."""
        if self.on_host:
            return self.loop.snapshot(len(self.order))
        values = np.empty(len(self.order))
        with torch.no_grad():
            values[self.order] = torch.cat([t.reshape(-1) for t in self.tensors]).cpu().numpy()
        return values

    def coefficients(self, forward: Any) -> Any:
        """Of the parameters as they were at model(x): [K], on the device where they are there."""
        assert self.traced is not None
        if isinstance(self.loop, DeviceLoop):
            return coefficients(self.traced, self.loop.params_of(forward))
        return self.traced.coefficients(forward.params)

    def evaluate(self, forward: Any) -> torch.Tensor:
        """The output at x, of the parameters as they were at model(x)."""
        if isinstance(self.traced, Stacked):
            return self.traced.of(self._side_by_side(forward), forward.x)
        assert self.traced is not None
        x = forward.x
        y = self.runner.evaluate(self.traced, self.coefficients(forward), self.rows_of(x))
        return y.reshape(self.traced.shape_of(x))

    def project(self, forward: Any, grad: torch.Tensor) -> list[torch.Tensor]:
        """Gradient of that output -> of every parameter tensor."""
        if isinstance(self.traced, Stacked):
            p = self._side_by_side(forward)
            with torch.enable_grad():
                y = self.traced.of(p.requires_grad_(), forward.x)
            return list(torch.autograd.grad(y, p, grad))
        g = grad.reshape(-1).contiguous()
        grad_coef = self.runner.project(self.traced, self.rows_of(forward.x), g)
        return self.pull_back(forward, grad_coef)

    def _side_by_side(self, forward: Any) -> torch.Tensor:
        """Coefficients [K, *of_y], as they were at model(x)."""
        loop = self.loop
        there = loop.params_of(forward) if isinstance(loop, DeviceLoop) else forward.params
        return torch.as_tensor(there).to(self.dtype).view(self.tensors[0].shape)

    def pull_back(self, forward: Any, grad_coef: Any) -> list[torch.Tensor]:
        """Gradient of the coefficients [K] -> of every parameter tensor."""
        assert self.traced is not None
        if not isinstance(self.loop, DeviceLoop):
            return self.gather(self.traced.pull_back(forward.params, grad_coef))
        with torch.enable_grad():
            params = self.loop.params_of(forward).detach().requires_grad_()
            coef = coefficients(self.traced, params)
        (grad,) = torch.autograd.grad(coef, params, torch.as_tensor(grad_coef).to(coef))
        return self.gather(grad)

    def gradients(self) -> list[torch.Tensor]:
        """What the last launch computed, as new tensors."""
        if isinstance(self.loop, DeviceLoop):
            return self.loop.gradients()
        return self.gather(self.loop.grads())

    def set_rule(self, rule: Rule) -> None:
        if isinstance(self.loop, DeviceLoop):
            self.loop.set_rule(rule)
        else:
            self.plan.set_rule(rows_of(rule))

    def write(self, params: np.ndarray) -> None:
        """Sets the parameters to params [P], where they lie."""
        if self.on_host:
            self.loop.store(params)
            increment_version(self.tensors)
            return
        with torch.no_grad():
            for t, value in zip(self.tensors, self.gather(params), strict=True):
                t.copy_(value)

    def write_grads(self, grad: np.ndarray) -> None:
        """Sets .grad of the trainable parameters to grad [P], whatever was there."""
        if not self.on_host:
            for t, value in zip(self.tensors, self.gather(grad), strict=True):
                t.grad = value if t.requires_grad else t.grad
        elif not self.loop.replace_grads(grad):
            self.fresh_grads()
            self.loop.replace_grads(grad)

    def take_over(self, state: State) -> None:
        """Parameters that somebody changed since they were committed."""
        if not self.valid():
            raise RuntimeError("callback: changed the model, or exchanged its parameters")
        committed = state.params.astype(np.float32 if self.dtype == torch.float32 else np.float64)
        now = self.read()
        changed = now != committed
        state.params[changed] = now[changed]

    def gather(self, values: Any) -> list[torch.Tensor]:
        """values [P] as one new tensor for every parameter tensor."""
        with np.errstate(over="ignore"):
            flat = torch.as_tensor(values[self.order]).to(self.dtype).to(self.device)
        parts = flat.split(self.sizes) if len(self.sizes) > 1 else (flat,)
        return [p.view(t.shape) for p, t in zip(parts, self.tensors, strict=True)]

    def commit(self, state: Any, held: Holding, stepped: bool) -> None:
        """Writes parameters, .grad and optimizer state as the training loop would have."""
        for p in held.others if stepped else ():
            p.grad = None  # as zero_grad leaves what the loss does not depend on
        if isinstance(state, Resident):
            if stepped:
                state.commit(self, held)
            return
        self.write(state.params)
        if not stepped:
            return
        self.write_grads(state.grad)
        for t, options in held.tensors.items() if held.keeps else ():
            tensor = self.tensors[t]
            write_kept(options, held.optimizer, tensor, state.kept[:, self.at[t]])


# Of modules that have no slot for them, the last few: what is watched may lead back to the module.
_kept: OrderedDict[int, list[Fused]] = OrderedDict()
_KEPT = 64
TRACES = 4  # of one module: it may go back and forth between train() and eval(), or dtypes


def of_sample(x: torch.Tensor) -> tuple[int, ...] | None:
    """The shape of one sample of x, as `fused` is told; None where it tells nothing."""
    if x.ndim not in (1, 2) or x.shape[0] < 2 or not x.numel():
        return None
    return tuple(x.shape[1:])


def read_data(module: torch.nn.Module, x: Any, y: Any) -> tuple[Fused, torch.Tensor, torch.Tensor]:
    """The module's trace for this data, and x and y as the kernels read them; raises where they
    are not alike."""
    _check.alike(x, y=y)
    known = fused(module, x.dtype, x.device, of_sample(x))
    if known.traced is None or known.traced.of_x is None:
        return known, *_check.data(x, y)
    _check.memory(x=x, y=y)
    if y.shape != (shape := known.traced.shape_of(x)):
        raise ValueError(
            f"y: expected the shape of the model's output, {tuple(shape)}, got {tuple(y.shape)}"
        )
    if known.traced.exponents:
        return known, x.detach().resolve_neg(), _check.flat(y)
    return known, _check.flat(x), _check.flat(y)


def fused(
    module: torch.nn.Module,
    dtype: torch.dtype,
    device: torch.device,
    of_x: tuple[int, ...] | None = None,
) -> Fused:
    """The module's trace as it is now, made anew where there is none yet; see `of_sample`."""
    has_slot = hasattr(type(module), "_fused")
    traces: Any = (module._fused if has_slot else _kept.get(id(module))) or []
    for i, known in enumerate(traces):
        if (
            known.dtype == dtype
            and known.device == device
            and known.holds_for(of_x)
            and known.module() is module
            and known.valid()
        ):
            if i:
                traces.insert(0, traces.pop(i))
            break
    else:
        known = Fused(module, dtype, device, of_x)
        traces = [known, *(k for k in traces if k.module() is module)][:TRACES]
        if has_slot:
            object.__setattr__(module, "_fused", traces)
    if not has_slot:
        _kept[id(module)] = traces
        _kept.move_to_end(id(module))
        while len(_kept) > _KEPT:
            _kept.popitem(last=False)
    return known
