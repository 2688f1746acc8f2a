"""Edge scores: how much the metric moves when one edge carries its ablated value.

    eap         delta_s . grad_d at the clean run (Syed et al. 2023, arXiv:2310.10348)
    eap-ig      the gradient averaged between the ablated and the clean embeddings
                (EAP-IG inputs, Hanna et al. 2024, arXiv:2403.17806)
    relp, gim   eap with other backward rules (``circuit.model.rules``)
    exact       one patched forward pass per edge
    random      the control

with delta_s = ablated - clean output of the source, summed over positions and
averaged over prompts. Neither split copies of the residual stream nor gradients
of parameters are taken: the gradient at a head's stream is the norm's Jacobian
transposed times W_Q g_q, and all edges into a layer are one matrix product.

``eap_by_definition`` is both of the first two written out; ``eap`` and ``eap_ig`` give the same numbers from less work.

A score is a sum over prompts and positions, so it can be given in parts: per
prompt, or per named part of the prompts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from persona_circuits.circuit import parallel as ranks
from persona_circuits.circuit.attribution.gradients import Ends, differentiated, gradients_at_slots
from persona_circuits.circuit.choices import ACTIVATIONS, IG_RULES
from persona_circuits.circuit.errors import OptionError
from persona_circuits.circuit.forward import (
    Ablation,
    Prefix,
    Prepared,
    Run,
    Written,
    bare,
    changes,
    corrupt,
    first_difference,
    in_halves,
    is_plain,
    is_unpadded,
    prefix_of,
    run,
    targets_of,
)
from persona_circuits.circuit.graph import SLOTS
from persona_circuits.circuit.model import Context, Model
from persona_circuits.circuit.model.finite import check_finite
from persona_circuits.circuit.progress import Progress
from persona_circuits.circuit.scores import Scores
from persona_circuits.circuit.task import Batch
from persona_circuits.metrics import Metric, Targets

__all__ = [
    "ACTIVATIONS",
    "BLOCK_BYTES",
    "IG_RULES",
    "eap",
    "eap_by_definition",
    "eap_ig",
    "fitting",
    "gradient_passes",
    "n_rows_of",
    "points_of",
    "report",
    "scores_at",
]

SHORT: dict[str, Any] = {"contributions": False, "answer_only": True}
"""A run of which only what it wrote and what the answer depends on is wanted."""
BLOCK_BYTES = 1 << 26
"""Least bound on the gradients at heads' streams that are held at a time, where none is given."""


def eap_by_definition(
    model: Model, batches: Sequence[Batch], metric: Metric, points: Sequence[float] = (1.0,)
) -> Scores:
    """Edge attribution patching as it is defined (Syed et al. 2023, arXiv:2310.10348), in plain autograd.

        score(s -> d) = (corrupt output of s - clean output of s) . gradient of m at the input of d

    summed over positions, averaged over prompts. The gradient is taken at the clean run; with other ``points`` it is
    averaged over runs from between the corrupt (0) and the clean (1) embeddings (EAP-IG, arXiv:2403.17806).

    Nobody needs it but a reader and the tests: every head has a copy of the stream for each of q, k and v. Prompts
    are not padded, and cut edges carry the corrupt prompt's value.
    """
    graph, total = model.graph, np.zeros(model.graph.valid.shape)
    for batch in batches:
        embedded, context = model.start(batch.clean, None, batch.forms)
        clean, logits, _ = _read_apart(model, embedded, context)
        corrupt, _, _ = _read_apart(model, *model.start(batch.corrupt, None, batch.forms))
        for point in points:
            between = corrupt[0] + point * (clean[0] - corrupt[0])
            _, at_point, inputs = _read_apart(model, between, context)
            m = metric(at_point, targets_of(batch, logits)).sum()
            for slot, gradient in enumerate(torch.autograd.grad(m, inputs)):
                n = graph.n_reaching(slot)
                of_sources = torch.einsum("sbpd,bpd->s", corrupt[:n] - clean[:n], gradient)
                total[:n, slot] += of_sources.cpu().double().numpy() / len(points)
    return Scores(graph, total / sum(len(batch) for batch in batches))


