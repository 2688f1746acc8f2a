"""The patched forward pass: the model with a set of edges ablated.

Everything that asks "what if this edge carried another value" comes here. The stream into slot d is

    x_d = resid_d + sum over cut edges s->d of (ablated_s - current_s)

or, where fewer edges are kept than cut, the same from the other side

    x_d = ablated resid_d + sum over kept edges s->d of (current_s - ablated_s)

so the full circuit gives the clean logits and the empty circuit those of the ablated
values alone, with the corrupt prompts' values the corrupt logits.
Many circuits run in one pass. Layers before the first cut edge are those of the
clean run and are not run again; what no circuit gives anything to read is not run.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TypeVar

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from circuit import ranks
from circuit.ablation import Ablated, Ablation
from circuit.ablation import corrupt as by_corrupt
from circuit.errors import ModelError
from circuit.graph import SLOTS
from circuit.model import Block, Model
from circuit.runs import Run, run, run_clean, run_corrupt, targets_of
from circuit.task import Batch
from metrics import Metric, Targets

__all__ = [
    "Prepared",
    "Progress",
    "Run",
    "divergence",
    "effects",
    "in_halves",
    "is_plain",
    "masks_per_pass",
    "measure",
    "measure_rows",
    "patched_logits",
    "prepare",
    "prepare_each",
    "run",
    "targets_of",
    "within_budget",
]

logger = logging.getLogger(__name__)
Result = TypeVar("Result")
Progress = Callable[[int, int], None]
"""Called with the work done and the work there is; never called from another thread."""

MASK_BYTES = 1 << 30
CPU_MASK_BYTES = 1 << 26
"""On a CPU one circuit of a large model a pass is two to three times as fast as many: its streams stay in the cache."""


@dataclass(frozen=True, eq=False)
class Prepared:
    """A batch with its clean and its corrupt run, what cut edges carry, and what its prompts are measured against."""

    batch: Batch
    clean: Run
    corrupt: Run
    ablated: Ablated
    targets: Targets


def prepare(model: Model, batch: Batch, ablation: Ablation | None = None) -> Prepared:
    """The plain passes over both prompts of a batch, and the ablation, the corrupt one if none is given."""
    clean, corrupt = run_clean(model, batch), run_corrupt(model, batch)
    ablated = by_corrupt(model, batch, clean, corrupt) if ablation is None else ablation(model, batch, clean)
    return Prepared(batch, clean, corrupt, ablated, targets_of(batch, clean.logits))


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


def in_halves(work: Callable[[Batch], Result], batch: Batch) -> list[Result]:
    """The work on a batch, or on its halves, or on their halves, where the device's memory runs out.

    Raises:
        ModelError: a single prompt does not fit.
    """
    try:
        return [work(batch)]
    except RuntimeError as error:
        if not _is_out_of_memory(error):
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


def _is_out_of_memory(error: RuntimeError) -> bool:
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
        total, count = total + gaps.sum(1).numpy(), count + gaps.shape[1]
    *sums, n_rows = ranks.summed(np.array([*total, count], dtype=np.float64)).tolist()
    return sums[0] / n_rows, sums[1] / n_rows


def measure(
    model: Model,
    prepared: Iterable[Prepared],
    masks: Sequence[np.ndarray],
    metric: Metric,
    *,
    max_bytes: int | None = None,
) -> Float[np.ndarray, "mask row"]:
    """The metric of every row, of all processes, under every circuit.

    Parameters
    ----------
    prepared
        This process's batches; each is used once, so a generator keeps only one of them in memory.
    masks
        Kept edges of each circuit, bool ``[n_src, n_dst]``.
    max_bytes
        Bound on the node contributions held at a time; circuits that share a pass are
        as many as fit. By default 64 MiB on a CPU and 1 GiB elsewhere.

    Returns
    -------
    float64 array ``[mask, row]``, columns in the order of the rows' ``index``.
    """
    columns = ranks.gathered(measure_rows(model, prepared, masks, metric, max_bytes=max_bytes))
    return np.stack([columns[index] for index in sorted(columns)], axis=1)


def measure_rows(
    model: Model,
    prepared: Iterable[Prepared],
    masks: Sequence[np.ndarray],
    metric: Metric,
    *,
    max_bytes: int | None = None,
) -> dict[int, Float[np.ndarray, " mask"]]:
    """The metric under every circuit, of this process's own rows by their ``index``."""
    columns: dict[int, np.ndarray] = {}
    for item in prepared:
        values = [
            metric(logits, item.targets).cpu().double().numpy()
            for chunk in _chunks(masks, masks_per_pass(model, item, max_bytes))
            for logits in _logits_of(model, item, chunk)
        ]
        columns |= dict(zip(item.batch.indices, np.stack(values).T, strict=True))
    return columns


