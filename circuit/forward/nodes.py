"""The plain forward pass with the output of chosen nodes, or the stream between layers, taken from another run.

A node that is patched at a position writes its ablated value there; everything that reads it is recomputed. ``patched``
does the same where every edge that leaves the node is cut, but here all readers share one stream, so a pass costs as
much as a plain one, and it may be confined to positions. Layers before the first patched node are the clean run's, and
so are keys and values of positions before the first at which a patch can change anything.

What a node is patched with is the batch's ablation: with the corrupt prompts (the
default) one run's value in the other run, "activation patching" (Vig et al. 2020,
arXiv:2004.12265; Meng et al. 2022, arXiv:2202.05262; its pitfalls: Zhang and Nanda 2023, arXiv:2309.16042).
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from persona_circuits.circuit.forward.patched import MASK_BYTES
from persona_circuits.circuit.forward.prepared import Prepared
from persona_circuits.circuit.graph import SLOTS
from persona_circuits.circuit.model import Block, Model

__all__ = ["patched_nodes", "patched_stream", "per_pass", "portions"]

CPU_BYTES = 1 << 25
"""On a CPU a few patches per pass are faster than many: their streams stay in the cache."""


def patched_nodes(
    model: Model, item: Prepared, chosen: Bool[Tensor, "patch src"], where: Bool[Tensor, "patch batch pos"]
) -> Float[Tensor, "patch batch vocab"]:
    """Logits at the last position, with each patch's chosen nodes ablated at its positions.

    Parameters
    ----------
    chosen
        Sources of the graph; any number of them, of any layers. All heads of a layer are its
        attention output, all sources the whole run.
    where
        Positions of the clean prompts.
    """
    graph, clean, ablated = model.graph, item.clean, item.ablated
    first, start = _first_layer(model, chosen), _first_place(item, where)
    patch, batch, where = *where.shape[:2], where[..., start:]
    with torch.no_grad():
        resid = clean.streams[first][:, start:].expand(patch, -1, -1, -1)
        if bool(chosen[:, 0].any()):
            change = (ablated.contributions[0] - clean.contributions[0])[:, start:]
            resid = resid + torch.where((chosen[:, 0, None, None] & where)[..., None], change, 0.0)
        for block in model.blocks[first:]:
            heads, mlp = chosen[:, graph.heads_of(block.layer)], chosen[:, graph.mlp_of(block.layer)]
            z = _attention(block, resid.flatten(0, 1), item, start)
            after = resid + block.attn_out(z).unflatten(0, (patch, batch))
            if bool(heads.any()):
                after = after + _exchange(block, z, item, heads, where, model)
            added = block.mlp(resid if block.parallel else after)
            if bool(mlp.any()):
                own = ablated.contributions[graph.mlp_of(block.layer)][:, start:]
                added = torch.where((mlp[:, None, None] & where)[..., None], own, added)
            resid = after + added
        return model.answer(resid, clean.context.forms)


def patched_stream(
    model: Model, item: Prepared, layer: int, where: Bool[Tensor, "patch batch pos"]
) -> Float[Tensor, "patch batch vocab"]:
    """Logits at the last position, with the stream into ``layer`` (``n_layers``: into the final norm) ablated."""
    start = _first_place(item, where)
    where = where[..., start:]
    with torch.no_grad():
        own, other = (run.streams[layer][:, start:] for run in (item.clean, item.ablated))
        resid = torch.where(where[..., None], other, own)
        for block in model.blocks[layer:]:
            z = _attention(block, resid.flatten(0, 1), item, start)
            after = resid + block.attn_out(z).unflatten(0, where.shape[:2])
            resid = after + block.mlp(resid if block.parallel else after)
        return model.answer(resid, item.clean.context.forms)


def per_pass(model: Model, item: Prepared, streams: int, *, at_end: bool = False) -> int:
    """How many patches share a pass, if each needs so many streams at a time; ``at_end``: of the last position alone.

    A pass from the last position on still keeps keys and values of all positions, of one layer.
    """
    stream = item.clean.streams[0]
    streams = 8 + streams // stream.shape[1] if at_end else streams
    bound = CPU_BYTES if model.device.type == "cpu" else MASK_BYTES
    return max(1, bound // (streams * stream.numel() * stream.element_size()))


def portions(total: int, size: int) -> Iterator[slice]:
    """``total`` patches, ``size`` at a time."""
    yield from (slice(start, min(start + size, total)) for start in range(0, total, size))


def _first_layer(model: Model, chosen: Bool[Tensor, "patch src"]) -> int:
    used = chosen.any(0).nonzero()[:, 0]
    if not len(used):
        return model.graph.n_layers
    return max(0, model.graph.src_nodes[int(used[0])].layer)


def _first_place(item: Prepared, where: Bool[Tensor, "patch batch pos"]) -> int:
    """The first position that a patch can change; those whose logits are read are always run."""
    touched = where.flatten(0, 1).any(0).nonzero()[:, 0]
    last = where.shape[-1] - item.clean.context.n_read
    return max(item.first, min(last, int(touched[0]))) if len(touched) else last


def _attention(block: Block, rows: Float[Tensor, "rows pos d_model"], item: Prepared, start: int) -> Tensor:
    normed = block.attn_norm(rows)
    q, k, v = (block.project(slot, normed) for slot in SLOTS)
    _, keys, values = item.clean.qkv[block.layer]
    before = (keys[:, :start], values[:, :start]) if start else None
    return block.attention(q, k, v, item.clean.context, before)


def _exchange(
    block: Block,
    z: Float[Tensor, "rows pos head d_head"],
    item: Prepared,
    chosen: Bool[Tensor, "patch head"],
    where: Bool[Tensor, "patch batch pos"],
    model: Model,
) -> Float[Tensor, "patch batch pos d_model"]:
    """Ablated minus current results, of the chosen heads at the chosen positions."""
    current = block.head_results(z).unflatten(1, where.shape[:2])
    weights = chosen.T.to(current.dtype)
    own = item.ablated.contributions[model.graph.heads_of(block.layer)][:, :, -where.shape[-1] :]
    ablated = torch.einsum("hp,hbtd->pbtd", weights, own)
    return torch.where(where[..., None], ablated - torch.einsum("hp,hpbtd->pbtd", weights, current), 0.0)
