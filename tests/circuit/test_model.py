import gc
import shutil

import pytest
import torch
from conftest import CRAFTGPT, DATA
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    Gemma2Config,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    LlamaConfig,
    MambaConfig,
    Qwen3Config,
)

from persona_circuits.circuit.errors import ModelError
from persona_circuits.circuit.model import load_model, loading, wrap_model

SMALL = {
    "vocab_size": 64,
    "hidden_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "bos_token_id": 0,
    "eos_token_id": 0,
}
FAMILIES = {
    "llama, grouped queries": LlamaConfig(**SMALL, intermediate_size=64, num_key_value_heads=2),
    "qwen3, query and key norms": Qwen3Config(**SMALL, intermediate_size=64, num_key_value_heads=2, head_dim=12),
    "gemma2, norms behind, soft caps": Gemma2Config(
        **SMALL, intermediate_size=64, num_key_value_heads=2, head_dim=12, sliding_window=4, pad_token_id=0
    ),
    "neox, parallel": GPTNeoXConfig(**SMALL, intermediate_size=64),
}


def network_of(config):
    torch.manual_seed(0)
    network = AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    with torch.no_grad():
        for name, weight in network.named_parameters():
            weight.normal_(mean=1.0 if "norm" in name and weight.dim() == 1 else 0.0, std=0.15)
    return network


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(DATA / "tiny-gpt2")


