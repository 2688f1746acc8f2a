"""Neurons of opened MLPs against what their sums must be, and against the model run with single ones changed."""

import csv
import json

import numpy as np
import pytest
import torch
from conftest import DATA
from test_alignment import ANSWERS, UNEQUAL
from test_families import LOGIT_DIFF, pair_of_prompts
from typer.testing import CliRunner

from persona_circuits.circuit.attribution import NeuronScores, Scoring, ablated_neurons, neuron_scores, score
from persona_circuits.circuit.cost import Budget, state_bytes
from persona_circuits.circuit.discovery import Options, below, discover
from persona_circuits.circuit.errors import ModelError
from persona_circuits.circuit.evaluation import fewest, measured_neurons, pairwise, random_neurons
from persona_circuits.circuit.forward import measure, patched_logits, prepare
from persona_circuits.circuit.io import faults_of
from persona_circuits.circuit.model import Neurons, OpenBlock
from persona_circuits.circuit.storage import DamagedState, kept
from persona_circuits.circuit.subgraph import Circuit
from persona_circuits.circuit.task import PromptPair, Task, batches, encode, with_swap_rows
from persona_circuits.cli import app
from persona_circuits.commands.checking import faults_of_file, kind_of
from persona_circuits.metrics import METRICS

FAMILIES = ["gpt2", "llama2", "gemma3", "neox, parallel", "olmo2", "phi3", "granite", "cohere", "gptj"]


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("method", ["eap-ig", "eap", "gim"])
def test_scores_sum_to_those_of_the_mlp(name, method, family):
    """As a node, edge by edge out of it, and edge by edge into it, also in the last layer."""
    model = family(name)
    graph, batch = model.graph, pair_of_prompts()
    how = Scoring(method, 2)
    edges = score(model, [batch], LOGIT_DIFF, how).values
    opened = {layer: Neurons.of(model.blocks[layer]) for layer in (0, 1)}
    every = {layer: np.arange(len(one)) for layer, one in opened.items()}
    for items in ([batch], [prepare(model, batch)]):
        found = neuron_scores(model, items, LOGIT_DIFF, opened, every, how)
        for layer, one in found.items():
            out, into = edges[graph.mlp_of(layer)], edges[:, graph.mlp_slot_of(layer)]
            assert np.abs(out).max() > 1e-6
            np.testing.assert_allclose(one.values.sum(), out.sum(), rtol=1e-7)
            np.testing.assert_allclose(one.out_of.sum(0), out, rtol=1e-7, atol=1e-9 * np.abs(out).max())
            np.testing.assert_allclose(one.out_of.sum(1), one.values, rtol=1e-7, atol=1e-9)
            np.testing.assert_allclose(one.into.sum(1), into, rtol=1e-7, atol=1e-9 * np.abs(into).max())


def test_an_experts_neurons_cannot_be_told(family):
    with pytest.raises(ModelError, match="mixture of experts"):
        Neurons.of(family("mixtral").blocks[0])


PLACES = {"gpt2": "transformer.h.{}.mlp.c_proj", "llama2": "model.layers.{}.mlp.down_proj"}


def opened(model, item, neurons, dropped):
    """The model with these neurons as in the ablated run."""
    dropped, layer = torch.tensor(dropped, dtype=torch.long), neurons.block.layer
    block = OpenBlock.of(neurons, dropped, neurons.written(ablated_neurons(item, neurons), dropped))
    return model.with_blocks([*model.blocks[:layer], block, *model.blocks[layer + 1 :]])


