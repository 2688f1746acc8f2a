"""Scorers along a path against their definition and their completeness, and several scorers as one."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from conftest import pairs_that_begin_alike

from persona_circuits.circuit.attribution import (
    Scoring,
    ceap,
    clean_corrupted,
    eap,
    eap_by_definition,
    eap_ig,
    eap_ig_activations,
    mean_of,
    score_parts,
)
from persona_circuits.circuit.attribution.eap import _read_apart
from persona_circuits.circuit.discovery import Options, discover
from persona_circuits.circuit.errors import OptionError
from persona_circuits.circuit.forward import make_ablation, patched_nodes, prepare, targets_of
from persona_circuits.circuit.graph import Graph
from persona_circuits.circuit.io import read_circuit
from persona_circuits.circuit.scores import Scores
from persona_circuits.circuit.task import batches, encode, with_swap_rows
from persona_circuits.metrics import METRICS

DIFF = METRICS["logit-diff"]


@pytest.fixture(scope="module")
def rows(tiny64, tiny_task):
    return batches(encode(tiny_task, tiny64)[:3], 8, "cpu")


def along(model, batch, steps):
    """Conductance written out: every step's change of every source on the mean of the slopes at its ends."""
    graph, total = model.graph, np.zeros(model.graph.valid.shape)
    clean, context = model.start(batch.clean)
    corrupt, _ = model.start(batch.corrupt)
    found = []
    for k in range(steps + 1):
        written, logits, inputs = _read_apart(model, clean + k / steps * (corrupt - clean), context)
        reference = logits if not k else found[0][2]
        m = DIFF(logits, targets_of(batch, reference)).sum()
        found.append((written, torch.autograd.grad(m, inputs), logits.detach()))
    for before, after in pairwise(found):
        for slot, (one, other) in enumerate(zip(before[1], after[1], strict=True)):
            n = graph.n_reaching(slot)
            step = (after[0] - before[0])[:n]
            total[:n, slot] += torch.einsum("sbpd,bpd->s", step, (one + other) / 2).numpy()
    return total


@pytest.mark.parametrize("kept", [False, True])
def test_conductance_is_its_definition(kept, tiny64, rows):
    given = [prepare(tiny64, batch) if kept else batch for batch in rows]
    expected = sum(along(tiny64, batch, 3) for batch in rows) / 3
    np.testing.assert_allclose(ceap(tiny64, given, DIFF, steps=3).values, expected, atol=1e-10)


def test_conductance_behind_a_shared_beginning(tiny64):
    batch = pairs_that_begin_alike(40)
    np.testing.assert_allclose(
        ceap(tiny64, [batch], DIFF, steps=2).values, along(tiny64, batch, 2) / len(batch), atol=1e-10
    )


def test_conductance_sums_to_the_effect_at_every_cut_and_eap_ig_does_not(tiny64, rows):
    """Edges that cross from below a layer to above it; at the first cut both do."""
    graph, whole = tiny64.graph, 0.0
    for batch in rows:
        item = prepare(tiny64, batch)
        whole += float((DIFF(item.ablated.logits, item.targets) - DIFF(item.clean.logits, item.targets)).sum()) / 3
    found, other = ceap(tiny64, rows, DIFF, steps=40).values, eap_ig(tiny64, rows, DIFF, steps=40).values
    cuts = [(1, 0), *((graph.mlp_of(layer) + 1, graph.mlp_slot_of(layer) + 1) for layer in range(graph.n_layers))]
    assert len(cuts) == 4
    for sources, slots in cuts:
        assert found[:sources, slots:].sum() == pytest.approx(whole, rel=2e-2)
    assert max(abs(other[:sources, slots:].sum() / whole - 1) for sources, slots in cuts) > 0.05


def test_clean_corrupted_is_the_mean_over_the_ends(tiny64, rows):
    expected = eap_by_definition(tiny64, rows, DIFF, (0.0, 1.0)).values
    np.testing.assert_allclose(clean_corrupted(tiny64, rows, DIFF).values, expected, atol=1e-10)


