"""The training loop with every criterion, in every way to write it, beside torch's."""

import polyfuse as pf
import polyfuse.nn.criterion as own
import pytest
import torch
import torch.nn.functional as F
from polyfuse import deferred
from polyfuse.nn.criterion import CRITERIA

from .criteria import BY_REDUCTION, CASES, KL_MEAN_WARNS, data
from .sides import Side, check, launches, step
from .tolerance import assert_like_torch

pytestmark = [
    pytest.mark.filterwarnings(KL_MEAN_WARNS),
    pytest.mark.filterwarnings("ignore:Using a target size:UserWarning"),
]


def sides_of(case, dtype, make, **options):
    """make(nn) -> criterion, on both libraries, with targets of the case's domain."""
    sides = Side(pf.nn, pf.optim, dtype, **options), Side(torch.nn, torch.optim, dtype, **options)
    for side in sides:
        side.xs = side.xs / 9
        side.ys = data(case, 9, dtype, seed=3)[1]
        side.criterion = make(side.nn)
    return sides


def counted(sides, script=step):
    """Both sides agree, and after two iterations polyfuse's take one launch each."""

    def run(side, epoch):
        before = launches()
        loss = script(side)
        if side is sides[0] and epoch > 1:
            assert launches() - before == 1
        return [loss.detach()]

    check(sides, run)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize(("name", "reduction"), BY_REDUCTION)
def test_one_launch_an_iteration(name, reduction, momentum, dtype, monkeypatch):
    case = CASES[name]
    sides = sides_of(case, dtype, lambda nn: case.make(nn, dtype, reduction), momentum=momentum)
    counted(sides)
    monkeypatch.setattr(own, "objective", None)  # a warm loop does not come by there
    monkeypatch.setattr(deferred, "predict", None)
    counted(sides)


@pytest.mark.parametrize(("name", "reduction"), BY_REDUCTION)
def test_functions_and_torchs_own_modules(name, reduction, dtype):
    case = CASES[name]
    for make in (
        lambda nn: case.call(dtype, reduction),
        lambda nn: case.make(torch.nn, dtype, reduction),
    ):
        counted(sides_of(case, dtype, make))


@pytest.mark.parametrize(("name", "reduction"), BY_REDUCTION)
def test_fuse(name, reduction, dtype):
    case = CASES[name]
    sides = sides_of(case, dtype, lambda nn: case.make(nn, dtype, reduction))
    for side in sides:
        if name.startswith("kl"):
            side.xs, side.ys = side.xs[:8].reshape(4, 2), side.ys[:8].reshape(4, 2)
    fused = pf.fuse(sides[0].model, sides[0].criterion, sides[0].optimizer)
    counted(sides, lambda side: fused(side.xs, side.ys) if side is sides[0] else step(side))


@pytest.mark.parametrize(
    "criterion",
    [
        lambda p, y: (p - y).abs().mean(),
        lambda p, y: abs(y - p).sum(),
        lambda p, y: torch.mean(torch.abs(p - y)),
        lambda p, y: torch.absolute(torch.sub(y, p)).mean(),
        lambda p, y: F.huber_loss(input=p, target=y, delta=2),
        lambda p, y: F.smooth_l1_loss(p, target=y),
        lambda p, y: F.l1_loss(p, y, reduction="sum"),
    ],
)
def test_other_ways_to_write_it(criterion, dtype):
    counted(sides_of(CASES["l1"], dtype, lambda nn: criterion))


@pytest.mark.parametrize("variance", [0.25, torch.tensor(3.0), torch.tensor([1e-9])])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_gaussian_with_one_variance(variance, reduction, dtype):
    var = variance if isinstance(variance, float) else variance.to(dtype)
    for make in (
        lambda nn: nn.GaussianNLLLoss(full=True, eps=1e-2, reduction=reduction),
        lambda nn: lambda p, y, v: F.gaussian_nll_loss(p, y, var=v, eps=1e-2, reduction=reduction),
    ):
        sides = sides_of(CASES["l1"], dtype, make)
        for side in sides:
            side.criterion = lambda p, y, c=side.criterion: c(p, y, var)
        counted(sides)


