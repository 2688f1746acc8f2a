"""The neurons of chosen MLPs of a circuit: which of them it needs, and what these read, write and promote.

Neurons of all opened MLPs are ranked together by |score|, and the fewest first ones are kept with which the circuit
has so large a share of what these MLPs carry in it: of m(circuit) - m(circuit with none of their neurons). A neuron
that is not kept writes what it does in the run whose values cut edges carry; one that is kept reads what its MLP reads.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float

from persona_circuits.circuit import parallel
from persona_circuits.circuit.attribution import NeuronScores, ablated_neurons
from persona_circuits.circuit.evaluation.faithfulness import pairwise
from persona_circuits.circuit.evaluation.node_sets import Share, nodes_named, share_of
from persona_circuits.circuit.figures import plain
from persona_circuits.circuit.forward import Prepared, measure_rows
from persona_circuits.circuit.graph import Graph
from persona_circuits.circuit.model import Model, Neurons, OpenBlock
from persona_circuits.circuit.statistics import Interval, PairSample
from persona_circuits.circuit.subgraph import Circuit
from persona_circuits.metrics import Metric

__all__ = [
    "Kept",
    "Neuron",
    "NeuronRow",
    "NeuronSets",
    "OpenedMlps",
    "described",
    "fewest",
    "measured_neurons",
    "mlps_of",
    "neuron_sets",
    "random_neurons",
]

Kept = Mapping[int, Bool[np.ndarray, " neuron"]]
"""The neurons that are kept, by layer."""
FORMAT = "persona-circuits/neurons"
N_TOKENS = 5


@dataclass(frozen=True)
class Neuron:
    """A kept neuron: ``sources`` and ``destinations`` are scores of its edges, of those that the circuit's MLP has.

    ``promotes`` and ``demotes`` are the tokens that what it writes moves the most, through the final norm.
    """

    name: str
    score: float
    promotes: tuple[str, ...]
    demotes: tuple[str, ...]
    sources: Mapping[str, float] = field(repr=False)
    destinations: Mapping[str, float] = field(repr=False)


@dataclass(frozen=True)
class NeuronRow:
    """The circuit with these neurons of its opened MLPs: mean metric, f, and the share of what the MLPs carry."""

    name: str
    n_neurons: int
    m: float
    f: float | None
    interval: Interval | None
    carried: Share


@dataclass(frozen=True)
class NeuronSets:
    """Sets of neurons on the pairs of one split; the set of kept ones beside random ones of the same sizes."""

    rows: tuple[NeuronRow, ...]
    split: str
    n_pairs: int
    drawn_over: str


@dataclass(frozen=True)
class OpenedMlps:
    """What was found in the MLPs: ``scores`` are their scores as nodes, of which ``kept`` neurons have ``kept_scores``.

    ``asked`` is the share to be kept of what they carry on the pairs searched on, ``method`` what scored the neurons.
    """

    asked: float
    method: str
    n_neurons: Mapping[str, int]
    scores: Mapping[str, float]
    kept_scores: Mapping[str, float]
    kept: tuple[Neuron, ...]
    measured: tuple[NeuronSets, ...]
    notes: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """Plain values, as in ``neurons.json``."""
        return {"format": FORMAT, "version": 1, **plain(self)}

    def in_circuit(self) -> dict[str, Any]:
        """The part of it in ``circuit.json``."""
        names = [neuron.name for neuron in self.kept]
        return {"share": self.asked, "mlps": list(self.n_neurons), "neurons": names}

    def rows(self) -> list[dict[str, Any]]:
        """A row for every kept neuron."""
        names = ("name", "score", "promotes", "demotes")
        return [{name: getattr(neuron, name) for name in names} for neuron in self.kept]

    def edges(self) -> list[dict[str, Any]]:
        """A row for every edge of a kept neuron."""
        into = [(f"{src}->{neuron.name}", score) for neuron in self.kept for src, score in neuron.sources.items()]
        out = [(f"{neuron.name}->{dst}", score) for neuron in self.kept for dst, score in neuron.destinations.items()]
        return [{"edge": edge, "score": score} for edge, score in into + out]


def mlps_of(names: Sequence[str], graph: Graph) -> list[int]:
    """Layers of MLPs by their nodes' names.

    Raises
    ------
    OptionError
        One is no MLP of this graph.
    """
    nodes = nodes_named("neurons", names, graph, "mlp", "MLP", f"m0 to m{graph.n_layers - 1}")
    return sorted(node.layer for node in nodes)


def measured_neurons(
    model: Model,
    prepared: Iterable[Prepared],
    metric: Metric,
    circuit: Circuit,
    opened: Mapping[int, Neurons],
    sets: Sequence[Kept],
) -> Float[np.ndarray, "set pair"]:
    """The metric of the circuit whose opened MLPs have one set of neurons after the other."""
    columns: dict[int, np.ndarray] = {}
    for item in prepared:
        own = [measure_rows(_with(model, item, opened, x), [item], [circuit.mask], metric) for x in sets]
        columns |= {index: np.concatenate([x[index] for x in own]) for index in item.batch.indices}
    columns = parallel.gathered(columns)
    return pairwise(np.stack([columns[index] for index in sorted(columns)], axis=1), metric)


def _with(model: Model, item: Prepared, opened: Mapping[int, Neurons], kept: Kept) -> Model:
    """The model in which the neurons that are not kept write what they do in a batch's ablated run."""
    blocks = list(model.blocks)
    for layer, neurons in opened.items():
        dropped = torch.from_numpy(np.flatnonzero(~kept[layer])).to(model.device)
        with torch.no_grad():
            instead = neurons.written(ablated_neurons(item, neurons), dropped)
        blocks[layer] = OpenBlock.of(neurons, dropped, instead)
    return model.with_blocks(blocks)


