"""Cross entropy of polynomial logits in the training loop and in `fuse`, beside torch's."""

import copy
import pickle

import polyfuse as pf
import polyfuse.nn.criterion as own
import pytest
import torch
import torch.nn.functional as F
from polyfuse import deferred
from polyfuse.bases import series
from polyfuse.optim.classes import FUSED

from .sides import check, launches, step

N, CLASSES, DEGREE = 9, 4, 2
OPTIONS = {
    "plain": {},
    "sum": {"reduction": "sum"},
    "weight": {"weight": [1.0, 0.2, 3.0, 0.5]},
    "ignore": {"ignore_index": 2},
    "smoothing": {"label_smoothing": 0.2},
    "all": {"weight": [1.0, 0.2, 3.0, 0.5], "ignore_index": 1, "label_smoothing": 0.1},
}
TARGETS = ("classes", "probabilities")


class Logits(torch.nn.Module):
    """What `Polynomial(outputs=C)` computes, of torch alone."""

    def __init__(self, dtype, basis="monomial"):
        super().__init__()
        self.basis = basis
        self.coefficients = torch.nn.Parameter(torch.zeros(DEGREE + 1, CLASSES, dtype=dtype))

    def forward(self, x):
        return series(self.basis, self.coefficients, x.unsqueeze(-1))


class Side:
    def __init__(self, nn, optim, dtype, targets, make, optimizer="SGD", **options):
        self.nn = nn
        generator = torch.Generator().manual_seed(3)
        self.xs = torch.linspace(-1, 1, N, dtype=dtype)
        self.ys = torch.randint(CLASSES, (N,), generator=generator)
        if targets == "probabilities":
            self.ys = torch.rand(N, CLASSES, generator=generator, dtype=dtype).softmax(1)
        self.model = Logits(dtype)
        if nn is pf.nn:
            self.model = nn.Polynomial(DEGREE, outputs=CLASSES, dtype=dtype)
        with torch.no_grad():
            for i, row in enumerate(self.model.coefficients):
                row.copy_(torch.sin(torch.arange(4.0) + 4 * i))
        self.criterion = make(nn)
        options = {"lr": 0.05} | options
        self.optimizer = getattr(optim, optimizer)(self.model.parameters(), **options)

    def numbers(self):
        p = self.model.coefficients
        kept = [t for t in self.optimizer.state.get(p, {}).values() if isinstance(t, torch.Tensor)]
        return [t.detach().clone() for t in (p, p.grad, *kept) if t is not None]


def criterion(name, targets, dtype, nn=None):
    options = dict(OPTIONS[name])
    if "weight" in options:
        options["weight"] = torch.tensor(options["weight"], dtype=dtype)
    if targets == "probabilities":
        options.pop("ignore_index", None)
    if nn is None:
        return lambda p, y: F.cross_entropy(p, y, **options)
    return nn.CrossEntropyLoss(**options)


def sides_of(dtype, targets="classes", make=lambda nn: nn.CrossEntropyLoss(), **options):
    return (
        Side(pf.nn, pf.optim, dtype, targets, make, **options),
        Side(torch.nn, torch.optim, dtype, targets, make, **options),
    )


def counted(sides, script=step):
    """Both sides agree, and after two iterations polyfuse's take one launch each."""

    def run(side, epoch):
        before = launches()
        loss = script(side)
        if side is sides[0] and epoch > 1:
            assert launches() - before == 1
        return [loss.detach()]

    check(sides, run)


@pytest.mark.parametrize("targets", TARGETS)
@pytest.mark.parametrize("name", OPTIONS)
def test_one_launch_an_iteration(name, targets, dtype, monkeypatch):
    sides = sides_of(dtype, targets, lambda nn: criterion(name, targets, dtype, nn), momentum=0.9)
    counted(sides)
    monkeypatch.setattr(own, "objective", None)  # a warm loop does not come by there
    monkeypatch.setattr(deferred, "predict", None)
    counted(sides)


@pytest.mark.parametrize("targets", TARGETS)
@pytest.mark.parametrize("name", OPTIONS)
def test_functions_torchs_own_modules_and_fuse(name, targets, dtype):
    counted(sides_of(dtype, targets, lambda nn: criterion(name, targets, dtype)))
    sides = sides_of(dtype, targets, lambda nn: criterion(name, targets, dtype, torch.nn))
    counted(sides)
    fused = pf.fuse(sides[0].model, sides[0].criterion, sides[0].optimizer)
    counted(sides, lambda side: fused(side.xs, side.ys) if side is sides[0] else step(side))


@pytest.mark.parametrize("optimizer", [c.__name__ for c in FUSED])
def test_every_optimizer(optimizer):
    counted(sides_of(torch.float64, optimizer=optimizer, lr=0.01))