@pytest.mark.parametrize("layer", [0, 1])
@pytest.mark.parametrize("name", list(PLACES))
def test_single_neurons_are_patched_exactly(name, layer, family):
    """The host's own network, with one activation taken from the other prompt's run, gives the same logits."""
    model, batch = family(name), pair_of_prompts()
    network = model.bridge.original_model
    item, neurons = prepare(model, batch), Neurons.of(model.blocks[layer])
    module = network.get_submodule(PLACES[name].format(layer)).original_component
    seen = []
    handle = module.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    model.logits(batch.corrupt)
    handle.remove()
    full = torch.from_numpy(Circuit.full(model.graph).mask.copy())
    for some in ([3], [0, 5, 11]):

        def swapped(_, given, some=some):
            h = given[0].clone()
            h[..., some] = seen[0][..., some]
            return (h,)

        handle = module.register_forward_pre_hook(swapped)
        expected = model.logits(batch.clean)[:, -1]
        handle.remove()
        found = patched_logits(opened(model, item, neurons, some), item, full[None])[0]
        assert not torch.allclose(found, item.clean.logits, atol=1e-4)
        torch.testing.assert_close(found, expected, atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("name", FAMILIES)
def test_no_neuron_and_all_are_the_circuit_without_and_with_the_mlp(name, family):
    """Several circuits a pass, of a norm behind the MLP too."""
    model, batch = family(name), pair_of_prompts()
    item, graph = prepare(model, batch), model.graph
    mask = np.random.default_rng(0).random(graph.valid.shape) < 0.7
    masks = torch.from_numpy(np.stack([mask, graph.valid]) & graph.valid)
    for layer in (0, 1):
        neurons, without = Neurons.of(model.blocks[layer]), masks.clone()
        without[:, graph.mlp_of(layer)] = False
        none, every = opened(model, item, neurons, []), opened(model, item, neurons, range(len(neurons)))
        torch.testing.assert_close(patched_logits(none, item, masks), patched_logits(model, item, masks))
        torch.testing.assert_close(patched_logits(every, item, masks), patched_logits(model, item, without))


@pytest.mark.parametrize("name", FAMILIES)
def test_a_score_is_what_patching_the_neuron_does_to_first_order(name, family):
    """A neuron moved a little toward the other run, against its score by one gradient."""
    model, batch = family(name), pair_of_prompts()
    item, small = prepare(model, batch), 1e-5
    full = torch.from_numpy(Circuit.full(model.graph).mask.copy())
    for layer in (0, 1):
        neurons = Neurons.of(model.blocks[layer])
        scores = neuron_scores(model, [item], LOGIT_DIFF, {layer: neurons}, scoring=Scoring("eap"))[layer].values
        clean, other = (neurons.at(run.mids[layer]) for run in (item.clean, item.ablated))
        for one in np.abs(scores).argsort()[-2:].tolist():
            some, effects = torch.tensor([one]), []
            own, change = neurons.written(clean, some), neurons.written(other, some) - neurons.written(clean, some)
            for sign in (1, -1):
                block = OpenBlock.of(neurons, some, own + sign * small * change)
                other_blocks = [*model.blocks[:layer], block, *model.blocks[layer + 1 :]]
                logits = patched_logits(model.with_blocks(other_blocks), item, full[None])[0]
                effects.append(float(LOGIT_DIFF(logits, item.targets).mean()))
            np.testing.assert_allclose((effects[0] - effects[1]) / (2 * small), scores[one], rtol=1e-5)


def test_prompts_of_unequal_length(tiny64):
    """What is ablated then comes from the other prompt's place; sums, and none and all of the neurons, hold."""
    pairs = [
        PromptPair(clean, corrupt, (a,), (b,), id=str(i), line=i)
        for i, ((clean, corrupt), (a, b)) in enumerate(zip(UNEQUAL, ANSWERS, strict=True), 1)
    ]
    (batch,) = batches(encode(Task(tuple(pairs), "unequal", "0" * 64), tiny64, align="right"), 8, "cpu")
    item, graph, layer = prepare(tiny64, batch), tiny64.graph, 1
    neurons = Neurons.of(tiny64.blocks[layer])
    edges = score(tiny64, [batch], LOGIT_DIFF, Scoring(steps=2)).values
    found = neuron_scores(tiny64, [item], LOGIT_DIFF, {layer: neurons}, {layer: [3, 0]}, Scoring(steps=2))[layer]
    np.testing.assert_allclose(found.values.sum(), edges[graph.mlp_of(layer)].sum(), rtol=1e-7)
    np.testing.assert_allclose(found.out_of.sum(1), found.values[[3, 0]], rtol=1e-7)
    masks = torch.from_numpy((np.random.default_rng(0).random((1, *graph.valid.shape)) < 0.7) & graph.valid)
    without = masks.clone()
    without[:, graph.mlp_of(layer)] = False
    every = opened(tiny64, item, neurons, range(len(neurons)))
    torch.testing.assert_close(patched_logits(every, item, masks), patched_logits(tiny64, item, without))


def scores_of(*values):
    none = np.zeros((0, 0))
    return {layer: NeuronScores(np.array(one, dtype=float), none, none) for layer, one in enumerate(values)}


def test_the_fewest_neurons_are_the_first_by_score_that_reach_the_share():
    scores = scores_of([0.5, -3, 0, 1], [2, 0, 0, 0.1])
    weight = {layer: np.abs(one.values) for layer, one in scores.items()}

    def share(kept):
        return sum(float(weight[layer][one].sum()) for layer, one in kept.items()) / 6.6

    for wanted, expected in ((0.4, [(0, 1)]), (0.7, [(0, 1), (1, 0)]), (0.9, [(0, 1), (0, 3), (1, 0)])):
        kept = fewest(scores, lambda one, wanted=wanted: share(one) >= wanted)
        assert [(layer, int(i)) for layer in (0, 1) for i in np.flatnonzero(kept[layer])] == expected
    assert all(one.all() for one in fewest(scores, lambda kept: False).values())


def test_random_neurons_are_as_many_of_each_mlp_and_do_something():
    scores, kept = scores_of([1, 2, 0, 0, 3], [0, 4, 5]), {0: np.array([1, 1, 0, 0, 0]) > 0, 1: np.array([0, 0, 1]) > 0}
    drawn = random_neurons(scores, kept, 20, 0)
    for one in drawn:
        assert [int(one[layer].sum()) for layer in (0, 1)] == [2, 1]
        assert all((scores[layer].values[one[layer]] != 0).all() for layer in (0, 1))
    assert len({tuple(one[0]) + tuple(one[1]) for one in drawn}) > 3


OPENED = Options(prune="top-n", top_n=60, neurons=("m0", "m2"), neuron_share=0.8, n_random=3, steps=2)


@pytest.fixture(scope="module")
def found(tiny64, tiny_task):
    return discover(tiny64, tiny_task, OPENED)


def test_what_discover_says_is_so(found, tiny64, tiny_task):
    """The share that is kept, the rows, and the tokens, computed anew."""
    about, metric = found.opened, METRICS["persona-divergence"]
    layers = {layer: Neurons.of(tiny64.blocks[layer]) for layer in (0, 2)}
    assert list(about.n_neurons) == ["m0", "m2"]
    kept = {layer: np.zeros(len(one), dtype=bool) for layer, one in layers.items()}
    for one in about.kept:
        layer, place = map(int, one.name.removeprefix("m").split(".n"))
        kept[layer][place] = True
    none = {layer: np.zeros_like(one) for layer, one in kept.items()}
    items = [prepare(tiny64, group) for group in batches(with_swap_rows(encode(tiny_task, tiny64)), 8, "cpu")]
    own, empty = measured_neurons(tiny64, items, metric, found.circuit, layers, [kept, none])
    (whole,) = pairwise(measure(tiny64, items, [found.circuit.mask], metric), metric)
    carried = (own - empty).mean() / (whole - empty).mean()
    these = about.measured[0].rows[1]
    assert these.carried.value == pytest.approx(carried)
    assert carried >= 0.8
    assert len(these.carried.random) == 3
    for one in about.kept[:5]:
        layer, place = map(int, one.name.removeprefix("m").split(".n"))
        network = tiny64.bridge.original_model
        norm = network.transformer.ln_f.original_component
        w = network.transformer.h[layer].mlp.c_proj.original_component.weight[place].detach()
        logits = network.get_output_embeddings().weight @ ((w - w.mean()) * norm.weight)
        assert one.promotes == tuple(tiny64.tokenizer.decode([i]) for i in logits.topk(5).indices.tolist())
        assert one.demotes == tuple(tiny64.tokenizer.decode([i]) for i in (-logits).topk(5).indices.tolist())


def test_its_files(found, tmp_path):
    found.write(tmp_path)
    record = json.loads((tmp_path / "neurons.json").read_text())
    assert (record["format"], record["version"]) == ("persona-circuits/neurons", 1)
    names = [one["name"] for one in record["kept"]]
    assert json.loads((tmp_path / "circuit.json").read_text())["neurons"]["neurons"] == names
    assert not faults_of(tmp_path)
    assert (kind_of(tmp_path / "neurons.json"), faults_of_file(tmp_path / "neurons.json")) == ("result", [])
    with (tmp_path / "neurons.csv").open() as file:
        assert [row["name"] for row in csv.DictReader(file)] == names
    with (tmp_path / "neuron_edges.csv").open() as file:
        edges = {row["edge"] for row in csv.DictReader(file)}
    circuit = found.circuit.edge_names()
    assert edges
    into = {edge.rpartition(".n")[0] for edge in edges if ".n" in edge.partition("->")[2]}
    assert into
    assert into <= set(circuit)


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (["--neurons", "m9"], "m0 to m2"),
        (["--neurons", "m1,a0.h1"], "names no MLP"),
        (["--neurons", "seven"], "m0 to m2"),
        (["--neurons", ","], "has no names"),
        (["--neurons", "m1", "--neuron-share", "0"], "above 0"),
        (["--neurons", "m1", "--ablation", "zero"], "corrupt or neutral"),
        (["--neurons", "m1", "--method", "exact"], "has none such"),
        (["--neurons", "m1", "--resolution", "span"], "leave it out"),
    ],
    ids=lambda one: one[-1] if isinstance(one, list) else "",
)
def test_what_cannot_be_opened_is_refused_before_the_search(more, says, tmp_path):
    how = ["--model", str(DATA / "tiny-gpt2"), "--pairs", str(DATA / "tiny_pairs.json"), "--out", str(tmp_path / "x")]
    done = CliRunner().invoke(app, ["discover", *how, *more])
    assert done.exit_code == 2
    assert says in done.stderr
    assert len(done.stderr.strip().splitlines()) <= 3
    assert not (tmp_path / "x").exists()


