"""Complement, knockouts and backup, on models whose circuits and whose backup are known."""

import json
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from scipy import stats

from persona_circuits.circuit.errors import OptionError
from persona_circuits.circuit.evaluation.completeness import CompletenessOptions, completeness_report, growth_p, shares
from persona_circuits.circuit.forward import measure, prepare
from persona_circuits.circuit.statistics import Clusters
from persona_circuits.circuit.subgraph import Circuit
from persona_circuits.circuit.task import batches, encode, with_swap_rows
from persona_circuits.metrics import METRICS
from persona_circuits.models.planted import EARLY, Planted, planted_models
from persona_circuits.models.planted.circuits import _pairs
from persona_circuits.models.planted.network import Hand

DIVERGENCE = METRICS["persona-divergence"]
FOUND = 30.0


def backup_network():
    """a1.h0 carries the persona to the answer and leaves an echo; m2 adds what the echo lacks of the taste.

    Where both prompts agree m2 adds nothing. With a1.h0 corrupted, echo and answer are those of
    the other persona, -1, the taste is still +1, and m2 adds 2: the answer is +1 again.
    """
    net = Hand(n_layers=3, n_heads=2)
    net.head(0, 1, attends={"mark": FOUND}, reads={"who": 1}, writes={"taste": 1})
    net.head(1, 0, attends={"mark": FOUND}, reads={"who": 1}, writes={"answer": 1, "echo": 1})
    net.linear(2, reads={"taste": 1, "echo": -1}, writes={"answer": 1})
    net.head(2, 0, attends={"mark": FOUND}, reads={"who": 1}, writes={"spare": 1})  # a bystander
    return net.network


MAIN_PATH = frozenset({"input->a1.h0<v>", "a1.h0->logits"})
PLANTED = {planted.name: planted for planted in planted_models()} | {
    "backup": Planted("backup", "A head, and an MLP after it.", "no collapse", MAIN_PATH, _pairs(EARLY), backup_network)
}


@cache
def planted(name, n_pairs=None):
    model = PLANTED[name].model()
    rows = with_swap_rows(encode(PLANTED[name].task, model)[:n_pairs])
    return model, [prepare(model, batch) for batch in batches(rows, 32, "cpu")]


def report_on(name, edges=None, *, n_pairs=None, **options):
    model, prepared = planted(name, n_pairs)
    circuit = Circuit.of(model.graph, PLANTED[name].true_edges if edges is None else edges)
    kept = {name: options.pop(name) for name in ("progress", "state", "clusters") if name in options}
    how = CompletenessOptions(**{"n_random": 6, "n_steps": 2, "n_candidates": 3} | options)
    return completeness_report(model, lambda: prepared, DIVERGENCE, circuit, how, **kept)


def without(mask, graph, nodes):
    kept = mask.copy()
    kept[[graph.src_index(node) for node in nodes]] = False
    return kept


def test_shares_are_ratios_of_means_and_resample_pairs():
    rng = np.random.default_rng(0)
    span, values = rng.normal(3, 1, size=30), rng.normal(size=(2, 30))
    found = shares(values, span, seed=5)
    assert [one.value for one in found] == pytest.approx(values.mean(1) / span.mean())
    picks = rng.integers(0, 30, size=(4000, 30))
    for one, row in zip(found, values, strict=True):
        low, high = np.percentile(row[picks].mean(1) / span[picks].mean(1), [2.5, 97.5])
        assert (one.interval.low, one.interval.high) == pytest.approx((low, high), abs=0.02)
    assert shares(values[:, :1], span[:1])[0].interval is None


