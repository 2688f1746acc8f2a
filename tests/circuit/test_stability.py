"""Stability: Jaccard and frequency by their definition, a rule that cannot move, one that must, and ACDC's orders."""

import json
from itertools import combinations

import numpy as np
import pytest
from scipy import sparse

from persona_circuits.circuit.errors import OptionError
from persona_circuits.circuit.evaluation import PairScores, Rule, random_circuits
from persona_circuits.circuit.evaluation.stability import (
    jaccard_of,
    mean_jaccard,
    order_dependence,
    order_report,
    random_orders,
    stability_report,
)
from persona_circuits.circuit.evaluation.stability import orders as order_module
from persona_circuits.circuit.forward import prepare
from persona_circuits.circuit.graph import Graph
from persona_circuits.circuit.pruning import Trials, acdc
from persona_circuits.circuit.statistics import Clusters
from persona_circuits.circuit.subgraph import Circuit
from persona_circuits.circuit.task import batches, encode, with_swap_rows
from persona_circuits.metrics import METRICS
from persona_circuits.models.planted import planted_models

GRAPH = Graph(3, 4)
DIVERGENCE = METRICS["persona-divergence"]
PLANTED = {planted.name: planted for planted in planted_models()}
RULE = Rule("top-n", n=120)


def noisy(n=12, noise=1.0, seed=0, effects=None):
    """Scores of pairs: a common part, and noise of each pair's own (or of each cluster's, by ``effects``)."""
    rng = np.random.default_rng(seed)
    common = rng.normal(size=GRAPH.n_edges) ** 3
    own = rng.normal(size=(n, GRAPH.n_edges)) if effects is None else effects(rng)
    values = (common + noise * own).astype(np.float32)
    return PairScores(GRAPH, values, np.full(n, 5.0))


def circuit_of(scores, rule=RULE):
    return rule.circuit(scores.mean(), float(scores.whole.mean()))


def report_on(scores, rule=RULE, **options):
    return stability_report(scores, circuit_of(scores, rule), rule, **{"n_resamples": 40} | options)


def test_numbers_are_those_of_the_definition():
    scores = noisy()
    found = report_on(scores, seed=3)
    plain, each = Clusters(12, None, None).draws(n_draws=40, seed=3), scores.values.astype(np.float64)
    wanted, drawn = each.var(axis=0, ddof=1).sum() / 12, (plain @ each).var(axis=0).sum()
    weights = 1 / 12 + (wanted / drawn) ** 0.5 * (plain - 1 / 12)  # means spread as unbiased variances say
    sets = []
    for row in weights:
        mean = np.zeros(GRAPH.valid.shape)
        mean[GRAPH.valid] = row @ scores.values.astype(np.float64)
        order = np.argsort(-np.abs(mean[GRAPH.valid]), kind="stable")[:120]
        mask = np.zeros(GRAPH.n_edges, dtype=bool)
        mask[order] = True
        whole = np.zeros(GRAPH.valid.shape, dtype=bool)
        whole[GRAPH.valid] = mask
        sets.append({str(edge) for edge in Circuit(GRAPH, whole).without_dead_ends().edges()})
    pairwise = [len(a & b) / len(a | b) for a, b in combinations(sets, 2)]
    (only,) = found.resamplings
    assert only.by == found.by == "pairs"
    assert found.jaccard == pytest.approx(np.mean(pairwise))
    assert (only.low, only.high) == pytest.approx(tuple(np.percentile(pairwise, [5, 95])))
    own = {str(edge) for edge in found.circuit.edges()}
    assert only.to_circuit == pytest.approx(np.mean([len(a & own) / len(a | own) for a in sets]))
    for edge in map(str, GRAPH.edges()):
        assert found.of_edge(edge) == pytest.approx(np.mean([edge in one for one in sets]))
    core = {edge for edge in own if found.of_edge(edge) >= 0.9}
    assert {str(edge) for edge in found.core.edges()} == core
    assert {str(edge) for edge in found.fringe.edges()} == own - core
    assert 0 < len(core) < len(own)
    assert found.agreement == 1.0


