"""Pair by pair: numbers by hand, flat pairs apart, and groups found where there are some and nowhere else."""

import json
from dataclasses import replace

import numpy as np
import pytest

from persona_circuits.circuit.attribution import Scoring
from persona_circuits.circuit.errors import OptionError
from persona_circuits.circuit.evaluation import (
    GroupSearch,
    PairScores,
    PairSignal,
    Rule,
    divergences_of,
    group_pairs,
    measured_pairs,
    pair_scores,
    pairs_view,
)
from persona_circuits.circuit.forward import prepare
from persona_circuits.circuit.graph import Graph
from persona_circuits.circuit.subgraph import Circuit
from persona_circuits.circuit.task import PromptPair, batches, encode, with_swap_rows
from persona_circuits.metrics import METRICS
from persona_circuits.models.planted import planted_models

GRAPH = Graph(2, 2)
DIVERGENCE = METRICS["persona-divergence"]
PLANTED = {planted.name: planted for planted in planted_models()}


def pairs(n):
    return [PromptPair("a", "b", (" x",), (" y",), id=f"p{i}", question=f"q{i % 2}", line=i + 1) for i in range(n)]


def values_of(effects, ratios):
    empty = np.linspace(-1, 1, len(effects))
    effects, ratios = np.array(effects, dtype=float), np.array(ratios, dtype=float)
    return np.stack([empty + effects, empty, empty + ratios * effects])


def test_numbers_by_hand():
    values = values_of([2.0, 4.0, 0.1, 1.0], [1.0, 0.5, -9.0, 0.8])
    signal = PairSignal(np.array([2.0, 4.0, 0.1, 1.0]), sigma_0=0.2)
    found = pairs_view(values, pairs(4), Circuit.empty(GRAPH), signal=signal)
    assert found.null == pytest.approx(0.4)
    assert [row.flat for row in found.rows] == [False, False, True, False]
    assert [row.faithfulness for row in found.rows] == pytest.approx([1.0, 0.5, -9.0, 0.8])
    assert found.every.ratio_of_means == pytest.approx((2 + 2 - 0.9 + 0.8) / 7.1)
    assert found.every.mean_of_ratios == pytest.approx((1 + 0.5 - 9 + 0.8) / 4)
    assert found.signal.ratio_of_means == pytest.approx(4.8 / 7)
    assert found.signal.mean_of_ratios == pytest.approx(2.3 / 3)
    assert (found.flat.n_pairs, found.flat.mean_of_ratios) == (1, pytest.approx(-9.0))
    assert found.quantiles["0.5"] == pytest.approx(0.8)
    assert (found.quantiles["0"], found.quantiles["1"]) == pytest.approx((0.5, 1.0))
    assert [row.id for row in found.worst] == ["p1", "p3", "p0"]  # the flat one is not among them
    assert "1 of 4 pairs" in found.notes[0]
    json.dumps(found.as_dict(), allow_nan=False)


def test_without_a_null_only_rounding_is_flat_and_what_has_no_effect_has_no_f():
    values = values_of([2.0, 0.0, 1e-6], [1.0, 1.0, 1.0])
    found = pairs_view(values, pairs(3), Circuit.empty(GRAPH), signal=PairSignal(np.array([2.0, 3.0, 3.0])))
    assert [row.flat for row in found.rows] == [False, True, True]
    assert [row.faithfulness for row in found.rows] == [1.0, None, None]
    unnamed = [replace(pair, id="") for pair in pairs(3)]
    assert [row.id for row in pairs_view(values, unnamed, Circuit.empty(GRAPH)).rows] == ["line 1", "line 2", "line 3"]


@pytest.mark.parametrize("n", [1, 2])
def test_few_pairs_and_constant_metrics(n):
    scores = PairScores(GRAPH, np.ones((n, GRAPH.n_edges), dtype=np.float32), np.ones(n))
    sought = GroupSearch(scores, Rule("top-n", n=3))
    one = pairs_view(values_of([1.0] * n, [0.5] * n), pairs(n), Circuit.full(GRAPH), sought=sought)
    assert one.signal.ratio_of_means == pytest.approx(0.5)
    assert one.grouping.n_groups == 1
    assert any("no search for groups" in note for note in one.notes)
    nothing = replace(scores, values=np.zeros((n, GRAPH.n_edges), dtype=np.float32), whole=np.zeros(n))
    flat = pairs_view(values_of([0.0] * n, [0.0] * n), pairs(n), Circuit.empty(GRAPH), sought=GroupSearch(nothing))
    assert flat.quantiles is None
    assert (flat.every.ratio_of_means, flat.worst) == (None, ())
    for found in (one, flat):
        json.dumps(found.as_dict(), allow_nan=False)


