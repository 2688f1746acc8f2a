"""What stands behind and below the graph: bands and legend."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from persona_circuits.circuit.drawing.page import Page
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

__all__ = [
    "background",
]

LONGEST = 200  # characters of a title


# --- title, bands and legend ---------------------------------------------------------------


def background(page: Page, chosen: Chosen, title: str) -> dict[str, str]:
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


def _bands(page: Page) -> Iterator[str]:
    """A light band per layer with its label in the margin; runs of layers without nodes are outlined."""
    for band in page.bands:
        if band.empty:
            yield _rectangle(page.left, band.low, page.right, band.high, "#FFFFFF", "#D9DCE1")
            yield _text(page.left - 8, band.low + 3.5, 7.5, f"{band.label} empty", FAINT, 1)
        else:
            yield _rectangle(page.left, band.low, page.right, band.high, BAND)
            yield _text(page.left - 8, (band.low + band.high) / 2 - 3, 9.0, band.label, FAINT, 1)


def _legend(left: float, top: float, chosen: Chosen) -> Iterator[str]:
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
        yield _line(left, y + 3, 2.4, *edge_look(score))
        for line in lines:
            yield _text(left + 62, y, 9.0, line)
            y -= 12
        y -= 8


def _legend_groups(left: float, y: float, chosen: Chosen) -> Iterator[str]:
    """Every group with its number of edges in the whole circuit, and the width scale."""
    assert chosen.groups is not None
    for (name, part), look in zip(chosen.groups.items(), GROUP_LOOKS, strict=False):
        yield _line(left, y + 3, 2.4, *look)
        yield _text(left + 62, y, 9.0, f"{name} ({len(part):,})")
        y -= 20
    if chosen.largest:
        yield _text(left, y - 6, 9.0, f"width: {chosen.scale}")
        yield from _legend_widths(left, y - 26, chosen.largest)


def _legend_fringe(left: float, y: float, chosen: Chosen) -> Iterator[str]:
    """Core and fringe with their numbers of edges in the whole circuit."""
    assert chosen.fringe is not None
    n = len(chosen.fringe)
    for color, lines in (
        (INK, (f"core ({chosen.total - n:,}): in at least 90 % of", "the repeated searches, or certified")),
        (INK + FAINTNESS, (f"fringe ({n:,}): less often, or abstains;", "faint, whatever its colour")),
    ):
        yield _line(left, y + 3, 2.4, color, "solid")
        for line in lines:
            yield _text(left + 62, y, 9.0, line)
            y -= 12
        y -= 8


def _legend_widths(left: float, y: float, largest: float) -> Iterator[str]:
    """The line widths of the largest |score|, of a quarter and of a sixteenth of it."""
    for place, part in enumerate((1.0, 0.25, 0.0625)):
        yield _line(left, y + 3 - 16 * place, line_width(part * largest, largest), INK, "solid")
        yield _text(left + 62, y - 16 * place, 9.0, f"{part * largest:.3g}")


_SIGNS = (
    (-1.0, ("negative: carries the clean", "persona's answer (corrupting", "it lowers the metric)")),
    (1.0, ("positive: works against it", "(corrupting it raises the metric)")),
)
FRINGE_ROOM = 72.0  # height of what the legend says of core and fringe


def _legend_height(chosen: Chosen) -> float:
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
