"""Where deferring could show, it must not: scripts beside torch, memory, threads, modes."""

import gc
import random
import subprocess
import sys
import threading
import weakref

import numpy as np
import polyfuse as pf
import pytest
import torch

from .scripts import SCRIPTS, XS, YS, line
from .tolerance import assert_like_torch, assert_relative


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda s: s.__name__)
def test_the_same_as_torch(script):
    found = script(pf.nn, pf.optim, line(pf.nn))
    truth = script(torch.nn, torch.optim, line(torch.nn))
    assert len(found) == len(truth)
    for mine, torchs in zip(found, truth, strict=True):
        assert_like_torch(mine, torchs)


def test_random_draws_are_drawn_every_time():
    class Noisy(pf.nn.Module):
        def __init__(self):
            super().__init__()
            self.a = torch.nn.Parameter(torch.ones(1))
            self.drop = torch.nn.Dropout(0.5)
            self.register_buffer("one", torch.ones(1))

        def forward(self, x):
            return self.a * x * self.drop(self.one)

    torch.manual_seed(0)
    model = Noisy()
    assert len({model(XS).sum().item() for _ in range(30)}) == 2


GENERATOR = random.Random(0)


@pytest.mark.parametrize(
    "draw",
    [
        lambda m: random.random(),
        lambda m: np.random.rand(),
        lambda m: GENERATOR.random(),
        lambda m: m.generator.random(),
        lambda m: torch.rand(()).item(),
    ],
)
def test_chance_in_the_forward_is_noticed(draw):
    """Nor does looking for it change what is drawn afterwards."""

    def train(nn):
        class Dynamic(nn.Module):
            def __init__(self):
                super().__init__()
                self.a = torch.nn.Parameter(torch.ones(1))
                self.generator = np.random.default_rng(0)

            def forward(self, x):
                return self.a * x if draw(self) < 0.5 else self.a * x**2

        random.seed(3), np.random.seed(3), torch.manual_seed(3), GENERATOR.seed(3)
        model = Dynamic()
        return [model(XS).sum().item() for _ in range(20)]

    found = train(pf.nn)
    assert found == train(torch.nn) and len(set(found)) == 2


def test_momentum_of_another_model_is_refused_as_torch_does():
    def train(model, optimizer):
        for _ in range(3):
            optimizer.zero_grad()
            pf.nn.MSELoss()(model(XS / 9), YS).backward()
            optimizer.step()

    small, large = pf.nn.Polynomial(2), pf.nn.Polynomial(20)
    first = pf.optim.SGD(small.parameters(), lr=0.1, momentum=0.9)
    train(small, first)
    second = pf.optim.SGD(large.parameters(), lr=0.1, momentum=0.9)
    second.load_state_dict(first.state_dict())
    with pytest.raises(RuntimeError, match="size"):
        train(large, second)


def test_bad_parameters_in_a_group_are_an_error():
    optimizer = pf.optim.SGD(line(pf.nn).parameters(), lr=0.1)
    optimizer.param_groups[0]["params"].append(None)
    with pytest.raises(AttributeError):
        optimizer.zero_grad()


def test_a_model_that_leads_back_to_itself_is_freed():
    class Trainer:
        pass

    for nn in (pf.nn, torch.nn):
        model, trainer = line(nn), Trainer()
        trainer.model, model.trainer, model.alias = model, trainer, model.forward
        pf.fit(model, torch.nn.MSELoss(), torch.optim.SGD(model.parameters(), lr=1e-4),
               XS, YS, epochs=3)  # fmt: skip
        model(XS)
        reference = weakref.ref(model)
        del model, trainer
        gc.collect()
        if nn is pf.nn:
            assert reference() is None


def test_batches_are_let_go():
    model, criterion = line(pf.nn), pf.nn.MSELoss()
    optimizer = pf.optim.SGD(model.parameters(), lr=1e-9)
    batches = []
    for _ in range(20):
        x = torch.rand(100)
        y = 2 * x
        optimizer.zero_grad()
        criterion(model(x), y).backward()
        optimizer.step()
        batches += [weakref.ref(x), weakref.ref(y)]
    del x, y
    assert sum(b() is not None for b in batches) <= 4


