"""Paraphrases and wordings of one persona pair and question as one measure: against means written out, and by rates."""

import dataclasses

import numpy as np
import pytest
import torch

from persona_circuits.circuit.task import PromptPair
from persona_circuits.persona.behaviour import StudyOptions, null_divergences, pooled, summarise, usual_rows
from persona_circuits.persona.behaviour.measure import Answer, NeutralPrior, measured
from persona_circuits.persona.data.items import Item

OPTIONS = (" tea", " wine", " cake")


def measure(log_probs, *, who=("a", "b"), control="none", candidates=OPTIONS, number=0, question="drink", **row):
    pair = PromptPair(
        "x", "y", (" tea",), (" wine",), f"{who}{question}{number}{control}", *who, question=question, row=row
    )
    item = Item(pair, candidates, {} if control == "none" else {"control": control})
    answer = Answer(torch.tensor(log_probs, dtype=torch.float64).log_softmax(-1), 0.1 * number)
    return measured(item, answer, ())


def test_rows_of_one_pair_and_question_are_averaged_option_by_option():
    rng = np.random.default_rng(0)
    first, second = (rng.normal(size=(2, 3)) for _ in range(2))
    turned = second[:, [2, 0, 1]]
    one = measure(first)
    two = measure(turned, candidates=(" cake", " tea", " wine"), number=1)
    two = dataclasses.replace(two, neutral=NeutralPrior(3, 1.0, 2.0))
    (mean,) = pooled([one, two])
    logits = [torch.tensor(x).log_softmax(-1).numpy() for x in (first, second)]
    m = (logits[0] + logits[1]) / 2
    margins = m[:, 0] - m[:, 1]
    assert mean.divergence == pytest.approx(margins[0] - margins[1])
    assert mean.divergence == pytest.approx((one.divergence + two.divergence) / 2)
    assert mean.prior == pytest.approx(margins.mean())
    assert (mean.choice_a, mean.choice_b) == tuple(OPTIONS[i] for i in m.argmax(-1))
    assert mean.mass_a == pytest.approx((one.mass_a + two.mass_a) / 2)
    assert mean.row_divergences == (one.divergence, two.divergence)
    assert mean.neutral == NeutralPrior(3, 1.0, 2.0)


@pytest.mark.parametrize(
    "other",
    [
        {"who": ("b", "a")},
        {"question": "food"},
        {"control": "paraphrase"},
        {"template": "chat"},
        {"frame": "friend"},
        {"candidates": (*OPTIONS[:2], " bread")},
    ],
)
def test_what_differs_in_more_than_words_is_kept_apart(other):
    assert len(pooled([measure(np.eye(3)[:2]), measure(np.eye(3)[:2], number=1, **other)])) == 2


def study(rng, n_rows, n_null_rows, effect):
    """60 pairs and 60 paraphrase groups, noise of one logit per row."""
    measures = []
    for place, (control, size, d) in enumerate([("none", n_rows, effect), ("paraphrase", n_null_rows, 0.0)] * 60):
        who = (f"p{place}", f"p{place}" if control == "paraphrase" else f"q{place}")
        for row in range(size):
            margins = np.array([[d + rng.normal(), 0.0, -9.0], [0.0, 0.0, -9.0]])
            measures.append(measure(margins, who=who, control=control, number=row))
    return summarise(pooled(measures), StudyOptions(n_resamples=50, average=True), model="m")


def test_sigma_0_is_that_of_means_over_as_many_rows_as_pairs_have():
    """Noise of one logit: sigma_0 of the mean of four rows is half a logit, and no more null pairs pass."""
    rng = np.random.default_rng(1)
    one, four = study(rng, 1, 4, 1.5), study(rng, 4, 6, 1.5)
    assert one.sigma_0 == pytest.approx(1.0, rel=0.2)
    assert four.sigma_0 == pytest.approx(0.5, rel=0.2)
    assert (one.rows_per_pair, four.rows_per_pair) == (1, 4)
    assert four.overall.summary.divergence.value == pytest.approx(1.5, abs=0.25)
    signals = [1 - one.overall.summary.no_signal, 1 - four.overall.summary.no_signal]
    assert signals[0] == pytest.approx(0.31, abs=0.15)  # 1 - Phi(.5)
    assert signals[1] == pytest.approx(0.84, abs=0.15)  # 1 - Phi(-1)
    for found in (one, four):
        assert np.mean([row.outcome != "no signal" for row in found.control_pairs]) < 0.15


def test_a_null_of_fewer_rows_is_said_to_be_too_wide():
    found = study(np.random.default_rng(2), 4, 2, 1.5)
    assert found.sigma_0 == pytest.approx(2**-0.5, rel=0.25)
    assert any("60 of 60 paraphrase groups have fewer rows than any pair (4)" in note for note in found.notes)


def test_a_study_that_averages_nothing_is_as_before():
    rng = np.random.default_rng(3)
    measures = [measure(rng.normal(size=(2, 3)), who=("a", f"q{i}"), number=i) for i in range(6)]
    measures += [measure(rng.normal(size=(2, 3)), who=(f"p{i}",) * 2, control="paraphrase", number=i) for i in range(6)]
    plain, same = (summarise(given, StudyOptions(n_resamples=50), model="m") for given in (measures, pooled(measures)))
    assert plain.sigma_0 == same.sigma_0
    assert plain.overall == same.overall
    assert usual_rows(measures) == 1
    assert null_divergences(measures[6:], 4) == [one.divergence for one in measures[6:]]
