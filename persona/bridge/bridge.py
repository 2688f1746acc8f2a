"""From representation to circuit: who writes the persona vector, and is it the circuit?

For a pair, a position and a layer l let v be the direction from B to A after block l, of length one, fitted
on other pairs. The stream there is a sum over the nodes up to l, so the pair's projection is one too:

    (x_A - x_B) . v  =  sum over nodes n up to l of c_n,      c_n = (what n wrote under A - under B) . v

with every run's own norms in what was written: a norm after a component has the gain of that run. Attention's
biases belong to no head and are parts of their own. The sum is checked on every pair and layer.

    share of a set S of nodes     (mean over pairs of the sum of c_n over S) / (mean projection)
    written                       sum over S of |mean c_n| / that of all nodes: parts that cancel count

Chance: sets of as many nodes, in two ways.

    layer    as many heads of every layer as S has there; its MLPs and ``input`` stay
    type     as many heads and as many MLPs, from all layers up to l; ``input`` stays

p = (1 + b) / (1 + B), of sets with as large a share (or written share) or a larger one.

Three sets of nodes are then held side by side: the circuit's, the persona movers (from a file of
``patch``, or the nodes with the largest |mean c_n| here), and the MLPs that hold contrastive neurons
(from a file of ``neurons``). How many two or all three of them share has a hypergeometric p: sets of
their sizes drawn at random from the nodes that both could hold. It knows nothing of layers.
Two sets that have no node in common by kind, such as heads and MLPs, are compared by the layers that they are in.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float

from persona_circuits.circuit.errors import OptionError
from persona_circuits.circuit.graph import Graph, Node
from persona_circuits.circuit.model import Model
from persona_circuits.circuit.progress import Stage, untold_stage
from persona_circuits.circuit.statistics import Clusters, Interval, interval, ratio_interval, weighted_mean
from persona_circuits.persona.bridge.options import BridgeOptions
from persona_circuits.persona.bridge.parts import MATCHINGS, TOLERANCE, decomposed_run, random_sets, three_way, up_to
from persona_circuits.persona.data import ExampleFile, leak, shared_positions, told_once
from persona_circuits.persona.neurons import overlap

__all__ = ["Bridge", "LayerShare", "NodeSet", "SetOverlap", "Share", "build_bridge"]


@dataclass(frozen=True)
class NodeSet:
    """Nodes by their places among ``src_nodes``; ``universe`` are those that the set could hold."""

    name: str
    nodes: frozenset[int]
    universe: frozenset[int]
    source: str


@dataclass(frozen=True)
class Share:
    """What part of the projection a set of nodes writes; chance by matching: mean, 95 % and p.

    ``chance`` values are (mean, low, high, p); p is None where only one set can be drawn.
    """

    value: float | None
    interval: Interval | None
    chance: dict[str, tuple[float, float, float, float | None]]


@dataclass(frozen=True)
class LayerShare:
    """After one block: the mean projection, the set's ``share`` of it and of all that is ``written``."""

    layer: int
    projection: float
    n_circuit: int
    n_nodes: int
    share: Share
    written: Share


@dataclass(frozen=True)
class SetOverlap:
    """What two or three sets share: places of nodes, or layers (``by``), out of ``universe`` that all could hold."""

    names: tuple[str, ...]
    by: Literal["nodes", "layers"]
    sizes: tuple[int, ...]
    shared: tuple[int, ...]
    universe: int
    expected: float
    p: float


@dataclass(frozen=True, eq=False)
class Bridge:
    """Everything that was measured.

    ``parts`` are c_n, ``[pair, layer, part]``: the graph's sources, then every layer's attention bias; zero for
    parts after the layer. ``intervals`` are of their means after the chosen layer; ``error`` is the largest
    |sum - projection|, relative to the largest value of any stream.
    """

    model: str
    fingerprint: str
    graph: Graph
    sources: dict[str, tuple[str, str]]
    options: BridgeOptions
    layer: int
    direction: str
    pairs: tuple[str, ...]
    clusters: str
    circuit: NodeSet
    movers: NodeSet
    neurons: NodeSet | None
    parts: Float[np.ndarray, "pair layer part"]
    projections: Float[np.ndarray, "pair layer"]
    intervals: tuple[Interval | None, ...]
    error: float
    conserved: bool
    layers: tuple[LayerShare, ...]
    overlaps: tuple[SetOverlap, ...]
    notes: tuple[str, ...] = field(default=())


