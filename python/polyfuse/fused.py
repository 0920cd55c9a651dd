"""A module's traced polynomial with its compiled plan, kept while the module stays as it is."""

from __future__ import annotations

import logging
import weakref
from typing import Any

import numpy as np
import torch
from torch.autograd.graph import increment_version

from . import _C
from .backends.native import make_plan
from .problem import State
from .symbolic import NotPolynomial, Traced, trace

logger = logging.getLogger("polyfuse")

_GLOBAL_HOOKS = [
    hooks
    for name in ("_global_forward_hooks", "_global_forward_pre_hooks", "_global_backward_hooks",
                 "_global_backward_pre_hooks")
    if isinstance(hooks := getattr(torch.nn.modules.module, name, None), dict)
]  # fmt: skip


class Fused:
    """One trace of one module: its polynomial, or the reason why there is none."""

    def __init__(self, module: torch.nn.Module, dtype: torch.dtype, device: torch.device):
        self.module = weakref.ref(module)
        self.dtype, self.device = dtype, device
        self.traced: Traced | None = None
        self.reason = ""
        try:
            self.traced = trace(module, dtype, device)
        except NotPolynomial as error:
            self.reason = str(error)
            logger.info("%s is not fused: %s", type(module).__name__, self.reason)
        self.tensors = self.traced.tensors if self.traced else ()
        slots = list(self.traced.slots) if self.traced else []
        self.plan = make_plan(self.traced) if self.traced else _C.Plan(0, 1, [], 0.0, 1.0)
        # What C++ can watch, and what only `valid` looks at.
        watch: list = [*watched(module)]
        self.buffers: list = []
        self.containers: list = []
        for b, version in self.traced.buffers if self.traced else ():
            if b.device.type == "cpu" and b.is_contiguous() and b.nbytes <= 4096:
                watch.append(b)
            else:
                self.buffers.append((b, version))
        for m in module.modules():
            for k, v in m.__dict__.items():
                if k.startswith("_"):
                    continue
                if isinstance(v, (list, dict)):
                    watch.append(v)
                elif isinstance(v, (set, np.ndarray)):
                    self.containers.append((v, _contents(v)))
        self.cheap = not self.buffers and not self.containers
        self.loop = _C.Loop(self.plan, self.tensors, slots, dtype == torch.float64, watch)
        where = [(t, e, i) for i, (t, e) in enumerate(slots)]
        self.order = np.array([i for _, _, i in sorted(where)], dtype=np.int64)
        self.sizes = [t.numel() for t in self.tensors]
        self.trainable = any(t.requires_grad for t in self.tensors)
        self.moments: Any = None
        # The fused optimizer that owns the parameters, and when it was looked for.
        self.owner: Any = None
        self.generation = -1

    def valid(self) -> bool:
        """Whether the module is still what was traced."""
        return (
            self.loop.unchanged()
            and all(b._version == v for b, v in self.buffers)
            and all(_contents(c) == kept for c, kept in self.containers)
        )

    def accepts(self, y: torch.Tensor, x: torch.Tensor) -> bool:
        """Whether y is a target that the kernels read; tells the loop of the pair."""
        if self.loop.sees(x) and self.loop.sees_target(y):
            return True
        if (
            y.dtype is not self.dtype
            or y.shape != x.shape
            or y.device != self.device
            or y.requires_grad
            or (y.ndim > 1 and not y.is_contiguous())
            or torch._C._functorch.is_functorch_wrapped_tensor(y)
        ):
            return False
        self.loop.see(x, y)
        return True

    def fresh_grads(self) -> None:
        """New tensors for backward to fill, because somebody holds the last ones."""
        with torch.no_grad():
            flat = torch.zeros(sum(t.numel() for t in self.tensors), dtype=self.dtype)
            parts = flat.split([t.numel() for t in self.tensors])
            grads = tuple(p.view(t.shape) for p, t in zip(parts, self.tensors, strict=True))
        storage = flat.untyped_storage()._cdata
        del parts, flat
        self.loop.set_grads(grads, storage, torch._C._storage_Use_Count(storage))

    def state(self, optimizer: torch.optim.Optimizer | None) -> State:
        """The scalar parameters, and the optimizer's state of them, as float64 [P]."""
        assert self.traced is not None
        slots = len(self.traced.slots)
        params = self.loop.snapshot(slots)
        state = State(params, np.zeros(slots), np.zeros(slots, dtype=bool))
        if optimizer is not None and optimizer.state:
            for i, (t, e) in enumerate(self.traced.slots):
                buffer = optimizer.state.get(self.tensors[t], {}).get("momentum_buffer")
                if buffer is not None:
                    state.momentum[i] = buffer.reshape(-1)[e].item()
                    state.has_momentum[i] = True
        return state

    def gather(self, values: np.ndarray) -> list[torch.Tensor]:
        """values [P] as one new tensor for every parameter tensor."""
        with np.errstate(over="ignore"):
            flat = torch.from_numpy(values[self.order]).to(self.dtype)
        parts = flat.split(self.sizes) if len(self.sizes) > 1 else (flat,)
        return [p.view(t.shape) for p, t in zip(parts, self.tensors, strict=True)]

    def commit(self, state: State, optimizer: torch.optim.Optimizer | None, stepped: bool) -> None:
        """Writes parameters, .grad and optimizer state as the training loop would have."""
        self.loop.store(state.params)
        increment_version(self.tensors)
        if stepped and not self.loop.replace_grads(state.grad):
            self.fresh_grads()
            self.loop.replace_grads(state.grad)
        if optimizer is None or not stepped:
            return
        if not state.has_momentum.any():
            return
        momenta = {id(t): b for t, b in zip(self.tensors, self.gather(state.momentum), strict=True)}
        for group in optimizer.param_groups:
            for p in group["params"]:
                buffer = momenta.get(id(p))
                if buffer is not None and group["momentum"] != 0 and p.requires_grad:
                    held = optimizer.state[p].get("momentum_buffer")
                    if held is not None:
                        held.copy_(buffer)
                    else:
                        optimizer.state[p]["momentum_buffer"] = buffer


def _contents(container: Any) -> Any:
    """What an attribute holds that can change without being set anew."""
    if isinstance(container, np.ndarray):
        return container.shape, container.tobytes()
    return set(container)


def watched(module: torch.nn.Module) -> list[dict]:
    """The dictionaries that say what a module computes and which hooks are called."""
    found = list(_GLOBAL_HOOKS)
    for m in module.modules():
        found.append(m.__dict__)
        found += [v for k, v in m.__dict__.items() if isinstance(v, dict) and k.startswith("_")]
    return found


_kept: weakref.WeakKeyDictionary[torch.nn.Module, Fused] = weakref.WeakKeyDictionary()


def fused(module: torch.nn.Module, dtype: torch.dtype, device: torch.device) -> Fused:
    """The module's current trace, made anew where the module changed."""
    known = _kept.get(module)
    if known is None or known.dtype != dtype or known.device != device or not known.valid():
        known = _kept[module] = Fused(module, dtype, device)
    return known
