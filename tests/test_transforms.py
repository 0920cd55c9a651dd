"""Fused models under what torch does to models: compile, func, autograd, export, wrappers."""

import numpy as np
import polyfuse as pf
import pytest
import torch
import torch.autograd.forward_ad as forward_ad
from polyfuse import workload
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, vmap
from torch.nn.utils import parametrize
from torch.optim.swa_utils import AveragedModel

from .tolerance import assert_like_torch

# torch's own, of torch.jit
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")

XS, YS = workload.data(torch.float64)


@pytest.fixture(autouse=True)
def fresh_compiler():
    yield
    torch.compiler.reset()


def make(nn=pf.nn):
    return workload.make_model(nn, torch.float64)


def both(f):
    """f(nn, model, params) on both libraries, the model having been fused already."""
    out = []
    for nn in (pf.nn, torch.nn):
        model = make(nn)
        nn.MSELoss()(model(XS), YS).backward()
        model.zero_grad()
        out.append(f(nn, model, {k: p.detach() for k, p in model.named_parameters()}))
    assert_same(*out)


def assert_same(found, truth):
    if isinstance(truth, dict):
        assert found.keys() == truth.keys()
        found, truth = list(found.values()), list(truth.values())
    if isinstance(truth, (tuple, list)):
        assert len(found) == len(truth)
        for a, b in zip(found, truth, strict=True):
            assert_same(a, b)
        return
    assert found.shape == truth.shape
    assert_like_torch(found.detach(), truth.detach())


def loss_of(nn, model):
    return lambda params, x=XS: nn.MSELoss()(functional_call(model, params, (x,)), YS)


TRANSFORMS = {
    "grad": lambda nn, m, p: grad(loss_of(nn, m))(p),
    "hessian": lambda nn, m, p: hessian(loss_of(nn, m))(p),
    "jacrev": lambda nn, m, p: jacrev(lambda q: functional_call(m, q, (XS,)))(p),
    "jacfwd": lambda nn, m, p: jacfwd(lambda q: functional_call(m, q, (XS,)))(p),
    "jvp": lambda nn, m, p: jvp(m, (XS,), (torch.ones_like(XS),)),
    "vmap over x": lambda nn, m, p: vmap(m)(torch.stack([XS, XS + 1])),
    "vmap over parameters": lambda nn, m, p: vmap(lambda q: functional_call(m, q, (XS,)))(
        {k: torch.stack([v, v + 1]) for k, v in p.items()}
    ),
    "gradients of every sample": lambda nn, m, p: vmap(
        grad(lambda q, x, y: nn.MSELoss()(functional_call(m, q, (x,)), y)), in_dims=(None, 0, 0)
    )(p, XS[:, None], YS[:, None]),
    "of the model itself": lambda nn, m, p: grad(lambda x: m(x).sum())(XS),
}


@pytest.mark.parametrize("name", TRANSFORMS)
def test_functional_transforms(name):
    both(TRANSFORMS[name])


def test_double_backward():
    def twice(nn, model, _):
        loss = nn.MSELoss()(model(XS), YS)
        first = torch.autograd.grad(loss, list(model.parameters()), create_graph=True)
        sum((g**2).sum() for g in first).backward()
        return [*first, *(p.grad for p in model.parameters())]

    both(twice)


def test_forward_mode():
    def push(nn, model, _):
        with forward_ad.dual_level():
            dual = forward_ad.make_dual(XS, torch.ones_like(XS))
            return forward_ad.unpack_dual(nn.MSELoss()(model(dual), YS)).tangent

    both(push)


def test_gradcheck():
    model = make()
    names = [k for k, _ in model.named_parameters()]
    values = tuple(p.detach().clone().requires_grad_() for p in model.parameters())

    def loss(*given):
        return pf.nn.MSELoss()(functional_call(model, dict(zip(names, given, strict=True)), (XS,)),
                               YS)  # fmt: skip

    assert torch.autograd.gradcheck(loss, values)
    assert torch.autograd.gradgradcheck(loss, values)