def _read_apart(
    model: Model, embedded: Float[Tensor, "batch pos d_model"], context: Context
) -> tuple[Float[Tensor, "src batch pos d_model"], Float[Tensor, "batch vocab"], list[Tensor]]:
    """What every source writes, the logits, and what every slot reads, each a copy of the stream."""
    stream = embedded.detach().requires_grad_()
    written, inputs = [stream], []

    def read(x: Tensor) -> Tensor:
        inputs.append(x.clone())
        return inputs[-1]

    with torch.enable_grad():
        for block in model.blocks:
            heads = [
                [block.project(slot, block.attn_norm(read(stream)))[:, :, head] for head in range(model.graph.n_heads)]
                for slot in SLOTS
            ]
            z = block.attention(*(torch.stack(of_slot, dim=2) for of_slot in heads), context)
            after = stream + block.attn_out(z)
            mlp = block.mlp(read(stream if block.parallel else after))
            written += [*block.head_results(z), mlp]
            stream = after + mlp
        return torch.stack(written).detach(), model.answer(read(stream), context.forms), inputs


def eap(
    model: Model,
    batches: Sequence[Batch | Prepared],
    metric: Metric,
    *,
    ablation: Ablation | None = None,
    max_bytes: int | None = None,
    progress: Progress | None = None,
) -> Scores:
    """Edge attribution patching (arXiv:2310.10348): two forward passes, one backward pass for all edges.

    Parameters
    ----------
    batches
        Of ``batches``, or prepared ones with the same ablation, whose plain runs are then not made again.
    metric
        One of ``METRICS``; a score is in its unit.
    ablation
        What a cut edge carries; the corrupt prompt's value by default.
    max_bytes
        Bound on the gradients at heads' streams that are held at a time.
    progress
        Called with the batches done and of all.

    Returns
    -------
    A score for every edge, float64 ``[n_src, n_dst]``: an estimate of m(edge corrupted) - m(clean), mean over prompts.

    Raises
    ------
    OptionError
        The metric's gradient is zero at the clean run (KL).

    Examples
    --------
    >>> scores = eap(model, batches(encode(task, model), 8, "cpu"), METRICS["logit-diff"])
    >>> scores
    Scores(110 edges, the strongest a1.h3->logits -4)
    """
    return _whole(model, batches, metric, points_of(metric, "eap", 1, "midpoint"), ablation, max_bytes, progress)


def eap_ig(
    model: Model,
    batches: Sequence[Batch | Prepared],
    metric: Metric,
    *,
    steps: int = 5,
    rule: str = "midpoint",
    ablation: Ablation | None = None,
    max_bytes: int | None = None,
    progress: Progress | None = None,
) -> Scores:
    """EAP with the gradient averaged between ablated and clean embeddings (arXiv:2403.17806).

    The scores of the edges that leave ``input`` sum to m(corrupt) - m(clean) in the limit of many steps (with the
    corrupt ablation; others change more than the embeddings).

    Parameters
    ----------
    batches, metric, ablation, max_bytes, progress
        As for ``eap``.
    steps
        Points at which the gradient is taken.
    rule
        ``"midpoint"``: (k - 1/2)/steps, k = 1..steps; ``"authors"``: (k - 1)/steps, from the ablated end on, as the
        published code does.

    Returns
    -------
    A score for every edge, as of ``eap``.

    Raises
    ------
    OptionError
        ``steps`` is less than one or the rule is unknown.

    Examples
    --------
    >>> scores = eap_ig(model, batches(encode(task, model), 8, "cpu"), METRICS["logit-diff"], steps=3)
    >>> round(scores["a1.h3->logits"], 2)
    -4.0
    """
    return _whole(model, batches, metric, points_of(metric, "eap-ig", steps, rule), ablation, max_bytes, progress)


