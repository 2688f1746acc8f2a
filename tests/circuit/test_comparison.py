"""Two circuits side by side: counts by hand, chance where there is nothing, and planted circuits where there is."""

import json
import re

import numpy as np
import pytest
from conftest import DATA
from scipy import stats
from typer.testing import CliRunner

from persona_circuits.circuit.assessment.comparison import (
    GROUPS,
    Ground,
    Side,
    compare,
    cross_faithfulness,
    draw_difference,
    groups,
    read_side,
    relative_scores,
    settings_apart,
    statistics,
)
from persona_circuits.circuit.discovery import MeasureOptions, Options, discover
from persona_circuits.circuit.drawing import Marks, draw, to_agraph
from persona_circuits.circuit.errors import OptionError
from persona_circuits.circuit.evaluation import random_circuits
from persona_circuits.circuit.graph import Graph
from persona_circuits.circuit.io import write_circuit, write_eap_ig, write_scores
from persona_circuits.circuit.reporting import comparison_tables
from persona_circuits.circuit.scores import Scores
from persona_circuits.circuit.subgraph import Circuit
from persona_circuits.circuit.task import Task
from persona_circuits.cli import app
from persona_circuits.models.planted import Planted, planted_models
from persona_circuits.models.planted.circuits import _topic_pairs
from persona_circuits.models.planted.network import Hand

GRAPH = Graph(3, 4)
A = {"input->m0": -1.0, "m0->a2.h0<v>": 0.5, "a2.h0->logits": -0.4, "m0->logits": -0.3}
B = {"input->m0": -2.0, "m0->a2.h1<v>": 0.2, "a2.h1->logits": -0.1, "m0->logits": 0.6}


def side(scores, name="x", graph=GRAPH, **more):
    circuit = Circuit.of(graph, scores)
    return Side(name, circuit, Scores.of(graph, scores), circuit.mask, **more)


def noise(seed, size=40, graph=GRAPH):
    """A random circuit with random scores of all edges."""
    rng = np.random.default_rng(seed)
    (circuit,) = random_circuits(graph, size, 1, seed=seed)
    return Side(f"noise {seed}", circuit, Scores(graph, rng.normal(size=graph.valid.shape)))


# --- overlap -------------------------------------------------------------------------------


def test_overlap_by_hand():
    found = compare(side(A), side(B), n_draws=20)
    edges, nodes = found.edges, found.nodes
    assert (edges.a, edges.b, edges.shared) == (4, 4, 2)
    assert edges.jaccard == pytest.approx(2 / 6)
    assert edges.possible == 1
    assert (nodes.a, nodes.b, nodes.shared) == (3, 3, 2)  # input, m0, and either head
    assert {name: len(part) for name, part in groups(side(A), side(B)).items()} == {
        "shared": 1,
        "opposite": 1,
        "only_a": 2,
        "only_b": 2,
    }
    assert [row["edge"] for row in found.edge_rows() if row["group"] == "opposite"] == ["m0->logits"]


def test_a_circuit_compared_with_itself():
    one = noise(1)
    found = compare(one, one, n_draws=19)
    assert found.edges.jaccard == found.nodes.jaccard == 1
    assert found.edges.random.p == found.edges.exchanged.p == 1 / 20
    assert [item.signed for item in found.correlations] == pytest.approx([1, 1])
    assert [item.opposite for item in found.signs] == [0, 0]
    assert [item.p_fewer for item in found.signs] == [1 / 20] * 2
    assert not found.settings


def test_sizes_bound_the_overlap():
    few, many = noise(2, size=10), noise(3, size=60)
    found = compare(few, many, n_draws=5)
    assert found.edges.possible == pytest.approx(10 / 60)
    assert any("10 and 60 edges" in note for note in found.notes)


def test_independent_random_circuits_are_rarely_called_alike():
    """The p of either kind of chance is at or below .1 in about a tenth of the cases, or fewer."""
    found = [compare(noise(i, 15), noise(1000 + i, 15), n_draws=9).edges for i in range(60)]
    for kind in ("random", "exchanged"):
        share = np.mean([getattr(edges, kind).p <= 0.1 for edges in found])
        assert share <= 0.1 + 3 * (0.1 * 0.9 / 60) ** 0.5, kind


