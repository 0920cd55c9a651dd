"""Models in a basis of functions, against loops and solutions of plain torch."""

import copy
import pickle

import polyfuse as pf
import polyfuse.nn as nn
import polyfuse.optim as optim
import pytest
import torch

BASES = {
    "waves": [torch.ones_like, torch.sin, torch.cos, torch.exp],
    "no constant": [torch.tanh, torch.square],
    "polynomials": [lambda x: x**2, lambda x: (x - 1) ** 3],
}
OPTIMIZERS = {
    "sgd": lambda p: optim.SGD(p, lr=0.02, momentum=0.5),
    "adam": lambda p: optim.Adam(p, lr=0.02),
}


def make(name, n=37):
    generator = torch.Generator().manual_seed(3)
    x = 2 * torch.rand(n, generator=generator, dtype=torch.float64) - 1
    y = torch.randn(n, generator=generator, dtype=torch.float64)
    return x, y, *(nn.Polynomial(basis=BASES[name], dtype=torch.float64) for _ in range(2))


@pytest.mark.parametrize("criterion", [nn.MSELoss(), nn.HuberLoss(delta=0.3)], ids=["mse", "huber"])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("name", BASES)
def test_fit_is_the_loop(name, optimizer, criterion):
    x, y, fitted, looped = make(name)
    optimizers = [OPTIMIZERS[optimizer](m.parameters()) for m in (fitted, looped)]
    engines = ["auto", "stream"]
    if type(criterion) is nn.MSELoss:
        engines += ["moments", "closed_form"][: 1 + (optimizer == "sgd")]
    for engine in engines:
        pf.fit(fitted, criterion, optimizers[0], x, y, epochs=9, engine=engine)
        for _ in range(9):
            loss = criterion(looped.forward(x), y)
            optimizers[1].zero_grad()
            loss.backward()
            optimizers[1].step()
        torch.testing.assert_close(
            fitted.coefficients, looped.coefficients, rtol=1e-9, atol=1e-11, msg=engine
        )


@pytest.mark.parametrize("name", BASES)
def test_solve_finds_the_optimum(name):
    x, y, model, _ = make(name)
    x[3] = y[5] = torch.nan
    w = torch.linspace(0, 1, len(x), dtype=torch.float64)
    with pytest.raises(ValueError, match="finite"):
        pf.solve(model, x, y)
    found = pf.solve(model, x, y, weight=w, nan_policy="omit")
    keep = x.isfinite() & y.isfinite()
    v, root = torch.stack([f(x[keep]) for f in BASES[name]], 1), w[keep].sqrt()
    truth = torch.linalg.lstsq(v * root[:, None], y[keep] * root).solution
    torch.testing.assert_close(model.coefficients, truth, rtol=1e-10, atol=1e-12)
    assert len(found.statistics.names) == len(truth)


def test_a_loop_of_functions_is_torchs_unless_they_are_polynomials():
    x, y, waves, other = make("waves")
    assert type(waves(x)) is torch.Tensor and waves(x.reshape(1, -1)).shape == (1, 37)
    x, y, powers, other = make("polynomials")
    optimizers = [OPTIMIZERS["sgd"](m.parameters()) for m in (powers, other)]
    launches = pf._C.launches()
    for call, optimizer in zip((powers, other.forward), optimizers, strict=True):
        for _ in range(10):
            loss = nn.MSELoss()(call(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    assert pf._C.launches() - launches == 10
    torch.testing.assert_close(powers.coefficients, other.coefficients, rtol=1e-11, atol=1e-13)


def test_it_is_copied_pickled_and_named():
    model = nn.Polynomial(basis=BASES["waves"])
    assert str(model) == "Polynomial(basis=[ones_like, sin, cos, exp])"
    x = torch.linspace(0, 1, 5)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(other(x), model(x)) and other.functions == model.functions
    assert list(model.state_dict()) == ["coefficients"]


def test_bad_functions_are_named():
    for bad in ([], [torch.sin, 3], torch.sin):
        with pytest.raises(ValueError, match="basis: expected a name or a list of functions"):
            nn.Polynomial(basis=bad)
    with pytest.raises(ValueError, match="degree, variables"):
        nn.Polynomial(2, basis=[torch.sin])
    with pytest.raises(ValueError, match="degree: expected an int >= 0, got None"):
        nn.Polynomial()
    x = torch.linspace(0, 1, 5)
    model = nn.Polynomial(basis=[torch.sin, torch.sum])
    optimizer = optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(ValueError, match=r"sum, function 1, .*\(5,\), got torch.float32 .*\(\)"):
        pf.fit(model, nn.MSELoss(), optimizer, x, x, epochs=1)
    with pytest.raises(ValueError, match="to_numpy"):
        model.to_numpy()
    many = nn.Polynomial(basis=[torch.sin] * 65)
    with pytest.raises(ValueError, match="more than 64 columns"):
        pf.fit(many, nn.MSELoss(), optim.SGD(many.parameters(), lr=0.1), x, x, epochs=1)
