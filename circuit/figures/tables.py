"""Results as files: plain values for JSON, rows for CSV, arrays as safetensors. The same results give the same bytes.

Numbers are rounded to six places in JSON and CSV; what is not defined is null or empty there
and nan in arrays. A spreadsheet would compute a text that begins like a formula: in CSV it has an
apostrophe before it, which ``csv_rows`` takes away again.
"""

from __future__ import annotations

import csv
import io
import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from persona_circuits.circuit.errors import FileError
from persona_circuits.circuit.printable import visible
from persona_circuits.circuit.storage import Kind, read_bytes, write_bytes, write_text

__all__ = [
    "csv_lines",
    "csv_rows",
    "csv_text",
    "flat",
    "interval",
    "markdown_code",
    "picked",
    "plain",
    "write_arrays",
    "write_csv",
]

PLACES = 6
TABLE = Kind("table")
_FORMULA = re.compile("'*[=+\\-@\t\r\n＝＋－＠]")  # what a spreadsheet takes for one, apostrophes before it or not
_NUMBER = re.compile(r"[-+]?[0-9.]+(e[-+]?[0-9]+)?")


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


def picked(result: Any, *names: str) -> dict[str, Any]:
    """These attributes of a result, by name."""
    return {name: getattr(result, name) for name in names}


def flat(row: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """One level of columns: ``summary.low``; a list's numbers are ``name.1``, ``name.2``, its texts are joined."""
    columns: dict[str, Any] = {}
    for key, value in row.items():
        if isinstance(value, Mapping):
            columns |= flat(value, f"{prefix}{key}.")
        elif isinstance(value, list) and any(isinstance(item, int | float) for item in value):
            columns |= {f"{prefix}{key}.{place}": item for place, item in enumerate(value, 1)}
        elif isinstance(value, list):
            columns[f"{prefix}{key}"] = " | ".join(str(item).strip() for item in value)
        else:
            columns[f"{prefix}{key}"] = value
    return columns


def csv_text(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows of plain, flat values under the names of all their columns; texts as no spreadsheet computes them."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\r\n")  # so that a lone carriage return is quoted too
    lines = []
    for cells in (names, *([row.get(name, "") for name in names] for row in rows)):
        writer.writerow([_inert(cell) for cell in cells])
        lines.append(text.getvalue().removesuffix("\r\n") + "\n")
        text.seek(0)
        text.truncate()
    return "".join(lines)


def csv_rows(path: str | Path) -> list[dict[str, str]]:
    """The rows of a file that ``write_csv`` wrote, every cell as the text that was given.

    Raises:
        FileError: the file cannot be read, or is no CSV in UTF-8.
    """
    content = read_bytes(path, TABLE)  # the lines of a cell may end in CR LF
    try:
        names, *lines = csv_lines(content.decode("utf-8-sig")) or [[]]
    except (UnicodeDecodeError, csv.Error) as error:
        raise FileError(f"table {path} is no CSV in UTF-8 ({error}); give one that this program wrote") from error
    return [dict(zip(names, line, strict=False)) for line in lines]


def csv_lines(text: str) -> list[list[str]]:
    """The cells of a CSV text as they were given, of any length.

    Raises:
        csv.Error: the text is no CSV.
    """
    limit = csv.field_size_limit(max(len(text), 1))
    try:
        reader = csv.reader(io.StringIO(text, newline=""))
        return [[_as_given(cell) for cell in line] for line in reader]
    finally:
        csv.field_size_limit(limit)


def _inert(cell: Any) -> Any:
    """Texts that begin like a formula with an apostrophe before them; numbers as they are."""
    is_formula = isinstance(cell, str) and _FORMULA.match(cell) and not _NUMBER.fullmatch(cell)
    return f"'{cell}" if is_formula else cell


def _as_given(cell: str) -> str:
    return cell[1:] if cell.startswith("'") and _FORMULA.match(cell) else cell


def markdown_code(text: str) -> str:
    """Text as code, between more backticks than it holds in a row."""
    line = visible(text).replace("\n", " ").strip()
    ticks = "`" * (1 + max(map(len, re.findall("`+", line)), default=0))
    return f"{ticks}{line}{ticks}" if len(ticks) == 1 else f"{ticks} {line} {ticks}"


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
