"""The picture of a circuit: layers from ``input`` at the bottom to ``logits`` at the top.

Positions are known, so they are computed here and Graphviz only draws:

1. choose the edges (those of the strongest paths) and the nodes at their ends;
2. stack the rows: per layer its heads, above them its MLP in a column of its own;
3. give every edge its place at a port, bundle those that go the same way, lead them around the nodes in between;
4. write all of it into one Graphviz graph, legend and layer bands as its background;
5. render that in a process of its own, where the shipped font is the only font.

Lengths are points (1/72 inch), ``y`` points up. Graphviz reads ``pos`` in points
(engine ``nop2``) but ``width`` and ``height`` in inches.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from persona_circuits.circuit.drawing.font import font_environment, with_font
from persona_circuits.circuit.drawing.legible import SIZES, Layout
from persona_circuits.circuit.drawing.page import Page
from persona_circuits.circuit.drawing.roles import ROLES
from persona_circuits.circuit.drawing.routing import Points
from persona_circuits.circuit.drawing.style import (
    ARROW,
    DARK,
    FAINT,
    FAINTNESS,
    FONT,
    FORMATS,
    GREY,
    GROUP_LOOKS,
    HEAD,
    HEAD_LINE,
    INK,
    MLP_FILL,
    MLP_LINE,
    PORT_FILL,
    Chosen,
    chosen_by_size,
)
from persona_circuits.circuit.errors import FileError, OptionError
from persona_circuits.circuit.figures.paper import TALLEST, WIDTHS
from persona_circuits.circuit.graph import SLOTS, Edge, Node
from persona_circuits.circuit.scores import Scores
from persona_circuits.circuit.storage import check_output_file, write_bytes
from persona_circuits.circuit.subgraph import Circuit

if TYPE_CHECKING:
    import pygraphviz as pgv

__all__ = ["DrawReport", "Marks", "check_picture", "draw", "to_agraph"]

PAPER_DPI = 600.0  # of a picture that is scaled to a paper's columns
PNG_DPI, PNG_PIXELS, PNG_SIDE = 130.0, 24e6, 16000  # resolution, and what it gives way to


@dataclass(frozen=True)
class DrawReport:
    """What was drawn: ``shown`` of the circuit's ``total`` edges, in the file ``path``, or as the text ``svg``.

    A notebook shows the picture where there is no file.
    """

    shown: int
    total: int
    path: Path | None
    svg: str | None = field(default=None, repr=False)

    def _repr_svg_(self) -> str | None:
        return self.svg


@dataclass(frozen=True)
class Marks:
    """How edges are distinguished.

    ``groups`` are at most four parts of the circuit by name, each edge in exactly one; edges are then coloured by their
    part rather than by the sign of their score. ``fringe`` are the edges that other pairs might not have given
    (``circuit.evaluation.stability.report``): they are drawn faint, and the legend counts them and the core's.
    ``scale`` is what the legend says that the width is.
    """

    groups: Mapping[str, Circuit] | None = None
    fringe: Circuit | None = None
    scale: str = "|score|, in metric units"


def draw(
    circuit: Circuit,
    path: str | Path | None = None,
    *,
    scores: Scores | None = None,
    strongest: int | None = None,
    title: str = "",
    fmt: str | None = None,
    marks: Marks | None = None,
    width: str = "",
) -> DrawReport:
    """Draw a circuit into a file, or for a notebook; an existing file is replaced, in one step.

    Parameters
    ----------
    circuit
        What to draw; nodes on no path from ``input`` to ``logits`` are left out.
    path
        The file. Its ending says the format, unless ``fmt`` does. Without a file the picture is SVG text.
    scores
        Width and style of the edges, in metric units. Without them all edges look the same, and the first paths are
        drawn.
    strongest
        At most so many edges are drawn, those of the paths from ``input`` to ``logits`` whose weakest edge is
        strongest; one whole path at least. Without it as many, of 150 at most, as can be followed: lines cross at
        most twice per edge, and on a paper's page, or its ``width``, names have 5 points or more.
    title
        A line above the picture; letters other than Latin, Greek and Cyrillic show in SVG only.
    fmt
        One of ``FORMATS``.
    marks
        Edges in the colours of groups, or faint.
    width
        ``single`` or ``double``: no wider than so many columns of a paper, and no taller than its page.

    Returns
    -------
    How many edges are shown, of how many, and where; a notebook shows the picture where there is no file.

    Raises
    ------
    OptionError
        The format or the width is unknown, ``strongest`` is below 1, the scores are of another graph, or the groups
        do not part the circuit's edges.
    FileError
        The file cannot be written, or Graphviz does not draw.

    Examples
    --------
    >>> draw(Circuit.of(Graph(2, 2), ["input->m0", "m0->logits"]))
    DrawReport(shown=2, total=2, path=None)
    """
    if path is None and fmt not in (None, "svg"):
        raise OptionError(f"without a file the picture is SVG text, so {fmt!r} has no effect; give a path")
    path = None if path is None else Path(path)
    fmt = "svg" if path is None else _format_of(path, fmt)
    picture = to_agraph(circuit, scores=scores, strongest=strongest, title=title, marks=marks, width=width)
    if width:
        picture.graph_attr["size"] = f"{WIDTHS[width]},{TALLEST}"
    drawn = _rendered(picture, fmt)
    if path is None:
        return DrawReport(picture.number_of_edges(), len(circuit), None, drawn.decode("utf-8"))
    write_bytes(drawn, path)
    return DrawReport(picture.number_of_edges(), len(circuit), path)


def to_agraph(
    circuit: Circuit,
    *,
    scores: Scores | None = None,
    strongest: int | None = None,
    title: str = "",
    marks: Marks | None = None,
    width: str = "",
) -> pgv.AGraph:
    """The picture as a Graphviz graph with every position set; the parameters are those of ``draw``.

    Nodes and edges are the circuit's own, keyed by their names; edges carry ``slot``
    and ``score``. Title, layer bands and legend are the graph's ``background``.

    Raises:
        OptionError: ``strongest`` is below 1, the scores are of another graph, or the
            groups do not part the circuit's edges.
    """
    marks = marks or Marks()
    groups, fringe = marks.groups, marks.fringe
    _check_groups(circuit, groups)
    if fringe is not None and (fringe.graph != circuit.graph or (fringe.mask & ~circuit.mask).any()):
        raise OptionError("the fringe holds edges that are not the circuit's; give a part of it")
    if width not in ("", *WIDTHS):
        raise OptionError(f"{width!r} is no width of a paper's column; give {' or '.join(WIDTHS)}")
    how: dict[str, Any] = {"groups": groups, "scale": marks.scale, "fringe": fringe, "total": len(circuit)}
    tried = (
        Layout.of(circuit.graph, replace(chosen, **how), title, width)
        for chosen in chosen_by_size(circuit, scores, SIZES if strongest is None else [strongest])
    )
    layout = next(tried)
    for smaller in tried:
        if layout.legible:
            break
        layout = smaller
    return _graph_of(layout)


def _graph_of(layout: Layout) -> pgv.AGraph:
    import pygraphviz as pgv

    chosen, page = layout.chosen, layout.page
    result = pgv.AGraph(strict=False, directed=True, name="circuit")
    result.graph_attr.update(outputorder="edgesfirst", margin="0", pad="0", bgcolor="white")
    result.graph_attr.update(layout.behind)
    result.node_attr.update(fontname=FONT, fontsize="10", fixedsize="true", margin="0")
    for node in page.boxes:
        result.add_node(str(node), **_node_attributes(page, node, chosen))
    for edge, curve in zip(chosen.edges, layout.curves, strict=True):
        result.add_edge(str(edge.src), str(edge.dst), key=str(edge), **_edge_attributes(chosen, edge, curve))
    return result


def _check_groups(circuit: Circuit, groups: Mapping[str, Circuit] | None) -> None:
    """Every edge of the circuit must be in one group, and no other edge in any."""
    if groups is None:
        return
    if len(groups) > len(GROUP_LOOKS):
        raise OptionError(f"{len(groups)} groups of edges; there are colours for {len(GROUP_LOOKS)}, so give fewer")
    if any(part.graph != circuit.graph for part in groups.values()):
        raise OptionError(f"a group is of another graph than the circuit, which is of {circuit.graph}")
    times = sum((part.mask.astype(int) for part in groups.values()), np.zeros(circuit.mask.shape, dtype=int))
    if (times != circuit.mask).any():
        raise OptionError("the groups do not part the circuit: each of its edges must be in exactly one of them")


# --- Graphviz attributes -------------------------------------------------------------------


def _node_attributes(page: Page, node: Node, chosen: Chosen) -> dict[str, str]:
    """Position, shape and colour of a node; heads are tables with a port each for q, k and v."""
    box = page.boxes[node]
    place = {"pos": f"{box.x:.2f},{box.y:.2f}", "width": f"{box.width / 72:.4f}", "height": f"{box.height / 72:.4f}"}
    if node.kind == "head":
        used = {edge.slot for edge in chosen.edges if edge.dst == node}
        role = ROLES[chosen.roles.get(node, "")]
        look = {
            "shape": "box",
            "style": role.style,
            "fillcolor": role.fill,
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


def _edge_attributes(chosen: Chosen, edge: Edge, curve: Points) -> dict[str, str]:
    """Curve, width, colour and style of an edge; the arrow's tip is the curve's last point."""
    width = chosen.width(edge)
    (x, y), foot = curve[-1], curve[-1][1] - ARROW
    curve = [*curve[:-2], (curve[-2][0], min(curve[-2][1], foot)), (x, foot)]
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
    form = (fmt or path.suffix.lstrip(".")).lower()
    if form not in FORMATS:
        given = f"{form!r}" if form else f"none, as {path.name!r} has no ending"
        raise OptionError(f"the picture's format is {given}; give a path that ends in .{', .'.join(FORMATS)}")
    return form


_RENDER = """
import sys, pygraphviz
graph = pygraphviz.AGraph(string=sys.stdin.buffer.read().decode("utf-8"), dpi=sys.argv[2])
sys.stdout.buffer.write(graph.draw(None, format=sys.argv[1], prog="nop2"))
"""


def _rendered(picture: pgv.AGraph, fmt: str) -> bytes:
    """The picture's bytes.

    Graphviz runs in a process of its own, as fontconfig reads its settings once per process: there our font is the only
    one, so labels neither vanish on a machine without fonts nor look different on another.
    """
    if fmt == "dot":
        return picture.to_string().encode()
    dpi = 72.0
    if fmt == "png":
        dpi = PAPER_DPI if picture.graph_attr.get("size") else _dpi(picture.graph_attr["bb"])
    with tempfile.TemporaryDirectory() as folder:
        process = subprocess.run(
            [sys.executable, "-c", _RENDER, fmt, f"{dpi:.2f}"],
            input=picture.to_string().encode(),
            capture_output=True,
            env=font_environment(Path(folder)),
        )
    if process.returncode or not process.stdout:
        raise FileError(
            f"Graphviz drew no {fmt}: {process.stderr.decode(errors='replace').strip()[-300:]}; "
            "install pygraphviz again, or write a .dot file and draw it with your own Graphviz"
        )
    if fmt == "svg":
        return with_font(process.stdout.decode("utf-8")).encode()
    if fmt == "pdf":  # which holds the time
        return re.sub(rb"\(D:\d{14}", b"(D:19700101000000", process.stdout)
    return process.stdout


def _dpi(bounds: str) -> float:
    """Dots per inch, reduced where the picture would have too many pixels."""
    left, low, right, high = map(float, bounds.split(","))
    wide, tall = (right - left) / 72, (high - low) / 72
    return min(PNG_DPI, (PNG_PIXELS / (wide * tall)) ** 0.5, PNG_SIDE / max(wide, tall))
