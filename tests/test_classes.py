"""Cross entropy of polynomial logits, against loops of plain PyTorch."""

import warnings

import polyfuse as pf
import polyfuse.nn as nn
import polyfuse.optim as optim
import pytest
import torch

OPTIMIZERS = {
    "sgd": lambda p: optim.SGD(p, lr=0.3, momentum=0.5),
    "adam": lambda p: optim.Adam(p, lr=0.05),
    "rmsprop": lambda p: optim.RMSprop(p, lr=0.01),
}
CRITERIA = {
    "mean": {},
    "sum": {"reduction": "sum"},
    "weight": {"weight": torch.tensor([1.0, 0.2, 3.0, 0.5], dtype=torch.float64)},
    "ignore": {"ignore_index": 2},
    "smoothing": {"label_smoothing": 0.2},
    "all": {
        "weight": torch.tensor([1.0, 0.2, 3.0, 0.5], dtype=torch.float64),
        "label_smoothing": 0.1,
        "ignore_index": 1,
    },
}


def data(n, dtype=torch.float64):
    generator = torch.Generator().manual_seed(2)
    x = 2 * torch.rand(n, generator=generator, dtype=dtype) - 1
    y = torch.randint(4, (n,), generator=generator)
    shares = torch.rand(n, 4, generator=generator, dtype=dtype)
    return x, y, shares / shares.sum(1, keepdim=True)


def two_models(dtype=torch.float64, degree=2, **options):
    models = [nn.Polynomial(degree, outputs=4, dtype=dtype, **options) for _ in range(2)]
    with torch.no_grad():
        for model in models:
            model.coefficients.copy_(torch.sin(torch.arange(4.0 * degree + 4)).view(degree + 1, 4))
    return models


@pytest.mark.parametrize("targets", ["classes", "probabilities"])
@pytest.mark.parametrize("options", CRITERIA)
@pytest.mark.parametrize("n", [1, 9, 1003, 100_003])
def test_it_is_torchs_loop(n, options, targets):
    x, y, shares = data(n)
    y = y if targets == "classes" else shares
    if n == 1 and targets == "classes":
        y = torch.tensor([3])
    if targets == "probabilities" and "ignore" in options:
        pytest.skip("torch takes no ignore_index with probabilities")
    fitted, looped = two_models()
    options = dict(CRITERIA[options])
    if targets == "probabilities":
        options.pop("ignore_index", None)
    criterion = nn.CrossEntropyLoss(**options)
    lr = 0.3 / n if criterion.reduction == "sum" else 0.3
    optimizers = [optim.SGD(m.parameters(), lr=lr, momentum=0.5) for m in (fitted, looped)]
    result = pf.fit(fitted, criterion, optimizers[0], x, y, epochs=6, record_every=2)
    result = pf.fit(fitted, criterion, optimizers[0], x, y, epochs=4, record_every=2)
    for _ in range(10):
        optimizers[1].zero_grad()
        criterion(looped(x), y).backward()
        optimizers[1].step()
    close = {"rtol": 1e-9, "atol": 1e-11}
    torch.testing.assert_close(fitted.coefficients, looped.coefficients, **close)
    torch.testing.assert_close(fitted.coefficients.grad, looped.coefficients.grad, **close)
    assert result.loss == pytest.approx(criterion(looped(x), y).item(), rel=1e-9)
    assert (result.engine, result.launches, len(result.history)) == ("stream", 1, 3)


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("basis", ["monomial", "legendre"])
def test_optimizers_and_bases(name, basis):
    x, y, _ = data(500)
    fitted, looped = two_models(degree=3, basis=basis, domain=(-1, 2))
    optimizers = [OPTIMIZERS[name](m.parameters()) for m in (fitted, looped)]
    criterion = nn.CrossEntropyLoss()
    pf.fit(fitted, criterion, optimizers[0], x, y, epochs=12)
    for _ in range(12):
        optimizers[1].zero_grad()
        criterion(looped(x), y).backward()
        optimizers[1].step()
    torch.testing.assert_close(fitted.coefficients, looped.coefficients, rtol=1e-8, atol=1e-10)
    for key, value in optimizers[1].state[looped.coefficients].items():
        found = optimizers[0].state[fitted.coefficients][key]
        torch.testing.assert_close(found, value, rtol=1e-8, atol=1e-10)


