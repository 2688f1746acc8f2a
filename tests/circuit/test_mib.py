"""MIB's layout and its numbers, worked out by hand."""

import json
import re

import numpy as np
import pytest
from conftest import DATA
from typer.testing import CliRunner

from persona_circuits.circuit.attribution import eap, random_scores
from persona_circuits.circuit.discovery import Options, discover
from persona_circuits.circuit.errors import FileError, ModelError, OptionError
from persona_circuits.circuit.evaluation.curves import SHARES, CurveKinds, NodeScores, area, curve_report
from persona_circuits.circuit.forward import prepare
from persona_circuits.circuit.graph import Graph
from persona_circuits.circuit.peers import (
    read_submission,
    stream_width,
    weighted_edge_count,
    write_circuits,
    write_importances,
)
from persona_circuits.circuit.pruning import top_n
from persona_circuits.circuit.scores import Scores
from persona_circuits.circuit.statistics import PairSample
from persona_circuits.circuit.subgraph import Circuit
from persona_circuits.circuit.task import batches, encode, with_swap_rows
from persona_circuits.cli import app
from persona_circuits.metrics import METRICS

GRAPH = Graph(3, 4)
ONE = Graph(1, 1)
"""Eight edges: input to q, k, v of the head and to the MLP and the logits, the head to both, the MLP to the logits."""


def test_cpr_and_cmd_by_hand():
    f = [0.0, 0.0, 0.1, 0.2, 0.4, 0.6, 0.8, 0.9, 1.1, 1.0]
    # width x mean height, share by share; heights of CMD are 1 1 .9 .8 .6 .4 .2 .1 .1 0
    by_hand = 0.001 * 0 + 0.003 * 0.05 + 0.005 * 0.15 + 0.01 * 0.3 + 0.03 * 0.5
    by_hand += 0.05 * 0.7 + 0.1 * 0.85 + 0.3 * 1.0 + 0.5 * 1.05
    assert by_hand == pytest.approx(0.9639)
    assert area(SHARES, f) == pytest.approx(0.9639)
    assert area(SHARES, np.abs(1 - np.array(f))) == pytest.approx(0.1151)


def test_the_area_starts_at_the_smallest_share():
    """MIB adds nothing between 0 and .001: the whole model at every size has CPR .999 and CMD 0."""
    assert area(SHARES, np.ones(10)) == pytest.approx(0.999)
    assert area(SHARES, np.zeros(10)) == 0.0


def test_cuts_and_dead_ends_by_hand():
    """The eight edges by importance: the head's value edge is cut off from the logits at four edges, so it goes."""
    scores = Scores.of(
        ONE,
        {
            "m0->logits": -8.0,
            "input->m0": 7.0,
            "input->a0.h0<v>": -6.0,
            "input->a0.h0<q>": 5.0,
            "a0.h0->logits": -4.0,
            "a0.h0->m0": 3.0,
            "input->a0.h0<k>": -2.0,
            "input->logits": 1.0,
        },
    )
    left = {n: len(top_n(scores, n)) for n in range(1, 9)}
    assert left == {1: 0, 2: 2, 3: 2, 4: 2, 5: 5, 6: 6, 7: 7, 8: 8}
    # Signed, in MIB's sign (the opposite of ours): m0->logits 8, v 6, a0.h0->logits 4, k 2, input->logits -1, then
    # a0.h0->m0 -3, which lets m0 read at last.
    signed = {n: len(top_n(scores, n, signed=True)) for n in range(1, 9)}
    assert signed == {1: 0, 2: 0, 3: 2, 4: 3, 5: 4, 6: 6, 7: 7, 8: 8}


def test_edges_are_weighted_by_the_share_of_neurons():
    circuit = Circuit.of(ONE, ["input->m0", "m0->logits", "input->a0.h0<v>", "a0.h0->m0"])
    neurons = np.array([[True, True, True, True], [True, False, False, False], [True, True, False, False]])
    assert weighted_edge_count(circuit) == 4.0
    assert weighted_edge_count(circuit, neurons) == pytest.approx(2 * 1.0 + 0.25 + 0.5)


def demanded(path):
    """What MIB's loader asks of a file: it looks every name up in the graph it makes of ``cfg``."""
    content = json.loads(path.read_text())
    config = content["cfg"]
    graph = Graph(config["n_layers"], config["n_heads"], config["parallel_attn_mlp"])
    assert isinstance(config["d_model"], int)
    assert set(content["nodes"]) == {*map(str, graph.src_nodes), "logits"}
    assert set(content["edges"]) == {str(edge) for edge in graph.edges()}
    assert all(isinstance(info["in_graph"], bool) for part in ("nodes", "edges") for info in content[part].values())
    assert all(isinstance(info["score"], float) for info in content["edges"].values())
    return content


