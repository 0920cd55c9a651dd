"""Weights, masks and standard deviations of samples, against loops of plain PyTorch."""

import numpy as np
import polyfuse as pf
import pytest
import torch
from polyfuse.backends import REGISTRY

from .criteria import BY_REDUCTION, CASES, KL_MEAN_WARNS, data
from .tolerance import assert_relative

pytestmark = pytest.mark.filterwarnings(KL_MEAN_WARNS)
ENGINES = ("stream", "moments", "closed_form")
CLOSE = 1e-9


def assert_same_loss(found, expected):
    """Both computed in float64 from residuals about 1."""
    np.testing.assert_allclose(float(found), float(expected), rtol=CLOSE, atol=1e-14)


def samples(n, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(n, generator=generator, dtype=torch.float64) * 2 - 1
    y = 1 - 2 * x + 3 * x**2 + 0.1 * torch.randn(n, generator=generator, dtype=torch.float64)
    w = torch.rand(n, generator=generator, dtype=torch.float64) * 3
    w[torch.rand(n, generator=generator) < 0.3] = 0.0
    w[0] = 1.0
    return x.to(dtype), y.to(dtype), w.to(dtype)


def model_of(dtype, degree=2):
    model = pf.nn.Polynomial(degree, dtype=dtype)
    with torch.no_grad():
        for i, p in enumerate(model.parameters()):
            p.copy_(torch.linspace(0.5, 1.5, p.numel(), dtype=dtype).reshape(p.shape) + i)
    return model


def loop(x, y, w, epochs, lr, reduction="mean", losses=None, degree=2):
    """Parameters of a loop in float64 with the weighted loss written out."""
    x, y, w = x.double(), y.double(), w.double()
    model = model_of(torch.float64, degree)
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.5)
    values = losses or (lambda p, t: (p - t) ** 2)
    counted = w != 0
    x, y, w = x[counted], y[counted], w[counted]
    loss = torch.zeros(())
    for epoch in range(epochs + 1):
        total = (w * values(model(x) * 1.0, y)).sum()
        loss = total if reduction == "sum" else total / w.sum()
        optimizer.zero_grad()
        loss.backward()
        if epoch < epochs:
            optimizer.step()
    return model.coefficients.detach(), loss.item()


def fit(x, y, epochs=200, lr=0.1, reduction="mean", degree=2, criterion=None, **options):
    model = model_of(x.dtype, degree)
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.5)
    criterion = criterion or torch.nn.MSELoss(reduction=reduction)
    result = pf.fit(model, criterion, optimizer, x, y, epochs=epochs, **options)
    return model.coefficients.detach(), result


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("n", [1, 7, 9, 64, 1000, 70_000])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("engine", ENGINES)
def test_weighted_squared_error(engine, reduction, n, backend):
    x, y, w = samples(n)
    lr, epochs = (0.1, 50) if reduction == "mean" else (0.1 / n, 20)
    truth, loss = loop(x, y, w, epochs, lr, reduction)
    found, result = fit(
        x, y, epochs, lr, reduction, engine=engine, backend=backend, sample_weight=w
    )
    assert_relative(found, truth, CLOSE)
    assert_same_loss(result.loss, loss)


@pytest.mark.parametrize("degree", [0, 1, 3, 6, 9])
@pytest.mark.parametrize("engine", ["stream", "moments"])
def test_degrees(engine, degree):
    x, y, w = samples(1003)
    truth, _ = loop(x, y, w, 30, 0.05, degree=degree)
    found, _ = fit(x, y, 30, 0.05, degree=degree, engine=engine, sample_weight=w)
    assert_relative(found, truth, CLOSE)


