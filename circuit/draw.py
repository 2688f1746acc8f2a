"""The picture of a circuit: layers from ``input`` at the bottom to ``logits`` at the top.

Positions are known, so they are computed here and Graphviz only draws:

1. choose the edges (the strongest ones) and the nodes at their ends;
2. stack the rows: per layer its heads, above them its MLP in a column of its own;
3. give every edge its place at a port, and lead it around the nodes in between;
4. write all of it into one Graphviz graph, legend and layer bands as its background;
5. render that in a process of its own, where the shipped font is the only font.

Lengths are points (1/72 inch), ``y`` points up. Graphviz reads ``pos`` in points
(engine ``nop2``) but ``width`` and ``height`` in inches.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any
from xml.sax.saxutils import escape

import numpy as np

from circuit.errors import FileError, OptionError
from circuit.graph import INPUT, LOGITS, SLOTS, Edge, Graph, Node
from circuit.printable import shortened
from circuit.scores import Scores
from circuit.storage import check_output_file, write_bytes
from circuit.subgraph import Circuit

if TYPE_CHECKING:
    import pygraphviz as pgv

__all__ = ["FORMATS", "DrawReport", "check_picture", "draw", "to_agraph"]

FORMATS = ("svg", "png", "pdf", "dot")

# Colours that are told apart by colour-blind readers too (Okabe and Ito).
BLUE, VERMILLION, GREY = "#0072B2", "#D55E00", "#8A8A8A"
INK, FAINT, BAND, DARK = "#222222", "#767676", "#F4F5F7", "#4A4F57"
HEAD_FILL, HEAD_LINE, PORT_FILL = "#FFF6DC", "#A8791A", "#F3D58B"
MLP_FILL, MLP_LINE = "#DDF1E9", "#00795A"

FONT = "Persona Circuits Sans,DejaVu Sans,Verdana,sans-serif"
HEAD = (54.0, 34.0)  # width and height of a head's box
MLP = (48.0, 30.0)
BAR = 22.0  # height of input and logits
ARROW = 4.0  # length of an arrow's head
PITCH = 78.0  # from a head to the next one in its row
MARGIN, LABELS, LEGEND = 18.0, 82.0, 214.0  # page margin; width of the layer labels and of the legend
PNG_DPI, PNG_PIXELS, PNG_SIDE = 130.0, 24e6, 16000  # resolution, and what it gives way to
LONGEST = 200  # characters of a title
FAINTNESS = "58"  # opacity of a fringe edge, in hexadecimal
THIN, THICK = 0.6, 5.0  # line widths of the score 0 and of the largest |score|


@dataclass(frozen=True)
class DrawReport:
    """What was drawn: ``shown`` of the circuit's ``total`` edges, in the file ``path``."""

    shown: int
    total: int
    path: Path


def draw(
    circuit: Circuit,
    path: str | Path,
    *,
    scores: Scores | None = None,
    strongest: int = 150,
    title: str = "",
    fmt: str | None = None,
    groups: Mapping[str, Circuit] | None = None,
    scale: str = "|score|, in metric units",
    fringe: Circuit | None = None,
) -> DrawReport:
    """Draw a circuit into a file; an existing file is replaced, in one step.

    Parameters:
        circuit: what to draw; nodes on no path from ``input`` to ``logits`` are left out.
        path: the file. Its ending says the format, unless ``fmt`` does.
        scores: width and style of the edges, in metric units. Without them all
            edges look the same, and the first ones in topological order are drawn.
        strongest: at most so many edges are drawn, those of the largest ``|score|``.
        title: a line above the picture; letters other than Latin, Greek and
            Cyrillic show in SVG only.
        fmt: one of ``FORMATS``.
        groups: at most four parts of the circuit by name, each edge in exactly one; edges
            are then coloured by their part rather than by the sign of their score.
        scale: what the legend says that the width is.
        fringe: the edges that other pairs might not have given (``circuit.stability``): they are
            drawn faint, and the legend counts them and the core's.

    Raises:
        OptionError: the format is unknown, ``strongest`` is below 1, the scores are of
            another graph, or the groups do not part the circuit's edges.
        FileError: the file cannot be written, or Graphviz does not draw.
    """
    path = Path(path)
    fmt = _format_of(path, fmt)
    how: dict[str, Any] = {"scores": scores, "strongest": strongest, "title": title}
    picture = to_agraph(circuit, groups=groups, scale=scale, fringe=fringe, **how)
    write_bytes(_rendered(picture, fmt), path)
    return DrawReport(picture.number_of_edges(), len(circuit), path)


