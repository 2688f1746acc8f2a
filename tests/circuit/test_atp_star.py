"""AtP* against its two corrections written out, in float64, and on planted models that EAP misses."""

import sys
from itertools import product

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from persona_circuits.circuit.attribution import Scoring, eap, exact, score, score_parts
from persona_circuits.circuit.attribution.atp_star import atp_star
from persona_circuits.circuit.errors import OptionError
from persona_circuits.circuit.forward import prepare
from persona_circuits.circuit.graph import SLOTS
from persona_circuits.circuit.subgraph import Circuit
from persona_circuits.circuit.task import batches, encode, with_swap_rows
from persona_circuits.metrics import METRICS
from persona_circuits.models.planted import planted_models

DIFF = METRICS["logit-diff"]


@pytest.fixture(scope="module")
def rows(tiny64, tiny_task):
    return batches(encode(tiny_task, tiny64)[:2], 8, "cpu")


def written_out(model, embedded, context, metric, targets, dropped=None, patched=None):
    """Every head reads a copy of its own; the slope at every read and at every head's result, and the results.

    Nothing comes back through the layer ``dropped``; ``patched`` is a layer, slot and head, and what its read is.
    """
    stream, reads, results = embedded.detach().requires_grad_(), {}, {}
    for block in model.blocks:
        copies = {}
        for slot, head in product(SLOTS, range(model.graph.n_heads)):
            read = stream.clone()
            reads[block.layer, slot, head] = read
            if patched is not None and patched[0] == (block.layer, slot, head):
                read = read + patched[1]
            copies[slot, head] = block.project(slot, block.attn_norm(read))[:, :, head]
        qkv = [torch.stack([copies[slot, head] for head in range(model.graph.n_heads)], dim=2) for slot in SLOTS]
        each = [x.clone() for x in block.head_results(block.attention(*qkv, context))]
        results |= {(block.layer, head): x for head, x in enumerate(each)}
        bias = block.attn_out(torch.zeros_like(qkv[0]))
        attention = sum(each) + bias
        after = stream + (attention.detach() if block.layer == dropped else attention)
        read = (stream if block.parallel else after).clone()
        reads[block.layer, "mlp", 0] = read
        mlp = block.mlp(read)
        stream = after + (mlp.detach() if block.layer == dropped else mlp)
    reads["logits"] = stream.clone()
    m = metric(model.unembed(reads["logits"][:, -1]), targets).sum()
    names = [*reads, *results]
    slopes = torch.autograd.grad(m, [*reads.values(), *results.values()], allow_unused=True)
    none = torch.zeros_like(stream)
    return {name: none if x is None else x for name, x in zip(names, slopes, strict=True)}, results


