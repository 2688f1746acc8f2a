"""A batch of pairs under both personas, and the passes that change one thing in it.

Layer l of a stream is what enters block l, from 0; the last one is what the final norm
reads. A pass starts at any layer with another stream (``replay``), with some
nodes' differences between the personas taken out (``Removed``), or with more attention on
the persona (``nearer``); all that follows is recomputed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from persona_circuits import metrics
from persona_circuits.circuit.forward import Prefix, Run, run
from persona_circuits.circuit.graph import SLOTS
from persona_circuits.circuit.model import Context, Model
from persona_circuits.circuit.model.finite import check_finite
from persona_circuits.circuit.task import Batch, Row, batches

__all__ = [
    "NO_MASK",
    "Both",
    "Removed",
    "at_last",
    "both_of",
    "both_runs",
    "can_come_nearer",
    "margins",
    "nearer",
    "prefix_of",
    "replay",
    "scaled",
]


@dataclass(frozen=True, eq=False)
class Both:
    """Rows of one length under persona A (``clean``) and B (``corrupt``).

    ``inside`` marks the persona: every place from the first at which the two prompts differ
    to the last, ``end``, of which ``end`` has the last place; of equal prompts the last
    place of all. ``gradients`` are those of the margin m with respect to the streams
    at every layer, averaged over the two runs, ``[layer, batch, pos, d_model]``.
    """

    batch: Batch
    clean: Run
    corrupt: Run
    inside: Bool[Tensor, "batch pos"]
    end: Int[Tensor, " batch"]
    gradients: Float[Tensor, "layer batch pos d_model"] | None

    @property
    def runs(self) -> tuple[Run, Run]:
        """The two runs, A's first."""
        return self.clean, self.corrupt

    @property
    def between(self) -> Bool[Tensor, "batch pos"]:
        """The places after the persona, but for the last one."""
        places = torch.arange(self.inside.shape[1], device=self.inside.device)
        return (places > self.end[:, None]) & (places < self.inside.shape[1] - 1)

    def difference(self, layer: int) -> Float[Tensor, "batch pos d_model"]:
        """A's stream minus B's."""
        return self.clean.streams[layer] - self.corrupt.streams[layer]


def both_runs(model: Model, rows: Sequence[Row], batch_size: int, *, gradients: bool) -> Iterator[Both]:
    """The rows batch by batch; only one batch is held at a time."""
    for batch in batches(rows, batch_size, model.device):
        yield both_of(model, batch, gradients=gradients)


def both_of(model: Model, batch: Batch, *, gradients: bool) -> Both:
    """One batch, run under both personas."""
    runs, gradients_of = [], []
    for tokens in (batch.clean, batch.corrupt):
        result, gradient = _run(model, batch, tokens, gradients)
        runs.append(result)
        gradients_of.append(gradient)
    inside = _persona(batch)
    places = torch.arange(inside.shape[1], device=inside.device)
    mean = torch.stack([torch.stack(pair).mean(0) for pair in zip(*gradients_of, strict=True)]) if gradients else None
    return Both(batch, runs[0], runs[1], inside, (inside * places).amax(1), mean)


def margins(logits: Float[Tensor, "batch vocab"], batch: Batch) -> Float[Tensor, " batch"]:
    """m = l(pA) - l(pB) of every row."""
    return metrics.logit_diff(logits, batch.answers, batch.wrong_answers)


@dataclass(frozen=True, eq=False)
class Removed:
    """Nodes whose difference between the personas is taken out at the answer's place.

    ``nodes`` marks them for every row, ``mean`` is what they write instead: the mean of both runs.
    """

    nodes: Bool[Tensor, "batch src"]
    mean: Float[Tensor, "src batch d_model"]

    def shift(self, sources: slice, own: Float[Tensor, "node batch d_model"]) -> Float[Tensor, "batch d_model"]:
        """What makes the nodes' own values their means."""
        chosen = self.nodes[:, sources].T[..., None]
        return torch.where(chosen, self.mean[sources] - own, 0.0).sum(0)


