"""The study's estimates against numpy written out, its permutation test against every permutation."""

import itertools

import numpy as np
import pytest

from persona_circuits.circuit.statistics import Clusters, interval, weighted_mean
from persona_circuits.circuit.task import PromptPair
from persona_circuits.persona.data.items import Item
from persona_circuits.persona.study import Estimates, Number, StageNumbers, number_rows, slug, with_holm
from persona_circuits.persona.study.stages import permuted


def items(names, **axes):
    """One item per (persona A, persona B, question); ``axes`` are lists of values."""
    return [
        Item(
            PromptPair("c", "d", ("a",), ("b",), id=str(i), persona_a=a, persona_b=b, question=q),
            ("a", "b"),
            {key: values[i] for key, values in axes.items()},
        )
        for i, (a, b, q) in enumerate(names)
    ]


CROSSED = [(f"p{i}", f"q{i}", f"question {j}") for i in range(5) for j in range(4)]
RNG = np.random.default_rng(0)


def test_means_ratios_and_differences_are_numpys():
    x, y = RNG.normal(size=20), RNG.normal(size=20) + 3
    first = np.arange(20) % 3 == 0
    estimates = Estimates(items(CROSSED), n_resamples=300)
    assert estimates.mean(x)["value"] == pytest.approx(x.mean())
    assert estimates.ratio(x, y)["value"] == pytest.approx(x.mean() / y.mean())
    assert estimates.difference(x, first)["value"] == pytest.approx(x[first].mean() - x[~first].mean())
    assert estimates.median(x)["value"] == pytest.approx(np.median(x))
    assert estimates.median_difference(x, first)["value"] == pytest.approx(np.median(x[first]) - np.median(x[~first]))


def test_the_interval_of_a_mean_is_that_of_the_engine():
    x = RNG.normal(size=20)
    clusters = Clusters.named(*([names[k] for names in CROSSED] for k in range(3)))
    expected = interval(lambda w: weighted_mean(w, x), clusters, influence=(x - x.mean()), n_draws=500, seed=3)
    found = Estimates(items(CROSSED), n_resamples=500, seed=3).mean(x)
    assert (found["low"], found["high"]) == pytest.approx((expected.low, expected.high), abs=1e-5)
    assert found["n"] == 20


def test_the_interval_of_a_difference_covers_it():
    """Two levels whose means differ by 2, within every question: found, and with room above zero."""
    level = np.arange(20) % 2 == 0
    values = 2.0 * level + 0.1 * RNG.normal(size=20)
    found = Estimates(items(CROSSED), n_resamples=500).difference(values, level)
    assert 0 < found["low"] < 2 < found["high"] < 4


def test_what_is_not_known_is_left_out():
    x = np.array([1.0, np.nan, 3.0, 5.0] * 5)
    estimates = Estimates(items(CROSSED), n_resamples=100)
    assert estimates.mean(x)["value"] == pytest.approx(3.0)
    assert estimates.mean(x)["n"] == 15
    assert estimates.mean(np.full(20, np.nan)) == {"value": None, "n": 0}
    assert estimates.difference(x, np.ones(20, dtype=bool))["value"] is None
    assert estimates.median([1.0, np.inf, np.inf, 2.0] * 5)["value"] is None  # halfway to infinity
    assert estimates.median([1.0, 1.5, np.inf, 2.0] * 5)["value"] == pytest.approx(1.75)


def test_the_ends_of_an_interval_stay_within_their_range():
    estimates, hits = Estimates(items(CROSSED), n_resamples=300), [1.0] + [0.0] * 19
    free, kept = estimates.mean(hits), estimates.mean(hits, within=(0.03, 0.06))
    assert free["low"] < 0.03
    assert free["high"] > 0.06
    assert (kept["low"], kept["value"], kept["high"]) == pytest.approx((0.03, 0.05, 0.06))
    assert estimates.share(hits) == estimates.mean(hits, within=(0.0, 1.0))


def test_one_pair_has_a_number_and_no_interval():
    assert Estimates(items(CROSSED[:1])).mean([2.0]) == {"value": 2.0, "n": 1}


def test_weighted_medians_are_those_of_repeated_values():
    from persona_circuits.persona.study.numbers import _weighted_medians

    x = RNG.normal(size=7)
    weights = RNG.integers(0, 4, size=(30, 7)).astype(float)
    weights = weights[weights.sum(1) > 0]
    expected = [np.median(np.repeat(x, row.astype(int))) for row in weights]
    assert _weighted_medians(weights, x) == pytest.approx(expected)


