"""Which forwards are polynomials, and what the trace makes of them."""

import logging

import numpy as np
import polyfuse as pf
import pytest
import torch
import torch.nn.functional as F
from polyfuse.fused import fused
from polyfuse.symbolic import Symbol

X = torch.linspace(0.5, 2.5, 11, dtype=torch.float64)


class Model(torch.nn.Module):
    """Parameters of every shape, constants of every kind, and a forward given as a function."""

    def __init__(self, function):
        super().__init__()
        generator = torch.Generator().manual_seed(7)

        def parameter(*shape):
            return torch.nn.Parameter(
                torch.rand(shape, generator=generator, dtype=torch.float64) + 0.5
            )

        self.a, self.b, self.c = parameter(1), parameter(), parameter(1)
        self.w = parameter(4)
        self.unused = parameter(3)
        self.register_buffer("mu", torch.tensor(1.5, dtype=torch.float64))
        self.register_buffer("table", torch.tensor([2.0, 3.0], dtype=torch.float64))
        self.k = 3
        self.powers = [1, 2]
        self.scales = np.array([0.5, 2.0])
        self.inner = torch.nn.Module()
        self.inner.d = parameter(1)
        self.function = function

    def forward(self, x):
        return self.function(self, x)

    def helper(self, x):
        return self.c * x


def in_place(m, x):
    y = m.a * (x**2)
    y += m.b * x
    y -= 1
    y *= 2
    y /= 4
    y.add_(m.c)
    return y.mul_(3).sub_(m.b)


def out_of_place_then_in_place(m, x):
    z = x * 1
    z += m.a
    return z


POLYNOMIALS = {
    "powers": lambda m, x: m.a * x**2 + m.b * x**1 + m.c * x**0,
    "horner": lambda m, x: (m.w[3] * x + m.w[2]) * x + m.w[1],
    "products of x": lambda m, x: m.a * x * x * x - m.b * (x * x) + m.c,
    "reflected": lambda m, x: 2 - (1 + 3 * (m.a * x)) - -x * m.b,
    "in place": in_place,
    "in place on a copy": out_of_place_then_in_place,
    "torch functions": lambda m, x: torch.add(
        torch.mul(m.a, torch.pow(x, 3)), torch.square(x).mul(m.b).neg()
    ).sub(m.c, alpha=2),
    "divided by constants": lambda m, x: (m.a * x / 4 + m.b) / m.mu,
    "shift by a buffer": lambda m, x: m.a * (x - m.mu) ** 2 + m.b * (x - m.mu) + m.c,
    "shift and scale": lambda m, x: m.a * ((x - 1.25) / 0.5) ** 3 + m.b,
    "two variables": lambda m, x: m.a * (x - m.mu) ** 2 + m.b * x + m.c * (2 * x + 1) ** 2,
    "shift by a parameter": lambda m, x: m.a * (x - m.b) ** 2,
    "products of parameters": lambda m, x: m.a * m.b * x + m.c * m.c * m.a,
    "element of a buffer": lambda m, x: m.a * x * m.table[1],
    "python numbers": lambda m, x: m.a * x**m.k + True * m.b + 0.5,
    "helper method": lambda m, x: m.helper(x) + m.a * 2,
    "submodule parameter": lambda m, x: m.inner.d * x + m.w[-1],
    "sum of parameters": lambda m, x: (m.a + m.b) * x + (m.w[0] - m.w[1] * 2),
    "positive": lambda m, x: +(m.a * x).clone(),
    "ones": lambda m, x: m.a * torch.ones_like(x) + m.b * torch.zeros_like(x),
    "constant parts": lambda m, x: m.a * x + 0 * m.b * x,
    "addcmul": lambda m, x: torch.addcmul(m.a * x, m.b * x, x, value=0.5),
    "branch on a number": lambda m, x: m.a * x if m.k == 3 else torch.sin(m.a * x),
    "loop": lambda m, x: sum(w * x**i for i, w in enumerate([m.w[0], m.w[1], m.w[2]])),
    "functional pow": lambda m, x: m.a * torch.pow(input=x, exponent=2),
}

