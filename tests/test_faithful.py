"""Small scripts on torch and on polyfuse: where deferring could show, it must not."""

import gc
import subprocess
import sys
import threading
import weakref

import polyfuse as pf
import pytest
import torch
import torch.utils.checkpoint

from .tolerance import assert_like_torch, assert_relative

XS = torch.arange(1.0, 10.0)
YS = torch.tensor([9.15, 5.64, -0.21, -2.36, -0.91, -0.67, 2.65, 10.36, 17.13])


def line(nn):
    class Line(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Parameter(torch.tensor([1.0]))
            self.b = nn.Parameter(torch.tensor([2.0]))

        def forward(self, x):
            return self.a * x + self.b

    return Line()


def grads(model):
    return [p.grad.clone() for p in model.parameters() if p.grad is not None]


def subclass_of_the_criterion(nn, optim, m):
    class Rmse(nn.MSELoss):
        def forward(self, y_pred, y):
            return torch.sqrt(super().forward(y_pred, y))

    loss = Rmse()(m(XS), YS)
    loss.backward()
    return [loss.detach(), *grads(m)]


def forward_of_the_instance(nn, optim, m):
    criterion = nn.MSELoss()
    criterion.forward = lambda y_pred, y: (y_pred - y).abs().mean()
    criterion(m(XS), YS).backward()
    return grads(m)


def masked_residuals(nn, optim, m):
    r = m(XS) - YS
    r[YS < 0] = 0
    loss = (r**2).mean()
    loss.backward()
    return [loss.detach(), *grads(m)]


def hooked_residuals(nn, optim, m):
    r = m(XS) - YS
    r.register_hook(lambda g: g * 2)
    r.retain_grad()
    (r**2).mean().backward()
    return [r.grad, *grads(m)]


def residual_of_a_changed_prediction(nn, optim, m):
    p = m(XS)
    r = p - YS
    p.mul_(2)
    return [r.detach(), p.detach()]


def losses_with_arguments(nn, optim, m):
    out = []
    for reduce in (
        lambda r: (r**2).mean(dim=0),
        lambda r: (r**2).sum(0),
        lambda r: torch.mean(input=r**2),
        lambda r: torch.pow(r, torch.full((9,), 2.0)).sum(),
        lambda r: (r**2).mean(dtype=torch.float64),
    ):
        loss = reduce(torch.sub(m(XS), YS, alpha=1))
        loss.backward()
        out.append(loss.detach().float())
    return [*out, *grads(m)]


def looked_at_without_grad(nn, optim, m):
    total = torch.zeros(())
    loss = nn.MSELoss()(m(XS), YS)
    with torch.no_grad():
        total += loss
        str(loss)
    with torch.inference_mode():
        str(loss)
    loss.backward()
    with torch.no_grad():
        square = (m(XS) - YS) ** 2
        assert not square.requires_grad and not square.mean().requires_grad
    return [total, *grads(m)]


def no_grad_in_forward(nn, optim, m):
    class Half(type(m)):
        def forward(self, x):
            with torch.no_grad():
                h = self.a * x
            return h + self.b

    half = Half()
    nn.MSELoss()(half(XS), YS).backward()
    assert half.a.grad is None
    return grads(half)


def frozen_in_between(nn, optim, m):
    o = optim.SGD(m.parameters(), lr=1e-4)
    for i in range(3):
        loss = nn.MSELoss()(m(XS), YS)
        if i == 2:
            m.b.requires_grad_(False)
        o.zero_grad()
        loss.backward()
        o.step()
    assert m.b.grad is None
    return [m.a.detach(), m.b.detach()]


def target_that_needs_a_gradient_later(nn, optim, m):
    y = YS.clone()
    first, _ = nn.MSELoss()(m(XS), y), nn.MSELoss()(m(XS * 2), y * 3)
    y.requires_grad_()
    return [torch.tensor(first.item())]


def data_of_a_parameter_cut(nn, optim, m):
    class Series(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.ones(4))

        def forward(self, x):
            return sum(self.w[k] * x**k for k in range(len(self.w)))

    series = Series()
    before = series(XS).detach()
    series.w.data = series.w.data[:2]
    return [before, series(XS).detach()]


def prediction_changed_after_the_loss(nn, optim, m):
    p = m(XS)
    loss = nn.MSELoss()(p, YS)
    p.mul_(2)
    return [(loss + 0).detach()]


def global_hooks(nn, optim, m):
    called = []
    handle = torch.nn.modules.module.register_module_forward_hook(
        lambda module, args, out: called.append(1)
    )
    try:
        for _ in range(3):
            nn.MSELoss()(m(XS), YS).backward()
    finally:
        handle.remove()
    return [torch.tensor(len(called)), *grads(m)]


def things_held_by_the_module(nn, optim, m):
    class Config:
        k = 1.0

    class Holder(nn.Module):
        c = 1.0

        def __init__(self):
            super().__init__()
            self.a = nn.Parameter(torch.tensor([1.0]))
            self._k, self.deep, self.config = [1.0], [[1.0]], Config()
            self.config.k = 1.0
            self.scale, self.tensors = torch.tensor(1.0), [torch.tensor(1.0)]

        def forward(self, x):
            k = self._k[0] * self.deep[0][0] * self.config.k * self.c
            return self.a * x * k * (self.scale * 2) * self.tensors[0].item()

    h, out = Holder(), []
    criterion, o = nn.MSELoss(), optim.SGD(h.parameters(), lr=1e-6)

    def steps():
        for _ in range(3):
            loss = criterion(h(XS), YS)
            o.zero_grad()
            loss.backward()
            o.step()
        out.append(loss.detach())

    steps()
    for change in (
        lambda: h._k.__setitem__(0, 2.0),
        lambda: h.deep[0].__setitem__(0, 2.0),
        lambda: setattr(h.config, "k", 0.5),
        lambda: setattr(Holder, "c", 3.0),
        lambda: h.scale.fill_(0.5),
        lambda: h.tensors[0].fill_(0.3),
        lambda: setattr(Holder, "forward", lambda self, x: self.a * x + 1),
    ):
        change()
        steps()
    return out


def buffer_counted_in_forward(nn, optim, m):
    class Counter(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Parameter(torch.tensor([1.0]))
            self.register_buffer("n", torch.zeros(1))

        def forward(self, x):
            self.n += 1
            return self.a * x

    counter = Counter()
    for _ in range(5):
        counter(XS)
    return [counter.n]


def contiguous_is_an_alias(nn, optim, m):
    class Alias(type(m)):
        def forward(self, x):
            y = self.a * x
            z = y.contiguous()
            z += 1
            return y

    return [Alias()(XS).detach()]


def errors_handled_in_forward(nn, optim, m):
    class Handles(type(m)):
        def forward(self, x):
            try:
                k = float(x.mean())
            except Exception:
                k = 100.0
            return self.a * x * k

    return [Handles()(XS).detach()]


def negative_bit(nn, optim, m):
    x = torch.complex(torch.arange(9.0), XS).conj().imag
    loss = nn.MSELoss()(m(x), YS)
    other = nn.MSELoss()(m(XS), x)
    return [loss.detach(), other.detach()]


def target_of_inference_mode(nn, optim, m):
    with torch.inference_mode():
        y = YS.clone()
    return [((m(XS) - y) ** 2).mean().detach()]


def parameters_over_one_memory(nn, optim, m):
    m.b.data = m.a.data
    o = optim.SGD(m.parameters(), lr=1e-4)
    for _ in range(3):
        o.zero_grad()
        nn.MSELoss()(m(XS), YS).backward()
        o.step()
    return [m.a.detach(), m.b.detach()]


def other_default_device(nn, optim, m):
    loss = nn.MSELoss()(m(XS), YS)
    with torch.device("meta"):
        loss.backward()
    return grads(m)


def gradients_shared_with_others(nn, optim, m):
    for _ in range(4):
        m.zero_grad()
        nn.MSELoss()(m(XS), YS).backward()
        for p in m.parameters():
            p.grad.share_memory_()
    return grads(m)


def groups_of_other_types(nn, optim, m):
    o = optim.SGD(m.parameters(), lr=1e-4)
    o.param_groups[0]["params"] = tuple(o.param_groups[0]["params"])
    o.param_groups = tuple(o.param_groups)
    for _ in range(3):
        o.zero_grad()
        nn.MSELoss()(m(XS), YS).backward()
        o.step()
    return [m.a.detach(), m.b.detach()]


def attributes_of_a_loss(nn, optim, m):
    for i in range(4):
        loss = nn.MSELoss()(m(XS), YS)
        assert not hasattr(loss, "tag")
        loss.tag = i
    return [loss.detach()]


def touched_and_not_used(nn, optim, m):
    class Spare(type(m)):
        def __init__(self):
            super().__init__()
            self.c = nn.Parameter(torch.tensor([3.0]))
            self.d = nn.Parameter(torch.tensor([4.0]))

        def forward(self, x):
            _ = self.c * x
            return self.a * x + self.b + 0 * self.d

    spare = Spare()
    nn.MSELoss()(spare(XS), YS).backward()
    assert spare.c.grad is None and spare.d.grad == 0
    return grads(spare)


def gradients_detached_in_place(nn, optim, m):
    o = optim.SGD(m.parameters(), lr=1e-4)
    for _ in range(3):
        nn.MSELoss()(m(XS), YS).backward()
        o.step()
        for p in m.parameters():
            p.grad.detach_()
            p.grad.zero_()
    return [m.a.detach(), m.b.detach()]


def prediction_written_through_numpy(nn, optim, m):
    out = []
    for _ in range(3):
        p = m(XS)
        p.detach().numpy()[:] = 0
        values = p.detach()[2:].numpy()
        values += 1
        loss = nn.MSELoss()(p, YS)
        loss.backward()
        out.append(loss.detach())
        del values
    return [*out, *grads(m)]


def checkpointed(nn, optim, m):
    out = []
    for _ in range(3):
        p = torch.utils.checkpoint.checkpoint(m, XS, use_reentrant=False)
        loss = nn.MSELoss()(p, YS)
        loss.backward()
        out += [loss.detach(), *grads(m)]
    return out


def anomaly_looked_for(nn, optim, m):
    for _ in range(3):
        nn.MSELoss()(m(XS), YS).backward()
    with torch.no_grad():
        m.a.fill_(torch.nan)
    with (
        torch.autograd.set_detect_anomaly(True),
        pytest.warns(UserWarning, match="Error detected"),
        pytest.raises(RuntimeError, match="nan"),
    ):
        nn.MSELoss()(m(XS), YS).backward()
    return []


SCRIPTS = [
    script
    for script in list(globals().values())
    if getattr(script, "__module__", "") == __name__ and script not in (line, grads)
]


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
