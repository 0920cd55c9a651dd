"""torch.ops.polyfuse: what torch asks of operators, their numbers, derivatives and errors."""

import subprocess
import sys

import polyfuse as pf
import pytest
import torch
from polyfuse import ops
from polyfuse.backends import REGISTRY
from polyfuse.backends.device import loss_and_gradient
from polyfuse.recognise import read_options
from torch.autograd import gradcheck, gradgradcheck
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, vmap
from torch.library import opcheck

from .criteria import BY_REDUCTION, CASES, KL_MEAN_WARNS, data
from .fake_device import FakeDevice
from .tolerance import assert_close, assert_like_torch

# torch's own, of torch.jit
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")

VARIABLE = (0.25, 1.5)
COEF = [1.5, -0.5, 0.75]
SHAPES = {
    "empty": lambda t: t[:0],
    "scalar": lambda t: t[0],
    "one": lambda t: t[:1],
    "nine": lambda t: t[:9],
    "odd": lambda t: t[:1003],
    "table": lambda t: t[:1003].reshape(17, 59),
    "strided": lambda t: t[: 3 * 129 : 3],
    "transposed": lambda t: t[: 4 * 9].reshape(4, 9).T,
    "expanded": lambda t: t[:1].expand(5),
}


def draw(seed, dtype, n=1100):
    generator = torch.Generator().manual_seed(seed)
    return (torch.rand(n, generator=generator, dtype=torch.float64) * 2 - 1).to(dtype)


@pytest.fixture(params=SHAPES)
def pair(request, dtype):
    """x and g of one shape."""
    return tuple(SHAPES[request.param](draw(seed, dtype)) for seed in (0, 1))


@pytest.fixture
def coef(dtype):
    return torch.tensor(COEF, dtype=dtype)


@pytest.fixture(autouse=True)
def fresh_compiler():
    yield
    torch.compiler.reset()


def evaluate(x, coef, shift=0.0, scale=1.0):
    u = (x - shift) * scale
    return sum(c * u**k for k, c in enumerate(coef))


def project(x, g, terms, shift=0.0, scale=1.0):
    u = (x - shift) * scale
    return torch.stack([(g * u**k).sum() for k in range(terms)])


def loss(x, y, coef, criterion, shift=0.0, scale=1.0):
    return criterion(evaluate(x, coef, shift, scale), y)


def arguments_of(criterion, x):
    """Of torch.ops.polyfuse.objective."""
    kind, options, reduction = read_options(criterion, x)
    return kind.name, [1.0 if v is None else float(v) for _, v in options], reduction


# -- what torch asks of operators ----------------------------------------------------------------


WITH_GRAD = {"none": (), "first": (0,), "second": (1,), "all": (0, 1)}


def requiring(tensors, which):
    return tuple(t.detach().requires_grad_(i in which) for i, t in enumerate(tensors))


@pytest.mark.parametrize("which", WITH_GRAD.values(), ids=WITH_GRAD)
def test_opcheck(pair, coef, which):
    x, g = pair
    x, c = requiring((x, coef), which)
    opcheck(torch.ops.polyfuse.evaluate.default, (x, c, *VARIABLE))
    x, g = requiring(pair, which)
    opcheck(torch.ops.polyfuse.project.default, (x, g, 4, *VARIABLE))


@pytest.mark.parametrize("which", [(), (2,), (0, 1, 2)], ids=["none", "coef", "all"])
@pytest.mark.parametrize("name", ["mse", "huber"])
@pytest.mark.parametrize("pair", [s for s in SHAPES if s != "empty"], indirect=True)
def test_opcheck_of_the_objective(pair, coef, which, name):
    tensors = requiring((*pair, coef), which)
    criterion = (
        torch.nn.MSELoss() if name == "mse" else torch.nn.HuberLoss(reduction="sum", delta=0.3)
    )
    arguments = (*tensors, *arguments_of(criterion, pair[0]), *VARIABLE)
    opcheck(torch.ops.polyfuse.objective.default, arguments)


