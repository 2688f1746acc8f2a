"""A model in float64 is float64 all through: held against forward passes written from the definition."""

import math

import pytest
import torch
from torch.nn.functional import gelu, silu

from persona_circuits.circuit.model import Wide, load_model
from tests.families import D_HEAD, FAMILIES, HEADS, WIDTH, network_of, save

TOKENS = torch.randint(0, 64, (2, 9), generator=torch.Generator().manual_seed(3))


def by_definition(weights, tokens, *, d_head, n_kv, gemma):
    """Logits of a rotary decoder with root-mean-square norms, from its weights alone, in float64."""
    weights = {key.removeprefix("model."): value.double() for key, value in weights.items()}

    def norm(x, name):
        gain = weights[f"{name}.weight"] + gemma
        return x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt() * gain

    def rotated(x):
        angle = torch.arange(x.shape[1])[:, None] / 10000.0 ** (
            torch.arange(0, d_head, 2, dtype=torch.float64) / d_head
        )
        cos, sin = angle.cos()[:, None], angle.sin()[:, None]
        first, second = x.chunk(2, -1)
        return torch.cat([first * cos - second * sin, second * cos + first * sin], -1)

    def heads(x, layer, slot, count):
        return (x @ weights[f"layers.{layer}.self_attn.{slot}_proj.weight"].T).unflatten(-1, (count, d_head))

    x = weights["embed_tokens.weight"][tokens] * (math.sqrt(WIDTH) if gemma else 1.0)
    blind = torch.ones(tokens.shape[1], tokens.shape[1]).triu(1).bool()
    for layer in range(2):
        at = f"layers.{layer}"
        normed = norm(x, f"{at}.input_layernorm")
        q, k = rotated(heads(normed, layer, "q", HEADS)), rotated(heads(normed, layer, "k", n_kv))
        k, v = (part.repeat_interleave(HEADS // n_kv, 2) for part in (k, heads(normed, layer, "v", n_kv)))
        scores = torch.einsum("bqhd,bkhd->bhqk", q, k) / math.sqrt(d_head)
        z = torch.einsum("bhqk,bkhd->bqhd", scores.masked_fill(blind, -math.inf).softmax(-1), v)
        x = x + z.flatten(-2) @ weights[f"{at}.self_attn.o_proj.weight"].T
        normed = norm(x, f"{at}.post_attention_layernorm")
        gate = normed @ weights[f"{at}.mlp.gate_proj.weight"].T
        gate = gelu(gate, approximate="tanh") if gemma else silu(gate)
        x = x + (gate * (normed @ weights[f"{at}.mlp.up_proj.weight"].T)) @ weights[f"{at}.mlp.down_proj.weight"].T
    return norm(x, "norm") @ weights["embed_tokens.weight" if gemma else "lm_head.weight"].T


@pytest.mark.parametrize(
    ("family", "shape"),
    [("llama2", {"d_head": D_HEAD, "n_kv": HEADS, "gemma": False}), ("gemma", {"d_head": 8, "n_kv": 1, "gemma": True})],
)
def test_logits_are_those_of_the_definition(family, shape, tmp_path):
    network = network_of(FAMILIES[family])
    expected = by_definition(network.state_dict(), TOKENS, **shape)
    scale = expected.abs().max()
    model = load_model(save(family, tmp_path / "model"), dtype="float64")
    for logits in (model.logits(TOKENS), model.forward(TOKENS)):
        assert logits.dtype == torch.float64
        assert (logits - expected).abs().max() < 1e-12 * scale
    with torch.no_grad():
        off = (network.double()(TOKENS).logits - expected).abs().max() / scale
    assert 1e-9 < off < 1e-5, "the host's own is float32's, so the test tells them apart"


@pytest.mark.parametrize("family", FAMILIES)
def test_two_roundings_of_a_stream_are_told_apart(family, tmp_path):
    """In every family a change of 1e-10 in the stream comes out in proportion; float32 would lose it."""
    model = load_model(save(family, tmp_path / "model"), dtype="float64")
    stream, context = model.start(TOKENS)
    generator = torch.Generator().manual_seed(4)
    change = torch.randn(stream.shape, generator=generator, dtype=torch.float64)

    def run(x):
        for block in model.blocks[:1]:
            normed = block.attn_norm(x)
            z = block.attention(*(block.project(slot, normed) for slot in "qkv"), context)
            x = x + block.attn_out(z)
        return model.unembed(x)

    base = run(stream)
    small, large = ((run(stream + size * change) - base) / size for size in (1e-8, 1e-6))
    assert (small - large).abs().max() < 1e-3 * large.abs().max()


def test_nothing_is_left_on():
    wide = Wide()
    with wide.on(), wide.on():
        assert torch.zeros(1).dtype == torch.zeros(1, dtype=torch.float32).float().dtype == torch.float64
    assert torch.get_default_dtype() == torch.float32
    assert torch.zeros(1, dtype=torch.float64).float().dtype == torch.float32
