"""Many fits in one launch, against plain PyTorch, numpy.polyfit and fits one by one."""

import numpy as np
import polyfuse as pf
import polyfuse.nn as nn
import polyfuse.optim as optim
import pytest
import torch
from polyfuse import _C
from torch.optim import lr_scheduler

OPTIMIZERS = {
    "sgd": lambda p: optim.SGD(p, lr=0.05),
    "nesterov": lambda p: optim.SGD(p, lr=0.02, momentum=0.9, nesterov=True, weight_decay=0.01),
    "dampened": lambda p: optim.SGD(p, lr=0.02, momentum=0.5, dampening=0.3, maximize=True),
    "adam": lambda p: optim.Adam(p, lr=0.02, amsgrad=True),
    "adamw": lambda p: optim.AdamW(p, lr=0.02),
    "asgd": lambda p: optim.ASGD(p, lr=0.02),
    "rprop": lambda p: optim.Rprop(p, lr=0.01),
    "rmsprop": lambda p: optim.RMSprop(p, lr=0.01, momentum=0.5, centered=True),
    "adagrad": lambda p: optim.Adagrad(p, lr=0.02),
    "adadelta": lambda p: optim.Adadelta(p),
    "adamax": lambda p: optim.Adamax(p, lr=0.02),
    "nadam": lambda p: optim.NAdam(p, lr=0.02),
    "radam": lambda p: optim.RAdam(p, lr=0.02),
}
DATA = ["shared", "own", "gaps", "weights", "shared weights", "last"]


def make(kind, n=12, fits=13, dtype=torch.float64):
    """x, y and what else `fit` is told."""
    generator = torch.Generator().manual_seed(7)

    def rand(*shape):
        return torch.rand(*shape, generator=generator, dtype=dtype)

    x, y, more = 2 * rand(n) - 1, 4 * rand(n, fits) - 2, {}
    if kind == "own":
        x = 2 * rand(n, fits) - 1
    if kind == "gaps":
        y[rand(n, fits) < 0.2] = torch.nan
        more["nan_policy"] = "omit"
    if kind == "weights":
        w = rand(n, fits)
        more["sample_weight"] = torch.where(w < 0.3, 0.0, w)
    if kind == "shared weights":
        w = rand(n)
        more["sample_weight"] = torch.where(w < 0.3, 0.0, w)
        y[more["sample_weight"] == 0] = 1e30
    if kind == "last":
        y = y.mT.contiguous().mT
    return x, y, more


def model_of(fits=13, degree=2, dtype=torch.float64, **options):
    model = nn.Polynomial(degree, batch_shape=(fits,), dtype=dtype, **options)
    with torch.no_grad():
        model.coefficients.copy_(torch.sin(torch.arange(float(model.coefficients.numel()))).view(
            model.coefficients.shape))  # fmt: skip
    return model


def assert_same_run(backends, make_optimizer, criterion, x, y, parts=(23, 10), rtol=1e-8, **more):
    outcomes = []
    for backend in backends:
        model = model_of(y.shape[1], dtype=y.dtype)
        optimizer = make_optimizer(model.parameters())
        for epochs in parts:  # the second starts from the state that the first has left
            result = pf.fit(
                model, criterion, optimizer, x, y, epochs=epochs, backend=backend, **more
            )
        state = optimizer.state.get(model.coefficients, {})
        outcomes.append((result, model.coefficients, state))
    (a, p, state), (b, q, wanted) = outcomes
    close = {"rtol": rtol, "atol": rtol * 1e-2}
    torch.testing.assert_close(p, q, **close)
    torch.testing.assert_close(p.grad, q.grad, **close)
    torch.testing.assert_close(a.loss, b.loss, **close)
    np.testing.assert_allclose(a.history, b.history, **close)
    assert torch.equal(a.fit_epochs, b.fit_epochs)
    assert torch.equal(a.status, b.status)
    assert state.keys() == wanted.keys()
    for name, value in wanted.items():
        if value is not None:
            torch.testing.assert_close(state[name].double(), value.double(), **close)
    return a


