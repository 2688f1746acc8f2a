"""What an edge outside the circuit carries.

    corrupt      the other prompt's value (resample ablation; the swap of the personas)
    neutral      the value under no persona, for both prompts of a pair
    zero         nothing
    mean         the mean over prompts, per position counted from the prompt's end
    span-mean    the mean over prompts and over all positions of a named part of the prompt
    optimal      a learned constant per node (Li and Janson 2024, arXiv:2409.09951)

Positional embeddings are no node (they stay) except between prompts of unequal length, where a token stands against one
of another position and brings its own. Corrupt and neutral change what distinguishes A from B, or persona from no
persona; the others remove everything a node writes, and so measure what the model needs at all.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from persona_circuits.circuit import parallel
from persona_circuits.circuit.choices import ABLATIONS
from persona_circuits.circuit.errors import OptionError, TaskError
from persona_circuits.circuit.forward.plain import Run, run, run_clean, run_corrupt
from persona_circuits.circuit.graph import SLOTS
from persona_circuits.circuit.model import Block, Model
from persona_circuits.circuit.model.finite import check_finite
from persona_circuits.circuit.progress import Progress
from persona_circuits.circuit.task import Batch

__all__ = [
    "ABLATIONS",
    "CONSTANT",
    "Ablated",
    "Ablation",
    "ablated_by",
    "corrupt",
    "make_ablation",
    "mean",
    "optimal",
    "zero",
]

CONSTANT = ("mean", "span-mean", "optimal")
"""Ablations that are computed from prompts before the first patched pass."""


@dataclass(frozen=True, eq=False)
class Idle:
    """What nodes write that read nothing but ablated values.

    ``contributions`` as in a run; ``attn[l]`` is all that layer l's attention adds, its bias included.
    """

    contributions: Float[Tensor, "src batch pos d_model"]
    attn: tuple[Tensor, ...]


@dataclass(frozen=True, eq=False)
class Ablated:
    """The ablated value of every source, and the streams made of them, at the places of the clean prompts.

    Shapes are a run's. ``idle`` is None where a node that reads ablated values writes
    its own ablated value, as in a plain run of the corrupt prompts; ``z[l]`` is then what the heads'
    results are made of, None otherwise. ``logits`` are the empty circuit's.
    """

    streams: tuple[Tensor, ...]
    mids: tuple[Tensor, ...]
    qkv: tuple[tuple[Tensor, Tensor, Tensor], ...]
    contributions: Float[Tensor, "src batch pos d_model"]
    logits: Float[Tensor, "batch vocab"]
    idle: Idle | None = None
    z: tuple[Float[Tensor, "batch pos head d_head"], ...] | None = None


Ablation = Callable[[Model, Batch, Run], Ablated]
"""Maps a batch and its clean run to what its cut edges carry."""


def corrupt(model: Model, batch: Batch, clean: Run, other: Run | None = None) -> Ablated:
    """The corrupt prompts' values; ``other`` is their plain run, if available."""
    return _of_run(model, clean, other or run_corrupt(model, batch), batch.corrupt_to_clean)


def neutral(model: Model, batch: Batch, clean: Run) -> Ablated:
    """The values under no persona.

    Raises:
        TaskError: the pairs have no neutral prompt.
    """
    if batch.neutral is None:
        raise TaskError(
            "--ablation neutral needs a 'neutral' prompt in every pair: the same question under no persona, of the "
            "same length (or with --align right); `pairs --add-neutral` writes them"
        )
    with torch.no_grad():
        other = run(model, *model.start(batch.neutral, batch.neutral_padding, batch.forms))
    check_finite(other.logits, lambda row: f"the neutral prompt of {batch.name(row)}")
    return _of_run(model, clean, other, batch.neutral_to_clean)


def zero(model: Model, batch: Batch, clean: Run) -> Ablated:
    """Nothing: the streams hold positions and biases only."""
    contributions = torch.zeros_like(clean.contributions)
    contributions[0] = model.positions(batch.clean, batch.clean_padding, batch.forms)
    return ablated_by(model, clean, contributions)


