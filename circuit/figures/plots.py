"""Figures as files: one page that needs no network, and a PNG of each figure that needs no browser.

A figure is made once, as a plotly figure. ``write_figures`` writes all of a command's
figures on one HTML page, plotly's script included once, and each of them as a PNG drawn
by ``circuit.figures.png``. The same figures give the same bytes.

Texts of a figure are plain: names of personas, answers and questions go in as they are, line
feeds break lines. plotly would read them as HTML; they are escaped here, when the page is written.

``laid_out``, ``heat_map`` and ``line_chart`` are the house style. Colours are told apart
by colour-blind readers too (Okabe and Ito; the diverging scale is ColorBrewer's RdBu).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from persona_circuits.circuit.printable import shortened, visible
from persona_circuits.circuit.storage import write_bytes

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

__all__ = [
    "DIVERGING",
    "GREY",
    "MISSING",
    "PALETTE",
    "Curve",
    "figure_page",
    "heat_map",
    "laid_out",
    "line_chart",
    "line_panels",
    "write_figures",
]

PALETTE = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#000000", "#8a8a8a")
GREY, MISSING = "#bbbbbb", "#e4e4e4"
DIVERGING = [[0.0, "#b2182b"], [0.25, "#ef8a62"], [0.5, "#f7f7f7"], [0.75, "#67a9cf"], [1.0, "#2166ac"]]
LONGEST_TEXT = 300  # characters of a text that are shown on a page
SEQUENTIAL = [[0.0, "#fff7ec"], [0.25, "#fdd49e"], [0.5, "#fc8d59"], [0.75, "#d7301f"], [1.0, "#7f0000"]]


def write_figures(
    figures: Mapping[str, Figure], folder: str | Path, *, page: str, title: str, notes: Sequence[str] = ()
) -> None:
    """Write ``page`` (an HTML file name) with all figures, and ``NAME.png`` for each, into ``folder``.

    Parameters
    ----------
    figures
        By name; names are the PNGs' file names and the page's anchors.
    notes
        Lines above the figures on the page.

    Raises
    ------
    FileError
        The folder is missing or cannot be written.
    """
    from persona_circuits.circuit.figures.png import png_bytes

    folder = Path(folder)
    files = {f"{name}.png": png_bytes(figure) for name, figure in figures.items()}
    files[page] = figure_page(figures, title, notes).encode()
    for name, content in files.items():
        write_bytes(content, folder / name)


def figure_page(figures: Mapping[str, Figure], title: str, notes: Sequence[str] = ()) -> str:
    """All figures on one HTML page, plotly's script included once."""
    parts = [_part(name, figure, with_script=place == 0) for place, (name, figure) in enumerate(figures.items())]
    title, lines = escape(visible(title)), "".join(f"<p>{escape(visible(note))}</p>" for note in notes)
    head = f'<head><meta charset="utf-8"><title>{title}</title></head>'
    body = f'<body style="font-family: sans-serif; max-width: 1100px; margin: auto"><h1>{title}</h1>{lines}'
    return f"<!DOCTYPE html>\n<html>{head}{body}{''.join(parts)}</body></html>\n"


def laid_out(figure: Figure, title: str, x: str, y: str, yaxis: Mapping[str, Any] | None = None) -> Figure:
    """The figure with its title, its axes' titles and the house's grid."""
    grid = {"showgrid": True, "gridcolor": "#eeeeee", "zerolinecolor": "#cccccc"}
    return figure.update_layout(
        title=title,
        template="none",
        colorway=PALETTE,
        xaxis={"title": {"text": x, "standoff": 15}, "automargin": True, **grid},
        yaxis={"title": {"text": y, "standoff": 15}, "automargin": True, **grid, **(yaxis or {})},
        hovermode="closest",
        height=560,
        margin={"l": 90, "r": 30, "t": 60, "b": 70},
    )


def heat_map(
    values: Sequence[Sequence[float | None]],
    rows: Sequence[str],
    columns: Sequence[str],
    *,
    title: str,
    x: str,
    y: str,
    unit: str,
    diverging: bool = True,
    numbers: str = "",
) -> Figure:
    """Values by row and column, grey where there is none; the first row is at the top.

    ``unit`` stands at the colour bar. ``diverging`` puts zero in the middle of a two-sided
    scale. ``numbers`` is a format such as ``+.2f`` that writes the values into the cells.
    """
    from plotly.graph_objects import Figure, Heatmap

    trace = Heatmap(
        x=list(columns),
        y=list(rows),
        z=[[None if value is None or value != value else value for value in row] for row in values],
        colorscale=DIVERGING if diverging else SEQUENTIAL,
        zmid=0 if diverging else None,
        colorbar={"title": {"text": unit}},
        hoverongaps=False,
        texttemplate=f"%{{z:{numbers}}}" if numbers else None,
    )
    figure = laid_out(Figure(trace), title, x, y)
    figure.update_xaxes(type="category", showgrid=False)
    figure.update_yaxes(type="category", autorange="reversed", showgrid=False)
    return figure.update_layout(height=200 + max(160, 24 * len(rows)), plot_bgcolor=MISSING)


