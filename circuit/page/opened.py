"""MLPs opened into their neurons, and heads into their parts, of a run: what the page shows of either."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from persona_circuits.circuit.errors import FileError, listed
from persona_circuits.circuit.io import StoredCircuit, schema_faults
from persona_circuits.circuit.storage import Kind, read_json

__all__ = ["FILES", "opened_data", "read_opened"]

FILES = {"neurons": "neurons.json", "heads": "heads.json"}
MOST_NEURONS, MOST_EDGES, MOST_TERMS = 500, 5, 6
"""Neurons on the page, edges into and out of each, and terms of a head's score by the query and by the keys."""


def _object(**properties: Any) -> dict[str, Any]:
    return {"type": "object", "required": list(properties), "properties": properties}


def _list(items: Any) -> dict[str, Any]:
    return {"type": "array", "items": items}


def _or_none(kind: Mapping[str, Any]) -> dict[str, Any]:
    return {"anyOf": [{"type": "null"}, kind]}


NUMBER, WHOLE, TEXT = {"type": "number"}, {"type": "integer", "minimum": 0}, {"type": "string"}
NUMBERS = {"type": "object", "additionalProperties": NUMBER}
INTERVAL = _or_none(_object(low=NUMBER, high=NUMBER))
SHARE = _object(value=_or_none(NUMBER), interval=INTERVAL, random=_list(NUMBER), p=_or_none(NUMBER))
NEURON = _object(
    name={"type": "string", "pattern": r"^m\d+\.n\d+$"},
    score=NUMBER,
    promotes=_list(TEXT),
    demotes=_list(TEXT),
    sources=NUMBERS,
    destinations=NUMBERS,
)
SET = _object(name=TEXT, n_neurons=WHOLE, m=NUMBER, f=_or_none(NUMBER), interval=INTERVAL, carried=SHARE)
SCHEMAS = {
    "neurons": _object(
        format={"const": "persona-circuits/neurons"},
        version={"const": 1},
        asked=NUMBER,
        method=TEXT,
        n_neurons={"type": "object", "additionalProperties": WHOLE},
        scores=NUMBERS,
        kept_scores=NUMBERS,
        kept=_list(NEURON),
        measured=_list(_object(rows=_list(SET), split=TEXT, n_pairs=WHOLE, drawn_over=TEXT)),
        notes=_list(TEXT),
    ),
    "heads": _object(
        format={"const": "persona-circuits/heads"},
        version={"const": 1},
        parts=_list(_object(head=TEXT, part=TEXT, n_edges=WHOLE, score=_or_none(NUMBER), lost=SHARE)),
        attended=_list(
            _object(
                head=TEXT,
                span=TEXT,
                attention_a=NUMBER,
                attention_b=NUMBER,
                score=NUMBER,
                interval=INTERVAL,
                query=NUMBERS,
                key=NUMBERS,
            )
        ),
        split=TEXT,
        n_pairs=WHOLE,
        n_attended=WHOLE,
        drawn_over=TEXT,
    ),
}
"""What is read of ``neurons.json`` and ``heads.json``."""


def read_opened(place: Path) -> dict[str, Any]:
    """The files of a run's folder about opened MLPs and heads, as far as they are there.

    Raises:
        FileError: one holds something else.
    """
    contents = {}
    for name, file in FILES.items():
        path = place / file
        if not path.is_file():
            continue
        content = read_json(path, Kind("file of the run"))
        if faults := schema_faults(content, SCHEMAS[name]):
            raise FileError(listed(f"{path} is no such file of discover; it has {len(faults)} fault(s):", faults))
        contents[name] = content
    return contents


def opened_data(opened: Mapping[str, Any], stored: StoredCircuit) -> dict[str, Any]:
    """What the page has of either, where it is of just this circuit; what an earlier circuit left is not."""
    data = {}
    if (neurons := opened.get("neurons")) is not None and _are_of(neurons, stored.record):
        data["neurons"] = _neurons(neurons)
    if (heads := opened.get("heads")) is not None and _have_edges_of(heads["parts"], stored):
        keys = ("parts", "split", "n_pairs", "n_attended", "drawn_over")
        data["heads"] = {key: heads[key] for key in keys} | {"attended": [*map(_attended, heads["attended"])]}
    return data


def _are_of(neurons: Mapping[str, Any], record: Mapping[str, Any] | None) -> bool:
    """Whether the circuit's file names the same MLPs and neurons."""
    known = (record or {}).get("neurons")
    names = [neuron["name"] for neuron in neurons["kept"]]
    return known is not None and (known["mlps"], known["neurons"]) == (list(neurons["n_neurons"]), names)


def _have_edges_of(parts: Sequence[Mapping[str, Any]], stored: StoredCircuit) -> bool:
    """Whether the circuit has as many edges into each part."""
    slots = {"query-key": ("<q>", "<k>"), "value-output": ("<v>",)}
    names = stored.circuit.edge_names()
    return all(
        sum(name.endswith(tuple(f"->{part['head']}{slot}" for slot in slots.get(part["part"], ()))) for name in names)
        == part["n_edges"]
        for part in parts
    )


def _neurons(neurons: Mapping[str, Any]) -> dict[str, Any]:
    kept = [
        {**neuron, **{ends: _largest(neuron[ends], MOST_EDGES) for ends in ("sources", "destinations")}}
        for neuron in neurons["kept"][:MOST_NEURONS]
    ]
    counts = {
        mlp: sum(neuron["name"].startswith(f"{mlp}.") for neuron in neurons["kept"]) for mlp in neurons["n_neurons"]
    }
    keys = ("asked", "method", "n_neurons", "scores", "kept_scores", "measured", "notes")
    return {**{key: neurons[key] for key in keys}, "n_kept": counts, "kept": kept}


def _largest(terms: Mapping[str, float], most: int) -> list[list[Any]]:
    return [[name, value] for name, value in sorted(terms.items(), key=lambda item: -abs(item[1]))[:most]]


def _attended(span: Mapping[str, Any]) -> dict[str, Any]:
    """The terms of a score: the sources with the largest ones on either side, and the sum of the others."""
    query, key = span["query"], span["key"]
    first = dict.fromkeys(name for side in (query, key) for name, _ in _largest(side, MOST_TERMS))
    terms = [[name, query.get(name, 0.0), key.get(name, 0.0)] for name in first]
    terms.sort(key=lambda term: -max(map(abs, term[1:])))
    sums = (sum(value for name, value in side.items() if name not in first) for side in (query, key))
    others = [len((query.keys() | key.keys()) - first.keys()), *sums]
    keys = ("head", "span", "attention_a", "attention_b", "score", "interval")
    return {**{key: span[key] for key in keys}, "terms": terms, "others": others}
