"""Figures of the behavioural study.

divergence against prior   every pair's |b| and D, and the lines |D| = 2 |b|: between them the
                           more likely of the two tokens is the same under both personas
personas by questions      mean D of the pairs in which a persona meets a question
early against late         D by placement; where the same two personas meet the same question
                           in both placements, one against the other
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from persona_circuits.circuit.figures import GREY, Axis, Chart, Curve, Points, Spread, chart, heat_map, write_figures
from persona_circuits.persona.behaviour.results import CollapseStudy, PairRow

__all__ = ["collapse_figures", "divergence_by_placement", "divergence_by_prior", "write_collapse_figures"]

LOOKS = {
    "apart": ("#0072b2", "circle"),
    "collapse": ("#d55e00", "square"),
    "reversed": ("#cc79a7", "triangle-up"),
    "no signal": ("#999999", "diamond"),
}


def write_collapse_figures(study: CollapseStudy, folder: Path) -> None:
    """Write ``collapse.html`` and a PNG of each figure."""
    title = f"Persona collapse: {Path(study.model).name}"
    write_figures(collapse_figures(study), folder, page="collapse.html", title=title, notes=study.notes)


def collapse_figures(study: CollapseStudy) -> dict[str, Chart]:
    """The figures that this study has data for, by name."""
    figures = {
        "divergence-by-prior": divergence_by_prior(study),
        "divergence-by-persona": divergence_by_persona(study),
        "divergence-by-placement": divergence_by_placement(study),
    }
    return {name: figure for name, figure in figures.items() if figure is not None}


def divergence_by_prior(study: CollapseStudy) -> Chart:
    """D against |b|, a point per pair, marked by its outcome; paraphrase controls in grey."""
    paraphrases = [row for row in study.control_pairs if row.measure.item.control == "paraphrase"]
    marks: list[Curve | Points] = [_points(paraphrases, "paraphrase control", GREY, "x")] if paraphrases else []
    for outcome, (colour, symbol) in LOOKS.items():
        rows = [row for row in study.pairs if row.outcome == outcome]
        if rows:
            marks.append(_points(rows, outcome, colour, symbol))
    most = max(abs(row.measure.prior) for row in (*study.pairs, *study.control_pairs)) * 1.05 or 1.0
    name = "personas choose alike below (|b| = |D|/2)"
    for sign in (1, -1):  # as long as the priors go
        marks.append(Curve(name, [0.0, most], [0.0, 2 * sign * most], dash="dash", colour="#000000", markers=False))
    shade = None if study.sigma_0 is None else (-2 * study.sigma_0, 2 * study.sigma_0)
    y = Axis(
        "persona effect (D), logits", ends=_range([row.measure.divergence for row in (*study.pairs, *paraphrases)])
    )
    return chart(marks, title="Persona divergence against prior strength", x="prior (|b|), logits", y=y, shade=shade)


def divergence_by_persona(study: CollapseStudy) -> Chart | None:
    """Mean D, personas by questions, grey where they do not meet; None where the file does not name them."""
    cells: dict[tuple[str, str], list[float]] = {}
    for row in study.pairs:
        pair = row.measure.item.pair
        for persona in (pair.persona_a, pair.persona_b):
            if persona and pair.question:
                cells.setdefault((persona, pair.question), []).append(row.measure.divergence)
    if not cells:
        return None
    personas, questions = (sorted({key[place] for key in cells}) for place in (0, 1))
    means = {key: sum(values) / len(values) for key, values in cells.items()}
    values = [[means.get((persona, question)) for question in questions] for persona in personas]
    named: dict[str, Any] = {"x": "question", "y": "persona", "unit": "mean persona effect (D), logits"}
    return heat_map(values, personas, questions, title="Persona divergence by persona and question", **named)


def divergence_by_placement(study: CollapseStudy) -> Chart | None:
    """D early and late; None unless the pairs have both placements."""
    rows = {name: [row for row in study.pairs if row.axis("placement") == name] for name in ("early", "late")}
    if not all(rows.values()):
        return None
    matched = _matched(rows["early"], rows["late"])
    title = _placement_title(study)
    if not matched:
        marks = [_spread(rows[name], name) for name in rows]
        return chart(marks, title=title, x="placement of the persona", y="persona effect (D), logits")
    x, y = ([pair[place].measure.divergence for pair in matched] for place in (0, 1))
    ends = [min(*x, *y, 0.0), max(*x, *y, 0.0)]
    points = Points(f"same pair ({len(matched)})", x, y, hover=[_label(early) for early, _ in matched])
    line = Curve("no difference", ends, ends, dash="dash", colour="#000000", markers=False)
    return chart([points, line], title=title, x="persona effect (D), placed early; logits", y="the same, placed late")


def _points(rows: Sequence[PairRow], name: str, colour: str, symbol: str) -> Points:
    x, y = [abs(row.measure.prior) for row in rows], [row.measure.divergence for row in rows]
    hover = [_label(row) for row in rows]
    return Points(f"{name} ({len(rows)})", x, y, hover=hover, colour=colour, symbol=symbol)


def _range(values: Sequence[float]) -> tuple[float, float]:
    """Zero and all values with a margin; the collapse lines may leave the picture."""
    low, high = min(0.0, *values), max(0.0, *values)
    margin = 0.06 * (high - low) or 1.0
    return low - margin, high + margin


def _label(row: PairRow) -> str:
    measure = row.measure
    pair = measure.item.pair
    who = f"{pair.persona_a} / {pair.persona_b}: {pair.question}" if pair.question else pair.id
    return f"{who} → {measure.choice_a.strip()} / {measure.choice_b.strip()}"


def _matched(early: Sequence[PairRow], late: Sequence[PairRow]) -> list[tuple[PairRow, PairRow]]:
    """The pairs of the same two personas and the same question in both placements."""

    def key(row: PairRow) -> tuple[str, ...]:
        pair = row.measure.item.pair
        return (pair.persona_a, pair.persona_b, pair.question)

    there = {key(row): row for row in late if all(key(row))}
    return [(row, there[key(row)]) for row in early if key(row) in there]


def _spread(rows: Sequence[PairRow], name: str) -> Spread:
    share = sum(row.measure.collapses for row in rows) / len(rows)
    values, hover = [row.measure.divergence for row in rows], [_label(row) for row in rows]
    return Spread(f"{name} (n = {len(rows)}, {share:.0%} collapse)", values, hover=hover)


def _placement_title(study: CollapseStudy) -> str:
    difference = study.placement
    if difference is None:
        return "Early against late placement"
    interval = "" if difference.low is None else f" [{difference.low:+.2f}, {difference.high:+.2f}]"
    return f"Early against late placement: D late − early {difference.value:+.2f}{interval}"
