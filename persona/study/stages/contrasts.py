"""Stage ``contrasts`` of a study: levels of the pairs' axes against each other, and variants of one pair.

Of two levels of an axis the difference is tested by permutation: p = (1 + b) / (1 + B), b of B shuffles at
least as large. What is shuffled are the levels of whole clusters, the finest in which the axis is constant:

    persona pairs   where all pairs of two personas have one level (a strong contrast is one of the personas)
    questions       where all pairs of a question have (a bias is the question's)
    pairs           otherwise, among the pairs of one question, where at least half of the pairs have a question
                    that has several levels
    groups          else: the pairs of one question and level, together

Persona pairs with a persona in common must not be shuffled apart where a level goes with a persona. So p is no
smaller than that of a t test of the difference with the cluster-robust spread (``circuit.statistics``), over personas
and questions; for medians of the shares above the joint median.

Of three or more levels the standard deviation of their means is tested in the same way, and its p is no smaller than
the least of the levels', each against the others, times their number. Variants are compared
with ``identity`` pair by pair, p by random signs of all pairs of two personas together. Holm's
correction is over all tests of the stage.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray

from persona_circuits.circuit.figures import write_csv, write_figures
from persona_circuits.circuit.statistics import cluster_codes
from persona_circuits.persona.behaviour import PARAPHRASE, PairMeasure
from persona_circuits.persona.data import ItemFile
from persona_circuits.persona.data.items import Item
from persona_circuits.persona.explanation import Explained, ExplainOptions, explain, write_explanation
from persona_circuits.persona.study.context import Context, axes_of
from persona_circuits.persona.study.numbers import Estimates, StageNumbers, number_rows, slug, with_holm
from persona_circuits.persona.study.stages.behaviour import MEASURES, mean_of
from persona_circuits.persona.study.stages.figures import level_figure

__all__ = ["permuted", "run_contrasts", "shared_p"]

VARIANTS = "contrasts/variants/pairs.csv"
COMPARED = ("divergence", "collapse", "agree", "prior_abs")
SPREAD = ("divergence", "collapse", "prior_abs")
ORDERS = (("strong", "mild"), ("high", "low"), ("late", "early"))
IDENTITY = "identity"
MIXED = 0.5
WITHIN = "pairs of a question"
GAIN = ("required_gain", "median required gain")
PAIRED: Mapping[str, tuple[Callable[[Explained], float | None], str, str]] = {
    "divergence": (lambda row: row.measure.divergence, "mean D", "logits"),
    "collapse": (lambda row: float(row.measure.collapses), "share of pairs with one most likely answer", "share"),
    "access": (lambda row: row.numbers.access, "mean access d ln|D| / dc", ""),
    "signal_persona": (lambda row: row.numbers.signal_persona, "mean signal at the persona", ""),
    "signal_answer": (lambda row: row.numbers.signal_answer, "mean signal at the answer", ""),
}
Statistic = Callable[[NDArray[np.int64]], NDArray[np.float64]]


def run_contrasts(context: Context, folder: Path) -> StageNumbers:
    """All levels of all axes, differences, and the variants where a file of them is given; ``contrasts.csv``."""
    numbers = StageNumbers("contrasts/contrasts.csv")
    main = [m for m in context.measures if m.item.control == "none"]
    axes = axes_of([m.item for m in main])
    if context.bias is not None:
        numbers.notes.append(context.bias.note)
    if not axes:
        numbers.notes.append(f"{context.pairs.source} has no axis on which its pairs differ; nothing to contrast")
    for axis, values in axes.items():
        axis_numbers(numbers, axis, values, main, context.draws)
    if context.variants is None:
        numbers.notes.append("no file of variants; give one with --variants")
    else:
        with numbers.attempt("variants"):
            _variants(context, context.variants, numbers, folder)
    numbers.numbers = with_holm(numbers.numbers)
    n_tests = sum(number.p is not None for number in numbers.numbers.values())
    numbers.add("contrasts.n_tests", n_tests, "tests that Holm's correction is over", source="")
    write_csv(number_rows(numbers.numbers), folder / "contrasts.csv")
    _figure(numbers, folder)
    return numbers


def axis_numbers(
    numbers: StageNumbers, axis: str, values: Sequence[str], measures: Sequence[PairMeasure], draws: Mapping[str, int]
) -> None:
    """Every level of an axis by itself, and levels against each other."""
    levels = np.array([m.item.axes.get(axis, "") for m in measures])
    for value in values:
        here = [m for m, level in zip(measures, levels, strict=True) if level == value]
        _level(numbers, f"contrasts.{slug(axis)}.{slug(value)}", here, draws)
    for first, second in _comparisons(axis, values):
        pairs = [m for m, level in zip(measures, levels, strict=True) if level in (first, second)]
        _difference(numbers, axis, first, second, pairs, draws)
    if len(values) > 2:
        _spread(numbers, axis, [m for m, level in zip(measures, levels, strict=True) if level], draws)


def variant_numbers(numbers: StageNumbers, rows: Sequence[Explained], draws: Mapping[str, int]) -> None:
    """Every variant against ``identity`` of the same ``base``; rows without a partner are left out."""
    identity = {row.label("base"): row for row in rows if row.label("variant") == IDENTITY}
    names = [name for name in dict.fromkeys(row.label("variant") for row in rows) if name]
    for name in names:
        own = [row for row in rows if row.label("variant") == name and row.label("base") in identity]
        if own:
            _variant(numbers, name, own, [identity[row.label("base")] for row in own], draws)
    lost = sum(row.label("variant") in names and row.label("base") not in identity for row in rows)
    if lost:
        numbers.notes.append(f"variants: {lost} rows have no variant {IDENTITY!r} of the same 'base' and are left out")


def permuted(
    statistic: Statistic, codes: NDArray[np.int64], items: Sequence[Item], *, n_resamples: int = 2000, seed: int = 0
) -> tuple[float, str]:
    """The p of a statistic of the pairs' levels ``codes`` under shuffles, and what was shuffled.

    ``statistic`` takes levels ``[draw, pair]`` and gives a number a draw, larger where levels are further apart.
    """
    clusters, within, what = _exchangeable(codes, items)
    labels = np.array([codes[clusters == cluster][0] for cluster in range(int(clusters.max()) + 1)])
    rng = np.random.default_rng(seed)
    places = np.argsort(within, kind="stable")
    shuffled = np.empty((n_resamples, len(labels)), dtype=np.int64)
    for row in shuffled:
        row[places] = labels[np.lexsort((rng.random(len(labels)), within))]
    observed = float(statistic(codes[None])[0])
    at_least = int((statistic(shuffled[:, clusters]) >= observed * (1 - 1e-9) - 1e-12).sum())
    return (1 + at_least) / (1 + n_resamples), what


def shared_p(values: Float[np.ndarray, " pair"], codes: NDArray[np.int64], items: Sequence[Item]) -> float:
    """The p of levels that differ in the mean, by t tests that know what pairs share; 0 where they share nothing.

    The least of all levels against the others, times their number where there are more than two. Where pairs are
    shuffled within questions, the difference is within questions.
    """
    clusters = Estimates(items).clusters
    if clusters.by == "pairs":
        return 0.0
    _, within, what = _exchangeable(codes, items)
    p_values, levels = [], np.unique(codes)
    for level in levels[1:] if len(levels) == 2 else levels:
        asked = clusters.between(codes == level, within if what == WITHIN else None)
        size, influence = asked.coefficient(values)
        p_values.append(asked.p_value(abs(size), influence))
    return min(1.0, min(p_values) * len(p_values))


def _exchangeable(codes: NDArray[np.int64], items: Sequence[Item]) -> tuple[NDArray[np.int64], NDArray[np.int64], str]:
    """The cluster of every pair, the group of every cluster within which labels are shuffled, and its name."""
    for what, names in (
        ("persona pairs", [item.persona_pair for item in items]),
        ("questions", [item.question for item in items]),
    ):
        clusters, n = cluster_codes(names)
        if n < len(items) and all(len(set(codes[clusters == i])) == 1 for i in range(n)):
            return clusters, np.zeros(n, dtype=np.int64), what
    asked, n = cluster_codes([item.question for item in items])
    is_mixed = np.array([len(set(codes[asked == i])) > 1 for i in range(n)])[asked]
    if is_mixed.mean() >= MIXED:
        return np.arange(len(items)), asked, WITHIN
    groups, n = cluster_codes([f"{question} {code}" for question, code in zip(asked, codes, strict=True)])
    return groups, np.zeros(n, dtype=np.int64), "pairs" if n == len(items) else "groups of a question and level"


def _comparisons(axis: str, values: Sequence[str]) -> list[tuple[str, str]]:
    if len(values) == 2:
        return [next((order for order in ORDERS if set(order) == set(values)), (values[0], values[1]))]
    if axis == "held_out" and "none" in values:
        return [(value, "none") for value in values if value != "none"]
    return []


def _level(numbers: StageNumbers, name: str, measures: Sequence[PairMeasure], draws: Mapping[str, int]) -> None:
    estimates = Estimates([m.item for m in measures], **draws)
    numbers.add(f"{name}.n", len(measures), "pairs")
    for key in COMPARED:
        _, what, unit = MEASURES[key]
        about: dict[str, Any] = {"what": what, "unit": unit}
        numbers.add(f"{name}.{key}", **about, **mean_of(estimates, key, measures))
    key, what = GAIN
    gains = [m.required_gain for m in measures]
    numbers.add(f"{name}.{key}", what=what, **estimates.median(gains))


def _difference(
    numbers: StageNumbers, axis: str, first: str, second: str, measures: Sequence[PairMeasure], draws: Mapping[str, int]
) -> None:
    items = [m.item for m in measures]
    estimates = Estimates(items, **draws)
    is_first = np.array([item.axes.get(axis) == first for item in items])
    codes = is_first.astype(np.int64)
    name = f"contrasts.{slug(axis)}.{slug(first)}_minus_{slug(second)}"
    for key in (*COMPARED, GAIN[0]):
        is_gain = key == GAIN[0]
        value = (lambda m: m.required_gain) if is_gain else MEASURES[key][0]
        values = np.array([value(m) for m in measures])
        gap = estimates.median_difference(values, is_first) if is_gain else estimates.difference(values, is_first)
        p, shuffled = permuted(_gap(values, medians=is_gain), codes, items, **draws)
        ranked = (values > np.median(values)).astype(np.float64) if is_gain else values
        p = max(p, shared_p(ranked, codes, items))
        text = GAIN[1] if is_gain else MEASURES[key][1]
        what = f"{text}: {first} minus {second}; p: levels of {shuffled} shuffled"
        unit = "" if is_gain else MEASURES[key][2]
        numbers.add(f"{name}.{key}", what=what, unit=unit, p=p, **gap)


def _gap(values: Float[np.ndarray, " pair"], *, medians: bool) -> Statistic:
    """|difference| of two levels, 0 where it is not defined (both medians infinite)."""

    def statistic(codes: NDArray[np.int64]) -> NDArray[np.float64]:
        if not medians:
            counts = codes.sum(1)
            return np.abs(codes @ values / counts - (1 - codes) @ values / (codes.shape[1] - counts))
        with np.errstate(invalid="ignore"):
            gaps = [np.median(values[row == 1]) - np.median(values[row == 0]) for row in codes]
        return np.nan_to_num(np.abs(gaps), nan=0.0, posinf=np.inf)

    return statistic


def _spread(numbers: StageNumbers, axis: str, measures: Sequence[PairMeasure], draws: Mapping[str, int]) -> None:
    items = [m.item for m in measures]
    codes, n = cluster_codes([item.axes[axis] for item in items])
    for key in SPREAD:
        value, what, unit = MEASURES[key]
        values = np.array([value(m) for m in measures])

        def statistic(shuffled: NDArray[np.int64], values: NDArray[np.float64] = values) -> NDArray[np.float64]:
            is_level = [shuffled == level for level in range(n)]
            return np.std([here @ values / here.sum(1) for here in is_level], axis=0)

        p, units = permuted(statistic, codes, items, **draws)
        p = max(p, shared_p(values, codes, items))
        text = f"{what}: standard deviation over the {n} levels of {axis}; p: levels of {units} shuffled"
        about = {"unit": unit, "n": len(items), "p": p}
        numbers.add(f"contrasts.{slug(axis)}.spread.{key}", float(statistic(codes[None])[0]), text, **about)


def _variants(context: Context, file: ItemFile, numbers: StageNumbers, folder: Path) -> None:
    options = context.options
    how = ExplainOptions(("variant",), "all", options.batch_size, options.n_resamples, False, options.seed)
    study = explain(context.model, file, controls=_paraphrases(context.controls), options=how, stage=context.stage)
    (folder / "variants").mkdir()
    write_explanation(study, folder / "variants")
    variant_numbers(numbers, study.pairs, context.draws)


def _paraphrases(file: ItemFile | None) -> ItemFile | None:
    """The paraphrases, from which sigma_0 follows; None without any."""
    if file is None:
        return None
    kept = tuple(item for item in file.items if item.control == PARAPHRASE)
    return replace(file, items=kept) if kept else None


def _variant(
    numbers: StageNumbers, name: str, own: Sequence[Explained], partners: Sequence[Explained], draws: Mapping[str, int]
) -> None:
    estimates = Estimates([row.item for row in own], **draws)
    place = f"variants.{slug(name)}"
    numbers.add(f"{place}.n", len(own), "pairs with a partner", source=VARIANTS)
    mass = [row.numbers.mass for row in own]
    numbers.add(f"{place}.mass", what="mean candidate mass", unit="share", source=VARIANTS, **estimates.share(mass))
    for key, (value, what, unit) in PAIRED.items():
        here, there = (np.array([np.nan if (x := value(row)) is None else x for row in rows], dtype=np.float64)
                       for rows in (own, partners))  # fmt: skip
        about: dict[str, Any] = {"unit": unit, "source": VARIANTS}
        mean = estimates.share(here) if unit == "share" else estimates.mean(here)
        numbers.add(f"{place}.{key}", what=what, **about, **mean)
        if name == IDENTITY:
            continue
        p = estimates.flips(here - there)
        text = f"{what}: {name} minus {IDENTITY}, paired; p: sign flips"
        numbers.add(f"{place}.{key}_difference", what=text, p=p, **about, **estimates.mean(here - there))
        if key == "divergence":
            text = f"mean D of {name} / mean D of {IDENTITY}"
            numbers.add(f"{place}.divergence_ratio", what=text, source=VARIANTS, **estimates.ratio(here, there))


def _figure(numbers: StageNumbers, folder: Path) -> None:
    """Mean D and collapse of every level and variant with their intervals."""
    figures = {}
    for key, title in (("divergence", "Mean D by level"), ("collapse", "Collapse rate by level")):
        rows = {
            name.removeprefix("contrasts.").removesuffix(f".{key}"): number
            for name, number in numbers.numbers.items()
            if name.endswith(f".{key}") and "_minus_" not in name and ".spread." not in name
        }
        if rows:
            figures[f"levels-{key}"] = level_figure(rows, title)
    if figures:
        write_figures(figures, folder, page="contrasts.html", title="Contrasts", notes=numbers.notes)
