"""The patched forward pass: the model with a set of edges ablated.

Everything that asks "what if this edge carried another value" comes here. The stream into slot d is

    x_d = resid_d + sum over cut edges s->d of (ablated_s - current_s)

or, where fewer edges are kept than cut, equivalently

    x_d = ablated resid_d + sum over kept edges s->d of (current_s - ablated_s)

so the full circuit gives the clean logits and the empty circuit those of the ablated values alone, with the corrupt
prompts' values the corrupt logits. Many circuits run in one pass. A circuit may keep an edge at some parts of the
prompt and not at others: at the places of a part the sums are over the edges kept or cut there. Layers before the first
cut edge and positions before the first difference are those of the clean run and are not run again; what no circuit
gives anything to read is not run; after the last layer's keys and values only the answer's position is.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from persona_circuits.circuit.errors import ModelError
from persona_circuits.circuit.forward.prepared import Prepared, is_out_of_memory, logger
from persona_circuits.circuit.graph import SLOTS, Slot
from persona_circuits.circuit.model import Block, Model, OpenBlock
from persona_circuits.circuit.subgraph import SpanCircuit

__all__ = ["MASK_BYTES", "logits_of", "masks_per_pass", "patched_logits"]

MASK_BYTES = 1 << 30
ROWS_AT_A_TIME = 64
"""Sources summed at a time on a CPU: more of them would exceed its translation lookaside buffer."""
CPU_MASK_BYTES = 1 << 26
"""On a CPU one circuit of a large model per pass is two to three times as fast as many, as streams stay cached."""


def patched_logits(
    model: Model, item: Prepared, kept: Bool[Tensor, "mask *part src dst"]
) -> Float[Tensor, "mask batch vocab"]:
    """Logits of the answer where slot d reads x_d = sum of (s->d kept ? current_s : ablated_s), and biases.

    "Current" is what the source writes in this pass, given what its own slots read.

    Parameters
    ----------
    item
        Of ``prepare``: a batch with its plain runs and what cut edges carry.
    kept
        Bool ``[mask, src, dst]``, the kept edges of one circuit per mask; they share a pass. Or ``[mask, part, src,
        dst]``: those kept at the places of each of the batch's ``span_names``.

    Returns
    -------
    ``[mask, batch, vocab]``. The full circuit gives the clean logits, the empty one the ablated.

    Examples
    --------
    >>> (batch,) = batches(encode(task, model)[:2], 8, "cpu")
    >>> full = torch.from_numpy(model.graph.valid.copy())
    >>> logits = patched_logits(model, prepare(model, batch), torch.stack([full, ~full]))
    >>> logits.shape == (2, 2, model.logits(batch.clean).shape[-1])
    True
    >>> torch.allclose(logits[0], model.logits(batch.clean)[:, -1], atol=1e-3)
    True
    """
    with torch.no_grad():
        walk = _Walk(model, item, kept)
        for block in model.blocks[walk.first_layer :]:
            walk.through(block)
        return model.answer(walk.output(), item.clean.context.forms)


def logits_of(
    model: Model, item: Prepared, masks: Sequence[np.ndarray | SpanCircuit]
) -> Iterator[Float[Tensor, "batch vocab"]]:
    """The logits of each circuit; fewer circuits share a pass where the device's memory runs out."""
    names = item.batch.span_names
    own = [mask.at(names) if isinstance(mask, SpanCircuit) else mask for mask in masks]
    try:
        logits = patched_logits(model, item, torch.from_numpy(np.stack(np.broadcast_arrays(*own))))
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        if len(masks) == 1:
            raise ModelError(
                f"one circuit on {len(item.batch)} prompts does not fit the memory of {model.device}; "
                "use a smaller --batch-size"
            ) from error
        logits = None
    if logits is not None:
        yield from logits
        return
    if model.device.type == "cuda":
        torch.cuda.empty_cache()
    middle = len(masks) // 2
    logger.warning("out of memory with %d circuits at a time; going on with %d", len(masks), middle)
    for part in (masks[:middle], masks[middle:]):
        yield from logits_of(model, item, part)


