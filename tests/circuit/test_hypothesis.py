"""Each test's own behaviour where H0 holds and where it does not, then all of them on circuits that are known."""

import json
from dataclasses import replace
from functools import cache
from itertools import product
from math import prod

import numpy as np
import pytest
from scipy import stats

from persona_circuits.circuit.errors import OptionError
from persona_circuits.circuit.evaluation import Measurements
from persona_circuits.circuit.evaluation.hypothesis import (
    HypothesisOptions,
    corrected,
    equivalence,
    holm,
    hsic,
    hypothesis_tests,
    independence,
    minimality,
    partial_necessity,
    sufficiency,
)
from persona_circuits.circuit.forward import measure, prepare
from persona_circuits.circuit.subgraph import Circuit
from persona_circuits.circuit.task import batches, encode, with_swap_rows
from persona_circuits.metrics import METRICS
from persona_circuits.models.planted import planted_models

DIVERGENCE = METRICS["persona-divergence"]
PLANTED = {planted.name: planted for planted in planted_models()}
CHECKED = {"n_random": 20, "n_permutations": 199}
QUICK = HypothesisOptions(quick=True)


@pytest.fixture(autouse=True)
def _short_walks(monkeypatch):
    """Circuits here are of a few edges; that ranks hold for walks of any length is tested with the walks."""
    monkeypatch.setattr("persona_circuits.circuit.evaluation.matched.FEWEST_STEPS", 300)


def most(trials, level):
    """Rejections that so many trials at that level exceed once in a thousand times."""
    return stats.binom.ppf(0.999, trials, level)


# Equivalence


def by_enumeration(n, gap, chance):
    """P(|2 K - n| >= gap) from all 2^n outcomes of n pairs."""
    outcomes = product((0, 1), repeat=n)
    return sum(prod(chance if x else 1 - chance for x in one) for one in outcomes if abs(2 * sum(one) - n) >= gap)


@pytest.mark.parametrize(("n", "above", "below"), [(8, 8, 0), (8, 0, 7), (9, 5, 4), (7, 2, 2)])
@pytest.mark.parametrize("eps", [0.1, 0.25])
def test_p_of_equivalence_is_that_of_all_outcomes(n, above, below, eps):
    delta = np.array([1.0] * above + [-1.0] * below + [0.0] * (n - above - below))
    found = equivalence(delta, np.zeros(n), eps=eps)
    assert found.p == pytest.approx(by_enumeration(n, abs(above - below), 0.5 + eps))
    assert found.statistic == pytest.approx((above + (n - above - below) / 2) / n)


@pytest.mark.parametrize("n", [1, 2, 16, 17, 200])
def test_an_identical_circuit_is_shown_to_be_equivalent_by_enough_pairs(n):
    scores = np.random.default_rng(n).normal(size=n)
    found = equivalence(scores, scores)
    assert (found.p, found.statistic) == (1.0, 0.5)
    assert found.details["n_ties"] == n
    # no pair above although a share of .2 might be: the exact bound of none in n
    assert found.details["p_shown"] == pytest.approx(min(1.0, 2 * 0.8**n), abs=1e-9)
    assert found.decision == ("passed" if n >= 17 else "undecided")


def test_the_bound_is_that_of_scipys_exact_intervals():
    rng = np.random.default_rng(5)
    for _ in range(20):
        signs = rng.choice((-1.0, 0.0, 1.0), p=(0.3, 0.3, 0.4), size=60)
        above, below = (stats.binomtest(int((signs == one).sum()), 60).proportion_ci(0.95) for one in (1, -1))
        apart = max(above.high - below.low, below.high - above.low) / 2
        found = equivalence(signs, np.zeros(60))
        assert found.details["eps_shown"] == pytest.approx(apart)
        assert equivalence(signs, np.zeros(60), eps=min(0.49, apart + 1e-6)).details["p_shown"] <= 0.05
        assert equivalence(signs, np.zeros(60), eps=apart - 1e-6).details["p_shown"] > 0.05


