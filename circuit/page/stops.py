"""The nested circuits of a run: where each edge enters, and what was measured at every size.

Edges enter in the order of |score|; a stop is the set of edges at least as strong as its threshold, without dead ends.
Stops hold each other, so an edge is in all stops from its first one on. Faithfulness stands where a sweep or the search
itself has measured it, and nowhere else.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from persona_circuits.circuit.scores import Scores
from persona_circuits.circuit.subgraph import Circuit

__all__ = ["Nested", "curve_of", "nested"]

MOST_EDGES = 1000
"""Stops up to this many edges are on the page, or up to the circuit's own size where that is larger."""
N_SIZES = 12
"""Stops of a run without a sweep."""


@dataclass(frozen=True, eq=False)
class Nested:
    """``stops`` from the smallest on; ``first`` is, by edge's name, the place of the first stop that has it.

    The stop of the circuit itself has ``circuit`` set; what it holds are the kept edges, whatever ``first`` says.
    """

    stops: tuple[dict[str, Any], ...]
    first: Mapping[str, int]
    note: str = ""


def nested(
    circuit: Circuit, scores: Scores | None, reports: Sequence[Mapping[str, Any]], sweep: Mapping[str, Any] | None
) -> Nested:
    """The stops of a run.

    Parameters
    ----------
    scores
        Of as many edges as are known; without them the circuit is the only stop.
    reports
        What ``circuit.json`` has under ``faithfulness``.
    sweep
        What ``sweep.json`` holds, if the run has one.
    """
    own = _stop(circuit, None, _measured_of_reports(reports), circuit=True)
    if scores is None:
        return Nested((own,), {}, "The edges have no scores, so there is no order in which circuits could be nested.")
    most, note = max(MOST_EDGES, len(circuit)), ""
    candidates = _of_sweep(scores, sweep, most) if sweep else []
    if sweep and not candidates:
        note = "The sweep beside this circuit is of other scores, so it is left out."
    if not candidates:
        candidates = _of_sizes(circuit, scores)
        note = note or "Nothing was measured between the sizes: discover --sweep or --report does."
    candidates = [entry for entry in candidates if entry[0] != circuit]
    stops = sorted([*(stop for _, stop in candidates), own], key=lambda stop: (stop["n_edges"], stop["circuit"]))
    first: dict[str, int] = {}
    for place, stop in enumerate(stops):
        for held, other in candidates:
            if other is stop:
                for name in held.edge_names():
                    first.setdefault(name, place)
    return Nested(tuple(stops), first, note)


def curve_of(sweep: Mapping[str, Any] | None) -> list[dict[str, Any]]:
    """Size and faithfulness of every point of a sweep that has edges."""
    points = (sweep or {}).get("points", [])
    return [{"n_edges": point["n_edges"], "f": _measured_of_point(point)} for point in points if point["n_edges"]]


def _of_sweep(scores: Scores, sweep: Mapping[str, Any], most: int) -> list[tuple[Circuit, dict[str, Any]]]:
    """The circuits of a sweep's thresholds; none where one has another size than the sweep says."""
    strength, valid, stops = np.abs(scores.values), scores.graph.valid, []
    ordered = np.sort(strength[valid])[::-1]
    for point in sweep["points"]:
        if not 0 < point["n_edges"] <= most or point["asked"] > len(ordered):
            continue
        # Thresholds in the file are rounded; how many edges reach them is not.
        held = Circuit(scores.graph, (strength >= ordered[point["asked"] - 1]) & valid).without_dead_ends()
        if len(held) != point["n_edges"]:
            return []
        stops.append((held, _stop(held, point["tau"], _measured_of_point(point))))
    return stops


def _of_sizes(circuit: Circuit, scores: Scores) -> list[tuple[Circuit, dict[str, Any]]]:
    """Circuits inside the circuit, of sizes evenly spaced in their logarithm; nothing is known of them."""
    strength = np.where(circuit.mask, np.abs(scores.values), -1.0)
    ordered = np.sort(strength[circuit.mask])[::-1]
    if not len(ordered):
        return []
    stops: dict[int, tuple[Circuit, dict[str, Any]]] = {}
    for rank in np.unique(np.geomspace(1, len(ordered), N_SIZES).round().astype(int)):
        tau = float(ordered[rank - 1])
        held = Circuit(circuit.graph, strength >= tau).without_dead_ends()
        if len(held):
            stops.setdefault(len(held), (held, _stop(held, tau, {})))
    return list(stops.values())


def _stop(held: Circuit, tau: float | None, f: Mapping[str, Any], *, circuit: bool = False) -> dict[str, Any]:
    return {"n_edges": len(held), "n_nodes": len(held.nodes()), "tau": tau, "circuit": circuit, "f": dict(f)}


def _measured_of_point(point: Mapping[str, Any]) -> dict[str, Any]:
    return {
        split: _number(value, point["intervals"].get(split), point.get("medians", {}).get(split))
        for split, value in point["faithfulness"].items()
    }


def _measured_of_reports(reports: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    return {
        report["split"]: _number(report["circuit"]["ratio_of_means"], report["circuit"]["interval"], None)
        for report in reports
        if report["circuit"]["ratio_of_means"] is not None
    }


def _number(value: float, interval: Mapping[str, Any] | None, median: float | None) -> dict[str, Any]:
    ends = interval or {}
    return {"f": value, "low": ends.get("low"), "high": ends.get("high"), "median": median}