@pytest.mark.parametrize("kind", DATA)
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_is_torchs(name, kind):
    x, y, more = make(kind)
    for engine in ("auto", "moments", "stream"):
        for every in (None, 1, 7):
            assert_same_run(
                ("cpu", "reference"), OPTIMIZERS[name], nn.MSELoss(), x, y,
                engine=engine, record_every=every, **more,
            )  # fmt: skip


@pytest.mark.parametrize("kind", DATA)
@pytest.mark.parametrize(
    "criterion",
    [
        nn.MSELoss(reduction="sum"),
        nn.L1Loss(),
        nn.SmoothL1Loss(reduction="sum"),
        nn.HuberLoss(delta=0.5),
    ],
    ids=lambda c: type(c).__name__,
)
def test_every_criterion_is_torchs(criterion, kind):
    x, y, more = make(kind)
    assert_same_run(("cpu", "reference"), OPTIMIZERS["sgd"], criterion, x, y, **more)


@pytest.mark.parametrize("kind", DATA)
def test_classes_and_counts(kind):
    x, y, more = make(kind)
    labels = torch.where(y.isnan(), y, (y > 0).double())
    logits = nn.BCEWithLogitsLoss(pos_weight=torch.tensor(2.0, dtype=torch.float64))
    assert_same_run(("cpu", "reference"), OPTIMIZERS["adam"], logits, x, labels, **more)
    counts = torch.where(y.isnan(), y, (y + 2).round())
    assert_same_run(("cpu", "reference"), OPTIMIZERS["sgd"], nn.PoissonNLLLoss(), x, counts, **more)


@pytest.mark.parametrize("engine", ["moments", "stream"])
@pytest.mark.parametrize("name", ["sgd", "nesterov", "adam"])
def test_each_fit_stops_on_its_own(name, engine):
    x, y, _ = make("own")
    result = assert_same_run(
        ("cpu", "reference"), OPTIMIZERS[name], nn.MSELoss(), x, y, parts=(60,), engine=engine,
        tol=1e-3,
    )  # fmt: skip
    assert len(set(result.fit_epochs.tolist())) > 3
    assert set(result.counts()) == {"converged", "step_limit"}


@pytest.mark.parametrize("kind", DATA)
def test_float32_data(kind):
    x, y, more = make(kind, dtype=torch.float32)
    assert_same_run(
        ("cpu", "reference"), OPTIMIZERS["nesterov"], nn.MSELoss(), x, y, rtol=3e-5, **more
    )


