"""Random circuits that resemble a given one in everything but the choice of edges.

A *cell* holds the edges from sources of one layer and type to slots of one layer and type: ``a3.h* -> a5.h*<v>``, say.
A matched circuit has as many edges in every cell as the given one, hence its size, and like it no dead ends.

    1. From the given circuit a random walk goes ``steps`` steps to a hub; from the hub as
       many walks as circuits are wanted go ``steps`` steps each.
    2. A step moves one to three edges to random places in their cells, or exchanges two
       heads of a layer with all their edges. What makes dead ends is refused.

Every step is as likely as the step back, so the walks do not leave the uniform distribution over all matched circuits;
and if the given circuit is itself a random one of them, it cannot be told from the ends of the walks, however short
they are: p-values from ranks are exact (Besag and Clifford 1989, doi:10.1093/biomet/76.4.633).

In small graphs a cell often has no other edge. Where too many of the walks end at the given circuit itself, only the
types are matched and not the layers, and failing that only the size.

``random_circuits`` makes circuits of a size alone, where there is no circuit to be like, or none that its edges
may be of.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from persona_circuits.circuit.graph import Graph, Node
from persona_circuits.circuit.subgraph import Circuit

__all__ = ["MATCHINGS", "Matched", "cells_of", "matched_circuits", "matched_outside", "random_circuits"]

MATCHINGS = ("layer", "type", "size")
"""What a cell is: edges of one layer and type at both ends, of one type at both ends, or all edges."""
MOST_REPEATS = 0.02
"""Largest share of walks that end where they began; beyond it the next wider matching is used."""
MOST_TRIES = 3
"""Most draws per requested set outside a circuit, where draws repeat."""
STEPS_PER_EDGE = 20
FEWEST_STEPS, MOST_STEPS = 2000, 10_000
MOST_MOVED = 3
EXCHANGES = 50
"""With E edges a step exchanges nodes with chance 50 / E, at most 1/4, as such a step visits all E."""
BLOCK = 1000
MOST_PATHS = 200
"""Most random circuits, and paths, tried for one of exactly the size; it always exists but outside a circuit."""
Place = tuple[int, int]
Step = dict[int, Place]
"""New places of edges, by their number."""


@dataclass(frozen=True)
class Matched:
    """Random circuits and how they were matched.

    ``matching`` is one of ``MATCHINGS``; ``outside`` says that they share no edge with the given circuit, ``connected``
    that they have no dead ends. ``n_cells`` cells hold edges of the given circuit; ``n_forced`` of its edges lie in
    cells that it fills, so that every random circuit has them too, and ``n_relaxed`` had to be matched in a wider cell,
    as their own holds too few others. ``overlap`` is the mean share of the given circuit's edges in the random ones,
    ``repeats`` the share of random ones that are the given circuit. ``narrow`` names the cells that the forced or the
    relaxed edges are of.
    """

    circuits: tuple[Circuit, ...]
    matching: str
    outside: bool
    connected: bool
    n_cells: int
    n_forced: int
    n_relaxed: int
    n_different: int
    overlap: float
    repeats: float
    narrow: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """Plain values, without the circuits."""
        values = {item.name: getattr(self, item.name) for item in fields(self) if item.name != "circuits"}
        return {"n_circuits": len(self.circuits)} | values | {"sentence": self.sentence}

    @property
    def sentence(self) -> str:
        """How the circuits were matched, for people."""
        if not self.circuits:
            return "There is no other circuit to draw."
        what = {
            "layer": "as many edges per layer and type at both ends",
            "type": "as many edges per type at both ends (layers relaxed: too few circuits match in them)",
            "size": "as many edges (layers and types relaxed: too few circuits match in them)",
        }[self.matching]
        if self.outside:
            rest = f"all outside the circuit; {self.n_relaxed} edges had to be matched more widely"
        else:
            ends = "no dead ends" if self.connected else "dead ends allowed, as the circuit has some"
            rest = (
                f"{ends}; {self.n_forced} edges fill their cells and are in all of them, "
                f"{self.overlap:.0%} of the circuit's edges on average"
            )
        return f"{len(self.circuits)} random circuits, {self.n_different} different, with {what}, {rest}."


def matched_circuits(circuit: Circuit, count: int, *, seed: int) -> Matched:
    """``count`` random circuits like ``circuit``; none where it is empty or holds every edge.

    The narrowest matching is taken at which at most 2 % of the random circuits are the
    given one itself, or by size alone where there is none.
    """
    if not count or not 0 < len(circuit) < circuit.graph.n_edges:
        return _none(circuit, outside=False)
    for matching in MATCHINGS[:-1]:
        matched = _matched(circuit, count, matching, seed, most_repeats=int(MOST_REPEATS * count))
        if matched is not None:
            return matched
    matched = _matched(circuit, count, MATCHINGS[-1], seed)
    assert matched is not None, "there is no bound on repeats"
    return matched


def matched_outside(circuit: Circuit, count: int, *, seed: int) -> Matched:
    """``count`` random sets of edges outside ``circuit``, as many in every cell; none where it holds most edges.

    Where a cell holds too few other edges, the rest is drawn from the cells of the same types, then from all edges.
    Sets to be cut need no connection, so dead ends are allowed. All sets are different ones: the narrowest matching
    that offers so many is taken, and by size alone there may be fewer.
    """
    if not count or not 0 < len(circuit) <= circuit.graph.n_edges - len(circuit):
        return _none(circuit, outside=True)
    for i in range(len(MATCHINGS)):
        matched = _outside(circuit, count, MATCHINGS[i:], seed)
        if len(matched.circuits) == count:
            break
    return matched


def _none(circuit: Circuit, *, outside: bool) -> Matched:
    return Matched((), "layer", outside, False, 0, len(circuit), 0, 0, 1.0, 1.0)


def _outside(circuit: Circuit, count: int, matchings: Sequence[str], seed: int) -> Matched:
    """Sets matched in the first of ``matchings`` as far as its cells allow, then in the next."""
    levels = [cells_of(circuit.graph, matching) for matching in matchings]
    drawn: dict[Circuit, np.ndarray] = {}
    for child in np.random.SeedSequence(seed).spawn(MOST_TRIES * count):
        other, short = _draw_outside(circuit, levels, np.random.default_rng(child))
        drawn.setdefault(other, short)
        if len(drawn) == count:
            break
    circuits = tuple(drawn)
    return Matched(
        circuits=circuits,
        matching=matchings[0],
        outside=True,
        connected=False,
        n_cells=len(np.unique(levels[0][circuit.mask])),
        n_forced=0,
        n_relaxed=int(short.sum()),
        n_different=len(circuits),
        overlap=0.0,
        repeats=0.0,
        narrow=_cell_names(circuit.graph, levels[0], np.flatnonzero(short), matchings[0]),
    )


def _draw_outside(
    circuit: Circuit, levels: Sequence[np.ndarray], rng: np.random.Generator
) -> tuple[Circuit, np.ndarray]:
    """A set, and how many edges each of the first level's cells is short of."""
    free = circuit.graph.valid & ~circuit.mask
    chosen = np.zeros_like(free)
    counts = np.bincount(levels[0][circuit.mask], minlength=int(levels[0].max()) + 1)
    missing = []
    for i, cells in enumerate(levels):
        places = rng.permutation(np.argwhere(free & ~chosen))
        order = np.argsort(cells[tuple(places.T)], kind="stable")  # random within a cell
        places, cell = places[order], cells[tuple(places[order].T)]
        first = np.searchsorted(cell, np.arange(len(counts)))
        taken = places[np.arange(len(places)) - first[cell] < counts[cell]]
        chosen[tuple(taken.T)] = True
        short = counts - np.bincount(cells[tuple(taken.T)], minlength=len(counts))
        missing.append(short)
        if not short.any():
            break
        wider, owner = levels[i + 1], np.zeros(len(counts), dtype=int)
        owner[cells[circuit.graph.valid]] = wider[circuit.graph.valid]
        counts = np.bincount(owner, weights=short, minlength=int(wider.max()) + 1).astype(int)
    return Circuit(circuit.graph, chosen), missing[0]


