"""What is measured: each case a set of contestants that compute the same, and a check of each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Any

import numpy as np
import polyfuse as pf
import torch
from polyfuse import _C, workload

EXACT = np.array([0.77334418, -6.59796653, 12.73228830])


@dataclass
class Case:
    name: str
    contestants: dict[str, Callable[[], Any]]
    check: dict[str, Callable[[], None]] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)
    bytes: int = 0  # read by one call
    target: str = ""


def parameters(model: Any) -> np.ndarray:
    return np.array([p.item() for p in model.parameters()])


def expect(found: Any, truth: Any, rtol: float) -> None:
    np.testing.assert_allclose(np.asarray(found), np.asarray(truth), rtol=rtol, atol=1e-6)


def whole_workload(quick: bool) -> Case:
    """100,000 epochs on nine points."""
    xs, ys = workload.data()
    epochs = 1000 if quick else workload.EPOCHS
    model = workload.make_model(torch.nn)
    optimizer = torch.optim.SGD(model.parameters(), lr=workload.LR)
    criterion = torch.nn.MSELoss()
    parameters_of_model = list(model.parameters())
    start = [p.detach().clone() for p in parameters_of_model]

    def reset() -> None:
        with torch.no_grad():
            torch._foreach_copy_(parameters_of_model, start)

    last: dict[str, np.ndarray] = {}

    def fit(engine: str) -> Callable[[], Any]:
        def call() -> None:
            reset()
            pf.fit(model, criterion, optimizer, xs, ys, epochs=epochs, engine=engine)
            last[engine] = parameters(model)

        return call

    eager_steps = 300 if quick else 2000
    eager_model = workload.make_model(torch.nn)
    eager_optimizer = torch.optim.SGD(eager_model.parameters(), lr=workload.LR)

    contestants: dict[str, Callable[[], Any]] = {
        "polyfuse.fit auto": repeat(20, fit("auto")),
        "polyfuse.fit moments": fit("moments"),
        "polyfuse.fit stream": repeat(5, fit("stream")),
        f"eager PyTorch ({eager_steps:,} steps, scaled)": per(
            eager_steps / epochs,
            lambda: workload.loop(eager_model, criterion, eager_optimizer, xs, ys, eager_steps),
        ),
    }
    missing: dict[str, str] = {}
    x64, y64 = xs.double().numpy(), ys.double().numpy()
    if find_spec("jax"):
        import jax

        x32, y32 = jax.numpy.asarray(xs.numpy()), jax.numpy.asarray(ys.numpy())

        def loss(p: Any) -> Any:
            return ((p[0] * x32**2 + p[1] * x32 + p[2] - y32) ** 2).mean()

        gradient = jax.grad(loss)
        run = jax.jit(
            lambda p: jax.lax.fori_loop(0, epochs, lambda _, q: q - workload.LR * gradient(q), p)
        )
        first = jax.numpy.array([1.0, 2.0, 3.0])

        def jax_loop() -> None:
            last["jax"] = np.asarray(run(first).block_until_ready())

        contestants["JAX jitted fori_loop"] = repeat(5, jax_loop)
    else:
        missing["JAX jitted fori_loop"] = "jax is not installed"
    if find_spec("numba"):
        import numba

        @numba.njit(fastmath=True)
        def numba_loop(x, y, a, b, c, lr, epochs):
            n = x.size
            for _ in range(epochs):
                ga = gb = gc = 0.0
                for i in range(n):
                    g = a * x[i] * x[i] + b * x[i] + c - y[i]
                    ga += g * x[i] * x[i]
                    gb += g * x[i]
                    gc += g
                a -= lr * 2 / n * ga
                b -= lr * 2 / n * gb
                c -= lr * 2 / n * gc
            return a, b, c

        def call_numba() -> None:
            last["numba"] = np.array(numba_loop(x64, y64, 1.0, 2.0, 3.0, workload.LR, epochs))

        contestants["numba compiled loop"] = repeat(5, call_numba)
    else:
        missing["numba compiled loop"] = "numba is not installed"

    def np_polyfit() -> None:
        last["polyfit"] = np.polyfit(x64, y64, 2)

    contestants["numpy.polyfit (the optimum, no epochs)"] = repeat(20, np_polyfit)

    def check_all() -> None:
        same = workload.make_model(torch.nn)
        pf.fit(same, criterion, torch.optim.SGD(same.parameters(), lr=workload.LR), xs, ys,
               epochs=eager_steps)  # fmt: skip
        expect(parameters(same), parameters(eager_model), 1e-4)
        if quick:
            expect(last["stream"], last["auto"], 1e-6)
            return
        for name in ("auto", "moments", "stream", "numba"):
            if name in last:
                expect(last[name], EXACT, 1e-6)
        if "jax" in last:
            expect(last["jax"], EXACT, 1e-2)
        expect(last["polyfit"], [0.9718939, -8.82743901, 17.89166592], 1e-6)

    return Case("whole workload: 9 points, 100,000 epochs", contestants, {"all": check_all},
                missing, target="fit <= 200 us; stream <= numba")  # fmt: skip


def loop_iteration(quick: bool, n: int, static: bool) -> Case:
    """The import-swap loop, per iteration."""
    steps = 200 if quick else 2000
    if n == 9:
        xs, ys = workload.data()
        lr = workload.LR
    else:
        xs = torch.linspace(-1, 1, n)
        ys = torch.exp(xs)
        lr = 0.1
    if static:
        pf.static(xs, ys)
    contestants: dict[str, Callable[[], Any]] = {}
    models = {}
    swap = {"import swap": (pf.nn, pf.optim, {}, steps)}
    eager_steps = steps if n == 9 else (1 if quick else 2)
    swap["eager PyTorch"] = (torch.nn, torch.optim, {}, eager_steps)
    if n == 9:
        swap["eager, SGD(fused=True)"] = (torch.nn, torch.optim, {"fused": True}, steps)
    for name, (nn, optim, options, count) in swap.items():
        model = models[name] = workload.make_model(nn)
        optimizer = optim.SGD(model.parameters(), lr=lr, **options)
        criterion = nn.MSELoss()
        contestants[name] = per(
            count, lambda m=model, c=criterion, o=optimizer, k=count: workload.loop(
                m, c, o, xs, ys, k
            )
        )  # fmt: skip

    def check() -> None:
        found = []
        for nn, optim, options, _ in swap.values():
            model = workload.make_model(nn)
            optimizer = optim.SGD(model.parameters(), lr=lr, **options)
            workload.loop(model, nn.MSELoss(), optimizer, xs, ys, 3)
            found.append(parameters(model))
        for other in found[1:]:
            expect(found[0], other, 1e-5)

    kind = "static data" if static else "any data"
    return Case(f"import-swap loop, one iteration, n = {n:,}, {kind}", contestants,
                {"all": check}, target="30 x eager at 9 points")  # fmt: skip


def per(count: float, call: Callable[[], Any]) -> Callable[[], Any]:
    """A call that takes `count` steps; the runner divides by them."""
    call.steps = count  # type: ignore[attr-defined]
    return call


def repeat(count: int, call: Callable[[], Any]) -> Callable[[], Any]:
    """A call that is made several times a turn, whose median is the turn's: the first call wakes
    threads that sleep and finds caches cold."""

    def repeated() -> Any:
        return call()

    repeated.calls = count  # type: ignore[attr-defined]
    return repeated


def one_step(quick: bool) -> Case:
    """One step over 10 million float32 samples, degree 2."""
    n = 200_000 if quick else 10_000_000
    xs = torch.linspace(-1, 1, n)
    ys = torch.exp(xs)
    model = workload.make_model(torch.nn)
    step = pf.fuse(model, torch.nn.MSELoss(), torch.optim.SGD(model.parameters(), lr=0.1))
    read = torch.empty(2 * n).fill_(1.0)
    contestants: dict[str, Callable[[], Any]] = {
        "polyfuse.fuse step": lambda: step(xs, ys),
        "reading the data once (torch.sum)": lambda: read.sum(),
    }
    eager = workload.make_model(torch.nn)
    optimizer = torch.optim.SGD(eager.parameters(), lr=0.1)
    contestants["eager PyTorch"] = lambda: workload.loop(
        eager, torch.nn.MSELoss(), optimizer, xs, ys, 1
    )
    missing: dict[str, str] = {}
    compiled = workload.make_model(torch.nn)
    compiled_optimizer = torch.optim.SGD(compiled.parameters(), lr=0.1)
    loss = torch.compile(lambda x, y: torch.nn.functional.mse_loss(compiled(x), y))

    def compiled_step() -> None:
        compiled_optimizer.zero_grad()
        loss(xs, ys).backward()
        compiled_optimizer.step()

    first_steps: list[np.ndarray] = []
    try:
        compiled_step()
        first_steps.append(parameters(compiled))
        contestants["torch.compile'd loss"] = compiled_step
    except Exception as error:  # torch.compile needs a working C++ toolchain
        missing["torch.compile'd loss"] = f"{type(error).__name__}"

    def check() -> None:
        found, truth = workload.make_model(torch.nn), workload.make_model(torch.nn)
        pf.fuse(found, torch.nn.MSELoss(), torch.optim.SGD(found.parameters(), lr=0.1))(xs, ys)
        workload.loop(truth, torch.nn.MSELoss(), torch.optim.SGD(truth.parameters(), lr=0.1),
                      xs, ys, 1)  # fmt: skip
        for after_one in (parameters(found), *first_steps):
            expect(after_one, parameters(truth), 1e-4)

    contestants = {name: repeat(5, call) for name, call in contestants.items()}
    return Case(f"one step, n = {n:,} float32, degree 2", contestants, {"all": check}, missing,
                bytes=8 * n, target="85 % of read bandwidth; 2 x torch.compile")  # fmt: skip


def many_epochs(quick: bool) -> Case:
    """1,000 epochs over 10 million float32 samples."""
    n = 200_000 if quick else 10_000_000
    xs = torch.linspace(-1, 1, n)
    ys = torch.exp(xs)
    model = pf.nn.Polynomial(2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    read = torch.empty(2 * n).fill_(1.0)
    numpy_x, numpy_y = xs.numpy(), ys.numpy()

    def fit() -> None:
        with torch.no_grad():
            model.coefficients.zero_()
        pf.fit(model, torch.nn.MSELoss(), optimizer, xs, ys, epochs=1000)

    def check() -> None:
        v = np.vander(numpy_x.astype(np.float64), 3, increasing=True)
        gram, right = v.T @ v / n, v.T @ numpy_y.astype(np.float64) / n
        truth = np.zeros(3)
        for _ in range(1000):
            truth -= 0.1 * 2 * (gram @ truth - right)
        expect(model.coefficients.detach().numpy(), truth, 1e-6)
        expect(np.polyfit(numpy_x, numpy_y, 2)[::-1], np.linalg.solve(gram, right), 1e-4)

    return Case(f"1,000 epochs, n = {n:,} float32, engine auto",
                {"polyfuse.fit auto": repeat(5, fit),
                 "reading the data once (torch.sum)": repeat(5, lambda: read.sum()),
                 "numpy.polyfit": lambda: np.polyfit(numpy_x, numpy_y, 2)},
                {"all": check}, bytes=8 * n, target="2 x one read")  # fmt: skip


def one_call(quick: bool) -> Case:
    """One call into the compiled module."""
    count = 10_000

    def call() -> None:
        noop = _C.noop
        for _ in range(count):
            noop()

    return Case("one call into the compiled module", {"empty problem": per(count, call)},
                target="1 us")  # fmt: skip


def cases(quick: bool) -> list[Callable[[], Case]]:
    big = 200_000 if quick else 10_000_000
    return [
        lambda: whole_workload(quick),
        lambda: loop_iteration(quick, 9, False),
        lambda: loop_iteration(quick, 9, True),
        lambda: loop_iteration(quick, big, True),
        lambda: one_step(quick),
        lambda: many_epochs(quick),
        lambda: one_call(quick),
    ]
