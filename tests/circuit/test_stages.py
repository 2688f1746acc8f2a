"""A search's stages: what each of them runs, and metrics of one's own."""

import re
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch

from persona_circuits.circuit.assessment import EvaluationOptions
from persona_circuits.circuit.assessment.stability import Subject, marked_record, search_again
from persona_circuits.circuit.attribution import eap, eap_ig, exact
from persona_circuits.circuit.discovery import MeasureOptions, Options, discover, evaluate_on
from persona_circuits.circuit.errors import OptionError, TaskError
from persona_circuits.circuit.forward import KeptRuns, make_ablation, prepared
from persona_circuits.circuit.io import read_circuit, write_scores
from persona_circuits.circuit.task import batches, encode
from persona_circuits.metrics import METRICS, Metric

LOGIT_DIFF = METRICS["logit-diff"]
FAST = {"n_random": 1, "steps": 2}


@pytest.fixture
def counted(tiny, monkeypatch):
    """Prompts that start a plain forward pass; what EAP-IG runs between two prompts starts none."""
    count = Counter()
    start = tiny.start

    def counting(tokens, *rest):
        count.update(map(tuple, tokens.tolist()))
        return start(tokens, *rest)

    monkeypatch.setattr(tiny, "start", counting)
    return count


@pytest.mark.parametrize("ablation", ["corrupt", "zero"])
def test_every_prompt_is_run_plain_once(tiny, tiny_task, counted, ablation):
    """It was three times before runs were kept: for the effect, for the scores and for the faithfulness."""
    discover(tiny, tiny_task, Options(metric="logit-diff", ablation=ablation, **FAST))
    prompts = Counter(ids for row in encode(tiny_task, tiny) for ids in (row.clean, row.corrupt))
    assert counted == prompts


def test_every_prompt_is_run_anew_where_runs_are_too_large_to_keep(tiny, tiny_task, counted, monkeypatch):
    options = Options(metric="logit-diff", threshold=0.003, **FAST)
    kept = discover(tiny, tiny_task, options)
    once = counted.total()
    monkeypatch.setattr(prepared, "KEPT_BYTES", 0)
    again = discover(tiny, tiny_task, options)
    assert counted.total() == 5 * once  # effect, scores, faithfulness, paths: four more
    np.testing.assert_allclose(again.scores.values, kept.scores.values, atol=1e-5)
    assert again.circuit == kept.circuit


@pytest.mark.parametrize("ablation", ["corrupt", "zero"])
@pytest.mark.parametrize("scorer", [eap, eap_ig, exact])
def test_scores_of_prepared_batches_are_those_of_bare_ones(tiny64, tiny_task, scorer, ablation):
    groups = batches(encode(tiny_task, tiny64), 4, "cpu")
    made = None if ablation == "corrupt" else make_ablation(ablation, tiny64, groups)
    runs = KeptRuns(tiny64, groups, made)
    assert runs.batches == groups
    assert len(list(runs())) == len(groups)
    expected = scorer(tiny64, groups, LOGIT_DIFF, ablation=made).values
    found = scorer(tiny64, runs.batches, LOGIT_DIFF, ablation=made).values
    assert np.abs(expected).max() > 1e-3
    np.testing.assert_allclose(found, expected, atol=1e-12)


def test_the_optimal_ablation_is_learned_once(tiny, tiny_task, monkeypatch):
    from persona_circuits.circuit.forward import ablation

    learned = []
    original = ablation._learned
    monkeypatch.setattr(ablation, "_learned", lambda *a: learned.append(1) or original(*a[:3], 1, a[4]))
    discover(tiny, tiny_task, Options(metric="logit-diff", ablation="optimal", prune="top-n", top_n=40, **FAST))
    assert len(learned) == 1 + 2 * tiny.graph.n_layers


def test_a_function_is_a_metric(tiny, tiny_task):
    def margin(logits, targets):
        return LOGIT_DIFF(logits, targets)

    named, own = (discover(tiny, tiny_task, Options(metric=metric, **FAST)) for metric in ("logit-diff", margin))
    assert own.circuit == named.circuit
    np.testing.assert_array_equal(own.scores.values, named.scores.values)
    assert own.record["task"]["metric"] == "margin"
    again = evaluate_on(tiny, tiny_task, own.circuit, MeasureOptions(metric=margin, n_random=0))
    assert again.circuit.ratio_of_means == pytest.approx(own.reports[-1].circuit.ratio_of_means)


def test_a_metric_object_keeps_its_unit_and_directions(tiny, tiny_task):
    both = Metric("half", lambda logits, targets: LOGIT_DIFF(logits, targets) / 2, "half logits", swap_rows=True)
    found = discover(tiny, tiny_task, Options(metric=both, **FAST))
    named = discover(tiny, tiny_task, Options(metric="persona-divergence", **FAST))
    assert found.record["task"]["unit"] == "half logits"
    assert found.divergence == pytest.approx(named.divergence / 2)
    assert found.circuit == named.circuit


