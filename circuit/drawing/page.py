"""Where nodes stand: a row of heads and an MLP for every layer."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

from persona_circuits.circuit.drawing.style import BAR, HEAD, MLP, PITCH, Widths
from persona_circuits.circuit.graph import INPUT, LOGITS, Edge, Graph, Node

__all__ = [
    "Lanes",
    "Page",
]

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
    """Boxes of all nodes, from the bottom up; rows of nodes; bands of layers; left and right end of the bars."""

    boxes: Mapping[Node, _Box]
    rows: tuple[tuple[Node, ...], ...]
    bands: tuple[_Band, ...]
    left: float
    right: float

    @property
    def top(self) -> float:
        return self.boxes[LOGITS].high

    @classmethod
    def of(cls, graph: Graph, edges: Sequence[Edge]) -> Page:
        """Stack the rows of all nodes at the ends of the edges, and both bars, from the bottom up."""
        layers = _layers(graph, edges)
        rows = [row for _, layer_rows in layers for row in layer_rows]
        widths = Widths.of(rows)
        boxes = {INPUT: _Box(widths.middle, BAR / 2, widths.bar, BAR)}
        bands = []
        high = BAR
        for label, layer_rows in layers:
            low = floor = high + 9
            room = widths.room
            for row in layer_rows:
                height = max(_size(node)[1] for node in row)
                y = floor + room + height / 2
                boxes |= {node: _Box(widths.x(row, node), y, *_size(node)) for node in row}
                floor, room = y + height / 2, widths.room * 0.55
            high = floor + 7 if layer_rows else low + 13
            bands.append(_Band(label, low, high, not layer_rows))
        boxes[LOGITS] = _Box(widths.middle, high + 9 + widths.room + BAR / 2, widths.bar, BAR)
        return cls(boxes, ((INPUT,), *rows, (LOGITS,)), tuple(bands), widths.left, widths.left + widths.bar)


def _layers(graph: Graph, edges: Sequence[Edge]) -> list[tuple[str, list[tuple[Node, ...]]]]:
    """Label and rows of every layer; layers without nodes are put together into one, without rows."""
    nodes = {end for edge in edges for end in (edge.src, edge.dst)}
    found = []
    for layer in range(graph.n_layers):
        heads = tuple(
            sorted((node for node in nodes if node.kind == "head" and node.layer == layer), key=lambda node: node.head)
        )
        mlp = tuple(node for node in nodes if node.kind == "mlp" and node.layer == layer)
        found.append((layer, [heads + mlp] if graph.parallel else [heads, mlp]))
    result: list[tuple[str, list[tuple[Node, ...]]]] = []
    for empty, group in groupby(found, key=lambda item: not any(item[1])):
        run = list(group)
        if empty:
            first, last = run[0][0], run[-1][0]
            result.append((f"layer {first}" if first == last else f"layers {first}–{last}", []))
        else:
            result += [(f"layer {layer}", [row for row in rows if row]) for layer, rows in run]
    return result


def _size(node: Node) -> tuple[float, float]:
    return HEAD if node.kind == "head" else MLP


class Lanes:
    """Hands out room beside the nodes, outwards, to the edges that pass there; full gaps start again."""

    def __init__(self) -> None:
        self._taken: dict[tuple[Node, int], float] = defaultdict(float)

    def take(self, node: Node, side: int, width: float) -> float:
        """Distance from a node's side (-1 left, 1 right) to the middle of a lane for a line of this width."""
        distance = self._taken[node, side] + width / 2
        self._taken[node, side] = (distance + width / 2 + 1.5) % (PITCH - HEAD[0] - 6)
        return 3.5 + distance