@pytest.mark.parametrize("n", [9, 1003, 70_003])
@pytest.mark.parametrize("layout", ["dense", "strided", "column"])
def test_float32_in_any_layout(n, layout):
    x, y, w = samples(n, torch.float32)
    truth, _ = loop(x, y, w, 20, 0.1)
    if layout == "strided":
        x, y, w = (torch.stack([t, t + 1], dim=1)[:, 0] for t in (x, y, w))
    elif layout == "column":
        x, y, w = (t[:, None] for t in (x, y, w))
    found, _ = fit(x, y, 20, engine="stream", sample_weight=w)
    assert_relative(found, truth, 1e-5)


@pytest.mark.parametrize(("name", "reduction"), BY_REDUCTION)
def test_every_criterion(name, reduction):
    case = CASES[name]
    x, y = data(case, 203, torch.float64)
    w = samples(203)[2]
    each = case.make(torch.nn, torch.float64, "none")
    lr = 1e-5 if reduction == "sum" else 1e-3
    if case.positive:  # the targets' domain keeps the predictions of the start positive
        x = x.abs()
    truth, loss = loop(x, y, w, 20, lr, reduction, each)
    criterion = case.make(torch.nn, torch.float64, reduction)
    found, result = fit(x, y, 20, lr, criterion=criterion, sample_weight=w)
    assert result.engine == "stream"
    assert_relative(found, truth, CLOSE)
    assert_same_loss(result.loss, loss)


@pytest.mark.parametrize("engine", ENGINES)
def test_what_is_left_out_may_hold_anything(engine):
    x, y, w = samples(5003)
    left_out = w == 0
    expected, result = fit(x[~left_out], y[~left_out], engine=engine, sample_weight=w[~left_out])
    x, y = x.clone(), y.clone()
    x[left_out], y[left_out] = float("nan"), float("inf")
    for options in ({"sample_weight": w}, {"sample_weight": w.clamp(min=0), "nan_policy": "omit"}):
        found, again = fit(x, y, engine=engine, **options)
        assert_relative(found, expected, CLOSE)
        assert_same_loss(again.loss, result.loss)


@pytest.mark.parametrize("engine", ENGINES)
def test_a_mask_is_what_indexing_is(engine):
    x, y, w = samples(301)
    mask = w > 0
    expected, _ = fit(x[mask], y[mask], engine=engine)
    found, _ = fit(x, torch.where(mask, y, float("nan")), engine=engine, mask=mask)
    assert_relative(found, expected, CLOSE)


def test_a_mask_that_leaves_few():
    """Of so many samples that a thinned pilot sees none of them."""
    x = torch.linspace(1e6, 1e6 + 1, 100_000, dtype=torch.float64)
    mask = torch.zeros(len(x), dtype=torch.bool)
    mask[[5, 501, 40_007, 99_998]] = True
    y = 2 + 3 * (x - 1e6)
    model = pf.nn.Polynomial(1, dtype=torch.float64)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-13)
    result = pf.fit(model, torch.nn.MSELoss(), optimizer, x, y, epochs=10, mask=mask,
                    engine="moments")  # fmt: skip
    kept = pf.nn.Polynomial(1, dtype=torch.float64)
    optimizer = torch.optim.SGD(kept.parameters(), lr=1e-13)
    expected = pf.fit(kept, torch.nn.MSELoss(), optimizer, x[mask], y[mask], epochs=10,
                      engine="stream")  # fmt: skip
    assert_relative(result.loss, expected.loss, 1e-6)
    assert_relative(model.coefficients.detach(), kept.coefficients.detach(), 1e-6)


@pytest.mark.parametrize("engine", ENGINES)
def test_sigma_gives_chi_squared(engine):
    x, y, _ = samples(400)
    sigma = torch.rand(400, dtype=torch.float64, generator=torch.Generator().manual_seed(3)) + 0.5
    truth, loss = loop(x, y, sigma**-2, 100, 1e-4, "sum")
    found, result = fit(x, y, 100, 1e-4, "sum", engine=engine, sigma=sigma)
    assert_relative(found, truth, CLOSE)
    assert_same_loss(result.loss, loss)


