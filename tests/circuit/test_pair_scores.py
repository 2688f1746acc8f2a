"""Scores pair by pair: each is that of the pair alone, their mean is that of all, and rules make circuits of either."""

from dataclasses import replace

import numpy as np
import pytest
from scipy import sparse

from persona_circuits.circuit.attribution import Scoring, score
from persona_circuits.circuit.errors import OptionError
from persona_circuits.circuit.evaluation import PairScores, Rule, pair_scores
from persona_circuits.circuit.forward import effects, prepare
from persona_circuits.circuit.graph import Graph
from persona_circuits.circuit.pruning import greedy, threshold, top_n
from persona_circuits.circuit.scores import Scores
from persona_circuits.circuit.subgraph import Circuit
from persona_circuits.circuit.task import batches, encode, with_swap_rows
from persona_circuits.metrics import METRICS

GRAPH = Graph(2, 2)


def groups_of(task, model, metric, *, size=6, pairs=None):
    rows = encode(task if pairs is None else replace(task, pairs=pairs), model)
    return batches(with_swap_rows(rows) if metric.swap_rows else rows, size, "cpu")


@pytest.mark.parametrize("name", ["persona-divergence", "logit-diff"])
@pytest.mark.parametrize("method", ["eap", "eap-ig"])
def test_every_row_is_the_pair_alone_and_the_mean_is_the_whole(tiny64, tiny_task, name, method):
    metric = METRICS[name]
    groups = groups_of(tiny_task, tiny64, metric)
    found = pair_scores(tiny64, groups, metric, Scoring(method, 2))
    assert len(found) == len(tiny_task.pairs)
    whole = score(tiny64, groups, metric, Scoring(method, 2))
    np.testing.assert_allclose(found.mean().values, whole.values, atol=1e-7)
    for place in (0, 3, 7):
        own = groups_of(tiny_task, tiny64, metric, pairs=tiny_task.pairs[place : place + 1])
        alone = score(tiny64, own, metric, Scoring(method, 2))
        np.testing.assert_allclose(found.values[place], alone.values[tiny64.graph.valid], atol=1e-7)
        gap = effects([prepare(tiny64, group) for group in own], metric)[1]
        assert found.whole[place] == pytest.approx(gap, abs=1e-9)


def test_exact_scores_have_rows_too(tiny64, tiny_task):
    metric = METRICS["persona-divergence"]
    groups = groups_of(tiny_task, tiny64, metric, pairs=tiny_task.pairs[:2])
    found = pair_scores(tiny64, groups, metric, Scoring("exact"))
    np.testing.assert_allclose(found.mean().values, score(tiny64, groups, metric, Scoring("exact")).values, atol=1e-7)
    assert np.abs(found.values[0] - found.values[1]).max() > 1e-3
    with pytest.raises(OptionError, match="expected row or span"):
        pair_scores(tiny64, groups, metric, Scoring("random"))


def test_where_memory_is_short_small_scores_go_and_the_floor_says_which(tiny, tiny_task):
    metric = METRICS["persona-divergence"]
    groups = groups_of(tiny_task, tiny, metric)
    dense = pair_scores(tiny, groups, metric, Scoring("eap"))
    short = pair_scores(tiny, groups, metric, Scoring("eap"), max_bytes=4000)
    assert sparse.issparse(short.values)
    assert 8 * short.values.nnz <= 4000
    assert dense.floor == 0 < short.floor
    kept = np.where(np.abs(dense.values) > short.floor, dense.values, 0)
    np.testing.assert_allclose(short.values.toarray(), kept, atol=1e-7)
    assert np.abs(short.mean().values - dense.mean().values).max() < short.floor
    np.testing.assert_allclose(short.gram(), kept @ kept.T, rtol=1e-4)


def test_weights_count_pairs_as_often_as_they_say():
    values = np.random.default_rng(0).normal(size=(3, GRAPH.n_edges)).astype(np.float32)
    scores = PairScores(GRAPH, values, np.ones(3))
    found = scores.mean(np.array([0.5, 0.0, 0.5])).values[GRAPH.valid]
    np.testing.assert_allclose(found, (values[0] + values[2]) / 2, rtol=1e-6)
    np.testing.assert_allclose(scores.gram(), values @ values.T, rtol=1e-5)


def test_rules_are_the_pruners():
    scores = Scores(GRAPH, np.random.default_rng(1).normal(size=GRAPH.valid.shape))
    assert Rule("top-n", n=9).circuit(scores, 1.0) == top_n(scores, 9)
    assert Rule("greedy", n=9).circuit(scores, 1.0) == greedy(scores, 9)
    assert Rule("threshold", tau=0.7).circuit(scores, 1.0) == threshold(scores, 0.7)
    assert Rule("threshold", share=0.1).circuit(scores, -7.0) == threshold(scores, 0.7)
    assert Rule("threshold", share=0.1).circuit(scores, 0.0) == Circuit.empty(GRAPH)
    named = {"top-n 9": Rule("top-n", n=9), "threshold 0.7": Rule("threshold", tau=0.7)}
    named |= {"threshold 0.1 of the effect": Rule("threshold", share=0.1)}
    assert all(str(rule) == name for name, rule in named.items())


@pytest.mark.parametrize(
    ("method", "rule"),
    [
        ({"prune": "threshold", "threshold": 0.1, "threshold_on": "share"}, Rule("threshold", share=0.1)),
        ({"prune": "threshold", "threshold": 0.1, "threshold_on": "score"}, Rule("threshold", tau=0.1)),
        ({"prune": "greedy", "top_n": 5}, Rule("greedy", n=5)),
    ],
)
def test_a_file_says_its_rule(method, rule):
    assert Rule.of_record(method) == rule


@pytest.mark.parametrize(
    ("says", "options"),
    [
        ("decides by running the model", {"prune": "acdc"}),
        ("is not one of threshold, top-n, greedy", {"prune": "best"}),
        ("needs one of tau and share", {"prune": "threshold", "tau": 0.1, "share": 0.1}),
        ("needs one of n", {"prune": "greedy"}),
        ("not negative", {"prune": "threshold", "tau": -1.0}),
    ],
)
def test_impossible_rules(says, options):
    with pytest.raises(OptionError, match=says):
        Rule(**options)