def test_p_of_growth_is_that_of_all_signs():
    rng = np.random.default_rng(1)
    growth = rng.normal(0.3, 1, size=(3, 9))
    signs = np.array(np.meshgrid(*[[1, -1]] * 9)).reshape(9, -1)
    expected = [np.mean((row @ signs) >= row.sum() - 1e-12) for row in growth]
    assert growth_p(growth) == pytest.approx(expected)
    assert growth_p(np.zeros((1, 5))) == pytest.approx([1.0])
    many = rng.normal(0.4, 1, size=(2, 40))
    exact = [stats.ttest_1samp(row, 0, alternative="greater").pvalue for row in many]
    assert growth_p(many) == pytest.approx(exact, abs=0.01)
    assert growth_p(np.ones((1, 40))) == pytest.approx([1 / 50_001])


def test_false_discoveries_stay_at_their_rate_and_true_ones_are_found():
    rng, trials, false, found = np.random.default_rng(2), 120, [], []
    for _ in range(trials):
        growth = rng.normal(size=(40, 12))
        growth[:4] += 3.0
        taken = stats.false_discovery_control(growth_p(growth)) <= 0.05
        found.append(taken[:4].mean())
        false.append(taken[4:].sum() / max(1, taken.sum()))
    assert np.mean(false) < 0.05 + 3 * np.std(false) / trials**0.5
    assert np.mean(false) > 0.01
    assert np.mean(found) > 0.9
    none = [np.min(stats.false_discovery_control(growth_p(rng.normal(size=(40, 12))))) <= 0.05 for _ in range(trials)]
    assert sum(none) <= stats.binom.ppf(0.999, trials, 0.05)


@pytest.mark.parametrize("name", [name for name in PLANTED if name != "backup"])
def test_true_circuits_are_complete(name):
    found = report_on(name, n_parts=2)
    assert found.circuit.value == pytest.approx(1, abs=0.01)
    assert found.complement.value == pytest.approx(0, abs=0.01)
    assert all(abs(one.gap.value) < 0.01 for one in found.knockouts)
    assert found.backup.decision == "none found"


def test_a_missing_branch_shows_in_complement_and_knockouts():
    found = report_on("cancel", {"input->a1.h0<v>", "a1.h0->logits"}, n_parts=0)
    assert found.circuit.value == pytest.approx(10, rel=0.01)  # one branch makes 3 where both make 0.3
    assert found.complement.value == pytest.approx(-9, rel=0.01)
    heads = next(one for one in found.knockouts if one.name == "heads")
    assert (heads.f_circuit, heads.f_model) == pytest.approx((0, -9), abs=0.01)
    assert found.worst.gap.value == pytest.approx(9, rel=0.01)
    assert found.greedy.nodes == ("a1.h0",)
    assert found.backup.sentence == "Backup was not searched for."


def test_backup_is_found_confirmed_and_told_from_bystanders():
    found = report_on("backup")
    assert found.circuit.value == pytest.approx(1, abs=0.01)
    assert found.complement.value == pytest.approx(1, abs=0.01)
    assert found.greedy.gap.value == pytest.approx(-1, abs=0.01)
    assert found.backup.decision == "found"
    assert {(one.node, one.part) for one in found.backup.nodes if one.takes_over} == {
        ("m2", "circuit"),
        ("m2", "heads"),
        ("m2", "heads of layer 1"),
    }
    most = found.backup.nodes[0]
    assert (most.node, most.before, most.after) == ("m2", pytest.approx(0, abs=0.01), pytest.approx(1, abs=0.01))
    assert most.growth.interval.low > 0.9
    for part in found.backup.parts:
        assert part.searched
        assert part.found == ("m2",)
        assert part.confirmed
        assert part.joint.value == pytest.approx(1, abs=0.01)
        assert part.control < 0.5  # a0.h1, which m2 reads, is among some of the controls
    assert "m2" in found.backup.sentence
    assert found.backup_rows()[0]["node"] == "m2"
    # What m2 reads does not grow: without it m2 spoils the answer in the whole model as well.
    reader = next(one for one in found.backup.nodes if one.node == "a0.h1")
    assert reader.before == pytest.approx(reader.after, abs=0.01)