def patched_logits(
    model: Model, item: Prepared, kept: Bool[Tensor, "mask src dst"]
) -> Float[Tensor, "mask batch vocab"]:
    """Logits at the last position with every edge that is not kept carrying its ablated value."""
    with torch.no_grad():
        walk = _Walk(model, item, kept)
        for block in model.blocks[walk.first_layer :]:
            walk.through(block)
        return model.unembed(walk.output())


def _logits_of(model: Model, item: Prepared, masks: Sequence[np.ndarray]) -> Iterator[Float[Tensor, "batch vocab"]]:
    """Per circuit; fewer at a time where the device's memory runs out."""
    try:
        found = patched_logits(model, item, _mask_tensor(masks, model))
    except RuntimeError as error:
        if not _is_out_of_memory(error):
            raise
        if len(masks) == 1:
            raise ModelError(
                f"one circuit on {len(item.batch)} prompts does not fit the memory of {model.device}; "
                "use a smaller --batch-size"
            ) from error
        found = None
    if found is not None:
        yield from found
        return
    if model.device.type == "cuda":
        torch.cuda.empty_cache()
    middle = len(masks) // 2
    logger.warning("out of memory with %d circuits at a time; going on with %d", len(masks), middle)
    for part in (masks[:middle], masks[middle:]):
        yield from _logits_of(model, item, part)