NOT_POLYNOMIALS = {
    "sine": (lambda m, x: m.a * torch.sin(x), "sin"),
    "exponential": (lambda m, x: (m.a * x).exp(), "exp"),
    "division by x": (lambda m, x: m.a / x, "division"),
    "negative power": (lambda m, x: m.a * x**-1, "exponent -1"),
    "fractional power": (lambda m, x: m.a * x**0.5, "exponent 0.5"),
    "power of a parameter": (lambda m, x: x**m.a, "not a constant"),
    "branch on data": (lambda m, x: m.a * x if x.sum() > 0 else x, "sum"),
    "length": (lambda m, x: m.a * x * len(x), "depends on the values"),
    "shape": (lambda m, x: m.a * x * x.shape[0], r"x\.shape"),
    "truth": (lambda m, x: m.a * x if x else x, "depends on the values"),
    "slices": (lambda m, x: m.a * x[2:], "getitem"),
    "random": (lambda m, x: m.a * x * torch.rand(1, dtype=torch.float64), "random"),
    "several elements": (lambda m, x: (m.w[:1] * x) + m.w[1:3].sum(), "several elements"),
    "no x": (lambda m, x: m.a * 2, "does not depend on x"),
    "wrong output": (lambda m, x: (m.a * x, 1), "returns tuple"),
    "error inside": (lambda m, x: m.a * x + {}["k"], "raised KeyError"),
    "degree": (lambda m, x: m.a * x**40, "degree is above"),
    "matmul": (lambda m, x: torch.stack([x, x]) * m.a, "stack"),
    "input in place": (lambda m, x: x.add_(1) * m.a, "input in place"),
    "linear": (lambda m, x: F.linear(x, m.w), "linear"),
    "counts": (lambda m, x: setattr(m, "k", m.k + 1) or m.a * x, "changes what its module holds"),
    "foreign gradient": (lambda m, x: m.a * x * OUTSIDE, "not a parameter"),
}
OUTSIDE = torch.ones(1, dtype=torch.float64, requires_grad=True)


def trace_of(model, dtype=torch.float64):
    return fused(model, dtype, torch.device("cpu"))


