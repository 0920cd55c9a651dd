"""What every result of a fit can say of itself: summary, notebook, dict, pandas, plot."""

from __future__ import annotations

import html
import json
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from .statistics import Inference


class Reported:
    """A result with `statistics`, which are computed when they are first asked for."""

    def _statistics(self) -> Inference:
        raise NotImplementedError

    def __getstate__(self) -> dict[str, Any]:
        """Without the data."""
        return {k: v for k, v in vars(self).items() if k[0] != "_" and k != "statistics"}

    @cached_property
    def statistics(self) -> Any:
        """Covariance, errors, tests and bands, in a `polyfuse.statistics.Statistics`, or in a
        `polyfuse.statistics.Likelihood` for another criterion than the squared error."""
        if not any(k[0] == "_" for k in vars(self)):
            raise RuntimeError("a result that was pickled or copied has no data for statistics")
        return self._statistics()

    def to_dict(self) -> dict[str, Any]:
        """Parameters, their errors and the numbers of the fit, as plain Python numbers."""
        s = self.statistics
        numbers = [*_numbers(s), ("reason", s.reason)]
        return {
            "parameters": dict(zip(s.names, s.params.tolist(), strict=True)),
            "standard_errors": dict(zip(s.names, s.standard_errors.tolist(), strict=True)),
            "covariance": s.covariance.tolist(),
            **dict(numbers),
        }

    def to_json(self) -> str:
        """`to_dict` as JSON; nan and inf, which it has no numbers for, become null."""
        return json.dumps(_without_nonfinite(self.to_dict()))

    def to_pandas(self) -> Any:
        """A DataFrame with a row for every parameter. Needs pandas and scipy."""
        try:
            import pandas
        except ImportError as error:
            raise ImportError("to_pandas: needs pandas; pip install pandas") from error
        names, columns = self.statistics.names, _table(self.statistics, 0.95)
        return pandas.DataFrame(columns, index=pandas.Index(names, name="parameter"))

    def summary(self, level: float = 0.95) -> str:
        """A report as statsmodels and lmfit print it. Needs scipy.

        Args:
            level: of the confidence intervals.
        """
        s, columns = self.statistics, _table(self.statistics, level)
        width = max(9, *map(len, s.names))
        head = "".join(f"{name:>13}" for name in columns)
        lines = [str(self), ""]
        lines += [f"  {name:22}{_text(value):>14}" for name, value in _numbers(s)]
        lines += ["", f"{'parameter':{width}}{head}"]
        for i, name in enumerate(s.names):
            fixed = "" if i in s.free else "  (fixed)"
            cells = "".join(f"{_text(column[i]):>13}" for column in columns.values())
            lines.append(f"{name:{width}}{cells}{fixed}")
        if s.reason:
            lines += ["", f"no errors: {s.reason}"]
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        s, columns = self.statistics, _table(self.statistics, 0.95)
        head = "".join(f"<th>{html.escape(name)}</th>" for name in ("parameter", *columns))
        rows = "".join(
            f"<tr><th>{html.escape(name)}</th>"
            + "".join(f"<td>{_text(column[i])}</td>" for column in columns.values())
            + "</tr>"
            for i, name in enumerate(s.names)
        )
        numbers = ", ".join(f"{name} {_text(value)}" for name, value in _numbers(s))
        return (
            f"<p>{html.escape(str(self))}</p><table><thead><tr>{head}</tr></thead>"
            f"<tbody>{rows}</tbody></table><p>{html.escape(numbers)}</p>"
        )

    def _repr_latex_(self) -> str:
        s = self.statistics
        rows = [
            rf"{_latex(name)} & {value:.7g} \pm {error:.2g} \\"
            for name, value, error in zip(s.names, s.params, s.standard_errors, strict=True)
        ]
        return "\n".join([r"$\displaystyle\begin{array}{lr}", *rows, r"\end{array}$"])

    def plot(self, path: Any = None, *, level: float = 0.95) -> Any:
        """Data, fit, bands and residuals; of a run, the loss too. Needs matplotlib and scipy.

        Args:
            path: file to save the figure in, as matplotlib takes it.
            level: of the confidence and prediction bands.

        Returns:
            The matplotlib figure.
        """
        from .plot import plot

        figure = plot(self, level)
        if path is not None:
            figure.savefig(path, dpi=150)
        return figure


def _numbers(s: Inference) -> list[tuple[str, float]]:
    """Of the whole fit, by name."""
    names: tuple[str, ...] = ("n", "log_likelihood", "aic", "aicc", "bic")
    from .statistics import Statistics

    if isinstance(s, Statistics):
        names = (
            "n", "df", "rank", "r_squared", "adjusted_r_squared", "residual_deviation",
            "chi_squared", "reduced_chi_squared", "f_value", *names[1:], "condition_number",
            "durbin_watson",
        )  # fmt: skip
    return [(name, getattr(s, name)) for name in names]


def _table(s: Inference, level: float) -> dict[str, np.ndarray]:
    """Columns of the parameters, each [P]."""
    ends = s.confidence_intervals(level)
    percent = f"{level * 100:g}%"
    return {
        "value": s.params, "std error": s.standard_errors, "t": s.t_values, "p": s.p_values,
        f"low {percent}": ends[:, 0], f"high {percent}": ends[:, 1],
    }  # fmt: skip


def _text(value: float) -> str:
    return f"{value:d}" if isinstance(value, int) else f"{value:.6g}"


def _latex(name: str) -> str:
    return r"\mathrm{" + name.replace("_", r"\_") + "}"


def _without_nonfinite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nonfinite(v) for key, v in value.items()}
    if isinstance(value, list):
        return [_without_nonfinite(v) for v in value]
    return None if isinstance(value, float) and not np.isfinite(value) else value
