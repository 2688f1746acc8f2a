"""Everything a circuit is put to: also on empty and full circuits, one pair and two, and where nothing changes."""

import json
import re
import shutil
from dataclasses import replace

import numpy as np
import pytest
from conftest import DATA
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from persona_circuits.circuit.assessment import (
    EvaluationOptions,
    Subject,
    marked_record,
    rule_of,
    run_tests,
    search_again,
    with_evaluation,
)
from persona_circuits.circuit.assessment import evaluation as module
from persona_circuits.circuit.discovery import Options, discover
from persona_circuits.circuit.drawing import Marks, to_agraph
from persona_circuits.circuit.errors import OptionError
from persona_circuits.circuit.io import faults_of, read_circuit, write_circuit
from persona_circuits.circuit.model import load_model
from persona_circuits.circuit.reporting import evaluations_table, tables, write_tests
from persona_circuits.circuit.subgraph import Circuit
from persona_circuits.circuit.task import load_task
from persona_circuits.cli import app

TINY, PAIRS = str(DATA / "tiny-gpt2"), str(DATA / "tiny_pairs.json")
SMALL = Options(threshold=0.05, n_random=2, method="eap")
MOODS = (" happy", " calm", " bold")
QUICK = EvaluationOptions(metric="persona-divergence", quick=True, n_tested=3)


