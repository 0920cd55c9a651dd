"""What every result of a fit can say of itself: summary, notebook, dict, pandas, plot."""

from __future__ import annotations

import html
import json
from copy import deepcopy
from functools import cached_property
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np

from .each import Each

if TYPE_CHECKING:
    from .statistics import Inference


MOST_SHOWN = 8  # outputs, or fits of a batch, in a report
TRAVELS = 1 << 20  # bytes of data that a pickled result takes along


class Reported:
    """A result with `statistics`, which are computed when they are first asked for.

    Copies share the data that they are computed from; a pickled one takes up to 1 MiB of it along.
    """

    _evidence: Any  # what they are computed from, or why there is nothing

    def __getstate__(self) -> dict[str, Any]:
        evidence = self._evidence
        alone = evidence if isinstance(evidence, str) else evidence.travelling()
        return {k: v for k, v in vars(self).items() if k != "statistics"} | {"_evidence": alone}

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        twin = memo[id(self)] = object.__new__(type(self))
        own = {k: v for k, v in vars(self).items() if k not in ("_evidence", "statistics")}
        vars(twin).update(deepcopy(own, memo), _evidence=self._evidence)
        return twin

    def __copy__(self) -> Any:
        twin = object.__new__(type(self))
        vars(twin).update(vars(self))
        return twin

    @cached_property
    def statistics(self) -> Any:
        """Covariance, errors, tests and bands, in a `polyfuse.statistics.Statistics`, or in a
        `polyfuse.statistics.Likelihood` for another criterion than the squared error; of several
        outputs, or of a batch, a `polyfuse.each.Each` of them."""
        if isinstance(self._evidence, str):
            raise RuntimeError(self._evidence)
        return self._evidence.statistics()

    def _parts(self, most: int | None = None) -> list[tuple[str, Any]]:
        """What reports go through: (name, statistics), of a single fit without a name."""
        found = self.statistics
        return list(islice(found.named(), most)) if isinstance(found, Each) else [("", found)]

    def to_dict(self) -> dict[str, Any]:
        """Parameters, their errors and the numbers of the fit, as plain Python numbers; of several
        outputs, or of a batch, such a dict for each by its name."""
        parts = [(name, _dict_of(s)) for name, s in self._parts()]
        return dict(parts) if isinstance(self.statistics, Each) else parts[0][1]

    def to_json(self) -> str:
        """`to_dict` as JSON; nan and inf, which it has no numbers for, become null."""
        return json.dumps(_without_nonfinite(self.to_dict()))

    def to_pandas(self) -> Any:
        """A DataFrame with a row for every parameter, of every output or fit. Needs pandas and
        scipy."""
        try:
            import pandas
        except ImportError as error:
            raise ImportError("to_pandas: needs pandas; pip install pandas") from error
        frames = [
            pandas.DataFrame(_table(s, 0.95), index=pandas.Index(s.names, name="parameter"))
            for _, s in self._parts()
        ]
        if not isinstance(found := self.statistics, Each):
            return frames[0]
        keys: list[Any] = list(np.ndindex(found.shape))
        names = [f"{found.kind} {d}" for d in range(len(found.shape))]
        if len(names) == 1:
            keys, names = [key for (key,) in keys], [found.kind]
        return pandas.concat(frames, keys=keys, names=names)

    def summary(self, level: float = 0.95) -> str:
        """A report as statsmodels and lmfit print it; of several outputs, or of a batch, of the
        first 8. Needs scipy.

        Args:
            level: of the confidence intervals.
        """
        blocks = [str(self)]
        for name, s in self._parts(MOST_SHOWN):
            blocks.append("\n".join(([name] if name else []) + lines_of(s, level)))
        return "\n\n".join([*blocks, *self._rest()])

    def _rest(self) -> list[str]:
        left = len(self.statistics) - MOST_SHOWN if isinstance(self.statistics, Each) else 0
        return [f"... and {left:,} more in its statistics"] if left > 0 else []

    def _repr_html_(self) -> str:
        blocks = [f"<p>{html.escape(str(self))}</p>"]
        for name, s in self._parts(MOST_SHOWN):
            blocks += [f"<p><b>{html.escape(name)}</b></p>"] if name else []
            blocks.append(_html_of(s))
        return "".join([*blocks, *(f"<p>{rest}</p>" for rest in self._rest())])

    def _repr_latex_(self) -> str:
        rows = []
        for name, s in self._parts(MOST_SHOWN):
            rows += [rf"\text{{{name}}} & \\"] if name else []
            rows += [
                rf"{_latex(name)} & {value:.7g} \pm {error:.2g} \\"
                for name, value, error in zip(s.names, s.params, s.standard_errors, strict=True)
            ]
        return "\n".join([r"$\displaystyle\begin{array}{lr}", *rows, r"\end{array}$"])

    def plot(self, path: Any = None, *, level: float = 0.95) -> Any:
        """Data, fit, bands and residuals; of a run, the loss too; of several outputs, or of a
        batch, the first 4. Needs matplotlib and scipy.

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


def _dict_of(s: Inference) -> dict[str, Any]:
    return {
        "parameters": dict(zip(s.names, s.params.tolist(), strict=True)),
        "standard_errors": dict(zip(s.names, s.standard_errors.tolist(), strict=True)),
        "covariance": s.covariance.tolist(),
        **dict(_numbers(s)),
        "reason": s.reason,
    }


def lines_of(s: Inference, level: float) -> list[str]:
    columns = _table(s, level)
    width = max(9, *map(len, s.names))
    head = "".join(f"{name:>13}" for name in columns)
    lines = [f"  {name:22}{_text(value):>14}" for name, value in _numbers(s)]
    lines += ["", f"{'parameter':{width}}{head}"]
    for i, name in enumerate(s.names):
        fixed = "" if i in s.free else "  (fixed)"
        cells = "".join(f"{_text(column[i]):>13}" for column in columns.values())
        lines.append(f"{name:{width}}{cells}{fixed}")
    return [*lines, "", f"no errors: {s.reason}"] if s.reason else lines


def _html_of(s: Inference) -> str:
    columns = _table(s, 0.95)
    head = "".join(f"<th>{html.escape(name)}</th>" for name in ("parameter", *columns))
    rows = "".join(
        f"<tr><th>{html.escape(name)}</th>"
        + "".join(f"<td>{_text(column[i])}</td>" for column in columns.values())
        + "</tr>"
        for i, name in enumerate(s.names)
    )
    numbers = ", ".join(f"{name} {_text(value)}" for name, value in _numbers(s))
    return (
        f"<table><thead><tr>{head}</tr></thead>"
        f"<tbody>{rows}</tbody></table><p>{html.escape(numbers)}</p>"
    )


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


def refuse_travel(size: int) -> str | None:
    """None, or why so many bytes of data are not pickled with a result."""
    if size <= TRAVELS:
        return None
    return (
        f"statistics: the result was pickled without its data, {size / 1e6:.3g} MB; "
        f"{TRAVELS >> 20} MiB at most go along"
    )
