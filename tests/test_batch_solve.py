"""The optimum of many fits at once, against numpy, plain PyTorch and fits one by one."""

import numpy as np
import polyfuse as pf
import polyfuse.nn as nn
import pytest
import torch
from polyfuse import FitStatus, batch
from polyfuse.backends import batched, batched_reference
from polyfuse.backends.batched_reference import Reference

from .test_batch import DATA, make, model_of


def test_the_same_bits_for_any_number_of_threads():
    x, y, _ = make("own", n=40, fits=5000, dtype=torch.float32)
    before = torch.get_num_threads()
    found = []
    try:
        for count in (2, 1):
            torch.set_num_threads(count)
            model = model_of(5000, dtype=torch.float32)
            pf.solve(model, x, y)
            found.append(model.coefficients.detach().clone())
    finally:
        torch.set_num_threads(before)
    assert torch.equal(*found)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("degree", [0, 1, 2, 5, 9])
@pytest.mark.parametrize("n", [3, 20, 129, 1003])
def test_solutions_are_numpys(n, degree, dtype):
    x, y, _ = make("shared", n=n, fits=11, dtype=dtype)
    own = x[:, None].expand_as(y).contiguous()
    for data in (x, own):
        model = nn.Polynomial(degree, batch_shape=(11,), dtype=dtype)
        result = pf.solve(model, data, y)
        assert (result.rank == min(n, degree + 1)).all()
        if n <= degree:
            assert result.counts() == {"rank_deficient": 11}
            continue
        assert result.counts() == {"converged": 11}
        powers = np.polynomial.polynomial.polyvander(x.double().numpy(), degree)
        wanted, *_ = np.linalg.lstsq(powers, y.double().numpy(), rcond=None)
        found = model.coefficients.detach().double().numpy()
        scale = np.abs(wanted).max(0)
        eps = np.finfo(np.float32).eps if dtype == torch.float32 else 1e-10
        assert (np.abs(found - wanted) <= eps * scale).all()
        rest = ((powers @ wanted - y.double().numpy()) ** 2).mean(0)
        np.testing.assert_allclose(result.loss, rest, rtol=1e-9, atol=1e-26)


@pytest.mark.parametrize("kind", DATA)
def test_solutions_with_statistics(kind):
    x, y, more = make(kind)
    weights = (more.get("sample_weight"), None, None)
    policy = more.get("nan_policy", "raise")
    found, wanted = (
        pf.solve(model, x, y, weight=weights[0], nan_policy=policy, covariance=True,
                    backend=backend)
        for model, backend in ((model_of(), "cpu"), (model_of(), "reference"))
    )  # fmt: skip
    for name in ("loss", "r_squared", "covariance", "rank", "status"):
        torch.testing.assert_close(getattr(found, name), getattr(wanted, name), rtol=1e-8, atol=0)
    y0 = y[:, 0].numpy()
    keep = np.isfinite(y0)
    x0 = (x if x.ndim == 1 else x[:, 0]).numpy()
    w = weights[0]
    if w is None:
        _, spread = np.polyfit(x0[keep], y0[keep], 2, cov=True)
        np.testing.assert_allclose(found.covariance[..., 0], spread[::-1, ::-1], rtol=1e-8)


@pytest.mark.parametrize("kind", DATA)
@pytest.mark.parametrize("degree_by", [None, "aicc", "bic"])
@pytest.mark.parametrize(
    ("degree", "basis"), [(16, "monomial"), (24, "laguerre"), (32, "legendre")]
)
def test_high_degrees_in_plain_pytorch(degree, basis, degree_by, kind, monkeypatch):
    """What GPUs take beyond the terms that their kernels have room for."""
    monkeypatch.setattr(batched_reference, "NUMBERS", 3 * (degree + 1) ** 2)  # three fits
    x, y, more = make(kind, n=60, fits=7)
    weight, policy = more.get("sample_weight"), more.get("nan_policy", "raise")
    left = []
    for backend in ("reference", "cpu"):
        model = model_of(7, degree=degree, basis=basis, domain=(-1, 1))
        result = pf.solve(model, x, y, weight=weight, nan_policy=policy, covariance=True,
                          degree_by=degree_by, backend=backend)  # fmt: skip
        of_each = (result.loss, result.r_squared, result.rank, result.status, result.degree)
        left.append((model.coefficients, result.covariance, of_each))
    (p, spread, found), (q, wanted, truth) = left
    assert ((p - q).abs() <= 1e-9 * q.abs().amax(0)).all()
    assert ((spread - wanted).abs() <= 1e-9 * wanted.abs().amax((0, 1))).all()
    for value, expected in zip(found, truth, strict=True):
        if expected is not None:
            torch.testing.assert_close(value, expected, rtol=1e-9, atol=1e-12)