@pytest.mark.parametrize("ties", [0.0, 0.5])
@pytest.mark.parametrize("n", [17, 40, 150])
def test_a_circuit_at_the_edge_of_equivalence_hardly_ever_passes(n, ties):
    rng, trials = np.random.default_rng(n), 100
    above = (1 - ties) / 2 + 0.1
    rows = rng.choice((1.0, 0.0, -1.0), p=(above, ties, 1 - ties - above), size=(trials, n))
    passed = sum(equivalence(row, np.zeros(n)).decision == "passed" for row in rows)
    assert passed <= most(trials, 0.05)


def test_sixteen_pairs_that_lean_to_one_side_do_not_pass():
    """With a true P of .7 a test that only fails to reject passes nine times in ten."""
    rng, trials = np.random.default_rng(7), 200
    signs = np.where(rng.random((trials, 16)) < 0.7, 1.0, -1.0)
    found = [equivalence(row, np.zeros(16)) for row in signs]
    assert sum(one.p > 0.05 for one in found) > 0.75 * trials
    assert not any(one.decision == "passed" for one in found)
    assert all(one.details["eps_shown"] > 0.2 for one in found)
    assert "uneven from 88%" in found[0].could_show


def test_power_to_show_equivalence():
    rng = np.random.default_rng(8)
    signs = np.where(rng.random((60, 300)) < 0.5, 1.0, -1.0)
    assert sum(equivalence(row, np.zeros(300)).decision == "passed" for row in signs) > 45


def test_the_indicator_is_tested_and_not_the_mean():
    n = 30
    outlier = np.full(n, -0.5)
    outlier[0] = 0.5 * (n - 1)  # the mean difference is zero, yet 29 of 30 pairs are below
    assert outlier.mean() == pytest.approx(0)
    assert equivalence(outlier, np.zeros(n)).decision == "failed"
    balanced = np.array([10.0, -0.1] * 100)  # the mean is far from zero, the chances are even
    assert equivalence(balanced, np.zeros(200)).decision == "passed"


def test_negligible_differences_are_ties_and_the_strict_p_is_beside():
    delta = np.full(40, -0.004)
    found = equivalence(delta, np.zeros(40), negligible=0.01)
    assert (found.decision, found.details["n_ties"]) == ("passed", 40)
    assert found.details["p_strict"] < 1e-3
    assert equivalence(delta, np.zeros(40), negligible=0.001).decision == "failed"


@pytest.mark.parametrize("ties", [0.0, 0.3])
def test_level_of_equivalence_at_the_edge_of_h0(ties):
    rng, trials, n = np.random.default_rng(1), 400, 30
    chance = 0.5 + 0.1 / (1 - ties)  # P(above) + P(tie) / 2 = 0.6
    signs = np.where(rng.random((trials, n)) < chance, 1.0, -1.0) * (rng.random((trials, n)) >= ties)
    rejected = sum(equivalence(row, np.zeros(n)).decision == "failed" for row in signs)
    assert rejected <= most(trials, 0.05)
    if not ties:
        assert rejected > 0.3 * 0.05 * trials  # the test is discrete, not idle


def test_power_of_equivalence():
    rng, trials = np.random.default_rng(2), 200
    signs = np.where(rng.random((trials, 40)) < 0.95, -1.0, 1.0)
    assert sum(equivalence(row, np.zeros(40)).decision == "failed" for row in signs) > 0.95 * trials


def test_too_few_pairs_cannot_contradict_equivalence():
    for n in range(1, 7):
        found = equivalence(np.full(n, -1.0), np.zeros(n))
        assert found.decision == "undecided"
        assert "neither rejected" in found.sentence
        assert found.details["fails_from"] is None
    assert equivalence(np.full(7, -1.0), np.zeros(7)).decision == "failed"
    assert "1 pair:" in equivalence(np.array([-1.0]), np.array([0.0])).sentence


# Independence


def slow_hsic(x, y):
    """tr(K H L H) / n^2, every matrix written out."""
    n = len(x)
    centre = np.eye(n) - np.ones((n, n)) / n
    kernels = []
    for values in (x, y):
        gaps = np.array([[abs(a - b) for b in values] for a in values])
        width = np.median([gap for gap in gaps.ravel() if gap > 0])
        kernels.append(np.exp(-(gaps**2) / (2 * width**2)))
    return np.trace(kernels[0] @ centre @ kernels[1] @ centre) / n**2


