"""Edge scores: how much the metric moves when one edge carries the corrupt run's value.

    eap         delta_s . grad_d at the clean run (Syed et al. 2023, arXiv:2310.10348)
    eap-ig      the gradient averaged between the corrupt and the clean embeddings
                (EAP-IG inputs, Hanna et al. 2024, arXiv:2403.17806)
    exact       one patched forward pass per edge
    random      the control

with delta_s = corrupt - clean output of the source, summed over positions and
averaged over prompts. Neither split copies of the residual stream nor gradients
of parameters are taken: the gradient at a head's stream is the norm's Jacobian
transposed times W_Q g_q, and all edges into a layer are one matrix product.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from circuit.errors import OptionError
from circuit.graph import SLOTS, Graph
from circuit.model import Context, Model
from circuit.patching import Progress, Run, measure, prepare, run, targets_of
from circuit.scores import Scores
from circuit.task import Batch
from metrics import Metric, Targets

__all__ = ["IG_RULES", "METHODS", "eap", "eap_ig", "exact", "random_scores", "score"]

METHODS = ("eap", "eap-ig", "exact", "random")
IG_RULES = ("midpoint", "authors")


def score(
    model: Model,
    batches: Sequence[Batch],
    metric: Metric,
    *,
    method: str = "eap-ig",
    steps: int = 5,
    rule: str = "midpoint",
    seed: int = 0,
    progress: Progress | None = None,
) -> Scores:
    """Scores by the method's name; options that a method does not have are not looked at.

    Raises:
        OptionError: the method or an option of it is unknown or makes no sense.
    """
    if method == "eap":
        return eap(model, batches, metric, progress=progress)
    if method == "eap-ig":
        return eap_ig(model, batches, metric, steps=steps, rule=rule, progress=progress)
    if method == "exact":
        return exact(model, batches, metric, progress=progress)
    if method == "random":
        return random_scores(model.graph, seed=seed)
    raise OptionError(f"method {method!r} is not one of {', '.join(METHODS)}")


def eap(model: Model, batches: Sequence[Batch], metric: Metric, *, progress: Progress | None = None) -> Scores:
    """Edge attribution patching: two forward passes and one backward pass for all edges.

    Raises:
        OptionError: the metric's gradient is zero at the clean run (KL).
    """
    if metric.flat_at_clean:
        raise OptionError(
            f"metric {metric.name} has zero gradient at the clean run, so plain EAP would score every edge zero; "
            "use --method eap-ig or exact, or --metric persona-divergence"
        )
    total = np.zeros(model.graph.valid.shape)
    for done, batch in enumerate(batches, 1):
        with torch.no_grad():
            corrupt = run(model, *model.start(batch.corrupt))
        embedded, context = model.start(batch.clean)
        clean = _differentiable_run(model, embedded, context)
        delta = corrupt.contributions - clean.contributions
        targets = targets_of(batch, clean.logits)
        total += _scores_at(model, clean, delta, metric, targets, _first_difference(batch))
        _report(progress, done, len(batches))
    return Scores(model.graph, total / _n_rows(batches))


def eap_ig(
    model: Model,
    batches: Sequence[Batch],
    metric: Metric,
    *,
    steps: int = 5,
    rule: str = "midpoint",
    progress: Progress | None = None,
) -> Scores:
    """EAP with the gradient averaged over ``steps`` points between corrupt and clean embeddings.

    ``rule="midpoint"`` takes the points (k - 1/2)/steps, k = 1..steps; ``"authors"``
    takes (k - 1)/steps, from the corrupt end on, as the published code does. The
    scores of the edges that leave ``input`` sum to m(corrupt) - m(clean) in the limit
    of many steps.

    Raises:
        OptionError: ``steps`` is less than one or the rule is unknown.
    """
    if steps < 1:
        raise OptionError(f"EAP-IG needs at least one step, got --steps {steps}")
    if rule not in IG_RULES:
        raise OptionError(f"integration rule {rule!r} is not one of {', '.join(IG_RULES)}")
    total, done = np.zeros(model.graph.valid.shape), 0
    for batch in batches:
        item = prepare(model, batch)
        delta = item.corrupt.contributions - item.clean.contributions
        start, end = item.corrupt.streams[0], item.clean.streams[0]
        first = _first_difference(batch)
        for k in range(steps):
            share = (k + (0.5 if rule == "midpoint" else 0.0)) / steps
            between = _differentiable_run(model, start + share * (end - start), item.clean.context)
            total += _scores_at(model, between, delta, metric, item.targets, first) / steps
            done += 1
            _report(progress, done, steps * len(batches))
    return Scores(model.graph, total / _n_rows(batches))


def exact(model: Model, batches: Sequence[Batch], metric: Metric, *, progress: Progress | None = None) -> Scores:
    """m(edge corrupted) - m(clean) for every edge, by a patched pass from the edge's layer on."""
    graph = model.graph
    total, done = np.zeros(graph.valid.shape), 0
    for batch in batches:
        item = prepare(model, batch)
        whole = metric(item.clean.logits, item.targets).cpu().double().sum().item()
        for slot in range(graph.n_dst):
            masks = _LazyMasks(graph, slot)
            total[: len(masks), slot] += measure(model, [item], masks, metric).sum(axis=1) - whole
            done += len(masks)
            _report(progress, done, graph.n_edges * len(batches))
    return Scores(graph, total / _n_rows(batches))


