"""The logit lens as files, figures and rows of a table.

lens.json            summary: curves, decisions, attributions, with what they were made from
curves.csv           a line per point and position: means over pairs with intervals
pairs.csv            a line per pair: D, the decision, the final tokens
components.csv       a line per node (and attention bias): its share of D
lens.safetensors     everything per pair, point and position; metadata ``about`` names the axes
lens.html, *.png     the figures
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from persona_circuits.circuit.figures import (
    Axis,
    Bars,
    Chart,
    Curve,
    heat_map,
    interval,
    line_chart,
    line_panels,
    picked,
    plain,
    write_arrays,
    write_csv,
    write_figures,
)
from persona_circuits.circuit.graph import Graph
from persona_circuits.circuit.storage import write_json
from persona_circuits.circuit.table import Column, Table, comma
from persona_circuits.persona.data import drawn_over
from persona_circuits.persona.data.words import said
from persona_circuits.persona.lens.readout import component_names
from persona_circuits.persona.lens.study import ANSWER, LensStudy

__all__ = ["component_map", "lens_figures", "lens_record", "lens_tables", "write_lens"]

FORMAT = "persona-circuits/lens"
MOST = 10  # attributions in the table
WORDS = (
    Column("after", "after"),
    Column("under A", lambda row: said(row["words"][0], 3)),
    Column("under B", lambda row: said(row["words"][1], 3)),
)
COMPONENTS = (
    Column("node", "component"),
    Column("share of D", "share", ".1%"),
    Column("logits", "value", "+.3f"),
    Column("95 %", lambda row: interval(row["low"], row["high"])),
)
CURVES = (
    Column("after", "after"),
    Column("D", "divergence.value", "+.2f"),
    Column("95 %", "divergence", comma()),
    Column("p (own)", "answer.value", ".3f"),
    Column("p (other)", "other.value", ".3f"),
    Column("options", "mass.value", ".3f"),
    Column("KL", "kl.value", ".3f"),
)
"""At the last position. Probabilities are means over prompts: of the answers of the prompt's own persona, of the other
one's, and of all options together."""
DECIDED = {
    "pivot": "first point with half of the effect (D)",
    "jump": "block that moves D most",
    "stable_from": "point from which D keeps its sign",
    "choice_a": "point from which A's choice stays",
    "choice_b": "point from which B's choice stays",
}


def write_lens(study: LensStudy, folder: str | Path) -> None:
    """Write all files into ``folder``, which must exist.

    Raises:
        FileError: the folder is missing or cannot be written.
    """
    folder = Path(folder)
    write_json(lens_record(study), folder / "lens.json")
    write_csv(_curve_records(study), folder / "curves.csv")
    write_csv(_pair_records(study), folder / "pairs.csv")
    write_csv(_component_records(study), folder / "components.csv")
    write_arrays(_arrays(study), _axes(study), folder / "lens.safetensors")
    write_figures(lens_figures(study), folder, page="lens.html", title=_title(study), notes=study.notes)


def lens_record(study: LensStudy) -> dict[str, Any]:
    """The summary, as plain values for JSON."""
    return plain(
        {
            "format": FORMAT,
            "version": 1,
            "model": {"name": study.model, "fingerprint": study.fingerprint},
            "source": {"source": study.source, "sha256": study.sha256},
            "tokens": study.tokens,
            "options": study.options,
            "n_pairs": len(study.items),
            "points": study.points,
            "positions": study.positions,
            "resampled": drawn_over([i.personas for i in study.items], [i.question for i in study.items]),
            "curves": study.curves,
            "words": dict(zip(study.points, study.words, strict=True)),
            "decision": _decision_summary(study),
            "attribution": {
                "conserved": study.attribution.conserved,
                "error": study.attribution.error,
                "components": _component_records(study),
            },
            "notes": study.notes,
        }
    )


def lens_tables(study: LensStudy) -> list[Table]:
    """The curves and the most likely words by layer, and the largest attributions where they are conserved."""
    place, where = len(study.positions) - 1, study.positions[-1]
    drawn = drawn_over([item.personas for item in study.items], [item.pair.question for item in study.items])
    drawn = f"intervals   over {drawn}"
    curves = [
        {"after": after, **{name: rows[point][place] for name, rows in study.curves.items()}}
        for point, after in enumerate(study.points)
    ]
    words = [{"after": after, "words": words} for after, words in zip(study.points, study.words, strict=True)]
    title = f"logit lens of {study.model} at {where}, {len(study.items)} pairs"
    tables = [
        Table(title, CURVES, curves),
        Table(f"the most likely words at {where}", WORDS, words, 3, [drawn, *decision_lines(study)]),
    ]
    if study.attribution.conserved:
        conserved = f"conserved   the parts sum to D within {study.attribution.error:.1e} logits on every pair"
        title, rows = "direct logit attribution of D, the largest", _component_records(study)[:MOST]
        tables.append(Table(title, COMPONENTS, rows, notes=[drawn, conserved]))
    return tables