def test_logits_of_any_size():
    x = torch.tensor([0.0, 1.0, -1.0])
    model = nn.Polynomial(1, outputs=4)
    with torch.no_grad():
        model.coefficients[1] = torch.tensor([1e4, -1e4, 0.0, 5.0])
    y = torch.tensor([0, 0, 1])
    wanted = torch.nn.functional.cross_entropy(model(x), y).item()
    result = pf.fit(model, nn.CrossEntropyLoss(), optim.SGD(model.parameters(), lr=0.1), x, y,
                    epochs=0)  # fmt: skip
    assert result.loss == pytest.approx(wanted)


@pytest.mark.parametrize("targets", ["classes", "probabilities"])
@pytest.mark.parametrize("options", ["mean", "sum", "all"])
@pytest.mark.parametrize("way", ["fit", "fuse"])
def test_weights_of_samples(way, options, targets):
    x, y, shares = data(101)
    w = torch.linspace(0, 2, 101, dtype=torch.float64)
    w[40:50] = 0.0
    fitted, looped = two_models()
    options = dict(CRITERIA[options])
    counted, target = (
        options.get("weight", torch.ones(4))[y] * (y != options.get("ignore_index")),
        y,
    )
    if targets == "probabilities":
        options.pop("ignore_index", None)
        counted, target = 1.0, shares
    criterion = nn.CrossEntropyLoss(**options)
    of_each = torch.nn.CrossEntropyLoss(**(options | {"reduction": "none"}))
    optimizers = [optim.SGD(m.parameters(), lr=3e-3) for m in (fitted, looped)]
    losses = []
    for _ in range(6):
        total = (w * counted).sum() if criterion.reduction == "mean" else 1.0
        loss = (w * of_each(looped.forward(x), target)).sum() / total
        optimizers[1].zero_grad()
        loss.backward()
        optimizers[1].step()
        losses.append(loss.item())
    x, target = x.clone(), target.clone()
    x[44] = torch.nan  # left out, whatever it holds
    if targets == "probabilities":
        target[46] = torch.inf
    if way == "fit":
        result = pf.fit(
            fitted, criterion, optimizers[0], x, target, epochs=6, record_every=1, sample_weight=w
        )
        found = result.history[:6].tolist()
    else:
        step = pf.fuse(fitted, criterion, optimizers[0])
        found = [step(x, target, sample_weight=w, mask=w > 0).item() for _ in range(6)]
    assert found == pytest.approx(losses, rel=1e-9)
    torch.testing.assert_close(fitted.coefficients, looped.coefficients, rtol=1e-9, atol=1e-11)