def to_agraph(
    circuit: Circuit,
    *,
    scores: Scores | None = None,
    strongest: int = 150,
    title: str = "",
    groups: Mapping[str, Circuit] | None = None,
    scale: str = "|score|, in metric units",
    fringe: Circuit | None = None,
) -> pgv.AGraph:
    """The picture as a Graphviz graph with every position set; the parameters are those of ``draw``.

    Nodes and edges are the circuit's own, keyed by their names; edges carry ``slot``
    and ``score``. Title, layer bands and legend are the graph's ``_background``.

    Raises:
        OptionError: ``strongest`` is below 1, the scores are of another graph, or the
            groups do not part the circuit's edges.
    """
    import pygraphviz as pgv

    _check_groups(circuit, groups)
    if fringe is not None and (fringe.graph != circuit.graph or (fringe.mask & ~circuit.mask).any()):
        raise OptionError("the fringe holds edges that are not the circuit's; give a part of it")
    chosen = replace(_choose(circuit, scores, strongest), groups=groups, scale=scale, fringe=fringe, total=len(circuit))
    page = _Page.of(circuit.graph, chosen.edges)
    curves = _route(page, chosen)
    result = pgv.AGraph(strict=False, directed=True, name="circuit")
    result.graph_attr.update(outputorder="edgesfirst", margin="0", pad="0", bgcolor="white")
    result.graph_attr.update(_background(page, chosen, title))
    result.node_attr.update(fontname=FONT, fontsize="10", fixedsize="true", margin="0")
    for node in page.boxes:
        result.add_node(str(node), **_node_attributes(page, node, chosen.edges))
    for edge, curve in zip(chosen.edges, curves, strict=True):
        result.add_edge(str(edge.src), str(edge.dst), key=str(edge), **_edge_attributes(chosen, edge, curve))
    return result


# --- which edges ---------------------------------------------------------------------------


@dataclass(frozen=True)
class _Chosen:
    """The edges to draw, topological; their scores, if any; and the line that says what is missing.

    With ``groups``, colour and style say which part an edge is in; ``scale`` is what the width means. Edges of
    ``fringe`` are faint; ``total`` is the number of the circuit's edges.
    """

    edges: tuple[Edge, ...]
    scores: Mapping[Edge, float] | None
    note: str
    groups: Mapping[str, Circuit] | None = None
    scale: str = ""
    fringe: Circuit | None = None
    total: int = 0

    @cached_property
    def largest(self) -> float:
        """The largest ``|score|`` drawn; 0 without scores."""
        return max(map(abs, self.scores.values()), default=0.0) if self.scores else 0.0

    def width(self, edge: Edge) -> float:
        """Line width of an edge: the root of ``|score|``, so that weak edges stay visible."""
        if self.scores is None:
            return 1.1
        return _width(abs(self.scores[edge]), self.largest)

    def is_fringe(self, edge: Edge) -> bool:
        """Whether the edge is to be drawn faint."""
        return self.fringe is not None and bool(self.fringe.mask[self.fringe.graph.index(edge)])

    def look(self, edge: Edge) -> tuple[str, str]:
        """Colour and style: by group, else by sign."""
        if self.groups is not None:
            place = next(i for i, part in enumerate(self.groups.values()) if part.mask[part.graph.index(edge)])
            return _GROUP_LOOKS[place]
        assert self.scores is not None
        return _look(self.scores[edge])


