"""Batches and several outputs in the training loop and in `fuse`, beside torch's."""

import polyfuse as pf
import polyfuse.nn.criterion as own
import pytest
import torch
import torch.nn.functional as F
from polyfuse import deferred
from polyfuse.bases import series
from polyfuse.optim.classes import FUSED

from .criteria import BY_REDUCTION, CASES, KL_MEAN_WARNS
from .sides import check, launches, step

pytestmark = pytest.mark.filterwarnings(KL_MEAN_WARNS)
N, DEGREE = 9, 2
SHAPES = {
    "batch": {"batch_shape": (19,)},
    "image": {"batch_shape": (2, 3)},
    "outputs": {"outputs": 3},
    "one": {"outputs": 1},
    "series": {"basis": "chebyshev"},  # of a degree that is not expanded in powers
}


class Plain(torch.nn.Module):
    """What `Polynomial` computes, of torch alone."""

    def __init__(self, like):
        super().__init__()
        self.coefficients = torch.nn.Parameter(like.coefficients.detach().clone())
        self.outputs, self.basis = like.outputs, like.basis
        ((self.shift, self.scale),) = like.variable

    def forward(self, x):
        if self.outputs or x.ndim == 1:
            x = x.reshape(*x.shape, *(1 for _ in self.coefficients.shape[1:]))
        return series(self.basis, self.coefficients, (x - self.shift) * self.scale)


class Side:
    def __init__(self, nn, optim, dtype, shape="batch", make=None, own_x=False, optimizer="SGD",
                 target=torch.randn, **options):  # fmt: skip
        self.nn = nn
        generator = torch.Generator().manual_seed(3)
        degree = 12 if shape == "series" else DEGREE
        self.model = pf.nn.Polynomial(degree, **SHAPES[shape], domain=(-1, 3), dtype=dtype)
        p = self.model.coefficients
        with torch.no_grad():
            p.copy_(torch.randn(p.shape, generator=generator, dtype=torch.float64) / 4)
        y_shape = (N, *p.shape[1:])
        self.xs = torch.rand(y_shape if own_x else N, generator=generator, dtype=torch.float64)
        self.xs = self.xs.to(dtype)
        size = torch.Size(y_shape).numel()
        self.ys = target(size, generator=generator).to(dtype).view(y_shape)
        if nn is torch.nn:
            self.model = Plain(self.model)
        self.criterion = nn.MSELoss() if make is None else make(nn)
        options = {"lr": 0.05} | options
        self.optimizer = getattr(optim, optimizer)(self.model.parameters(), **options)

    def numbers(self):
        p = self.model.coefficients
        kept = [t for t in self.optimizer.state.get(p, {}).values() if isinstance(t, torch.Tensor)]
        return [t.detach().clone() for t in (p, p.grad, *kept) if t is not None]


def sides_of(dtype, shape="batch", make=None, **options):
    return tuple(Side(m.nn, m.optim, dtype, shape, make, **options) for m in (pf, torch))


def counted(sides, script=step):
    """Both sides agree, and after two iterations polyfuse's take one launch each."""

    def run(side, epoch):
        before = launches()
        loss = script(side)
        if side is sides[0] and epoch > 1:
            assert launches() - before == 1
        return [loss.detach()]

    check(sides, run)