def test_auto_takes_plain_pytorch_where_no_kernels_serve(monkeypatch):
    class Narrow(Reference):
        name = "narrow"

        def refuse(self, device, n_terms):
            return "too many coefficients"

    monkeypatch.setitem(batched.HOMES, "narrow", Narrow)
    monkeypatch.setattr(batch, "AUTO", {"cpu": ("narrow",)})
    x, y, _ = make("own", n=40)
    assert pf.solve(model_of(degree=20), x, y).backend == "reference"
    with pytest.raises(ValueError, match="narrow cannot serve this batch: too many"):
        pf.solve(model_of(degree=20), x, y, backend="narrow")


@pytest.mark.parametrize("kind", ["shared", "own", "gaps", "weights"])
@pytest.mark.parametrize("criterion", ["aicc", "bic"])
@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_the_degree_of_every_fit_is_chosen(backend, criterion, kind):
    x, y, more = make(kind, n=40, fits=21)
    truth = x if x.ndim == 2 else x[:, None]
    y = y * 0.1 + torch.stack([truth.expand_as(y)[:, b] ** (b % 5) for b in range(21)], 1)
    weight, policy = more.get("sample_weight"), more.get("nan_policy", "raise")
    model = nn.Polynomial(7, batch_shape=(21,), dtype=torch.float64)
    result = pf.solve(model, x, y, weight=weight, nan_policy=policy, degree_by=criterion,
                      covariance=True, backend=backend)  # fmt: skip
    assert len(set(result.degree.tolist())) > 2
    for b in range(21):
        xs, ys = x if x.ndim == 1 else x[:, b], y[:, b]
        keep = ys.isfinite() if weight is None else weight[:, b] > 0
        w = None if weight is None else weight[keep, b]
        chosen = pf.select_degree(xs[keep], ys[keep], 7, criterion=criterion, weight=w)
        assert result.degree[b] == chosen.degree
        terms = chosen.degree + 1
        found = model.coefficients[:, b].detach()
        np.testing.assert_allclose(found[:terms], chosen.coefficients[chosen.degree], rtol=1e-8)
        assert not found[terms:].any()
        _, spread = np.polyfit(xs[keep], ys[keep], chosen.degree, cov=True,
                               w=None if w is None else w.sqrt())  # fmt: skip
        np.testing.assert_allclose(
            result.covariance[:terms, :terms, b], spread[::-1, ::-1], rtol=1e-7
        )


def test_sigma_is_absolute():
    x, y, _ = make("shared")
    sigma = torch.full_like(y, 0.5)
    result = pf.solve(model_of(), x, y, sigma=sigma, covariance=True)
    _, spread = np.polyfit(x, y[:, 0], 2, w=1 / sigma[:, 0], cov="unscaled")
    np.testing.assert_allclose(result.covariance[..., 0], spread[::-1, ::-1], rtol=1e-8)


