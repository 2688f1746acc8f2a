"""Two circuits to compare, and whether they were made alike."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool

from persona_circuits.circuit.errors import FileError
from persona_circuits.circuit.io import StoredCircuit, read_circuit, read_scores
from persona_circuits.circuit.scores import Scores
from persona_circuits.circuit.subgraph import Circuit

__all__ = [
    "GROUPS",
    "LABELS",
    "SECTIONS",
    "Move",
    "Setting",
    "Side",
    "groups",
    "read_side",
    "relative_scores",
    "settings_apart",
]

LABELS = {"shared": "in both", "opposite": "in both, opposite signs", "only_a": "only in A", "only_b": "only in B"}
GROUPS = tuple(LABELS)
Move = tuple[np.ndarray, ...]
"""An index by ``numpy.ix_``: where every value of an array ``[src, dst]`` comes from."""
# What follows from a search rather than being set for it; and what says which pairs it ran on.
OUTCOMES = {"format", "version", "task.divergence", "method.tau", "method.completeness"}
PAIRS = {"task.source", "task.sha256", "task.n_pairs"}
NAMES = {"model.name", "model.revision", "model.origin"}  # of the same weights, by their fingerprint
SECTIONS = ("model", "task", "method")
STAMP = ("direction", "averaging", "order")  # the rest of the stamp stands in those sections


@dataclass(frozen=True, eq=False)
class Side:
    """A circuit to compare: ``scored`` says which edges ``scores`` has a number for.

    ``record`` is its file's content, None where that says nothing of how it was found.
    """

    name: str
    circuit: Circuit
    scores: Scores | None = None
    scored: Bool[np.ndarray, "src dst"] | None = None
    record: Mapping[str, Any] | None = None

    @cached_property
    def known(self) -> Bool[np.ndarray, "src dst"]:
        """Which edges have a score: those of ``scored``, else all of them, or none without scores."""
        graph = self.circuit.graph
        if self.scores is None:
            return np.zeros_like(graph.valid)
        return graph.valid if self.scored is None else self.scored & graph.valid


@dataclass(frozen=True)
class Setting:
    """A setting that differs; ``key`` as in ``circuit.json``, such as ``task.metric``."""

    key: str
    a: Any
    b: Any


def read_side(path: str | Path) -> Side:
    """Read a circuit file or the folder that ``discover`` wrote, with every edge's score if it lies beside it.

    Scores beside the circuit that are not those of its file are left alone.

    Raises:
        FileError: the circuit file is missing or at fault.
    """
    stored = read_circuit(path)
    every = _scores_beside(stored)
    if every is not None:
        return Side(str(path), stored.circuit, every, None, stored.record)
    return Side(str(path), stored.circuit, stored.scores, _scored(stored), stored.record)


def settings_apart(a: Side, b: Side) -> tuple[Setting, ...]:
    """The settings that differed between the two searches, apart from the pairs; empty if either is unknown."""
    if a.record is None or b.record is None:
        return ()
    first, second = _leaves(a.record), _leaves(b.record)
    beside = OUTCOMES | PAIRS | (NAMES if first["model.fingerprint"] == second["model.fingerprint"] else set())
    keys = [key for key in dict.fromkeys([*first, *second]) if key not in beside]
    return tuple(Setting(key, first.get(key), second.get(key)) for key in keys if first.get(key) != second.get(key))


def groups(a: Side, b: Side) -> dict[str, Circuit]:
    """Every edge of either circuit in one of ``GROUPS``: shared (of one sign, or unknown), shared with
    opposite signs, only A's, only B's."""
    graph, first, second = a.circuit.graph, a.circuit.mask, b.circuit.mask
    both = first & second
    opposite = both & _opposite(a, b)
    parts = (both & ~opposite, opposite, first & ~second, second & ~first)
    return {name: Circuit(graph, part) for name, part in zip(GROUPS, parts, strict=True)}


def relative_scores(a: Side, b: Side) -> Scores | None:
    """For a picture of both: the larger of an edge's |score| as shares of either side's largest; None without scores.

    Two circuits' scores may be in other units or of other sizes; shares are alike.
    """
    shares = [
        np.where(side.known, np.abs(side.scores.values), 0.0) / largest
        for side in (a, b)
        if side.scores is not None and (largest := np.abs(side.scores.values[side.known]).max(initial=0.0)) > 0
    ]
    return Scores(a.circuit.graph, np.maximum.reduce(shares)) if shares else None


def _scores_beside(stored: StoredCircuit) -> Scores | None:
    """Every edge's score, where ``scores.safetensors`` lies beside ``circuit.json`` and is of the same search."""
    path = stored.path.parent / "scores.safetensors"
    if stored.record is None or stored.scores is None or not path.is_file():
        return None
    try:
        every = read_scores(path)
    except FileError:
        return None
    mask = stored.circuit.mask
    same = every.graph == stored.circuit.graph and np.allclose(every.values[mask], stored.scores.values[mask])
    return every if same else None


def _scored(stored: StoredCircuit) -> Bool[np.ndarray, "src dst"] | None:
    if stored.record is None:  # EAP-IG's JSON names every edge with its score
        return None
    graph = stored.circuit.graph
    return Circuit.of(graph, (item["edge"] for item in stored.record["edges"] if item["score"] is not None)).mask


def _leaves(record: Mapping[str, Any]) -> dict[str, Any]:
    """Every setting of a record under its dotted key: the single values, and those of ``SECTIONS``."""
    single = {key: value for key, value in record.items() if not isinstance(value, Mapping | list)}
    nested = {f"{section}.{key}": value for section in SECTIONS for key, value in record[section].items()}
    stamp = {f"stamp.{key}": record.get("stamp", {}).get(key) for key in STAMP}
    return single | nested | stamp


def _opposite(a: Side, b: Side) -> np.ndarray:
    if a.scores is None or b.scores is None:
        return np.zeros_like(a.circuit.mask)
    return a.known & b.known & (a.scores.values * b.scores.values < 0)
