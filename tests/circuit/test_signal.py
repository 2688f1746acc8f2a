"""Is there anything to find: verdicts on effects whose answer is known, and the pairs' own numbers."""

import re

import numpy as np
import pytest
import torch

from persona_circuits.circuit.evaluation import NullRun, SignalWatch, signal_of
from persona_circuits.circuit.forward import prepare_each
from persona_circuits.circuit.statistics import Clusters
from persona_circuits.circuit.task import batches, encode, with_swap_rows
from persona_circuits.metrics import METRICS


def alone(n):
    return Clusters.named([""] * n, [""] * n, [""] * n)


def null(sigma):
    return NullRun("paraphrases", 9, 0, sigma, *[None] * 6)


def drawn(mean, n, seed=0, spread=1.0):
    values = np.random.default_rng(seed).standard_normal(n)
    return mean + spread * (values - values.mean()) / values.std()


@pytest.mark.parametrize(
    ("mean", "n", "sigma", "verdict", "says"),
    [
        (2.0, 16, None, "enough", "enough to search on"),
        (2.0, 16, 1.0, "enough", "enough to search on"),
        (2.0, 16, 2.5, "too small", r"paraphrases of one persona differ by 2.5 \(sigma_0\)"),
        (
            0.4,
            8,
            None,
            "too few pairs",
            r"too few pairs to show the effect \(p 0\.\d+\): about \d+ like these would do",
        ),
        (0.05, 8, None, "too small", r"about [\d,]+ pairs like these would be needed"),
        (-2.0, 16, None, "reversed", "answers and wrong answers seem to have changed places"),
        (0.0, 8, None, "too small", "over a million pairs"),
        (2.0, 1, None, "unknown", "one pair has no interval"),
    ],
)
def test_the_verdict(mean, n, sigma, verdict, says):
    found = signal_of(drawn(mean, n) if n > 1 else np.array([mean]), 0.4, alone(n), null=sigma and null(sigma))
    assert found.verdict == verdict
    assert re.search(says, found.sentence)
    assert found.enough is (verdict in ("enough", "unknown"))
    assert found.effect == pytest.approx(mean, abs=1e-12)


@pytest.mark.parametrize(
    ("effects", "sigma", "nothing"),
    [
        (drawn(2.0, 16), None, False),
        (drawn(2.0, 16), 2.5, True),
        (drawn(0.05, 8), None, True),
        (drawn(0.4, 8), None, True),
        (drawn(-2.0, 16), None, False),
        (np.array([2.0]), None, False),
    ],
    ids=["there", "paraphrases do as much", "zero", "few", "reversed", "one pair"],
)
def test_a_search_is_stopped_where_the_interval_holds_zero_or_paraphrases_do_as_much(effects, sigma, nothing):
    found = signal_of(effects, 0.4, alone(len(effects)), null=sigma and null(sigma))
    assert found.nothing is nothing
    assert found.shown.startswith(f"the effect is {effects.mean():+.3g}")


def test_where_there_is_nothing_it_is_rarely_called_enough():
    """Effects of mean zero, 12 pairs: at most the level of the test, a twentieth, is called enough or reversed."""
    rng = np.random.default_rng(1)
    found = [signal_of(rng.standard_normal(12), 0.4, alone(12)).verdict for _ in range(200)]
    assert sum(verdict in ("enough", "reversed") for verdict in found) <= 20


def test_as_many_pairs_as_it_asks_for_do_show_the_effect():
    """By simulation: a mean of .4 standard deviations, asked about at 8 pairs, is shown four times out of five."""
    asked = signal_of(drawn(0.4, 8), 0.4, alone(8)).needed
    assert 40 < asked < 80
    rng = np.random.default_rng(2)
    shown = [signal_of(0.4 + rng.standard_normal(asked), 0.4, alone(asked)).verdict == "enough" for _ in range(100)]
    assert 0.7 < np.mean(shown) <= 0.99


@pytest.mark.parametrize("metric", ["persona-divergence", "logit-diff", "prob-diff"])
def test_the_pairs_own_numbers_are_those_of_the_bare_model(tiny, tiny_task, metric):
    metric = METRICS[metric]
    rows = encode(tiny_task, tiny)
    used = with_swap_rows(rows) if metric.swap_rows else rows
    watch = SignalWatch(metric)
    for _ in watch.watched(prepare_each(tiny, batches(used, 3, "cpu"))):
        pass
    found = watch.signal(Clusters.of(tiny_task.pairs))
    effects, masses = [], []
    for row in rows:
        logits = tiny.bridge.original_model(torch.tensor([row.clean, row.corrupt])).logits[:, -1].double()
        (answer,), (wrong,) = row.answers, row.wrong_answers
        chances = logits.softmax(-1)
        what = chances if metric.name == "prob-diff" else logits
        margins = (what[:, answer] - what[:, wrong]).tolist()
        effects.append(margins[0] - margins[1])
        masses.append(float(chances[:, [answer, wrong]].sum(-1).mean()))
    assert found.effect == pytest.approx(np.mean(effects), abs=1e-5)
    assert found.mass == pytest.approx(np.mean(masses), abs=1e-6)
    assert found.reversed == sum(effect < 0 for effect in effects)
    assert found.n_pairs == len(rows)
    assert found.interval.low < found.effect < found.interval.high