def test_logits_equal_hugging_faces(craftgpt):
    network = AutoModelForCausalLM.from_pretrained(CRAFTGPT)
    tokens = torch.randint(0, 1920, (3, 20), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = network(tokens).logits
    torch.testing.assert_close(craftgpt.logits(tokens), expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(craftgpt.forward(tokens), expected, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_other_families_come_apart_too(family, tokenizer):
    network = network_of(FAMILIES[family])
    tokens = torch.randint(0, 64, (2, 9), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = network(tokens).logits
    model = wrap_model(network, tokenizer, name=family)
    assert model.graph.n_heads == 4
    assert model.graph.parallel == ("parallel" in family)
    torch.testing.assert_close(model.forward(tokens), expected, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_patched_ends_and_sum_of_contributions_in_other_families(family, tokenizer):
    from persona_circuits.circuit.forward import patched_logits, prepare
    from persona_circuits.circuit.task import Batch

    model = wrap_model(network_of(FAMILIES[family]), tokenizer, name=family)
    clean, corrupt = torch.randint(0, 64, (2, 2, 7), generator=torch.Generator().manual_seed(1))
    item = prepare(model, Batch((0, 1), clean, corrupt, torch.tensor([[1], [2]]), torch.tensor([[3], [4]])))
    valid = torch.from_numpy(model.graph.valid.copy())
    logits = patched_logits(model, item, torch.stack([valid, torch.zeros_like(valid)]))
    torch.testing.assert_close(logits[0], item.clean.logits, atol=2e-5, rtol=1e-4)
    torch.testing.assert_close(logits[1], item.corrupt.logits, atol=2e-5, rtol=1e-4)
    gap = item.clean.contributions.sum(0) - item.clean.streams[-1]
    constant = gap - (item.corrupt.contributions.sum(0) - item.corrupt.streams[-1])
    torch.testing.assert_close(constant, torch.zeros_like(constant), atol=1e-5, rtol=0)


@pytest.mark.parametrize("family", FAMILIES)
def test_first_order_in_other_families(family, tokenizer):
    """Between two nearly equal prompts, EAP is exact patching."""
    from persona_circuits.circuit.attribution import eap, exact
    from persona_circuits.circuit.task import Batch
    from persona_circuits.metrics import METRICS

    network = network_of(FAMILIES[family]).double()
    with torch.no_grad():
        embedding = network.get_input_embeddings().weight
        embedding[6] = embedding[5] + 1e-4 * torch.randn_like(embedding[5])
    model = wrap_model(network, tokenizer, name=family)
    clean = torch.randint(8, 64, (2, 7), generator=torch.Generator().manual_seed(1))
    clean[:, 2] = 5
    corrupt = clean.clone()
    corrupt[:, 2] = 6
    batch = Batch((0, 1), clean, corrupt, torch.tensor([[1], [2]]), torch.tensor([[3], [4]]))
    first, whole = (f(model, [batch], METRICS["logit-diff"]).values for f in (eap, exact))
    assert abs(first - whole).max() < 1e-2 * abs(whole).max()


def test_no_parameter_asks_for_a_gradient(tiny):
    assert not any(parameter.requires_grad for parameter in tiny.bridge.parameters())
    assert not tiny.bridge.training


def test_device_and_dtype_come_from_the_weights():
    model = load_model(DATA / "tiny-gpt2", dtype="bfloat16", device="cpu")
    assert (model.dtype, model.device.type) == (torch.bfloat16, "cpu")


def test_no_garbage_is_looked_for_while_a_model_is_made(monkeypatch):
    on, check = [], loading.check_weights
    monkeypatch.setattr(loading, "check_weights", lambda *given: (on.append(gc.isenabled()), check(*given)))
    load_model(DATA / "tiny-gpt2")
    assert on == [False]
    assert gc.isenabled()
    with pytest.raises(ModelError, match="no-model"):
        load_model(str(DATA / "no-model"))
    assert gc.isenabled()
    gc.disable()
    try:
        load_model(DATA / "tiny-gpt2")
        assert not gc.isenabled()
    finally:
        gc.enable()


def test_fingerprints_tell_weights_apart(tiny, tiny64, tmp_path):
    assert tiny.fingerprint == tiny64.fingerprint == load_model(DATA / "tiny-gpt2").fingerprint
    network = AutoModelForCausalLM.from_pretrained(DATA / "tiny-gpt2")
    with torch.no_grad():
        network.transformer.h[0].mlp.c_fc.weight += 1e-3
    assert wrap_model(network, tiny.tokenizer, name="other").fingerprint != tiny.fingerprint


def test_folders_that_hold_no_model(tmp_path):
    with pytest.raises(ModelError, match=r"has no config\.json"):
        load_model(tmp_path)
    shutil.copy(DATA / "tiny-gpt2" / "config.json", tmp_path)
    with pytest.raises(ModelError, match=r"no weights; expected model\.safetensors"):
        load_model(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"not a model")
    with pytest.raises(ModelError, match=r"model\.safetensors is damaged or no safetensors file"):
        load_model(tmp_path)
    with pytest.raises(ModelError, match="does not exist"):
        load_model("./no/such/folder")


def test_names_that_the_hub_does_not_have(monkeypatch):
    def refuses(*_args, **_kwargs):
        raise OSError("nobody/nothing is not a local folder and is not a valid model identifier")

    monkeypatch.setattr("transformers.utils.find_adapter_config_file", lambda *_, **__: None)
    monkeypatch.setattr(AutoTokenizer, "from_pretrained", refuses)
    with pytest.raises(ModelError, match=r"from the hub .* not a valid model identifier"):
        load_model("nobody/nothing")


@pytest.mark.skipif(torch.backends.mps.is_available(), reason="this machine has such a device")
def test_apples_device_where_there_is_none():
    with pytest.raises(ModelError, match=r"device 'mps' cannot be used here .* use --device auto or cpu"):
        load_model(DATA / "tiny-gpt2", device="mps")


@pytest.mark.parametrize(("there", "expected"), [(True, "cuda"), (False, "cpu")])
def test_auto_is_cuda_where_there_is_any(monkeypatch, there, expected):
    from persona_circuits.circuit.model.loading import _device

    monkeypatch.setattr(torch.cuda, "is_available", lambda: there)
    assert _device("auto").type == expected


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"device": "cuda:7"}, "cannot be used here"),
        ({"device": "toaster"}, "cannot be used here"),
        ({"device": "meta"}, "is not one that computes"),
        ({"dtype": "int8"}, "not one of"),
    ],
)
def test_devices_and_formats_that_are_not_there(options, says):
    with pytest.raises(ModelError, match=says):
        load_model(DATA / "tiny-gpt2", **options)


def test_a_model_without_attention_is_refused_with_the_reason(tokenizer):
    config = MambaConfig(vocab_size=64, hidden_size=32, num_hidden_layers=2, state_size=4)
    config.architectures = ["MambaForCausalLM"]
    with pytest.raises(ModelError, match=r"needs? a transformer|cannot be taken apart|cannot hold"):
        wrap_model(AutoModelForCausalLM.from_config(config), tokenizer, name="mamba")


def test_a_stream_that_is_no_plain_sum_is_refused(tiny, monkeypatch):
    block = type(tiny.blocks[0])
    mlp = block.mlp
    monkeypatch.setattr(block, "mlp", lambda self, x: 1.5 * mlp(self, x))
    with pytest.raises(ModelError, match="not a plain sum of nodes"):
        tiny.check_decomposition()


def small_gpt2(**options):
    torch.manual_seed(0)
    network = GPT2LMHeadModel(
        GPT2Config(vocab_size=64, n_embd=24, n_layer=3, n_head=4, bos_token_id=0, eos_token_id=0, **options)
    ).eval()
    with torch.no_grad():
        for weight in network.parameters():
            weight.copy_(0.3 * torch.randn(weight.shape))
    return network


ODD = {
    "unscaled": (small_gpt2, {"scale_attn_weights": False}),
    "by layer": (small_gpt2, {"scale_attn_by_inverse_layer_idx": True}),
    "upcast": (small_gpt2, {"reorder_and_upcast_attn": True}),
    "unscaled, upcast": (small_gpt2, {"scale_attn_weights": False, "reorder_and_upcast_attn": True}),
    "untied": (small_gpt2, {"tie_word_embeddings": False}),
    "biases": (lambda **how: network_of(LlamaConfig(**SMALL, **how)), {"attention_bias": True, "mlp_bias": True}),
    "wide heads": (lambda **how: network_of(LlamaConfig(**SMALL, **how)), {"head_dim": 16}),
}


@pytest.mark.parametrize("case", ODD)
def test_odd_configurations_give_the_networks_own_logits_or_are_refused(case, tokenizer):
    """The reference is what the network gave before the host library replaced its attention."""
    make, options = ODD[case]
    network = make(**options)
    tokens = torch.randint(0, 64, (2, 9), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = network(tokens).logits
    if "unscaled" in case:
        with pytest.raises(ModelError, match="held by TransformerLens the model gives other logits than Hugging Face"):
            wrap_model(network, tokenizer, name=case)
    else:
        model = wrap_model(network, tokenizer, name=case)
        assert (model.forward(tokens) - expected).abs().max() < 1e-5 * expected.abs().max()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16-weights", "float64"])
def test_the_bound_is_relative_to_the_logits(tokenizer, dtype):
    """Logits a million times smaller are held to the same digits."""
    network = small_gpt2(scale_attn_weights=False, tie_word_embeddings=False)
    with torch.no_grad():
        network.lm_head.weight *= 1e-6
    held = {"in_float32": True} if dtype == "bfloat16-weights" else {}
    network.to({"float64": torch.float64, "float32": torch.float32}.get(dtype, torch.bfloat16))
    with pytest.raises(ModelError, match=r"other logits than Hugging Face's own network \(relative difference 0\.\d+"):
        wrap_model(network, tokenizer, name="small logits", **held)


def test_logits_that_are_no_numbers_are_refused_at_load(tokenizer):
    network = small_gpt2().half()
    with torch.no_grad():
        network.transformer.wte.weight.mul_(1e5).clamp_(-6e4, 6e4)
    with pytest.raises(ModelError, match="logits are not finite in float16; load it in float32"):
        wrap_model(network, tokenizer, name="overflow")
