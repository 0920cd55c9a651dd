"""Command line: ``polyfuse demo``, ``polyfuse fit FILE`` and ``polyfuse info``."""

from __future__ import annotations

import argparse
import contextlib
import csv
import json
import platform
import sys
import time
import warnings
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch

from . import _C, __version__, nn, optim, workload
from .backends import backends
from .fit import fit
from .solve import solve


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="polyfuse", description=__doc__)
    parser.add_argument("--version", action="version", version=f"polyfuse {__version__}")
    commands = parser.add_subparsers(dest="command", required=True)
    demo_parser = commands.add_parser("demo", help="fit nine points, beside plain PyTorch")
    demo_parser.add_argument("--plot", default="polyfuse_demo.png", help="where the plot goes")
    demo_parser.add_argument("--eager-steps", type=int, default=2000, help="steps of PyTorch timed")
    fit_parser = commands.add_parser(
        "fit", help="fit a polynomial to two columns of a CSV file",
        description="The least-squares optimum; or, with --epochs, --lr or --momentum, SGD.",
    )  # fmt: skip
    fit_parser.add_argument("file", type=Path)
    fit_parser.add_argument("--x", required=True, metavar="COL")
    fit_parser.add_argument("--y", required=True, metavar="COL")
    weights = fit_parser.add_mutually_exclusive_group()
    weights.add_argument("--weight", metavar="COL", help="weights of the rows")
    weights.add_argument("--sigma", metavar="COL", help="standard deviations of y")
    fit_parser.add_argument("--degree", type=int, default=1)
    fit_parser.add_argument("--epochs", type=int, help="10,000 where only others are given")
    fit_parser.add_argument("--lr", type=float, help="0.01")
    fit_parser.add_argument("--momentum", type=float, help="0")
    fit_parser.add_argument("--nan-policy", default="raise")
    fit_parser.add_argument("--plot", metavar="PNG", help="write a plot (needs matplotlib)")
    fit_parser.add_argument("--json", action="store_true", help="print JSON instead of text")
    commands.add_parser("info", help="versions, backends and CPU, to paste into a bug report")
    args = parser.parse_args(argv)
    with warnings.catch_warnings():
        warnings.showwarning = _show_warning  # type: ignore[assignment]
        try:
            if args.command == "demo":
                demo(args.plot, args.eager_steps)
            elif args.command == "fit":
                return fit_file(args)
            else:
                info()
        except (OSError, ValueError, TypeError, ImportError) as error:
            print(f"polyfuse: error: {error}", file=sys.stderr)
            return 2
    return 0


def _show_warning(message: Any, *_: Any) -> None:
    print(f"polyfuse: warning: {message}", file=sys.stderr)


# -- demo -----------------------------------------------------------------------------------------