def _matched(
    circuit: Circuit, count: int, matching: str, seed: int, *, most_repeats: int | None = None
) -> Matched | None:
    """The ends of the walks; None as soon as more of them than ``most_repeats`` are the circuit itself."""
    space = _Space(circuit, matching)
    steps = int(np.clip(STEPS_PER_EDGE * len(circuit), FEWEST_STEPS, MOST_STEPS))
    to_hub, *children = np.random.SeedSequence(seed).spawn(count + 1)
    hub = _Walk(space, circuit).go(steps, np.random.default_rng(to_hub))
    circuits: list[Circuit] = []
    repeats = 0
    for child in children:
        circuits.append(_Walk(space, hub).go(steps, np.random.default_rng(child)))
        repeats += circuits[-1] == circuit
        if most_repeats is not None and repeats > most_repeats:
            return None
    counts = np.bincount(space.cells[circuit.mask], minlength=len(space.places))
    sizes = np.array([len(places) for places in space.places])
    return Matched(
        circuits=tuple(circuits),
        matching=matching,
        outside=False,
        connected=space.connected,
        n_cells=int((counts > 0).sum()),
        n_forced=int(counts[counts == sizes].sum()),
        n_relaxed=0,
        n_different=len(set(circuits)),
        overlap=float(np.mean([(other.mask & circuit.mask).sum() / len(circuit) for other in circuits])),
        repeats=repeats / count,
        narrow=_cell_names(circuit.graph, space.cells, np.flatnonzero((counts > 0) & (counts == sizes)), matching),
    )


