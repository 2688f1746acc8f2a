"""Weights in bfloat16, everything computed in float32: the numbers of a float32 model with the rounded weights."""

import os

os.environ.setdefault("KINETO_LOG_LEVEL", "99")

import numpy as np
import pytest
import torch
from conftest import DATA
from families import FAMILIES, network_of, save
from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel

from persona_circuits.circuit.attribution import Scoring, activation_cost, eap, eap_ig
from persona_circuits.circuit.discovery import Options, discover
from persona_circuits.circuit.forward import measure, prepare
from persona_circuits.circuit.model import HALF_PRECISION, Upcasting, load_model, wrap_model
from persona_circuits.circuit.profiling import peak_bytes
from persona_circuits.circuit.task import Batch, batches, encode, with_swap_rows
from persona_circuits.metrics import METRICS

LOGIT_DIFF = METRICS["logit-diff"]


def batch_of(rows=2, length=7, vocab=64):
    clean, corrupt = torch.randint(0, vocab, (2, rows, length), generator=torch.Generator().manual_seed(1))
    answers = torch.arange(1, rows + 1)[:, None]
    return Batch(tuple(range(rows)), clean, corrupt, answers, answers + 10)


def rounded(name, folder):
    """The same weights, rounded to bfloat16 and long again, in a folder of their own."""
    network = network_of(FAMILIES[name])
    with torch.no_grad():
        for weight in network.parameters():
            weight.copy_(weight.bfloat16().float())
    network.save_pretrained(folder)
    for file in ("tokenizer.json", "tokenizer_config.json"):
        (folder / file).write_bytes((DATA / "tiny-gpt2" / file).read_bytes())
    return load_model(folder)


@pytest.mark.parametrize(
    "name", ["gpt2", "gemma2", "gemma3, multimodal", "olmo2, grouped", "neox, parallel", "mixtral", "granite"]
)
def test_numbers_are_those_of_the_rounded_weights(name, tmp_path):
    held, long = load_model(save(name, tmp_path / "a"), dtype="bfloat16-weights"), rounded(name, tmp_path / "b")
    assert held.format == "bfloat16-weights"
    assert held.dtype == torch.float32
    assert {weight.dtype for weight in held.bridge.original_model.parameters()} == {torch.bfloat16}
    batch = batch_of()
    torch.testing.assert_close(held.logits(batch.clean), long.logits(batch.clean), atol=1e-5, rtol=1e-5)
    for scores in (eap, lambda *args: eap_ig(*args, steps=2)):
        ours, expected = (scores(model, [batch], LOGIT_DIFF).values for model in (held, long))
        assert np.abs(ours - expected).max() < 1e-5 * np.abs(expected).max()
    masks = [held.graph.valid & (np.random.default_rng(0).random(held.graph.valid.shape) < 0.5)]
    ours, expected = (measure(model, [prepare(model, batch)], masks, LOGIT_DIFF) for model in (held, long))
    np.testing.assert_allclose(ours, expected, atol=1e-5)
    assert not held.upcasting._originals
    assert {weight.dtype for weight in held.bridge.original_model.parameters()} == {torch.bfloat16}


def test_it_is_neither_float32_nor_bfloat16_throughout(tmp_path):
    """The control: rounding does change this model, and rounding every activation changes it more."""
    folder = save("gpt2", tmp_path)
    tokens = batch_of().clean
    held, long, short = (
        load_model(folder, dtype=name).logits(tokens).float() for name in ("bfloat16-weights", "float32", "bfloat16")
    )
    assert 1e-4 < (held - long).abs().max() < 0.5 * (short - long).abs().max()


def test_autograd_keeps_no_long_weights():
    """A model that is mostly weights: its attribution takes less than a float32 copy of them on top."""
    network = GPT2LMHeadModel(GPT2Config(vocab_size=64, n_positions=16, n_embd=256, n_layer=8, n_head=2)).bfloat16()
    tokenizer = AutoTokenizer.from_pretrained(DATA / "tiny-gpt2")
    model = wrap_model(network, tokenizer, name="wide", in_float32=True)
    batch = batch_of(rows=1, length=3)
    work = lambda: eap(model, [batch], LOGIT_DIFF)  # noqa: E731
    work()
    n_weights = sum(weight.numel() for weight in network.parameters())
    assert peak_bytes(work, "cpu") < 4 * n_weights / 3


def test_parts_nest_and_come_back_after_an_error():
    held, part = Upcasting(), torch.nn.Sequential(torch.nn.Linear(3, 3).bfloat16())
    with held.on(part):
        with held.on(part[0]):
            assert part[0].weight.dtype == torch.float32
        assert part[0].weight.dtype == torch.float32, "the outer block is still open"
    assert part[0].weight.dtype in HALF_PRECISION
    held.while_it_runs(part)
    with pytest.raises(RuntimeError):
        part(torch.zeros(1, 2))
    assert part[0].weight.dtype in HALF_PRECISION
    assert part(torch.zeros(1, 3)).dtype == torch.float32


def test_a_run_names_the_format_and_products_may_be_short_besides(tiny_task):
    model = load_model(DATA / "tiny-gpt2", dtype="bfloat16-weights")
    found = discover(model, tiny_task, Options(method="eap", threshold=0.05, n_random=1))
    assert found.record["model"]["dtype"] == "bfloat16-weights"
    rows = with_swap_rows(encode(tiny_task, model))
    cost = activation_cost(model, batches(rows, 4, "cpu")[0], LOGIT_DIFF, Scoring("eap", activations="bfloat16"))
    assert 0.9 < cost.correlation <= 1.0
