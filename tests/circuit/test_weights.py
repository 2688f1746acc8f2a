"""Couples of personas that weigh alike in the scores."""

from dataclasses import replace

import numpy as np
import pytest

from persona_circuits.circuit.assessment import EvaluationOptions
from persona_circuits.circuit.assessment.stability import Subject, search_again
from persona_circuits.circuit.attribution import Scoring, score_parts
from persona_circuits.circuit.discovery import Options, discover
from persona_circuits.circuit.discovery.weights import couple_weights
from persona_circuits.circuit.errors import OptionError
from persona_circuits.circuit.task import PromptPair, batches, encode, with_swap_rows
from persona_circuits.metrics import METRICS

DIVERGENCE = METRICS["persona-divergence"]


def pairs_of(*couples):
    return [PromptPair("a", "b", ("x",), ("y",), persona_a=a, persona_b=b) for a, b in couples]


def test_weights_by_hand():
    pairs = pairs_of(("cook", "monk"), ("monk", "cook"), ("cook", "nun"), ("cook", "nun"))
    # spreads: sqrt((9 + 1) / 2) and sqrt((1 + 0.25) / 2)
    weights = couple_weights([3.0, -1.0, 1.0, 0.5], pairs)
    assert weights.mean() == pytest.approx(1)
    assert weights[0] == weights[1]
    assert weights[2] / weights[0] == pytest.approx(np.sqrt(5 / 0.625))
    np.testing.assert_allclose(couple_weights([2.0, -2.0, 2.0, 2.0], pairs), 1)
    tiny = couple_weights([1.0, 1.0, 1e-9, 0.0], pairs)
    assert tiny[2] / tiny[0] == pytest.approx(10 * np.sqrt(2), rel=1e-6)  # a tenth of the spread of all
    with pytest.raises(OptionError, match="D is zero on all pairs"):
        couple_weights([0.0] * 4, pairs)
    with pytest.raises(OptionError, match="needs pairs that name persona_a"):
        couple_weights([1.0], pairs_of(("cook", "")))


@pytest.fixture(scope="module")
def task(tiny_task):
    couples = [("cook", "monk"), ("cook", "nun"), ("monk", "nun")]
    names = [couples[i % 3] for i in range(len(tiny_task.pairs))]
    named = [replace(pair, persona_a=a, persona_b=b) for pair, (a, b) in zip(tiny_task.pairs, names, strict=True)]
    return replace(tiny_task, pairs=tuple(named))


@pytest.mark.parametrize("method", ["eap", "eap-ig", "exact", "atp-star"])
def test_scores_are_the_rows_own_scores_each_times_its_weight(tiny64, task, method):
    options = Options(method=method, steps=2, weigh="couples", n_random=0, prune="top-n", top_n=20)
    found = discover(tiny64, task, options)
    groups = batches(with_swap_rows(encode(task, tiny64)), 8, "cpu")
    values = score_parts(tiny64, groups, DIVERGENCE, Scoring(method, 2), by="row").values.astype(np.float64)
    effects = {}
    for batch in groups:
        margins = []
        for tokens in (batch.clean, batch.corrupt):
            logits = tiny64.logits(tokens)[:, -1]
            margins.append((logits.gather(1, batch.answers) - logits.gather(1, batch.wrong_answers))[:, 0])
        effects |= dict(zip(batch.indices, (margins[0] - margins[1]).tolist(), strict=True))
    by_couple = {}
    for index, effect in effects.items():
        by_couple.setdefault((index // 2) % 3, []).append(effect**2)
    weights = np.array([1 / np.sqrt(np.mean(by_couple[(index // 2) % 3])) for index in range(len(values))])
    weights /= weights.mean()
    assert weights.max() > 1.3 * weights.min()
    expected = (values * weights[:, None, None]).mean(0)
    np.testing.assert_allclose(found.scores.values, expected, atol=1e-5 * np.abs(expected).max())
    plain = discover(tiny64, task, replace(options, weigh="pairs"))
    assert np.abs(found.scores.values - plain.scores.values).max() > 1e-3 * np.abs(expected).max()
    assert found.reports[0].m_full == plain.reports[0].m_full
    assert found.record["method"]["weigh"] == "couples"


def test_what_is_not_searched_again_says_so(tiny, task):
    found = discover(tiny, task, Options(method="eap", weigh="couples", n_random=0, prune="top-n", top_n=20))
    subject = Subject(found.circuit, found.record, task)
    said = search_again(tiny, subject, EvaluationOptions()).reason
    assert said == "scores in which couples of personas weigh alike are not made again on resampled pairs"


def test_the_threshold_is_a_share_of_what_is_scored(tiny64, task):
    options = Options(weigh="couples", n_random=0, threshold=0.1, steps=40)
    found = discover(tiny64, task, options)
    assert found.completeness.gap < 0.01
    assert found.tau == pytest.approx(0.1 * abs(found.completeness.effect))
    assert found.tau != pytest.approx(0.1 * abs(found.divergence), rel=1e-3)


@pytest.mark.parametrize(("more", "said"), [({"method": "random"}, "--method random"), ({"certify": 1}, "--certify")])
def test_what_has_no_weights_is_refused(more, said):
    with pytest.raises(OptionError, match=f"--weigh couples and {said} do not go together"):
        Options(weigh="couples", prune="top-n", top_n=3, **more).checked()
