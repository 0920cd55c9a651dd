"""`solve` where the data lie: sums of columns in twice float64's precision, by plain PyTorch."""

from fractions import Fraction

import numpy as np
import polyfuse as pf
import pytest
import torch
from numpy.exceptions import RankWarning
from polyfuse import extended

from .nist import CERTIFIED, digits, read
from .test_accuracy import check
from .test_columns import POLYNOMIALS, TABLE, Model
from .test_surface import MODELS, make
from .tolerance import assert_relative

COLLINEAR = [torch.ones_like, torch.sin, lambda x: torch.sin(x) + 1e-8 * torch.cos(x), torch.exp]
FAR = [torch.ones_like, lambda x: x + 1e6, lambda x: (x + 1e6) ** 2]
DECADES = [lambda x: 1e-60 * torch.exp(9 * x), lambda x: 1e40 * torch.exp(-9 * x)]
FUNCTIONS = {"collinear": COLLINEAR, "far from zero": FAR, "decades": DECADES}


def optimum(columns, y, w):
    """In rational arithmetic."""
    table = [[Fraction(v) for v in row] for row in torch.cat([columns, y[:, None]], 1).tolist()]
    weights, k = [Fraction(v) for v in w.tolist()], columns.shape[1]
    rows = [
        [sum(a * v[i] * v[j] for a, v in zip(weights, table, strict=True)) for j in range(k + 1)]
        for i in range(k)
    ]
    for i in range(k):
        rows[i] = [v / rows[i][i] for v in rows[i]]
        for j in range(k):
            if j != i:
                rows[j] = [b - rows[j][i] * a for a, b in zip(rows[i], rows[j], strict=True)]
    params = [row[-1] for row in rows]
    residuals = [v[k] - sum(p * a for p, a in zip(params, v, strict=False)) for v in table]
    loss = sum(a * r * r for a, r in zip(weights, residuals, strict=True))
    return [float(p) for p in params], float(loss)


@pytest.mark.parametrize("weighted", [False, True], ids=["all", "weighted"])
@pytest.mark.parametrize("n", [5, 129, 5000])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_rational_arithmetic(name, n, weighted, monkeypatch):
    monkeypatch.setattr(extended, "NUMBERS", 1)  # a block at a time
    x = torch.linspace(-1, 1, n, dtype=torch.float64)
    y, w = torch.cos(40 * x**2), torch.ones_like(x)
    if weighted:
        w = torch.linspace(0.1, 2, n, dtype=torch.float64)
        w[1] = 0.0
    model = pf.nn.Polynomial(basis=FUNCTIONS[name], dtype=torch.float64)
    found = pf.solve(model, x, y, weight=w if weighted else None, backend="reference")
    params, loss = optimum(model.columns(x), y, w)
    assert found.rank == len(params) and found.backend == "reference"
    assert_relative(found.params, params, 1e-14)
    assert found.loss == pytest.approx(loss, rel=1e-13, abs=1e-30)
    assert model.coefficients.tolist() == found.params.tolist()


def test_certified_numbers():
    x, y = read("Longley")
    model = pf.nn.Polynomial(1, variables=6, dtype=torch.float64)
    found = pf.solve(model, torch.tensor(x), torch.tensor(y), backend="reference")
    check(found.statistics, CERTIFIED["Longley"])
    assert digits(model.coefficients.detach(), CERTIFIED["Longley"]["parameters_exact"]) >= 13


def both(model, x, y, **options):
    """Solutions of the CPU's kernels and of plain PyTorch: all that they say is alike."""
    wanted = pf.solve(model, x, y, backend="cpu", **options)
    stored = [p.detach().clone() for p in model.parameters()]
    found = pf.solve(model, x, y, backend="reference", **options)
    assert (found.rank, found.precision) == (wanted.rank, "extended")
    assert_relative(found.params, wanted.params, 1e-12)
    for p, q in zip(model.parameters(), stored, strict=True):
        torch.testing.assert_close(p.detach(), q)
    a, b = found.statistics, wanted.statistics
    assert a.names == b.names and a.n == b.n
    for name in ("covariance", "r_squared", "sum_of_squares", "aicc", "leverage", "f_value"):
        np.testing.assert_allclose(getattr(a, name), getattr(b, name), rtol=1e-10, atol=1e-20)
    return found


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["f32", "f64"])
@pytest.mark.parametrize("name", MODELS)
def test_several_variables(name, dtype):
    x, y, model, _ = make(name, 129, dtype)
    both(model, x, y)
    y[4] = torch.nan
    w = torch.linspace(0, 2, 129, dtype=dtype)
    both(model, x, y, weight=w, nan_policy="omit", ridge=0.5)


@pytest.mark.parametrize("basis", ["chebyshev", "legendre"])
def test_a_long_series(basis):
    x = torch.linspace(1.7e9, 1.7e9 + 1000, 1003, dtype=torch.float64)
    options = {"domain": (1.7e9, 1.7e9 + 1000), "dtype": torch.float64}
    model = pf.nn.Polynomial(12, basis=basis, **options)
    both(model, x, torch.sin(x / 300))


def test_parameters_that_stay():
    model = Model(lambda m, x: POLYNOMIALS["columns"][1](m, x) + 2.0 + x[:, 0])
    model.w.requires_grad_(False)
    found = both(model, TABLE, torch.sin(TABLE.sum(1)))
    assert found.statistics.names == ["a", "b"]


def test_data_that_leave_directions_open():
    x = TABLE.clone()
    x[:, 2] = x[:, 0] + x[:, 1]
    model = pf.nn.Polynomial(1, variables=3, dtype=torch.float64)
    with pytest.warns(RankWarning):
        wanted = pf.solve(model, x, TABLE[:, 2])
    with pytest.warns(RankWarning):
        found = pf.solve(model, x, TABLE[:, 2], backend="reference")
    assert found.rank == wanted.rank == 3
    assert_relative(found.params, wanted.params, 1e-10)


def test_the_same_bits_in_any_order():
    x, _, model, _ = make("quartic", 5000)
    order = torch.randperm(4096, generator=torch.Generator().manual_seed(5))
    turned = torch.cat([order, torch.arange(4096, 5000)])
    sums = []
    for at in (torch.arange(5000), turned):
        a = extended.Twofold(model.columns(x[at]).detach(), torch.zeros(5000, 15).double())
        sums.append(extended.products(a, a))
    assert torch.equal(sums[0].hi, sums[1].hi) and torch.equal(sums[0].lo, sums[1].lo)


def test_other_backends_are_named():
    x, y, model, _ = make("plane", 9)
    with pytest.raises(ValueError, match="backend: expected one of auto, cpu, reference, got"):
        pf.solve(model, x, y, backend="triton")