def test_less_memory_gives_the_same(tiny64, tiny_task):
    """As many rows at a time as fit, and no run is kept."""
    groups = batches(with_swap_rows(encode(tiny_task, tiny64)), 32, "cpu")
    own, chosen = {1: Neurons.of(tiny64.blocks[1])}, {1: [3, 5]}
    small = tiny64.with_blocks(tiny64.blocks)
    longest = max(groups, key=lambda group: group.n_tokens)
    room = int(1.5 * state_bytes(small.architecture(), longest.n_tokens, "float64", steps=2))
    small.budget = Budget(room, 0, small.architecture(), "float64")
    found, expected = (
        neuron_scores(model, groups, METRICS["persona-divergence"], own, chosen, Scoring(steps=2))[1]
        for model in (small, tiny64)
    )
    assert small.budget.score_rows(longest.n_tokens, steps=2) == 1 < len(longest)
    for name in ("values", "into", "out_of"):
        np.testing.assert_allclose(getattr(found, name), getattr(expected, name), atol=1e-12)


def test_its_tables(found):
    from persona_circuits.circuit.reporting import neuron_tables

    *sets, kept = neuron_tables(found.opened)
    assert [cells[0] for cells in sets[0].cells()] == ["all", "these", "all but these", "none"]
    assert kept.rows[0].name in kept.markdown()
    assert "of the MLP's score" in kept.notes[0]


