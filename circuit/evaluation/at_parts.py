"""Random circuits whose edges are at parts of the prompt, as many as in a given one, without dead ends."""

from __future__ import annotations

import numpy as np

from persona_circuits.circuit.subgraph import SpanCircuit, used_slots

__all__ = [
    "random_at_parts",
]

MOST_WAYS = 200


def random_at_parts(circuit: SpanCircuit, count: int, *, seed: int) -> list[SpanCircuit]:
    """``count`` random circuits with as many edges at parts; none where there is nothing else to draw.

    Each is a union of random ways from ``input`` to ``logits``, as information can go, filled up with random edges
    between what is on them; of more than half of all edges a random subset. Where not even one way is so short, it is
    larger.
    """
    valid, n = circuit.spans.valid(circuit.graph), len(circuit)
    if not 0 < n < valid.sum():
        return []
    seeds = np.random.SeedSequence(seed).spawn(count)
    return [_drawn(circuit, valid, n, np.random.default_rng(one)) for one in seeds]


def _drawn(circuit: SpanCircuit, valid: np.ndarray, n: int, rng: np.random.Generator) -> SpanCircuit:
    graph, spans = circuit.graph, circuit.spans
    if n > valid.sum() // 2:
        return SpanCircuit(graph, spans, _some(valid, n, rng))
    mask = np.zeros_like(valid)
    for _ in range(MOST_WAYS):
        longer = mask.copy()
        longer[tuple(np.transpose(_way(circuit, valid, rng)))] = True
        if mask.any() and longer.sum() > n:
            break
        mask = longer
    alive = np.asarray(mask.any(2))
    used = used_slots(graph, alive, np.array(spans.sees, dtype=bool))
    between = valid & ~mask & alive[:, :, None] & used[:, None, :]
    return SpanCircuit(graph, spans, mask | _some(between, n - int(mask.sum()), rng))


def _way(circuit: SpanCircuit, valid: np.ndarray, rng: np.random.Generator) -> list[tuple[int, int, int]]:
    """Edges at parts from ``logits`` back to ``input``, every step uniform over what can be read."""
    graph, spans = circuit.graph, circuit.spans
    part, slot = int(rng.choice(np.flatnonzero(spans.read))), graph.n_dst - 1
    way = []
    while True:
        src = int(rng.choice(np.flatnonzero(valid[part, :, slot])))
        way.append((part, src, slot))
        if src == 0:
            return way
        q, *others = graph.slots_by_source[src]
        seen = np.flatnonzero(spans.sees[part]).tolist()
        part, slot = [(part, q), *((one, other) for one in seen for other in others)][
            rng.integers(1 + len(seen) * len(others))
        ]


def _some(places: np.ndarray, n: int, rng: np.random.Generator) -> np.ndarray:
    """At most ``n`` of the places, at random."""
    mask = np.zeros_like(places)
    mask[tuple(rng.permutation(np.argwhere(places))[: max(0, n)].T)] = True
    return mask
