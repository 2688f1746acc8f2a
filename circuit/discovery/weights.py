"""Equal weights of couples of personas in the scores, whatever the size of their effect.

A score is a mean over pairs, so that couples of personas with a large divergence say most of it. Here every pair's
metric is divided by the spread of its couple, the root mean square of D over the couple's pairs, and multiplied by one
number, so that the weights' mean is 1 and the metric's unit stays. Couples with less than a tenth of the spread of all
pairs count as if they had that, so as not to amplify noise.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from persona_circuits.circuit.errors import OptionError
from persona_circuits.circuit.forward import Prepared
from persona_circuits.circuit.task import Batch, PromptPair
from persona_circuits.metrics import Metric

__all__ = ["couple_weights", "weighed"]

LEAST = 0.1


def couple_weights(effects: Sequence[float] | np.ndarray, pairs: Sequence[PromptPair]) -> np.ndarray:
    """A weight for every pair, from its m(clean) - m(corrupt) and that of the other pairs of its couple.

    Raises
    ------
    OptionError
        Pairs do not name their personas, or all effects are zero.
    """
    couples = [frozenset((pair.persona_a, pair.persona_b)) for pair in pairs]
    if not all(pair.persona_a and pair.persona_b for pair in pairs):
        raise OptionError("--weigh couples needs pairs that name persona_a and persona_b; leave it out")
    squares = np.square(np.asarray(effects, dtype=np.float64))
    least = LEAST * np.sqrt(squares.mean())
    if not least:
        raise OptionError("--weigh couples divides by the spread of D, and D is zero on all pairs; leave it out")
    spread = np.array([np.sqrt(squares[[other == own for other in couples]].mean()) for own in couples])
    weights = 1 / np.maximum(spread, least)
    return np.asarray(weights / weights.mean())


def weighed(
    batches: Sequence[Batch | Prepared], metric: Metric, weights: np.ndarray
) -> tuple[list[Batch | Prepared], Metric]:
    """The same batches with a weight on every row, and the metric times it."""
    directions = 2 if metric.swap_rows else 1

    def of(item: Batch | Prepared) -> Batch | Prepared:
        if isinstance(item, Prepared):
            batch = of(item.batch)
            assert isinstance(batch, Batch)
            return replace(item, batch=batch, targets=replace(item.targets, weights=batch.weights))
        own = weights[[index // directions for index in item.indices]]
        return replace(item, weights=torch.from_numpy(own).to(item.clean.device))

    def function(logits: torch.Tensor, targets: object) -> torch.Tensor:
        values = metric.function(logits, targets)  # type: ignore[arg-type]
        return values * targets.weights.to(values.dtype)  # type: ignore[attr-defined]

    return [of(item) for item in batches], replace(metric, function=function)