def test_a_common_core_is_found():
    """Circuits that share a random core of most of their edges, beyond what either kind of chance gives."""
    (core,) = random_circuits(GRAPH, 30, 1, seed=7)
    a, b = (
        Side(str(seed), Circuit(GRAPH, core.mask | random_circuits(GRAPH, 10, 1, seed=seed)[0].mask)) for seed in (8, 9)
    )
    edges = compare(a, b, n_draws=99).edges
    assert edges.random.p <= 0.02
    assert edges.exchanged.p <= 0.02


def test_exchange_maps_the_graph_onto_itself():
    rng = np.random.default_rng(0)
    for graph in (GRAPH, Graph(2, 3, parallel=True)):
        move = np.ix_(*graph.permuted_heads(rng))
        assert (graph.valid[move] == graph.valid).all()
        (circuit,) = random_circuits(graph, 15, 1, seed=1)
        moved = Circuit(graph, circuit.mask[move])
        assert moved != circuit
        assert moved.without_dead_ends() == moved
        assert sorted(map(kind, moved.edges())) == sorted(map(kind, circuit.edges()))


def kind(edge):
    """An edge without its heads' numbers."""
    return re.sub(r"\.h\d+", "", str(edge))


def test_chance_over_random_circuits_is_their_mean_overlap():
    """The less favourable of both directions, drawn again here."""
    a, b = noise(4, size=12), noise(5, size=50)
    shared = [
        [int((one.circuit.mask & c.mask).sum()) for c in random_circuits(GRAPH, len(other.circuit), 30, seed=3)]
        for one, other in ((a, b), (b, a))
    ]
    seen = int((a.circuit.mask & b.circuit.mask).sum())
    expected = max(((1 + sum(x >= seen for x in draws)) / 31, np.mean(draws)) for draws in shared)
    null = compare(a, b, n_draws=30, seed=3).edges.random
    assert (null.p, null.mean) == pytest.approx(expected)


@pytest.mark.parametrize(("a", "b"), [({}, B), (A, {}), ({}, {})])
def test_empty_circuits(a, b):
    found = compare(side(a, "first"), side(b, "second"), n_draws=5)
    assert found.edges.shared == 0
    assert found.edges.jaccard == (0 if a or b else None)
    assert found.edges.random is None
    assert found.edges.exchanged is None
    assert sum("is an empty circuit" in note for note in found.notes) == (not a) + (not b)
    assert cells(found, "overlap, chance over 0 draws")[0][4] == ("0.000" if a or b else "undefined")


def test_full_circuits():
    full = Side("full", Circuit.full(GRAPH))
    found = compare(full, full, n_draws=3)
    assert found.edges.jaccard == 1
    assert found.edges.random.p == found.edges.exchanged.p == 1  # no more than any circuit of that size shares


def test_same_seed_same_result():
    a, b = noise(10), noise(11)
    assert compare(a, b, n_draws=10, seed=4).as_dict() == compare(a, b, n_draws=10, seed=4).as_dict()
    assert compare(a, b, n_draws=10, seed=4).as_dict() != compare(a, b, n_draws=10, seed=5).as_dict()


# --- scores --------------------------------------------------------------------------------


def test_rank_correlation_is_scipy_s():
    a, b = noise(20), noise(21)
    b = Side("b", b.circuit, Scores(GRAPH, np.round(b.scores.values + a.scores.values, 1)))  # with ties
    union = a.circuit.mask | b.circuit.mask
    for item, where in zip(compare(a, b, n_draws=5).correlations, (GRAPH.valid, union), strict=True):
        first, second = a.scores.values[where], b.scores.values[where]
        assert item.n == where.sum()
        assert item.signed == pytest.approx(stats.spearmanr(first, second)[0], abs=1e-12)
        assert item.absolute == pytest.approx(stats.spearmanr(abs(first), abs(second))[0], abs=1e-12)
        assert item.null_signed.p == pytest.approx(1 / 6)


