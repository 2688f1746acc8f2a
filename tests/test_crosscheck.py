"""The second opinion: auto-circuit's files and names, what is refused, and the comparison itself.

auto-circuit's own numbers are frozen (``make peers`` makes them again); where its environment is
there, the last test asks it in person.
"""

import csv
import json
import sys

import numpy as np
import pytest
import torch
from conftest import CRAFTGPT, DATA
from test_cli import call, fails

from persona_circuits.circuit.attribution import eap_ig
from persona_circuits.circuit.errors import (
    FileError,
    GraphError,
    ModelError,
    OptionError,
    PersonaCircuitsError,
    TaskError,
)
from persona_circuits.circuit.graph import Graph
from persona_circuits.circuit.io import read_circuit, read_scores
from persona_circuits.circuit.peers import (
    AutoCircuit,
    CrosscheckOptions,
    agreement,
    autocircuit_name,
    autocircuit_rows,
    check_model,
    crosscheck,
    from_prune_scores,
    peers_python,
    prune_scores,
    read_autocircuit_scores,
    write_autocircuit_pairs,
    write_autocircuit_scores,
)
from persona_circuits.circuit.scores import Scores
from persona_circuits.circuit.subgraph import Circuit
from persona_circuits.circuit.task import batches, encode, load_task
from persona_circuits.metrics import METRICS

TINY, PAIRS = DATA / "tiny-gpt2", DATA / "tiny_pairs.json"
LOGIT_DIFF = METRICS["logit-diff"]


def numbered(graph):
    """Scores that are all different, so that a swapped place shows."""
    values = np.zeros(graph.valid.shape)
    values[graph.valid] = 1 + np.arange(graph.n_edges)
    return Scores(graph, values)


# --- names and files ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ("a0.h1->a2.h3<q>", "A0.1->A2.3.Q"),
        ("input->m0", "Resid Start->MLP 0"),
        ("m11->logits", "MLP 11->Resid End"),
        ("a3.h0->m3", "A3.0->MLP 3"),
        ("m0->a1.h10<v>", "MLP 0->A1.10.V"),
    ],
)
def test_names(ours, theirs):
    edge = next(edge for edge in Graph(12, 12).edges() if str(edge) == ours)
    assert autocircuit_name(edge) == theirs


def test_every_edge_of_a_graph_has_a_name_of_its_own():
    graph = Graph(3, 4)
    names = [autocircuit_name(edge) for edge in graph.edges()]
    assert len(set(names)) == graph.n_edges


def test_modules_hold_the_scores_that_auto_circuit_documents():
    """By hand: sources are the input, a0.h0, a0.h1, m0, a1.h0, a1.h1, m1; the sign is turned."""
    graph = Graph(2, 2)
    scores = numbered(graph)
    found = prune_scores(scores)
    shapes = {name: values.shape for name, values in found.items()}
    assert shapes == {
        **{f"blocks.0.hook_{slot}_input": (2, 1) for slot in "qkv"},
        "blocks.0.hook_mlp_in": (3,),
        **{f"blocks.1.hook_{slot}_input": (2, 4) for slot in "qkv"},
        "blocks.1.hook_mlp_in": (6,),
        "blocks.1.hook_resid_post": (7,),
    }
    for module, place, edge in (
        ("blocks.1.hook_k_input", (1, 3), "m0->a1.h1<k>"),
        ("blocks.0.hook_v_input", (1, 0), "input->a0.h1<v>"),
        ("blocks.1.hook_q_input", (0, 2), "a0.h1->a1.h0<q>"),
        ("blocks.1.hook_mlp_in", (4,), "a1.h0->m1"),
        ("blocks.1.hook_resid_post", (6,), "m1->logits"),
    ):
        assert found[module][place] == -scores[edge], edge


