"""Circuits whose edges name a part of the prompt."""

import json
from collections import Counter
from dataclasses import replace

import networkx as nx
import numpy as np
import pytest
import torch
from conftest import DATA
from tests_reference import Reference
from typer.testing import CliRunner

from persona_circuits.circuit.assessment import evaluate_circuit
from persona_circuits.circuit.attribution import Scoring, eap, score_parts
from persona_circuits.circuit.discovery import Options, discover
from persona_circuits.circuit.errors import GraphError, OptionError
from persona_circuits.circuit.evaluation import evaluate
from persona_circuits.circuit.evaluation.at_parts import random_at_parts
from persona_circuits.circuit.evaluation.curves import smallest
from persona_circuits.circuit.evaluation.span_files import edges_at_parts
from persona_circuits.circuit.forward import make_ablation, measure, patched_logits, prepare
from persona_circuits.circuit.graph import LOGITS, Graph
from persona_circuits.circuit.io import faults_of, read_circuit
from persona_circuits.circuit.page.run import run_data
from persona_circuits.circuit.statistics import PairSample
from persona_circuits.circuit.subgraph import Circuit, SpanCircuit, Spans, SpanScores
from persona_circuits.circuit.task import PromptPair, Task, batches, encode, with_swap_rows
from persona_circuits.cli import app
from persona_circuits.metrics import METRICS
from persona_circuits.models.planted import planted_models

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
    parts = score_parts(tiny64, groups, DIVERGENCE, Scoring("eap"), by="span")
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


def scores_of(model, groups):
    parts = score_parts(model, groups, DIVERGENCE, Scoring("eap"), by="span")
    spans = Spans.of(groups)
    assert spans.names == parts.names
    return SpanScores(model.graph, spans, parts.values)


def test_the_largest_edges_at_parts_are_kept(tiny64, groups):
    scores = scores_of(tiny64, groups)
    sizes = sorted(np.abs(scores.values[scores.spans.valid(tiny64.graph)]), reverse=True)
    for n in (1, 40, scores.n_edges):
        mask = np.zeros(scores.values.shape, dtype=bool)
        mask[(np.abs(scores.values) >= sizes[n - 1]) & scores.spans.valid(tiny64.graph)] = True
        wanted = SpanCircuit(tiny64.graph, scores.spans, mask).without_dead_ends()
        assert scores.threshold(sizes[n - 1]) == wanted
        if n == 40:
            assert scores.top_n(n) == wanted
            assert 0 < len(wanted) <= 40


def test_the_smallest_that_reaches_a_faithfulness_is_of_edges_at_parts(tiny64, groups):
    scores = scores_of(tiny64, groups)
    items = [prepare(tiny64, batch) for batch in groups]
    found = smallest(tiny64, lambda: items, DIVERGENCE, scores, 0.7)
    assert found.circuit == scores.top_n(found.n)
    nothing, everything = (
        replace(found.circuit, mask=mask) for mask in (scores.values > 1e9, found.circuit.spans.valid(tiny64.graph))
    )
    empty, full, own = measure(tiny64, items, [nothing, everything, found.circuit], DIVERGENCE).mean(1)
    assert found.faithfulness == pytest.approx((own - empty) / (full - empty))
    assert found.faithfulness >= 0.7
    assert len(found.circuit) < scores.n_edges // 2


def test_faithfulness_stands_beside_random_circuits_of_the_size_and_the_same_edges_everywhere(tiny64, groups):
    circuit = scores_of(tiny64, groups).top_n(60)
    items = [prepare(tiny64, batch) for batch in groups]
    report = evaluate(tiny64, lambda: items, DIVERGENCE, circuit, PairSample(), n_random=3)
    graph, valid = tiny64.graph, circuit.spans.valid(tiny64.graph)
    masks = [Circuit.full(graph).mask, Circuit.empty(graph).mask, circuit, circuit.circuit.mask]
    full, empty, own, wide = measure(tiny64, items, masks, DIVERGENCE).mean(1)
    assert report.circuit.ratio_of_means == pytest.approx((own - empty) / (full - empty))
    assert report.everywhere.ratio_of_means == pytest.approx((wide - empty) / (full - empty))
    assert report.complement.n_edges == valid.sum() - len(circuit)
    assert report.matching is None
    assert len(report.random) == 3
    random = random_at_parts(circuit, 5, seed=1)
    assert len({circuit, *random}) == 6
    assert random == random_at_parts(circuit, 5, seed=1)
    for other in random:
        assert other == other.without_dead_ends()
        for part, own in zip(other.mask, circuit.mask, strict=True):
            layers = [Counter(layers_and_kinds(one, graph)) for one in (part, own)]
            assert layers[0] == layers[1]
    assert random_at_parts(replace(circuit, mask=valid), 5, seed=1) == []


def layers_and_kinds(mask, graph):
    """Of every edge the layers and kinds at both ends."""
    for src, dst in np.argwhere(mask).tolist():
        edge = graph.edge(src, dst)
        yield edge.src.kind, edge.src.layer, edge.dst.kind, edge.dst.layer, edge.slot