def test_mean_jaccard_by_hand():
    masks = np.array([[1, 1, 0, 0], [1, 0, 1, 0], [0, 0, 0, 0]])
    assert mean_jaccard(sparse.csr_array(masks)) == pytest.approx((1 / 3 + 0 + 0) / 3)
    assert mean_jaccard(sparse.csr_array(np.zeros((3, 4)))) is None
    assert mean_jaccard(sparse.csr_array(np.array([[1, 1], [0, 0], [0, 0]]))) == 0.0  # two empty ones are left out
    assert jaccard_of(Circuit.empty(GRAPH), Circuit.empty(GRAPH)) is None


def test_pairs_that_are_all_alike_cannot_move_the_circuit():
    found = report_on(noisy(noise=0.0))
    assert found.jaccard == 1.0
    assert not found.unstable
    assert found.core == found.circuit
    assert len(found.fringe) == 0
    assert "stable: mean pairwise Jaccard 1.000" in found.sentence


def test_pairs_that_have_nothing_in_common_make_an_unstable_circuit():
    found = report_on(noisy(noise=30.0))
    assert found.unstable
    assert len(found.fringe) > len(found.core)
    assert found.as_dict()["unstable"] is True
    assert "unstable" in found.sentence


def test_more_noise_is_less_stable():
    assert (
        report_on(noisy(noise=0.1)).jaccard > report_on(noisy(noise=1.0)).jaccard > report_on(noisy(noise=9.0)).jaccard
    )


def test_a_share_is_a_share_of_each_resamples_own_effect():
    values = np.full((6, GRAPH.n_edges), 1.0, dtype=np.float32)
    scores = PairScores(GRAPH, values, np.array([1.0, 1.0, 1.0, 1.0, 1.0, 7.0]))  # mean 2: half of it is 1
    found = stability_report(scores, Circuit.full(GRAPH), Rule("threshold", share=0.5), n_resamples=60)
    (only,) = found.resamplings
    assert 0 < only.n_empty < 60  # drawn often enough, the last pair lifts the threshold above every score
    fixed = stability_report(scores, Circuit.full(GRAPH), Rule("threshold", tau=1.0), n_resamples=60)
    assert fixed.jaccard == 1.0


def crossed(n_personas=8, n_questions=4):
    """Every two of the personas on every question."""
    names = [(a, b, q) for a, b in combinations(range(n_personas), 2) for q in range(n_questions)]
    return names, Clusters.named(*([f"n{one[i]}" for one in names] for i in range(3)))


def test_effects_of_personas_show_only_when_personas_are_drawn():
    names, clusters = crossed()

    def of_personas(rng):
        effect = rng.normal(size=(8, GRAPH.n_edges))
        return np.array([effect[a] + effect[b] for a, b, _ in names])

    shared = noisy(len(names), 1.0, effects=of_personas)
    found = report_on(shared, clusters=clusters)
    assert [one.by for one in found.resamplings] == ["personas and questions", "pairs"]
    by_clusters, by_pairs = (one.jaccard for one in found.resamplings)
    assert by_clusters < by_pairs - 0.05
    assert found.jaccard == by_clusters
    assert found.by == "personas and questions"


def test_resampled_scores_vary_as_fresh_samples_do():
    """The point of it: over new personas and questions the selection moves about as much as over resamples."""
    names, clusters = crossed()

    def sample(seed):
        rng = np.random.default_rng(seed)
        persona, question = rng.normal(size=(8, GRAPH.n_edges)), rng.normal(size=(4, GRAPH.n_edges))
        own = np.array([persona[a] + persona[b] + question[q] for a, b, q in names])
        common = np.random.default_rng(99).normal(size=GRAPH.n_edges) ** 3
        return PairScores(GRAPH, (common + own / 2).astype(np.float32), np.ones(len(names)))

    fresh = [circuit_of(sample(seed)) for seed in range(20)]
    true = np.mean([jaccard_of(a, b) for a, b in combinations(fresh, 2)])
    found = [report_on(sample(seed), clusters=clusters).resamplings for seed in range(6)]
    assert np.mean([ways[0].jaccard for ways in found]) == pytest.approx(true, abs=0.08)
    assert np.mean([ways[1].jaccard for ways in found]) > true + 0.08  # by pairs alone it looks too stable


