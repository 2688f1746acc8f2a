"""A plotly figure as PNG without a browser: matplotlib draws the same data.

plotly's own way to PNG runs a Chrome, which a fresh machine does not have. Of plotly this
knows what the project's figures use: the traces scatter, heatmap, bar and box; subplots
in a grid; lines, rectangles and texts laid over them. A trace of another kind is our own
mistake and fails. Texts are plain, as in ``circuit.figures.plots``: no markup and no mathematics, whatever
is in them. Nothing of matplotlib's global state is touched.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from persona_circuits.circuit.printable import shortened, visible

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from plotly.graph_objects import Figure

__all__ = [
    "png_bytes",
]

PALETTE = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#000000", "#8a8a8a")
DASHES = {"solid": "-", "dash": "--", "dot": ":", "dashdot": "-.", "longdash": (0, (8, 3))}
SYMBOLS = {"circle": "o", "x": "x", "square": "s", "diamond": "D", "cross": "P", "triangle-up": "^", "star": "*"}


SYMBOLS |= {"circle-open": "o", "triangle-down": "v", "square-open": "s", "diamond-open": "D"}


WIDTH, HEIGHT, POINTS_PER_PIXEL, DPI = 1000, 560, 0.72, 200
MOST_TICKS = 60
LONGEST_NAME, LONGEST_TEXT = 80, 200  # characters of a tick's or a legend's name, and of any other text


def png_bytes(figure: Figure, *, dpi: int = DPI) -> bytes:
    """The figure as a PNG, 1000 pixels wide (or the figure's own width) at two pixels each; ``dpi`` 100 is one each."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure as Canvas

    layout = figure.layout
    size = ((layout.width or WIDTH) / 100, (layout.height or HEIGHT) / 100)
    canvas = Canvas(figsize=size, dpi=dpi, layout="constrained", facecolor="white")
    FigureCanvasAgg(canvas)
    for trace in figure.data:
        assert trace.type in DRAWN, f"no PNG of a {trace.type} trace; add it to persona/png.py"
    panels = _panels(figure, canvas)
    for place, trace in enumerate(figure.data):
        DRAWN[trace.type](panels[trace.xaxis or "x", trace.yaxis or "y"], trace, PALETTE[place % len(PALETTE)])
    for panel in panels.values():
        panel.finish(figure)
    _legend(figure, canvas, [panel.axes for panel in panels.values()])
    if layout.title.text:
        canvas.suptitle(_plain(layout.title.text), fontsize=13, x=0.02, ha="left")
    out = io.BytesIO()
    canvas.savefig(out, format="png", metadata={"Software": None})
    return out.getvalue()


class _Panel:
    """One pair of axes: where plotly's values lie on matplotlib's, and what is drawn there."""

    def __init__(self, axes: Axes, xaxis: Any, yaxis: Any, names: tuple[str, str]) -> None:
        self.axes, self.xaxis, self.yaxis, self.names = axes, xaxis, yaxis, names
        self.categories: dict[str, list[str]] = {"x": [], "y": []}
        self.last_line: tuple[np.ndarray, np.ndarray] | None = None
        self.bars: list[tuple[Any, str]] = []

    def places(self, which: str, values: Any) -> np.ndarray:
        """Numbers as they are; names by their place among all names of this axis, in order of appearance."""
        values = list(values)
        axis = self.xaxis if which == "x" else self.yaxis
        known = self.categories[which]
        if not known and axis.categoryarray is not None:
            known.extend(map(str, axis.categoryarray))
        if axis.type == "category" or known or any(isinstance(value, str) for value in values):
            for value in values:
                if str(value) not in known:
                    known.append(str(value))
            return np.array([known.index(str(value)) for value in values], dtype=float)
        return _numbers(values)

    def finish(self, figure: Figure) -> None:
        """Titles, ticks, ranges, and what is laid over the traces."""
        axes = self.axes
        _draw_bars(self, figure.layout.barmode)
        for which, axis in (("x", self.xaxis), ("y", self.yaxis)):
            self._ticks(which, axis)
            if axis.title.text:
                getattr(axes, f"set_{which}label")(_plain(axis.title.text), fontsize=10)
            if axis.type == "log":
                getattr(axes, f"set_{which}scale")("log")
            if axis.range is not None:
                ends = [10.0**end for end in axis.range] if axis.type == "log" else axis.range
                getattr(axes, f"set_{which}lim")(*ends)
            if axis.autorange == "reversed":
                getattr(axes, f"invert_{which}axis")()
            if axis.showgrid and not self.categories[which]:
                axes.grid(True, axis="x" if which == "x" else "y", color="#eeeeee", linewidth=0.8)
        axes.set_axisbelow(True)
        axes.tick_params(labelsize=8, color="#999999")
        for side in axes.spines.values():
            side.set_color("#cccccc")
        self._overlays(figure)

    def _ticks(self, which: str, axis: Any) -> None:
        names, ticks = self.categories[which], getattr(self.axes, f"set_{which}ticks")
        angle = {"rotation": -axis.tickangle if axis.tickangle else 0}
        if which == "x" and angle["rotation"]:
            angle |= {"ha": "right" if angle["rotation"] > 0 else "left", "rotation_mode": "anchor"}
        if axis.showticklabels is False:
            ticks([])
        elif axis.tickvals is not None:
            ticks(self.places(which, axis.tickvals), [_name(t) for t in axis.ticktext or axis.tickvals], **angle)
        elif names:
            step = max(1, -(-len(names) // MOST_TICKS))
            shown = [_name(name) for name in names[::step]]
            if which == "x" and not axis.tickangle and sum(map(len, names)) > 110:
                angle = {"rotation": 60, "ha": "right", "rotation_mode": "anchor"}
            ticks(range(0, len(names), step), shown, **angle)

    def _overlays(self, figure: Figure) -> None:
        own = {"x": self.names[0], "y": self.names[1]}
        for shape in figure.layout.shapes:
            where = [_reference(shape[f"{which}ref"], own[which], own[which] in "xy") for which in "xy"]
            if all(where):
                self._shape(shape, where)
        for note in figure.layout.annotations:
            if note.xref == self.names[0] and note.yref == self.names[1]:
                at = (float(self.places("x", [note.x])[0]), float(self.places("y", [note.y])[0]))
                self.axes.annotate(_plain(note.text), at, fontsize=8, ha="center", va="bottom", color="#333333")
            elif self._is_title(note):
                self.axes.set_title(_plain(note.text), fontsize=10)

    def _shape(self, shape: Any, where: Sequence[str]) -> None:
        from matplotlib.lines import Line2D
        from matplotlib.patches import Rectangle
        from matplotlib.transforms import blended_transform_factory

        axes = self.axes
        parts = [axes.transData if kind == "data" else axes.transAxes for kind in where]
        transform = blended_transform_factory(*parts)
        (x0, x1), (y0, y1) = (
            self.places(which, ends) if kind == "data" else _numbers(ends)
            for which, kind, ends in zip("xy", where, ((shape.x0, shape.x1), (shape.y0, shape.y1)), strict=True)
        )
        if shape.type == "line":
            style = {"color": _colour(shape.line.color or "black"), "linestyle": DASHES[shape.line.dash or "solid"]}
            width = POINTS_PER_PIXEL * (shape.line.width or 2)
            axes.add_line(Line2D([x0, x1], [y0, y1], transform=transform, linewidth=width, **style))
        else:
            fill = {"facecolor": _colour(shape.fillcolor or "none"), "alpha": shape.opacity, "linewidth": 0}
            axes.add_patch(Rectangle((x0, y0), x1 - x0, y1 - y0, transform=transform, zorder=0.5, **fill))

    def _is_title(self, note: Any) -> bool:
        """A text of plotly's ``make_subplots``: above the middle of this panel."""
        if note.xref != "paper" or note.yref != "paper" or note.showarrow:
            return False
        (left, right), (_, top) = self.xaxis.domain or (0, 1), self.yaxis.domain or (0, 1)
        return abs(note.x - (left + right) / 2) < 1e-6 and abs(note.y - top) < 1e-6


def _legend(figure: Figure, canvas: Any, panels: Sequence[Axes]) -> None:
    """One legend for all panels, right of them; none for a single name unless the figure asks for it."""
    named = [axes.get_legend_handles_labels() for axes in panels]
    handles: list[Any] = [handle for pair in named for handle in pair[0]]
    labels: list[str] = [label for pair in named for label in pair[1]]
    if not handles or figure.layout.showlegend is False or (len(handles) == 1 and not figure.layout.showlegend):
        return
    style: dict[str, Any] = {"fontsize": 8, "frameon": False}
    if len(panels) > 1:
        canvas.legend(handles, labels, loc="outside right upper", **style)
    else:
        panels[0].legend(handles, labels, loc="upper left", bbox_to_anchor=(1.01, 1.0), **style)


def _panels(figure: Figure, canvas: Any) -> dict[tuple[str, str], _Panel]:
    """A panel per pair of axes that a trace uses, in the grid that the axes' domains make."""
    used = dict.fromkeys((trace.xaxis or "x", trace.yaxis or "y") for trace in figure.data) or {("x", "y"): None}
    axis = {name: figure.layout[f"{name[0]}axis{name[1:]}"] for pair in used for name in pair}
    lefts, tops = (
        sorted({_end(axis[pair[place]].domain, place) for pair in used}, reverse=bool(place)) for place in (0, 1)
    )
    widths = [max(_width(axis[x].domain) for x, _ in used if _end(axis[x].domain, 0) == left) for left in lefts]
    heights = [max(_width(axis[y].domain) for _, y in used if _end(axis[y].domain, 1) == top) for top in tops]
    grid = canvas.add_gridspec(len(tops), len(lefts), width_ratios=widths, height_ratios=heights)
    found = {}
    for x, y in used:
        cell = grid[tops.index(_end(axis[y].domain, 1)), lefts.index(_end(axis[x].domain, 0))]
        axes = canvas.add_subplot(cell)
        if figure.layout.plot_bgcolor:
            axes.set_facecolor(_colour(figure.layout.plot_bgcolor))
        found[x, y] = _Panel(axes, axis[x], axis[y], (x, y))
    return found


def _end(domain: Sequence[float] | None, place: int) -> float:
    return round(float((domain or (0.0, 1.0))[place]), 6)


def _width(domain: Sequence[float] | None) -> float:
    low, high = domain or (0.0, 1.0)
    return float(high - low)


def _scatter(panel: _Panel, trace: Any, default: str) -> None:
    mode = trace.mode or "lines"
    x, y = panel.places("x", trace.x), panel.places("y", trace.y)
    colour = _colour(trace.line.color or _one(trace.marker.color) or default)
    style: dict[str, Any] = {"alpha": trace.opacity, "label": _label(trace)}
    if trace.fill in ("toself", "tonexty"):
        _fill(panel, trace, x, y, colour)
        style["label"] = None
    width = 2.0 if trace.line.width is None else trace.line.width
    if "lines" in mode and width > 0:
        dashes, marker = DASHES[trace.line.dash or "solid"], "o" if "markers" in mode else None
        size = POINTS_PER_PIXEL * float(_one(trace.marker.size) or 6)
        panel.axes.plot(x, y, dashes, color=colour, linewidth=0.72 * width, marker=marker, markersize=size, **style)
    elif "markers" in mode:
        _markers(panel, trace, x, y, colour, style)
    if trace.error_y.array is not None:
        _errors(panel, trace.error_y, x, y, colour)
    if "text" in mode and trace.text is not None:
        texts = [trace.text] * len(x) if isinstance(trace.text, str) else trace.text
        for a, b, text in zip(x, y, texts, strict=True):
            panel.axes.annotate(
                _plain(text), (a, b), xytext=(0, 5), textcoords="offset points", ha="center", fontsize=7
            )
    panel.last_line = (x, y)


def _fill(panel: _Panel, trace: Any, x: np.ndarray, y: np.ndarray, colour: Any) -> None:
    face = {"facecolor": _colour(trace.fillcolor) if trace.fillcolor else colour, "alpha": trace.opacity or 1.0}
    if trace.fill == "toself":
        panel.axes.fill(x, y, linewidth=0, **face)
        panel.axes.update_datalim(np.stack([x, y], axis=1))
    elif panel.last_line is not None:
        panel.axes.fill_between(x, panel.last_line[1], y, linewidth=0, **face)


def _markers(panel: _Panel, trace: Any, x: np.ndarray, y: np.ndarray, colour: Any, style: dict[str, Any]) -> None:
    marker = trace.marker
    symbol = _one(marker.symbol) or "circle"
    size = 6.0 if marker.size is None else np.asarray(marker.size, dtype=float)
    style |= {"marker": SYMBOLS[symbol], "s": (POINTS_PER_PIXEL * size) ** 2}
    if marker.opacity is not None:
        style["alpha"] = marker.opacity
    if _is_list(marker.color) and not isinstance(marker.color[0], str):
        ends = {"vmin": marker.cmin, "vmax": marker.cmax}
        drawn = panel.axes.scatter(x, y, c=_numbers(marker.color), cmap=_scale(marker.colorscale), **ends, **style)
        if marker.showscale:
            panel.axes.figure.colorbar(drawn, ax=panel.axes, label=_plain(marker.colorbar.title.text or ""))
        return
    colours = [_colour(item) for item in marker.color] if _is_list(marker.color) else colour
    paint = {"facecolors": "none", "edgecolors": colours} if symbol.endswith("-open") else {"color": colours}
    panel.axes.scatter(x, y, linewidths=1.2 if symbol == "x" or symbol.endswith("-open") else 0, **paint, **style)


def _errors(panel: _Panel, error: Any, x: np.ndarray, y: np.ndarray, colour: Any, *, across: bool = False) -> None:
    high = _numbers(error.array)
    low = high if error.arrayminus is None else _numbers(error.arrayminus)
    bars: dict[str, Any] = {"xerr" if across else "yerr": np.stack([low, high])}
    panel.axes.errorbar(x, y, fmt="none", ecolor=colour, elinewidth=1, capsize=2, **bars)


def _heatmap(panel: _Panel, trace: Any, default: str) -> None:
    z = np.array([_numbers(row) for row in trace.z])
    x = panel.places("x", range(z.shape[1]) if trace.x is None else trace.x)
    y = panel.places("y", range(z.shape[0]) if trace.y is None else trace.y)
    low, high = _limits(z, trace)
    mesh = panel.axes.pcolormesh(
        _edges(x), _edges(y), np.ma.masked_invalid(z), cmap=_scale(trace.colorscale), vmin=low, vmax=high
    )
    if trace.showscale is not False:
        bar = panel.axes.figure.colorbar(mesh, ax=panel.axes, pad=0.02, fraction=0.05)
        bar.set_label(_plain(trace.colorbar.title.text or ""), fontsize=9)
        bar.ax.tick_params(labelsize=8)
        bar.outline.set_visible(False)
    if trace.texttemplate:
        _cell_texts(panel, trace, z, x, y, mesh)


def _cell_texts(panel: _Panel, trace: Any, z: np.ndarray, x: np.ndarray, y: np.ndarray, mesh: Any) -> None:
    """Numbers (or the trace's texts) in the cells, white on dark colours."""
    form = re.fullmatch(r"%\{z:?(.*)\}", trace.texttemplate)
    size = max(4.0, min(8.0, 420 / max(1, len(x)) / 6))
    for i, j in np.argwhere(np.isfinite(z)):
        shown = format(z[i, j], form[1]) if form else _plain(str(trace.text[i][j]))
        red, green, blue, _ = mesh.to_rgba(z[i, j])
        ink = "white" if 0.3 * red + 0.59 * green + 0.11 * blue < 0.5 else "#222222"
        panel.axes.text(x[j], y[i], shown, ha="center", va="center", fontsize=size, color=ink)


def _limits(z: np.ndarray, trace: Any) -> tuple[float, float]:
    finite = z[np.isfinite(z)]
    low, high = (float(finite.min()), float(finite.max())) if len(finite) else (0.0, 1.0)
    if trace.zmid is not None:
        reach = max(abs(low - trace.zmid), abs(high - trace.zmid)) or 1.0
        low, high = trace.zmid - reach, trace.zmid + reach
    low, high = low if trace.zmin is None else trace.zmin, high if trace.zmax is None else trace.zmax
    return (low, high) if low < high else (low - 0.5, high + 0.5)


def _edges(centres: np.ndarray) -> np.ndarray:
    if len(centres) == 1:
        return np.array([centres[0] - 0.5, centres[0] + 0.5])
    middles = (centres[1:] + centres[:-1]) / 2
    return np.concatenate([[2 * centres[0] - middles[0]], middles, [2 * centres[-1] - middles[-1]]])


def _bar(panel: _Panel, trace: Any, default: str) -> None:
    """Bars share their places, so they wait until all of a panel are known."""
    panel.places("y" if trace.orientation == "h" else "x", trace.y if trace.orientation == "h" else trace.x)
    panel.bars.append((trace, default))


def _draw_bars(panel: _Panel, mode: str | None) -> None:
    if not panel.bars:
        return
    beside = len(panel.bars) if mode in (None, "group") else 1
    width = 0.8 / beside
    above: dict[float, float] = {}
    below: dict[float, float] = {}
    for turn, (trace, default) in enumerate(panel.bars):
        across = trace.orientation == "h"
        at = panel.places("y" if across else "x", trace.y if across else trace.x)
        length = _numbers(trace.x if across else trace.y)
        place = at + (width * (turn - (beside - 1) / 2) if beside > 1 else 0.0)
        start = np.zeros(len(at))
        if mode in ("stack", "relative"):
            for i, (key, value) in enumerate(zip(at, length, strict=True)):
                pile = above if value >= 0 else below
                start[i] = pile.get(key, 0.0)
                pile[key] = start[i] + value
        colours = trace.marker.color or default
        paint = [_colour(item) for item in colours] if _is_list(colours) else _colour(colours)
        style = {"color": paint, "alpha": trace.opacity, "label": _label(trace)}
        if across:
            panel.axes.barh(place, length, width, left=start, **style)
        else:
            panel.axes.bar(place, length, width, bottom=start, **style)
        error = trace.error_x if across else trace.error_y
        if error.array is not None:
            x, y = (start + length, place) if across else (place, start + length)
            _errors(panel, error, x, y, "#444444", across=across)


def _box(panel: _Panel, trace: Any, default: str) -> None:
    values = _numbers(trace.y)
    values, colour = values[np.isfinite(values)], _colour(trace.marker.color or trace.line.color or default)
    place = float(panel.places("x", [trace.name])[0])
    lines: dict[str, Any] = {key: {"color": colour} for key in ("boxprops", "whiskerprops", "capprops", "medianprops")}
    panel.axes.boxplot(values, positions=[place], widths=0.5, showfliers=False, manage_ticks=False, **lines)
    if trace.boxpoints == "all":
        spread = np.random.default_rng(0).uniform(-0.15, 0.15, len(values))
        panel.axes.scatter(place + spread, values, s=9, color=colour, alpha=trace.marker.opacity or 0.6, linewidths=0)
    if trace.boxmean:
        panel.axes.hlines(values.mean(), place - 0.25, place + 0.25, colors=[colour], linestyles="--", linewidth=1)


DRAWN: dict[str, Callable[[_Panel, Any, str], None]] = {
    "scatter": _scatter,
    "heatmap": _heatmap,
    "bar": _bar,
    "box": _box,
}


def _reference(reference: str | None, name: str, is_first: bool) -> str:
    """``data`` or ``panel`` where a shape belongs to this axis, else nothing."""
    reference = reference or name
    if reference == name:
        return "data"
    return "panel" if reference == f"{name} domain" or (reference == "paper" and is_first) else ""


def _label(trace: Any) -> str | None:
    if not trace.name or trace.showlegend is False:
        return None
    name = _name(trace.name)
    return f" {name}" if name.startswith("_") else name  # matplotlib's legends leave out names that begin with "_"


def _name(text: Any) -> str:
    return _plain(text, LONGEST_NAME)


def _plain(text: Any, most: int = LONGEST_TEXT) -> str:
    """As it reads: a dollar sign would be mathematics to matplotlib, and it has no picture of a control character."""
    return shortened(visible(text).replace("\t", " "), most).replace("$", r"\$")


def _colour(text: Any) -> Any:
    """A CSS colour as matplotlib knows it."""
    found = re.fullmatch(r"rgba?\(([^)]*)\)", text) if isinstance(text, str) else None
    if not found:
        return text
    red, green, blue, *alpha = (float(part) for part in found[1].split(","))
    return (red / 255, green / 255, blue / 255, *alpha)


def _scale(scale: Any) -> Any:
    from matplotlib.colors import LinearSegmentedColormap
    from plotly.colors import get_colorscale

    if scale is None or isinstance(scale, str):
        scale = get_colorscale(scale or "Viridis")
    return LinearSegmentedColormap.from_list("scale", [(float(place), _colour(colour)) for place, colour in scale])


def _numbers(values: Any) -> np.ndarray:
    return np.array([np.nan if value is None else float(value) for value in values])


def _is_list(value: Any) -> bool:
    return isinstance(value, list | tuple | np.ndarray)


def _one(value: Any) -> Any:
    """A style that may be given per point, as one for all."""
    if not _is_list(value):
        return value
    return value[0] if len(value) and isinstance(value[0], str) else None
