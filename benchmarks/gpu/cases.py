"""What is measured on a GPU: each case a set of contestants that compute the same, and a check."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import polyfuse as pf
import torch
from cases import EXACT, Case, expect, parameters, per, repeat
from polyfuse import workload
from polyfuse.backends import REGISTRY, backend_of
from polyfuse.backends.device import DeviceMap, device_rule
from polyfuse.backends.tables import nothing, tables
from polyfuse.criteria import SQUARED
from polyfuse.fused import fused
from polyfuse.rules import SgdOptions

DEVICE = torch.device("cuda", 0)  # as a tensor there has it: with its index
BACKENDS: tuple[str, ...] = ("cuda", "triton")


def waited(call: Callable[[], Any]) -> Callable[[], Any]:
    """The call with the wait for what it launched."""

    def both() -> None:
        call()
        torch.cuda.synchronize()

    return both


def in_a_row(call: Callable[[], Any], count: int = 20) -> Callable[[], Any]:
    """So many calls and one wait: what the host does for one hides behind the device's work."""

    def all_of_them() -> None:
        for _ in range(count):
            call()
        torch.cuda.synchronize()

    return per(count, all_of_them)


def there() -> dict[str, str]:
    """The device backends, 'available' or why not."""
    return {name: state for name, state in pf.backends().items() if name in BACKENDS}


def nine_on_device() -> tuple[torch.Tensor, torch.Tensor]:
    xs, ys = workload.data()
    return xs.to(DEVICE), ys.to(DEVICE)


def new(nn: Any, optim: Any, lr: float, **options: Any) -> tuple[Any, Any, Any]:
    model = workload.make_model(nn).to(DEVICE)
    return model, nn.MSELoss(), optim.SGD(model.parameters(), lr=lr, **options)


def replays(step: Callable[[], Any], count: int) -> Callable[[], None]:
    """A step, taken a few times and then captured in a CUDA graph, so many times."""
    side, graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(side)
    with torch.cuda.graph(graph):
        step()

    def replay() -> None:
        for _ in range(count):
            graph.replay()

    return replay


def whole_workload(quick: bool) -> Case:
    """100,000 epochs on nine points that lie on the device."""
    xs, ys = nine_on_device()
    epochs = 1000 if quick else workload.EPOCHS
    contestants: dict[str, Callable[[], Any]] = {}
    missing: dict[str, str] = {}
    fits: list[tuple[Any, Callable[[], Any]]] = []
    for backend, state in there().items():
        for engine in ("closed_form", "moments", "stream"):
            name = f"polyfuse.fit {engine}, {backend}"
            if state != "available":
                missing[name] = state
                continue
            model, criterion, optimizer = new(torch.nn, torch.optim, workload.LR)

            def fit(m=model, c=criterion, o=optimizer, e=engine, b=backend) -> None:
                pf.fit(m, c, o, xs, ys, epochs=epochs, engine=e, backend=b)

            fits.append((model, fit))
            contestants[name] = repeat(5, waited(fit))
    steps = 100 if quick else 1000
    eager = new(torch.nn, torch.optim, workload.LR)
    contestants[f"eager PyTorch ({steps:,} steps, scaled)"] = per(
        steps / epochs, waited(lambda: workload.loop(*eager, xs, ys, steps))
    )
    graphed = new(torch.nn, torch.optim, workload.LR)
    contestants[f"CUDA graph of the eager step ({steps:,} replays, scaled)"] = per(
        steps / epochs, waited(replays(lambda: workload.loop(*graphed, xs, ys, 1), steps))
    )
    try:
        name, run = loop_of_jax(xs, ys, steps)
        contestants[f"{name} ({steps:,} steps, scaled)"] = per(steps / epochs, run)
    except Exception as error:  # not installed, or without what it takes to reach the device
        missing["JAX jitted fori_loop"] = f"{type(error).__name__}: {error}"

    def check() -> None:
        found = []
        for model, fit in fits:  # which, when they are timed, go on from where the last one ended
            with torch.no_grad():
                for p, start in zip(model.parameters(), (1.0, 2.0, 3.0), strict=True):
                    p.fill_(start)
            fit()
            found.append(parameters(model))
            expect(found[-1], found[0] if quick else EXACT, 1e-5 if quick else 1e-6)

    return Case("whole workload: 9 points, 100,000 epochs", contestants, {"all": check}, missing,
                target="closed_form < 60 us, moments < 3 ms, stream < 10 ms")  # fmt: skip


