"""Faithfulness against size: what circuits of the standard shares of edges explain, for any number of scorers.

A scorer puts all edges into an order. For every share k of ``SHARES`` the first int(k n) of the
n edges are kept, dead ends are dropped, and f is measured. Two areas sum a curve up
(MIB, Mueller et al. 2025, arXiv:2504.13151), by trapezoids over k from .001 to 1:

    CPR    area under f(k)           more is better, unbounded above: never to be read alone
    CMD    area under |1 - f(k)|     less is better, 0 is the whole model at every size

Two orders: ``absolute``, the largest |score| first; ``signed``, first the edges whose corruption
lowers the metric most. MIB reports CPR in the signed order and CMD in the absolute one.

At node level the unit is a node. Its score is the sum over its outgoing edges, which for EAP
and EAP-IG is the node's own attribution, since delta_s . grad adds up over readers. The first
int(k n) of n nodes are kept, with all edges among them and to the logits; ``input`` is always kept
and not counted, as MIB treats a node without a score.

All circuits of all scorers are measured in one call, each of them once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray

from circuit.errors import GraphError, OptionError
from circuit.faithfulness import bootstrap_ratio, pairwise
from circuit.graph import Graph
from circuit.model import Model
from circuit.patching import Prepared, Progress, measure
from circuit.pruning import slots_by_source
from circuit.rounding import Rounding
from circuit.scores import Scores
from circuit.subgraph import Circuit
from circuit.uncertainty import LEAST_SHARE, Clusters, Interval, is_zero
from circuit.uncertainty import interval as interval_of
from metrics import Metric

__all__ = [
    "LEVELS",
    "ORDERS",
    "SHARES",
    "Band",
    "BandPoint",
    "CurveReport",
    "FaithfulnessCurve",
    "Mark",
    "Measured",
    "NodeScores",
    "Point",
    "Pool",
    "PreparedFactory",
    "Scorer",
    "Spread",
    "area",
    "check_scorers",
    "curve_report",
    "measured",
    "ranked_edges",
]

SHARES = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
LEVELS = ("edge", "node")
ORDERS = ("absolute", "signed")

PreparedFactory = Callable[[], Iterable[Prepared]]


@dataclass(frozen=True, eq=False)
class NodeScores:
    """A number per source node, in our sign; nan where a node has none and is always kept.

    ``values`` is float64 ``[n_src]``, read-only.
    """

    graph: Graph
    values: Float[np.ndarray, " src"]

    def __post_init__(self) -> None:
        values = np.array(self.values, dtype=np.float64)
        if values.shape != (self.graph.n_src,):
            raise GraphError(f"node scores of shape {values.shape}, expected ({self.graph.n_src},)")
        values.setflags(write=False)
        object.__setattr__(self, "values", values)

    @classmethod
    def of(cls, scores: Scores) -> NodeScores:
        """The sums over outgoing edges; ``input`` without a score."""
        values = scores.values.sum(axis=1)
        values[0] = np.nan
        return cls(scores.graph, values)


Scorer = Scores | NodeScores | Sequence[Circuit]
"""What gives a curve: scores, or the circuits themselves, one for every share but the whole."""


@dataclass(frozen=True)
class Point:
    """One circuit of a curve.

    ``asked`` is the number of units that the share comes to, int(share n); ``n_edges`` and
    ``n_nodes`` (``input`` and ``logits`` included) are what is left without dead ends.
    ``faithfulness`` is None where m(full) - m(empty) is zero, ``interval`` for a single pair too.
    """

    share: float
    asked: int
    n_edges: int
    n_nodes: int
    m: float
    faithfulness: float | None
    interval: Interval | None


@dataclass(frozen=True)
class FaithfulnessCurve:
    """f over the shares for one scorer, level and order, and its two areas with bootstrap intervals."""

    scorer: str
    level: str
    order: str
    points: tuple[Point, ...]
    cpr: float | None
    cpr_interval: Interval | None
    cmd: float | None
    cmd_interval: Interval | None


@dataclass(frozen=True)
class Spread:
    """Mean and ends of a number over random orders."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class BandPoint:
    """f at one share over random orders; ``n_edges`` is the mean number left without dead ends."""

    share: float
    asked: int
    n_edges: float
    faithfulness: Spread | None