@pytest.mark.parametrize("n", [1, 2])
def test_one_pair_and_two_pairs(n):
    found = report_on(noisy(n))
    assert len(found.resamplings) == n - 1
    if n == 1:
        assert (found.jaccard, found.unstable, found.by, found.of_edge("input->m0")) == (None, None, None, None)
        assert "nothing to resample" in found.sentence
        assert len(found.core) == len(found.fringe) == 0
    json.dumps(found.as_dict(), allow_nan=False)


def test_empty_full_and_constant():
    scores = noisy()
    nothing = stability_report(scores, Circuit.empty(GRAPH), Rule("threshold", tau=1e9), n_resamples=9)
    assert (nothing.jaccard, nothing.unstable, nothing.agreement) == (None, None, None)
    assert any("selects no edge" in note for note in nothing.notes)
    everything = stability_report(scores, Circuit.full(GRAPH), Rule("threshold", tau=0.0), n_resamples=9)
    assert everything.jaccard == 1.0
    assert everything.core == Circuit.full(GRAPH)
    flat = PairScores(GRAPH, np.zeros((4, GRAPH.n_edges), dtype=np.float32), np.zeros(4))
    constant = stability_report(flat, Circuit.empty(GRAPH), Rule("threshold", share=0.1), n_resamples=9)
    assert constant.jaccard is None
    for one in (nothing, everything, constant):
        json.dumps(one.as_dict(), allow_nan=False)


def test_same_seed_same_report_and_progress_ends_full():
    told = []
    once, again, other = (report_on(noisy(), seed=seed, progress=lambda *done: told.append(done)) for seed in (1, 1, 2))
    assert once.as_dict() == again.as_dict() != other.as_dict()
    assert told[-1] == (40, 40)


def test_rows_name_edges_outside_that_are_often_selected():
    scores = noisy(noise=3.0)
    found = report_on(scores)
    rows = {row["edge"]: row for row in found.rows(least=0.3)}
    assert {row["part"] for row in rows.values()} == {"core", "fringe", "outside"}
    assert all(row["frequency by pairs"] >= 0.3 for row in rows.values() if row["part"] == "outside")
    assert set(map(str, found.circuit.edges())) <= set(rows)


def test_a_circuit_of_other_pairs_is_said_and_so_is_a_floor():
    scores = noisy()
    found = stability_report(scores, circuit_of(noisy(seed=5)), RULE, n_resamples=5)
    assert found.agreement < 1
    assert any("another circuit" in note for note in found.notes)
    rough = PairScores(GRAPH, scores.values, scores.whole, floor=0.5)
    notes = stability_report(rough, circuit_of(scores), Rule("threshold", tau=1.0), n_resamples=5).notes
    assert any("were not kept" in note for note in notes)
    assert any("more than a tenth" in note for note in notes)


@pytest.mark.parametrize(
    ("says", "options"),
    [
        ("cannot be compared", {"n_resamples": 1}),
        ("give the same pairs", {"clusters": Clusters(3, None, None)}),
        ("give one model's", {"circuit": Circuit.empty(Graph(2, 2))}),
    ],
)
def test_what_does_not_belong_together_is_refused(says, options):
    scores = noisy()
    with pytest.raises(OptionError, match=says):
        stability_report(scores, **{"circuit": circuit_of(scores), "rule": RULE} | options)


# --- the order in which ACDC tries edges ---------------------------------------------------------


