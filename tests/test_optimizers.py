"""Every fused optimizer beside torch's: the loop, `fit`, its state, and torch's own test data."""

import copy
import inspect
import pickle
import warnings

import numpy as np
import polyfuse as pf
import pytest
import torch
from polyfuse import workload
from polyfuse.backends import REGISTRY
from polyfuse.optim.classes import FUSED
from polyfuse.problem import Schedule, State
from polyfuse.rules import METHODS, OPTIONS_OF, options_of

from .sides import launches
from .tolerance import assert_like_torch, assert_relative

try:
    from torch.testing._internal.common_optimizers import OptimizerErrorEnum, optim_db
except ImportError as error:  # needs expecttest, and moves between versions of torch
    optim_db, why = [], str(error)

NAMES = [c.__name__ for c in FUSED]
OPTIONS = {
    "SGD": [{"lr": 1e-5}, {"lr": 1e-5, "momentum": 0.9, "nesterov": True, "weight_decay": 0.1}],
    "Adam": [{}, {"amsgrad": True, "weight_decay": 0.1, "lr": 0.01}, {"maximize": True}],
    "AdamW": [{}, {"amsgrad": True, "betas": (0.5, 0.7)}],
    "ASGD": [{"lr": 1e-5}, {"lr": 1e-5, "t0": 3, "lambd": 0.1, "weight_decay": 0.1}],
    "Rprop": [{}, {"etas": (0.3, 1.4), "step_sizes": (1e-3, 0.05)}, {"maximize": True}],
    "RMSprop": [{}, {"centered": True, "momentum": 0.5, "weight_decay": 0.1}, {"momentum": 0.1}],
    "Adagrad": [{}, {"lr_decay": 0.1, "initial_accumulator_value": 0.5, "weight_decay": 0.1}],
    "Adadelta": [{}, {"rho": 0.5, "lr": 0.1, "weight_decay": 0.1}],
    "Adamax": [{}, {"betas": (0.5, 0.7), "weight_decay": 0.1}],
    "NAdam": [{}, {"weight_decay": 0.1}, {"weight_decay": 0.1, "decoupled_weight_decay": True}],
    "RAdam": [{"lr": 1e-4}, {"weight_decay": 0.1, "decoupled_weight_decay": True, "lr": 0.1}],
}
CASES = [(name, options) for name in NAMES for options in OPTIONS[name]]


def step(side):
    model, criterion, optimizer, xs, ys = side
    optimizer.zero_grad()
    criterion(model(xs), ys).backward()
    optimizer.step()


def side(nn, optim, name, dtype, options):
    model = workload.make_model(nn, dtype)
    optimizer = getattr(optim, name)(model.parameters(), **copy.deepcopy(options))
    return model, nn.MSELoss(), optimizer, *workload.data(dtype)


def numbers(model, optimizer):
    out = {}
    for name, p in model.named_parameters():
        out[name] = p.detach()
        out |= {f"{name}.grad": p.grad} if p.grad is not None else {}
        out |= {f"{name}.{key}": v for key, v in optimizer.state.get(p, {}).items()}
    return out


def assert_same(found, truth, rtol=None):
    assert found.keys() == truth.keys()
    for name, value in truth.items():
        if value is None:
            assert found[name] is None
            continue
        assert (found[name].dtype, found[name].shape) == (value.dtype, value.shape), name
        if rtol is None:
            assert_like_torch(found[name], value)
        else:
            assert_relative(found[name], value, max(rtol, 4 * torch.finfo(value.dtype).eps))


@pytest.mark.parametrize(("name", "options"), CASES, ids=str)
def test_the_loop(name, options, dtype):
    sides = [side(nn, optim, name, dtype, options)
             for nn, optim in ((pf.nn, pf.optim), (torch.nn, torch.optim))]  # fmt: skip
    versions = []
    for epoch in range(12):
        before = launches()
        for s in sides:
            step(s)
        if epoch > 2:
            assert launches() - before == 1  # forward, loss, backward and update
        versions.append([p._version for p in sides[0][0].parameters()])
        if epoch > 2:
            assert versions[-1] == [v + 1 for v in versions[-2]]
        assert_same(numbers(sides[0][0], sides[0][2]), numbers(sides[1][0], sides[1][2]))


@pytest.mark.parametrize("engine", ["stream", "moments", "auto"])
@pytest.mark.parametrize(("name", "options"), CASES, ids=str)
def test_fit(name, options, engine):
    dtype = torch.float64
    found = side(torch.nn, torch.optim, name, dtype, options)
    truth = side(torch.nn, torch.optim, name, dtype, options)
    for begin, epochs in ((0, 150), (150, 50)):  # from nothing, and from where a run has ended
        result = pf.fit(*found, epochs=epochs, engine=engine, record_every=10)
        losses = []
        for epoch in range(epochs):
            if epoch % 10 == 0:
                losses.append(truth[1](truth[0](truth[3]), truth[4]).item())
            step(truth)
        assert result.epochs == epochs and result.launches == 1, begin
        assert_relative(result.history[: len(losses)], losses, 1e-8)
        assert_same(numbers(found[0], found[2]), numbers(truth[0], truth[2]), 1e-8)
    step(found), step(truth)  # plain torch goes on from there
    assert_same(numbers(found[0], found[2]), numbers(truth[0], truth[2]), 1e-8)
    if engine == "auto":
        assert result.engine == "moments" or name == "SGD"