def test_a_metric_that_is_averaged_over_prompts_is_refused(tiny, tiny_task):
    def mean(logits, targets):
        return LOGIT_DIFF(logits, targets).mean()

    with pytest.raises(
        OptionError, match=r"metric mean gave a tensor of shape \(\) for \d+ .* expected one number per"
    ):
        discover(tiny, tiny_task, Options(metric=mean, batch_size=2, **FAST))
    with pytest.raises(OptionError, match="metric half gave a float for"):
        discover(tiny, tiny_task, Options(metric=Metric("half", lambda *_: 0.5, ""), **FAST))
    with pytest.raises(OptionError, match="is not one of persona-divergence"):
        evaluate_on(tiny, tiny_task, discover(tiny, tiny_task, Options(**FAST)).circuit, MeasureOptions(metric="mean"))


@pytest.fixture
def scorings(tiny, monkeypatch):
    """How often edges are scored, and the gradient passes that this takes."""
    from persona_circuits.circuit.discovery import stages

    calls = []
    for name in ("score", "grid_eap", "score_parts"):
        plain = getattr(stages, name)
        monkeypatch.setattr(stages, name, lambda *a, _plain=plain, **k: calls.append(1) or _plain(*a, **k))
    backward = torch.autograd.grad
    monkeypatch.setattr(torch.autograd, "grad", lambda *a, **k: calls.append("gradient") or backward(*a, **k))
    return calls


def test_another_threshold_costs_no_attribution_pass(tiny, tiny_task, scorings, counted, tmp_path):
    for name in "ab":
        (tmp_path / name).mkdir()
    first = discover(tiny, tiny_task, Options(threshold=0.05, **FAST), state=tmp_path / "a")
    assert "gradient" in scorings
    assert (tmp_path / "a" / "scores.state").is_file()
    first.write(tmp_path / "a")
    assert not (tmp_path / "a" / "scores.state").exists()
    once, forwards = len(scorings), counted.total()
    again = discover(tiny, tiny_task, Options(threshold=0.2, **FAST), state=tmp_path / "b")
    assert len(scorings) == once
    assert again.reused == tmp_path / "a" / "scores.safetensors"
    np.testing.assert_array_equal(again.scores.values, first.scores.values)
    assert counted.total() == 2 * forwards  # the plain runs of the effect and of the faithfulness
    assert len(again.circuit) < len(first.circuit)
    fresh = discover(tiny, tiny_task, Options(threshold=0.2, **FAST), state=tmp_path / "b", scores="new")
    assert fresh.reused is None
    assert len(scorings) == 2 * once
    assert fresh.circuit == again.circuit


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"method": "eap"}, r"eap scores.*, about \d"),
        ({}, r"eap-ig scores, about \d"),
        ({"method": "exact"}, "exact scores, about 2.18 min"),
    ],
)
def test_scores_say_beforehand_how_long_they_take(tiny, tiny_task, options, says):
    """By the plain runs, which took two seconds: EAP-IG with more steps takes longer, exact a pass for each edge."""
    from persona_circuits.circuit.discovery import stages

    told = []
    setting = stages.set_up(
        tiny, tiny_task, Options(**options).checked(), lambda name: told.append(name) or (lambda *_: None)
    )
    stages.score_edges(setting, 2.0)
    assert re.search(says, told[-1]), told
    ratios = [
        stages._plain_runs(replace(setting, options=replace(setting.options, method=method, steps=steps)))
        for method, steps in (("eap", 1), ("eap-ig", 5), ("eap-ig", 50), ("exact", 1))
    ]
    assert ratios[0] < ratios[1] < ratios[2]
    assert ratios[3] == tiny.graph.n_edges / 4


def test_a_finish_says_what_it_did_and_its_circuit_is_not_taken_for_one_of_scores(tiny, tiny_task, tmp_path):
    """In the file, which the schema reads; resampled scores would not give this circuit."""
    options = Options(method="eap", prune="top-n", top_n=25, finish=0.02, metric="logit-diff", **FAST)
    found = discover(tiny, tiny_task, options, state=tmp_path)
    assert not list(tmp_path.glob("finish.state"))
    found.write(tmp_path / "run")
    stored = read_circuit(tmp_path / "run")
    done = stored.record["method"]["finish"]
    assert done["share"] == 0.02
    assert done["gone"] + done["back"] > 0
    assert len(stored.circuit) == found.reports[0].circuit.n_edges != 25
    assert stored.record["stamp"]["size"] == "25 edges, finished to 0.02 of the effect"
    again = search_again(tiny, Subject(stored.circuit, stored.record, tiny_task), EvaluationOptions())
    assert again.reason == "an exact finish is not repeated on resampled pairs"
    with pytest.raises(OptionError, match="not negative, got -1"):
        Options(finish=-1.0).checked()


