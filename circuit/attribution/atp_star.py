"""AtP*: attribution patching with its two blind spots fixed (Kramár et al. 2024, arXiv:2403.00745).

    query-key fix    an edge into a query or a key: attention is computed again with the changed query (or key), and the
                     change of the head's result, not of its query, is multiplied by the gradient. A saturated
                     softmax has no slope but does move.
    GradDrop         the gradient is taken once for every layer, with nothing coming back through that layer's attention
                     and MLP: paths that cancel in the whole gradient do not in these. A prompt's score is the mean of
                     |score| over the whole gradient and those without a layer, the reader's own apart, with the sign
                     that the whole gradient gives.

The paper leaves the whole gradient out of that mean, by which an edge of a two-layer model whose only path goes through
the other layer scores 0, and averages |score| over prompts too; here a prompt's score keeps its sign, so that parts add
up to the whole as for every scorer. Keys are changed at all positions at once, as an edge is.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from persona_circuits.circuit import parallel
from persona_circuits.circuit.attribution.eap import n_rows_of, report, scores_at
from persona_circuits.circuit.attribution.gradients import Ends
from persona_circuits.circuit.errors import OptionError
from persona_circuits.circuit.forward import Ablation, Prepared, bare, prepare_each
from persona_circuits.circuit.graph import SLOTS
from persona_circuits.circuit.model import Model
from persona_circuits.circuit.progress import Progress
from persona_circuits.circuit.scores import Scores
from persona_circuits.circuit.task import Batch
from persona_circuits.metrics import Metric

__all__ = ["atp_star", "atp_star_rows"]

MAX_BYTES = 1 << 28
"""Bound on the bytes of all dropped layers' gradients at a time, and of heads' changed results."""


def atp_star(
    model: Model,
    batches: Sequence[Batch | Prepared],
    metric: Metric,
    *,
    ablation: Ablation | None = None,
    drop: bool = True,
    progress: Progress | None = None,
) -> Scores:
    """AtP* for every edge: two forward passes, a backward pass for each layer, and an attention for every source.

    Parameters
    ----------
    batches, metric, ablation
        As for ``eap``.
    drop
        GradDrop too; without it the query-key fix alone.
    progress
        Called with the number of batches done and their total.

    Returns
    -------
    A score for every edge, float64 ``[n_src, n_dst]``: an estimate of m(edge ablated) - m(clean), mean over prompts.

    Raises
    ------
    OptionError
        The metric's gradient is zero at the clean run (KL).
    """
    total = np.zeros(model.graph.valid.shape)
    for values in atp_star_rows(model, batches, metric, ablation=ablation, drop=drop, progress=progress):
        total += sum(values.values())
    return Scores(model.graph, parallel.summed(total) / n_rows_of(batches))


def atp_star_rows(
    model: Model,
    batches: Sequence[Batch | Prepared],
    metric: Metric,
    *,
    ablation: Ablation | None = None,
    drop: bool = True,
    progress: Progress | None = None,
) -> Iterator[dict[int, Float[np.ndarray, "src dst"]]]:
    """The scores of each row by its index, a few rows at a time."""
    if metric.flat_at_clean:
        raise OptionError(
            f"metric {metric.name} has zero gradient at the clean run, so AtP* would score every edge zero; use "
            "--method eap-ig or exact, or --metric persona-divergence"
        )
    for done, batch in enumerate(batches, 1):
        for item in prepare_each(model, _fitting(model, batch), ablation):
            yield dict(zip(item.batch.indices, _of_rows(model, item, metric, drop), strict=True))
        report(progress, done, len(batches))


def _fitting(model: Model, batch: Batch | Prepared) -> Sequence[Batch | Prepared]:
    """The batch, or parts of it whose gradients, one set for every layer dropped, fit the bound."""
    whole = bare(batch)
    each = 8 * model.graph.n_layers**2 * whole.n_tokens * model.d_model * model.dtype.itemsize
    rows = max(2, MAX_BYTES // each)
    return [batch] if rows >= len(whole) else whole.parts(rows)


def _of_rows(model: Model, item: Prepared, metric: Metric, drop: bool) -> Float[np.ndarray, "row src dst"]:
    graph = model.graph
    run = _Kept(model, item)
    with torch.enable_grad():
        value = metric(run.logits, item.targets).sum()
    layers = [None, *(range(graph.n_layers) if drop else ())]
    passes = [run.differentiated(value, layer) for layer in layers]
    delta = item.ablated.contributions - item.clean.contributions
    rows = torch.arange(len(item.batch), device=delta.device)[:, None].expand(delta.shape[1:3])
    cells = [rows == i for i in range(len(item.batch))]
    scores = np.stack([scores_at(model, ends, delta, max_bytes=None, cells=cells) for ends, _ in passes])
    for layer, block in enumerate(model.blocks):
        n = graph.n_reaching(graph.head_slots_of(layer).start)
        at_z = torch.stack([gradients[layer] for _, gradients in passes])
        scores[:, :, :n, graph.head_slots_of(layer).start :][..., : 2 * graph.n_heads] = _of_queries_and_keys(
            run, block.layer, delta[:n], at_z
        )
    whole = scores[0]
    if not drop:
        return whole
    own = np.array([slot // (3 * graph.n_heads + 1) for slot in range(graph.n_dst)])
    counted = np.arange(graph.n_layers)[:, None] != own  # a reader's own layer is blocked
    mean = (np.abs(whole) + np.einsum("lrsd,ld->rsd", np.abs(scores[1:]), counted)) / (1 + counted.sum(axis=0))
    return np.where(whole < 0, -mean, mean)


class _Kept:
    """A clean run with its graph, of which the gradient of one layer can be left out when it is differentiated."""

    def __init__(self, model: Model, item: Prepared) -> None:
        self.model, self.context, self.dropped = model, item.clean.context, -1
        self.streams: list[Tensor] = []
        self.qkv: list[tuple[Tensor, ...]] = []
        self.z: list[Tensor] = []
        self.mids: list[Tensor] = []
        with torch.enable_grad():
            resid = item.clean.streams[0].detach().requires_grad_()
            for block in model.blocks:
                self.streams.append(resid)
                normed = block.attn_norm(resid)
                q, k, v = (block.project(slot, normed) for slot in SLOTS)
                self.qkv.append((q, k, v))
                self.z.append(block.attention(q, k, v, self.context))
                after = resid + self._droppable(block.attn_out(self.z[-1]), block.layer)
                self.mids.append(resid.view_as(resid) if block.parallel else after.view_as(after))
                resid = after + self._droppable(block.mlp(self.mids[-1]), block.layer)
            self.last = resid
            self.logits = model.unembed(resid[:, -1])

    def _droppable(self, written: Tensor, layer: int) -> Tensor:
        written.register_hook(lambda gradient: torch.zeros_like(gradient) if self.dropped == layer else None)
        return written

    def differentiated(self, value: Float[Tensor, ""], dropped: int | None) -> tuple[Ends, Sequence[Tensor]]:
        """The gradients at everything nodes read, and at heads' results before W_O, with one layer blocked."""
        self.dropped = -1 if dropped is None else dropped
        reads = [x for layer in self.qkv for x in layer] + [*self.mids, self.last]
        derivatives = list(torch.autograd.grad(value, [*reads, *self.z], retain_graph=True))
        derivatives, at_z = derivatives[: len(reads)], derivatives[len(reads) :]
        with torch.no_grad():
            for block, projected in zip(self.model.blocks, self.qkv, strict=True):
                gradients = derivatives[3 * block.layer : 3 * block.layer + 3]
                derivatives += [block.along(*each) for each in zip(SLOTS, gradients, projected, strict=True)]
        return Ends([stream.detach() for stream in self.streams], derivatives), at_z