def points_of(metric: Metric, method: str, steps: int, rule: str) -> tuple[float, ...] | None:
    """Where between the ablated (0) and the clean (1) embeddings the gradient is taken; None: at the clean run."""
    if method != "eap-ig":
        if metric.flat_at_clean:
            raise OptionError(
                f"metric {metric.name} has zero gradient at the clean run, so one gradient there would score every "
                "edge zero; use --method eap-ig or exact, or --metric persona-divergence"
            )
        return None
    if steps < 1:
        raise OptionError(f"EAP-IG needs at least one step, got --steps {steps}")
    if rule not in IG_RULES:
        raise OptionError(f"integration rule {rule!r} is not one of {', '.join(IG_RULES)}")
    return tuple((k + (0.5 if rule == "midpoint" else 0.0)) / steps for k in range(steps))


def gradient_passes(
    model: Model,
    batch: Batch | Prepared,
    metric: Metric,
    points: tuple[float, ...] | None,
    ablation: Ablation | None,
    first: int,
    use: Callable[[Ends, Tensor, float], None],
) -> None:
    """Call ``use`` per point with the differentiated run, delta from position ``first`` on, and the point's share.

    Plain runs that a prepared batch holds are not made again.
    """
    item, batch = batch if isinstance(batch, Prepared) else None, bare(batch)
    if not is_unpadded(batch, ablation):
        _general_passes(model, batch, item, metric, points, ablation or corrupt, use)
    elif points is None:
        _one_pass(model, batch, item, metric, first, use)
    else:
        _passes_between(model, batch, item, metric, points, first, use)


def _one_pass(
    model: Model,
    batch: Batch,
    item: Prepared | None,
    metric: Metric,
    first: int,
    use: Callable[[Ends, Tensor, float], None],
) -> None:
    """At the clean run.

    Positions that both prompts share are run once where there is a way: in a pass of their own, or in the
    corrupt run, which then goes first. The clean run has no gradient there.
    """
    embedded, context = model.start(batch.clean, None, batch.forms)
    n_late = embedded.shape[1] - first
    if item is None:
        before, other = prefix_of(model, batch.clean[:, :first]), None
    else:
        before, other = item.before, item.corrupt.written.answer_only(context.n_read).late(n_late)
    if first and before is None and len(_shared_prompts(batch)[1]) == len(batch):
        with torch.no_grad():
            at = run(model, *model.start(batch.corrupt, None, batch.forms), **SHORT)
        check_finite(at.logits, batch.name)
        other, before = at.written.late(n_late), Prefix.of(at, first)
        del at
    late = embedded if before is None else embedded[:, first:]
    with torch.enable_grad():
        clean = run(model, late.detach().requires_grad_(), context, before=before, **SHORT)
    check_finite(clean.logits, batch.name)
    ends = _differentiated(model, clean, metric, targets_of(batch, clean.logits)).late(n_late)
    written = clean.written.late(n_late)
    del clean  # its graph is not held beside what comes
    delta = changes(model, written, other or _corrupt_written(model, batch, written, before))
    del written, other
    use(ends, delta, 1.0)


def _passes_between(
    model: Model,
    batch: Batch,
    item: Prepared | None,
    metric: Metric,
    points: tuple[float, ...],
    first: int,
    use: Callable[[Ends, Tensor, float], None],
) -> None:
    """Between the corrupt and the clean embeddings, from the first position at which these differ on."""
    clean = _clean_run(model, batch) if item is None else item.clean
    n_late = clean.streams[0].shape[1] - first
    embedded, context = clean.streams[0][:, first:], clean.context
    targets, before = targets_of(batch, clean.logits), Prefix.of(clean, first)
    written = clean.written.late(n_late) if item is None else clean.written.answer_only(context.n_read).late(n_late)
    del clean
    if item is None:
        other = _corrupt_written(model, batch, written, before)
    else:
        other = item.corrupt.written.answer_only(context.n_read).late(n_late)
    start, delta = other.embedded, changes(model, written, other)
    del written, other
    for point in points:
        ends = _between(model, metric, targets, start + point * (embedded - start), context, before)
        use(ends, delta, 1.0 / len(points))
        del ends  # not held beside the next graph