def test_mini_batches(dtype):
    """New tensors every time, of changing length, and strided ones."""
    for targets in TARGETS:
        sides = sides_of(dtype, targets)

        def script(side, epoch, sides=sides):
            losses = []
            for first, stop, every in ((0, 4, 1), (4, 9, 1), (0, 9, 2), (8, 9, 1)):
                x, y = side.xs[first:stop:every], side.ys[first:stop:every].clone()
                if y.ndim == 1:
                    y = y.repeat_interleave(2)[::2]
                before = launches()
                y_pred = side.model(x)
                assert y_pred.shape == (len(x), CLASSES)
                loss = side.criterion(y_pred, y)
                side.optimizer.zero_grad()
                loss.backward()
                side.optimizer.step()
                if side is sides[0] and epoch > 0:
                    assert launches() - before == 1
                losses.append(loss.detach())
            return losses

        check(sides, script)


def test_what_is_looked_at_on_the_way(dtype):
    def script(side, epoch):
        y_pred = side.model(side.xs)
        accuracy = (y_pred.argmax(1) == side.ys).double().mean()
        loss = side.criterion(y_pred, side.ys)
        value = torch.tensor(loss.item(), dtype=dtype)
        side.optimizer.zero_grad()
        (loss + y_pred.square().sum() * 0.01).backward()
        torch.nn.utils.clip_grad_norm_(side.model.parameters(), 0.5)
        side.optimizer.step()
        loss = side.criterion(side.model(side.xs), side.ys)
        loss.backward(retain_graph=True)  # on top of the gradient that is there
        loss.backward()
        kept = side.criterion(side.model(side.xs), side.ys)
        side.optimizer.step()
        with torch.no_grad():
            seen = side.criterion(side.model(side.xs), side.ys)
        values = [accuracy, value, loss.detach(), seen, (kept * 2).detach()]
        side.optimizer.zero_grad()
        kept.backward()  # of the parameters of before
        return [*values, side.model.coefficients.grad]

    check(sides_of(dtype), script)


def test_a_prediction_of_parameters_that_have_changed_since(dtype):
    def script(side, epoch):
        y_pred = side.model(side.xs)
        with torch.no_grad():
            side.model.coefficients.mul_(0.9)
        side.optimizer.zero_grad()
        (y_pred * y_pred).sum().backward()
        return [y_pred.detach()]

    check(sides_of(dtype), script)


@pytest.mark.parametrize("basis", ["legendre", "chebyshev"])
def test_bases_and_a_model_within_a_model(basis):
    sides = sides_of(torch.float64)
    sides[1].model.basis = basis
    inner = pf.nn.Polynomial(
        DEGREE, outputs=CLASSES, basis=basis, domain=(-1, 1), dtype=torch.float64
    )
    inner.load_state_dict(sides[1].model.state_dict())
    sides[0].model = inner
    sides[0].optimizer = pf.optim.SGD(inner.parameters(), lr=0.05)
    outer = torch.nn.Sequential(inner)

    def script(side):
        side.optimizer.zero_grad()
        loss = side.criterion((outer if side is sides[0] else side.model)(side.xs), side.ys)
        loss.backward()
        side.optimizer.step()
        return loss

    counted(sides, script)


def test_options_that_change_are_seen(dtype):
    weight = torch.tensor([1.0, 0.2, 3.0, 0.5], dtype=dtype)
    sides = sides_of(dtype, make=lambda nn: nn.CrossEntropyLoss(weight=weight.clone()))

    def script(side, epoch):
        losses = [step(side).detach()]
        side.criterion.weight.mul_(1.5)
        side.criterion.label_smoothing = 0.1 * epoch
        losses.append(step(side).detach())
        side.criterion.reduction = ("mean", "sum")[epoch % 2]
        side.criterion.ignore_index = epoch
        return [*losses, step(side).detach()]

    check(sides, script)


FALLBACKS = {
    "none": lambda p, y: F.cross_entropy(p, y, reduction="none").sum(),
    "weight that learns": lambda p, y: F.cross_entropy(p, y, weight=p.detach().exp()[0] + 0),
    "squared error": lambda p, y: F.mse_loss(p, F.one_hot(y, CLASSES).to(p.dtype)),
    "residuals": lambda p, y: (p - F.one_hot(y, CLASSES).to(p.dtype)).square().mean(),
    "two steps": lambda p, y: F.nll_loss(F.log_softmax(p, 1), y),
    "bytes": lambda p, y: F.cross_entropy(p, y.byte()),
    "of one class": lambda p, y: F.binary_cross_entropy_with_logits(p[:, 0], (y == 0).to(p.dtype)),
}


