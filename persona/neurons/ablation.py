"""What is lost when chosen neurons are ablated, beside random ones."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float

from persona_circuits.circuit.errors import OptionError
from persona_circuits.circuit.model import Model
from persona_circuits.circuit.progress import Progress
from persona_circuits.circuit.statistics import Clusters, interval, ratio_interval, weighted_mean
from persona_circuits.persona.data import ExampleFile
from persona_circuits.persona.neurons.options import NeuronOptions
from persona_circuits.persona.neurons.ranking import Ranking
from persona_circuits.persona.neurons.results import Ablation
from persona_circuits.persona.neurons.runs import Change, Neurons, Readings, ablated

__all__ = ["ablations_of"]


def ablations_of(
    model: Model,
    file: ExampleFile,
    neurons: Neurons,
    ranking: Ranking,
    fitted: Readings,
    selected: Sequence[int],
    options: NeuronOptions,
    progress: Progress,
) -> tuple[Ablation, ...]:
    if not selected or not options.kinds:
        return ()
    sets = np.concatenate([_mask(selected, len(neurons))[None], _random_sets(neurons, ranking, selected, options)])
    change = Change(options.kinds, options.position, fitted.values.mean(0))
    if options.everywhere:
        change = Change(options.kinds, None, fitted.everywhere)
    before, after = ablated(model, file, neurons, sets, change, batch_size=options.batch_size, progress=progress)
    clusters = Clusters.of([item.pair for item in file.items])
    return tuple(
        _ablation(kind, before, d, clusters, options.seed) for kind, d in zip(options.kinds, after, strict=True)
    )


def _ablation(
    kind: str, before: Float[np.ndarray, " pair"], after: Float[np.ndarray, "set pair"], clusters: Clusters, seed: int
) -> Ablation:
    changes = after - before
    effects = changes.mean(1)
    extreme = int((np.abs(effects[1:]) >= abs(effects[0]) * (1 - 1e-9)).sum())
    kept = ratio_interval(after[0], before, clusters, seed=seed)
    return Ablation(
        kind=kind,
        before=before,
        after=after[0],
        random=effects[1:],
        change=float(effects[0]),
        change_interval=interval(lambda weights: weighted_mean(weights, changes[0]), clusters, seed=seed),
        kept=float(after[0].mean() / before.mean()) if kept is not None else None,
        kept_interval=kept,
        p=(1 + extreme) / len(effects),
    )


def _mask(places: Sequence[int], n: int) -> Bool[np.ndarray, " neuron"]:
    mask = np.zeros(n, dtype=bool)
    mask[list(places)] = True
    return mask


def _random_sets(
    neurons: Neurons, ranking: Ranking, selected: Sequence[int], options: NeuronOptions
) -> Bool[np.ndarray, "set neuron"]:
    """As many neurons of each layer as are selected there, of those that are neither selected nor at rounding level."""
    rng = np.random.default_rng(options.seed)
    sets = np.zeros((options.n_random, len(neurons)), dtype=bool)
    chosen = _mask(selected, len(neurons))
    free = ~ranking.rounding & ~chosen
    for layer in np.unique(neurons.layers[chosen]):
        in_layer = neurons.layers == layer
        count, pool = int((in_layer & chosen).sum()), np.flatnonzero(in_layer & free)
        if len(pool) <= count:
            raise OptionError(
                f"layer {layer} has {count} of the selected neurons and {len(pool)} others above rounding to draw "
                "random ones from; lower --top-k"
            )
        for row in sets:
            row[rng.choice(pool, size=count, replace=False)] = True
    return sets
