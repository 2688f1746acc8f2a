"""What the page says of one run, from the files of its folder alone."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from persona_circuits.circuit.errors import FileError, PersonaCircuitsError, listed
from persona_circuits.circuit.io import StoredCircuit, read_circuit, read_scores, schema_faults
from persona_circuits.circuit.page.answer import answer_of
from persona_circuits.circuit.page.opened import FILES, opened_data, read_opened
from persona_circuits.circuit.page.stops import curve_of, nested
from persona_circuits.circuit.scores import Scores
from persona_circuits.circuit.storage import Kind, json_of, read_bytes, read_json, read_tensors
from persona_circuits.circuit.task import resolve, task_of

__all__ = ["INSIDE", "read_sweep", "record_run", "run_data"]

INSIDE = "inside.json"
"""What the nodes of a run do, computed where the model is."""
ABOUT = ("model", "task", "method", "ablation", "seed", "stamp", "counts", "versions", "computation")
RELIABILITY = ("stability", "certificate")
SUMMARY = ("signal", "null", "shared", "held_out", "target", "acdc")
NUMBER = {"type": "number"}
SWEEP = {
    "type": "object",
    "required": ["points"],
    "properties": {
        "points": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["tau", "asked", "n_edges", "faithfulness", "intervals"],
                "properties": {
                    "tau": NUMBER,
                    "asked": {"type": "integer", "minimum": 1},
                    "n_edges": {"type": "integer", "minimum": 0},
                    "faithfulness": {"type": "object", "additionalProperties": NUMBER},
                    "intervals": {"type": "object", "additionalProperties": {"type": ["object", "null"]}},
                    "medians": {"type": "object"},
                },
            },
        }
    },
}
"""What is read of a sweep.json."""
MOST_PAIRS = 200
"""Pairs whose prompts are on the page."""


def run_data(folder: str | Path, *, name: str | None = None) -> dict[str, Any]:
    """Everything the page needs of a run.

    Parameters
    ----------
    folder
        A run's folder, a ``circuit.json``, or EAP-IG's JSON; what lies beside it is used.
    name
        What the run is called on the page; its folder's name without it.

    Raises
    ------
    FileError
        The circuit or a file beside it is broken; files that are not there are not missed.
    """
    stored = read_circuit(folder)
    place = stored.path.absolute().parent
    sweep = read_sweep(place / "sweep.json")
    path = place / "scores.safetensors"
    scores = read_scores(path) if path.is_file() else stored.scores
    if scores is not None and scores.graph != stored.circuit.graph:
        raise FileError(f"{path} has scores of another graph than {stored.path}; put each run into its own folder")
    how: dict[str, Any] = {"summary": _json(place / "summary.json") or {}, "opened": read_opened(place)}
    data = record_run(stored, scores, name=name or place.name, sweep=sweep, **how)
    _add_spans(data, place / "spans.safetensors", stored)
    return data | {"pairs": _pairs(stored.record), "files": list(_files(place))}


def record_run(
    stored: StoredCircuit,
    scores: Scores | None,
    *,
    name: str,
    sweep: Mapping[str, Any] | None = None,
    summary: Mapping[str, Any] | None = None,
    opened: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """What the page needs of a circuit that is read already, or that lies in no folder."""
    circuit, record = stored.circuit, stored.record or {}
    graph, reports = circuit.graph, record.get("faithfulness", [])
    kept = nested(circuit, scores, reports, sweep)
    marked = {item["edge"]: item for item in record.get("edges", [])}
    names = sorted({*circuit.edge_names(), *kept.first}, key=lambda edge: graph.index(edge)[::-1])
    known = {} if scores is None else {name: scores[name] for name in names}
    inside = set(circuit.edge_names())
    edges = []
    for edge in names:
        item: dict[str, Any] = {"edge": edge, "score": known.get(edge), "kept": edge in inside}
        if edge in kept.first:
            item["stop"] = kept.first[edge]
        if (mark := marked.get(edge)) is not None and "part" in mark:
            item |= {"core": mark["part"] == "core", "frequency": mark.get("frequency")}
        if mark is not None and "stays" in mark:
            item["stays"] = mark["stays"]
        edges.append(item)
    evaluations = record.get("evaluations", [])
    below = opened_data(opened or {}, stored)
    return {
        "name": name,
        "graph": {"layers": graph.n_layers, "heads": graph.n_heads, "parallel": graph.parallel},
        "about": {key: record[key] for key in (*ABOUT, *RELIABILITY) if key in record},
        "answer": answer_of(record, summary or {}, circuit),
        "faithfulness": reports,
        "evaluation": _shorter(evaluations[-1]) if evaluations else None,
        "summary": {key: (summary or {})[key] for key in SUMMARY if key in (summary or {})},
        "edges": edges,
        "spans": [],
        "stops": list(kept.stops),
        "note": kept.note,
        "curve": curve_of(sweep),
        "pairs": [],
        "files": [],
        **({"opened": below} if below else {}),
    }


def read_sweep(path: Path) -> dict[str, Any] | None:
    """The nested circuits of a run; None where the file is not there.

    Raises:
        FileError: it holds something else.
    """
    content = _json(path)
    if content is None:
        return None
    if faults := schema_faults(content, SWEEP):
        raise FileError(listed(f"{path} is no sweep of discover; it has {len(faults)} fault(s):", faults))
    return content


def _shorter(evaluation: Mapping[str, Any]) -> dict[str, Any]:
    """An evaluation without the long lists that the page does not show."""
    kept = {key: value for key, value in evaluation.items() if key not in ("tests", "completeness", "faithfulness")}
    tests, complete = evaluation.get("tests"), evaluation.get("completeness")
    if tests and isinstance(tests.get("outcomes"), list):
        names = ("name", "hypothesis", "decision", "p", "p_holm", "sentence", "could_show")
        kept["tests"] = [
            {key: outcome.get(key) for key in names} for outcome in tests["outcomes"] if isinstance(outcome, dict)
        ]
    if complete:
        kept["completeness"] = {
            key: complete.get(key) for key in ("circuit", "complement", "mean_gap", "worst", "backup")
        }
    return kept


def _add_spans(data: dict[str, Any], path: Path, stored: StoredCircuit) -> None:
    """Of every edge the part of the prompt that gives most of its score, where the run has scores by part.

    Where the circuit has its edges at some parts, it is the one of these.
    """
    if not path.is_file():
        return
    graph, at_parts = stored.circuit.graph, stored.at_parts
    kind = Kind("file of scores by part", expected="a spans.safetensors of discover --by-span")
    read = read_tensors(path, kind, only=("scores", "entry", "persistence"))
    names = json_of(read.metadata.get("about", "{}"), path, kind).get("spans", [])
    values = read.arrays.get("scores")
    if values is None or values.shape[1:] != graph.valid.shape or len(names) != len(values):
        raise kind.faulty(path, "cannot be used (its scores are of another graph, or have no names)")
    data["spans"], kept = list(names), None if at_parts is None else at_parts.at(names)
    for item in data["edges"]:
        place = (slice(None), *graph.index(item["edge"]))
        here = np.abs(values[place])
        if kept is not None and kept[place].any():
            here = np.where(kept[place], here, -1.0)
        item["span"] = int(here.argmax())
    layers = {key: read.arrays[key].tolist() for key in ("entry", "persistence") if key in read.arrays}
    data["span_layers"] = layers


def _pairs(record: Mapping[str, Any] | None) -> list[dict[str, Any]]:
    """The prompts, where the file that the circuit names is there and is the same still."""
    task = (record or {}).get("task")
    if task is None:
        return []
    try:
        path = resolve(task["source"])
        content = read_bytes(path, Kind("pair file"))
        if hashlib.sha256(content).hexdigest() != task["sha256"]:
            return []
        pairs = task_of(content, path).where(**task.get("where", {})).pairs
    except PersonaCircuitsError:
        return []
    keys = ("id", "clean", "corrupt", "answers", "wrong_answers", "split", "persona_a", "persona_b", "question")
    rows = [{key: getattr(pair, key, None) for key in keys} for pair in pairs[:MOST_PAIRS]]
    return [
        {
            key: list(value) if isinstance(value, tuple) else value
            for key, value in row.items()
            if value not in (None, "")
        }
        for row in rows
    ]


def _files(place: Path) -> Iterable[dict[str, Any]]:
    """Name, size and hash of the run's own files."""
    known = ("circuit.json", "real_circuits_1.json", "scores.safetensors", "summary.json", "sweep.json", INSIDE)
    for name in (*known, "spans.safetensors", *FILES.values()):
        path = place / name
        if path.is_file():
            content = read_bytes(path, Kind("file of the run"))
            yield {"name": name, "bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}


def _json(path: Path) -> dict[str, Any] | None:
    if not path.is_file():
        return None
    content = read_json(path, Kind("file of the run"))
    return content if isinstance(content, dict) else None