class _Parts:
    """The places of a patched pass, sorted by the part of the prompt that they belong to.

    ``cells[i]`` are those of part i among a stream's cells so ordered; places of no part come first.
    """

    def __init__(self, item: Prepared, places: slice, n_parts: int | None) -> None:
        self.order: Int[Tensor, " place"] | None = None
        self.cells: list[tuple[int | None, slice]] = [(0, slice(None))]
        if n_parts is None:
            return
        assert item.batch.spans is not None, "batches number the parts of their prompts"
        part, width = item.batch.spans[:, places].flatten().cpu(), item.clean.streams[0].shape[-1]
        order = part.argsort(stable=True)
        ends = np.cumsum([int((part == i).sum()) for i in range(-1, n_parts)]) * width
        starts = [0, *ends[:-1].tolist()]
        self.cells = [
            (None if i == 0 else i - 1, slice(start, end))
            for i, (start, end) in enumerate(zip(starts, ends.tolist(), strict=True))
            if end > start
        ]
        if not bool((part.diff() >= 0).all()):
            self.order = order.to(item.clean.streams[0].device)

    def ordered(self, rows: Float[Tensor, "*row cell"], width: int) -> Float[Tensor, "*row cell"]:
        """Streams whose places are moved together."""
        return rows if self.order is None else rows.unflatten(-1, (-1, width))[..., self.order, :].flatten(-2)

    def as_they_were(self, rows: Float[Tensor, "*row cell"], width: int) -> Float[Tensor, "*row cell"]:
        """The other way round."""
        if self.order is None:
            return rows
        return rows.unflatten(-1, (-1, width))[..., self.order.argsort(), :].flatten(-2)


class _Differences:
    """Ablated minus current of every source so far, at the places that a patched pass runs.

    Sources before the first layer that any circuit changes are the same under all circuits, and are computed on
    demand; later ones are each circuit's own, ``[mask, 1 + src, cell]``, after the stream that they change.
    The first ``moved`` of these rows have their places in the order of ``parts``.
    """

    def __init__(
        self, item: Prepared, places: slice, n_shared: int, own: Float[Tensor, "mask row cell"], n_parts: int | None
    ) -> None:
        self.item, self.places, self.n_shared, self.own, self.n_parts = item, places, n_shared, own, n_parts
        self.shape = item.clean.streams[0][:, places].shape
        self.parts, self.moved = _Parts(item, places, n_parts), 1
        self._every: Tensor | None = None

    def added_to(
        self, base: Float[Tensor, "_ batch pos d_model"], chosen: Bool[Tensor, "mask part src slot"], sign: int
    ) -> Float[Tensor, "mask slot batch pos d_model"]:
        """A stream and, with this sign, the sum over the chosen edges; sources that no edge chooses are left out.

        ``chosen`` is on the CPU, so that what depends on it waits for no device.
        """
        weights = sign * chosen.transpose(2, 3).to(self.own.dtype)
        (masks, n_parts, slots, n), n_shared = weights.shape, self.n_shared
        used = chosen.any(dim=3).any(dim=1).any(dim=0)
        self._move(1 + n - n_shared)
        self.own[:, 0] = self.parts.ordered(base.flatten(1), self.shape[-1])
        weights_own = torch.cat([weights.new_ones(masks, n_parts, slots, 1), weights[..., n_shared:]], 3)
        own = self.own[:, : weights_own.shape[3]]
        if 3 * int(used[n_shared:].sum()) <= n - n_shared:  # selecting the used ones copies them
            rows = torch.cat([used.new_ones(1), used[n_shared:]]).nonzero()[:, 0]
            weights_own, own = weights_own[..., rows], own[:, rows]
        shared: Tensor | None = None
        weights_shared = weights[..., :0]
        if bool(used[:n_shared].any()):
            which, shared = self._shared(used[:n_shared])
            weights_shared = weights[..., which].to(own.device)
        weights_own, sums = weights_own.to(own.device), []
        for part, cells in self.parts.cells:
            if part is None:
                sums.append(own[:, :1, cells].expand(-1, slots, -1))
                continue
            some = None if shared is None else (weights_shared[:, part], shared[:, cells])
            sums.append(_summed(weights_own[:, part], own[:, :, cells], some))
        total = sums[0] if len(sums) == 1 else torch.cat(sums, 2)
        return self.parts.as_they_were(total, self.shape[-1]).view(masks, slots, *self.shape)

    def _move(self, n_rows: int) -> None:
        """Bring rows written since the last call into the order of the parts, each once."""
        if self.parts.order is not None and n_rows > self.moved:
            new = self.own[:, self.moved : n_rows]
            new.copy_(self.parts.ordered(new, self.shape[-1]))
            self.moved = n_rows

    def _shared(self, used: Bool[Tensor, " src"]) -> tuple[slice | Int[Tensor, " some"], Float[Tensor, "some cell"]]:
        """The shared sources that are used, or all where those are many, and their differences."""
        if 3 * int(used.sum()) > len(used):
            if self._every is None:
                self._every = self._of(slice(self.n_shared))
            return slice(None, self.n_shared), self._every
        which = used.nonzero()[:, 0]
        return which, self._of(which)

    def _of(self, which: Int[Tensor, " some"] | slice) -> Float[Tensor, "some cell"]:
        if self.item.differences is not None:
            differences = self.item.differences[:, :, -self.shape[1] :][which]
        else:
            ablated, clean = self.item.ablated.contributions, self.item.clean.contributions
            differences = ablated[:, :, self.places][which] - clean[:, :, self.places][which]
        return self.parts.ordered(differences.flatten(1), self.shape[-1])

    def room(self, sources: slice) -> Float[Tensor, "mask src batch pos d_model"]:
        """The rows for these sources of the current layer, to be written into."""
        start, stop = (1 + place - self.n_shared for place in (sources.start, sources.stop))
        return self.own[:, start:stop].unflatten(-1, self.shape)

    def at_answer(self, n_src: int) -> _Differences:
        """The differences at the positions that the answer is read from, with rows for ``n_src`` sources."""
        masks, n_rows, _ = self.own.shape
        (batch, _, d_model), n_read = self.shape, self.item.clean.context.n_read
        own = self.own.new_empty(masks, 1 + n_src - self.n_shared, batch * n_read * d_model)
        self._move(n_rows)
        written = self.parts.as_they_were(self.own[:, 1:], d_model)
        own[:, 1:n_rows] = written.unflatten(-1, self.shape)[:, :, :, -n_read:].flatten(2)
        return _Differences(self.item, slice(-n_read, None), self.n_shared, own, self.n_parts)


