"""Edges as curves around the boxes between their ends."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence

import numpy as np

from persona_circuits.circuit.drawing.page import Lanes, Page
from persona_circuits.circuit.drawing.style import Chosen
from persona_circuits.circuit.graph import INPUT, LOGITS, SLOTS, Edge, Node

__all__ = [
    "Points",
    "route",
]

# --- where the edges go --------------------------------------------------------------------

Points = list[tuple[float, float]]
_TRIES = 6  # every detour may lead into another node; few edges need more than two


def route(page: Page, chosen: Chosen) -> list[Points]:
    """Control points of a piecewise cubic per edge, from the source's top to the destination's bottom."""
    starts, ends = _starts(page, chosen.edges), _ends(page, chosen.edges)
    row_of = {node: place for place, row in enumerate(page.rows) for node in row}
    lanes = Lanes()
    result = []
    for edge in chosen.edges:
        start = (starts[edge], page.boxes[edge.src].high)
        end = (ends[edge], page.boxes[edge.dst].low)
        rows = page.rows[row_of[edge.src] + 1 : row_of[edge.dst]]
        result.append(_bezier(_around(page, [start, end], rows, lanes, chosen.width(edge))))
    return result


def _starts(page: Page, edges: Sequence[Edge]) -> dict[Edge, float]:
    """Where each edge leaves its source: spread over the top, in the order of where they go."""
    groups = defaultdict(list)
    for edge in edges:
        groups[edge.src].append(edge)
    return {
        edge: x
        for node, group in groups.items()
        for edge, x in _spread(page, node, group, [_port_x(page, edge) for edge in group], _half(page, node))
    }


def _ends(page: Page, edges: Sequence[Edge]) -> dict[Edge, float]:
    """Where each edge enters its destination: around its port, in the order of where they come from."""
    groups = defaultdict(list)
    for edge in edges:
        groups[edge.dst, edge.slot].append(edge)
    return {
        edge: x
        for (node, slot), group in groups.items()
        for edge, x in _spread(
            page, node, group, [page.boxes[edge.src].x for edge in group], 5.5 if slot else _half(page, node)
        )
    }


def _half(page: Page, node: Node) -> float:
    """Half of the length at a node's top or bottom that edges may use."""
    return page.boxes[node].width / 2 - 12


def _port_x(page: Page, edge: Edge) -> float:
    """Centre of the port of an edge's destination: q left, k in the middle, v right."""
    box = page.boxes[edge.dst]
    return box.x + (SLOTS.index(edge.slot) - 1) * box.width / 3 if edge.slot else box.x


def _spread(
    page: Page, node: Node, edges: Sequence[Edge], towards: Sequence[float], half: float
) -> Iterator[tuple[Edge, float]]:
    """Places of edges at one node, ordered as the places they point to.

    On a bar they stand below or above those, at least 6 points apart; elsewhere evenly around the port.
    """
    order = sorted(range(len(edges)), key=lambda place: towards[place])
    if node in (INPUT, LOGITS):
        step = min(6.0, (page.right - page.left - 24) / len(edges))
        free = page.left + 12.0
        for place, index in enumerate(order):
            last = page.right - 12.0 - step * (len(edges) - 1 - place)
            x = min(max(towards[index], free), last)
            yield edges[index], x
            free = x + step
        return
    middle = _port_x(page, edges[0]) if edges[0].dst == node else page.boxes[node].x
    step = min(4.0, 2 * half / max(1, len(edges) - 1))
    for place, index in enumerate(order):
        yield edges[index], middle + step * (place - (len(edges) - 1) / 2)


def _around(page: Page, points: Points, rows: Sequence[Sequence[Node]], lanes: Lanes, width: float) -> Points:
    """Start, end and what is needed between them for the curve to pass beside the nodes of the rows in between."""
    points, free = list(points), list(rows)
    for _ in range(_TRIES):
        hits = [(row, hit) for row in free if (hit := _hit(page, points, row))]
        for row, (node, side) in hits:
            free.remove(row)
            box = page.boxes[node]
            x = box.x + side * (box.width / 2 + lanes.take(node, side, width))
            points += [(x, box.low - 2), (x, box.high + 2)]
        points.sort(key=lambda point: point[1])
        if not hits:
            break
    return points


def _hit(page: Page, points: Points, row: Sequence[Node]) -> tuple[Node, int] | None:
    """The node of a row that the curve runs into, and the side to pass it on: -1 left, 1 right."""
    high = max(page.boxes[node].high for node in row)
    low = min(page.boxes[node].low for node in row)
    xs = _at(points, np.linspace(low, high, 3))
    for node in row:
        box = page.boxes[node]
        if xs.max() > box.x - box.width / 2 - 3 and xs.min() < box.x + box.width / 2 + 3:
            return node, 1 if xs[1] >= box.x else -1
    return None


def _slopes(points: Points) -> np.ndarray:
    """dx/dy at the points: vertical at both ends and at turns, else the harmonic mean, so nothing overshoots."""
    x, y = np.array(points).T
    secants = np.diff(x) / np.maximum(np.diff(y), 1e-9)
    before, after = secants[:-1], secants[1:]
    same = before * after > 0
    inner = np.where(same, 2 * before * after / np.where(same, before + after, 1.0), 0.0)
    return np.concatenate([[0.0], inner, [0.0]])


def _at(points: Points, heights: np.ndarray) -> np.ndarray:
    """x of the curve at the given heights: a cubic Hermite spline in y."""
    x, y = np.array(points).T
    slopes = _slopes(points)
    piece = np.clip(np.searchsorted(y, heights, side="right") - 1, 0, len(x) - 2)
    dy = y[piece + 1] - y[piece]
    t = (heights - y[piece]) / dy
    return (
        (1 + 2 * t) * (1 - t) ** 2 * x[piece]
        + t * (1 - t) ** 2 * dy * slopes[piece]
        + t**2 * (3 - 2 * t) * x[piece + 1]
        + t**2 * (t - 1) * dy * slopes[piece + 1]
    )


def _bezier(points: Points) -> Points:
    """The same curve as Graphviz wants it: 3 n + 1 control points of n cubics."""
    slopes = _slopes(points)
    result = [points[0]]
    for (x0, y0), (x1, y1), m0, m1 in zip(points, points[1:], slopes, slopes[1:], strict=False):
        third = (y1 - y0) / 3
        result += [(x0 + m0 * third, y0 + third), (x1 - m1 * third, y1 - third), (x1, y1)]
    return result
