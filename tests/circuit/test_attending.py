"""Why a head attends: terms of its scores against scores written out, and against the host's attention."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import DATA
from typer.testing import CliRunner

from persona_circuits.circuit.discovery import Options, discover
from persona_circuits.circuit.errors import ModelError
from persona_circuits.circuit.evaluation import pairwise
from persona_circuits.circuit.forward import measure, prepare, run
from persona_circuits.circuit.model import score_terms
from persona_circuits.circuit.subgraph import Circuit
from persona_circuits.circuit.task import batches, encode, with_swap_rows
from persona_circuits.cli import app
from persona_circuits.commands.checking import faults_of_file, kind_of
from persona_circuits.metrics import METRICS
from persona_circuits.persona.inside import attention_of

NAMES = ["gpt2", "llama2", "llama3.2", "qwen2.5", "qwen3", "gemma3", "olmo2", "neox, parallel", "gpt-neo"]


def terms_of(model, layer):
    tokens = torch.randint(0, 64, (1, 7), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        at = run(model, *model.start(tokens))
    n = model.graph.n_reaching(model.graph.head_slots_of(layer).start)
    found = score_terms(model.blocks[layer], at.streams[layer], at.contributions[:n, 0], at.context)
    return tokens, at, n, found


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("layer", [0, 1])
def test_terms_sum_to_the_score(name, layer, family):
    """By the query's side and by the keys'; the softmax of the scores is the host's attention."""
    model = family(name)
    _, at, n, (query, key, whole) = terms_of(model, layer)
    allowed = torch.isfinite(whole)
    assert query.shape[0] == key.shape[0] == n + 1
    assert allowed[:, -1].all()
    for terms in (query, key):
        torch.testing.assert_close(terms.sum(0)[allowed], whole[allowed], rtol=1e-7, atol=1e-9)
        assert (terms[:, ~allowed] == 0).all()
    v = at.qkv[layer][2][0].transpose(0, 1)
    z = torch.einsum("hk,hke->he", whole.softmax(-1), v)
    torch.testing.assert_close(z, at.written.z[layer][0, -1], rtol=1e-5, atol=1e-6)


def test_terms_are_those_of_the_definition(family):
    """GPT-2, written out on the host's weights: each source's write through the held norm, and biases in the rest."""
    model, layer = family("gpt2"), 1
    _, at, n, (query, key, _) = terms_of(model, layer)
    block = model.bridge.original_model.transformer.h[layer]
    norm, joint = block.ln_1.original_component, block.attn.c_attn.original_component
    x, heads = at.streams[layer][0], model.graph.n_heads
    rate = (x.var(-1, unbiased=False, keepdim=True) + norm.eps).rsqrt()

    def held(write):
        return (write - write.mean(-1, keepdim=True)) * rate * norm.weight

    def through(normed, which, bias=0.0):
        weight = joint.weight.chunk(3, 1)[which]
        return (normed @ weight + bias).unflatten(-1, (heads, -1))

    q, k = (through(held(x) + norm.bias, i, joint.bias.chunk(3)[i]) for i in (0, 1))
    scale = q.shape[-1] ** -0.5
    for source in (0, 3, n - 1):
        own = [through(held(at.contributions[source, 0]), i) for i in (0, 1)]
        torch.testing.assert_close(query[source], torch.einsum("he,khe->hk", own[0][-1], k) * scale)
        torch.testing.assert_close(key[source], torch.einsum("he,khe->hk", q[-1], own[1]) * scale)
    biases = x - at.contributions[:n, 0].sum(0)
    rest = through(held(biases) + norm.bias, 0, joint.bias.chunk(3)[0])
    torch.testing.assert_close(query[-1], torch.einsum("he,khe->hk", rest[-1], k) * scale)
    assert float(np.abs(query[-1].detach().numpy()).max()) > 1e-6


def test_scores_under_a_soft_cap_are_no_sums(family):
    with pytest.raises(ModelError, match="cannot be told"):
        terms_of(family("gemma2"), 1)


@pytest.fixture(scope="module")
def found(tiny64, tiny_task):
    return discover(
        tiny64, tiny_task, Options(prune="top-n", top_n=60, open_heads=("a1.h2", "a2.h0"), n_random=0, steps=1)
    )


