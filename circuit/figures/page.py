"""Charts on one HTML page that needs no network, drawn by plotly.

Texts of a chart are plain: names of personas, answers and questions go in as they are, line feeds break lines. plotly
would read them as HTML; they are escaped here. The page holds the charts' data too: paper is drawn from it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from html import escape
from math import log10
from typing import Any

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
    Mark,
    Panel,
    Points,
    Spread,
    charts_record,
)
from persona_circuits.circuit.printable import shortened, visible

__all__ = ["DATA", "figure_page", "plotly_figure"]

LONGEST_TEXT = 300  # characters of a text that are shown on a page
MOST_NUMBERS = 24  # columns of a heat map with numbers in its cells
DATA = '<script type="application/json" id="charts">'  # what stands before the charts' data
HATCHES = ("", "/", ".", "\\", "x", "-", "|", "+")
GRID = {"showgrid": True, "gridcolor": "#eeeeee", "zerolinecolor": "#cccccc", "automargin": True}


def figure_page(charts: Mapping[str, Chart], title: str, notes: Sequence[str] = ()) -> str:
    """All charts on one HTML page, plotly's script included once."""
    parts = [_part(name, chart, with_script=place == 0) for place, (name, chart) in enumerate(charts.items())]
    title, lines = escape(visible(title)), "".join(f"<p>{escape(visible(note))}</p>" for note in notes)
    head = f'<head><meta charset="utf-8"><title>{title}</title></head>'
    body = f'<body style="font-family: sans-serif; max-width: 1100px; margin: auto"><h1>{title}</h1>{lines}'
    data = json.dumps(charts_record(charts)).replace("<", "\\u003c")
    return f"<!DOCTYPE html>\n<html>{head}{body}{''.join(parts)}{DATA}{data}</script></body></html>\n"


def plotly_figure(chart: Chart) -> dict[str, Any]:
    """A chart as plotly's JSON, its texts still plain."""
    looks, (legend, more) = chart.looks(), chart.legend()
    traces, layout, shown = [], _layout(chart), set[str]()
    for place, panel in enumerate(chart.panels):
        ends = {"xaxis": f"x{_turn(place)}", "yaxis": f"y{_turn(place)}"}
        layout |= _axes(chart, place)
        layout["shapes"] += _shapes(panel, place)
        for mark in panel.marks:
            look = looks.get(mark.name) if not isinstance(mark, Cells) else None
            for trace in _traces(panel, mark, look or Look(GREY, "circle", 0)):
                name = str(trace.get("name"))
                trace["showlegend"] = trace.get("showlegend", True) and name in legend and name not in shown
                shown |= {name} if trace["showlegend"] else set()
                traces.append({**trace, **ends})
    if more:
        name = f"and {more} more"
        traces.append({"type": "scatter", "x": [None], "y": [None], "name": name, "line": {"color": GREY}})
    return {"data": traces, "layout": {**layout, "showlegend": bool(legend)}}