@pytest.mark.parametrize("own_x", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_one_launch_an_iteration(shape, own_x, dtype, monkeypatch):
    if own_x and "outputs" in SHAPES[shape]:
        pytest.skip("outputs have one x")
    sides = sides_of(dtype, shape, own_x=own_x, momentum=0.9)
    counted(sides)
    monkeypatch.setattr(own, "objective", None)  # a warm loop does not come by there
    monkeypatch.setattr(deferred, "predict", None)
    counted(sides)


@pytest.mark.parametrize("shape", ["image", "outputs"])
@pytest.mark.parametrize(("name", "reduction"), BY_REDUCTION)
def test_every_criterion(name, reduction, shape, dtype):
    case = CASES[name]

    ways = (
        lambda nn: case.make(nn, dtype, reduction),
        lambda nn: case.make(torch.nn, dtype, reduction),
        lambda nn: case.call(dtype, reduction),
    )
    for make in ways:
        sides = sides_of(dtype, shape, make, target=case.target, lr=0.01)
        for side in sides:
            with torch.no_grad():
                side.model.coefficients[0] += 2  # rates are positive
        counted(sides)
    sides = sides_of(dtype, shape, ways[0], target=case.target, lr=0.01)
    fused = pf.fuse(sides[0].model, sides[0].criterion, sides[0].optimizer)
    counted(sides, lambda side: fused(side.xs, side.ys) if side is sides[0] else step(side))


@pytest.mark.parametrize("shape", ["batch", "one"])
@pytest.mark.parametrize("optimizer", [c.__name__ for c in FUSED])
def test_every_optimizer(optimizer, shape, dtype):
    counted(sides_of(dtype, shape, optimizer=optimizer, lr=0.01))


@pytest.mark.parametrize("own_x", [False, True])
def test_mini_batches(own_x, dtype):
    """New tensors every time, of changing length."""
    sides = sides_of(dtype, "image", own_x=own_x)

    def script(side, epoch):
        losses = []
        for first, stop in ((0, 4), (4, 9), (0, 9), (8, 9)):
            x, y = side.xs[first:stop], side.ys[first:stop].clone()
            before = launches()
            y_pred = side.model(x)
            assert y_pred.shape == y.shape
            loss = side.criterion(y_pred, y)
            side.optimizer.zero_grad()
            loss.backward()
            side.optimizer.step()
            if side is sides[0] and epoch > 0:
                assert launches() - before == 1
            losses.append(loss.detach())
        return losses

    check(sides, script)


@pytest.mark.parametrize("shape", ["batch", "outputs", "series"])
def test_what_is_looked_at_on_the_way(shape, dtype):
    def script(side, epoch):
        y_pred = side.model(side.xs)
        error = (y_pred - side.ys).abs().max().detach()
        loss = side.criterion(y_pred, side.ys)
        value = torch.tensor(loss.item(), dtype=dtype)
        side.optimizer.zero_grad()
        (loss + y_pred.square().sum() * 0.01).backward()
        torch.nn.utils.clip_grad_norm_(side.model.parameters(), 0.5)
        side.optimizer.step()
        loss = side.criterion(side.model(side.xs), side.ys)
        loss.backward(retain_graph=True)  # on top of the gradient that is there
        loss.backward()
        side.model.coefficients.grad.mul_(0.5)
        side.optimizer.step()
        with torch.no_grad():
            seen = side.criterion(side.model(side.xs), side.ys)
        return [error, value, loss.detach(), seen]

    check(sides_of(dtype, shape), script)


@pytest.mark.parametrize("shape", ["batch", "outputs", "series"])
def test_a_loss_is_that_of_the_parameters_of_then(shape, dtype):
    def script(side, epoch):
        step(side)
        kept = side.criterion(side.model(side.xs), side.ys)
        side.optimizer.step()
        value = (kept * 2).detach()
        side.optimizer.zero_grad()
        kept.backward()
        return [value, side.model.coefficients.grad]

    check(sides_of(dtype, shape), script)


RESIDUALS = {
    "mean of squares": lambda p, y: ((p - y) ** 2).mean(),
    "sum of absolute values": lambda p, y: (y - p).abs().sum(),
}
APART = {
    "expanded": lambda p, y: F.mse_loss(p, y[:1].expand_as(y)),
    "in another order": lambda p, y: F.huber_loss(p, y.T.contiguous().T),
    "some of the columns": lambda p, y: (y.repeat(1, 2)[:, : y.shape[1]] - p).abs().mean(),
}
FALLBACKS = {
    "each fit's own mean": lambda p, y: ((p - y) ** 2).mean(0).sum(),
    "none": lambda p, y: F.mse_loss(p, y, reduction="none").sum(),
    "one fit": lambda p, y: F.mse_loss(p[:, 1], y[:, 1]),
}


@pytest.mark.parametrize("shape", ["batch", "outputs"])
@pytest.mark.parametrize("name", RESIDUALS)
def test_residuals(name, shape, dtype):
    counted(sides_of(dtype, shape, lambda nn: RESIDUALS[name], lr=0.001))


@pytest.mark.parametrize("shape", ["batch", "outputs"])
@pytest.mark.parametrize("name", APART)
def test_targets_whose_numbers_lie_apart(name, shape, dtype):
    counted(sides_of(dtype, shape, lambda nn: APART[name], lr=0.001))


@pytest.mark.parametrize("shape", ["batch", "outputs"])
@pytest.mark.parametrize("name", FALLBACKS)
def test_what_is_not_fused_is_torchs(name, shape, dtype):
    sides = sides_of(dtype, shape, lambda nn: FALLBACKS[name])
    check(sides, lambda side, _: [step(side).detach()])


def test_weights_of_torch(dtype):
    w = torch.linspace(0, 2, N * 19, dtype=dtype).view(N, 19)
    for make in (
        lambda nn: lambda p, y: F.mse_loss(p, y, weight=w),
        lambda nn: lambda p, y: F.huber_loss(p, y, weight=w),
        lambda nn: nn.BCEWithLogitsLoss(weight=w),
    ):
        counted(sides_of(dtype, make=make, target=CASES["bce"].target))


@pytest.mark.parametrize("shape", ["batch", "outputs"])
@pytest.mark.parametrize("of_all", [False, True])
def test_weights_of_the_step(of_all, shape, dtype):
    sides = sides_of(dtype, shape, momentum=0.5)
    fused = pf.fuse(sides[0].model, sides[0].criterion, sides[0].optimizer)
    w = torch.linspace(0, 2, sides[0].ys.numel(), dtype=dtype).view_as(sides[0].ys)
    w = w if of_all else w[:, 0]
    mask = torch.arange(N) % 4 != 1
    counts = (w if of_all else w[:, None].expand_as(sides[0].ys)) * mask[:, None]
    sides[0].ys[1] = torch.nan  # left out

    def script(side):
        if side is sides[0]:
            both = mask[:, None].expand_as(side.ys) if of_all else mask
            return fused(side.xs, side.ys, sample_weight=w, mask=both)
        side.optimizer.zero_grad()
        loss = (counts * (side.model(side.xs) - side.ys) ** 2).sum() / counts.sum()
        loss.backward()
        side.optimizer.step()
        return loss

    counted(sides, script)


def test_long_data_is_summed_in_blocks_by_threads():
    """The same sums as of the parts, whatever the number of threads."""
    torch.manual_seed(2)
    model, plain = (pf.nn.Polynomial(1, outputs=70, dtype=torch.float64) for _ in range(2))
    x, y = torch.rand(40_000, dtype=torch.float64), torch.rand(40_000, 70, dtype=torch.float64)
    found, before = [], torch.get_num_threads()
    for threads in (1, 2):
        torch.set_num_threads(threads)
        model.coefficients.grad = None
        loss = pf.nn.MSELoss()(model(x), y)
        loss.backward()
        found.append((loss.item(), model.coefficients.grad.clone()))
    torch.set_num_threads(before)
    F.mse_loss(plain.forward(x), y).backward()
    assert found[0][0] == found[1][0] and torch.equal(found[0][1], found[1][1])
    torch.testing.assert_close(found[0][1], plain.coefficients.grad, rtol=1e-12, atol=1e-15)


def test_a_target_is_that_of_the_criterion():
    """Outputs take classes for cross entropy, and numbers for the others, one after the other."""
    classes = torch.arange(N) % 3

    def script(side, epoch):
        losses = []
        for criterion, y in ((F.cross_entropy, classes), (F.mse_loss, side.ys)) * 2:
            side.criterion, kept = criterion, side.ys
            side.ys = y
            losses.append(step(side).detach())
            side.ys = kept
        return losses

    check(sides_of(torch.float64, "outputs"), script)
    side = sides_of(torch.float64, "outputs")[0]
    module = pf.nn.MSELoss()
    for _ in range(3):
        module(side.model(side.xs), side.ys).backward()
        pf.nn.CrossEntropyLoss()(side.model(side.xs), classes).backward()
        with pytest.raises(UserWarning, match="different to the input size"):  # torch's own
            module(side.model(side.xs), classes)


def test_what_cannot_be_a_loop_of_kernels_is_torchs():
    x = torch.linspace(-1, 1, 8)
    deep = pf.nn.Polynomial(40, outputs=2)
    wide = pf.nn.Polynomial(1, batch_shape=(600_000,))
    batch = pf.nn.Polynomial(1, batch_shape=(2, 3))
    for model, xs in ((deep, x), (wide, x[:2]), (batch, x[:, None, None])):
        assert type(model(xs)) is torch.Tensor
    assert "more than 1048576 coefficients" in pf.explain(wide)


@pytest.mark.parametrize("shape", ["batch", "outputs", "series"])
def test_models_on_other_devices_are_traced_as_well(shape):
    model = pf.nn.Polynomial(12, **SHAPES[shape] | {"device": "meta"})
    assert "side by side" in pf.explain(model) or shape == "series"
    far = pf.explain(model, x=torch.ones(4))
    assert "loop over it runs as torch: the coefficients are on meta, x is on cpu" in far


@pytest.mark.parametrize("shape", ["image", "outputs"])
def test_fuse_refuses_what_fit_refuses(shape):
    side = sides_of(torch.float64, shape)[0]
    fused = pf.fuse(side.model, side.criterion, side.optimizer)
    before = side.model.coefficients.detach().clone()
    for change, message in (
        ({"y": side.ys[:4]}, "x: expected shape"),
        ({"y": side.ys.flatten()}, "y: expected shape"),
        ({"sample_weight": side.xs[:3]}, "sample_weight: expected the shape"),
        ({"sample_weight": -side.xs.abs() - 1}, "sample_weight: expected finite numbers >= 0"),
        ({"sigma": 0 * side.xs}, "sigma: expected finite standard deviations"),
    ):
        arguments = {"x": side.xs, "y": side.ys} | change
        with pytest.raises(ValueError, match=message):
            fused(arguments.pop("x"), arguments.pop("y"), **arguments)
    with pytest.raises(ValueError, match="criterion: NLLLoss is not fused"):
        pf.fuse(side.model, torch.nn.NLLLoss(), side.optimizer)(side.xs, side.ys)
    with pytest.raises(ValueError, match="y: expected counts >= 0"):
        pf.fuse(side.model, pf.nn.PoissonNLLLoss(), side.optimizer)(side.xs, side.ys - 9)
    assert torch.equal(side.model.coefficients, before)


def test_fuse_takes_views():
    """Samples last, as `movedim` hands them over."""
    sides = sides_of(torch.float64, "image")
    sides[0].ys = sides[0].ys.movedim(0, -1).contiguous().movedim(-1, 0)
    fused = pf.fuse(sides[0].model, sides[0].criterion, sides[0].optimizer)
    counted(sides, lambda side: fused(side.xs, side.ys) if side is sides[0] else step(side))
