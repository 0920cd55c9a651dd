"""What kernels on a device are told: model, rule and state as small tensors there, and its layout.

State [7 P + 5 + M] float64: the rows of `ROWS`, each [P]; `OUTCOME`; the recorded losses [M].
Moments [4 K + 2] float64: shift, scale, square, reference [K], power [2 K - 1], cross [K].
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any, NamedTuple

import numpy as np
import torch

from ..bases import recurrence_of
from ..criteria import CROSS_ENTROPY, ELEMENTARY, Criterion
from ..problem import Moments, Problem, Schedule, State
from ..rules import KEPT, Rule, row_of
from ..stacked import Stacked
from ..symbolic import Traced
from .factors import terms_of
from .tables import Tables, method_of, nothing, send, tables

ROWS = ("params", "grad", "before", *(f"kept {r}" for r in range(KEPT)))
RULE_ROW = 10
OUTCOME = ("epochs", "converged", "loss", "previous", "square")


Terms = tuple[tuple[float, int, tuple[int, ...]], ...]  # factor, degree, slots


@dataclass(frozen=True)
class DeviceMap:
    """The coefficients as sums of products of parameters: coef[k] += factor * prod(params)."""

    n_params: int
    n_terms: int  # coefficients K
    identity: bool  # coef[k] = params[k]
    factor: torch.Tensor  # [T] float64
    span: torch.Tensor  # [T, 3] int32: coefficient, begin and end in `slots`
    slots: torch.Tensor  # [F] int32

    @cached_property
    def told(self) -> tuple[Any, ...]:
        """Sizes and addresses, as the extension's Run takes them."""
        there = (self.factor, self.span, self.slots)
        sizes = self.factor.numel(), self.slots.numel(), self.identity
        return self.n_params, self.n_terms, *sizes, *(t.data_ptr() for t in there)

    @classmethod
    def of(cls, model: Traced, device: torch.device) -> DeviceMap:
        """Of several outputs, the coefficients of all of them."""
        if isinstance(model, Stacked) and model.exponents:
            return cls.identity_of(model.n_params, device)
        return _map(model.terms, model.n_terms, model.n_params, device)

    @classmethod
    def identity_of(cls, n_terms: int, device: torch.device) -> DeviceMap:
        """Parameters that are the coefficients."""
        return _map(tuple((1.0, k, (k,)) for k in range(n_terms)), n_terms, n_terms, device)


@lru_cache(maxsize=64)
def _map(terms: Terms, n_terms: int, n_params: int, device: torch.device) -> DeviceMap:
    slots = [s for _, _, product in terms for s in product]
    ends = np.cumsum([len(product) for _, _, product in terms])
    span = [
        (degree, end - len(product), end)
        for (_, degree, product), end in zip(terms, ends.tolist(), strict=True)
    ]
    one_by_one = [(1.0, k, (k,)) for k in range(n_terms)]
    return DeviceMap(
        n_params,
        n_terms,
        n_params == n_terms and one_by_one == sorted(terms, key=lambda t: t[1]),
        torch.tensor([f for f, _, _ in terms], dtype=torch.float64, device=device),
        torch.tensor(span, dtype=torch.int32, device=device).reshape(-1, 3),
        torch.tensor(slots, dtype=torch.int32, device=device),
    )


class DeviceRule(NamedTuple):
    # [1 + C, P, RULE_ROW] float64: the method (0: no optimizer holds the parameter), its options
    rows: torch.Tensor
    method: int  # of those that an optimizer holds; 0: there is none
    # [C + 1] int64, ascending: epochs from which on the next rule holds; the last never comes
    changes: torch.Tensor | None = None


NEVER = 1 << 62
MAX_CHANGES = 4096  # of the rule, in one launch


def device_rule(rule: Rule, device: torch.device, n_params: int | None = None) -> DeviceRule:
    """n_params: how many follow a rule of one."""
    return _device_rule(rule, method_of(rule), device, n_params)


@lru_cache(maxsize=64)
def _device_rule(
    rule: Rule, method: int, device: torch.device, n_params: int | None
) -> DeviceRule:  # fmt: skip
    """method: that of the rule, as the options of two methods may be equal tuples."""
    return DeviceRule(_rows([rule], n_params).to(device), method)