@pytest.mark.parametrize(
    ("outputs", "variance"),
    [(None, 1), (2, torch.tensor(1.0)), (2, torch.ones(1)), (2, torch.ones(1, 1))],
)
def test_a_variance_that_torch_refuses_is_refused(outputs, variance):
    model = pf.nn.Polynomial(1, outputs=outputs)
    x = torch.linspace(-1, 1, 9)
    y, loss = torch.zeros_like(model.forward(x)), pf.nn.GaussianNLLLoss()
    loss(model(x), y, 1.0).backward()
    with pytest.raises((TypeError, ValueError)) as torchs:
        loss(model.forward(x), y, variance)
    with pytest.raises(torchs.type):
        loss(model(x), y, variance)


def weights(dtype):
    return torch.linspace(0.5, 2.0, 9, dtype=dtype)


WEIGHTED = {
    "bce": lambda nn, w, r: nn.BCEWithLogitsLoss(
        weight=w, pos_weight=w.new_tensor([3.0]), reduction=r
    ),
    "bce function": lambda nn, w, r: (
        lambda p, y: F.binary_cross_entropy_with_logits(p, y, w, reduction=r)
    ),
    "l1": lambda nn, w, r: lambda p, y: F.l1_loss(p, y, weight=w, reduction=r),
    "mse": lambda nn, w, r: lambda p, y: F.mse_loss(p, y, weight=w, reduction=r),
    "huber": lambda nn, w, r: lambda p, y: F.huber_loss(p, y, weight=w, reduction=r, delta=0.3),
}


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("name", WEIGHTED)
def test_a_weight_of_every_sample(name, reduction, dtype):
    sides = sides_of(CASES["bce"], dtype, lambda nn: WEIGHTED[name](nn, weights(dtype), reduction))
    pf.static(sides[0].xs, sides[0].ys)  # whose moments are those of other weights
    counted(sides)
    strided = weights(dtype).repeat_interleave(2)[::2]
    counted(sides_of(CASES["bce"], dtype, lambda nn: WEIGHTED[name](nn, strided, reduction)))


def test_a_weight_that_changes_is_seen(dtype):
    sides = sides_of(CASES["bce"], dtype, lambda nn: nn.BCEWithLogitsLoss(weight=weights(dtype)))

    def script(side, epoch):
        losses = [step(side).detach()]
        side.criterion.weight.mul_(1.5)
        losses.append((step(side) * 2).detach())
        if epoch == 3:
            side.criterion.weight = torch.ones(1, dtype=dtype)
        loss = side.criterion(side.model(side.xs), side.ys)
        losses.append((loss + 1).detach())
        return losses

    check(sides, script)
    side = sides_of(CASES["bce"], dtype, lambda nn: nn.BCEWithLogitsLoss(weight=weights(dtype)))[0]
    for _ in range(3):
        loss = side.criterion(side.model(side.xs), side.ys)
        side.criterion.weight.mul_(2)
        with pytest.raises(RuntimeError, match="modified by an inplace operation: the weight"):
            loss.backward()


def test_a_weight_of_other_samples_is_refused_at_once(dtype):
    for side in sides_of(CASES["bce"], dtype, lambda nn: nn.BCEWithLogitsLoss(weights(dtype))):
        for _ in range(3):
            step(side)
            step(side)
            y_pred, y = side.model(side.xs[:5]), side.ys[:5].clone()
            with pytest.raises(RuntimeError, match="size"):
                side.criterion(y_pred, y)