def test_importances_are_of_mib_s_sign_and_come_back(tmp_path):
    scores = random_scores(GRAPH, seed=1)
    write_importances(scores, tmp_path / "ioi_gpt2", d_model=16)
    content = demanded(tmp_path / "ioi_gpt2" / "importances.json")
    assert content["cfg"]["d_model"] == 16
    assert content["edges"]["input->m0"]["score"] == -scores["input->m0"]
    for path in (tmp_path / "ioi_gpt2", tmp_path / "ioi_gpt2" / "importances.json"):
        found = read_submission(path)
        assert isinstance(found, Scores)
        assert (found.values == scores.values).all()


def test_importances_of_nodes_come_back(tmp_path):
    nodes = NodeScores.of(random_scores(GRAPH, seed=1))
    write_importances(nodes, tmp_path / "x", d_model=16)
    content = demanded(tmp_path / "x" / "importances.json")
    assert "score" not in content["nodes"]["input"]
    assert content["nodes"]["m1"]["score"] == -nodes.values[10]
    found = read_submission(tmp_path / "x")
    assert isinstance(found, NodeScores)
    np.testing.assert_array_equal(found.values, nodes.values)


@pytest.mark.parametrize("signed", [False, True])
def test_nine_circuits_within_their_shares(tmp_path, signed):
    scores = random_scores(GRAPH, seed=1)
    write_circuits(scores, tmp_path / "x", d_model=16, signed=signed)
    files = sorted((tmp_path / "x").iterdir(), key=lambda path: float(path.stem.removeprefix("circuit-")))
    assert [float(path.stem.removeprefix("circuit-")) for path in files] == list(SHARES[:-1])
    for path, share in zip(files, SHARES, strict=False):
        edges = demanded(path)["edges"]
        kept = [name for name, info in edges.items() if info["in_graph"]]
        n = int(share * GRAPH.n_edges)
        assert len(kept) <= n
        assert Circuit.of(GRAPH, kept) == (top_n(scores, n, signed=signed) if n else Circuit.empty(GRAPH))
    assert len(read_submission(tmp_path / "x")) == 9


def test_a_submission_gives_the_curve_of_the_scores_it_was_made_of(tmp_path, tiny, tiny_task):
    metric = METRICS["persona-divergence"]
    groups = batches(with_swap_rows(encode(tiny_task, tiny)), 8, "cpu")
    items = [prepare(tiny, group) for group in groups]
    scores = eap(tiny, groups, metric)
    write_importances(scores, tmp_path / "a", d_model=16)
    write_circuits(scores, tmp_path / "b", d_model=16, signed=True)
    scorers = {"own": scores, "importances": read_submission(tmp_path / "a"), "nine": read_submission(tmp_path / "b")}
    found = curve_report(tiny, lambda: items, metric, scorers, CurveKinds(orders=("signed",), n_random=0), PairSample())
    own, importances, given = found.curves
    assert importances.cpr == own.cpr
    assert given.cpr == own.cpr
    assert [point.n_edges for point in given.points] == [point.n_edges for point in own.points]


@pytest.mark.parametrize("method", ["eap-ig-activations", "atp-star", "clean-corrupted", "ceap", "mean-of"])
def test_every_method_s_scores_go_out_and_come_back(method, tmp_path, tiny, tiny_task):
    own = {"of": ("eap", "gim")} if method == "mean-of" else {}
    options = Options(method=method, steps=1, prune="top-n", top_n=200, n_random=0, batch_size=8, **own)
    found = discover(tiny, tiny_task, options)
    found.write(tmp_path / "run")
    done = CliRunner().invoke(app, ["export", str(tmp_path / "run"), "--to", "mib", "--out", str(tmp_path / "x_tiny")])
    assert done.exit_code == 0, done.output
    content = json.loads((tmp_path / "x_tiny" / "importances.json").read_text())["edges"]
    strongest = max(found.scores.as_dict().items(), key=lambda item: abs(item[1]))
    assert content[strongest[0]]["score"] == pytest.approx(-strongest[1], rel=1e-6)
    np.testing.assert_allclose(read_submission(tmp_path / "x_tiny").values, found.scores.values, rtol=1e-6, atol=1e-9)


