import json

import numpy as np
import pytest
from conftest import ROOT

from persona_circuits.circuit.errors import FileError
from persona_circuits.circuit.graph import Graph
from persona_circuits.circuit.io import (
    circuit_record,
    faults_of,
    read_circuit,
    read_scores,
    schema,
    write_circuit,
    write_eap_ig,
    write_graphml,
    write_nodes,
    write_scores,
)
from persona_circuits.circuit.scores import Scores
from persona_circuits.circuit.storage import atomic, check_output_folder, replace_folder, write_json
from persona_circuits.circuit.subgraph import Circuit, from_networkx

GRAPH = Graph(2, 2)
CIRCUIT = Circuit.of(GRAPH, ["input->a0.h1<v>", "a0.h1->m1", "m1->logits", "input->m1"])
SCORES = Scores(GRAPH, np.random.default_rng(0).standard_normal(GRAPH.valid.shape))
ABOUT = {
    "model": {
        "name": "somewhere/model", "revision": None, "dtype": "float32", "fingerprint": "0" * 64,
        "n_layers": 2, "n_heads": 2, "parallel": False,
    },
    "task": {
        "source": "pairs.jsonl", "sha256": "1" * 64, "split": "train", "n_pairs": 3, "metric": "logit-diff",
        "unit": "logits", "swap_rows": False, "align": "equal", "divergence": 1.5,
    },
    "method": {
        "scores": "eap", "steps": None, "ig_rule": None, "prune": "threshold", "threshold": 0.1,
        "threshold_on": "score", "tau": 0.1, "top_n": None,
    },
    "ablation": "corrupt",
    "seed": 0,
    "faithfulness": [],
    "versions": {"torch": "2"},
}  # fmt: skip


@pytest.fixture
def record():
    return circuit_record(CIRCUIT, SCORES, ABOUT)


def test_circuit_file_round_trip(tmp_path, record):
    write_circuit(record, tmp_path / "circuit.json")
    for place in (tmp_path / "circuit.json", tmp_path):
        stored = read_circuit(place)
        assert stored.circuit == CIRCUIT
        assert stored.model_name() == "somewhere/model"
        assert all(stored.scores[edge] == SCORES[edge] for edge in CIRCUIT.edges())
    assert faults_of(tmp_path / "circuit.json") == []


def test_an_empty_circuit_is_a_valid_file(tmp_path):
    write_circuit(circuit_record(Circuit.empty(GRAPH), None, ABOUT), tmp_path / "circuit.json")
    assert len(read_circuit(tmp_path).circuit) == 0


def test_nodes_file_is_exactly_the_list(tmp_path):
    write_nodes(CIRCUIT, tmp_path / "real_circuits_1.json")
    assert json.loads((tmp_path / "real_circuits_1.json").read_text()) == {"nodes": ["input", "a0.h1", "m1"]}
    assert faults_of(tmp_path / "real_circuits_1.json", GRAPH) == []
    with pytest.raises(FileError, match="lists nodes only"):
        read_circuit(tmp_path / "real_circuits_1.json")


@pytest.mark.parametrize(
    ("nodes", "says"),
    [
        ([], "expected input first, got an empty list"),
        (["a0.h0", "input"], "expected input first, got a0.h0"),
        (["input", "m0", "a0.h0"], "not in layer order"),
        (["input", "a0.h0", "a0.h0"], "a0.h0 more than once"),
        (["input", "a0.h7"], "a0.h7 is not in this model"),
        (["input", "A0.0"], "not a node name"),
        (["input", "logits"], "logits is not a source"),
        ("input", "expected a list"),
        (["input", 3], "expected a list of node names"),
    ],
)
def test_node_lists_with_faults(tmp_path, nodes, says):
    write_json({"nodes": nodes}, tmp_path / "x.json")
    assert any(says in fault for fault in faults_of(tmp_path / "x.json", GRAPH))


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda r: r.pop("seed"), "file: 'seed' is a required property"),
        (lambda r: r.update(extra=1), "file: Additional properties"),
        (lambda r: r["model"].update(n_layers=0), "model.n_layers: 0 is less than the minimum"),
        (lambda r: r["edges"][1].update(edge="a0.h1->a1.h0"), "edges[1].edge"),
        (lambda r: r["edges"][1].update(edge="m1->m0"), "edges[1].edge: edge m1->m0: m1 does not come before m0"),
        (lambda r: r["edges"][1].update(edge="m5->logits"), "node m5 is not in this model"),
        (lambda r: r["edges"].append(r["edges"][0]), "edges: 1 named more than once"),
        (lambda r: r["edges"].pop(), "nodes: not the ends of the edges"),
        (lambda r: r["counts"].update(edges=9), "counts.edges: 9, expected 4"),
        (lambda r: r["edges"][0].update(score="big"), "edges[0].score"),
    ],
)
def test_circuit_files_with_faults_name_the_place(tmp_path, record, spoil, says):
    record = json.loads(json.dumps(record))
    spoil(record)
    write_json(record, tmp_path / "circuit.json")
    faults = faults_of(tmp_path / "circuit.json")
    assert any(says in fault for fault in faults), faults
    with pytest.raises(FileError, match=r"fault\(s\)"):
        read_circuit(tmp_path / "circuit.json")