@pytest.mark.parametrize("fits", [1, 7, 8, 9, 65, 1003])
def test_a_batch_is_what_its_fits_are(fits):
    x, y, _ = make("shared", fits=fits)
    model = model_of(fits)
    start = model.coefficients.detach().clone()
    before = _C.launches()
    result = pf.fit(model, nn.MSELoss(), optim.SGD(model.parameters(), lr=0.05), x, y, epochs=500)
    assert (result.engine, result.launches) == ("closed_form", 1)
    assert _C.launches() == before + 1
    for b in {0, fits // 2, fits - 1}:
        one = nn.Polynomial(2, dtype=torch.float64)
        with torch.no_grad():
            one.coefficients.copy_(start[:, b])
        alone = pf.fit(one, nn.MSELoss(), optim.SGD(one.parameters(), lr=0.05), x, y[:, b],
                       epochs=500)  # fmt: skip
        torch.testing.assert_close(model.coefficients[:, b], one.coefficients, rtol=1e-10, atol=0)
        assert result.loss[b].item() == pytest.approx(alone.loss, rel=1e-10)


def test_the_loss_of_a_loop_is_the_sum_over_fits():
    x, y, _ = make("shared")
    fitted, looped = model_of(), model_of()
    pf.fit(fitted, nn.MSELoss(), optim.SGD(fitted.parameters(), lr=0.05), x, y, epochs=40)
    optimizer = torch.optim.SGD(looped.parameters(), lr=0.05)
    for _ in range(40):
        optimizer.zero_grad()
        ((looped(x) - y) ** 2).mean(0).sum().backward()
        optimizer.step()
    torch.testing.assert_close(fitted.coefficients, looped.coefficients, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(fitted.coefficients.grad, looped.coefficients.grad)


def test_a_diverging_fit_is_reported():
    x, y, _ = make("own")
    x[:, 3] *= 100
    model = model_of()
    optimizer = optim.SGD(model.parameters(), lr=0.05)
    with pytest.warns(RuntimeWarning, match=r"1 of \d+ fits diverged"):
        result = pf.fit(model, nn.MSELoss(), optimizer, x, y, epochs=300)
    assert result.counts() == {"step_limit": 12, "diverged": 1}


def test_bad_input_changes_nothing():
    x, y, _ = make("shared")
    model = model_of()
    optimizer = optim.SGD(model.parameters(), lr=0.05)
    before = model.coefficients.detach().clone()
    criterion = nn.MSELoss()
    bad = y.clone()
    bad[3, 4] = torch.inf
    cases = [
        ({"y": y.T}, r"y: expected shape \(n, 13\), got \(13, 12\); samples come first"),
        ({"y": y[:, :5]}, r"y: expected shape \(n, 13\), got \(12, 5\)"),
        ({"x": x[:5]}, r"x: expected shape \(12,\), shared by all fits, or that of y, \(12, 13\)"),
        ({"y": bad}, r"the data of 1 of \d+ fits holds nan or inf"),
        ({"sample_weight": -x}, "sample_weight: expected finite numbers >= 0"),
        ({"sigma": 0 * y}, "sigma: expected finite standard deviations > 0"),
        ({"engine": "closed_form", "x": x[:, None] + 0 * y}, "engine: closed_form cannot"),
        ({"engine": "magic"}, "engine: expected one of"),
        ({"backend": "tpu"}, "backend: expected one of auto, cpu, cuda, triton, reference for a"),
        ({"callback": print}, "callback: needs record_every"),
        ({"scheduler": lr_scheduler.StepLR(optimizer, 3), "engine": "closed_form"}, "a scheduler"),
        ({"criterion": nn.KLDivLoss(reduction="batchmean"), "y": y.abs()}, "criterion: expected"),
    ]
    for change, message in cases:
        arguments = {"x": x, "y": y, "criterion": criterion, "epochs": 5} | change
        criterion_of, xs, ys = (arguments.pop(k) for k in ("criterion", "x", "y"))
        with pytest.raises(ValueError, match=message):
            pf.fit(model, criterion_of, optimizer, xs, ys, **arguments)
    with pytest.raises(TypeError, match=r"x: expected torch\.float64 on cpu"):
        pf.fit(model, criterion, optimizer, x.float(), y.float(), epochs=5)
    assert torch.equal(model.coefficients, before)
    assert model.coefficients.grad is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_shape": (0,)}, "batch_shape: expected a tuple of sizes >= 1"),
        ({"batch_shape": 5}, "batch_shape: expected a tuple"),
        ({"domain": (1, 1)}, "domain: expected two finite numbers, low < high"),
        ({"domain": 3}, "domain: expected two finite numbers"),
    ],
)
def test_bad_models(options, message):
    with pytest.raises(ValueError, match=message):
        nn.Polynomial(2, **options)


def test_a_domain_is_fused():
    x = torch.linspace(1000.0, 1010.0, 50, dtype=torch.float64)
    model = nn.Polynomial(3, domain=(1000, 1010), dtype=torch.float64)
    optimizer = optim.SGD(model.parameters(), lr=0.3)
    result = pf.fit(model, nn.MSELoss(), optimizer, x, torch.sin(x / 3), epochs=100_000)
    wanted = np.polynomial.Polynomial.fit(x, torch.sin(x / 3), 3, domain=(1000, 1010))
    np.testing.assert_allclose(model.coefficients.detach(), wanted.coef, rtol=1e-6)
    assert result.engine == "closed_form"


