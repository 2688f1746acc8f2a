"""The exact finish: against every single change, against one edge at a time, and stopped in the middle."""

import numpy as np
import pytest

from persona_circuits.circuit.attribution import eap_ig
from persona_circuits.circuit.errors import OptionError
from persona_circuits.circuit.forward import measure, prepare
from persona_circuits.circuit.graph import Graph
from persona_circuits.circuit.pruning import Terms, finish, top_n
from persona_circuits.circuit.pruning.finish import connect
from persona_circuits.circuit.storage import kept
from persona_circuits.circuit.subgraph import Circuit
from persona_circuits.circuit.task import batches, encode
from persona_circuits.metrics import METRICS

METRIC = METRICS["logit-diff"]
TAU = 0.003


@pytest.fixture(scope="module")
def rows(tiny64, tiny_task):
    return batches(encode(tiny_task, tiny64)[:2], 8, "cpu")


@pytest.fixture(scope="module")
def prepared(tiny64, rows):
    return [prepare(tiny64, batch) for batch in rows]


@pytest.fixture(scope="module")
def scores(tiny64, rows):
    return eap_ig(tiny64, rows, METRIC)


def cost_of(model, prepared, metric, tau, circuits):
    """The cost written out."""
    masks = [Circuit.full(model.graph).mask, *(one.mask for one in circuits)]
    full, *values = measure(model, prepared, masks, metric)
    return [np.abs(value - full).mean() + tau * len(circuit) for value, circuit in zip(values, circuits, strict=True)]


@pytest.mark.parametrize("name", ["logit-diff", "kl"])
def test_at_the_end_no_single_change_pays(name, tiny64, prepared, scores):
    """Every edge is taken out alone, and every one that might have come back put in: none lowers the cost."""
    metric, start = METRICS[name], top_n(scores, 40)
    found = finish(tiny64, prepared, metric, start, Terms(TAU), scores=scores)
    assert found.settled
    assert found.gone >= 5
    circuit, changed = found.circuit, []
    outside = top_n(scores, 2 * len(start)) - circuit
    for edge in [*circuit, *outside, *(start - circuit)]:
        mask, place = circuit.mask.copy(), tiny64.graph.index(edge)
        mask[place] = not mask[place]
        if mask[place]:
            connect(tiny64.graph, mask, np.abs(scores.values), place)
        changed.append(Circuit(tiny64.graph, mask).without_dead_ends())
    own, first, *others = cost_of(tiny64, prepared, metric, TAU, [circuit, start, *changed])
    assert own < first
    assert min(others) >= own - 1e-9
    assert own == pytest.approx(found.loss + TAU * len(circuit))


def test_an_edge_that_was_left_out_comes_back(tiny64, prepared, scores):
    """The strongest edge into the logits is taken from a circuit; the finish puts it there again."""
    start = top_n(scores, 40)
    strongest = max(start, key=lambda edge: abs(scores[edge]) * (str(edge.dst) == "logits"))
    without = (start - Circuit.of(tiny64.graph, [strongest])).without_dead_ends()
    found = finish(tiny64, prepared, METRIC, without, Terms(TAU), scores=scores)
    assert strongest in found.circuit
    assert found.back >= 1
    assert found.loss + TAU * len(found.circuit) < found.loss_before + TAU * len(without)


@pytest.mark.parametrize("least", [None, 0.9])
def test_edges_at_once_decide_as_one_at_a_time(least, tiny64, prepared, scores):
    start = top_n(scores, 30)
    one, many = (finish(tiny64, prepared, METRIC, start, Terms(TAU, least, k), scores=scores) for k in (1, 8))
    assert one.circuit == many.circuit
    assert many.passes < one.passes


def test_it_does_not_fall_below_the_faithfulness_asked_for(tiny64, prepared, scores):
    start = top_n(scores, 70)
    masks = [Circuit.full(tiny64.graph).mask, Circuit.empty(tiny64.graph).mask, start.mask]

    def f_of(circuit):
        full, empty, own = measure(tiny64, prepared, [*masks[:2], circuit.mask], METRIC).mean(axis=1)
        return (own - empty) / (full - empty)

    free = finish(tiny64, prepared, METRIC, start, Terms(0.2), scores=scores)
    least = (f_of(free.circuit) + f_of(start)) / 2
    bound = finish(tiny64, prepared, METRIC, start, Terms(0.2, least), scores=scores)
    assert f_of(free.circuit) < least <= f_of(bound.circuit)
    assert len(free.circuit) < len(bound.circuit) < len(start)


def test_a_finish_that_was_stopped_goes_on_the_same(tiny64, prepared, scores, tmp_path, monkeypatch):
    monkeypatch.setattr(kept, "SAVE_SECONDS", -1.0)
    start, state = top_n(scores, 40), tmp_path / "finish.state"
    whole = finish(tiny64, prepared, METRIC, start, Terms(TAU), scores=scores)
    told = []

    class Stopped(Exception):
        pass

    def stop(*done):
        told.append(done)
        if len(told) == 5:
            raise Stopped

    with pytest.raises(Stopped):
        finish(tiny64, prepared, METRIC, start, Terms(TAU), scores=scores, state=state, progress=stop)
    assert state.exists()
    again = finish(tiny64, prepared, METRIC, start, Terms(TAU), scores=scores, state=state)
    assert again.as_dict() == whole.as_dict()
    assert again.circuit == whole.circuit
    assert not state.exists()


def test_a_node_comes_back_with_the_edges_that_connect_it():
    graph = Graph(2, 2)
    mask, strength = Circuit.of(graph, ["input->m1", "m1->logits"]).mask.copy(), np.zeros(graph.valid.shape)
    for edge, size in {"input->a0.h1<k>": 2.0, "input->a0.h1<v>": 3.0, "m0->m1": 1.0, "m0->logits": 0.5}.items():
        strength[graph.index(edge)] = size
    place = graph.index("a0.h1->m0")
    mask[place] = True
    connect(graph, mask, strength, place)
    assert set(Circuit(graph, mask).edge_names()) == {
        *("input->m1", "m1->logits", "a0.h1->m0"),
        *("input->a0.h1<v>", "m0->m1"),
    }


@pytest.mark.parametrize(("tau", "candidates", "says"), [(-1.0, None, "not negative"), (0.1, 0, "at least one")])
def test_bad_numbers_are_refused(tau, candidates, says, tiny64, prepared, scores):
    with pytest.raises(OptionError, match=says):
        finish(tiny64, prepared, METRIC, top_n(scores, 9), Terms(tau, candidates=candidates), scores=scores)