def _choose(circuit: Circuit, scores: Scores | None, strongest: int) -> _Chosen:
    if strongest < 1:
        raise OptionError(f"strongest is {strongest}; it is how many edges to draw, so give 1 or more")
    if scores is not None and scores.graph != circuit.graph:
        raise OptionError(
            f"the scores are of {scores.graph} but the circuit is of {circuit.graph}; "
            "pass the scores that the circuit was found with"
        )
    alive = circuit.without_dead_ends().mask
    places = np.argwhere(alive.T)  # destination and source of each edge, in topological order
    if scores is None:
        kept = np.arange(len(places))[:strongest]
    else:
        kept = np.sort(np.argsort(-np.abs(scores.values.T[alive.T]), kind="stable")[:strongest])
    edges = tuple(circuit.graph.edge(int(src), int(dst)) for dst, src in places[kept])
    note = _note(len(circuit), len(places), len(edges), ranked=scores is not None)
    return _Chosen(edges, None if scores is None else {edge: scores[edge] for edge in edges}, note)


def _check_groups(circuit: Circuit, groups: Mapping[str, Circuit] | None) -> None:
    """Every edge of the circuit must be in one group, and no other edge in any."""
    if groups is None:
        return
    if len(groups) > len(_GROUP_LOOKS):
        raise OptionError(f"{len(groups)} groups of edges; there are colours for {len(_GROUP_LOOKS)}, so give fewer")
    if any(part.graph != circuit.graph for part in groups.values()):
        raise OptionError(f"a group is of another graph than the circuit, which is of {circuit.graph}")
    times = sum((part.mask.astype(int) for part in groups.values()), np.zeros(circuit.mask.shape, dtype=int))
    if (times != circuit.mask).any():
        raise OptionError("the groups do not part the circuit: each of its edges must be in exactly one of them")


def _note(total: int, alive: int, shown: int, *, ranked: bool) -> str:
    """The line that says how many of the circuit's edges are shown, which, and why others are not."""
    if total == 0:
        return "an empty circuit: no edges"
    if shown == total:
        return "its only edge" if total == 1 else f"all {total:,} edges"
    if shown == alive:
        return f"{shown:,} of {total:,} edges; {total - shown:,} left out, on no path from input to logits"
    which, order = ("strongest", "") if ranked else ("first", " in topological order")
    dead = f" ({total - alive:,} of them on no path from input to logits)" if alive < total else ""
    return f"{shown:,} {which} of {total:,} edges{order}; {total - shown:,} left out{dead}"


def _width(score: float, largest: float) -> float:
    return THIN + (THICK - THIN) * (score / largest) ** 0.5 if largest else THIN


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
class _Page:
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
    def of(cls, graph: Graph, edges: Sequence[Edge]) -> _Page:
        """Stack the rows of all nodes at the ends of the edges, and both bars, from the bottom up."""
        layers = _layers(graph, edges)
        rows = [row for _, layer_rows in layers for row in layer_rows]
        widths = _Widths.of(rows)
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


@dataclass(frozen=True)
class _Widths:
    """What lies beside what, from the bars' ``left`` end on: the heads, centred, then the MLP column.

    ``room`` is the height left free below a row, where edges turn: more in a wider picture.
    """

    heads: float
    bar: float
    left: float
    room: float

    @classmethod
    def of(cls, rows: Sequence[Sequence[Node]]) -> _Widths:
        most = max((sum(node.kind == "head" for node in row) for row in rows), default=0)
        mlps = any(node.kind == "mlp" for row in rows for node in row)
        heads = HEAD[0] + PITCH * (most - 1) if most else 0.0
        bar = max(220.0, heads + 56 + (MLP[0] + 40 if mlps else 0))
        return cls(heads, bar, MARGIN + LABELS, min(120.0, 30 + 0.05 * bar))

    @property
    def middle(self) -> float:
        return self.left + self.bar / 2

    def x(self, row: Sequence[Node], node: Node) -> float:
        """Centre of a node of a row."""
        if node.kind == "mlp":
            return self.left + self.bar - 28 - MLP[0] / 2
        heads = sum(other.kind == "head" for other in row)
        return self.left + 28 + self.heads / 2 + PITCH * (row.index(node) - (heads - 1) / 2)