def random_scores(graph: Graph, *, seed: int) -> Scores:
    """Standard normal scores, the control."""
    return Scores(graph, np.random.default_rng(seed).standard_normal(graph.valid.shape))


class _LazyMasks(Sequence[np.ndarray]):
    """For every edge into one slot, the mask of all edges but that one; made when asked for."""

    def __init__(self, graph: Graph, slot: int) -> None:
        self.graph, self.slot = graph, slot

    def __len__(self) -> int:
        return self.graph.n_reaching(self.slot)

    def __getitem__(self, src: int) -> np.ndarray:  # type: ignore[override]
        if not 0 <= src < len(self):
            raise IndexError(src)
        mask = self.graph.valid.copy()
        mask[src, self.slot] = False
        return mask


def _differentiable_run(model: Model, embedded: Float[Tensor, "batch pos d_model"], context: Context) -> Run:
    with torch.enable_grad():
        return run(model, embedded.detach().requires_grad_(), context)


def _scores_at(
    model: Model,
    at: Run,
    delta: Float[Tensor, "src batch pos d_model"],
    metric: Metric,
    targets: Targets,
    first: int,
) -> Float[np.ndarray, "src dst"]:
    """Sum over prompts and positions from ``first`` on of delta . gradient, for every edge, the gradient at one run."""
    graph = model.graph
    reads = [x for layer in at.qkv for x in layer] + [*at.mids, at.streams[-1]]
    with torch.enable_grad():
        value = metric(at.logits, targets).sum()
    *inner, last = (gradient[:, first:] for gradient in torch.autograd.grad(value, reads))
    mids = inner[3 * graph.n_layers :]
    flat = delta[:, :, first:].flatten(1)
    scores = torch.zeros(graph.valid.shape, dtype=torch.float64)

    def into(slots: slice, n_sources: int, gradient: Float[Tensor, "slot batch pos d_model"]) -> None:
        scores[:n_sources, slots] = (flat[:n_sources] @ gradient.flatten(1).T).cpu().double()

    for block in model.blocks:
        layer, heads = block.layer, inner[3 * block.layer : 3 * block.layer + 3]
        x = at.streams[layer][:, first:]
        parts = [block.slot_gradients(slot, heads[i], x) for i, slot in enumerate(SLOTS)]
        # Heads of this layer do not reach its heads; the scores of such pairs are dropped with all that are no edges.
        place = graph.mlp_slot_of(layer)
        into(
            slice(place - 3 * graph.n_heads, place + 1), graph.n_reaching(place), torch.cat([*parts, mids[layer][None]])
        )
    into(slice(graph.n_dst - 1, graph.n_dst), graph.n_src, last[None])
    return np.where(graph.valid, scores.numpy(), 0.0)


def _first_difference(batch: Batch) -> int:
    """The first position at which any prompt differs from its pair; before it every delta is zero."""
    differs = (batch.clean != batch.corrupt).any(dim=0).nonzero()
    return int(differs[0]) if len(differs) else batch.clean.shape[1] - 1


def _n_rows(batches: Sequence[Batch]) -> int:
    return sum(len(batch) for batch in batches)


def _report(progress: Progress | None, done: int, total: int) -> None:
    if progress is not None:
        progress(done, total)
