"""What named sets of nodes carry: the model without a set, and with it alone, beside random sets like it.

Without: every edge that leaves a node of the set is cut, in the whole model and in the circuit. Alone: of the
whole model only the edges among the set, ``input`` and ``logits`` are kept. A random set has as many heads in every
layer, and as many MLPs, of any layer.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations, product
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from persona_circuits.circuit.errors import GraphError, OptionError
from persona_circuits.circuit.evaluation.faithfulness import pairwise
from persona_circuits.circuit.figures import plain
from persona_circuits.circuit.forward import Prepared, measure
from persona_circuits.circuit.graph import Graph, Node, parse_node
from persona_circuits.circuit.model import Model
from persona_circuits.circuit.statistics import Interval, PairSample, is_zero
from persona_circuits.circuit.subgraph import Circuit
from persona_circuits.metrics import Metric

__all__ = ["NodeSet", "NodeSets", "Share", "measured_sets", "other_sets", "share_of"]

Sources = tuple[int, ...]
"""Heads and MLPs, by their places among the graph's sources."""


@dataclass(frozen=True)
class Share:
    """A share of m(full) - m(empty), and that of every random set; None where there is no effect.

    ``p``: the chance that a random set has as large a share, (1 + b) / (1 + B).
    """

    value: float | None
    interval: Interval | None
    random: tuple[float, ...]
    p: float | None


@dataclass(frozen=True)
class NodeSet:
    """``n_edges`` of the circuit leave the set, the part ``of_edges``, and without them it loses ``of_circuit`` of f.

    ``lost`` is 1 - f of the whole model without the set, ``alone`` f of the set alone.
    """

    name: str
    nodes: tuple[str, ...]
    n_edges: int
    of_edges: float | None
    of_circuit: float | None
    lost: Share
    alone: Share


@dataclass(frozen=True)
class NodeSets:
    """All sets, and the pairs that they were measured on."""

    sets: tuple[NodeSet, ...]
    split: str
    n_pairs: int
    drawn_over: str

    def as_dict(self) -> dict[str, Any]:
        """Plain values."""
        return dict(plain(asdict(self)))

    @property
    def groups(self) -> dict[str, list[str]]:
        """Nodes by the sets' names."""
        return {x.name: list(x.nodes) for x in self.sets}


def measured_sets(
    model: Model,
    prepared: Iterable[Prepared],
    metric: Metric,
    circuit: Circuit,
    groups: Mapping[str, Sequence[str]],
    sample: PairSample,
    *,
    n_random: int = 10,
) -> NodeSets:
    """Every set without and alone, beside at most ``n_random`` random ones, in one run over the pairs.

    Parameters
    ----------
    groups
        Nodes by the names of the sets; ``logits``, which writes nothing, has no part in them.
    sample
        The name of the pairs and what they share; its seed is that of the random sets too.
    """
    graph = model.graph
    full, own, masks, drawn = Circuit.full(graph).mask, circuit.mask, [], []
    for nodes in groups.values():
        chosen = tuple(graph.src_index(name) for name in nodes if name != "logits")
        drawn.append([chosen, *other_sets(graph, chosen, n_random, sample.seed)])
        masks += [_without(own, chosen), *(make(full, x) for x in drawn[-1] for make in (_without, _only))]
    every = [full, Circuit.empty(graph).mask, own, *masks]
    whole, empty, kept, *cut_or_alone = pairwise(measure(model, prepared, every, metric), metric)
    rest, span, sets = iter(cut_or_alone), whole - empty, []
    for (name, nodes), of in zip(groups.items(), drawn, strict=True):
        cut = next(rest)
        without, alone = zip(*((next(rest), next(rest)) for _ in of), strict=True)
        n_edges = int(own[list(of[0])].sum())
        sets.append(NodeSet(
            name=name,
            nodes=tuple(nodes),
            n_edges=n_edges,
            of_edges=n_edges / len(circuit) if len(circuit) else None,
            of_circuit=None if is_zero(kept - empty) else float((kept - cut).mean() / (kept - empty).mean()),
            lost=share_of(whole - np.stack(without), span, sample),
            alone=share_of(np.stack(alone) - empty, span, sample),
        ))  # fmt: skip
    return NodeSets(tuple(sets), sample.split, len(span), sample.over(len(span)).describe())