def mean(model: Model, batches: Sequence[Batch]) -> Ablation:
    """The mean over all clean and corrupt prompts of ``batches``, per position counted from the end.

    A position that only some prompts have is averaged over those.
    """
    widths = {i: max(batch.clean.shape[1], batch.corrupt.shape[1]) for i, batch in enumerate(batches)}
    longest = max(parallel.gathered({(w,): w for w in widths.values()}).values())
    total = torch.zeros(model.graph.n_src, longest, model.d_model, dtype=torch.float64, device=model.device)
    count = torch.zeros(longest, dtype=torch.float64, device=model.device)
    for batch in batches:
        for tokens, padding in ((batch.clean, batch.clean_padding), (batch.corrupt, batch.corrupt_padding)):
            values, real = _token_contributions(model, tokens, padding)
            width = tokens.shape[1]
            total[:, longest - width :] += torch.einsum("sbpd,bp->spd", values.double(), real.double())
            count[longest - width :] += real.double().sum(0)
    total, count = _summed(total), _summed(count)
    average = (total / count.clamp(min=1)[:, None]).to(model.dtype)

    def ablation(model: Model, batch: Batch, clean: Run) -> Ablated:
        width = batch.clean.shape[1]
        if width > longest:
            raise TaskError(
                f"a prompt has {width} tokens, but the means were taken over prompts of at most {longest}; "
                "give pairs of the lengths the means were taken over"
            )
        return _constants(model, batch, clean, average[:, None, longest - width :].expand_as(clean.contributions))

    return ablation


def span_mean(model: Model, batches: Sequence[Batch]) -> Ablation:
    """The mean over all prompts of ``batches`` and all positions of a part, as the pair file names the parts.

    Raises:
        TaskError: a later pair has a part that these lack.
    """
    names = tuple(sorted(parallel.gathered({name: name for batch in batches for name in batch.span_names})))
    total = torch.zeros(model.graph.n_src, len(names), model.d_model, dtype=torch.float64, device=model.device)
    count = torch.zeros(len(names), dtype=torch.float64, device=model.device)
    for batch in batches:
        assert batch.spans is not None
        # The corrupt prompts enter as the clean ones of the swapped rows, or not at all.
        values, _ = _token_contributions(model, batch.clean, batch.clean_padding)
        for i, name in enumerate(names):
            if name in batch.span_names:
                inside = batch.spans == batch.span_names.index(name)
                total[:, i] += values[:, inside].double().sum(1)
                count[i] += inside.sum()
    total, count = _summed(total), _summed(count)
    average = (total / count.clamp(min=1)[:, None]).to(model.dtype)

    def ablation(model: Model, batch: Batch, clean: Run) -> Ablated:
        assert batch.spans is not None
        present = [name for i, name in enumerate(batch.span_names) if bool((batch.spans == i).any())]
        if unknown := [name for name in present if name not in names or not count[names.index(name)]]:
            raise TaskError(f"no mean was taken over part {unknown[0]!r}; give pairs with the same parts")
        place = torch.tensor([names.index(name) if name in names else 0 for name in batch.span_names] + [0])
        return _constants(model, batch, clean, average[:, place.to(batch.spans.device)[batch.spans]])

    return ablation


def optimal(
    model: Model,
    batches: Sequence[Batch],
    *,
    steps: int = 60,
    n_prompts: int = 16,
    rate: float = 0.1,
    progress: Progress | None = None,
) -> Ablation:
    """One learned vector per node, which in the node's place preserves the model's output best.

    For each source alone, KL(whole model || model with the vector at every position of the node) is minimised over
    ``n_prompts`` clean prompts, by Adam from the node's mean over those prompts (Li and Janson 2024, arXiv:2409.09951:
    the constant of smallest loss). ``rate`` is in units of the node's root mean square. All nodes of a layer learn in
    one pass.
    """
    sample = _sample(batches, n_prompts) if parallel.is_first() else []
    constants = torch.zeros(model.graph.n_src, model.d_model, dtype=model.dtype, device=model.device)
    groups = [slice(0, 1)]
    for layer in range(model.graph.n_layers):
        groups += [model.graph.heads_of(layer), slice(model.graph.mlp_of(layer), model.graph.mlp_of(layer) + 1)]
    parts = [_Part(model, batch) for batch in sample]
    for done, sources in enumerate(groups, 1):
        if parts:
            constants[sources] = _learned(model, parts, sources, steps, rate)
        if progress is not None:
            progress(done, len(groups))

    constants = _summed(constants)  # one process learns, the others contribute zeros

    def ablation(model: Model, batch: Batch, clean: Run) -> Ablated:
        return _constants(model, batch, clean, constants[:, None, None].expand_as(clean.contributions))

    return ablation