def decision_lines(study: LensStudy) -> list[str]:
    """The decision in words: the median pair and the middle half of the pairs."""
    names = study.points
    lines = []
    for key, summary in _decision_summary(study).items():
        if summary["n"]:
            label = [
                f"block {summary[q]:.0f}" if key == "jump" else names[round(summary[q])] for q in ("median", "q1", "q3")
            ]
            lines.append(f"{DECIDED[key]}: {label[0]} (half of {summary['n']} pairs: {label[1]} to {label[2]})")
    return lines


def lens_figures(study: LensStudy) -> dict[str, Chart]:
    """The figures that this study has data for, by name."""
    figures = {
        "lens-divergence": _divergence_chart(study),
        "lens-divergence-map": _divergence_map(study),
        "lens-options": _options_chart(study),
        "lens-kl": _kl_chart(study),
    }
    if study.decisions:
        figures["lens-decision"] = _decision_figure(study)
    if study.attribution.conserved:
        figures["attribution"] = _attribution_map(study)
        figures["attribution-sum"] = _attribution_sum(study)
    return figures


def _title(study: LensStudy) -> str:
    words = f", {study.tokens[0]!r} against {study.tokens[1]!r}" if study.tokens else ""
    return f"Logit lens: {Path(study.model).name}, {Path(study.source).name}{words}"


def _curve_records(study: LensStudy) -> list[dict[str, Any]]:
    return [
        {"point": point, "after": after, "position": position}
        | {name: rows[point][place] for name, rows in study.curves.items()}
        for point, after in enumerate(study.points)
        for place, position in enumerate(study.positions)
    ]


def _pair_records(study: LensStudy) -> list[dict[str, Any]]:
    rows = []
    for place, item in enumerate(study.items):
        row = picked(item.pair, "id", "line", "question", "persona_a", "persona_b", "split")
        if study.decisions:
            row |= {"divergence": study.divergence[place, -1, study.positions.index(ANSWER)]}
            row |= asdict(study.decisions[place])
            row |= dict(zip(("final_token_a", "final_token_b"), study.top_texts[place], strict=True))
        rows.append(row)
    return rows


def _component_records(study: LensStudy) -> list[dict[str, Any]]:
    """The largest first; ``share`` is of the mean D."""
    if not study.attribution.conserved:
        return []
    total = sum(estimate.value for estimate in study.attribution.estimates)
    rows = [
        {"component": name, **asdict(estimate), "share": estimate.value / total if total else None}
        for name, estimate in zip(component_names(study.graph), study.attribution.estimates, strict=True)
    ]
    return sorted(rows, key=lambda row: -abs(row["value"]))


def _decision_summary(study: LensStudy) -> dict[str, dict[str, Any]]:
    summary = {}
    for key in DECIDED if study.decisions else ():
        values = [getattr(decision, key) for decision in study.decisions if getattr(decision, key) is not None]
        quartiles = np.percentile(values, (25, 50, 75), method="nearest").tolist() if values else [None] * 3
        summary[key] = dict(zip(("q1", "median", "q3"), quartiles, strict=True)) | {"n": len(values)}
    return summary


def _arrays(study: LensStudy) -> dict[str, np.ndarray]:
    arrays = {**picked(study, "divergence", "margin", "log_probs", "mass", "kl", "top")}
    return arrays | ({"attribution": study.attribution.values} if study.attribution.conserved else {})


def _axes(study: LensStudy) -> dict[str, Any]:
    return {
        "divergence": "pair point position",
        "margin, mass, kl, top": "side pair point position",
        "log_probs": "side pair point position candidate",
        "attribution": "pair component",
        "side": ["A", "B"],
        "pair": [item.pair.id for item in study.items],
        "point": study.points,
        "position": study.positions,
        "component": component_names(study.graph),
        "candidate": [item.candidates for item in study.items] if study.tokens is None else study.tokens,
    }


def _divergence_chart(study: LensStudy) -> Chart:
    curves = [_curve(study, "divergence", place, position) for place, position in enumerate(study.positions)]
    title, unit = "Persona divergence through the lens", "persona effect (D), logits"
    return line_chart(curves, title=title, x="residual stream after", y=unit)