# -- numbers ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("terms", [1, 2, 5, 33])
def test_numbers(pair, terms, dtype):
    x, g = pair
    coef = draw(2, dtype)[:terms]
    found = ops.evaluate(x, coef, *VARIABLE)
    wide = x.double(), coef.double()
    assert found.shape == x.shape and found.dtype == dtype and found.is_contiguous()
    size = evaluate(wide[0].abs(), wide[1].abs(), -VARIABLE[0], VARIABLE[1])
    assert_close(found, evaluate(x, coef, *VARIABLE), evaluate(*wide, *VARIABLE), size)
    sums = ops.project(x, g, terms, *VARIABLE)
    wide = x.double(), g.double()
    size = project(wide[0].abs(), wide[1].abs(), terms, -VARIABLE[0], VARIABLE[1])
    assert sums.shape == (terms,) and sums.dtype == dtype
    assert_close(sums, project(x, g, terms, *VARIABLE), project(*wide, terms, *VARIABLE), size)


def test_what_is_not_finite_stays_with_its_sample(coef, dtype):
    x = torch.tensor([0.0, float("nan"), float("inf"), 2.0], dtype=dtype)
    found = ops.evaluate(x, coef)
    assert_like_torch(found[[0, 3]], evaluate(x, coef)[[0, 3]])
    assert found[1].isnan() and found[2] == float("inf")
    assert ops.project(x, x, 2).isnan().all()


def test_negated_views_and_conjugates(coef, dtype):
    x = draw(0, dtype)[:9]
    negative = torch._neg_view(x)
    assert torch.equal(ops.evaluate(negative, coef), ops.evaluate(-x, coef))
    imaginary = torch.complex(x, x).conj().imag
    assert torch.equal(ops.evaluate(imaginary, coef), ops.evaluate(-x, coef))


@pytest.mark.parametrize(("name", "reduction"), BY_REDUCTION)
@pytest.mark.filterwarnings(KL_MEAN_WARNS)
def test_loss_and_gradients(name, reduction, coef, dtype):
    criterion = CASES[name].make(torch.nn, dtype, reduction)
    exact = CASES[name].make(torch.nn, torch.float64, reduction)
    generator = torch.Generator().manual_seed(3)
    y = CASES[name].target(1003, generator).to(dtype).reshape(17, 59)
    x = draw(0, dtype)[:1003].reshape(17, 59)

    def run(f, criterion, x, y, coef):
        c = coef.clone().requires_grad_()
        value = f(x, y, c, criterion)
        value.backward()
        return value.detach(), c.grad

    found = run(ops.loss, criterion, x, y, coef)
    plain = run(loss, criterion, x, y, coef)
    truth = run(loss, exact, x.double(), y.double(), coef.double())
    size = {"mean": 10, "sum": 10 * 1003, "batchmean": 10 * 59}[reduction]
    for f, p, t in zip(found, plain, truth, strict=True):
        assert f.shape == p.shape and f.dtype == dtype
        assert_close(f, p, t, size)


def test_gaussian_by_its_name(coef):
    x, y, coef = draw(0, torch.float64), draw(1, torch.float64), coef.double()
    value, _ = torch.ops.polyfuse.objective(x, y, coef, "GaussianNLLLoss", [0.5, 1.0, 1e-6], "mean")
    truth = torch.nn.GaussianNLLLoss(full=True)(evaluate(x, coef), y, torch.full_like(x, 0.5))
    assert_like_torch(value, truth)


def test_a_loss_is_one_launch():
    x, y, c = draw(0, torch.float64), draw(1, torch.float64), torch.zeros(3, dtype=torch.float64)
    before = REGISTRY["cpu"].launches()
    ops.loss(x, y, c.requires_grad_(), torch.nn.HuberLoss()).backward()
    assert REGISTRY["cpu"].launches() == before + 1


@pytest.mark.filterwarnings(KL_MEAN_WARNS)
@pytest.mark.parametrize(("name", "reduction"), [("mse", "mean"), *BY_REDUCTION])
@pytest.mark.parametrize("stride", [1, 2])
def test_on_a_device(name, reduction, stride, monkeypatch, dtype):
    """One launch of the device's step, whose coefficients lie at any stride."""

    class Device(FakeDevice):
        def refuse(self, problem):
            return None

        def loss_and_gradient(self, problem, params):
            return loss_and_gradient(self, problem, params)

    fake = Device()
    monkeypatch.setitem(REGISTRY, "fake", fake)
    monkeypatch.setitem(pf.backends.__globals__["AUTO"], "cpu", ("fake",))
    case = CASES.get(name)
    x, y = data(case, 40, dtype) if case else (draw(0, dtype), draw(1, dtype))
    x = x.abs()  # and with coefficients above 0, predictions are
    criterion = case.make(torch.nn, dtype, reduction) if case else torch.nn.MSELoss()
    wide = [torch.tensor(COEF, dtype=dtype).abs().repeat_interleave(stride) for _ in range(2)]
    coefs = [w[::stride].detach().requires_grad_() for w in wide]
    ops.loss(x, y, coefs[0], criterion).backward()
    assert fake.launches() == 1
    loss(x, y, coefs[1], criterion).backward()
    assert_like_torch(coefs[0].grad, coefs[1].grad)


