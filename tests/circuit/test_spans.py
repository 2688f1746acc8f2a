"""Circuits whose edges name a part of the prompt."""

import networkx as nx
import numpy as np
import pytest
import torch
from conftest import DATA
from tests_reference import Reference

from persona_circuits.circuit.attribution import eap, score_parts
from persona_circuits.circuit.attribution import eap, score_parts
from persona_circuits.circuit.errors import GraphError
from persona_circuits.circuit.forward import make_ablation, measure, patched_logits, prepare
from persona_circuits.circuit.graph import LOGITS, Graph
from persona_circuits.circuit.subgraph import Circuit, SpanCircuit, Spans
from persona_circuits.circuit.task import PromptPair, Task, batches, encode, with_swap_rows
from persona_circuits.metrics import METRICS

DIVERGENCE = METRICS["persona-divergence"]


@pytest.fixture(scope="module")
def groups(tiny64, tiny_task):
    return batches(with_swap_rows(encode(tiny_task, tiny64)), 3, "cpu")


@pytest.fixture(scope="module")
def reference():
    from transformers import AutoModelForCausalLM

    return Reference(AutoModelForCausalLM.from_pretrained(DATA / "tiny-gpt2"))


@pytest.fixture(scope="module")
def unequal():
    from test_alignment import ANSWERS, UNEQUAL

    sides = zip(UNEQUAL, ANSWERS, strict=True)
    pairs = [PromptPair(*texts, (a,), (b,), id=str(i), line=i) for i, (texts, (a, b)) in enumerate(sides, 1)]
    return Task(tuple(pairs), "unequal", "0" * 64)


def random_masks(graph, groups, share, count=2):
    spans = Spans.of(groups)
    random = np.random.default_rng(int(100 * share))
    valid = spans.valid(graph)
    return [SpanCircuit(graph, spans, valid & (random.random(valid.shape) < share)) for _ in range(count)]


def kept_places(batch, circuit):
    """Of every edge the places at which it is kept, [batch, pos, 1] of 0 and 1; the definition, place by place."""
    at = circuit.at(batch.span_names)
    weights = {}
    for edge in circuit.graph.edges():
        src, dst = circuit.graph.index(edge)
        kept = [[float(part >= 0 and at[part, src, dst]) for part in row] for row in batch.spans.tolist()]
        weights[str(edge)] = torch.tensor(kept, dtype=torch.float64)[..., None]
    return weights


@pytest.mark.parametrize("share", [0.03, 0.3, 0.6, 0.95])
def test_a_patched_pass_is_the_reference_edge_by_edge_and_place_by_place(tiny64, groups, reference, share):
    circuits = random_masks(tiny64.graph, groups, share)
    several = 0
    for batch in groups:
        item = prepare(tiny64, batch)
        masks = torch.from_numpy(np.stack([one.at(batch.span_names) for one in circuits]))
        corrupt = reference.plain(batch.corrupt)
        for one, logits in zip(circuits, patched_logits(tiny64, item, masks), strict=True):
            theirs = reference.run(batch.clean, corrupt, kept_places(batch, one))["logits"]
            torch.testing.assert_close(logits, theirs, atol=1e-9, rtol=1e-9)
        torch.testing.assert_close(
            patched_logits(tiny64, item, masks[:1]), patched_logits(tiny64, item, masks)[:1], atol=1e-9, rtol=1e-9
        )
        several += len({tuple(row) for row in batch.spans.tolist()}) > 1
    assert several, "no batch has rows of several layouts"


@pytest.mark.parametrize("ablation", ["corrupt", "zero", "mean"])
@pytest.mark.parametrize("share", [0.05, 0.5, 1.0])
def test_edges_at_all_parts_are_the_circuit_of_the_nodes(tiny64, groups, share, ablation):
    graph, made = tiny64.graph, make_ablation(ablation, tiny64, groups)
    circuit = Circuit(graph, graph.valid & (np.random.default_rng(3).random(graph.valid.shape) < share))
    everywhere = SpanCircuit.everywhere(circuit, Spans.of(groups))
    items = [prepare(tiny64, batch, made) for batch in groups]
    plain = measure(tiny64, items, [circuit.mask], DIVERGENCE)
    np.testing.assert_allclose(measure(tiny64, items, [everywhere], DIVERGENCE), plain, atol=1e-10)
    if ablation != "corrupt":  # differences of many circuits are kept
        items = [item.with_differences() for item in items]
        np.testing.assert_allclose(measure(tiny64, items, [everywhere], DIVERGENCE), plain, atol=1e-10)


def test_prompts_of_unequal_length_batched_are_the_prompts_alone(tiny64, unequal):
    rows = with_swap_rows(encode(unequal, tiny64, align="right"))
    together, alone = batches(rows, 8, "cpu"), batches(rows, 1, "cpu")
    assert any(batch.clean_padding is not None for batch in together)
    (one, other) = random_masks(tiny64.graph, together, 0.5)
    found = [
        measure(tiny64, (prepare(tiny64, b) for b in some), [one, other], DIVERGENCE) for some in (together, alone)
    ]
    np.testing.assert_allclose(*found, atol=1e-9)
    nodes = [one.circuit.mask]
    everywhere = [SpanCircuit.everywhere(one.circuit, Spans.of(together))]
    both = [measure(tiny64, [prepare(tiny64, b) for b in together], some, DIVERGENCE) for some in (nodes, everywhere)]
    np.testing.assert_allclose(*both, atol=1e-9)