# --- where the edges go --------------------------------------------------------------------

_Points = list[tuple[float, float]]
_TRIES = 6  # every detour may lead into another node; few edges need more than two


def _route(page: _Page, chosen: _Chosen) -> list[_Points]:
    """Control points of a piecewise cubic per edge, from the source's top to the destination's bottom."""
    starts, ends = _starts(page, chosen.edges), _ends(page, chosen.edges)
    row_of = {node: place for place, row in enumerate(page.rows) for node in row}
    lanes = _Lanes()
    result = []
    for edge in chosen.edges:
        start = (starts[edge], page.boxes[edge.src].high)
        end = (ends[edge], page.boxes[edge.dst].low)
        rows = page.rows[row_of[edge.src] + 1 : row_of[edge.dst]]
        result.append(_bezier(_around(page, [start, end], rows, lanes, chosen.width(edge))))
    return result


class _Lanes:
    """Hands out room beside the nodes, outwards, to the edges that pass there; full gaps start again."""

    def __init__(self) -> None:
        self._taken: dict[tuple[Node, int], float] = defaultdict(float)

    def take(self, node: Node, side: int, width: float) -> float:
        """Distance from a node's side (-1 left, 1 right) to the middle of a lane for a line of this width."""
        distance = self._taken[node, side] + width / 2
        self._taken[node, side] = (distance + width / 2 + 1.5) % (PITCH - HEAD[0] - 6)
        return 3.5 + distance


def _starts(page: _Page, edges: Sequence[Edge]) -> dict[Edge, float]:
    """Where each edge leaves its source: spread over the top, in the order of where they go."""
    groups = defaultdict(list)
    for edge in edges:
        groups[edge.src].append(edge)
    return {
        edge: x
        for node, group in groups.items()
        for edge, x in _spread(page, node, group, [_port_x(page, edge) for edge in group], _half(page, node))
    }


def _ends(page: _Page, edges: Sequence[Edge]) -> dict[Edge, float]:
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


def _half(page: _Page, node: Node) -> float:
    """Half of the length at a node's top or bottom that edges may use."""
    return page.boxes[node].width / 2 - 12


def _port_x(page: _Page, edge: Edge) -> float:
    """Centre of the port of an edge's destination: q left, k in the middle, v right."""
    box = page.boxes[edge.dst]
    return box.x + (SLOTS.index(edge.slot) - 1) * box.width / 3 if edge.slot else box.x


