"""Steering as files, figures and rows of a table.

steer.json               every outcome and bound, with what they were made from
outcomes.csv             a line per layer, control, draw and strength
pairs.csv                a line per pair: D, b and g* unsteered; margins by layer and strength
generations.jsonl        a line per text, before and after
readability.csv          a summary of them per control and strength
directions.safetensors   the directions, [pair, layer, d_model]; metadata ``about`` names the axes
steer.html, *.png        the figures
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from persona_circuits.circuit.figures import (
    GREY,
    PALETTE,
    Chart,
    Curve,
    Points,
    chart,
    line_chart,
    plain,
    write_arrays,
    write_csv,
    write_figures,
)
from persona_circuits.circuit.storage import write_json, write_text
from persona_circuits.persona.data import drawn_over
from persona_circuits.persona.steering.results import Outcome, SteeringStudy
from persona_circuits.persona.steering.text import Generation, Readability, readability

__all__ = ["BOUNDS", "TABLE", "TEXTS", "bound_rows", "outcome_rows", "steering_figures", "text_rows", "write_steering"]

FORMAT = "persona-circuits/steer"
TABLE = (
    "layer",
    "strength",
    "D",
    "gain",
    "random",
    "covariance",
    "b moves",
    "parted",
    "gain > g*",
    "as foretold",
    "KL",
)
BOUNDS = ("layer", "strength", "KL", "gain", "random", "covariance", "parted", "flipped")
TEXTS = ("", "strength", "texts", "tokens", "ended", "perplexity", "repetition", "changed")
CONTROLS = ("random", "covariance")


def write_steering(
    study: SteeringStudy, generations: Sequence[Generation], about: Mapping[str, Any], folder: str | Path
) -> None:
    """Write all files into ``folder``, which must exist; ``about`` is what was steered and fitted on.

    Raises:
        FileError: the folder is missing or cannot be written.
    """
    folder = Path(folder)
    write_json(steering_record(study, generations, about), folder / "steer.json")
    write_csv([_flat(outcome) for outcome in study.outcomes], folder / "outcomes.csv")
    write_csv(_pair_records(study), folder / "pairs.csv")
    lines = [json.dumps(plain(asdict(item)), ensure_ascii=False) + "\n" for item in generations]
    write_text("".join(lines), folder / "generations.jsonl")
    write_csv([asdict(item) for item in readability(generations)], folder / "readability.csv")
    axes = {"directions": "pair layer d_model", "pair": study.ids, "kind": study.directions.kind}
    arrays = {"directions": study.directions.vectors.astype(np.float32)}
    write_arrays(
        arrays, axes | {"model": study.model, "fingerprint": study.fingerprint}, folder / "directions.safetensors"
    )
    title = f"Steering {Path(study.model).name}: {study.directions.kind}"
    write_figures(steering_figures(study, generations), folder, page="steer.html", title=title, notes=study.notes)


def steering_record(
    study: SteeringStudy, generations: Sequence[Generation], about: Mapping[str, Any]
) -> dict[str, Any]:
    """Everything but texts and vectors, as plain values for JSON."""
    record = {
        "format": FORMAT,
        "version": 1,
        "model": {"name": study.model, "fingerprint": study.fingerprint},
        "made_from": about,
        "direction": study.directions.kind,
        "shared": study.directions.shared,
        "held_out": study.held_out,
        "options": study.options,
        "n_pairs": len(study.prompts),
        "notes": study.notes,
        "resampled": drawn_over(study.prompts.personas, study.prompts.questions),
        "outcomes": study.outcomes,
        "bounds": study.bounds,
        "sets": study.sets,
        "readability": readability(generations),
    }
    return plain(record)


def outcome_rows(study: SteeringStudy) -> list[tuple[str, ...]]:
    """The table for a terminal, columns as in ``TABLE``: the direction, with the controls' gains (least to most)."""
    return [
        (
            _layers(outcome),
            "ablated" if outcome.strength is None else f"{outcome.strength:+g}",
            f"{outcome.divergence.value:+.2f}",
            f"{outcome.gain:+.2f}",
            *(_span([other.gain for other in _controls_of(study, outcome, control)]) for control in CONTROLS),
            f"{outcome.prior_shift:.2f}",
            f"{outcome.parted:.2f}",
            _share(outcome.above),
            _share(outcome.agree),
            f"{outcome.kl.value:.3f}",
        )
        for outcome in study.outcomes
        if outcome.control == "direction"
    ]