def once(make, x, y, **options):
    """Loss and gradient, from torch or from `fit` with the backend of that name."""
    model, _ = two_models(degree=1)
    with torch.no_grad():
        model.coefficients[:, 3] = -1e308
    criterion = nn.CrossEntropyLoss(**options)
    if make == "torch":
        loss = torch.nn.CrossEntropyLoss(**options)(model.forward(x), y)
        loss.backward()
        return loss.detach(), model.coefficients.grad
    optimizer = optim.SGD(model.parameters(), lr=0.0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of a loss that is nan
        result = pf.fit(model, criterion, optimizer, x, y, epochs=1, backend=make)
    return torch.tensor(result.loss, dtype=x.dtype), model.coefficients.grad


ZERO = torch.tensor([0.0, 1.0, 1.0, 0.0], dtype=torch.float64)  # the last has a logit of -inf
NOTHING_COUNTS = {
    "a mean of weights that are 0": ([0, 0], {"weight": ZERO}),
    "a sum of them": ([0, 0], {"weight": ZERO, "reduction": "sum"}),
    "a mean of them, smoothed": ([0, 0], {"weight": ZERO + 0.0, "label_smoothing": 0.1}),
    "some ignored": ([0, 2], {"weight": ZERO, "ignore_index": 2}),
    "all ignored": ([2, 2], {"weight": ZERO, "ignore_index": 2}),
    "0 of an infinite loss": ([3, 1], {"weight": ZERO}),
    "an infinite loss": ([3, 1], {}),
    "an infinite loss that is ignored": ([3, 1], {"ignore_index": 3}),
    "an infinite loss elsewhere": ([1, 1], {}),
    "an infinite loss elsewhere, smoothed": ([1, 1], {"label_smoothing": 0.1}),
    "an infinite loss elsewhere of probability 0": ([[0.0, 1, 0, 0], [0, 1, 0, 0]], {}),
}


@pytest.mark.parametrize("name", NOTHING_COUNTS)
def test_what_counts_nothing_or_loses_everything_is_torchs(name):
    y, options = NOTHING_COUNTS[name]
    x = torch.tensor([0.5, 2.0], dtype=torch.float64)
    y = torch.tensor(y, dtype=torch.float64 if isinstance(y[0], list) else torch.int64)
    found, wanted = (once(make, x, y, **options) for make in ("cpu", "torch"))
    torch.testing.assert_close(found, wanted, equal_nan=True)


def test_tol_stops():
    x, y, _ = data(300)
    model, _ = two_models()
    optimizer = optim.SGD(model.parameters(), lr=0.5)
    result = pf.fit(model, nn.CrossEntropyLoss(), optimizer, x, y, epochs=100_000, tol=1e-10)
    assert result.converged
    assert result.epochs < 100_000


def test_bad_input_changes_nothing():
    x, y, shares = data(20)
    model, _ = two_models()
    optimizer = optim.SGD(model.parameters(), lr=0.5)
    before = model.coefficients.detach().clone()
    far = y.clone()
    far[3] = 7
    cases = [
        ({"y": far}, ValueError, "y: expected classes from 0 to 3, got 7"),
        ({"y": y.int()}, TypeError, "y: expected classes of int64"),
        ({"y": y[:5]}, ValueError, r"y: expected shape \(20,\), got \(5,\)"),
        ({"y": shares[:, :3]}, ValueError, r"y: expected shape \(20, 4\), got \(20, 3\)"),
        ({"x": x[:, None]}, ValueError, r"x: expected shape \(n,\)"),
        ({"x": x * torch.nan}, ValueError, "x, y: .*; expected finite data"),
        ({"criterion": nn.MSELoss()}, TypeError, "y: expected dtype"),
        (
            {"criterion": nn.CrossEntropyLoss(weight=torch.ones(3, dtype=torch.float64))},
            ValueError,
            "criterion: expected a weight of 4 classes",
        ),
        (
            {"criterion": nn.CrossEntropyLoss(weight=torch.ones(4))},
            ValueError,
            "criterion: weight: expected the dtype torch.float64, got torch.float32",
        ),
        (
            {"criterion": nn.CrossEntropyLoss(weight=torch.ones(4, device="meta"))},
            ValueError,
            "criterion: weight: expected a plain tensor that needs",
        ),
        ({"y": y.to("meta")}, ValueError, "y: expected the device of x, cpu, got meta"),
        ({"sample_weight": x}, ValueError, "sample_weight: expected finite numbers >= 0"),
        ({"mask": y}, TypeError, "mask: expected dtype bool"),
        ({"engine": "moments"}, ValueError, "engine: moments cannot .* no function of the moments"),
        ({"backend": "nonsense"}, ValueError, "backend: expected one of auto, cpu"),
        ({"backend": "reference"}, ValueError, "backend: reference cannot .* several outputs"),
        ({"bounds": (1.0, -1.0)}, ValueError, "bounds: expected lower <= upper"),
    ]
    for change, error, message in cases:
        arguments = {"x": x, "y": y, "criterion": nn.CrossEntropyLoss(), "epochs": 3} | change
        criterion, xs, ys = (arguments.pop(k) for k in ("criterion", "x", "y"))
        with pytest.raises(error, match=message):
            pf.fit(model, criterion, optimizer, xs, ys, **arguments)
    assert torch.equal(model.coefficients, before)
    with pytest.raises(ValueError, match="outputs: expected None or an int >= 1, got 0"):
        nn.Polynomial(1, outputs=0)
    with pytest.raises(ValueError, match="outputs: expected None for a batch"):
        nn.Polynomial(1, outputs=2, batch_shape=(3,))


def test_samples_that_are_all_ignored_change_nothing():
    x, y, _ = data(9)
    model, _ = two_models()
    before = model.coefficients.detach().clone()
    optimizer = optim.SGD(model.parameters(), lr=0.5)
    with pytest.warns(RuntimeWarning, match="diverged"):
        pf.fit(model, nn.CrossEntropyLoss(), optimizer, x, torch.full_like(y, -100), epochs=2)
    assert torch.equal(model.coefficients, before)
    assert not model.coefficients.grad.any()
