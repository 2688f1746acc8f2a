"""Batches ready for patched passes: both runs, their difference, and the targets."""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, TypeVar

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from persona_circuits.circuit import parallel
from persona_circuits.circuit.errors import ModelError
from persona_circuits.circuit.forward.ablation import Ablated, Ablation
from persona_circuits.circuit.forward.ablation import corrupt as by_corrupt
from persona_circuits.circuit.forward.plain import Prefix, Run, run_clean, run_corrupt, targets_of
from persona_circuits.circuit.model import Model
from persona_circuits.circuit.model.finite import check_finite
from persona_circuits.circuit.storage import search_of
from persona_circuits.circuit.task import Batch
from persona_circuits.metrics import Metric, Targets

__all__ = [
    "KeptRuns",
    "Prepared",
    "bare",
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
    "search_on",
    "seconds_a_pass",
]

logger = logging.getLogger(__name__)
Result = TypeVar("Result")
KEPT_BYTES = 1 << 30
"""Bound on the bytes of a task's runs kept for reuse; the rest is run again each time."""


@dataclass(frozen=True, eq=False)
class Prepared:
    """A batch with its clean and its corrupt run, what cut edges carry, and what its prompts are measured against.

    Before position ``first`` cut edges carry the clean run's values. ``differences`` are ablated minus clean
    of every source from there on, for batches on which many circuits are tried.
    """

    batch: Batch
    clean: Run
    corrupt: Run
    ablated: Ablated
    targets: Targets
    first: int = 0
    differences: Float[Tensor, "src batch late d_model"] | None = None

    def __len__(self) -> int:
        return len(self.batch)

    @property
    def nbytes(self) -> int:
        """Bytes of the runs, each storage once."""
        runs = (self.clean, self.corrupt, self.ablated)
        held = [
            x for at in runs for x in (at.contributions, *at.streams, *at.mids, *(y for qkv in at.qkv for y in qkv))
        ]
        held += [x for at in (self.clean, self.corrupt) for x in (*at.written.z, *at.written.mlps)]
        storages = {x.untyped_storage().data_ptr(): x.untyped_storage().nbytes() for x in held}
        return sum(storages.values())

    @cached_property
    def before(self) -> Prefix | None:
        """The clean run's keys and values before position ``first``."""
        return Prefix.of(self.clean, self.first)

    def with_differences(self) -> Prepared:
        """The same for many circuits: 50 % more memory, and what circuits share is computed once."""
        late = slice(self.first, None)
        return replace(self, differences=self.ablated.contributions[:, :, late] - self.clean.contributions[:, :, late])


def prepare(model: Model, batch: Batch, ablation: Ablation | None = None) -> Prepared:
    """The plain passes over both prompts of a batch, and what cut edges carry.

    Parameters
    ----------
    ablation
        What cut edges carry; the corrupt prompt's values if none is given.

    Returns
    -------
    The batch with both runs and the ablated values, as patched passes take it.

    Raises
    ------
    ModelError
        Logits are not finite.
    """
    clean, corrupt = run_clean(model, batch), run_corrupt(model, batch)
    ablated = by_corrupt(model, batch, clean, corrupt) if ablation is None else ablation(model, batch, clean)
    if ablated.logits is not corrupt.logits:
        check_finite(ablated.logits, lambda row: f"{batch.name(row)} with every edge cut")
    return Prepared(batch, clean, corrupt, ablated, targets_of(batch, clean.logits), first_difference(batch, ablation))


def prepare_each(
    model: Model, batches: Iterable[Batch | Prepared], ablation: Ablation | None = None
) -> Iterator[Prepared]:
    """``prepare`` for one batch after the other, as many rows at a time as the model's budget allows.

    A batch that still does not fit the memory is split in halves. A prepared batch passes through unchanged.
    """
    for batch in batches:
        if isinstance(batch, Prepared):
            yield batch
            continue
        for part in within_budget(model, batch, ablation):
            yield from in_halves(lambda some: prepare(model, some, ablation), part)


