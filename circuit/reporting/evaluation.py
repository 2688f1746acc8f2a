"""What a circuit was put to, as files: a CSV of every table, and figures of its pairs, edges and transfer.

pair-faithfulness     every pair's own f beside its D; flat pairs and groups apart
edge-frequency        how often each edge of the circuit is selected when the search's pairs are resampled
transfer              f on every value of a key of the pairs, with its interval, beside the best circuit outside
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from persona_circuits.circuit.assessment import Battery
from persona_circuits.circuit.evaluation import PairsView, Transfer
from persona_circuits.circuit.evaluation.stability import CORE, StabilityReport
from persona_circuits.circuit.figures import GREY, laid_out, write_csv, write_figures
from persona_circuits.circuit.figures.plots import PALETTE
from persona_circuits.circuit.reporting.evaluation_tables import tables

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

__all__ = [
    "write_battery",
]


def write_battery(results: Battery, folder: Path, *, title: str) -> None:
    """Write ``NAME.csv`` per table, ``evaluation.html`` and a PNG per figure.

    Raises:
        FileError: the folder is missing or cannot be written.
    """
    for name, rows in tables(results).items():
        write_csv(rows, folder / f"{name}.csv")
    report = results.searched.report
    notes = [results.completeness.sentence, *results.pairs.notes]
    notes += [results.searched.reason] if report is None else [report.sentence, *report.notes]
    write_figures(battery_figures(results), folder, page="evaluation.html", title=title, notes=notes)


def battery_figures(results: Battery) -> dict[str, Figure]:
    """By name; those that have nothing to show are left out."""
    found = {"pair-faithfulness": _pairs(results.pairs)}
    report = results.searched.report
    if report is not None and report.jaccard is not None and len(report.circuit):
        found["edge-frequency"] = _frequencies(report)
    parts = [(key, part) for key, group in results.transfer.items() for part in group if part.faithfulness is not None]
    if parts:
        found["transfer"] = _transfer(parts)
    return found


def _pairs(view: PairsView) -> Figure:
    from plotly.graph_objects import Figure, Scatter

    figure = Figure()
    names = {None: "pairs", -1: "flat"}
    shown = [row for row in view.rows if row.faithfulness is not None]
    several = len(view.groups) > 1
    keys = [-1 if row.flat else row.group if several else None for row in shown]
    for place, key in enumerate(sorted(set(keys), key=lambda key: -2 if key is None else key)):
        rows = [row for row, own in zip(shown, keys, strict=True) if own == key]
        colour = GREY if key == -1 else PALETTE[place % len(PALETTE)]
        figure.add_trace(
            Scatter(
                x=[row.effect if row.divergence is None else row.divergence for row in rows],
                y=[row.faithfulness for row in rows],
                text=[row.id for row in rows],
                mode="markers",
                name=f"{names.get(key, f'group {key}')} ({len(rows)})",
                marker={"color": colour, "size": 9},
            )
        )
    figure.add_hline(1.0, line_dash="dot", line_color="black", line_width=1)
    figure = laid_out(figure, "Every pair's own faithfulness", "persona divergence D, logits", "f of the pair")
    return figure.update_layout(showlegend=True)


def _frequencies(report: StabilityReport) -> Figure:
    from plotly.graph_objects import Bar, Figure

    values = sorted(report.frequency[report.circuit.mask].tolist(), reverse=True)
    colours = [PALETTE[0] if value >= CORE else PALETTE[1] for value in values]
    figure = Figure(Bar(x=list(range(1, len(values) + 1)), y=values, marker={"color": colours}))
    figure.add_hline(CORE, line_dash="dot", line_color="black", line_width=1)
    title = f"How often an edge is selected ({report.by}): {len(report.core):,} core, {len(report.fringe):,} fringe"
    return laid_out(figure, title, "edge of the circuit, by frequency", "share of repeats")


def _transfer(parts: list[tuple[str, Transfer]]) -> Figure:
    from plotly.graph_objects import Figure, Scatter

    names = [f"{key}: {part.name} ({part.n_pairs})" for key, part in parts]
    f = [part.faithfulness for _, part in parts]
    ends = [(part.interval.low, part.interval.high) if part.interval else (None, None) for _, part in parts]
    bars = {
        "type": "data",
        "symmetric": False,
        "array": [_arm(value, high) for value, (_, high) in zip(f, ends, strict=True)],
        "arrayminus": [_arm(low, value) for value, (low, _) in zip(f, ends, strict=True)],
    }
    outside = [max(part.outside, default=None) for _, part in parts]
    marker = {"color": PALETTE[0], "size": 9}
    figure = Figure(Scatter(x=names, y=f, error_y=bars, mode="markers", name="the circuit", marker=marker))
    crosses = {"color": PALETTE[1], "symbol": "x", "size": 8}
    figure.add_trace(Scatter(x=names, y=outside, mode="markers", name="best circuit outside it", marker=crosses))
    figure.add_hline(1.0, line_dash="dot", line_color="black", line_width=1)
    figure = laid_out(figure, "Faithfulness by pairs", "pairs, by their keys", "faithfulness f")
    return figure.update_xaxes(type="category", tickangle=-45).update_layout(showlegend=True)


def _arm(low: float | None, high: float | None) -> float:
    """How long an error bar is, from one to the other; nothing where one is not known."""
    return 0.0 if low is None or high is None else max(0.0, high - low)