def _curve(study: LensStudy, name: str, place: int, label: str, dash: str = "solid") -> Curve:
    column = [row[place] for row in study.curves[name]]
    values = [estimate.value for estimate in column]
    return Curve(label, study.points, values, [entry.low for entry in column], [entry.high for entry in column], dash)


def _options_chart(study: LensStudy) -> Chart:
    place, position = len(study.positions) - 1, study.positions[-1]
    labels = {"answer": "own persona's answer", "other": "other persona's answer", "mass": "all options"}
    dashes = {"mass": "dot"}
    curves = [_curve(study, name, place, label, dash=dashes.get(name, "solid")) for name, label in labels.items()]
    title = f"Probability of the options at {position}, mean over prompts"
    most = max(value for curve in curves for value in (*curve.y, *curve.high) if value is not None)
    axis = Axis("probability", ends=(0.0, min(1.0, 1.1 * most) or 1.0))
    return line_chart(curves, title=title, x="residual stream after", y=axis)


def _kl_chart(study: LensStudy) -> Chart:
    """On a logarithmic axis, without the last point: there it is zero."""
    curves = []
    for place, position in enumerate(study.positions):
        values = [row[place].value for row in study.curves["kl"]]
        curves.append(Curve(position, study.points, [value if value > 0 else None for value in values]))
    title = "Distance from the model's own distribution, mean over prompts (after the last block it is 0)"
    axis = Axis("divergence from the final distribution (KL), nats", log=True)
    return line_chart(curves, title=title, x="residual stream after", y=axis)


def _divergence_map(study: LensStudy) -> Chart:
    values = [[row[place].value for row in study.curves["divergence"]] for place in range(len(study.positions))]
    title, x, unit = "Mean persona effect by layer and position", "residual stream after", "persona effect (D), logits"
    return heat_map(values, study.positions, study.points, title=title, x=x, y="", unit=unit, numbers="+.2f")


def _decision_figure(study: LensStudy) -> Chart:
    """How many pairs are decided at each point."""
    names = {
        "pivot": "half of the effect reached",
        "stable_from": "sign of the effect stable",
        "choice_a": "choice of A stable",
        "choice_b": "choice of B stable",
    }
    panels = {}
    for key, label in names.items():
        values = [getattr(decision, key) for decision in study.decisions]
        counts = [sum(value == point for value in values) for point in range(len(study.points))]
        panels[label] = [Bars("pairs", study.points, counts)]
    title = f"Where {len(study.items)} pairs are decided"
    return line_panels(panels, title=title, x="residual stream after", y=Axis("pairs", whole=True))


def _attribution_map(study: LensStudy) -> Chart:
    means = np.array([estimate.value for estimate in study.attribution.estimates])
    title = f"Direct logit attribution of the persona effect (D): sum {means.sum():+.2f} logits, input {means[0]:+.2f}"
    return component_map(study.graph, means, study.graph.n_layers, title=title, unit="logits")


def component_map(graph: Graph, values: np.ndarray, n_layers: int, *, title: str, unit: str) -> Chart:
    """Heads, the MLP and the attention bias of the first layers; ``values`` as ``component_names`` are."""
    layers = range(n_layers)
    rows = [[*values[graph.heads_of(at)], values[graph.mlp_of(at)], values[graph.n_src + at]] for at in layers]
    columns = [*(f"h{head}" for head in range(graph.n_heads)), "MLP", "bias"]
    names = [f"layer {at}" for at in layers]
    return heat_map(rows, names, columns, title=title, unit=unit, numbers="+.2f", upward=True)


def _attribution_sum(study: LensStudy) -> Chart:
    """Attributions added up by layer: with the final norm's scale they lead to D itself."""
    graph, values = study.graph, study.attribution.values.mean(0)
    heads = [0.0, *(float(values[graph.heads_of(layer)].sum()) for layer in range(graph.n_layers))]
    mlps = [0.0, *(float(values[graph.mlp_of(layer)]) for layer in range(graph.n_layers))]
    biases = [float(values[0]), *map(float, values[graph.n_src :])]
    total = np.cumsum([heads, mlps, biases], axis=1)
    parts = (("sum", total.sum(0), "solid"), ("heads", total[0], "dash"), ("MLPs", total[1], "dot"))
    curves = [Curve(name, study.points, line.tolist(), dash=dash) for name, line, dash in parts]
    return line_chart(
        curves, title="Direct logit attribution of the persona effect (D), added up", x="up to", y="logits"
    )
