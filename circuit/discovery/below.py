"""Below the node: the neurons of the circuit's MLPs, and the parts of its heads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np

from persona_circuits.circuit.attribution import NeuronScores, Scoring, neuron_scores
from persona_circuits.circuit.discovery.kept import digest_of
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
from persona_circuits.circuit.evaluation.neurons import Kept as Chosen
from persona_circuits.circuit.evaluation.neurons import NeuronSets
from persona_circuits.circuit.forward import measure
from persona_circuits.circuit.graph import Node
from persona_circuits.circuit.model import Neurons
from persona_circuits.circuit.scores import Scores
from persona_circuits.circuit.statistics import Clusters, PairSample, is_zero
from persona_circuits.circuit.storage import Kept, search_of
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


def opened_mlps(
    setting: Setting, effect: Effect, circuit: Circuit, named: dict[int, Neurons], state: Path | None = None
) -> OpenedMlps | None:
    """The neurons of MLPs that the circuit has: scored, chosen on the pairs searched on, measured on both parts.

    ``state`` is the file in which this is kept, to go on from after being stopped; it is removed at the end.
    """
    if not named:
        return None
    model, options, graph = setting.model, setting.options, setting.model.graph
    inside = {layer: x for layer, x in named.items() if circuit.mask[graph.mlp_of(layer)].any()}
    notes = tuple(f"m{layer} is not in the circuit, and is not opened" for layer in named if layer not in inside)
    with Kept(state, _search(setting, effect, circuit) if state else "") as done:
        scores = _scored(setting, effect, inside, done)
        kept = _fewest(setting, circuit, inside, scores, done)
        if inside and not any(x.any() for x in kept.values()):
            notes += ("the opened MLPs carry nothing in this circuit, so no neuron is kept",)
        chosen = {layer: np.flatnonzero(x) for layer, x in kept.items()}
        edges = _scored(setting, effect, inside, done, chosen)
        draws = random_neurons(scores, kept, options.n_random, options.seed)
        sets = [kept, *draws]
        measured = [_measured(setting, part, circuit, inside, sets, done) for part in setting.parts if inside]
    return OpenedMlps(
        asked=options.neuron_share,
        method=options.method,
        n_neurons={f"m{layer}": len(x) for layer, x in inside.items()},
        scores={f"m{layer}": float(x.values.sum()) for layer, x in scores.items()},
        kept_scores={f"m{layer}": float(x.values[chosen[layer]].sum()) for layer, x in scores.items()},
        kept=described(model, circuit, inside, scores, edges, kept),
        measured=tuple(measured),
        notes=notes,
    )


def _search(setting: Setting, effect: Effect, circuit: Circuit) -> str:
    """What this work on neurons is: all that its results depend on."""
    model, weights = setting.model, None if effect.weights is None else effect.weights.tolist()
    rows = [digest_of(part.rows) for part in setting.parts]
    return search_of(model.fingerprint, model.format, rows, setting.options, weights, circuit.edge_names())


def _scored(
    setting: Setting,
    effect: Effect,
    opened: dict[int, Neurons],
    done: Kept,
    chosen: Mapping[int, np.ndarray] | None = None,
) -> dict[int, NeuronScores]:
    """Scores of all neurons, or of the edges of the ``chosen`` ones."""
    if not opened:
        return {}
    model, options, metric, batches = setting.model, setting.options, setting.metric, setting.train.runs.batches
    if effect.weights is not None:
        batches, metric = weighed(batches, metric, effect.weights)
    how: dict[str, Any] = {"scoring": Scoring(options.method, options.steps, options.ig_rule)}
    name = f"scores of {'' if chosen is None else 'edges of '}neurons"
    how |= {"ablation": setting.ablation, "progress": setting.stage(name)}
    names = [field.name for field in fields(NeuronScores)]

    def make() -> dict[str, np.ndarray]:
        scores = neuron_scores(model, batches, metric, opened, chosen, **how)
        return {f"{layer}/{name}": getattr(x, name) for layer, x in scores.items() for name in names}

    arrays = done.of(name, make)
    return {layer: NeuronScores(*(arrays[f"{layer}/{name}"] for name in names)) for layer in opened}


def _fewest(
    setting: Setting, circuit: Circuit, opened: dict[int, Neurons], scores: dict[int, NeuronScores], done: Kept
) -> Chosen:
    """The fewest that keep the share of what the opened MLPs carry on the pairs searched on; none where that is 0."""
    none, every = ({layer: np.full(len(neurons), some) for layer, neurons in opened.items()} for some in (False, True))
    progress, tried = setting.stage("fewest neurons"), 0

    def values(name: str, *sets: Chosen) -> np.ndarray:
        def make() -> dict[str, np.ndarray]:
            runs = setting.train.runs()
            return {"values": measured_neurons(setting.model, runs, setting.metric, circuit, opened, sets)}

        return done.of(name, make)["values"]

    if not opened:
        return {}
    without, whole = values("none and all", none, every)
    if is_zero(whole - without):
        return none

    def reached(kept: Chosen) -> bool:
        nonlocal tried
        tried += 1
        progress(tried, 2 * len(bin(sum(map(len, every.values())))))
        some = values(f"the first {sum(int(neurons.sum()) for neurons in kept.values())}", kept)[0]
        share = (some - without).mean() / (whole - without).mean()
        return bool(share >= setting.options.neuron_share)

    return fewest(scores, reached)


def _measured(
    setting: Setting, part: Part, circuit: Circuit, opened: dict[int, Neurons], sets: Sequence[Chosen], done: Kept
) -> NeuronSets:
    """The circuit with the first of the ``sets`` of neurons, with all but these, with none, and with the other sets."""
    kept, *draws = sets
    rest = {layer: ~chosen for layer, chosen in kept.items()}
    none = {layer: np.zeros_like(chosen) for layer, chosen in kept.items()}
    progress = setting.stage(f"neurons on {part.split}")

    def make() -> dict[str, np.ndarray]:
        masks = [Circuit.full(circuit.graph).mask, Circuit.empty(circuit.graph).mask, circuit.mask]
        plainly = pairwise(measure(setting.model, part.runs(), masks, setting.metric), setting.metric)
        tried = [kept, rest, none, *draws]
        below = measured_neurons(setting.model, part.runs(), setting.metric, circuit, opened, tried)
        return {"values": np.concatenate([plainly, below])}

    values = done.of(f"measured on {part.split}", make)["values"]
    progress(1, 1)
    return neuron_sets(values, kept, part.sample(setting.options.seed))


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
