"""The runs in a folder: of each its model, D, f and edges, where it is a circuit's, its picture and its pages."""

from __future__ import annotations

import datetime
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from persona_circuits.circuit.errors import PersonaCircuitsError
from persona_circuits.circuit.io import read_circuit
from persona_circuits.circuit.storage import Kind, read_json

__all__ = ["Run", "runs_in"]

MOST, DEEPEST = 500, 3  # runs that are listed; folders within folders that are looked into
CIRCUIT, PAGE, INDEX = "circuit.json", "page.html", "index.html"
PICTURES = ("graph.png", "graph.svg")


@dataclass(frozen=True)
class Run:
    """One run; ``name`` is its folder, relative to the folder of all runs, ``fault`` why it cannot be read.

    ``record`` is ``circuit.json``, empty for what is no search.
    """

    name: str
    folder: Path
    record: dict[str, Any]
    model: str
    date: str
    picture: str | None
    pages: tuple[str, ...]
    fault: str = ""

    @property
    def divergence(self) -> float | None:
        return self.record["task"]["divergence"] if self.record else None

    @property
    def faithfulness(self) -> dict[str, Any] | None:
        """The circuit's own part of the last report: on held-out pairs where there are such."""
        reports = self.record.get("faithfulness", ())
        return {**reports[-1]["circuit"], "split": reports[-1]["split"]} if reports else None

    @property
    def n_edges(self) -> int | None:
        return self.record["counts"]["edges"] if self.record else None


def runs_in(folder: Path) -> list[Run]:
    """All runs of a folder, by name; links are not followed, and hidden folders are skipped."""
    runs = []
    for place in _folders(folder, DEEPEST):
        if (run := _run(place, folder)) is not None:
            runs.append(run)
        if len(runs) == MOST:
            break
    return runs


def _folders(folder: Path, deepest: int) -> Iterator[Path]:
    yield folder
    for path in sorted(folder.iterdir()) if deepest else ():
        if path.is_dir() and not path.is_symlink() and not path.name.startswith("."):
            yield from _folders(path, deepest - 1)


def _run(place: Path, root: Path) -> Run | None:
    """The run of a folder; None for a folder without one."""
    files = {path.name: path for path in sorted(place.iterdir()) if path.is_file() and not path.is_symlink()}
    own = next((files[name] for name in (CIRCUIT, INDEX, PAGE) if name in files), None)
    if own is None:
        return None
    record, fault = _record(own) if own.name == CIRCUIT else ({}, "")
    pictures = [name for name in (*PICTURES, *(name for name in files if name.endswith(".png"))) if name in files]
    pages = [name for name in (PAGE, INDEX) if name in files]
    pages += [name for name in files if name.endswith(".html") and name not in pages]
    date = datetime.datetime.fromtimestamp(own.stat().st_mtime, datetime.UTC).strftime("%Y-%m-%d %H:%M")
    return Run(
        name=place.relative_to(root).as_posix(),
        folder=place,
        record=record,
        model=str(record["model"]["name"]) if record else _model_of(files),
        date=date,
        picture=pictures[0] if pictures else None,
        pages=tuple(pages),
        fault=fault,
    )


def _record(path: Path) -> tuple[dict[str, Any], str]:
    """``circuit.json`` as it is read everywhere, or why it cannot be read."""
    try:
        return read_circuit(path).record or {}, ""
    except PersonaCircuitsError as error:
        return {}, str(error)


def _model_of(files: dict[str, Path]) -> str:
    """The model that another command's result names."""
    for name, path in files.items():
        if name.endswith(".json") and f"{path.stem}.html" in files:
            try:
                content = read_json(path, Kind("result"))
            except PersonaCircuitsError:
                continue
            model = content.get("model") if isinstance(content, dict) else None
            return str(model.get("name", "") if isinstance(model, dict) else model or "")
    return ""