WIRED = {
    "copy": {"input->a1.h1<v>": ["contrast"], "a1.h1->logits": ["last"]},
    "two-hop": {"input->m0": ["contrast"], "m0->a1.h3<v>": ["contrast"], "a1.h3->logits": ["last"]},
    "keys": {
        "input->m0": ["contrast"],
        "m0->a1.h0<k>": ["contrast"],
        "input->a0.h1<v>": ["contrast"],
        "a0.h1->a1.h0<v>": ["contrast"],
        "a1.h0->logits": ["last"],
    },
}


@pytest.mark.parametrize("name", WIRED)
def test_a_search_names_the_places_of_a_wired_circuit(name, tmp_path):
    (truth,) = (one for one in planted_models() if one.name == name)
    options = Options(resolution="span", threshold=0.01, ig_rule="midpoint", steps=10, n_random=2)
    found = discover(truth.model(), truth.task, options)
    kept = found.at_parts
    assert {edge: kept.spans_of(*kept.graph.index(edge)) for edge in kept.circuit.edge_names()} == WIRED[name]
    assert found.reports[-1].circuit.ratio_of_means == pytest.approx(1, abs=1e-3)
    assert found.reports[-1].everywhere.n_edges > len(kept)
    colours = {part: edges.edge_names() for part, edges in edges_at_parts(kept).items()}
    assert colours == {
        part: [edge for edge in kept.circuit.edge_names() if WIRED[name][edge] == [part]] for part in colours
    }
    assert sum(map(len, colours.values())) == len(kept)
    found.write(tmp_path / "run")
    stored = read_circuit(tmp_path / "run")
    assert stored.at_parts == kept
    assert not faults_of(tmp_path / "run", kept.graph)
    done = CliRunner().invoke(app, ["draw", str(tmp_path / "run")])
    assert done.exit_code == 0, done.output
    for file in ("graph.svg", "drawn.svg"):
        assert f"contrast ({len(kept) - 1})" in (tmp_path / "run" / file).read_text()
    page = run_data(tmp_path / "run")
    assert {item["edge"]: [page["spans"][item["span"]]] for item in page["edges"] if item["kept"]} == WIRED[name]
    again = evaluate_circuit(truth.model(), stored, truth.task, tested=False)
    assert again.report.circuit == found.reports[-1].circuit
    with pytest.raises(OptionError, match="give --only-faithfulness"):
        evaluate_circuit(truth.model(), stored, truth.task)


def test_a_file_that_contradicts_its_parts_is_refused(tmp_path):
    (truth,) = (one for one in planted_models() if one.name == "copy")
    found = discover(truth.model(), truth.task, Options(resolution="span", prune="top-n", top_n=2, n_random=0))
    good = found.record

    def broken(change):
        record = json.loads(json.dumps(good))
        change(record)
        (tmp_path / "circuit.json").write_text(json.dumps(record))
        return faults_of(tmp_path / "circuit.json")

    assert broken(lambda record: None) == []
    assert broken(lambda record: record.pop("spans")) == ["spans: missing, and input->a1.h1<v> is kept at some"]
    assert broken(lambda record: record["spans"].update(edges=7)) == ["spans.edges: 7, expected 2"]
    assert broken(lambda record: record["edges"][0].pop("spans")) == ["edges[0].spans: missing"]
    assert broken(lambda record: record["edges"][0].update(spans={"moon": 1.0})) == [
        "edges[0].spans: 'moon' is not one of spans.names"
    ]
    assert (
        "no edge a1.h1->logits is at the part 'before'"
        in broken(lambda record: record["edges"][1].update(spans={"before": 1.0}))[0]
    )
    assert broken(lambda record: record["spans"].update(read=["moon"])) == [
        "spans: sees and read must be of the parts that names lists"
    ]


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"prune": "acdc"}, "--prune acdc decides of edges at all parts"),
        ({"prune": "learn", "top_n": 9}, "--prune learn decides of edges at all parts"),
        ({"method": "exact"}, "--resolution span needs scores that are sums over positions"),
        ({"finish": 0.01}, "--finish is of edges at all parts"),
        ({"certify": 1}, "--certify is of edges at all parts"),
        ({"checks": 3}, "--checks is of edges at all parts"),
        ({"sweep": True}, "--sweep is of edges at all parts"),
        ({"activations": "bfloat16"}, "--activations bfloat16"),
        ({"resolution": "spans"}, "spans"),
    ],
)
def test_what_cannot_go_by_part_is_refused(more, said):
    with pytest.raises(OptionError, match=said):
        Options(**{"resolution": "span", **more}).checked()


def test_so_many_edges_at_parts_must_be_there(tiny, tiny_task):
    with pytest.raises(
        OptionError, match=r"--top-n must be from 1 to 1,000, the edges at parts of the prompt, got 9999"
    ):
        discover(tiny, tiny_task, Options(resolution="span", prune="top-n", top_n=9999))