@pytest.fixture(scope="module")
def searched(tiny, tiny_task):
    groups = batches(with_swap_rows(encode(tiny_task, tiny)[:2]), 16, "cpu")
    return [prepare(tiny, group) for group in groups]


def part_of(graph, n=90):
    """A part of the graph: a shorter search."""
    (found,) = random_circuits(graph, n, 1, seed=0)
    return found


@pytest.mark.parametrize("parallel", [False, True])
def test_random_orders_keep_to_the_rule(parallel):
    graph = Graph(3, 2, parallel=parallel)
    orders = random_orders(Circuit.full(graph), 2)
    assert orders[0] != orders[1]
    for order in orders:
        assert sorted(map(str, order)) == sorted(map(str, graph.edges()))
        place = {edge: i for i, edge in enumerate(order)}
        for edge in order:
            for after in order:
                if after.src == edge.dst:  # what the reader writes was tried before
                    assert place[after] < place[edge]


def test_a_planted_circuit_is_found_in_any_order():
    case = PLANTED["two-hop"]
    model = case.model()
    prepared = [prepare(model, group) for group in batches(with_swap_rows(encode(case.task, model)), 32, "cpu")]
    found = order_dependence(model, prepared, DIVERGENCE, 0.1, random_orders(Circuit.full(model.graph), 2))
    assert (found.jaccard, found.to_circuit) == (1.0, 1.0)
    assert found.always == found.ever == len(case.true_edges)
    assert len(found.sizes) == 3
    report = order_report(case.circuit(model.graph), found, "acdc 0.1", 12)
    assert not report.unstable
    assert report.core == case.circuit(model.graph)
    assert report.by == "orders"


def test_where_edges_stand_in_for_each_other_the_order_decides(tiny, searched):
    start, tau = part_of(tiny.graph), 0.02
    default = acdc(tiny, searched, DIVERGENCE, tau, start=start).circuit
    orders = random_orders(start, 2, seed=1)
    found = order_dependence(tiny, searched, DIVERGENCE, tau, orders, default=default)
    again = (acdc(tiny, searched, DIVERGENCE, tau, start, trials=Trials(one)).circuit for one in orders)
    circuits = [default, *again]
    pairs = [jaccard_of(a, b) for a, b in combinations(circuits, 2)]
    assert found.sizes == tuple(map(len, circuits))
    assert found.always < found.ever
    assert found.jaccard == pytest.approx(np.mean(pairs)) != 1
    assert found.to_circuit == pytest.approx(np.mean([jaccard_of(one, default) for one in circuits[1:]]))
    np.testing.assert_allclose(found.frequency, np.mean([one.mask for one in circuits], axis=0))
    report = order_report(default, found, "acdc", 8)
    assert report.unstable == (found.jaccard < 0.8)
    assert len(report.fringe) > 0
    json.dumps(report.as_dict(), allow_nan=False)


def test_orders_go_on_after_a_stop(tiny, searched, tmp_path, monkeypatch):
    state = tmp_path / "orders"
    orders = random_orders(part_of(tiny.graph, 40), 2)
    whole = order_dependence(tiny, searched, DIVERGENCE, 0.05, orders)
    run, calls = order_module.acdc, []

    def stopped(*arguments, **options):
        calls.append(options["trials"])
        if len(calls) == 3:
            raise KeyboardInterrupt
        return run(*arguments, **options)

    monkeypatch.setattr(order_module, "acdc", stopped)
    with pytest.raises(KeyboardInterrupt):
        order_dependence(tiny, searched, DIVERGENCE, 0.05, orders, state=state)
    assert state.exists()
    again = order_dependence(tiny, searched, DIVERGENCE, 0.05, orders, state=state)
    assert len(calls) == 4  # the two that were finished are not run again
    assert not state.exists()
    assert (again.jaccard, again.sizes) == (whole.jaccard, whole.sizes)
    with pytest.raises(OptionError, match="at least one"):
        order_dependence(tiny, searched, DIVERGENCE, 0.05, [])
