import networkx as nx
import numpy as np
import pytest

from persona_circuits.circuit.errors import GraphError
from persona_circuits.circuit.graph import Graph
from persona_circuits.circuit.scores import Scores
from persona_circuits.circuit.subgraph import Circuit, from_networkx, to_networkx

GRAPH = Graph(2, 2)


def circuit(*edges):
    return Circuit.of(GRAPH, edges)


@pytest.mark.parametrize(
    ("edges", "left"),
    [
        (["input->m0", "m0->logits"], ["input->m0", "m0->logits"]),
        (["input->m0"], []),
        (["m0->logits"], []),
        (["input->m0", "m0->m1", "input->logits"], ["input->logits"]),
        (
            ["input->a0.h0<k>", "a0.h0->a1.h1<v>", "a1.h1->logits"],
            ["input->a0.h0<k>", "a0.h0->a1.h1<v>", "a1.h1->logits"],
        ),
        (["a0.h1->a1.h1<v>", "input->m0", "a1.h1->logits"], []),
        ([], []),
    ],
)
def test_dead_ends_go_to_a_fixed_point(edges, left):
    assert circuit(*edges).without_dead_ends() == circuit(*left)


@pytest.mark.parametrize("seed", range(5))
def test_what_is_left_lies_on_a_path(seed):
    graph = Graph(3, 3)
    mask = graph.valid & (np.random.default_rng(seed).random(graph.valid.shape) < 0.1)
    pruned = Circuit(graph, mask).without_dead_ends()
    assert (pruned.mask <= mask).all()
    drawn = to_networkx(pruned)
    for node in pruned.src_names()[1:]:
        assert nx.has_path(drawn, "input", node)
        assert nx.has_path(drawn, node, "logits")


@pytest.mark.parametrize("graph", [GRAPH, Graph(3, 2, parallel=True)])
def test_networkx_and_back(graph):
    mask = graph.valid & (np.random.default_rng(0).random(graph.valid.shape) < 0.4)
    values = np.random.default_rng(1).standard_normal(mask.shape)
    original = Circuit(graph, mask)
    drawn = to_networkx(original, Scores(graph, values))
    assert from_networkx(drawn) == original
    assert from_networkx(to_networkx(original)) == original
    assert sum(len(slots) or 1 for *_, slots in drawn.edges(data="slots")) == len(original)


def test_networkx_carries_each_slots_score():
    scores = Scores.of(GRAPH, {"input->a1.h0<q>": 0.5, "input->a1.h0<v>": -2.0, "input->m0": 1.0})
    drawn = to_networkx(circuit("input->a1.h0<q>", "input->a1.h0<v>", "input->m0"), scores)
    assert drawn.edges["input", "a1.h0"] == {"slots": "qv", "weight": 2.0, "score_q": 0.5, "score_v": -2.0}
    assert drawn.edges["input", "m0"] == {"slots": "", "weight": 1.0, "score": 1.0}


def test_a_networkx_graph_without_a_shape_is_refused():
    with pytest.raises(GraphError, match="lacks the attributes n_heads, n_layers, parallel"):
        from_networkx(nx.DiGraph())


def test_nodes_are_listed_in_order_with_input_first():
    names = circuit("m0->m1", "m1->logits", "input->a1.h0<q>", "a1.h0->logits").src_names()
    assert names == ["input", "m0", "a1.h0", "m1"]


def test_complement_shares_nothing_and_lacks_nothing():
    some = circuit("input->m0", "m0->logits")
    assert not (some.mask & some.complement().mask).any()
    assert len(some) + len(some.complement()) == GRAPH.n_edges
    assert Circuit.full(GRAPH).complement() == Circuit.empty(GRAPH)


def test_circuits_cannot_be_changed_or_hold_what_is_no_edge():
    with pytest.raises(ValueError, match="read-only"):
        Circuit.full(GRAPH).mask[0, 0] = False
    with pytest.raises(GraphError, match="not an edge"):
        Circuit(GRAPH, np.ones_like(GRAPH.valid))


def test_scores_must_be_finite():
    values = np.zeros(GRAPH.valid.shape)
    values[GRAPH.index("input->m1")] = np.nan
    with pytest.raises(GraphError, match="input->m1 is nan"):
        Scores(GRAPH, values)