def test_kept_losses_do_not_slow_down_for_ever():
    model, criterion = line(pf.nn), pf.nn.MSELoss()
    kept = [criterion(model(XS), YS) for _ in range(20)]
    values = [loss.item() for loss in kept]
    assert values == values[:1] * 20
    del kept
    first = criterion(model(XS), YS)
    name = id(first)
    del first
    assert id(criterion(model(XS), YS)) == name  # handed out again


def test_threads_share_a_model():
    class Slope(pf.nn.Module):
        def __init__(self):
            super().__init__()
            self.a = torch.nn.Parameter(torch.ones(1, dtype=torch.float64))

        def forward(self, x):
            return self.a * x

    model, criterion, lock, wrong = Slope(), pf.nn.MSELoss(), threading.Lock(), []
    y = torch.zeros(20_000, dtype=torch.float64)
    data = [torch.linspace(-1, 1, 20_000, dtype=torch.float64) * (i + 1) for i in range(4)]
    truth = [(2 * x * x).mean().item() for x in data]

    def work(i):
        for _ in range(40):
            loss = criterion(model(data[i]), y)
            loss.item()
            with lock:
                model.zero_grad()
                loss.backward()
                if abs(model.a.grad.item() - truth[i]) > 1e-9:
                    wrong.append(i)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_modes_are_seen_by_a_warm_loop():
    class Doubled(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            return out * 2 if func is torch.Tensor.mul else out

    model = line(pf.nn)
    for _ in range(3):
        plain = model(XS).detach()
    with Doubled():
        doubled = model(XS).detach()
    torch.testing.assert_close(doubled, plain + XS)


def test_fuse_reads_any_layout():
    base = torch.linspace(-1, 1, 600).reshape(300, 2).t()
    y = (base**2 + 1).contiguous()
    losses = []
    for nn, optim in ((pf.nn, pf.optim), (torch.nn, torch.optim)):
        model = line(nn)
        optimizer, criterion = optim.SGD(model.parameters(), lr=0.1), nn.MSELoss()
        step = pf.fuse(model, criterion, optimizer) if nn is pf.nn else None
        for _ in range(4):
            if step:
                loss = step(base, y)
            else:
                optimizer.zero_grad()
                loss = criterion(model(base), y)
                loss.backward()
                optimizer.step()
            losses.append(loss.item())
    assert_relative(losses[:4], losses[4:], 1e-5)


@pytest.mark.parametrize(
    "hook",
    [
        lambda model, criterion: model.a.register_hook(lambda g: g * 0),
        lambda model, criterion: criterion.register_forward_hook(lambda m, a, out: out * 0),
        lambda model, criterion: model.register_forward_hook(lambda m, a, out: out * 0),
    ],
    ids=["parameter", "criterion", "model"],
)
def test_fit_and_fuse_refuse_what_they_would_pass_over(hook):
    model, criterion = line(torch.nn), torch.nn.MSELoss()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4)
    step = pf.fuse(model, criterion, optimizer)
    step(XS, YS)
    before = [p.detach().clone() for p in model.parameters()]
    hook(model, criterion)
    with pytest.raises(ValueError, match="hooks"):
        pf.fit(model, criterion, optimizer, XS, YS, epochs=3)
    with pytest.raises(ValueError, match="hooks"):
        step(XS, YS)
    for p, kept in zip(model.parameters(), before, strict=True):
        assert torch.equal(p, kept) and p.grad is not None


def test_an_unknown_instruction_set_is_an_error():
    code = "import torch, polyfuse"
    run = subprocess.run([sys.executable, "-c", code], env={"POLYFUSE_ISA": "avx3"},
                         capture_output=True, text=True)  # fmt: skip
    assert run.returncode and "POLYFUSE_ISA: expected" in run.stderr