def test_chance_of_the_correlation_exchanges_heads():
    """Scores that depend on layers alone are as correlated as exchanged ones; those of single heads are not."""
    rng = np.random.default_rng(0)
    layers = np.array([node.layer for node in GRAPH.src_nodes], dtype=float)[:, None] + np.zeros(GRAPH.n_dst)
    (circuit,) = random_circuits(GRAPH, 30, 1, seed=1)
    alike = Side("layers", circuit, Scores(GRAPH, layers))
    item = compare(alike, alike, n_draws=20).correlations[0]
    assert item.signed == pytest.approx(1)
    assert item.null_signed.mean == pytest.approx(1)
    assert item.null_signed.p == 1
    own = Side("heads", circuit, Scores(GRAPH, rng.normal(size=layers.shape)))
    assert compare(own, own, n_draws=20).correlations[0].null_signed.p == pytest.approx(1 / 21)


def test_scores_of_the_circuits_alone_have_no_chance_level():
    found = compare(side(A), side(B), n_draws=5)
    assert [item.n for item in found.correlations] == [2, 2]
    assert all(item.signed is None and item.null_signed is None for item in found.correlations)  # two edges only
    assert any("not every edge has a score" in note for note in found.notes)
    without = compare(Side("a", Circuit.of(GRAPH, A)), side(B), n_draws=5)
    assert without.correlations == without.signs == ()


def test_signs_against_their_exact_distribution():
    a, b = noise(30, size=60), noise(31, size=60)
    for item, where in zip(
        statistics.all_signs(a, b, 4000, np.random.default_rng(0)),
        (a.circuit.mask & b.circuit.mask, a.circuit.mask | b.circuit.mask),
        strict=True,
    ):
        first, second = a.scores.values[where] > 0, b.scores.values[where] > 0
        assert item.n == where.sum() > 0
        assert item.minus_plus == (~first & second).sum()
        assert item.plus_minus == (first & ~second).sum()
        # A+ B- is hypergeometric, and the opposite edges are 2 (A+ B-) + B+ - A+.
        law = stats.hypergeom(len(first), int((~second).sum()), int(first.sum()))
        assert item.expected == pytest.approx(2 * law.mean() + second.sum() - first.sum(), abs=0.5)
        assert item.p_more == pytest.approx(law.sf(item.plus_minus - 1), abs=0.04)
        assert item.p_fewer == pytest.approx(law.cdf(item.plus_minus), abs=0.04)


def test_reversed_scores_are_opposite_beyond_chance():
    a = noise(32)
    b = Side("b", a.circuit, Scores(GRAPH, -a.scores.values))
    item = compare(a, b, n_draws=99).signs[0]
    assert item.opposite == item.n == 40
    assert item.p_more == 0.01
    assert item.p_fewer == 1


def test_strongest_edges_are_listed_by_the_weaker_side():
    found = compare(side(A), side(B), n_draws=2)
    assert [row[0] for row in cells(found, "strongest shared edges")] == ["input->m0", "m0->logits"]
    opposite = cells(found, "strongest edges of opposite sign")
    assert opposite == [("m0->logits", "both", "-0.3000", "+0.6000")]


def cells(found, title):
    (table,) = (table for table in comparison_tables(found) if table.title == title)
    return table.cells()


# --- what cannot be compared, and what is said ------------------------------------------------


@pytest.mark.parametrize("other", [Graph(3, 5), Graph(2, 4), Graph(3, 4, parallel=True)])
def test_other_shapes_are_refused(other):
    with pytest.raises(OptionError, match="no edges in common"):
        compare(side(A), Side("other", Circuit.empty(other)))


def test_no_draws_are_refused():
    with pytest.raises(OptionError, match="--n-draws must be at least 1, got 0"):
        compare(side(A), side(B), n_draws=0)


@pytest.fixture(scope="module")
def runs(tmp_path_factory, tiny, tiny_task):
    """Two searches on the tiny model, on other pairs, as ``discover`` stores them."""
    out = tmp_path_factory.mktemp("runs")
    for name, part in (("a", tiny_task.pairs[::2]), ("b", tiny_task.pairs[1::2])):
        folder = out / name
        folder.mkdir()
        task = Task(part, str(DATA / "tiny_pairs.json"), tiny_task.sha256)
        found = discover(tiny, task, Options(threshold=0.05, n_random=0))
        write_circuit(found.record, folder / "circuit.json")
        write_scores(found.scores, folder / "scores.safetensors")
    return out


