"""Figures of explanations.

verdicts           per group, how many pairs have each verdict
numbers            every pair's D and the gain that separates its choices, marked by verdict, controls in grey, with the
                   gain 1 from which on it collapses and the band of no signal
signal             the persona's signal by layer, at the persona and at the answer, mean per verdict
alignment          eta at the answer by layer, mean per verdict
confusion          expected classes by verdicts
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from persona_circuits.circuit.figures import (
    GREY,
    Bars,
    Chart,
    Curve,
    Points,
    bar_chart,
    chart,
    heat_map,
    line_panels,
    write_figures,
)
from persona_circuits.persona.explanation.groups import Explained
from persona_circuits.persona.explanation.study import Explanation
from persona_circuits.persona.explanation.verdicts import VERDICTS

__all__ = ["explain_figures", "write_explain_figures"]

COLOURS = {
    "no collapse": "#0072b2",
    "prior dominance": "#d55e00",
    "cancellation": "#e69f00",
    "weak or transient": "#56b4e9",
    "bottleneck": "#009e73",
    "not a preference": "#000000",
    "reversed": "#cc79a7",
    "undecided": "#8a8a8a",
}
SIGNAL = "share of any two prompts' difference"
MOST_GROUPS = 60
MOST_GAIN = 3.0


def write_explain_figures(study: Explanation, folder: Path) -> None:
    """Write ``explain.html`` and a PNG of each figure."""
    title = f"Why personas collapse: {Path(study.model).name}"
    write_figures(explain_figures(study), folder, page="explain.html", title=title, notes=study.notes)


def explain_figures(found: Explanation) -> dict[str, Chart]:
    """The figures that there is data for, by name."""
    figures = {
        "verdicts": _verdicts(found),
        "numbers": _numbers(found),
        "signal": _by_layer(found, "Persona signal by layer: mean and SD of pairs", SIGNAL, _signals),
        "alignment": _by_layer(
            found, "Readout alignment at the answer by layer: mean and SD of pairs", "eta", _alignments
        ),
        "confusion": _confusion(found),
    }
    return {name: figure for name, figure in figures.items() if figure is not None}


def _verdicts(study: Explanation) -> Chart:
    """Stacked bars, a group each; single pairs would be bars of one colour and are left to the tables."""
    groups = [study.overall, *(g for g in study.groups if g.by != "pair"), *study.controls]
    shown = groups[:MOST_GROUPS]
    names = ["all" if g.by == "all" else f"{g.by} {g.value} ({g.n})" for g in shown]
    bars = []
    for verdict in VERDICTS:
        counts = [g.verdicts.get(verdict, 0) for g in shown]
        if any(counts):
            shares = [count / g.n for count, g in zip(counts, shown, strict=True)]
            bars.append(Bars(verdict, names, shares, colour=COLOURS[verdict]))
    title = "Verdicts" if len(shown) == len(groups) else f"Verdicts, the first {len(shown)} of {len(groups)} groups"
    return bar_chart(bars, title=title, x="share of pairs", y="", across=True, stacked=True)


def _numbers(study: Explanation) -> Chart:
    parts = {name: [row for row in study.pairs if row.verdict.name == name] for name in VERDICTS}
    points = [_points(rows, name, COLOURS[name], "") for name, rows in parts.items() if rows]
    if study.control_pairs:
        points.append(_points(study.control_pairs, "control", GREY, "x"))
    null = study.thresholds.null(study.null.sigma_0)
    x = f"log10 of the gain that parts the choices, at most {MOST_GAIN:g}; from 0 on the pair collapses"
    title = "Persona divergence, gain and verdict"
    return chart(points, title=title, x=x, y="persona effect (D), logits", lines={"x": 0.0}, shade=(-null, null))


def _points(rows: Sequence[Explained], name: str, colour: str, symbol: str) -> Points:
    gains = np.clip([row.flip_gain for row in rows], 10.0**-MOST_GAIN, 10.0**MOST_GAIN)
    x, y, hover = np.log10(gains).tolist(), [row.measure.divergence for row in rows], [_label(row) for row in rows]
    return Points(f"{name} ({len(rows)})", x, y, hover=hover, colour=colour, symbol=symbol)


def _label(row: Explained) -> str:
    pair = row.item.pair
    who = f"{pair.persona_a} / {pair.persona_b}: {row.item.question}" if pair.persona_a else pair.id
    return f"{who} → {row.measure.choice_a.strip()} / {row.measure.choice_b.strip()}; {row.verdict.why}"


Lines = Callable[[Sequence[Explained]], dict[str, np.ndarray]]


def _signals(rows: Sequence[Explained]) -> dict[str, np.ndarray]:
    return {f"at the {place}": np.array([row.inside.signal[place] for row in rows]) for place in ("persona", "answer")}


def _alignments(rows: Sequence[Explained]) -> dict[str, np.ndarray]:
    return {"": np.array([row.inside.alignment for row in rows])}


def _by_layer(study: Explanation, title: str, y: str, lines: Lines) -> Chart:
    """Mean curves per verdict, with the pairs' standard deviation as a band; a panel for every place."""
    panels: dict[str, list[Curve]] = {}
    for verdict in VERDICTS:
        rows = [row for row in (*study.pairs, *study.control_pairs) if row.verdict.name == verdict]
        for where, values in lines(rows).items() if rows else ():
            mean, spread = values.mean(0), values.std(0)
            x = [float(layer) for layer in range(values.shape[1])]
            low, high = ((mean - spread).tolist(), (mean + spread).tolist()) if len(rows) > 1 else ((), ())
            curve = Curve(f"{verdict} ({len(rows)})", x, mean.tolist(), low, high, colour=COLOURS[verdict])
            panels.setdefault(where, []).append(curve)
    return line_panels(panels, title=title, x="stream into layer, the last into the final norm", y=y)


def _confusion(study: Explanation) -> Chart | None:
    if study.agreement is None:
        return None
    table = study.agreement.table
    columns = [name for name in VERDICTS if any(name in row for row in table.values())]
    values = [[float(row.get(name, 0)) for name in columns] for row in table.values()]
    kappa = "" if study.agreement.kappa is None else f", Cohen's kappa {study.agreement.kappa:.2f}"
    named: dict[str, Any] = {"x": "verdict", "y": "generator", "unit": "pairs", "numbers": ".0f", "diverging": False}
    return heat_map(values, list(table), columns, title=f"What the generator sets against verdicts{kappa}", **named)