def bound_rows(study: SteeringStudy) -> list[tuple[str, ...]]:
    """The largest strengths within the KL bound, columns as in ``BOUNDS``."""
    return [
        (
            _layers(bound.outcome),
            f"{'≥ ' if bound.is_largest else ''}{bound.strength:.3g}",
            f"{bound.outcome.kl.value:.3f}",
            f"{bound.outcome.gain:+.2f}",
            *(_span(bound.gains[control]) for control in CONTROLS),
            f"{bound.outcome.parted:.2f}",
            "" if bound.outcome.flipped is None else f"{bound.outcome.flipped:.2f} of {bound.outcome.n_collapsed}",
        )
        for bound in study.bounds
    ]


def text_rows(generations: Sequence[Generation]) -> list[tuple[str, ...]]:
    """How readable the texts are, columns as in ``TEXTS``."""
    return [
        (
            row.control,
            f"{row.strength:.3g}",
            str(row.n),
            f"{row.tokens:.1f}",
            f"{row.ended:.2f}",
            "" if row.perplexity is None else f"{row.perplexity:.2f}",
            "" if row.repetition is None else f"{row.repetition:.3f}",
            f"{row.changed:.2f}",
        )
        for row in readability(generations)
    ]


def steering_figures(study: SteeringStudy, generations: Sequence[Generation]) -> dict[str, Chart]:
    """The figures by name."""
    figures = {
        "gain": _sweep(study, lambda item: item.gain, "Gain of the persona's effect, D(s) / D(0)", "gain"),
        "kl": _kl_figure(study),
        "gain-by-kl": _trade_figure(study),
        "flips": _flip_figure(study),
    }
    summaries = readability(generations)
    if any(item.perplexity is not None for item in summaries):
        figures["readability"] = _text_figure(summaries)
    return figures


def _controls_of(study: SteeringStudy, outcome: Outcome, control: str) -> list[Outcome]:
    key = (outcome.layers, outcome.strength)
    return [other for other in study.outcomes if other.control == control and (other.layers, other.strength) == key]


def _layers(outcome: Outcome) -> str:
    return "+".join(map(str, outcome.layers))


def _span(values: Sequence[float]) -> str:
    low, high = f"{min(values):+.2f}", f"{max(values):+.2f}"
    return low if low == high else f"{low}…{high}"


