"""Figures of the behavioural study, as plotly figures; ``circuit.figures.plots`` writes them.

divergence against prior   every pair's |b| and D, and the lines |D| = 2 |b|: between them the
                           two declared tokens do not part, whatever the persona
personas by questions      mean D of the pairs in which a persona meets a question
early against late         D by placement; where the same two personas meet the same question
                           in both placements, one against the other
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from persona_circuits.circuit.figures import DIVERGING, GREY, MISSING, laid_out, write_figures
from persona_circuits.persona.behaviour.results import CollapseStudy, PairRow

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

__all__ = [
    "collapse_figures",
    "divergence_by_placement",
    "divergence_by_prior",
    "write_collapse_figures",
]

COLOURS = {"apart": "#0072b2", "collapse": "#d55e00", "reversed": "#cc79a7", "no signal": "#999999"}


def write_collapse_figures(study: CollapseStudy, folder: Path) -> None:
    """Write ``collapse.html`` and a PNG of each figure."""
    write_figures(collapse_figures(study), folder, page="collapse.html", title=_title(study), notes=study.notes)


def collapse_figures(study: CollapseStudy) -> dict[str, Figure]:
    """The figures that this study has data for, by name."""
    found = {
        "divergence-by-prior": divergence_by_prior(study),
        "divergence-by-persona": divergence_by_persona(study),
        "divergence-by-placement": divergence_by_placement(study),
    }
    return {name: figure for name, figure in found.items() if figure is not None}


def divergence_by_prior(study: CollapseStudy) -> Figure:
    """D against |b|, a point per pair, coloured by outcome; paraphrase controls in grey."""
    from plotly.graph_objects import Figure

    figure = Figure()
    paraphrases = [row for row in study.control_pairs if row.measure.item.control == "paraphrase"]
    if paraphrases:
        figure.add_trace(_points(paraphrases, "paraphrase control", GREY, "x"))
    for outcome, colour in COLOURS.items():
        rows = [row for row in study.pairs if row.outcome == outcome]
        if rows:
            figure.add_trace(_points(rows, outcome, colour, "circle"))
    _add_collapse_lines(figure, study)
    axis = {"range": _range([row.measure.divergence for row in (*study.pairs, *paraphrases)])}
    return laid_out(figure, "Persona divergence against prior strength", "|b| (logits)", "D (logits)", yaxis=axis)


def divergence_by_persona(study: CollapseStudy) -> Figure | None:
    """Mean D, personas by questions, grey where they do not meet; None where the file does not name them."""
    from plotly.graph_objects import Figure, Heatmap

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
    bar = {"title": "mean D"}
    trace = Heatmap(x=questions, y=personas, z=values, colorscale=DIVERGING, zmid=0, colorbar=bar, hoverongaps=False)
    figure = laid_out(Figure(trace), "Persona divergence by persona and question", "question", "persona")
    figure.update_xaxes(tickangle=-60, type="category", dtick=1, showgrid=False)
    figure.update_yaxes(type="category", dtick=1, autorange="reversed", showgrid=False)
    return figure.update_layout(height=260 + 15 * len(personas), plot_bgcolor=MISSING)


def divergence_by_placement(study: CollapseStudy) -> Figure | None:
    """D early and late; None unless the pairs have both placements."""
    from plotly.graph_objects import Figure

    rows = {name: [row for row in study.pairs if row.axis("placement") == name] for name in ("early", "late")}
    if not all(rows.values()):
        return None
    matched = _matched(rows["early"], rows["late"])
    figure = Figure()
    if matched:
        _add_matched(figure, matched)
        return laid_out(figure, _placement_title(study), "D, persona placed early (logits)", "D, late (logits)")
    for name, colour in (("early", COLOURS["apart"]), ("late", COLOURS["collapse"])):
        figure.add_trace(_box(rows[name], name, colour))
    return laid_out(figure, _placement_title(study), "placement of the persona", "D (logits)")


def _title(study: CollapseStudy) -> str:
    return f"Persona collapse: {Path(study.model).name}"


def _points(rows: Sequence[PairRow], name: str, colour: str, symbol: str) -> Any:
    from plotly.graph_objects import Scatter

    return Scatter(
        x=[abs(row.measure.prior) for row in rows],
        y=[row.measure.divergence for row in rows],
        text=[_label(row) for row in rows],
        mode="markers",
        name=f"{name} ({len(rows)})",
        marker={"color": colour, "symbol": symbol, "size": 8, "opacity": 0.75},
    )


def _add_collapse_lines(figure: Figure, study: CollapseStudy) -> None:
    """The lines |b| = |D|/2, as long as the priors go, and the band of no signal."""
    from plotly.graph_objects import Scatter

    most = max(abs(row.measure.prior) for row in (*study.pairs, *study.control_pairs)) * 1.05 or 1.0
    line = {"color": "black", "dash": "dash", "width": 1}
    name = "collapse line |b| = |D|/2"
    for sign in (1, -1):
        ends = {"x": [0, most], "y": [0, 2 * sign * most]}
        figure.add_trace(Scatter(**ends, mode="lines", line=line, name=name, showlegend=sign > 0, hoverinfo="skip"))
    if study.sigma_0 is not None:
        figure.add_hrect(-2 * study.sigma_0, 2 * study.sigma_0, fillcolor=GREY, opacity=0.3, line_width=0)


def _range(values: Sequence[float]) -> list[float]:
    """Zero and all values with a margin; the collapse lines may leave the picture."""
    low, high = min(0.0, *values), max(0.0, *values)
    margin = 0.06 * (high - low) or 1.0
    return [low - margin, high + margin]


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


def _add_matched(figure: Figure, matched: Sequence[tuple[PairRow, PairRow]]) -> None:
    from plotly.graph_objects import Scatter

    x, y = ([pair[place].measure.divergence for pair in matched] for place in (0, 1))
    ends = [min(*x, *y, 0.0), max(*x, *y, 0.0)]
    text = [_label(early) for early, _ in matched]
    marker = {"color": COLOURS["apart"], "size": 8, "opacity": 0.75}
    figure.add_trace(Scatter(x=x, y=y, text=text, mode="markers", marker=marker, name=f"same pair ({len(matched)})"))
    line = {"color": "black", "dash": "dash", "width": 1}
    figure.add_trace(Scatter(x=ends, y=ends, mode="lines", line=line, name="no difference"))


def _box(rows: Sequence[PairRow], name: str, colour: str) -> Any:
    from plotly.graph_objects import Box

    share = sum(row.measure.collapses for row in rows) / len(rows)
    return Box(
        y=[row.measure.divergence for row in rows],
        text=[_label(row) for row in rows],
        name=f"{name} (n = {len(rows)}, {share:.0%} collapse)",
        boxpoints="all",
        jitter=0.4,
        pointpos=0,
        boxmean=True,
        marker={"color": colour, "size": 5, "opacity": 0.6},
    )


def _placement_title(study: CollapseStudy) -> str:
    difference = study.placement
    if difference is None:
        return "Early against late placement"
    interval = "" if difference.low is None else f" [{difference.low:+.2f}, {difference.high:+.2f}]"
    return f"Early against late placement: D late − early {difference.value:+.2f}{interval}"