def test_with_the_backup_in_the_circuit_nothing_is_left_to_find():
    edges = {*MAIN_PATH, "input->a0.h1<v>", "a0.h1->m2", "a1.h0->m2", "m2->logits"}
    found = report_on("backup", edges)
    assert found.complement.value == pytest.approx(0, abs=0.01)
    assert all(abs(one.gap.value) < 0.01 for one in found.knockouts)
    assert found.backup.decision == "none found"


def test_the_numbers_are_those_of_the_definition(tiny, tiny_task):
    prepared = [prepare(tiny, group) for group in batches(with_swap_rows(encode(tiny_task, tiny)), 8, "cpu")]
    graph = tiny.graph
    circuit = Circuit.of(graph, ["input->a0.h1<v>", "a0.h1->m1", "m1->a2.h0<q>", "a2.h0->logits", "m1->logits"])
    found = completeness_report(
        tiny, lambda: prepared, DIVERGENCE, circuit, CompletenessOptions(n_random=3, n_steps=1, n_parts=1)
    )
    groups = [(graph.valid, ()), (np.zeros_like(graph.valid), ())]
    known = [one for one in found.knockouts if one.kind in ("random nodes", "type")]
    groups += [(mask, one.nodes) for one in known for mask in (circuit.mask, graph.valid)]
    masks = [without(mask, graph, nodes) for mask, nodes in groups]
    full, empty, *rest = measure(tiny, prepared, masks, DIVERGENCE).reshape(len(masks), -1, 2).mean(2)
    span = (full - empty).mean()
    for i, one in enumerate(known):
        mine, whole = ((values - empty).mean() / span for values in rest[2 * i : 2 * i + 2])
        assert (one.f_circuit, one.f_model) == pytest.approx((mine, whole), abs=1e-4)
        assert one.gap.value == pytest.approx(mine - whole, abs=1e-4)
        assert one.n_edges == int((circuit.mask & ~without(circuit.mask, graph, one.nodes)).sum())
    part = next(one for one in found.backup.parts if one.searched)
    node = next(one for one in found.backup.nodes if one.part == part.name)
    gone = graph.valid & ~circuit.mask if part.name == "circuit" else without(graph.valid, graph, part.nodes)
    masks = [gone, without(gone, graph, [node.node]), graph.valid, without(graph.valid, graph, [node.node])]
    left, less, whole, lacking = measure(tiny, prepared, masks, DIVERGENCE).mean(1)
    assert node.before == pytest.approx((whole - lacking) / span, abs=1e-4)
    assert node.after == pytest.approx((left - less) / span, abs=1e-4)
    assert len(found.backup.nodes) == graph.n_src - 1 - 3
    random = [one for one in known if one.kind == "random nodes"]
    assert found.mean_gap.value == pytest.approx(np.mean([abs(one.gap.value) for one in random]))
    assert abs(found.worst.gap.value) == max(abs(one.gap.value) for one in found.knockouts[1:] if one.kind != "greedy")


def test_the_greedy_part_is_measured_on_pairs_that_did_not_choose_it():
    found = report_on("keys", {"input->a0.h1<v>", "a0.h1->a1.h0<v>", "a1.h0->logits"}, n_parts=0)
    greedy = [one for one in found.knockouts if one.kind == "greedy"]
    assert [len(one.nodes) for one in greedy] == [1, 2]
    assert set(greedy[0].nodes) < set(greedy[1].nodes)
    assert {one.n_pairs for one in greedy} == {6}
    assert {one.n_pairs for one in found.knockouts if one.kind != "greedy"} == {12}
    assert found.greedy in greedy


def test_full_and_empty_circuit():
    model, _ = planted("copy")
    full = report_on("copy", [str(edge) for edge in model.graph.edges()])
    assert full.circuit.value == pytest.approx(1)
    assert full.complement.value == pytest.approx(0, abs=1e-6)
    assert full.backup.sentence == "Every node is in the circuit."
    assert all(abs(one.gap.value) < 1e-6 for one in full.knockouts)
    empty = report_on("copy", ())
    assert empty.circuit.value == pytest.approx(0)
    assert empty.complement.value == pytest.approx(1)
    assert [one.kind for one in empty.knockouts] == ["none"]
    assert (empty.mean_gap, empty.worst, empty.greedy) == (None, None, None)
    assert empty.backup.decision == "none found"  # nothing is gone, so nothing grows
    assert json.dumps([full.as_dict(), empty.as_dict()], allow_nan=False)


