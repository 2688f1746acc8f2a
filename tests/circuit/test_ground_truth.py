"""Scorers and pruners find the planted circuits; where one fails, the table says so."""

import json
from dataclasses import replace

import pytest
import torch

from persona_circuits.circuit.assessment import BAR, GroundTruth, calibrate
from persona_circuits.models.planted import planted_models

PLANTED = {planted.name: planted for planted in planted_models()}
NAMES = tuple(PLANTED)


@pytest.fixture(scope="module")
def table():
    calls = []
    rows = calibrate(list(PLANTED.values()), progress=lambda done, total: calls.append((done, total)))
    assert calls == [(i, len(rows)) for i in range(1, len(rows) + 1)]
    return {(row.planted, row.method): row for row in rows}


def recovered(row):
    return {recovery.prune for recovery in row.recoveries if recovery.exact}


@pytest.mark.slow
def test_every_model_has_a_row_for_every_method(table):
    assert list(table) == [
        (name, method)
        for name in NAMES
        for method in (
            "eap",
            "eap-ig",
            "eap-ig-activations",
            "clean-corrupted",
            "ceap",
            "relp",
            "gim",
            "atp-star",
            "exact",
            "random",
            "acdc",
            "acdc-kl",
        )
    ]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("method", ["exact", "eap-ig", "acdc", "acdc-kl"])
def test_the_bar_is_reached_and_the_circuit_recovered(name, method, table):
    row = table[name, method]
    assert row.reaches_bar
    assert row.average_precision == pytest.approx(1)
    assert recovered(row) == ({"acdc"} if "acdc" in method else {"threshold", "top-n", "greedy", "eap-acdc"})
    assert row.note == ""


@pytest.mark.parametrize("name", NAMES)
def test_plain_eap_fails_where_the_gradient_is_saturated_and_only_there(name, table):
    row = table[name, "eap"]
    if name != "saturated":
        assert row.reaches_bar
        assert row.note == ""
        return
    assert row.auroc < BAR
    assert not recovered(row) & {"threshold", "top-n", "greedy"}
    assert "a0.h1->m1 scored +0.000, exact -4.000 (flat at the clean prompt)" in row.note
    assert "a0.h0->m2 scored -4.000, exact +0.000 (steep at the clean prompt, no effect in sum)" in row.note


@pytest.mark.parametrize("name", NAMES)
def test_backward_rules_miss_what_their_rules_leave_out(name, table):
    """Keys, to RelP, to which attention weights are constants; a saturated reader, to both."""
    assert table[name, "relp"].reaches_bar == (name not in ("keys", "saturated"))
    assert table[name, "gim"].reaches_bar == (name != "saturated")
    assert table[name, "atp-star"].reaches_bar == (name != "saturated")


def test_acdc_cannot_bring_back_what_saturated_eap_has_dropped(table):
    assert "eap-acdc" not in recovered(table["saturated", "eap"])


def test_random_scores_are_at_chance(table):
    rows = [table[name, "random"] for name in NAMES]
    assert all(0.3 < row.auroc < 0.7 for row in rows)
    assert not any(recovered(row) & {"threshold", "top-n", "greedy"} for row in rows)


def test_a_wrong_truth_is_not_recovered(table):
    copy = PLANTED["copy"]
    wrong = replace(copy, name="wrong", true_edges=copy.true_edges | {"m0->a1.h0<q>", "input->logits"})
    rows = {row.method: row for row in calibrate([wrong])}
    threshold = rows["exact"].recoveries[0]
    assert (threshold.n_edges, threshold.precision, threshold.recall) == (2, 1.0, 0.5)
    assert not recovered(rows["exact"])
    assert not rows["exact"].reaches_bar
    assert "input->logits scored +0.000, exact +0.000" in rows["exact"].note


@pytest.mark.slow
def test_a_share_too_large_loses_edges():
    row = next(row for row in calibrate([PLANTED["keys"]], share=0.5) if row.method == "exact")
    assert row.recoveries[0].recall < 1
    assert row.reaches_bar


def test_rows_are_plain_values_for_json(table):
    row = table["saturated", "eap"]
    found = json.loads(json.dumps(row.as_dict(), allow_nan=False))
    assert found["planted"] == "saturated"
    assert found["reaches_bar"] is False
    assert found["recoveries"][0]["prune"] == "threshold"


def test_the_number_of_threads_is_put_back():
    before = torch.get_num_threads()
    calibrate([])
    assert torch.get_num_threads() == before


def test_planted_models_are_ground_truths():
    assert all(isinstance(planted, GroundTruth) for planted in PLANTED.values())
    assert not isinstance("copy", GroundTruth)
