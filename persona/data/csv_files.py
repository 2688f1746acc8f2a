"""Personas and questions from CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from pathlib import Path

from persona_circuits.circuit.errors import TaskError
from persona_circuits.circuit.storage import Kind, read_text, table_kind
from persona_circuits.persona.data.values import Faults, Persona, Question, checked_question

__all__ = ["PERSONA_HEADER", "QUESTION_HEADER", "SOURCE", "csv_personas", "csv_question", "csv_rows"]

PERSONA_HEADER, QUESTION_HEADER = ("name", "wording"), ("id", "wording", "options")
SOURCE = Kind("source", TaskError)


def csv_rows(path: Path, header: tuple[str, ...], faults: Faults) -> Iterator[tuple[str, dict[str, str]]]:
    """The rows of a CSV file, stripped; the columns of ``header`` are filled in every row."""
    text = read_text(path, SOURCE)
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    try:
        columns = [name.strip() for name in reader.fieldnames or ()]
        if missing := [name for name in header if name not in columns]:
            kind = table_kind(text)
            if kind and not kind.endswith("commas"):
                raise TaskError(
                    f"{path} is {kind}; a .csv must be separated by commas, with the header {','.join(header)} "
                    "(docs/pairs.md)"
                )
            faults.add("line 1", f"no column {', '.join(missing)}; expected the header {','.join(header)}")
            return
        reader.fieldnames = columns
        for cells in reader:
            where = f"line {reader.line_num}"
            if None in cells:
                faults.add(where, f"more cells than the {len(columns)} of the header; put a text with commas in quotes")
                continue
            row = {name: (cell or "").strip() for name, cell in cells.items()}
            if empty := [name for name in header if not row[name] and name != "options"]:
                faults.add(where, f"{', '.join(empty)} is empty")
            else:
                yield where, row
    except csv.Error as error:
        faults.add(f"line {reader.line_num}", f"not CSV ({error})")


def csv_personas(path: Path, faults: Faults) -> list[Persona]:
    wordings: dict[str, list[str]] = {}
    for where, row in csv_rows(path, PERSONA_HEADER, faults):
        own = wordings.setdefault(row["name"], [])
        if row["wording"] in own:
            faults.add(where, f"{row['name']} has this wording already")
        own.append(row["wording"])
    return [Persona(name, tuple(own)) for name, own in wordings.items()]


def csv_question(item: tuple[str, dict[str, str]], faults: Faults) -> Question | None:
    """``options`` separated by |; ``prefers`` as ``monk=tea|actor=wine`` and ``cue`` are columns that may be absent."""
    where, row = item
    options = tuple(cell.strip() for cell in row["options"].split("|")) if row["options"] else ()
    prefers: dict[str, str | None] = {}
    for cell in filter(None, row.get("prefers", "").split("|")):
        name, sign, option = (part.strip() for part in cell.partition("="))
        if not sign:
            faults.add(where, f"prefers: expected persona=option, got {cell!r}")
        prefers[name] = option
    return checked_question(
        where, row["id"], (row["wording"],), options, faults, prefers=prefers, cue=row.get("cue") or None
    )