def call(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def found(tiny, tiny_task):
    return discover(tiny, tiny_task, SMALL)


@pytest.fixture(scope="module")
def results(tiny, tiny_task, found):
    return run_tests(tiny, tiny_task, Subject(found.circuit, found.record, tiny_task), QUICK)


def evaluated(found, task, results, folder):
    """The file with the evaluation, as ``evaluate`` writes it; it must have no fault."""
    stamp = {"metric": "persona-divergence", "ablation": "corrupt", "align": "equal", "seed": 0, "quick": True}
    record = with_evaluation(found.record, task, "all", found.reports[-1], results, **stamp)
    write_circuit(record, folder / "circuit.json")
    assert faults_of(folder / "circuit.json") == []
    return json.loads((folder / "circuit.json").read_text())


def test_all_of_it_is_there_and_goes_into_the_file(results, found, tiny_task, tmp_path):
    assert results.searched.report.circuit == found.circuit
    assert results.searched.report.agreement == 1.0
    record = evaluated(found, tiny_task, results, tmp_path)
    assert record["stability"]["unstable"] == results.searched.report.unstable
    assert record["stability"]["core"] == sum(edge["part"] == "core" for edge in record["edges"])
    assert record["stability"]["resamplings"][0]["n_resamples"] == 100
    (one,) = record["evaluations"]
    assert [part["name"] for part in one["transfer"]["pairs"]] == ["all"]
    assert len(one["pairs"]["pairs"]) == len(tiny_task.pairs)
    full, empty, own = (getattr(found.reports[-1], name) for name in ("m_full", "m_empty", "circuit"))
    assert results.pairs.every.effect == pytest.approx(full - empty, abs=1e-5)
    assert results.pairs.every.ratio_of_means == pytest.approx(own.ratio_of_means, abs=1e-5)
    assert results.pairs.every.mean_of_ratios == pytest.approx(own.mean_of_ratios, abs=1e-4)


@pytest.mark.parametrize("kind", ["empty", "full"])
def test_an_empty_and_a_full_circuit(tiny, tiny_task, found, tmp_path, kind):
    circuit = Circuit.empty(tiny.graph) if kind == "empty" else Circuit.full(tiny.graph)
    threshold = 1e6 if kind == "empty" else 0.0
    made = discover(tiny, tiny_task, replace(SMALL, threshold=threshold, threshold_on="score"))
    assert made.circuit == circuit
    results = run_tests(tiny, tiny_task, Subject(circuit, made.record, tiny_task), QUICK)
    record = evaluated(made, tiny_task, results, tmp_path)
    (everything,) = results.transfer["pairs"]
    assert everything.outside == ()  # nothing lies outside a full circuit, and an empty one has no size
    assert everything.holds is None
    assert everything.faithfulness == pytest.approx(0.0 if kind == "empty" else 1.0, abs=1e-5)
    assert all(row.faithfulness == pytest.approx(everything.faithfulness, abs=1e-3) for row in results.pairs.rows)
    assert record["stability"]["jaccard"] == (None if kind == "empty" else 1.0)
    assert record["stability"]["unstable"] == (None if kind == "empty" else False)
    assert record["stability"]["core"] == len(circuit)


@pytest.mark.parametrize("n", [1, 2])
def test_one_pair_and_two_pairs(tiny, tiny_task, tmp_path, n):
    task = replace(tiny_task, pairs=tiny_task.pairs[6 : 6 + n])
    made = discover(tiny, task, SMALL)
    results = run_tests(tiny, task, Subject(made.circuit, made.record, task), QUICK)
    record = evaluated(made, task, results, tmp_path)
    (everything,) = results.transfer["pairs"]
    assert everything.n_pairs == n == len(results.pairs.rows)
    assert (everything.interval, everything.holds) == (
        None,
        None,
    )  # one pair has no interval, and two do not tell the effect from 0
    assert (record["stability"]["unstable"] is None) == (n == 1)
    assert results.pairs.grouping.n_groups == 1


def test_a_constant_metric(tiny, tiny_task, tmp_path):
    """Two words with one embedding: whatever is cut, nothing changes."""
    folder = shutil.copytree(TINY, tmp_path / "one-mood")
    weights = load_file(folder / "model.safetensors")
    happy, sad = (tiny.tokenizer(mood)["input_ids"][0] for mood in (" happy", " sad"))
    weights["transformer.wte.weight"][sad] = weights["transformer.wte.weight"][happy]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    clean = [pair.clean.replace(mood, " happy") for pair, mood in zip(tiny_task.pairs, MOODS, strict=False)]
    same = (
        replace(p, clean=c, corrupt=c.replace("happy", "sad")) for p, c in zip(tiny_task.pairs, clean, strict=False)
    )
    task = replace(tiny_task, pairs=tuple(same))
    model = load_model(folder)
    found = discover(model, tiny_task, SMALL)
    results = run_tests(model, task, Subject(found.circuit, found.record, task), QUICK)
    record = evaluated(found, task, results, tmp_path)
    (everything,) = results.transfer["pairs"]
    assert (everything.faithfulness, everything.interval, everything.holds) == (None, None, None)
    assert {outcome.decision for outcome in results.tests.outcomes} == {"not applicable"}
    assert all(row.flat and row.faithfulness is None for row in results.pairs.rows)
    assert results.pairs.quantiles is None
    assert record["stability"]["unstable"] is None
    assert results.completeness.circuit is None


@pytest.mark.parametrize(("metric", "ablation"), [("kl", "corrupt"), ("logit-diff", "zero"), ("prob-diff", "mean")])
def test_other_metrics_and_ablations(tiny, tiny_task, tmp_path, metric, ablation):
    task = replace(tiny_task, pairs=tiny_task.pairs[:3])
    options = replace(SMALL, metric=metric, ablation=ablation, method="eap-ig", steps=1)
    made = discover(tiny, task, options)
    searched = search_again(tiny, Subject(made.circuit, made.record, task), QUICK)
    assert searched.report.agreement == pytest.approx(1.0)
    assert abs(searched.scores.whole.mean()) == pytest.approx(made.record["method"]["tau"] / 0.05, rel=1e-3)


def test_acdc_is_repeated_in_another_order(tiny, tiny_task, tmp_path):
    task = replace(tiny_task, pairs=tiny_task.pairs[:2])
    made = discover(tiny, task, replace(SMALL, prune="eap-acdc", threshold=0.1))
    results = run_tests(tiny, task, Subject(made.circuit, made.record, task), QUICK)
    record = evaluated(made, task, results, tmp_path)
    assert record["stability"]["by"] == "orders"
    assert record["stability"]["order"]["n_orders"] == 1
    assert record["stability"]["resamplings"] == []
    assert {edge["frequency"] for edge in record["edges"]} <= {0.5, 1.0}
    assert rule_of(made.record) is None
    none = search_again(tiny, Subject(made.circuit, made.record, task), EvaluationOptions(orders=0))
    assert none.report is None
    assert "is not repeated in other orders" in none.reason
    assert marked_record(made.record, None) == made.record


def test_what_cannot_be_repeated_has_a_reason(tiny, tiny_task, found):
    other = replace(tiny_task, sha256="0" * 64)
    assert (
        "is not the file" in search_again(tiny, Subject(found.circuit, found.record, other), EvaluationOptions()).reason
    )
    weights = {**found.record, "model": {**found.record["model"], "fingerprint": "0" * 64}}
    assert "other weights" in search_again(tiny, Subject(found.circuit, weights, tiny_task), EvaluationOptions()).reason
    chance = {**found.record, "method": {**found.record["method"], "scores": "random"}}
    assert (
        "do not depend on the pairs"
        in search_again(tiny, Subject(found.circuit, chance, tiny_task), EvaluationOptions()).reason
    )
    with pytest.raises(OptionError, match="at least 2"):
        search_again(tiny, Subject(found.circuit, found.record, tiny_task), EvaluationOptions(n_resamples=1))


def test_scores_of_the_same_pairs_are_not_computed_twice(tiny, tiny_task, found, monkeypatch):
    calls = []
    plain = module.scores_of
    monkeypatch.setattr(module, "scores_of", lambda *args, **kwargs: calls.append(1) or plain(*args, **kwargs))
    part = replace(tiny_task, pairs=tiny_task.pairs[:2])
    made = discover(tiny, part, SMALL)
    run_tests(tiny, part, Subject(made.circuit, made.record, part), QUICK)
    assert calls == []
    run_tests(tiny, part, Subject(made.circuit, made.record, part), replace(QUICK, metric="logit-diff"))
    assert calls == [1]


def test_tables_and_figures_hold_all_of_it(results, tmp_path):
    write_tests(results, tmp_path, title="tiny")
    names = {path.name for path in tmp_path.iterdir()}
    assert {f"{name}.csv" for name in tables(results)} < names
    assert {"evaluation.html", "pair-faithfulness.png", "edge-frequency.png", "transfer.png"} < names
    edges = (tmp_path / "edges.csv").read_text().splitlines()
    assert edges[0] == "edge,part,frequency by pairs"
    assert len((tmp_path / "pairs.csv").read_text().splitlines()) == 9


@pytest.mark.slow
def test_stopped_tests_go_on(tiny, tiny_task, found, tmp_path, monkeypatch):
    """After a stop after the hypothesis tests their measurements are read and not made again."""
    from persona_circuits.circuit.evaluation import measurements

    monkeypatch.setattr("persona_circuits.circuit.storage.kept.SAVE_SECONDS", 0.0)
    state, made = tmp_path / "x.state", []
    plain = measurements.measure
    monkeypatch.setattr(measurements, "measure", lambda *a, **k: made.append(len(a[2])) or plain(*a, **k))
    done = module.completeness_report
    monkeypatch.setattr(module, "completeness_report", lambda *a, **k: (_ for _ in ()).throw(KeyboardInterrupt))
    part = replace(tiny_task, pairs=tiny_task.pairs[:2])
    with pytest.raises(KeyboardInterrupt):
        run_tests(tiny, part, Subject(found.circuit), QUICK, state=state)
    monkeypatch.setattr(module, "completeness_report", done)
    first = run_tests(tiny, part, Subject(found.circuit), QUICK, state=state)
    second = run_tests(tiny, part, Subject(found.circuit), QUICK)
    assert first.as_dict() == second.as_dict()
    assert not list(tmp_path.glob("x.state*"))


# --- the command -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run on pairs with splits, personas, questions and a domain."""
    folder = tmp_path_factory.mktemp("believe")
    every = json.loads((DATA / "tiny_pairs.json").read_text())["prompts"]
    for name, items in (("pairs", every), ("other", every[2:5])):
        lines = [
            {**item, "split": "test" if i % 2 else "train", "domain": f"d{i // 4}", "persona_a": f"a{i}"}
            | {"persona_b": f"b{i}", "question": f"q{i % 3}", "id": f"{name}-{i}"}
            for i, item in enumerate(items)
        ]
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, lines)))
    arguments = ["--model", TINY, "--pairs", folder / "pairs.jsonl", "--threshold", 0.05, "--n-random", 2]
    assert call("discover", "--force", *arguments, "--out", folder / "run").exit_code == 0
    return folder