def test_hsic_is_that_of_the_definition_and_p_counts_permutations():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=12), rng.integers(0, 3, size=12).astype(float)
    found, p = hsic(x, y, n_permutations=300, seed=4)
    assert found == pytest.approx(slow_hsic(x, y))
    drawn = [slow_hsic(x, y[rng.permutation(12)]) for _ in range(300)]
    assert p == pytest.approx((1 + sum(value >= found for value in drawn)) / 301, abs=0.12)
    assert hsic(x, y, n_permutations=300, seed=4) == (found, p)


def test_p_of_independence_is_never_zero_and_a_constant_says_nothing():
    x = np.arange(60.0)
    assert hsic(x, x, n_permutations=99)[1] == 0.01
    assert hsic(np.ones(60), x, n_permutations=99) == (pytest.approx(0.0), 1.0)


def test_level_of_independence():
    rng, trials = np.random.default_rng(3), 400
    rejected = 0
    for trial in range(trials):
        x, y = rng.normal(size=15), rng.standard_cauchy(size=15)
        rejected += independence(x, y, n_permutations=99, seed=trial).decision == "failed"
    assert 0.3 * 0.05 * trials < rejected <= most(trials, 0.05)


def test_independence_passes_only_where_a_correlation_would_have_been_found():
    rng = np.random.default_rng(13)
    few, many = rng.normal(size=(2, 12)), rng.normal(size=(2, 60))
    assert independence(*few).decision == "undecided"
    assert independence(*many).decision == "passed"
    assert independence(*many).details["detectable"] == pytest.approx(np.tanh(2.8 / 59**0.5), abs=0.05)


def test_the_detectable_correlation_is_found_four_times_in_five():
    rng, trials, n = np.random.default_rng(14), 80, 60
    rho = independence(*rng.normal(size=(2, n)))
    rho = rho.details["detectable"]
    x, noise = rng.normal(size=(2, trials, n))
    y = rho * x + (1 - rho**2) ** 0.5 * noise
    pearson = np.mean([stats.pearsonr(a, b).pvalue <= 0.05 for a, b in zip(x, y, strict=True)])
    assert 0.68 < pearson < 0.92


def test_power_of_independence_against_dependence_without_correlation():
    rng, trials, found = np.random.default_rng(4), 60, 0
    for trial in range(trials):
        x = rng.normal(size=60)
        found += independence(x**2 + 0.3 * rng.normal(size=60), x, n_permutations=99, seed=trial).decision == "failed"
    assert found > 0.9 * trials


def test_a_complement_without_effect_is_independent():
    model = np.random.default_rng(5).normal(size=20)
    found = independence(0.001 * model, model, negligible=0.01)
    assert (found.decision, found.p) == ("passed", 1.0)
    assert "does nothing on any of 20 pairs" in found.sentence
    assert independence(0.001 * model, model, negligible=1e-4).decision == "failed"


def test_raw_scores_of_an_empty_complement_would_look_dependent():
    """With the corrupt ablation the empty circuit scores -D/2 where the model scores D/2."""
    d = np.random.default_rng(6).normal(3, 1, size=20)
    full, empty = d / 2, -d / 2
    assert independence(empty, full).decision == "failed"
    assert independence(empty - empty, full - empty).decision == "passed"


def test_where_dependence_cannot_show_independence_is_not_claimed():
    effect = np.random.default_rng(7).normal(size=10)
    for complement, model in ((effect, np.ones(10)), (np.ones(10), effect)):
        found = independence(complement, model)
        assert (found.decision, found.p) == ("not applicable", None)
        assert "same effect on every pair" in found.sentence
    for n, permutations in ((1, 999), (2, 999), (3, 999), (10, 9)):
        found = independence(effect[:n], 2 * effect[:n], n_permutations=permutations)
        assert found.decision == "undecided"
        assert "p cannot fall below" in found.sentence


# Sufficiency and necessity


