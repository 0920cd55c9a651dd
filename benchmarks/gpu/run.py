"""Runs the cases of a GPU: where a case of all backends fails, that of each; where the device is
lost with it, in a new process, which takes the others as well."""

from __future__ import annotations

import argparse
import json
import os
import sys

from run import header, measured_or_failed, write

from .cases import BACKENDS, Alone, cases, lost


def run(args: argparse.Namespace) -> int:
    """The exit status; args: of benchmarks/run.py."""
    position, alone = map(int, os.environ.get("POLYFUSE_BENCHMARK_AT", "0,0").split(","))
    if position or alone:
        report = json.loads(args.out.read_text())
    else:
        report = header(args.quick, gpu=True) | {"cases": []}
    makers = cases(args.quick)
    while position < len(makers):
        # Place 0 is the case of all backends; those of each follow only where it has failed.
        make = Alone(makers[position], BACKENDS[alone - 1]) if alone else makers[position]
        entry = measured_or_failed(make, args)
        report["cases"] += [entry] if entry else []
        write(report, args.out)
        if (alone or "failed" in entry) and alone < len(BACKENDS):
            alone += 1
        else:
            position, alone = position + 1, 0
        if "failed" in entry and args.out and lost():
            sys.stdout.flush()
            os.environ["POLYFUSE_BENCHMARK_AT"] = f"{position},{alone}"
            os.execv(sys.executable, [sys.executable, *sys.argv])
    return int(any("failed" in entry for entry in report["cases"]))
