"""Inside the nodes: attention against its definition, and sums that must come out."""

import base64
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import DATA
from families import save

from persona_circuits.circuit.graph import SLOTS
from persona_circuits.circuit.model import load_model
from persona_circuits.circuit.subgraph import Circuit
from persona_circuits.circuit.task import encode, load_task
from persona_circuits.persona.inside import attention_of, look_inside
from persona_circuits.persona.inside.study import _by_neuron, _side
from persona_circuits.persona.lens import read_out
from persona_circuits.persona.streams import trace


def seen_of(model, layer, ids):
    tokens = torch.tensor([ids])
    streams = trace(model, tokens, torch.arange(len(ids))[None]).streams
    reader = torch.linspace(-1, 1, model.d_model, dtype=model.dtype)
    with torch.no_grad():
        return attention_of(model.blocks[layer], streams[layer], model.start(tokens)[1], reader), streams, reader


def test_the_pattern_is_the_softmax_of_queries_and_keys(tiny64):
    ids = list(range(3, 14))
    block = tiny64.blocks[1]
    seen, streams, _ = seen_of(tiny64, 1, ids)
    q, k, v = (block.project(slot, block.attn_norm(streams[1])) for slot in SLOTS)
    scores = torch.einsum("qhe,khe->hqk", q[0], k[0]) / q.shape[-1] ** 0.5
    scores = scores.masked_fill(torch.ones_like(scores[0]).triu(1).bool(), -torch.inf)
    expected = scores.softmax(-1)
    torch.testing.assert_close(seen.pattern, expected)
    written = torch.stack([v[0, :, head] @ block.W_O[head] for head in range(v.shape[2])])
    torch.testing.assert_close(seen.sizes, written.norm(dim=-1))


@pytest.mark.parametrize("name", ["gpt2", "gemma2"])
def test_what_keys_move_sums_to_what_the_head_writes(name, tiny64, tmp_path):
    """Also where a norm follows attention."""
    model = tiny64 if name == "gpt2" else load_model(save(name, tmp_path), dtype="float64")
    ids = list(range(3, 12))
    for layer in range(len(model.blocks)):
        seen, _, reader = seen_of(model, layer, ids)
        tokens = torch.tensor([ids])
        parts = trace(model, tokens, torch.arange(len(ids))[None], with_parts=True).parts
        own = parts[model.graph.heads_of(layer), 0] @ reader
        torch.testing.assert_close(seen.moved.sum(-1), own)


@pytest.fixture(scope="module")
def inside(tiny64):
    task = load_task(DATA / "tiny_pairs.json")
    return look_inside(tiny64, task, Circuit.full(tiny64.graph)), task


def test_direct_effects_and_biases_sum_to_the_divergence(tiny64, inside):
    found, task = inside
    total = sum(node["direct"]["mean"] for node in found["nodes"].values())
    rest = []
    for row in encode(task, tiny64):
        ends = []
        for ids in (row.clean, row.corrupt):
            seen = trace(tiny64, torch.tensor([ids]), torch.tensor([[len(ids) - 1]]), with_parts=True)
            answers, wrong = torch.tensor([row.answers]), torch.tensor([row.wrong_answers])
            reader = read_out(tiny64, seen.streams[-1, :, -1], answers, wrong)[0]
            ends.append(float((seen.parts[0, 0] + seen.biases[:, 0].sum(0)) @ reader))
        rest.append(ends[0] - ends[1])
    assert total + np.mean(rest) == pytest.approx(found["divergence"], abs=2e-3)
    assert found["lens"][-1]["divergence"] == pytest.approx(found["divergence"], rel=1e-3)


def test_neurons_sum_to_their_mlp(tiny64):
    task = load_task(DATA / "tiny_pairs.json")
    row = encode(task, tiny64)[0]
    side = _side(tiny64, row, 0)
    block = tiny64.blocks[1]
    each = _by_neuron(tiny64, side, 1)
    bias = block.bridge.mlp.out.original_component.bias.detach()
    own = float(side.direct[tiny64.graph.mlp_of(1)]) - float(bias @ side.reader)
    assert float(each.sum()) == pytest.approx(own, rel=1e-5)


def test_patterns_and_tokens_are_of_the_example(tiny64, inside):
    found, _ = inside
    example = found["example"]
    n = len(example["tokens_a"])
    for name, node in found["nodes"].items():
        if not name.startswith("a"):
            assert "pattern_a" not in node
            continue
        pattern = np.frombuffer(base64.b64decode(node["pattern_a"]), np.uint8).reshape(n, n) / 255
        assert np.abs(pattern.sum(1) - 1).max() < n / 255
        assert np.triu(pattern, 1).max() == 0
        assert sum(value for _, value in node["spans"]) == pytest.approx(
            sum(node["moved_a"]) - sum(node["moved_b"]), abs=2e-3
        )
    assert len(found["signal"]) == len(tiny64.blocks) + 1


def test_one_persona_twice_has_no_signal_and_no_divergence(tiny64):
    """The null: where both prompts are the same but for a word that the model is told nothing by."""
    task = load_task(DATA / "tiny_pairs.json")
    row = encode(task, tiny64)[0]
    same = replace(row, corrupt=row.clean)
    a, b = (_side(tiny64, same, turn) for turn in (0, 1))
    assert torch.equal(a.direct, b.direct)
