import numpy as np
import pytest
import torch
from conftest import DATA

from persona_circuits.circuit.attribution import eap, exact
from persona_circuits.circuit.errors import OptionError
from persona_circuits.circuit.forward import measure, prepare
from persona_circuits.circuit.graph import Graph, parse_edge
from persona_circuits.circuit.model import wrap_model
from persona_circuits.circuit.pruning import Trials, acdc, acdc_by_definition, greedy, threshold, top_n
from persona_circuits.circuit.scores import Scores
from persona_circuits.circuit.storage import kept
from persona_circuits.circuit.subgraph import Circuit
from persona_circuits.circuit.task import batches, encode, with_swap_rows
from persona_circuits.metrics import METRICS

GRAPH = Graph(2, 2)
PATH = {"input->m0": -3.0, "m0->a1.h0<v>": 2.0, "a1.h0->logits": -1.0, "input->m1": 5.0, "m0->logits": 0.5}


@pytest.fixture
def scores():
    return Scores.of(GRAPH, PATH)


@pytest.fixture(scope="module")
def prepared(tiny64, tiny_task):
    rows = with_swap_rows(encode(tiny_task, tiny64)[:2])
    return [prepare(tiny64, batch) for batch in batches(rows, 8, "cpu")]


def test_threshold_keeps_by_magnitude_and_drops_dead_ends(scores):
    assert threshold(scores, 1.0) == Circuit.of(GRAPH, ["input->m0", "m0->a1.h0<v>", "a1.h0->logits"])
    assert threshold(scores, 0.5) == Circuit.of(GRAPH, [*list(PATH)[:3], "m0->logits"])
    assert len(threshold(scores, 0.0)) == GRAPH.n_edges
    assert len(threshold(scores, 9.0)) == 0


@pytest.mark.parametrize("tau", [-1.0, float("nan"), float("inf")])
def test_threshold_must_be_a_number_that_is_not_negative(scores, tau):
    with pytest.raises(OptionError, match="not negative"):
        threshold(scores, tau)


def test_top_n_counts_before_dead_ends_are_dropped(scores):
    assert len(top_n(scores, 1)) == 0
    assert top_n(scores, 4) == Circuit.of(GRAPH, list(PATH)[:3])
    assert len(top_n(scores, GRAPH.n_edges)) == GRAPH.n_edges


def test_top_n_signed_takes_what_lowers_the_metric_first():
    scores = Scores.of(GRAPH, {"input->m0": -3.0, "m0->logits": -1.0, "input->logits": 2.0})
    assert top_n(scores, 2, signed=True) == Circuit.of(GRAPH, ["input->m0", "m0->logits"])
    assert top_n(scores, 2) == Circuit.of(GRAPH, ["input->logits"])


@pytest.mark.parametrize("n", [0, -1, GRAPH.n_edges + 1])
@pytest.mark.parametrize("prune", [top_n, greedy])
def test_n_must_be_a_number_of_edges(scores, prune, n):
    with pytest.raises(OptionError, match=f"from 1 to {GRAPH.n_edges}"):
        prune(scores, n)


def test_greedy_grows_back_from_logits(scores):
    assert greedy(scores, 3) == Circuit.of(GRAPH, ["input->m0", "m0->a1.h0<v>", "a1.h0->logits"])
    assert greedy(scores, 1) == Circuit.empty(GRAPH)


def test_greedy_finds_a_path_that_a_cut_by_size_loses():
    values = np.random.default_rng(0).standard_normal(Graph(4, 4).valid.shape)
    random = Scores(Graph(4, 4), values)
    assert len(greedy(random, 30)) > len(top_n(random, 30))


@pytest.mark.parametrize(("metric", "tau"), [("kl", 0.001), ("persona-divergence", 0.02), ("logit-diff", 0.01)])
def test_acdc_in_batches_decides_as_one_edge_at_a_time(tiny64, prepared, metric, tau):
    found = [acdc(tiny64, prepared, METRICS[metric], tau, trials=Trials(candidates=k)) for k in (1, 3, 16)]
    assert found[0].circuit == found[1].circuit == found[2].circuit
    np.testing.assert_allclose(found[0].changes, found[1].changes, atol=1e-9)
    assert 0 < len(found[0].circuit) < tiny64.graph.n_edges
    assert found[0].wasted == 0
    assert found[2].wasted > 0
    assert found[0].passes == tiny64.graph.n_edges + 1 == found[0].evaluated
    assert found[2].passes < found[1].passes < found[0].passes
    assert found[2].evaluated == 1 + tiny64.graph.n_edges + found[2].wasted


