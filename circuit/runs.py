"""The plain forward pass, node by node."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from circuit.graph import SLOTS
from circuit.model import Context, Model
from circuit.task import Batch
from metrics import Targets

__all__ = ["Run", "run", "run_clean", "run_corrupt", "targets_of"]


@dataclass(frozen=True, eq=False)
class Run:
    """What one forward pass leaves behind.

    ``streams[l]`` enters layer l's attention and ``streams[-1]`` the final norm,
    ``mids[l]`` enters layer l's MLP, each ``[batch, pos, d_model]``; ``qkv[l]`` are
    the projections, each ``[batch, pos, head, d_head]``; ``contributions`` is what
    every source adds, ``[src, batch, pos, d_model]`` (for ``input`` the stream into
    the first block: the positions in it cancel in differences between prompts of one
    length), without gradient; ``logits`` are those of the last position, ``[batch, vocab]``.
    Where contributions were not asked for, there are no sources in them.
    """

    streams: tuple[Tensor, ...]
    mids: tuple[Tensor, ...]
    qkv: tuple[tuple[Tensor, Tensor, Tensor], ...]
    contributions: Float[Tensor, "src batch pos d_model"]
    logits: Float[Tensor, "batch vocab"]
    context: Context


def run(
    model: Model,
    embedded: Float[Tensor, "batch pos d_model"],
    context: Context,
    *,
    contributions: bool = True,
    against: Float[Tensor, "src batch pos d_model"] | None = None,
) -> Run:
    """One plain forward pass from the stream into the first block, differentiable if ``embedded`` is.

    Without ``contributions`` they are not computed. With ``against`` they are subtracted
    from that tensor, in place, and it stands in the run in their stead: of a graph's many
    sources only one such tensor then has to be held.
    """
    graph = model.graph
    written = against
    if written is None:
        written = embedded.new_empty(graph.n_src if contributions else 0, *embedded.shape, requires_grad=False)

    def write(sources: slice, values: Tensor) -> None:
        if against is not None:
            written[sources] -= values
        else:
            written[sources] = values

    if contributions:
        write(slice(0, 1), embedded.detach()[None])
    resid, streams, mids, qkv = embedded, [], [], []
    for block in model.blocks:
        normed = block.attn_norm(resid)
        q, k, v = (block.project(slot, normed) for slot in SLOTS)
        z = block.attention(q, k, v, context)
        after = resid + block.attn_out(z)
        # A view is a tensor of its own to autograd: its gradient is the MLP's path alone, without the skip.
        mid = resid.view_as(resid) if block.parallel else after.view_as(after)
        mlp = block.mlp(mid)
        if contributions:
            with torch.no_grad():
                write(graph.heads_of(block.layer), block.head_results(z))
                write(slice(graph.mlp_of(block.layer), graph.mlp_of(block.layer) + 1), mlp[None])
        streams.append(resid)
        mids.append(mid)
        qkv.append((q, k, v))
        resid = after + mlp
    return Run((*streams, resid), tuple(mids), tuple(qkv), written, model.unembed(resid[:, -1]), context)


def run_clean(model: Model, batch: Batch) -> Run:
    """The plain pass over a batch's clean prompts, without gradient."""
    with torch.no_grad():
        return run(model, *model.start(batch.clean, batch.clean_padding))


def run_corrupt(model: Model, batch: Batch) -> Run:
    """The plain pass over a batch's corrupt prompts, at their own places, without gradient."""
    with torch.no_grad():
        return run(model, *model.start(batch.corrupt, batch.corrupt_padding))


def targets_of(batch: Batch, reference: Float[Tensor, "batch vocab"]) -> Targets:
    """The batch's answers, with the whole model's logits on the clean prompts as reference."""
    return Targets(batch.answers, batch.wrong_answers, reference.detach())
