import numpy as np
import pytest

from persona_circuits.circuit.attribution import eap_ig
from persona_circuits.circuit.evaluation import N_TRIED, cells_of, evaluate, matched_circuits, random_circuits
from persona_circuits.circuit.forward import measure, prepare
from persona_circuits.circuit.graph import Graph
from persona_circuits.circuit.pruning import greedy
from persona_circuits.circuit.statistics import PairSample
from persona_circuits.circuit.subgraph import Circuit
from persona_circuits.circuit.task import batches, encode, with_swap_rows
from persona_circuits.metrics import METRICS

METRIC = METRICS["persona-divergence"]


@pytest.fixture(scope="module")
def groups(tiny, tiny_task):
    return batches(with_swap_rows(encode(tiny_task, tiny)), 8, "cpu")


@pytest.fixture(scope="module")
def prepared(tiny, groups):
    return [prepare(tiny, group) for group in groups]


def report(tiny, prepared, circuit, seed=0, **options):
    return evaluate(tiny, lambda: prepared, METRIC, circuit, PairSample(seed=seed), **options)


def test_full_circuit_is_one_and_empty_circuit_is_zero(tiny, prepared):
    full = report(tiny, prepared, Circuit.full(tiny.graph))
    assert full.circuit.ratio_of_means == pytest.approx(1, abs=1e-5)
    assert full.complement.ratio_of_means == pytest.approx(0, abs=1e-5)
    assert full.m_empty == pytest.approx(-full.m_full, abs=1e-5)
    empty = report(tiny, prepared, Circuit.empty(tiny.graph))
    assert empty.circuit.ratio_of_means == pytest.approx(0, abs=1e-6)
    assert (empty.random, empty.random_mean, empty.random_sd) == ((), None, None)


def test_the_numbers_are_those_of_the_definition(tiny64, tiny_task):
    """In float64: a pair's own ratio has a small span below it, and rounding depends on what shares a pass."""
    groups = batches(with_swap_rows(encode(tiny_task, tiny64)), 8, "cpu")
    prepared = [prepare(tiny64, group) for group in groups]
    circuit = greedy(eap_ig(tiny64, groups, METRIC), 60)
    masks = [Circuit.full(tiny64.graph).mask, Circuit.empty(tiny64.graph).mask, circuit.mask]
    full, empty, some = measure(tiny64, prepared, masks, METRIC).reshape(3, -1, 2).mean(axis=2)
    found = report(tiny64, prepared, circuit)
    assert found.n_pairs == len(tiny_task.pairs)
    assert found.circuit.m == pytest.approx(some.mean())
    assert found.circuit.ratio_of_means == pytest.approx((some - empty).mean() / (full - empty).mean())
    assert found.circuit.mean_of_ratios == pytest.approx(((some - empty) / (full - empty)).mean())
    assert found.circuit.interval.low < found.circuit.ratio_of_means < found.circuit.interval.high


def test_the_true_circuit_beats_random_ones():
    from persona_circuits.models.planted import planted_models

    planted = next(one for one in planted_models() if one.name == "two-hop")
    model = planted.model()
    rows = with_swap_rows(encode(planted.task, model))
    prepared = [prepare(model, batch) for batch in batches(rows, 8, "cpu")]
    found = report(model, prepared, Circuit.of(model.graph, planted.true_edges), n_random=20)
    assert len(found.random) == 20
    assert found.circuit.ratio_of_means == pytest.approx(1, abs=0.01)
    assert found.complement.ratio_of_means == pytest.approx(0, abs=0.01)
    assert max(found.random) < 0.5


def test_controls_could_have_done_as_well(tiny, prepared, groups):
    """Random circuits have as many edges per cell, so what layer 0 reads too; each value is measured here again."""
    scores = eap_ig(tiny, groups, METRIC)
    circuit = greedy(scores, 60)
    found = report(tiny, prepared, circuit, n_random=5, seed=3, scores=scores)
    graph, cells = tiny.graph, cells_of(tiny.graph, "layer")
    others = matched_circuits(circuit, 5, seed=3)
    assert found.matching.sentence == others.sentence
    reads = graph.valid.copy()
    reads[1:] = reads[:, graph.mlp_slot_of(0) + 1 :] = False
    for other in others.circuits:
        assert (np.bincount(cells[other.mask]) == np.bincount(cells[circuit.mask])).all()
        assert (other.mask & reads).sum() == (circuit.mask & reads).sum() > 0
    kept = circuit.complement().mask | reads
    alone = Circuit.of(graph, [found.edge]).complement().mask
    masks = [graph.valid, np.zeros_like(reads), kept, alone, *(other.mask for other in others.circuits)]
    full, empty, *values = measure(tiny, prepared, masks, METRIC).mean(axis=1)
    f = [(value - empty) / (full - empty) for value in values]
    assert found.complement_with_reads.ratio_of_means == pytest.approx(f[0], abs=1e-5)
    assert found.without_edge.ratio_of_means == pytest.approx(f[1], abs=1e-5)
    np.testing.assert_allclose(found.random, f[2:], atol=1e-5)
    assert found.complement_with_reads.n_edges == len(circuit.complement()) + (circuit.mask & reads).sum()


@pytest.mark.parametrize("scored", [True, False])
def test_the_edge_that_carries_most_alone_is_named(tiny, prepared, groups, scored):
    """Of the first MLP's read and the strongest edges, or without scores of those that leave the input."""
    scores = eap_ig(tiny, groups, METRIC)
    circuit = greedy(scores, 60)
    found = report(tiny, prepared, circuit, n_random=0, scores=scores if scored else None)
    names = [str(edge) for edge in circuit.edges()]
    rest = sorted(names, key=lambda name: -abs(scores[name])) if scored else [n for n in names if n[0] == "i"]
    tried = [*(["input->m0"] if "input->m0" in names else []), *(n for n in rest if n != "input->m0")][:N_TRIED]
    masks = [tiny.graph.valid, *(Circuit.of(tiny.graph, [name]).complement().mask for name in tried)]
    full, *values = measure(tiny, prepared, masks, METRIC).mean(axis=1)
    assert found.n_tried == len(tried) == N_TRIED
    assert found.edge == tried[int(np.argmax([abs(value - full) for value in values]))]
    empty = report(tiny, prepared, Circuit.empty(tiny.graph), n_random=2)
    assert (empty.edge, empty.without_edge, empty.n_tried) == (None, None, 0)


def test_one_edge_that_carries_everything_is_seen():
    """The planted circuit hangs on single edges: cut alone, one takes all of it, where the complement says nothing."""
    from persona_circuits.models.planted import planted_models

    planted = next(one for one in planted_models() if one.name == "two-hop")
    model = planted.model()
    rows = with_swap_rows(encode(planted.task, model))
    prepared = [prepare(model, batch) for batch in batches(rows, 8, "cpu")]
    found = report(model, prepared, Circuit.of(model.graph, planted.true_edges), n_random=0)
    assert found.edge in {str(edge) for edge in planted.true_edges}
    assert abs(found.without_edge.ratio_of_means - 1) > 0.5


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