def rule_of(problem: Problem) -> DeviceRule:
    """The problem's rule, with its changes."""
    return rule_with(problem.rule, problem.changes, problem.x.device, problem.model.n_params)


def rule_with(
    rule: Rule, changes: Sequence[tuple[int, Rule]], device: torch.device,
    n_params: int | None = None,
) -> DeviceRule:  # fmt: skip
    """A rule and its changes; n_params: how many follow a rule of one."""
    if not changes:
        return device_rule(rule, device, n_params)
    epochs, rules = zip(*changes, strict=True)
    rows = send(_rows([rule, *rules], n_params), device)
    from_then = send(torch.tensor([*epochs, NEVER], dtype=torch.int64, device="cpu"), device)
    return DeviceRule(rows, method_of(rule), from_then)


def _rows(rules: Sequence[Rule], n_params: int | None = None) -> torch.Tensor:
    rows = np.zeros((len(rules), len(rules[0]), RULE_ROW))
    for of_rule, rule in zip(rows, rules, strict=True):
        for row, options in zip(of_rule, rule, strict=True):
            if options is not None:
                numbers = row_of(options)
                row[: len(numbers)] = numbers
    if n_params is not None and rows.shape[1] == 1:
        rows = rows.repeat(n_params, axis=1)
    return torch.from_numpy(rows)


def bounds_of(problem: Problem) -> torch.Tensor | None:
    """[2, P] float64, low and high; None where there are none."""
    if problem.bounds is None:
        return None
    return send(torch.from_numpy(np.stack(problem.bounds)), problem.x.device)


@lru_cache(maxsize=64)
def recurrence_on(basis: str, terms: int, device: torch.device) -> torch.Tensor:
    """alpha, beta, gamma [3, K] of a basis."""
    return torch.tensor(recurrence_of(basis, terms), device=device)


CLASS_COST = 60  # of exp and log, in multiplications and additions


def cost_of(problem: Problem) -> int:
    """Of a sample in an epoch, as coefficients of a power series."""
    model, kind = problem.model, problem.criterion.kind
    if not isinstance(model, Stacked):
        return model.n_terms
    return model.outputs * (
        model.n_terms + CLASS_COST * (kind is CROSS_ENTROPY or kind in ELEMENTARY)
    )


@lru_cache(maxsize=64)
def class_weights(
    weight: tuple[float, ...] | None, outputs: int, device: torch.device
) -> torch.Tensor:
    """[C] float64"""
    return torch.tensor(weight or (1.0,) * outputs, dtype=torch.float64, device=device)


def refuse_apart(problem: Problem) -> str | None:
    """None, or why outputs are no run of one loss: those of one variable are fits of their own."""
    if problem.model.exponents or problem.criterion.kind is CROSS_ENTROPY:
        return None
    return "several outputs of one variable are under one loss by CrossEntropyLoss alone"


def refuse_engine(problem: Problem, engine: str) -> str | None:
    """None, or why kernels of devices have no such engine for the problem."""
    model, w = problem.model, problem.weight
    several = isinstance(model, Stacked) and model.exponents and model.outputs > 1
    if engine != "stream" and several and w is not None and w.ndim > 1 and w.stride(1):
        return "outputs with weights of their own have no moments in common; use stream"
    return None


def constants_of(model: Traced, criterion: Criterion, device: torch.device) -> list[Any]:
    """The tensors that launches read besides the user's own, each made once."""
    held: list[Any] = []
    if model.exponents:
        held.append(terms_of(model.exponents, model.variables, device))
    if not isinstance(model, Stacked):
        return held
    if not model.exponents:
        held.append(recurrence_on(model.basis, model.n_terms, device))
    if criterion.kind is CROSS_ENTROPY:
        held.append(class_weights(dict(criterion.options)["weight"], model.outputs, device))
    return held


def n_recorded(schedule: Schedule) -> int:
    """How many epochs of the schedule are recorded."""
    every, first = schedule.record_every, schedule.first_epoch
    if not every or not schedule.epochs:
        return 0
    return (first + schedule.epochs - 1) // every - (first - 1) // every


