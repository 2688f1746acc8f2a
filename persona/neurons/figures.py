"""Figures of a neuron study."""

from __future__ import annotations

from typing import Any

import numpy as np

from persona_circuits.circuit.figures import GREY, PALETTE, Bars, Chart, Points, Spread, bar_chart, chart, heat_map
from persona_circuits.circuit.statistics import Interval
from persona_circuits.persona.neurons.results import GROUP_KINDS, Group, NeuronStudy

__all__ = ["ablation_records", "axes", "ends_of", "jaccards", "label", "layer_records", "neuron_figures", "of_kind"]

MOST_POINTS = 4000
MOST_GROUPS = 40


def neuron_figures(study: NeuronStudy) -> dict[str, Chart]:
    """The figures that this study has data for, by name."""
    figures = {
        "neurons-layers": _layer_figure(study),
        "neurons-transfer": _transfer_figure(study),
        "neurons-ranks": _rank_figure(study),
        "neurons-jaccard": _jaccard_figure(study),
        "neurons-ablation": _ablation_figure(study),
    }
    return {name: figure for name, figure in figures.items() if figure is not None}


def layer_records(study: NeuronStudy) -> list[dict[str, int]]:
    ranking, chosen = study.ranking, np.zeros(len(study.neurons), dtype=bool)
    chosen[list(study.selected)] = True
    rows = []
    for layer in np.unique(study.neurons.layers):
        span = study.neurons.own(int(layer))
        rows.append(
            {
                "layer": int(layer),
                "neurons": span.stop - span.start,
                "rounding": int(ranking.rounding[span].sum()),
                "silent": int(study.silent[span].sum()),
                "q_at_level": int((ranking.q[span] <= study.options.level).sum()),
                "selected": int(chosen[span].sum()),
            }
        )
    return rows


def label(group: Group) -> str:
    return f"{group.kind}: {group.name}" + (" (held out)" if group.held_out else "")


def ablation_records(study: NeuronStudy) -> list[dict[str, Any]]:
    rows = []
    for ablation in study.ablations:
        low, high = np.percentile(ablation.random, (2.5, 97.5))
        rows.append(
            {
                "kind": ablation.kind,
                "pairs": len(ablation.before),
                "before": ablation.before.mean(),
                "after": ablation.after.mean(),
                "change": ablation.change,
                **ends_of(ablation.change_interval),
                "kept": ablation.kept,
                **ends_of(ablation.kept_interval, "kept_"),
                "random_mean": ablation.random.mean(),
                "random_low": low,
                "random_high": high,
                "n_random": len(ablation.random),
                "p": ablation.p,
            }
        )
    return rows


def ends_of(interval: Interval | None, prefix: str = "") -> dict[str, float | None]:
    return {f"{prefix}low": interval.low if interval else None, f"{prefix}high": interval.high if interval else None}


def of_kind(study: NeuronStudy, kind: str) -> list[Group]:
    return [group for group in study.groups if group.kind == kind][:MOST_GROUPS]


def jaccards(study: NeuronStudy, kind: str) -> dict[str, Any]:
    """Jaccard's index of every two groups' own lists."""
    groups = of_kind(study, kind)
    lists = [set(group.own) for group in groups]
    values = [[len(a & b) / len(a | b) if a | b else None for b in lists] for a in lists]
    return {"groups": [label(group) for group in groups], "values": values}


def axes(study: NeuronStudy) -> dict[str, Any]:
    return {
        "mean": "side neuron",
        "before, KIND_after": "ablated pair",
        "KIND_random": "random set",
        "all others": "neuron",
        "side": ["A", "B"],
        "ablated pair": study.ablated_pairs,
    }


def _layer_figure(study: NeuronStudy) -> Chart:
    rows = layer_records(study)
    layers = [str(row["layer"]) for row in rows]
    kinds = [("q_at_level", f"q <= {study.options.level:g}")]
    kinds += [("selected", "selected")] if study.n_discovered else []
    bars = [Bars(name, layers, [row[key] for row in rows]) for key, name in kinds]
    title = f"Contrastive neurons by layer ({study.options.hook}, {study.options.position})"
    return bar_chart(bars, title=title, x="layer", y="neurons")