@pytest.mark.parametrize("fused", [False, True])
def test_the_count_of_steps_is_kept_as_torch_keeps_it(fused):
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        found, truth = (side(torch.nn, torch.optim, "Adam", torch.float64, {"fused": fused})
                        for _ in range(2))  # fmt: skip
        pf.fit(*found, epochs=3)
        for _ in range(3):
            step(truth)
        assert_same(numbers(found[0], found[2]), numbers(truth[0], truth[2]), 1e-8)
        step(found)  # plain torch goes on from there
    finally:
        torch.set_default_dtype(default)


@pytest.mark.parametrize("name", [n for n in NAMES if n != "SGD"])
def test_closed_form_is_refused(name):
    with pytest.raises(ValueError, match=r"engine: closed_form .* not linear"):
        pf.fit(*side(pf.nn, pf.optim, name, torch.float32, {}), epochs=9, engine="closed_form")


@pytest.mark.parametrize(("name", "options"), CASES, ids=str)
def test_kernel_against_the_reference(name, options):
    """Both backends from the same, arbitrary state."""
    model, _, optimizer, xs, ys = side(pf.nn, pf.optim, name, torch.float64, options)
    rule = (options_of(optimizer, optimizer.param_groups[0], model.a),) * 3
    method = METHODS[type(rule[0])]
    from polyfuse.fused import fused
    from polyfuse.problem import Problem

    traced = fused(model, xs.dtype, xs.device).traced
    problem = Problem(traced, "mean", rule, xs, ys)
    states = []
    for backend in ("cpu", "reference"):
        state = State.of(np.array([0.5, -1.0, 2.0]))
        for row, kept in enumerate(method.kept):
            state.kept[row] = 3.0 if kept.name == "step" else 0.25 if kept.scalar else (0.1, 0.2, 3)
        if name == "SGD":
            state.has_momentum[:] = 1.0
        REGISTRY[backend].descend(problem, "stream", None, Schedule(0, 5), state)
        states.append(state)
    assert_relative(states[0].params, states[1].params, 1e-11)
    unused = [row for row, k in enumerate(method.kept) if not k.used(rule[0])]
    for row in set(range(len(method.kept))) - set(unused):
        assert_relative(states[0].kept[row], states[1].kept[row], 1e-11)


# -- torch's own data


@pytest.mark.skipif(not optim_db, reason="torch's optim_db is not there")
def test_torchs_data_covers_every_optimizer():
    assert {i.optim_cls for i in optim_db} >= set(OPTIONS_OF)


def torchs_inputs():
    for info in optim_db:
        if info.optim_cls in OPTIONS_OF:
            for given in info.optim_inputs_func(device="cpu"):
                yield pytest.param(info.optim_cls.__name__, given.kwargs,
                                   id=f"{info.optim_cls.__name__}-{given.desc}")  # fmt: skip


@pytest.mark.parametrize(("name", "options"), list(torchs_inputs()))
@pytest.mark.parametrize("foreach", [None, True, False])
def test_torchs_inputs(name, options, foreach, dtype):
    options = {k: v for k, v in options.items()}
    if foreach is not None:
        options["foreach"] = foreach
    sides = []
    for nn, optim in ((pf.nn, pf.optim), (torch.nn, torch.optim)):
        try:
            sides.append(side(nn, optim, name, dtype, options))
        except RuntimeError as error:
            sides.append(str(error))
    if isinstance(sides[1], str):
        assert sides[0] == sides[1]
        return
    for _ in range(6):
        for s in sides:
            step(s)
        assert_same(numbers(sides[0][0], sides[0][2]), numbers(sides[1][0], sides[1][2]))
    assert_same_state_dicts(*sides)


def assert_same_state_dicts(a, b):
    states = a[2].state_dict(), b[2].state_dict()
    assert states[0]["param_groups"] == states[1]["param_groups"]
    assert states[0]["state"].keys() == states[1]["state"].keys()
    for key, values in states[0]["state"].items():
        assert list(values) == list(states[1]["state"][key])
    a[2].load_state_dict(copy.deepcopy(states[1]))
    b[2].load_state_dict(copy.deepcopy(states[0]))
    for _ in range(3):
        step(a), step(b)
    assert_same(numbers(a[0], a[2]), numbers(b[0], b[2]))


def torchs_errors():
    for info in optim_db:
        if info.optim_cls in OPTIONS_OF:
            errors = info.optim_error_inputs_func(device="cpu", dtype=torch.float32)
            for i, given in enumerate(errors):
                yield pytest.param(info.optim_cls.__name__, given,
                                   id=f"{info.optim_cls.__name__}-{i}")  # fmt: skip