def test_rank_p_counts_random_circuits_that_do_as_well():
    model = np.zeros(3)
    random = np.array([[k, -k, k] for k in (1.0, 2.0, 3.0, 4.0)])
    near, far = np.full(3, 1.5), np.full(3, -2.0)
    assert sufficiency(near, model, random).p == (1 + 1) / 5
    assert sufficiency(far, model, random).p == (1 + 2) / 5  # a tie counts against the circuit
    assert partial_necessity(near, model, random).p == (1 + 3) / 5
    assert partial_necessity(far, model, random).statistic == 2.0
    assert partial_necessity(np.full(3, 9.0), model, random).details["p_quantile"] == pytest.approx(0.9**4)


@pytest.mark.parametrize("test", [sufficiency, partial_necessity])
def test_level_of_rank_tests_where_the_circuit_is_one_of_the_random_ones(test):
    rng, trials = np.random.default_rng(8), 1500
    passed = 0
    for _ in range(trials):
        scores = rng.normal(size=(40, 6))
        passed += test(scores[0], np.zeros(6), scores[1:]).decision == "passed"
    assert 0.3 * 0.05 * trials < passed <= most(trials, 0.05)


def test_power_of_rank_tests():
    rng, trials = np.random.default_rng(9), 100
    random = rng.normal(size=(trials, 100, 8))
    assert sum(sufficiency(0.1 * one[0], np.zeros(8), one).decision == "passed" for one in random) == trials
    assert sum(partial_necessity(9 + one[0], np.zeros(8), one).decision == "passed" for one in random) == trials


def test_rank_tests_say_when_they_could_not_decide():
    few = sufficiency(np.zeros(4), np.zeros(4), np.ones((18, 4)))
    assert (few.decision, few.p) == ("undecided", 1 / 19)
    assert "too few for level 0.05" in few.sentence
    repeats = np.ones((100, 4))
    repeats[:30] = 0.0
    same = sufficiency(np.zeros(4), np.zeros(4), repeats, is_same=[True] * 30 + [False] * 70)
    assert same.decision == "undecided"
    assert "30 of them are the circuit itself" in same.sentence
    assert sufficiency(np.zeros(4), np.zeros(4), repeats).decision == "failed"
    none = partial_necessity(np.ones(4), np.zeros(4), np.zeros((0, 4)))
    assert (none.decision, none.p) == ("not applicable", None)


# Minimality


def test_holm_is_that_of_the_definition():
    p = np.array([0.01, 0.04, 0.03, 0.005, 0.9])
    assert holm(p) == pytest.approx([0.04, 0.09, 0.09, 0.025, 0.9])
    rng = np.random.default_rng(10)
    for _ in range(20):
        p = rng.random(6) ** 3
        order = sorted(range(6), key=lambda i: p[i])
        for place, i in enumerate(order):
            assert holm(p)[i] == pytest.approx(min(1, max((6 - k) * p[j] for k, j in enumerate(order[: place + 1]))))


def test_level_of_minimality_over_all_edges_of_a_circuit():
    """Twenty edges that each beat exactly 90 % of random edges: one in twenty circuits may lose any of them."""
    rng, trials, n_edges = np.random.default_rng(11), 600, 20
    edges = np.full(n_edges, stats.expon.ppf(0.9))
    names = [str(i) for i in range(n_edges)]
    failed = sum(minimality(edges, rng.exponential(size=100), names)[0].decision == "failed" for _ in range(trials))
    assert failed <= most(trials, 0.05)


def test_power_of_minimality_finds_the_idle_edges_and_no_other():
    rng = np.random.default_rng(12)
    changes = np.array([5.0, 0.0, 8.0, 0.1, 6.0])
    for _ in range(50):
        outcome, edges = minimality(changes, rng.exponential(size=100), ["a", "b", "c", "d", "e"])
        assert outcome.decision == "failed"
        assert outcome.details["superfluous"] == ["b", "d"]
        assert [edge.superfluous for edge in edges] == [False, True, False, True, False]
    assert edges[1].p == pytest.approx(0.1**100)
    assert edges[1].p_holm == pytest.approx(5 * 0.1**100)