@pytest.mark.parametrize("name", POLYNOMIALS)
def test_a_polynomial_is_recognised_and_computed(name):
    model = Model(POLYNOMIALS[name])
    known = trace_of(model)
    assert known.traced is not None, known.reason
    x = X.clone()
    truth = model(x)
    params = known.read()
    coef = known.traced.coefficients(params)
    u = (x - known.traced.shift) * known.traced.scale
    found = sum(c * u**k for k, c in enumerate(coef))
    torch.testing.assert_close(found, truth.detach(), rtol=1e-12, atol=1e-12)

    # the gradient by the chain rule, in the kernels and in torch
    y = torch.cos(x)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    F.mse_loss(model(x), y).backward()
    grads = {n: p.grad for n, p in model.named_parameters()}
    pf.fit(model, torch.nn.MSELoss(), optimizer, x, y, epochs=1)
    for n, p in model.named_parameters():
        if grads[n] is not None:
            torch.testing.assert_close(p.grad, grads[n], rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("name", NOT_POLYNOMIALS)
def test_anything_else_stays_torch_and_says_why(name, caplog):
    function, reason = NOT_POLYNOMIALS[name]
    with caplog.at_level(logging.INFO, logger="polyfuse"):
        known = trace_of(Model(function))
    assert known.traced is None
    assert len(caplog.records) == 1 and "is not fused" in caplog.records[0].message
    import re

    assert re.search(reason, known.reason), known.reason


def test_an_unfused_module_of_polyfuse_gives_torchs_results():
    class Sine(pf.nn.Module):
        def __init__(self):
            super().__init__()
            self.a = torch.nn.Parameter(torch.tensor([1.5]))

        def forward(self, x):
            return self.a * torch.sin(x)

    model = Sine()
    x = torch.linspace(0, 1, 5)
    y = model(x)
    assert type(y) is torch.Tensor and torch.equal(y, 1.5 * torch.sin(x))
    y.sum().backward()
    torch.testing.assert_close(model.a.grad, torch.sin(x).sum()[None])


def test_a_large_offset_is_kept_as_a_shift():
    model = Model(lambda m, x: m.a * (x - 1.7e9) ** 2 + m.b)
    traced = trace_of(model).traced
    assert (traced.shift, traced.scale, traced.degree) == (1.7e9, 1.0, 2)


def changes():
    def attribute(m):
        m.k = 2

    def buffer(m):
        m.mu.mul_(2)

    def parameter(m):
        m.a = torch.nn.Parameter(torch.tensor([5.0], dtype=torch.float64))

    def inner(m):
        m.inner.d = torch.nn.Parameter(torch.tensor([5.0], dtype=torch.float64))

    def data(m):
        m.a.data = torch.tensor([7.0], dtype=torch.float64)

    def evaluation(m):
        m.eval()

    def element(m):
        m.powers[1] = 3

    def array(m):
        m.scales[0] = 3.0

    def hook(m):
        m.inner.register_forward_hook(lambda *_: None)

    return [attribute, buffer, parameter, inner, data, evaluation, element, array, hook]


@pytest.mark.parametrize("change", changes(), ids=lambda f: f.__name__)
def test_a_change_of_the_module_drops_its_trace(change):
    model = Model(
        lambda m, x: (
            m.a * x**m.k
            + m.inner.d * m.mu * (1 if m.training else 2)
            + m.b * x ** m.powers[1] * float(m.scales[0])
        )
    )
    known = trace_of(model)
    assert known.traced is not None and trace_of(model) is known
    change(model)
    again = trace_of(model)
    assert again is not known
    if change.__name__ == "hook":
        assert "hooks" in again.reason
    else:
        params = again.read()
        coef = again.traced.coefficients(params)
        found = sum(c * X**k for k, c in enumerate(coef))
        torch.testing.assert_close(found, model(X).detach())


def test_other_dtypes_and_inputs_take_torchs_way():
    model = pf.nn.Polynomial(2)
    assert type(model(torch.ones(3, dtype=torch.float64))) is torch.Tensor
    assert type(model(torch.arange(3))) is torch.Tensor
    assert type(model(torch.ones(3, requires_grad=True))) is torch.Tensor
    assert model(torch.ones(0)).shape == (0,)
    x = torch.ones(3)
    assert isinstance(model(x), torch.Tensor) and model(x).shape == (3,)
    values = torch.func.functional_call(model, {"coefficients": torch.ones(3)}, (x,))
    assert values.tolist() == [3, 3, 3]
    assert torch.func.vmap(model)(torch.ones(2, 3)).shape == (2, 3)


def test_polynomial_checks_its_degree():
    for bad in (-1, 1.5, True, "2"):
        with pytest.raises(ValueError, match="degree: expected an int >= 0"):
            pf.nn.Polynomial(bad)


def test_explain_says_what_stopped_it(capsys):
    text = pf.explain(Model(NOT_POLYNOMIALS["sine"][0]), torch.nn.NLLLoss())
    assert "not fused" in text and "'sin'" in text and "NLLLoss is not fused" in text
    assert capsys.readouterr().out.strip() == text


def test_a_model_is_freed():
    import gc
    import weakref

    x = torch.ones(5)
    model = pf.nn.Polynomial(2)
    optimizer = pf.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(3):
        loss = pf.nn.MSELoss()(model(x), x)
        loss.backward()
        optimizer.step()
    pf.fit(model, pf.nn.MSELoss(), optimizer, x, x, epochs=3)
    gone = weakref.ref(model), weakref.ref(optimizer)
    del model, optimizer, loss
    gc.collect()
    assert gone[0]() is None and gone[1]() is None


def test_a_module_that_goes_back_and_forth_is_traced_once_each():
    class Line(pf.nn.Module):
        traced = 0

        def __init__(self):
            super().__init__()
            self.a = torch.nn.Parameter(torch.ones(1))

        def forward(self, x):
            Line.traced += isinstance(x, Symbol)
            return self.a * x if self.training else self.a * x + 1

    model, x = Line(), torch.arange(3.0)
    for _ in range(5):
        assert model.train()(x).tolist() == [0.0, 1.0, 2.0]
        with torch.no_grad():
            assert model.eval()(x).tolist() == [1.0, 2.0, 3.0]
        assert model.double()(x.double()).tolist() == [1.0, 2.0, 3.0]
        model.float()
    assert Line.traced <= 5
