"""What `validate` knows: a reader for every kind of file that the program writes, and all that it finds wrong."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from persona_circuits.circuit.errors import FileError, PersonaCircuitsError

__all__ = ["faults_of_file", "files_of", "kind_of"]

TABLE, ARRAYS, RESULT, PAGE, LINES = "table", "arrays", "result", "page of figures", "JSON Lines"
CIRCUIT_PAGE, GROUPS = "page of a circuit", "groups of nodes"
RESULTS = ("summary.json", "bridge.json", "patch.json", "inside.json")
PAIR_KEYS = {"clean", "corrupt", "answers", "wrong_answers"}


def files_of(path: Path) -> list[Path]:
    """The file itself, or the files to check in a result's folder."""
    if not path.is_dir():
        return [path]
    known = (".json", ".jsonl", ".csv", ".safetensors", ".html")
    return sorted(file for file in path.iterdir() if file.is_file() and file.suffix in known) or [path]


def faults_of_file(path: Path, graph: Any = None) -> list[str]:
    """Every fault of a file, each with its place; none if every command that takes such a file can read it.

    With a ``graph``, nodes must be of that graph.
    """
    from persona_circuits.circuit.io import faults_of

    kind = kind_of(path)
    try:
        return CHECKS[kind](path) if kind in CHECKS else faults_of(path, graph)
    except PersonaCircuitsError as error:
        return [str(error)]


def kind_of(path: Path) -> str:
    """What a file is, by its ending and, where that is ambiguous, by its content."""
    ending = path.suffix.lower()
    if ending == ".safetensors":
        return _tensor_kind(path)
    if ending == ".csv":
        return TABLE
    if ending == ".html":
        return _page_kind(path)
    if ending == ".jsonl":
        return _line_kind(path)
    return _json_kind(path)


def _page_kind(path: Path) -> str:
    from persona_circuits.circuit.page import is_page
    from persona_circuits.circuit.storage import Kind, read_text

    try:
        return CIRCUIT_PAGE if is_page(read_text(path, Kind("page"))) else PAGE
    except FileError:
        return PAGE


def _tensor_kind(path: Path) -> str:
    from persona_circuits.circuit.storage import Kind, read_tensors

    try:
        names = read_tensors(path, Kind("file of tensors"), only=()).names
    except FileError:
        return "scores"
    if {"means", "halves"} <= set(names):
        return "vectors"
    return "scores" if "graph" in names or not names else ARRAYS


def _line_kind(path: Path) -> str:
    """Pairs, responses, or other lines, by the keys of the first line."""
    from persona_circuits.circuit.storage import Kind, json_lines, read_text

    try:
        first = next((item for _, item in json_lines(read_text(path, Kind("file")), []) if isinstance(item, dict)), {})
    except FileError:
        return "pairs"
    if first.keys() & PAIR_KEYS:
        return "pairs"
    return "responses" if "response" in first else LINES if first else "pairs"


def _json_kind(path: Path) -> str:
    from persona_circuits.circuit.storage import Kind, read_json

    try:
        content = read_json(path / "circuit.json" if path.is_dir() else path, Kind("file"))
    except FileError:
        return "circuit"
    if isinstance(content, list) or (isinstance(content, dict) and content.keys() & {"prompts", *PAIR_KEYS}):
        return "pairs"
    format_ = content.get("format") if isinstance(content, dict) else None
    if format_ == "persona-circuits/groups":
        return GROUPS
    if isinstance(format_, str) and format_.startswith("persona-circuits/") and format_ != "persona-circuits/circuit":
        return RESULT
    circuit = isinstance(content, dict) and ("format" in content or content.keys() & {"nodes", "edges", "cfg"})
    return "circuit" if circuit and path.name not in RESULTS else RESULT


def _pairs(path: Path) -> list[str]:
    from persona_circuits.circuit.task import faults_of_pairs

    return faults_of_pairs(path)


def _table(path: Path) -> list[str]:
    """A CSV file: every row as long as its header."""
    import csv

    from persona_circuits.circuit.storage import Kind, read_text

    rows = list(csv.reader(read_text(path, Kind("table")).splitlines()))
    if not rows:
        return []
    return [
        f"row {i}: {len(row)} cells, expected {len(rows[0])} as in the first"
        for i, row in enumerate(rows[1:], 2)
        if len(row) != len(rows[0])
    ]


def _lines(path: Path) -> list[str]:
    from persona_circuits.circuit.storage import Kind, json_lines, read_text

    faults: list[str] = []
    list(json_lines(read_text(path, Kind("JSON Lines file")), faults))
    return faults


def _arrays(path: Path) -> list[str]:
    from persona_circuits.circuit.storage import Kind, json_of, read_tensors

    tensors = read_tensors(path, Kind("file of arrays"))
    json_of(tensors.metadata.get("about", "{}"), path, Kind("file of arrays"))
    return []


def _result(path: Path) -> list[str]:
    from persona_circuits.circuit.storage import Kind, read_json

    content = read_json(path, Kind("result"))
    return [] if isinstance(content, dict) else ["expected a JSON object"]


def _page(path: Path) -> list[str]:
    from persona_circuits.circuit.figures import INDEX, is_index, read_figures
    from persona_circuits.circuit.storage import Kind, read_text

    if path.name != INDEX or not is_index(read_text(path, Kind("page"))):
        read_figures(path)
    return []


def _circuit_page(path: Path) -> list[str]:
    from persona_circuits.circuit.page import page_faults, read_page

    return page_faults(read_page(path))


def _read_by(module: str, name: str) -> Callable[[Path], list[str]]:
    def check(path: Path) -> list[str]:
        from importlib import import_module

        getattr(import_module(module), name)(path)
        return []

    return check


CHECKS: dict[str, Callable[[Path], list[str]]] = {
    "pairs": _pairs,
    TABLE: _table,
    ARRAYS: _arrays,
    RESULT: _result,
    PAGE: _page,
    CIRCUIT_PAGE: _circuit_page,
    GROUPS: _read_by("persona_circuits.circuit.io", "read_groups"),
    "vectors": _read_by("persona_circuits.persona.vectors", "read_vectors"),
    "responses": _read_by("persona_circuits.persona.responses", "read_responses"),
    LINES: _lines,
}
