"""Below the node: the neurons of the circuit's MLPs, and the parts of its heads."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from persona_circuits.circuit.attribution import NeuronScores, Scoring, neuron_scores
from persona_circuits.circuit.discovery.values import Effect, Part, Setting
from persona_circuits.circuit.discovery.weights import weighed
from persona_circuits.circuit.evaluation import (
    MOST_PAIRS,
    OpenedHeads,
    OpenedMlps,
    attended,
    described,
    fewest,
    head_parts,
    measured_neurons,
    mlps_of,
    neuron_sets,
    pairwise,
    random_neurons,
)
from persona_circuits.circuit.evaluation.neurons import Kept, NeuronSets
from persona_circuits.circuit.forward import measure
from persona_circuits.circuit.graph import Node
from persona_circuits.circuit.model import Neurons
from persona_circuits.circuit.scores import Scores
from persona_circuits.circuit.statistics import Clusters, PairSample, is_zero
from persona_circuits.circuit.subgraph import Circuit

__all__ = ["neurons_of", "opened_heads", "opened_mlps"]


def neurons_of(setting: Setting) -> dict[int, Neurons]:
    """The neurons of the MLPs that the options name, by layer, before any work.

    Raises
    ------
    OptionError
        A name is of no MLP of this model.
    ModelError
        An MLP's neurons cannot be told apart.
    """
    model = setting.model
    return {layer: Neurons.of(model.blocks[layer]) for layer in mlps_of(setting.options.neurons, model.graph)}


def opened_mlps(setting: Setting, effect: Effect, circuit: Circuit, named: dict[int, Neurons]) -> OpenedMlps | None:
    """The neurons of MLPs that the circuit has: scored, chosen on the pairs searched on, measured on both parts."""
    if not named:
        return None
    model, options, graph = setting.model, setting.options, setting.model.graph
    inside = {layer: x for layer, x in named.items() if circuit.mask[graph.mlp_of(layer)].any()}
    notes = tuple(f"m{layer} is not in the circuit, and is not opened" for layer in named if layer not in inside)
    kept_batches, metric = setting.train.runs.batches, setting.metric
    if effect.weights is not None:
        kept_batches, metric = weighed(kept_batches, metric, effect.weights)
    how: dict[str, Any] = {"scoring": Scoring(options.method, options.steps, options.ig_rule)}
    how["ablation"] = setting.ablation
    progress = setting.stage("scores of neurons")
    scores = neuron_scores(model, kept_batches, metric, inside, **how, progress=progress)
    kept = _fewest(setting, circuit, inside, scores)
    if inside and not any(x.any() for x in kept.values()):
        notes += ("the opened MLPs carry nothing in this circuit, so no neuron is kept",)
    chosen = {layer: np.flatnonzero(x) for layer, x in kept.items()}
    progress = setting.stage("scores of edges of neurons")
    edges = neuron_scores(model, kept_batches, metric, inside, chosen, **how, progress=progress)
    draws = random_neurons(scores, kept, options.n_random, options.seed)
    return OpenedMlps(
        asked=options.neuron_share,
        method=options.method,
        n_neurons={f"m{layer}": len(x) for layer, x in inside.items()},
        scores={f"m{layer}": float(x.values.sum()) for layer, x in scores.items()},
        kept_scores={f"m{layer}": float(x.values[chosen[layer]].sum()) for layer, x in scores.items()},
        kept=described(model, circuit, inside, scores, edges, kept),
        measured=tuple(_measured(setting, part, circuit, inside, kept, draws) for part in setting.parts if inside),
        notes=notes,
    )


def _fewest(setting: Setting, circuit: Circuit, opened: dict[int, Neurons], scores: dict[int, NeuronScores]) -> Kept:
    """The fewest that keep the share of what the opened MLPs carry on the pairs searched on; none where that is 0."""
    none, every = ({layer: np.full(len(neurons), some) for layer, neurons in opened.items()} for some in (False, True))
    progress, tried = setting.stage("fewest neurons"), 0

    def values(*sets: Kept) -> np.ndarray:
        runs = setting.train.runs()
        return measured_neurons(setting.model, runs, setting.metric, circuit, opened, sets)

    if not opened:
        return {}
    without, whole = values(none, every)
    if is_zero(whole - without):
        return none

    def reached(kept: Kept) -> bool:
        nonlocal tried
        tried += 1
        progress(tried, 2 * len(bin(sum(map(len, every.values())))))
        share = (values(kept)[0] - without).mean() / (whole - without).mean()
        return bool(share >= setting.options.neuron_share)

    return fewest(scores, reached)


def _measured(
    setting: Setting, part: Part, circuit: Circuit, opened: dict[int, Neurons], kept: Kept, draws: Sequence[Kept]
) -> NeuronSets:
    rest = {layer: ~own for layer, own in kept.items()}
    none = {layer: np.zeros_like(own) for layer, own in kept.items()}
    progress = setting.stage(f"neurons on {part.split}")
    masks = [Circuit.full(circuit.graph).mask, Circuit.empty(circuit.graph).mask, circuit.mask]
    plainly = pairwise(measure(setting.model, part.runs(), masks, setting.metric), setting.metric)
    sets = [kept, rest, none, *draws]
    below = measured_neurons(setting.model, part.runs(), setting.metric, circuit, opened, sets)
    progress(1, 1)
    return neuron_sets(np.concatenate([plainly, below]), kept, part.sample(setting.options.seed))


def opened_heads(
    setting: Setting, circuit: Circuit, scores: Scores | None, heads: Sequence[Node]
) -> OpenedHeads | None:
    """Parts of heads and why they attend, on the pairs held out."""
    if not heads:
        return None
    part, model, seed = setting.parts[-1], setting.model, setting.options.seed
    progress = setting.stage(f"parts of heads on {part.split}")
    parts = head_parts(model, part.runs(), setting.metric, circuit, scores, heads, part.sample(seed))
    progress(1, 1)
    width = 2 if setting.metric.swap_rows else 1
    rows = part.rows[::width][:MOST_PAIRS]
    sample = PairSample(part.split, Clusters.of([part.task.pairs[row.index // width] for row in rows]), seed)
    why = attended(model, rows, heads, sample, progress=setting.stage("why heads attend"))
    return OpenedHeads(parts, why, part.split, len(part.task.pairs), len(rows), part.clusters.describe())