@pytest.mark.parametrize("name", FALLBACKS)
def test_what_is_not_fused_is_torchs(name, dtype):
    sides = sides_of(dtype, make=lambda nn: FALLBACKS[name])
    check(sides, lambda side, _: [step(side).detach()])


def test_x_of_two_dimensions_is_torchs():
    x, y = torch.linspace(-1, 1, 8).view(2, 4), torch.tensor([[0, 1, 2, 0], [3, 3, 1, 2]])
    model, plain = pf.nn.Polynomial(DEGREE, outputs=CLASSES), Logits(torch.float32)
    for one in (model, plain):
        with torch.no_grad():
            one.coefficients.copy_(torch.eye(3, 4))
        pf.nn.CrossEntropyLoss()(one(x).movedim(-1, 1), y).backward()
    torch.testing.assert_close(model.coefficients.grad, plain.coefficients.grad)


@pytest.mark.parametrize("ignored", [-100, 2, 9])
def test_the_mean_of_nothing_is_torchs(ignored, dtype):
    def script(side, epoch):
        loss = side.criterion(side.model(side.xs), torch.full_like(side.ys, ignored))
        side.optimizer.zero_grad()
        loss.backward()
        return [loss.detach()]

    check(sides_of(dtype, make=lambda nn: nn.CrossEntropyLoss(ignore_index=ignored)), script)


@pytest.mark.parametrize("bad", [4, -1])
def test_a_class_out_of_range_changes_nothing(bad):
    side = sides_of(torch.float64, momentum=0.9)[0]
    for _ in range(3):
        step(side)
    before = side.numbers()
    far = side.ys.clone()
    far[5] = bad
    with pytest.raises(IndexError, match="out of bounds"):  # torch's, of data that is looked at
        F.cross_entropy(side.model(side.xs), far)
    with pytest.raises(ValueError, match=f"y: expected classes from 0 to 3, got {bad}"):
        pf.fuse(side.model, side.criterion, side.optimizer)(side.xs, far)
    message = f"target: expected classes from 0 to 3, got {bad}"
    with pytest.raises(IndexError, match=message):
        side.ys, kept = far, side.ys
        step(side)
    side.ys = kept
    side.ys[2] = bad
    with pytest.raises(IndexError, match=message):
        side.criterion(side.model(side.xs), side.ys).item()
    for found, truth in zip(side.numbers()[:1], before, strict=False):
        assert torch.equal(found, truth)


def test_probabilities_with_a_class_to_be_ignored_are_refused_as_torch_does():
    side = sides_of(torch.float64, make=lambda nn: nn.CrossEntropyLoss(ignore_index=2))[0]
    shares = torch.full((N, CLASSES), 0.25, dtype=torch.float64)
    for _ in range(3):
        step(side)
        F.cross_entropy(side.model(side.xs), shares).backward()  # shows the loop such targets
        with pytest.raises(RuntimeError, match="ignore_index"):
            side.criterion(side.model(side.xs), shares)


def test_fuse_refuses_what_fit_refuses():
    side = sides_of(torch.float64)[0]
    fused = pf.fuse(side.model, side.criterion, side.optimizer)
    with pytest.raises(ValueError, match="sample_weight: expected the shape of x"):
        fused(side.xs, side.ys, sample_weight=side.xs[1:].abs())
    with pytest.raises(TypeError, match="y: expected classes of int64"):
        fused(side.xs, side.ys.int())
    with pytest.raises(TypeError, match="y: expected dtype float32 or float64"):
        pf.fuse(side.model, pf.nn.MSELoss(), side.optimizer)(side.xs, side.ys)


@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")
def test_what_torch_does_to_models():
    side = sides_of(torch.float64)[0]
    step(side)
    model, x, y, loss = side.model, side.xs, side.ys, side.criterion

    def of(p):
        return loss(torch.func.functional_call(model, {"coefficients": p}, (x,)), y)

    def truth(p):
        return F.cross_entropy(series("monomial", p, x[:, None]), y)

    p = model.coefficients.detach().clone().requires_grad_()
    for transform in (torch.func.grad, torch.func.jacrev, torch.func.hessian):
        torch.testing.assert_close(transform(of)(p.detach()), transform(truth)(p.detach()))
    assert torch.autograd.gradcheck(of, p) and torch.autograd.gradgradcheck(of, p)
    compiled = torch.compile(lambda: loss(model(x), y), fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(), truth(p))
    torch.compiler.reset()
    torch.testing.assert_close(torch.export.export(model, (x,)).module()(x), model(x).detach())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(loss(model(x), y), truth(p))
    again, weighted = pickle.loads(
        pickle.dumps((copy.deepcopy(model), pf.nn.CrossEntropyLoss(weight=torch.ones(CLASSES))))
    )
    torch.testing.assert_close(weighted(again(x).float(), y).double(), truth(p))