def test_scores_come_back_from_a_file(tmp_path):
    scores = numbered(Graph(3, 2))
    write_autocircuit_scores(scores, tmp_path / "s.safetensors")
    again = read_autocircuit_scores(tmp_path / "s.safetensors")
    assert again.graph == scores.graph
    np.testing.assert_array_equal(again.values, scores.values)
    halved = read_autocircuit_scores(tmp_path / "s.safetensors", n_batches=2)
    np.testing.assert_array_equal(halved.values, scores.values / 2)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda found: found.pop("blocks.0.hook_mlp_in"), "blocks.0.hook_mlp_in is missing"),
        (lambda found: found.pop("blocks.0.hook_q_input"), r"called blocks\.0\.hook_q_input"),
        (lambda found: found.update({"blocks.0.hook_attn_in": np.zeros(2)}), "hook_attn_in is not a module"),
        (lambda found: found.update({"blocks.1.hook_mlp_in": np.zeros(7)}), r"shape \[7\], expected \[6\]"),
        (lambda found: found["blocks.1.hook_mlp_in"].fill(np.inf), "inf; scores must be finite"),
    ],
)
def test_scores_that_are_not_auto_circuits_are_refused(change, says):
    found = prune_scores(numbered(Graph(2, 2)))
    change(found)
    with pytest.raises(GraphError, match=says):
        from_prune_scores(found)


def test_parallel_models_have_no_mapping():
    with pytest.raises(GraphError, match="parallel"):
        prune_scores(numbered(Graph(2, 2, parallel=True)))


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("s.pkl", b"", r"pickle.*convert_scores\.py s\.pkl s\.safetensors"),
        ("s.safetensors", b"nonsense", "cannot be read"),
        ("none.safetensors", None, "cannot be read"),
    ],
)
def test_score_files_that_cannot_be_read(tmp_path, name, content, says):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(FileError, match=says):
        read_autocircuit_scores(tmp_path / name)


def test_pairs_are_written_as_they_are_read(tmp_path, tiny_task):
    write_autocircuit_pairs(tiny_task, tmp_path / "pairs.json")
    again = load_task(tmp_path / "pairs.json")
    assert json.loads((tmp_path / "pairs.json").read_text()) == json.loads(PAIRS.read_text())
    assert again.pairs == tiny_task.pairs


# --- agreement ---------------------------------------------------------------------------------


def test_scores_agree_with_themselves_and_say_where_they_do_not():
    graph = Graph(3, 2)
    scores = numbered(graph)
    same = agreement("x", scores, scores)
    assert (same.pearson, same.spearman) == (pytest.approx(1.0), pytest.approx(1.0))
    assert (same.largest_difference, same.same_sign, same.top) == (0.0, 1.0, min(100, graph.n_edges))
    values = scores.values.copy()
    values[graph.index("m0->a1.h0<k>")] += 0.5
    other = agreement("x", scores, Scores(graph, values))
    assert other.at == "m0->a1.h0<k>"
    assert other.largest_difference == pytest.approx(0.5)
    assert other.relative == pytest.approx(0.5 / graph.n_edges)


def test_a_flipped_sign_is_seen():
    scores = numbered(Graph(2, 2))
    turned = agreement("x", scores, Scores(scores.graph, -scores.values))
    assert turned.pearson == pytest.approx(-1.0)
    assert turned.same_sign == 0.0


def test_constant_scores_have_no_correlation():
    graph = Graph(2, 2)
    nothing = agreement("x", Scores(graph, np.zeros(graph.valid.shape)), numbered(graph))
    assert nothing.pearson is None
    assert nothing.spearman is None
    with pytest.raises(OptionError, match="different graphs"):
        agreement("x", numbered(graph), numbered(Graph(3, 2)))


def test_eap_ig_equals_the_one_put_together_from_auto_circuits_parts(tiny64, tiny_task, frozen):
    """Its own model, hooks and mask gradient at the same points; frozen at twelve decimals."""
    peer = frozen("autocircuit_tiny_eap_ig")
    theirs = Scores.of(tiny64.graph, peer["scores"])
    groups = batches(encode(tiny_task, tiny64), 4, tiny64.device)
    ours = eap_ig(tiny64, groups, LOGIT_DIFF, steps=len(peer["shares"]))
    assert agreement("EAP-IG", ours, theirs).relative < 1e-9
    other = eap_ig(tiny64, groups, LOGIT_DIFF, steps=len(peer["shares"]), rule="authors")
    assert agreement("EAP-IG", other, theirs).relative > 1e-3


# --- what is refused ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"model_type": "llama", "num_attention_heads": 8, "num_key_value_heads": 2}, "2 key-value heads for 8 query"),
        ({"model_type": "llama", "num_attention_heads": 8, "num_key_value_heads": 8}, "its type is llama"),
        ({"model_type": "gpt_neox"}, "its type is gpt_neox"),
        ({"model_type": "gpt2", "scale_attn_by_inverse_layer_idx": True}, "scales attention"),
    ],
)
def test_models_that_auto_circuit_cannot_hold(tmp_path, config, says):
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match=says):
        check_model(tmp_path)