FALLBACKS = {
    "none": lambda nn, t: lambda p, y: nn.L1Loss(reduction="none")(p, y).sum(),
    "weighted positives": lambda nn, t: (
        lambda p, y: F.binary_cross_entropy_with_logits(p, y, pos_weight=weights(t))
    ),
    "weighed by the prediction": lambda nn, t: lambda p, y: F.mse_loss(p, y, weight=p.detach()),
    "weight that learns": lambda nn, t: (
        lambda p, y: F.l1_loss(p, y, weight=weights(t).requires_grad_())
    ),
    "legacy": lambda nn, t: lambda p, y: F.l1_loss(p, y, size_average=False, reduce=False).sum(),
    "broadcast": lambda nn, t: lambda p, y: nn.SmoothL1Loss()(p, y[:1]),
    "target with a gradient": lambda nn, t: (
        lambda p, y: nn.HuberLoss()(p, y.clone().requires_grad_())
    ),
    "swapped": lambda nn, t: lambda p, y: nn.KLDivLoss(reduction="sum")(y, p),
    "variances": lambda nn, t: lambda p, y: nn.GaussianNLLLoss()(p, y, weights(t)),
    "abs of a power": lambda nn, t: lambda p, y: ((p - y) ** 2).abs().mean(),
    "power of an abs": lambda nn, t: lambda p, y: ((p - y).abs() ** 2).mean(),
    "abs along": lambda nn, t: lambda p, y: (p - y).abs().mean(dim=0),
    "abs of the prediction": lambda nn, t: lambda p, y: p.abs().mean() + (p - y).abs().max(),
    "subclass": lambda nn, t: type(
        "Half", (nn.L1Loss,), {"forward": lambda self, p, y: F.l1_loss(p, y) / 2}
    )(),
}


@pytest.mark.filterwarnings("ignore:size_average and reduce:UserWarning")
@pytest.mark.parametrize("name", FALLBACKS)
def test_what_is_not_fused_is_torchs(name, dtype):
    sides = sides_of(CASES["bce"], dtype, lambda nn: FALLBACKS[name](nn, dtype))
    check(sides, lambda side, _: [step(side).detach()])


def test_options_that_change_are_seen(dtype):
    sides = sides_of(CASES["bce"], dtype, lambda nn: nn.SmoothL1Loss())

    def script(side, epoch):
        losses = [step(side).detach()]
        side.criterion.beta = 0.1 * epoch
        losses.append(step(side).detach())
        side.criterion.reduction = ("mean", "sum")[epoch % 2]
        return [*losses, step(side).detach()]

    check(sides, script)
    weight = {side: torch.tensor([2.0], dtype=dtype) for side in sides}
    for side in sides:
        side.criterion = side.nn.BCEWithLogitsLoss(pos_weight=weight[side])

    def reweighted(side, epoch):
        losses = [step(side).detach(), step(side).detach()]
        weight[side].add_(1)  # the module's own buffer, in place
        return [*losses, step(side).detach()]

    check(sides, reweighted)


def test_criteria_take_turns(dtype):
    sides = sides_of(CASES["bce"], dtype, lambda nn: None)
    for side in sides:
        side.criteria = [CASES[name].make(side.nn, dtype) for name in ("l1", "bce", "soft_margin")]
        side.criteria.append(side.nn.MSELoss())

    def script(side, epoch):
        losses = []
        for criterion in side.criteria * 2:
            side.criterion = criterion
            losses.append(step(side).detach())
        return losses

    check(sides, script)


def test_rows_of_other_sizes(dtype):
    """batchmean, with data whose number of rows changes from step to step."""
    sides = sides_of(CASES["kl"], dtype, lambda nn: nn.KLDivLoss(reduction="batchmean"))

    def script(side, epoch):
        losses, xs, ys = [], side.xs, side.ys
        for shape in ((8,), (4, 2), (2, 4), (8, 1), ()):
            n = 8 if shape else 1
            side.xs, side.ys = (t[:n].clone().reshape(shape) for t in (xs, ys))
            losses.append(step(side).detach())
        side.xs, side.ys = xs, ys
        return losses

    check(sides, script)


def test_static_data_is_read_by_what_needs_it(dtype):
    sides = sides_of(CASES["l1"], dtype, lambda nn: None)
    pf.static(sides[0].xs, sides[0].ys)

    def script(side, epoch):
        losses = []
        for name in ("L1Loss", "MSELoss", "HuberLoss"):
            side.criterion = getattr(side.nn, name)()
            losses += [step(side).detach() for _ in range(3)]
        return losses

    check(sides, script)


