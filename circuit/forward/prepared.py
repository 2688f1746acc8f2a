"""Batches ready for patched passes: both runs, their difference, and the targets."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TypeVar

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from persona_circuits.circuit import parallel as ranks
from persona_circuits.circuit.errors import ModelError
from persona_circuits.circuit.forward.ablation import Ablated, Ablation
from persona_circuits.circuit.forward.ablation import corrupt as by_corrupt
from persona_circuits.circuit.forward.plain import Prefix, Run, run_clean, run_corrupt, targets_of
from persona_circuits.circuit.model import Model
from persona_circuits.circuit.model.finite import check_finite
from persona_circuits.circuit.task import Batch
from persona_circuits.metrics import Metric, Targets

__all__ = [
    "Prepared",
    "divergence",
    "effects",
    "first_difference",
    "in_halves",
    "is_out_of_memory",
    "is_plain",
    "is_unpadded",
    "logger",
    "prepare",
    "prepare_each",
]

logger = logging.getLogger(__name__)
Result = TypeVar("Result")


@dataclass(frozen=True, eq=False)
class Prepared:
    """A batch with its clean and its corrupt run, what cut edges carry, and what its prompts are measured against.

    Before position ``first`` what cut edges carry is what the clean run has. ``differences`` are ablated less clean
    of every source from there on, where many circuits are to be tried on the batch.
    """

    batch: Batch
    clean: Run
    corrupt: Run
    ablated: Ablated
    targets: Targets
    first: int = 0
    differences: Float[Tensor, "src batch late d_model"] | None = None

    @cached_property
    def before(self) -> Prefix | None:
        """The clean run's keys and values before position ``first``."""
        return Prefix.of(self.clean, self.first)

    def with_differences(self) -> Prepared:
        """The same for many circuits: half as much memory again, and what they have in common is computed once."""
        late = slice(self.first, None)
        return replace(self, differences=self.ablated.contributions[:, :, late] - self.clean.contributions[:, :, late])


def prepare(model: Model, batch: Batch, ablation: Ablation | None = None) -> Prepared:
    """The plain passes over both prompts of a batch, and the ablation, the corrupt one if none is given."""
    clean, corrupt = run_clean(model, batch), run_corrupt(model, batch)
    ablated = by_corrupt(model, batch, clean, corrupt) if ablation is None else ablation(model, batch, clean)
    if ablated.logits is not corrupt.logits:
        check_finite(ablated.logits, lambda row: f"{batch.name(row)} with every edge cut")
    return Prepared(batch, clean, corrupt, ablated, targets_of(batch, clean.logits), first_difference(batch, ablation))


def prepare_each(model: Model, batches: Iterable[Batch], ablation: Ablation | None = None) -> Iterator[Prepared]:
    """``prepare`` for one batch after the other, as many rows at a time as the model's budget allows.

    A batch that does not fit the memory all the same is taken in halves.
    """
    for batch in batches:
        for part in within_budget(model, batch, ablation):
            yield from in_halves(lambda some: prepare(model, some, ablation), part)


def within_budget(model: Model, batch: Batch, ablation: Ablation | None) -> tuple[Batch, ...]:
    """The batch, or parts of it whose runs and one circuit on them fit the model's budget."""
    if model.budget is None:
        return (batch,)
    return batch.parts(model.budget.circuit_rows(batch.n_tokens, plain=is_plain(batch, ablation)))


def is_plain(batch: Batch, ablation: Ablation | None) -> bool:
    """Whether cut edges carry the corrupt run's values place by place, which takes no further run."""
    return (ablation is None or ablation is by_corrupt) and batch.corrupt_to_clean is None


def is_unpadded(batch: Batch, ablation: Ablation | None) -> bool:
    """Whether cut edges carry what the corrupt prompt has at the same place, and no row is padded."""
    return is_plain(batch, ablation) and batch.clean_padding is None


def first_difference(batch: Batch, ablation: Ablation | None) -> int:
    """The first position at which any prompt differs from its pair; what is ablated is clean before it.

    Zero for ablations that change positions at which both prompts agree, and for rows that are padded.
    """
    if not is_unpadded(batch, ablation):
        return 0
    differs = (batch.clean != batch.corrupt).any(dim=0).nonzero()
    return int(differs[0]) if len(differs) else batch.clean.shape[1] - 1


def in_halves(work: Callable[[Batch], Result], batch: Batch) -> list[Result]:
    """The work on a batch, or on its halves, or on their halves, where the device's memory runs out.

    Raises:
        ModelError: a single prompt does not fit.
    """
    try:
        return [work(batch)]
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        if len(batch) == 1:
            raise ModelError(
                f"a single prompt of {batch.clean.shape[1]} tokens does not fit the memory of {batch.clean.device}; "
                "use --max-memory, a shorter --dtype, or a larger device"
            ) from error
    if batch.clean.is_cuda:
        torch.cuda.empty_cache()
    first, second = batch.halves()
    logger.warning("out of memory with %d prompts at a time; going on with %d", len(batch), len(first))
    return in_halves(work, first) + in_halves(work, second)


def is_out_of_memory(error: RuntimeError) -> bool:
    """Also where the device has no exception of its own for it: Apple's, and the CPU."""
    return isinstance(error, torch.OutOfMemoryError) or any(
        words in str(error) for words in ("out of memory", "can't allocate memory", "not enough memory")
    )


def divergence(prepared: Iterable[Prepared], metric: Metric) -> float:
    """m(clean prompts) - m(corrupt prompts) over all rows, from the plain runs; with persona metrics D."""
    return effects(prepared, metric)[0]


def effects(prepared: Iterable[Prepared], metric: Metric) -> tuple[float, float]:
    """The divergence, and m(full) - m(empty), the ablation's whole effect; with the corrupt one both are the same."""
    total, count = np.zeros(2), 0
    for item in prepared:
        clean = metric(item.clean.logits, item.targets)
        others = (metric(logits, item.targets) for logits in (item.corrupt.logits, item.ablated.logits))
        gaps = torch.stack([clean - other for other in others]).cpu().double()
        check_finite(gaps.T, item.batch.name, f"values of {metric.name}")
        total, count = total + gaps.sum(1).numpy(), count + gaps.shape[1]
    *sums, n_rows = ranks.summed(np.array([*total, count], dtype=np.float64)).tolist()
    return sums[0] / n_rows, sums[1] / n_rows
