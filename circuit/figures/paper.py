"""Charts for paper, drawn by matplotlib: PNG, SVG and PDF of the width of one column or of two, without a browser.

Letters have at least 7 points, in the project's own font, which is in the files; ticks are thinned and cells have
numbers where they fit. The same chart gives the same bytes. Texts are plain: no mathematics, whatever is in them.
Nothing of matplotlib's settings is changed.
"""

from __future__ import annotations

import io
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from persona_circuits.circuit.figures.charts import (
    DIVERGING,
    GREY,
    MISSING,
    SEQUENTIAL,
    Axis,
    Bars,
    Cells,
    Chart,
    Curve,
    Look,
    Panel,
    Points,
    Spread,
)
from persona_circuits.circuit.printable import shortened, visible

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["FORMATS", "TALLEST", "WIDTHS", "paper", "png_bytes"]

FORMATS = ("png", "svg", "pdf")
WIDTHS = {"single": 3.3, "double": 6.9}  # inches: one column of a paper, or both
TALLEST = 9.0
DPI = 300
SMALL, LARGE = 7.0, 9.0  # points
LETTER = 0.55 * SMALL / 72  # inches of a letter's width
LINE = 0.125  # inches from a line to the next
LONGEST_NAME, LONGEST_TEXT = 40, 200  # characters of a tick's or a legend's name, and of any other text
DASHES = {"solid": "-", "dash": "--", "dot": ":", "dashdot": "-."}
SYMBOLS = {"circle": "o", "square": "s", "triangle-up": "^", "diamond": "D", "triangle-down": "v", "cross": "P"}
SYMBOLS |= {"star": "*", "x": "X", "circle-open": "o"}
HATCHES = ("", "////", "....", "\\\\\\\\", "xxxx", "----", "||||", "++++")
DARK, LIGHT = "#444444", "#cccccc"
ANCHORED = {"rotation_mode": "anchor"}
SETTINGS: Any = {
    "font.family": ["Persona Circuits Sans", "DejaVu Sans"],
    "font.size": SMALL,
    "text.parse_math": False,
    "svg.hashsalt": "persona-circuits",
    "pdf.fonttype": 42,
    "axes.unicode_minus": True,
    "hatch.color": "white",
    "hatch.linewidth": 0.6,
}


def png_bytes(chart: Chart, *, dpi: int = DPI) -> bytes:
    """The chart as a PNG over both columns of a paper."""
    return paper(chart, ("png",), dpi=dpi)["png"]


def paper(chart: Chart, formats: Sequence[str] = FORMATS, *, width: str = "double", dpi: int = DPI) -> dict[str, bytes]:
    """The chart's bytes by format; ``width`` is a name of ``WIDTHS``."""
    metadata: dict[str, Any] = {"png": {"Software": None}, "svg": {"Date": None, "Creator": None}}
    metadata["pdf"] = {"CreationDate": None, "Creator": None, "Producer": None}
    pictures = {}
    with _settings():
        canvas = _drawn(chart, WIDTHS[width])
        for form in formats:
            out = io.BytesIO()
            canvas.savefig(out, format=form, dpi=dpi, metadata=metadata[form])
            pictures[form] = out.getvalue()
    return pictures


@contextmanager
def _settings() -> Iterator[None]:
    from matplotlib import font_manager, rc_context

    fonts = font_manager.fontManager
    if all(font.name != SETTINGS["font.family"][0] for font in fonts.ttflist):
        fonts.addfont(Path(__file__).parents[1] / "drawing" / "fonts" / "PersonaCircuitsSans.ttf")
    settings: Any = SETTINGS
    with rc_context(settings):
        yield


