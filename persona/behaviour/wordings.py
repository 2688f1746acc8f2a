"""Several paraphrases and wordings of one persona pair and question, averaged into one measure.

A single prompt measures its own words as much as the persona pair. Rows that ask the same question of the same
two personas, with the same options, in the same format, split and place, are averaged option by option, so that D is
the mean of their D. The spread of such a mean is smaller than that of one row: sigma_0 is then the spread of the mean
D of paraphrase groups, each over as many of its rows as the pair has.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import replace

import numpy as np
import torch

from persona_circuits.persona.behaviour.measure import Answer, NeutralPrior, PairMeasure, measured
from persona_circuits.persona.data.items import Item
from persona_circuits.persona.data.words import mean_words

__all__ = ["grouped_rows", "null_divergences", "pooled", "usual_rows"]

KEPT_APART = ("template", "frame", "format", "filler")


def grouped_rows(items: Sequence[Item]) -> tuple[tuple[int, ...], ...]:
    """Places of the rows that differ in paraphrase and wording alone, in order of appearance."""
    groups: dict[Hashable, list[int]] = {}
    for place, item in enumerate(items):
        groups.setdefault(_key(place, item), []).append(place)
    return tuple(map(tuple, groups.values()))


def pooled(measures: Sequence[PairMeasure]) -> tuple[PairMeasure, ...]:
    """One measure per persona pair and question: log probabilities, and so D and prior, are means over its rows."""
    groups = grouped_rows([m.item for m in measures])
    return tuple(_mean([measures[place] for place in group]) for group in groups)


def usual_rows(measures: Sequence[PairMeasure]) -> int:
    """The most frequent number of rows of the study's own pairs, the smaller in a tie."""
    counts = Counter(len(m.row_divergences) or 1 for m in measures if m.item.control == "none")
    return min(counts, key=lambda n: (-counts[n], n)) if counts else 1


def null_divergences(paraphrases: Sequence[PairMeasure], n_rows: int) -> list[float]:
    """D of paraphrase groups as means over ``n_rows`` of their rows, or over all where there are fewer."""
    return [float(np.mean(m.row_divergences[:n_rows] or [m.divergence])) for m in paraphrases]


def _key(place: int, item: Item) -> Hashable:
    pair = item.pair
    if not (pair.persona_a and pair.persona_b and pair.question):
        return place
    axes = tuple(sorted(item.axes.items()))
    apart = tuple(str(pair.row.get(name, "")) for name in KEPT_APART)
    options = frozenset(item.candidates), pair.answers, pair.wrong_answers
    return pair.persona_a, pair.persona_b, pair.question, pair.split, options, axes, apart


def _mean(group: Sequence[PairMeasure]) -> PairMeasure:
    first = group[0]
    divergences = tuple(m.divergence for m in group)
    if len(group) == 1:
        return replace(first, row_divergences=divergences)
    order = first.item.candidates
    sides = torch.tensor([[m.log_probs(side, order) for side in "ab"] for m in group], dtype=torch.float64)
    vocabulary = float(np.mean([m.jensen_shannon_vocabulary for m in group]))
    words = mean_words([m.words for m in group])
    spreads = [m.order_spread for m in group if m.order_spread is not None]
    return replace(
        measured(first.item, Answer(sides.mean(0), vocabulary, words), ()),
        mass_a=float(np.mean([m.mass_a for m in group])),
        mass_b=float(np.mean([m.mass_b for m in group])),
        neutral=_neutral([m.neutral for m in group if m.neutral is not None]),
        order_spread=float(np.sqrt(np.mean(np.square(spreads)))) if spreads else None,
        n_orders=min(m.n_orders for m in group),
        row_divergences=divergences,
    )


def _neutral(priors: Sequence[NeutralPrior]) -> NeutralPrior | None:
    if not priors:
        return None
    means = [float(np.mean([getattr(prior, name) for prior in priors])) for name in ("margin", "lead")]
    return NeutralPrior(max(prior.n for prior in priors), *means)
