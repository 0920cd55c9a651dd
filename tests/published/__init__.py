"""Training scripts of the kinds people publish, on plain torch; each leaves `model` and `losses`.

`run` runs one, as it is or with its two import lines swapped.
"""

import re
import time
from pathlib import Path

import torch

NAMES = sorted(p.stem for p in Path(__file__).parent.glob("*.py") if p.stem != "__init__")
SWAP = re.compile(r"^import torch\.(nn|optim) as \1$", re.M)


def run(name, swapped, repeat=1, dtype=None):
    """What the script leaves, and its seconds a step; `repeat` times as many steps."""
    source = (Path(__file__).parent / f"{name}.py").read_text()
    if swapped:
        source, count = SWAP.subn(r"import polyfuse.\1 as \1", source)
        assert count, name
    if repeat > 1:
        source = re.sub(r"^STEPS = (\d+)", rf"STEPS = \1 * {repeat}", source, flags=re.M)
    code = compile(source, f"{name}.py", "exec")
    scope = {"__name__": "published"}
    default = torch.get_default_dtype()
    torch.set_default_dtype(dtype or default)
    start = time.perf_counter()
    try:
        exec(code, scope)
    finally:
        torch.set_default_dtype(default)
    seconds = time.perf_counter() - start
    params = [p.detach().clone() for p in scope["model"].parameters()]
    return params, scope["losses"], seconds / scope["STEPS"]
