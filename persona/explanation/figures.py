"""Figures of explanations.

verdicts           per group, how many pairs have each verdict
numbers            every pair's D and the gain that parts its choices, coloured by verdict, with the gain 1
                   from which on it collapses and the band of no signal
signal             the persona's signal by layer, at the persona and at the answer, mean per verdict
alignment          eta at the answer by layer, mean per verdict
confusion          expected classes by verdicts
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from persona_circuits.circuit.figures import GREY, Curve, heat_map, laid_out, line_chart, write_figures
from persona_circuits.persona.explanation.groups import Explained
from persona_circuits.persona.explanation.study import Explanation
from persona_circuits.persona.explanation.verdicts import VERDICTS

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

__all__ = [
    "explain_figures",
    "write_explain_figures",
]

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
MOST_GROUPS = 60
MOST_GAIN = 3.0


def write_explain_figures(found: Explanation, folder: Path) -> None:
    """Write ``explain.html`` and a PNG of each figure."""
    title = f"Why personas collapse: {Path(found.model).name}"
    write_figures(explain_figures(found), folder, page="explain.html", title=title, notes=found.notes)


def explain_figures(found: Explanation) -> dict[str, Figure]:
    """The figures that there is data for, by name."""
    figures = {
        "verdicts": _verdicts(found),
        "numbers": _numbers(found),
        "signal": _by_layer(found, "Persona signal by layer", "share of any two prompts' difference", _signals),
        "alignment": _by_layer(found, "Readout alignment at the answer by layer", "eta", _alignments),
        "confusion": _confusion(found),
    }
    return {name: figure for name, figure in figures.items() if figure is not None}


def _verdicts(found: Explanation) -> Figure:
    """Stacked bars, a group each; single pairs would be bars of one colour and are left to the tables."""
    from plotly.graph_objects import Bar, Figure

    groups = [found.overall, *(g for g in found.groups if g.by != "pair"), *found.controls]
    shown = groups[:MOST_GROUPS]
    names = ["all" if g.by == "all" else f"{g.by} {g.value} ({g.n})" for g in shown]
    figure = Figure()
    for verdict in VERDICTS:
        counts = [g.verdicts.get(verdict, 0) for g in shown]
        if any(counts):
            shares = [count / g.n for count, g in zip(counts, shown, strict=True)]
            figure.add_trace(Bar(x=shares, y=names, name=verdict, orientation="h", marker={"color": COLOURS[verdict]}))
    title = "Verdicts" if len(shown) == len(groups) else f"Verdicts, the first {len(shown)} of {len(groups)} groups"
    laid_out(figure, title, "share of pairs", "")
    figure.update_yaxes(type="category", autorange="reversed", showgrid=False)
    return figure.update_layout(barmode="stack", showlegend=True, height=220 + 22 * len(shown))


def _numbers(found: Explanation) -> Figure:
    from plotly.graph_objects import Figure

    figure = Figure()
    for rows, symbol, what in ((found.pairs, "circle", ""), (found.control_pairs, "x", ", control")):
        for verdict in VERDICTS:
            chosen = [row for row in rows if row.verdict.name == verdict]
            if chosen:
                figure.add_trace(_points(chosen, f"{verdict}{what} ({len(chosen)})", COLOURS[verdict], symbol))
    null = found.thresholds.null(found.sigma_0)
    figure.add_hrect(-null, null, fillcolor=GREY, opacity=0.3, line_width=0)
    figure.add_vline(0, line_dash="dash", line_color="black", line_width=1)
    x = f"log10 of the gain that parts the choices, at most {MOST_GAIN:g}; from 0 on the pair collapses"
    return laid_out(figure, "Persona divergence, gain and verdict", x, "D (logits)").update_layout(showlegend=True)


def _points(rows: Sequence[Explained], name: str, colour: str, symbol: str) -> Any:
    from plotly.graph_objects import Scatter

    gains = np.clip([row.flip_gain for row in rows], 10.0**-MOST_GAIN, 10.0**MOST_GAIN)
    return Scatter(
        x=np.log10(gains).tolist(),
        y=[row.measure.divergence for row in rows],
        text=[_label(row) for row in rows],
        mode="markers",
        name=name,
        marker={"color": colour, "symbol": symbol, "size": 8, "opacity": 0.75},
    )


def _label(row: Explained) -> str:
    pair = row.item.pair
    who = f"{pair.persona_a} / {pair.persona_b}: {row.item.question}" if pair.persona_a else pair.id
    return f"{who} → {row.measure.choice_a.strip()} / {row.measure.choice_b.strip()}; {row.verdict.why}"


Lines = Callable[[Sequence[Explained]], dict[str, tuple[Any, str]]]


def _signals(rows: Sequence[Explained]) -> dict[str, tuple[Any, str]]:
    return {
        ", at the persona": (np.array([row.inside.signal["persona"] for row in rows]), "dash"),
        ", at the answer": (np.array([row.inside.signal["answer"] for row in rows]), "solid"),
    }


def _alignments(rows: Sequence[Explained]) -> dict[str, tuple[Any, str]]:
    return {"": (np.array([row.inside.alignment for row in rows]), "solid")}


def _by_layer(found: Explanation, title: str, y: str, lines: Lines) -> Figure:
    """Mean curves per verdict, with the pairs' standard deviation as a band."""
    curves = []
    for verdict in VERDICTS:
        rows = [row for row in (*found.pairs, *found.control_pairs) if row.verdict.name == verdict]
        for what, (values, dash) in lines(rows).items() if rows else ():
            mean, spread = values.mean(0), values.std(0)
            x = [float(layer) for layer in range(values.shape[1])]
            band = {} if len(rows) == 1 or dash == "dash" else {"low": mean - spread, "high": mean + spread}
            ends = {name: array.tolist() for name, array in band.items()}
            curves.append(
                Curve(f"{verdict}{what} ({len(rows)})", x, mean.tolist(), dash=dash, colour=COLOURS[verdict], **ends)
            )
    return line_chart(
        curves, title=title, x="stream into layer, the last into the final norm", y=f"{y}; mean, band: SD"
    )


def _confusion(found: Explanation) -> Figure | None:
    if found.agreement is None:
        return None
    table = found.agreement.table
    columns = [name for name in VERDICTS if any(name in row for row in table.values())]
    values = [[float(row.get(name, 0)) for name in columns] for row in table.values()]
    kappa = "" if found.agreement.kappa is None else f", Cohen's kappa {found.agreement.kappa:.2f}"
    return heat_map(
        values,
        list(table),
        columns,
        title=f"What the generator sets against verdicts{kappa}",
        x="verdict",
        y="generator",
        unit="pairs",
        diverging=False,
        numbers=".0f",
    )
