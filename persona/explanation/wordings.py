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
    contributions = np.mean([one.contributions for one in group], axis=0)
    slopes = [one.slope for one in group if one.slope is not None]
    return replace(
        first,
        signal={place: tuple(np.mean([one.signal[place] for one in group], axis=0).tolist()) for place in PLACES},
        alignment=tuple(np.mean([one.alignment for one in group], axis=0).tolist()),
        chance=float(np.sqrt(np.mean([one.chance**2 for one in group]))),
        contributions=tuple(contributions.tolist()),
        remainder=float(np.mean([one.remainder for one in group])),
        conservation=max((one.conservation for one in group), key=abs),
        cancellation=metrics.cancellation(torch.tensor(contributions)).item(),
        slope=float(np.mean(slopes)) if len(slopes) == len(group) else None,
    )


def mean_outcome(group: Sequence[Outcome]) -> Outcome:
    """The causal test on all rows together: it agrees where it does on more than half of those on which it ran."""
    first = group[0]
    if len(group) == 1:
        return first
    ran = [one.agrees for one in group if one.agrees is not None]
    names = [name for name in first.says if all(name in one.says for one in group)]
    says = {name: float(np.mean([one.says[name] for one in group])) for name in names}
    if not ran:
        return replace(first, says=says)
    why = f"agrees on {sum(ran)} of {len(ran)} rows; the first: {first.why}"
    return Outcome(first.test, 2 * sum(ran) > len(ran), says, why)
