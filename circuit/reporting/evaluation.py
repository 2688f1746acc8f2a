"""The tests of a circuit as files: a CSV of every table, and figures of its pairs, edges and transfer.

pair-faithfulness     every pair's own f beside its D; flat pairs and groups apart
edge-frequency        how often each edge of the circuit is selected when the search's pairs are resampled
transfer              f on every value of a key of the pairs, with its interval, beside the best circuit outside
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from persona_circuits.circuit.assessment import CircuitTests
from persona_circuits.circuit.evaluation import PairsView, Transfer
from persona_circuits.circuit.evaluation.stability import CORE, StabilityReport
from persona_circuits.circuit.figures import GREY, Bars, Chart, Points, bar_chart, chart, write_csv, write_figures
from persona_circuits.circuit.reporting.evaluation_tables import tables

__all__ = ["write_tests"]


def write_tests(results: CircuitTests, folder: Path, *, title: str) -> None:
    """Write ``NAME.csv`` per table, ``evaluation.html`` and a PNG per figure.

    Raises:
        FileError: the folder is missing or cannot be written.
    """
    for name, rows in tables(results).items():
        write_csv(rows, folder / f"{name}.csv")
    report = results.searched.report
    notes = [] if results.completeness is None else [results.completeness.sentence]
    notes += [] if results.pairs is None else results.pairs.notes
    notes += [results.searched.reason] if report is None else [report.sentence, *report.notes]
    write_figures(tests_figures(results), folder, page="evaluation.html", title=title, notes=notes)


def tests_figures(results: CircuitTests) -> dict[str, Chart]:
    """By name; those that have nothing to show are left out."""
    charts = {} if results.pairs is None else {"pair-faithfulness": _pairs(results.pairs)}
    report = results.searched.report
    if report is not None and report.jaccard is not None and len(report.circuit):
        charts["edge-frequency"] = _frequencies(report)
    parts = [(key, part) for key, group in results.transfer.items() for part in group if part.faithfulness is not None]
    if parts:
        charts["transfer"] = _transfer(parts)
    return charts


def _pairs(view: PairsView) -> Chart:
    names = {None: "pairs", -1: "flat"}
    shown = [row for row in view.rows if row.faithfulness is not None]
    several = len(view.groups) > 1
    keys = [-1 if row.flat else row.group if several else None for row in shown]
    marks = []
    for key in sorted(set(keys), key=lambda key: -2 if key is None else key):
        rows = [row for row, own in zip(shown, keys, strict=True) if own == key]
        x, y = (
            [row.effect if row.divergence is None else row.divergence for row in rows],
            [r.faithfulness for r in rows],
        )
        name, colour = f"{names.get(key, f'group {key}')} ({len(rows)})", GREY if key == -1 else ""
        marks.append(Points(name, x, y, hover=[row.id for row in rows], colour=colour))
    axes: dict[str, Any] = {"x": "persona effect (D), logits", "y": "faithfulness of the pair (f)"}
    return chart(marks, title="Every pair's own faithfulness", **axes, lines={"y": 1.0})


def _frequencies(report: StabilityReport) -> Chart:
    values = sorted(report.frequency[report.circuit.mask].tolist(), reverse=True)
    places, bars = list(range(1, len(values) + 1)), []
    for name, is_core in (("core", True), ("fringe", False)):
        bars.append(Bars(name, places, [value if (value >= CORE) == is_core else None for value in values]))
    title = f"How often an edge is selected ({report.by}): {len(report.core):,} core, {len(report.fringe):,} fringe"
    named = {"x": "edge of the circuit, by frequency", "y": "share of repeats"}
    return bar_chart(bars, title=title, **named, stacked=True, lines={"y": CORE})


def _transfer(parts: list[tuple[str, Transfer]]) -> Chart:
    names = [f"{key}: {part.name} ({part.n_pairs})" for key, part in parts]
    f: list[Any] = [part.faithfulness for _, part in parts]
    ends = [part.interval for _, part in parts]
    low, high = ([None if interval is None else getattr(interval, end) for interval in ends] for end in ("low", "high"))
    outside: list[Any] = [max(part.outside, default=None) for _, part in parts]
    marks = [Points("the circuit", f, names, low, high), Points("best circuit outside it", outside, names, symbol="x")]
    named = {"x": "faithfulness (f)", "y": "pairs, by their keys"}
    return bar_chart(marks, title="Faithfulness by pairs", **named, across=True, lines={"x": 1.0})