def build_bridge(
    model: Model,
    circuit: NodeSet,
    fit: ExampleFile,
    held: ExampleFile | None = None,
    *,
    movers: NodeSet | None = None,
    neurons: NodeSet | None = None,
    options: BridgeOptions | None = None,
    stage: Stage | None = None,
) -> Bridge:
    """Decompose the persona vector's projection into nodes, and hold the circuit against it.

    Parameters
    ----------
    fit, held
        Directions are fitted on the first and decomposed on the second; on ``fit`` itself, with a note, without it.
    movers, neurons
        Sets that files name; without ``movers`` those of this decomposition are taken.

    Returns
    -------
    What every node writes along the direction, the circuit's share of it, and random nodes beside.

    Raises
    ------
    OptionError
        An option makes no sense, there is no such layer, or a prompt does not have the position.
    TaskError, FileError
        No direction can be fitted, or read.
    """
    options = (options or BridgeOptions()).checked()
    stage = stage or untold_stage
    layer = _layer(model, options)
    measured = held or fit
    for file in (fit, measured):
        shared_positions(file, (options.position,))
    leaks = None if held is None else leak(fit, held)
    repeats = told_once(measured, options.position)
    fit, held = fit.once(options.position), None if held is None else held.once(options.position)
    measured = held or fit
    run = decomposed_run(model, fit, held, options, stage)
    parts = run.parts
    clusters = Clusters.of([item.pair for item in measured.items])
    layers = tuple(_layer_share(model.graph, at, circuit, parts, clusters, options) for at in range(parts.shape[1]))
    own_movers = movers or _direct_movers(model.graph, layer, parts, options.top_k)
    return Bridge(
        model=model.name,
        fingerprint=model.fingerprint,
        graph=model.graph,
        sources={"pairs": (fit.source, fit.sha256), "held_out": (measured.source, measured.sha256)},
        options=options,
        layer=layer,
        direction=run.directions.kind,
        pairs=tuple(item.pair.id for item in measured.items),
        clusters=clusters.describe(),
        circuit=circuit,
        movers=own_movers,
        neurons=neurons,
        parts=parts,
        projections=run.projections,
        intervals=_intervals(parts[:, layer], clusters, options.seed),
        error=run.error,
        conserved=run.error <= TOLERANCE,
        layers=layers,
        overlaps=_overlaps(model.graph, circuit, own_movers, neurons),
        notes=(*repeats, *run.directions.notes, *_notes(model.graph, leaks, circuit, own_movers, neurons, run.error)),
    )


def _layer(model: Model, options: BridgeOptions) -> int:
    n_layers = model.graph.n_layers
    if options.layer is None:
        return n_layers - 1
    if not 0 <= options.layer < n_layers:
        raise OptionError(f"--layer {options.layer} is not one of 0 to {n_layers - 1}")
    return options.layer


def _layer_share(
    graph: Graph,
    layer: int,
    circuit: NodeSet,
    parts: Float[np.ndarray, "pair layer part"],
    clusters: Clusters,
    options: BridgeOptions,
) -> LayerShare:
    chosen = np.zeros(graph.n_src, dtype=bool)
    chosen[list(circuit.nodes)] = True
    here = chosen & up_to(graph, layer)
    written = parts[:, layer]
    total, nodes = written.sum(1), written[:, : graph.n_src]
    mean = nodes.mean(0)
    draws = {
        matching: random_sets(graph, chosen, layer, matching, n=options.n_random, seed=options.seed)
        for matching in MATCHINGS
    }
    around = ratio_interval(nodes[:, here].sum(1), total, clusters, seed=options.seed)
    size = np.abs(written.mean(0))
    return LayerShare(
        layer=layer,
        projection=float(total.mean()),
        n_circuit=int(here.sum()),
        n_nodes=int(up_to(graph, layer).sum()),
        share=_share(mean / total.mean() if total.mean() else None, here, around, draws),
        written=_share(size[: graph.n_src] / size.sum() if size.sum() else None, here, None, draws),
    )


