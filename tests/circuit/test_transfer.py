import json
from dataclasses import replace

import numpy as np
import pytest

from circuit.errors import TaskError
from circuit.patching import measure, prepare
from circuit.subgraph import Circuit
from circuit.task import batches, encode, load_task, with_swap_rows
from circuit.transfer import specificity, transfer
from metrics import METRICS
from models.planted import planted_models

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
            "clean": "a",
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