def _spread(
    page: _Page, node: Node, edges: Sequence[Edge], towards: Sequence[float], half: float
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


def _around(page: _Page, points: _Points, rows: Sequence[Sequence[Node]], lanes: _Lanes, width: float) -> _Points:
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


def _hit(page: _Page, points: _Points, row: Sequence[Node]) -> tuple[Node, int] | None:
    """The node of a row that the curve runs into, and the side to pass it on: -1 left, 1 right."""
    high = max(page.boxes[node].high for node in row)
    low = min(page.boxes[node].low for node in row)
    xs = _at(points, np.linspace(low, high, 3))
    for node in row:
        box = page.boxes[node]
        if xs.max() > box.x - box.width / 2 - 3 and xs.min() < box.x + box.width / 2 + 3:
            return node, 1 if xs[1] >= box.x else -1
    return None


def _slopes(points: _Points) -> np.ndarray:
    """dx/dy at the points: vertical at both ends and at turns, else the harmonic mean, so nothing overshoots."""
    x, y = np.array(points).T
    secants = np.diff(x) / np.maximum(np.diff(y), 1e-9)
    before, after = secants[:-1], secants[1:]
    same = before * after > 0
    inner = np.where(same, 2 * before * after / np.where(same, before + after, 1.0), 0.0)
    return np.concatenate([[0.0], inner, [0.0]])


def _at(points: _Points, heights: np.ndarray) -> np.ndarray:
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


def _bezier(points: _Points) -> _Points:
    """The same curve as Graphviz wants it: 3 n + 1 control points of n cubics."""
    slopes = _slopes(points)
    result = [points[0]]
    for (x0, y0), (x1, y1), m0, m1 in zip(points, points[1:], slopes, slopes[1:], strict=False):
        third = (y1 - y0) / 3
        result += [(x0 + m0 * third, y0 + third), (x1 - m1 * third, y1 - third), (x1, y1)]
    return result


# --- what Graphviz is told -----------------------------------------------------------------


def _node_attributes(page: _Page, node: Node, edges: Sequence[Edge]) -> dict[str, str]:
    """Position, shape and colour of a node; heads are tables with a port each for q, k and v."""
    box = page.boxes[node]
    place = {"pos": f"{box.x:.2f},{box.y:.2f}", "width": f"{box.width / 72:.4f}", "height": f"{box.height / 72:.4f}"}
    if node.kind == "head":
        used = {edge.slot for edge in edges if edge.dst == node}
        look = {
            "shape": "box",
            "style": "filled",
            "fillcolor": HEAD_FILL,
            "color": HEAD_LINE,
            "label": _table(node, used),
        }
    elif node.kind == "mlp":
        look = {"shape": "octagon", "style": "filled", "fillcolor": MLP_FILL, "color": MLP_LINE, "fontcolor": INK}
    else:
        look = {"shape": "box", "style": "filled", "fillcolor": DARK, "color": DARK, "fontcolor": "white"}
    return place | look | {"kind": node.kind, "tooltip": str(node)}


def _table(node: Node, used: Iterable[str | None]) -> str:
    """The label of a head: its name above the ports q, k, v; ports that edges enter are filled."""
    width, height = HEAD
    cells = "".join(
        f'<td port="{slot}" width="{width / 3 - 1:.1f}" height="13"'
        + (f' bgcolor="{PORT_FILL}"' if slot in used else "")
        + f'><font point-size="8" color="{INK if slot in used else FAINT}">{slot}</font></td>'
        for slot in SLOTS
    )
    return (
        '<<table border="0" cellborder="0" cellspacing="0" cellpadding="0">'
        f'<tr><td colspan="3" height="{height - 16:.1f}"><font color="{INK}">{node}</font></td></tr>'
        f"<tr>{cells}</tr></table>>"
    )


def _edge_attributes(chosen: _Chosen, edge: Edge, curve: _Points) -> dict[str, str]:
    """Curve, width, colour and style of an edge; the arrow's tip is the curve's last point."""
    width = chosen.width(edge)
    (x, y), curve = curve[-1], [*curve[:-1], (curve[-1][0], curve[-1][1] - ARROW)]
    attributes = {
        "pos": f"e,{x:.2f},{y:.2f} " + " ".join(f"{a:.2f},{b:.2f}" for a, b in curve),
        "penwidth": f"{width:.3f}",
        "arrowsize": f"{0.3 + 0.05 * width:.3f}",
        "tooltip": str(edge),
    }
    if edge.slot:
        attributes |= {"slot": edge.slot, "headport": edge.slot}
    faint = chosen.is_fringe(edge)
    if faint:
        attributes |= {"part": "fringe"}
    if chosen.scores is None and chosen.groups is None:
        return attributes | {"color": GREY + FAINTNESS if faint else GREY}
    color, style = chosen.look(edge)
    if chosen.scores is None:
        return attributes | {"color": color + FAINTNESS if faint else color, "style": style}
    score = chosen.scores[edge]
    return attributes | {
        "color": color + (FAINTNESS if faint else "D0"),
        "style": style,
        "score": repr(score),
        "tooltip": f"{edge}  {score:+.4g}",
    }


def _look(score: float) -> tuple[str, str]:
    """Colour and style by sign."""
    if score == 0:
        return GREY, "solid"
    return (BLUE, "solid") if score < 0 else (VERMILLION, "dashed")


# --- title, bands and legend ---------------------------------------------------------------


def _background(page: _Page, chosen: _Chosen, title: str) -> dict[str, str]:
    """All that is no node and no edge, in Graphviz's xdot language; and the bounds of the whole picture."""
    left, middle, legend = page.left - LABELS, (page.left + page.right) / 2, page.right + 26
    top = page.top + 24
    drawn = [_text(left, top, 9.5, chosen.note, FAINT)]
    if title := shortened("".join(x if x.isprintable() else " " for x in title).replace("\\", "∖").strip(), LONGEST):
        top += 20
        drawn.append(_text(left, top, 15.0, title))
    if not chosen.edges:
        drawn.append(_text(middle, page.boxes[LOGITS].low - 20, 10.0, "no edges", INK, 0))
    right = MARGIN + max(legend + LEGEND, left + 0.62 * max(15 * len(title), 9.5 * len(chosen.note)))
    low, high = min(0.0, page.top - _legend_height(chosen)) - MARGIN, top + 15 + MARGIN
    paper = _rectangle(0.0, low, right, high, "#FFFFFF")
    return {
        "_background": " ".join([paper, *_bands(page), *drawn, *_legend(legend, page.top, chosen)]),
        "bb": f"0,{low:.2f},{right:.2f},{high:.2f}",
    }


def _bands(page: _Page) -> Iterator[str]:
    """A light band per layer with its label in the margin; runs of layers without nodes are outlined."""
    for band in page.bands:
        if band.empty:
            yield _rectangle(page.left, band.low, page.right, band.high, "#FFFFFF", "#D9DCE1")
            yield _text(page.left - 8, band.low + 3.5, 7.5, f"{band.label} empty", FAINT, 1)
        else:
            yield _rectangle(page.left, band.low, page.right, band.high, BAND)
            yield _text(page.left - 8, (band.low + band.high) / 2 - 3, 9.0, band.label, FAINT, 1)


def _legend(left: float, top: float, chosen: _Chosen) -> Iterator[str]:
    """Node kinds, ports, signs and the width scale, from the top down."""
    yield _text(left, top - 12, 11.0, "Legend")
    yield from _legend_nodes(left, top - 44)
    if chosen.fringe is not None:
        yield from _legend_fringe(left, top - _legend_height(chosen) + FRINGE_ROOM - 14, chosen)
    if chosen.groups is not None:
        yield from _legend_groups(left, top - 136, chosen)
        return
    if chosen.scores is None:
        yield _line(left, top - 133, 1.1, GREY, "solid")
        yield _text(left + 62, top - 136, 9.0, "kept edge (no scores given)")
        return
    yield _text(left, top - 136, 9.0, "score = m(edge corrupted) − m(clean)")
    yield from _legend_signs(left, top - 158)
    if chosen.largest:
        yield _text(left, top - 238, 9.0, f"width: {chosen.scale}")
        yield from _legend_widths(left, top - 258, chosen.largest)


def _legend_signs(left: float, y: float) -> Iterator[str]:
    for score, lines in _SIGNS:
        yield _line(left, y + 3, 2.4, *_look(score))
        for line in lines:
            yield _text(left + 62, y, 9.0, line)
            y -= 12
        y -= 8


def _legend_groups(left: float, y: float, chosen: _Chosen) -> Iterator[str]:
    """Every group with its number of edges in the whole circuit, and the width scale."""
    assert chosen.groups is not None
    for (name, part), look in zip(chosen.groups.items(), _GROUP_LOOKS, strict=False):
        yield _line(left, y + 3, 2.4, *look)
        yield _text(left + 62, y, 9.0, f"{name} ({len(part):,})")
        y -= 20
    if chosen.largest:
        yield _text(left, y - 6, 9.0, f"width: {chosen.scale}")
        yield from _legend_widths(left, y - 26, chosen.largest)


def _legend_fringe(left: float, y: float, chosen: _Chosen) -> Iterator[str]:
    """Core and fringe with their numbers of edges in the whole circuit."""
    assert chosen.fringe is not None
    n = len(chosen.fringe)
    for color, lines in (
        (INK, (f"core ({chosen.total - n:,}): in at least 90 %", "of the repeated searches")),
        (INK + FAINTNESS, (f"fringe ({n:,}): less often; faint,", "whatever its colour")),
    ):
        yield _line(left, y + 3, 2.4, color, "solid")
        for line in lines:
            yield _text(left + 62, y, 9.0, line)
            y -= 12
        y -= 8


def _legend_widths(left: float, y: float, largest: float) -> Iterator[str]:
    """The line widths of the largest |score|, of a quarter and of a sixteenth of it."""
    for place, part in enumerate((1.0, 0.25, 0.0625)):
        yield _line(left, y + 3 - 16 * place, _width(part * largest, largest), INK, "solid")
        yield _text(left + 62, y - 16 * place, 9.0, f"{part * largest:.3g}")


_SIGNS = (
    (-1.0, ("negative: carries the clean", "persona's answer (corrupting", "it lowers the metric)")),
    (1.0, ("positive: works against it", "(corrupting it raises the metric)")),
)


# By group: black, reddish purple (Okabe and Ito), and the two colours of the signs.
_GROUP_LOOKS = ((INK, "solid"), ("#CC79A7", "solid"), (BLUE, "solid"), (VERMILLION, "dashed"))


FRINGE_ROOM = 72.0  # height of what the legend says of core and fringe


def _legend_height(chosen: _Chosen) -> float:
    more = 0.0 if chosen.fringe is None else FRINGE_ROOM
    if chosen.groups is not None:
        return 150.0 + 20 * len(chosen.groups) + (70 if chosen.largest else 0) + more
    if chosen.scores is None:
        return 150.0 + more
    return (300.0 if chosen.largest else 240.0) + more


def _legend_nodes(left: float, y: float) -> Iterator[str]:
    """A head with its ports and an MLP, with what they are beside them."""
    width, height = HEAD
    low = y - height / 2
    yield _rectangle(left, low, left + width, low + height, HEAD_FILL, HEAD_LINE)
    yield _text(left + width / 2, low + 20, 10.0, "a3.h2", INK, 0)
    for place, slot in enumerate(SLOTS):
        x = left + width * (place + 0.5) / 3
        yield _text(x, low + 4.5, 8.0, slot, INK, 0)
    yield _text(left + 62, y + 8, 9.0, "attention head, layer 3, head 2;")
    yield _text(left + 62, y - 4, 9.0, "edges enter at its query (q),")
    yield _text(left + 62, y - 16, 9.0, "key (k) or value (v) input")
    width, height = MLP
    y -= 48
    corners = [(0, 0.3), (0.3, 0), (0.7, 0), (1, 0.3), (1, 0.7), (0.7, 1), (0.3, 1), (0, 0.7)]
    points = [(left + 3 + a * width, y - height / 2 + b * height) for a, b in corners]
    yield _polygon(points, MLP_FILL, MLP_LINE)
    yield _text(left + 3 + width / 2, y - 3.5, 10.0, "m3", INK, 0)
    yield _text(left + 62, y - 3.5, 9.0, "MLP of layer 3")


def _text(x: float, y: float, size: float, text: str, color: str = INK, align: int = -1) -> str:
    """xdot: text from (-1), around (0) or up to (1) a point on its base line."""
    wide = 0.6 * size * len(text)
    return f"F {size:g} {_counted(FONT)} c {_counted(color)} T {x:.2f} {y:.2f} {align} {wide:.1f} {_counted(text)}"


def _line(x: float, y: float, width: float, color: str, style: str) -> str:
    """xdot: a short level line."""
    pen = f"S {_counted(f'setlinewidth({width:.3f})')} S {_counted(style)} c {_counted(color)}"
    return f"{pen} L 2 {x:.2f} {y:.2f} {x + 54:.2f} {y:.2f}"


def _rectangle(left: float, low: float, right: float, high: float, fill: str, line: str = "") -> str:
    return _polygon([(left, low), (right, low), (right, high), (left, high)], fill, line)


def _polygon(points: Sequence[tuple[float, float]], fill: str, line: str = "") -> str:
    """xdot: a filled polygon."""
    corners = " ".join(f"{x:.2f} {y:.2f}" for x, y in points)
    pen = f"S {_counted('setlinewidth(1.000)')} S {_counted('solid')}"
    return f"{pen} c {_counted(line or fill)} C {_counted(fill)} P {len(points)} {corners}"


def _counted(text: str) -> str:
    """xdot's string: the number of bytes, and the bytes."""
    return f"{len(text.encode())} -{text}"


# --- the file ------------------------------------------------------------------------------


def check_picture(path: str | Path) -> None:
    """Make sure, before work, that a picture can be written there.

    Raises:
        OptionError: the ending is none of a picture's.
        WriteError: the file cannot be written.
    """
    _format_of(Path(path), None)
    check_output_file(path)


def _format_of(path: Path, fmt: str | None) -> str:
    found = (fmt or path.suffix.lstrip(".")).lower()
    if found not in FORMATS:
        got = f"{found!r}" if found else f"none, as {path.name!r} has no ending"
        raise OptionError(f"the picture's format is {got}; give a path that ends in .{', .'.join(FORMATS)}")
    return found


_RENDER = """
import sys, pygraphviz
graph = pygraphviz.AGraph(string=sys.stdin.buffer.read().decode("utf-8"), dpi=sys.argv[2])
sys.stdout.buffer.write(graph.draw(None, format=sys.argv[1], prog="nop2"))
"""


def _rendered(picture: pgv.AGraph, fmt: str) -> bytes:
    """The picture's bytes.

    Graphviz runs in a process of its own, as fontconfig reads its settings once per
    process: there our font is the only one, so labels neither vanish on a machine
    without fonts nor look different on another.
    """
    if fmt == "dot":
        return picture.to_string().encode()
    dpi = _dpi(picture.graph_attr["bb"]) if fmt == "png" else 72.0
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            [sys.executable, "-c", _RENDER, fmt, f"{dpi:.2f}"],
            input=picture.to_string().encode(),
            capture_output=True,
            env=_font_environment(Path(folder)),
        )
    if done.returncode or not done.stdout:
        raise FileError(
            f"Graphviz drew no {fmt}: {done.stderr.decode(errors='replace').strip()[-300:]}; "
            "install pygraphviz again, or write a .dot file and draw it with your own Graphviz"
        )
    return done.stdout


