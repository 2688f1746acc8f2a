"""The patched forward pass with a weight on every edge, differentiable in the weights.

The stream into slot d is

    x_d = ablated x_d + sum over s of gate[s, d] (current_s - ablated_s)

so that gates of 0 and 1 are ``patched_logits``. Every slot has a stream of its own, at all depths: where edges are cut
and not weighed, ``patched_logits`` is many times as fast.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from persona_circuits.circuit.forward.prepared import Prepared
from persona_circuits.circuit.graph import SLOTS
from persona_circuits.circuit.model import Block, Model

__all__ = [
    "gated_bytes",
    "gated_logits",
]

COPIES = 5
"""Streams of a slot that autograd keeps: as read, in two stages of its norm, projected, and its gradient."""


def gated_logits(model: Model, item: Prepared, gates: Float[Tensor, "src dst"]) -> Float[Tensor, "batch vocab"]:
    """Logits at the last position where every edge carries a weighted mean of its current and its ablated value.

    Parameters
    ----------
    item
        Of ``prepare``.
    gates
        1 keeps an edge, 0 cuts it; those of edges that do not exist are not looked at.

    Returns
    -------
    ``[batch, vocab]``, with a gradient at the gates.
    """
    walk = _Walk(model, item, gates)
    for block in model.blocks:
        walk.through(block)
    (last,) = walk.read(slice(model.graph.n_dst - 1, model.graph.n_dst), item.ablated.streams[-1])
    return model.unembed(last[:, -1])


class _Walk:
    """Current less ablated of every source so far, a layer's heads and MLP at a time."""

    def __init__(self, model: Model, item: Prepared, gates: Float[Tensor, "src dst"]) -> None:
        self.graph, self.item, self.gates, self.late = model.graph, item, gates, slice(item.first, None)
        start = item.clean.contributions[:1] - item.ablated.contributions[:1]
        self.changes: list[Float[Tensor, "some batch late d_model"]] = [start[:, :, self.late]]

    def read(
        self, slots: slice, ablated: Float[Tensor, "batch pos d_model"]
    ) -> Float[Tensor, "slot batch late d_model"]:
        """The streams into slots that the same sources reach."""
        n, total, start = self.graph.n_reaching(slots.start), ablated[None, :, self.late], 0
        for change in self.changes:
            stop = min(start + len(change), n)
            if start < stop:
                total = total + torch.einsum("sd,s...->d...", self.gates[start:stop, slots], change[: stop - start])
            start = stop
        return total

    def through(self, block: Block) -> None:
        graph, ablated, layer = self.graph, self.item.ablated, block.layer
        n_heads, slots = graph.n_heads, graph.head_slots_of(layer)
        normed = block.attn_norm(self.read(slots, ablated.streams[layer]))
        every = torch.arange(n_heads)
        q, k, v = (block.project_each(s, normed[i * n_heads : (i + 1) * n_heads], every) for i, s in enumerate(SLOTS))
        before = None if self.item.before is None else self.item.before.layers[layer]
        z = block.attention(q, k, v, self.item.clean.context, before)
        self._write(graph.heads_of(layer), block.head_results(z))
        mlp, slot = graph.mlp_of(layer), graph.mlp_slot_of(layer)
        (stream,) = self.read(slice(slot, slot + 1), ablated.mids[layer])
        self._write(slice(mlp, mlp + 1), block.mlp(stream)[None])

    def _write(self, sources: slice, values: Float[Tensor, "some batch late d_model"]) -> None:
        self.changes.append(values - self.item.ablated.contributions[sources][:, :, self.late])


def gated_bytes(model: Model, n_late: int) -> int:
    """About what a differentiated pass over a row of so many positions holds, beside its plain runs."""
    return COPIES * (model.graph.n_dst + model.graph.n_src) * n_late * model.d_model * model.dtype.itemsize
