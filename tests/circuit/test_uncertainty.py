"""Intervals over shared personas and questions: the robust variance pair by pair, and coverage of a known truth."""

from itertools import combinations

import numpy as np
import pytest

from persona_circuits.circuit.statistics import Clusters, interval, ratio_interval


def crossed(n_personas, n_questions):
    """Every two of the personas on every question: codes of A, of B and of the question."""
    names = [(a, b, q) for a, b in combinations(range(n_personas), 2) for q in range(n_questions)]
    return np.array(names)


def clusters_of(codes):
    return Clusters.named(*([f"n{code}" for code in column] for column in codes.T))


def test_the_spread_is_the_sum_over_pairs_that_share_something():
    codes = crossed(6, 3)
    influence = np.random.default_rng(0).normal(size=(len(codes), 2))
    influence -= influence.mean(axis=0)
    found = clusters_of(codes)
    (way,) = [one for one in found._usable if len(one.terms) == 5]  # sharing a persona or a question
    total = 0.0
    for i, (a, b, q) in enumerate(codes):
        for j, (c, d, r) in enumerate(codes):
            if {a, b} & {c, d} or q == r:
                total += float(influence[i] @ influence[j])
    spread = (way.correction * max(total, 0.0)) ** 0.5 / len(codes)
    assert way.spread(influence, confident=False) == pytest.approx(spread, rel=1e-9)
    assert found.spread(influence) >= spread - 1e-12  # the widest of all kinds of sharing is taken


def test_weights_have_the_sum_one_and_the_spread_that_was_asked_for():
    found = clusters_of(crossed(8, 4))
    influence = np.random.default_rng(1).normal(size=(found.n, 1))
    influence -= influence.mean(axis=0)
    weights = found.weights(influence, n_draws=3000, seed=0)
    np.testing.assert_allclose(weights.sum(axis=1), 1.0)
    assert (weights @ influence).std() == pytest.approx(found.spread(influence), rel=1e-6)


def draws(rng, codes, n_personas, n_questions, *, own):
    persona, question = rng.normal(size=n_personas), rng.normal(size=n_questions)
    effects = persona[codes[:, 0]] + persona[codes[:, 1]] + question[codes[:, 2]]
    return 3.0 + (1 - own) * effects + own * rng.normal(size=len(codes))


@pytest.mark.parametrize(("own", "least"), [(0.2, 0.9), (1.0, 0.9)])
def test_coverage_where_pairs_share_personas_and_questions(own, least):
    codes, hits, plain, n = crossed(8, 6), 0, 0, 150
    clusters = clusters_of(codes)
    assert clusters.by == "personas and questions"
    for seed in range(n):
        values = draws(np.random.default_rng(seed), codes, 8, 6, own=own)
        found = ratio_interval(values, np.ones(len(values)), clusters, n_draws=400, seed=seed)
        alone = ratio_interval(values, np.ones(len(values)), Clusters(len(values), None, None), n_draws=400, seed=seed)
        hits += found.low <= 3.0 <= found.high
        plain += alone.low <= 3.0 <= alone.high
    assert hits / n >= least
    if own < 0.5:
        assert plain / n < 0.7  # resampled as if they shared nothing, they cover far too little


def test_a_ratio_is_a_smooth_number_like_any_other():
    codes = crossed(6, 4)
    rng = np.random.default_rng(3)
    top, bottom = rng.normal(1, 0.3, size=len(codes)), rng.normal(2, 0.3, size=len(codes))
    clusters = clusters_of(codes)
    one = ratio_interval(top, bottom, clusters, n_draws=500)
    other = interval(lambda w: (w @ top) / (w @ bottom), clusters, n_draws=500)
    assert (one.low, one.high) == pytest.approx((other.low, other.high), abs=1e-6)
    assert ratio_interval(top, bottom - bottom.mean(), clusters) is None  # nothing to divide by


@pytest.mark.parametrize(
    ("names", "by", "note"),
    [
        ((["a", "b", "c"], ["b", "c", ""], ["q", "r", "s"]), "pairs", "personas are not named"),
        ((["a"] * 4, ["b"] * 4, ["q", "q", "r", "r"]), "pairs", "too few to be drawn"),
    ],
)
def test_what_cannot_be_drawn_is_said(names, by, note):
    found = Clusters.named(*names)
    assert found.by in (by, "questions")
    assert note in found.note
    assert note in found.describe()


def test_one_pair_has_no_interval():
    assert interval(lambda w: w @ np.ones(1), Clusters(1, None, None)) is None