def _clean_run(model: Model, batch: Batch) -> Run:
    embedded, context = model.start(batch.clean, None, batch.forms)
    with torch.no_grad():
        clean = run(model, embedded, context, **SHORT)
    check_finite(clean.logits, batch.name)
    return clean


def _general_passes(
    model: Model,
    batch: Batch,
    item: Prepared | None,
    metric: Metric,
    points: tuple[float, ...] | None,
    ablation: Ablation,
    use: Callable[[Ends, Tensor, float], None],
) -> None:
    """The same for any ablation and for rows that are padded, of all positions."""
    if item is not None and points is not None:
        clean = item.clean
    else:
        embedded, context = model.start(batch.clean, batch.clean_padding, batch.forms)
        with torch.set_grad_enabled(points is None):
            clean = run(model, embedded.detach().requires_grad_(points is None), context)
        check_finite(clean.logits, batch.name)
    targets = targets_of(batch, clean.logits)
    ends = _differentiated(model, clean, metric, targets) if points is None else None
    clean = clean.without_graph()
    ablated = ablation(model, batch, clean) if item is None else item.ablated
    embedded, context, start = clean.streams[0], clean.context, ablated.streams[0]
    delta = ablated.contributions - clean.contributions
    del clean, ablated
    if ends is not None:
        use(ends, delta, 1.0)
    for point in points or ():
        ends = _between(model, metric, targets, start + point * (embedded - start), context, None)
        use(ends, delta, 1.0 / len(points or ()))
        del ends


def _between(
    model: Model,
    metric: Metric,
    targets: Targets,
    embedded: Float[Tensor, "batch late d_model"],
    context: Context,
    before: Prefix | None,
) -> Ends:
    """A run from embeddings between two prompts', differentiated."""
    with torch.enable_grad():
        at = run(model, embedded.requires_grad_(), context, before=before, **SHORT)
    return _differentiated(model, at, metric, targets)


def _differentiated(model: Model, at: Run, metric: Metric, targets: Targets) -> Ends:
    with torch.enable_grad():
        value = metric(at.logits, targets).sum()
    return differentiated(model, at, value)


def _corrupt_written(model: Model, batch: Batch, clean: Written, before: Prefix | None) -> Written:
    """What a run of the corrupt prompts writes, at the positions of ``clean``, which is what the clean prompts' does.

    A corrupt prompt that is a clean prompt of the batch, as the swapped row of a pair has it,
    is not run again, and one that stands in several rows is run once.
    """
    place, missing = _shared_prompts(batch)
    n_late = clean.embedded.shape[1]
    other = clean
    if missing:
        with torch.no_grad():
            forms = None if batch.forms is None else batch.forms[missing]
            embedded, context = model.start(batch.corrupt[missing], None, forms)
            own = None if before is None else before.rows(missing)
            late = embedded if before is None else embedded[:, -n_late:]
            at = run(model, late, context, before=own, **SHORT)
        check_finite(at.logits, lambda row: batch.name(missing[row]))
        more = at.written.late(n_late)
        other = more if len(missing) == len(batch) else other.joined(more)
    return other if len(missing) == len(batch) else other.rows(place)


