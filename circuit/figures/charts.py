"""Figures as plain data: five kinds of marks in panels, described once and drawn for pages and for paper.

    Curve     a line with a band            Points    dots with whiskers, or a scatter
    Bars      bars, side by side or stacked  Spread    single values beside their quartiles
    Cells     a heat map

A report makes a ``Chart`` only: ``circuit.figures.page`` draws it with plotly, ``circuit.figures.paper`` with
matplotlib, and both take colours, symbols, dashes and names of places from here. Colour-blind readers can distinguish
the colours too (Okabe and Ito; the two-sided scale is ColorBrewer's RdBu), and no series is identified by its colour
alone. Texts are plain, whatever is in them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from math import isfinite
from typing import Any, NamedTuple

__all__ = [
    "DIVERGING",
    "GREY",
    "MISSING",
    "PALETTE",
    "SEQUENTIAL",
    "Axis",
    "Bars",
    "Cells",
    "Chart",
    "Curve",
    "Look",
    "Panel",
    "Points",
    "Spread",
    "bar_chart",
    "chart",
    "charts_from",
    "charts_record",
    "heat_map",
    "line_chart",
    "line_panels",
]

PALETTE = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#000000", "#8a8a8a")
GREY, MISSING = "#bbbbbb", "#e4e4e4"
DIVERGING = ((0.0, "#b2182b"), (0.25, "#ef8a62"), (0.5, "#f7f7f7"), (0.75, "#67a9cf"), (1.0, "#2166ac"))
SEQUENTIAL = ((0.0, "#fff7ec"), (0.25, "#fdd49e"), (0.5, "#fc8d59"), (0.75, "#d7301f"), (1.0, "#7f0000"))
SYMBOLS = ("circle", "square", "triangle-up", "diamond", "triangle-down", "cross", "star")
MOST_SERIES = 10  # series that a reader can tell apart; the others are grey
MOST_CELLS = 100  # more cells than these do not say what is next to nothing

Place = int | float | str
Real = int | float
Number = Real | None


@dataclass(frozen=True)
class Curve:
    """One line of a chart; ``low`` and ``high`` are its interval, None where a point has none."""

    name: str
    x: Sequence[Place]
    y: Sequence[Number]
    low: Sequence[Number] = ()
    high: Sequence[Number] = ()
    dash: str = "solid"
    colour: str = ""
    markers: bool = True


@dataclass(frozen=True)
class Points:
    """Dots; ``low`` and ``high`` are whiskers, ``labels`` stand beside the dots, ``hover`` is shown on pages alone.

    ``values`` colour the dots by a scale, with ``unit`` beside it.
    """

    name: str
    x: Sequence[Place | None]
    y: Sequence[Place | None]
    low: Sequence[Number] = ()
    high: Sequence[Number] = ()
    colour: str = ""
    symbol: str = ""
    size: Real = 7.0
    labels: Sequence[str] = ()
    hover: Sequence[str] = ()
    values: Sequence[Real] = ()
    unit: str = ""


@dataclass(frozen=True)
class Bars:
    """A bar at every place; None where a place has none."""

    name: str
    places: Sequence[Place]
    values: Sequence[Number]
    low: Sequence[Number] = ()
    high: Sequence[Number] = ()
    colour: str = ""


@dataclass(frozen=True)
class Spread:
    """Single values at one place, with a box from the first to the third quartile."""

    name: str
    values: Sequence[Real]
    colour: str = ""
    hover: Sequence[str] = ()


@dataclass(frozen=True)
class Cells:
    """Values by row and column, None where there is none; colours go from one of ``ends`` to the other."""

    values: Sequence[Sequence[Number]]
    rows: Sequence[str]
    columns: Sequence[str]
    unit: str
    diverging: bool = True
    numbers: str = ""
    ends: Sequence[Real] | None = None

    def texts(self) -> list[list[str]]:
        """What the cells say: nothing where it would be zero, or in a large map next to nothing beside the largest."""
        is_large = self.diverging and len(self.rows) * len(self.columns) > MOST_CELLS
        least = 0.05 * self.limits()[1] if is_large else 0.0
        return [[self._text(value, least) for value in row] for row in self.values]

    def _text(self, value: Number, least: float) -> str:
        if value is None or not abs(value) >= least or not self.numbers:
            return ""
        text = format(value, self.numbers)
        return text if any(digit in text for digit in "123456789") else ""

    def limits(self) -> tuple[Real, Real]:
        """The ends of the scale: those given, else around zero, else the data's."""
        known = [value for row in self.values for value in row if value is not None and abs(value) < float("inf")]
        low, high = min(known, default=0.0), max(known, default=1.0)
        if self.diverging:
            high = max(abs(low), abs(high)) or 1.0
            low = -high
        low, high = self.ends or (low, high)
        return (low, high) if low < high else (low - 0.5, high + 0.5)


