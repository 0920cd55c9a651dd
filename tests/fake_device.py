"""A device that lies in the CPU's memory: what a device backend offers the training loop."""

import ctypes

import numpy as np
import torch
from polyfuse import fused
from polyfuse.backends.device import OUTCOME, ROWS
from polyfuse.backends.native import Cpu
from polyfuse.backends.reference import Step
from polyfuse.criteria import SQUARED
from polyfuse.fused import Fused
from polyfuse.problem import Problem, Schedule, State
from polyfuse.rules import METHODS, SgdOptions


def take_for_a_device(monkeypatch, runner):
    """Has every trace take the CPU for a device, with this backend."""

    class Elsewhere:
        """The property on_host, which a trace sets before it asks for its loop."""

        def __get__(self, *_):
            return False

        def __set__(self, *_):
            pass

    monkeypatch.setattr(Fused, "on_host", Elsewhere(), raising=False)
    monkeypatch.setattr(fused, "backend_of", lambda *_: runner)


class FakeDevice(Cpu):
    name = "fake"

    def __init__(self):
        self.counted = 0

    def launches(self):
        return self.counted

    @staticmethod
    def cell(address, dtype):
        kind = ctypes.c_float if dtype == torch.float32 else ctypes.c_double
        return kind.from_address(address)

    def read(self, table, dtype):
        """params, grad [P] and kept [KEPT, P]."""
        rows = table.addresses.tolist()
        kept = [self.row(at, self.kept_dtype(table, r)) for r, at in enumerate(rows[2:6])]
        return self.row(rows[0], dtype), self.row(rows[1], dtype), np.array(kept)

    def row(self, addresses, dtype):
        return np.array([self.cell(a, dtype).value if a else 0.0 for a in addresses])

    @staticmethod
    def kept_dtype(table, row):
        return torch.float32 if table.single >> row & 1 else torch.float64

    def state_of(self, table, rule, dtype):
        params, _, kept = self.read(table, dtype)
        state = State(params, kept, np.zeros(len(params)))
        if rule.method == METHODS[SgdOptions].number:
            state.kept[1] = table.addresses[2] != 0
        return state

    def write(self, addresses, values, dtype, owned):
        for address, value, mine in zip(addresses.tolist(), values, owned, strict=True):
            if address and mine:
                self.cell(address, dtype).value = value

    def write_next(self, table, rule, params, kept, dtype):
        owned = rule.rows[0, :, 0].tolist()
        self.write(table.addresses[6], params, dtype, owned)
        for r, values in enumerate(kept):
            self.write(table.addresses[7 + r], values, self.kept_dtype(table, r), owned)

    @staticmethod
    def options(rule):
        kinds = {method.number: options for options, method in METHODS.items()}
        kind = kinds.get(rule.method)
        return tuple(
            kind(*row[1 : 1 + len(kind._fields)]) if row[0] else None
            for row in rule.rows[0].tolist()
        )

    def run(self, model, rule, x, y, mean, moments, state, criterion, weight=None):
        reduction = "mean" if mean else "sum"
        problem = Problem(
            model, reduction, self.options(rule), x, y, criterion=criterion, weight=weight
        )
        engine = "stream" if moments is None else "moments"
        return self.descend(problem, engine, moments, Schedule(0, 1, 1), state)

    def step(self, map, rule, table, x, y, model, mean, moments, criterion=SQUARED, weight=None,
             into=None):  # fmt: skip
        self.counted += 1
        state = self.state_of(table, rule, x.dtype)
        before = state.params.copy()
        run = self.run(model, rule, x, y, mean, moments, state, criterion, weight)
        everywhere = np.ones(len(before), dtype=bool)
        self.write(table.addresses[1], state.grad, x.dtype, everywhere)
        self.write_next(table, rule, state.params, state.kept, x.dtype)
        rows = [state.params, state.grad, before, *state.kept]
        outcome = dict.fromkeys(OUTCOME, 0.0) | {"loss": float(run.recorded[0])}
        numbers = np.concatenate([*rows, [outcome[name] for name in OUTCOME]])
        left = torch.tensor(numbers, device="cpu")
        return left if into is None else into.copy_(left)

    def store(self, map, rule, table, state, dtype):
        self.counted += 1
        rows = state[: len(ROWS) * map.n_params].view(len(ROWS), -1).tolist()
        self.write_next(table, rule, rows[0], rows[3:], dtype)

    def update(self, map, rule, table, dtype):
        self.counted += 1
        state = self.state_of(table, rule, dtype)
        grad = self.read(table, dtype)[1]
        params = torch.tensor(state.params)
        step = Step(self.options(rule), state)
        step(params, torch.tensor(grad))
        step.read_into(state)
        self.write_next(table, rule, params, state.kept, dtype)