def _shared_prompts(batch: Batch) -> tuple[list[int], list[int]]:
    """Where each corrupt prompt stands among the clean ones and those missing there; and rows that have the latter."""
    tails = [b"" if batch.forms is None else batch.forms.key(row) for row in range(len(batch))]
    where = {(*ids, tail): i for i, (ids, tail) in enumerate(zip(batch.clean.tolist(), tails, strict=True))}
    place: list[int] = []
    missing: list[int] = []
    for row, ids in enumerate((*ids, tail) for ids, tail in zip(batch.corrupt.tolist(), tails, strict=True)):
        if ids not in where:
            where[ids] = len(batch) + len(missing)
            missing.append(row)
        place.append(where[ids])
    return place, missing


def _whole(
    model: Model,
    batches: Sequence[Batch | Prepared],
    metric: Metric,
    points: tuple[float, ...] | None,
    ablation: Ablation | None,
    max_bytes: int | None,
    progress: Progress | None,
) -> Scores:
    def of_batch(batch: Batch | Prepared) -> np.ndarray:
        first = first_difference(batch, ablation)
        total = np.zeros(model.graph.valid.shape)

        def add(ends: Ends, delta: Tensor, share: float) -> None:
            total[:] += scores_at(model, ends, delta, max_bytes=max_bytes)[0] * share

        gradient_passes(model, batch, metric, points, ablation, first, add)
        return total

    total = np.zeros(model.graph.valid.shape)
    for done, batch in enumerate(batches, 1):
        for part in fitting(model, batch, points, ablation):
            total += sum(in_halves(of_batch, part))
        report(progress, done, len(batches))
    return Scores(model.graph, ranks.summed(total) / n_rows_of(batches))


def fitting(
    model: Model, batch: Batch | Prepared, points: tuple[float, ...] | None, ablation: Ablation | None
) -> tuple[Batch | Prepared, ...]:
    """The batch, or parts of it whose scores fit the model's budget."""
    if model.budget is None:
        return (batch,)
    batch = bare(batch)
    steps = None if points is None else len(points)
    return batch.parts(model.budget.score_rows(batch.n_tokens, steps=steps, plain=is_plain(batch, ablation)))


def scores_at(
    model: Model,
    ends: Ends,
    delta: Float[Tensor, "src batch late d_model"],
    *,
    max_bytes: int | None,
    cells: Sequence[Bool[Tensor, "batch late"]] | None = None,
) -> Float[np.ndarray, "part src dst"]:
    """Sum of delta . gradient over prompts and positions, for every edge, the gradient at one run.

    With ``cells`` a sum over each of these sets of places instead. Heads are taken as many
    at a time as keep the gradients at their streams within ``max_bytes``, by default within
    a quarter of what the differences hold.
    """
    graph = model.graph

    def parts_of(values: Float[Tensor, "n batch pos d_model"]) -> list[Float[Tensor, "n cells"]]:
        if cells is None:
            return [values.flatten(1)]
        return [values[:, mask[:, -values.shape[2] :]].flatten(1) for mask in cells]

    flat = parts_of(delta)
    scores = torch.zeros(len(flat), *graph.valid.shape, dtype=torch.float64)

    if max_bytes is None:
        max_bytes = max(0 if model.budget else BLOCK_BYTES, delta.numel() * delta.element_size() // 4)
    for slots, gradient in gradients_at_slots(model, ends, max_bytes=max_bytes):
        n_sources = graph.n_reaching(slots.stop - 1)
        there = flat if gradient.shape[2] == delta.shape[2] else parts_of(delta[:, :, -gradient.shape[2] :])
        for i, (deltas, part) in enumerate(zip(there, parts_of(gradient), strict=True)):
            scores[i, :n_sources, slots] = (deltas[:n_sources] @ part.T).cpu().double()
    return np.where(graph.valid, scores.numpy(), 0.0)


def n_rows_of(batches: Sequence[Batch | Prepared]) -> int:
    """Of all processes."""
    return int(ranks.summed(np.array([sum(len(batch) for batch in batches)], dtype=np.float64))[0])


def report(progress: Progress | None, done: int, total: int) -> None:
    if progress is not None:
        progress(done, total)
