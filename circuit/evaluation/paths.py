"""The strongest paths of a circuit, each measured alone.

With the edges of one path kept and all others cut, every node on it reads the clean change of the node before it and
of no other: path patching (Goldowsky-Dill et al. 2023, arXiv:2304.05969) of the whole path. Its share of the effect is

    (m(path) - m(empty)) / (m(full) - m(empty))

the faithfulness of a circuit that is this path; under swapped persona pairs m(full) - m(empty) is D. Shares do not add
up: nodes are not linear, and several inputs together may do what none does alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from persona_circuits.circuit.evaluation.faithfulness import pairwise
from persona_circuits.circuit.forward import Prepared, measure
from persona_circuits.circuit.graph import Edge, Graph, Node
from persona_circuits.circuit.model import Model
from persona_circuits.circuit.paths import strongest_paths
from persona_circuits.circuit.scores import Scores
from persona_circuits.circuit.statistics import Interval, PairSample, is_zero
from persona_circuits.circuit.subgraph import Circuit
from persona_circuits.metrics import Metric

__all__ = ["PathShare", "PathShares", "measured_paths"]

N_PATHS = 5


@dataclass(frozen=True)
class PathShare:
    """A path alone: ``weakest`` is its smallest ``|score|``, ``share`` what it carries of m(full) - m(empty).

    ``share`` is a ratio of means over pairs, None where there is no effect; ``random`` is that of the same path with
    every head exchanged for another one of its layer, None where it has no head.
    """

    edges: tuple[Edge, ...]
    weakest: float
    share: float | None
    interval: Interval | None
    random: float | None

    @property
    def name(self) -> str:
        """``input -> a0.h1<v> -> m2 -> logits``."""
        steps = [f"{edge.dst}<{edge.slot}>" if edge.slot else str(edge.dst) for edge in self.edges]
        return " -> ".join([str(self.edges[0].src), *steps])


@dataclass(frozen=True)
class PathShares:
    """The strongest paths, the share of all of them together, and the pairs that they were measured on."""

    paths: tuple[PathShare, ...]
    together: float | None
    split: str
    n_pairs: int
    drawn_over: str

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        rows = [
            {
                "path": path.name,
                "weakest": path.weakest,
                "share": path.share,
                "low": path.interval and path.interval.low,
                "high": path.interval and path.interval.high,
                "random": path.random,
            }
            for path in self.paths
        ]
        facts = {"split": self.split, "n_pairs": self.n_pairs, "over": self.drawn_over}
        return {**facts, "together": self.together, "paths": rows}


def measured_paths(
    model: Model, prepared: Iterable[Prepared], metric: Metric, circuit: Circuit, scores: Scores, sample: PairSample
) -> PathShares:
    """The strongest paths of a circuit with five different weakest edges, each kept alone, and together.

    All are measured in one run over the pairs. The seed is of the random heads too.
    """
    paths = _strongest(circuit, scores)
    graph, seed = model.graph, sample.seed
    random = [_exchanged(path, graph, np.random.default_rng([seed, place])) for place, path in enumerate(paths)]
    kept = [[edge for path in paths for edge in path], *paths, *(other for other in random if other)]
    masks = [x.mask for x in (Circuit.full(graph), Circuit.empty(graph), *(Circuit.of(graph, x) for x in kept))]
    full, empty, together, *alone = pairwise(measure(model, prepared, masks, metric), metric)
    share = _share_of(full - empty)
    others = iter(alone[len(paths) :])
    rows = [
        PathShare(
            edges=path,
            weakest=min(abs(scores[edge]) for edge in path),
            share=share(values - empty),
            interval=sample.ratio(values - empty, full - empty),
            random=share(next(others) - empty) if other else None,
        )
        for path, other, values in zip(paths, random, alone, strict=False)
    ]
    over = sample.over(len(full)).describe()
    return PathShares(tuple(rows), share(together - empty), sample.split, len(full), over)


def _share_of(span: np.ndarray) -> Callable[[np.ndarray], float | None]:
    return lambda moved: None if is_zero(span) else float(moved.mean() / span.mean())


def _strongest(circuit: Circuit, scores: Scores) -> list[tuple[Edge, ...]]:
    """The strongest path over each weakest edge, the strongest first."""
    edges = circuit.without_dead_ends().edges()
    edges.sort(key=lambda edge: circuit.graph.index(edge)[::-1])
    sizes = np.array([abs(scores[edge]) for edge in edges])
    paths: dict[int, set[int]] = {}
    for path in strongest_paths(edges, sizes):
        paths.setdefault(min(path, key=lambda place: sizes[place]), path)
        if len(paths) == N_PATHS:
            break
    return [tuple(edges[place] for place in sorted(path)) for path in paths.values()]


def _exchanged(path: Sequence[Edge], graph: Graph, rng: np.random.Generator) -> tuple[Edge, ...]:
    """The path with each of its heads replaced by another of that layer; empty where that is impossible."""
    heads = [edge.dst for edge in path if edge.dst.kind == "head"]
    if not heads or graph.n_heads == 1:
        return ()
    moved = {
        head: Node("head", head.layer, (head.head + int(rng.integers(1, graph.n_heads))) % graph.n_heads)
        for head in heads
    }
    return tuple(Edge(moved.get(edge.src, edge.src), moved.get(edge.dst, edge.dst), edge.slot) for edge in path)
