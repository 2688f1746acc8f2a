"""Neurons of opened MLPs against what their sums must be, and against the model run with single ones changed."""

import warnings
from functools import cache

import numpy as np
import pytest
import torch
from families import save
from test_families import LOGIT_DIFF, pair_of_prompts

from persona_circuits.circuit.attribution import neuron_scores, score
from persona_circuits.circuit.forward import patched_logits, prepare
from persona_circuits.circuit.model import Neurons, OpenBlock, load_model
from persona_circuits.circuit.subgraph import Circuit

FAMILIES = ["gpt2", "llama2", "gemma3", "neox, parallel", "olmo2", "phi3", "granite", "cohere", "gptj"]


@pytest.fixture(scope="module")
def family(tmp_path_factory):
    @cache
    def load(name):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return load_model(save(name, tmp_path_factory.mktemp("family")), dtype="float64")

    return load


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("method", ["eap-ig", "eap", "gim"])
def test_scores_sum_to_those_of_the_mlp(name, method, family):
    """As a node, edge by edge out of it, and edge by edge into it; at either layer, the last of which has few places."""
    model = family(name)
    graph, batch = model.graph, pair_of_prompts()
    how = {"method": method, "steps": 2}
    edges = score(model, [batch], LOGIT_DIFF, **how).values
    opened = {layer: Neurons.of(model.blocks[layer]) for layer in (0, 1)}
    every = {layer: np.arange(len(one)) for layer, one in opened.items()}
    for items in ([batch], [prepare(model, batch)]):
        found = neuron_scores(model, items, LOGIT_DIFF, opened, every, **how)
        for layer, one in found.items():
            out, into = edges[graph.mlp_of(layer)], edges[:, graph.mlp_slot_of(layer)]
            assert np.abs(out).max() > 1e-6
            np.testing.assert_allclose(one.values.sum(), out.sum(), rtol=1e-7)
            np.testing.assert_allclose(one.out_of.sum(0), out, rtol=1e-7, atol=1e-9 * np.abs(out).max())
            np.testing.assert_allclose(one.out_of.sum(1), one.values, rtol=1e-7, atol=1e-9)
            np.testing.assert_allclose(one.into.sum(1), into, rtol=1e-7, atol=1e-9 * np.abs(into).max())


def test_an_experts_neurons_cannot_be_told(family):
    from persona_circuits.circuit.errors import ModelError

    with pytest.raises(ModelError, match="mixture of experts"):
        Neurons.of(family("mixtral").blocks[0])


PLACES = {"gpt2": "transformer.h.{}.mlp.c_proj", "llama2": "model.layers.{}.mlp.down_proj"}


def opened(model, item, neurons, dropped):
    """The model with these neurons as in the ablated run."""
    dropped, layer = torch.tensor(dropped, dtype=torch.long), neurons.block.layer
    block = OpenBlock.of(neurons, dropped, neurons.written(neurons.at(item.ablated.mids[layer]), dropped))
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

        def swapped(_, given):
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
        scores = neuron_scores(model, [item], LOGIT_DIFF, {layer: neurons}, method="eap")[layer].values
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