def test_x_far_from_zero():
    start = 1.7e9  # seconds of Unix time; float32 would not tell neighbours apart
    seconds = torch.arange(0.0, 3600.0, 60.0, dtype=torch.float64)
    level = torch.linspace(-5, 5, 9, dtype=torch.float64)
    slope = torch.linspace(-1e-2, 1e-2, 9, dtype=torch.float64)
    y = level + slope * seconds[:, None]
    model = nn.Polynomial(1, batch_shape=(9,), domain=(start, start + 3600), dtype=torch.float64)
    pf.solve(model, start + seconds, y)
    torch.testing.assert_close(model(start + seconds), y, rtol=0, atol=1e-10)
    plain = nn.Polynomial(1, batch_shape=(9,), dtype=torch.float64)
    pf.solve(plain, start + seconds, y)
    torch.testing.assert_close(plain.coefficients[1], slope, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_a_fit_that_cannot_be_leaves_the_others_alone(backend):
    x, y, _ = make("own", n=6)
    good = model_of()
    pf.solve(good, x, y)
    x[:, 1] = 0.3  # one distinct point
    y[2, 2] = torch.nan
    w = torch.ones_like(y)
    w[:, 3] = 0.0
    w[2:, 4] = 0.0  # two points for three coefficients
    model = model_of()
    result = pf.solve(model, x, y, weight=w, nan_policy="propagate", backend=backend)
    status = result.status.tolist()
    deficient = int(FitStatus.RANK_DEFICIENT)
    assert status[:5] == [0, deficient, int(FitStatus.NON_FINITE), deficient, deficient]
    assert result.rank.tolist()[1:5:2] == [1, 0]
    assert not any(status[5:])
    assert model.coefficients[:, [2, 3]].isnan().all()
    for b in (1, 4):
        used = w[:, b] > 0
        with pytest.warns(np.exceptions.RankWarning):
            wanted = np.polyfit(x[used, b], y[used, b], 2)[::-1]
        np.testing.assert_allclose(model.coefficients[:, b].detach(), wanted, rtol=1e-6)
    pf.solve(model, x, y, weight=w, nan_policy="propagate", deficient="nan",
             backend=backend)  # fmt: skip
    assert model.coefficients[:, [1, 2, 3, 4]].isnan().all()
    keep = [0, *range(5, 13)]
    torch.testing.assert_close(model.coefficients[:, keep], good.coefficients[:, keep])


def test_images_and_other_layouts():
    x = torch.linspace(0, 1, 30)
    cube = torch.rand(30, 5, 7, generator=torch.Generator().manual_seed(1))
    model = nn.Polynomial(1, batch_shape=(5, 7))
    result = pf.solve(model, x, cube)
    assert result.loss.shape == result.status.shape == (5, 7)
    assert model.coefficients.shape == (2, 5, 7)
    last = cube.movedim(0, -1).contiguous()
    again = nn.Polynomial(1, batch_shape=(5, 7))
    pf.solve(again, x, last.movedim(-1, 0))
    assert torch.equal(again.coefficients, model.coefficients)
    torch.testing.assert_close(
        model(x), model.coefficients[0] + model.coefficients[1] * x.view(-1, 1, 1)
    )


def test_points_that_end_where_they_began():
    t = torch.linspace(0, 2 * torch.pi, 200, dtype=torch.float64)
    x = torch.sin(t)
    y = torch.stack([torch.cos(t), torch.sin(3 * t), t], 1)
    shared, own = (nn.Polynomial(9, batch_shape=(3,), dtype=torch.float64) for _ in range(2))
    a, b = pf.solve(shared, x, y), pf.solve(own, x[:, None].repeat(1, 3), y)
    torch.testing.assert_close(a.loss, b.loss)
    torch.testing.assert_close(own.coefficients, shared.coefficients, rtol=1e-6, atol=1e-6)


def hard(kind, x):
    """Points [N, B] for which sums of powers say much, little or nothing of the fits."""
    if kind == "outlier":
        return torch.cat([1e4 + 0 * x[:1], x[1:]])
    if kind == "few":
        return (3 * x).round()
    return {"plain": x, "heavy": x.abs() ** 6, "far": 1e4 + x, "tiny": 1e-9 * x}[kind]


@pytest.mark.parametrize("kind", ["plain", "heavy", "far", "outlier", "few", "tiny"])
@pytest.mark.parametrize("weights", ["none", "weights", "gaps"])
@pytest.mark.parametrize("degree", [1, 2, 3])
def test_float32_has_every_digit_of_the_optimum(kind, weights, degree):
    generator = torch.Generator().manual_seed(degree)
    x, noise = torch.randn(2, 20, 203, generator=generator)
    x, y = hard(kind, x), 1 + 2 * x - 3 * x**2 + 0.1 * noise
    w = torch.rand(20, 203, generator=generator) if weights == "weights" else None
    if weights == "gaps":
        y[torch.rand(20, 203, generator=generator) < 0.4] = torch.nan
    domain = (float(x.min()), float(x.max()))
    found = []
    for dtype in (torch.float32, torch.float64):
        model = nn.Polynomial(degree, batch_shape=(203,), domain=domain, dtype=dtype)
        given = None if w is None else w.to(dtype)
        result = pf.solve(model, x.to(dtype), y.to(dtype), weight=given, nan_policy="omit")
        found.append((model.coefficients.detach().double(), result))
    (a, single), (b, double) = found
    assert torch.equal(single.rank, double.rank) and torch.equal(single.status, double.status)
    sure = double.rank == degree + 1
    assert sure.float().mean() > 0.5
    torch.testing.assert_close(a[:, sure], b[:, sure], rtol=2**-23, atol=1e-12)
    torch.testing.assert_close(single.r_squared[sure], double.r_squared[sure], rtol=0, atol=1e-9)
    rounding = 1e-20 * float(y.nan_to_num().abs().max()) ** 2
    torch.testing.assert_close(single.loss[sure], double.loss[sure], rtol=1e-9, atol=rounding)
