"""Forwards of x [N] or [N, V]: stacked powers, linear layers, products of columns."""

import copy
import logging
import re

import polyfuse as pf
import polyfuse.nn as nn
import polyfuse.optim as optim
import pytest
import torch
import torch.nn.functional as F
from polyfuse.deferred import Prediction
from polyfuse.fused import fused, of_sample

LINE = torch.linspace(-1, 1, 23, dtype=torch.float64)
COLUMN = LINE[:, None].contiguous()
TABLE = torch.rand(23, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


class Model(nn.Module):
    """Parameters of several shapes, and a forward given as a function."""

    def __init__(self, function):
        super().__init__()
        generator = torch.Generator().manual_seed(7)

        def parameter(*shape):
            return torch.nn.Parameter(torch.rand(shape, generator=generator, dtype=torch.float64))

        self.a, self.b, self.w, self.wide = parameter(1), parameter(), parameter(3), parameter(3, 1)
        self.linear = torch.nn.Linear(3, 1, dtype=torch.float64)
        self.few = torch.nn.Sequential(
            torch.nn.Linear(2, 1, bias=False, dtype=torch.float64), torch.nn.Flatten(0, 1)
        )
        with torch.no_grad():
            for p in (*self.linear.parameters(), *self.few.parameters()):
                p.copy_(torch.rand(p.shape, generator=generator, dtype=torch.float64))
        self.register_buffer("powers", torch.tensor([1, 2, 3]))
        self.function = function

    def forward(self, x):
        return self.function(self, x)


def unbound(m, x):
    u, v, w = x.unbind(-1)
    return m.a * u * v + m.b * w * (u - 0.5) ** 2 + m.w[2]


def in_place(m, x):
    y = m.a * x[:, 0]
    y += m.b * x[:, 1]
    y *= 2
    return y


def stacked(x):
    return torch.stack([x, x**2, x**3], dim=-1)


def joined(x):
    return torch.cat([x, x**2, x**3], dim=1)


# name: x, forward, columns of x that the kernels see
POLYNOMIALS = {
    "stack @ w": (LINE, lambda m, x: stacked(x) @ m.w),
    "stack of a column": (COLUMN, lambda m, x: stacked(x) @ m.w + m.b),
    "cat, matmul": (COLUMN, lambda m, x: torch.matmul(joined(x), m.wide)),
    "cat, mv": (COLUMN, lambda m, x: torch.cat([x, x**2, x**3], 1).mv(m.w)),
    "cat, mm, flatten": (COLUMN, lambda m, x: torch.mm(joined(x), m.wide).flatten()),
    "functional linear": (COLUMN, lambda m, x: F.linear(joined(x), m.wide.T, m.a)),
    "linear module": (LINE, lambda m, x: m.linear(stacked(x))),
    "linear, squeezed": (LINE, lambda m, x: m.linear(x.unsqueeze(1) ** m.powers).squeeze(-1)),
    "sum of products": (LINE, lambda m, x: (m.w * x[:, None].pow(m.powers)).sum(dim=1)),
    "a view": (COLUMN, lambda m, x: m.linear(joined(x)).view(-1)),
    "ones in the stack": (
        LINE, lambda m, x: torch.stack([torch.ones_like(x), x - 3, x * x], 1) @ (m.w * m.b),
    ),
    "parameters stacked": (
        COLUMN, lambda m, x: torch.cat([x, x**2], 1) @ torch.stack([m.a[0], m.b])
    ),
    "linear in columns": (TABLE, lambda m, x: m.linear(x)),
    "sequence of two": (TABLE, lambda m, x: m.few(x[:, 1:])),
    "columns": (TABLE, lambda m, x: m.a * x[:, 0] * x[..., 1] + m.b * x[..., 2] ** 2 + m.w[0]),
    "unbound": (TABLE, unbound),
    "products of parameters": (TABLE, lambda m, x: m.a * m.b * x[:, 1] + m.w[1] * m.w[1]),
    "affine coefficients": (
        TABLE, lambda m, x: (m.a + 2 * m.b - 1) * x[:, 1] ** 2 + (m.w - 1).sum(0) * x.sum(1)
    ),
    "one column of three": (TABLE, lambda m, x: m.a * (x[:, 2:] - 0.25) ** 3 + m.b),
    "terms of a row": (TABLE, lambda m, x: (x * x) @ m.w + x.sum(-1) * m.b),
    "in place": (TABLE, in_place),
}  # fmt: skip

OUTSIDE = torch.rand(23, 3, dtype=torch.float64)
OTHERS = {
    "stack along the samples": (LINE, lambda m, x: m.w @ torch.stack([x, x**2, x**3]), "samples"),
    "transposed stack": (LINE, lambda m, x: torch.stack([x, x * x, x]).T @ m.w, "samples"),
    "transposed product": (TABLE, lambda m, x: m.wide.T @ x.T, "x\\.T"),
    "sum over samples": (TABLE, lambda m, x: x.sum(0) @ m.w + x[:, 0], "along the samples"),
    "branch on data": (TABLE, lambda m, x: m.linear(x) if x[0, 0] > 0 else x[:, :1], "samples"),
    "linear on a sine": (COLUMN, lambda m, x: m.linear(joined(torch.sin(x))), "sin"),
    "activation": (TABLE, lambda m, x: torch.relu(m.linear(x)), "relu"),
    "dropout": (TABLE, lambda m, x: m.linear(F.dropout(x, 0.0)), "dropout"),
    "some samples": (TABLE, lambda m, x: m.linear(x[1:]), "some of the samples"),
    "a sample for each": (LINE, lambda m, x: x[:, None] * x[None, :] @ x * m.a, "samples"),
    "other data": (TABLE, lambda m, x: (x * OUTSIDE) @ m.w, "meet the samples"),
    "two outputs": (TABLE, lambda m, x: x[:, :2] * m.a, r"shape \(n, 2"),
    "view changed": (TABLE, lambda m, x: x[:, 0].mul_(2) * m.a, "a view in place"),
    "input changed": (LINE, lambda m, x: stacked(x.mul_(1.0)) @ m.w, "input in place"),
    "joined with columns": (TABLE, lambda m, x: x.flatten() * m.a, "joined with their columns"),
    "reciprocal": (TABLE, lambda m, x: m.a * x[:, 0] / x[:, 1], "division"),
}


@pytest.mark.parametrize("criterion", [nn.MSELoss(), nn.HuberLoss(delta=0.3)], ids=["mse", "huber"])
@pytest.mark.parametrize("name", POLYNOMIALS)
def test_steps_of_the_loop_and_of_fit_are_torchs(name, criterion):
    x, function = POLYNOMIALS[name]
    model, looped = Model(function), Model(function)
    truth = looped.forward(x).detach()
    y = torch.cos(3 * truth)
    y_pred = model(x)
    assert type(y_pred) is Prediction and y_pred.shape == truth.shape
    torch.testing.assert_close(y_pred.detach(), truth, rtol=1e-12, atol=1e-13)
    with torch.no_grad():
        torch.testing.assert_close(model(x), truth, rtol=1e-12, atol=1e-13)

    optimizers = [m(p.parameters(), lr=0.02, momentum=0.5) for m, p in
                  ((optim.SGD, model), (torch.optim.SGD, looped))]  # fmt: skip

    def plain_step():
        loss = criterion(looped.forward(x), y)
        optimizers[1].zero_grad()
        loss.backward()
        optimizers[1].step()
        return loss.item()

    launches = pf._C.launches()
    for _ in range(50):
        loss = criterion(model(x), y)
        optimizers[0].zero_grad()
        loss.backward()
        optimizers[0].step()
        assert loss.item() == pytest.approx(plain_step(), rel=1e-10)
    assert pf._C.launches() - launches == 50
    step = pf.fuse(model, criterion, optimizers[0])
    for _ in range(3):
        assert step(x, y).item() == pytest.approx(plain_step(), rel=1e-10)
    traced = fused(model, x.dtype, x.device, of_sample(x)).traced
    engines = ["auto", "stream"]
    if type(criterion) is nn.MSELoss:
        engines += ["moments", "closed_form"][: 1 + traced.affine]
    for engine in engines:
        pf.fit(model, criterion, optimizers[0], x, y, epochs=9, engine=engine)
        for _ in range(9):
            plain_step()
    for (n, p), q in zip(model.named_parameters(), looped.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-10, atol=1e-12, msg=n)
        if q.grad is not None:
            torch.testing.assert_close(p.grad, q.grad, rtol=1e-8, atol=1e-11, msg=n)


@pytest.mark.parametrize("name", OTHERS)
def test_anything_else_stays_torch_and_says_why(name, caplog):
    x, function, reason = OTHERS[name]
    with caplog.at_level(logging.INFO, logger="polyfuse"):
        known = fused(Model(function), torch.float64, x.device, of_sample(x))
    assert known.traced is None
    assert len(caplog.records) == 1 and "is not fused" in caplog.records[0].message
    assert re.search(reason, known.reason), known.reason


def test_each_shape_of_x_has_a_trace_of_its_own():
    model = Model(lambda m, x: x[:, 0] * m.a + x[:, -1] * m.b)
    for x in (TABLE, COLUMN, TABLE[:7], TABLE[:, :2].contiguous(), TABLE):
        y = model(x)
        assert type(y) is Prediction
        torch.testing.assert_close(y.detach(), model.forward(x).detach())
    assert type(model(TABLE[:1])) is torch.Tensor  # of one sample, shapes would mean other things
    assert type(model(TABLE.T.contiguous().T)) is torch.Tensor


def test_the_last_batch_is_smaller():
    model, looped = Model(lambda m, x: m.linear(x)), Model(lambda m, x: m.linear(x))
    optimizers = [optim.Adam(m.parameters(), lr=0.01) for m in (model, looped)]
    y = torch.sin(TABLE.sum(1, keepdim=True))
    for _ in range(4):
        for at in (slice(0, 10), slice(10, 20), slice(20, 23)):
            for optimizer, call in zip(optimizers, (model, looped.forward), strict=True):
                y_pred = call(TABLE[at])
                assert y_pred.shape == y[at].shape
                optimizer.zero_grad()
                nn.MSELoss()(y_pred, y[at]).backward()
                optimizer.step()
    for p, q in zip(model.parameters(), looped.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("weighted", [False, True])
def test_solve_finds_the_optimum(weighted):
    function = POLYNOMIALS["columns"][1]
    model = Model(lambda m, x: function(m, x) + 2.0 + x[:, 0])
    model.w.requires_grad_(False)
    y = torch.sin(TABLE.sum(1))
    w = TABLE[:, 1] * (TABLE[:, 0] > 0.2) if weighted else torch.ones_like(y)
    found = pf.solve(model, TABLE, y, weight=w if weighted else None)
    v = torch.stack([TABLE[:, 0] * TABLE[:, 1], TABLE[:, 2] ** 2], 1)
    rest = y - model.w[0] - 2.0 - TABLE[:, 0]
    root = w.sqrt()[:, None]
    truth = torch.linalg.lstsq(v * root, rest * root[:, 0]).solution
    torch.testing.assert_close(torch.stack([model.a[0], model.b]), truth, rtol=1e-10, atol=1e-12)
    assert found.statistics.names == ["a", "b"]


def test_solve_has_the_constant_of_a_linear_layer():
    model = nn.Linear(3, 1, dtype=torch.float64)
    y = torch.sin(TABLE.sum(1, keepdim=True))
    found = pf.solve(model, TABLE, y)
    v = torch.cat([torch.ones(23, 1, dtype=torch.float64), TABLE], 1)
    truth = torch.linalg.lstsq(v, y).solution[:, 0]
    torch.testing.assert_close(model.bias, truth[:1], rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(model.weight[0], truth[1:], rtol=1e-10, atol=1e-12)
    r = y - v @ truth[:, None]
    assert found.statistics.r_squared == pytest.approx(1 - float(r.var() / y.var()), rel=1e-10)


def test_options_of_fit():
    """Gaps, weights, schedulers and callbacks as with one variable."""
    y = torch.sin(TABLE.sum(1, keepdim=True))
    y[4] = torch.nan
    w = torch.rand(23, 1, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    models = [nn.Linear(3, 1, dtype=torch.float64) for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    optimizers = [optim.SGD(m.parameters(), lr=0.1) for m in models]
    schedulers = [torch.optim.lr_scheduler.StepLR(o, 3, gamma=0.5) for o in optimizers]
    seen = []
    with pytest.raises(ValueError, match="nan_policy"):
        pf.fit(models[0], nn.MSELoss(), optimizers[0], TABLE, y, epochs=3)
    with pytest.raises(ValueError, match=r"the model's output, \(23, 1\), got \(23,\)"):
        pf.fit(models[0], nn.MSELoss(), optimizers[0], TABLE, y[:, 0], epochs=3)
    pf.fit(
        models[0], nn.MSELoss(), optimizers[0], TABLE, y, epochs=8, nan_policy="omit",
        sample_weight=w, scheduler=schedulers[0], record_every=4,
        callback=lambda epoch, loss: seen.append(epoch),
    )  # fmt: skip
    keep = torch.arange(23) != 4
    for _ in range(8):
        optimizers[1].zero_grad()
        r = torch.nn.Module.__call__(models[1], TABLE[keep]) - y[keep]
        ((w[keep] * r**2).sum() / w[keep].sum()).backward()
        optimizers[1].step()
        schedulers[1].step()
    torch.testing.assert_close(models[0].weight, models[1].weight, rtol=1e-10, atol=1e-12)
    assert seen == [4, 8]


def test_layers_of_their_own_are_torchs():
    torch.manual_seed(0)
    mine = nn.Sequential(nn.Linear(1, 4), torch.nn.Tanh(), nn.Linear(4, 1))
    torch.manual_seed(0)
    theirs = torch.nn.Sequential(torch.nn.Linear(1, 4), torch.nn.Tanh(), torch.nn.Linear(4, 1))
    assert isinstance(mine, torch.nn.Sequential) and isinstance(mine[0], torch.nn.Linear)
    assert str(mine) == str(theirs) and list(mine.state_dict()) == list(theirs.state_dict())
    x = torch.linspace(-1, 1, 5)[:, None]
    assert torch.equal(mine(x), theirs(x)) and torch.equal(copy.deepcopy(mine)(x), theirs(x))
    assert torch.equal(mine[:2](x), theirs[:2](x))


def test_promised_data_steps_from_its_moments():
    x, y = pf.static(COLUMN.clone(), torch.cos(2 * COLUMN))
    function = POLYNOMIALS["stack of a column"][1]
    model, looped = Model(function), Model(function)
    optimizers = [optim.SGD(m.parameters(), lr=0.1) for m in (model, looped)]
    for call, optimizer in zip((model, looped.forward), optimizers, strict=True):
        for _ in range(20):
            loss = nn.MSELoss()(call(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    assert fused(model, x.dtype, x.device, (1,)).moments is not None
    torch.testing.assert_close(model.w, looped.w, rtol=1e-10, atol=1e-12)


def test_layers_compile_into_one_graph():
    layers = nn.Sequential(nn.Linear(3, 1, dtype=torch.float64), torch.nn.Flatten(0, 1))
    compiled = torch.compile(layers, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(TABLE), layers(TABLE).detach())
