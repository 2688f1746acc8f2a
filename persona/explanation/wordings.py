"""Rows of other paraphrases and wordings taken together: what is inside them on average, and what their tests say."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from persona_circuits import metrics
from persona_circuits.persona.explanation.causal import Outcome
from persona_circuits.persona.explanation.inside import PLACES, Inside

__all__ = ["mean_inside", "mean_outcome"]


def mean_inside(group: Sequence[Inside]) -> Inside:
    """Means over rows of signals, alignments, contributions and slopes; kappa is of the mean contributions.

    The chance of eta is the root of the mean square; the error of the sum the one that is furthest from zero.
    """
    first = group[0]
    if len(group) == 1:
        return first
    contributions = np.mean([inside.contributions for inside in group], axis=0)
    slopes = [inside.slope for inside in group if inside.slope is not None]
    return replace(
        first,
        signal={place: tuple(np.mean([inside.signal[place] for inside in group], axis=0).tolist()) for place in PLACES},
        alignment=tuple(np.mean([inside.alignment for inside in group], axis=0).tolist()),
        chance=float(np.sqrt(np.mean([inside.chance**2 for inside in group]))),
        contributions=tuple(contributions.tolist()),
        remainder=float(np.mean([inside.remainder for inside in group])),
        conservation=max((inside.conservation for inside in group), key=abs),
        cancellation=metrics.cancellation(torch.tensor(contributions)).item(),
        slope=float(np.mean(slopes)) if len(slopes) == len(group) else None,
    )


def mean_outcome(group: Sequence[Outcome]) -> Outcome:
    """The causal test on all rows together: it agrees where it does on more than half of those on which it ran."""
    first = group[0]
    if len(group) == 1:
        return first
    ran = [outcome.agrees for outcome in group if outcome.agrees is not None]
    names = [name for name in first.says if all(name in outcome.says for outcome in group)]
    says = {name: float(np.mean([outcome.says[name] for outcome in group])) for name in names}
    if not ran:
        return replace(first, says=says)
    why = f"agrees on {sum(ran)} of {len(ran)} rows; the first: {first.why}"
    return Outcome(first.test, 2 * sum(ran) > len(ran), says, why)
