"""Cross entropy of polynomial logits on a GPU: launches of the Triton kernels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from ..logits import Logits
from ..problem import Schedule
from ..rules import Options
from . import geometry, launch
from .classes import CLASS_COST, MAX_EPOCHS, Targets, class_weights, on_device
from .device import OUTCOME, ROWS, DeviceRule, device_rule, recurrence_on
from .geometry import Machine, Pass
from .tables import Tables
from .triton import interpreted

MAX_COEFFICIENTS = 1024  # padded, of one program
MAX_TERMS = 16  # of which the kernels are a multiple in size


class Triton:
    name = "triton"

    def launches(self) -> int:
        return launch.launches

    def refuse(self, model: Logits, device: torch.device) -> str | None:
        if device.type != ("cpu" if interpreted() else "cuda"):
            return f"the data is on {device}"
        terms = model.degree + 1
        if terms > MAX_TERMS:
            return f"{terms} coefficients of a class, more than {MAX_TERMS}"
        padded = geometry.width(terms) * geometry.width(model.outputs)
        if padded > MAX_COEFFICIENTS:
            return f"{padded} coefficients, padded to powers of two, more than {MAX_COEFFICIENTS}"
        return None

    def run_of(self, targets: Targets, options: Options | None) -> Callable[..., Any]:
        from ..kernels.classes import classes_stream_kernel

        model, x = targets.model, targets.x
        machine = launch.machine(x.device)
        cut = cut_of(targets, machine, machine.processors)
        rule = device_rule((options,) * len(model.slots), x.device)
        work, counters = _workspace(targets, cut)
        terms = (model.degree + 1 + CLASS_COST) * model.outputs
        at_once = geometry.epochs_at_once(
            "stream", len(x), x.itemsize, terms, MAX_EPOCHS, False, machine
        )
        alone = cut.programs == 1

        def start(state: torch.Tensor, schedule: Schedule) -> None:
            first, epochs, every, tol, *_ = schedule
            launch.launch(
                classes_stream_kernel, cut.programs, cut.warps, *_arguments(targets), rule.rows,
                state, first, epochs, every, tol, work, counters, ALONE=alone,
                launch_cooperative_grid=not alone, METHOD=rule.method, **_sizes(targets, cut),
            )  # fmt: skip

        return on_device(start, at_once, x.device)


def step(targets: Targets, rule: DeviceRule, table: Tables) -> torch.Tensor:
    """The fused step from what the table points at; returns its state buffer."""
    from ..kernels.classes import classes_step_kernel

    x = targets.x
    size = len(ROWS) * len(targets.model.slots) + len(OUTCOME)
    state = torch.empty(size, dtype=torch.float64, device=x.device)
    machine = launch.machine(x.device)
    cut = cut_of(targets, machine, 2 * machine.processors)
    launch.launch(
        classes_step_kernel, cut.programs, cut.warps, *_arguments(targets), rule.rows, state, 0, 0,
        -float("inf"), *_workspace(targets, cut), table.addresses, METHOD=rule.method,
        SINGLE=table.single, LOAD=True, STORE=True, ROUND=x.dtype == torch.float32,
        **_sizes(targets, cut),
    )  # fmt: skip
    return state


def cut_of(targets: Targets, machine: Machine, most: int) -> Pass:
    model = targets.model
    return geometry.classes(len(targets.x), model.degree + 1, model.outputs, machine, most)


def _workspace(targets: Targets, cut: Pass) -> tuple[torch.Tensor, torch.Tensor]:
    return launch.workspace(targets.x.device, geometry.partial_sums(cut, _padded(targets) + 4))


def _padded(targets: Targets) -> int:
    model = targets.model
    return geometry.width(model.degree + 1) * geometry.width(model.outputs)


def _arguments(targets: Targets) -> tuple[Any, ...]:
    """Of both kernels, up to the recurrence of the basis."""
    model, _, _, x, y, w = targets
    weight, ignored, smoothing = (value for _, value in targets.criterion.options)
    w = x if w is None else w
    return (
        x, y, w, len(x), x.stride(0), y.stride(0), y.stride(-1), w.stride(0), model.shift,
        model.scale, class_weights(weight, model.outputs, x.device), ignored, smoothing,
        recurrence_on(model.basis, model.degree + 1, x.device),
    )  # fmt: skip


def _sizes(targets: Targets, cut: Pass) -> dict[str, Any]:
    terms, outputs = targets.model.degree + 1, targets.model.outputs
    return {
        "K": terms, "C": outputs, "KW": geometry.width(terms), "CW": geometry.width(outputs),
        "ROWS": cut.rows, "CHUNK": geometry.class_chunk(_padded(targets)), "MEAN": targets.mean,
        "INDEX": targets.y.ndim == 1, "WEIGHTED": targets.weight is not None,
        "SMOOTH": dict(targets.criterion.options)["label_smoothing"] != 0,
    }  # fmt: skip
