"""A sweep as files: JSON, CSV, one page, and a figure of f by size on either split, with the front marked."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from persona_circuits.circuit.evaluation.curves.sizes import Sweep
from persona_circuits.circuit.evaluation.curves.tables import sweep_records
from persona_circuits.circuit.figures import Curve, line_chart, plain, write_csv, write_figures
from persona_circuits.circuit.storage import write_json

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

__all__ = [
    "FAITHFULNESS",
    "each",
    "with_whole_model",
    "write_sweep",
]

FAITHFULNESS = "faithfulness f"


def write_sweep(sweep: Sweep, folder: Path, *, title: str) -> None:
    """Write ``sweep.json``, ``sweep.csv``, ``sweep.html`` and its PNG.

    Raises:
        FileError: the folder is missing or cannot be written.
    """
    write_json(plain(sweep.as_dict()), folder / "sweep.json")
    write_csv(sweep_records(sweep), folder / "sweep.csv")
    write_figures(sweep_figures(sweep), folder, page="sweep.html", title=title)


def sweep_figures(sweep: Sweep) -> dict[str, Figure]:
    """f by the number of edges, a line per split, with the front of the first split marked."""
    from plotly.graph_objects import Scatter

    shown = [point for point in sweep.points if point.n_edges]
    x = [point.n_edges for point in shown]
    lines = []
    for name, n in sweep.n_pairs.items():
        intervals = [point.intervals[name] for point in shown]
        f = [point.faithfulness[name] for point in shown]
        lines.append(Curve(f"{name} ({n} pairs)", x, f, each(intervals, "low"), each(intervals, "high")))
    figure = line_chart(lines, title="Nested circuits over thresholds", x="edges", y=FAITHFULNESS)
    first, front = next(iter(sweep.n_pairs)), [point for point in shown if point.on_front]
    marker = {"symbol": "circle-open", "size": 12, "color": "#000000"}
    places = {"x": [point.n_edges for point in front], "y": [point.faithfulness[first] for point in front]}
    figure.add_trace(Scatter(**places, mode="markers", name=f"front, {first}", marker=marker))
    return {"sweep": with_whole_model(figure)}


def each(items: Sequence[Any], key: str) -> list[float | None]:
    """One number of every interval or spread, None where there is none."""
    return [None if item is None else getattr(item, key) for item in items]


def with_whole_model(figure: Figure) -> Figure:
    figure.add_hline(1.0, line_dash="dot", line_color="black", line_width=1)
    return figure.update_xaxes(type="log")
