"""Results as files: plain values for JSON, rows for CSV, arrays as safetensors. The same results give the same bytes.

Numbers are rounded to six places in JSON and CSV; what is not defined is null or empty there
and nan in arrays.
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from circuit.storage import write_bytes, write_text

__all__ = [
    "PLACES",
    "csv_text",
    "flat",
    "interval",
    "markdown_table",
    "plain",
    "write_arrays",
    "write_csv",
    "write_text",
]

PLACES = 6


def plain(value: Any) -> Any:
    """Lists and dictionaries for tuples, arrays and dataclasses, rounded floats, None for what is no number."""
    if hasattr(value, "__dataclass_fields__") and not isinstance(value, type):
        return {name: plain(getattr(value, name)) for name in value.__dataclass_fields__}
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, np.ndarray | np.generic):
        return plain(value.tolist())
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, float):
        return round(value, PLACES) + 0.0 if math.isfinite(value) else None
    return value


def flat(row: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """One level of columns: ``summary.divergence.low``; lists are joined by `` | ``."""
    found: dict[str, Any] = {}
    for key, value in row.items():
        if isinstance(value, Mapping):
            found |= flat(value, f"{prefix}{key}.")
        elif isinstance(value, list):
            found[f"{prefix}{key}"] = " | ".join(str(item).strip() for item in value)
        else:
            found[f"{prefix}{key}"] = value
    return found


def csv_text(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows of plain, flat values under the names of all their columns."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, names, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def markdown_table(columns: Sequence[str], rows: Sequence[Sequence[str]], *, texts: int = 1) -> str:
    """A table whose first ``texts`` columns are text, the others numbers."""
    rule = ["---"] * texts + ["---:"] * (len(columns) - texts)
    cells = [[cell.replace("|", "\\|").replace("\n", " ") for cell in row] for row in (columns, rule, *rows)]
    return "\n".join("| " + " | ".join(row) + " |" for row in cells)


def write_csv(rows: Sequence[Mapping[str, Any]], path: str | Path) -> None:
    """Write rows, made plain and flat; of no rows an empty file.

    Raises:
        FileError: the folder is missing or cannot be written.
    """
    write_text(csv_text([flat(plain(row)) for row in rows]) if rows else "", path)


def write_arrays(arrays: Mapping[str, np.ndarray], about: Mapping[str, Any], path: str | Path) -> None:
    """Write arrays as safetensors, with what their axes are as JSON in the metadata key ``about``.

    Raises:
        FileError: the folder is missing or cannot be written.
    """
    from safetensors.numpy import save

    tensors = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    data = save(tensors, metadata={"about": json.dumps(plain(about), ensure_ascii=False)})
    write_bytes(data, path)


def interval(low: float | None, high: float | None, places: int = 2) -> str:
    """``1.20, 3.40``, or nothing where the interval is not known."""
    return "" if low is None or high is None else f"{low:.{places}f}, {high:.{places}f}"
