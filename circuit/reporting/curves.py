"""Curves as files: JSON, CSV, one page and a PNG of each figure.

faithfulness by share         f over the share of edges or nodes, with intervals over pairs; the
                              random orders' band from lowest to highest
faithfulness by edges left    the same circuits by what is left of them without dead ends
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from persona_circuits.circuit.assessment import CurveStudy
from persona_circuits.circuit.evaluation.curves import Band, CurveReport, FaithfulnessCurve
from persona_circuits.circuit.evaluation.curves.sweep_files import each, f_by_size
from persona_circuits.circuit.evaluation.curves.tables import curve_records
from persona_circuits.circuit.figures import PALETTE, Chart, Curve, Points, plain, write_csv, write_figures
from persona_circuits.circuit.io import write_scores
from persona_circuits.circuit.storage import write_json

__all__ = ["write_curves"]

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


def curve_figures(report: CurveReport) -> dict[str, Chart]:
    """Per level f by share, and f by the edges that are left; the circuits that stand beside the curves are marked."""
    charts = {}
    for level in report.n_units:
        curves = [curve for curve in report.curves if curve.level == level]
        bands = [band for band in report.bands if band.level == level]
        if curves or bands:
            charts[f"faithfulness-{level}"] = _by_share(report, level, curves, bands)
            charts[f"faithfulness-{level}-left"] = _by_edges(report, level, curves)
    return charts


def _by_share(report: CurveReport, level: str, curves: list[FaithfulnessCurve], bands: list[Band]) -> Chart:
    lines = [_line(curve, curves, [point.share for point in curve.points]) for curve in curves]
    for band in bands:
        mean, low, high = (each([point.faithfulness for point in band.points], key) for key in ("mean", "low", "high"))
        x = [point.share for point in band.points]
        lines.append(Curve(f"random ({band.n})", x, mean, low, high, colour="#8a8a8a", dash="dot"))
    title = f"Faithfulness by share of {report.n_units[level]:,} {level}s, {report.n_pairs} pairs ({report.split})"
    marks = _marks(report, by_share=True) if level == "edge" else []
    return f_by_size([*lines, *marks], title, f"share of {level}s kept, before dead ends are dropped")


def _by_edges(report: CurveReport, level: str, curves: list[FaithfulnessCurve]) -> Chart:
    lines = []
    for curve in curves:
        points = [point for point in curve.points if point.n_edges]
        whole = FaithfulnessCurve(curve.scorer, curve.level, curve.order, tuple(points), None, None, None, None)
        lines.append(_line(whole, curves, [point.n_edges for point in points]))
    title = f"Faithfulness by edges left, circuits chosen by {level}, {report.n_pairs} pairs ({report.split})"
    return f_by_size([*lines, *_marks(report, by_share=False)], title, "edges left without dead ends")


def _line(curve: FaithfulnessCurve, curves: list[FaithfulnessCurve], x: list[float] | list[int]) -> Curve:
    """A scorer has one colour; its signed order is dashed."""
    scorers = list(dict.fromkeys(drawn.scorer for drawn in curves))
    intervals = [point.interval for point in curve.points]
    return Curve(
        f"{curve.scorer}, {curve.order}",
        x,
        [point.faithfulness for point in curve.points],
        low=each(intervals, "low"),
        high=each(intervals, "high"),
        dash="dash" if curve.order == "signed" else "solid",
        colour=COLOURS[scorers.index(curve.scorer) % len(COLOURS)],
    )


def _marks(report: CurveReport, *, by_share: bool) -> list[Points]:
    """The circuits that stand beside the curves."""
    look: dict[str, Any] = {"symbol": "star", "size": 13, "colour": "#000000"}
    return [
        Points(f"{mark.name} ({mark.n_edges:,} edges)", [mark.share if by_share else mark.n_edges], [f], **look)
        for mark in report.marks
        if mark.n_edges and (f := mark.faithfulness) is not None
    ]