@pytest.mark.parametrize(("name", "given"), list(torchs_errors()))
def test_torchs_error_inputs(name, given):
    ours, torchs = getattr(pf.optim, name), getattr(torch.optim, name)
    params, options = given.optimizer_error_input.params, given.optimizer_error_input.kwargs
    if given.error_on != OptimizerErrorEnum.CONSTRUCTION_ERROR:
        pytest.skip("an error of the step, on parameters that no model of ours holds")
    for cls in (ours, torchs):
        if issubclass(given.error_type, Warning):
            with pytest.warns(given.error_type, match=given.error_regex):
                cls(params, **options)
        else:
            with warnings.catch_warnings(), pytest.raises(given.error_type,
                                                          match=given.error_regex):  # fmt: skip
                warnings.simplefilter("ignore")
                cls(params, **options)


# -- what Optimizer promises


@pytest.mark.parametrize("name", NAMES)
def test_class(name):
    ours, torchs = getattr(pf.optim, name), getattr(torch.optim, name)
    assert issubclass(ours, torchs) and ours.__name__ == name
    assert inspect.signature(torchs.__init__).parameters.keys() >= {"params", "lr"}
    model = pf.nn.Polynomial(2)
    optimizer = ours(model.parameters())
    assert optimizer.defaults == torchs(model.parameters()).defaults
    again = pickle.loads(pickle.dumps(optimizer))
    assert type(again) is ours and again.defaults == optimizer.defaults


@pytest.mark.parametrize("name", NAMES)
def test_deepcopy_goes_on_alike(name, dtype):
    options = OPTIONS[name][-1]
    first = side(pf.nn, pf.optim, name, dtype, options)
    for _ in range(3):
        step(first)
    twin = copy.deepcopy(first[:3]) + first[3:]
    for _ in range(3):
        step(first), step(twin)
    assert_same(numbers(twin[0], twin[2]), numbers(first[0], first[2]), 0.0)


@pytest.mark.parametrize("name", NAMES)
def test_state_that_is_changed_between_steps(name, dtype):
    sides = [side(nn, optim, name, dtype, OPTIONS[name][-1])
             for nn, optim in ((pf.nn, pf.optim), (torch.nn, torch.optim))]  # fmt: skip
    for epoch in range(8):
        for s in sides:
            step(s)
            model, _, optimizer = s[:3]
            state = optimizer.state.get(model.a, {})
            for value in state.values() if epoch == 3 else ():
                if value is not None and value.ndim:
                    value.mul_(0.5)
            if epoch == 4 and "step" in state:
                state["step"] += 2
            if epoch == 5:
                optimizer.state.clear()
                if name == "Adagrad":
                    optimizer.__init__(model.parameters(), **OPTIONS[name][-1])
            if epoch == 6:
                optimizer.param_groups[0]["lr"] *= 0.5
        assert_same(numbers(sides[0][0], sides[0][2]), numbers(sides[1][0], sides[1][2]))


@pytest.mark.parametrize("value", ["0.1", None, torch.ones(2)])
@pytest.mark.parametrize("key", ["lr", "momentum"])
def test_what_is_no_number_is_refused_as_torch_does(key, value):
    errors = []
    for nn, optim in ((pf.nn, pf.optim), (torch.nn, torch.optim)):
        s = side(nn, optim, "SGD", torch.float32, {"lr": 1e-5, "momentum": 0.9})
        step(s), step(s)
        s[2].param_groups[0][key] = value
        before = [p.detach().clone() for p in s[0].parameters()]
        with pytest.raises((TypeError, ValueError, RuntimeError)) as raised:
            step(s)
        errors.append(raised.type)
        assert all(map(torch.equal, before, s[0].parameters()))
        with pytest.raises(ValueError, match=f"optimizer: {key}: expected a number, got "):
            pf.fit(*s, epochs=3)
    assert errors[0] is errors[1]


def test_a_subclass_with_a_step_of_its_own():
    """Deliberately wrong ones: what they do must be done."""

    class Twice(pf.optim.Adam):
        def step(self, closure=None):
            super().step(closure)
            return super().step(closure)

    class Forgetful(pf.optim.SGD):
        def step(self, closure=None):
            return None

    class Cached(pf.optim.SGD):  # a cached lr
        def __init__(self, params, lr):
            super().__init__(params, lr=lr)
            self.lr = lr

        def step(self, closure=None):
            for group in self.param_groups:
                group["lr"] = self.lr
            return super().step(closure)

    for cls, changed in ((Twice, True), (Forgetful, False), (Cached, True)):
        model = workload.make_model(pf.nn)
        optimizer = cls(model.parameters(), lr=1e-4)
        twin = workload.make_model(torch.nn)
        plain = {Twice: torch.optim.Adam}.get(cls, torch.optim.SGD)(twin.parameters(), lr=1e-4)
        xs, ys = workload.data()
        for _ in range(4):
            optimizer.param_groups[0]["lr"] = 1e-4 if cls is Twice else 0.5
            for m, o in ((model, optimizer), (twin, plain)):
                o.zero_grad()
                pf.nn.MSELoss()(m(xs), ys).backward()
                o.step()
                if cls is Twice and o is plain:
                    o.step()
        same = [torch.allclose(p, q) for p, q in zip(model.parameters(), twin.parameters(),
                                                     strict=True)]  # fmt: skip
        assert all(same) == changed
