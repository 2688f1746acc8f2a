"""Curves and sweeps as rows of tables, for people and for CSV."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from persona_circuits.circuit.evaluation.curves.points import SHARES, BandPoint, FaithfulnessCurve, Point, Spread
from persona_circuits.circuit.evaluation.curves.report import CurveReport
from persona_circuits.circuit.evaluation.curves.sizes import Sweep
from persona_circuits.circuit.figures import picked
from persona_circuits.circuit.statistics import Interval
from persona_circuits.circuit.table import Column, Table, to

__all__ = ["area_rows", "curve_records", "curve_rows", "curve_tables", "size_rows", "sweep_records", "sweep_table"]

Rows = list[tuple[str, ...]]
PERCENT = tuple(f"{100 * share:g} %" for share in SHARES[:-1])
CURVES = ("scorer", "order", *PERCENT)
AREAS = ("scorer", "order", "CPR", "95 % interval", "CMD", "95 % interval")


def curve_tables(report: CurveReport) -> Iterator[Table]:
    """Per level f by share, the pairs' median f, the edges that are left, and the areas."""
    for level, n in report.n_units.items():
        title = f"faithfulness by share of {n:,} {level}s"
        yield Table(f"{title}, ratios of means", CURVES, curve_rows(report, level), 2)
        if medians := median_rows(report, level):
            yield Table(f"{title}, medians of the pairs' own ratios", CURVES, medians, 2)
        yield Table("edges left without dead ends", CURVES, size_rows(report, level), 2)
        note = f"intervals over {report.resampled}; of random orders from the lowest to the highest"
        yield Table("areas over the share", AREAS, area_rows(report, level), 2, [note])


def curve_rows(report: CurveReport, level: str) -> Rows:
    """f, a ratio of means, by share, below the whole model; of the band the mean, the lowest and the highest."""
    rows = [
        (curve.scorer, curve.order, *(_number(point.faithfulness, 2) for point in curve.points[:-1]))
        for curve in report.curves
        if curve.level == level
    ]
    for band in report.bands:
        if band.level == level:
            for which in ("mean", "low", "high"):
                values = (_of(point.faithfulness, which) for point in band.points[:-1])
                rows.append((f"random ({band.n})", which, *(_number(value, 2) for value in values)))
    return rows


def median_rows(report: CurveReport, level: str) -> Rows:
    """The median of the pairs' own ratios by share; random orders have none."""
    return [
        (curve.scorer, curve.order, *(_number(point.median_of_ratios, 2) for point in curve.points[:-1]))
        for curve in report.curves
        if curve.level == level
    ]


def size_rows(report: CurveReport, level: str) -> Rows:
    """Edges left without dead ends, by share, after the number of edges or nodes that the share amounts to."""
    curves = [curve for curve in report.curves if curve.level == level]
    bands = [band for band in report.bands if band.level == level]
    asked = [curve.points for curve in curves if curve.order != "given"] + [band.points for band in bands]
    rows: Rows = [(f"{level}s asked for", "", *(f"{p.asked:,}" for p in asked[0][:-1]))] if asked else []
    rows += [(curve.scorer, curve.order, *(f"{p.n_edges:,}" for p in curve.points[:-1])) for curve in curves]
    return rows + [
        (f"random ({band.n})", "mean", *(f"{point.n_edges:,.0f}" for point in band.points[:-1])) for band in bands
    ]


def area_rows(report: CurveReport, level: str) -> Rows:
    """CPR and CMD; the band's ends in place of intervals."""
    rows: Rows = [
        (
            curve.scorer,
            curve.order,
            _number(curve.cpr, 3),
            _interval(curve.cpr_interval),
            _number(curve.cmd, 3),
            _interval(curve.cmd_interval),
        )
        for curve in report.curves
        if curve.level == level
    ]
    for band in report.bands:
        if band.level == level:
            ends = [(_number(_of(item, "mean"), 3), _ends(item)) for item in (band.cpr, band.cmd)]
            rows.append((f"random ({band.n})", "lowest to highest", *ends[0], *ends[1]))
    return rows


def curve_records(report: CurveReport) -> list[dict[str, Any]]:
    """A line per circuit of every curve, and per share of every band, with plain values."""
    return [_point_record(curve, point) for curve in report.curves for point in curve.points] + [
        _band_record(band.level, band.n, point) for band in report.bands for point in band.points
    ]


def sweep_table(sweep: Sweep) -> Table:
    """A row per circuit, from the smallest on; what lies on the front is marked."""
    title = "nested circuits; * no smaller one here is as close to the whole model on the pairs searched on"
    columns = [
        Column("threshold", "tau", ".4g"),
        Column("share", "share", ".2g"),
        Column("edges", "n_edges", ","),
        Column("nodes", "n_nodes", ","),
    ]
    columns += [column for name, n in sweep.n_pairs.items() for column in _of_split(name, n)]
    front = Column("front", lambda point: "*" if point.on_front else "")
    over = "; ".join(f"on {name} {by}" for name, by in sweep.resampled.items())
    note = f"f is a ratio of means, median of the pairs' own; intervals {over}"
    return Table(title, [*columns, front], sweep.points, 0, [note])


def _of_split(name: str, n: int) -> tuple[Column, ...]:
    """What was measured on the pairs of one split."""
    return (
        Column(f"f on {name} ({n})", lambda point: point.faithfulness[name], ".3f"),
        Column("95 % interval", lambda point: point.intervals[name], to(3)),
        Column("median", lambda point: _number(point.medians[name], 3)),
    )


def sweep_records(sweep: Sweep) -> list[dict[str, Any]]:
    """The same with plain values."""
    return [
        {
            **picked(point, "tau", "share", "asked", "n_edges", "n_nodes"),
            **{
                f"{key}.{name}": value
                for name in sweep.n_pairs
                for key, value in _measured(
                    point.faithfulness[name], point.intervals[name], point.medians[name]
                ).items()
            },
            "on_front": point.on_front,
        }
        for point in sweep.points
    ]


def _point_record(curve: FaithfulnessCurve, point: Point) -> dict[str, Any]:
    return {
        **picked(curve, "scorer", "level", "order"),
        **picked(point, "share", "asked", "n_edges", "n_nodes", "m"),
        **_measured(point.faithfulness, point.interval, point.median_of_ratios),
    }


def _band_record(level: str, n: int, point: BandPoint) -> dict[str, Any]:
    return {
        "scorer": f"random ({n})",
        "level": level,
        "order": "random",
        **picked(point, "share", "asked", "n_edges"),
        "n_nodes": None,
        "m": None,
        "faithfulness": _of(point.faithfulness, "mean"),
        "low": _of(point.faithfulness, "low"),
        "high": _of(point.faithfulness, "high"),
        "over": "random orders",
        "median_of_ratios": None,
    }


def _measured(faithfulness: float | None, interval: Interval | None, median: float | None) -> dict[str, Any]:
    ends = (None, None, None) if interval is None else (interval.low, interval.high, interval.by)
    return {
        "faithfulness": faithfulness,
        **dict(zip(("low", "high", "over"), ends, strict=True)),
        "median_of_ratios": median,
    }


def _of(spread: Spread | None, which: str) -> float | None:
    return None if spread is None else getattr(spread, which)


def _ends(spread: Spread | None) -> str:
    return "" if spread is None else f"{spread.low:.3f} to {spread.high:.3f}"


def _interval(interval: Interval | None) -> str:
    return "" if interval is None else f"{interval.low:.3f} to {interval.high:.3f}"


def _number(value: float | None, places: int) -> str:
    return "undefined" if value is None else f"{round(value, places) + 0.0:.{places}f}"