def _drawn(chart: Chart, wide: float) -> Any:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = chart.columns if wide > 5 else 1
    widths = list(chart.widths) if columns > 1 and chart.widths else [1.0] * columns
    rows, legend = -(-len(chart.panels) // columns), _Legend.of(chart, wide)
    title = _wrapped(chart.title, int(wide / (LETTER * LARGE / SMALL)))
    tall = rows * max(_height(panel, wide / columns) for panel in chart.panels)
    tall = min(TALLEST, tall + LINE * (2 + title.count("\n")) + legend.height)
    canvas = Figure(figsize=(wide, tall), layout="constrained", facecolor="white")
    FigureCanvasAgg(canvas)
    grid = canvas.add_gridspec(rows, columns, width_ratios=widths)
    looks = chart.looks()
    for place in range(len(chart.panels)):
        axes = canvas.add_subplot(grid[place // columns, place % columns])
        room = (wide - legend.width) * widths[place % columns] / sum(widths) - 0.6
        panel = _without_repeats(chart, place, columns)
        _Drawing(axes, panel, looks, (room, (tall - legend.height) / rows - 0.6)).draw()
    legend.draw(canvas)
    if title:
        canvas.suptitle(title, fontsize=LARGE, x=0.01, ha="left")
    return canvas


def _without_repeats(chart: Chart, place: int, columns: int) -> Panel:
    """A panel of a grid without the titles of axes that its neighbours below and to the left have."""
    panel, x, y = chart.panels[place], None, None
    if place + columns < len(chart.panels) and chart.panels[place + columns].x.title == panel.x.title:
        x = replace(panel.x, title="")
    if place % columns and chart.panels[place - 1].y.title == panel.y.title:
        y = replace(panel.y, title="")
    return replace(panel, x=x or panel.x, y=y or panel.y)


def _height(panel: Panel, wide: float) -> float:
    """Inches for a panel: a line for each name at its side, where there are names."""
    names, turned = panel.names("y"), max(map(len, panel.names("x")), default=0)
    below = min(turned, LONGEST_NAME) * LETTER
    if not names:
        return max(2.1, 0.42 * wide) + max(0.0, below - 0.5)
    n_beside = 1 if panel.stacked else max(1, sum(isinstance(mark, Bars) for mark in panel.marks))
    return max(1.4, 0.8 + below + 1.3 * LINE * len(names) * n_beside)


class _Drawing:
    """One panel: where its names lie, and what is drawn there; ``room`` is its width and height in inches."""

    def __init__(self, axes: Axes, panel: Panel, looks: Mapping[str, Look], room: tuple[float, float]) -> None:
        self.axes, self.panel, self.looks = axes, panel, looks
        self.names = {which: panel.names(which) for which in "xy"}
        beside = max((min(len(name), LONGEST_NAME) for name in self.names["y"]), default=0) * LETTER
        self.room = (max(0.5, room[0] - beside - (0.6 if panel.cells else 0.0)), room[1])

    def draw(self) -> None:
        bars = [mark for mark in self.panel.marks if isinstance(mark, Bars)]
        if bars:
            self._bars(bars)
        for mark in self.panel.marks:
            if isinstance(mark, Cells):
                self._cells(mark)
            elif isinstance(mark, Curve):
                self._curve(mark, self.looks[mark.name])
            elif isinstance(mark, Points):
                self._points(mark, self.looks[mark.name])
            elif isinstance(mark, Spread):
                self._spread(mark, self.looks[mark.name])
        self._rules()
        for which, axis in (("x", self.panel.x), ("y", self.panel.y)):
            self._axis(which, axis)
        if self.panel.name:
            self.axes.set_title(_plain(self.panel.name), fontsize=SMALL + 1)
        self.axes.set_axisbelow(True)
        self.axes.tick_params(labelsize=SMALL, color=DARK, width=0.5, length=2.5)
        for side, spine in self.axes.spines.items():
            spine.set_linewidth(0.5)
            spine.set_color(DARK)
            spine.set_visible(side in ("left", "bottom") and self.panel.cells is None)

    def at(self, which: str, values: Any) -> np.ndarray:
        """Numbers as they are; names by their place among all names of this axis."""
        names = self.names[which]
        if names:
            return np.array([names.index(str(value)) if value is not None else np.nan for value in values], dtype=float)
        return _numbers(values)

    def _curve(self, curve: Curve, look: Look) -> None:
        x, y = self.at("x", curve.x), _numbers(curve.y)
        if any(end is not None for end in curve.low):
            low, high = _numbers(curve.low), _numbers(curve.high)
            self.axes.fill_between(x, low, high, color=look.colour, alpha=0.15, linewidth=0)
        marker = SYMBOLS[look.symbol] if curve.markers else None
        style: dict[str, Any] = {"color": look.colour, "linewidth": 1.1, "markersize": 2.8}
        style["markevery"] = max(1, len(x) // 24)
        self.axes.plot(x, y, DASHES[curve.dash], marker=marker, label=_key(curve.name), **style)

    def _points(self, mark: Points, look: Look) -> None:
        x, y = self.at("x", mark.x), self.at("y", mark.y)
        style: dict[str, Any] = {"marker": SYMBOLS[look.symbol], "s": (0.55 * mark.size) ** 2, "alpha": 0.8}
        style |= {"linewidths": 0.8 if look.symbol.endswith("-open") else 0, "label": _key(mark.name), "zorder": 3}
        if mark.values:
            drawn = self.axes.scatter(x, y, c=_numbers(mark.values), cmap="viridis", **style)
            self._scale(drawn, mark.unit)
        elif look.symbol.endswith("-open"):
            self.axes.scatter(x, y, facecolors="none", edgecolors=look.colour, **style)
        else:
            self.axes.scatter(x, y, color=look.colour, **style)
        self._whiskers(x, y, x if self.panel.across else y, mark)
        for place in range(len(mark.labels)):
            text = _plain(mark.labels[place], LONGEST_NAME)
            near: dict[str, Any] = {"xytext": (0, 3), "textcoords": "offset points", "ha": "center", "fontsize": SMALL}
            self.axes.annotate(text, (x[place], y[place]), **near)

    def _whiskers(self, x: np.ndarray, y: np.ndarray, middle: np.ndarray, mark: Points | Bars) -> None:
        if not any(end is not None for end in mark.low):
            return
        ends = np.nan_to_num(np.stack([middle - _numbers(mark.low), _numbers(mark.high) - middle])).clip(min=0.0)
        which: dict[str, Any] = {"xerr" if self.panel.across else "yerr": ends}
        self.axes.errorbar(x, y, fmt="none", ecolor=DARK, elinewidth=0.8, capsize=1.5, **which)

    def _bars(self, bars: Sequence[Bars]) -> None:
        """Bars side by side or stacked, distinguished by hatching too."""
        n_beside = 1 if self.panel.stacked else len(bars)
        width, above, below = 0.8 / n_beside, dict[float, float](), dict[float, float]()
        for turn, mark in enumerate(bars):
            at, look = self.at("y" if self.panel.across else "x", mark.places), self.looks[mark.name]
            place, length = at + width * (turn - (n_beside - 1) / 2) * (n_beside > 1), _numbers(mark.values)
            start = np.zeros(len(at))
            for i, value in enumerate(np.nan_to_num(length)) if self.panel.stacked else ():
                pile = above if value >= 0 else below
                start[i] = pile.get(at[i], 0.0)
                pile[at[i]] = start[i] + value
            hatch = HATCHES[look.place % len(HATCHES)] if len(bars) > 1 else ""
            style: dict[str, Any] = {"color": look.colour, "hatch": hatch, "linewidth": 0, "label": _key(mark.name)}
            if self.panel.across:
                self.axes.barh(place, length, width, left=start, **style)
                self._whiskers(start + length, place, length, mark)
            else:
                self.axes.bar(place, length, width, bottom=start, **style)
                self._whiskers(place, start + length, length, mark)

    def _spread(self, mark: Spread, look: Look) -> None:
        values, colour = _numbers(mark.values), mark.colour or look.colour
        values, place = values[np.isfinite(values)], float(self.names["x"].index(mark.name))
        lines: dict[str, Any] = {key: {"color": DARK, "linewidth": 0.8} for key in ("boxprops", "whiskerprops")}
        lines |= {key: {"color": DARK, "linewidth": 0.8} for key in ("capprops", "medianprops")}
        self.axes.boxplot(values, positions=[place], widths=0.5, showfliers=False, manage_ticks=False, **lines)
        aside = np.random.default_rng(0).uniform(-0.15, 0.15, len(values))
        self.axes.scatter(place + aside, values, s=5, color=colour, alpha=0.6, linewidths=0)
        self.axes.hlines(values.mean(), place - 0.25, place + 0.25, colors=[DARK], linestyles="--", linewidth=0.8)

    def _cells(self, mark: Cells) -> None:
        from matplotlib.colors import LinearSegmentedColormap

        z, (low, high) = np.array([_numbers(row) for row in mark.values]), mark.limits()
        scale = LinearSegmentedColormap.from_list("scale", DIVERGING if mark.diverging else SEQUENTIAL)
        self.axes.set_facecolor(MISSING)
        sides = [np.arange(n + 1) - 0.5 for n in z.shape]
        mesh = self.axes.pcolormesh(*sides[::-1], np.ma.masked_invalid(z), cmap=scale, vmin=low, vmax=high)
        mesh.set_rasterized(z.size > 5000)
        self._scale(mesh, mark.unit)
        texts = mark.texts()
        longest = max((len(text) for row in texts for text in row), default=0)
        is_roomy = longest * LETTER + 0.03 < self.room[0] / len(mark.columns) and self.room[1] / len(mark.rows) > LINE
        if longest and is_roomy:
            for i, j in np.argwhere(np.isfinite(z)):
                ink = _ink(mesh.to_rgba(z[i, j]))
                if texts[i][j]:
                    self.axes.text(j, i, texts[i][j], ha="center", va="center", fontsize=SMALL, color=ink)
        elif mark.diverging:  # without colours and numbers the sign would be lost
            rows, columns = np.nonzero(np.nan_to_num(z) < 0.25 * low)
            style: dict[str, Any] = {"marker": "_", "s": 9, "color": "white", "linewidths": 0.7}
            self.axes.scatter(columns, rows, **style)

    def _scale(self, drawn: Any, unit: str) -> None:
        bar = self.axes.figure.colorbar(drawn, ax=self.axes, pad=0.02, fraction=0.05)
        bar.set_label(_plain(unit), fontsize=SMALL)
        bar.ax.tick_params(labelsize=SMALL, width=0.5, length=2.5)
        bar.outline.set_visible(False)  # type: ignore[operator]

    def _rules(self) -> None:
        style: dict[str, Any] = {"color": "black", "linestyle": ":", "linewidth": 0.8}
        for which, place in self.panel.lines.items():
            (self.axes.axvline if which == "x" else self.axes.axhline)(place, **style)
        if self.panel.shade is not None:
            self.axes.axhspan(*self.panel.shade, color=GREY, alpha=0.3, linewidth=0, zorder=0.5)

    def _axis(self, which: str, axis: Axis) -> None:
        axes, names = self.axes, self.names[which]
        if axis.title:
            most = int(self.room[which == "y"] / LETTER * SMALL / (SMALL + 1))
            getattr(axes, f"set_{which}label")(_wrapped(axis.title, most), fontsize=SMALL + 1)
        if axis.log:
            getattr(axes, f"set_{which}scale")("log")
            getattr(axes, f"{which}axis").set_major_formatter("{x:g}")
        if axis.whole:
            getattr(axes, f"{which}axis").get_major_locator().set_params(integer=True)
        if axis.ends is not None:
            getattr(axes, f"set_{which}lim")(*axis.ends)
        if axis.falls:
            getattr(axes, f"invert_{which}axis")()
        if axis.bare:
            getattr(axes, f"set_{which}ticks")([])
        elif names:
            self._ticks(which, [_plain(name, LONGEST_NAME) for name in names])
        elif self.panel.cells is None:
            axes.grid(True, axis="x" if which == "x" else "y", color="#eeeeee", linewidth=0.5)

    def _ticks(self, which: str, names: Sequence[str]) -> None:
        """Names of places, as many as fit; vertical below the axis where they would overlap."""
        if which == "y":
            step = max(1, -(-len(names) * LINE // self.room[1]))
            self.axes.set_yticks(range(0, len(names), int(step)), names[:: int(step)])
            return
        turned: dict[str, Any] = {}
        step = 1.0
        if (max(map(len, names)) + 2) * LETTER * len(names) > self.room[0]:
            few = max(map(len, names)) <= 3
            step = max(1, -(-len(names) * (LETTER * 4 if few else LINE) // self.room[0]))
            turned = {} if few else {"rotation": 60, "ha": "right", **ANCHORED}
        self.axes.set_xticks(range(0, len(names), int(step)), names[:: int(step)], **turned)


class _Legend(NamedTuple):
    """One legend for all panels, beside a single one or below; ``width`` and ``height`` are inches that it takes."""

    labels: list[str]
    more: int
    columns: int
    width: float
    height: float

    @classmethod
    def of(cls, chart: Chart, wide: float) -> _Legend:
        names, more = chart.legend()
        labels = [_key(name) for name in names]
        own = 0.5 + max(map(len, labels), default=0) * LETTER
        if not labels or (wide > 5 and chart.columns == 1 and own < 2.7):
            return cls(labels, more, 1, own if labels else 0.0, 0.0)
        columns = max(1, int(wide / own))
        return cls(labels, more, columns, 0.0, 0.1 + LINE * 1.2 * -(-(len(labels) + bool(more)) // columns))

    def draw(self, canvas: Any) -> None:
        from matplotlib.lines import Line2D

        if not self.labels:
            return
        pairs = [pair for axes in canvas.axes for pair in zip(*axes.get_legend_handles_labels(), strict=True)]
        known: dict[str, Any] = {label: handle for handle, label in reversed(pairs)}
        handles, labels = [known[label] for label in self.labels], list(self.labels)
        if self.more:
            handles.append(Line2D([], [], color=GREY))
            labels.append(f"and {self.more} more")
        where = {"loc": "outside right upper" if self.width else "outside lower center", "ncols": self.columns}
        canvas.legend(handles, labels, fontsize=SMALL, frameon=False, handlelength=2.2, **where)


def _key(name: str) -> str:
    """A legend's name; matplotlib's legends leave out names that begin with an underscore."""
    text = _plain(name, LONGEST_NAME)
    return f" {text}" if text.startswith("_") else text


def _plain(text: object, most: int = LONGEST_TEXT) -> str:
    """As it reads: matplotlib has no picture of a control character. Long names stay apart."""
    return shortened(visible(text).replace("\t", " "), most, distinct=most == LONGEST_NAME)


def _wrapped(text: str, most: int) -> str:
    return "\n".join(textwrap.wrap(_plain(text), max(most, 10)))


def _ink(colour: Any) -> str:
    red, green, blue, _ = colour
    return "white" if 0.3 * red + 0.59 * green + 0.11 * blue < 0.5 else "#222222"


def _numbers(values: Any) -> np.ndarray:
    return np.array([np.nan if value is None else float(value) for value in values])