def make_ablation(name: str, model: Model, batches: Sequence[Batch], *, progress: Progress | None = None) -> Ablation:
    """The ablation of that name; constants are taken from ``batches``.

    Raises:
        OptionError: there is no such ablation.
        TaskError: the pairs lack what it needs.
    """
    if name not in ABLATIONS:
        raise OptionError(f"--ablation {name!r} is not one of {', '.join(ABLATIONS)}")
    if name == "optimal":
        return optimal(model, batches, progress=progress)
    if name in CONSTANT:
        return {"mean": mean, "span-mean": span_mean}[name](model, batches)
    return {"corrupt": corrupt, "neutral": neutral, "zero": zero}[name]


def ablated_by(model: Model, clean: Run, contributions: Float[Tensor, "src batch pos d_model"]) -> Ablated:
    """The streams these contributions sum to in place of the clean run's, and what idle nodes make of them.

    They are summed from scratch, not as changes of the clean streams, so that zeros sum to exactly zero.
    """
    graph = model.graph
    with torch.no_grad():
        stream = contributions[0]
        streams, mids, qkv, attn = [], [], [], []
        idle = contributions.clone()
        for block in model.blocks:
            heads, mlp = graph.heads_of(block.layer), graph.mlp_of(block.layer)
            normed = block.attn_norm(stream)
            q, k, v = (block.project(slot, normed) for slot in SLOTS)
            z = block.attention(q, k, v, clean.context)
            after = stream + contributions[heads].sum(0) + _bias(model, block, clean)
            mid = stream if block.parallel else after
            idle[heads] = block.head_results(z)
            idle[mlp] = block.mlp(mid)
            attn.append(block.attn_out(z))
            streams.append(stream)
            mids.append(mid)
            qkv.append((q, k, v))
            stream = after + contributions[mlp]
        streams.append(stream)
        logits = model.answer(streams[-1], clean.context.forms)
    return Ablated(tuple(streams), tuple(mids), tuple(qkv), contributions, logits, Idle(idle, tuple(attn)))


def _bias(model: Model, block: Block, clean: Run) -> Tensor | float:
    """What the clean run's attention adds that no head wrote; exactly zero where it has no bias.

    As a difference of streams it would be rounding error, which the norm of a stream of zeros amplifies.
    """
    if not block.has_attn_bias:
        return 0.0
    graph, layer = model.graph, block.layer
    wrote = clean.contributions[graph.heads_of(layer)].sum(0) + clean.contributions[graph.mlp_of(layer)]
    return clean.streams[layer + 1] - clean.streams[layer] - wrote


def _of_run(model: Model, clean: Run, other: Run, places: Float[Tensor, "batch pos other_pos"] | None) -> Ablated:
    if places is None:
        return Ablated(other.streams, other.mids, other.qkv, other.contributions, other.logits, z=other.written.z)
    moved = torch.einsum("bpo,sbod->sbpd", places.to(other.contributions.dtype), other.contributions)
    return ablated_by(model, clean, moved)


def _constants(model: Model, batch: Batch, clean: Run, values: Float[Tensor, "src batch pos d_model"]) -> Ablated:
    contributions = values.clone()
    contributions[0] += model.positions(batch.clean, batch.clean_padding, batch.forms)
    return ablated_by(model, clean, contributions)


def _summed(values: Tensor) -> Tensor:
    if parallel.size() == 1:
        return values
    return torch.from_numpy(parallel.summed(values.cpu().double().numpy())).to(values)


def _token_contributions(
    model: Model, tokens: Int[Tensor, "batch pos"], padding: Int[Tensor, " batch"] | None
) -> tuple[Float[Tensor, "src batch pos d_model"], Tensor]:
    """A plain run's contributions, the input's without the positions, and which places hold a token."""
    with torch.no_grad():
        values = run(model, *model.start(tokens, padding)).contributions
        values[0] -= model.positions(tokens, padding)
    places = torch.arange(tokens.shape[1], device=tokens.device)
    real = places >= (padding[:, None] if padding is not None else torch.zeros_like(tokens[:, :1]))
    return values, real


