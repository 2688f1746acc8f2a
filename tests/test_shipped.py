"""What the project ships of its own results: re-made here and compared."""

import json

import pytest
from conftest import ROOT
from typer.testing import CliRunner

from persona_circuits import METRICS, Circuit, load_model, load_task, measure
from persona_circuits.circuit.discovery import pairs_of
from persona_circuits.circuit.errors import FileError
from persona_circuits.circuit.evaluation.matched import random_circuits
from persona_circuits.circuit.task import MODEL, resolve, shipped
from persona_circuits.circuit.task.shipped_files import PAIRS
from persona_circuits.cli import app


def call(*arguments):
    done = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert done.exit_code == 0, done.output
    return done.stdout


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """What ``make demo`` makes."""
    out = tmp_path_factory.mktemp("demo") / "run"
    return out, json.loads(call("discover", "--threshold", "0.003", "--out", out, "--json"))


def test_real_circuits_1_is_the_demos_result(demo):
    out, _ = demo
    assert (out / "real_circuits_1.json").read_bytes() == (ROOT / "real_circuits_1.json").read_bytes()
    call("validate", ROOT / "real_circuits_1.json", "--against", out)


def test_the_circuit_is_connected_and_far_better_than_random_on_held_out_pairs(demo):
    _, summary = demo
    assert summary["connected"]
    assert summary["held_out"]
    held_out = summary["faithfulness"][-1]
    assert held_out["split"] == "test"
    assert held_out["circuit"]["ratio_of_means"] > 0.6
    assert held_out["circuit"]["interval"]["low"] > 0.5
    assert max(held_out["random"]) < held_out["circuit"]["interval"]["low"], "random circuits that read what it reads"
    assert max(of_circuits_by_size_alone(summary)) < 0.1
    assert abs(held_out["complement"]["ratio_of_means"]) < 0.1


def of_circuits_by_size_alone(summary):
    """Faithfulness, on the held-out pairs, of random circuits that are like the circuit in nothing but their size."""
    model, metric = load_model(resolve(MODEL)), METRICS["persona-divergence"]
    circuits = random_circuits(model.graph, summary["faithfulness"][-1]["circuit"]["n_edges"], 5, seed=0)
    masks = [one.mask for one in (Circuit.full(model.graph), Circuit.empty(model.graph), *circuits)]
    prepared = pairs_of(model, load_task(shipped(PAIRS)).of_split("test"), metric)
    full, empty, *found = measure(model, prepared(), masks, metric).mean(1)
    return [(m - empty) / (full - empty) for m in found]


def test_no_path_of_this_machine_is_in_the_files(demo):
    out, _ = demo
    for name in ("circuit.json", "summary.json", "graph.svg"):
        assert str(ROOT) not in (out / name).read_text()


def test_the_readme_shows_the_numbers_of_this_run(demo):
    _, summary = demo
    text = (ROOT / "README.md").read_text()
    held_out = summary["faithfulness"][-1]
    assert f"{summary['counts']['edges']:,} of {summary['counts']['graph_edges']:,} edges" in text
    assert f"{summary['divergence']:+.3f} logits" in text
    assert f"{held_out['circuit']['ratio_of_means']:.3f}" in text
    assert f"{held_out['complement']['ratio_of_means']:.3f}" in text
    assert summary["strongest_edges"][0]["edge"] in text


def test_the_chat_models_circuit_holds_on_pairs_it_was_not_found_on(craftgpt, tmp_path):
    pairs = ROOT / "datasets" / "craftgpt_weather.jsonl"
    out = tmp_path / "run"
    arguments = ["--model", craftgpt.name, "--pairs", pairs, "--out", out, "--threshold", "0.01", "--json"]
    summary = json.loads(call("discover", *arguments))
    call("validate", out / "circuit.json", out / "real_circuits_1.json")
    held_out = summary["faithfulness"][-1]
    assert summary["connected"]
    assert summary["held_out"]
    assert held_out["n_pairs"] == 24
    assert held_out["circuit"]["interval"]["low"] > max(held_out["random"]) + 0.3


def test_shipped_files_are_found_from_anywhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in (MODEL, PAIRS):
        assert shipped(name).exists()
        assert resolve(name) == str(shipped(name))
    assert resolve("gpt2") == "gpt2"
    assert resolve("models/none") == "models/none"
    with pytest.raises(FileError, match="did not come with this installation"):
        shipped("datasets/none.jsonl")


def test_what_lies_here_goes_before_what_is_shipped(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "datasets").mkdir()
    (tmp_path / PAIRS).write_text("mine")
    assert resolve(PAIRS) == PAIRS