def test_a_frozen_batch_stays():
    x, y, _ = make("shared")
    model = model_of()
    model.coefficients.requires_grad_(False)
    before = model.coefficients.clone()
    result = pf.fit(model, nn.MSELoss(), optim.SGD([model.coefficients], lr=0.1), x, y, epochs=9)
    assert torch.equal(model.coefficients, before)
    torch.testing.assert_close(result.loss, ((model(x) - y) ** 2).mean(0))


def test_a_fit_without_samples_stays_where_it_is():
    x, y, _ = make("shared")
    gaps = y.clone()
    gaps[:, 1] = torch.nan
    model = model_of()
    before = model.coefficients.detach().clone()
    result = pf.fit(model, nn.MSELoss(), optim.SGD(model.parameters(), lr=0.05), x, gaps, epochs=9,
                    nan_policy="omit")  # fmt: skip
    assert result.counts() == {"step_limit": 12, "rank_deficient": 1}
    assert torch.equal(model.coefficients[:, 1], before[:, 1])
    assert result.loss[1].isnan() and result.loss.isnan().sum() == 1
    again = pf.fit(model, nn.MSELoss(), optim.SGD(model.parameters(), lr=0.05), x, y, epochs=9)
    assert again.counts() == {"step_limit": 13}


def test_expanded_data_is_shared():
    x, y, _ = make("shared")
    x[3] = torch.nan
    models = model_of(), model_of()
    for model, data in zip(models, (x, x[:, None].expand_as(y)), strict=True):
        result = pf.solve(model, data, y, nan_policy="omit")
        assert result.counts() == {"converged": 13}
    assert torch.equal(models[0].coefficients, models[1].coefficients)
    w = torch.ones_like(x)
    pf.fit(models[0], nn.MSELoss(), optim.SGD(models[0].parameters(), lr=0.05), x, y, epochs=2,
           nan_policy="omit", sample_weight=w)  # fmt: skip
    with pytest.raises(ValueError, match="no sample is left"):
        pf.solve(models[0], torch.full_like(x, torch.nan), y, nan_policy="omit")


def test_what_the_kernels_would_pass_over_is_refused():
    x, y, _ = make("shared")
    criterion = nn.MSELoss()

    class Tenfold(nn.Polynomial):
        def forward(self, x):
            return 10 * super().forward(x)

    hooked, gradient_hooked, frozen = model_of(), model_of(), model_of()
    hooked.register_forward_hook(lambda *_: None)
    gradient_hooked.coefficients.register_hook(lambda g: g * 0)
    frozen.coefficients.requires_grad_(False)
    other = Tenfold(2, batch_shape=(13,), dtype=torch.float64)
    for model, message in (
        (hooked, "model: Polynomial has hooks"),
        (gradient_hooked, "model: its parameters have gradient hooks"),
        (other, "model: Tenfold has a forward"),
    ):
        before = model.coefficients.detach().clone()
        with pytest.raises(ValueError, match=message):
            pf.solve(model, x, y)
        with pytest.raises(ValueError, match="model: "):
            pf.fit(model, criterion, optim.SGD(model.parameters(), lr=0.1), x, y, epochs=1)
        assert torch.equal(model.coefficients, before)
    with pytest.raises(ValueError, match="model: expected a trainable parameter, got none"):
        pf.solve(frozen, x, y)
    with pytest.raises(TypeError, match="y: expected a dense tensor"):
        pf.solve(model_of(), x, y.to_sparse())


def test_the_data_is_not_blamed_for_the_start():
    x, y, _ = make("own")
    model = model_of()
    with torch.no_grad():
        model.coefficients[:, 2] = torch.inf
    with pytest.warns(RuntimeWarning, match=r"1 of \d+ fits diverged"):
        result = pf.fit(model, nn.MSELoss(), optim.SGD(model.parameters(), lr=0.05), x, y, epochs=3)
    assert result.counts() == {"step_limit": 12, "diverged": 1}


