"""Cross entropy of polynomial logits on a GPU: launches of the CUDA C++ kernels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from ..logits import Logits
from ..problem import Schedule
from ..rules import Options
from .classes import CLASS_COST, MAX_EPOCHS, Targets, class_weights, on_device
from .device import DeviceMap, device_rule, recurrence_on
from .native import ENGINE

MAX_CLASSES = 32  # neighbouring threads of a warp take one each
SECONDS = 0.2


class Cuda:
    """Of `backends.cuda.Cuda`."""

    def __init__(self, home: Any):
        self.home, self.name = home, home.name

    def launches(self) -> int:
        return int(self.home.launches())

    def refuse(self, model: Logits, device: torch.device) -> str | None:
        if device.type != self.home.device_type:
            return f"the data is on {device}"
        if model.outputs > MAX_CLASSES:
            return f"{model.outputs} classes, more than {MAX_CLASSES}"
        if len(model.slots) > self.home.max_params:
            return f"{len(model.slots)} coefficients, more than {self.home.max_params}"
        return None

    def run_of(self, targets: Targets, options: Options | None) -> Callable[..., Any]:
        model, x = targets.model, targets.x
        rule = device_rule((options,) * len(model.slots), x.device)
        terms = (model.degree + 1 + CLASS_COST) * model.outputs
        at_once = self.home.module.epochs_within(
            SECONDS, ENGINE["stream"], len(x), int(x.dtype == torch.float64), terms, False,
            self.home.sizes(x.device),
        )  # fmt: skip

        def start(state: torch.Tensor, schedule: Schedule) -> None:
            self.launch(targets, rule=rule, state=state, schedule=schedule)

        return on_device(start, min(at_once, MAX_EPOCHS), x.device)

    def launch(self, targets: Targets, **options: Any) -> None:
        model, criterion, mean, x, y, weight = targets
        device = x.device
        of_class = dict(criterion.options)["weight"]
        rows = recurrence_on(model.basis, model.degree + 1, device)
        there = class_weights(of_class, model.outputs, device).data_ptr() if of_class else 0
        classes = model.outputs, y.stride(1) if y.ndim > 1 else 0, there
        self.home.launch(
            "classes", model, x, y, map=DeviceMap.of(model, device), mean=mean,
            criterion=criterion, weight=weight,
            classes=(*classes, *(row.data_ptr() for row in rows)), **options,
        )  # fmt: skip
