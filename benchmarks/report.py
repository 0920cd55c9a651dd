"""Tables of result files, for docs/; writes those that README has:

python benchmarks/report.py FILE...
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

from run import pretty

ROOT = Path(__file__).parent.parent


def accuracy(report: dict[str, Any], source: str) -> str:
    sets = list(report["exact arithmetic"])
    lines = [f"| | {' | '.join(sets)} |", "|---" * (len(sets) + 1) + "|"]
    for name, row in {**report["digits"], "exact arithmetic": report["exact arithmetic"]}.items():
        cells = ["" if isinstance(v, str) else f"{v:g}" for v in row.values()]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    versions = ", ".join(f"{k} {v}" for k, v in report["versions"].items())
    return (
        "\n".join(lines) + f"\n\n{report['date']}, commit {report['commit']}; {versions}. "
        f"Source: `{source}`, made by `python benchmarks/accuracy.py`."
    )


def speed(report: dict[str, Any], source: str) -> str:
    lines = ["| case | polyfuse | others |", "|---|---|---|"]
    for case in report["cases"]:
        ours, others = [], []
        first = next(iter(case["contestants"].values()))["median"]
        for name, r in case["contestants"].items():
            mine = name.startswith(("polyfuse", "import swap", "empty"))
            ratio = "" if mine else f" ({r['median'] / first:,.3g} x)"
            (ours if mine else others).append(f"{name}: {pretty(r['median'])}{ratio}")
        others += [f"{name}: missing, {why}" for name, why in case["missing"].items()]
        lines.append(f"| {case['name']} | {'<br>'.join(ours)} | {'<br>'.join(others)} |")
    beyond = report["import_seconds"]["polyfuse beyond torch"]
    lines.append(f"| `import polyfuse` beyond `import torch` | {pretty(beyond)} | |")
    lines.append(
        f"| memory that fits add to 80 MB of data | {report['memory_growth_mib']:.1f} MiB | |"
    )
    note = (
        f"Medians on {measured(report)}. In parentheses: times the first "
        f"entry of the row. Source: `{source}`, made by "
        "`python benchmarks/run.py`, which checks what polyfuse computes before it times it."
    )
    return "\n".join(lines) + "\n\n" + note


def matrix(report: dict[str, Any], source: str) -> str:
    optimizers = list(next(iter(report["small"].values())))
    lines = [f"| | {' | '.join(optimizers)} | a step of 10 million |"]
    lines.append("|---" * (len(optimizers) + 2) + "|")
    for criterion, row in report["small"].items():
        cells = [f"{r['ratio']:.1f} x" for r in row.values()]
        large = report["large"][criterion]
        cells.append(f"{pretty(large['polyfuse'])}, {large['ratio']:.2f} x")
        lines.append(f"| {criterion} | {' | '.join(cells)} |")
    return "\n".join(lines) + (
        "\n\nHow many times as fast as eager PyTorch an iteration of the import-swap loop over 9 "
        "samples is; last column: with SGD and 10 million samples, against the compiled loss of "
        f"torch. Medians on {measured(report)}. Source: `{source}`, made by "
        "`python benchmarks/matrix.py`."
    )


def scripts(report: dict[str, Any], source: str) -> str:
    lines = ["| script | torch | imports swapped | speed-up |", "|---|---|---|---|"]
    for name, r in report["scripts"].items():
        times = f"{pretty(r['torch'])} | {pretty(r['swapped'])}"
        lines.append(f"| {name} | {times} | {r['speed_up']:.2f} x |")
    return "\n".join(lines) + (
        "\n\nTime a step of the scripts in `tests/published`, of the kinds people publish. "
        f"Medians on {measured(report)}. Source: `{source}`, made by "
        "`python benchmarks/scripts.py`."
    )


def measured(report: dict[str, Any]) -> str:
    versions = ", ".join(f"{k} {v}" for k, v in report["versions"].items())
    return (
        f"{report['device']} ({report['where']}), {report['date']}, "
        f"commit {report['commit']}; {versions}"
    )


TABLES = {  # by what the file holds: the mark in README, and the table
    "cases": ("", speed),
    "digits": (" accuracy", accuracy),
    "small": (" matrix", matrix),
    "scripts": (" scripts", scripts),
}


def main() -> None:
    readme = ROOT / "README.md"
    text = readme.read_text()
    for path in map(Path, sys.argv[1:]):
        report = json.loads(path.read_text())
        ((mark, table),) = (found for key, found in TABLES.items() if key in report)
        start, end = f"<!-- table: benchmarks/report.py{mark} -->", "<!-- end -->"
        written = f"{start}\n{table(report, str(path.resolve().relative_to(ROOT)))}\n{end}"
        text = re.sub(f"{start}.*?{end}", lambda _, new=written: new, text, flags=re.S)
    readme.write_text(text)


if __name__ == "__main__":
    main()