def slot_name(graph, dst):
    layer, place = divmod(dst, 3 * graph.n_heads + 1)
    if layer == graph.n_layers:
        return "logits"
    return (
        (layer, "mlp", 0)
        if place == 3 * graph.n_heads
        else (layer, SLOTS[place // graph.n_heads], place % graph.n_heads)
    )


def test_the_query_key_fix_is_exact_patching_of_the_query_and_of_the_key_up_to_the_heads_result(tiny64, rows):
    """The edge alone carries the corrupt value; what that does to the head's result, on the slope at it."""
    graph, item = tiny64.graph, prepare(tiny64, rows[0])
    how = (tiny64, item.clean.streams[0], item.clean.context, DIFF, item.targets)
    slopes, plain = written_out(*how)
    delta = item.ablated.contributions - item.clean.contributions
    found = atp_star(tiny64, rows[:1], DIFF, drop=False)
    linear = eap(tiny64, rows[:1], DIFF)
    places = [(s, d) for s, d in np.argwhere(graph.valid).tolist() if slot_name(graph, d)[1] in ("q", "k")]
    for src, dst in np.random.default_rng(0).permutation(places)[:24].tolist():
        layer, slot, head = slot_name(graph, dst)
        moved = written_out(*how, patched=((layer, slot, head), delta[src]))[1][layer, head]
        expected = float(((moved - plain[layer, head]) * slopes[layer, head]).detach().sum()) / len(item.batch)
        assert found.values[src, dst] == pytest.approx(expected, rel=1e-8, abs=1e-12)
    others = np.array([slot_name(graph, d)[1] not in ("q", "k") for d in range(graph.n_dst)])
    np.testing.assert_allclose(found.values[:, others], linear.values[:, others], atol=1e-12)
    assert np.abs(found.values - linear.values)[:, ~others].max() > 1e-4


def test_graddrop_is_the_mean_over_layers_that_are_left_out(tiny64, rows):
    graph, item = tiny64.graph, prepare(tiny64, rows[0])
    delta = item.ablated.contributions - item.clean.contributions
    how = (tiny64, item.clean.streams[0], item.clean.context, DIFF, item.targets)
    whole, *dropped = (written_out(*how, dropped=layer)[0] for layer in (None, *range(graph.n_layers)))
    found = atp_star(tiny64, rows[:1], DIFF)
    for dst in range(graph.n_dst):
        name = slot_name(graph, dst)
        if name[1] in ("q", "k"):
            continue
        n = graph.n_reaching(dst)

        def rows_of(slopes, name=name, n=n):
            return torch.einsum("sbpd,bpd->bs", delta[:n], slopes[name])

        kept = [slopes for layer, slopes in enumerate(dropped) if name == "logits" or layer != name[0]]
        mean = torch.stack([rows_of(slopes).abs() for slopes in (whole, *kept)]).mean(0)
        expected = (torch.sign(rows_of(whole)) * mean).mean(0)
        np.testing.assert_allclose(found.values[:n, dst], expected.numpy(), atol=1e-12)


@pytest.mark.parametrize("ablation", [None, "zero"])
def test_rows_add_up_to_the_whole(ablation, tiny64, rows):
    from persona_circuits.circuit.forward import make_ablation

    made = None if ablation is None else make_ablation(ablation, tiny64, rows)
    parts = score_parts(tiny64, rows, DIFF, Scoring("atp-star"), by="row", ablation=made)
    whole = score(tiny64, rows, DIFF, Scoring("atp-star"), ablation=made)
    assert parts.names == ("0", "1")
    np.testing.assert_allclose(parts.total().values, whole.values, atol=1e-6)


def test_small_parts_give_the_same(tiny64, tiny_task, monkeypatch):
    rows = batches(with_swap_rows(encode(tiny_task, tiny64)[:3]), 8, "cpu")
    whole = atp_star(tiny64, rows, DIFF).values
    monkeypatch.setattr(sys.modules[atp_star.__module__], "MAX_BYTES", 1)
    np.testing.assert_allclose(atp_star(tiny64, rows, DIFF).values, whole, atol=1e-12)


@pytest.mark.parametrize("name", ["keys", "two-hop"])
def test_planted_circuits_are_found_and_a_key_has_its_exact_effect(name):
    """EAP sees about half of what the planted key does, as its softmax bends."""
    (truth,) = (one for one in planted_models() if one.name == name)
    model, metric = truth.model(), METRICS["persona-divergence"]
    rows = batches(with_swap_rows(encode(truth.task, model)), 64, "cpu")
    true = Circuit.of(model.graph, truth.true_edges).mask[model.graph.valid]
    assert roc_auc_score(true, np.abs(atp_star(model, rows, metric).values[model.graph.valid])) == 1.0
    if name == "keys":
        edge = "m0->a1.h0<k>"
        fixed, whole = atp_star(model, rows, metric, drop=False)[edge], exact(model, rows, metric)[edge]
        assert fixed == pytest.approx(whole, rel=1e-3)
        assert abs(eap(model, rows, metric)[edge]) < 0.6 * abs(whole)


def test_a_metric_without_slope_is_refused(tiny64, rows):
    with pytest.raises(OptionError, match="zero gradient"):
        atp_star(tiny64, rows, METRICS["kl"])
