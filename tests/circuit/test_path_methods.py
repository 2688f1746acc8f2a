"""Scorers along a path against their definition and their completeness, and several scorers as one."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from conftest import pairs_that_begin_alike

from persona_circuits.circuit.attribution import (
    ceap,
    clean_corrupted,
    eap,
    eap_by_definition,
    eap_ig,
    mean_of,
    score_parts,
)
from persona_circuits.circuit.attribution.eap import _read_apart
from persona_circuits.circuit.discovery import Options, discover
from persona_circuits.circuit.errors import OptionError
from persona_circuits.circuit.forward import make_ablation, prepare, targets_of
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
    parts = score_parts(tiny64, rows, DIFF, by="row", method=method, ablation=made)
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
        ({"of": ("eap", "gim"), "prune": "threshold", "top_n": None}, "no unit"),
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