def test_a_hub_name_is_no_folder():
    with pytest.raises(ModelError, match="local Hugging Face folder"):
        check_model("gpt2")
    check_model(TINY)


def test_where_its_environment_is(tmp_path, monkeypatch):
    with pytest.raises(OptionError, match="make peers"):
        peers_python(tmp_path)
    python = tmp_path / "bin" / "python"
    python.parent.mkdir()
    python.touch()
    assert peers_python(tmp_path) == peers_python(python) == python
    monkeypatch.setenv("PERSONA_CIRCUITS_PEERS", str(tmp_path))
    assert peers_python() == python


def test_rows_are_token_ids_and_nothing_else(tiny, tiny_task):
    rows = encode(tiny_task, tiny)
    found = autocircuit_rows(rows, LOGIT_DIFF)
    assert [tuple(row["clean"]) for row in found] == [row.clean for row in rows]
    assert set(found[0]) == {"clean", "corrupt", "answers", "wrong_answers"}
    with pytest.raises(OptionError, match="no counterpart of metric kl"):
        autocircuit_rows(rows, METRICS["kl"])


def test_rows_that_would_mean_something_else_there(tiny, tiny_task):
    from dataclasses import replace

    row = encode(tiny_task, tiny)[0]
    several = replace(row, answers=(*row.answers, 7))
    autocircuit_rows([several], LOGIT_DIFF)
    with pytest.raises(TaskError, match="several answers"):
        autocircuit_rows([several], METRICS["prob-diff"])
    with pytest.raises(TaskError, match="equal lengths"):
        autocircuit_rows([replace(row, corrupt=row.corrupt[1:])], LOGIT_DIFF)


def test_a_process_that_ends_says_why(tiny, tiny_task):
    """This environment has no auto-circuit: its worker starts, and fails when it loads."""
    rows = autocircuit_rows(encode(tiny_task, tiny), LOGIT_DIFF)
    says = r"ended with code 1: .*(auto_circuit|HookedTransformer)"
    with AutoCircuit(sys.executable) as peer, pytest.raises(PersonaCircuitsError, match=says):
        peer.load(TINY, rows)


def test_a_request_before_loading_is_refused():
    with AutoCircuit(sys.executable) as peer, pytest.raises(ModelError, match="nothing is loaded"):
        peer.ask(do="eap")


# --- the whole comparison, auto-circuit's answers frozen ----------------------------------------


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    """A run of EAP with the logit difference, which the frozen numbers are of."""
    out = tmp_path_factory.mktemp("runs") / "tiny"
    options = ["--method", "eap", "--metric", "logit-diff", "--threshold", "0.05", "--n-random", "0"]
    assert call("discover", "--force", "--model", TINY, "--pairs", PAIRS, "--out", out, *options).exit_code == 0
    return out


@pytest.fixture
def played(monkeypatch, frozen, tiny):
    """``AutoCircuit`` that answers with auto-circuit's frozen numbers."""
    graph = tiny.graph
    requests = []

    def scores(name):
        found = prune_scores(Scores.of(graph, frozen(name)["scores"]))
        return {"seconds": 1.0, "scores": {module: values.tolist() for module, values in found.items()}}

    def ask(_self, **request):
        requests.append(request)
        peer = frozen("autocircuit_tiny")
        replies = {
            "load": lambda: {"n_edges": graph.n_edges, "n_rows": 8, "versions": peer["versions"]},
            "eap": lambda: scores("autocircuit_tiny"),
            "eap-ig": lambda: scores("autocircuit_tiny_eap_ig"),
            "mask-ig": lambda: scores("autocircuit_tiny_mask_ig"),
            "means": lambda: {"full": peer["clean_mean"], "empty": peer["corrupt_mean"]},
            "circuit": lambda: {"mean": peer["circuits"][1]["mean_logit_diff"]},
        }
        return replies[request["do"]]()

    monkeypatch.setattr(AutoCircuit, "__enter__", lambda self: self)
    monkeypatch.setattr(AutoCircuit, "__exit__", lambda *_: None)
    monkeypatch.setattr(AutoCircuit, "ask", ask)
    return requests


