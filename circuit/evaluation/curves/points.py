"""Points and bands of a curve of faithfulness against size, and the areas under it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from persona_circuits.circuit.choices import LEVELS, ORDERS
from persona_circuits.circuit.errors import GraphError, OptionError
from persona_circuits.circuit.forward import Prepared
from persona_circuits.circuit.graph import Graph
from persona_circuits.circuit.progress import Progress
from persona_circuits.circuit.pruning import ranked_edges
from persona_circuits.circuit.scores import Scores
from persona_circuits.circuit.statistics import Interval
from persona_circuits.circuit.subgraph import Circuit, SpanCircuit, Spans

__all__ = [
    "LEVELS",
    "ORDERS",
    "SHARES",
    "Band",
    "BandPoint",
    "CurveKinds",
    "FaithfulnessCurve",
    "Mark",
    "NodeScores",
    "Point",
    "Pool",
    "PreparedFactory",
    "Scorer",
    "Spread",
    "area",
    "check_scorers",
    "ranked_edges",
]

SHARES = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
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
class CurveKinds:
    """What is kept at every share, in which orders, and beside how many random orders of it; 0 for none."""

    levels: Sequence[str] = ("edge",)
    orders: Sequence[str] = ORDERS
    n_random: int = 10


@dataclass(frozen=True)
class Point:
    """One circuit of a curve.

    ``asked`` is the number of units that the share comes to, int(share n); ``n_edges`` and ``n_nodes`` (``input`` and
    ``logits`` included) are what is left without dead ends. ``faithfulness``, a ratio of means, is None where m(full) -
    m(empty) is zero, ``interval`` for a single pair too; ``median_of_ratios`` is of the pairs' own.
    """

    share: float
    asked: int
    n_edges: int
    n_nodes: int
    m: float
    faithfulness: float | None
    interval: Interval | None
    median_of_ratios: float | None = None


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
    median_of_ratios: float | None = None


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


class Pool:
    """Circuits to be measured, without dead ends and each once; ``full`` and ``empty`` are places of its own.

    Masks are kept packed, eight edges a byte. With ``spans`` they are of edges at parts of the prompt.
    """

    def __init__(self, graph: Graph, spans: Spans | None = None) -> None:
        self.graph, self.spans = graph, spans
        self.valid = graph.valid if spans is None else spans.valid(graph)
        self._places: dict[bytes, int] = {}
        self._nodes: list[int] = []
        self._edges: list[int] = []
        self.full, self.empty = self.add(self.valid), self.add(np.zeros_like(self.valid))

    def add(self, mask: np.ndarray) -> int:
        """The place of this circuit without its dead ends."""
        circuit = self._circuit(mask).without_dead_ends()
        place = self._places.setdefault(np.packbits(circuit.mask).tobytes(), len(self._places))
        if place == len(self._edges):
            self._edges.append(len(circuit))
            # Without dead ends every node that reads also writes, but for the logits.
            self._nodes.append(
                int(circuit.mask.any(axis=-1).reshape(-1, self.graph.n_src).any(0).sum()) + bool(len(circuit))
            )
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

    def _circuit(self, mask: np.ndarray) -> Circuit | SpanCircuit:
        return Circuit(self.graph, mask) if self.spans is None else SpanCircuit(self.graph, self.spans, mask)

    def by_size(self, progress: Progress | None = None) -> tuple[list[int], Sequence[np.ndarray | SpanCircuit]]:
        """Places and masks from the smallest circuit to the largest, so that passes of small circuits stay cheap.

        ``progress`` is called for every mask.
        """
        packed = list(self._places)
        order = sorted(range(len(packed)), key=lambda place: self._edges[place])
        return order, _Unpacked([packed[place] for place in order], self._measurable, progress)

    def _measurable(self, packed: bytes) -> np.ndarray | SpanCircuit:
        circuit = self._circuit(self._unpacked(packed))
        return circuit if isinstance(circuit, SpanCircuit) else circuit.mask

    def _unpacked(self, packed: bytes) -> np.ndarray:
        bits = np.unpackbits(np.frombuffer(packed, dtype=np.uint8), count=self.valid.size)
        return bits.astype(bool).reshape(self.valid.shape)


@dataclass(frozen=True, eq=False)
class _Unpacked(Sequence[np.ndarray | SpanCircuit]):
    """Masks that are unpacked on access."""

    packed: Sequence[bytes]
    unpack: Callable[[bytes], np.ndarray | SpanCircuit]
    progress: Progress | None

    def __len__(self) -> int:
        return len(self.packed)

    def __getitem__(self, place: int) -> np.ndarray | SpanCircuit:  # type: ignore[override]
        mask = self.unpack(self.packed[place])
        if self.progress is not None:
            self.progress(place + 1, len(self))
        return mask


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
