"""Rows as a pandas table, where pandas is installed; nothing else here needs it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from persona_circuits.circuit.errors import OptionError

__all__ = ["frame_of"]


def frame_of(rows: Sequence[Mapping[str, Any]], columns: Sequence[str] | None = None) -> Any:
    """A ``pandas.DataFrame`` with a row per mapping.

    Raises:
        OptionError: pandas is not installed.
    """
    try:
        import pandas
    except ImportError as error:
        raise OptionError("to_frame needs pandas, which is not installed; pip install pandas") from error
    return pandas.DataFrame(list(rows), columns=None if columns is None else list(columns))