def test_attention_by_part_is_the_hosts(found, tiny64, tiny_task):
    """Of every pair, by an attention to unit values; and the terms sum to what the score differs by."""
    shares = {}
    for row in encode(tiny_task, tiny64):
        for turn, spans in enumerate((row.spans, row.corrupt_spans)):
            tokens = torch.tensor([row.prompts[turn]])
            with torch.no_grad():
                at = run(tiny64, *tiny64.start(tokens))
            for layer, head in ((1, 2), (2, 0)):
                seen = attention_of(
                    tiny64.blocks[layer], at.streams[layer], at.context, torch.zeros(tiny64.d_model).double()
                )
                for name in {span.name for span in spans}:
                    places = [i for span in spans if span.name == name for i in range(span.start, span.end)]
                    key = (f"a{layer}.h{head}", name, turn)
                    shares.setdefault(key, []).append(float(seen.pattern[head, -1, places].sum()))
    assert found.heads.attended
    for one in found.heads.attended:
        assert one.attention_a == pytest.approx(np.mean(shares[one.head, one.span, 0]), abs=1e-9)
        assert one.attention_b == pytest.approx(np.mean(shares[one.head, one.span, 1]), abs=1e-9)
        for terms in (one.query, one.key):
            assert sum(terms.values()) == pytest.approx(one.score, abs=1e-9)
            assert list(terms)[:2] == ["input", "a0.h0"]
            assert list(terms)[-1] == "biases"
    assert max(abs(one.score) for one in found.heads.attended) > 1e-3


def test_parts_are_what_cutting_their_edges_loses(found, tiny64, tiny_task):
    metric, names = METRICS["persona-divergence"], found.circuit.edge_names()
    items = [prepare(tiny64, group) for group in batches(with_swap_rows(encode(tiny_task, tiny64)), 8, "cpu")]
    for one in found.heads.parts:
        slots = [f"->{one.head}<{slot}>" for slot in ("qk" if one.part == "query-key" else "v")]
        own = [name for name in names if any(name.endswith(slot) for slot in slots)]
        rest = Circuit.of(tiny64.graph, [name for name in names if name not in own])
        masks = [Circuit.full(tiny64.graph).mask, Circuit.empty(tiny64.graph).mask, found.circuit.mask, rest.mask]
        full, empty, whole, without = pairwise(measure(tiny64, items, masks, metric), metric)
        assert one.n_edges == len(own)
        assert one.score == pytest.approx(sum(found.scores[name] for name in own))
        assert one.lost.value == pytest.approx((whole - without).mean() / (full - empty).mean())
    assert {one.part for one in found.heads.parts if one.n_edges} == {"query-key", "value-output"}


def test_its_file(found, tmp_path):
    found.write(tmp_path)
    record = json.loads((tmp_path / "heads.json").read_text())
    assert (record["format"], record["version"]) == ("persona-circuits/heads", 1)
    assert [one["head"] for one in record["parts"]] == ["a1.h2", "a1.h2", "a2.h0", "a2.h0"]
    assert (kind_of(tmp_path / "heads.json"), faults_of_file(tmp_path / "heads.json")) == ("result", [])


def test_its_tables_say_which_head_is_outside(found):
    from persona_circuits.circuit.reporting import head_tables

    assert not any("not in the circuit" in note for note in head_tables(found.heads)[0].notes)
    none = [replace(one, n_edges=0) if one.head == "a2.h0" else one for one in found.heads.parts]
    outside = head_tables(replace(found.heads, parts=tuple(none)))[0]
    assert outside.notes[-1] == "a2.h0 is not in the circuit"


@pytest.mark.parametrize(
    ("name", "says"), [("a9.h0", "a0.h0 to a2.h3"), ("m1", "names no head"), ("two", "a0.h0 to a2.h3")]
)
def test_what_is_no_head_is_refused_before_the_search(name, says, tmp_path):
    how = ["--model", str(DATA / "tiny-gpt2"), "--pairs", str(DATA / "tiny_pairs.json"), "--out", str(tmp_path / "x")]
    done = CliRunner().invoke(app, ["discover", *how, "--open-heads", name])
    assert done.exit_code == 2
    assert says in done.stderr
    assert not (tmp_path / "x").exists()