def record(runs, name="a"):
    return json.loads((runs / name / "circuit.json").read_text())


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [
        (None, "ablation", "zero"),
        (None, "seed", 5),
        ("task", "metric", "kl"),
        ("task", "split", "test"),
        ("task", "swap_rows", False),
        ("method", "scores", "eap"),
        ("method", "threshold", 0.2),
        ("model", "dtype", "bfloat16"),
        ("model", "fingerprint", "0" * 64),
    ],
)
def test_settings_that_differ_are_named(runs, section, key, value):
    one, other = record(runs), record(runs)
    (other if section is None else other[section])[key] = value
    sides = [Side(name, Circuit.empty(GRAPH), record=content) for name, content in (("a", one), ("b", other))]
    (found,) = settings_apart(*sides)
    assert found.key == (key if section is None else f"{section}.{key}")
    assert (found.a, found.b) == (one[key] if section is None else one[section][key], value)
    rows = cells(compare(*sides, n_draws=1), "warning: not found alike")
    assert [row[0] for row in rows] == [found.key]


def test_other_pairs_and_other_names_of_the_same_weights_are_no_setting(runs):
    one, other = record(runs), record(runs)
    other["task"] |= {"source": "elsewhere.jsonl", "sha256": "0" * 64, "n_pairs": 99, "divergence": 1.5}
    other["model"]["name"] = "elsewhere"
    sides = [Side("", Circuit.empty(GRAPH), record=content) for content in (one, other)]
    assert settings_apart(*sides) == ()
    other["model"]["fingerprint"] = "0" * 64
    assert {item.key for item in settings_apart(*sides)} == {"model.fingerprint", "model.name"}


def test_scores_beside_the_circuit_are_read_if_they_are_its_own(runs, tmp_path):
    whole = read_side(runs / "a")
    assert whole.known.all() or (whole.known == whole.circuit.graph.valid).all()
    write_circuit(record(runs), tmp_path / "circuit.json")
    alone = read_side(tmp_path)
    assert (alone.known == alone.circuit.mask).all()
    write_scores(read_side(runs / "b").scores, tmp_path / "scores.safetensors")
    assert (read_side(tmp_path).known == alone.circuit.mask).all()
    (tmp_path / "scores.safetensors").write_bytes(b"nothing")
    assert (read_side(tmp_path).known == alone.circuit.mask).all()
    write_eap_ig(whole.circuit, whole.scores, tmp_path / "eap.json")
    peer = read_side(tmp_path / "eap.json")
    assert peer.record is None
    assert (peer.known == whole.known).all()
    assert any("does not say how it was found" in note for note in compare(whole, peer, n_draws=1).notes)


# --- the picture -----------------------------------------------------------------------------


def test_the_picture_has_every_edge_in_the_colour_of_its_group(tmp_path):
    found = compare(side(A, "one"), side(B, "two"), n_draws=1)
    report = draw_difference(found, tmp_path / "x.dot")
    assert report.shown == 6
    text = (tmp_path / "x.dot").read_text().replace("\\\n", "")
    for label in ("in both (1)", "in both, opposite signs (1)", "only in A (2)", "only in B (2)", "A one, B two"):
        assert label in text
    picture = to_agraph(
        Circuit.of(GRAPH, {**A, **B}), scores=relative_scores(found.a, found.b), marks=Marks(groups(found.a, found.b))
    )
    colours = {key: picture.get_edge(src, dst, key).attr["color"] for src, dst, key in picture.edges(keys=True)}
    by_group = {name: {colours[str(edge)] for edge in part.edges()} for name, part in groups(found.a, found.b).items()}
    assert [len(seen) for seen in by_group.values()] == [1, 1, 1, 1]
    assert len(set.union(*by_group.values())) == 4


def test_width_is_a_share_of_either_side_s_largest():
    scores = relative_scores(side(A), side(B))
    assert scores["input->m0"] == 1
    assert scores["m0->logits"] == pytest.approx(max(0.3 / 1, 0.6 / 2))
    assert scores["a2.h1->logits"] == pytest.approx(0.1 / 2)
    assert relative_scores(Side("a", Circuit.of(GRAPH, A)), Side("b", Circuit.of(GRAPH, B))) is None


