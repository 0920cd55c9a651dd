"""Writes README's table of measured speed from a result file: python benchmarks/report.py FILE."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

from run import pretty

ROOT = Path(__file__).parent.parent


def table(path: Path) -> str:
    report = json.loads(path.read_text())
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
        f"entry of the row. Source: `{path.resolve().relative_to(ROOT)}`, made by "
        "`python benchmarks/run.py`, which checks what polyfuse computes before it times it."
    )
    return "\n".join(lines) + "\n\n" + note


def main() -> None:
    readme = ROOT / "README.md"
    start, end = "<!-- table: benchmarks/report.py -->", "<!-- end -->"
    text = re.sub(
        f"{start}.*?{end}",
        lambda _: f"{start}\n{table(Path(sys.argv[1]))}\n{end}",
        readme.read_text(),
        flags=re.S,
    )
    readme.write_text(text)


if __name__ == "__main__":
    main()
