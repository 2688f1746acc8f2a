"""Edge scores: how much the metric moves when one edge carries its ablated value.

    eap         delta_s . grad_d at the clean run (Syed et al. 2023, arXiv:2310.10348)
    eap-ig      the gradient averaged between the ablated and the clean embeddings
                (EAP-IG inputs, Hanna et al. 2024, arXiv:2403.17806)
    eap-ig-activations   the gradient averaged between what the source's component writes in both runs
    clean-corrupted   the same, averaged over the two ends alone (Hanna et al. 2024)
    ceap        the gradient between the embeddings on what the source changes there, step by step: conductance
                (arXiv:1805.12233) along that path (CEAP, arXiv:2606.16920)
    relp, gim   eap with other backward rules (``circuit.model.rules``)
    exact       one patched forward pass per edge
    random      the control

with delta_s = ablated - clean output of the source, summed over positions and averaged over prompts. Neither split
copies of the residual stream nor gradients of parameters are taken: the gradient at a head's stream is the norm's
Jacobian transposed times W_Q g_q, and all edges into a layer are one matrix product.

``eap_by_definition`` spells out both of the first two; ``eap`` and ``eap_ig`` give the same numbers with less work.

A score is a sum over prompts and positions, so it can be given in parts: per prompt, or per named part of the prompts.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from persona_circuits.circuit import parallel
from persona_circuits.circuit.attribution.gradients import Ends, gradients_at_slots
from persona_circuits.circuit.attribution.passes import Apart, ApartOfAll, Path, gradient_passes
from persona_circuits.circuit.choices import ACTIVATIONS, IG_RULES, STEPPED
from persona_circuits.circuit.errors import OptionError
from persona_circuits.circuit.forward import Ablation, Prepared, bare, first_difference, in_halves, is_plain, targets_of
from persona_circuits.circuit.graph import SLOTS
from persona_circuits.circuit.model import Context, Model
from persona_circuits.circuit.progress import Progress
from persona_circuits.circuit.scores import Scores
from persona_circuits.circuit.task import Batch
from persona_circuits.metrics import Metric

__all__ = [
    "ACTIVATIONS",
    "BLOCK_BYTES",
    "IG_RULES",
    "ceap",
    "clean_corrupted",
    "eap",
    "eap_by_definition",
    "eap_ig",
    "eap_ig_activations",
    "fitting",
    "gradient_passes",
    "n_rows_of",
    "points_of",
    "report",
    "scores_at",
]

BLOCK_BYTES = 1 << 26
"""Smallest default bound on the bytes of gradients at heads' streams in memory at a time."""


def eap_by_definition(
    model: Model, batches: Sequence[Batch], metric: Metric, points: Sequence[float] = (1.0,)
) -> Scores:
    """Edge attribution patching as it is defined (Syed et al. 2023, arXiv:2310.10348), in plain autograd.

        score(s -> d) = (corrupt output of s - clean output of s) . gradient of m at the input of d

    summed over positions, averaged over prompts. The gradient is taken at the clean run; with other ``points`` it is
    averaged over runs from between the corrupt (0) and the clean (1) embeddings (EAP-IG, arXiv:2403.17806).

    It serves readers and tests only: every head has a copy of the stream for each of q, k and v. Prompts
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
        From ``batches``, or prepared with the same ablation, which saves their plain runs.
    metric
        One of ``METRICS``; scores are in its unit.
    ablation
        What a cut edge carries; the corrupt prompt's value by default.
    max_bytes
        Bound on the bytes of gradients at heads' streams in memory at a time.
    progress
        Called with the number of batches done and their total.

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


def clean_corrupted(
    model: Model, batches: Sequence[Batch | Prepared], metric: Metric, *, ablation: Ablation | None = None, **more: Any
) -> Scores:
    """EAP with the gradient averaged over ablated and clean embeddings (Hanna et al. 2024); the rest as ``eap``."""
    points = points_of(metric, "clean-corrupted", 2, "midpoint")
    return _whole(model, batches, metric, points, ablation, more.get("max_bytes"), more.get("progress"))


def ceap(
    model: Model,
    batches: Sequence[Batch | Prepared],
    metric: Metric,
    *,
    steps: int = 5,
    ablation: Ablation | None = None,
    max_bytes: int | None = None,
    progress: Progress | None = None,
) -> Scores:
    """Conductance of every edge along the path between ablated and clean embeddings (arXiv:2606.16920).

    The scores of all edges that cross any cut between layers sum to m(corrupt) - m(clean) in the limit of many steps
    (with the corrupt ablation), where EAP-IG's do so for those that leave ``input`` alone.

    Parameters
    ----------
    batches, metric, ablation, max_bytes, progress
        As for ``eap``.
    steps
        Number of steps along the path; a gradient is taken at each end of each.
    """
    return _whole(model, batches, metric, points_of(metric, "ceap", steps, "midpoint"), ablation, max_bytes, progress)


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


def eap_ig_activations(
    model: Model,
    batches: Sequence[Batch | Prepared],
    metric: Metric,
    *,
    steps: int = 5,
    rule: str = "midpoint",
    ablation: Ablation | None = None,
    **more: Any,
) -> Scores:
    """Integrated gradients over what a source's own component writes, all before it as in the clean run.

    The embeddings, a layer's attention and its MLP are taken between both runs one at a time, in (2 n_layers + 1)
    ``steps`` runs. The edges that leave a component sum to the effect of ablating its output, in the limit of many
    steps.

    Parameters
    ----------
    batches, metric, ablation
        As for ``eap``.
    rule
        ``"midpoint"``: as above. ``"authors"``: as in the published code of EAP-IG, every edge has the mean gradient of
        all these runs, of which its source is between in one of 2 n_layers + 1, at k/steps, k = 1..steps.
    """
    points = points_of(metric, "eap-ig-activations", steps, rule)
    return _whole(model, batches, metric, points, ablation, more.get("max_bytes"), more.get("progress"))


def points_of(metric: Metric, method: str, steps: int, rule: str) -> tuple[float, ...] | None:
    """Where between the ablated (0) and the clean (1) embeddings the gradient is taken; None: at the clean run."""
    if method == "clean-corrupted":
        return (0.0, 1.0)
    if method not in STEPPED:
        if metric.flat_at_clean:
            raise OptionError(
                f"metric {metric.name} has zero gradient at the clean run, so one gradient there would score every "
                "edge zero; use --method eap-ig or exact, or --metric persona-divergence"
            )
        return None
    if steps < 1:
        raise OptionError(f"{method.upper()} needs at least one step, got --steps {steps}")
    if method == "ceap":
        return Path(k / steps for k in range(steps, -1, -1))
    if rule not in IG_RULES:
        raise OptionError(f"integration rule {rule!r} is not one of {', '.join(IG_RULES)}")
    if method == "eap-ig-activations":
        midpoint = rule == "midpoint"
        return (Apart if midpoint else ApartOfAll)((k + (0.5 if midpoint else 1.0)) / steps for k in range(steps))
    return tuple((k + (0.5 if rule == "midpoint" else 0.0)) / steps for k in range(steps))


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
    return Scores(model.graph, parallel.summed(total) / n_rows_of(batches))


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

    With ``cells`` a sum over each of these sets of places instead. Heads are taken as many at a time as keep the
    gradients at their streams within ``max_bytes``, by default within a quarter of what the differences hold.
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
    return int(parallel.summed(np.array([sum(len(batch) for batch in batches)], dtype=np.float64))[0])


def report(progress: Progress | None, done: int, total: int) -> None:
    if progress is not None:
        progress(done, total)