@pytest.mark.parametrize("backend", ["eager", "aot_eager", "inductor"])
def test_compile_without_a_graph_break(backend):
    def run(nn, model, _):
        criterion = nn.MSELoss()
        compiled = torch.compile(
            lambda x, y: criterion(model(x), y), fullgraph=True, backend=backend
        )
        loss = compiled(XS, YS)
        loss.backward()
        y_pred = torch.compile(model, fullgraph=True, backend=backend)(XS)
        return [loss, y_pred, *(p.grad for p in model.parameters())]

    both(run)


@pytest.mark.filterwarnings("ignore:The .grad attribute:UserWarning")
def test_a_compiled_training_step():
    def run(nn, model, _):
        criterion = nn.MSELoss()
        optim = pf.optim if nn is pf.nn else torch.optim
        optimizer = optim.Adam(model.parameters(), lr=0.1)

        @torch.compile(backend="eager")
        def step():
            optimizer.zero_grad()
            loss = criterion(model(XS), YS)
            loss.backward()
            optimizer.step()
            return loss

        losses = [step() for _ in range(3)]
        return [*losses, *model.parameters()]

    both(run)


def test_export_and_script():
    def run(nn, model, _):
        exported = torch.export.export(model, (XS,)).module()
        traced = torch.jit.trace(model, XS)
        return [exported(XS), traced(XS)]

    both(run)
    scripted = torch.jit.script(pf.nn.Polynomial(2))
    assert scripted(torch.ones(3)).shape == (3,)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("dynamo", [False, True])
def test_onnx(dynamo, tmp_path):
    onnx = pytest.importorskip("onnx")
    if dynamo:
        pytest.importorskip("onnxscript")
    from onnx.reference import ReferenceEvaluator

    x = torch.linspace(-1, 1, 5)
    for model in (workload.make_model(pf.nn), pf.nn.Polynomial(3, basis="legendre")):
        with torch.no_grad():
            for p in model.parameters():
                p.copy_(torch.arange(1.0, p.numel() + 1))
        path = tmp_path / "model.onnx"
        torch.onnx.export(model.eval(), (x,), path, dynamo=dynamo, verbose=False)
        (found,) = ReferenceEvaluator(onnx.load(path)).run(
            None, {onnx.load(path).graph.input[0].name: x.numpy()}
        )
        np.testing.assert_allclose(found, model(x).detach(), rtol=1e-5)


class Squared(torch.nn.Module):
    def forward(self, w):
        return w * w


def test_parametrized_parameters():
    def run(nn, model, _):
        parametrize.register_parametrization(model, "a", Squared())
        loss = nn.MSELoss()(model(XS), YS)
        loss.backward()
        return [loss, *(p.grad for p in model.parameters())]

    both(run)


def test_averaged_model():
    def run(nn, model, _):
        average = AveragedModel(model)
        optim = pf.optim if nn is pf.nn else torch.optim
        optimizer = optim.SGD(model.parameters(), lr=1e-5)
        for _ in range(4):
            optimizer.zero_grad()
            nn.MSELoss()(model(XS), YS).backward()
            optimizer.step()
            average.update_parameters(model)
        return [average(XS), *average.parameters()]

    both(run)


@pytest.mark.parametrize("scale", [1.0, 1024.0])
def test_gradient_scaler(scale):
    def run(nn, model, _):
        optim = pf.optim if nn is pf.nn else torch.optim
        optimizer = optim.SGD(model.parameters(), lr=1e-5, momentum=0.9)
        scaler = torch.amp.GradScaler("cpu", init_scale=scale)
        for _ in range(4):
            optimizer.zero_grad()
            scaler.scale(nn.MSELoss()(model(XS), YS)).backward()
            scaler.unscale_(optimizer)
            torch.nn.utils.clip_grad_norm_(model.parameters(), 100.0)
            scaler.step(optimizer)
            scaler.update()
        return list(model.parameters())

    both(run)


def test_autocast():
    for nn in (pf.nn, torch.nn):
        model = workload.make_model(nn)
        x, y = workload.data()
        with torch.autocast("cpu"):
            loss = nn.MSELoss()(model(x), y)
        loss.backward()
        value = [loss.detach(), *(p.grad for p in model.parameters())]
        if nn is pf.nn:
            found = value
    assert_same(found, value)
