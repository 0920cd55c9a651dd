"""Several outputs of one x with the criteria of single ones, against loops of plain PyTorch."""

import numpy as np
import polyfuse as pf
import polyfuse.nn as nn
import polyfuse.optim as optim
import pytest
import torch

CRITERIA = {
    "mse": nn.MSELoss(),
    "mse, sum": nn.MSELoss(reduction="sum"),
    "huber": nn.HuberLoss(delta=0.3),
    "l1, sum": nn.L1Loss(reduction="sum"),
    "poisson": nn.PoissonNLLLoss(),
    "kl, per row": nn.KLDivLoss(reduction="batchmean"),
}
OPTIMIZERS = {
    "sgd": lambda p: optim.SGD(p, lr=0.004, momentum=0.5),
    "adam": lambda p: optim.Adam(p, lr=0.02),
}


def make(n=29, basis="monomial", dtype=torch.float64):
    generator = torch.Generator().manual_seed(5)
    x = 2 * torch.rand(n, generator=generator, dtype=dtype) - 1
    y = torch.rand(n, 3, generator=generator, dtype=dtype)
    return x, y, *(nn.Polynomial(2, outputs=3, basis=basis, dtype=dtype) for _ in range(2))


def iterate(model, optimizer, criterion, x, y):
    """One iteration of the loop; model: or its plain forward."""
    loss = criterion(model(x), y)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss


def loop(model, optimizer, criterion, x, y, epochs):
    return [iterate(model.forward, optimizer, criterion, x, y).item() for _ in range(epochs)]


@pytest.mark.parametrize("basis", ["monomial", "legendre"])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("name", CRITERIA)
def test_every_engine_is_the_loop(name, optimizer, basis):
    criterion = CRITERIA[name]
    x, y, fitted, looped = make(basis=basis)
    optimizers = [OPTIMIZERS[optimizer](m.parameters()) for m in (fitted, looped)]
    engines = ["auto", "stream"]
    if name.startswith("mse"):
        engines += ["moments", "closed_form"][: 1 + (optimizer == "sgd")]
    for engine in engines:
        result = pf.fit(
            fitted, criterion, optimizers[0], x, y, epochs=9, engine=engine, record_every=1
        )
        losses = loop(looped, optimizers[1], criterion, x, y, 9)
        np.testing.assert_allclose(result.history[:9], losses, rtol=1e-9)
        assert result.loss == pytest.approx(criterion(looped.forward(x), y).item(), rel=1e-9)
        close = {"rtol": 1e-8, "atol": 1e-10, "msg": engine}
        torch.testing.assert_close(fitted.coefficients, looped.coefficients, **close)
        torch.testing.assert_close(fitted.coefficients.grad, looped.coefficients.grad, **close)
        for key, value in optimizers[1].state[looped.coefficients].items():
            found = optimizers[0].state[fitted.coefficients][key]
            torch.testing.assert_close(found, value, **close)


