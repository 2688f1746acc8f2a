"""The background of the graph and what is below it: bands and legend."""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import NamedTuple

from persona_circuits.circuit.drawing.page import Page
from persona_circuits.circuit.drawing.roles import ROLES
from persona_circuits.circuit.drawing.style import (
    BAND,
    FAINT,
    FAINTNESS,
    FONT,
    GREY,
    GROUP_LOOKS,
    HEAD,
    HEAD_FILL,
    HEAD_LINE,
    INK,
    LABELS,
    LEGEND,
    MARGIN,
    MLP,
    MLP_FILL,
    MLP_LINE,
    Chosen,
    edge_look,
    line_width,
)
from persona_circuits.circuit.graph import LOGITS, SLOTS
from persona_circuits.circuit.printable import shortened

__all__ = ["background"]

LONGEST = 200  # characters of a title
LETTER = 0.57  # width of a letter in its size, on average


# --- title, bands and legend ---------------------------------------------------------------


def background(page: Page, chosen: Chosen, title: str, *, below: bool = False) -> dict[str, str]:
    """Everything but nodes and edges, in Graphviz's xdot language; and the bounds of the whole picture.

    The legend is beside the graph, or ``below`` it.
    """
    left, middle, right_of_page = page.left - LABELS, (page.left + page.right) / 2, page.right + 26
    right = (page.right if below else right_of_page + LEGEND) + MARGIN
    top, drawn = page.top + 24, []
    title = shortened("".join(x if x.isprintable() else " " for x in title).replace("\\", "∖").strip(), LONGEST)
    for text, size, color, room in ((chosen.note, 9.5, FAINT, 7.0), (title, 15.0, INK, 3.0)):
        for line in reversed(textwrap.wrap(text, max(20, int((right - left - MARGIN) / (LETTER * size))))):
            drawn.append(_text(left, top, size, line, color))
            top += 1.2 * size
        top += room
    if not chosen.edges:
        drawn.append(_text(middle, page.boxes[LOGITS].low - 20, 10.0, "no edges", INK, 0))
    if below:
        legend, low = _legend_below(left, page.right, chosen)
    else:
        legend, low = _legend_beside(right_of_page, page.top, chosen)
    low, high = min(0.0, low) - MARGIN, top - 8 + MARGIN
    paper = _rectangle(0.0, low, right, high, "#FFFFFF")
    return {
        "_background": " ".join([paper, *_bands(page), *drawn, *legend]),
        "bb": f"0,{low:.2f},{right:.2f},{high:.2f}",
    }


def _bands(page: Page) -> Iterator[str]:
    """A light band per layer with its label in the margin; runs of layers without nodes are outlined and say so."""
    for band in page.bands:
        if band.empty:
            yield _rectangle(page.left, band.low, page.right, band.high, "#FFFFFF", "#D9DCE1")
            yield _text(page.left - 8, band.low + 3.5, 7.5, f"{band.label} empty", FAINT, 1)
        else:
            yield _rectangle(page.left, band.low, page.right, band.high, BAND)
            yield _text(page.left - 8, (band.low + band.high) / 2 - 3, 9.0, band.label, FAINT, 1)


# --- legend --------------------------------------------------------------------------------


class _Block(NamedTuple):
    """A part of the legend: its height, and what draws it from its left upper corner on."""

    height: float
    drawn: Callable[[float, float], Iterator[str]]


def _legend_beside(left: float, top: float, chosen: Chosen) -> tuple[list[str], float]:
    """The parts below one another, and how low they reach."""
    drawn, y = [_text(left, top - 12, 11.0, "Legend")], top - 27
    for block in _blocks(chosen):
        drawn += block.drawn(left, y)
        y -= block.height + 12
    return drawn, y + 12


def _legend_below(left: float, right: float, chosen: Chosen) -> tuple[list[str], float]:
    """The parts beside one another, in rows, and how low they reach."""
    drawn: list[str] = []
    top, low, x = -20.0, -20.0, left
    for block in _blocks(chosen):
        if x > left and x + LEGEND > right + MARGIN / 2:
            x, top = left, low - 14
        drawn += block.drawn(x, top)
        low, x = min(low, top - block.height), x + LEGEND + 12
    return drawn, low


def _blocks(chosen: Chosen) -> Iterator[_Block]:
    """Node kinds and ports; what colours mean; widths; core and fringe."""
    yield _Block(92.0, _nodes)
    if chosen.roles:
        yield _Block(16.0 + 26.0 * len(set(chosen.roles.values())), partial(_roles, chosen))
    if chosen.groups is not None:
        yield _Block(20.0 * len(chosen.groups), partial(_groups, chosen))
    elif chosen.scores is None:
        yield _Block(12.0, _unscored)
    else:
        yield _Block(88.0, _signs)
    if chosen.largest:
        yield _Block(64.0, partial(_widths, chosen))
    if chosen.fringe is not None:
        yield _Block(58.0, partial(_fringe, chosen))