def _share(
    node_shares: Float[np.ndarray, " src"] | None,
    here: Bool[np.ndarray, " src"],
    around: Interval | None,
    draws: dict[str, Bool[np.ndarray, "draw src"]],
) -> Share:
    """The share of a set and of random ones, from the share of each node."""
    if node_shares is None:
        return Share(None, None, {})
    value = float(node_shares[here].sum())
    chance = {}
    for matching, sets in draws.items():
        shares = sets @ node_shares
        low, high = np.percentile(shares, (2.5, 97.5))
        extreme = int((shares >= value - 1e-9 * max(1.0, abs(value))).sum())
        fixed = bool((sets == sets[0]).all())
        p = None if fixed else (1 + extreme) / (1 + len(sets))
        chance[matching] = (float(shares.mean()), float(low), float(high), p)
    return Share(value, around, chance)


def _intervals(values: Float[np.ndarray, "pair part"], clusters: Clusters, seed: int) -> tuple[Interval | None, ...]:
    """The interval of every column's mean."""
    influence = (values - values.mean(0)) / len(values)
    return tuple(
        interval(partial(weighted_mean, values=x), clusters, influence=row, seed=seed)
        for x, row in zip(values.T, influence.T, strict=True)
    )


def _direct_movers(graph: Graph, layer: int, parts: Float[np.ndarray, "pair layer part"], top_k: int) -> NodeSet:
    """The nodes that write most of the vector: largest |mean c| after the layer; ``input`` is no mover."""
    universe = [place for place in np.flatnonzero(up_to(graph, layer)).tolist() if place]
    mean = np.abs(parts[:, layer, : graph.n_src].mean(0))
    first = sorted(universe, key=lambda place: -mean[place])[:top_k]
    source = f"the {len(first)} largest writers after block {layer}"
    return NodeSet("movers", frozenset(first), frozenset(universe), source)


def _overlaps(graph: Graph, circuit: NodeSet, movers: NodeSet, neurons: NodeSet | None) -> tuple[SetOverlap, ...]:
    sets = [node_set for node_set in (circuit, movers, neurons) if node_set is not None]
    overlaps = [_pair_overlap(graph, a, b) for i, a in enumerate(sets) for b in sets[i + 1 :]]
    universe = frozenset.intersection(*(node_set.universe for node_set in sets))
    if len(sets) == 3 and universe:
        inside = [node_set.nodes & universe for node_set in sets]
        shared = frozenset.intersection(*inside)
        sizes = tuple(len(node_set) for node_set in inside)
        expected, p = three_way(sizes, len(shared), len(universe))
        names = tuple(node_set.name for node_set in sets)
        overlaps.append(SetOverlap(names, "nodes", sizes, tuple(sorted(shared)), len(universe), expected, p))
    return tuple(overlaps)


def _pair_overlap(graph: Graph, a: NodeSet, b: NodeSet) -> SetOverlap:
    by: Literal["nodes", "layers"] = "nodes" if a.universe & b.universe else "layers"
    sides = [(node_set.nodes, node_set.universe) for node_set in (a, b)]
    if by == "layers":
        sides = [(_layers(graph, nodes), _layers(graph, universe)) for nodes, universe in sides]
    universe = sides[0][1] & sides[1][1]
    first, second = (nodes & universe for nodes, _ in sides)
    both = overlap(sorted(first), sorted(second), len(universe))
    shared = tuple(sorted(first & second))
    return SetOverlap((a.name, b.name), by, (both.first, both.second), shared, both.universe, both.expected, both.p)


def _layers(graph: Graph, places: frozenset[int]) -> frozenset[int]:
    return frozenset(graph.src_nodes[place].layer for place in places)


def _notes(
    graph: Graph, leaks: str | None, circuit: NodeSet, movers: NodeSet, neurons: NodeSet | None, error: float
) -> tuple[str, ...]:
    notes = []
    if leaks is None:
        notes.append("not held out: directions are fitted on the pairs that they are measured on")
    elif leaks:
        notes.append(leaks)
    if error > TOLERANCE:
        notes.append(f"the parts miss the projection by {error:.2g} of the largest stream: do not use them")
    nodes: Sequence[Node] = graph.src_nodes
    if neurons is not None and not movers.universe & neurons.universe:
        notes.append("movers are heads and neurons are in MLPs: they are compared by their layers")
    if neurons is not None and neurons.nodes == neurons.universe:
        notes.append("every MLP holds contrastive neurons: overlap with them says nothing; select fewer (--top-k)")
    mlps = {place for place, node in enumerate(nodes) if node.kind == "mlp"}
    if mlps <= circuit.nodes:
        notes.append("the circuit holds every MLP: overlap with MLPs says nothing")
    return tuple(notes)
