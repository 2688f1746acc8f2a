import pytest

from persona_circuits.circuit.errors import GraphError
from persona_circuits.circuit.graph import INPUT, LOGITS, Edge, Graph, Node, parse_edge, parse_node


@pytest.mark.parametrize(
    ("layers", "heads", "edges"),
    [(12, 12, 32_491), (24, 16, 231_877), (36, 16, 527_743), (28, 24, 693_267), (32, 32, 1_592_881), (6, 5, 1_603)],
    ids=["gpt2", "gpt2-medium", "Qwen2.5-3B", "Llama-3.2-3B", "Llama-3.1-8B", "craftgpt-5m"],
)
def test_number_of_edges_is_that_of_the_literature(layers, heads, edges):
    assert Graph(layers, heads).n_edges == edges


def test_gpt2_small_has_157_sources_and_445_slots():
    graph = Graph(12, 12)
    assert (graph.n_src, graph.n_dst) == (157, 445) == (len(graph.src_nodes), len(graph.dst_slots))
    assert [str(node) for node in graph.src_nodes[:3]] == ["input", "a0.h0", "a0.h1"]
    assert str(graph.src_nodes[-1]) == "m11"


@pytest.mark.parametrize("graph", [Graph(1, 1), Graph(3, 2), Graph(2, 3, parallel=True)])
def test_every_edge_has_one_name_and_one_place(graph):
    edges = list(graph.edges())
    assert len(edges) == graph.n_edges == len({str(edge) for edge in edges})
    for edge in edges:
        assert parse_edge(str(edge)) == edge == graph.edge(*graph.index(str(edge)))


def test_heads_reach_the_mlp_of_their_layer_unless_parallel():
    assert Graph(2, 2).valid[Graph(2, 2).index("a1.h0->m1")]
    with pytest.raises(GraphError, match="parallel"):
        Graph(2, 2, parallel=True).index("a1.h0->m1")


@pytest.mark.parametrize("name", ["a1.h0", "m0", "input", "logits"])
def test_node_names_round_trip(name):
    assert str(parse_node(name)) == name


@pytest.mark.parametrize("name", ["", "a1", "a1.h", "A1.h0", "a01.h0", "m", "m-1", "mlp0", "a1.h0 ", "embed"])
def test_other_names_are_refused(name):
    with pytest.raises(GraphError, match="not a node name"):
        parse_node(name)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("a0.h0", "not an edge name"),
        ("a0.h0->a1.h0", "needs <q>, <k> or <v>"),
        ("a0.h0->m1<q>", "takes no"),
        ("input->logits<v>", "takes no"),
    ],
)
def test_edge_names_that_are_no_edges(name, says):
    with pytest.raises(GraphError, match=says):
        parse_edge(name)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("a1.h0->a1.h1<q>", "does not come before"),
        ("a1.h0->a0.h1<q>", "does not come before"),
        ("logits->m1", "cannot be a source"),
        ("m0->input", "cannot be a destination"),
        ("m0->m7", "not in this model"),
        ("a0.h9->logits", "not in this model"),
    ],
)
def test_edges_outside_the_graph_are_refused(name, says):
    with pytest.raises(GraphError, match=says):
        Graph(2, 2).index(name)


def test_a_graph_needs_a_layer_and_a_head():
    with pytest.raises(GraphError, match="at least one"):
        Graph(0, 2)


def test_values_compare_and_hash():
    assert Node("mlp", 1) == parse_node("m1")
    assert len({INPUT, LOGITS, INPUT}) == 2
    assert Edge(INPUT, LOGITS) == parse_edge("input->logits")