def _roles(chosen: Chosen, left: float, top: float) -> Iterator[str]:
    """Every role with its number of heads in the whole circuit; heads of none look as above."""
    yield _text(left, top - 9, 9.0, "heads by role, of the |score| at them")
    counts, y = Counter(chosen.roles.values()), top - 29
    for name, role in ROLES.items():
        if counts[name]:
            style = "dashed" if "dashed" in role.style else "solid"
            width = 2.0 if "bold" in role.style else 1.0
            yield _rectangle(left, y - 5, left + 54, y + 11, role.fill, HEAD_LINE, style, width)
            yield _text(left + 27, y, 9.0, str(counts[name]), INK, 0)
            for i, line in enumerate(role.says):
                yield _text(left + 62, y + 5.5 * (len(role.says) - 1) - 11 * i, 9.0, line)
            y -= 26


def _unscored(left: float, top: float) -> Iterator[str]:
    yield _line(left, top - 6, 1.1, GREY, "solid")
    yield _text(left + 62, top - 9, 9.0, "kept edge (no scores given)")


def _signs(left: float, top: float) -> Iterator[str]:
    yield _text(left, top - 9, 9.0, "score = m(edge corrupted) − m(clean)")
    yield from _explained(left, top - 28, [(*edge_look(score), lines) for score, lines in _SIGNS])


def _groups(chosen: Chosen, left: float, top: float) -> Iterator[str]:
    """Every group with its number of edges in the whole circuit."""
    assert chosen.groups is not None
    looks = zip(chosen.groups.items(), GROUP_LOOKS, strict=False)
    return _explained(left, top - 9, [(*look, (f"{name} ({len(part):,})",)) for (name, part), look in looks])


def _fringe(chosen: Chosen, left: float, top: float) -> Iterator[str]:
    """Core and fringe with their numbers of edges in the whole circuit."""
    assert chosen.fringe is not None
    n = len(chosen.fringe)
    core = (f"core ({chosen.total - n:,}): in at least 90 %", "of the repeated searches, or certified")
    fringe = (f"fringe ({n:,}): less often, or abstains;", "faint, whatever its colour")
    return _explained(left, top - 9, [(INK, "solid", core), (INK + FAINTNESS, "solid", fringe)])


def _explained(left: float, y: float, looks: Sequence[tuple[str, str, Sequence[str]]]) -> Iterator[str]:
    """Lines of edges with what they mean beside them."""
    for color, style, lines in looks:
        yield _line(left, y + 3, 2.4, color, style)
        for line in lines:
            yield _text(left + 62, y, 9.0, line)
            y -= 12
        y -= 8


def _widths(chosen: Chosen, left: float, top: float) -> Iterator[str]:
    """The line widths of the largest |score|, of a quarter and of a sixteenth of it."""
    yield _text(left, top - 9, 9.0, f"width: {chosen.scale}")
    for place, part in enumerate((1.0, 0.25, 0.0625)):
        y, size = top - 28 - 16 * place, part * chosen.largest
        yield _line(left, y + 3, line_width(size, chosen.largest), INK, "solid")
        yield _text(left + 62, y, 9.0, f"{size:.3g}")


_SIGNS = (
    (-1.0, ("negative: carries the clean", "persona's answer (corrupting", "it lowers the metric)")),
    (1.0, ("positive: works against it", "(corrupting it raises the metric)")),
)


def _nodes(left: float, top: float) -> Iterator[str]:
    """A head with its ports and an MLP, with what they are beside them."""
    width, height = HEAD
    y = top - height / 2
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


def _rectangle(
    left: float,
    low: float,
    right: float,
    high: float,
    fill: str,
    line: str = "",
    style: str = "solid",
    pen: float = 1.0,
) -> str:
    return _polygon([(left, low), (right, low), (right, high), (left, high)], fill, line, style, pen)


def _polygon(
    points: Sequence[tuple[float, float]], fill: str, line: str = "", style: str = "solid", pen: float = 1.0
) -> str:
    """xdot: a filled polygon."""
    corners = " ".join(f"{x:.2f} {y:.2f}" for x, y in points)
    looks = f"S {_counted(f'setlinewidth({pen:.3f})')} S {_counted(style)}"
    return f"{looks} c {_counted(line or fill)} C {_counted(fill)} P {len(points)} {corners}"


def _counted(text: str) -> str:
    """xdot's string: the number of bytes, and the bytes."""
    return f"{len(text.encode())} -{text}"