Mark = Curve | Points | Bars | Spread | Cells


@dataclass(frozen=True)
class Axis:
    """``falls``: the first place, or the smallest number, is at the far end; ``bare``: without numbers or names.

    ``whole``: what is counted, so that no tick lies between two numbers.
    """

    title: str = ""
    log: bool = False
    ends: Sequence[Real] | None = None
    falls: bool = False
    bare: bool = False
    whole: bool = False


@dataclass(frozen=True)
class Panel:
    """Marks on one pair of axes.

    ``across``: bars and whiskers lie along x; ``stacked``: bars of one place are put on each other; ``lines``: where
    a dotted line crosses, by axis; ``shade``: from where to where along y it is grey.
    """

    marks: Sequence[Mark]
    name: str = ""
    x: Axis = field(default_factory=Axis)
    y: Axis = field(default_factory=Axis)
    across: bool = False
    stacked: bool = False
    lines: Mapping[str, Real] = field(default_factory=dict)
    shade: Sequence[Real] | None = None

    def names(self, which: str) -> list[str]:
        """All places of an axis in order of appearance, where they are names; nothing where they are numbers."""
        values = [value for mark in self.marks for value in self.along(mark, which)]
        if not any(isinstance(value, str) for value in values):
            return []
        return list(dict.fromkeys(str(value) for value in values))

    def along(self, mark: Mark, which: str) -> Sequence[Any]:
        """A mark's places along ``x`` or ``y``."""
        if isinstance(mark, Cells):
            return mark.columns if which == "x" else mark.rows
        if isinstance(mark, Spread):
            return [mark.name] if which == "x" else mark.values
        if isinstance(mark, Bars):
            return mark.places if (which == "y") == self.across else mark.values
        return getattr(mark, which)

    @property
    def cells(self) -> Cells | None:
        return next((mark for mark in self.marks if isinstance(mark, Cells)), None)


class Look(NamedTuple):
    """The look of a series; ``place`` is its number, from 0."""

    colour: str
    symbol: str
    place: int


@dataclass(frozen=True)
class Chart:
    """Panels in a grid of so many ``columns``, of the relative ``widths``."""

    title: str
    panels: Sequence[Panel]
    columns: int = 1
    widths: Sequence[Real] = ()

    def looks(self) -> dict[str, Look]:
        """The look of every named series, in order of appearance; from ``MOST_SERIES`` on all are the same grey."""
        looks: dict[str, Look] = {}
        for mark in (mark for panel in self.panels for mark in panel.marks):
            if not isinstance(mark, Cells) and mark.name not in looks:
                place = len(looks)
                own = getattr(mark, "symbol", "") or SYMBOLS[place % len(SYMBOLS)]
                colour = mark.colour or PALETTE[place % len(PALETTE)]
                looks[mark.name] = Look(colour, own, place) if place < MOST_SERIES else Look(GREY, "circle", place)
        return looks

    def legend(self) -> tuple[list[str], int]:
        """The names that a legend holds, and how many more there are; none for a single name that the title says."""
        kinds = (Curve, Points, Bars)
        marks = [mark for panel in self.panels for mark in panel.marks if isinstance(mark, kinds)]
        names = list(dict.fromkeys(mark.name for mark in marks if mark.name))
        if len(names) < 2:
            return [], 0
        return names[:MOST_SERIES], max(0, len(names) - MOST_SERIES)


