"""Small scripts that run on torch and on polyfuse: script(nn, optim, model) -> values."""

import pytest
import torch
import torch.utils.checkpoint

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