def cells_of(graph: Graph, matching: str) -> np.ndarray:
    """The number of every edge's cell, from 0; int ``[n_src, n_dst]``, -1 where there is no edge."""
    by_layer = matching == "layer"
    if matching == "size":
        return np.where(graph.valid, 0, -1)
    src, _ = _numbered([(node.kind, node.layer * by_layer) for node in graph.src_nodes])
    dst, n_dst = _numbered([(node.kind, slot, node.layer * by_layer) for node, slot in graph.dst_slots])
    cells = src[:, None] * n_dst + dst[None, :]
    return np.where(graph.valid, np.searchsorted(np.unique(cells[graph.valid]), cells), -1)


def _cell_names(graph: Graph, cells: np.ndarray, numbers: np.ndarray, matching: str) -> tuple[str, ...]:
    """Such as ``heads of layer 0 to MLP of layer 3``."""
    if matching == "size":
        return ("any edge",) * len(numbers)
    names = []
    for number in numbers.tolist():
        src, dst = np.argwhere(cells == number)[0].tolist()
        node, (reader, slot) = graph.src_nodes[src], graph.dst_slots[dst]
        target = f"{slot} of {_described(reader, matching)}" if slot else _described(reader, matching)
        names.append(f"{_described(node, matching)} to {target}")
    return tuple(names)


def _described(node: Node, matching: str) -> str:
    where = f" of layer {node.layer}" if matching == "layer" else "s" if node.kind == "mlp" else ""
    return {"head": f"heads{where}", "mlp": f"MLP{where}"}.get(node.kind, node.kind)


def _numbered(keys: Sequence[Hashable]) -> tuple[np.ndarray, int]:
    places = {key: i for i, key in enumerate(dict.fromkeys(keys))}
    return np.array([places[key] for key in keys]), len(places)