def replay(
    model: Model,
    stream: Float[Tensor, "batch pos d_model"],
    context: Context,
    *,
    layer: int = 0,
    removed: Removed | None = None,
    before: Prefix | None = None,
) -> Float[Tensor, "batch vocab"]:
    """Logits at the last place of a pass from ``layer`` on with this stream, which follows the prefix ``before``."""
    with torch.no_grad():
        for block in model.blocks[layer:]:
            normed = block.attn_norm(stream)
            q, k, v = (block.project(slot, normed) for slot in SLOTS)
            z = block.attention(q, k, v, context, None if before is None else before.layers[block.layer])
            after = stream + block.attn_out(z)
            if removed is not None:
                heads = block.head_results(z[:, -1:])[:, :, 0]
                after = at_last(after, removed.shift(model.graph.heads_of(block.layer), heads))
            added = block.mlp(stream if block.parallel else after)
            if removed is not None:
                place = model.graph.mlp_of(block.layer)
                added = at_last(added, removed.shift(slice(place, place + 1), added[None, :, -1]))
            stream = after + added
        return model.unembed(stream[:, -1])


def prefix_of(model: Model, run: Run) -> Prefix:
    """Keys and values of a run at all places but the answer's: what a pass of that place alone reads of them."""
    layers = []
    with torch.no_grad():
        for block in model.blocks:
            earlier = block.attn_norm(run.streams[block.layer][:, :-1])
            layers.append((block.project("k", earlier), block.project("v", earlier)))
    return Prefix(tuple(layers))


def scaled(model: Model, both: Both, gain: Float[Tensor, " batch"]) -> list[Float[Tensor, "batch vocab"]]:
    """Logits of A and of B with ``gain`` on what attention brings to the answer's place and in which the two differ.

    In every layer the two runs' attention outputs there are moved apart about their mean;
    MLPs, and attention in later layers, read the streams that this makes.
    """
    a, b = both.runs
    push = (gain - 1)[:, None] / 2
    stream = torch.cat([a.streams[0], b.streams[0]])
    with torch.no_grad():
        for block in model.blocks:
            normed = block.attn_norm(stream)
            q, k, v = (block.project(slot, normed) for slot in SLOTS)
            added = block.attn_out(block.attention(q, k, v, a.context))
            of_a, of_b = added[:, -1].chunk(2)
            after = stream + at_last(added, torch.cat([push * (of_a - of_b), push * (of_b - of_a)]))
            stream = after + block.mlp(stream if block.parallel else after)
        return list(model.unembed(stream[:, -1]).chunk(2))


NO_MASK = "this model's attention takes no mask of numbers"
"""Said where ``can_come_nearer`` does not hold."""


def can_come_nearer(context: Context) -> bool:
    """Whether every layer's attention takes a mask of numbers, to which something can be added."""
    masks = [arguments.get("attention_mask") for arguments in context.per_layer]
    return all(isinstance(mask, Tensor) and mask.dim() == 4 and mask.is_floating_point() for mask in masks)


def nearer(context: Context, both: Both, boost: float) -> Context:
    """The context in which every place after the persona attends to it with ``boost`` added to the logit.

    What a late placement does to a persona whose hold fades with distance, without
    touching a word: attention odds on the persona's tokens are multiplied by e^boost, in all heads.
    """
    places = torch.arange(both.inside.shape[1], device=both.inside.device)
    after = places[None, :] > both.end[:, None]
    more = boost * (after[:, :, None] & both.inside[:, None, :]).to(both.clean.streams[0].dtype)
    layers = tuple(
        {**arguments, "attention_mask": arguments["attention_mask"] + more[:, None]} for arguments in context.per_layer
    )
    return replace(context, per_layer=layers, n_rows=len(both.batch))


def _run(
    model: Model, batch: Batch, tokens: Int[Tensor, "batch pos"], gradients: bool
) -> tuple[Run, tuple[Tensor, ...]]:
    with torch.set_grad_enabled(gradients):
        embedded, context = model.start(tokens)
        result = run(model, embedded.detach().requires_grad_(gradients), context)
        check_finite(result.logits, batch.name)
        if not gradients:
            return result, ()
        gradients_of = torch.autograd.grad(margins(result.logits, batch).sum(), result.streams)
    streams = tuple(stream.detach() for stream in result.streams)
    return replace(result, streams=streams, logits=result.logits.detach(), mids=(), qkv=()), gradients_of


def _persona(batch: Batch) -> Bool[Tensor, "batch pos"]:
    """From the first place at which the prompts of a pair differ to the last; of equal prompts the last place."""
    differs = batch.clean != batch.corrupt
    differs[:, -1] |= ~differs.any(1)
    started = differs.int().cumsum(1) > 0
    not_over = differs.int().flip(1).cumsum(1).flip(1) > 0
    return started & not_over


def at_last(values: Float[Tensor, "batch pos d_model"], shift: Float[Tensor, "batch d_model"]) -> Tensor:
    """The values with this added at the last place."""
    return torch.cat([values[:, :-1], values[:, -1:] + shift[:, None]], dim=1)