def test_acdc_is_the_algorithm_of_the_paper(tiny64, prepared):
    """Written out: full passes, one edge at a time, sinks first."""
    graph, metric, tau = tiny64.graph, METRICS["kl"], 0.01
    mask = graph.valid.copy()
    current = measure(tiny64, prepared, [mask], metric).mean()
    for edge in reversed(list(graph.edges())):
        mask[graph.index(edge)] = False
        without = measure(tiny64, prepared, [mask], metric).mean()
        if -without - -current < tau:
            current = without
        else:
            mask[graph.index(edge)] = True
    expected = Circuit(graph, mask).without_dead_ends()
    assert acdc(tiny64, prepared, metric, tau, trials=Trials(candidates=4)).circuit == expected
    assert acdc_by_definition(tiny64, prepared, metric, tau) == expected


def test_acdc_is_its_definition_with_a_metric_that_is_no_divergence(tiny64, prepared):
    metric = METRICS["logit-diff"]
    expected = acdc_by_definition(tiny64, prepared, metric, 0.02)
    assert 0 < len(expected) < tiny64.graph.n_edges
    assert acdc(tiny64, prepared, metric, 0.02, trials=Trials(candidates=6)).circuit == expected


def test_acdc_equals_auto_circuit(tiny64, tiny_task, frozen):
    """In its order, and on the rows that it uses: the same edges stay."""
    peer = frozen("autocircuit_tiny_acdc")
    rows = [encode(tiny_task, tiny64)[i] for i in peer["rows"]]
    prepared = [prepare(tiny64, batch) for batch in batches(rows, 8, "cpu")]
    order = [parse_edge(name) for name in peer["order"]]
    found = acdc(tiny64, prepared, METRICS["kl"], peer["tau"], trials=Trials(order=order, candidates=4))
    kept = {str(edge) for edge in order if not found.changes[tiny64.graph.index(edge)] < peer["tau"]}
    assert kept == set(peer["kept"])


def test_acdc_extremes(tiny64, prepared):
    assert len(acdc(tiny64, prepared, METRICS["kl"], 1e9, trials=Trials(candidates=16)).circuit) == 0
    everything = acdc(tiny64, prepared, METRICS["persona-divergence"], 0.0, trials=Trials(candidates=16))
    assert len(everything.circuit) == tiny64.graph.n_edges


def test_acdc_starts_from_a_given_circuit(tiny64, prepared, tiny_task):
    rows = with_swap_rows(encode(tiny_task, tiny64)[:2])
    start = threshold(eap(tiny64, batches(rows, 8, "cpu"), METRICS["persona-divergence"]), 0.05)
    found = acdc(tiny64, prepared, METRICS["persona-divergence"], 0.05, start=start, trials=Trials(candidates=4))
    assert (found.circuit.mask <= start.mask).all()
    assert found.evaluated - found.wasted == len(start) + 1
    assert np.isnan(found.changes[~start.mask]).all()


def test_acdc_refuses_what_makes_no_sense(tiny64, prepared):
    with pytest.raises(OptionError, match="not negative"):
        acdc(tiny64, prepared, METRICS["kl"], -0.1)
    with pytest.raises(OptionError, match="at least one candidate"):
        acdc(tiny64, prepared, METRICS["kl"], 0.1, trials=Trials(candidates=0))


def test_exact_scores_and_threshold_keep_what_matters_alone(tiny64, tiny_task, prepared):
    rows = with_swap_rows(encode(tiny_task, tiny64)[:2])
    metric = METRICS["persona-divergence"]
    scores = exact(tiny64, batches(rows, 8, "cpu"), metric)
    kept = threshold(scores, 0.05)
    whole = measure(tiny64, prepared, [Circuit.full(tiny64.graph).mask], metric).mean()
    for edge in kept.edges()[::7]:
        without = Circuit.of(tiny64.graph, [edge]).complement().mask
        assert abs(measure(tiny64, prepared, [without], metric).mean() - whole) >= 0.05