def test_evaluate_marks_file_and_picture(run, tmp_path):
    shutil.copytree(run / "run", tmp_path / "run")
    before = (tmp_path / "run" / "graph.svg").read_text()
    done = call("evaluate", tmp_path / "run", "--quick", "--n-random", 2, "--tables", tmp_path / "tables")
    assert done.exit_code == 0, done.output
    for part in (
        "mean pairwise Jaccard",
        "pair by pair",
        "distribution",
        "worst pairs",
        "transfer by domain",
        "backup:",
    ):
        assert part in done.stdout
    stored = read_circuit(tmp_path / "run")
    n = len(stored.fringe)
    assert 0 < n < len(stored.circuit)
    after = (tmp_path / "run" / "graph.svg").read_text()
    assert "fringe" not in before
    assert f"fringe ({n:,})" in after
    assert f"core ({len(stored.circuit) - n:,})" in after
    marks, n_edges = Marks(fringe=stored.fringe), len(stored.circuit)
    picture = to_agraph(stored.circuit, scores=stored.scores, marks=marks, strongest=n_edges)
    faint = {edge.attr["tooltip"].split()[0] for edge in picture.edges() if edge.attr["color"].endswith("58")}
    assert faint == {str(edge) for edge in stored.fringe.edges()}
    assert call("draw", tmp_path / "run", "--out", tmp_path / "x.svg").exit_code == 0
    assert f"fringe ({n:,})" in (tmp_path / "x.svg").read_text()
    assert (tmp_path / "tables" / "evaluation.html").exists()
    content = json.loads((tmp_path / "run" / "circuit.json").read_text())
    content["edges"][0]["part"] = "fringe" if content["edges"][0]["part"] == "core" else "core"
    (tmp_path / "bad.json").write_text(json.dumps(content))
    assert any("the edges so marked" in fault for fault in faults_of(tmp_path / "bad.json"))