def test_groups_must_part_the_circuit(tmp_path):
    circuit, part = Circuit.of(GRAPH, A), Circuit.of(GRAPH, list(A)[:2])
    rest = Circuit.of(GRAPH, list(A)[2:])
    assert draw(circuit, tmp_path / "x.dot", marks=Marks({"one": part, "two": rest})).shown == 4
    for bad in ({"one": part}, {"one": circuit, "two": part}, {"one": part, "two": Circuit.of(GRAPH, {**A, **B})}):
        with pytest.raises(OptionError, match="exactly one of them"):
            draw(circuit, tmp_path / "y.dot", marks=Marks(bad))
    with pytest.raises(OptionError, match="another graph"):
        draw(circuit, tmp_path / "y.dot", marks=Marks({"one": Circuit.empty(Graph(2, 2))}))
    with pytest.raises(OptionError, match="5 groups"):
        draw(circuit, tmp_path / "y.dot", marks=Marks({str(i): circuit for i in range(5)}))
    assert not (tmp_path / "y.dot").exists()


# --- planted models: the persona's circuit and the prior's --------------------------------------


def planted_sides(planted):
    """The circuit of the persona and that of the prior, searched with the same options."""
    model = planted.model()
    prior = Task(planted.control_pairs, "prior", "0" * 64)
    how = Options(threshold=0.003, n_random=0)
    found = {name: discover(model, task, how) for name, task in (("A", planted.task), ("B", prior))}
    sides = [Side(name, item.circuit, item.scores, None, item.record) for name, item in found.items()]
    grounds = [Ground(name, model, task, found[name].record) for name, task in (("A", planted.task), ("B", prior))]
    return sides, grounds


def names(circuit):
    return {str(edge) for edge in circuit.edges()}


def test_the_planted_prior_has_a_circuit_of_its_own():
    planted = next(item for item in planted_models() if item.name == "prior")
    (persona, prior), grounds = planted_sides(planted)
    assert names(persona.circuit) == planted.true_edges
    assert names(prior.circuit) == planted.prior_edges
    found = compare(persona, prior, n_draws=20)
    assert found.edges.shared == 0
    assert found.edges.random.p == found.edges.exchanged.p == 1
    f = {
        (cell.circuit, cell.pairs): cell.report.circuit.ratio_of_means
        for cell in cross_faithfulness(persona, prior, grounds, MeasureOptions(n_random=0))
    }
    assert [f["A", "A"], f["B", "B"]] == pytest.approx([1, 1], abs=0.01)
    assert [f["A", "B"], f["B", "A"], f["shared", "A"], f["shared", "B"]] == pytest.approx([0] * 4, abs=0.01)


def _override():
    """Persona and prior are read by the same two MLPs: m1 adds both, m2 adds the persona and takes off half the prior.

    who -> a0.h1 -> taste;  lean -> a0.h0 -> custom;  m1: taste + custom -> answer;  m2: taste - custom / 2 -> answer.
    """
    net = Hand(n_layers=3, n_heads=2)
    net.head(0, 1, attends={"mark": 30.0}, reads={"who": 1}, writes={"taste": 1})
    net.head(0, 0, attends={"topic": 30.0}, reads={"lean": 1}, writes={"custom": 1})
    net.linear(1, reads={"taste": 1, "custom": 1}, writes={"answer": 1})
    net.linear(2, reads={"taste": 1, "custom": -0.5}, writes={"answer": 1})
    return net.network


def test_planted_shared_and_opposite_edges_are_found():
    persona_edges = {"input->a0.h1<v>", "a0.h1->m1", "a0.h1->m2", "m1->logits", "m2->logits"}
    prior_edges = {"input->a0.h0<v>", "a0.h0->m1", "a0.h0->m2", "m1->logits", "m2->logits"}
    planted = Planted(
        "override",
        "",
        "prior dominance",
        frozenset(persona_edges),
        planted_models()[0].pairs,
        _override,
        prior_edges=frozenset(prior_edges),
        control_pairs=_topic_pairs(),
    )
    (persona, prior), _ = planted_sides(planted)
    assert names(persona.circuit) == persona_edges
    assert names(prior.circuit) == prior_edges
    found = compare(persona, prior, n_draws=50)
    parts = groups(persona, prior)
    assert {name: names(parts[name]) for name in GROUPS} == {
        "shared": {"m1->logits"},
        "opposite": {"m2->logits"},
        "only_a": persona_edges - prior_edges,
        "only_b": prior_edges - persona_edges,
    }
    shared = found.signs[0]
    assert (shared.n, shared.minus_plus, shared.plus_minus) == (2, 1, 0)  # m2 carries the persona, against the prior
    assert found.edges.jaccard == pytest.approx(2 / 8)


