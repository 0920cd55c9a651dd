"""A device that lies in the CPU's memory: what a device backend offers the training loop."""

import ctypes

import numpy as np
import torch
from polyfuse.backends.device import OUTCOME
from polyfuse.backends.native import Cpu
from polyfuse.criteria import SQUARED
from polyfuse.problem import Problem, Schedule, State
from polyfuse.rules import SgdOptions


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
        """params, grad, momentum [P] and whether there is momentum."""
        rows = [[self.cell(a, dtype).value if a else 0.0 for a in row] for row in table.tolist()]
        return *(np.array(row) for row in rows), (table[2] != 0).numpy()

    def write(self, addresses, values, dtype, owned):
        for address, value, mine in zip(addresses.tolist(), values, owned, strict=True):
            if address and mine:
                self.cell(address, dtype).value = value

    @staticmethod
    def options(rule):
        return tuple(SgdOptions(*row[1:7]) if row[0] else None for row in rule.tolist())

    def run(self, model, rule, x, y, mean, moments, state, criterion):
        reduction = "mean" if mean else "sum"
        problem = Problem(model, reduction, self.options(rule), x, y, criterion=criterion)
        engine = "stream" if moments is None else "moments"
        return self.descend(problem, engine, moments, Schedule(0, 1, 1), state)

    def step(self, map, rule, table, x, y, model, mean, moments, criterion=SQUARED):
        self.counted += 1
        params, _, momentum, has = self.read(table[:3], x.dtype)
        before = params.copy()
        state = State.of(params)
        state.kept[:2] = momentum, has
        run = self.run(model, rule, x, y, mean, moments, state, criterion)
        self.write(table[1], state.grad, x.dtype, np.ones(len(params), dtype=bool))
        self.write(table[3], state.params, x.dtype, rule[:, 0].tolist())
        self.write(table[4], state.momentum, x.dtype, rule[:, 0].tolist())
        rows = [state.params, state.grad, before, *state.kept]
        outcome = dict.fromkeys(OUTCOME, 0.0) | {"loss": float(run.recorded[0])}
        return torch.tensor(np.concatenate([*rows, [outcome[name] for name in OUTCOME]]))

    def store(self, map, rule, table, state, dtype):
        self.counted += 1
        p, owned = map.n_params, rule[:, 0].tolist()
        self.write(table[0], state[:p].tolist(), dtype, owned)
        self.write(table[2], state[3 * p : 4 * p].tolist(), dtype, owned)

    def update(self, map, rule, table, dtype):
        self.counted += 1
        params, grad, momentum, has = self.read(table, dtype)
        for i, o in enumerate(self.options(rule)):
            if o is None:
                continue
            d = (-grad[i] if o.maximize else grad[i]) + o.weight_decay * params[i]
            if o.momentum:
                momentum[i] = o.momentum * momentum[i] + (1 - o.dampening) * d if has[i] else d
                d = d + o.momentum * momentum[i] if o.nesterov else momentum[i]
            params[i] -= o.lr * d
        owned = rule[:, 0].tolist()
        self.write(table[0], params, dtype, owned)
        self.write(table[2], momentum, dtype, owned)