@dataclass(frozen=True)
class Band:
    """The random scorer: ``n`` random orders of the units, of which absolute and signed are the same thing."""

    level: str
    n: int
    points: tuple[BandPoint, ...]
    cpr: Spread | None
    cmd: Spread | None


@dataclass(frozen=True)
class Mark:
    """A single circuit beside the curves; ``share`` is its share of the graph's edges."""

    name: str
    n_edges: int
    share: float
    m: float
    faithfulness: float | None
    interval: Interval | None


@dataclass(frozen=True)
class CurveReport:
    """All curves of a set of pairs.

    ``n_units`` is what a share is a share of, by level; ``resampled`` says what the intervals are drawn over.
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
    *,
    split: str,
    levels: Sequence[str] = ("edge",),
    orders: Sequence[str] = ORDERS,
    n_random: int = 10,
    seed: int = 0,
    marks: Mapping[str, Circuit] | None = None,
    clusters: Clusters | None = None,
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
    n_random
        Random orders of the band; 0 for none.
    seed
        Of the random orders and of the bootstrap.
    marks
        Single circuits to measure beside the curves.
    clusters
        What the pairs share, for the intervals; without it pairs are resampled.
    progress
        Told of every circuit, anew for every batch.

    Raises
    ------
    OptionError
        A scorer is of another graph, fits none of the levels, or does not give nine circuits within
        their shares; a level or an order is unknown.
    """
    graph = model.graph
    check_scorers(graph, scorers, levels, orders)
    if n_random < 0:
        raise OptionError(f"--n-random must not be negative, got {n_random}")
    pool = Pool(graph)
    plans = [plan for name, scorer in scorers.items() for plan in _plans(pool, name, scorer, levels, orders)]
    units = {level: _n_units(graph, level) for level in levels}
    random = {level: [_random_plan(pool, level, seed, i) for i in range(n_random)] for level in levels}
    marked = {name: pool.add(circuit.mask) for name, circuit in (marks or {}).items()}
    found = measured(model, prepared(), metric, pool, seed=seed, clusters=clusters, progress=progress)
    return CurveReport(
        metric=metric.name,
        split=split,
        n_pairs=found.n_pairs,
        m_full=found.m(pool.full),
        m_empty=found.m(pool.empty),
        resampled=found.clusters.describe(),
        graph_edges=graph.n_edges,
        n_units=units,
        curves=tuple(_curve(found, pool, plan) for plan in plans),
        bands=tuple(_band(found, pool, level, drawn) for level, drawn in random.items() if drawn),
        marks=tuple(_mark(found, pool, name, place) for name, place in marked.items()),
    )


def check_scorers(
    graph: Graph, scorers: Mapping[str, Scorer], levels: Sequence[str] = LEVELS, orders: Sequence[str] = ORDERS
) -> None:
    """Raise ``OptionError`` where ``curve_report`` would, before any work."""
    for name, values, allowed in (("level", levels, LEVELS), ("order", orders, ORDERS)):
        if unknown := [value for value in values if value not in allowed]:
            raise OptionError(f"--{name} {unknown[0]!r} is not one of {', '.join(allowed)}")
        if not values:
            raise OptionError(f"no {name} of the curves was given; expected some of {', '.join(allowed)}")
    for name, scorer in scorers.items():
        _check_scorer(graph, name, scorer, levels)


def area(shares: Sequence[float], values: Any, *, log: bool = False) -> Any:
    """The trapezoids under ``values`` (last axis) over the shares, or over their natural logarithm.

    Examples:
        >>> float(area((0.5, 1.0), [0.8, 1.0]))
        0.45
    """
    x = np.log(shares) if log else np.asarray(shares)
    return np.trapezoid(np.asarray(values), x, axis=-1)