def test_a_choice_that_was_stopped_goes_on_the_same(found, tiny64, tiny_task, tmp_path, monkeypatch):
    """Stopped among the numbers that are tried: what was measured before is not measured again, and the file goes."""
    monkeypatch.setattr(kept, "SAVE_SECONDS", -1.0)
    state, made = tmp_path / "neurons.state", []

    class Stopped(Exception):
        pass

    def stop_at_the_third(name):
        def told(done, of):
            if name == "fewest neurons" and done == 3:
                raise Stopped

        return told

    def counted(name):
        plain = getattr(below, name)
        monkeypatch.setattr(below, name, lambda *given, **how: made.append(name) or plain(*given, **how))

    counted("neuron_scores")
    counted("measured_neurons")
    discover(tiny64, tiny_task, OPENED)
    whole = made.copy()
    made.clear()
    with pytest.raises(Stopped):
        discover(tiny64, tiny_task, OPENED, state=tmp_path, stage=stop_at_the_third)
    assert made == ["neuron_scores"] + ["measured_neurons"] * 3
    assert state.is_file()
    again = discover(tiny64, tiny_task, OPENED, state=tmp_path)
    assert made == whole
    assert again.opened.as_dict() == found.opened.as_dict()
    assert not state.exists()
    state.write_bytes(b"torn")
    with pytest.warns(DamagedState, match="starts again"):
        assert discover(tiny64, tiny_task, OPENED, state=tmp_path).opened.as_dict() == found.opened.as_dict()


def test_an_mlp_outside_the_circuit_is_said_and_costs_nothing(tiny64, tiny_task, monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("nothing is to be scored")

    monkeypatch.setattr(below, "neuron_scores", refuse)
    about = discover(tiny64, tiny_task, Options(prune="top-n", top_n=2, neurons=("m1",), n_random=0, steps=1)).opened
    assert about.notes == ("m1 is not in the circuit, and is not opened",)
    assert about.kept == about.measured == ()