# -- derivatives -----------------------------------------------------------------------------------


@pytest.mark.parametrize("terms", [1, 4])
def test_gradients_of_gradients(terms):
    x, g, c = (draw(seed, torch.float64)[:n] for seed, n in enumerate((6, 6, terms)))
    x = x.reshape(3, 2)
    g = g.reshape(3, 2)
    of_x_and_coef = tuple(t.clone().requires_grad_() for t in (x, c))
    of_x_and_g = tuple(t.clone().requires_grad_() for t in (x, g))
    for f, inputs in (
        (lambda x, c: ops.evaluate(x, c, *VARIABLE), of_x_and_coef),
        (lambda x, g: ops.project(x, g, terms, *VARIABLE), of_x_and_g),
    ):
        assert gradcheck(f, inputs, check_forward_ad=True)
        assert gradgradcheck(f, inputs, check_fwd_over_rev=terms > 1)  # a constant is none of x


def test_third_derivative():
    x = draw(0, torch.float64)[:5].requires_grad_()
    c = draw(1, torch.float64)[:6]
    found, truth = ops.evaluate(x, c).sum(), evaluate(x, c).sum()
    for _ in range(3):
        (found,) = torch.autograd.grad(found.sum(), x, create_graph=True)
        (truth,) = torch.autograd.grad(truth.sum(), x, create_graph=True)
    assert_like_torch(found.detach(), truth.detach())


SMOOTH = ["huber", "soft_margin", "bce-weighted", "poisson-full", "poisson-rate", "kl"]


@pytest.mark.parametrize("name", ["mse", *SMOOTH])
def test_gradients_of_gradients_of_a_loss(name):
    generator = torch.Generator().manual_seed(1)
    if name == "mse":
        criterion, y = torch.nn.MSELoss(reduction="sum"), draw(1, torch.float64)[:5]
    else:
        criterion = CASES[name].make(torch.nn, torch.float64, "sum")
        y = CASES[name].target(5, generator)
    x, c = draw(0, torch.float64)[:5], torch.tensor(COEF, dtype=torch.float64)
    x.requires_grad_(), c.requires_grad_()
    assert gradcheck(lambda x, c: ops.loss(x, y, c, criterion), (x, c))
    assert gradgradcheck(lambda x, c: ops.loss(x, y, c, criterion), (x, c))
    name_and_options = arguments_of(criterion, x)

    def both(c):
        return torch.ops.polyfuse.objective(x.detach(), y, c, *name_and_options)

    assert gradcheck(both, (c,)) and gradgradcheck(both, (c,))
    if name in ("mse", "huber"):
        y.requires_grad_()
        assert gradcheck(lambda y, c: ops.loss(x.detach(), y, c, criterion), (y, c))


X, Y = draw(0, torch.float64)[:6], draw(1, torch.float64)[:6]
C = torch.tensor(COEF, dtype=torch.float64)
MSE, HUBER = torch.nn.MSELoss(), torch.nn.HuberLoss(delta=0.4)
FUNCTIONS = {
    "evaluate x": (lambda m, x: m.evaluate(x, C, *VARIABLE), X),
    "evaluate coef": (lambda m, c: m.evaluate(X, c, *VARIABLE), C),
    "project x": (lambda m, x: m.project(x, Y, 4, *VARIABLE), X),
    "project g": (lambda m, g: m.project(X, g, 4, *VARIABLE), Y),
    "loss x": (lambda m, x: m.loss(x, Y, C, MSE), X),
    "loss y": (lambda m, y: m.loss(X, y, C, MSE), Y),
    "loss coef": (lambda m, c: m.loss(X, Y, c, MSE), C),
}
TRANSFORMS = {
    "grad": lambda f, a: grad(lambda a: (f(a) ** 3).sum())(a),
    "hessian": lambda f, a: hessian(lambda a: (f(a) ** 3).sum())(a),
    "jacrev": lambda f, a: jacrev(f)(a),
    "jacrev twice": lambda f, a: jacrev(jacrev(f))(a),
    "jacfwd": lambda f, a: jacfwd(f)(a),
    "jacfwd twice": lambda f, a: jacfwd(jacfwd(f))(a),
    "jvp": lambda f, a: jvp(f, (a,), (torch.ones_like(a),))[1],
    "vmap": lambda f, a: vmap(f)(torch.stack([a, 2 * a, a - 1])),
    "vmap of the last": lambda f, a: (
        vmap(f, -1, -1)(torch.stack([a, 2 * a], -1).unsqueeze(0)[0])
        if f(a).ndim
        else vmap(f, -1)(torch.stack([a, 2 * a], -1))
    ),
    "gradients of each": lambda f, a: vmap(grad(lambda a: (f(a) ** 2).sum()))(
        torch.stack([a, a + 1])
    ),
}


