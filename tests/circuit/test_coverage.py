"""Intervals cover the truth as often as they say, and tests reject a true H0 no more often than they say."""

import importlib.util

import numpy as np
import pytest
from conftest import ROOT

from persona_circuits.circuit.evaluation.hypothesis import hsic
from persona_circuits.circuit.statistics import permutations_of

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
