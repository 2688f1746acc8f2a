"""The plain forward pass, node by node."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from persona_circuits.circuit.graph import SLOTS
from persona_circuits.circuit.model import Context, Model
from persona_circuits.circuit.model.finite import check_finite
from persona_circuits.circuit.task import Batch
from persona_circuits.metrics import Targets

__all__ = ["Held", "Prefix", "Run", "Written", "changes", "prefix_of", "run", "run_clean", "run_corrupt", "targets_of"]

WORTH_A_PASS = 128
"""Fewest places worth a pass: fewer cost as much as a hundred, the time to read the weights."""


@dataclass(frozen=True, eq=False)
class Written:
    """What the parts of a run wrote, before heads are separated; without gradient.

    ``embedded`` and ``mlps[l]`` are ``[batch, pos, d_model]``, ``z[l]`` is ``[batch, pos, head,
    d_head]``: as much as three streams a layer, where every head's own result is one stream each.
    """

    embedded: Float[Tensor, "batch pos d_model"]
    z: tuple[Float[Tensor, "batch _ head d_head"], ...]
    mlps: tuple[Float[Tensor, "batch _ d_model"], ...]

    def rows(self, which: Sequence[int] | slice) -> Written:
        """Some rows, in this order."""
        return Written(self.embedded[which], tuple(z[which] for z in self.z), tuple(m[which] for m in self.mlps))

    def late(self, n: int) -> Written:
        """The last ``n`` positions, or the only one."""
        z, mlps = (tuple(x[:, -n:] for x in values) for values in (self.z, self.mlps))
        return Written(self.embedded[:, -n:], z, mlps)

    def answer_only(self, n_read: int = 1) -> Written:
        """With only the last positions of the last layer, as in a run with ``answer_only``."""
        z, mlps = ((*values[:-1], values[-1][:, -n_read:]) for values in (self.z, self.mlps))
        return Written(self.embedded, z, mlps)

    def joined(self, more: Written) -> Written:
        """These rows followed by ``more``."""
        pairs = (
            (self.embedded, more.embedded),
            *zip(self.z, more.z, strict=True),
            *zip(self.mlps, more.mlps, strict=True),
        )
        embedded, *rest = (torch.cat(pair) for pair in pairs)
        return Written(embedded, tuple(rest[: len(self.z)]), tuple(rest[len(self.z) :]))


@dataclass(frozen=True, eq=False)
class Prefix:
    """Keys and values of every layer, ``[batch, before, head, d_head]``: all that later positions read of these."""

    layers: tuple[tuple[Tensor, Tensor], ...]

    @classmethod
    def of(cls, at: Run, first: int) -> Prefix | None:
        """Keys and values before position ``first`` of a run, copied so that the run can be freed; None for none."""
        if not first:
            return None
        return cls(tuple((k[:, :first].detach().clone(), v[:, :first].detach().clone()) for _, k, v in at.qkv))

    def rows(self, which: Sequence[int]) -> Prefix:
        """Some rows, in this order."""
        return Prefix(tuple((k[which], v[which]) for k, v in self.layers))


@dataclass(frozen=True, eq=False)
class Run:
    """The results of one forward pass.

    ``streams[l]`` enters layer l's attention and ``streams[-1]`` the final norm, ``mids[l]`` enters layer l's MLP, each
    ``[batch, pos, d_model]``; ``qkv[l]`` are the projections, each ``[batch, pos, head, d_head]``; ``contributions`` is
    what every source adds, ``[src, batch, pos, d_model]`` (for ``input`` the stream into the first block: the positions
    in it cancel in differences between prompts of one length), without gradient; ``logits`` are the answer's, ``[batch,
    vocab]``: of the last position, or what ``Model.answer`` makes of several. Where contributions were not requested,
    they have no sources. ``written`` is what they are made of. In a run after a prefix, everything is of the positions
    after it.
    """

    streams: tuple[Tensor, ...]
    mids: tuple[Tensor, ...]
    qkv: tuple[tuple[Tensor, Tensor, Tensor], ...]
    contributions: Float[Tensor, "src batch pos d_model"]
    logits: Float[Tensor, "batch vocab"]
    context: Context
    written: Written

    def without_graph(self) -> Run:
        """The same numbers, detached from autograd."""
        streams, mids = (tuple(x.detach() for x in values) for values in (self.streams, self.mids))
        qkv = tuple((q.detach(), k.detach(), v.detach()) for q, k, v in self.qkv)
        return replace(self, streams=streams, mids=mids, qkv=qkv, logits=self.logits.detach())


@dataclass(frozen=True, eq=False)
class Held:
    """A component, by its first source, to whose output ``change`` is added, with a zero gradient at its input."""

    source: int
    change: Float[Tensor, "batch pos d_model"]

    def __call__(self, wrote: Float[Tensor, "batch late d_model"]) -> Float[Tensor, "batch late d_model"]:
        """Its changed output, at the places that are run; the last term keeps its input in the autograd graph."""
        return wrote.detach() + self.change[:, -wrote.shape[1] :] + 0.0 * (wrote - wrote.detach())


def run(
    model: Model,
    embedded: Float[Tensor, "batch pos d_model"],
    context: Context,
    *,
    contributions: bool = True,
    answer_only: bool = False,
    before: Prefix | None = None,
    held: Held | None = None,
) -> Run:
    """One plain forward pass from the stream into the first block, differentiable if ``embedded`` is.

    Without ``contributions`` they are not computed. With ``answer_only`` what follows the last layer's keys and values
    is run at the answer's position or positions alone, since nothing reads it elsewhere: the last layer's queries, the
    last of ``streams``, of ``mids`` and of what was written then have no other, and there are no contributions. With
    ``held`` one component writes something else, and passes no gradient back. With ``before`` the stream starts after
    these positions, and the context covers all of them.
    """
    assert not (contributions and answer_only), "contributions have all positions"
    resid, streams, mids, qkv, zs, mlps = embedded, [], [], [], [], []
    for block in model.blocks:
        normed = block.attn_norm(resid)
        streams.append(resid)
        at_answer = answer_only and block is model.blocks[-1]
        if at_answer:
            resid = resid[:, -context.n_read :]
        q = block.project("q", normed[:, -context.n_read :] if at_answer else normed)
        k, v = (block.project(slot, normed) for slot in SLOTS[1:])
        z = block.attention(q, k, v, context, None if before is None else before.layers[block.layer])
        zs.append(z.detach())
        wrote = block.attn_out(z)
        if held is not None and held.source == model.graph.heads_of(block.layer).start:
            wrote = held(wrote)
        after = resid + wrote
        # A view is a tensor of its own to autograd: its gradient is the MLP's path alone, without the skip.
        mid = resid.view_as(resid) if block.parallel else after.view_as(after)
        mlp = block.mlp(mid)
        if held is not None and held.source == model.graph.mlp_of(block.layer):
            mlp = held(mlp)
        mids.append(mid)
        qkv.append((q, k, v))
        mlps.append(mlp.detach())
        resid = after + mlp
    written = Written(embedded.detach(), tuple(zs), tuple(mlps))
    every = _contributions(model, written) if contributions else embedded.new_empty(0, *embedded.shape)
    return Run((*streams, resid), tuple(mids), tuple(qkv), every, model.answer(resid, context.forms), context, written)


def prefix_of(model: Model, tokens: Int[Tensor, "batch before"]) -> Prefix | None:
    """Keys and values of prompts' first tokens for the later ones, run once for rows that share them.

    None where that would save too few places to be worth a separate pass, or none at all.
    """
    if tokens.numel() < WORTH_A_PASS:
        return None
    different, place = torch.unique(tokens, dim=0, return_inverse=True)
    if tokens.numel() - different.numel() < WORTH_A_PASS:
        return None
    with torch.no_grad():
        at = run(model, *model.start(different), contributions=False, answer_only=True)
    prefix = Prefix.of(at, tokens.shape[1])
    return None if prefix is None else prefix.rows(place.tolist())


def changes(model: Model, before: Written, after: Written) -> Float[Tensor, "src batch pos d_model"]:
    """What every source writes in the run ``after`` minus what it writes in ``before``."""
    out = _scratch(model, before.embedded)
    with torch.no_grad():
        torch.sub(after.embedded, before.embedded, out=out[0])
        for block, z, other, mlp, other_mlp in zip(
            model.blocks, before.z, after.z, before.mlps, after.mlps, strict=True
        ):
            heads, place = out[model.graph.heads_of(block.layer)], out[model.graph.mlp_of(block.layer)]
            if (n := mlp.shape[1]) < before.embedded.shape[1]:  # of a run with ``answer_only``
                heads.zero_()[:, :, -n:] = block.head_results(other) - block.head_results(z)
                place.zero_()[:, -n:] = other_mlp - mlp
            else:
                block.write_head_changes(z, other, heads)
                torch.sub(other_mlp, mlp, out=place)
    return out


def _contributions(model: Model, written: Written) -> Float[Tensor, "src batch pos d_model"]:
    """What every source adds to the stream, one stream per source."""
    out = _scratch(model, written.embedded)
    with torch.no_grad():
        out[0] = written.embedded
        for block, z, mlp in zip(model.blocks, written.z, written.mlps, strict=True):
            block.write_head_results(z, out[model.graph.heads_of(block.layer)])
            out[model.graph.mlp_of(block.layer)] = mlp
    return out


def _scratch(model: Model, stream: Tensor) -> Tensor:
    return stream.new_empty(model.graph.n_src, *stream.shape, requires_grad=False)


def run_clean(model: Model, batch: Batch) -> Run:
    """The plain pass over a batch's clean prompts, without gradient."""
    with torch.no_grad():
        clean = run(model, *model.start(batch.clean, batch.clean_padding, batch.forms))
    check_finite(clean.logits, batch.name)
    return clean


def run_corrupt(model: Model, batch: Batch) -> Run:
    """The plain pass over a batch's corrupt prompts, at their own places, without gradient."""
    with torch.no_grad():
        corrupt = run(model, *model.start(batch.corrupt, batch.corrupt_padding, batch.forms))
    check_finite(corrupt.logits, batch.name)
    return corrupt


def targets_of(batch: Batch, reference: Float[Tensor, "batch vocab"]) -> Targets:
    """The batch's answers, with the whole model's logits on the clean prompts as reference."""
    return Targets(batch.answers, batch.wrong_answers, reference.detach(), batch.weights)
