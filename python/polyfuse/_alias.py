"""`import polyfuse.nn.X` and `import polyfuse.optim.X` for every module X that torch has there."""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import Any


class _Handed(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds torch's own module, never a second copy of it, unless polyfuse has one of that name."""

    def __init__(self, package: str, original: str, own: Sequence[str]):
        self.prefix, self.original, self.own = f"{package}.", f"{original}.", own

    def find_spec(
        self, name: str, path: Any = None, target: Any = None
    ) -> importlib.machinery.ModuleSpec | None:
        rest = name.removeprefix(self.prefix)
        if rest == name or rest.partition(".")[0] in self.own:
            return None
        try:
            if importlib.util.find_spec(self.original + rest) is None:
                return None
        except ModuleNotFoundError:
            return None
        return importlib.machinery.ModuleSpec(name, self)

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType:
        module = importlib.import_module(self.original + spec.name.removeprefix(self.prefix))
        self._spec = module.__spec__  # the import system is about to write its own over it
        return module

    def exec_module(self, module: ModuleType) -> None:
        module.__spec__ = self._spec


def hand_on(package: str, original: str, own: Sequence[str]) -> None:
    """Makes `original`'s modules importable below `package`, but for those named in `own`."""
    sys.meta_path.insert(0, _Handed(package, original, own))