def test_a_submission_with_neurons_or_without_importances_is_refused(tmp_path):
    write_importances(random_scores(ONE, seed=0), tmp_path / "x", d_model=2)
    path = tmp_path / "x" / "importances.json"
    content = json.loads(path.read_text())

    def fails(says, change):
        broken = json.loads(json.dumps(content))
        change(broken)
        path.write_text(json.dumps(broken))
        with pytest.raises(FileError, match=says):
            read_submission(path)

    fails("tells neurons apart", lambda c: c["nodes"]["m0"].update(neurons=[True, False]))
    fails("no edge and no node an importance", lambda c: [e.update(score=0.0) for e in c["edges"].values()])
    fails("expected a number", lambda c: c["edges"]["input->m0"].update(score="high"))
    fails("in_graph: expected true or false", lambda c: c["edges"]["input->m0"].pop("in_graph"))
    fails("not a node name", lambda c: c["edges"].update({"in->m0": {"in_graph": True}}))
    fails("expected an object of objects", lambda c: c.update(nodes={"m0": True}))

    def word(c):
        for edge in c["edges"].values():
            edge["score"] = 0.0
        c["nodes"]["m0"]["score"] = "high"

    fails("score of a node is not a number", word)


def test_pickles_and_wrong_numbers_of_files_are_refused(tmp_path):
    with pytest.raises(FileError, match="no JSON is there"):
        read_submission(tmp_path)
    (tmp_path / "importances.pt").write_bytes(b"x")
    for path in (tmp_path, tmp_path / "importances.pt"):
        with pytest.raises(FileError, match="pickles are not read here"):
            read_submission(path)
    write_circuits(random_scores(GRAPH, seed=0), tmp_path / "x", d_model=2)
    (tmp_path / "x" / "circuit-0.5.json").unlink()
    with pytest.raises(FileError, match="holds 8 JSON files"):
        read_submission(tmp_path / "x")
    with pytest.raises(FileError, match="cannot be read"):
        read_submission(tmp_path / "nowhere.json")


def test_the_width_of_the_stream_is_the_configuration_s(tmp_path):
    assert (
        stream_width(str(DATA / "tiny-gpt2")) == json.loads((DATA / "tiny-gpt2" / "config.json").read_text())["n_embd"]
    )
    with pytest.raises(ModelError, match="run where that model is"):
        stream_width(str(tmp_path))


def call(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_export_and_curves_from_the_command_line(tmp_path):
    options = ["--model", DATA / "tiny-gpt2", "--pairs", DATA / "tiny_pairs.json"]
    run = tmp_path / "run"
    assert call("discover", *options, "--out", run, "--threshold", "0.05").exit_code == 0
    for kind in ("mib", "mib-nodes", "mib-circuits"):
        done = call("export", run, "--to", kind, "--out", tmp_path / kind)
        assert done.exit_code == 0, done.output
    scorers = ",".join(str(tmp_path / kind) for kind in ("mib", "mib-nodes", "mib-circuits"))
    done = call("curves", run, "--scorers", scorers, "--level", "both", "--json", "--out", tmp_path / "out")
    assert done.exit_code == 0, done.output
    curves = {(c["scorer"], c["level"], c["order"]): c for c in json.loads(done.stdout)["curves"]}
    for level in ("edge", "node"):
        own = curves["run run", level, "absolute"]
        assert curves["mib" if level == "edge" else "mib-nodes", level, "absolute"]["points"] == own["points"]
    points = curves["mib-circuits", "edge", "given"]["points"]
    own = curves["run run", "edge", "absolute"]["points"]
    assert [point["faithfulness"] for point in points] == [point["faithfulness"] for point in own]
    done = call("curves", run, "--scorers", tmp_path / "mib-nodes", "--out", tmp_path / "out")
    assert done.exit_code == 2
    assert "use --level node" in done.stderr


def test_export_needs_scores_and_a_model(tmp_path):
    path = tmp_path / "plain.json"
    content = {
        "cfg": {"n_layers": 1, "n_heads": 1},
        "nodes": {},
        "edges": {str(edge): {"in_graph": True, "score": 1.0} for edge in ONE.edges()},
    }
    path.write_text(json.dumps(content))
    done = call("export", path, "--to", "mib", "--out", tmp_path / "x")
    assert done.exit_code == 2
    assert re.search("does not say which model", done.stderr)
    assert not (tmp_path / "x").exists()


def test_given_circuits_too_large_for_their_share_are_named(tiny):
    with pytest.raises(OptionError, match=r"a circuit of 262 edges stands for the share 0\.001"):
        curve_report(
            tiny, lambda: [], METRICS["logit-diff"], {"x": (Circuit.full(tiny.graph),) * 9}, CurveKinds(), PairSample()
        )