def _summed(
    weights: Float[Tensor, "mask slot row"],
    rows: Float[Tensor, "mask row cell"],
    shared: tuple[Float[Tensor, "mask slot some"], Float[Tensor, "some cell"]] | None,
) -> Float[Tensor, "mask slot cell"]:
    """Weighted sums of rows, each circuit's own, and of some that all have."""
    width = ROWS_AT_A_TIME if rows.device.type == "cpu" else rows.shape[1]
    parts = list(zip(weights.split(width, 2), rows.split(width, 1), strict=True))
    if shared is None:
        total = torch.bmm(*parts.pop(0))
    else:
        total = (shared[0].flatten(0, 1) @ shared[1]).unflatten(0, weights.shape[:2])
    for part in parts:
        total.baddbmm_(*part)
    return total


class _Walk:
    """The state of a patched pass: the current streams and, per source, ablated minus current.

    Before the first position at which anything is ablated there are the clean run's keys and values, and
    nothing is run. After the last layer's keys and values only the last position is run, as nothing reads the others.
    """

    def __init__(self, model: Model, item: Prepared, kept: Bool[Tensor, "mask *part src dst"]) -> None:
        graph = model.graph
        # Decisions are made on the CPU, to avoid synchronising with the device.
        valid, kept = torch.from_numpy(graph.valid.copy()), kept.cpu()
        n_parts = kept.shape[1] if kept.ndim == 4 else None
        kept = kept if kept.ndim == 4 else kept[:, None]
        self.graph, self.item = graph, item
        self.kept, self.cut = kept & valid, ~kept & valid
        self.n_kept, self.n_cut = (edges.sum((0, 1, 2)) for edges in (self.kept, self.cut))
        self.n_masks = len(kept)
        changed = [graph.slot_layer(int(slot)) for slot in self.n_cut.nonzero()[:1]]
        changed += [block.layer for block in model.blocks if isinstance(block, OpenBlock)]
        self.first_layer = min(changed, default=graph.n_layers)
        self.places = slice(item.first, None)
        start = item.clean.streams[self.first_layer][:, self.places]
        self.resid = start.expand(self.n_masks, *start.shape)
        n_shared = 1 + self.first_layer * (graph.n_heads + 1)
        if self.first_layer == 0:  # the input alone: a copy per circuit is cheaper than a separate sum
            n_shared = 0
        n_own = max(0, graph.heads_of(graph.n_layers - 1).start - n_shared)
        own = model.scratch(self.n_masks, 1 + n_own, start.numel())
        self.differences = _Differences(item, self.places, n_shared, own, n_parts)
        if self.first_layer == 0:
            change = item.ablated.contributions[0] - item.clean.contributions[0]
            self.differences.room(slice(0, 1))[:] = change[:, self.places]
        if self.first_layer == graph.n_layers:
            self._go_to_answer()

    def _go_to_answer(self) -> None:
        n_read = self.item.clean.context.n_read
        self.places = slice(-n_read, None)
        self.differences = self.differences.at_answer(self.graph.n_src)
        self.resid = self.resid[:, :, -n_read:]

    def through(self, block: Block) -> None:
        """One layer: every head and the MLP read their own streams, and write.

        What no circuit gives anything to read is known in advance and is not run.
        """
        graph, layer = self.graph, block.layer
        heads, mlp_slot, mlp = graph.heads_of(layer), graph.mlp_slot_of(layer), graph.mlp_of(layer)
        live = bool(self.n_kept[graph.head_slots_of(layer)].any())
        projected = self._projections(block, SLOTS if layer < graph.n_layers - 1 else SLOTS[1:]) if live else {}
        if layer == graph.n_layers - 1:
            self._go_to_answer()
            projected |= self._projections(block, SLOTS[:1]) if live else {}
        if live:
            before = None if self.item.before is None else self.item.before.layers[layer]
            z = block.attention(*(projected[slot] for slot in SLOTS), self.item.clean.context, before)
            self._write_heads(block, heads, z)
            after = self.resid + block.attn_out(z).unflatten(0, (self.n_masks, -1))
        else:
            after = self.resid + self._write_idle(heads, layer)
        if bool(self.n_kept[mlp_slot]):
            stream = self.resid if block.parallel else after
            read = self._read([mlp_slot], stream, self.item.ablated.mids[layer])
            added = block.mlp(stream if read is None else read[:, 0])
            self._write(slice(mlp, mlp + 1), added[:, None])
        else:
            added = self._write_idle(slice(mlp, mlp + 1), None)
        self.resid = after + added

    def output(self) -> Float[Tensor, "mask batch read d_model"]:
        """The stream into the final norm where the answer is read."""
        read = self._read([self.graph.n_dst - 1], self.resid, self.item.ablated.streams[-1])
        return self.resid if read is None else read[:, 0]

    def _projections(self, block: Block, which: Sequence[Slot]) -> dict[Slot, Float[Tensor, "rows pos head d_head"]]:
        """Queries, keys or values of a layer.

        Heads that no circuit lets read there have the ablated ones, heads into which nothing is cut those of the common
        stream; the streams of all others are summed at once, so that every source is read once.
        """
        n_heads, first = self.graph.n_heads, self.graph.head_slots_of(block.layer).start
        start = first + SLOTS.index(which[0]) * n_heads
        slots = slice(start, start + len(which) * n_heads)
        live = self.n_kept[slots] > 0
        own = live & (self.n_cut[slots] > 0)
        common, streams = None, None
        if bool((live & ~own).any()):
            common = block.attn_norm(self.resid.flatten(0, 1))
        if bool(own.any()):
            chosen = (start + own.nonzero()[:, 0]).tolist()
            read = self._read(chosen, self.resid, self.item.ablated.streams[block.layer])
            assert read is not None, "something is cut in each of these slots"
            streams = read.transpose(0, 1).flatten(1, 2)
        projections, begin = {}, 0
        for i, slot in enumerate(which):
            here = slice(i * n_heads, (i + 1) * n_heads)
            heads = own[here].nonzero()[:, 0]
            projections[slot] = self._shared_heads(block, slot, common, live[here] & ~own[here], bool(own[here].all()))
            if streams is not None and len(heads):
                block.project_own(slot, streams[begin : begin + len(heads)], heads, projections[slot])
            begin += len(heads)
        return projections

    def _shared_heads(
        self,
        block: Block,
        slot: Slot,
        common: Float[Tensor, "rows pos d_model"] | None,
        plain: Bool[Tensor, " head"],
        nothing: bool,
    ) -> Float[Tensor, "rows pos head d_head"]:
        """Queries, keys or values to be written into: of the common stream for plain heads, else the ablated ones."""
        ablated = self.item.ablated.qkv[block.layer][SLOTS.index(slot)][:, self.places]
        ablated = ablated.expand(self.n_masks, -1, -1, -1, -1)
        if nothing:
            return ablated.new_empty(ablated.shape).flatten(0, 1)
        if not bool(plain.any()):
            return ablated.clone(memory_format=torch.contiguous_format).flatten(0, 1)
        assert common is not None
        projected = block.project(slot, common)
        return torch.where(plain[:, None].to(projected.device), projected, ablated.flatten(0, 1))

    def _read(
        self,
        slots: Sequence[int],
        resid: Float[Tensor, "mask batch pos d_model"],
        ablated: Float[Tensor, "batch _ d_model"],
    ) -> Float[Tensor, "mask slot batch pos d_model"] | None:
        """The streams into slots of one kind, from the side with fewer terms; None where nothing is cut.

        A stream of which most is cut may be all zeros. As the remainder of a whole one it would be rounding error,
        which a norm amplifies, so one such slot decides the side; a corrupt run's streams are never that small.
        """
        n, n_kept, n_cut = self.graph.n_reaching(slots[0]), self.n_kept[slots].sum(), self.n_cut[slots].sum()
        if not n_cut:
            return None
        kept, cut = self.kept[:, :, :n, slots], self.cut[:, :, :n, slots]
        mostly_cut = kept.sum(2) < cut.sum(2)
        if n_kept < n_cut or (self.item.ablated.idle is not None and bool(mostly_cut.any())):
            return self.differences.added_to(ablated[None, :, self.places], kept, -1)
        return self.differences.added_to(resid, cut, 1)

    def _write_heads(self, block: Block, heads: slice, z: Float[Tensor, "rows pos head d_head"]) -> None:
        if self.n_masks == 1:
            ablated, room = self.item.ablated, self.differences.room(heads)[0]
            if ablated.z is not None:
                block.write_head_changes(z, ablated.z[block.layer][:, self.places], room)
            else:
                block.write_head_results(z, room, less_than=ablated.contributions[heads][:, :, self.places])
        else:
            self._write(heads, block.head_results(z).unflatten(1, (self.n_masks, -1)).transpose(0, 1))

    def _write(self, sources: slice, values: Float[Tensor, "mask src batch pos d_model"]) -> None:
        ablated = self.item.ablated.contributions[sources][:, :, self.places]
        torch.sub(ablated, values, out=self.differences.room(sources))

    def _write_idle(self, sources: slice, layer: int | None) -> Float[Tensor, "batch pos d_model"]:
        """Write what nodes make of ablated values alone, and return what they add to the stream.

        ``layer`` is that of the heads, whose attention has a bias besides; None for an MLP.
        """
        ablated, idle, here = self.item.ablated, self.item.ablated.idle, self.places
        if idle is not None:
            self.differences.room(sources)[:] = (ablated.contributions[sources] - idle.contributions[sources])[
                :, :, here
            ]
            return (idle.contributions[sources.start] if layer is None else idle.attn[layer])[:, here]
        self.differences.room(sources).zero_()
        added = ablated.contributions[sources.start][:, here]
        if layer is None:
            return added
        mlp = ablated.contributions[self.graph.mlp_of(layer)]
        return ablated.streams[layer + 1][:, here] - ablated.streams[layer][:, here] - mlp[:, here]


def masks_per_pass(model: Model, item: Prepared, max_bytes: int | None = None) -> int:
    """How many circuits share a pass: as many as keep their nodes' contributions within the bound, at least one."""
    if max_bytes is None:
        max_bytes = CPU_MASK_BYTES if model.device.type == "cpu" else MASK_BYTES
    stream = item.clean.streams[0]
    per_mask = (model.graph.n_src + 6 * model.graph.n_heads) * stream.numel() * stream.element_size()
    fitting = max(1, max_bytes // per_mask)
    if model.budget is None:
        return fitting
    return min(fitting, model.budget.circuits(item.batch.n_tokens, len(item.batch)))
