"""Every example in a docstring and every Python block of README and docs/ runs."""

import doctest
import importlib
import pkgutil
import re
import sys
from pathlib import Path

import polyfuse
import pytest

MODULES = [m.name for m in pkgutil.walk_packages(polyfuse.__path__, "polyfuse.")]
ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
# Of each page of docs/, in order: Python, and as text what the block before it prints.
BLOCKS = {
    page.stem: re.findall(r"```(python|text)\n(.*?)```", page.read_text(), re.S)
    for page in (ROOT / "docs").glob("*.md")
}


@pytest.mark.parametrize("name", [m for m in MODULES if not m.endswith("._C")])
def test_docstrings(name):
    failures, _ = doctest.testmod(importlib.import_module(name))
    assert failures == 0


def test_readme(capsys):
    blocks = re.findall(r"```python\n(.*?)```", README, re.S)
    assert blocks
    for block in blocks:
        exec(block, {})


@pytest.mark.parametrize("page", sorted(name for name, blocks in BLOCKS.items() if blocks))
def test_pages(page, capsys):
    names: dict = {}
    for kind, block in BLOCKS[page]:
        if kind == "python":
            exec(block, names)
            printed = capsys.readouterr().out
        else:
            assert printed == block


def test_public_names_are_documented():
    for name in polyfuse.__all__:
        assert getattr(polyfuse, name).__doc__, name


@pytest.mark.parametrize("package", ["nn", "optim"])
def test_everything_of_torch_is_handed_on(package):
    import torch

    ours, theirs = getattr(polyfuse, package), getattr(torch, package)
    assert set(dir(theirs)) <= set(dir(ours))
    for name in (
        ("Bilinear", "Parameter", "functional") if package == "nn" else ("Optimizer", "LBFGS")
    ):
        assert getattr(ours, name) is getattr(theirs, name)
    with pytest.raises(AttributeError):
        ours.NoSuchThing  # noqa: B018


def test_submodules_can_be_imported():
    import polyfuse.nn.functional as F
    from polyfuse.optim.lr_scheduler import StepLR

    assert F.mse_loss and StepLR


def test_every_module_of_torch_can_be_imported():
    import polyfuse.nn.attention.bias as bias
    import polyfuse.optim.adam as adam
    from polyfuse.optim import SGD
    from polyfuse.optim.classes import SGD as the_same

    assert adam is sys.modules["torch.optim.adam"]
    assert bias is sys.modules["torch.nn.attention.bias"]
    assert adam.__spec__.name == "torch.optim.adam"  # torch's own, unchanged
    assert SGD is the_same
    with pytest.raises(ModuleNotFoundError):
        import polyfuse.optim.nothing  # noqa: F401