def fewest(scores: Mapping[int, NeuronScores], reached: Callable[[Kept], bool]) -> Kept:
    """The first neurons by |score| that are enough: their number doubles until they are, then the gap is halved."""
    every = [(layer, i, abs(value)) for layer, x in scores.items() for i, value in enumerate(x.values.tolist())]
    order = sorted(every, key=lambda x: -x[2])

    def first(n: int) -> Kept:
        kept = {layer: np.zeros(len(x.values), dtype=bool) for layer, x in scores.items()}
        for layer, i, _ in order[:n]:
            kept[layer][i] = True
        return kept

    high = 1
    while high < len(order) and not reached(first(high)):
        high *= 2
    low, high = high // 2, min(high, len(order))
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if reached(first(middle)) else (middle, high)
    return first(high)


def random_neurons(scores: Mapping[int, NeuronScores], kept: Kept, count: int, seed: int) -> Sequence[Kept]:
    """Sets of as many neurons of each MLP, drawn from those whose score is not zero: that do something here."""
    random, drawn = np.random.default_rng(seed), []
    for _ in range(count if any(mask.any() for mask in kept.values()) else 0):
        sample = {layer: np.zeros_like(own) for layer, own in kept.items()}
        for layer, own in kept.items():
            alive = np.flatnonzero(scores[layer].values)
            sample[layer][random.choice(alive, min(int(own.sum()), len(alive)), replace=False)] = True
        drawn.append(sample)
    return drawn


def neuron_sets(values: Float[np.ndarray, "row pair"], kept: Kept, sample: PairSample) -> NeuronSets:
    """The report of a split: ``values`` are of the whole model, the empty circuit, the circuit, and the circuit with
    the kept neurons, with all but these, with none, and with random ones.
    """
    full, empty, circuit, own, rest, none, *random = values
    n_all, n = (sum(int(x.sum() if some else x.size) for x in kept.values()) for some in (False, True))

    def row(name: str, count: int, m: np.ndarray, *others: np.ndarray) -> NeuronRow:
        f = share_of((m - empty)[None], full - empty, sample)
        carried = share_of(np.stack([m, *others]) - none, circuit - none, sample)
        return NeuronRow(name, count, float(m.mean()), f.value, f.interval, carried)

    rows = (
        row("all", n_all, circuit),
        row("these", n, own, *random),
        row("all but these", n_all - n, rest),
        row("none", 0, none),
    )
    return NeuronSets(rows, sample.split, len(full), sample.over(len(full)).describe())


def described(
    model: Model,
    circuit: Circuit,
    opened: Mapping[int, Neurons],
    scores: Mapping[int, NeuronScores],
    edges: Mapping[int, NeuronScores],
    kept: Kept,
) -> tuple[Neuron, ...]:
    """The kept neurons, the strongest first; ``edges`` are the scores of theirs."""
    graph, rows = model.graph, []
    for layer, neurons in opened.items():
        places, mlp, slot = np.flatnonzero(kept[layer]), graph.mlp_of(layer), graph.mlp_slot_of(layer)
        if not len(places):
            continue
        words = _words(model, neurons, places)
        sources, slots = np.flatnonzero(circuit.mask[:, slot]), np.flatnonzero(circuit.mask[mlp])
        for i, (place, (up, down)) in enumerate(zip(places.tolist(), words, strict=True)):
            into, out = edges[layer].into[:, i], edges[layer].out_of[i]
            rows.append(Neuron(
                f"m{layer}.n{place}",
                float(scores[layer].values[place]),
                up,
                down,
                {graph.src_names[s]: float(into[s]) for s in sources[np.abs(into[sources]).argsort()[::-1]]},
                {graph.slot_names[d]: float(out[d]) for d in slots[np.abs(out[slots]).argsort()[::-1]]},
            ))  # fmt: skip
    return tuple(sorted(rows, key=lambda neuron: -abs(neuron.score)))


def _words(model: Model, neurons: Neurons, places: np.ndarray) -> list[tuple[tuple[str, ...], tuple[str, ...]]]:
    """The tokens that each neuron's write would raise and lower the most if nothing else were in the stream."""
    writes = neurons.writes[torch.from_numpy(places).to(neurons.writes.device)].to(model.device, model.dtype)
    with torch.no_grad():
        writes = writes * neurons.block.mlp_gain(writes)  # the norm after the MLP scales coordinates
        logits = model.unembed(writes) - model.unembed(torch.zeros_like(writes[:1]))
    n = min(N_TOKENS, logits.shape[-1])
    ends = ((sign * logits).topk(n).indices.tolist() for sign in (1, -1))
    return [tuple(tuple(model.tokenizer.decode([i]) for i in ids) for ids in both) for both in zip(*ends, strict=True)]  # type: ignore[misc]