@pytest.mark.parametrize("n", [1, 2])
def test_one_and_two_pairs(n):
    found = report_on("backup", n_pairs=n)
    assert found.n_pairs == n
    assert (found.circuit.interval is None) == (n == 1)
    assert found.backup.decision == "undecided"
    assert f"With {n} pair{'s' * (n > 1)} no single node" in found.backup.sentence
    assert json.dumps(found.as_dict(), allow_nan=False)


def test_where_nothing_is_to_be_explained_nothing_is_defined(tiny, tiny_task):
    groups = batches(with_swap_rows(encode(tiny_task, tiny)), 8, "cpu")
    same = [prepare(tiny, replace(group, corrupt=group.clean)) for group in groups]
    found = completeness_report(tiny, lambda: same, DIVERGENCE, Circuit.of(tiny.graph, ["input->m0"]))
    assert (found.circuit, found.complement, found.knockouts, found.rows()) == (None, None, (), [])
    assert found.backup.decision == "not applicable"
    assert "no share of it is defined" in found.sentence
    assert json.dumps(found.as_dict(), allow_nan=False)


def test_the_report_is_plain_repeatable_and_has_its_tables():
    once, again, other = (report_on("keys", quick=True, seed=seed) for seed in (1, 1, 2))
    assert json.dumps(once.as_dict(), allow_nan=False) == json.dumps(again.as_dict(), allow_nan=False)
    assert [one.nodes for one in once.knockouts] != [one.nodes for one in other.knockouts]
    assert once.backup.decision == "not applicable"
    assert [row["number"] for row in once.rows()][:2] == ["circuit F(C)", "complement F(M without C)"]
    assert all(row["low"] <= row["value"] <= row["high"] for row in once.rows()[:2])
    assert len(once.knockout_rows()) == len(once.knockouts)
    assert once.sentence.startswith("The circuit does 100.0% of what the model does")


def test_intervals_can_be_over_personas_and_questions():
    pairs = PLANTED["keys"].pairs
    found = report_on("keys", clusters=Clusters.of(pairs), n_parts=0)
    assert found.complement.interval.by == Clusters.of(pairs).by != "pairs"
    assert {one.gap.interval.by for one in found.knockouts if one.kind == "greedy"} == {found.complement.interval.by}


def test_progress_ends_full():
    calls = []
    report_on("copy", progress=lambda done, total: calls.append((done, total)))
    assert calls[-1][0] == calls[-1][1]
    assert len({total for _, total in calls}) == 1
    assert [done for done, _ in calls] == sorted(done for done, _ in calls)


def test_it_goes_on_from_a_stop(tmp_path, monkeypatch):
    monkeypatch.setattr("persona_circuits.circuit.storage.kept.SAVE_SECONDS", 0.0)
    state, calls = tmp_path / "state", []

    def stop(done, total):
        calls.append(done)
        if len(calls) == 6:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        report_on("keys", state=state, progress=stop)
    assert state.is_file()
    assert report_on("keys", state=state).as_dict() == report_on("keys").as_dict()
    assert not state.exists()


@pytest.mark.parametrize(
    ("option", "says"),
    [
        ({"alpha": 1.0}, "alpha must lie between 0 and 1"),
        ({"negligible": 1.0}, "negligible must be at least 0"),
        ({"n_random": -1}, "random knockouts must be at least 0"),
        ({"n_candidates": 0}, "greedy candidates must be at least 1"),
        ({"n_parts": -1}, "parts must be at least 0"),
    ],
)
def test_impossible_options_are_refused(option, says):
    with pytest.raises(OptionError, match=says):
        report_on("copy", **option)
