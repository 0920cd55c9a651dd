"""Training loops that nobody wrote: random models, criteria, optimizers, and what happens between
iterations and within, beside plain torch."""

import copy
import warnings
from types import SimpleNamespace

import polyfuse.nn
import polyfuse.optim
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

CLOSE = {"rtol": 1e-8, "atol": 1e-10, "equal_nan": True}
F = torch.nn.functional


def parabola(nn):
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Parameter(torch.tensor([0.3]))
            self.b = nn.Parameter(torch.tensor([-0.2]))
            self.c = nn.Parameter(torch.tensor([0.1]))

        def forward(self, x):
            return self.a * x**2 + self.b * x + self.c

    return Model()


def vector(nn):
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.tensor([0.2, -0.1, 0.3]))

        def forward(self, x):
            return self.w[0] + self.w[1] * x + self.w[2] * x * x

    return Model()


def powers(nn):
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(3, 1)
            torch.nn.init.constant_(self.linear.weight, 0.2)
            torch.nn.init.constant_(self.linear.bias, -0.1)

        def forward(self, x):
            return self.linear(torch.stack([x, x**2, x**3], -1)).squeeze(-1)

    return Model()


class Series(torch.nn.Module):
    """A `Polynomial` as torch runs it."""

    def __init__(self, polynomial):
        super().__init__()
        self.coefficients = polynomial.coefficients
        self._of = [polynomial]

    def forward(self, x):
        self._of[0].coefficients = self.coefficients
        return self._of[0].forward(x)


def polynomial(**options):
    def make(nn):
        model = polyfuse.nn.Polynomial(2, **options)
        with torch.no_grad():
            model.coefficients.copy_(torch.linspace(-0.3, 0.3, model.coefficients.numel())
                                     .view_as(model.coefficients))  # fmt: skip
        return model if nn is polyfuse.nn else Series(model)

    return make


MODELS = {
    "parabola": parabola,
    "vector": vector,
    "powers": powers,
    "polynomial": polynomial(),
    "chebyshev": polynomial(basis="chebyshev", domain=(-4, 4)),
    "outputs": polynomial(outputs=3),
    "variables": polynomial(variables=2),
    "outputs of variables": polynomial(variables=2, outputs=3),
}
OF_REALS = {
    "mse": lambda nn: nn.MSELoss(),
    "mse, sum": lambda nn: nn.MSELoss(reduction="sum"),
    "l1": lambda nn: nn.L1Loss(),
    "huber": lambda nn: nn.HuberLoss(delta=0.5),
    "smooth l1": lambda nn: nn.SmoothL1Loss(beta=0.3),
    "by hand": lambda nn: lambda p, y: ((p - y) ** 2).mean(),
    "function": lambda nn: F.huber_loss,
    "gaussian": lambda nn: lambda p, y: nn.GaussianNLLLoss()(p, y, 0.7),
}
OF_SHARES = {
    "bce": lambda nn: nn.BCEWithLogitsLoss(),
    "poisson": lambda nn: nn.PoissonNLLLoss(),
    "kl": lambda nn: nn.KLDivLoss(reduction="batchmean"),
}
OF_CLASSES = {
    "classes": lambda nn: nn.CrossEntropyLoss(ignore_index=1),
    "smoothed": lambda nn: nn.CrossEntropyLoss(label_smoothing=0.2),
}
CRITERIA = OF_REALS | OF_SHARES | OF_CLASSES
OPTIMIZERS = {
    "SGD": [{}, {"momentum": 0.9}, {"momentum": 0.9, "nesterov": True, "weight_decay": 0.1}],
    "Adam": [{}, {"amsgrad": True}, {"maximize": True}],
    "AdamW": [{}],
    "ASGD": [{"t0": 2}],
    "Rprop": [{}],
    "RMSprop": [{"centered": True}, {"momentum": 0.9}],
    "Adagrad": [{"lr_decay": 0.1}],
    "Adadelta": [{}],
    "Adamax": [{}],
    "NAdam": [{}],
    "RAdam": [{"weight_decay": 0.1}],
}


def target(side):
    rows = torch.rand(len(side.x), 3, generator=side.random, dtype=torch.float64)
    if side.loss in OF_CLASSES:
        return rows.argmax(1)
    y = rows if "outputs" in side.model_name else rows[:, 0]
    return 4 * y - 2 if side.loss in OF_REALS else y


def fresh_data(side):
    n = int(torch.randint(2, 40, (), generator=side.random))
    of_x = (n, 2) if "variables" in side.model_name else (n,)
    side.x = torch.randn(of_x, generator=side.random, dtype=torch.float64)
    side.y = target(side)


def first(side):
    return next(side.model.parameters())


def set_lr(side):
    for group in side.optimizer.param_groups:
        group["lr"] *= 0.7


def no_grad_change(side):
    with torch.no_grad():
        first(side).mul_(0.9)


def reload_state(side):
    side.optimizer.load_state_dict(copy.deepcopy(side.optimizer.state_dict()))


def look(side):
    with torch.no_grad():
        prediction = side.model(side.x)
        side.seen += [prediction.clone(), side.criterion(prediction, side.y)]


