import json
import re
from dataclasses import replace

import numpy as np
import pytest

from persona_circuits.circuit.errors import TaskError
from persona_circuits.circuit.evaluation import Cell, random_circuits, specificity, transfer, transfer_within
from persona_circuits.circuit.evaluation.dissociation import _finding
from persona_circuits.circuit.forward import measure, prepare
from persona_circuits.circuit.statistics import Clusters, Interval
from persona_circuits.circuit.subgraph import Circuit
from persona_circuits.circuit.task import batches, encode, load_task, with_swap_rows
from persona_circuits.metrics import METRICS
from persona_circuits.models.planted import planted_models

DIVERGENCE = METRICS["persona-divergence"]


@pytest.fixture(scope="module")
def planted():
    item = next(one for one in planted_models() if one.name == "two-hop")
    return item, item.model()


def pairs_of(task, model):
    rows = with_swap_rows(encode(task, model))
    return lambda: [prepare(model, batch) for batch in batches(rows, 8, "cpu")]


def test_the_true_circuit_transfers_and_what_is_outside_it_does_not(planted):
    item, model = planted
    half = len(item.task.pairs) // 2
    parts = {"first": item.task.pairs[:half], "second": item.task.pairs[half:]}
    grounds = {name: pairs_of(replace(item.task, pairs=pairs), model) for name, pairs in parts.items()}
    found = transfer(model, item.circuit(model.graph), grounds, DIVERGENCE, n_outside=5)
    assert [part.name for part in found] == ["first", "second"]
    for part in found:
        assert part.faithfulness == pytest.approx(1.0, abs=1e-3)
        assert part.holds
        assert max(part.outside) < 0.1
    wrong = transfer(model, Circuit.of(model.graph, ["input->logits"]), grounds, DIVERGENCE, n_outside=2)
    assert not any(part.holds for part in wrong)


def test_parts_of_one_set_are_what_each_would_be_by_itself(tiny64, tiny_task):
    circuit = Circuit.of(tiny64.graph, ["input->m0", "m0->logits", "input->logits"])
    parts = {"even": [0, 2, 4, 6], "rest": [1, 3, 5, 7], "last": [7]}
    grounds = {
        name: pairs_of(replace(tiny_task, pairs=tuple(tiny_task.pairs[i] for i in places)), tiny64)
        for name, places in parts.items()
    }
    expected = transfer(tiny64, circuit, grounds, DIVERGENCE, n_outside=2, seed=5)
    found = transfer_within(tiny64, circuit, pairs_of(tiny_task, tiny64), parts, DIVERGENCE, n_outside=2, seed=5)
    for one, other in zip(found, expected, strict=True):
        assert (one.name, one.n_pairs, one.holds) == (other.name, other.n_pairs, other.holds)
        assert one.faithfulness == pytest.approx(other.faithfulness, rel=1e-9)
        assert one.outside == pytest.approx(other.outside, rel=1e-9)


def test_cells_are_the_complement_on_the_other_contrast(tiny64, tiny_task):
    first, second = (replace(tiny_task, pairs=tiny_task.pairs[part]) for part in (slice(0, 4), slice(4, 8)))
    circuits = [
        Circuit.of(tiny64.graph, ["input->m0", "m0->logits"]),
        Circuit.of(tiny64.graph, ["input->a0.h1<v>", "a0.h1->logits"]),
    ]
    contrasts = {
        name: (circuit, pairs_of(task, tiny64), DIVERGENCE)
        for name, circuit, task in zip(("a", "b"), circuits, (first, second), strict=True)
    }
    matrix = specificity(tiny64, contrasts).matrix()
    for i, circuit in enumerate(circuits):
        for j, task in enumerate((first, second)):
            masks = [Circuit.full(tiny64.graph).mask, Circuit.empty(tiny64.graph).mask, circuit.complement().mask]
            full, empty, left = measure(tiny64, pairs_of(task, tiny64)(), masks, DIVERGENCE).mean(axis=1)
            assert matrix[i, j] == pytest.approx((left - empty) / (full - empty), rel=1e-9)


def test_a_failed_dissociation_is_said(planted):
    item, model = planted
    own, other = item.circuit(model.graph), Circuit.of(model.graph, ["input->logits"])
    pairs = pairs_of(item.task, model)
    found = specificity(model, {"persona": (own, pairs, DIVERGENCE), "twin": (other, pairs, DIVERGENCE)})
    assert any(
        text.startswith("no dissociation: ablating the circuit of persona leaves only") for text in found.findings
    )
    assert any(text.startswith("not necessary: ablating the circuit of twin") for text in found.findings)
    flat = (own, lambda: [replace_corrupt(p) for p in pairs()], DIVERGENCE)
    assert specificity(model, {"flat": flat}).findings[0].startswith("flat: no effect to explain")
    assert np.isnan(specificity(model, {"flat": flat}).matrix()).all()


