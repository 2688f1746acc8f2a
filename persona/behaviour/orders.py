"""Pairs whose prompts list their options, averaged over the orders of the list.

Where options are listed, or have letters, their place in the list affects the answer. A pair is then asked in all
cyclic orders, so that every option stands in every place once; its logits are averaged over the orders, option by
option, and a bias for a place is the same for all options and cancels. How far the margin moves between the orders of
one prompt is the order effect. The rows that ``pairs`` writes say what is averaged: ``orders_of``, ``order``, and
``options``, what each candidate stands for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from persona_circuits.persona.behaviour.measure import Answer, PairMeasure, measured
from persona_circuits.persona.data.items import Item

__all__ = ["averaged", "incomplete", "order_effect"]


def averaged(measures: Sequence[PairMeasure]) -> tuple[PairMeasure, ...]:
    """One measure per pair, the mean over its orders; those that list nothing as they are.

    Returns
    -------
    In the order of appearance. D, prior and choices are of the averaged log probabilities, mass is the mean mass,
    and the candidates are the options' own names.
    """
    groups: dict[str, list[PairMeasure]] = {}
    for measure in measures:
        groups.setdefault(_base(measure), []).append(measure)
    return tuple(_mean(group) if _is_listed(group[0]) else group[0] for group in groups.values())


def order_effect(measures: Sequence[PairMeasure]) -> float | None:
    """Root mean square over prompts of the spread of the margin between orders, in logits; None without a list."""
    spreads = [m.order_spread for m in measures if m.order_spread is not None]
    return float(np.sqrt(np.mean(np.square(spreads)))) if spreads else None


def incomplete(measures: Sequence[PairMeasure]) -> int:
    """How many averaged measures list their options and were not asked in all cyclic orders."""
    return sum(m.n_orders < len(m.item.candidates) for m in measures if m.order_spread is not None)


def _base(measure: PairMeasure) -> str:
    pair = measure.item.pair
    return f"orders of {pair.row['orders_of']}" if _is_listed(measure) else f"pair {pair.id}"


def _is_listed(measure: PairMeasure) -> bool:
    row = measure.item.pair.row
    options = row.get("options")
    return "orders_of" in row and isinstance(options, list) and len(options) == len(measure.item.candidates)


def _mean(group: Sequence[PairMeasure]) -> PairMeasure:
    first = _named(group[0])
    options = first.candidates
    sides = torch.tensor([[_by_option(m, options, side) for side in "ab"] for m in group], dtype=torch.float64)
    vocabulary = float(np.mean([m.jensen_shannon_vocabulary for m in group]))
    mean = measured(first, Answer(sides.mean(0), vocabulary, group[0].words), ())
    margins = torch.tensor([_margins(m, first) for m in group], dtype=torch.float64)
    return replace(
        mean,
        mass_a=float(np.mean([m.mass_a for m in group])),
        mass_b=float(np.mean([m.mass_b for m in group])),
        order_spread=margins.var(0, unbiased=False).mean().sqrt().item(),
        n_orders=len({str(m.item.pair.row.get("order")) for m in group}),
    )


def _named(measure: PairMeasure) -> Item:
    """The item with its options' names in the place of what the answers say in this order."""
    item, row = measure.item, measure.item.pair.row
    meant = dict(zip(item.candidates, row["options"], strict=True))
    answers, wrong = (tuple(meant[text] for text in side) for side in (item.pair.answers, item.pair.wrong_answers))
    pair = replace(item.pair, id=str(row["orders_of"]), answers=answers, wrong_answers=wrong)
    return replace(item, pair=pair, candidates=tuple(row["options"]))


def _by_option(measure: PairMeasure, options: Sequence[str], side: str) -> list[float]:
    return measure.log_probs(side, options, measure.item.pair.row["options"])


def _margins(measure: PairMeasure, first: Item) -> list[float]:
    """The margin of the declared options under both prompts, in this order."""
    answers, wrong = first.pair.answers, first.pair.wrong_answers
    return [
        float(np.mean(_by_option(measure, answers, side)) - np.mean(_by_option(measure, wrong, side)))
        for side in ("a", "b")
    ]