def fail(side):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's, of the sizes
        try:
            side.criterion(side.model(side.x), side.x.new_zeros(len(side.x) + 1, 7)).backward()
        except (RuntimeError, ValueError) as error:
            side.seen.append(isinstance(error, RuntimeError))


BEFORE = {
    "nothing": lambda side: None,
    "fresh data": fresh_data,
    "other targets": lambda side: setattr(side, "y", target(side)),
    "x in place": lambda side: side.x.mul_(0.9),
    "parameter in place": no_grad_change,
    "parameter's data": lambda side: first(side).data.mul_(0.9),
    "freeze or thaw": lambda side: first(side).requires_grad_(not first(side).requires_grad),
    "lr": set_lr,
    "state reloaded": reload_state,
    "a look": look,
    "a failure": fail,
}


def loss_of(side):
    return side.criterion(side.model(side.x), side.y)


def plain(side):
    loss = loss_of(side)
    side.optimizer.zero_grad()
    loss.backward()
    side.optimizer.step()
    return loss


def zero_grad_last(side):
    loss = loss_of(side)
    loss.backward()
    side.optimizer.step()
    side.optimizer.zero_grad()
    return loss


def accumulate(side):
    side.optimizer.zero_grad(set_to_none=False)
    for _ in range(2):
        loss = loss_of(side)
        loss.backward()
    side.optimizer.step()
    return loss


def twice_retained(side):
    loss = loss_of(side)
    side.optimizer.zero_grad()
    loss.backward(retain_graph=True)
    loss.backward()
    side.optimizer.step()
    return loss


def twice_freed(side):
    loss = loss_of(side)
    side.optimizer.zero_grad()
    loss.backward()
    try:
        loss.backward()
        side.seen.append("no error")
    except RuntimeError:
        side.seen.append("an error")
    side.optimizer.step()
    return loss


def closure(side):
    def once():
        side.optimizer.zero_grad()
        loss = loss_of(side)
        loss.backward()
        return loss

    return side.optimizer.step(once)


def by_grad(side):
    params = [p for p in side.model.parameters() if p.requires_grad]
    loss = loss_of(side)
    for p, g in zip(params, torch.autograd.grad(loss, params), strict=True):
        p.grad = g
    side.optimizer.step()
    return loss


def regularised(side):
    loss = loss_of(side) + 0.1 * sum((p**2).sum() for p in side.model.parameters())
    side.optimizer.zero_grad()
    loss.backward()
    side.optimizer.step()
    return loss


def clipped(side):
    loss = 0.5 * loss_of(side)
    side.optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(side.model.parameters(), 0.3)
    side.optimizer.step()
    side.optimizer.step()
    return loss


def skipped(side):
    loss = loss_of(side)
    side.optimizer.zero_grad()
    loss.backward()
    return loss


STYLES = {
    f.__name__: f
    for f in (plain, zero_grad_last, accumulate, twice_retained, twice_freed, closure, by_grad,
              regularised, clipped, skipped)
}  # fmt: skip


def numbers(side):
    for p in side.model.parameters():
        yield from (p.detach(), p.grad)
        state = side.optimizer.state.get(p, {})
        yield from (state[key] for key in sorted(state))


def run(nn, optim, model, loss, optimizer, events):
    """Everything that a user could look at, iteration by iteration."""
    side = SimpleNamespace(model_name=model, loss=loss, seen=[], random=torch.Generator())
    side.random.manual_seed(1)
    fresh_data(side)
    side.model, side.criterion = MODELS[model](nn).double(), CRITERIA[loss](nn)
    name, options = optimizer
    side.optimizer = getattr(optim, name)(side.model.parameters(), lr=0.01, **options)
    for before, style in events:
        BEFORE[before](side)
        try:
            side.seen.append(STYLES[style](side).detach().clone())
        except (RuntimeError, ValueError) as error:  # all is frozen
            side.seen.append(type(error).__name__)
        side.seen += [t.clone() if isinstance(t, torch.Tensor) else t for t in numbers(side)]
    return side.seen


@settings(max_examples=400)
@given(
    model=st.sampled_from(sorted(MODELS)),
    loss=st.sampled_from(sorted(CRITERIA)),
    optimizer=st.sampled_from([(n, o) for n, each in OPTIMIZERS.items() for o in each]),
    events=st.lists(
        st.tuples(st.sampled_from(sorted(BEFORE)), st.sampled_from(sorted(STYLES))),
        min_size=2, max_size=10,
    ),
)  # fmt: skip
def test_a_random_loop_is_torchs(model, loss, optimizer, events):
    assume(loss not in OF_CLASSES or "outputs" in model)
    # Signs of residuals add up to 0 but for rounding, which most rules would scale up.
    assume(loss != "l1" or optimizer[0] in ("SGD", "ASGD"))
    found, truth = (
        run(nn, optim, model, loss, optimizer, events)
        for nn, optim in ((polyfuse.nn, polyfuse.optim), (torch.nn, torch.optim))
    )
    assert len(found) == len(truth)
    for mine, torchs in zip(found, truth, strict=True):
        if isinstance(torchs, torch.Tensor):
            torch.testing.assert_close(mine, torchs, check_dtype=False, **CLOSE)
        else:
            assert mine == torchs
