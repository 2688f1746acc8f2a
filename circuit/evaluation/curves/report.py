"""Faithfulness against size: what circuits of the standard shares of edges explain, for any number of scorers.

A scorer puts all edges into an order. For every share k of ``SHARES`` the first int(k n) of the
n edges are kept, dead ends are dropped, and f is measured. Two areas summarise a curve
(MIB, Mueller et al. 2025, arXiv:2504.13151), by trapezoids over k from .001 to 1:

    CPR    area under f(k)           more is better, but unbounded above: not to be read alone
    CMD    area under |1 - f(k)|     less is better, 0 is the whole model at every size

Two orders: ``absolute``, the largest |score| first; ``signed``, first the edges whose corruption
lowers the metric most. MIB reports CPR in the signed order and CMD in the absolute one.

At node level the unit is a node. Its score is the sum over its outgoing edges, which for EAP and EAP-IG is the node's
own attribution, since delta_s . grad adds up over readers. The first int(k n) of n nodes are kept, with all edges among
them and to the logits; ``input`` is always kept and not counted, as MIB treats a node without a score.

All circuits of all scorers are measured in one call, each of them once.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from persona_circuits.circuit.evaluation.curves.nested import Measured, measured
from persona_circuits.circuit.evaluation.curves.points import (
    SHARES,
    Band,
    BandPoint,
    CurveKinds,
    FaithfulnessCurve,
    Mark,
    NodeScores,
    Point,
    Pool,
    PreparedFactory,
    Scorer,
    Spread,
    check_scorers,
)
from persona_circuits.circuit.graph import Graph
from persona_circuits.circuit.model import Model
from persona_circuits.circuit.options import check_n_random
from persona_circuits.circuit.progress import Progress
from persona_circuits.circuit.pruning import ranked_edges, strength_of
from persona_circuits.circuit.scores import Scores
from persona_circuits.circuit.statistics import PairSample
from persona_circuits.circuit.subgraph import Circuit
from persona_circuits.metrics import Metric

__all__ = ["CurveReport", "curve_report"]


@dataclass(frozen=True)
class CurveReport:
    """All curves of a set of pairs.

    ``n_units`` is what shares are shares of, by level; ``resampled`` says what the intervals are drawn over.
    """

    metric: str
    split: str
    n_pairs: int
    m_full: float
    m_empty: float
    resampled: str
    graph_edges: int
    n_units: dict[str, int]
    curves: tuple[FaithfulnessCurve, ...]
    bands: tuple[Band, ...]
    marks: tuple[Mark, ...]

    def as_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def curve_report(
    model: Model,
    prepared: PreparedFactory,
    metric: Metric,
    scorers: Mapping[str, Scorer],
    kinds: CurveKinds,
    sample: PairSample,
    *,
    marks: Mapping[str, Circuit] | None = None,
    progress: Progress | None = None,
) -> CurveReport:
    """The curves of all scorers on one set of pairs.

    Parameters
    ----------
    prepared
        Gives the batches; called once.
    scorers
        By name: ``Scores`` (edge and node level), ``NodeScores`` (node level), or nine
        circuits for the shares below 1 (edge level, as they are).
    sample
        The name of the pairs and what they share; its seed is that of the random orders too.
    marks
        Single circuits to measure beside the curves.
    progress
        Called for every circuit, again for every batch.

    Raises
    ------
    OptionError
        A scorer is of another graph, fits none of the levels, or does not give nine circuits within
        their shares; a level or an order is unknown.
    """
    graph = model.graph
    check_scorers(graph, scorers, kinds.levels, kinds.orders)
    check_n_random(kinds.n_random)
    pool = Pool(graph)
    plans = [plan for name, scorer in scorers.items() for plan in _plans(pool, name, scorer, kinds)]
    units = {level: _n_units(graph, level) for level in kinds.levels}
    random = {
        level: [_random_plan(pool, level, sample.seed, i) for i in range(kinds.n_random)] for level in kinds.levels
    }
    marked = {name: pool.add(circuit.mask) for name, circuit in (marks or {}).items()}
    values = measured(model, prepared(), metric, pool, sample, progress=progress)
    return CurveReport(
        metric=metric.name,
        split=sample.split,
        n_pairs=values.n_pairs,
        m_full=values.m(pool.full),
        m_empty=values.m(pool.empty),
        resampled=values.clusters.describe(),
        graph_edges=graph.n_edges,
        n_units=units,
        curves=tuple(_curve(values, pool, plan) for plan in plans),
        bands=tuple(_band(values, pool, level, drawn) for level, drawn in random.items() if drawn),
        marks=tuple(_mark(values, pool, name, place) for name, place in marked.items()),
    )


@dataclass(frozen=True)
class _Plan:
    """The circuits of a curve: share, units asked for, place in the pool."""

    scorer: str
    level: str
    order: str
    steps: tuple[tuple[float, int, int], ...]

    def places(self) -> list[int]:
        return [place for _, _, place in self.steps]


def _plans(pool: Pool, name: str, scorer: Scorer, kinds: CurveKinds) -> Iterator[_Plan]:
    if not isinstance(scorer, Scores | NodeScores):
        yield _given_plan(pool, name, scorer)
        return
    for level in kinds.levels:
        for order in kinds.orders:
            signed = order == "signed"
            if level == "edge" and isinstance(scorer, Scores):
                yield _Plan(name, level, order, _edge_steps(pool, ranked_edges(scorer, signed=signed)))
            elif level == "node":
                nodes = NodeScores.of(scorer) if isinstance(scorer, Scores) else scorer
                yield _Plan(name, level, order, _node_steps(pool, nodes, signed))


def _given_plan(pool: Pool, name: str, circuits: Sequence[Circuit]) -> _Plan:
    by_size = [*sorted(circuits, key=len), Circuit.full(pool.graph)]
    steps = [(share, len(circuit), pool.add(circuit.mask)) for share, circuit in zip(SHARES, by_size, strict=True)]
    return _Plan(name, "edge", "given", tuple(steps))


def _edge_steps(pool: Pool, ranked: tuple[np.ndarray, np.ndarray]) -> tuple[tuple[float, int, int], ...]:
    src, dst = ranked
    steps = []
    for share in SHARES:
        n = int(share * len(src))
        steps.append((share, n, pool.add(Circuit.at(pool.graph, src[:n], dst[:n]).mask)))
    return tuple(steps)


def _node_steps(pool: Pool, scores: NodeScores, signed: bool) -> tuple[tuple[float, int, int], ...]:
    always = np.isnan(scores.values)
    units = np.flatnonzero(~always)
    ranked = units[np.argsort(-strength_of(scores.values[units], signed), kind="stable")]
    steps = []
    for share in SHARES:
        kept, n = always.copy(), int(share * len(ranked))
        kept[ranked[:n]] = True
        steps.append((share, n, pool.add(_among(pool.graph, kept))))
    return tuple(steps)


def _among(graph: Graph, kept: np.ndarray) -> np.ndarray:
    """All edges among the kept sources, and from them to the logits."""
    return np.asarray(graph.valid & kept[:, None] & graph.slots_of(kept)[None, :])


def _random_plan(pool: Pool, level: str, seed: int, draw: int) -> _Plan:
    rng = np.random.default_rng([seed, draw])
    if level == "edge":
        src, dst = np.nonzero(pool.graph.valid)
        order = rng.permutation(len(src))
        return _Plan("random", level, "random", _edge_steps(pool, (src[order], dst[order])))
    values = np.array([np.nan, *rng.permutation(pool.graph.n_src - 1)])
    return _Plan("random", level, "random", _node_steps(pool, NodeScores(pool.graph, values), signed=False))


def _curve(values: Measured, pool: Pool, plan: _Plan) -> FaithfulnessCurve:
    places = plan.places()
    cpr, cmd = values.areas(places, SHARES) or (None, None)
    cpr_interval, cmd_interval = values.area_intervals(places, SHARES)
    points = tuple(
        Point(
            share=share,
            asked=asked,
            n_edges=pool.n_edges(place),
            n_nodes=pool.n_nodes(place),
            m=values.m(place),
            faithfulness=values.faithfulness(place),
            interval=values.interval(place),
            median_of_ratios=values.median_of_ratios(place),
        )
        for share, asked, place in plan.steps
    )
    return FaithfulnessCurve(plan.scorer, plan.level, plan.order, points, cpr, cpr_interval, cmd, cmd_interval)


def _band(values: Measured, pool: Pool, level: str, drawn: Sequence[_Plan]) -> Band:
    areas = [values.areas(plan.places(), SHARES) for plan in drawn]
    points = []
    for i, (share, asked, _) in enumerate(drawn[0].steps):
        places = [plan.steps[i][2] for plan in drawn]
        n_edges = float(np.mean([pool.n_edges(place) for place in places]))
        points.append(BandPoint(share, asked, n_edges, _spread([values.faithfulness(place) for place in places])))
    cpr, cmd = (_spread([None if pair is None else pair[which] for pair in areas]) for which in (0, 1))
    return Band(level, len(drawn), tuple(points), cpr, cmd)


def _mark(values: Measured, pool: Pool, name: str, place: int) -> Mark:
    return Mark(
        name=name,
        n_edges=pool.n_edges(place),
        share=pool.n_edges(place) / pool.graph.n_edges,
        m=values.m(place),
        faithfulness=values.faithfulness(place),
        interval=values.interval(place),
        median_of_ratios=values.median_of_ratios(place),
    )


def _n_units(graph: Graph, level: str) -> int:
    return graph.n_edges if level == "edge" else graph.n_src - 1


def _spread(values: Sequence[float | None]) -> Spread | None:
    known = [value for value in values if value is not None]
    return Spread(float(np.mean(known)), float(min(known)), float(max(known))) if known else None