class _Space:
    """All circuits with as many edges in every cell as the given one: what does not change during a walk."""

    def __init__(self, circuit: Circuit, matching: str) -> None:
        graph = circuit.graph
        self.graph, self.matching = graph, matching
        self.connected = circuit.without_dead_ends() == circuit
        self.cells = cells_of(graph, matching)
        self.cell_of = self.cells.tolist()
        self.places: list[list[Place]] = [[] for _ in range(int(self.cells.max()) + 1)]
        for src, slot in np.argwhere(graph.valid).tolist():
            self.places[self.cell_of[src][slot]].append((src, slot))
        self.reach = [graph.n_reaching(slot) for slot in range(graph.n_dst)]
        self.slots = graph.slots_by_source
        self.reader = graph.source_of_slot.tolist()


class _Walk:
    """A random walk from a circuit.

    In a graph without cycles a circuit has no dead ends exactly if every node that is read also reads and the other way
    round, so counts of edges in and out of the nodes that a step touches are enough to tell.
    """

    def __init__(self, space: _Space, start: Circuit) -> None:
        self.space = space
        self.edges: list[Place] = [(src, slot) for src, slot in np.argwhere(start.mask).tolist()]
        self.kept = set(self.edges)
        self.into, self.out = [0] * (space.graph.n_src + 1), [0] * (space.graph.n_src + 1)
        for src, slot in self.edges:
            self.out[src] += 1
            self.into[space.reader[slot]] += 1

    def go(self, steps: int, rng: np.random.Generator) -> Circuit:
        """The circuit after so many steps."""
        exchanges = rng.random(steps) < min(0.25, EXCHANGES / len(self.edges))
        for start in range(0, steps, BLOCK):
            block = exchanges[start : start + BLOCK].tolist()
            for exchange, draws in zip(block, rng.random((len(block), 2 * MOST_MOVED + 1)).tolist(), strict=True):
                step = self._exchange(draws) if exchange else self._move(draws)
                if step:
                    self._take(step)
        mask = np.zeros_like(self.space.graph.valid)
        mask[tuple(np.transpose(self.edges))] = True
        return Circuit(self.space.graph, mask)

    def _move(self, draws: Sequence[float]) -> Step:
        """One to three edges to random places of their cells."""
        n, edges, space = 1 + int(draws[0] * MOST_MOVED), self.edges, self.space
        chosen = sorted({int(draw * len(edges)) for draw in draws[1 : 1 + n]})
        step = {}
        for i, draw in zip(chosen, draws[1 + MOST_MOVED :], strict=False):
            src, slot = edges[i]
            places = space.places[space.cell_of[src][slot]]
            step[i] = places[int(draw * len(places))]
        leaving = {edges[i] for i in chosen}
        new = set(step.values())
        possible = len(chosen) == n and len(new) == n and not (new - leaving) & self.kept
        return step if possible else {}

    def _exchange(self, draws: Sequence[float]) -> Step:
        """Two nodes take each other's place: heads of a layer; of two layers, or MLPs, where layers do not matter.

        Where types do not matter either, a head and an MLP do, with one of the head's slots.
        """
        space, graph = self.space, self.space.graph
        layers = [int(draw * graph.n_layers) for draw in draws[:2]]
        heads = [int(draw * graph.n_heads) for draw in draws[2:4]]
        node, other = (graph.heads_of(layer).start + head for layer, head in zip(layers, heads, strict=True))
        if space.matching == "layer":
            other = graph.heads_of(layers[0]).start + heads[1]
        elif draws[4] < 0.5:
            other = graph.mlp_of(layers[1])
            node = node if space.matching == "size" and draws[4] < 0.25 else graph.mlp_of(layers[0])
        nodes = {node: other, other: node}
        here, there = space.slots[node], space.slots[other]
        if len(here) != len(there):
            here = (here[int(draws[5] * len(here))],)
        slots = dict(zip(here + there, there + here, strict=True))
        step = {
            i: (nodes.get(src, src), slots.get(slot, slot))
            for i, (src, slot) in enumerate(self.edges)
            if src in nodes or slot in slots
        }
        return step if all(src < space.reach[slot] for src, slot in step.values()) else {}

    def _take(self, step: Step) -> None:
        """Replace edges, and put them back if that makes a dead end; ``input`` and ``logits`` never are one."""
        edges, into, out, reader = self.edges, self.into, self.out, self.space.reader
        old, new = [edges[i] for i in step], list(step.values())
        for leaving, coming in ((old, new), (new, old)):
            self.kept.difference_update(leaving)
            self.kept.update(coming)
            for i, (src, slot), (next_src, next_slot) in zip(step, leaving, coming, strict=True):
                edges[i] = (next_src, next_slot)
                out[src] -= 1
                into[reader[slot]] -= 1
                out[next_src] += 1
                into[reader[next_slot]] += 1
            if not self.space.connected:
                return
            ends = {node for src, slot in (*old, *new) for node in (src, reader[slot])} - {0, self.space.graph.n_src}
            if all((into[node] > 0) == (out[node] > 0) for node in ends):
                return


