"""Curves and sweeps as files: JSON, CSV, one page and a PNG of each figure.

faithfulness by share         f over the share of edges or nodes, with intervals over pairs; the
                              random orders' band from lowest to highest
faithfulness by edges left    the same circuits by what is left of them without dead ends
front                         f of nested circuits by size, on either split; the front is marked
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from persona_circuits.circuit.assessment import CurveStudy
from persona_circuits.circuit.evaluation.curves import Band, CurveReport, FaithfulnessCurve, Sweep
from persona_circuits.circuit.figures import (
    PALETTE,
    Axis,
    Chart,
    Curve,
    Points,
    line_chart,
    plain,
    write_csv,
    write_figures,
)
from persona_circuits.circuit.io import write_scores
from persona_circuits.circuit.reporting.curve_tables import curve_records, sweep_records
from persona_circuits.circuit.storage import write_json

__all__ = [
    "write_curves",
    "write_sweep",
]

FAITHFULNESS = "faithfulness f"
COLOURS = tuple(colour for colour in PALETTE if colour not in ("#000000", "#8a8a8a"))
NOTES = (
    "absolute: the largest |score| first. signed: first the edges whose corruption lowers the metric most. "
    "f above 1 means that what is left out works against the contrast. Bands: 95 % bootstrap intervals; "
    "of random orders, lowest to highest.",
)


def write_curves(study: CurveStudy, folder: Path, *, title: str) -> None:
    """Write ``curves.json``, ``curves.csv``, ``curves.html`` with a PNG per figure, and the scores that were computed.

    Raises:
        FileError: the folder is missing or cannot be written.
    """
    write_json(plain(study.as_dict()), folder / "curves.json")
    write_csv(curve_records(study.report), folder / "curves.csv")
    for name, scores in study.scores.items():
        write_scores(scores, folder / f"scores-{name}.safetensors")
    write_figures(curve_figures(study.report), folder, page="curves.html", title=title, notes=NOTES)


def write_sweep(sweep: Sweep, folder: Path, *, title: str) -> None:
    """Write ``sweep.json``, ``sweep.csv``, ``sweep.html`` and its PNG.

    Raises:
        FileError: the folder is missing or cannot be written.
    """
    write_json(plain(sweep.as_dict()), folder / "sweep.json")
    write_csv(sweep_records(sweep), folder / "sweep.csv")
    write_figures(sweep_figures(sweep), folder, page="sweep.html", title=title)


def curve_figures(report: CurveReport) -> dict[str, Chart]:
    """Per level f by share, and f by the edges that are left; the circuits that stand beside the curves are marked."""
    found = {}
    for level in report.n_units:
        curves = [curve for curve in report.curves if curve.level == level]
        bands = [band for band in report.bands if band.level == level]
        if curves or bands:
            found[f"faithfulness-{level}"] = _by_share(report, level, curves, bands)
            found[f"faithfulness-{level}-left"] = _by_edges(report, level, curves)
    return found


def sweep_figures(sweep: Sweep) -> dict[str, Chart]:
    """f by the number of edges, a line per split, with the front of the first split marked."""
    shown = [point for point in sweep.points if point.n_edges]
    x = [point.n_edges for point in shown]
    marks: list[Curve | Points] = []
    for name, n in sweep.n_pairs.items():
        intervals = [point.intervals[name] for point in shown]
        f = [point.faithfulness[name] for point in shown]
        marks.append(Curve(f"{name} ({n} pairs)", x, f, _each(intervals, "low"), _each(intervals, "high")))
    first, front = next(iter(sweep.n_pairs)), [point for point in shown if point.on_front]
    f, look = [point.faithfulness[first] for point in front], {"symbol": "circle-open", "size": 12, "colour": "#000000"}
    marks.append(Points(f"front, {first}", [point.n_edges for point in front], f, **look))
    return {"sweep": _chart(marks, "Nested circuits over thresholds", "edges")}


def _by_share(report: CurveReport, level: str, curves: list[FaithfulnessCurve], bands: list[Band]) -> Chart:
    lines = [_line(curve, curves, [point.share for point in curve.points]) for curve in curves]
    for band in bands:
        mean, low, high = (_each([point.faithfulness for point in band.points], key) for key in ("mean", "low", "high"))
        x = [point.share for point in band.points]
        lines.append(Curve(f"random ({band.n})", x, mean, low, high, colour="#8a8a8a", dash="dot"))
    title = f"Faithfulness by share of {report.n_units[level]:,} {level}s, {report.n_pairs} pairs ({report.split})"
    marks = _marks(report, by_share=True) if level == "edge" else []
    return _chart([*lines, *marks], title, f"share of {level}s kept, before dead ends are dropped")


def _by_edges(report: CurveReport, level: str, curves: list[FaithfulnessCurve]) -> Chart:
    lines = []
    for curve in curves:
        points = [point for point in curve.points if point.n_edges]
        whole = FaithfulnessCurve(curve.scorer, curve.level, curve.order, tuple(points), None, None, None, None)
        lines.append(_line(whole, curves, [point.n_edges for point in points]))
    title = f"Faithfulness by edges left, circuits chosen by {level}, {report.n_pairs} pairs ({report.split})"
    return _chart([*lines, *_marks(report, by_share=False)], title, "edges left without dead ends")


def _line(curve: FaithfulnessCurve, curves: list[FaithfulnessCurve], x: list[float] | list[int]) -> Curve:
    """A scorer has one colour; its signed order is dashed."""
    scorers = list(dict.fromkeys(one.scorer for one in curves))
    intervals = [point.interval for point in curve.points]
    return Curve(
        f"{curve.scorer}, {curve.order}",
        x,
        [point.faithfulness for point in curve.points],
        low=_each(intervals, "low"),
        high=_each(intervals, "high"),
        dash="dash" if curve.order == "signed" else "solid",
        colour=COLOURS[scorers.index(curve.scorer) % len(COLOURS)],
    )


def _each(items: Sequence[Any], key: str) -> list[float | None]:
    """One number of every interval or spread, None where there is none."""
    return [None if item is None else getattr(item, key) for item in items]


def _marks(report: CurveReport, *, by_share: bool) -> list[Points]:
    """The circuits that stand beside the curves."""
    look: dict[str, Any] = {"symbol": "star", "size": 13, "colour": "#000000"}
    return [
        Points(f"{one.name} ({one.n_edges:,} edges)", [one.share if by_share else one.n_edges], [f], **look)
        for one in report.marks
        if one.n_edges and (f := one.faithfulness) is not None
    ]


def _chart(marks: Sequence[Curve | Points], title: str, x: str) -> Chart:
    """With a line where the whole model is."""
    return line_chart(marks, title=title, x=Axis(x, log=True), y=FAITHFULNESS, lines={"y": 1.0})
