"""Colours, sizes and line widths of the picture, and the edges that are drawn."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from persona_circuits.circuit.drawing.roles import roles_of
from persona_circuits.circuit.errors import OptionError
from persona_circuits.circuit.graph import Edge, Node
from persona_circuits.circuit.paths import strongest_paths
from persona_circuits.circuit.scores import Scores
from persona_circuits.circuit.subgraph import Circuit

__all__ = [
    "ARROW",
    "BAND",
    "BAR",
    "DARK",
    "FAINT",
    "FAINTNESS",
    "FONT",
    "FORMATS",
    "GREY",
    "GROUP_LOOKS",
    "HEAD",
    "HEAD_FILL",
    "HEAD_LINE",
    "INK",
    "LABELS",
    "LEGEND",
    "MARGIN",
    "MLP",
    "MLP_FILL",
    "MLP_LINE",
    "PITCH",
    "PORT_FILL",
    "Chosen",
    "Widths",
    "chosen_by_size",
    "edge_look",
    "line_width",
]

FORMATS = ("svg", "png", "pdf", "dot")
# Colours that colour-blind readers can distinguish too (Okabe and Ito).
BLUE, VERMILLION, GREY = "#0072B2", "#D55E00", "#8A8A8A"
INK, FAINT, BAND, DARK = "#222222", "#767676", "#F4F5F7", "#4A4F57"
HEAD_FILL, HEAD_LINE, PORT_FILL = "#FFF6DC", "#A8791A", "#F3D58B"
MLP_FILL, MLP_LINE = "#DDF1E9", "#00795A"
FONT = "Persona Circuits Sans,DejaVu Sans,Verdana,sans-serif"
HEAD = (54.0, 34.0)  # width and height of a head's box
MLP = (48.0, 30.0)
BAR = 22.0  # height of input and logits
ARROW = 4.0  # length of an arrow's head
PITCH = 72.0  # from a head to the next one in its row
LOW = 13.0  # the least room below a row
MARGIN, LABELS, LEGEND = 18.0, 54.0, 214.0  # page margin; width of the layer labels and of the legend
FAINTNESS = "58"  # opacity of a fringe edge, in hexadecimal
THIN, THICK = 0.6, 5.0  # line widths of the score 0 and of the largest |score|


# --- which edges ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Chosen:
    """The edges to draw, topological; their scores, if any; and the line that says what is missing.

    With ``groups``, colour and style say which part an edge is in; ``scale`` is what the width means. Edges of
    ``fringe`` are faint; ``total`` is the number of the circuit's edges. Heads of one of the ``roles`` stand together.
    """

    edges: tuple[Edge, ...]
    scores: Mapping[Edge, float] | None
    note: str
    groups: Mapping[str, Circuit] | None = None
    scale: str = ""
    fringe: Circuit | None = None
    total: int = 0
    roles: Mapping[Node, str] = field(default_factory=dict)

    @cached_property
    def largest(self) -> float:
        """The largest ``|score|`` drawn; 0 without scores."""
        return max(map(abs, self.scores.values()), default=0.0) if self.scores else 0.0

    def width(self, edge: Edge) -> float:
        """Line width of an edge: the root of ``|score|``, so that weak edges stay visible."""
        if self.scores is None:
            return 1.1
        return line_width(abs(self.scores[edge]), self.largest)

    def is_fringe(self, edge: Edge) -> bool:
        """Whether the edge is to be drawn faint."""
        return self.fringe is not None and bool(self.fringe.mask[self.fringe.graph.index(edge)])

    def look(self, edge: Edge) -> tuple[str, str]:
        """Colour and style: by group, else by sign."""
        if self.groups is not None:
            place = next(i for i, part in enumerate(self.groups.values()) if part.mask[part.graph.index(edge)])
            return GROUP_LOOKS[place]
        assert self.scores is not None
        return edge_look(self.scores[edge])


def chosen_by_size(circuit: Circuit, scores: Scores | None, sizes: Sequence[int]) -> Iterator[Chosen]:
    """For each of the sizes all edges on a path, or of more those of the strongest paths, so that nothing dangles."""
    if any(size < 1 for size in sizes):
        raise OptionError(f"strongest is {min(sizes)}; it is how many edges to draw, so give 1 or more")
    if scores is not None and scores.graph != circuit.graph:
        raise OptionError(
            f"the scores are of {scores.graph} but the circuit is of {circuit.graph}; "
            "pass the scores that the circuit was found with"
        )
    alive = circuit.without_dead_ends().mask
    places = np.argwhere(alive.T)  # destination and source of each edge, in topological order
    edges = tuple(circuit.graph.edge(int(src), int(dst)) for dst, src in places)
    paths: list[set[int]] | None = None
    roles = roles_of(circuit, scores)
    for size in sizes:
        kept = edges
        if len(edges) > size:
            values = np.ones(len(edges)) if scores is None else np.abs(scores.values.T[alive.T])
            paths = paths or list(strongest_paths(edges, values))
            kept = _of_paths(edges, paths, size)
        note = _note(len(circuit), len(edges), len(kept), ranked=scores is not None)
        yield Chosen(kept, None if scores is None else {edge: scores[edge] for edge in kept}, note, roles=roles)


def _of_paths(edges: Sequence[Edge], paths: Iterable[set[int]], most: int) -> tuple[Edge, ...]:
    """The edges of the first paths and of all others that there is room for; at most so many, but one whole path."""
    kept: set[int] = set()
    for path in paths:
        if not kept or len(kept | path) <= most:
            kept |= path
        if len(kept) >= most:
            break
    return tuple(edges[i] for i in sorted(kept))


def _note(total: int, alive: int, shown: int, *, ranked: bool) -> str:
    """The line that says how many of the circuit's edges are shown, which, and why others are not."""
    if total == 0:
        return "an empty circuit: no edges"
    if shown == total:
        return "its only edge" if total == 1 else f"all {total:,} edges"
    if shown == alive:
        return f"{shown:,} of {total:,} edges; {total - shown:,} left out, on no path from input to logits"
    which = "on the strongest paths" if ranked else "on the first paths"
    dead = f" ({total - alive:,} of them on no path from input to logits)" if alive < total else ""
    return f"{shown:,} of {total:,} edges, {which} from input to logits; {total - shown:,} left out{dead}"


