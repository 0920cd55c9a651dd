"""How torch.compile sees the methods that C++ answers: as the Python methods that they wrap."""

from __future__ import annotations

from typing import Any

from . import _C


def __call__(self: Any, *args: Any, **kwargs: Any) -> Any:
    return self.__wrapped__(*args, **kwargs)


def __get__(self: Any, instance: Any, owner: Any = None) -> Any:
    return self if instance is None else self.__wrapped__.__get__(instance, owner)


_C.show_to_compilers(__call__, __get__)
