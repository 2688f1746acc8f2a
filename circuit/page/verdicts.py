"""What ``explain`` says of the model's pairs, each verdict beside its causal test and the null, for the page."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from persona_circuits.circuit.errors import FileError, OptionError, listed
from persona_circuits.circuit.io import schema_faults
from persona_circuits.circuit.storage import Kind, decoded, json_of, read_bytes

__all__ = ["read_verdicts"]

EXPLAIN = Kind("explanation", expected="the explain.json of explain, or its folder")
NUMBER, COUNT, TEXT = {"type": "number"}, {"type": "integer", "minimum": 0}, {"type": "string"}
MAYBE = {"type": ["number", "null"]}


def _object(**keys: Any) -> dict[str, Any]:
    return {"type": "object", "required": list(keys), "properties": keys}


GROUP = _object(
    by=TEXT,
    value=TEXT,
    n=COUNT,
    headline=TEXT,
    verdict=TEXT,
    share=NUMBER,
    agree=COUNT,
    disagree=COUNT,
    null_agree=MAYBE,
    divergence=_object(value=NUMBER, low=MAYBE, high=MAYBE),
)
TEST = _object(
    cause=TEXT, test=TEXT, agree=COUNT, ran=COUNT, null_agree=COUNT, null_ran=COUNT, random_share=MAYBE, p=MAYBE
)
SCHEMA = _object(
    format={"const": "persona-circuits/explain"},
    version={"const": 1},
    model=_object(name=TEXT, fingerprint=TEXT),
    sources={"type": "array", "minItems": 1, "items": _object(source=TEXT, sha256=TEXT)},
    null={"anyOf": [{"type": "null"}, _object(n=COUNT, sigma_0=NUMBER)]},
    tests={"type": "object", "additionalProperties": TEST},
    groups={"type": "array", "items": GROUP},
    resampled=TEXT,
)
"""What is read of an explain.json."""


def read_verdicts(place: str | Path, record: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The verdicts of all groups of pairs, with the causal tests that they stand beside.

    Parameters
    ----------
    place
        A folder of ``explain``, or its ``explain.json``.
    record
        The circuit's own; without one nothing is compared with it.

    Raises
    ------
    FileError
        The file cannot be read, or is no explanation; all faults are listed.
    OptionError
        It explains other weights than those that the circuit is of.
    """
    path = Path(place) / "explain.json" if Path(place).is_dir() else Path(place)
    raw = read_bytes(path, EXPLAIN)
    verdicts = json_of(decoded(raw, path, EXPLAIN), path, EXPLAIN)
    if faults := schema_faults(verdicts, SCHEMA):
        raise FileError(listed(f"{path} is no {EXPLAIN.noun}; it has {len(faults)} fault(s):", faults))
    run_record = record or {}
    if run_record and verdicts["model"]["fingerprint"] != run_record["model"]["fingerprint"]:
        model = verdicts["model"]["name"]
        raise OptionError(
            f"{path} explains other weights, of {model}, than those of the circuit; run explain on its own"
        )
    same = "task" not in run_record or run_record["task"]["sha256"] in (
        entry["sha256"] for entry in verdicts["sources"]
    )
    return {
        "source": str(path),
        "sha256": hashlib.sha256(raw).hexdigest(),
        "pairs": [entry["source"] for entry in verdicts["sources"]],
        "same_pairs": same,
        "resampled": verdicts["resampled"],
        "null": _kept(verdicts["null"], ("n", "sigma_0")),
        "tests": [_kept(entry, TEST["required"]) for entry in verdicts["tests"].values() if entry["ran"]],
        "groups": [
            _kept(entry, GROUP["required"]) | {"divergence": _kept(entry["divergence"], ("value", "low", "high"))}
            for entry in verdicts["groups"]
        ],
    }


def _kept(item: Any, keys: Sequence[str]) -> Any:
    return None if item is None else {key: item[key] for key in keys}
