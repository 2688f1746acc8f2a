"""Collapse predicted from other wordings: against what made it, against losses by hand, and with nothing to predict."""

import dataclasses

import numpy as np
import pytest
from conftest import DATA
from test_wordings import measure

from persona_circuits.circuit.errors import TaskError
from persona_circuits.persona.behaviour import StudyOptions, known_elsewhere, predicted, study_collapse
from persona_circuits.persona.behaviour.measure import NeutralPrior
from persona_circuits.persona.behaviour.prediction import _held_out, _losses
from persona_circuits.persona.data import Neutral, load_items

QUICK = {"n_resamples": 100}


def row(lead, d, collapses, pair, question, wording, own=""):
    """A row of this lead, D and outcome: its own logits say nothing else."""
    top = [(0, 0), (0, 1)][not collapses]
    logits = np.full((2, 3), -9.0)
    for side, place in enumerate(top):
        logits[side, place] = 0.0
    one = measure(logits, who=(f"a{pair}", f"b{pair}"), question=f"q{question}", number=wording, wording=wording)
    one = dataclasses.replace(one, divergence=d, neutral=NeutralPrior(2, 0.0, lead))
    item = dataclasses.replace(one.item, pair=dataclasses.replace(one.item.pair, neutral=own))
    return dataclasses.replace(one, item=item)


def world(rng, slope, pairs=12, questions=12):
    """Leads are the questions', effects the pairs' and questions'; both wordings collapse by the same odds."""
    leads, effects = rng.normal(3, 2, questions), rng.gamma(2, 1.5, (pairs, questions))
    rows, odds = [], []
    for i in range(pairs):
        for j in range(questions):
            for wording in range(2):
                z = slope * (leads[j] - effects[i, j])
                odds.append(1 / (1 + np.exp(-z)))
                noisy = effects[i, j] + 0.1 * rng.normal()
                rows.append(row(leads[j], noisy, rng.random() < odds[-1], i, j, wording))
    return rows, np.array(odds)


def test_lead_and_effect_come_near_the_best_possible_loss_and_rivals_do_not():
    rows, odds = world(np.random.default_rng(0), 1.5)
    found = predicted(rows, **QUICK)
    of = {one.name: one for one in found.predictors}
    y = np.array([one.collapses for one in rows])
    best = -np.log(np.where(y, odds, 1 - odds)).mean()
    assert of["lead and effect"].loss.value == pytest.approx(best, abs=0.06)
    assert of["lead and effect"].gain.low > 0
    assert of["lead and effect"].p < 0.05
    assert of["effect alone"].behind.low > 0
    assert of["position"].gain.high < 0.02
    assert of["majority"].gain.value == 0
    assert (found.n, found.left_out, found.collapsed) == (288, 0, y.sum())
    assert (found.n_persona_pairs, found.n_questions) == (12, 12)


def test_where_nothing_can_be_predicted_nothing_is():
    gains = []
    for seed in range(4):
        rows, _ = world(np.random.default_rng(seed), 0.0, 8, 8)
        (ours, *_) = predicted(rows, **QUICK).predictors
        gains.append(ours.gain.value)
        assert ours.gain.low < 0.01
    assert np.mean(gains) < 0.005


def test_a_row_says_nothing_of_itself():
    rows, _ = world(np.random.default_rng(1), 1.0, 4, 4)
    before = known_elsewhere(rows)
    changed = dataclasses.replace(rows[0], divergence=99.0, log_probs_a=(0.0, 0.0, 0.0))
    after = known_elsewhere([changed, *rows[1:]])
    assert after[0] == before[0]
    assert after[1][1] == 99.0  # it is what is known of its other wording
    assert after[2:] == before[2:]
    own = [row(float(w), 1.0, True, 0, 0, w, own="a prompt of this very wording") for w in range(3)]
    assert [values[0] for values in known_elsewhere(own)] == [1.5, 1.0, 0.5]  # the others' leads
    alone = [row(1.0, 1.0, True, 0, 0, 0), row(1.0, 1.0, True, 0, 0, 0)]
    assert known_elsewhere(alone) == [None, None]


def test_folds_share_neither_pair_nor_question_and_losses_are_those_of_a_logistic_fit():
    from scipy.optimize import minimize

    rng = np.random.default_rng(2)
    pairs, asked = np.repeat(np.arange(6), 7), np.tile(np.arange(7), 6)
    held = _held_out(pairs, 6, asked, 7, 0)
    assert sum(test.sum() for _, test in held) == 42
    for fit, test in held:
        assert not set(pairs[fit]) & set(pairs[test])
        assert not set(asked[fit]) & set(asked[test])
    x, y = rng.normal(size=(42, 1)), rng.random(42) < 0.5
    fit, test = held[0]
    z = (x - x[fit].mean()) / x[fit].std()

    def penalised(w):
        t = np.where(y[fit], 1, -1) * (w[0] + w[1] * z[fit, 0])
        return np.log1p(np.exp(-t)).sum() + w[1] ** 2 / 2

    a, b = minimize(penalised, [0.0, 0.0], tol=1e-10).x
    t = np.where(y[test], 1, -1) * (a + b * z[test, 0])
    assert _losses(x, y, held)[test] == pytest.approx(np.log1p(np.exp(-t)), abs=1e-4)
    share = (y[fit].sum() + 1) / (fit.sum() + 2)
    plain = _losses(np.zeros((42, 0)), y, held)[test]
    assert plain == pytest.approx(-np.log(np.where(y[test], share, 1 - share)))


def test_too_little_to_hold_out_is_refused(tiny64):
    with pytest.raises(TaskError, match="0 persona pairs and 0 questions; 4 of each"):
        predicted([measure(np.eye(3)[:2])])
    found = load_items(DATA / "tiny_pairs.json")
    with pytest.raises(TaskError, match="pairs --variants"):
        study_collapse(tiny64, found, neutral=[Neutral("q", "x")], options=StudyOptions(predict=True, **QUICK))
