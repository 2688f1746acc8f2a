"""How far rounding alone moves a metric, measured on the passes that are run anyway, in the metric's own units.

A patched pass puts streams together from what nodes write: x = clean x + sum over sources (ablated - clean).
With every edge cut that is the ablated stream, computed another way, so the same quantity is known
twice without a further pass:

    m(clean stream at the logits + sum over all sources (ablated - clean))    against    m(ablated logits)

Their distance, plus what one unit in the last place of the largest logit does to the metric, is the floor
below which two values of m cannot be told apart. A tolerance is a small share of |m(full) - m(empty)| plus that
floor: the same data in another unit have the same verdicts.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from persona_circuits.circuit import parallel
from persona_circuits.circuit.forward.prepared import Prepared
from persona_circuits.circuit.model import Model
from persona_circuits.metrics import Metric, Targets

__all__ = ["Rounding", "tolerance"]

SHARE = 1e-4
"""Share of |m(full) - m(empty)| below which differences are ties."""
PASSES = 4.0
"""Factor on the distance: a patched pass rounds in every layer, the comparison here only at the end."""


class Rounding:
    """The largest distance over the batches seen so far; ``floor`` is that of all processes."""

    def __init__(self, model: Model, metric: Metric) -> None:
        self.model, self.metric = model, metric
        self._largest = 0.0

    def watched(self, prepared: Iterable[Prepared]) -> Iterator[Prepared]:
        """The same batches, each inspected as it passes."""
        for item in prepared:
            self._largest = max(self._largest, float(_distance(self.model, item, self.metric).max()))
            yield item

    @property
    def floor(self) -> float:
        """In units of the metric; a collective call, which every process makes after its batches."""
        return max(parallel.gathered({parallel.share(range(parallel.size()))[0]: self._largest}).values())


def tolerance(span: Float[np.ndarray, " pair"], rounding: float = 0.0) -> float:
    """Differences up to this count as none: a share of |m(full) - m(empty)|, given as ``span``, plus rounding."""
    return SHARE * abs(float(span.mean())) + rounding


def _distance(model: Model, item: Prepared, metric: Metric) -> Float[Tensor, " batch"]:
    context = item.clean.context
    ablated, clean = (run.contributions[:, :, -context.n_read :] for run in (item.ablated, item.clean))
    with torch.no_grad():
        rebuilt = model.answer(item.clean.streams[-1][:, -context.n_read :] + (ablated - clean).sum(0), context.forms)
    m, m_rebuilt = (metric(logits, item.targets) for logits in (item.ablated.logits, rebuilt))
    last_place = [_last_place(metric, run.logits, item.targets) for run in (item.clean, item.ablated)]
    return PASSES * (m_rebuilt - m).abs() + torch.maximum(*last_place)


def _last_place(metric: Metric, logits: Float[Tensor, "batch vocab"], targets: Targets) -> Float[Tensor, " batch"]:
    """What one unit in the last place of the largest logit, up for answers and down for wrong ones, does."""
    step = torch.finfo(logits.dtype).eps * logits.abs().amax(-1, keepdim=True)
    moved = logits.clone()
    for ids, sign in ((targets.answers, 1.0), (targets.wrong_answers, -1.0)):
        moved.scatter_add_(-1, ids.clamp(min=0), sign * step * (ids >= 0))
    return (metric(moved, targets) - metric(logits, targets)).abs()