def seconds_a_pass(model: Model, batches: Sequence[Batch], ablation: Ablation | None = None) -> float:
    """Seconds that one pass of one prompt takes, by the plain runs of the first batch; 0 where there is none."""
    begun, rows = time.monotonic(), 0
    for item in prepare_each(model, batches[:1], ablation):
        rows += len(item)
    return (time.monotonic() - begun) / (2 * rows) if rows else 0.0


def search_on(model: Model, prepared: Iterable[Prepared], metric: Metric, *more: object) -> str:
    """A name (``search_of``) of work on the prompts of all processes, with what cut edges carry."""
    digest = hashlib.sha256()
    for item in prepared:
        batch = item.batch
        for tensor in (batch.clean, batch.corrupt, batch.answers, batch.wrong_answers, item.ablated.logits.float()):
            digest.update(tensor.cpu().numpy().tobytes())
    own = digest.hexdigest()
    return search_of(model.fingerprint, metric.name, sorted(parallel.gathered({own: own})), *more)


class KeptRuns:
    """Batches whose plain runs are made on first use; a call yields them prepared.

    Runs are kept up to ``KEPT_BYTES``, and none where the model has a budget; the rest is run again each time.
    """

    def __init__(self, model: Model, batches: Iterable[Batch | Prepared], ablation: Ablation | None = None) -> None:
        self.model, self.ablation = model, ablation
        self._groups: list[list[Batch | Prepared]] = [[batch] for batch in batches]
        self._room = 0 if model.budget is not None else KEPT_BYTES

    def __len__(self) -> int:
        return len(self._groups)

    def __call__(self) -> Iterator[Prepared]:
        for place in range(len(self)):
            yield from self.of(place)

    def of(self, place: int) -> Iterator[Prepared]:
        """One batch, in parts where it does not fit whole."""
        new: list[Batch | Prepared] = []
        for item in prepare_each(self.model, self._groups[place], self.ablation):
            if self._room:
                new.append(item)
            yield item
        size = sum(item.nbytes for item in new if isinstance(item, Prepared))
        if size <= self._room and not isinstance(self._groups[place][0], Prepared):
            self._groups[place], self._room = new or self._groups[place], self._room - size

    @property
    def batches(self) -> list[Batch | Prepared]:
        """Prepared where the runs are kept, bare where they are not; scorers take either."""
        return [item for group in self._groups for item in group]


def within_budget(model: Model, batch: Batch, ablation: Ablation | None) -> tuple[Batch, ...]:
    """The batch, or parts of it whose runs and one circuit on them fit the model's budget."""
    if model.budget is None:
        return (batch,)
    return batch.parts(model.budget.circuit_rows(batch.n_tokens, plain=is_plain(batch, ablation)))


def is_plain(batch: Batch, ablation: Ablation | None) -> bool:
    """Whether cut edges carry the corrupt run's values place by place, which needs no further run."""
    return (ablation is None or ablation is by_corrupt) and batch.corrupt_to_clean is None


def is_unpadded(batch: Batch, ablation: Ablation | None) -> bool:
    """Whether cut edges carry what the corrupt prompt has at the same place, and no row is padded."""
    return is_plain(batch, ablation) and batch.clean_padding is None


def bare(batch: Batch | Prepared) -> Batch:
    """The batch, without its runs."""
    return batch.batch if isinstance(batch, Prepared) else batch


def first_difference(batch: Batch | Prepared, ablation: Ablation | None) -> int:
    """The first position at which any prompt differs from its pair; what is ablated is clean before it.

    Zero for ablations that change positions at which both prompts agree, and for rows that are padded.
    """
    if isinstance(batch, Prepared):
        return batch.first
    if not is_unpadded(batch, ablation):
        return 0
    differs = (batch.clean != batch.corrupt).any(dim=0).nonzero()
    return int(differs[0]) if len(differs) else batch.clean.shape[1] - batch.n_read


def in_halves(work: Callable[[Any], Result], batch: Batch | Prepared) -> list[Result]:
    """The work on a batch, or on its halves, or on their halves, where the device's memory runs out.

    Raises:
        ModelError: a single prompt does not fit.
    """
    try:
        return [work(batch)]
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        batch = bare(batch)
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
    *sums, n_rows = parallel.summed(np.array([*total, count], dtype=np.float64)).tolist()
    return sums[0] / n_rows, sums[1] / n_rows