def test_they_multiply():
    x, y, w = samples(200)
    sigma, mask = w + 0.5, x > -0.5
    expected, _ = fit(x, y, sample_weight=torch.where(mask, w / sigma**2, 0.0))
    found, _ = fit(x, y, sample_weight=w, sigma=sigma, mask=mask)
    assert_relative(found, expected, CLOSE)


def test_numpy_polyfit_is_where_it_leads():
    x, y, w = samples(50)
    w += 0.1
    found, result = fit(x, y, 100_000, 0.2, sample_weight=w)
    expected = np.polynomial.polynomial.polyfit(x.numpy(), y.numpy(), 2, w=w.sqrt().numpy())
    assert result.launches == 1
    assert_relative(found, expected, 1e-8)


def test_the_same_bits_with_any_number_of_threads():
    x, y, w = samples(300_001, torch.float32)
    before, found = torch.get_num_threads(), []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        found.append([fit(x, y, 5, engine=e, sample_weight=w)[0] for e in ("stream", "moments")])
    torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


@pytest.mark.parametrize("names", [("sample_weight",), ("mask", "sigma")])
def test_a_fused_step(names):
    x, y, w = samples(100)
    given = {"sample_weight": w, "mask": w > 0, "sigma": w + 1}
    given = {name: given[name] for name in names}
    model = model_of(torch.float64)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.5)
    step = pf.fuse(model, torch.nn.MSELoss(), optimizer)
    step(x, y, **given)
    before = REGISTRY["cpu"].launches()
    loss = step(x, y, **given)
    assert REGISTRY["cpu"].launches() - before == 1
    expected, _ = fit(x, y, 2, **given)
    assert_relative(model.coefficients.detach(), expected, CLOSE)
    one_less = loop(x, y, w if "sample_weight" in names else (w > 0) / (w + 1) ** 2, 1, 0.1)[1]
    assert_same_loss(loss, one_less)


def test_a_diverging_fit_is_told_the_largest_stable_lr():
    x, y, w = samples(100)
    model = model_of(torch.float64)
    optimizer = torch.optim.SGD(model.parameters(), lr=5.0)
    with pytest.warns(RuntimeWarning, match="largest stable lr"):
        result = pf.fit(model, torch.nn.MSELoss(), optimizer, x, y, epochs=2000, sample_weight=w)
    assert result.stop_reason == "diverged"


def bad():
    w = samples(9)[2]
    yield "sample_weight: expected a torch.Tensor", {"sample_weight": [1.0]}, TypeError
    yield "sample_weight: expected dtype float32", {"sample_weight": w > 0}, TypeError
    yield "mask: expected dtype bool", {"mask": w}, TypeError
    yield "sample_weight: expected the shape of x", {"sample_weight": w[:3]}, ValueError
    yield "sigma: expected the device of x", {"sigma": w.to("meta")}, ValueError
    yield "sample_weight: expected finite numbers", {"sample_weight": w - 10}, ValueError
    yield "sample_weight: expected finite numbers", {"sample_weight": w / 0 * 0}, ValueError
    yield "sigma: expected finite standard deviations > 0", {"sigma": w * 0}, ValueError
    yield "sigma: the weights leave the range of", {"sigma": w * 0 + 1e-200}, ValueError
    yield "sigma: the weights leave the range of", {"sigma": w * 0 + 1e170}, ValueError
    yield "sample_weight: expected a dense", {"sample_weight": w.to_sparse()}, TypeError
    yield "mask: expected a sample with weight, got none", {"mask": w < 0}, ValueError


@pytest.mark.parametrize(("message", "options", "error"), list(bad()), ids=lambda v: str(v)[:30])
def test_bad_weights_name_the_argument_and_change_nothing(message, options, error):
    x, y, _ = samples(9)
    model = model_of(torch.float64)
    before = model.coefficients.detach().clone()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(error, match=message.replace("^", r"\^")):
        pf.fit(model, torch.nn.MSELoss(), optimizer, x, y, epochs=3, **options)
    assert torch.equal(model.coefficients, before)