def _share(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def _flat(outcome: Outcome) -> dict[str, Any]:
    return {**asdict(outcome), "layers": _layers(outcome)}


def _pair_records(study: SteeringStudy) -> list[dict[str, Any]]:
    divergence, prior = study.plain[0] - study.plain[1], study.plain.mean(0)
    signed = [*(-s for s in study.options.strengths[::-1]), *study.options.strengths]
    rows = []
    for i, name in enumerate(study.ids):
        row: dict[str, Any] = {
            "id": name,
            "personas": " / ".join(sorted(study.prompts.personas[i])),
            "question": study.prompts.questions[i],
        }
        row |= {"divergence": divergence[i], "prior": prior[i]}
        row["required_gain"] = 2 * abs(prior[i]) / abs(divergence[i]) if divergence[i] else None
        for layers, margins in study.margins.items():
            for s, (a, b) in zip(signed, margins[:, :, i], strict=True):
                row |= {f"{layers} {s:+g} margin A": a, f"{layers} {s:+g} margin B": b}
        rows.append(row)
    return rows


def _swept(study: SteeringStudy, control: str, layers: tuple[int, ...]) -> list[Outcome]:
    return [
        row
        for row in study.outcomes
        if row.control == control and row.layers == layers and row.strength is not None and row.draw <= 0
    ]


def _groups(study: SteeringStudy) -> list[tuple[int, ...]]:
    return list(dict.fromkeys(outcome.layers for outcome in study.outcomes))


def _sweep(study: SteeringStudy, value: Any, title: str, unit: str) -> Chart:
    """A curve per layer, its controls dotted in the same colour; all draws' mean."""
    curves = []
    for place, layers in enumerate(_groups(study)):
        outcomes, colour = _swept(study, "direction", layers), PALETTE[place % len(PALETTE)]
        points = sorted([(float(row.strength or 0.0), value(row)) for row in outcomes] + [(0.0, 1.0)])
        curves.append(Curve(_name(layers), [x for x, _ in points], [y for _, y in points], colour=colour))
        for control, dash in (("random", "dot"), ("covariance", "dash")):
            beside = [
                (
                    float(row.strength or 0.0),
                    float(np.mean([value(other) for other in _controls_of(study, row, control)])),
                )
                for row in outcomes
            ]
            points = sorted([*beside, (0.0, 1.0)])
            x, y = [a for a, _ in points], [b for _, b in points]
            curves.append(Curve(f"{_name(layers)}, {control}", x, y, dash=dash, colour=colour, markers=False))
    return line_chart(curves, title=title, x="strength", y=unit)


def _name(layers: tuple[int, ...]) -> str:
    return f"layer {'+'.join(map(str, layers))}"


def _kl_figure(study: SteeringStudy) -> Chart:
    curves = []
    for layers in _groups(study):
        outcomes = [row for row in _swept(study, "direction", layers) if (row.strength or 0) > 0]
        low, high = [row.kl.low for row in outcomes], [row.kl.high for row in outcomes]
        x, y = [float(row.strength or 0.0) for row in outcomes], [row.kl.value for row in outcomes]
        curves.append(Curve(_name(layers), x, y, low, high))
    most = study.options.strengths[-1]
    bound = study.options.kl_bound
    curves.append(Curve(f"bound {bound:g}", [0.0, most], [bound, bound], dash="dash", colour=GREY, markers=False))
    title = "Divergence (KL) from the unsteered model on neutral prompts"
    return line_chart(curves, title=title, x="strength", y="divergence (KL), nats")


def _trade_figure(study: SteeringStudy) -> Chart:
    """What a gain costs: every layer and strength, the controls beside."""
    marks: list[Curve | Points] = []
    for layers in _groups(study):
        outcomes = [row for row in _swept(study, "direction", layers) if (row.strength or 0) > 0]
        marks.append(Curve(_name(layers), [row.kl.value for row in outcomes], [row.gain for row in outcomes]))
    for control, symbol in zip(CONTROLS, ("x", "diamond"), strict=True):
        points = [row for row in study.outcomes if row.control == control and (row.strength or 0) > 0]
        x, y = [row.kl.value for row in points], [row.gain for row in points]
        marks.append(Points(control, x, y, colour="#8a8a8a", symbol=symbol))
    return chart(marks, title="Gain against its cost", x="divergence on neutral prompts (KL), nats", y="gain")


def _flip_figure(study: SteeringStudy) -> Chart:
    """Every pair at every layer and signed strength: D(s)/2 against its |b|, and whether its two answers differ.

    Above the line the gain is above g* = 2 |b| / |D|.
    """
    divergence, prior = study.plain[0] - study.plain[1], np.abs(study.plain.mean(0))
    positive = divergence > 0
    points: dict[bool, tuple[list[float], list[float]]] = {True: ([], []), False: ([], [])}
    for margins in study.margins.values():
        for a, b in margins:
            for x, y, differ in zip(prior[positive], (a - b)[positive] / 2, ((a > 0) & (b < 0))[positive], strict=True):
                points[bool(differ)][0].append(float(x))
                points[bool(differ)][1].append(float(y))
    marks: list[Curve | Points] = [
        Points(f"{name} ({len(points[differ][0])})", *points[differ], size=6)
        for differ, name in ((True, "tokens part"), (False, "tokens do not part"))
    ]
    most = float(prior.max()) * 1.05
    marks.append(Curve("required gain (g*)", [0.0, most], [0.0, most], dash="dash", colour="#000000", markers=False))
    title = "The tokens of a pair must part where its gain is above the required one (g*)"
    return chart(
        marks,
        title=title,
        x="prior of the unsteered model (|b|), logits",
        y="half of the persona effect (D(s) / 2), logits",
    )


def _text_figure(summaries: Sequence[Readability]) -> Chart:
    first = next(summary for summary in summaries if summary.control == "unsteered")
    curves = []
    for control, dash in (("direction", "solid"), ("random", "dot")):
        rows = [first, *(summary for summary in summaries if summary.control == control)]
        x, y = [summary.strength for summary in rows], [summary.perplexity for summary in rows]
        curves.append(Curve(f"perplexity, {control}", x, y, dash=dash))
    title = "Readability: the unsteered model's perplexity"
    return line_chart(curves, title=title, x="strength", y="median perplexity")
