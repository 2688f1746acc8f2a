"""A sweep as files: JSON, CSV, one page, and a figure of f by size on either split, with the front marked."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from persona_circuits.circuit.evaluation.curves.sizes import Sweep
from persona_circuits.circuit.evaluation.curves.tables import sweep_records
from persona_circuits.circuit.figures import Axis, Chart, Curve, Points, line_chart, plain, write_csv, write_figures
from persona_circuits.circuit.storage import write_json

__all__ = ["each", "f_by_size", "write_sweep"]

FAITHFULNESS = "faithfulness f"


def write_sweep(sweep: Sweep, folder: Path, *, title: str) -> None:
    """Write ``sweep.json``, ``sweep.csv``, ``sweep.html`` and its PNG.

    Raises:
        FileError: the folder is missing or cannot be written.
    """
    write_json(plain(sweep.as_dict()), folder / "sweep.json")
    write_csv(sweep_records(sweep), folder / "sweep.csv")
    write_figures(sweep_figures(sweep), folder, page="sweep.html", title=title)


def sweep_figures(sweep: Sweep) -> dict[str, Chart]:
    """f by the number of edges, a line per split, with the front of the first split marked."""
    shown = [point for point in sweep.points if point.n_edges]
    x = [point.n_edges for point in shown]
    marks: list[Curve | Points] = []
    for name, n in sweep.n_pairs.items():
        intervals = [point.intervals[name] for point in shown]
        f = [point.faithfulness[name] for point in shown]
        marks.append(Curve(f"{name} ({n} pairs)", x, f, each(intervals, "low"), each(intervals, "high")))
    first, front = next(iter(sweep.n_pairs)), [point for point in shown if point.on_front]
    f = [point.faithfulness[first] for point in front]
    look: dict[str, Any] = {"symbol": "circle-open", "size": 12, "colour": "#000000"}
    marks.append(Points(f"front, {first}", [point.n_edges for point in front], f, **look))
    return {"sweep": f_by_size(marks, "Nested circuits over thresholds", "edges")}


def each(items: Sequence[Any], key: str) -> list[float | None]:
    """One number of every interval or spread, None where there is none."""
    return [None if item is None else getattr(item, key) for item in items]


def f_by_size(marks: Sequence[Curve | Points], title: str, x: str) -> Chart:
    """Faithfulness against a size, with a line where the whole model is."""
    return line_chart(marks, title=title, x=Axis(x, log=True), y=FAITHFULNESS, lines={"y": 1.0})
