"""Times polyfuse and its peers in one process, interleaved; prints ratios and writes JSON.

python benchmarks/run.py [--gpu] [--quick] [--out benchmarks/results/NAME.json]
"""

from __future__ import annotations

import argparse
import datetime
import json
import platform
import resource
import shutil
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polyfuse as pf
import torch
from polyfuse import _C

import solving  # isort: skip
from cases import Case, cases  # isort: skip
from batch_cases import batch_cases  # isort: skip


LARGE = 64 << 20  # bytes: a second read would find much of them in a cache


def turn(call: Callable[[], Any]) -> float:
    """Seconds of a call: the median of those that `repeat` asks for."""
    times = []
    for _ in range(getattr(call, "calls", 1)):
        begin = time.perf_counter()
        call()
        times.append(time.perf_counter() - begin)
    return float(np.median(times))


def measure(case: Case, budget: float) -> dict[str, Any]:
    """Seconds per step of every contestant: checked first, then timed in turns."""
    for name, call in case.contestants.items():
        print(f"{case.name}: {name}", file=sys.stderr, flush=True)  # if it hangs, or crashes
        call()
    for check in case.check.values():
        check()
    times: dict[str, list[float]] = {name: [] for name in case.contestants}
    start = time.perf_counter()
    rounds = 0
    while rounds < 5 or (rounds < 200 and time.perf_counter() - start < budget):
        for name, call in case.contestants.items():
            time.sleep(0.05)  # the last contestant's idle threads spin for a while
            seconds = turn(call)
            if seconds < 0.05 and case.bytes < LARGE:  # another's threads may have disturbed it
                seconds = turn(call)
            times[name].append(seconds / getattr(call, "steps", 1))
        rounds += 1
    return {
        name: {
            "median": float(np.median(t)),
            "p20": float(np.percentile(t, 20)),
            "p80": float(np.percentile(t, 80)),
            "rounds": len(t),
        }
        for name, t in times.items()
    }


def import_seconds() -> dict[str, float]:
    """What `import polyfuse` costs beyond `import torch`, in fresh processes."""
    code = (
        "import time; s = time.perf_counter(); import torch; t = time.perf_counter(); "
        "import polyfuse; print(t - s, time.perf_counter() - t)"
    )
    runs = [
        [float(v) for v in subprocess.check_output([sys.executable, "-c", code]).split()]
        for _ in range(5)
    ]
    torch_seconds, ours = np.median(np.array(runs), axis=0)
    return {"torch": float(torch_seconds), "polyfuse beyond torch": float(ours)}


def memory_growth(quick: bool) -> float:
    """MiB that fits of every engine add to the process, data apart."""
    n = 200_000 if quick else 10_000_000
    x = torch.linspace(-1, 1, n)
    y = x * x
    model = pf.nn.Polynomial(2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    criterion = torch.nn.MSELoss()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for engine in ("stream", "moments", "closed_form"):
        pf.fit(model, criterion, optimizer, x, y, epochs=2, engine=engine)
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024


def cpu_name() -> dict[str, Any]:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    named = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    device = named[0] if named else platform.processor()
    return {"device": device, "where": f"{torch.get_num_threads()} cores, {_C.isa()}"}


def said(*command: str) -> str:
    """What a command prints; 'unknown' where there is none."""
    found = shutil.which(command[0])
    run = subprocess.run(command, capture_output=True, text=True) if found else None
    return (run.stdout.strip() if run else "") or "unknown"


def gpu_name() -> dict[str, Any]:
    driver = said("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader").split()[0]
    where = f"driver {driver}, CUDA {torch.version.cuda}"
    return {"device": torch.cuda.get_device_name(), "where": where}


def header(quick: bool, gpu: bool = False) -> dict[str, Any]:
    """Where and when, and of what."""
    return {
        **(gpu_name() if gpu else cpu_name()),
        "date": datetime.date.today().isoformat(),
        "versions": {"polyfuse": pf.__version__, "torch": torch.__version__,
                     "numpy": np.__version__, "python": platform.python_version()},
        "commit": said("git", "rev-parse", "--short", "HEAD"),
        "quick": quick,
    }  # fmt: skip


def pretty(seconds: float) -> str:
    for unit, scale in (("s", 1.0), ("ms", 1e-3), ("us", 1e-6)):
        if seconds >= scale:
            return f"{seconds / scale:.3g} {unit}"
    return f"{seconds * 1e9:.3g} ns"


def all_cases(quick: bool) -> list[Callable[[], Case]]:
    return [*cases(quick), *batch_cases(quick), *solving.cases(quick)]


def measured(case: Case, budget: float) -> dict[str, Any]:
    """The case's entry in the report, which is printed."""
    results = measure(case, budget)
    first = next(iter(results.values()))["median"]
    print(f"\n{case.name}   (target: {case.target})")
    for name, r in results.items():
        rate = f"  {case.bytes / r['median'] / 1e9:6.1f} GB/s" if case.bytes else ""
        spread = f"[{pretty(r['p20'])} .. {pretty(r['p80'])}]"
        ratio = f"{r['median'] / first:.4g}x"
        print(f"  {name:42}{pretty(r['median']):>10}  {spread:24}{ratio:>12}{rate}", flush=True)
    for name, why in case.missing.items():
        print(f"  {name:42}{'missing':>10}  {why}")
    return {
        "name": case.name, "target": case.target, "bytes": case.bytes, "contestants": results,
        "missing": case.missing,
    }  # fmt: skip


def measured_or_failed(make: Callable[[], Case], args: argparse.Namespace) -> dict[str, Any]:
    """A case's entry in the report; one that fails leaves the others to be measured."""
    try:
        case = make()
        if args.only not in case.name:
            return {}
        return measured(case, 0.2 if args.quick else args.seconds)
    except Exception:
        failed = traceback.format_exc()
        print(failed)
        return {"failed": failed}


def write(report: dict[str, Any], to: Path | None) -> None:
    if to:
        to.write_text(json.dumps(report, indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="small sizes, for a smoke test")
    parser.add_argument("--gpu", action="store_true", help="the cases of gpu/cases.py")
    parser.add_argument("--out", type=Path, help="where the JSON goes")
    parser.add_argument("--seconds", type=float, default=8, help="budget of a case")
    parser.add_argument("--only", default="", help="cases whose name holds this")
    args = parser.parse_args()
    if args.gpu:
        from gpu.run import run

        sys.exit(run(args))
    report: dict[str, Any] = header(args.quick) | {
        "memory_growth_mib": memory_growth(args.quick),
        "import_seconds": import_seconds(),
        "cases": [],
    }
    failures = 0
    for make in all_cases(args.quick):
        entry = measured_or_failed(make, args)
        failures += "failed" in entry
        report["cases"] += [entry] if entry else []
        write(report, args.out)
    growth = report["memory_growth_mib"]
    print(f"\nimport: {report['import_seconds']}, memory: {growth:.1f} MiB")
    sys.exit(failures > 0)


if __name__ == "__main__":
    main()
