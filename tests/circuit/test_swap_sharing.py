"""A prompt of a batch is run once, on whichever side of its pairs it stands, and scores do not change."""

import contextlib
from collections import Counter

import numpy as np
import pytest
import torch

from persona_circuits.circuit.attribution import Scoring, eap, eap_ig, score_parts
from persona_circuits.circuit.task import Row, batches, encode, with_swap_rows
from persona_circuits.metrics import METRICS

DIVERGENCE = METRICS["persona-divergence"]


@contextlib.contextmanager
def counting(model, monkeypatch):
    """Rows that start a forward pass (of EAP-IG, the interpolated ones do not), and passes back from the metric."""
    count = Counter()
    start, grad = model.start, torch.autograd.grad

    def counted_start(tokens, *rest):
        count["forwards"] += len(tokens)
        return start(tokens, *rest)

    def counted_grad(outputs, inputs, *rest, **more):
        if outputs.dim() == 0:
            count["backwards"] += len(inputs[0])
        return grad(outputs, inputs, *rest, **more)

    with monkeypatch.context() as patch:
        patch.setattr(model, "start", counted_start)
        patch.setattr(torch.autograd, "grad", counted_grad)
        yield count


def pairs(n=4, length=8):
    """Rows of one length whose prompts are all different."""
    shared = list(range(10, 10 + length))
    prompts = [(*shared[:2], 30 + i, *shared[3:]) for i in range(2 * n)]
    return [Row(i, prompts[2 * i], prompts[2 * i + 1], (3,), (4,)) for i in range(n)]


def alone(model, rows, scored, **how):
    """Every row as a batch of its own, so that it has nothing to share."""
    return scored(model, batches(rows, 1, "cpu"), DIVERGENCE, **how).values


@pytest.mark.parametrize(("scored", "how", "per_row"), [(eap, {}, 1), (eap_ig, {"steps": 3}, 3)])
def test_a_swapped_row_takes_no_forward_pass_of_its_own(tiny64, monkeypatch, scored, how, per_row):
    rows = with_swap_rows(pairs(4))
    expected = alone(tiny64, rows, scored, **how)
    with counting(tiny64, monkeypatch) as count:
        found = scored(tiny64, batches(rows, 8, "cpu"), DIVERGENCE, **how).values
    assert count == {"forwards": 8, "backwards": 8 * per_row}
    np.testing.assert_allclose(found, expected, atol=1e-12)
    assert np.abs(expected).max() > 1e-3


def test_scores_of_every_row_are_its_own(tiny64, monkeypatch):
    rows = with_swap_rows(pairs(3))
    expected = score_parts(tiny64, batches(rows, 1, "cpu"), DIVERGENCE, Scoring("eap"), by="row").values
    with counting(tiny64, monkeypatch) as count:
        found = score_parts(tiny64, batches(rows, 6, "cpu"), DIVERGENCE, Scoring("eap"), by="row").values
    assert count["forwards"] == 6
    np.testing.assert_allclose(found, expected, atol=1e-7)


def test_a_pair_that_a_batch_divides_is_run_where_it_is_missing(tiny64, monkeypatch):
    """Batches of three of six rows: each has one row whose other side is not in it."""
    rows = with_swap_rows(pairs(3))
    with counting(tiny64, monkeypatch) as count:
        found = eap(tiny64, batches(rows, 3, "cpu"), DIVERGENCE).values
    assert count["forwards"] == 6 + 2
    np.testing.assert_allclose(found, alone(tiny64, rows, eap), atol=1e-12)


def test_a_corrupt_prompt_of_several_rows_is_run_once(tiny64, monkeypatch):
    one, two, three = pairs(3)
    rows = [one, Row(1, two.clean, one.corrupt, (3,), (5,)), Row(2, three.clean, one.corrupt, (5,), (4,))]
    with counting(tiny64, monkeypatch) as count:
        found = eap(tiny64, batches(rows, 3, "cpu"), DIVERGENCE).values
    assert count["forwards"] == 3 + 1
    np.testing.assert_allclose(found, alone(tiny64, rows, eap), atol=1e-12)


def test_rows_that_share_nothing_run_both_prompts(tiny64, monkeypatch):
    rows = pairs(4)
    with counting(tiny64, monkeypatch) as count:
        found = eap(tiny64, batches(rows, 4, "cpu"), DIVERGENCE).values
    assert count["forwards"] == 8
    np.testing.assert_allclose(found, alone(tiny64, rows, eap), atol=1e-12)


def test_prompts_that_do_not_differ_score_nothing(tiny64):
    rows = [Row(i, row.clean, row.clean, row.answers, row.wrong_answers) for i, row in enumerate(pairs(3))]
    assert not eap(tiny64, batches(rows, 3, "cpu"), DIVERGENCE).values.any()


def test_padded_rows_are_run_at_their_own_places(tiny64, monkeypatch):
    """Batches of several lengths: prompts that are equal token by token may still stand elsewhere."""
    rows = [*with_swap_rows(pairs(1)), *(Row(2 + i, r.clean, r.corrupt, (3,), (4,)) for i, r in enumerate(pairs(1, 6)))]
    with counting(tiny64, monkeypatch) as count:
        found = eap(tiny64, batches(rows, 3, "cpu", uneven=True), DIVERGENCE).values
    assert count["forwards"] == 6
    np.testing.assert_allclose(found, alone(tiny64, rows, eap), atol=1e-10)


def test_other_ablations_are_not_taken_for_the_corrupt_one(tiny64, tiny_task):
    from persona_circuits.circuit.forward import zero

    rows = with_swap_rows(encode(tiny_task, tiny64))
    ablated = eap(tiny64, batches(rows, 4, "cpu"), DIVERGENCE, ablation=zero).values
    np.testing.assert_allclose(ablated, alone(tiny64, rows, eap, ablation=zero), atol=1e-12)
    assert np.abs(ablated - eap(tiny64, batches(rows, 4, "cpu"), DIVERGENCE).values).max() > 1e-3
