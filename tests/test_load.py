"""What makes large files cheap changes nothing of what comes out: each is held against the plain way to do it."""

import json
import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
from conftest import DATA
from transformers import AutoTokenizer
from typer.testing import CliRunner

from persona_circuits.circuit.errors import GraphError, TaskError
from persona_circuits.circuit.graph import Graph, parse_edge
from persona_circuits.circuit.io import circuit_record, write_eap_ig
from persona_circuits.circuit.scores import Scores
from persona_circuits.circuit.subgraph import Circuit
from persona_circuits.circuit.task import Task, encode, load_task
from persona_circuits.circuit.task import encoding as task_module
from persona_circuits.cli import app

GRAPHS = [Graph(1, 1), Graph(3, 2), Graph(2, 3, parallel=True)]


class Counting:
    """A tokenizer that counts how often it is called, and with how many texts."""

    def __init__(self, behind):
        self.behind, self.calls = behind, 0

    def __getattr__(self, name):
        return getattr(self.behind, name)

    def __call__(self, *arguments, **options):
        self.calls += 1
        return self.behind(*arguments, **options)


class Reader:
    name, n_context = "reader", 64

    def __init__(self, **options):
        self.tokenizer = Counting(AutoTokenizer.from_pretrained(DATA / "tiny-gpt2", **options))


def pairs(n):
    """Pairs of the tiny file again and again; every third prompt with the tokenizer's own BOS before it."""
    few = load_task(DATA / "tiny_pairs.json").pairs
    bos = Reader().tokenizer.bos_token
    made = []
    for i in range(n):
        pair = few[i % len(few)]
        front = f"{bos} " if i % 3 == 0 else ""
        texts = {"clean": front + pair.clean, "corrupt": front + pair.corrupt, "neutral": pair.clean if i % 2 else ""}
        made.append(replace(pair, id=str(i), line=i + 1, **texts))
    return Task(tuple(made), "many", "0" * 64)


def outcome(task, reader, align):
    try:
        return encode(task, reader, align=align)
    except TaskError as error:
        return str(error)


@pytest.mark.parametrize("align", ["equal", "right"])
def test_pairs_read_ahead_are_those_that_are_read_one_by_one(align, monkeypatch):
    monkeypatch.setattr(task_module, "AT_ONCE", 7)
    for task in (pairs(50), Task(tuple(p for p in pairs(50).pairs if not p.neutral), "some", "0" * 64)):
        for reader in ({}, {"add_prefix_space": True}):
            slow, fast = Reader(**reader), Reader(**reader)
            with monkeypatch.context() as patch:
                patch.setattr(task_module, "many_token_ids", lambda *_: {})
                expected = outcome(task, slow, align)
            assert outcome(task, fast, align) == expected
            assert fast.tokenizer.calls * 3 < slow.tokenizer.calls


def test_the_tokenizer_is_called_twice_for_thousands_of_pairs():
    task = load_task(DATA / "tiny_pairs.json")
    many = Task(tuple(replace(task.pairs[i % 8], id=str(i)) for i in range(4000)), "many", "0" * 64)
    reader = Reader()
    rows = encode(many, reader)
    assert reader.tokenizer.calls <= 2 * 2
    alone = encode(task, Reader())
    assert [replace(row, index=0, id="") for row in rows[8:16]] == [replace(row, index=0, id="") for row in alone]


@pytest.mark.parametrize("graph", GRAPHS, ids=str)
def test_names_are_looked_up_as_they_are_parsed(graph):
    edges = list(graph.edges())
    assert [graph.index(str(edge)) for edge in edges] == [graph.index(edge) for edge in edges]
    circuit = Circuit.full(graph)
    assert circuit.edge_names() == [str(edge) for edge in edges]
    ends = {end for edge in edges for end in (edge.src, edge.dst)}
    assert set(circuit.nodes()) == ends
    reads = [[i for i, (node, _) in enumerate(graph.dst_slots) if node == source] for source in graph.src_nodes]
    assert [list(own) for own in graph.slots_by_source] == reads


