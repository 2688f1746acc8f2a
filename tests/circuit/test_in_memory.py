"""A model that the caller holds stays as it was, whichever library holds it."""

import numpy as np
import pytest
import torch
from conftest import DATA
from families import FAMILIES, network_of
from transformers import AutoModelForCausalLM, AutoTokenizer

from persona_circuits import eap, encode, wrap_model
from persona_circuits.circuit.errors import ModelError
from persona_circuits.circuit.model import nothing_installed
from persona_circuits.circuit.task import batches
from persona_circuits.metrics import METRICS

TOKENS = torch.arange(1, 9)[None]


@pytest.fixture
def tokenizer():
    return AutoTokenizer.from_pretrained(DATA / "tiny-gpt2")


def state(network):
    """All that a caller could see change."""
    with torch.no_grad():
        logits = network(TOKENS).logits
    weights = {key: (value.shape, value.dtype) for key, value in network.state_dict().items()}
    flags = (network.training, [p.requires_grad for p in network.parameters()], network.config._attn_implementation)
    return logits, weights, flags, str(network.config)


@pytest.mark.parametrize("family", ["gpt2", "llama3.2", "gemma2"])
def test_a_networks_own_state_is_untouched(family, tokenizer):
    network = network_of(FAMILIES[family]).train()
    network.requires_grad_(True)
    before = state(network.eval())
    model = wrap_model(network, tokenizer)
    torch.testing.assert_close(model.logits(TOKENS), before[0], atol=1e-4, rtol=0)
    logits, *others = state(network)
    assert torch.equal(logits, before[0])
    assert tuple(others) == before[1:]
    assert model.bridge.original_model is not network


def test_without_a_copy_it_is_taken_apart_itself(tokenizer):
    network = network_of(FAMILIES["gpt2"])
    names = list(network.state_dict())
    model = wrap_model(network, tokenizer, name="mine", copy=False)
    assert model.name == "mine"
    assert model.bridge.original_model is network
    assert list(network.state_dict()) != names


def test_a_bridge_gives_the_scores_of_its_network(tiny, tiny_task, tokenizer):
    from transformer_lens.model_bridge import TransformerBridge

    network = AutoModelForCausalLM.from_pretrained(DATA / "tiny-gpt2")
    with nothing_installed():
        how = {"tokenizer": tokenizer, "device": "cpu", "dtype": torch.float32}
        bridge = TransformerBridge.boot_transformers("tiny", hf_model=network, **how)
    before = state(bridge.original_model)
    model = wrap_model(bridge)
    logits, *others = state(bridge.original_model)
    assert torch.equal(logits, before[0])
    assert tuple(others) == before[1:]
    assert model.fingerprint == tiny.fingerprint
    groups = batches(encode(tiny_task, model), 8, "cpu")
    found, expected = (eap(one, groups, METRICS["logit-diff"]).values for one in (model, tiny))
    np.testing.assert_allclose(found, expected, atol=1e-6)
    with torch.no_grad():
        next(bridge.original_model.parameters()).add_(1.0)
    np.testing.assert_array_equal(eap(model, groups, METRICS["logit-diff"]).values, found)


def test_what_is_no_model_is_refused(tokenizer):
    with pytest.raises(ModelError, match="a Linear cannot be wrapped; give a Hugging Face causal"):
        wrap_model(torch.nn.Linear(2, 2), tokenizer)
    with pytest.raises(ModelError, match="tokenizer is needed too"):
        wrap_model(network_of(FAMILIES["gpt2"]))