def random_network(seed):
    """A two-layer GPT-2 with weights large enough for edges to matter."""
    from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel

    torch.manual_seed(seed)
    tokenizer = AutoTokenizer.from_pretrained(DATA / "tiny-gpt2")
    config = GPT2Config(vocab_size=len(tokenizer), n_embd=24, n_layer=2, n_head=3, n_positions=32)
    network = GPT2LMHeadModel(config)
    for parameter in network.parameters():
        parameter.data.add_(0.25 * torch.randn_like(parameter))
    return network, tokenizer


@pytest.mark.parametrize(("dtype", "seed"), [(torch.float32, 0), (torch.float64, 1)])
@pytest.mark.parametrize(("metric", "tau"), [("kl", 0.0005), ("kl", 0.005), ("logit-diff", 0.02)])
def test_batched_decisions_are_sequential_on_random_models(tiny_task, dtype, seed, metric, tau):
    network, tokenizer = random_network(seed)
    model = wrap_model(network.to(dtype), tokenizer, name="random")
    prepared = [prepare(model, batch) for batch in batches(encode(tiny_task, model)[:4], 8, "cpu")]
    one, many = (acdc(model, prepared, METRICS[metric], tau, trials=Trials(candidates=k)) for k in (1, 12))
    kept = [~(found.changes[model.graph.valid] < tau) for found in (one, many)]
    np.testing.assert_array_equal(*kept)
    assert one.circuit == many.circuit
    assert 0 < kept[0].sum() < model.graph.n_edges
    assert many.passes < one.passes


@pytest.mark.parametrize("name", ["two-hop", "cancel"])
@pytest.mark.parametrize("metric", ["kl", "persona-divergence"])
def test_batched_decisions_are_sequential_on_planted_models(name, metric):
    from persona_circuits.models.planted import planted_models

    planted = next(item for item in planted_models() if item.name == name)
    model = planted.model(dtype="float32")
    rows = encode(planted.task, model)
    prepared = [prepare(model, b) for b in batches(with_swap_rows(rows) if metric != "kl" else rows, 8, "cpu")]
    for tau in (0.01, 0.3):
        one, many = (acdc(model, prepared, METRICS[metric], tau, trials=Trials(candidates=k)) for k in (1, 12))
        assert one.circuit == many.circuit


def test_batches_shrink_where_many_edges_stay(tiny64, prepared):
    """Nothing goes: with batches of one size 15 of 16 tries would be for nothing."""
    everything = acdc(tiny64, prepared, METRICS["persona-divergence"], 0.0, trials=Trials(candidates=16))
    assert everything.wasted < 0.2 * tiny64.graph.n_edges


def test_a_killed_search_goes_on_to_the_same_result(tiny64, prepared, tmp_path, monkeypatch):
    monkeypatch.setattr(kept, "SAVE_SECONDS", 0.0)
    state, metric, tau = tmp_path / "acdc-state", METRICS["kl"], 0.003
    whole = acdc(tiny64, prepared, metric, tau, trials=Trials(candidates=4))

    class Killed(Exception):
        pass

    def kill(done, total):
        if done > total // 2:
            raise Killed

    with pytest.raises(Killed):
        acdc(tiny64, prepared, metric, tau, state=state, progress=kill, trials=Trials(candidates=4))
    assert state.is_file()
    started_at = []
    how = {"trials": Trials(candidates=4), "progress": lambda d, _t: started_at.append(d)}
    again = acdc(tiny64, prepared, metric, tau, state=state, **how)
    assert started_at[0] > tiny64.graph.n_edges // 3
    assert again.circuit == whole.circuit
    np.testing.assert_array_equal(again.changes, whole.changes)
    assert (again.passes, again.evaluated, again.wasted) == (whole.passes, whole.evaluated, whole.wasted)
    assert not state.exists()


def test_the_state_of_another_search_is_not_taken(tiny64, prepared, tmp_path, monkeypatch):
    monkeypatch.setattr(kept, "SAVE_SECONDS", 0.0)
    state = tmp_path / "acdc-state"

    def kill(done, total):
        if done > total // 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        acdc(tiny64, prepared, METRICS["kl"], 0.5, state=state, progress=kill, trials=Trials(candidates=4))
    found = acdc(tiny64, prepared, METRICS["kl"], 0.003, state=state, trials=Trials(candidates=4))
    assert found.circuit == acdc(tiny64, prepared, METRICS["kl"], 0.003, trials=Trials(candidates=4)).circuit
    state.write_bytes(b"torn")
    assert (
        acdc(tiny64, prepared, METRICS["kl"], 0.003, state=state, trials=Trials(candidates=4)).circuit == found.circuit
    )
