"""Packages that the host libraries import and that nothing here uses: they are loaded on first use.

TransformerLens imports ``datasets`` and pandas (and with them pyarrow) for helpers that fetch training texts and search
grids, Transformers ``scipy.optimize`` for a loss of object detectors.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.machinery
import sys
import types
from collections.abc import Iterator
from typing import Any

__all__ = ["UNUSED", "left_unloaded"]

UNUSED = (
    "datasets",
    "datasets.arrow_dataset",
    "datasets.iterable_dataset",
    "datasets.load",
    "pandas",
    "scipy.optimize",
)


@contextlib.contextmanager
def left_unloaded(*names: str) -> Iterator[None]:
    """Within the block, imports of these modules give placeholders; modules that are loaded already stay.

    Calling a placeholder, or an ``isinstance`` check with it, imports what it stands for.

    Examples
    --------
    >>> with left_unloaded("fractions"):
    ...     from fractions import Fraction
    >>> Fraction(2, 4)
    Fraction(1, 2)
    """
    placed = {name: _Placeholder(name) for name in names or UNUSED if name not in sys.modules}
    sys.modules.update(placed)
    try:
        yield
    finally:
        for name, module in placed.items():
            if sys.modules.get(name) is module:
                del sys.modules[name]


class _Placeholder(types.ModuleType):
    """A module whose every attribute is a placeholder; once the real module is loaded, the attributes are its own."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.__spec__ = importlib.machinery.ModuleSpec(name, None)
        self.__path__: list[str] = []

    def __getattr__(self, name: str) -> Any:
        if sys.modules.get(self.__name__) is not self:
            return getattr(importlib.import_module(self.__name__), name)
        if name.startswith("__"):
            raise AttributeError(name)
        return _Later(name, (), {"module": self.__name__})


class _Later(type):
    """Stands for a class or a function; a class itself, so that it may be used in annotations."""

    module: str

    def __call__(cls, *values: Any, **named: Any) -> Any:
        return cls._own()(*values, **named)

    def __instancecheck__(cls, value: object) -> bool:
        return cls.module.partition(".")[0] in sys.modules and isinstance(value, cls._own())

    def _own(cls) -> Any:
        return getattr(importlib.import_module(cls.module), cls.__name__)
