import numpy as np
import pytest

from circuit.attribution import eap_ig
from circuit.faithfulness import evaluate, random_circuits
from circuit.graph import Graph
from circuit.patching import measure, prepare
from circuit.pruning import greedy
from circuit.subgraph import Circuit
from circuit.task import batches, encode, with_swap_rows
from metrics import METRICS

METRIC = METRICS["persona-divergence"]


@pytest.fixture(scope="module")
def groups(tiny, tiny_task):
    return batches(with_swap_rows(encode(tiny_task, tiny)), 8, "cpu")


@pytest.fixture(scope="module")
def prepared(tiny, groups):
    return [prepare(tiny, group) for group in groups]


def report(tiny, prepared, circuit, **options):
    return evaluate(tiny, lambda: prepared, METRIC, circuit, split="all", **options)


def test_full_circuit_is_one_and_empty_circuit_is_zero(tiny, prepared):
    full = report(tiny, prepared, Circuit.full(tiny.graph))
    assert full.circuit.ratio_of_means == pytest.approx(1, abs=1e-5)
    assert full.complement.ratio_of_means == pytest.approx(0, abs=1e-5)
    assert full.m_empty == pytest.approx(-full.m_full, abs=1e-5)
    empty = report(tiny, prepared, Circuit.empty(tiny.graph))
    assert empty.circuit.ratio_of_means == pytest.approx(0, abs=1e-6)
    assert (empty.random, empty.random_mean, empty.random_sd) == ((), None, None)


def test_the_numbers_are_those_of_the_definition(tiny, tiny_task, prepared, groups):
    circuit = greedy(eap_ig(tiny, groups, METRIC), 60)
    masks = [Circuit.full(tiny.graph).mask, Circuit.empty(tiny.graph).mask, circuit.mask]
    full, empty, some = measure(tiny, prepared, masks, METRIC).reshape(3, -1, 2).mean(axis=2)
    found = report(tiny, prepared, circuit)
    assert found.n_pairs == len(tiny_task.pairs)
    assert found.circuit.m == pytest.approx(some.mean())
    assert found.circuit.ratio_of_means == pytest.approx((some - empty).mean() / (full - empty).mean())
    assert found.circuit.mean_of_ratios == pytest.approx(((some - empty) / (full - empty)).mean())
    assert found.circuit.interval.low < found.circuit.ratio_of_means < found.circuit.interval.high


def test_the_true_circuit_beats_random_ones():
    from models.planted import planted_models

    planted = next(one for one in planted_models() if one.name == "two-hop")
    model = planted.model()
    rows = with_swap_rows(encode(planted.task, model))
    prepared = [prepare(model, batch) for batch in batches(rows, 8, "cpu")]
    found = report(model, prepared, Circuit.of(model.graph, planted.true_edges), n_random=20)
    assert len(found.random) == 20
    assert found.circuit.ratio_of_means == pytest.approx(1, abs=0.01)
    assert found.complement.ratio_of_means == pytest.approx(0, abs=0.01)
    assert max(found.random) < 0.5


def test_same_seed_same_report(tiny, prepared):
    circuit = random_circuits(tiny.graph, 30, 1, seed=9)[0]
    once, again, other = (report(tiny, prepared, circuit, n_random=3, seed=seed) for seed in (1, 1, 2))
    assert once == again
    assert once.random != other.random


def test_undefined_where_there_is_nothing_to_explain(tiny, groups):
    from dataclasses import replace

    same = [prepare(tiny, replace(group, corrupt=group.clean)) for group in groups]
    found = report(tiny, same, greedy(eap_ig(tiny, groups, METRIC), 30), n_random=2)
    assert found.circuit.ratio_of_means is None
    assert found.circuit.interval is None
    assert (found.circuit.mean_of_ratios, found.circuit.n_ratios) == (None, 0)
    assert found.random_mean is None


def test_one_pair_has_no_interval(tiny, tiny_task):
    rows = with_swap_rows(encode(tiny_task, tiny)[:1])
    one = [prepare(tiny, batch) for batch in batches(rows, 8, "cpu")]
    found = report(tiny, one, Circuit.full(tiny.graph))
    assert found.n_pairs == 1
    assert found.circuit.interval is None


@pytest.mark.parametrize("n", [1, 2, 7, 40, 131, 200, 262])
def test_random_circuits_have_the_size_asked_for_and_no_dead_ends(n):
    graph = Graph(3, 4)
    for circuit in random_circuits(graph, n, 5, seed=n):
        assert len(circuit) == n
        if n <= graph.n_edges // 2:
            assert circuit.without_dead_ends() == circuit


def test_random_circuits_differ_and_repeat():
    graph = Graph(6, 5)
    some = random_circuits(graph, 50, 4, seed=0)
    assert len(set(some)) == 4
    assert some == random_circuits(graph, 50, 4, seed=0)
    assert random_circuits(graph, 0, 4, seed=0) == []
    uses = np.mean([circuit.mask for circuit in random_circuits(graph, 50, 200, seed=1)], axis=0)
    assert (uses[:, -1] > 0).all()
