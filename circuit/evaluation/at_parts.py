"""Random circuits like one whose edges are at parts of the prompt: the same through other heads.

In every layer the heads exchange their edges, in and out, by a random permutation. So a random circuit has as many
edges at every part between every two layers and kinds of node, is connected like the given one, and differs only in
the heads it goes through. Edges between MLPs, ``input`` and ``logits`` are in all.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from persona_circuits.circuit.subgraph import SpanCircuit

__all__ = ["random_at_parts"]

MOST_TRIES = 20
"""Permutations drawn at most to find one that changes anything."""


def random_at_parts(circuit: SpanCircuit, count: int, *, seed: int) -> list[SpanCircuit]:
    """``count`` random circuits through other heads; fewer, or none, where other heads give the same circuit."""
    circuits = []
    for child in np.random.SeedSequence(seed).spawn(count):
        rng = np.random.default_rng(child)
        for _ in range(MOST_TRIES):
            sources, slots = circuit.graph.permuted_heads(rng)
            other = replace(circuit, mask=circuit.mask[:, sources][:, :, slots])
            if other != circuit:
                circuits.append(other)
                break
    return circuits