def chart(
    marks: Sequence[Mark],
    *,
    title: str,
    x: str | Axis = "",
    y: str | Axis = "",
    lines: Mapping[str, Real] | None = None,
    **panel: Any,
) -> Chart:
    """One panel of any marks; ``panel`` are fields of ``Panel``."""
    x, y = (Axis(axis) if isinstance(axis, str) else axis for axis in (x, y))
    return Chart(title, (Panel(tuple(marks), x=x, y=y, lines=lines or {}, **panel),))


def line_chart(curves: Sequence[Mark], *, title: str, x: str | Axis, y: str | Axis, **panel: Any) -> Chart:
    """Curves with their intervals as bands."""
    return chart(curves, title=title, x=x, y=y, **panel)


def line_panels(
    panels: Mapping[str, Sequence[Mark]], *, title: str, x: str | Axis, y: str | Axis, columns: int = 2
) -> Chart:
    """Charts of the same series side by side, with one legend; a series' name gives its colour."""
    x, y = (Axis(axis) if isinstance(axis, str) else axis for axis in (x, y))
    shown = tuple(Panel(tuple(marks), name, x, y) for name, marks in panels.items())
    return Chart(title, shown, min(columns, len(shown)))


def bar_chart(bars: Sequence[Mark], *, title: str, x: str, y: str, **panel: Any) -> Chart:
    """Bars from left to right; with ``across`` from the top down, with the names of their places beside them."""
    falls = bool(panel.get("across"))
    return chart(bars, title=title, x=x, y=Axis(y, falls=falls), **panel)


def heat_map(
    values: Sequence[Sequence[Number]],
    rows: Sequence[str],
    columns: Sequence[str],
    *,
    title: str,
    unit: str,
    x: str = "",
    y: str = "",
    upward: bool = False,
    **how: Any,
) -> Chart:
    """Values by row and column, grey where there is none; ``how`` are fields of ``Cells``.

    ``unit`` stands at the colour bar. ``diverging`` puts zero in the middle of a two-sided scale. ``numbers`` is a
    format such as ``+.2f`` that writes the values into the cells, where there is room. The first row is at the top,
    or with ``upward`` at the bottom: rows of layers go up, as in the picture of a circuit.
    """
    plain = tuple(tuple(None if value is None or value != value else float(value) for value in row) for row in values)
    cells = Cells(plain, tuple(map(str, rows)), tuple(map(str, columns)), unit, **how)
    return chart([cells], title=title, x=x, y=Axis(y, falls=not upward))


# --- as JSON, so that a page can be drawn again -----------------------------------------------

MARKS = {kind.__name__: kind for kind in (Curve, Points, Bars, Spread, Cells)}


def charts_record(charts: Mapping[str, Chart]) -> dict[str, Any]:
    """Charts as plain values; ``charts_from`` reads them back."""
    record = {name: _plain(asdict(chart)) for name, chart in charts.items()}
    for name, chart in charts.items():
        for entry, panel in zip(record[name]["panels"], chart.panels, strict=True):
            kinds = [type(mark).__name__ for mark in panel.marks]
            entry["marks"] = [{"kind": kind, **mark} for kind, mark in zip(kinds, entry["marks"], strict=True)]
    return record


def _plain(value: Any) -> Any:
    """Python's own numbers; None for what is no number."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    value = value.item() if hasattr(value, "item") else value
    return None if isinstance(value, float) and not isfinite(value) else value


def charts_from(record: Mapping[str, Any]) -> dict[str, Chart]:
    """The charts of a record.

    Raises:
        KeyError, TypeError: it is no record of charts.
    """
    return {name: Chart(**{**chart, "panels": tuple(_panels(chart["panels"]))}) for name, chart in record.items()}


def _panels(records: Sequence[Mapping[str, Any]]) -> Iterator[Panel]:
    for record in records:
        marks = [
            MARKS[mark["kind"]](**{key: value for key, value in mark.items() if key != "kind"})
            for mark in record["marks"]
        ]
        axes = {which: Axis(**record[which]) for which in "xy"}
        yield Panel(**{**record, "marks": tuple(marks), **axes})