@dataclass(frozen=True)
class Curve:
    """One line of a chart; ``low`` and ``high`` are its interval, None where a point has none."""

    name: str
    x: Sequence[int | float | str]
    y: Sequence[float | None]
    low: Sequence[float | None] = ()
    high: Sequence[float | None] = ()
    dash: str = "solid"
    colour: str = ""
    markers: bool = True


def line_chart(
    curves: Sequence[Curve], *, title: str, x: str, y: str, yaxis: Mapping[str, Any] | None = None
) -> Figure:
    """Curves with their intervals as bands."""
    from plotly.graph_objects import Figure

    figure = Figure()
    for place, curve in enumerate(curves):
        for trace in _curve_traces(curve, PALETTE[place % len(PALETTE)]):
            figure.add_trace(trace)
    return laid_out(figure, title, x, y, yaxis).update_layout(showlegend=True)


def line_panels(
    panels: Mapping[str, Sequence[Curve]],
    *,
    title: str,
    x: str,
    y: str,
    columns: int = 2,
    yaxis: Mapping[str, Any] | None = None,
) -> Figure:
    """Charts of the same curves side by side, with one legend; a curve's name gives its colour."""
    from plotly.subplots import make_subplots

    columns = min(columns, len(panels))
    rows = -(-len(panels) // columns)
    figure = make_subplots(rows, columns, subplot_titles=list(panels), vertical_spacing=0.38 / rows)
    names = list(dict.fromkeys(curve.name for curves in panels.values() for curve in curves))
    shown: set[str] = set()
    for place, curves in enumerate(panels.values()):
        for curve in curves:
            for trace in _curve_traces(curve, PALETTE[names.index(curve.name) % len(PALETTE)]):
                if trace.name is not None:
                    trace.showlegend = trace.name not in shown
                    shown.add(trace.name)
                figure.add_trace(trace, row=1 + place // columns, col=1 + place % columns)
    laid_out(figure, title, "", "")
    figure.update_xaxes(showgrid=True, gridcolor="#eeeeee", title={"text": x, "standoff": 8}, tickangle=-60)
    figure.update_yaxes(showgrid=True, gridcolor="#eeeeee", title={"text": y, "standoff": 8}, **(yaxis or {}))
    return figure.update_layout(showlegend=True, height=90 + 400 * rows)


def _curve_traces(curve: Curve, colour: str) -> list[Any]:
    """The band, if the curve has an interval, and the line."""
    from plotly.graph_objects import Scatter

    colour = curve.colour or colour
    traces = []
    ends = [(a, b, c) for a, b, c in zip(curve.x, curve.low, curve.high, strict=False) if b is not None]
    if ends:
        around = [(a, c) for a, _, c in ends] + [(a, b) for a, b, _ in reversed(ends)]
        band = {"x": [a for a, _ in around], "y": [b for _, b in around], "fill": "toself", "mode": "lines"}
        band |= {"fillcolor": colour, "opacity": 0.15, "line": {"width": 0}, "hoverinfo": "skip"}
        traces.append(Scatter(**band, showlegend=False, legendgroup=curve.name))
    line = {"color": colour, "dash": curve.dash, "width": 2}
    style = {"mode": "lines+markers" if curve.markers else "lines", "line": line}
    marker = {"color": colour, "size": 5}
    traces.append(
        Scatter(x=list(curve.x), y=list(curve.y), name=curve.name, legendgroup=curve.name, marker=marker, **style)
    )
    return traces


def _part(name: str, figure: Figure, *, with_script: bool) -> str:
    from plotly.io import to_html

    settings = {"displaylogo": False, "responsive": True}
    content, how = _escaped(figure.to_dict()), {"config": settings, "div_id": name, "full_html": False}
    return to_html(content, include_plotlyjs=with_script, validate=False, **how)


def _escaped(value: Any, key: str = "") -> Any:
    """The figure with its texts as HTML that reads as they do; templates and packed numbers are our own, no texts."""
    if isinstance(value, Mapping):
        return {name: _escaped(item, name) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_escaped(item, key) for item in value]
    if not isinstance(value, str) or key == "bdata" or key.endswith("template"):
        return value
    # plotly knows &lt;, &gt; and &amp;, but no entity for quotes, which need none here
    return escape(shortened(visible(value), LONGEST_TEXT, distinct=True), quote=False).replace("\n", "<br>")
