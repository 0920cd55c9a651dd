"""Writes README's tables from result files of run.py and accuracy.py:

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
    versions = ", ".join(f"{k} {v}" for k, v in report["versions"].items())
    note = (
        f"Medians on {report['device']} ({report['where']}), "
        f"{report['date']}, commit {report['commit']}; {versions}. In parentheses: times the first "
        f"entry of the row. Source: `{source}`, made by "
        "`python benchmarks/run.py`, which checks what polyfuse computes before it times it."
    )
    return "\n".join(lines) + "\n\n" + note


TABLES = {"cases": ("", speed), "digits": (" accuracy", accuracy)}  # by what the file holds


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
