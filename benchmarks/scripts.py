"""Speed of published training scripts with their two import lines swapped, beside plain torch.

python benchmarks/scripts.py [--quick] [--out benchmarks/results/NAME.json]
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import numpy as np
from run import header, pretty

sys.path.insert(0, str(Path(__file__).parent.parent))
from tests.published import NAMES, run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="few steps, for a smoke test")
    parser.add_argument("--out", type=Path, help="where the JSON goes")
    args = parser.parse_args()
    rounds, repeat = (1, 1) if args.quick else (7, 3)
    report = {**header(args.quick), "scripts": {}}
    print(f"{'script':20}{'torch':>12}{'swapped':>12}{'speed-up':>10}")
    for name in NAMES:
        seconds: dict[bool, list[float]] = {False: [], True: []}
        for swapped in (False, True):  # imports and first calls
            run(name, swapped)
        for _ in range(rounds):
            for swapped in (False, True):
                seconds[swapped].append(run(name, swapped, repeat)[2])
        torchs, ours = (float(np.median(seconds[swapped])) for swapped in (False, True))
        # the median of the rounds' ratios, for a machine that is shared
        ratio = float(np.median(np.array(seconds[False]) / np.array(seconds[True])))
        report["scripts"][name] = {"torch": torchs, "swapped": ours, "speed_up": ratio}
        print(f"{name:20}{pretty(torchs):>12}{pretty(ours):>12}{ratio:>9.2f}x")
    if args.out:
        args.out.write_text(json.dumps(report, indent=1) + "\n")
        print(f"wrote {args.out}")


if __name__ == "__main__":
    main()