def loop_of_jax(
    xs: torch.Tensor, ys: torch.Tensor, steps: int
) -> tuple[str, Callable[[], Any]]:  # fmt: skip
    """So many steps of plain gradient descent in JAX, and what they are called; compiled."""
    import jax

    x32, y32 = jax.numpy.asarray(xs.cpu().numpy()), jax.numpy.asarray(ys.cpu().numpy())
    gradient = jax.grad(lambda p: ((p[0] * x32**2 + p[1] * x32 + p[2] - y32) ** 2).mean())
    run = jax.jit(
        lambda p: jax.lax.fori_loop(0, steps, lambda _, q: q - workload.LR * gradient(q), p)
    )
    first = jax.numpy.array([1.0, 2.0, 3.0])
    run(first).block_until_ready()
    name = f"JAX jitted fori_loop on {jax.devices()[0].platform}"
    return name, lambda: run(first).block_until_ready()


def compiled_loop(quick: bool) -> Case:
    """The step compiled by torch, which takes a while to compile."""
    xs, ys = nine_on_device()
    steps = 100 if quick else 1000
    model, criterion, optimizer = new(torch.nn, torch.optim, workload.LR)
    loss_of = torch.compile(lambda x, y: criterion(model(x), y), mode="max-autotune-no-cudagraphs")

    def loop() -> None:
        for _ in range(steps):
            optimizer.zero_grad()
            loss_of(xs, ys).backward()
            optimizer.step()

    name = f"torch.compile'd loss ({steps:,} steps, scaled)"
    contestants = {name: per(steps / workload.EPOCHS, waited(loop))}
    return Case("whole workload, torch.compile", contestants, {})


def loop_of(parts: tuple[Any, ...], steps: int) -> Callable[[], Any]:
    """The training loop over a model, criterion, optimizer, x and y, by its iterations."""
    return per(steps, waited(lambda: workload.loop(*parts, steps)))


def after_three(parts: tuple[Any, ...]) -> Any:
    """The model after three of them."""
    workload.loop(*parts, 3)
    return parts[0]


def loop_iteration(quick: bool, optimizer: str, **options: Any) -> Case:
    """The import-swap loop, per iteration."""
    xs, ys = nine_on_device()
    steps = 200 if quick else 2000
    swap: dict[str, tuple[Any, Any, dict[str, bool]]] = {
        "import swap": (pf.nn, pf.optim, {}),
        "eager PyTorch": (torch.nn, torch.optim, {}),
        f"eager, {optimizer}(fused=True)": (torch.nn, torch.optim, {"fused": True}),
    }

    def parts(nn: Any, optim: Any, fused: dict[str, bool]) -> tuple[Any, ...]:
        model = workload.make_model(nn).to(DEVICE)
        made = getattr(optim, optimizer)(model.parameters(), **options, **fused)
        return model, nn.MSELoss(), made, xs, ys

    contestants = {name: loop_of(parts(*of), steps) for name, of in swap.items()}

    def check() -> None:
        first, *others = (parameters(after_three(parts(*of))) for of in swap.values())
        for other in others:
            expect(first, other, 1e-5)
        runner, mine = backend_of(DEVICE, 3), parts(pf.nn, pf.optim, {})
        workload.loop(*mine, 3)
        before = runner.launches()
        workload.loop(*mine, 10)
        assert runner.launches() - before == 10, "launches in 10 iterations"

    return Case(f"import-swap loop, {optimizer}, one iteration, n = 9", contestants,
                {"all": check}, target="1 launch, under 20 us, 10 x eager")  # fmt: skip


def step_in_a_graph(quick: bool) -> Case:
    """A step that a CUDA graph replays, per replay."""
    xs, ys = nine_on_device()
    steps = 200 if quick else 2000
    mine, eager = (new(torch.nn, torch.optim, workload.LR) for _ in range(2))
    fused_step = pf.fuse(*mine)
    graphs = {
        "polyfuse.fuse step": replays(lambda: fused_step(xs, ys), steps),
        "eager PyTorch": replays(lambda: workload.loop(*eager, xs, ys, 1), steps),
    }

    def check() -> None:
        for replay in graphs.values():
            replay()
        expect(parameters(mine[0]), parameters(eager[0]), 1e-4)

    contestants = {name: per(steps, waited(replay)) for name, replay in graphs.items()}
    return Case("one step in a CUDA graph, n = 9", contestants, {"all": check})


def large(
    n: int, arrays: int = 2
) -> tuple[torch.Tensor, torch.Tensor, Callable[[], Any], Callable[[], Any]]:
    """Data, one copy of as many bytes (read and written) as so many arrays, one read of them."""
    xs = torch.linspace(-1, 1, n, device=DEVICE)
    source = torch.ones(arrays * n, device=DEVICE)
    half = arrays * n // 2
    target = torch.empty(half, device=DEVICE)
    return xs, torch.exp(xs), in_a_row(lambda: target.copy_(source[:half])), in_a_row(source.sum)


