"""Scores of the neurons of MLPs, and of the edges into and out of them, from the gradients that edges are scored with.

    score of neuron i of an MLP      sum over edges that leave the MLP of the neuron's share of their scores:
                                     (ablated h_i w_i - clean h_i w_i) . gradient at the slot
    source -> neuron                 (ablated - clean output of the source) . the gradient at the MLP's input, taken
                                     back through this neuron alone: both halves where it has a gate

summed over positions, averaged over prompts and over the method's points. So the neurons' scores sum to the score of
the MLP as a node, those of the edges from a neuron to the neuron's, and those of the edges from a source into all
neurons to the score of its edge into the MLP.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from persona_circuits.circuit import parallel
from persona_circuits.circuit.attribution.eap import BLOCK_BYTES, fitting, points_of
from persona_circuits.circuit.attribution.gradients import Ends, gradients_at_slots
from persona_circuits.circuit.attribution.methods import Scoring, ruled
from persona_circuits.circuit.attribution.passes import gradient_passes
from persona_circuits.circuit.forward import Ablation, Prepared, bare, in_halves, prepare
from persona_circuits.circuit.graph import SLOTS
from persona_circuits.circuit.model import Hidden, Model, Neurons
from persona_circuits.circuit.progress import Progress
from persona_circuits.circuit.task import Batch
from persona_circuits.metrics import Metric

__all__ = ["NeuronScores", "ablated_neurons", "neuron_scores"]


@dataclass(frozen=True, eq=False)
class NeuronScores:
    """Scores of one MLP's neurons; ``into`` and ``out_of`` are scores of edges of the chosen neurons."""

    values: Float[np.ndarray, " neuron"]
    into: Float[np.ndarray, "src some"]
    out_of: Float[np.ndarray, "some dst"]


def neuron_scores(
    model: Model,
    items: Iterable[Batch | Prepared],
    metric: Metric,
    opened: Mapping[int, Neurons],
    edges_of: Mapping[int, Sequence[int] | np.ndarray] | None = None,
    scoring: Scoring | None = None,
    *,
    ablation: Ablation | None = None,
    progress: Progress | None = None,
) -> dict[int, NeuronScores]:
    """Scores of the neurons of ``opened`` MLPs by layer, and of the edges of those that ``edges_of`` names.

    Parameters
    ----------
    items
        Batches, prepared or not, with what cut edges carry: the ablation's values in a run of other prompts.
    scoring
        As edges are scored, by one of ``PLAIN_GRADIENTS``.

    Returns
    -------
    By layer, float64, in units of the metric.
    """
    scoring = scoring or Scoring()
    method = scoring.method
    model, points = ruled(model, method), points_of(metric, method, scoring.steps, scoring.rule)
    opened = {layer: Neurons.of(model.blocks[layer]) for layer in opened} if model.rules else dict(opened)
    chosen = {layer: np.asarray((edges_of or {}).get(layer, ()), dtype=int) for layer in opened}
    graph = model.graph
    total = {
        layer: NeuronScores(
            np.zeros(len(entry)),
            np.zeros((graph.n_src, len(chosen[layer]))),
            np.zeros((len(chosen[layer]), graph.n_dst)),
        )
        for layer, entry in opened.items()
    }

    def of_part(part: Batch | Prepared) -> int:
        item = part if isinstance(part, Prepared) else prepare(model, part, ablation)
        sides = {layer: _Sides(model, item, entry, chosen[layer]) for layer, entry in opened.items()}

        def add(ends: Ends, delta: Tensor, share: float) -> None:
            _add(model, item, ends, delta, share, sides, total)

        gradient_passes(model, item, metric, points, ablation, item.first, add)
        return len(item)

    groups, n_rows = list(items), 0
    for done, batch in enumerate(groups, 1):
        for part in _halved(model, batch, points, ablation):
            n_rows += sum(in_halves(of_part, part))
        if progress is not None:
            progress(done, len(groups))
    whole = float(parallel.summed(np.array([n_rows], dtype=np.float64))[0])
    return {
        layer: NeuronScores(*(parallel.summed(x) / whole for x in (entry.values, entry.into, entry.out_of)))
        for layer, entry in total.items()
    }