def _dpi(bounds: str) -> float:
    """Dots per inch, less where the picture would have too many of them."""
    left, low, right, high = map(float, bounds.split(","))
    wide, tall = (right - left) / 72, (high - low) / 72
    return min(PNG_DPI, (PNG_PIXELS / (wide * tall)) ** 0.5, PNG_SIDE / max(wide, tall))


def _font_environment(folder: Path) -> dict[str, str]:
    """The environment in which fontconfig finds the shipped font alone.

    It reads a copy in ``folder``, as it writes into the folders that it reads.
    """
    for font in (Path(__file__).parent / "fonts").glob("*.ttf"):
        shutil.copyfile(font, folder / font.name)
    settings = folder / "fonts.conf"
    place = escape(str(folder))
    settings.write_text(
        '<?xml version="1.0"?>\n<!DOCTYPE fontconfig SYSTEM "fonts.dtd">\n'
        f"<fontconfig><dir>{place}</dir><cachedir>{place}</cachedir>"
        '<match target="font"><edit name="hinting" mode="assign"><bool>false</bool></edit>'
        '<edit name="hintstyle" mode="assign"><const>hintnone</const></edit></match>'
        "</fontconfig>\n",
        encoding="utf-8",
    )
    return {**os.environ, "FONTCONFIG_FILE": str(settings)}