def test_minimality_without_an_object_or_enough_random_edges():
    assert minimality(np.zeros(0), np.ones(5), [])[0].decision == "not applicable"
    assert "no edge outside" in minimality(np.ones(2), np.zeros(0), ["a", "b"])[0].sentence
    few, _ = minimality(np.ones(20), np.ones(2), [str(i) for i in range(20)])
    assert few.decision == "undecided"
    assert "too few to reject any" in few.sentence
    some, _ = minimality(np.ones(3), np.zeros(50), ["a", "b", "c"], n_edges=400)
    assert "3 of 400 edges" in some.sentence


# On models


@cache
def planted(name):
    model = PLANTED[name].model()
    rows = with_swap_rows(encode(PLANTED[name].task, model))
    return model, [prepare(model, batch) for batch in batches(rows, 32, "cpu")]


def report_on(name, edges=None, **options):
    model, prepared = planted(name)
    circuit = Circuit.of(model.graph, PLANTED[name].true_edges if edges is None else edges)
    kept = {name: options.pop(name) for name in ("progress", "state", "clusters") if name in options}
    asked = HypothesisOptions(**{**CHECKED, **options})
    return hypothesis_tests(model, lambda: prepared, DIVERGENCE, circuit, asked, **kept)


def decisions(report):
    return {outcome.name: outcome.decision for outcome in report.outcomes}


@pytest.mark.parametrize("name", list(PLANTED))
def test_nothing_speaks_against_true_circuits(name):
    report = report_on(name)
    found = decisions(report)
    assert (found["independence"], found["minimality"]) == ("passed", "passed")
    assert found["equivalence"] == "undecided"  # the same on all of twelve pairs, which is too few to show it
    assert report["equivalence"].details["n_ties"] == report.n_pairs == 12
    assert {found["sufficiency"], found["necessity"]} <= {"passed", "undecided"}
    assert report["necessity"].p <= 0.05  # twenty random circuits are enough for one test and too few for five
    assert "at least 99 random ones" in report["necessity"].sentence


def test_sufficiency_and_necessity_are_decided_where_the_graph_has_room():
    found = report_on("cancel", n_random=100)
    assert found["sufficiency"].decision == found["necessity"].decision == "passed"
    assert found["sufficiency"].p_holm == pytest.approx(5 / 101)


def test_the_five_tests_are_corrected_for_each_other():
    report = report_on("copy")
    ps = np.array([min(one.p, one.details.get("p_shown", 1.0)) for one in report.outcomes])
    assert [one.p_holm for one in report.outcomes] == pytest.approx(holm(ps).tolist())
    alone = partial_necessity(np.full(3, 9.0), np.zeros(3), np.zeros((40, 3)))
    assert (alone.decision, corrected([alone])[0].decision) == ("passed", "passed")
    together = corrected([alone, *report.outcomes[:2], *report.outcomes[:2]])
    assert (together[0].decision, together[0].p_holm) == ("undecided", pytest.approx(5 / 41))


@pytest.mark.parametrize("name", ["copy", "keys"])
def test_a_circuit_that_lacks_an_edge_fails(name):
    true = PLANTED[name].true_edges
    found = report_on(name, true - {next(edge for edge in sorted(true) if edge.endswith("->logits"))})
    assert decisions(found)["equivalence"] == "failed"
    assert decisions(found)["minimality"] == "failed"  # nothing of what is left does anything any more
    assert decisions(found)["sufficiency"] != "passed"
    assert found["minimality"].details["n_superfluous"] == len(found.edges)


def test_a_circuit_that_lacks_one_of_two_branches_leaves_dependence_behind():
    branch = {"input->a1.h0<v>", "a1.h0->logits"}
    found = decisions(report_on("cancel", branch))
    assert found["equivalence"] == found["independence"] == "failed"
    assert found["minimality"] == "passed"


def test_superfluous_edges_are_named():
    idle = {"input->a0.h0<v>", "a0.h0->m1", "input->m1", "m1->logits"}
    found = report_on("copy", PLANTED["copy"].true_edges | idle)
    assert decisions(found)["equivalence"] == "undecided"
    assert found["minimality"].decision == "failed"
    assert set(found["minimality"].details["superfluous"]) == idle
    assert {row["edge"] for row in found.edge_rows()[:4]} == idle