def one_step(quick: bool, weighted: bool) -> Case:
    """The fused step on many samples, by its kernels and by `pf.fuse`."""
    n = 1_000_000 if quick else 100_000_000
    xs, ys, copy, read = large(n, 3 if weighted else 2)
    weight = torch.rand(n, device=DEVICE) if weighted else None
    contestants: dict[str, Callable[[], Any]] = {}
    missing, states = {}, {}
    traced = fused(pf.nn.Polynomial(2).to(DEVICE), torch.float32, DEVICE).traced
    params, grads, spares = ([torch.zeros(3, device=DEVICE)] for _ in range(3))
    rule = device_rule((SgdOptions(0.1, 0.0, 0.0, 0.0, False, False),) * 3, DEVICE)
    for name, state in there().items():
        if state != "available":
            missing[name] = state
            continue

        def step(name: str = name) -> None:
            table = tables(traced, params, grads, nothing(1), spares)
            states[name] = REGISTRY[name].step(
                DeviceMap.of(traced, DEVICE), rule, table, xs, ys, traced, True, None, SQUARED,
                weight,
            )  # fmt: skip

        contestants[f"step, {name}"] = in_a_row(step)
    if not weighted:
        model = pf.nn.Polynomial(2).to(DEVICE)
        call = pf.fuse(
            model, torch.nn.MSELoss(), torch.optim.SGD(model.parameters(), lr=1e-6)
        )  # fmt: skip
        contestants["polyfuse.fuse step"] = in_a_row(lambda: call(xs, ys))
    contestants["copying as many bytes, read and written"] = copy
    contestants["reading the data once (torch.sum)"] = read

    def check() -> None:
        w = torch.ones_like(xs, dtype=torch.float64) if weight is None else weight.double()
        u = xs.double()
        truth = [float(-2 * (w * u**k * ys.double()).sum() / w.sum()) for k in range(3)]
        for state in states.values():
            expect(state[3:6].cpu(), truth, 1e-5)

    size = 12 if weighted else 8
    title = "one weighted step" if weighted else "one step"
    return Case(f"{title}, n = {n:,} float32, degree 2", contestants, {"all": check}, missing,
                bytes=size * n, target="90 % of copy bandwidth")  # fmt: skip


def runs(quick: bool, title: str, n: int, epochs: int, engine: str, target: str) -> Case:
    """polyfuse.fit on n samples, beside copying and reading as many bytes once."""
    n = min(n, 1_000_000) if quick else n
    xs, ys, copy, read = large(n)
    contestants: dict[str, Callable[[], Any]] = {}
    missing, last = {}, {}
    for backend, state in there().items():
        name = f"polyfuse.fit {engine}, {backend}"
        if state != "available":
            missing[name] = state
            continue
        model = pf.nn.Polynomial(2).to(DEVICE)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

        def fit(m=model, o=optimizer, b=backend, name=name) -> None:
            with torch.no_grad():
                m.coefficients.zero_()
            pf.fit(m, torch.nn.MSELoss(), o, xs, ys, epochs=epochs, engine=engine, backend=b,
                   nan_policy="propagate")  # fmt: skip
            last[name] = m

        contestants[name] = repeat(5, waited(fit))
    contestants["copying as many bytes, read and written"] = copy
    contestants["reading the data once (torch.sum)"] = read

    def check() -> None:
        u = xs.double()
        v = torch.stack([u**0, u, u**2])
        gram, right = (v @ v.T / n).cpu().numpy(), (v @ ys.double() / n).cpu().numpy()
        truth = np.zeros(3)
        for _ in range(epochs):
            truth -= 0.1 * 2 * (gram @ truth - right)
        for model in last.values():
            expect(model.coefficients.detach().cpu().numpy(), truth, 1e-5)

    return Case(f"{title}, n = {n:,} float32, degree 2", contestants, {"all": check}, missing,
                bytes=8 * n, target=target)  # fmt: skip