# --- the command -------------------------------------------------------------------------------


def call(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.mark.slow
def test_the_command_compares_two_runs(runs, tmp_path):
    files = ["--out", tmp_path / "c.json", "--picture", tmp_path / "c.svg"]
    options = ["--n-draws", 10, "--n-random", 2]
    done = call("compare", runs / "a", runs / "b" / "circuit.json", *options, *files)
    assert done.exit_code == 0, done.output
    for part in ("overlap", "Jaccard", "heads exchanged", "edges of opposite sign", "held-out pairs", "written to"):
        assert part in done.stdout
    assert "not found alike" not in done.stdout
    content = json.loads((tmp_path / "c.json").read_text())
    cells = {(cell["circuit"], cell["pairs"]): cell for cell in content["cross_faithfulness"]}
    assert set(cells) == {(circuit, pairs) for circuit in ("A", "B", "shared") for pairs in "AB"}
    assert len(cells["A", "B"]["report"]["random"]) == 2
    assert cells["shared", "A"]["report"]["random"] == []
    assert "<svg" in (tmp_path / "c.svg").read_text()
    again = call("compare", runs / "a", runs / "b", "--json", *options)
    found = json.loads(again.stdout)
    assert {key: found[key] for key in content if key not in ("a", "b")} == {
        key: content[key] for key in content if key not in ("a", "b")
    }


def test_without_a_model_only_the_files_are_compared(runs):
    done = call("compare", runs / "a", runs / "b", "--no-model", "--n-draws", 5, "--json")
    assert done.exit_code == 0, done.output
    content = json.loads(done.stdout)
    assert content["cross_faithfulness"] == []
    assert content["notes"] == [] or all("nothing is measured" not in note for note in content["notes"])


def test_pairs_that_are_not_here_are_a_note_unless_they_were_asked_for(runs, tmp_path):
    content = record(runs)
    content["task"]["source"] = "nowhere.jsonl"
    write_circuit(content, tmp_path / "circuit.json")
    done = call("compare", tmp_path, runs / "b", "--n-draws", 2, "--n-random", 0, "--json")
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert {cell["pairs"] for cell in found["cross_faithfulness"]} == {"B"}
    assert any("nothing is measured on A's pairs: pair file nowhere.jsonl" in note for note in found["notes"])
    asked = call("compare", tmp_path, runs / "b", "--pairs-a", tmp_path / "gone.jsonl", "--n-draws", 2)
    assert asked.exit_code == 2
    assert "cannot be read" in asked.stderr


def test_other_pairs_and_other_weights_are_said(runs, tmp_path):
    content = record(runs)
    content["task"]["sha256"] = "0" * 64
    content["model"]["fingerprint"] = "1" * 64
    write_circuit(content, tmp_path / "circuit.json")
    done = call("compare", tmp_path, runs / "b", "--n-draws", 2, "--n-random", 0)
    assert done.exit_code == 0, done.output
    assert "warning: not found alike" in done.stdout
    assert "model.fingerprint" in done.stdout
    assert "byte for byte" in done.stdout
    assert "A was found in other weights" in done.stdout


def test_the_command_refuses_what_cannot_be_compared(runs, tmp_path):
    other = Graph(2, 2)
    write_eap_ig(Circuit.empty(other), None, tmp_path / "other.json")
    for says, arguments in {
        "no edges in common": [runs / "a", tmp_path / "other.json"],
        "cannot be read": [runs / "a", tmp_path / "gone"],
        "at least 1, got 0": [runs / "a", runs / "b", "--n-draws", 0],
        "format is 'gif'": [runs / "a", runs / "b", "--no-model", "--n-draws", 1, "--picture", tmp_path / "x.gif"],
    }.items():
        done = call("compare", *arguments)
        assert done.exit_code == 2, done.output
        assert says in done.stderr
        assert "Traceback" not in done.output