def test_files_that_are_no_json(tmp_path):
    (tmp_path / "broken.json").write_text('{\n "nodes": [,]}')
    assert "not JSON: Expecting value at line 2" in faults_of(tmp_path / "broken.json")[0]
    assert "cannot be read (No such file" in faults_of(tmp_path / "none.json")[0]


def test_scores_round_trip_and_repeat_byte_for_byte(tmp_path):
    for name in ("a", "b"):
        write_scores(SCORES, tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    back = read_scores(tmp_path / "a")
    assert back.graph == GRAPH
    assert (back.values == SCORES.values).all()
    (tmp_path / "c").write_bytes(b"xx")
    with pytest.raises(FileError, match="cannot be read"):
        read_scores(tmp_path / "c")


def test_eap_igs_json_out_and_in(tmp_path):
    write_eap_ig(CIRCUIT, SCORES, tmp_path / "graph.json", d_model=16)
    content = json.loads((tmp_path / "graph.json").read_text())
    assert content["cfg"] == {"n_layers": 2, "n_heads": 2, "parallel_attn_mlp": False, "d_model": 16}
    assert content["nodes"]["a0.h1"] == {"in_graph": True}
    assert content["nodes"]["a0.h0"] == {"in_graph": False}
    assert len(content["edges"]) == GRAPH.n_edges
    assert content["edges"]["a0.h1->m1"] == {"score": SCORES["a0.h1->m1"], "in_graph": True}
    stored = read_circuit(tmp_path / "graph.json")
    assert stored.circuit == CIRCUIT
    assert (stored.scores.values == SCORES.values).all()
    assert stored.record is None


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ({"cfg": 1, "nodes": {}, "edges": {}}, "cfg: expected an object"),
        ({"cfg": {"n_layers": 2, "n_heads": 2}, "nodes": {}, "edges": []}, "edges: expected an object"),
        ({"cfg": {"n_layers": 2, "n_heads": 2}, "nodes": {}, "edges": {"m0->m0": {"in_graph": True}}}, "m0->m0"),
        ({"cfg": {"n_layers": 2, "n_heads": 2}, "nodes": {}, "edges": {"m0->m1": {"score": 1.0}}}, "in_graph"),
        ({"cfg": {"n_layers": 0, "n_heads": 2}, "nodes": {}, "edges": {}}, "at least one layer"),
    ],
)
def test_eap_igs_json_with_faults(tmp_path, content, says):
    write_json(content, tmp_path / "graph.json")
    assert any(says in fault for fault in faults_of(tmp_path / "graph.json"))


def test_graphml_reads_back(tmp_path):
    import networkx as nx

    write_graphml(CIRCUIT, SCORES, tmp_path / "c.graphml")
    drawn = nx.read_graphml(tmp_path / "c.graphml")
    assert drawn.edges["a0.h1", "m1"]["score"] == pytest.approx(SCORES["a0.h1->m1"])
    assert from_networkx(drawn) == CIRCUIT


def test_writes_are_atomic(tmp_path):
    path = tmp_path / "file.json"
    path.write_text("before")

    def spoil():
        with atomic(path) as temporary:
            temporary.write_text("half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        spoil()
    with pytest.raises(ValueError, match="Out of range"):
        write_json({"x": float("nan")}, path)
    assert path.read_text() == "before"
    assert [p.name for p in tmp_path.iterdir()] == ["file.json"]
    with pytest.raises(FileError, match="cannot write"):
        write_json({}, tmp_path / "none" / "file.json")


def test_a_folder_changes_as_a_whole_or_not_at_all(tmp_path):
    out = tmp_path / "run"

    def fill(fail):
        with replace_folder(out) as staging:
            (staging / "a").write_text("new")
            if fail:
                raise RuntimeError

    with pytest.raises(RuntimeError):
        fill(True)
    assert not out.exists()
    fill(False)
    (out / "mine").write_text("kept")
    fill(False)
    assert sorted(p.name for p in out.iterdir()) == ["a", "mine"]
    assert [p.name for p in tmp_path.iterdir()] == ["run"]


def test_output_folders_are_checked_before_work(tmp_path):
    check_output_folder(tmp_path / "new" / "deep")
    assert not (tmp_path / "new" / "deep").exists()
    (tmp_path / "file").write_text("")
    with pytest.raises(FileError, match="cannot be written"):
        check_output_folder(tmp_path / "file")
    with pytest.raises(FileError, match="choose a place"):
        check_output_folder("/proc/nothing/here")


def test_the_published_schema_is_the_one_in_use():
    assert json.loads((ROOT / "docs" / "circuit.schema.json").read_text()) == schema()