def test_the_whole_comparison_on_frozen_numbers(run_folder, played, tiny, tiny_task, frozen):
    from dataclasses import replace

    peer = frozen("autocircuit_tiny")["circuits"][1]
    stored = replace(read_circuit(run_folder), circuit=Circuit.of(tiny.graph, peer["edges"]))
    options = CrosscheckOptions(n_pairs=0, steps=5)
    result = crosscheck(tiny, TINY, stored, tiny_task, sys.executable, options)
    by_name = {item.what: item for item in result.scores}
    assert list(by_name) == ["EAP", "EAP-IG", "EAP-IG here, mask IG there", "the run's EAP"]
    for what in ("EAP", "EAP-IG", "the run's EAP"):
        assert by_name[what].relative < 1e-5
        assert by_name[what].same_quantity
    assert by_name["EAP-IG here, mask IG there"].relative > 0.1
    assert not by_name["EAP-IG here, mask IG there"].same_quantity
    assert result.circuit.ours == pytest.approx(result.circuit.theirs, abs=1e-4)
    assert result.circuit.n_edges == len(peer["edges"])
    sent = {request["do"]: request for request in played}
    assert sent["eap-ig"]["shares"] == pytest.approx([0.1, 0.3, 0.5, 0.7, 0.9])
    assert sent["circuit"]["edges"] == [str(edge) for edge in stored.circuit.edges()]
    assert len(sent["load"]["rows"]) == 8


def test_persona_divergence_sends_both_directions(played, tmp_path, tiny, tiny_task):
    out = tmp_path / "run"
    assert (
        call("discover", "--force", "--model", TINY, "--pairs", PAIRS, "--out", out, "--n-random", "0").exit_code == 0
    )
    result = crosscheck(tiny, TINY, read_circuit(out), tiny_task, sys.executable, CrosscheckOptions(n_pairs=3))
    rows = next(request for request in played if request["do"] == "load")["rows"]
    assert len(rows) == 6
    assert rows[1]["clean"] == rows[0]["corrupt"]
    assert rows[1]["answers"] == rows[0]["wrong_answers"]
    assert "--n-pairs 0" in result.notes[0]  # over fewer pairs than the run's own scores


def test_the_command_writes_a_row_for_every_edge(run_folder, played, tmp_path, tiny):
    done = call("crosscheck", run_folder, "--peers", sys.executable, "--out", tmp_path / "cc", "--tolerance", "1e-4")
    assert done.exit_code == 0, done.output
    for part in ("EAP-IG", "Pearson", "faithfulness", "A0.1->A2.3.Q", "gradient of -m"):
        assert part in done.stdout
    record = json.loads((tmp_path / "cc" / "crosscheck.json").read_text())
    assert record["pairs"]["n_pairs"] == 8
    assert record["scores"][0]["relative"] < 1e-5
    rows = list(csv.DictReader((tmp_path / "cc" / "crosscheck.csv").open()))
    assert len(rows) == tiny.graph.n_edges
    own = read_scores(run_folder / "scores.safetensors")
    names = {str(edge): autocircuit_name(edge) for edge in tiny.graph.edges()}
    for row in rows[::50]:
        assert float(row["EAP"]) == pytest.approx(own[row["edge"]], abs=1e-6)
        assert float(row["EAP"]) == pytest.approx(float(row["auto-circuit EAP"]), abs=1e-5)
        assert names[row["edge"]] == row["auto-circuit"]


def test_a_missed_tolerance_is_exit_code_one(run_folder, played, tmp_path):
    options = ["--peers", sys.executable, "--out", tmp_path, "--tolerance", "1e-12"]
    fails("of the largest score at", "crosscheck", run_folder, *options, code=1)


def test_json_for_machines(run_folder, played, tmp_path):
    done = call("crosscheck", run_folder, "--peers", sys.executable, "--out", tmp_path, "--json", "--no-mask-ig")
    found = json.loads(done.stdout)
    assert [item["what"] for item in found["scores"]] == ["EAP", "EAP-IG", "the run's EAP"]
    assert found["circuit"]["ours"]["full"] == pytest.approx(found["circuit"]["theirs"]["full"], abs=1e-4)


