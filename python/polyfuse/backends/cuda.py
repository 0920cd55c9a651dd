"""The backend of CUDA C++ kernels: tensors on the device, one launch a verb."""

from __future__ import annotations

from contextlib import nullcontext
from functools import cache
from importlib.util import find_spec
from typing import Any

import torch

from ..criteria import CROSS_ENTROPY, ELEMENTARY, SQUARED, Criterion
from ..problem import Problem, Report, Schedule
from ..stacked import Stacked
from ..symbolic import Traced
from . import surface_cuda
from .device import (
    MAX_CHANGES,
    DeviceMap,
    DeviceMoments,
    DeviceRule,
    begin,
    bounds_of,
    class_weights,
    cost_of,
    loss_and_gradient,
    n_recorded,
    recurrence_on,
    refuse_apart,
    refuse_engine,
    rule_of,
    state_size,
)
from .native import ENGINE
from .reference import design, finite
from .tables import Tables

MOST_RECORDED = 1 << 20  # losses of one launch
NO_SCHEDULE = Schedule(0, 0)


MAX_PARAMS = 64  # as csrc/core/run.h has it
MAX_CLASSES = 32  # neighbouring threads of a warp take one each


@cache
def _missing() -> str | None:
    if find_spec("polyfuse._cuda") is None:
        return "not built: nvcc was not found at build time"
    try:
        from .. import _cuda
    except ImportError as error:
        return str(error)
    return _cuda.missing() or None