def batch(quick: bool, own: bool) -> Case:
    """10 million fits of 20 points, solved, and 100 epochs of them."""
    points, fits = 20, 100_000 if quick else 10_000_000
    x = torch.rand(points, fits, device=DEVICE) if own else torch.rand(points, device=DEVICE)
    of_fit = x if own else x[:, None]
    y = 1 + 2 * of_fit + 3 * of_fit**2 + 0.1 * torch.randn(points, fits, device=DEVICE)
    _, _, copy, read = large(points * fits, 2 if own else 1)
    contestants: dict[str, Callable[[], Any]] = {}
    missing, solved = {}, {}
    for backend, state in there().items():
        if state != "available":
            missing[f"polyfuse.solve, {backend}"] = state
            continue
        model = pf.nn.Polynomial(2, batch_shape=(fits,), device=DEVICE)
        fitted = pf.nn.Polynomial(2, batch_shape=(fits,), device=DEVICE)
        optimizer = torch.optim.SGD(fitted.parameters(), lr=0.1)

        def solve(m=model, b=backend) -> None:
            pf.solve(m, x, y, nan_policy="propagate", backend=b)

        def fit(m=fitted, o=optimizer, b=backend) -> None:
            pf.fit(m, torch.nn.MSELoss(), o, x, y, epochs=100, engine="moments", backend=b,
                   nan_policy="propagate")  # fmt: skip

        contestants[f"polyfuse.solve, {backend}"] = repeat(5, waited(solve))
        contestants[f"polyfuse.fit, 100 epochs of SGD, {backend}"] = waited(fit)
        solved[backend] = model
    contestants["copying as many bytes, read and written"] = copy
    contestants["reading the data once (torch.sum)"] = read

    def check() -> None:
        some = slice(0, 1000)
        ones = torch.ones(points, 1000, dtype=torch.float64, device=DEVICE)
        u = of_fit[:, some].double() * ones
        v = torch.stack([u**k for k in range(3)], -1).transpose(0, 1)
        right = y[:, some].double().T[..., None]
        truth = torch.linalg.lstsq(v.cpu(), right.cpu()).solution[..., 0].T
        for model in solved.values():
            found = model.coefficients[:, some].detach().double().cpu()
            torch.testing.assert_close(found, truth, rtol=1e-4, atol=1e-4)

    kind = "own" if own else "shared"
    return Case(f"{fits:,} fits of {points} points, degree 2, {kind} x", contestants,
                {"all": check}, missing, bytes=(8 if own else 4) * points * fits,
                target="80 % of copy bandwidth, solved")  # fmt: skip


class Parabolas(torch.nn.Module):
    """What a batch of degree 2 computes, in torch."""

    def __init__(self, fits: int):
        super().__init__()
        self.coefficients = torch.nn.Parameter(torch.zeros(3, fits, device=DEVICE))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        c, u = self.coefficients, x[:, None]
        return c[0] + u * (c[1] + u * c[2])


def batch_loop(quick: bool) -> Case:
    """The import-swap loop over 100,000 fits of 20 points, per iteration."""
    points, fits, steps = 20, 100_000, 20 if quick else 200
    x = torch.linspace(-1, 1, points, device=DEVICE)
    y = torch.randn(points, fits, device=DEVICE)

    def parts(nn: Any, optim: Any) -> tuple[Any, ...]:
        model: Any = Parabolas(fits)
        if nn is pf.nn:
            model = nn.Polynomial(2, batch_shape=(fits,), device=DEVICE)
            torch.nn.init.zeros_(model.coefficients)
        return model, nn.MSELoss(), optim.SGD(model.parameters(), lr=1e4), x, y

    swap = {"import swap": (pf.nn, pf.optim), "eager PyTorch": (torch.nn, torch.optim)}
    contestants = {name: loop_of(parts(*of), steps) for name, of in swap.items()}

    def check() -> None:
        found = (after_three(parts(*of)).coefficients.detach().cpu() for of in swap.values())
        torch.testing.assert_close(*found, rtol=1e-4, atol=1e-5)

    return Case(f"import-swap loop over {fits:,} fits of {points} points, one iteration",
                contestants, {"all": check}, bytes=4 * points * fits)  # fmt: skip


class Alone:
    """A case of one backend alone."""

    def __init__(self, make: Callable[[], Case], backend: str):
        self.make, self.backend = make, backend

    def __call__(self) -> Case:
        global BACKENDS
        before, BACKENDS = BACKENDS, (self.backend,)
        try:
            return self.make()
        finally:
            BACKENDS = before


def lost() -> bool:
    """Whether an error has left the process without its device."""
    try:
        torch.cuda.synchronize()
    except RuntimeError:
        return True
    return False


def cases(quick: bool) -> list[Callable[[], Case]]:
    return [
        lambda: whole_workload(quick),
        lambda: loop_iteration(quick, "SGD", lr=workload.LR),
        lambda: one_step(quick, False),
        lambda: runs(quick, "10,000 epochs", 2_000_000, 10_000, "stream",
                     "3 x the rate of reading the data every epoch"),
        lambda: runs(quick, "1,000 epochs", 100_000_000, 1000, "auto", "1.3 x one read"),
        lambda: loop_iteration(quick, "Adam", lr=0.01),
        lambda: step_in_a_graph(quick),
        lambda: one_step(quick, True),
        lambda: batch(quick, True),
        lambda: batch(quick, False),
        lambda: batch_loop(quick),
        lambda: compiled_loop(quick),
    ]  # fmt: skip