@pytest.mark.parametrize("method", ["ceap", "clean-corrupted"])
@pytest.mark.parametrize("ablation", ["corrupt", "zero"])
def test_parts_add_up(method, ablation, tiny64, rows):
    made = None if ablation == "corrupt" else make_ablation(ablation, tiny64, rows)
    scorer = ceap if method == "ceap" else clean_corrupted
    parts = score_parts(tiny64, rows, DIFF, Scoring(method), by="row", ablation=made)
    np.testing.assert_allclose(parts.total().values, scorer(tiny64, rows, DIFF, ablation=made).values, atol=1e-6)


def test_an_ensemble_is_the_mean_of_what_was_made_comparable():
    graph = Graph(1, 1)
    values = [{"input->m0": 3.0, "m0->logits": -1.0}, {"input->m0": -10.0, "m0->logits": 70.0}]
    scores = [Scores.of(graph, one) for one in values]
    sizes = [(10 / graph.n_edges) ** 0.5, (5000 / graph.n_edges) ** 0.5]
    scaled, ranked = mean_of(scores), mean_of(scores, "rank")
    assert scaled["m0->logits"] == pytest.approx((-1 / sizes[0] + 70 / sizes[1]) / 2)
    n = graph.n_edges
    assert ranked["input->m0"] == pytest.approx((1 - (n - 1) / n) / 2)
    assert ranked["a0.h0->logits"] == 0.0
    again = mean_of([Scores(graph, 1000 * scores[0].values), scores[1]])
    np.testing.assert_allclose(again.values, scaled.values)


def test_a_search_by_several_scorers_says_which(tiny, tiny_task, tmp_path):
    options = Options(method="mean-of", of=("eap", "ceap"), prune="top-n", top_n=20, metric="logit-diff", n_random=0)
    found = discover(tiny, tiny_task, options)
    each = [discover(tiny, tiny_task, Options(method=name, prune="top-n", top_n=20, metric="logit-diff", n_random=0))
            for name in options.of]  # fmt: skip
    np.testing.assert_allclose(found.scores.values, mean_of([one.scores for one in each]).values, atol=1e-6)
    found.write(tmp_path)
    method = read_circuit(tmp_path).record["method"]
    assert (method["scores"], method["of"], method["normalise"]) == ("mean-of", ["eap", "ceap"], "scale")
    assert method["steps"] == 5


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        ({}, "got nothing"),
        ({"of": ("eap",)}, "got eap"),
        ({"of": ("eap", "eap-gi")}, "got eap-gi"),
        ({"of": ("eap", "gim"), "prune": "threshold", "top_n": None, "threshold": 0.1}, "no unit"),
    ],
)
def test_ensembles_of_nothing_are_refused(asked, says):
    with pytest.raises(OptionError, match=says):
        Options(**{"method": "mean-of", "prune": "top-n", "top_n": 9, **asked}).checked()


def test_over_both_directions_of_a_persona_metric_clean_corrupted_is_eap(tiny64, tiny_task):
    """The other direction's gradient is the other end's, with its sign turned."""
    both, metric = batches(with_swap_rows(encode(tiny_task, tiny64)[:2]), 8, "cpu"), METRICS["persona-divergence"]
    np.testing.assert_allclose(
        clean_corrupted(tiny64, both, metric).values, eap(tiny64, both, metric).values, atol=1e-9
    )


def read_apart(model, stream, context, held, value):
    """What every slot reads, each a copy, and the logits; the component ``held`` writes ``value`` whatever it reads."""
    inputs = []

    def read(x):
        inputs.append(x.clone())
        return inputs[-1]

    for block in model.blocks:
        heads = [
            torch.stack(
                [block.project(slot, block.attn_norm(read(stream)))[:, :, h] for h in range(model.graph.n_heads)], 2
            )
            for slot in "qkv"
        ]
        wrote = block.attn_out(block.attention(*heads, context))
        after = stream + (value if held == ("attention", block.layer) else wrote)
        mlp = block.mlp(read(after))
        stream = after + (value if held == ("mlp", block.layer) else mlp)
    return inputs, model.answer(read(stream), None)