def test_holm_is_over_all_that_have_a_p():
    found = with_holm({"a": Number(1.0, "", p=0.01), "b": Number(1.0, ""), "c": Number(1.0, "", p=0.04)})
    assert found["a"].p_holm == pytest.approx(0.02)
    assert found["c"].p_holm == pytest.approx(0.04)
    assert found["b"].p_holm is None


def test_found_leaves_out_what_is_no_number_and_refuses_two_of_a_name():
    found = StageNumbers()
    for name, value in (("a", None), ("b", float("nan")), ("c", float("inf")), ("d", True), ("e", 2)):
        found.add(name, value, "what", n=3)
    assert list(found.numbers) == ["d", "e"]
    assert found.numbers["d"].as_dict() == {"value": 1.0, "n": 3, "what": "what"}
    with pytest.raises(AssertionError, match="two numbers"):
        found.add("e", 1, "again")
    assert number_rows(found.numbers)[0]["unit"] is None


@pytest.mark.parametrize(
    ("text", "expected"),
    [("prompt-end", "prompt_end"), ("Prior dominance", "prior_dominance"), ("a/b~c", "a_b_c"), ("", "none"), (2, "2")],
)
def test_slugs(text, expected):
    assert slug(text) == expected


def gap(values):
    return lambda codes: np.abs(
        (codes * values).sum(1) / codes.sum(1) - ((1 - codes) * values).sum(1) / (1 - codes).sum(1)
    )


def test_permutations_of_whole_persona_pairs():
    """A level that belongs to the personas: in the long run all 10 ways to give it to 2 of 5 are tried."""
    codes = np.repeat([1, 1, 0, 0, 0], 4)
    values = RNG.normal(size=20) + codes
    observed = gap(values)(codes[None])[0]
    ways = [np.repeat([int(i in chosen) for i in range(5)], 4) for chosen in itertools.combinations(range(5), 2)]
    exact = np.mean([gap(values)(way[None])[0] >= observed - 1e-9 for way in ways])
    p, what = permuted(gap(values), codes, items(CROSSED), n_resamples=4000)
    assert what == "persona pairs"
    assert p == pytest.approx(exact, abs=0.02)


def test_permutations_of_whole_questions():
    codes = np.tile([1, 0, 0, 0], 5)
    values = RNG.normal(size=20)
    observed = gap(values)(codes[None])[0]
    ways = [np.tile([int(i == chosen) for i in range(4)], 5) for chosen in range(4)]
    exact = np.mean([gap(values)(way[None])[0] >= observed - 1e-9 for way in ways])
    p, what = permuted(gap(values), codes, items(CROSSED), n_resamples=4000)
    assert what == "questions"
    assert p == pytest.approx(exact, abs=0.02)


def test_permutations_within_questions_leave_questions_out_of_it():
    """Questions of very different D, levels mixed in each: the difference within questions is found all the same."""
    names = [(f"p{i}", f"q{i}", f"question {i % 4}") for i in range(24)]
    codes = (np.arange(24) // 4) % 2
    values = 100.0 * (np.arange(24) % 4) + codes + 0.1 * RNG.normal(size=24)
    p, what = permuted(gap(values), codes, items(names), n_resamples=999)
    assert what == "pairs of a question"
    assert p <= 0.01
    alone = [(f"p{i}", f"q{i}", f"question {i}") for i in range(24)]
    p, what = permuted(gap(values), codes, items(alone), n_resamples=999)
    assert what == "pairs"
    assert p > 0.5


def test_few_mixed_questions_are_taken_in_groups():
    """A level that is nearly the question's: shuffled within questions hardly anything would move."""
    names = [(f"p{i}", f"q{i}", f"question {i // 4}") for i in range(40)]
    codes = np.repeat([1, 0], 20)
    codes[:2] = 0  # one question of ten has both
    values = 2.0 * codes + RNG.normal(size=40)
    p, what = permuted(gap(values), codes, items(names), n_resamples=999)
    assert what == "groups of a question and level"
    assert p <= 0.02


def test_where_there_is_no_difference_p_is_uniform():
    names = [(f"p{i}", f"q{i}", f"question {i}") for i in range(20)]
    codes = np.arange(20) % 2
    found = [
        permuted(gap(np.random.default_rng(seed).normal(size=20)), codes, items(names), n_resamples=99, seed=seed)[0]
        for seed in range(200)
    ]
    assert 0.4 < np.mean(found) < 0.6
    assert np.mean(np.array(found) <= 0.1) < 0.17