@pytest.mark.slow
def test_the_transfer_table_over_pairs_and_models(run, tmp_path, tiny):
    shutil.copytree(run / "run", tmp_path / "run")
    shutil.copytree(TINY, tmp_path / "other-model")
    config = json.loads((tmp_path / "other-model" / "config.json").read_text())
    (tmp_path / "other-model" / "config.json").write_text(json.dumps({**config, "layer_norm_epsilon": 0.3}))
    _other_weights(tmp_path / "other-model")
    quick = ["--quick", "--n-random", 2]
    assert call("evaluate", tmp_path / "run", *quick).exit_code == 0
    stability = json.loads((tmp_path / "run" / "circuit.json").read_text())["stability"]
    pairs = call("evaluate", tmp_path / "run", "--pairs", run / "other.jsonl", *quick)
    assert pairs.exit_code == 0, pairs.output
    done = call("evaluate", tmp_path / "run", "--model", tmp_path / "other-model", *quick)
    assert done.exit_code == 0, done.output
    assert "this measures a transfer" in done.stderr
    assert "found in other weights" in done.stdout or "found earlier" in done.stdout
    record = json.loads((tmp_path / "run" / "circuit.json").read_text())
    rows = evaluations_table(record).cells()
    assert len(rows) == 3
    assert "all evaluations in the circuit's file" in done.stdout
    assert {row[2] for row in rows} == {TINY, str(tmp_path / "other-model")}
    assert {row[7] for row in rows}.isdisjoint({"not run"})  # the control was run on each
    assert record["stability"] == stability | {"quick": True}
    assert faults_of(tmp_path / "run" / "circuit.json") == []


def _other_weights(folder):
    """Small changes to every weight: another model of the same shape."""
    from safetensors.torch import load_file, save_file

    (path,) = folder.glob("*.safetensors")
    generator = __import__("torch").Generator().manual_seed(0)
    weights = {}
    for name, value in load_file(path).items():
        weights[name] = value + 0.02 * __import__("torch").randn(value.shape, generator=generator).to(value.dtype)
    save_file(weights, path, metadata={"format": "pt"})


@pytest.mark.slow
def test_flat_pairs_stand_apart_with_a_null(run, tmp_path):
    shutil.copytree(run / "run", tmp_path / "run")
    item = json.loads((DATA / "tiny_pairs.json").read_text())["prompts"][3]
    (tmp_path / "null.jsonl").write_text(json.dumps({**item, "persona_a": "p", "persona_b": "p"}))
    plain, nulled = (
        json.loads(call("evaluate", tmp_path / "run", "--quick", "--no-save", "--json", *more).stdout)["pairs"]
        for more in ([], ["--null", tmp_path / "null.jsonl"])
    )
    assert (plain["null_source"], nulled["null_source"]) == ("rounding", "2 sigma_0 of |D|")
    d = [row["divergence"] for row in nulled["pairs"]]
    assert [row["flat"] for row in nulled["pairs"]] == [abs(value) <= nulled["null"] for value in d]
    assert nulled["flat"]["n_pairs"] == sum(row["flat"] for row in nulled["pairs"]) > plain["flat"]["n_pairs"]
    done = call("evaluate", tmp_path / "run", "--only-faithfulness", "--null", tmp_path / "null.jsonl")
    assert done.exit_code == 2
    assert "--null has no effect with --only-faithfulness" in done.stderr
    done = call("evaluate", tmp_path / "run", "--quick", "--null", run / "pairs.jsonl")
    assert done.exit_code == 2
    assert "two paraphrases of one" in done.stderr