def apart(model, batch, steps, rule):
    """EAP-IG-activations written out, in plain autograd; (sources, what a component writes in each run)."""
    graph, total = model.graph, np.zeros(model.graph.valid.shape)
    context = model.start(batch.clean)[1]
    clean, logits, _ = _read_apart(model, *model.start(batch.clean))
    corrupt, _, _ = _read_apart(model, *model.start(batch.corrupt))
    points = [(k + (0.5 if rule == "midpoint" else 1)) / steps for k in range(steps)]
    bias = [block.bridge.attn.o.bias.detach() for block in model.blocks]
    components = {("input", 0): [0]}
    for layer in range(graph.n_layers):
        heads = graph.heads_of(layer)
        components |= {("attention", layer): [*range(heads.start, heads.stop)], ("mlp", layer): [graph.mlp_of(layer)]}
    for held, sources in components.items():
        for point in points:
            value = (point * clean[sources] + (1 - point) * corrupt[sources]).sum(0)
            value = value + (bias[held[1]] if held[0] == "attention" else 0)
            stream = (value if held[0] == "input" else clean[0]).detach().requires_grad_()
            inputs, found = read_apart(model, stream, context, held, value)
            slopes = torch.autograd.grad(DIFF(found, targets_of(batch, logits)).sum(), inputs, allow_unused=True)
            for slot, slope in enumerate(slopes):
                own = [s for s in (sources if rule == "midpoint" else range(graph.n_src)) if graph.valid[s, slot]]
                if slope is None or not own:
                    continue
                shares = steps * (1 if rule == "midpoint" else len(components))
                total[own, slot] += torch.einsum("sbpd,bpd->s", (corrupt - clean)[own], slope).numpy() / shares
    return total


@pytest.mark.parametrize("rule", ["midpoint", "authors"])
def test_integrals_over_activations_are_their_definition(rule, tiny64, rows):
    expected = sum(apart(tiny64, batch, 2, rule) for batch in rows) / 3
    for given in (rows, [prepare(tiny64, batch) for batch in rows]):
        found = eap_ig_activations(tiny64, given, DIFF, steps=2, rule=rule).values
        np.testing.assert_allclose(found, expected, atol=1e-10)
    parts = score_parts(tiny64, rows, DIFF, Scoring("eap-ig-activations", 2, rule), by="span")
    np.testing.assert_allclose(parts.total().values, expected, atol=1e-10)


def test_edges_that_leave_a_component_sum_to_what_ablating_its_output_does(tiny64, rows):
    graph = tiny64.graph
    found = eap_ig_activations(tiny64, rows, DIFF, steps=24).values
    for some in (slice(0, 1), graph.heads_of(0), slice(graph.mlp_of(0), graph.mlp_of(0) + 1), graph.heads_of(2)):
        effect = 0.0
        for batch in rows:
            item = prepare(tiny64, batch)
            chosen = torch.zeros(1, graph.n_src, dtype=torch.bool)
            chosen[:, some] = True
            logits = patched_nodes(tiny64, item, chosen, torch.ones(1, *batch.clean.shape, dtype=torch.bool))[0]
            effect += float((DIFF(logits, item.targets) - DIFF(item.clean.logits, item.targets)).sum()) / 3
        assert found[some].sum() == pytest.approx(effect, rel=1e-2, abs=1e-4)


@pytest.mark.parametrize("ablation", ["zero", "mean"])
def test_integrals_over_activations_go_to_any_ablation(ablation, tiny64, rows):
    made = make_ablation(ablation, tiny64, rows)
    found = eap_ig_activations(tiny64, rows, DIFF, steps=2, ablation=made).values
    prepared = [prepare(tiny64, batch, made) for batch in rows]
    np.testing.assert_allclose(eap_ig_activations(tiny64, prepared, DIFF, steps=2, ablation=made).values, found)
    assert np.abs(found).max() > 1e-3
