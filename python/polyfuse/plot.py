"""Pictures of a fit: data, model and bands, residuals, loss."""

from __future__ import annotations

from typing import Any

import numpy as np

from .statistics import Inference, Statistics

DOTS = 5_000  # samples; more are drawn as counts in hexagons
MOST_DRAWN = 4  # outputs, or fits of a batch
GRID = 400  # points of a curve
PARTS = 20  # of the samples, by their probability
INK, MODEL, BAND = "#404040", "#c1272d", "#2f6db5"
SHADES = ("#f4f4f4", "#909090")  # of few and of many samples


def plot(result: Any, level: float) -> Any:
    """The figure that `polyfuse.report.Reported.plot` returns."""
    try:
        from matplotlib.colors import LinearSegmentedColormap
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("plot: needs matplotlib; pip install 'polyfuse[plot]'") from error
    parts = result._parts(MOST_DRAWN)
    recorded = getattr(result, "history_epochs", ())
    several = len(recorded) > 2
    size = 8 if len(parts) == 1 else 5 * len(parts), 8 if several else 6
    figure = Figure(figsize=size, layout="constrained")
    heights = [3, 1.3, 1.3] if several else [3, 1.3]
    axes = figure.subplots(
        len(heights), len(parts), squeeze=False, gridspec_kw={"height_ratios": heights}
    )
    for (name, s), column in zip(parts, axes.T, strict=True):
        _data(column, s, level, LinearSegmentedColormap.from_list("counts", SHADES))
        column[0].set_title(
            "\n".join(filter(None, (name, _title(s)))), fontsize="medium", loc="left"
        )
    if several:
        _losses(axes[2], recorded, np.asarray(result.history), parts)
    for ax in axes.flat:
        ax.spines[["top", "right"]].set_visible(False)
    return figure


def _data(axes: Any, s: Inference, level: float, shades: Any) -> None:
    """The upper panels: data with the model, and residuals; or probabilities, and classes."""
    if s.data.y.ndim > 1:
        _classes(axes, s, level, shades)
        return
    if s.data.x.ndim == 1:
        across, name = s.data.x, "x"
        _bands(axes[0], s, level)
        axes[1].sharex(axes[0])
    else:
        across, name = s.fitted, "fitted"
        ends = np.array([across.min(), across.max()])
        axes[0].plot(ends, ends, color=MODEL, label="y = fitted")
    _cloud(axes[0], across, s.data.y, "data", shades)
    axes[0].set_ylabel("y")
    axes[0].legend(frameon=False)
    _cloud(axes[1], across, s.residuals, None, shades)
    axes[1].axhline(0, color=MODEL, linewidth=1)
    axes[1].set_ylabel("residual")
    axes[1].set_xlabel(name)


def _classes(axes: Any, s: Inference, level: float, shades: Any) -> None:
    y = s.data.y
    if s.data.x.ndim == 1:
        across, name = s.data.x, "x"
        _probabilities(axes[0], s, level)
        axes[1].sharex(axes[0])
    else:
        chance = s.predict(s.data.x, level).mean
        across, name = (y * chance).sum(1), "probability of its class"
        _calibration(axes[0], y, chance)
    axes[0].legend(frameon=False)
    _cloud(axes[1], across, y.argmax(1), None, shades)
    axes[1].set_yticks(range(y.shape[1]))
    axes[1].set_ylabel("class")
    axes[1].set_xlabel(name)


def _probabilities(ax: Any, s: Inference, level: float) -> None:
    """Of each class over x, with their bands."""
    x = np.linspace(s.data.x.min(), s.data.x.max(), GRID)
    found = s.predict(x, level)
    for c, (mean, low, high) in enumerate(
        zip(found.mean.T, *(end.T for end in found.confidence), strict=True)
    ):
        ax.plot(x, mean, color=f"C{c % 10}", label=f"class {c}")
        ax.fill_between(x, low, high, color=f"C{c % 10}", alpha=0.2, linewidth=0)
    ax.set_ylabel("probability")


def _calibration(ax: Any, y: np.ndarray, chance: np.ndarray) -> None:
    """How often each class came, beside how often it was expected, in parts of as many samples."""
    ax.plot([0, 1], [0, 1], color=INK, linewidth=1)
    for c, (came, expected) in enumerate(zip(y.T, chance.T, strict=True)):
        parts = np.array_split(np.argsort(expected), min(PARTS, len(expected)))
        points = np.array([(expected[part].mean(), came[part].mean()) for part in parts])
        ax.plot(*points.T, color=f"C{c % 10}", marker=".", label=f"class {c}")
    ax.set_xlabel("probability")
    ax.set_ylabel("share of the samples")


def _losses(axes: Any, epochs: Any, history: np.ndarray, parts: Any) -> None:
    """history: [M], of all outputs, or [M, *batch_shape]"""
    losses = history.reshape(len(history), -1).T[: len(axes)]
    for ax in axes[len(losses) :]:
        ax.set_visible(False)
    for ax, loss in zip(axes, losses, strict=False):
        ax.plot(epochs, loss, color=BAND, marker="." if len(loss) < 50 else "")
        if (loss > 0).all():
            ax.set_yscale("log")
        ax.set_ylabel("loss" if len(losses) == len(parts) else "loss of all outputs")
        ax.set_xlabel("epoch")


def _bands(ax: Any, s: Inference, level: float) -> None:
    x = np.linspace(s.data.x.min(), s.data.x.max(), GRID)
    found = s.predict(x, level)
    ax.plot(x, found.mean, color=MODEL, label="fit", zorder=4)
    for band, name, alpha in (
        (found.prediction, "prediction", 0.12), (found.confidence, "confidence", 0.35)
    ):  # fmt: skip
        if band is None or not np.isfinite(band).all():
            continue
        label = f"{level * 100:g}% {name}"
        ax.fill_between(x, *band, color=BAND, alpha=alpha, linewidth=0, label=label, zorder=2)
        for edge in band:
            ax.plot(x, edge, color=BAND, alpha=2 * alpha, linewidth=0.8, zorder=3)


def _cloud(ax: Any, x: np.ndarray, y: np.ndarray, label: str | None, shades: Any) -> None:
    if len(x) <= DOTS:
        size = 4 if len(x) > 500 else 16
        ax.scatter(x, y, s=size, color=INK, alpha=0.7, linewidths=0, label=label, zorder=1)
        return
    counts = ax.hexbin(x, y, gridsize=(90, 35), bins="log", mincnt=1, cmap=shades, zorder=1)
    ax.figure.colorbar(counts, ax=ax, label="samples", pad=0.01)


def _title(s: Inference) -> str:
    if not isinstance(s, Statistics):
        return f"n = {s.n:,}   log likelihood {s.log_likelihood:.6g}"
    return f"n = {s.n:,}   R² = {s.r_squared:.6g}   residual deviation {s.residual_deviation:.4g}"
