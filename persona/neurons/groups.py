"""Groups of pairs between which neurons are compared."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import scipy  # whose parts are loaded when they are used: scipy.stats takes a second
from jaxtyping import Bool, Float, Int

from persona_circuits.circuit.statistics import cluster_codes
from persona_circuits.persona.data import Example, ExampleFile
from persona_circuits.persona.neurons.options import NeuronOptions
from persona_circuits.persona.neurons.ranking import Ranking, overlap, ranks, score_of
from persona_circuits.persona.neurons.results import GROUP_KINDS, Group
from persona_circuits.persona.neurons.runs import Readings
from persona_circuits.persona.steering.passes import chosen_pairs

__all__ = ["couples_of", "groups_of", "too_small", "turned_differences"]


def turned_differences(file: ExampleFile, differences: Float[np.ndarray, "pair neuron"], pool: str) -> np.ndarray:
    """Differences as they are pooled: for ``rms`` from the persona whose name comes first to the other."""
    if pool == "mean":
        return differences
    signs = [-1.0 if item.pair.persona_a > item.pair.persona_b else 1.0 for item in file.items]
    return differences * np.array(signs)[:, None]


def couples_of(file: ExampleFile) -> Int[np.ndarray, " pair"]:
    """The two personas of every pair, in no order, as a code."""
    return cluster_codes([item.persona_pair for item in file.items])[0]


def groups_of(
    fit: ExampleFile,
    held: ExampleFile | None,
    read: dict[str, Readings],
    ranking: Ranking,
    selected: Sequence[int],
    options: NeuronOptions,
) -> tuple[Group, ...]:
    groups = []
    files = {"fit": fit} | ({"held": held} if held is not None else {})
    for kind in GROUP_KINDS:
        labels = {name: np.array(_labels(file, kind)) for name, file in files.items()}
        if len({label for names_of in labels.values() for label in names_of} - {""}) < 2:
            continue
        for name, file in files.items():
            for label in dict.fromkeys(label for label in labels[name].tolist() if label):
                inside = labels[name] == label
                others = ~inside if name == "fit" else np.ones(len(fit.items), dtype=bool)
                if min(inside.sum(), others.sum()) >= options.least:
                    two = _part(file, read[name], inside), _part(fit, read["fit"], others)
                    groups.append(_group(kind, label, name == "held", *two, ranking, selected, options))
    return tuple(groups)


def too_small(fit: ExampleFile, held: ExampleFile | None, options: NeuronOptions) -> int:
    """How many pairs are in some group that has fewer than the least number of pairs."""
    n = 0
    for file in (fit, held):
        if file is None:
            continue
        small = np.zeros(len(file.items), dtype=bool)
        for kind in GROUP_KINDS:
            labels = np.array(_labels(file, kind))
            names, counts = np.unique(labels, return_counts=True)
            small |= np.isin(labels, names[(counts < options.least) & (names != "")])
        n += int(small.sum())
    return n


def _part(file: ExampleFile, read: Readings, chosen: Bool[np.ndarray, " pair"]) -> tuple[ExampleFile, np.ndarray]:
    return chosen_pairs(file, np.flatnonzero(chosen).tolist()), read.differences[chosen]


def _labels(file: ExampleFile, kind: str) -> list[str]:
    """Of every pair the group it is in; empty where the file does not say.

    A wording has the number of its persona's text among those of the file, by order of appearance.
    """
    firsts: Sequence[Example] = file.examples[::2]
    if kind == "personas":
        return [item.persona_pair if item.pair.persona_a else "" for item in file.items]
    if kind == "persona domain":
        return [str(item.pair.row.get("persona_domain", "")) for item in file.items]
    if kind == "domain":
        return [item.axes.get("domain", "") for item in file.items]
    if kind == "template":
        return [example.template for example in firsts]
    texts: dict[str, list[str]] = {}
    labels = []
    for example in firsts:
        known = texts.setdefault(example.persona, [])
        if example.wording not in known:
            known.append(example.wording)
        labels.append(f"wording {known.index(example.wording)}")
    return labels


def _group(
    kind: str,
    label: str,
    held_out: bool,
    group: tuple[ExampleFile, np.ndarray],
    rest: tuple[ExampleFile, np.ndarray],
    ranking: Ranking,
    selected: Sequence[int],
    options: NeuronOptions,
) -> Group:
    turned = [turned_differences(file, differences, options.pool) for file, differences in (group, rest)]
    z = [
        score_of(values, couples_of(file), ranking, options.pool)
        for (file, _), values in zip((group, rest), turned, strict=True)
    ]
    places = [ranks(values) for values in z]
    lists = [_first(values, options.top_k) for values in places]
    signed = options.pool == "mean"
    means = [values.mean(0) for values in turned] if signed else z
    live = ~ranking.rounding
    same = [np.sign(means[0][place]) == np.sign(means[1][place]) for place in lists[1]] if signed else []
    varied = live.sum() > 1 and all(np.ptp(values[live]) > 0 for values in means)
    return Group(
        kind=kind,
        name=label,
        held_out=held_out,
        n_pairs=len(group[0].items),
        overlap=overlap(lists[1], lists[0], int(live.sum())),
        median_rank=float(np.median(places[0][lists[1]])) if lists[1] else np.nan,
        same_sign=float(np.mean(same)) if same else np.nan,
        rho=float(scipy.stats.spearmanr(means[0][live], means[1][live]).statistic) if varied else np.nan,
        own=tuple(lists[0]),
        ranks=tuple(int(places[0][place]) for place in selected),
    )


def _first(places: Int[np.ndarray, " neuron"], n: int) -> list[int]:
    """The ``n`` top-ranked neurons, in order of rank."""
    chosen = np.flatnonzero((places > 0) & (places <= n))
    return chosen[np.argsort(places[chosen])].tolist()