def demo(plot: str, eager_steps: int) -> None:
    """Runs the workload fused and, for a slice of the epochs, in plain PyTorch."""
    xs, ys = workload.data()
    epochs, every = workload.EPOCHS, workload.EPOCHS // 10
    print(f"{epochs:,} epochs of SGD on 9 points, degree 2, float32\n")

    model = workload.make_model(nn)
    optimizer = optim.SGD(model.parameters(), lr=workload.LR)
    snapshots = {0: [p.item() for p in model.parameters()]}

    def keep(epoch: int, loss: float) -> None:
        snapshots[epoch] = [p.item() for p in model.parameters()]

    curves = fit(
        model, nn.MSELoss(), optimizer, xs, ys, epochs=epochs, record_every=every, callback=keep
    )
    for epoch, loss in zip(curves.history_epochs[:-1], curves.history[:-1], strict=True):
        print(f"Loss after {epoch} steps: {loss:.7g}")
    a, b, c = (p.item() for p in model.parameters())
    print(f"\na = {a:.7f}, b = {b:.7f}, c = {c:.7f}, loss = {curves.loss:.7f}\n")

    times = []
    for _ in range(7):
        model = workload.make_model(nn)
        optimizer = optim.SGD(model.parameters(), lr=workload.LR)
        fit(model, nn.MSELoss(), optimizer, xs, ys, epochs=1)  # the trace
        start = time.perf_counter()
        result = fit(model, nn.MSELoss(), optimizer, xs, ys, epochs=epochs)
        times.append(time.perf_counter() - start)
    fused_seconds = sorted(times)[len(times) // 2]

    steps = 20_000
    looped = workload.make_model(nn)
    optimizer = optim.SGD(looped.parameters(), lr=workload.LR)
    workload.loop(looped, nn.MSELoss(), optimizer, xs, ys, 200)
    start = time.perf_counter()
    workload.loop(looped, nn.MSELoss(), optimizer, xs, ys, steps)
    loop_seconds = (time.perf_counter() - start) / steps * epochs

    plain = workload.make_model(torch.nn)
    plain_optimizer = torch.optim.SGD(plain.parameters(), lr=workload.LR)
    workload.loop(plain, torch.nn.MSELoss(), plain_optimizer, xs, ys, 200)
    start = time.perf_counter()
    workload.loop(plain, torch.nn.MSELoss(), plain_optimizer, xs, ys, eager_steps)
    eager_seconds = (time.perf_counter() - start) / eager_steps * epochs

    print(f"{'':34}{'seconds':>12}{'speed-up':>12}")
    rows = (
        (f"plain PyTorch ({eager_steps:,} steps, scaled)", eager_seconds),
        (f"import swap   ({steps:,} steps, scaled)", loop_seconds),
        (f"polyfuse.fit  (engine {result.engine})", fused_seconds),
    )
    for label, seconds in rows:
        print(f"{label:<38}{seconds:>8.5f}{eager_seconds / seconds:>11,.0f}x")
    if find_spec("matplotlib") is None:
        print("\nno plot: matplotlib is not installed (pip install 'polyfuse[plot]')")
        return
    first = min(every, 1000)
    losses = fit(
        (again := workload.make_model(nn)), nn.MSELoss(),
        optim.SGD(again.parameters(), lr=workload.LR), xs, ys,
        epochs=epochs, record_every=first,
    )  # fmt: skip
    grid = np.linspace(0.5, 9.5, 200)
    shown = [0, every, 3 * every, epochs]
    lines = [
        (f"{e:,} epochs", grid, np.polyval(snapshots[e], grid)) for e in shown if e in snapshots
    ]
    draw(Path(plot), xs.numpy(), ys.numpy(), lines, losses.history_epochs, losses.history)


def draw(
    path: Path,
    x: np.ndarray,
    y: np.ndarray,
    lines: list[tuple[str, np.ndarray, np.ndarray]],
    epochs: np.ndarray,
    losses: np.ndarray,
) -> None:
    """Data with curves, and the loss curve; many points are thinned."""
    try:
        import matplotlib
    except ImportError as error:
        raise ImportError("--plot: needs matplotlib; pip install 'polyfuse[plot]'") from error
    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
    thin = max(1, len(x) // 5000)
    left.plot(x[::thin], y[::thin], "o", color="black", ms=5 if len(x) < 200 else 2, label="data")
    shades = plt.get_cmap("viridis")(np.linspace(0.85, 0.1, len(lines)))
    for (label, u, v), color in zip(lines, shades, strict=True):
        left.plot(u, v, color=color, label=label)
    left.set(xlabel="x", ylabel="y", title="data and fit")
    left.legend(frameon=False)
    right.plot(epochs, losses, color="tab:blue")
    right.set(xlabel="epoch", ylabel="loss", title="loss", yscale="log")
    figure.savefig(path, dpi=120)
    plt.close(figure)
    print(f"\nplot: {path}")


# -- fit ------------------------------------------------------------------------------------------


def read_columns(path: Path, names: list[str]) -> list[np.ndarray]:
    """Named columns of a CSV file with a header line; an empty cell is nan."""
    with open(path, newline="", encoding="utf-8-sig") as file:
        try:
            rows = csv.reader(file)
            header = [name.strip() for name in next(rows, [])]
            missing = [n for n in names if n not in header]
            if missing:
                found = ", ".join(header) or "nothing"
                raise ValueError(f"{path}: no column {missing[0]!r}; the header has {found}")
            at = [header.index(n) for n in names]
            values: list[list[float]] = []
            for row in rows:
                if not row:
                    continue
                try:
                    values.append([float(row[i]) if row[i].strip() else np.nan for i in at])
                except (ValueError, IndexError):
                    cells = ", ".join(row)
                    raise ValueError(
                        f"{path}, line {rows.line_num}: expected numbers, got {cells!r}"
                    ) from None
        except (UnicodeDecodeError, csv.Error) as error:
            raise ValueError(f"{path}: not a CSV file: {error}") from None
    if not values:
        raise ValueError(f"{path}: no rows below the header")
    return list(np.array(values).T.copy())


def fit_file(args: argparse.Namespace) -> int:
    names = {"weight": args.weight, "sigma": args.sigma}
    names = {argument: column for argument, column in names.items() if column is not None}
    x, y, *rest = read_columns(args.file, [args.x, args.y, *names.values()])
    weights = {name: torch.from_numpy(w) for name, w in zip(names, rest, strict=True)}
    model = nn.Polynomial(args.degree, dtype=torch.float64)
    trains = any(v is not None for v in (args.epochs, args.lr, args.momentum))
    result, report = (_train if trains else _solve)(args, model, x, y, weights)
    coefficients = model.coefficients.tolist()
    if args.json:
        report = {"coefficients": coefficients, **report, "samples": len(x)}
        print(json.dumps({k: _finite_or_none(v) for k, v in report.items()}))
    else:
        for k, c in enumerate(coefficients):
            print(f"c{k} = {c:.10g}")
        print(result if trains or find_spec("scipy") is None else result.summary())
    if args.plot:
        with contextlib.redirect_stdout(sys.stderr if args.json else sys.stdout):
            if trains:
                good = np.isfinite(x) & np.isfinite(y)
                grid = np.linspace(x[good].min(), x[good].max(), 300)
                curve = np.polynomial.polynomial.polyval(grid, coefficients)
                draw(
                    Path(args.plot), x[good], y[good], [("fit", grid, curve)],
                    result.history_epochs, result.history,
                )  # fmt: skip
            else:
                result.plot(args.plot)
                print(f"\nplot: {args.plot}")
    return int(trains and result.stop_reason == "diverged")


def _train(
    args: argparse.Namespace, model: Any, x: np.ndarray, y: np.ndarray, weights: dict[str, Any]
) -> tuple[Any, dict[str, Any]]:
    epochs = 10_000 if args.epochs is None else args.epochs
    lr = 0.01 if args.lr is None else args.lr
    optimizer = optim.SGD(model.parameters(), lr=lr, momentum=args.momentum or 0.0)
    result = fit(
        model, nn.MSELoss(), optimizer, torch.from_numpy(x), torch.from_numpy(y), epochs=epochs,
        record_every=max(1, epochs // 200), nan_policy=args.nan_policy,
        sample_weight=weights.get("weight"), sigma=weights.get("sigma"),
    )  # fmt: skip
    report = ("loss", "epochs", "stop_reason", "engine", "backend")
    return result, {name: getattr(result, name) for name in report}


def _solve(
    args: argparse.Namespace, model: Any, x: np.ndarray, y: np.ndarray, weights: dict[str, Any]
) -> tuple[Any, dict[str, Any]]:
    result = solve(
        model, torch.from_numpy(x), torch.from_numpy(y), nan_policy=args.nan_policy, **weights
    )
    s = result.statistics
    report = {
        "standard_errors": s.standard_errors.tolist(), "sum_of_squares": s.sum_of_squares,
        "r_squared": s.r_squared, "rank": s.rank, "backend": result.backend,
    }  # fmt: skip
    return result, report


def _finite_or_none(value: Any) -> Any:
    if isinstance(value, list):
        return [_finite_or_none(v) for v in value]
    return None if isinstance(value, float) and not np.isfinite(value) else value


# -- info -----------------------------------------------------------------------------------------


def info() -> None:
    print(f"polyfuse  {__version__}")
    print(f"torch     {torch.__version__}")
    print(f"numpy     {np.__version__}")
    print(f"python    {platform.python_version()} on {platform.platform()}")
    print(f"cpu       kernels {_C.isa()}, torch sees {torch.backends.cpu.get_cpu_capability()}")
    print(f"threads   {torch.get_num_threads()}")
    for name, state in backends().items():
        print(f"backend   {name}: {state}")