def random_circuits(
    graph: Graph, n_edges: int, count: int, *, seed: int, outside: Circuit | None = None
) -> list[Circuit]:
    """Random circuits of exactly ``n_edges`` edges without dead ends; none where there is no edge to place.

    Each is a union of random paths from ``input`` to ``logits``, filled up with random edges between the nodes on them.
    Circuits of more than half of all edges are plain random subsets: hardly anything is a dead end there.

    With ``outside`` they are made of edges that are not in that circuit: fewer than ``n_edges`` where fewer lie on
    paths there, or hang together, more where not even one path is so short, and none where no path from ``input``
    to ``logits`` is left outside it.
    """
    free = (Circuit.full(graph) if outside is None else outside.complement().without_dead_ends()).mask
    seeds = np.random.SeedSequence(seed).spawn(count) if n_edges and free.any() else []
    return [_random_circuit(graph, free, n_edges, np.random.default_rng(child)) for child in seeds]


def _random_circuit(graph: Graph, free: np.ndarray, n_edges: int, rng: np.random.Generator) -> Circuit:
    n_free = int(free.sum())
    if n_edges > n_free // 2:
        places = np.argwhere(free)
        return Circuit.at(graph, *rng.permutation(places)[:n_edges].T)
    best = Circuit.empty(graph)
    for _ in range(MOST_PATHS):
        mask = _random_paths(graph, free, n_edges, rng)
        circuit = Circuit(graph, mask | _fill(graph, free, mask, n_edges - int(mask.sum()), rng))
        if len(circuit) >= n_edges:  # more where not even one path is so short
            return circuit
        best = max(best, circuit, key=len)
    return best


def _random_paths(graph: Graph, free: np.ndarray, n_edges: int, rng: np.random.Generator) -> np.ndarray:
    """Random paths for as long as they fit into ``n_edges`` edges; one path where none is so short."""
    mask = np.zeros_like(graph.valid)
    for _ in range(MOST_PATHS):
        longer = mask.copy()
        longer[tuple(np.transpose(_random_path(graph, free, rng)))] = True
        if longer.sum() <= n_edges:
            mask = longer
        elif mask.any():
            return mask
    return mask if mask.any() else longer


def _random_path(graph: Graph, free: np.ndarray, rng: np.random.Generator) -> list[tuple[int, int]]:
    """Edges from ``logits`` back to ``input``, every step uniform over what can be read."""
    path, slot = [], graph.n_dst - 1
    while True:
        readable = np.flatnonzero(free[:, slot])
        src = int(readable[rng.integers(len(readable))])
        path.append((src, slot))
        if src == 0:
            return path
        slot = int(rng.choice([x for x in graph.slots_by_source[src] if free[:, x].any()]))


def _fill(graph: Graph, free: np.ndarray, mask: np.ndarray, n: int, rng: np.random.Generator) -> np.ndarray:
    """At most ``n`` more random edges between nodes that are already on a path."""
    if n <= 0:
        return np.zeros_like(mask)
    sources = np.asarray(mask.any(axis=1))
    open_places = np.argwhere(free & ~mask & sources[:, None] & graph.slots_of(sources)[None, :])
    return Circuit.at(graph, *rng.permutation(open_places)[:n].T).mask
