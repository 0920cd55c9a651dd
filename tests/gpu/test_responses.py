"""Several outputs of several variables, or of functions, on a GPU, beside the CPU and torch."""

from functools import partial

import polyfuse as pf
import polyfuse.nn as nn
import polyfuse.optim as optim
import pytest
import torch
from polyfuse.backends import AUTO

from ..test_outputs import CRITERIA, iterate, loop
from ..test_responses import classes, data, make
from ..tolerance import assert_like_torch
from .test_backends import DEVICE, backend, fit_both, pytestmark  # noqa: F401


@pytest.mark.parametrize("weighted", [False, True], ids=["all", "weighted"])
@pytest.mark.parametrize("engine", ["closed_form", "moments", "stream"])
@pytest.mark.parametrize("n", [129, 100_003])
@pytest.mark.parametrize("kind", ["variables", "one function"])
def test_runs_of_outputs(backend, kind, n, engine, weighted, dtype):  # noqa: F811
    x, y = data(kind, n, dtype)
    weight = torch.linspace(0, 2, n, dtype=dtype) if weighted else None
    fit_both(
        make(kind, dtype), make(kind, dtype), x, y, backend, 5, weight=weight, engine=engine
    )  # fmt: skip


@pytest.mark.parametrize(("terms", "outputs"), [(2, 31), (8, 8), (20, 3), (31, 2)])
def test_moments_of_many_outputs(backend, terms, outputs):  # noqa: F811
    generator = torch.Generator().manual_seed(1)
    x = torch.rand(5000, terms, generator=generator, dtype=torch.float64)
    y = torch.rand(5000, outputs, generator=generator, dtype=torch.float64)
    models = [
        nn.Polynomial(1, variables=terms, intercept=False, outputs=outputs, dtype=torch.float64)
        for _ in range(2)
    ]
    fit_both(*models, x, y, backend, 50)


@pytest.mark.parametrize("n", [129, 100_003])
def test_weights_of_every_output(backend, n, dtype):  # noqa: F811
    x, y = data("variables", n, dtype)
    weight = torch.linspace(0, 2, y.numel(), dtype=dtype).view_as(y).clone()
    weight[5:90, 2] = 0.0
    models = make("variables", dtype), make("variables", dtype)
    fit_both(*models, x, y, backend, 5, CRITERIA["huber"], weight)


@pytest.mark.parametrize("targets", ["classes", "probabilities"])
@pytest.mark.parametrize("n", [129, 100_003])
def test_cross_entropy_of_several_variables(backend, n, targets, dtype):  # noqa: F811
    x, y = data("variables", n, dtype)
    target = classes(y) if targets == "classes" else y / y.sum(1, keepdim=True)
    models = make("variables", dtype), make("variables", dtype)
    criterion = nn.CrossEntropyLoss(label_smoothing=0.1)
    fit_both(*models, x, target, backend, 5, criterion, torch.linspace(0, 2, n, dtype=dtype))


@pytest.mark.parametrize("name", ["mse", "huber", "classes"])
@pytest.mark.parametrize("how", ["loop", "static loop", "fuse"])
def test_small_loops_over_outputs(backend, how, name, dtype, monkeypatch):  # noqa: F811
    monkeypatch.setitem(AUTO, "cuda", (backend.name,))
    x, y = (t.to(DEVICE) for t in data("variables", 129, dtype))
    if how == "static loop":
        x, y = pf.static(x, y)
    target, criterion = y, CRITERIA.get(name)
    if name == "classes":
        target, criterion = classes(y), nn.CrossEntropyLoss()
    models = [make("variables", dtype).to(DEVICE) for _ in range(2)]
    optimizers = [optim.SGD(m.parameters(), lr=0.1, momentum=0.5) for m in models]
    step = partial(iterate, models[0], optimizers[0], criterion)
    if how == "fuse":
        step = pf.fuse(models[0], criterion, optimizers[0])
    for epoch, wanted in enumerate(loop(models[1], optimizers[1], criterion, x, target, 6)):
        before = backend.launches()
        loss = step(x, target)
        if epoch > 1 and DEVICE.type == "cuda":
            assert backend.launches() - before == 1
        assert_like_torch(loss.item(), wanted, dtype)
    found, truth = (m.coefficients.detach().cpu() for m in models)
    assert_like_torch(found, truth)
