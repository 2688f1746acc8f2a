"""Options hold Python's own numbers, whatever a caller's loop over numpy arrays gives."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import numpy as np

from persona_circuits.circuit.errors import OptionError

__all__ = [
    "PlainNumbers",
]


class PlainNumbers:
    """A base of frozen dataclasses: numpy's numbers become Python's, and a whole float an int where one is wanted.

    Raises:
        OptionError: a field of whole numbers is given a fraction.
    """

    def __post_init__(self) -> None:
        for field in fields(self):  # type: ignore[arg-type]
            value = _plain(getattr(self, field.name))
            kinds = str(field.type).split(" | ")
            if isinstance(value, float) and "int" in kinds and "float" not in kinds:
                if not value.is_integer():
                    raise OptionError(f"{field.name} must be a whole number, got {value!r}")
                value = int(value)
            object.__setattr__(self, field.name, value)


def _plain(value: Any) -> Any:
    if isinstance(value, np.generic) or (isinstance(value, np.ndarray) and value.ndim == 0):
        return value.item()
    if type(value) in (tuple, list):
        return type(value)(_plain(one) for one in value)
    return value
