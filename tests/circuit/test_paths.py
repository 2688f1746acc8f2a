"""The strongest paths of a circuit: which they are, and what each carries alone."""

from __future__ import annotations

from itertools import product

import networkx as nx
import numpy as np
import pytest
import torch

from persona_circuits.circuit.evaluation import measured_paths
from persona_circuits.circuit.forward import patched_logits, prepare
from persona_circuits.circuit.graph import Graph
from persona_circuits.circuit.paths import strongest_paths
from persona_circuits.circuit.scores import Scores
from persona_circuits.circuit.statistics import PairSample
from persona_circuits.circuit.subgraph import Circuit
from persona_circuits.circuit.task import batches, encode, with_swap_rows
from persona_circuits.metrics import METRICS

METRIC = METRICS["persona-divergence"]


def all_paths(circuit: Circuit) -> list[tuple[str, ...]]:
    """Every path from input to logits, as names of edges, by enumeration."""
    graph = nx.MultiDiGraph((str(one.src), str(one.dst), str(one)) for one in circuit.edges())
    return [tuple(step[2] for step in path) for path in nx.all_simple_edge_paths(graph, "input", "logits")]


@pytest.mark.parametrize("seed", range(5))
def test_through_every_edge_the_path_with_the_strongest_weakest_edge(seed):
    graph = Graph(2, 2)
    rng = np.random.default_rng(seed)
    circuit = Circuit(graph, (rng.random(graph.valid.shape) < 0.5) & graph.valid).without_dead_ends()
    edges = sorted(circuit.edges(), key=lambda edge: graph.index(edge)[::-1])
    sizes = dict(zip(map(str, edges), rng.random(len(edges)), strict=True))
    found = [
        tuple(str(edges[i]) for i in sorted(path)) for path in strongest_paths(edges, np.array(list(sizes.values())))
    ]
    every = all_paths(circuit)
    strength = {path: min(sizes[name] for name in path) for path in every}
    assert all(path in strength for path in found)
    assert [strength[path] for path in found] == sorted((strength[path] for path in found), reverse=True)
    best = sorted((max(strength[path] for path in every if name in path) for name in sizes), reverse=True)
    assert [strength[path] for path in found] == pytest.approx(best)


@pytest.fixture(scope="module")
def shares(tiny, tiny_task):
    prepared = [prepare(tiny, group) for group in batches(with_swap_rows(encode(tiny_task, tiny)), 8, "cpu")]
    rng = np.random.default_rng(0)
    scores = Scores(tiny.graph, rng.normal(size=tiny.graph.valid.shape))
    return measured_paths(tiny, prepared, METRIC, Circuit.full(tiny.graph), scores, PairSample()), prepared, scores


def test_a_share_is_what_one_patched_forward_of_the_path_gives(tiny, shares):
    found, prepared, scores = shares
    assert len(found.paths) == 5
    for path in found.paths:
        masks = [Circuit.full(tiny.graph), Circuit.empty(tiny.graph), Circuit.of(tiny.graph, path.edges)]
        moved = [
            [METRIC(logits, item.targets).double() for item in prepared
             for logits in patched_logits(tiny, item, torch.tensor(one.mask[None]))]
            for one in masks
        ]  # fmt: skip
        full, empty, alone = (float(torch.cat(rows).mean()) for rows in moved)
        assert path.share == pytest.approx((alone - empty) / (full - empty), abs=1e-5)
        assert path.weakest == min(abs(scores[edge]) for edge in path.edges)
        assert path.edges[0].src.kind == "input"
        assert path.edges[-1].dst.kind == "logits"
        assert path.name.count("->") == len(path.edges)
    assert len({path.weakest for path in found.paths}) == 5
    assert found.as_dict()["paths"][0]["share"] == found.paths[0].share


def test_the_path_of_a_planted_circuit_carries_all_and_through_other_heads_nothing():
    """Known by construction."""
    from persona_circuits.models.planted import planted_models

    planted = next(one for one in planted_models() if one.name == "two-hop")
    model = planted.model()
    prepared = [prepare(model, one) for one in batches(with_swap_rows(encode(planted.task, model)), 8, "cpu")]
    true = Circuit.of(model.graph, planted.true_edges)
    scores = Scores.of(model.graph, {name: 1.0 + place for place, name in enumerate(planted.true_edges)})
    found = measured_paths(model, prepared, METRIC, true, scores, PairSample())
    (path,) = found.paths
    assert path.name == "input -> m0 -> a1.h3<v> -> logits"
    assert path.share == pytest.approx(1, abs=1e-6)
    assert found.together == path.share
    assert path.random == pytest.approx(0, abs=1e-6)


def test_different_heads_of_the_same_layers_stand_beside(tiny, shares):
    found, *_ = shares
    for path in found.paths:
        has_heads = any(edge.dst.kind == "head" for edge in path.edges)
        assert (path.random is not None) == has_heads
    assert any(a.random != b.share for a, b in product(found.paths, found.paths))