class Torchs:
    evaluate = staticmethod(evaluate)
    project = staticmethod(project)
    loss = staticmethod(loss)


@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("function", FUNCTIONS)
def test_functional_transforms(function, transform):
    f, a = FUNCTIONS[function]
    found = TRANSFORMS[transform](lambda a: f(ops, a), a)
    truth = TRANSFORMS[transform](lambda a: f(Torchs, a), a)
    assert found.shape == truth.shape
    assert_like_torch(found, truth)


def test_vmap_of_the_operators():
    xs, cs = torch.stack([X, Y]), torch.stack([C, 2 * C])
    found = vmap(torch.ops.polyfuse.evaluate)(xs, cs)
    assert_like_torch(found, torch.stack([evaluate(X, C), evaluate(Y, 2 * C)]))
    found = vmap(lambda x: torch.ops.polyfuse.project(x, Y, 3))(xs)
    assert_like_torch(found, torch.stack([project(X, Y, 3), project(Y, Y, 3)]))
    value, gradient = vmap(
        lambda c: torch.ops.polyfuse.objective(X, Y, c, *arguments_of(HUBER, X))
    )(cs)
    assert_like_torch(value, torch.stack([loss(X, Y, c, HUBER) for c in cs]))
    assert_like_torch(gradient, torch.stack([grad(lambda c: loss(X, Y, c, HUBER))(c) for c in cs]))


# -- compilers -------------------------------------------------------------------------------------


class Model(torch.nn.Module):
    def __init__(self, functions, criterion):
        super().__init__()
        self.functions, self.criterion = functions, criterion
        self.coef = torch.nn.Parameter(C.clone())

    def forward(self, x, y):
        m = self.functions
        y_pred = m.evaluate(x, self.coef, *VARIABLE).sin()
        return m.project(x, y_pred, 3).sum() + m.loss(x, y, self.coef, self.criterion)


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
@pytest.mark.parametrize("nn", [pf.nn, torch.nn], ids=["polyfuse", "torch"])
@pytest.mark.parametrize("dynamic", [False, True])
def test_compile_without_a_graph_break(backend, nn, dynamic):
    models = [Model(ops, nn.HuberLoss()), Model(Torchs, torch.nn.HuberLoss())]
    compiled = torch.compile(models[0], fullgraph=True, backend=backend, dynamic=dynamic)
    for n in (6, 5):
        inputs = [[t[:n].clone().requires_grad_() for t in (X, Y)] for _ in models]
        values = [compiled(*inputs[0]), models[1](*inputs[1])]
        for value in values:
            value.backward()
        assert_like_torch(*(v.detach() for v in values))
        for found, truth in zip(inputs[0], inputs[1], strict=True):
            assert_like_torch(found.grad, truth.grad)
    assert_like_torch(models[0].coef.grad, models[1].coef.grad)


def test_compile_with_an_option_that_is_a_tensor():
    y = Y.round().abs()
    criterion = torch.nn.BCEWithLogitsLoss(pos_weight=torch.tensor([3.0], dtype=torch.float64))
    found, truth = C.clone().requires_grad_(), C.clone().requires_grad_()
    compiled = torch.compile(
        lambda c: ops.loss(X, y, c, criterion), fullgraph=True, backend="aot_eager"
    )
    compiled(found).backward()
    loss(X, y, truth, criterion).backward()
    assert_like_torch(found.grad, truth.grad)