def test_bad_input_at_the_command_line(run_folder, tmp_path):
    llama = tmp_path / "llama"
    llama.mkdir()
    (llama / "config.json").write_text('{"model_type": "llama", "num_attention_heads": 4, "num_key_value_heads": 2}')
    fails("grouped queries", "crosscheck", run_folder, "--model", llama)
    fails("make peers", "crosscheck", run_folder, "--peers", tmp_path)
    fails("local Hugging Face folder", "crosscheck", run_folder, "--model", "gpt2")
    fails("must not be negative", "crosscheck", run_folder, "--n-pairs", "-1")
    fails("cannot be read", "crosscheck", tmp_path / "nothing")
    fails("is a PyTorch pickle", "crosscheck", run_folder, "--scores", "scores.pkl")


def test_other_ablations_are_refused(run_folder, tiny, tiny_task):
    from dataclasses import replace

    stored = read_circuit(run_folder)
    other = replace(stored, record={**stored.record, "ablation": "zero"})
    with pytest.raises(OptionError, match="ablation zero"):
        crosscheck(tiny, TINY, other, tiny_task, sys.executable, CrosscheckOptions())


def test_export_and_compare_with_a_score_file(run_folder, tmp_path):
    assert call("export", run_folder, "--to", "auto-circuit", "--out", tmp_path / "s.safetensors").exit_code == 0
    done = call("crosscheck", run_folder, "--scores", tmp_path / "s.safetensors", "--json")
    assert json.loads(done.stdout)[0]["relative"] < 1e-6
    assert call("export", run_folder, "--to", "auto-circuit-pairs", "--out", tmp_path / "p.json").exit_code == 0
    assert json.loads((tmp_path / "p.json").read_text()) == json.loads(PAIRS.read_text())


# --- auto-circuit itself ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def python():
    try:
        return peers_python()
    except OptionError:
        pytest.skip("auto-circuit's environment is not there; make peers")


@pytest.mark.slow
def test_auto_circuit_in_person(python, run_folder, tmp_path):
    options = ["--peers", python, "--n-pairs", "0", "--out", tmp_path, "--tolerance", "2e-5", "--json"]
    done = call("crosscheck", run_folder, *options)
    assert done.exit_code == 0, done.output
    circuit = json.loads(done.stdout)["circuit"]
    assert circuit["ours"] == pytest.approx(circuit["theirs"], abs=1e-4)


@pytest.mark.slow
def test_auto_circuit_on_the_chat_model(python, craftgpt, tmp_path):
    pairs = DATA / "craftgpt_pairs.json"
    out = tmp_path / "run"
    found = call(
        "discover",
        "--force",
        "--model",
        CRAFTGPT,
        "--pairs",
        pairs,
        "--out",
        out,
        "--metric",
        "prob-diff",
        "--n-random",
        "0",
    )
    assert found.exit_code == 0, found.output
    done = call("crosscheck", out, "--peers", python, "--tolerance", "1e-4")
    assert done.exit_code == 0, done.output


@pytest.mark.slow
def test_score_files_pass_through_auto_circuits_format(python, tmp_path):
    """safetensors, PyTorch's file in its environment, safetensors: the same bytes; anything unsafe is refused."""
    import subprocess

    from persona_circuits.circuit.task import shipped

    write_autocircuit_scores(numbered(Graph(2, 3)), tmp_path / "a.safetensors")
    script = shipped("benchmarks/peers/convert_scores.py")

    def convert(*arguments):
        environment = {"PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1"}
        return subprocess.run(
            [python, script, *arguments], cwd=tmp_path, capture_output=True, text=True, env=environment
        )

    assert convert("a.safetensors", "b.pkl").returncode == 0
    assert convert("b.pkl", "c.safetensors").returncode == 0
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "c.safetensors").read_bytes()
    torch.save({"task": {"EAP": {"blocks.0.hook_mlp_in": torch.ones(2)}}}, tmp_path / "several.pkl")
    assert "it has task" in convert("several.pkl", "d.safetensors").stderr
    assert convert("several.pkl", "d.safetensors", "--key", "task/EAP").returncode == 0
    torch.save({"x": Graph(2, 2)}, tmp_path / "unsafe.pkl")
    refused = convert("unsafe.pkl", "e.safetensors")
    assert refused.returncode == 2
    assert "more than tensors" in refused.stderr
