"""Print README's shell command that ends in a given word, so that CI runs what README says."""

import re
import sys
from pathlib import Path

readme = (Path(__file__).parent.parent / "README.md").read_text()
commands = [block.strip() for block in re.findall(r"```sh\n(.*?)```", readme, re.S)]
matching = [c for c in commands if c.endswith(sys.argv[1])]
if len(matching) != 1:
    sys.exit(f"README.md: expected one command ending in {sys.argv[1]!r}, found {len(matching)}")
print(matching[0])