def _layout(chart: Chart) -> dict[str, Any]:
    rows = -(-len(chart.panels) // chart.columns)
    cells = chart.panels[0].cells if len(chart.panels) == 1 else None
    tall = 90 + 420 * rows
    if cells is not None:
        tall = 200 + max(160, 24 * len(cells.rows))
    elif chart.panels[0].across:
        tall = 220 + max(160, 22 * len(chart.panels[0].names("y")))
    stacked = any(panel.stacked for panel in chart.panels)
    return {
        "title": {"text": chart.title},
        "hovermode": "closest",
        "height": tall,
        "barmode": "relative" if stacked else "group",
        "margin": {"l": 90, "r": 30, "t": 60, "b": 70},
        "plot_bgcolor": "white" if cells is None else MISSING,
        "annotations": [_name(chart, place) for place, panel in enumerate(chart.panels) if panel.name],
        "shapes": [],
    }


def _domains(chart: Chart, place: int) -> tuple[list[float], list[float]]:
    """Where a panel is on the page, from 0 to 1: from left to right, and from the bottom up."""
    rows, row, column = -(-len(chart.panels) // chart.columns), place // chart.columns, place % chart.columns
    gap, widths = 0.2 / chart.columns, chart.widths or [1.0] * chart.columns
    whole = (1.0 - gap * (chart.columns - 1)) / sum(widths[: chart.columns])
    left = sum(widths[:column]) * whole + gap * column
    tall = (1.0 - 0.38 * (rows - 1) / rows) / rows
    top = 1.0 - row * (tall + 0.38 / rows)
    return [left, left + widths[column] * whole], [max(0.0, top - tall), top]


def _name(chart: Chart, place: int) -> dict[str, Any]:
    (left, right), (_, top) = _domains(chart, place)
    where = {"x": (left + right) / 2, "y": top, "xref": "paper", "yref": "paper", "xanchor": "center"}
    return {**where, "yanchor": "bottom", "text": chart.panels[place].name, "showarrow": False}


def _turn(place: int) -> str:
    """What plotly puts after the names of a panel's axes."""
    return "" if place == 0 else str(place + 1)


def _axes(chart: Chart, place: int) -> dict[str, Any]:
    panel, domains = chart.panels[place], _domains(chart, place)
    turn = _turn(place)
    return {
        f"{which}axis{turn}": _axis(panel, which, axis) | {"domain": domain, "anchor": f"{other}{turn}"}
        for which, other, axis, domain in zip("xy", "yx", (panel.x, panel.y), domains, strict=True)
    }


def _axis(panel: Panel, which: str, axis: Axis) -> dict[str, Any]:
    layout: dict[str, Any] = {"title": {"text": axis.title, "standoff": 12}, **GRID}
    if names := panel.names(which):
        layout |= {"type": "category", "categoryorder": "array", "categoryarray": names}
        layout["showgrid"] = panel.cells is None and (which == "x") == panel.across
        if which == "x" and sum(map(len, names)) > 110:
            layout["tickangle"] = -60
    elif axis.log:
        layout["type"] = "log"
    if axis.whole:
        most = max(
            (value for mark in panel.marks for value in panel.along(mark, which) if value is not None), default=1
        )
        layout |= {"tick0": 0, "dtick": max(1, -(-int(most) // 6))}
    if axis.ends is not None:
        ends = tuple(map(log10, axis.ends)) if axis.log else axis.ends
        layout["range"] = ends[::-1] if axis.falls else ends
    elif axis.falls:
        layout["autorange"] = "reversed"
    return layout | ({"showticklabels": False, "showgrid": False, "zeroline": False} if axis.bare else {})


def _shapes(panel: Panel, place: int) -> list[dict[str, Any]]:
    end, shapes = _turn(place), []
    for which, at in panel.lines.items():
        ends = {"xref": f"x{end}", "yref": f"y{end} domain", "x0": at, "x1": at, "y0": 0, "y1": 1}
        if which == "y":
            ends = {"xref": f"x{end} domain", "yref": f"y{end}", "x0": 0, "x1": 1, "y0": at, "y1": at}
        shapes.append({"type": "line", **ends, "line": {"color": "black", "width": 1, "dash": "dot"}})
    if panel.shade is not None:
        low, high = panel.shade
        ends = {"xref": f"x{end} domain", "yref": f"y{end}", "x0": 0, "x1": 1, "y0": low, "y1": high}
        shapes.append({"type": "rect", **ends, "fillcolor": GREY, "opacity": 0.3, "line": {"width": 0}})
    return shapes


def _traces(panel: Panel, mark: Mark, look: Look) -> list[dict[str, Any]]:
    if isinstance(mark, Curve):
        return _curve(mark, look)
    if isinstance(mark, Points):
        return [_points(panel, mark, look)]
    if isinstance(mark, Bars):
        return [_bars(panel, mark, look)]
    if isinstance(mark, Spread):
        box = {"boxpoints": "all", "jitter": 0.4, "pointpos": 0, "boxmean": True}
        own = {"type": "box", "y": list(mark.values), "name": mark.name, "hovertext": list(mark.hover), **box}
        return [{**own, "marker": {"color": mark.colour or look.colour, "size": 5, "opacity": 0.6}}]
    return [_cells(mark)]


def _curve(curve: Curve, look: Look) -> list[dict[str, Any]]:
    """The band, if the curve has an interval, and the line."""
    traces = []
    ends = [(a, b, c) for a, b, c in zip(curve.x, curve.low, curve.high, strict=False) if b is not None]
    if ends:
        outline = [(a, c) for a, _, c in ends] + [(a, b) for a, b, _ in reversed(ends)]
        band: dict[str, Any] = {
            "type": "scatter",
            "x": [a for a, _ in outline],
            "y": [b for _, b in outline],
            "mode": "lines",
        }
        band |= {"fill": "toself", "fillcolor": look.colour, "opacity": 0.15, "line": {"width": 0}}
        traces.append({**band, "hoverinfo": "skip", "showlegend": False, "legendgroup": curve.name})
    line: dict[str, Any] = {
        "type": "scatter",
        "x": list(curve.x),
        "y": list(curve.y),
        "name": curve.name,
        "legendgroup": curve.name,
    }
    line |= {"mode": "lines+markers" if curve.markers else "lines", "line": {"color": look.colour, "dash": curve.dash}}
    return [*traces, {**line, "marker": {"color": look.colour, "size": 6, "symbol": look.symbol}}]


def _points(panel: Panel, mark: Points, look: Look) -> dict[str, Any]:
    marker: dict[str, Any] = {"color": look.colour, "symbol": look.symbol, "size": mark.size, "opacity": 0.8}
    if mark.values:
        scale = {"colorscale": "Viridis", "showscale": True, "colorbar": {"title": {"text": mark.unit}}}
        marker |= {"color": list(mark.values), **scale}
    trace = {"type": "scatter", "x": list(mark.x), "y": list(mark.y), "name": mark.name, "marker": marker}
    trace |= {"mode": "markers+text" if mark.labels else "markers", "text": list(mark.labels)}
    trace |= {"textposition": "top center", "textfont": {"size": 10}, "hovertext": list(mark.hover or mark.labels)}
    middle = mark.x if panel.across else mark.y
    return trace | _whiskers(panel, middle, mark.low, mark.high)


def _bars(panel: Panel, mark: Bars, look: Look) -> dict[str, Any]:
    """Bars, distinguished by hatching too where there are several series."""
    several = sum(isinstance(other, Bars) for other in panel.marks) > 1
    pattern = {"shape": HATCHES[look.place % len(HATCHES)] if several else "", "fgcolor": "white", "solidity": 0.2}
    lengths = ("x", "y") if panel.across else ("y", "x")
    trace = {"type": "bar", lengths[0]: list(mark.values), lengths[1]: list(mark.places), "name": mark.name}
    trace |= {"orientation": "h" if panel.across else "v", "legendgroup": mark.name}
    return {**trace, "marker": {"color": look.colour, "pattern": pattern}} | _whiskers(
        panel, mark.values, mark.low, mark.high
    )


def _whiskers(panel: Panel, middle: Sequence[Any], low: Sequence[Any], high: Sequence[Any]) -> dict[str, Any]:
    if not any(end is not None for end in low):
        return {}
    up = [0.0 if b is None or a is None else b - a for a, b in zip(middle, high, strict=True)]
    down = [0.0 if b is None or a is None else a - b for a, b in zip(middle, low, strict=True)]
    error = {"type": "data", "symmetric": False, "array": up, "arrayminus": down, "color": "#444444", "thickness": 1}
    return {"error_x" if panel.across else "error_y": error}


def _cells(mark: Cells) -> dict[str, Any]:
    low, high = mark.limits()
    trace: dict[str, Any] = {"type": "heatmap", "x": list(mark.columns), "y": list(mark.rows)}
    trace["z"] = [list(row) for row in mark.values]
    scale = DIVERGING if mark.diverging else SEQUENTIAL
    trace |= {"colorscale": [list(stop) for stop in scale], "zmin": low, "zmax": high, "hoverongaps": False}
    if mark.numbers and len(mark.columns) <= MOST_NUMBERS:
        trace |= {"text": mark.texts(), "texttemplate": "%{text}"}
    return trace | {"colorbar": {"title": {"text": mark.unit}}}


def _part(name: str, chart: Chart, *, with_script: bool) -> str:
    from plotly.io import to_html

    settings = {"displaylogo": False, "responsive": True}
    content, how = _escaped(plotly_figure(chart)), {"config": settings, "div_id": name, "full_html": False}
    return to_html(content, include_plotlyjs=with_script, validate=False, **how)


def _escaped(value: Any, key: str = "") -> Any:
    """The figure with its texts as HTML that reads as they do; templates are our own."""
    if isinstance(value, Mapping):
        return {name: _escaped(item, name) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_escaped(item, key) for item in value]
    if not isinstance(value, str) or key.endswith("template"):
        return value
    # plotly knows &lt;, &gt; and &amp;, but no entity for quotes, which need none here
    return escape(shortened(visible(value), LONGEST_TEXT, distinct=True), quote=False).replace("\n", "<br>")