def mixture(seed, *, n=24, apart=0.0, noise=0.6):
    """Pairs of one circuit, or of two that share a part: the second half's own edges are others by ``apart``."""
    rng = np.random.default_rng(seed)
    common, first, second = rng.normal(size=(3, GRAPH.n_edges))
    sides = np.where(np.arange(n)[:, None] < n // 2, first, second)
    strengths = np.exp(0.3 * rng.normal(size=(n, 1)))
    values = strengths * (common + apart * sides + noise * rng.normal(size=(n, GRAPH.n_edges)))
    return PairScores(GRAPH, values.astype(np.float32), np.ones(n))


def continuum(seed, n=24):
    """Pairs that use one circuit or another by degrees, most of them a little of both."""
    rng = np.random.default_rng(seed)
    common, direction = rng.normal(size=(2, GRAPH.n_edges))
    values = 3 * common + rng.normal(size=(n, 1)) * direction + 0.3 * rng.normal(size=(n, GRAPH.n_edges))
    return PairScores(GRAPH, values.astype(np.float32), np.ones(n))


@pytest.mark.parametrize("made", [mixture, continuum])
def test_one_circuit_is_rarely_called_a_mixture(made):
    p = [group_pairs(made(seed), n_draws=19, seed=seed).p for seed in range(30)]
    assert np.mean(np.array(p) <= 0.05) <= 0.05 + 2 * (0.05 * 0.95 / 30) ** 0.5


def test_a_few_odd_pairs_are_no_group():
    scores = mixture(0)
    values = scores.values.copy()
    values[3] = 9 * np.random.default_rng(1).normal(size=GRAPH.n_edges)
    found = group_pairs(replace(scores, values=values), n_draws=39)
    assert found.n_groups == 1


def test_a_mixture_of_two_is_found_and_its_halves_are_told_apart():
    found = [group_pairs(mixture(seed, apart=1.0), n_draws=19, seed=seed) for seed in range(10)]
    assert sum(one.n_groups == 2 for one in found) >= 9
    for one in found:
        if one.n_groups == 2:
            first, second = one.labels[:12], one.labels[12:]
            assert len(set(first)) == len(set(second)) == 1
            assert set(first) != set(second)


def test_groups_of_the_mixture_say_what_the_circuit_does_for_each():
    scores = mixture(3, apart=1.0)
    ratios = [1.0] * 12 + [0.2] * 12
    named = [replace(pair, persona_a=f"a{i}", persona_b=f"b{i}") for i, pair in enumerate(pairs(24))]
    rule = Rule("top-n", n=10)
    circuit = rule.circuit(scores.mean(np.repeat([1 / 12, 0], 12)), 1.0)
    found = pairs_view(values_of([1.0] * 24, ratios), named, circuit, sought=GroupSearch(scores, rule, n_draws=39))
    assert len(found.groups) == 2
    f = sorted(group.averages.ratio_of_means for group in found.groups)
    assert f == pytest.approx([0.2, 1.0])
    best = max(found.groups, key=lambda group: group.averages.ratio_of_means)
    assert best.own_jaccard == 1.0
    assert min(group.own_jaccard for group in found.groups) < 0.7
    assert any("the circuit is of their mixture" in note for note in found.notes)
    assert {row.group for row in found.rows} == {0, 1}


def test_many_pairs_are_searched_by_a_sample():
    scores = mixture(1, n=520, apart=1.0)
    found = group_pairs(scores, n_draws=19)
    assert (found.labels >= 0).sum() == 500
    assert found.n_groups == 2


def test_pairs_of_two_planted_circuits_fall_into_two_groups():
    """The persona's pairs and the prior's go through other edges of one model: a mixture that is known."""
    case = PLANTED["prior"]
    model = case.model()
    both = replace(case.task, pairs=(*case.pairs, *case.control_pairs))
    groups = batches(with_swap_rows(encode(both, model)), 32, "cpu")
    scores = pair_scores(model, groups, DIVERGENCE, Scoring("eap-ig", 2))
    prepared = [prepare(model, group) for group in groups]
    circuit = case.circuit(model.graph)
    found = pairs_view(
        measured_pairs(model, prepared, DIVERGENCE, circuit),
        both.pairs,
        circuit,
        signal=PairSignal(divergences_of(prepared, swapped=True)),
        sought=GroupSearch(scores, Rule("threshold", share=0.01), n_draws=39),
    )
    n = len(case.pairs)
    labels = [row.group for row in found.rows]
    assert len(set(labels[:n])) == len(set(labels[n:])) == 1
    assert labels[0] != labels[n]
    persona, prior = (found.groups[labels[place]] for place in (0, n))
    assert persona.averages.ratio_of_means == pytest.approx(1.0, abs=0.02)
    assert prior.averages.ratio_of_means == pytest.approx(0.0, abs=0.02)
    assert persona.own_jaccard == 1.0
    alone = batches(with_swap_rows(encode(case.task, model)), 32, "cpu")
    assert group_pairs(pair_scores(model, alone, DIVERGENCE, Scoring("eap")), n_draws=39).n_groups == 1


def test_divergence_is_of_the_plain_runs_whatever_the_metric(tiny, tiny_task):
    groups = batches(with_swap_rows(encode(tiny_task, tiny)), 5, "cpu")
    found = divergences_of([prepare(tiny, group) for group in groups], swapped=True)
    plain = batches(encode(tiny_task, tiny), 5, "cpu")
    np.testing.assert_allclose(divergences_of([prepare(tiny, one) for one in plain], swapped=False), found, atol=1e-5)
    item = prepare(tiny, batches(encode(tiny_task, tiny)[2:3], 1, "cpu")[0])
    answer, wrong = int(item.batch.answers[0, 0]), int(item.batch.wrong_answers[0, 0])
    margins = [float(logits[0, answer] - logits[0, wrong]) for logits in (item.clean.logits, item.corrupt.logits)]
    assert found[2] == pytest.approx(margins[0] - margins[1], abs=1e-5)


@pytest.mark.parametrize(
    ("says", "options"),
    [
        ("expected those of the full", {"values": np.zeros((2, 4))}),
        ("give the same pairs", {"sought": GroupSearch(mixture(0))}),
        ("for the same pairs", {"signal": PairSignal(np.zeros(3))}),
        ("sigma_0 is a spread", {"signal": PairSignal(sigma_0=-1.0)}),
        ("at least 19", {"sought": GroupSearch(mixture(0, n=4), n_draws=5)}),
    ],
)
def test_impossible_input_is_refused(says, options):
    given = {"values": values_of([1.0] * 4, [1.0] * 4), "pairs": pairs(4), "circuit": Circuit.full(GRAPH)} | options
    with pytest.raises(OptionError, match=says):
        pairs_view(given.pop("values"), given.pop("pairs"), given.pop("circuit"), **given)