def test_a_certificate_costs_no_pass_and_marks_every_edge(tiny, tiny_task, counted, tmp_path):
    """In file and picture; ``evaluate`` gives the same one for the same circuit."""
    options = Options(prune="top-n", top_n=60, metric="logit-diff", certify=1, **FAST)
    found = discover(tiny, tiny_task, options)
    assert counted == Counter(ids for row in encode(tiny_task, tiny) for ids in (row.clean, row.corrupt))
    sure = found.certificate
    assert (sure.by, sure.n, sure.way) == ("pairs", 8, "exhaustive")
    found.write(tmp_path / "run")
    stored = read_circuit(tmp_path / "run")
    assert stored.record["certificate"] == sure.as_dict()
    assert [item["stays"] for item in stored.record["edges"]] == [edge in sure.stays for edge in found.circuit]
    assert 0 < len(sure.stays) < len(found.circuit)
    assert stored.fringe == sure.abstains
    assert "or abstains" in (tmp_path / "run" / "graph.svg").read_text()
    subject = Subject(stored.circuit, stored.record, tiny_task)
    again = search_again(tiny, subject, EvaluationOptions(certify=1, n_resamples=2))
    assert again.certificate.as_dict() == sure.as_dict()
    marked = marked_record(stored.record, again.report, certificate=again.certificate)
    assert [item["stays"] for item in marked["edges"]] == [item["stays"] for item in stored.record["edges"]]
    assert {"frequency", "part", "stays", "kept"} <= set(marked["edges"][0])


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        ({"prune": "acdc"}, "--prune acdc runs the model"),
        ({"finish": 0.1}, "--finish runs the model"),
        ({"method": "random", "prune": "top-n", "top_n": 9}, "--method random has none"),
        ({"by_span": True}, "--by-span has none"),
    ],
)
def test_a_certificate_is_refused_where_it_would_say_nothing(asked, says):
    with pytest.raises(OptionError, match=says):
        Options(**{"certify": 1, **asked}).checked()


def test_a_stopped_search_leaves_its_scores(tiny, tiny_task, scorings, tmp_path, monkeypatch):
    from persona_circuits.circuit.discovery import stages

    prune = stages.prune
    monkeypatch.setattr(stages, "prune", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        discover(tiny, tiny_task, Options(**FAST), state=tmp_path)
    monkeypatch.setattr(stages, "prune", prune)
    once = len(scorings)
    assert discover(tiny, tiny_task, Options(**FAST), state=tmp_path).reused == tmp_path / "scores.state"
    assert len(scorings) == once


OTHER = [
    ({"method": "eap"}, r"of other method .*\(eap-ig, and here eap\)"),
    ({"steps": 3}, r"of other steps .*\(2, and here 3\)"),
    ({"ablation": "zero"}, r"of other ablation .*\(corrupt, and here zero\)"),
    ({"metric": "logit-diff"}, r"of other metric .*\(persona-divergence, and here logit-diff\)"),
    ({"pairs": 6}, "of other pairs than this search's; leave"),
    ({"by_span": True}, "--scores has no effect here"),
]


@pytest.mark.parametrize(("changed", "says"), OTHER, ids=lambda one: next(iter(one)) if isinstance(one, dict) else "")
def test_scores_of_another_search_are_not_used(tiny, tiny_task, tmp_path, changed, says):
    discover(tiny, tiny_task, Options(**FAST)).write(tmp_path / "a")
    (tmp_path / "b").mkdir()
    task = tiny_task[: changed.get("pairs", len(tiny_task))]
    options = Options(**{**FAST, **{key: value for key, value in changed.items() if key != "pairs"}})
    if "by_span" not in changed:
        assert discover(tiny, task, options, state=tmp_path / "b").reused is None
    with pytest.raises(OptionError, match=says):
        discover(tiny, task, options, scores=tmp_path / "a")


def test_scores_that_do_not_say_of_what_are_not_used(tiny, tiny_task, tmp_path):
    found = discover(tiny, tiny_task, Options(**FAST))
    write_scores(found.scores, tmp_path / "scores.safetensors")
    assert discover(tiny, tiny_task, Options(**FAST), state=tmp_path).reused is None
    with pytest.raises(OptionError, match="does not say what its scores were made of"):
        discover(tiny, tiny_task, Options(**FAST), scores=tmp_path)


def test_pairs_without_an_effect_are_an_error_unless_forced(tiny, tiny_task):
    same = type(tiny_task)(
        tuple(
            replace(one, clean=one.corrupt, corrupt=one.clean, id=f"{one.id}'") if i % 2 else one
            for i, one in enumerate(p for pair in zip(tiny_task.pairs, tiny_task.pairs, strict=True) for p in pair)
        ),
        "both ways round",
        "0",
    )
    with pytest.raises(TaskError, match=r"nothing to find: the effect is .* on 16 pair\(s\): the effect is too small"):
        discover(tiny, same, Options(force=False, **FAST))