def _chosen_as(study: NeuronStudy) -> str:
    """What figures call the selected neurons: where nothing is significant, the largest is all that they are."""
    return "selected" if study.n_discovered else "largest"


def _transfer_figure(study: NeuronStudy) -> Chart | None:
    """Differences on the fitting pairs against those on the held-out ones."""
    if study.held is None or not study.selected:
        return None
    signed = study.options.pool == "mean"
    sides = [side.difference if signed else side.size for side in (study.fit, study.held)]
    order = [int(place) for place in study.ranking.order]
    chosen = study.selected if study.n_discovered else ()
    others = [place for place in order if place not in set(chosen)]
    shown = others[:: -(-len(others) // MOST_POINTS)] if others else []
    marks = []
    grey: dict[str, Any] = {"colour": GREY, "size": 4}
    for name, places, look in (
        ("other neurons" if chosen else "neurons, none of them significant", shown, grey),
        ("selected", chosen, {"colour": PALETTE[1], "symbol": "diamond"}),
    ):
        x, y = (values[list(places)].tolist() for values in sides)
        if places:
            marks.append(Points(name, x, y, hover=[study.neurons.name(place) for place in places], **look))
    title = f"{'Mean difference A - B' if signed else 'Root mean square of A - B'}: fitted and held-out pairs"
    return chart(marks, title=title, x="fitted pairs", y="held-out pairs")


def _rank_figure(study: NeuronStudy) -> Chart | None:
    """For every selected neuron, the share of neurons that rank below it, in each couple of personas or other group."""
    kind = next((kind for kind in GROUP_KINDS if of_kind(study, kind)), None)
    if kind is None or not study.selected:
        return None
    groups = of_kind(study, kind)
    values = [
        [1 - (group.ranks[turn] - 1) / max(group.overlap.universe - 1, 1) for group in groups]
        for turn in range(len(study.selected))
    ]
    names = [study.neurons.name(place) for place in study.selected]
    columns = [group.name + (" *" if group.held_out else "") for group in groups]
    title = f"{_chosen_as(study).capitalize()} neurons in each group by {kind}: "
    title += "share of neurons that rank below (* held out)"
    return heat_map(values, names, columns, title=title, unit="share", diverging=False)


def _jaccard_figure(study: NeuronStudy) -> Chart | None:
    kind = next((kind for kind in GROUP_KINDS if len(of_kind(study, kind)) > 1), None)
    if kind is None:
        return None
    groups = of_kind(study, kind)
    names = [group.name + (" *" if group.held_out else "") for group in groups]
    k = len(groups[0].own)
    title = f"Jaccard of the first {k} neurons of every two groups by {kind} (* held out)"
    values = jaccards(study, kind)["values"]
    return heat_map(values, names, names, title=title, unit="Jaccard", numbers=".2f", diverging=False)


def _ablation_figure(study: NeuronStudy) -> Chart | None:
    """Changes of D by random sets as single values, by the selected neurons as points with intervals."""
    if not study.ablations:
        return None
    marks: list[Spread | Points] = [
        Spread(ablation.kind, ablation.random.tolist(), colour=GREY) for ablation in study.ablations
    ]
    rows = ablation_records(study)
    x, y, low, high = ([row[key] for row in rows] for key in ("kind", "change", "low", "high"))
    name = f"{len(study.selected)} {_chosen_as(study)} neurons, 95 %"
    marks.append(Points(name, x, y, low, high, colour=PALETTE[1], symbol="diamond", size=10))
    title = (
        f"Persona effect after ablation on {len(rows and study.ablations[0].before)} pairs, 95 %; grey: random neurons"
    )
    return chart(marks, title=title, x="neurons set to", y="change of the persona effect (D), logits")
