"""Sphinx: settings of the site, and its tables, made of benchmarks/results."""

import inspect
import json
import sys
from pathlib import Path
from typing import Any

import polyfuse

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "benchmarks"))

from report import TABLES  # noqa: E402


def table_of(name: str) -> str:
    source = f"benchmarks/results/{name}.json"
    report = json.loads((ROOT / source).read_text())
    ((_, table),) = (found for key, found in TABLES.items() if key in report)
    return table(report, source)


def signature_of(app: Any, what: str, name: str, obj: Any, options: Any, *shown: Any) -> Any:
    """Of classes that users make, which have their arguments documented, that of __init__."""
    if what != "class":
        return shown
    if "Args" not in (obj.__doc__ or ""):
        return "", None
    parameters = list(inspect.signature(obj.__init__).parameters.values())[1:]
    if all(p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD) for p in parameters):
        return "", None
    return str(inspect.Signature([p.replace(annotation=p.empty) for p in parameters])), None


def setup(app: Any) -> None:
    app.connect("autodoc-process-signature", signature_of)


project, release = "polyfuse", polyfuse.__version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.mathjax", "sphinx.ext.napoleon"]
html_theme = "pydata_sphinx_theme"
html_theme_options = {"show_prev_next": False}
html_sidebars = {"**": []}
html_title = project

myst_enable_extensions = ["dollarmath", "substitution"]
myst_substitutions = {
    "accuracy": table_of("accuracy"),
    "speed": table_of("cpu-epyc-zen5-2core"),
    "speed_zen1": table_of("cpu-epyc-zen1-2core"),
    "matrix": table_of("matrix-epyc-zen5-2core"),
    "scripts": table_of("scripts-epyc-zen5-2core"),
}

default_role = "py:obj"
autodoc_typehints = "none"  # docstrings say them, with the shapes
autodoc_member_order = "bysource"
maximum_signature_line_length = 88
autodoc_inherit_docstrings = False
napoleon_custom_sections = [("Args", "params_style"), ("Attributes", "params_style")]