def test_compile_of_a_functional_gradient():
    def step(c):
        return grad(lambda c: ops.evaluate(X, c).square().sum())(c)

    found = torch.compile(step, backend="aot_eager")(C)
    assert_like_torch(found, grad(lambda c: evaluate(X, c).square().sum())(C))


def test_export():
    model = Model(ops, torch.nn.MSELoss())
    program = torch.export.export(model, (X, Y))
    called = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    for name in ("evaluate", "project", "objective"):
        assert f"polyfuse.{name}.default" in called
    found = functional_call(program.module(), {}, (X, Y))
    assert_like_torch(found.detach(), Model(Torchs, torch.nn.MSELoss())(X, Y).detach())


# -- errors ----------------------------------------------------------------------------------------


ERRORS = [
    (TypeError, "x: expected dtype", lambda: ops.evaluate(torch.ones(3, dtype=torch.int64), C)),
    (TypeError, "x: expected dtype", lambda: ops.evaluate(X + 1j, C)),
    (TypeError, "x: expected dtype", lambda: ops.evaluate(X.half(), C)),
    (TypeError, "coef: expected the dtype of x", lambda: ops.evaluate(X, C.float())),
    (TypeError, "coef: expected dtype", lambda: ops.evaluate(X, C.long())),
    (TypeError, "x: expected a dense", lambda: ops.evaluate(X.to_sparse(), C)),
    (ValueError, "coef: expected the device", lambda: ops.evaluate(X, C.to("meta"))),
    (ValueError, r"coef: expected shape \[K\], got \(1, 3\)", lambda: ops.evaluate(X, C[None])),
    (ValueError, "coef: expected 1 to 33 coef.*, got 0", lambda: ops.evaluate(X, C[:0])),
    (ValueError, "coef: expected 1 to 33 coef.*, got 34", lambda: ops.evaluate(X, X.new_ones(34))),
    (ValueError, r"g: expected the shape of x, \(6,\), got \(5,\)",
     lambda: ops.project(X, Y[1:], 3)),
    (TypeError, "g: expected the dtype of x", lambda: ops.project(X, Y.float(), 3)),
    (ValueError, "terms: expected 1 to 33", lambda: ops.project(X, Y, 0)),
    (ValueError, "terms: expected 1 to 33", lambda: ops.project(X, Y, 34)),
    (ValueError, "y: expected the shape of x", lambda: ops.loss(X, Y[1:], C, MSE)),
    (ValueError, "x: expected at least one sample", lambda: ops.loss(X[:0], Y[:0], C, MSE)),
    (TypeError, "criterion: expected a criterion module", lambda: ops.loss(X, Y, C, "mse")),
    (TypeError, "criterion: reduction 'none' gives no scalar",
     lambda: ops.loss(X, Y, C, torch.nn.MSELoss(reduction="none"))),
    (TypeError, "criterion: CrossEntropyLoss is not fused",
     lambda: ops.loss(X, Y, C, torch.nn.CrossEntropyLoss())),
    (ValueError, "criterion: expected one of MSELoss",
     lambda: ops.objective(X, Y, C, "mse", [], "mean")),
    (ValueError, "options: expected delta of HuberLoss, got 0",
     lambda: ops.objective(X, Y, C, "HuberLoss", [], "mean")),
    (ValueError, "reduction: expected one of mean, sum, got 'batchmean'",
     lambda: ops.objective(X, Y, C, "MSELoss", [], "batchmean")),
]  # fmt: skip


@pytest.mark.parametrize(("error", "message", "call"), ERRORS)
def test_errors(error, message, call):
    with pytest.raises(error, match=message):
        call()


def test_shapes_without_data(coef):
    x, c = torch.empty(2, 3, device="meta"), torch.empty(4, device="meta")
    assert ops.evaluate(x, c).shape == (2, 3) and ops.project(x, x, 5).shape == (5,)
    assert ops.loss(x, x, c, MSE).shape == ()


def test_import_polyfuse_does_not_import_the_operators():
    code = (
        "import polyfuse as pf, sys\n"
        "assert 'polyfuse.ops' not in sys.modules\n"
        "assert pf.ops is sys.modules['polyfuse.ops']"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    with pytest.raises(AttributeError, match="no attribute 'opps'"):
        _ = pf.opps