class _Walk:
    """The state of a patched pass: the current streams and, per source, ablated minus current."""

    def __init__(self, model: Model, item: Prepared, kept: Bool[Tensor, "mask src dst"]) -> None:
        graph = model.graph
        valid = torch.from_numpy(graph.valid.copy()).to(kept.device)
        self.graph, self.item = graph, item
        self.kept, self.cut = kept & valid, ~kept & valid
        self.first_layer = self._first_cut_layer()
        self.n_masks = len(kept)
        start = item.clean.streams[self.first_layer]
        self.n_shared = 1 + self.first_layer * (graph.n_heads + 1)
        shared = slice(0, self.n_shared)
        self.shared = (item.ablated.contributions[shared] - item.clean.contributions[shared]).flatten(1)
        self.own = start.new_empty(self.n_masks, graph.n_src - self.n_shared, start.numel())
        self.shape = start.shape
        self.resid = start.expand(self.n_masks, *self.shape)

    def _first_cut_layer(self) -> int:
        cut_slots = self.cut.any(dim=0).any(dim=0).nonzero()
        return self.graph.slot_layer(int(cut_slots[0])) if len(cut_slots) else self.graph.n_layers

    def through(self, block: Block) -> None:
        """One layer: every head and the MLP read their own streams, and write.

        What no circuit gives anything to read is known beforehand and is not run.
        """
        graph, layer = self.graph, block.layer
        heads, mlp_slot, mlp = graph.heads_of(layer), graph.mlp_slot_of(layer), graph.mlp_of(layer)
        if bool(self.kept[:, :, graph.head_slots_of(layer)].any()):
            q, k, v = self._projections(block)
            z = block.attention(q, k, v, self.item.clean.context)
            self._write_heads(block, heads, z)
            after = self.resid + block.attn_out(z).unflatten(0, (self.n_masks, -1))
        else:
            after = self.resid + self._write_idle(heads, layer)
        if bool(self.kept[:, :, mlp_slot].any()):
            stream = self.resid if block.parallel else after
            read = self._read(self._slots(mlp_slot, 1), stream, self.item.ablated.mids[layer])
            added = block.mlp(stream if read is None else read[:, 0])
            self._write(slice(mlp, mlp + 1), added[:, None])
        else:
            added = self._write_idle(slice(mlp, mlp + 1), None)
        self.resid = after + added

    def output(self) -> Float[Tensor, "mask batch d_model"]:
        """The stream into the final norm at the last position."""
        read = self._read(self._slots(self.graph.n_dst - 1, 1), self.resid, self.item.ablated.streams[-1])
        return (self.resid if read is None else read[:, 0])[:, :, -1]

    def _slots(self, start: int, count: int) -> Int[Tensor, " slot"]:
        return torch.arange(start, start + count, device=self.kept.device)

    def _projections(self, block: Block) -> list[Float[Tensor, "rows pos head d_head"]]:
        """Queries, keys and values of a layer.

        Heads that no circuit lets read there have the ablated ones, heads into which nothing
        is cut those of the common stream; the streams of all others are summed at once, so
        that every source is read once.
        """
        n_heads, first = self.graph.n_heads, self.graph.head_slots_of(block.layer).start
        slots = self._slots(first, 3 * n_heads)
        live = self.kept[:, :, slots].any(dim=0).any(dim=0)
        own = live & self.cut[:, :, slots].any(dim=0).any(dim=0)
        common, streams = None, None
        if bool((live & ~own).any()):
            common = block.attn_norm(self.resid.flatten(0, 1))
        if bool(own.any()):
            read = self._read(slots[own.nonzero()[:, 0]], self.resid, self.item.ablated.streams[block.layer])
            assert read is not None, "something is cut in each of these slots"
            streams = block.attn_norm(read).transpose(0, 1).flatten(1, 2)
        found, begin = [], 0
        for i, slot in enumerate(SLOTS):
            here = slice(i * n_heads, (i + 1) * n_heads)
            heads = own[here].nonzero()[:, 0]
            if len(heads) == n_heads:
                assert streams is not None
                found.append(block.project_each(slot, streams[begin : begin + n_heads]))
            else:
                some = None
                if streams is not None and len(heads):
                    some = block.project_each(slot, streams[begin : begin + len(heads)], heads)
                found.append(self._with_heads(block, i, common, live[here], heads, some))
            begin += len(heads)
        return found

    def _with_heads(
        self,
        block: Block,
        index: int,
        common: Float[Tensor, "rows pos d_model"] | None,
        live: Bool[Tensor, " head"],
        heads: Int[Tensor, " some"],
        values: Float[Tensor, "rows pos some d_head"] | None,
    ) -> Float[Tensor, "rows pos head d_head"]:
        """Queries, keys or values of a layer: some heads' own, the common stream's of other live ones, else ablated."""
        ablated = self.item.ablated.qkv[block.layer][index].expand(self.n_masks, -1, -1, -1, -1).flatten(0, 1)
        out = ablated
        plain = live.clone()
        plain[heads] = False
        if bool(plain.any()):
            assert common is not None
            out = block.project(SLOTS[index], common)
            if bool((~live).any()):
                out = torch.where(live[:, None], out, ablated)
        return out if values is None else out.index_copy(2, heads, values)

    def _read(
        self,
        slots: Int[Tensor, " slot"],
        resid: Float[Tensor, "mask batch pos d_model"],
        ablated: Float[Tensor, "batch pos d_model"],
    ) -> Float[Tensor, "mask slot batch pos d_model"] | None:
        """The streams into slots of one kind, from the side with fewer terms; None where nothing is cut."""
        n = self.graph.n_reaching(int(slots[0]))
        cut, kept = self.cut[:, :n][..., slots], self.kept[:, :n][..., slots]
        if not bool(cut.any()):
            return None
        if int(kept.sum()) < int(cut.sum()):
            return self._sum(kept).neg_().add_(ablated)
        return self._sum(cut).add_(resid[:, None])

    def _sum(self, chosen: Bool[Tensor, "mask src slot"]) -> Float[Tensor, "mask slot batch pos d_model"]:
        """Sum over the chosen edges of ablated minus current, sources that no edge chooses left out."""
        weights = chosen.transpose(1, 2).to(self.shared.dtype)
        masks, slots, n = weights.shape
        n_shared = min(n, self.n_shared)
        total = (weights[..., :n_shared].reshape(masks * slots, n_shared) @ self.shared[:n_shared]).view(
            masks, slots, -1
        )
        used = chosen[:, n_shared:].any(dim=2).any(dim=0).nonzero()[:, 0]
        if 3 * len(used) > n - n_shared:  # choosing the used ones copies them
            total.baddbmm_(weights[..., n_shared:], self.own[:, : n - n_shared])
        elif len(used):
            total.baddbmm_(weights[..., n_shared:][..., used], self.own[:, used])
        return total.view(masks, slots, *self.shape)

    def _write_heads(self, block: Block, heads: slice, z: Float[Tensor, "rows pos head d_head"]) -> None:
        if self.n_masks == 1:
            here = self.own[0, heads.start - self.n_shared : heads.stop - self.n_shared].view(-1, *self.shape)
            block.write_head_results(z, here, less_than=self.item.ablated.contributions[heads])
        else:
            self._write(heads, block.head_results(z).unflatten(1, (self.n_masks, -1)).transpose(0, 1))

    def _write(self, sources: slice, values: Float[Tensor, "mask src batch pos d_model"]) -> None:
        here = slice(sources.start - self.n_shared, sources.stop - self.n_shared)
        ablated = self.item.ablated.contributions[sources]
        torch.sub(ablated, values, out=self.own[:, here].unflatten(-1, self.shape))

    def _write_idle(self, sources: slice, layer: int | None) -> Float[Tensor, "batch pos d_model"]:
        """Write what nodes make of ablated values alone; what they add to the stream.

        ``layer`` is that of the heads, whose attention has a bias besides; None for an MLP.
        """
        ablated, idle = self.item.ablated, self.item.ablated.idle
        here = self.own[:, sources.start - self.n_shared : sources.stop - self.n_shared]
        if idle is not None:
            here[:] = (ablated.contributions[sources] - idle.contributions[sources]).flatten(1)
            return idle.contributions[sources.start] if layer is None else idle.attn[layer]
        here[:] = 0.0
        added = ablated.contributions[sources.start]
        if layer is None:
            return added
        return ablated.streams[layer + 1] - ablated.streams[layer] - ablated.contributions[self.graph.mlp_of(layer)]


def masks_per_pass(model: Model, item: Prepared, max_bytes: int | None = None) -> int:
    """How many circuits share a pass: as many as hold their nodes' contributions within the bound, at least one."""
    if max_bytes is None:
        max_bytes = CPU_MASK_BYTES if model.device.type == "cpu" else MASK_BYTES
    stream = item.clean.streams[0]
    per_mask = (model.graph.n_src + 6 * model.graph.n_heads) * stream.numel() * stream.element_size()
    fitting = max(1, max_bytes // per_mask)
    if model.budget is None:
        return fitting
    return min(fitting, model.budget.circuits(item.batch.n_tokens, len(item.batch)))


def _chunks(masks: Sequence[np.ndarray], size: int) -> Iterator[list[np.ndarray]]:
    items = iter(masks)
    while chunk := list(islice(items, size)):
        yield chunk


def _mask_tensor(masks: Sequence[np.ndarray], model: Model) -> Bool[Tensor, "mask src dst"]:
    return torch.from_numpy(np.stack(masks)).to(model.device)
