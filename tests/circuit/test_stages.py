"""A search's stages: what each of them runs, and metrics of one's own."""

from collections import Counter

import numpy as np
import pytest

from persona_circuits.circuit.attribution import eap, eap_ig, exact
from persona_circuits.circuit.discovery import MeasureOptions, Options, discover, evaluate_on
from persona_circuits.circuit.errors import OptionError
from persona_circuits.circuit.forward import KeptRuns, make_ablation, prepared
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
    options = Options(metric="logit-diff", **FAST)
    kept = discover(tiny, tiny_task, options)
    once = counted.total()
    monkeypatch.setattr(prepared, "KEPT_BYTES", 0)
    again = discover(tiny, tiny_task, options)
    assert counted.total() == 4 * once
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
