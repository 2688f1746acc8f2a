"""Intervals cover the truth as often as they say, and tests reject a true H0 no more often than they say."""

import importlib.util

import numpy as np
import pytest
from conftest import ROOT
from scipy import stats

from persona_circuits.circuit.evaluation.hypothesis import hsic
from persona_circuits.circuit.statistics import Clusters, permutations_of

SPEC = importlib.util.spec_from_file_location("coverage_of", ROOT / "benchmarks" / "coverage.py")
simulated = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(simulated)
DESIGNS = simulated.designs()


@pytest.mark.parametrize("n", simulated.SIZES)
@pytest.mark.parametrize(("shape", "least"), [("normal", 0.92), ("skewed", 0.885)])
def test_coverage_over_plain_pairs(n, shape, least):
    """The plain bootstrap covers .78, .89, .92 and .95 of normal samples, and less of skewed ones."""
    assert simulated.coverage_of_means(shape, n, 600) >= least
    assert simulated.coverage_of_ratios(shape, n, 250) >= least - 0.015


@pytest.mark.parametrize("name", list(DESIGNS))
def test_level_where_pairs_share_personas_and_questions(name):
    clusters = DESIGNS[name]
    assert simulated.level_of_independence(clusters, 0.8, 200) <= 0.095  # .05 and three standard errors
    assert simulated.level_of_equivalence(clusters, 0.8, 100) <= 0.11
    assert simulated.level_of_growth(clusters, 0.8, 100) <= 0.11


def test_that_pairs_counted_as_independent_are_rejected_too_often():
    crossed = DESIGNS["8 x 8 crossed"]
    assert simulated.level_of_independence(crossed, 0.8, 100, permute_all=True) > 0.12
    assert simulated.level_of_equivalence(crossed, 0.8, 100, alone=True) > 0.12
    assert simulated.level_of_growth(crossed, 0.8, 100, alone=True) > 0.12


@pytest.mark.parametrize("name", list(DESIGNS))
def test_permutations_leave_what_pairs_share_as_it_is(name):
    clusters = DESIGNS[name]
    (first, second), asked = clusters.all_named
    among = clusters.permutations
    for order in among.draws(np.random.default_rng(0), 20):
        assert sorted(order) == list(range(len(among.places)))
        moved = among.places[order]
        for codes in ((first, second), (asked, asked)):
            before, after = (
                np.array([[len({*a} & {*b}) for a in pairs] for b in pairs])
                for pairs in ([(codes[0][i], codes[1][i]) for i in places] for places in (among.places, moved))
            )
            assert (before == after).all()


def test_of_pairs_that_share_here_and_there_those_are_permuted_that_share_nothing():
    first, second, asked = np.array([0, 0, 2, 4, 6, 8]), np.array([1, 3, 5, 7, 9, 1]), np.array([0, 1, 2, 2, 3, 4])
    among = permutations_of(6, (first, second), asked)
    names = [{f"p{first[i]}", f"p{second[i]}", f"q{asked[i]}"} for i in among.places]
    assert sum(len(one) for one in names) == len(set().union(*names)) == 3 * 4
    assert "of 6 pairs that share no persona or question" in among.what


def test_dependence_is_found_where_names_are_exchanged():
    clusters, rng, found = DESIGNS["8 x 8 crossed"], np.random.default_rng(4), 0
    for seed in range(40):
        x = simulated.shared_noise(clusters, rng, 0.5)
        y = x + 0.7 * simulated.shared_noise(clusters, rng, 0.5)
        found += hsic(x, y, n_permutations=99, seed=seed, among=clusters.permutations)[1] <= 0.05
    assert found > 30


@pytest.mark.parametrize("n_personas", [6, 10])
def test_means_over_persona_pairs_that_share_personas(n_personas):
    """Effects that are subtracted; added ones are in ``tests/persona/test_collapse.py``. Three standard errors."""
    covered, rejected = simulated.means_over_couples(n_personas, 50, sign=-1.0)
    assert covered >= 0.86
    assert rejected <= 0.14


@pytest.mark.parametrize("levels", simulated.LEVELS)
def test_differences_over_persona_pairs_that_share_personas(levels):
    covered, rejected, shuffled = simulated.differences_over_couples(8, 30, levels=levels)
    assert covered >= 0.83  # three standard errors
    assert rejected <= 0.17
    if levels == "two personas":  # persona pairs whose levels are shuffled, as if they shared no persona
        assert shuffled > 0.2


def test_neurons_of_couples_that_share_personas():
    assert simulated.level_of_neurons(8, 15) <= 0.08
    assert simulated.level_of_neurons(8, 15, alone=True) > 0.2


def test_a_difference_has_the_spread_and_the_degrees_of_freedom_of_a_t_test():
    """Pairs that share nothing: Student's t test of two samples of equal size, as the robust variance gives it."""
    rng, first = np.random.default_rng(0), np.arange(12) < 6
    clusters = Clusters(12, None, None).between(first)
    values = rng.normal(size=12) + first
    size, influence = clusters.coefficient(values)
    assert size == pytest.approx(values[first].mean() - values[~first].mean())
    assert clusters.p_value(abs(size), influence) == pytest.approx(
        stats.ttest_ind(values[first], values[~first]).pvalue
    )


def test_a_difference_within_questions_leaves_questions_out_of_it():
    rng, asked = np.random.default_rng(1), np.repeat(np.arange(4), 6)
    first = np.tile([True, False, True, False, False, True], 4)
    values = 100.0 * asked + first + 0.01 * rng.normal(size=24)
    size, influence = Clusters(24, None, None).between(first, asked).coefficient(values)
    assert size == pytest.approx(1.0, abs=0.02)
    assert np.abs(influence).max() < 1


def test_clusters_among_some_pairs_are_those_of_their_names():
    names = [[f"{kind}{i % n}" for i in range(24)] for kind, n in (("a", 4), ("b", 5), ("q", 3))]
    places = np.arange(0, 24, 3)
    some, own = Clusters.named(*names).among(places), Clusters.named(*([one[i] for i in places] for one in names))
    assert (some.by, some.n) == (own.by, own.n)
    x = np.random.default_rng(2).normal(size=(8, 1))
    assert some.spread(x - x.mean()) == pytest.approx(own.spread(x - x.mean()))
    assert Clusters(24, None, None).among(places).by == "pairs"