def _halved(
    model: Model, batch: Batch | Prepared, points: tuple[float, ...] | None, ablation: Ablation | None
) -> Iterable[Batch | Prepared]:
    """Batches half as large as for scores of edges, as both runs are in memory; whole batches without a limit."""
    for part in fitting(model, batch, points, ablation):
        yield from (part,) if model.budget is None else bare(part).parts(max(1, len(part) // 2))


def ablated_neurons(item: Prepared, neurons: Neurons) -> Hidden:
    """An MLP's neurons in the run whose values cut edges carry, at the places of the clean prompts."""
    layer, places = neurons.block.layer, item.batch.corrupt_to_clean
    if item.ablated.idle is None:
        return neurons.at(item.ablated.mids[layer])
    assert places is not None, "neurons need values of a run"
    other = neurons.at(item.corrupt.mids[layer])
    return Hidden(*(torch.einsum("bpo,bon->bpn", places.to(x), x) for x in (other.values, other.gain)))


class _Sides:
    """One MLP's neurons in the clean and in the ablated run of a batch."""

    def __init__(self, model: Model, item: Prepared, neurons: Neurons, chosen: np.ndarray) -> None:
        layer = neurons.block.layer
        self.neurons, self.chosen = neurons, torch.from_numpy(chosen).to(model.device)
        self.clean, self.ablated = neurons.at(item.clean.mids[layer]), ablated_neurons(item, neurons)

    def summed(self, gradient: Float[Tensor, "slot batch pos d_model"], every: bool) -> Float[np.ndarray, "slot some"]:
        """The neurons' share of the metric's change, by the gradients at slots that read the stream."""
        which = slice(None) if every else self.chosen
        return self.neurons.products(self.clean, self.ablated, gradient, which).sum((1, 2)).cpu().double().numpy()


def _add(
    model: Model,
    item: Prepared,
    ends: Ends,
    delta: Float[Tensor, "src batch late d_model"],
    share: float,
    sides: Mapping[int, _Sides],
    total: Mapping[int, NeuronScores],
) -> None:
    """Add one differentiated run's share to all scores."""
    gradients_by_layer = {layer: torch.zeros_like(delta[0]) for layer in sides}
    max_bytes = max(BLOCK_BYTES, delta.nbytes // 4)
    for slots, gradient in gradients_at_slots(model, ends, max_bytes=max_bytes):
        for layer in (layer for layer in sides if layer < model.graph.slot_layer(slots.start)):
            gradients_by_layer[layer][:, -gradient.shape[2] :] += gradient.sum(0)
            if len(sides[layer].chosen):
                total[layer].out_of[:, slots] += share * sides[layer].summed(gradient, every=False).T
    for layer, side in sides.items():
        total[layer].values[:] += share * side.summed(gradients_by_layer[layer][None], every=True)[0]
        if not len(side.chosen):
            continue
        with torch.no_grad():
            x = _read_by_mlp(model, item, layer, ends.streams[layer])
        gradients, n = (
            side.neurons.read(x, gradients_by_layer[layer]),
            model.graph.n_reaching(model.graph.mlp_slot_of(layer)),
        )
        for places in torch.arange(len(side.chosen)).split(max(1, max_bytes // (4 * x.nbytes))):
            taken = side.neurons.at_input(x, gradients, side.chosen[places])
            into = delta[:n].flatten(1) @ taken.flatten(1).T
            total[layer].into[:n, places.numpy()] += share * into.cpu().double().numpy()


def _read_by_mlp(
    model: Model, item: Prepared, layer: int, stream: Float[Tensor, "batch late d_model"]
) -> Float[Tensor, "batch late d_model"]:
    """The stream into an MLP, from the one into its layer."""
    block = model.blocks[layer]
    if block.parallel:
        return stream
    normed = block.attn_norm(stream)
    behind = item.before is not None and stream.shape[1] < item.clean.streams[0].shape[1]
    before = item.before.layers[layer] if behind and item.before is not None else None
    z = block.attention(*(block.project(slot, normed) for slot in SLOTS), item.clean.context, before)
    return stream + block.attn_out(z)