class Cuda:
    name = "cuda"
    max_params = MAX_PARAMS
    max_surface_terms = surface_cuda.MAX_TERMS
    max_changes = MAX_CHANGES
    in_place = True
    device_type = "cuda"

    def __init__(self) -> None:
        self._launches = 0
        self._workspaces: dict[tuple[int, int] | None, torch.Tensor] = {}

    @property
    def module(self) -> Any:
        from .. import _cuda

        return _cuda

    def missing(self) -> str | None:
        return _missing()

    def refuse(self, problem: Problem) -> str | None:
        if problem.x.device.type != self.device_type:
            return f"the data is on {problem.x.device}"
        if isinstance(problem.model, Stacked):
            return refuse_apart(problem) or self.refuse_outputs(problem.model)
        if len(problem.model.slots) > MAX_PARAMS:
            return f"{len(problem.model.slots)} scalar parameters, more than {MAX_PARAMS}"
        terms, most = len(problem.model.exponents), self.max_surface_terms
        return f"{terms} terms of several variables, above {most}" if terms > most else None

    def refuse_outputs(self, model: Stacked) -> str | None:
        if model.batch or not model.of_y:
            return "not several outputs"
        if model.outputs > MAX_CLASSES and not model.exponents:
            return f"{model.outputs} classes, more than {MAX_CLASSES}"
        if model.n_params > MAX_PARAMS:
            return f"{model.n_params} coefficients, more than {MAX_PARAMS}"
        return None

    def refuse_engine(self, problem: Problem, engine: str) -> str | None:
        return refuse_engine(problem, engine)

    def evaluate(
        self, model: Traced, coef: Any, x: torch.Tensor, map: DeviceMap | None = None
    ) -> torch.Tensor:
        """V c; with a map, c of the parameters in `coef`."""
        if model.exponents:
            return (design(model, x) @ self._float64(coef, x)).to(x.dtype)
        map = map or DeviceMap.identity_of(model.degree + 1, x.device)
        y = torch.empty(x.numel(), dtype=x.dtype, device=x.device)
        self.launch("evaluate", model, x, None, map=map, state=self._float64(coef, x), out=y)
        return y

    def project(
        self, model: Traced, x: torch.Tensor, g: torch.Tensor, map: DeviceMap | None = None,
        params: Any = None,
    ) -> torch.Tensor:  # fmt: skip
        """V^T g [K] on the device; with a map, pulled back to its parameters [P]."""
        if model.exponents:
            return design(model, x).T @ g.double()
        map = map or DeviceMap.identity_of(model.degree + 1, x.device)
        out = torch.empty(map.n_params, dtype=torch.float64, device=x.device)
        state = out if params is None else self._float64(params, x)
        self.launch("project", model, x, g, map=map, state=state, out=out)
        return out

    def loss_and_gradient(
        self, problem: Problem, params: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        return loss_and_gradient(self, problem, params)

    def accumulate(self, problem: Problem) -> DeviceMoments:
        model, device = problem.model, problem.x.device
        moments, square = self._new_moments(model, device)
        several = isinstance(model, Stacked)
        map = DeviceMap.identity_of(model.n_params if several else model.n_terms, device)
        self.launch(
            "moments", model, problem.x, problem.y, map=map, moments=moments,
            omit=problem.omit, weight=problem.weight, flags=self.module.MOMENTS,
        )  # fmt: skip
        return DeviceMoments(moments, float(moments[square].sum()))

    def descend(
        self, problem: Problem, engine: str, moments: Any, schedule: Schedule, state: Any
    ) -> Report:
        model, device = problem.model, problem.x.device
        if schedule.seconds and (engine != "closed_form" or schedule.record_every):
            schedule = schedule._replace(epochs=self._within(problem, engine, schedule))
        held = begin(state, schedule, device)
        flags = self.module.STORE * (held.tables is not None) | self.module.LOAD * held.load
        buffer = moments.buffer if moments is not None else None
        if buffer is None and engine != "stream":
            buffer, _ = self._new_moments(model, device)
        whole = "classes" if _is_classes(model) else "stream"
        self.launch(
            whole if engine == "stream" else "moments" if moments is None else "epochs",
            model, problem.x, problem.y, map=DeviceMap.of(model, device),
            rule=rule_of(problem), state=held.buffer, moments=buffer, tables=held.tables,
            flags=flags,
            engine=engine, mean=problem.reduction == "mean", omit=problem.omit, schedule=schedule,
            criterion=problem.criterion, weight=problem.weight, bounds=bounds_of(problem),
        )  # fmt: skip
        held.launched(schedule, engine)
        held.finish()
        outcome = held.outcome()
        epochs, converged = int(outcome["epochs"]), bool(outcome["converged"])
        if engine != "stream":
            assert buffer is not None
            moments = DeviceMoments(buffer, outcome["square"])
        looked_at = schedule._replace(epochs=epochs + converged)
        recorded = held.recorded(n_recorded(looked_at))
        return Report(epochs, converged, outcome["loss"], recorded, moments, outcome["previous"])

    def nonfinite(self, problem: Problem) -> int:
        if problem.model.exponents or isinstance(problem.model, Stacked):
            return int((~finite(problem)).sum())
        count = torch.empty((), dtype=torch.int64, device=problem.x.device)
        map = DeviceMap.identity_of(1, problem.x.device)
        self.launch(
            "count_nonfinite", problem.model, problem.x, problem.y, map=map, out=count,
            weight=problem.weight,
        )  # fmt: skip
        return int(count)

    def step(
        self, map: DeviceMap, rule: DeviceRule, table: Tables, x: torch.Tensor,
        y: torch.Tensor, model: Traced, mean: bool, moments: DeviceMoments | None,
        criterion: Criterion = SQUARED, weight: torch.Tensor | None = None,
        state: torch.Tensor | None = None,
    ) -> torch.Tensor:  # fmt: skip
        """The fused step from what the table points at; returns `state`, or a new buffer."""
        module = self.module
        if state is None:
            state = torch.empty(state_size(map.n_params), dtype=torch.float64, device=x.device)
        one = "classes" if _is_classes(model) else "step"
        self.launch(
            one if moments is None else "epochs", model, x, y, map=map, rule=rule, state=state,
            moments=None if moments is None else moments.buffer, tables=table, engine="moments",
            mean=mean, schedule=Schedule(0, 1), criterion=criterion, weight=weight,
            flags=module.LOAD | module.STORE | module.STEP,
        )  # fmt: skip
        return state

    def store(
        self, map: DeviceMap, rule: DeviceRule, table: Tables, state: torch.Tensor,
        dtype: torch.dtype,
    ) -> None:  # fmt: skip
        """Writes what a step has computed to where the table has the next ones go."""
        x = torch.empty(0, dtype=dtype, device=state.device)
        self.launch("store", None, x, None, map=map, rule=rule, tables=table, state=state)

    def update(self, map: DeviceMap, rule: DeviceRule, table: Tables, dtype: torch.dtype) -> None:
        """The ordinary update of what the table points at."""
        x = torch.empty(0, dtype=dtype, device=rule.rows.device)
        self.launch(
            "update", None, x, None, map=map, rule=rule, tables=table, flags=self.module.LOAD
        )

    def launches(self) -> int:
        return self._launches

    def count_launch(self) -> None:
        self._launches += 1

    def launch(
        self, kernel: str, model: Traced | None, x: torch.Tensor, y: torch.Tensor | None, *,
        map: DeviceMap, rule: DeviceRule | None = None, state: torch.Tensor | None = None,
        moments: torch.Tensor | None = None, tables: Tables | None = None,
        out: torch.Tensor | None = None, engine: str = "stream", mean: bool = True,
        omit: bool = False, schedule: Schedule = NO_SCHEDULE, flags: int = 0,
        criterion: Criterion = SQUARED, weight: torch.Tensor | None = None,
        bounds: torch.Tensor | None = None,
    ) -> None:  # fmt: skip
        """One kernel on the current stream, with what `device` lays out; waits for nothing."""
        module, device = self.module, x.device
        n = x.shape[0] if x.ndim else 1
        data = module.Data(
            *(0 if t is None else t.data_ptr() for t in (x, y, weight)), n,
            *(t.stride(0) if t is not None and t.ndim else 1 for t in (x, y, weight)),
            x.dtype == torch.float64, omit, model.shift if model else 0.0,
            model.scale if model else 1.0,
        )  # fmt: skip
        first, epochs, every, tol, _, previous = schedule
        surface = model if model is not None and model.exponents else None
        grid = self.geometry(kernel, data, map, device, model, engine == "closed_form")
        work = surface_cuda.workspace_bytes(module, grid, surface, map, device) if surface else 0
        with self.on(device) as stream:
            run = module.Run(
                data, criterion.address, mean, ENGINE[engine],
                module.Schedule(first, epochs, every, tol, previous), flags, *map.told,
                rule.rows.data_ptr() if rule else 0,
                0 if rule is None or rule.changes is None else rule.changes.data_ptr(),
                0 if bounds is None else bounds.data_ptr(),
                0 if state is None else state.data_ptr(),
                0 if moments is None else moments.data_ptr(), kernel == "epochs",
                tables.addresses.data_ptr() if tables else 0, tables.single if tables else 0,
                0 if out is None else out.data_ptr(),
                self.workspace(device, stream, work).data_ptr(), device.index or 0, grid,
            )  # fmt: skip
            if isinstance(model, Stacked):
                strides = (t.stride(1) if t is not None and t.ndim > 1 else 0 for t in (y, weight))
                run.set_outputs(model.outputs, *strides)
                if criterion.kind is CROSS_ENTROPY:
                    weights = dict(criterion.options)["weight"]
                    of_class = class_weights(weights, model.outputs, device)
                    run.set_classes(y is not None and y.dtype == torch.int64, of_class.data_ptr())
                if surface is None:
                    rows = recurrence_on(model.basis, model.n_terms, device)
                    run.set_basis(*(row.data_ptr() for row in rows))
            verb = "moments" if kernel == "epochs" else kernel
            if surface:
                run, verb = surface_cuda.of_surface(module, run, surface, x), f"surface_{verb}"
            getattr(module, verb)(run, stream)
        self.count_launch()

    def geometry(
        self, kernel: str, data: Any, map: DeviceMap, device: torch.device,
        model: Traced | None = None, closed: bool = False,
    ) -> Any:  # fmt: skip
        sizes = self.sizes(device)
        if model is not None and model.exponents:
            return self.module.surface_geometry(
                kernel, data.n, *surface_cuda.sizes_of(model, device), map.n_params, closed, sizes
            )  # fmt: skip
        return self.module.geometry(
            kernel, data.n, data.dtype, map.n_terms, map.n_params, sizes, data.weighted
        )

    def _new_moments(self, model: Traced, device: torch.device) -> tuple[torch.Tensor, slice]:
        """Memory for them, and where in it sum w r^2 will be."""
        size, square = 4 * model.degree + 6, slice(2, 3)
        if model.exponents:
            size, square = surface_cuda.moments_size(self.module, model, device)
        return torch.empty(size, dtype=torch.float64, device=device), square

    def sizes(self, device: torch.device) -> Any:
        return _sizes(device.index)

    def on(self, device: torch.device) -> Any:
        """A context in which `device` is the current one; gives its stream."""
        if device.index == torch.cuda.current_device():
            return nullcontext(torch._C._cuda_getCurrentRawStream(device.index))
        return _On(device)

    def workspace(self, device: torch.device, stream: int, least: int = 0) -> torch.Tensor:
        """Partial sums and counters; the counters are 0 before and after every launch."""
        key: tuple[int, int] | None = (device.index or 0, stream)
        if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
            key = None  # the zeros are part of the graph, whose replays may come in any order
        held = self._workspaces.get(key)
        if held is None or held.numel() < least:
            size = max(least, self.module.workspace_bytes(self.sizes(device)))
            held = torch.empty(size, dtype=torch.uint8, device=device)
            held[: self.module.HEADER].zero_()
            if key is not None:
                self._workspaces[key] = held
        return held

    def _within(self, problem: Problem, engine: str, schedule: Schedule) -> int:
        """The epochs of a launch that is to come back in time."""
        x, every = problem.x, schedule.record_every
        most = self.module.epochs_within(
            schedule.seconds, ENGINE[engine], x.shape[0] if x.ndim else 1,
            int(x.dtype == torch.float64), cost_of(problem),
            problem.criterion.kind in ELEMENTARY, self.sizes(x.device),
        )  # fmt: skip
        return min(schedule.epochs, most, every * MOST_RECORDED if every else most)

    def _float64(self, values: Any, x: torch.Tensor) -> torch.Tensor:
        return torch.as_tensor(values).to(x.device, torch.float64).contiguous()


def _is_classes(model: Traced) -> bool:
    """Whether the kernels of classes of one variable serve it."""
    return isinstance(model, Stacked) and not model.exponents


@cache
def _sizes(index: int) -> Any:
    from .. import _cuda

    return _cuda.device(index)


class _On:
    def __init__(self, device: torch.device):
        self.device = torch.cuda.device(device)

    def __enter__(self) -> int:
        self.device.__enter__()
        return int(torch.cuda.current_stream().cuda_stream)

    def __exit__(self, *error: Any) -> None:
        self.device.__exit__(*error)