class _Part:
    """A batch on which constants are learned: its clean run, and the part of the stream that comes from tokens."""

    def __init__(self, model: Model, batch: Batch) -> None:
        self.clean = run_clean(model, batch)
        self.positions = model.positions(batch.clean, batch.clean_padding, batch.forms)
        self.reference = self.clean.logits.log_softmax(-1)

    def values(self, sources: slice) -> Float[Tensor, "src batch pos d_model"]:
        values = self.clean.contributions[sources]
        return values - self.positions if sources.start == 0 else values


def _sample(batches: Sequence[Batch], n_prompts: int) -> list[Batch]:
    """Whole batches, the last one cut, with at most ``n_prompts`` rows evenly from each."""
    chosen: list[Batch] = []
    share = max(1, -(-n_prompts // len(batches)))
    left = n_prompts
    for batch in batches:
        take = min(share, left, len(batch))
        if take:
            padding = None if batch.clean_padding is None else batch.clean_padding[:take]
            chosen.append(
                Batch(
                    batch.indices[:take],
                    batch.clean[:take],
                    batch.corrupt[:take],
                    batch.answers[:take],
                    batch.wrong_answers[:take],
                    clean_padding=padding,
                    forms=None if batch.forms is None else batch.forms[:take],
                )
            )
        left -= take
    return chosen


def _learned(
    model: Model, parts: Sequence[_Part], sources: slice, steps: int, rate: float
) -> Float[Tensor, "src d_model"]:
    """The best constants of some sources of one layer, learned independently but in the same passes."""
    cells = torch.cat([part.values(sources).flatten(1, 2) for part in parts], dim=1)
    start = cells.mean(1)
    scale = cells.square().mean((1, 2)).sqrt().clamp(min=1e-6)[:, None]
    shift = torch.zeros_like(start, requires_grad=True)
    optimiser = torch.optim.Adam([shift], lr=rate)
    best, best_loss = start.clone(), start.new_full((len(start),), torch.inf)
    for step in range(steps + 1):
        constant = start + scale * shift
        losses = sum(_loss(model, part, sources, constant) for part in parts) / len(parts)
        assert isinstance(losses, Tensor)
        better = losses.detach() < best_loss
        best[better], best_loss[better] = constant.detach()[better], losses.detach()[better]
        if step < steps:
            optimiser.zero_grad()
            losses.sum().backward()
            optimiser.step()
    return best


def _loss(model: Model, part: _Part, sources: slice, constant: Float[Tensor, "src d_model"]) -> Float[Tensor, " src"]:
    """KL(whole || one source replaced) per source, mean over prompts, from the source's layer on."""
    graph, clean = model.graph, part.clean
    change = constant[:, None, None] - part.values(sources)
    n, batch = change.shape[:2]
    layer = 0 if sources.start == 0 else (sources.start - 1) // (graph.n_heads + 1)
    is_mlp = sources.start == graph.mlp_of(layer) and sources.start > 0
    with torch.enable_grad():
        if sources.start == 0:
            resid, first = clean.streams[0] + change, 0
        elif is_mlp:
            resid, first = clean.streams[layer + 1] + change, layer + 1
        else:
            block = model.blocks[layer]
            after = clean.streams[layer + 1] - clean.contributions[graph.mlp_of(layer)] + change
            mlp = clean.contributions[graph.mlp_of(layer)] if block.parallel else block.mlp(after)
            resid, first = after + mlp, layer + 1
        resid = resid.flatten(0, 1)
        for block in model.blocks[first:]:
            normed = block.attn_norm(resid)
            q, k, v = (block.project(slot, normed) for slot in SLOTS)
            z = block.attention(q, k, v, clean.context)
            after = resid + block.attn_out(z)
            resid = after + block.mlp(resid if block.parallel else after)
        log_probs = model.answer(resid, clean.context.forms).log_softmax(-1).unflatten(0, (n, batch))
    return (part.reference.exp() * (part.reference - log_probs)).sum(-1).mean(-1)
