"""Gates against the patched forward pass and finite differences; training against circuits that were planted."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from persona_circuits.circuit.attribution import eap_ig, random_scores
from persona_circuits.circuit.discovery import Options, discover
from persona_circuits.circuit.errors import OptionError
from persona_circuits.circuit.forward import make_ablation, measure, patched_logits, prepare
from persona_circuits.circuit.forward.gated import gated_logits
from persona_circuits.circuit.pruning import Schedule, learn, top_n
from persona_circuits.circuit.pruning.learn import TIES, WIDE, _edges_of
from persona_circuits.circuit.storage import kept
from persona_circuits.circuit.subgraph import Circuit
from persona_circuits.circuit.task import batches, encode, with_swap_rows
from persona_circuits.metrics import METRICS
from persona_circuits.models.planted import planted_models

METRIC = METRICS["persona-divergence"]
DIFF = METRICS["logit-diff"]


@pytest.fixture(scope="module")
def groups(tiny, tiny_task):
    return batches(with_swap_rows(encode(tiny_task, tiny)), 8, "cpu")


@pytest.mark.parametrize("ablation", ["corrupt", "zero", "mean"])
def test_gates_of_zero_and_one_are_the_patched_pass(ablation, tiny, groups):
    graph, rng = tiny.graph, np.random.default_rng(0)
    masks = [graph.valid & (rng.random(graph.valid.shape) < share) for share in (0.0, 0.2, 0.7, 1.0)]
    item = prepare(tiny, groups[0], make_ablation(ablation, tiny, groups))
    expected = patched_logits(tiny, item, torch.from_numpy(np.stack(masks)))
    with torch.no_grad():
        found = [gated_logits(tiny, item, torch.from_numpy(mask).to(tiny.dtype)) for mask in masks]
    torch.testing.assert_close(torch.stack(found), expected, atol=1e-4, rtol=0)


def test_the_gradient_at_a_gate_is_its_finite_difference(tiny64, groups):
    item, graph = prepare(tiny64, groups[0]), tiny64.graph
    rng = np.random.default_rng(1)
    gates = torch.from_numpy(rng.random(graph.valid.shape) * graph.valid).requires_grad_()
    (slope,) = torch.autograd.grad(DIFF(gated_logits(tiny64, item, gates), item.targets).sum(), gates)
    places = rng.permutation(np.argwhere(graph.valid))[:12]
    assert not slope[torch.from_numpy(~graph.valid)].any()
    for src, dst in places.tolist():
        ends = []
        for step in (1e-5, -1e-5):
            moved = gates.detach().clone()
            moved[src, dst] += step
            with torch.no_grad():
                ends.append(float(DIFF(gated_logits(tiny64, item, moved), item.targets).sum()))
        assert float(slope[src, dst]) == pytest.approx((ends[0] - ends[1]) / 2e-5, rel=1e-4, abs=1e-7)


@pytest.mark.parametrize("nodes_above", [1_000_000, 0])
@pytest.mark.parametrize(("name", "scored"), [("bottleneck", True), ("cancel", False)])
def test_planted_circuits_are_found(name, scored, nodes_above):
    """From scores, and from none: the gates of the true edges are those that stay open, also with nodes first."""
    (truth,) = (one for one in planted_models() if one.name == name)
    model = truth.model()
    rows = batches(with_swap_rows(encode(truth.task, model)), 64, "cpu")
    scores = eap_ig(model, rows, METRIC) if scored else None
    n = len(truth.true_edges)
    found = learn(model, rows, METRIC, scores, Schedule(n, steps=300, nodes_above=nodes_above))
    true = Circuit.of(model.graph, truth.true_edges).mask[model.graph.valid]
    assert roc_auc_score(true, found.open.values[model.graph.valid]) >= 0.98


def test_it_keeps_more_of_the_effect_than_the_scores_it_started_from(tiny, groups):
    n, scores = 40, eap_ig(tiny, groups, METRIC)
    found = learn(tiny, groups, METRIC, scores, Schedule(n, steps=120))
    masks = [Circuit.full(tiny.graph).mask, Circuit.empty(tiny.graph).mask, found.circuit.mask, top_n(scores, n).mask]
    full, empty, learned, scored = measure(tiny, [prepare(tiny, x) for x in groups], masks, METRIC)
    assert len(found.circuit) <= n
    miss = [np.square((each - full) / np.abs(full - empty).mean()).mean() for each in (learned, scored)]
    assert miss[0] < 0.8 * miss[1]


def test_nodes_are_chosen_together_before_the_edges_between_them(tiny, groups):
    """Edges outside the chosen nodes stay shut whatever their score; between them are at least 8 n, or all."""
    graph, n = tiny.graph, 6
    scores = eap_ig(tiny, groups, METRIC)
    found = learn(tiny, groups, METRIC, scores, Schedule(n, steps=30, nodes_above=0))
    within = found.open.values > TIES
    sources = within.any(axis=1)
    inside = graph.valid & sources[:, None] & graph.slots_of(sources)
    assert WIDE * n <= within.sum() <= inside.sum() < graph.n_edges
    assert sources[0]
    assert len(found.circuit) <= n


def test_an_edge_is_as_open_as_both_its_nodes(tiny):
    graph, rng = tiny.graph, np.random.default_rng(3)
    nodes = rng.random(graph.n_src)
    gates = _edges_of(graph, "cpu")(torch.from_numpy(nodes)).numpy()
    at = dict(zip(graph.src_names, nodes, strict=True)) | {"logits": 1.0}
    for src, dst in np.argwhere(graph.valid).tolist():
        owner = str(graph.dst_slots[dst][0])
        assert gates[src, dst] == at[graph.src_names[src]] * at[owner]
    assert not gates[~graph.valid].any()


@pytest.mark.parametrize("nodes_above", [1_000_000, 0])
@pytest.mark.parametrize("at", [2, 6])
def test_training_that_was_stopped_goes_on_the_same(at, nodes_above, tiny, groups, tmp_path, monkeypatch):
    """Stopped with nodes first among the nodes' steps, and among the edges'."""
    monkeypatch.setattr(kept, "SAVE_SECONDS", -1.0)
    scores, state = eap_ig(tiny, groups, METRIC), tmp_path / "gates.safetensors"
    schedule = Schedule(30, steps=9, nodes_above=nodes_above)
    whole = learn(tiny, groups, METRIC, scores, schedule)

    class Stopped(Exception):
        pass

    def stop(done, _total):
        if done == at:
            raise Stopped

    with pytest.raises(Stopped):
        learn(tiny, groups, METRIC, scores, schedule, state=state, progress=stop)
    steps = []
    again = learn(tiny, groups, METRIC, scores, schedule, state=state, progress=lambda done, _: steps.append(done))
    assert steps == list(range(steps[0], 10))
    assert steps[0] > 1
    np.testing.assert_array_equal(again.open.values, whole.open.values)
    assert not state.exists()


def test_memory_is_bounded_and_bounds_change_little(tiny, groups):
    """One prompt's pair at a time sees other noise for each; what stays open is much the same."""
    scores = eap_ig(tiny, groups, METRIC)
    few, many = (
        learn(tiny, groups, METRIC, scores, Schedule(40, steps=60, max_bytes=size)).open.values[tiny.graph.valid]
        for size in (1, 1 << 30)
    )
    assert np.corrcoef(few, many)[0, 1] > 0.5


@pytest.mark.parametrize(
    ("schedule", "says"), [(Schedule(0), "from 1 to 262, got 0"), (Schedule(3, steps=0), "one step")]
)
def test_bad_schedules_are_refused(schedule, says, tiny, groups):
    with pytest.raises(OptionError, match=says):
        learn(tiny, groups, METRIC, random_scores(tiny.graph, seed=0), schedule)


def test_a_search_with_nodes_first_is_that_training(tiny, tiny_task):
    options = Options(prune="learn", top_n=6, train_steps=9, nodes_first=True, n_random=1)
    found = discover(tiny, tiny_task, options)
    rows = batches(with_swap_rows(encode(tiny_task, tiny)), options.batch_size, "cpu")
    schedule = Schedule(6, steps=9, nodes_above=0)
    assert found.circuit == learn(tiny, rows, METRIC, found.scores, schedule).circuit
    assert found.record["method"]["train_steps"] == 9
    assert found.record["method"]["nodes_first"]
    assert found.circuit != learn(tiny, rows, METRIC, found.scores, replace(schedule, nodes_above=10**6)).circuit