def test_a_circuit_of_bystanders_fails_everything_but_being_unlike_the_rest():
    found = decisions(report_on("copy", {"input->a0.h0<v>", "a0.h0->logits"}))
    assert found["equivalence"] == found["independence"] == found["necessity"] == found["minimality"] == "failed"
    assert found["sufficiency"] != "passed"


def test_the_numbers_come_from_the_right_circuits():
    model, prepared = planted("keys")
    true = PLANTED["keys"].circuit(model.graph)
    found = report_on("keys")
    masks = [model.graph.valid, np.zeros_like(true.mask), true.mask, true.complement().mask]
    for edge in map(str, true.edges()):
        masks.append(true.mask.copy())
        masks[-1][model.graph.index(edge)] = False
    full, empty, alone, without, *lacking = measure(model, prepared, masks, DIVERGENCE).reshape(9, -1, 2).mean(2)
    assert found.m_full == pytest.approx(full.mean(), abs=1e-6)
    assert found.m_empty == pytest.approx(empty.mean(), abs=1e-6)
    assert found.m_complement == pytest.approx(without.mean(), abs=1e-6)
    assert found["sufficiency"].statistic == pytest.approx(np.abs(alone - full).mean(), abs=1e-6)
    assert found["necessity"].statistic == pytest.approx(np.abs(without - full).mean(), abs=1e-6)
    assert [edge.edge for edge in found.edges] == [str(edge) for edge in true.edges()]
    expected = [np.abs(values - alone).mean() for values in lacking]
    assert [edge.change for edge in found.edges] == pytest.approx(expected, abs=1e-6)
    assert found.n_pairs == len(full)


def test_full_and_empty_circuit():
    model, _ = planted("copy")
    everything = [str(edge) for edge in model.graph.edges()]
    full = report_on("copy", everything, max_edges=5)
    assert decisions(full) == {
        "equivalence": "undecided",
        "independence": "passed",
        "sufficiency": "not applicable",
        "necessity": "not applicable",
        "minimality": "not applicable",
    }
    empty = decisions(report_on("copy", ()))
    assert (empty["equivalence"], empty["independence"]) == ("failed", "failed")
    assert {empty[name] for name in ("sufficiency", "necessity", "minimality")} == {"not applicable"}


@pytest.mark.parametrize("n", [1, 2])
def test_one_and_two_pairs(n):
    case = PLANTED["keys"]
    model = case.model()
    rows = with_swap_rows(encode(case.task, model)[:n])
    prepared = [prepare(model, batch) for batch in batches(rows, 32, "cpu")]
    how = HypothesisOptions(**CHECKED)
    right = hypothesis_tests(model, lambda: prepared, DIVERGENCE, case.circuit(model.graph), how)
    assert right.n_pairs == n
    assert decisions(right)["equivalence"] == "undecided"  # the same on every pair there is, but so few
    part = Circuit.of(model.graph, {"input->a0.h1<v>", "a0.h1->a1.h0<v>", "a1.h0->logits"})
    found = hypothesis_tests(model, lambda: prepared, DIVERGENCE, part, how)
    assert decisions(found)["equivalence"] == "undecided"
    assert json.dumps(found.as_dict(), allow_nan=False)


def test_where_nothing_is_to_be_explained_nothing_applies(tiny, tiny_task):
    groups = batches(with_swap_rows(encode(tiny_task, tiny)), 8, "cpu")
    same = [prepare(tiny, replace(group, corrupt=group.clean)) for group in groups]
    found = hypothesis_tests(tiny, lambda: same, DIVERGENCE, Circuit.of(tiny.graph, ["input->m0"]), QUICK)
    assert set(decisions(found).values()) == {"not applicable"}
    assert "no behaviour that a circuit could have" in found["minimality"].sentence
    assert found.edges == ()


