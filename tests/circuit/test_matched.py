"""Matched random circuits: what they share with the given one, that they are uniform, that ranks are exact."""

from collections import Counter
from itertools import combinations

import numpy as np
import pytest
from scipy import stats

from persona_circuits.circuit.evaluation import MATCHINGS, matched_circuits, matched_outside, random_circuits
from persona_circuits.circuit.evaluation import matched as module
from persona_circuits.circuit.graph import Graph
from persona_circuits.circuit.subgraph import Circuit

SMALL = Graph(2, 2)


def cell(edge, matching):
    """By the definition, from the edge's two nodes."""
    src, dst = edge.src, edge.dst
    key = (src.kind, src.layer, dst.kind, dst.layer, edge.slot)
    return {"layer": key, "type": (src.kind, dst.kind, edge.slot), "size": ()}[matching]


def profile(circuit, matching):
    return Counter(cell(edge, matching) for edge in circuit.edges())


@pytest.mark.parametrize("matching", MATCHINGS)
@pytest.mark.parametrize("graph", [Graph(3, 2), Graph(2, 3, parallel=True)])
def test_cells_are_those_of_the_definition(graph, matching):
    cells = module.cells_of(graph, matching)
    assert (cells >= 0).tolist() == graph.valid.tolist()
    by_number = {}
    for edge in graph.edges():
        by_number.setdefault(int(cells[graph.index(edge)]), set()).add(cell(edge, matching))
    assert sorted(by_number) == list(range(len(by_number)))
    assert all(len(keys) == 1 for keys in by_number.values())
    assert len(set.union(*by_number.values())) == len(by_number)


@pytest.mark.parametrize(("graph", "n"), [(Graph(4, 6), 25), (Graph(4, 6), 60), (Graph(3, 4, parallel=True), 30)])
def test_matched_circuits_share_the_profile_and_have_no_dead_ends(graph, n):
    given = random_circuits(graph, n, 1, seed=n)[0]
    found = matched_circuits(given, 12, seed=0)
    assert found.matching == "layer"
    assert found.connected
    for other in found.circuits:
        assert profile(other, "layer") == profile(given, "layer")
        assert other.without_dead_ends() == other
    shared = [len(set(other.edges()) & set(given.edges())) / n for other in found.circuits]
    assert found.overlap == pytest.approx(np.mean(shared))
    assert found.overlap < 1
    sizes = profile(Circuit.full(graph), "layer")
    assert found.n_forced == sum(count for key, count in profile(given, "layer").items() if count == sizes[key])
    assert all(other.mask[given.mask & filled(given)].all() for other in found.circuits)


def filled(given):
    sizes, counts = profile(Circuit.full(given.graph), "layer"), profile(given, "layer")
    full = [e for e in Circuit.full(given.graph).edges() if counts[cell(e, "layer")] == sizes[cell(e, "layer")]]
    return Circuit.of(given.graph, full).mask


def everything_like(given, matching):
    """All circuits of its profile without dead ends, by trying every set of edges of its size."""
    graph = given.graph
    cells = {graph.index(edge): cell(edge, matching) for edge in graph.edges()}
    wanted = sorted(map(str, profile(given, matching).elements()))
    found = []
    for chosen in combinations(cells, len(given)):
        if sorted(str(cells[place]) for place in chosen) == wanted:
            mask = np.zeros_like(graph.valid)
            mask[tuple(np.transpose(chosen))] = True
            circuit = Circuit(graph, mask)
            if circuit.without_dead_ends() == circuit:
                found.append(circuit)
    return found


@pytest.mark.parametrize(
    ("edges", "matching", "steps"),
    [
        (("input->a1.h0<v>", "a1.h0->logits", "input->a1.h0<q>"), "layer", 300),
        (("input->a1.h0<v>", "a1.h0->logits", "input->a1.h0<q>"), "type", 300),
        (("input->a1.h0<v>", "a1.h0->logits"), "size", 500),
        (("input->m0", "m0->m1", "m1->logits"), "size", 1000),
    ],
)
def test_draws_are_uniform_over_all_that_match(edges, matching, steps, monkeypatch):
    monkeypatch.setattr(module, "FEWEST_STEPS", steps)
    given = Circuit.of(SMALL, edges)
    everything = everything_like(given, matching)
    draws = Counter(module._matched(given, 250, matching, seed=3).circuits)
    assert set(draws) <= set(everything)
    assert len(everything) > 1
    counts = [draws[circuit] for circuit in everything]
    assert stats.chisquare(counts).pvalue > 1e-3


