"""Certificates against every deletion tried, and their coverage over many sets of draws."""

from itertools import combinations
from math import comb

import numpy as np
import pytest
from scipy import stats

from persona_circuits.circuit.errors import OptionError
from persona_circuits.circuit.evaluation import PairScores, Rule
from persona_circuits.circuit.evaluation.certificates import CONFIDENCE, Removal, Units, certify, p_of
from persona_circuits.circuit.graph import Graph
from persona_circuits.circuit.task import PromptPair

GRAPH = Graph(2, 2)
RULE = Rule("threshold", share=0.1)


def pairs_of(n, n_personas=5, n_questions=4):
    """Pairs of two personas and a question each."""
    return [
        PromptPair("a", "b", ("x",), ("y",), persona_a=f"p{i % n_personas}", persona_b=f"p{(i + 1) % n_personas}",
                   question=f"q{i % n_questions}", line=i)
        for i in range(n)
    ]  # fmt: skip


def noisy(n, noise=0.7, seed=0):
    rng = np.random.default_rng(seed)
    values = (rng.normal(size=GRAPH.n_edges) + noise * rng.normal(size=(n, GRAPH.n_edges))).astype(np.float32)
    return PairScores(GRAPH, values, rng.uniform(4, 6, size=n))


def found_on(scores, pairs, gone):
    """The rule's circuit without these personas and questions, by name and written out."""
    rows = [i for i, p in enumerate(pairs) if not gone & {f"persona {p.persona_a}", f"persona {p.persona_b}",
            f"question {p.question}"}]  # fmt: skip
    if not rows:
        return None
    kept = PairScores(GRAPH, scores.values[rows], scores.whole[rows])
    return RULE.circuit(kept.mean(), float(kept.whole.mean()))


@pytest.mark.parametrize("radius", [1, 2])
def test_every_deletion_is_tried(radius):
    pairs, scores = pairs_of(20), noisy(20)
    units = Units.of(pairs)
    assert len(units.names) == 9
    circuit = RULE.circuit(scores.mean(), float(scores.whole.mean()))
    found = certify(scores, circuit, RULE, units, Removal(radius))
    every = [found_on(scores, pairs, set(gone)) for r in range(1, radius + 1) for gone in combinations(units.names, r)]
    stays = set(circuit)
    for one in every:
        stays &= set() if one is None else set(one)
    assert found.way == "exhaustive"
    assert found.n == len(every)
    assert set(found.stays) == stays
    assert 0 < len(found.stays) < len(circuit)
    assert len(found.abstains) == len(circuit) - len(stays)
    assert f"{len(stays)} of {len(circuit)} edges stay when any {radius} of 9 personas and questions" in found.sentence


def test_what_smoothing_certifies_holds_in_the_vote_after_every_deletion():
    """The vote of all draws, made exactly by trying every draw there is, of all units and of those left."""
    pairs, scores, radius = pairs_of(20), noisy(20, noise=0.3), 1
    units = Units.of(pairs)
    circuit = RULE.circuit(scores.mean(), float(scores.whole.mean()))
    kept = certify(scores, circuit, RULE, units, Removal(radius, most_sets=0, n_draws=1)).kept
    masks = {}
    for chosen in combinations(range(9), kept):
        one = found_on(scores, pairs, {units.names[i] for i in range(9) if i not in chosen})
        masks[chosen] = np.zeros_like(GRAPH.valid) if one is None else one.mask
    share = np.mean(list(masks.values()), axis=0)
    after = [np.mean([m for chosen, m in masks.items() if gone not in chosen], axis=0) for gone in range(9)]
    least = np.min(after, axis=0)
    bar = 1 - comb(8, kept) / comb(9, kept) / 2
    assert (share[circuit.mask] > bar).any()
    assert (least[share > bar] > 0.5).all()
    wrong = claims = 0
    for seed in range(25):
        found = certify(scores, circuit, RULE, units, Removal(radius, seed, most_sets=0, n_draws=150))
        assert found.bar == pytest.approx(bar)
        claims += len(found.stays)
        wrong += bool((found.stays.mask & (share <= bar)).any())
    assert claims
    assert wrong <= stats.binom.ppf(0.999, 25, 1 - CONFIDENCE)


def test_an_edge_at_the_bar_itself_is_certified_no_more_often_than_the_level_says():
    rng, n, bar, level = np.random.default_rng(0), 500, 0.95, 0.05
    counts = rng.binomial(n, bar, size=(4000, 1))
    certified = int((p_of(counts, n, bar) <= level).sum())
    assert certified <= stats.binom.ppf(0.999, 4000, level)
    assert certified > 20
    np.testing.assert_allclose(p_of(np.array([[0, 470, 500]]), n, bar)[0], stats.binom.sf([-1, 469, 499], n, bar))


def test_pairs_without_names_are_what_is_taken_away():
    pairs = [PromptPair("a", "b", ("x",), ("y",), line=i) for i in range(6)]
    units = Units.of(pairs)
    assert units.by == "pairs"
    assert units.left(np.arange(6) != 2).tolist() == [True, True, False, True, True, True]


def test_where_nothing_is_left_every_edge_abstains():
    """All pairs have one question."""
    pairs, scores = pairs_of(10, n_questions=1), noisy(10)
    circuit = RULE.circuit(scores.mean(), float(scores.whole.mean()))
    found = certify(scores, circuit, RULE, Units.of(pairs), Removal(1))
    assert found.empty == 1
    assert not len(found.stays)
    assert found.sentence.endswith("1 of these leave no pair")


@pytest.mark.parametrize("radius", [0, 9])
def test_a_radius_must_leave_something(radius):
    scores = noisy(20)
    with pytest.raises(OptionError, match="from 1 to 8"):
        certify(scores, RULE.circuit(scores.mean(), 5.0), RULE, Units.of(pairs_of(20)), Removal(radius))
