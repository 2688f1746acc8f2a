"""Contrastive neurons as files, figures and rows of tables.

neurons.json          summary: selected neurons, layers, groups, ablations, with what they were made from;
                      p and q as logarithms, since they lie far below the places that files keep
neurons.md            the tables of the terminal, in Markdown
neurons.csv           a line per selected neuron
groups.csv            a line per group of pairs: the list from the others against its own
ranks.csv             a line per selected neuron, a column per group: its rank there
ablations.csv         a line per kind of ablation
neurons.safetensors   every neuron's numbers; metadata ``about`` names the axes
neurons.html, *.png   the figures
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from persona_circuits.circuit.figures import interval, picked, plain, write_arrays, write_csv, write_figures
from persona_circuits.circuit.storage import write_json, write_text
from persona_circuits.circuit.table import Column, Table
from persona_circuits.persona.neurons.figures import (
    ablation_records,
    axes,
    ends_of,
    jaccards,
    label,
    layer_records,
    neuron_figures,
    of_kind,
)
from persona_circuits.persona.neurons.ranking import ranks
from persona_circuits.persona.neurons.results import GROUP_KINDS, Group, NeuronStudy

__all__ = ["has_intervals", "headline", "neuron_record", "pair_line", "tables", "write_neurons"]

FORMAT = "persona-circuits/neurons"


def _known(form: str) -> Callable[[float], str]:
    """A number, or nothing where it is none."""
    return lambda value: "" if value != value else format(value, form)


NAMED = (Column("neuron", "name"), Column("under A", "under_a", "+.3f"), Column("under B", "under_b", "+.3f"))
Q = Column("q", lambda row: 10 ** row["log10_q"], ".2g")
RANK = Column("rank", "held_rank", ",")
SIZES = (*NAMED, Column("rms of A - B", "size", ".3f"), Q, Column("held out rms", "held_size", _known(".3f")), RANK)
"""Where differences have no sign."""
SIGNED = (
    *NAMED,
    Column("A - B", "difference", "+.3f"),
    Column("d", "effect", _known("+.2f")),
    Q,
    Column("held out A - B", "held_difference", _known("+.3f")),
    Column("95 %", lambda row: interval(row["low"], row["high"])),
    Column("d", "held_effect", _known("+.2f")),
    RANK,
)
LAYERS = tuple(
    Column(name, place, ",")
    for place, name in enumerate(("layer", "neurons", "rounding", "silent", "q at level", "selected"))
)
GROUPS = ("groups by", "pairs", "groups", "shared", "by chance", "Jaccard", "median rank", "same sign", "rho")
ABLATIONS = (
    Column("neurons set to", "kind"),
    Column("D", "before", "+.3f"),
    Column("D then", "after", "+.3f"),
    Column("change", "change", "+.3f"),
    Column("95 %", lambda row: interval(row["low"], row["high"], 3)),
    Column("kept", "kept", ".0%"),
    Column("random", lambda row: interval(row["random_low"], row["random_high"], 3)),
    Column("p", "p", ".3g"),
)
"""``random`` is the middle 95 % of the random changes."""


def write_neurons(study: NeuronStudy, folder: str | Path) -> None:
    """Write all files into ``folder``, which must exist.

    Raises:
        FileError: the folder is missing or cannot be written.
    """
    folder = Path(folder)
    write_json(neuron_record(study), folder / "neurons.json")
    write_text(_markdown(study), folder / "neurons.md")
    write_csv(_selected(study), folder / "neurons.csv")
    write_csv([_group_record(group) for group in study.groups], folder / "groups.csv")
    write_csv(_rank_records(study), folder / "ranks.csv")
    write_csv(ablation_records(study), folder / "ablations.csv")
    write_arrays(_arrays(study), axes(study), folder / "neurons.safetensors")
    write_figures(neuron_figures(study), folder, page="neurons.html", title=_title(study), notes=study.notes)


def neuron_record(study: NeuronStudy) -> dict[str, Any]:
    """The summary, as plain values for JSON."""
    ranking = study.ranking
    return plain(
        {
            "format": FORMAT,
            "version": 1,
            "model": {
                "name": study.model,
                "fingerprint": study.fingerprint,
                "n_layers": study.graph.n_layers,
                "n_heads": study.graph.n_heads,
            },
            "sources": {name: {"source": a, "sha256": b} for name, (a, b) in study.sources.items()},
            "options": study.options,
            "n_pairs": {"fit": study.fit.n_pairs, "held_out": study.held.n_pairs if study.held else 0},
            "null": {"kind": ranking.null, "pairs": study.n_null, "couples": ranking.n_groups},
            "counts": {
                "neurons": len(study.neurons),
                "rounding": int(ranking.rounding.sum()),
                "silent": int(study.silent.sum()),
                "q_at_level": study.n_discovered,
            },
            "layers": layer_records(study),
            "selected": _selected(study),
            "groups": [_group_record(group) for group in study.groups],
            "jaccard": {kind: jaccards(study, kind) for kind in GROUP_KINDS if len(of_kind(study, kind)) > 1},
            "ablations": ablation_records(study),
            **picked(study, "ablated_pairs", "dropped", "clusters", "notes"),
        }
    )


def headline(study: NeuronStudy) -> str:
    """What was found, in one line."""
    ranking, options = study.ranking, study.options
    whole, rounding = len(study.neurons), int(ranking.rounding.sum())
    words = {"paraphrase": f"{study.n_null} paraphrase pairs", "sign-flip": "random signs"}
    null = " and ".join(words[name] for name in ranking.null.split(" and "))
    return (
        f"{whole:,} neurons ({options.hook}, {options.position}); {rounding:,} at rounding level, "
        f"{int(study.silent.sum()):,} of them silent; {study.n_discovered:,} of the other {whole - rounding:,} "
        f"with q <= {options.level:g} against {null}"
    )


def pair_line(study: NeuronStudy) -> str:
    """How many pairs were fitted on and held out, and how many took no part, by what kept them out."""
    used = f"{study.fit.n_pairs} fitted on, {study.held.n_pairs if study.held else 0} held out"
    return "; ".join([used, *(f"{count} {why}" for why, count in study.dropped.items())])


def tables(study: NeuronStudy) -> Iterator[Table]:
    """Every table of a study."""
    if study.selected:
        yield Table("Neurons", SIZES if study.options.pool == "rms" else SIGNED, _selected(study))
    yield Table("By layer", LAYERS, [tuple(row.values()) for row in layer_records(study)])
    if study.groups:
        yield Table("The list from other pairs in each group", GROUPS, group_rows(study), 2)
    if study.ablations:
        yield Table("Ablation", ABLATIONS, ablation_records(study))


def has_intervals(study: NeuronStudy) -> bool:
    """Whether a table shows one: of the neurons' differences, or of an ablation."""
    return bool(study.ablations) or (bool(study.selected) and study.options.pool != "rms")