def test_a_learning_rate_of_zero_moves_the_buffer():
    x, y, _ = make("shared")
    for engine in ("auto", "moments"):
        assert_same_run(
            ("cpu", "reference"), lambda p: optim.SGD(p, lr=0.0, momentum=0.9), nn.MSELoss(), x, y,
            engine=engine,
        )  # fmt: skip


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_same_bits_for_any_number_of_threads(name):
    x, y, _ = make("shared", n=3, fits=70_001)
    before, left = torch.get_num_threads(), []
    try:
        for threads in (1, 4):
            torch.set_num_threads(threads)
            model = model_of(70_001)
            optimizer = OPTIMIZERS[name](model.parameters())
            pf.fit(model, nn.MSELoss(), optimizer, x, y, epochs=7)
            left.append(model.coefficients)
    finally:
        torch.set_num_threads(before)
    assert torch.equal(*left)


@pytest.mark.parametrize("name", ["asgd", "adam", "nadam"])
def test_many_epochs_are_those_of_shorter_runs(name):
    x, y, _ = make("shared", fits=2)
    left = []
    for parts in ((66_000,), (40_000, 26_000)):  # past the rates that are tabulated
        model = model_of(2)
        optimizer = OPTIMIZERS[name](model.parameters())
        for epochs in parts:
            pf.fit(model, nn.MSELoss(), optimizer, x, y, epochs=epochs)
        left.append((model.coefficients.detach(), optimizer.state[model.coefficients]["step"]))
    torch.testing.assert_close(*left, rtol=1e-12, atol=0)


def test_infinite_data_is_refused_where_its_loss_is_finite():
    x, y, _ = make("own")
    x[3, 4] = torch.inf
    model, labels = model_of(), (y > 0).double() * 2 - 1
    with torch.no_grad():
        model.coefficients.fill_(1.0)
    labels[3, 4] = 1.0
    optimizer = optim.SGD(model.parameters(), lr=0.05)
    before = model.coefficients.detach().clone()
    with pytest.raises(ValueError, match=r"the data of 1 of \d+ fits holds nan or inf"):
        pf.fit(model, nn.SoftMarginLoss(), optimizer, x, labels, epochs=5)
    assert torch.equal(model.coefficients, before)


@pytest.mark.parametrize("kind", ["shared", "own", "weights"])
def test_numpy_arrays_are_data(kind):
    x, y, more = make(kind)
    reversed_x = np.ascontiguousarray(x.numpy()[::-1])[::-1]
    reversed_x.flags.writeable = False
    left = []
    for data, weight in (((x, y), dict), ((reversed_x, y.numpy()), as_numpy)):
        fitted, solved = model_of(), model_of()
        pf.fit(fitted, nn.MSELoss(), optim.SGD(fitted.parameters(), lr=0.05), *data, epochs=5,
               **weight(more))  # fmt: skip
        pf.solve(solved, *data)
        left.append(torch.stack([fitted.coefficients, solved.coefficients]))
    assert torch.equal(*left)
    with pytest.raises(TypeError, match=r"x: expected a torch\.Tensor, got ndarray"):
        pf.solve(model_of(), x.numpy().astype(object), y)


def as_numpy(more):
    return {name: value.numpy() for name, value in more.items()}


@pytest.mark.parametrize("epochs", [1, 2, 50])
@pytest.mark.parametrize("options", [{}, {"weight_decay": 0.1}, {"momentum": 0.9}])
def test_all_epochs_at_once_leave_what_one_by_one_do(options, epochs):
    x = torch.linspace(-1, 1, 20, dtype=torch.float64)
    y = torch.sin(torch.arange(740.0, dtype=torch.float64)).view(20, 37)
    ends = []
    for engine in ("closed_form", "stream"):
        model = nn.Polynomial(2, batch_shape=(37,), dtype=torch.float64)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, **options)
        result = pf.fit(model, nn.MSELoss(), optimizer, x, y, epochs=epochs, engine=engine)
        p = model.coefficients
        ends.append([p.detach(), p.grad, result.loss, optimizer.state[p].get("momentum_buffer")])
    for at_once, one_by_one in zip(*ends, strict=True):
        torch.testing.assert_close(at_once, one_by_one, rtol=1e-12, atol=1e-13)