def ranked_edges(scores: Scores, *, signed: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Sources and slots of all edges, best first; ties go to the earlier edge, as in ``pruning.top_n``."""
    src, dst = np.nonzero(scores.graph.valid)
    strength = _strength(scores.values[src, dst], signed)
    order = np.lexsort((src, dst, -strength))
    return src[order], dst[order]


class Pool:
    """Circuits to be measured, without dead ends and each once; ``full`` and ``empty`` are places of its own.

    Masks are kept packed, eight edges a byte.
    """

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self._places: dict[bytes, int] = {}
        self._nodes: list[int] = []
        self._edges: list[int] = []
        self.full, self.empty = self.add(graph.valid), self.add(np.zeros_like(graph.valid))

    def add(self, mask: np.ndarray) -> int:
        """The place of this circuit without its dead ends."""
        circuit = Circuit(self.graph, mask).without_dead_ends()
        place = self._places.setdefault(np.packbits(circuit.mask).tobytes(), len(self._places))
        if place == len(self._edges):
            self._edges.append(len(circuit))
            # Without dead ends every node that reads also writes, but for the logits.
            self._nodes.append(int(circuit.mask.any(axis=1).sum()) + bool(len(circuit)))
        return place

    def __len__(self) -> int:
        return len(self._places)

    def n_edges(self, place: int) -> int:
        """The number of edges of a circuit."""
        return self._edges[place]

    def n_nodes(self, place: int) -> int:
        """The number of nodes of a circuit, ``input`` and ``logits`` included."""
        return self._nodes[place]

    def circuit(self, place: int) -> Circuit:
        """The circuit at a place."""
        return Circuit(self.graph, self._unpacked(list(self._places)[place]))

    def by_size(self, progress: Progress | None = None) -> tuple[list[int], Sequence[np.ndarray]]:
        """Places and masks from the smallest circuit to the largest: what small ones do not run is not run for them.

        ``progress`` is told of every mask that is taken.
        """
        packed = list(self._places)
        order = sorted(range(len(packed)), key=lambda place: self._edges[place])
        return order, _Unpacked([packed[place] for place in order], self._unpacked, progress)

    def _unpacked(self, packed: bytes) -> np.ndarray:
        shape = self.graph.valid.shape
        bits = np.unpackbits(np.frombuffer(packed, dtype=np.uint8), count=shape[0] * shape[1])
        return bits.astype(bool).reshape(shape)


@dataclass(frozen=True, eq=False)
class _Unpacked(Sequence[np.ndarray]):
    """Masks that are unpacked when they are asked for."""

    packed: Sequence[bytes]
    unpack: Callable[[bytes], np.ndarray]
    progress: Progress | None

    def __len__(self) -> int:
        return len(self.packed)

    def __getitem__(self, place: int) -> np.ndarray:  # type: ignore[override]
        mask = self.unpack(self.packed[place])
        if self.progress is not None:
            self.progress(place + 1, len(self))
        return mask


@dataclass(frozen=True, eq=False)
class Measured:
    """What every circuit of a pool scores on every pair, and f; ``f`` is None where m(full) - m(empty) is zero."""

    pool: Pool
    values: Float[np.ndarray, "circuit pair"]
    f: Float[np.ndarray, " circuit"] | None
    clusters: Clusters
    seed: int

    @property
    def n_pairs(self) -> int:
        """The number of pairs."""
        return int(self.values.shape[1])

    def m(self, place: int) -> float:
        """The mean metric of a circuit."""
        return float(self.values[place].mean())

    def faithfulness(self, place: int) -> float | None:
        """The ratio of means of a circuit."""
        return None if self.f is None else float(self.f[place])

    def interval(self, place: int) -> Interval | None:
        """Its 95 % interval."""
        if self.f is None:
            return None
        full, empty = self.values[self.pool.full], self.values[self.pool.empty]
        return bootstrap_ratio(self.values[place] - empty, full - empty, self.seed, self.clusters)

    def areas(self, places: Sequence[int], shares: Sequence[float]) -> tuple[float, float] | None:
        """CPR and CMD of the circuits at these places."""
        if self.f is None:
            return None
        values = self.f[list(places)]
        return float(area(shares, values)), float(area(shares, np.abs(1 - values)))

    def area_intervals(self, places: Sequence[int], shares: Sequence[float]) -> tuple[Interval | None, Interval | None]:
        """Their 95 % intervals."""
        if self.f is None:
            return None, None

        def cpr(weights: NDArray[np.float64]) -> NDArray[np.float64]:
            return np.asarray(area(shares, self._under(weights, places)))

        def cmd(weights: NDArray[np.float64]) -> NDArray[np.float64]:
            return np.asarray(area(shares, np.abs(1 - self._under(weights, places))))

        how: dict[str, Any] = {"clusters": self.clusters, "seed": self.seed}
        return interval_of(cpr, **how), interval_of(cmd, **how)

    def _under(self, weights: NDArray[np.float64], places: Sequence[int]) -> NDArray[np.float64]:
        """f of some circuits under weights of the pairs, ``[draw, circuit]``; nan where it is not defined."""
        full, empty = self.values[self.pool.full], self.values[self.pool.empty]
        below, whole = (weights @ (full - empty))[:, None], abs(float((full - empty).mean()))
        above = weights @ (self.values[list(places)] - empty).T
        return np.divide(above, below, out=np.full_like(above, np.nan), where=np.abs(below) > LEAST_SHARE * whole)


def measured(
    model: Model,
    prepared: Iterable[Prepared],
    metric: Metric,
    pool: Pool,
    *,
    seed: int = 0,
    clusters: Clusters | None = None,
    progress: Progress | None = None,
) -> Measured:
    """Measure all circuits of a pool in one pass over the batches; both directions of a pair are averaged first."""
    order, masks = pool.by_size(progress)
    watch = Rounding(model, metric)
    rows = pairwise(measure(model, watch.watched(prepared), masks, metric), metric)
    values = np.empty_like(rows)
    values[order] = rows
    means = values.mean(axis=1)
    span = means[pool.full] - means[pool.empty]
    defined = not is_zero(values[pool.full] - values[pool.empty], watch.floor)
    f = (means - means[pool.empty]) / span if defined else None
    return Measured(pool, values, f, clusters or Clusters(values.shape[1], None, None), seed)


@dataclass(frozen=True)
class _Plan:
    """The circuits of a curve: share, units asked for, place in the pool."""

    scorer: str
    level: str
    order: str
    steps: tuple[tuple[float, int, int], ...]

    def places(self) -> list[int]:
        return [place for _, _, place in self.steps]


def _plans(pool: Pool, name: str, scorer: Scorer, levels: Sequence[str], orders: Sequence[str]) -> Iterator[_Plan]:
    if not isinstance(scorer, Scores | NodeScores):
        yield _given_plan(pool, name, scorer)
        return
    for level in levels:
        for order in orders:
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
        mask, n = np.zeros_like(pool.graph.valid), int(share * len(src))
        mask[src[:n], dst[:n]] = True
        steps.append((share, n, pool.add(mask)))
    return tuple(steps)


def _node_steps(pool: Pool, scores: NodeScores, signed: bool) -> tuple[tuple[float, int, int], ...]:
    always = np.isnan(scores.values)
    units = np.flatnonzero(~always)
    ranked = units[np.argsort(-_strength(scores.values[units], signed), kind="stable")]
    steps = []
    for share in SHARES:
        kept, n = always.copy(), int(share * len(ranked))
        kept[ranked[:n]] = True
        steps.append((share, n, pool.add(_among(pool.graph, kept))))
    return tuple(steps)


def _among(graph: Graph, kept: np.ndarray) -> np.ndarray:
    """All edges among the kept sources, and from them to the logits."""
    slots = slots_by_source(graph)
    read = np.zeros(graph.n_dst, dtype=bool)
    read[[graph.n_dst - 1, *(slot for src in np.flatnonzero(kept) for slot in slots[src])]] = True
    return np.asarray(graph.valid & kept[:, None] & read[None, :])


def _random_plan(pool: Pool, level: str, seed: int, draw: int) -> _Plan:
    rng = np.random.default_rng([seed, draw])
    if level == "edge":
        src, dst = np.nonzero(pool.graph.valid)
        order = rng.permutation(len(src))
        return _Plan("random", level, "random", _edge_steps(pool, (src[order], dst[order])))
    values = np.array([np.nan, *rng.permutation(pool.graph.n_src - 1)])
    return _Plan("random", level, "random", _node_steps(pool, NodeScores(pool.graph, values), signed=False))


def _curve(found: Measured, pool: Pool, plan: _Plan) -> FaithfulnessCurve:
    places = plan.places()
    cpr, cmd = found.areas(places, SHARES) or (None, None)
    cpr_interval, cmd_interval = found.area_intervals(places, SHARES)
    points = tuple(
        Point(
            share=share,
            asked=asked,
            n_edges=pool.n_edges(place),
            n_nodes=pool.n_nodes(place),
            m=found.m(place),
            faithfulness=found.faithfulness(place),
            interval=found.interval(place),
        )
        for share, asked, place in plan.steps
    )
    return FaithfulnessCurve(plan.scorer, plan.level, plan.order, points, cpr, cpr_interval, cmd, cmd_interval)


def _band(found: Measured, pool: Pool, level: str, drawn: Sequence[_Plan]) -> Band:
    areas = [found.areas(plan.places(), SHARES) for plan in drawn]
    points = []
    for i, (share, asked, _) in enumerate(drawn[0].steps):
        places = [plan.steps[i][2] for plan in drawn]
        n_edges = float(np.mean([pool.n_edges(place) for place in places]))
        points.append(BandPoint(share, asked, n_edges, _spread([found.faithfulness(place) for place in places])))
    cpr, cmd = (_spread([None if pair is None else pair[which] for pair in areas]) for which in (0, 1))
    return Band(level, len(drawn), tuple(points), cpr, cmd)


def _mark(found: Measured, pool: Pool, name: str, place: int) -> Mark:
    return Mark(
        name=name,
        n_edges=pool.n_edges(place),
        share=pool.n_edges(place) / pool.graph.n_edges,
        m=found.m(place),
        faithfulness=found.faithfulness(place),
        interval=found.interval(place),
    )


def _check_scorer(graph: Graph, name: str, scorer: Scorer, levels: Sequence[str]) -> None:
    graphs = [scorer.graph] if isinstance(scorer, Scores | NodeScores) else [circuit.graph for circuit in scorer]
    if wrong := [own for own in graphs if own != graph]:
        raise OptionError(
            f"scorer {name} is of a model with {wrong[0].n_layers} layers and {wrong[0].n_heads} heads, but this model "
            f"has {graph.n_layers} and {graph.n_heads}; give the model it was made in"
        )
    if isinstance(scorer, NodeScores) and "node" not in levels:
        raise OptionError(f"scorer {name} scores nodes, not edges; use --level node")
    if isinstance(scorer, Scores | NodeScores):
        return
    if "edge" not in levels:
        raise OptionError(f"scorer {name} gives circuits of edges; use --level edge")
    if len(scorer) != len(SHARES) - 1:
        raise OptionError(f"scorer {name} gives {len(scorer)} circuits, expected one for each share below 1, that is 9")
    for share, circuit in zip(SHARES, sorted(scorer, key=len), strict=False):
        if len(circuit) > share * graph.n_edges:
            raise OptionError(
                f"scorer {name}: a circuit of {len(circuit):,} edges stands for the share {share:g}, which allows "
                f"{int(share * graph.n_edges):,}; give one circuit within each of the nine shares"
            )


def _n_units(graph: Graph, level: str) -> int:
    return graph.n_edges if level == "edge" else graph.n_src - 1


def _strength(values: np.ndarray, signed: bool) -> np.ndarray:
    return -values if signed else np.abs(values)


def _spread(values: Sequence[float | None]) -> Spread | None:
    known = [value for value in values if value is not None]
    return Spread(float(np.mean(known)), float(min(known)), float(max(known))) if known else None
