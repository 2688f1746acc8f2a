"""Positions of nodes, a row of heads and an MLP for every layer, and of the bars of bundles between them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

from persona_circuits.circuit.drawing.bundles import Bundle, bundles_of, by_gap
from persona_circuits.circuit.drawing.roles import ROLES
from persona_circuits.circuit.drawing.style import BAR, HEAD, MLP, PITCH, Chosen, Widths
from persona_circuits.circuit.graph import INPUT, LOGITS, Edge, Graph, Node

__all__ = ["Lanes", "Page"]

BETWEEN = 6.0  # from a layer's band to the next
STEP = 6.0  # from a bundle's bar to the next
BESIDE = 24.0  # room for lines beside an MLP
NEAR, NEARER = 12.0, 9.0  # from the first bar to the row above it, whose arrows need room, and to the row below it

# --- where the nodes are -------------------------------------------------------------------


@dataclass(frozen=True)
class _Box:
    """A node's place: its centre, width and height."""

    x: float
    y: float
    width: float
    height: float

    @property
    def low(self) -> float:
        return self.y - self.height / 2

    @property
    def high(self) -> float:
        return self.y + self.height / 2


@dataclass(frozen=True)
class _Band:
    """One layer, or a run of layers without nodes: what its label says, and from where to where it goes."""

    label: str
    low: float
    high: float
    empty: bool


@dataclass(frozen=True)
class Page:
    """Boxes of all nodes, from the bottom up; rows of nodes; bands of layers; left and right end of the bars.

    ``bundles`` are the edges that run together, ``levels`` how high each bundle's bar lies.
    """

    boxes: Mapping[Node, _Box]
    rows: tuple[tuple[Node, ...], ...]
    bands: tuple[_Band, ...]
    left: float
    right: float
    bundles: Mapping[Edge, Bundle]
    levels: Mapping[Bundle, float]

    @property
    def top(self) -> float:
        return self.boxes[LOGITS].high

    @classmethod
    def of(cls, graph: Graph, chosen: Chosen) -> Page:
        """Stack the rows of all nodes at the ends of the edges, and both bars, from the bottom up."""
        layers = _layers(graph, chosen)
        inner = [row for _, layer_rows in layers for row in layer_rows]
        rows = ((INPUT,), *inner, (LOGITS,))
        bundles = bundles_of(chosen, rows)
        gaps = by_gap(bundles)
        widths = Widths.of(inner)
        boxes = {INPUT: _Box(widths.middle, BAR / 2, widths.bar, BAR)}
        bands, place = [], 1
        high = BAR
        for label, layer_rows in layers:
            low = floor = high + BETWEEN
            room = widths.room
            for row in layer_rows:
                height = max(_size(node)[1] for node in row)
                y = floor + max(room, _room(gaps.get(place, ()))) + height / 2
                boxes |= {node: _Box(widths.x(row, node), y, *_size(node)) for node in row}
                floor, room, place = y + height / 2, widths.room * 0.7, place + 1
            high = floor + 7 if layer_rows else low + 13
            bands.append(_Band(label, low, high, not layer_rows))
        above = max(widths.room, _room(gaps.get(place, ())))
        boxes[LOGITS] = _Box(widths.middle, high + BETWEEN + above + BAR / 2, widths.bar, BAR)
        levels = {bundle: level for gap, in_gap in gaps.items() for bundle, level in _levels(boxes, rows, gap, in_gap)}
        return cls(boxes, rows, tuple(bands), widths.left, widths.left + widths.bar, bundles, levels)


def _room(bundles: Sequence[Bundle]) -> float:
    """Height below a row that its bars need."""
    return NEAR + NEARER + STEP * len(bundles) if bundles else 0.0


def _levels(
    boxes: Mapping[Node, _Box], rows: Sequence[Sequence[Node]], gap: int, bundles: Sequence[Bundle]
) -> Iterator[tuple[Bundle, float]]:
    """Heights of bars between two rows: from the upper row down where edges part, from the lower up where they join."""
    top = min(boxes[node].low for node in rows[gap]) - NEAR
    bottom = max(boxes[node].high for node in rows[gap - 1]) + NEARER
    for bundle in bundles:
        yield bundle, top if bundle.parts else bottom
        top, bottom = (top - STEP, bottom) if bundle.parts else (top, bottom + STEP)


def _layers(graph: Graph, chosen: Chosen) -> list[tuple[str, list[tuple[Node, ...]]]]:
    """Label and rows of every layer; layers without nodes are put together into one, without rows."""
    nodes = {end for edge in chosen.edges for end in (edge.src, edge.dst)}
    order = {node: (list(ROLES).index(chosen.roles.get(node, "")), node.head) for node in nodes}
    layers = []
    for layer in range(graph.n_layers):
        own = (node for node in nodes if node.kind == "head" and node.layer == layer)
        heads = tuple(sorted(own, key=lambda node: order[node]))
        mlp = tuple(node for node in nodes if node.kind == "mlp" and node.layer == layer)
        layers.append((layer, [heads + mlp] if graph.parallel else [heads, mlp]))
    result: list[tuple[str, list[tuple[Node, ...]]]] = []
    for empty, group in groupby(layers, key=lambda item: not any(item[1])):
        run = list(group)
        if empty:
            first, last = run[0][0], run[-1][0]
            result.append((f"{first}" if first == last else f"{first}–{last}", []))
        else:
            result += [(f"layer {layer}", [row for row in rows if row]) for layer, rows in run]
    return result


def _size(node: Node) -> tuple[float, float]:
    return HEAD if node.kind == "head" else MLP


class Lanes:
    """Assigns lanes beside the nodes, from inside out, to the edges that pass there; full gaps start again."""

    def __init__(self) -> None:
        self._taken: dict[tuple[Node, int], float] = defaultdict(float)

    def take(self, node: Node, side: int, width: float) -> float:
        """Distance from a node's side (-1 left, 1 right) to the middle of a lane for a line of this width."""
        distance = self._taken[node, side] + width / 2
        room = PITCH - HEAD[0] - 6 if node.kind == "head" else BESIDE
        self._taken[node, side] = (distance + width / 2 + 1.5) % room
        return 3.5 + distance
