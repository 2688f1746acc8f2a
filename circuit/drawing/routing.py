"""Edges as curves around the boxes between their ends."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from persona_circuits.circuit.drawing.bundles import Bundle
from persona_circuits.circuit.drawing.page import Lanes, Page
from persona_circuits.circuit.drawing.style import Chosen
from persona_circuits.circuit.graph import INPUT, LOGITS, SLOTS, Edge, Node

__all__ = ["Points", "route"]

# --- where the edges go --------------------------------------------------------------------

Points = list[tuple[float, float]]
_TRIES = 6  # every detour may lead into another node; few edges need more than two
_TURN = 6.0  # radius of the corners of a bundle


def route(page: Page, chosen: Chosen) -> list[Points]:
    """Control points of a piecewise cubic per edge, from the source's top to the destination's bottom.

    Bundled edges run as one stroke around the nodes between, and along their bar.
    """
    row_of = {node: place for place, row in enumerate(page.rows) for node in row}
    starts, ends = _starts(page, chosen.edges), _ends(page, chosen.edges)
    lanes, trunks, result = Lanes(), dict[Bundle, Points](), []
    for edge in chosen.edges:
        start, end = (starts[edge], page.boxes[edge.src].high), (ends[edge], page.boxes[edge.dst].low)
        rows = page.rows[row_of[edge.src] + 1 : row_of[edge.dst]]
        bundle, aim = page.bundles.get(edge), min(start[0], end[0])
        if bundle is None:
            result.append(_bezier(_around(page, [start, end], rows, lanes, chosen.width(edge), aim)))
            continue
        level = page.levels[bundle]
        if bundle not in trunks:
            both = [start, (start[0], level - _TURN)] if bundle.parts else [(end[0], level + _TURN), end]
            trunks[bundle] = _straight(_around(page, both, rows, lanes, chosen.width(edge), aim), bundle)
        trunk = _bezier(trunks[bundle])
        if bundle.parts:
            result.append([*trunk[:-1], *_along(trunk[-1], level, end)])
        else:
            result.append([*_along(start, level, trunk[0]), *trunk[1:]])
    return result


def _along(start: tuple[float, float], level: float, end: tuple[float, float]) -> Points:
    """Control points up from the start, along a bar at that level and up to the end, with round corners."""
    x0, x1 = start[0], end[0]
    turn = min(_TURN, abs(x1 - x0) / 2)
    side, soft = math.copysign(turn, x1 - x0), 0.4477  # of a cubic that is nearly a quarter of a circle
    corners = [
        (x0, level - turn * soft),
        (x0 + side * soft, level),
        (x0 + side, level),
        *_line((x0 + side, level), (x1 - side, level)),
        (x1 - side * soft, level),
        (x1, level + turn * soft),
        (x1, level + turn),
    ]
    return [start, *_line(start, (x0, level - turn)), *corners, *_line((x1, level + turn), end)]


def _line(start: tuple[float, float], end: tuple[float, float]) -> Points:
    """A straight cubic's control points but for the first."""
    (x0, y0), (x1, y1) = start, end
    return [(x0 + part * (x1 - x0), y0 + part * (y1 - y0)) for part in (1 / 3, 2 / 3)] + [end]


def _straight(trunk: Points, bundle: Bundle) -> Points:
    """A trunk that had to turn aside splits, or joins, at its new place rather than back in the middle."""
    if len(trunk) == 2:
        return trunk
    if bundle.parts:
        return [*trunk[:-1], (trunk[-2][0], trunk[-1][1])]
    return [(trunk[1][0], trunk[0][1]), *trunk[1:]]


def _starts(page: Page, edges: Sequence[Edge]) -> dict[Edge, float]:
    """Where each edge leaves its source: spread over the top, in the order of where they go; bundles as one."""
    groups: dict[Node, dict[Any, list[Edge]]] = defaultdict(dict)
    for edge in edges:
        bundle = page.bundles.get(edge)
        groups[edge.src].setdefault(bundle if bundle and bundle.parts else edge, []).append(edge)
    starts: dict[Edge, float] = {}
    for node, group in groups.items():
        towards = [sum(_port_x(page, edge) for edge in own) / len(own) for own in group.values()]
        firsts = [own[0] for own in group.values()]
        places = dict(_spread(page, node, firsts, towards, _half(page, node)))
        starts |= {edge: places[own[0]] for own in group.values() for edge in own}
    return starts


def _ends(page: Page, edges: Sequence[Edge]) -> dict[Edge, float]:
    """Where each edge enters its destination: around its port, in the order of where they come from; bundles as one."""
    groups: dict[tuple[Node, str | None], dict[Any, list[Edge]]] = defaultdict(dict)
    for edge in edges:
        bundle = page.bundles.get(edge)
        groups[edge.dst, edge.slot].setdefault(bundle if bundle and not bundle.parts else edge, []).append(edge)
    ends: dict[Edge, float] = {}
    for (node, slot), group in groups.items():
        towards = [sum(page.boxes[edge.src].x for edge in own) / len(own) for own in group.values()]
        firsts = [own[0] for own in group.values()]
        places = dict(_spread(page, node, firsts, towards, 5.5 if slot else _half(page, node)))
        ends |= {edge: places[own[0]] for own in group.values() for edge in own}
    return ends


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


def _around(
    page: Page, points: Points, rows: Sequence[Sequence[Node]], lanes: Lanes, width: float, aim: float
) -> Points:
    """Start, end and what is needed between them for the curve to pass beside the nodes of the rows in between.

    ``aim`` is how far left the edge, or an edge of the bundle, begins or ends.
    """
    points, free = list(points), list(rows)
    for _ in range(_TRIES):
        hits = [(row, hit) for row in free if (hit := _hit(page, points, row, aim))]
        for row, (node, side) in hits:
            free.remove(row)
            box = page.boxes[node]
            x = box.x + side * (box.width / 2 + lanes.take(node, side, width))
            points += [(x, box.low - 2), (x, box.high + 2)]
        points.sort(key=lambda point: point[1])
        if not hits:
            break
    return points


def _hit(page: Page, points: Points, row: Sequence[Node], aim: float) -> tuple[Node, int] | None:
    """The node of a row that the curve runs into, and the side to pass it on: -1 left, 1 right.

    MLPs, in their column, are passed on the right by what stays in it, on the left by what comes from heads or goes
    to them.
    """
    high = max(page.boxes[node].high for node in row)
    low = min(page.boxes[node].low for node in row)
    xs = _at(points, np.linspace(low, high, 3))
    for node in row:
        box = page.boxes[node]
        if xs.max() > box.x - box.width / 2 - 3 and xs.min() < box.x + box.width / 2 + 3:
            return node, 1 if (aim > box.x - box.width / 2 if node.kind == "mlp" else xs[1] >= box.x) else -1
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