@pytest.mark.parametrize("per_output", [False, True])
@pytest.mark.parametrize("engine", ["stream", "moments"])
def test_weights_and_gaps(engine, per_output):
    x, y, fitted, looped = make()
    y[4, 1] = y[7, 0] = torch.nan
    w = torch.linspace(0, 2, y.numel(), dtype=torch.float64).view(y.shape)
    w = w if per_output else w[:, 0]
    optimizers = [optim.SGD(m.parameters(), lr=0.1) for m in (fitted, looped)]
    pf.fit(fitted, nn.MSELoss(), optimizers[0], x, y, epochs=9, engine=engine, sample_weight=w,
           nan_policy="omit")  # fmt: skip
    counted = torch.where(y.isfinite(), w.view(len(x), -1).expand_as(y), 0.0)
    for _ in range(9):
        optimizers[1].zero_grad()
        square = (looped.forward(x) - y.nan_to_num()) ** 2
        ((counted * square).sum() / counted.sum()).backward()
        optimizers[1].step()
    torch.testing.assert_close(fitted.coefficients, looped.coefficients, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("name", ["mse", "huber"])
def test_tol_is_of_the_loss_of_all_outputs(name):
    x, y, fitted, looped = make()
    optimizers = [optim.SGD(m.parameters(), lr=0.3) for m in (fitted, looped)]
    result = pf.fit(fitted, CRITERIA[name], optimizers[0], x, y, epochs=10_000, tol=1e-5)
    losses = loop(looped, optimizers[1], CRITERIA[name], x, y, result.epochs)
    losses.append(CRITERIA[name](looped.forward(x), y).item())
    settled = np.abs(np.diff(losses)) <= 1e-5 * np.abs(losses[1:])
    assert result.converged and settled.argmax() + 1 == result.epochs
    torch.testing.assert_close(fitted.coefficients, looped.coefficients)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("soft", [False, True])
def test_a_pos_weight_of_every_output(soft, reduction, weighted):
    x, y, fitted, looped = make()
    y = y if soft else y.round()
    w = torch.linspace(0, 2, y.numel(), dtype=torch.float64).view(y.shape) if weighted else None
    positive = torch.tensor([3.0, 0.2, 0.5], dtype=torch.float64)
    criterion = nn.BCEWithLogitsLoss(pos_weight=positive, reduction=reduction)
    of_each = torch.nn.BCEWithLogitsLoss(pos_weight=positive, reduction="none")
    optimizers = [optim.SGD(m.parameters(), lr=0.01) for m in (fitted, looped)]
    result = pf.fit(fitted, criterion, optimizers[0], x, y, epochs=9, record_every=1,
                    sample_weight=w)  # fmt: skip
    counted = torch.ones_like(y) if w is None else w
    counted = counted / counted.sum() if reduction == "mean" else counted
    losses = loop(
        looped, optimizers[1], lambda p, t: (counted * of_each(p, t)).sum(), x, y, 9
    )  # fmt: skip
    np.testing.assert_allclose(result.history[:9], losses, rtol=1e-9)
    torch.testing.assert_close(fitted.coefficients, looped.coefficients, rtol=1e-9, atol=1e-11)


def test_solve_finds_every_optimum():
    x, y, model, _ = make()
    result = pf.solve(model, x, y, covariance=True)
    v = torch.stack([x**k for k in range(3)], 1)
    torch.testing.assert_close(model.coefficients, torch.linalg.lstsq(v, y).solution)
    r = y - v @ model.coefficients
    torch.testing.assert_close(result.loss, r.square().mean(0))
    torch.testing.assert_close(result.r_squared, 1 - r.var(0) / y.var(0))
    spread = torch.linalg.inv(v.T @ v)[..., None] * r.square().sum(0) / (len(x) - 3)
    torch.testing.assert_close(result.covariance, spread)


def test_bad_input_changes_nothing():
    x, y, model, _ = make()
    optimizer = optim.SGD(model.parameters(), lr=0.1)
    before = model.coefficients.detach().clone()
    cases = [
        ({"y": y[:, :2]}, r"y: expected shape \(n, 3\), got \(29, 2\)"),
        ({"x": y}, r"x: expected shape \(29,\) for several outputs"),
        ({"y": y / 0}, "nan"),
        ({"criterion": torch.nn.NLLLoss()}, "criterion: NLLLoss is not fused"),
        ({"criterion": nn.PoissonNLLLoss(), "y": y - 5}, "y: expected .* for PoissonNLLLoss"),
        ({"tol": 1e-3, "engine": "moments"}, "engine: moments cannot .* tol is of the loss of all"),
        (
            {"criterion": nn.BCEWithLogitsLoss(pos_weight=torch.ones(2, dtype=y.dtype))},
            r"criterion: pos_weight: expected one or 3 elements, got shape \(2,\)",
        ),
        (
            {"criterion": nn.BCEWithLogitsLoss(pos_weight=torch.ones(3))},
            "criterion: pos_weight: expected torch.float64 on cpu",
        ),
        (
            {"criterion": nn.BCEWithLogitsLoss(pos_weight=torch.zeros(3, dtype=y.dtype))},
            "criterion: pos_weight: expected finite numbers > 0",
        ),
        ({"engine": "moments", "criterion": nn.L1Loss()}, "engine: moments cannot"),
        ({"backend": "nonsense"}, "backend: expected one of auto, cpu"),
    ]
    for change, message in cases:
        arguments = {"x": x, "y": y, "criterion": nn.MSELoss(), "epochs": 3} | change
        criterion, xs, ys = (arguments.pop(k) for k in ("criterion", "x", "y"))
        with pytest.raises(ValueError, match=message):
            pf.fit(model, criterion, optimizer, xs, ys, **arguments)
    assert torch.equal(model.coefficients, before)
