"""The fused step, and what it and `fit` remember of an optimizer."""

import copy
import gc
import warnings
import weakref

import polyfuse as pf
import pytest
import torch
from polyfuse import workload
from polyfuse.backends import REGISTRY

from .tolerance import assert_like_torch, assert_relative


@pytest.mark.parametrize("optim", [torch.optim, pf.optim])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_fuse_steps_as_the_loop_does(optim, momentum, nine):
    xs, ys = nine
    model, truth = (workload.make_model(torch.nn, xs.dtype) for _ in range(2))
    options = {"lr": 1e-5, "momentum": momentum}
    step = pf.fuse(model, torch.nn.MSELoss(), optim.SGD(model.parameters(), **options))
    optimizer = torch.optim.SGD(truth.parameters(), **options)
    for i in range(20):
        if i == 10:
            step.optimizer.param_groups[0]["lr"] = optimizer.param_groups[0]["lr"] = 2e-6
        before = REGISTRY["cpu"].launches()
        loss = step(xs, ys)
        if i > 0:
            assert REGISTRY["cpu"].launches() - before == 1
        expected = workload.loop(truth, torch.nn.MSELoss(), optimizer, xs, ys, 1)
        rtol = 1e-5 if xs.dtype == torch.float32 else 1e-12
        assert_relative(loss, expected.detach(), rtol)
        for p, q in zip(model.parameters(), truth.parameters(), strict=True):
            assert_like_torch(p, q)
            assert_relative(p.grad, q.grad, rtol)


def test_an_option_that_changes_in_place():
    """Inside a tuple or a list of torch's group."""
    xs, ys = workload.data(torch.float64)
    beta = torch.tensor(0.9)
    for betas, change in (
        ((beta, torch.tensor(0.999)), lambda o: beta.fill_(0.1)),
        ([0.9, 0.999], lambda o: o.param_groups[0]["betas"].__setitem__(0, 0.1)),
    ):
        beta.fill_(0.9)
        model, fresh = (workload.make_model(torch.nn, torch.float64) for _ in range(2))
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
        optimizer.param_groups[0]["betas"] = betas
        pf.fit(model, torch.nn.MSELoss(), optimizer, xs, ys, epochs=5)
        fresh.load_state_dict(model.state_dict())
        other = torch.optim.Adam(fresh.parameters(), lr=1e-3)
        other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
        change(optimizer)
        other.param_groups[0]["betas"] = tuple(map(float, betas))
        for m, o in ((model, optimizer), (fresh, other)):
            pf.fit(m, torch.nn.MSELoss(), o, xs, ys, epochs=5)
        for p, q in zip(model.parameters(), fresh.parameters(), strict=True):
            assert_relative(p.detach(), q.detach(), 1e-12)


def test_a_fit_keeps_no_optimizer_alive():
    xs, ys = workload.data()
    model = workload.make_model(torch.nn)
    other = torch.nn.Parameter(torch.zeros(1000))
    optimizer = torch.optim.SGD([*model.parameters(), other], lr=1e-5)
    pf.fit(model, torch.nn.MSELoss(), optimizer, xs, ys, epochs=2)
    gone = weakref.ref(other)
    del optimizer, other
    gc.collect()
    assert gone() is None


def test_a_scheduler_hears_of_a_fused_step():
    xs, ys = workload.data()
    for options in ({}, {"mask": xs > 2}):
        model = workload.make_model(torch.nn)
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-5)
        step = pf.fuse(model, torch.nn.MSELoss(), optimizer)
        scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1)
        step(xs, ys, **options)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            scheduler.step()