def line_width(score: float, largest: float) -> float:
    return THIN + (THICK - THIN) * (score / largest) ** 0.5 if largest else THIN


@dataclass(frozen=True)
class Widths:
    """What lies beside what, from the bars' ``left`` end on: the heads, centred, then the MLP column.

    ``room`` is the height left free below a row, where edges turn: more in a wider picture.
    """

    heads: float
    bar: float
    left: float
    room: float

    @classmethod
    def of(cls, rows: Sequence[Sequence[Node]]) -> Widths:
        most = max((sum(node.kind == "head" for node in row) for row in rows), default=0)
        mlps = any(node.kind == "mlp" for row in rows for node in row)
        heads = HEAD[0] + PITCH * (most - 1) if most else 0.0
        bar = max(200.0, heads + 56 + (MLP[0] + 40 if mlps else 0))
        return cls(heads, bar, MARGIN + LABELS, min(60.0, LOW + 0.03 * bar))

    @property
    def middle(self) -> float:
        return self.left + self.bar / 2

    def x(self, row: Sequence[Node], node: Node) -> float:
        """Centre of a node of a row."""
        if node.kind == "mlp":
            return self.left + self.bar - 28 - MLP[0] / 2
        heads = sum(other.kind == "head" for other in row)
        return self.left + 28 + self.heads / 2 + PITCH * (row.index(node) - (heads - 1) / 2)


def edge_look(score: float) -> tuple[str, str]:
    """Colour and style by sign."""
    if score == 0:
        return GREY, "solid"
    return (BLUE, "solid") if score < 0 else (VERMILLION, "dashed")


# By group: black, reddish purple (Okabe and Ito), and the two colours of the signs.
GROUP_LOOKS = ((INK, "solid"), ("#CC79A7", "solid"), (BLUE, "solid"), (VERMILLION, "dashed"))