def test_orders_option_tells_its_values_apart(tmp_path):
    arguments = ["--model", TINY, "--pairs", PAIRS, "--out", tmp_path / "run", "--n-random", 0, "--method", "eap"]
    assert call("discover", "--force", *arguments, "--prune", "eap-acdc", "--threshold", 0.2).exit_code == 0
    quick = ["evaluate", tmp_path / "run", "--quick", "--n-random", 0, "--no-save", "--json"]
    none, one = (json.loads(call(*quick, "--orders", n).stdout)["stability"] for n in (0, 1))
    assert "is not repeated" in none["reason"]
    assert one["order"]["n_orders"] == 1


def test_a_stamp_says_what_must_be_shared(run, found):
    stamp = json.loads((run / "run" / "circuit.json").read_text())["stamp"]
    assert stamp == found.record["stamp"] | {"split": "train"}
    assert stamp == {
        "ablation": "corrupt",
        "metric": "persona-divergence",
        "direction": "noising",
        "averaging": "scores: mean over pairs, both directions; f: ratio of means",
        "split": "train",
        "size": "threshold 0.05 of the effect",
        "order": "|score|, largest first",
        "seed": 0,
    }


@pytest.mark.parametrize(
    ("options", "size", "order"),
    [
        ({"prune": "top-n", "top_n": 9, "threshold": None}, "9 edges", "|score|, largest first"),
        ({"prune": "greedy", "top_n": 9, "threshold": None}, "9 edges", "|score|, largest first, backward from logits"),
        ({"threshold_on": "score"}, "threshold 0.05", "|score|, largest first"),
        (
            {"threshold": None, "target_faithfulness": 0.1},
            "smallest with faithfulness >= 0.1",
            "|score|, largest first",
        ),
    ],
)
def test_the_stamp_follows_the_options(tiny, tiny_task, options, size, order):
    made = discover(tiny, replace(tiny_task, pairs=tiny_task.pairs[:1]), replace(SMALL, **options))
    assert (made.record["stamp"]["size"], made.record["stamp"]["order"]) == (size, order)


@pytest.mark.slow
def test_compare_says_direction_and_instability(run, tmp_path):
    shutil.copytree(run / "run", tmp_path / "b")
    record = json.loads((tmp_path / "b" / "circuit.json").read_text())
    record["stamp"]["direction"] = "denoising"
    (tmp_path / "b" / "circuit.json").write_text(json.dumps(record))
    done = call("compare", run / "run", tmp_path / "b", "--no-model", "--n-draws", 2)
    assert done.exit_code == 0, done.output
    assert re.search(r"stamp\.direction\s+noising\s+denoising", done.stdout)
    assert call("evaluate", tmp_path / "b", "--quick", "--n-random", 0).exit_code == 0
    half = {**json.loads((tmp_path / "b" / "circuit.json").read_text())}
    half["edges"] = half["edges"][::2]
    own = Circuit.of(
        Circuit.empty(read_circuit(tmp_path / "b").circuit.graph).graph, [e["edge"] for e in half["edges"]]
    )
    half["nodes"] = [str(node) for node in own.nodes()]
    half["counts"] |= {"nodes": len(half["nodes"]), "edges": len(half["edges"])}
    marks = [edge["part"] for edge in half["edges"]]
    half["stability"] |= {part: marks.count(part) for part in ("core", "fringe")} | {"unstable": True, "jaccard": 0.5}
    (tmp_path / "b" / "circuit.json").write_text(json.dumps(half))
    done = call("compare", run / "run", tmp_path / "b", "--no-model", "--n-draws", 2)
    assert done.exit_code == 0, done.output
    assert "is unstable: resampled" in done.stdout
    assert "strongest edges of A alone" in done.stdout
    assert "strongest edges of B alone" not in done.stdout


def test_numbers_are_plain(results):
    json.dumps(results.as_dict(), allow_nan=False)
    assert isinstance(results.searched.report.frequency, np.ndarray)
    assert load_task(PAIRS).sha256
