"""What explain says is what fit does."""

import polyfuse as pf
import pytest
import torch
from polyfuse import workload

from .sides import Side


def parts(**options):
    side = Side(pf.nn, pf.optim, torch.float64, **options)
    return side.model, side.criterion, side.optimizer, side.xs, side.ys


@pytest.mark.parametrize("epochs", [1, 2, 1000, 10**9])
@pytest.mark.parametrize("degree", [2, 30])
def test_the_engine_it_tells_is_the_one_that_runs(degree, epochs):
    model = pf.nn.Polynomial(degree, dtype=torch.float64)
    optimizer = pf.optim.SGD(model.parameters(), lr=1e-3)
    x = torch.linspace(-1, 1, 50, dtype=torch.float64)
    text = pf.explain(model, pf.nn.MSELoss(), optimizer, x, x**2, epochs=epochs)
    told = [line.split()[1].rstrip(":") for line in text.splitlines() if "chosen by auto" in line]
    if epochs == 10**9:  # the choice alone: moments would take these one by one
        assert told == ["closed_form"]
        return
    result = pf.fit(model, pf.nn.MSELoss(), optimizer, x, x**2, epochs=epochs)
    assert told == [result.engine]


def test_many_parameters_and_few_epochs_take_moments():
    model = pf.nn.Polynomial(30, dtype=torch.float64)
    optimizer = pf.optim.SGD(model.parameters(), lr=1e-3)
    x = torch.linspace(-1, 1, 50, dtype=torch.float64)
    assert pf.fit(model, pf.nn.MSELoss(), optimizer, x, x, epochs=10).engine == "moments"
    assert pf.fit(model, pf.nn.MSELoss(), optimizer, x, x, epochs=10**6).engine == "closed_form"


def test_it_says_what_fit_refuses():
    model, criterion, optimizer, xs, ys = parts()
    model.a.register_hook(lambda g: g)
    text = pf.explain(model, criterion, optimizer, xs, ys)
    assert "fit: refuses, model: its parameters have gradient hooks" in text
    with pytest.raises(ValueError, match="gradient hooks"):
        pf.fit(model, criterion, optimizer, xs, ys, epochs=1)


def test_a_model_must_be_a_module():
    with pytest.raises(TypeError, match=r"model: expected a torch.nn.Module, got int"):
        pf.explain(3)


def test_parts_that_are_not_there_are_not_spoken_of():
    text = pf.explain(workload.make_model(torch.nn))
    assert text.startswith("model: fused, degree 2") and "criterion" not in text


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (
            {"degree": 2, "batch_shape": (4, 5)},
            "20 fits of a batch side by side, powers of degree 2",
        ),
        ({"degree": 1, "outputs": 3}, "3 outputs side by side, powers of degree 1"),
        ({"degree": 12, "basis": "chebyshev"}, "chebyshev series of degree 12"),
    ],
)
def test_what_is_fused_side_by_side(options, told):
    model = pf.nn.Polynomial(**options)
    text = pf.explain(model, pf.nn.HuberLoss(), pf.optim.Adam(model.parameters()))
    assert text.splitlines() == [
        f"model: fused, {told}",
        "criterion: HuberLoss, fused",
        "optimizer: Adam, fused",
    ]
    fused = pf.explain(model, pf.nn.CrossEntropyLoss()).endswith("CrossEntropyLoss, fused")
    assert fused == ("outputs" in options)


def test_several_variables_and_their_loop():
    x = torch.rand(20, 2, dtype=torch.float64)
    model = pf.nn.Polynomial(1, variables=2, dtype=torch.float64)
    optimizer = pf.optim.SGD(model.parameters(), lr=0.1)
    text = pf.explain(model, pf.nn.MSELoss(), optimizer, x, x[:, 0])
    assert "p0 + p1*x1 + p2*x2" in text and "backend: cpu" in text
