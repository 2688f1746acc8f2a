"""Whether the numbers in a text are in the results: each must be a result rounded to the digits that are shown.

Left out, since they are no results: code (fenced, indented behind a blank line, or between backticks), targets of
links, addresses, dates, the numbering of headings and lists, numbers that are part of a name (``a10.h5``, ``GPT-2``,
``3B``, ``v1``), arXiv ids, and what ``allowed`` names. A percentage is compared with a hundred times the results. A
text's number without a sign may be a result's size ("fell by 0.3"); with one it must have that sign.

A number with few digits is found easily: among a thousand results most two-digit shares occur somewhere. The
check finds what was mistyped, rounded wrongly or left from an earlier run; it does not say that a number stands beside
the right words.
"""

from __future__ import annotations

import contextlib
import csv
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from persona_circuits.circuit.errors import FileError
from persona_circuits.circuit.figures import csv_lines
from persona_circuits.circuit.storage import Kind, read_json, read_text

__all__ = ["result_values", "unfound_numbers"]

RESULT = Kind("result file", expected="a .csv, or JSON")
ALLOWED = ("95",)
"""The level of all intervals."""
NUMBER = re.compile(
    r"(?P<sign>(?<![\w)%])[+\-−])?(?P<digits>(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|\.\d+)"
    r"(?:e(?P<exponent>[+\-]?\d+))?(?P<percent>(?: |\u00a0|\u202f)?%| percent\b)?"
)
REMOVED = (
    r"<!--.*?-->",
    r"^(?P<fence>```+|~~~+).*?^(?P=fence)\s*$",
    r"(?<=\n\n)(?: {4}|\t)[^\n]*(?:\n(?: {4}|\t)[^\n]*|\n(?=\n*(?: {4}|\t)))*",
    r"(?<!`)(?P<tick>`+)(?!`).*?(?<!`)(?P=tick)(?!`)",
    r"(?<=\])\([^)\s]*(?: \"[^\"]*\")?\)",
    r"^\[[^\]]+\]:.*$",
    r"<?https?://[^\s>)]+>?",
    r"\b\d{4}-\d{2}(?:-\d{2})?\b",
    r"arXiv:\s?\d{4}\.\d{4,5}",
    r"^#{1,6} +[\d.]+(?=[ .)])",
    r"^ *(?:\d+[.)]|[-*+])(?= )",
)


@dataclass(frozen=True)
class Unfound:
    """A number of the text that is in no result: its line, from 1, as it is written, and the line's text."""

    line: int
    number: str
    text: str

    def __str__(self) -> str:
        return f"line {self.line}: {self.number} is in no result: {self.text.strip()[:120]}"


def unfound_numbers(markdown: str, results: Iterable[str | Path], *, allowed: Iterable[str] = ALLOWED) -> list[Unfound]:
    """Every number of a Markdown text that is in none of the result files, in the text's order.

    Parameters
    ----------
    results
        JSON and CSV files; every number in them counts, and no text but the cells of CSV.
    allowed
        Numbers that need no result, as they are written, without sign and percent.

    Raises
    ------
    FileError
        A result file cannot be read, or is neither JSON nor CSV.
    """
    values = result_values(results)
    lines, kept = markdown.splitlines(), frozenset(allowed)
    return [
        Unfound(line, found.group().strip(), lines[line - 1])
        for line, found in _numbers(_bare(markdown))
        if found["digits"] not in kept and not _is_found(found, values)
    ]


def result_values(results: Iterable[str | Path]) -> Float[np.ndarray, " value"]:
    """All numbers of the files, each once, in order.

    Raises:
        FileError: a file cannot be read, or is neither JSON nor CSV.
    """
    found: set[float] = set()
    for path in map(Path, results):
        if path.suffix.lower() == ".csv":
            found |= set(_of_cells(read_text(path, RESULT), path))
        else:
            found |= set(_of_json(read_json(path, RESULT)))
    return np.array(sorted(value for value in found if np.isfinite(value)))


def _bare(markdown: str) -> str:
    """The text with everything blanked that is no prose; lines and their numbers stay."""
    text = markdown
    for pattern in REMOVED:
        text = re.sub(pattern, _blank, text, flags=re.MULTILINE | re.DOTALL)
    return text


def _blank(found: re.Match[str]) -> str:
    return re.sub(r"[^\n]", " ", found.group())


def _numbers(text: str) -> Iterator[tuple[int, re.Match[str]]]:
    """Every number that is no part of a name, with its line."""
    for found in NUMBER.finditer(text):
        before, after = text[max(0, found.start() - 2) : found.start()], text[found.end() : found.end() + 2]
        in_word = re.search(r"[^\W\d_]$|\w_$|\d$|\d[.,]$|[^\W\d][-.]$", before) or re.match(r"[^\W\d_]|_\w", after)
        signed_word = found["sign"] in ("-", "−") and re.search(r"\w$", before)
        if not in_word and not signed_word:
            yield text.count("\n", 0, found.start()) + 1, found


def _is_found(found: re.Match[str], values: Float[np.ndarray, " value"]) -> bool:
    digits, exponent = found["digits"].replace(",", ""), int(found["exponent"] or 0)
    places = len(digits.partition(".")[2])
    scale = 10.0**exponent / (100.0 if found["percent"] else 1.0)
    size, half = float(digits) * scale, 0.5 * 10.0**-places * scale * (1 + 1e-6) + 1e-12
    signs = {"+": (1,), "-": (-1,), "−": (-1,)}.get(found["sign"] or "", (1, -1))
    for sign in signs:
        first, last = np.searchsorted(values, (sign * size - half, sign * size + half), side="left")
        if first < last or (first < len(values) and values[first] <= sign * size + half):
            return True
    return False


def _of_json(value: Any) -> Iterator[float]:
    if isinstance(value, dict | list):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _of_json(part)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield float(value)


def _of_cells(text: str, path: Path) -> Iterator[float]:
    try:
        for cell in (cell for row in csv_lines(text) for cell in row):
            with contextlib.suppress(ValueError):
                yield float(cell)
    except csv.Error as error:
        raise FileError(f"result file {path} is not CSV ({error}); give a file that study writes") from error