@torch.no_grad()
def _of_queries_and_keys(
    run: _Kept,
    layer: int,
    delta: Float[Tensor, "src batch pos d_model"],
    at_z: Float[Tensor, "drop batch pos head d_head"],
) -> Float[np.ndarray, "drop batch src slot"]:
    """For every source into every query and key of a layer: the head's changed result times the gradient there."""
    block, stream = run.model.blocks[layer], run.streams[layer].detach()
    q, k, v = (x.detach() for x in run.qkv[layer])
    z = run.z[layer].detach()
    n_heads, width = z.shape[2], max(1, MAX_BYTES // (4 * stream.nbytes))
    out = np.zeros((len(at_z), len(stream), len(delta), 2 * n_heads))
    for start in range(0, len(delta), width):
        some = delta[start : start + width]
        copies = len(some)
        normed = block.attn_norm((stream + some).flatten(0, 1))
        tiled = [x.repeat(copies, 1, 1, 1) for x in (q, k, v)]
        for i, slot in enumerate(("q", "k")):
            given = [*tiled]
            given[i] = block.project(slot, normed)
            change = block.attention(*given, run.context).unflatten(0, (copies, -1)) - z
            effects = torch.einsum("sbphd,nbphd->nbsh", change, at_z)
            out[:, :, start : start + copies, i * n_heads : (i + 1) * n_heads] = effects.cpu().double().numpy()
    return out
