"""What the front end does for data on a device, shown on the CPU: nothing is read by address."""

import polyfuse as pf
import pytest
import torch
from polyfuse import workload
from polyfuse.backends.device import device_rule
from polyfuse.fused import Fused, fused
from polyfuse.rules import AdadeltaOptions, AdagradOptions

from .sides import Side, check
from .tolerance import assert_like_torch


@pytest.fixture(autouse=True)
def elsewhere(monkeypatch):
    """Every trace takes its data for that of a device."""
    init = Fused.__init__

    def on_a_device(self, *args):
        init(self, *args)
        self.on_host = False

    def untouchable(*_):
        raise AssertionError("the host reads or writes memory of the device")

    monkeypatch.setattr(Fused, "__init__", on_a_device)
    monkeypatch.setattr(Fused, "fresh_grads", untouchable)


def test_rules_of_two_methods_with_the_same_numbers():
    numbers = 0.5, 0.25, 0.125, 0.0625, False
    device = torch.device("cpu")
    rules = [device_rule((of(*numbers),), device) for of in (AdagradOptions, AdadeltaOptions)]
    assert rules[0].method != rules[1].method
    assert rules[0].rows[0, 0, 0] != rules[1].rows[0, 0, 0]


@pytest.mark.parametrize("engine", ["stream", "moments", "closed_form"])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_fit_leaves_what_the_loop_leaves(engine, momentum, nine):
    xs, ys = nine
    found, truth = (workload.make_model(torch.nn, xs.dtype) for _ in range(2))
    options = {"lr": 1e-5, "momentum": momentum}
    mine = torch.optim.SGD(found.parameters(), **options)
    plain = torch.optim.SGD(truth.parameters(), **options)
    versions = [p._version for p in found.parameters()]
    for _ in range(2):  # the second goes on with the state of the first
        pf.fit(found, torch.nn.MSELoss(), mine, xs, ys, epochs=20, engine=engine)
        workload.loop(truth, torch.nn.MSELoss(), plain, xs, ys, 20)
    assert all(p._version > v for p, v in zip(found.parameters(), versions, strict=True))
    for p, q in zip(found.parameters(), truth.parameters(), strict=True):
        assert_like_torch(p, q)
        assert_like_torch(p.grad, q.grad)
        if momentum:
            assert_like_torch(mine.state[p]["momentum_buffer"], plain.state[q]["momentum_buffer"])


def test_fuse(dtype):
    sides = Side(pf.nn, pf.optim, dtype), Side(torch.nn, torch.optim, dtype)
    step = pf.fuse(sides[0].model, sides[0].criterion, sides[0].optimizer)

    def script(side, epoch):
        if side is sides[0]:
            return [step(side.xs, side.ys)]
        loss = side.criterion(side.model(side.xs), side.ys)
        side.optimizer.zero_grad()
        loss.backward()
        side.optimizer.step()
        return [loss.detach()]

    check(sides, script)


def test_vectors_are_read_in_the_order_of_their_slots(dtype):
    class Mixed(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.w = torch.nn.Parameter(torch.arange(1.0, 4.0, dtype=dtype))
            self.b = torch.nn.Parameter(torch.tensor(7.0, dtype=dtype))

        def forward(self, x):
            return self.w[1] * x + self.w[0] * x**2 + self.b + self.w[2]

    known = fused(Mixed(), dtype, torch.device("cpu"))
    values = known.read()
    known.write(values)
    assert sorted(values) == [1, 2, 3, 7]
    assert known.traced.coefficients(values).tolist() == [10, 2, 1]
    assert known.tensors[0].tolist() == [1, 2, 3]