def replace_corrupt(item):
    same = {name: getattr(item.clean, name) for name in ("streams", "mids", "qkv", "contributions", "logits")}
    return replace(item, ablated=replace(item.ablated, **same))


def test_pairs_are_chosen_by_their_keys(tmp_path):
    rows = [
        {
            "clean": f"a {d} {n}",
            "corrupt": "b",
            "answers": [" x"],
            "wrong_answers": [" y"],
            "domain": d,
            "level": n,
            "leak": n > 1,
        }
        for d, n in (("food", 1), ("food", 2), ("travel", 1))
    ]
    path = tmp_path / "pairs.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    task = load_task(path)
    assert len(task.where(domain="food").pairs) == 2
    assert len(task.where(domain="food", level="2", leak="true").pairs) == 1
    assert {key: len(part.pairs) for key, part in task.groups("level").items()} == {"1": 2, "2": 1}
    with pytest.raises(TaskError, match="has domain 'sport'; there are: food, travel"):
        task.where(domain="sport")
    with pytest.raises(TaskError, match="has a 'colour'; give a key of its rows"):
        task.groups("colour")
    with pytest.raises(TaskError, match="domain 'travel' and level '2' together"):
        task.where(domain="travel", level="2")


def test_circuits_outside_share_no_edge_and_have_the_size_where_there_is_room(tiny):
    graph = tiny.graph
    (circuit,) = random_circuits(graph, 30, 1, seed=1)
    outside = random_circuits(graph, 30, 6, seed=2, outside=circuit)
    assert len(set(outside)) == 6
    for one in outside:
        assert not (one.mask & circuit.mask).any()
        assert len(one) == 30
        assert one.without_dead_ends() == one
    alone = Circuit(graph, graph.valid & ~Circuit.of(graph, ["input->logits"]).mask)
    assert random_circuits(graph, 1, 3, seed=0, outside=Circuit.of(graph, ["input->logits"]))[0].mask.any()
    assert random_circuits(graph, 5, 3, seed=0, outside=alone) == [Circuit.of(graph, ["input->logits"])] * 3
    assert random_circuits(graph, 5, 3, seed=0, outside=Circuit.full(graph)) == []


def test_without_a_control_or_an_interval_nothing_holds(planted):
    item, model = planted
    grounds = {"all": pairs_of(item.task, model)}
    (found,) = transfer(model, Circuit.full(model.graph), grounds, DIVERGENCE)
    assert (found.outside, found.n_outside_edges, found.holds) == ((), None, None)
    assert found.faithfulness == pytest.approx(1.0)
    one = {"one": pairs_of(replace(item.task, pairs=item.task.pairs[:1]), model)}
    (found,) = transfer(model, item.circuit(model.graph), one, DIVERGENCE)
    assert (found.interval, found.holds) == (None, None)


def test_intervals_are_drawn_over_what_pairs_share(planted):
    item, model = planted
    grounds = {"all": pairs_of(item.task, model)}
    part = Circuit.of(model.graph, ["input->m0", "m0->a1.h3<v>"])
    names = [f"p{i}" for i in range(len(item.task.pairs))]
    clusters = {"all": Clusters.named(names, [f"{name}'" for name in names], names)}
    (plain,) = transfer(model, part, grounds, DIVERGENCE)
    (shared,) = transfer(model, part, grounds, DIVERGENCE, clusters=clusters)
    assert plain.interval.by == "pairs"
    assert shared.interval.by == clusters["all"].by != "pairs"
    cells = specificity(model, {"a": (part, grounds["all"], DIVERGENCE)}, clusters={"a": clusters["all"]}).cells
    assert cells[0].interval.by == shared.interval.by
    assert isinstance(cells[0].median_of_ratios, float)
    assert isinstance(shared.median_of_ratios, float)


@pytest.mark.parametrize(
    ("circuit", "left", "bounds", "says"),
    [
        ("a", 0.9, (0.85, 0.95), "not necessary: ablating the circuit of a leaves 0.90 of its own"),
        ("a", 0.5, (0.1, 0.9), "not shown to be necessary"),
        ("a", 0.1, (0.0, 0.2), None),
        ("b", 0.5, (0.4, 0.6), "no dissociation: ablating the circuit of b leaves only 0.50 of a"),
        ("b", 1.5, (1.4, 1.6), "more than there was"),
        ("b", 0.95, (0.6, 1.1), r"dissociation not shown: ablating the circuit of b leaves 0.95 of a \(95 % interval"),
        ("b", 0.97, (0.9, 1.1), None),
        ("b", 0.97, None, None),
        ("a", None, None, "no effect to explain"),
    ],
)
def test_every_kind_of_failed_dissociation_is_said(circuit, left, bounds, says):
    found = _finding(Cell(circuit, "a", left, None if bounds is None else Interval(*bounds)))
    assert found is None if says is None else re.search(says, found)
