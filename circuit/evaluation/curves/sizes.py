"""How large a circuit has to be: the smallest one that reaches a faithfulness, and all sizes in a row.

Edges enter in the order of |score|. f need not grow with every edge, so the smallest size is
the first that reaches the target among those tried: a logarithmic grid of sizes is tried from below until
one reaches it; the gap below that one is then narrowed, two sizes per pass, at the point where a line
between its ends reaches the target and a little before (f is concave), until a size at most half a percent
(below 400 edges one edge) smaller is known to miss it. A size that reaches the target between two grid
sizes that both miss it can go unnoticed; tried sizes above the result that miss the target are reported.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from persona_circuits.circuit.errors import OptionError
from persona_circuits.circuit.evaluation.curves.nested import Measured, measured
from persona_circuits.circuit.evaluation.curves.points import Pool, PreparedFactory, ranked_edges
from persona_circuits.circuit.graph import Graph
from persona_circuits.circuit.model import Model
from persona_circuits.circuit.progress import Progress
from persona_circuits.circuit.scores import Scores
from persona_circuits.circuit.statistics import Clusters, Interval, PairSample
from persona_circuits.circuit.subgraph import Circuit, SpanCircuit, Spans, SpanScores
from persona_circuits.metrics import Metric

__all__ = ["Smallest", "Sweep", "check_target", "pareto", "smallest", "sweep"]

N_GRID = 10
"""Sizes from one edge to the largest, of which those up to the first that reaches the target are tried."""
LOOKED_AT = 50
"""Edges among which every search looks, however small ``up_to``."""
FINE = 200
"""The resulting size is known to one part in so many."""
N_AT_ONCE = 8
N_THRESHOLDS = 24


@dataclass(frozen=True)
class Size:
    """A size that was tried: the ``n`` first edges, the ``n_edges`` of them that are no dead ends, and f."""

    n: int
    n_edges: int
    faithfulness: float


@dataclass(frozen=True, eq=False)
class Smallest:
    """The smallest circuit that reaches ``target``, on the pairs it was searched on, among the first ``most`` edges.

    Where none of them does, the tried one with the largest f.

    ``top_n(scores, n)`` gives ``circuit`` again. ``relapses`` are tried sizes above ``n`` that
    miss the target: where there are any, f does not grow steadily and the size is less certain.
    """

    target: float
    most: int
    n: int
    faithfulness: float
    circuit: Circuit | SpanCircuit
    tried: tuple[Size, ...]

    @property
    def reached(self) -> bool:
        """Whether the target is reached; among all edges it always is."""
        return self.faithfulness >= self.target

    @property
    def relapses(self) -> tuple[int, ...]:
        """Tried sizes above ``n`` that miss the target."""
        return tuple(size.n for size in self.tried if size.n > self.n and size.faithfulness < self.target)

    def as_dict(self) -> dict[str, Any]:
        """Plain values, without the circuit."""
        return {
            "target": self.target,
            "most": self.most,
            "reached": self.reached,
            "n": self.n,
            "n_edges": len(self.circuit),
            "faithfulness": self.faithfulness,
            "relapses": list(self.relapses),
            "tried": [asdict(size) for size in self.tried],
        }


@dataclass(frozen=True)
class SweepPoint:
    """The circuit of one threshold: the edges with |score| >= ``tau``, in units of the metric.

    ``share`` is tau over |m(full) - m(empty)| on the first split. ``asked`` edges reach the threshold, ``n_edges`` of
    them are no dead ends. ``faithfulness``, ``intervals`` and ``medians``, of the pairs' own ratios, are by split.
    ``on_front``: no smaller circuit here is as close to f = 1 on the first split.
    """

    tau: float
    share: float
    asked: int
    n_edges: int
    n_nodes: int
    faithfulness: dict[str, float]
    intervals: dict[str, Interval | None]
    medians: dict[str, float | None]
    on_front: bool


@dataclass(frozen=True)
class Sweep:
    """Nested circuits over thresholds, from the smallest to all edges.

    ``n_pairs``, and ``resampled``, what intervals are drawn over, are by split.
    """

    metric: str
    n_pairs: dict[str, int]
    resampled: dict[str, str]
    points: tuple[SweepPoint, ...]

    def as_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def smallest(
    model: Model,
    prepared: PreparedFactory,
    metric: Metric,
    scores: Scores | SpanScores,
    target: float,
    *,
    up_to: float = 1.0,
    n_grid: int = N_GRID,
    progress: Progress | None = None,
) -> Smallest:
    """The smallest circuit, edges by |score|, with f >= ``target``; where none has, the one with the largest f.

    Parameters
    ----------
    prepared
        Gives the batches; called once per round.
    target
        Above 0, at most 1; the whole model reaches 1 by definition.
    up_to
        The share of all edges that is looked at, ``LOOKED_AT`` edges at least.
    progress
        Called for every circuit, again for every batch of every round.

    Raises
    ------
    OptionError
        The target is out of range, or m(full) - m(empty) is zero on these pairs.
    """
    check_target(target)
    search = _Search(model, prepared, metric, scores, target, progress)
    most = min(search.n_edges, max(LOOKED_AT, int(up_to * search.n_edges)))
    grid = np.unique(np.geomspace(1, most, n_grid).round().astype(int)).tolist()
    for start in range(0, len(grid), N_AT_ONCE):
        search.try_sizes(grid[start : start + N_AT_ONCE])
        if search.reached:
            break
    (low, n), slow = search.bracket(), False
    while search.reached and n - low > max(1, n // FINE):
        search.try_sizes(search.between(low, n, evenly=slow))
        gap, (low, n) = n - low, search.bracket()
        slow = n - low > gap / 2
    tried = tuple(Size(i, *search.known[i]) for i in sorted(search.known))
    return Smallest(target, most, n, search.known[n][1], search.circuit(n), tried)


def sweep(
    model: Model,
    prepared: Mapping[str, PreparedFactory],
    metric: Metric,
    scores: Scores,
    *,
    n_thresholds: int = N_THRESHOLDS,
    seed: int = 0,
    clusters: Mapping[str, Clusters] | None = None,
    progress: Progress | None = None,
) -> Sweep:
    """Nested circuits over thresholds on one split or several, and the front of size against faithfulness.

    Thresholds are the |score| of edges at ranks evenly spaced in their logarithm, down to the last
    edge's; those that give the same circuit are one point, at the highest of them.

    Parameters
    ----------
    prepared
        By split; each is called once. The front is that of the first.
    clusters
        By split, what its pairs share, for the intervals; without it pairs are resampled.

    Raises
    ------
    OptionError
        m(full) - m(empty) is zero on one of the splits.
    """
    pool = Pool(model.graph)
    strength = np.abs(scores.values)
    ordered = np.sort(strength[model.graph.valid])[::-1]
    ranks = np.unique(np.geomspace(1, len(ordered), n_thresholds).round().astype(int))
    steps: dict[int, tuple[float, int]] = {}
    for tau in np.unique(ordered[ranks - 1])[::-1].tolist():
        mask = (strength >= tau) & model.graph.valid
        steps.setdefault(pool.add(mask), (tau, int(mask.sum())))
    by_split = {
        name: measured(
            model, factory(), metric, pool, PairSample(name, (clusters or {}).get(name), seed), progress=progress
        )
        for name, factory in prepared.items()
    }
    f = {name: _defined(values, f"split {name}") for name, values in by_split.items()}
    first = next(iter(by_split.values()))
    span = abs(first.m(pool.full) - first.m(pool.empty))
    points = [
        SweepPoint(
            tau=tau,
            share=tau / span,
            asked=asked,
            n_edges=pool.n_edges(place),
            n_nodes=pool.n_nodes(place),
            faithfulness={name: float(values[place]) for name, values in f.items()},
            intervals={name: values.interval(place) for name, values in by_split.items()},
            medians={name: values.median_of_ratios(place) for name, values in by_split.items()},
            on_front=False,
        )
        for place, (tau, asked) in steps.items()
    ]
    name = next(iter(prepared))
    front = pareto([point.n_edges for point in points], [abs(1 - point.faithfulness[name]) for point in points])
    marked = tuple(replace(point, on_front=i in front) for i, point in enumerate(points))
    sizes = {split: values.n_pairs for split, values in by_split.items()}
    return Sweep(metric.name, sizes, {split: values.clusters.describe() for split, values in by_split.items()}, marked)


def pareto(costs: Sequence[int | float], losses: Sequence[int | float]) -> frozenset[int]:
    """The places at which no other has both less or equal cost and less or equal loss, one of them less.

    Examples:
        >>> sorted(pareto([1, 2, 3, 3], [0.9, 0.5, 0.7, 0.1]))
        [0, 1, 3]
    """
    points = list(zip(costs, losses, strict=True))

    def beaten(point: tuple[int | float, int | float]) -> bool:
        return any(other != point and other[0] <= point[0] and other[1] <= point[1] for other in points)

    return frozenset(i for i, point in enumerate(points) if not beaten(point))


def check_target(target: float) -> None:
    """Raise ``OptionError`` unless 0 < target <= 1."""
    if not 0 < target <= 1:
        raise OptionError(f"--target-faithfulness must be above 0 and at most 1 (the whole model), got {target}")


class _Search:
    """Sizes measured so far: ``known[n]`` is the number of edges without dead ends, and f."""

    def __init__(
        self,
        model: Model,
        prepared: PreparedFactory,
        metric: Metric,
        scores: Scores | SpanScores,
        target: float,
        progress: Progress | None,
    ) -> None:
        self.model, self.prepared, self.metric, self.target, self.progress = model, prepared, metric, target, progress
        self.spans: Spans | None = None
        self.n_edges = model.graph.n_edges
        self.circuit: Callable[[int], Circuit | SpanCircuit]
        if isinstance(scores, SpanScores):
            self.spans, self.n_edges, self.circuit = scores.spans, scores.n_edges, scores.top_n
        else:
            self.circuit = partial(_first_edges, model.graph, *ranked_edges(scores))
        self.known: dict[int, tuple[int, float]] = {}
        self.seen: dict[Circuit | SpanCircuit, float] = {}

    def try_sizes(self, sizes: Sequence[int]) -> None:
        circuits = {n: self.circuit(n) for n in sizes if n not in self.known}
        if new := [circuit for circuit in circuits.values() if circuit not in self.seen]:
            pool = Pool(self.model.graph, self.spans)
            places = [pool.add(circuit.mask) for circuit in new]
            values = measured(self.model, self.prepared(), self.metric, pool, progress=self.progress)
            f = _defined(values, "the pairs that are searched on")
            self.seen |= {circuit: float(f[place]) for circuit, place in zip(new, places, strict=True)}
        self.known |= {n: (len(circuit), self.seen[circuit]) for n, circuit in circuits.items()}

    @property
    def reached(self) -> bool:
        return any(f >= self.target for _, f in self.known.values())

    def bracket(self) -> tuple[int, int]:
        """The last tried size below the first that reaches the target, and that one, or the one with the largest f."""
        best = max(self.known, key=lambda n: (self.known[n][1], -n))
        first = min((n for n, (_, f) in self.known.items() if f >= self.target), default=best)
        return max((n for n in self.known if n < first), default=0), first

    def between(self, low: int, high: int, *, evenly: bool) -> list[int]:
        """A size at which a line over the logarithm of sizes reaches the target, and one before it; or thirds."""
        below = self.known[low][1] if low else 0.0
        cross = (self.target - below) / (self.known[high][1] - below)
        parts = (1 / 3, 2 / 3) if evenly else (3 / 4 * cross, cross)
        return sorted({min(max(round((low + 1) * (high / (low + 1)) ** part), low + 1), high - 1) for part in parts})


def _first_edges(graph: Graph, src: np.ndarray, dst: np.ndarray, n: int) -> Circuit:
    return Circuit.at(graph, src[:n], dst[:n]).without_dead_ends()


def _defined(values: Measured, where: str) -> np.ndarray:
    """f of every circuit of the pool."""
    if values.f is None:
        raise OptionError(
            f"the metric is the same with every edge ablated as with none on {where}, so there is nothing for a "
            "circuit to be faithful to; use other pairs, another --metric or another --ablation"
        )
    return values.f