def test_a_loss_looked_at_and_differentiated_by_torch(dtype):
    for name in ("l1", "huber", "bce-weighted", "poisson-full", "kl"):
        case = CASES[name]
        sides = sides_of(case, dtype, lambda nn, case=case: case.make(nn, dtype))

        def script(side, epoch):
            y_pred = side.model(side.xs)
            loss = side.criterion(y_pred, side.ys)
            seen = [loss.detach(), (loss * 2).detach()]
            (loss + y_pred.sum() * 0.01).backward(retain_graph=True)
            side.optimizer.step()
            side.optimizer.zero_grad()
            loss.backward()  # of the parameters of before
            return [*seen, loss.item()]

        check(sides, script)


def test_residuals_are_what_they_are(dtype):
    sides = sides_of(CASES["l1"], dtype, lambda nn: lambda p, y: (p - y).abs().mean())

    def script(side, epoch):
        r = side.ys - side.model(side.xs)
        values = [r.detach().sum(), r.abs().detach().sum(), (r.abs() * 2).max().detach()]
        return [*values, step(side).detach()]

    check(sides, script)


def test_kl_div_warns_of_mean_as_torch_does():
    side = sides_of(CASES["kl"], torch.float32, lambda nn: nn.KLDivLoss())[0]
    with pytest.warns(UserWarning, match="batchmean"):
        step(side)
    with pytest.warns(UserWarning, match="batchmean"):
        F.kl_div(side.model(side.xs), side.ys)


def samples():
    modules = pytest.importorskip("torch.testing._internal.common_modules")
    for info in modules.module_db:
        for ours in CRITERIA:
            if info.module_cls is ours.__mro__[2]:
                yield ours, info


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_torchs_own_samples(dtype):
    tested = set()
    for ours, info in samples():
        for inputs in (info.module_inputs_func, info.module_error_inputs_func):
            for sample in inputs(info, "cpu", dtype, False, True) if inputs else ():
                errors = sample if hasattr(sample, "error_on") else None
                sample = errors.module_error_input if errors else sample
                given, call = sample.constructor_input, sample.forward_input

                def run(cls, given=given, call=call):
                    return cls(*given.args, **given.kwargs)(*call.args, **call.kwargs)

                if errors:
                    with pytest.raises(errors.error_type, match=errors.error_regex):
                        run(ours)
                    continue
                truth = run(info.module_cls)
                torch.testing.assert_close(run(ours), truth, rtol=0, atol=0, equal_nan=True)
                through_a_model(ours, info.module_cls, given, call, dtype)
                tested.add(ours)
    assert tested == set(CRITERIA)


def through_a_model(ours, torchs, given, call, dtype):
    """The same sample as the prediction of a model that is the identity."""
    x, *rest = (t.detach() if isinstance(t, torch.Tensor) else t for t in call.args)
    found = []
    for cls in (ours, torchs):
        model = pf.nn.Polynomial(1, dtype=dtype)
        with torch.no_grad():
            model.coefficients.copy_(torch.tensor([0.0, 1.0]))
        prediction = model(x)
        if cls is torchs:
            prediction = prediction + 0  # a tensor of torch's own
        loss = cls(*given.args, **given.kwargs)(prediction, *rest, **call.kwargs)
        loss.sum().backward()
        found.append((loss.detach(), model.coefficients.grad))
    for mine, truth in zip(*found, strict=True):
        scale = truth.abs().max().clamp(min=1)
        assert_like_torch(mine / scale, truth / scale, dtype)


def test_every_criterion_is_a_module_of_torchs_kind():
    for ours in CRITERIA:
        assert issubclass(ours, getattr(torch.nn, ours.__name__)) and ours.__doc__
        assert getattr(pf.nn, ours.__name__) is ours and ours.__name__ in pf.nn.__all__
    assert repr(pf.nn.HuberLoss(delta=2.0)) == repr(torch.nn.HuberLoss(delta=2.0))
    for options in ({"delta": -1.0}, {"delta": "1"}):
        with pytest.raises((ValueError, TypeError, RuntimeError)) as mine:
            pf.nn.HuberLoss(**options)(torch.ones(2), torch.ones(2))
        with pytest.raises(type(mine.value)):
            torch.nn.HuberLoss(**options)(torch.ones(2), torch.ones(2))