def group_rows(study: NeuronStudy) -> list[tuple[str, ...]]:
    """Cross-validation by kind of group, means over groups, columns as in ``GROUPS``."""
    rows: list[tuple[str, ...]] = []
    for kind in GROUP_KINDS:
        for held_out in (False, True):
            groups = [group for group in study.groups if (group.kind, group.held_out) == (kind, held_out)]
            if groups:
                shared = f"{np.mean([item.overlap.shared for item in groups]):.1f} of {groups[0].overlap.first}"
                numbers = (
                    f"{np.mean([item.overlap.expected for item in groups]):.2f}",
                    f"{np.mean([item.overlap.jaccard or 0.0 for item in groups]):.3f}",
                    f"{np.median([item.median_rank for item in groups]):,.0f} of {groups[0].overlap.universe:,}",
                    "" if study.options.pool == "rms" else f"{np.nanmean([item.same_sign for item in groups]):.0%}",
                    _known("+.2f")(float(np.mean([item.rho for item in groups]))),
                )
                rows.append((kind, "held out" if held_out else "fitted", str(len(groups)), shared, *numbers))
    return rows


def _title(study: NeuronStudy) -> str:
    return f"Contrastive neurons: {Path(study.model).name}, {Path(study.sources['pairs'][0]).name}"


def _selected(study: NeuronStudy) -> list[dict[str, Any]]:
    ranking, neurons, fit, held = study.ranking, study.neurons, study.fit, study.held
    measured = held or fit
    places = None if held is None else ranks(held.z)
    rows = []
    for turn, place in enumerate(study.selected):
        rows.append(
            {
                "rank": turn + 1,
                "name": neurons.name(place),
                "layer": int(neurons.layers[place]),
                "neuron": int(neurons.numbers[place]),
                "under_a": float(study.means[0, place]),
                "under_b": float(study.means[1, place]),
                "difference": float(fit.difference[place]),
                "size": float(ranking.size[place]),
                "effect": float(fit.effect[place]),
                "z": float(ranking.z[place]),
                "log10_p": float(np.log10(ranking.p[place])),
                "log10_q": float(np.log10(ranking.q[place])),
                "held_difference": None if held is None else float(held.difference[place]),
                **ends_of(measured.intervals[turn]),
                "held_size": None if held is None else float(held.size[place]),
                "held_effect": None if held is None else float(held.effect[place]),
                "held_rank": None if places is None else int(places[place]),
            }
        )
    return rows


def _group_record(group: Group) -> dict[str, Any]:
    names = ("kind", "name", "held_out", "n_pairs", "median_rank", "same_sign", "rho")
    overlap = asdict(group.overlap)
    overlap["log10_p"] = float(np.log10(overlap.pop("p")))
    return {name: getattr(group, name) for name in names} | {"overlap": overlap}


def _rank_records(study: NeuronStudy) -> list[dict[str, Any]]:
    return [
        {"neuron": study.neurons.name(place)} | {label(group): group.ranks[turn] for group in study.groups}
        for turn, place in enumerate(study.selected)
    ]


def _arrays(study: NeuronStudy) -> dict[str, np.ndarray]:
    ranking = study.ranking
    arrays = {
        "layer": study.neurons.layers.astype(np.int64),
        "neuron": study.neurons.numbers.astype(np.int64),
        "mean": study.means,
        "difference": study.fit.difference,
        "effect": study.fit.effect,
        **picked(ranking, "size", "scale", "z", "p", "q", "rounding"),
    }
    if study.held is not None:
        arrays |= {"held_difference": study.held.difference, "held_effect": study.held.effect, "held_z": study.held.z}
    for ablation in study.ablations:
        arrays |= {
            f"{ablation.kind}_after": ablation.after,
            f"{ablation.kind}_random": ablation.random,
            "before": ablation.before,
        }
    return arrays


def _markdown(study: NeuronStudy) -> str:
    parts = [f"# {_title(study)}", headline(study), f"Pairs: {pair_line(study)}."]
    for table in tables(study):
        parts += [f"## {table.title}", table.markdown()]
    parts += [f"Intervals over {study.clusters}."] if has_intervals(study) else []
    parts += [f"Note: {note}." for note in study.notes]
    return "\n\n".join(part for part in parts if part) + "\n"