def other_sets(graph: Graph, chosen: Sources, count: int, seed: int) -> list[Sources]:
    """At most ``count`` different random sets of as many heads in every layer and as many MLPs, none the given one."""
    pools = _pools(graph, chosen)
    possible = math.prod(math.comb(len(pool), size) for pool, size in pools) - 1
    rng, own = np.random.default_rng(seed), frozenset(chosen)
    if possible <= 4 * count:
        parts = product(*(combinations(pool, size) for pool, size in pools))
        every = [
            sources for sources in (tuple(src for part in each for src in part) for each in parts) if {*sources} != own
        ]
        return [every[i] for i in rng.permutation(len(every))[:count]]
    drawn: dict[frozenset[int], Sources] = {}
    while len(drawn) < count:
        sources = tuple(
            src for pool, size in pools for src in sorted(pool[i] for i in rng.permutation(len(pool))[:size])
        )
        if frozenset(sources) != own:
            drawn.setdefault(frozenset(sources), sources)
    return list(drawn.values())


def _pools(graph: Graph, chosen: Sources) -> list[tuple[Sequence[int], int]]:
    """Pools to draw from, and how many: the heads of each layer, and all MLPs; ``input`` stays."""
    layers = [graph.src_nodes[src].layer for src in chosen if graph.src_nodes[src].kind == "head"]
    n_mlps = sum(graph.src_nodes[src].kind == "mlp" for src in chosen)
    pools: list[tuple[Sequence[int], int]] = [((0,), 1)] if 0 in chosen else []
    for layer in sorted(set(layers)):
        own = graph.heads_of(layer)
        pools.append((range(own.start, own.stop), layers.count(layer)))
    return pools + ([([graph.mlp_of(layer) for layer in range(graph.n_layers)], n_mlps)] if n_mlps else [])


def _without(mask: Bool[np.ndarray, "src dst"], chosen: Sources) -> Bool[np.ndarray, "src dst"]:
    left = mask.copy()
    left[list(chosen)] = False
    return left


def _only(mask: Bool[np.ndarray, "src dst"], chosen: Sources) -> Bool[np.ndarray, "src dst"]:
    """The circuit of the edges among these sources, ``input`` and ``logits``."""
    return _without(mask, tuple(set(range(1, len(mask))) - set(chosen)))


def nodes_named(option: str, names: Sequence[str], graph: Graph, kind: str, what: str, ends: str) -> list[Node]:
    """Each node once, by the names that an option gives; ``what`` and ``ends`` say which a model has.

    Raises
    ------
    OptionError
        One is no node of that kind in this graph.
    """
    nodes = []
    for name in names:
        try:
            node = parse_node(name)
            graph.src_index(node)
            fault = "" if node.kind == kind else f" names no {what}"
        except GraphError as error:
            fault = f": {error}"
        if fault:
            raise OptionError(f"--{option} {name!r}{fault}; {what}s of this model are {ends}")
        nodes.append(node)
    return list(dict.fromkeys(nodes))


def share_of(moved: Float[np.ndarray, "set pair"], span: Float[np.ndarray, " pair"], sample: PairSample) -> Share:
    """The first set's, with all others as random ones."""
    if is_zero(span):
        return Share(None, None, (), None)
    value, *random = (moved.mean(1) / span.mean()).tolist()
    p = (1 + sum(x >= value for x in random)) / (1 + len(random)) if random else None
    return Share(value, sample.ratio(moved[0], span), tuple(random), p)
