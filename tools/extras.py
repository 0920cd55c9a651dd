"""Print the requirements of an extra, to install them without building the package again."""

import re
import sys
from pathlib import Path

project = (Path(__file__).parent.parent / "pyproject.toml").read_text()
(found,) = re.findall(rf"^{sys.argv[1]} = \[(.*)\]$", project, re.M)
print(*re.findall(r'"([^"]+)"', found), sep="\n")