def test_ranks_are_exact_even_after_walks_far_too_short(monkeypatch):
    """A circuit that is itself a random one of its kind is among the best 5 % of 20 in 5 % of cases."""
    monkeypatch.setattr(module, "STEPS_PER_EDGE", 1)
    monkeypatch.setattr(module, "FEWEST_STEPS", 1)
    everything = everything_like(Circuit.of(SMALL, ["input->a0.h0<v>", "a0.h0->a1.h1<k>", "a1.h1->logits"]), "type")
    rng = np.random.default_rng(0)
    value = dict(zip(everything, rng.permutation(len(everything)).tolist(), strict=True))
    ranks, overlaps = [], []
    for trial in range(400):
        given = everything[rng.integers(len(everything))]
        found = module._matched(given, 19, "type", seed=trial)
        ranks.append(1 + sum(value[other] >= value[given] for other in found.circuits))
        overlaps.append(found.overlap)
    assert np.mean(overlaps) > 0.5  # the walks are short indeed, draws and circuit much alike
    assert sum(rank <= 1 for rank in ranks) <= stats.binom.ppf(0.999, 400, 0.05)
    assert sum(rank <= 4 for rank in ranks) <= stats.binom.ppf(0.999, 400, 0.2)


def test_layers_and_types_are_relaxed_where_nothing_else_matches():
    chain = Circuit.of(SMALL, ["input->m0", "m0->m1", "m1->logits"])
    found = matched_circuits(chain, 25, seed=0)
    assert found.matching == "size"
    assert "layers and types relaxed" in found.sentence
    assert found.repeats < 0.2
    wide = Circuit.of(Graph(4, 6), ["input->a0.h0<v>", "a0.h0->m1", "m1->a3.h2<v>", "a3.h2->logits"])
    assert matched_circuits(wide, 25, seed=0).matching == "type"


def test_sets_outside_match_as_far_as_the_graph_allows():
    graph = Graph(4, 6)
    given = random_circuits(graph, 60, 1, seed=2)[0]
    found = matched_outside(given, 15, seed=0)
    sizes, wanted = profile(Circuit.full(graph), "layer"), profile(given, "layer")
    possible = {key: min(count, sizes[key] - count) for key, count in wanted.items()}
    short = {key for key, count in wanted.items() if possible[key] < count}
    assert found.n_relaxed == sum(wanted.values()) - sum(possible.values()) > 0
    assert len(found.narrow) == len(short)
    assert "input to MLP of layer 3" in found.narrow or ("input", -1, "mlp", 3, None) not in short
    assert len(set(found.circuits)) == 15
    for other in found.circuits:
        assert not (other.mask & given.mask).any()
        assert len(other) == len(given)
        drawn = profile(other, "layer")
        assert all(drawn[key] >= count for key, count in possible.items())


def test_sets_outside_are_different_ones():
    chain = Circuit.of(SMALL, ["input->a1.h0<v>", "a1.h0->logits"])
    found = matched_outside(chain, 40, seed=0)
    assert found.matching == "size"  # by layer there is one other set, by type nine
    assert len(found.circuits) == len(set(found.circuits)) == found.n_different == 40
    assert all(len(other) == 2 for other in found.circuits)


@pytest.mark.parametrize("draw", [matched_circuits, matched_outside])
def test_nothing_to_draw(draw):
    for circuit in (Circuit.empty(SMALL), Circuit.full(SMALL)):
        assert draw(circuit, 5, seed=0).circuits == ()
        assert draw(circuit, 5, seed=0).sentence == "There is no other circuit to draw."
    assert draw(Circuit.of(SMALL, ["input->m0"]), 0, seed=0).circuits == ()


def test_no_set_of_the_size_fits_outside_a_circuit_of_most_edges():
    most = Circuit(SMALL, Circuit.full(SMALL).mask & ~Circuit.of(SMALL, ["input->logits"]).mask)
    assert matched_outside(most, 5, seed=0).circuits == ()
    assert matched_circuits(most, 5, seed=0).matching == "size"


def test_dead_ends_are_allowed_where_the_circuit_has_some():
    loose = Circuit.of(Graph(4, 6), ["input->a0.h0<v>", "m1->logits", "a1.h3->a3.h2<q>"])
    found = matched_circuits(loose, 10, seed=0)
    assert not found.connected
    assert "dead ends allowed" in found.sentence
    assert all(profile(other, "layer") == profile(loose, "layer") for other in found.circuits)


@pytest.mark.parametrize("draw", [matched_circuits, matched_outside])
def test_same_seed_same_circuits(draw):
    given = random_circuits(Graph(4, 6), 30, 1, seed=1)[0]
    once, again, other = (draw(given, 4, seed=seed) for seed in (5, 5, 6))
    assert once.circuits == again.circuits
    assert once.as_dict() == again.as_dict()
    assert once.circuits != other.circuits
    assert "circuits" not in once.as_dict()