def state_size(n_params: int, recorded: int = 0) -> int:
    return len(ROWS) * n_params + len(OUTCOME) + recorded


def loss_in(state: torch.Tensor, n_params: int) -> torch.Tensor:
    """The loss in a state buffer, a view of shape ()."""
    return state[len(ROWS) * n_params + OUTCOME.index("loss")]


def loss_and_gradient(
    backend: Any, problem: Problem, params: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """What a step in which no optimizer holds the parameters computes: views [] and [P]."""
    model, params = problem.model, params.contiguous()
    n, device = len(params), params.device
    state = backend.step(
        DeviceMap.of(model, device), device_rule((None,) * n, device),
        tables(model, (params,), (None,), nothing(1), (None,)), problem.x, problem.y, model,
        problem.reduction == "mean", None, problem.criterion, problem.weight,
    )  # fmt: skip
    return loss_in(state, n), state[n : 2 * n]


class StateBuffer:
    """The state buffer of a run, and what launches leave there."""

    tables: Tables | None = None  # where launches store as well what they leave in the buffer
    load = False  # whether the next launch starts from the tables

    def __init__(self, n_params: int, buffer: torch.Tensor | None = None):
        self.n_params, self.buffer = n_params, buffer  # [7 P + 5 + M]
        self._host: np.ndarray | None = None
        self._outcome: dict[str, float] = {}

    @property
    def host(self) -> np.ndarray:
        """The buffer as the launch left it, read once; waits for the launch."""
        if self._host is None:
            assert self.buffer is not None
            self._host = self.buffer.cpu().numpy()
        return self._host

    def forget(self) -> None:
        """Another launch writes the buffer."""
        self._host, self._outcome = None, {}

    def rows(self) -> np.ndarray:
        """[ROWS, P]"""
        return self.host[: len(ROWS) * self.n_params].reshape(len(ROWS), self.n_params)

    def outcome(self) -> dict[str, float]:
        if not self._outcome:
            at = len(ROWS) * self.n_params
            numbers = self.host[at : at + len(OUTCOME)].tolist()
            self._outcome = dict(zip(OUTCOME, numbers, strict=True))
        return self._outcome

    def recorded(self, count: int) -> np.ndarray:
        at = len(ROWS) * self.n_params + len(OUTCOME)
        return self.host[at : at + count].copy()

    def launched(self, schedule: Schedule, engine: str) -> None:
        """A launch is under way."""

    def finish(self) -> None:
        """Takes over what the launch has left; waits for it."""


class DeviceState(StateBuffer):
    """One launch's, made from a host State and read back into it."""

    def __init__(self, state: State, schedule: Schedule, device: torch.device):
        p = len(state.params)
        at = len(ROWS) * p
        host = np.zeros(at + len(OUTCOME) + n_recorded(schedule))
        rows = host[:at].reshape(len(ROWS), p)
        rows[:2] = state.params, state.grad
        rows[3:] = state.kept
        host[at + OUTCOME.index("previous")] = schedule.previous
        super().__init__(p, send(torch.from_numpy(host), device))
        self.state = state

    def finish(self) -> None:
        rows, state = self.rows(), self.state
        state.params[:], state.grad[:] = rows[:2]
        state.kept[:] = rows[3:]


def begin(state: Any, schedule: Schedule, device: torch.device) -> StateBuffer:
    """What a launch works on, of a host State or what stays on the device."""
    if isinstance(state, State):
        return DeviceState(state, schedule, device)
    state.begin(schedule)
    held: StateBuffer = state
    return held


@dataclass
class DeviceMoments:
    """Moments that stay on the device; `square` is what the host looks at."""

    buffer: torch.Tensor  # [4 K + 2] float64
    square: float

    def on_host(self) -> Moments:
        values = self.buffer.cpu().numpy()
        k = (len(values) - 2) // 4
        reference, power, cross = np.split(values[3:], [k, 3 * k - 1])
        return Moments(values[0], values[1], reference, power, cross, values[2])