def test_a_metric_that_measures_from_the_model_has_no_equivalence(tiny, tiny_task):
    prepared = [prepare(tiny, group) for group in batches(encode(tiny_task, tiny), 8, "cpu")]
    circuit = Circuit.of(tiny.graph, ["input->a0.h0<v>", "a0.h0->m1", "m1->logits"])
    found = hypothesis_tests(tiny, lambda: prepared, METRICS["kl"], circuit, QUICK)
    assert found["equivalence"].decision == "not applicable"
    assert "distance from the model itself" in found["equivalence"].sentence
    assert found["sufficiency"].p is not None


def test_the_report_is_plain_repeatable_and_says_how_it_was_made():
    once, again, other = (report_on("two-hop", quick=True, seed=seed) for seed in (1, 1, 2))
    text = json.dumps(once.as_dict(), allow_nan=False)
    assert text == json.dumps(again.as_dict(), allow_nan=False)
    assert text != json.dumps(other.as_dict(), allow_nan=False)
    assert once.quick
    assert once.random["n_circuits"] == 19
    assert once.resampled == "pairs, of 12 pairs"
    assert 0 < once.rounding < 1e-4
    assert [row["test"] for row in once.rows()] == [
        "equivalence",
        "independence",
        "sufficiency",
        "necessity",
        "minimality",
    ]
    assert all(row["alpha"] == 0.05 and row["says"].endswith(".") for row in once.rows())
    assert once.outcomes[0].hypothesis == "|P(s(C) > s(M)) - 1/2| < 0.1"


def test_only_some_edges_of_a_large_circuit_are_report_on():
    found = report_on("keys", max_edges=2, quick=True)
    assert len(found.edges) == 2
    assert "2 of 5 edges" in found["minimality"].sentence


def test_progress_counts_every_circuit_measured():
    calls = []
    report_on("copy", progress=lambda done, total: calls.append((done, total)))
    assert calls[-1][0] == calls[-1][1]
    assert [done for done, _ in calls] == sorted(done for done, _ in calls)
    assert len({total for _, total in calls}) == 1


def test_what_was_measured_before_a_stop_is_not_measured_again(tmp_path, monkeypatch):
    monkeypatch.setattr("persona_circuits.circuit.storage.kept.SAVE_SECONDS", 0.0)
    model, prepared = planted("copy")
    state, calls = tmp_path / "state", []

    def stop(done, total):
        calls.append(done)
        if len(calls) == 3:
            raise KeyboardInterrupt

    expected = report_on("copy")
    with pytest.raises(KeyboardInterrupt):
        report_on("copy", state=state, progress=stop)
    assert state.is_file()
    runs = []
    monkeypatch.setattr(
        "persona_circuits.circuit.evaluation.measurements.measure",
        lambda *args, **kw: runs.append(1) or measure(*args, **kw),
    )
    assert report_on("copy", state=state).as_dict() == expected.as_dict()
    resumed = len(runs)
    assert not state.exists()
    assert report_on("copy").as_dict() == expected.as_dict()
    assert resumed == len(runs) - resumed - 3
    other = Measurements(model, lambda: prepared, METRICS["logit-diff"], state=state)
    mine = Measurements(model, lambda: prepared, DIVERGENCE, state=state)
    mine.of([model.graph.valid])
    assert mine.kept.known
    assert not Measurements(model, lambda: prepared, METRICS["logit-diff"], state=state).kept.known
    assert other.kept.search != mine.kept.search
    state.write_bytes(b"torn")
    assert not Measurements(model, lambda: prepared, DIVERGENCE, state=state).kept.known


@pytest.mark.parametrize(
    ("option", "says"),
    [
        ({"alpha": 0.0}, "alpha must lie between 0 and 1"),
        ({"eps": 0.5}, "eps must lie between 0 and 0.5"),
        ({"quantile": 1.0}, "quantile must lie between 0 and 1"),
        ({"n_random": 0}, "random circuits must be at least 1"),
        ({"n_permutations": 0}, "permutations must be at least 1"),
        ({"max_edges": 0}, "edges to test must be at least 1"),
        ({"negligible": -0.1}, "negligible must be at least 0"),
    ],
)
def test_impossible_options_are_refused(option, says):
    with pytest.raises(OptionError, match=says):
        report_on("copy", **option)