def test_scores_of_parts_are_slopes_of_the_edge_at_these_places_and_sum_to_its_score(tiny64, groups, reference):
    parts = score_parts(tiny64, groups, DIVERGENCE, by="span", method="eap")
    np.testing.assert_allclose(parts.total().values, eap(tiny64, groups, DIVERGENCE).values, atol=1e-12)
    step, n_rows = 1e-4, sum(len(batch) for batch in groups)
    largest = np.argsort(-np.abs(parts.values), axis=None)[[0, 3, 11, 40]]
    for part, src, dst in np.transpose(np.unravel_index(largest, parts.values.shape)).tolist():
        slope = 0.0
        for batch in groups:
            corrupt = reference.plain(batch.corrupt)
            here = (batch.spans == batch.span_names.index(parts.names[part]))[..., None]
            for sign in (1, -1):
                weight = 1.0 - sign * step * here.double()
                logits = reference.run(batch.clean, corrupt, {str(tiny64.graph.edge(src, dst)): weight})["logits"]
                margin = logits.gather(1, batch.answers) - logits.gather(1, batch.wrong_answers)
                slope += sign * margin.sum().item() / (2 * step)
        assert parts.values[part, src, dst] == pytest.approx(slope / n_rows, rel=1e-5)


def expanded(circuit):
    """Nodes are a source at a part; edges as information can go."""
    graph, spans = circuit.graph, circuit.spans
    net = nx.DiGraph()
    for part, src, dst in np.argwhere(circuit.mask).tolist():
        edge, end = graph.edge(src, dst), (part, src, dst)
        net.add_edge((str(edge.src), part), end)
        if edge.dst == LOGITS:
            assert spans.read[part]
            net.add_edge(end, "out")
        elif edge.slot in ("k", "v"):
            for later in range(len(spans.names)):
                if spans.sees[later][part]:
                    net.add_edge(end, (str(edge.dst), later))
        else:
            net.add_edge(end, (str(edge.dst), part))
    net.add_edges_from(("in", ("input", part)) for part in range(len(spans.names)))
    net.add_node("out")
    return net


SPANS = Spans(
    ("persona", "question", "cue"),
    ((True, False, False), (True, True, False), (True, True, True)),
    (False, False, True),
)


@pytest.mark.parametrize("seed", range(12))
def test_dead_ends_are_edges_on_no_way_that_information_can_go(seed):
    graph = Graph(2, 2, parallel=seed % 2 == 1)
    random, valid = np.random.default_rng(seed), SPANS.valid(graph)
    circuit = SpanCircuit(graph, SPANS, valid & (random.random(valid.shape) < random.choice([0.05, 0.1, 0.2])))
    net = expanded(circuit)
    on_a_way = nx.descendants(net, "in") & nx.ancestors(net, "out")
    left = circuit.without_dead_ends()
    assert {tuple(place) for place in np.argwhere(left.mask).tolist()} == {one for one in on_a_way if len(one) == 3}
    assert left.circuit == left.circuit.without_dead_ends()


def test_information_goes_forward_through_keys_and_values_alone():
    graph = Graph(2, 1)

    def kept(*edges):
        mask = np.zeros_like(SPANS.valid(graph))
        for edge, name in edges:
            mask[(SPANS.names.index(name), *graph.index(edge))] = True
        return len(SpanCircuit(graph, SPANS, mask).without_dead_ends())

    assert kept(("input->a0.h0<v>", "persona"), ("a0.h0->logits", "cue")) == 2
    assert kept(("input->a0.h0<k>", "persona"), ("a0.h0->m1", "cue"), ("m1->logits", "cue")) == 3
    assert kept(("input->a0.h0<q>", "persona"), ("a0.h0->logits", "cue")) == 0
    assert kept(("input->m0", "persona"), ("m0->logits", "cue")) == 0
    assert kept(("input->a0.h0<v>", "cue"), ("a0.h0->a1.h0<v>", "persona"), ("a1.h0->logits", "cue")) == 0
    assert kept(("input->a0.h0<v>", "persona"), ("a0.h0->a1.h0<v>", "question"), ("a1.h0->logits", "cue")) == 3
    with pytest.raises(GraphError, match=r"no edge input->logits is at the part 'persona'"):
        kept(("input->logits", "persona"))


def test_parts_are_told_by_the_prompts(groups):
    spans = Spans.of(groups)
    assert spans.names == ("before", "contrast", "after", "last")
    assert spans.read == (False, False, False, True)
    assert np.array_equal(np.array(spans.sees), np.tril(np.ones((4, 4), dtype=bool)))
    other = SpanCircuit.everywhere(Circuit.full(Graph(3, 4)), spans).at(("last", "of another file"))
    assert other[0, 0, -1]
    assert not other[1].any()
