"""The patched forward pass with a weight on every edge, differentiable in the weights.

The stream into slot d is

    x_d = ablated x_d + sum over s of gate[s, d] (current_s - ablated_s)

so that gates of 0 and 1 give ``patched_logits``. Every slot has a stream of its own, at all depths: for edges that are
kept or cut, ``patched_logits`` is many times as fast.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from persona_circuits.circuit.forward.prepared import Prepared
from persona_circuits.circuit.graph import SLOTS
from persona_circuits.circuit.model import Block, Model

__all__ = ["gated_bytes", "gated_logits"]

COPIES = 5
"""Streams of a slot that autograd keeps: as read, in two stages of its norm, projected, and its gradient."""


def gated_logits(model: Model, item: Prepared, gates: Float[Tensor, "src dst"]) -> Float[Tensor, "batch vocab"]:
    """Logits at the last position where every edge carries a weighted mean of its current and its ablated value.

    Parameters
    ----------
    item
        Of ``prepare``.
    gates
        1 keeps an edge, 0 cuts it; gates of edges that do not exist are ignored.

    Returns
    -------
    ``[batch, vocab]``, differentiable in the gates, for a single backward pass.
    """
    walk = _Walk(model, item, gates)
    for block in model.blocks:
        walk.through(block)
    (last,) = walk.read(slice(model.graph.n_dst - 1, model.graph.n_dst), item.ablated.streams[-1])
    return model.answer(last, item.clean.context.forms)


class _Walk:
    """Current minus ablated of every source so far."""

    def __init__(self, model: Model, item: Prepared, gates: Float[Tensor, "src dst"]) -> None:
        self.graph, self.item, self.gates, self.late = model.graph, item, gates, slice(item.first, None)
        start = item.clean.contributions[:1, :, self.late]
        self.changes = _Changes(model.graph.n_src, start)
        self.token = gates.new_zeros(())
        self._write(slice(0, 1), start)

    def read(
        self, slots: slice, ablated: Float[Tensor, "batch pos d_model"]
    ) -> Float[Tensor, "slot batch late d_model"]:
        """The streams into slots that the same sources reach."""
        some = self.gates[: self.graph.n_reaching(slots.start), slots]
        return ablated[:, self.late] + _Read.apply(self.token, some, self.changes)

    def through(self, block: Block) -> None:
        graph, ablated, layer = self.graph, self.item.ablated, block.layer
        n_heads, slots = graph.n_heads, graph.head_slots_of(layer)
        normed = block.attn_norm(self.read(slots, ablated.streams[layer]))
        every = torch.arange(n_heads)
        q, k, v = (block.project_each(s, normed[i * n_heads : (i + 1) * n_heads], every) for i, s in enumerate(SLOTS))
        before = None if self.item.before is None else self.item.before.layers[layer]
        z = block.attention(q, k, v, self.item.clean.context, before)
        mlp, slot = graph.mlp_of(layer), graph.mlp_slot_of(layer)
        self._write(graph.heads_of(layer), block.head_results(z))
        (stream,) = self.read(slice(slot, slot + 1), ablated.mids[layer])
        self._write(slice(mlp, mlp + 1), block.mlp(stream)[None])

    def _write(self, sources: slice, values: Float[Tensor, "some batch late d_model"]) -> None:
        change = values - self.item.ablated.contributions[sources][:, :, self.late]
        self.token = _Write.apply(self.token, change, self.changes, sources)


class _Changes:
    """One row per source, and their gradients: each layer reads all earlier rows in one product without a copy."""

    def __init__(self, n_src: int, like: Float[Tensor, "1 batch late d_model"]) -> None:
        self.shape = like.shape[1:]
        self.values = like.new_empty(n_src, like.numel())
        self.gradients: Tensor | None = None

    def gradient(self) -> Tensor:
        if self.gradients is None:
            self.gradients = torch.zeros_like(self.values)
        return self.gradients


class _Write(torch.autograd.Function):
    """Write rows; the token passed on makes autograd differentiate later reads before this write."""

    @staticmethod
    def forward(ctx: Any, token: Tensor, values: Tensor, changes: _Changes, sources: slice) -> Tensor:
        ctx.changes, ctx.sources = changes, sources
        changes.values[sources] = values.flatten(1)
        return token.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None, None]:
        return gradients[0], ctx.changes.gradient()[ctx.sources].unflatten(1, ctx.changes.shape), None, None


class _Read(torch.autograd.Function):
    """A weighted sum of rows for every slot."""

    @staticmethod
    def forward(ctx: Any, token: Tensor, gates: Tensor, changes: _Changes) -> Tensor:
        ctx.changes = changes
        ctx.save_for_backward(gates)
        return (gates.T @ changes.values[: len(gates)]).unflatten(1, changes.shape)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None]:
        (gates,), gradient = ctx.saved_tensors, gradients[0].flatten(1)
        n, changes = len(gates), ctx.changes
        changes.gradient()[:n].addmm_(gates, gradient)
        return gradient.new_zeros(()), changes.values[:n] @ gradient.T, None


def gated_bytes(model: Model, n_late: int) -> int:
    """Approximate memory of a differentiated pass over a row of so many positions, beside its plain runs."""
    return COPIES * (model.graph.n_dst + model.graph.n_src) * n_late * model.d_model * model.dtype.itemsize