@pytest.mark.parametrize(
    "name",
    ["", "->", "input", "input->", "input->input", "logits->m0", "m0->a0.h0<q>", "a0.h0->m00", "input->a0.h0",
     "input->m0<q>", "input->a9.h0<q>", "a0.h9->logits", "input->a0.h0<x>", "input->->m0", " input->m0", "input->m0\n"],
)  # fmt: skip
def test_what_is_no_edge_is_named_as_before(name):
    graph = GRAPHS[1]
    with pytest.raises(GraphError) as caught:
        graph.index(name)
    with pytest.raises(GraphError) as expected:
        graph.index(parse_edge(name))
    assert str(caught.value) == str(expected.value)


def random_circuit(graph, share=0.3):
    rng = np.random.default_rng(0)
    scores = Scores(graph, rng.standard_normal(graph.valid.shape) * 10.0 ** rng.integers(-9, 9, graph.valid.shape))
    return Circuit(graph, graph.valid & (rng.random(graph.valid.shape) < share)), scores


@pytest.mark.parametrize("graph", GRAPHS, ids=str)
@pytest.mark.parametrize("scored", [True, False])
def test_files_have_the_bytes_of_the_plain_way(graph, scored, tmp_path):
    circuit, scores = random_circuit(graph)
    scores = scores if scored else None
    write_eap_ig(circuit, scores, tmp_path / "x.json", d_model=7)
    config = {"n_layers": graph.n_layers, "n_heads": graph.n_heads, "parallel_attn_mlp": graph.parallel, "d_model": 7}
    ends = {end for edge in circuit.edges() for end in (edge.src, edge.dst)}
    nodes = [*graph.src_nodes, parse_edge("input->logits").dst]
    edges = {
        str(edge): {"score": scores[edge] if scores else 0.0, "in_graph": edge in circuit.edges()}
        for edge in graph.edges()
    }
    content = {"cfg": config, "nodes": {str(node): {"in_graph": node in ends} for node in nodes}, "edges": edges}
    assert (tmp_path / "x.json").read_text() == json.dumps(content) + "\n"
    record = circuit_record(circuit, scores, {})
    assert record["nodes"] == [str(node) for node in nodes if node in ends]
    assert record["edges"] == [{"edge": str(e), "score": scores[e] if scores else None} for e in circuit.edges()]
    if scores is not None:
        assert scores.as_dict() == {str(edge): scores[edge] for edge in graph.edges()}


def test_an_export_holds_a_slot_of_the_graph_at_a_time(tmp_path):
    graph = Graph(16, 16)
    circuit, scores = random_circuit(graph)
    circuit.nodes(), graph.src_names, graph.slot_names, graph.valid
    tracemalloc.start()
    write_eap_ig(circuit, scores, tmp_path / "x.json")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < (tmp_path / "x.json").stat().st_size / 10


def test_a_record_says_what_moves_its_last_digits(tmp_path):
    records = []
    for batch_size in (1, 5):
        where = ["--model", DATA / "tiny-gpt2", "--pairs", DATA / "tiny_pairs.json", "--batch-size", batch_size]
        done = CliRunner().invoke(
            app, ["discover", "--scores", "new", *map(str, where), "--out", str(tmp_path / str(batch_size))]
        )
        assert done.exit_code == 0, done.output
        records.append(json.loads((tmp_path / str(batch_size) / "circuit.json").read_text()))
    import torch

    said = [{"threads": torch.get_num_threads(), "batch_size": n, "processes": 1} for n in (1, 5)]
    assert [record["computation"] for record in records] == said
    first, second = ({item["edge"]: item["score"] for item in record["edges"]} for record in records)
    assert first.keys() == second.keys()
    assert [*first.values()] == pytest.approx([*second.values()], abs=1e-5)
    old = {key: value for key, value in records[0].items() if key != "computation"}
    (tmp_path / "old.json").write_text(json.dumps(old))
    assert CliRunner().invoke(app, ["validate", str(tmp_path / "old.json")]).exit_code == 0
