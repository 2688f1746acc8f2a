"""Backward rules against the same rules written out on the host's weights, in float64, without a line of ours."""

import warnings
from functools import cache, partial

import numpy as np
import pytest
import torch
from families import save
from test_families import LOGIT_DIFF, pair_of_prompts, score_of
from torch.nn.functional import silu
from transformers import AutoModelForCausalLM
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from persona_circuits.circuit.attribution import Scoring, eap, eap_by_definition, score, score_parts
from persona_circuits.circuit.attribution.eap import gradient_passes, scores_at
from persona_circuits.circuit.errors import ModelError, OptionError
from persona_circuits.circuit.forward import prepare, run_clean, targets_of
from persona_circuits.circuit.model import RULES, Rules, load_model
from persona_circuits.metrics import METRICS

PLAIN = Rules()


@pytest.fixture(scope="module")
def family(tmp_path_factory):
    @cache
    def load(name):
        folder = save(name, tmp_path_factory.mktemp("family"))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            network = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64, attn_implementation="eager")
        return load_model(folder, dtype="float64"), network.eval().requires_grad_(False)

    return load


@pytest.fixture(scope="module")
def llama(family):
    return family("llama2")


def norm(module, x, rules):
    rate = (x.square().mean(-1, keepdim=True) + module.variance_epsilon).rsqrt()
    return module.weight * x * (rate.detach() if rules.freeze_norms else rate)


def softmax(scores, temperature):
    """The slope of T softmax(x / T) is that of a softmax at temperature T, without 1/T."""
    plain = scores.softmax(-1)
    if np.isinf(temperature):
        return plain.detach()
    warm = temperature * (scores / temperature).softmax(-1)
    return plain.detach() + warm - warm.detach()


def half(a, b, share):
    """A product with a share of the gradient to each factor: at one half, each once with the other held."""
    return share * (a * b.detach() + a.detach() * b) + (1 - 2 * share) * (a * b).detach()


def shared(x, share):
    return share * x + (1 - share) * x.detach()


def by_hand(network, tokens, rules):
    """Logits, what every source wrote, and what every slot read, by name of the source and in the order of the slots.

    Norms, softmax, activations, gates, queries, keys and values hand back what the rules say, by way of what is held.
    """
    body, config = network.model, network.config
    x = body.embed_tokens(tokens).requires_grad_()
    n_heads = config.num_attention_heads
    turned = body.rotary_emb(x, torch.arange(tokens.shape[1])[None])
    later = torch.ones(tokens.shape[1], tokens.shape[1], dtype=torch.bool).triu(1)
    written, reads = [x], []

    def read(stream):
        reads.append(stream.clone())
        return reads[-1]

    with torch.enable_grad():
        for layer in body.layers:
            attn, heads = layer.self_attn, []
            d_head = attn.head_dim
            for slot in (attn.q_proj, attn.k_proj, attn.v_proj):
                of_slot = [
                    slot(norm(layer.input_layernorm, read(x), rules)).unflatten(-1, (-1, d_head))[:, :, head]
                    for head in range(n_heads)
                ]
                heads.append(torch.stack(of_slot, 1))
            q, k = (shared(one, rules.query_key) for one in heads[:2])
            v = shared(heads[2], rules.value)
            q, k = apply_rotary_pos_emb(q, k, *turned)
            scores = (q @ k.transpose(-1, -2) * attn.scaling).masked_fill(later, torch.finfo(torch.float64).min)
            z = softmax(scores, rules.temperature) @ v
            out = attn.o_proj.weight.unflatten(1, (n_heads, d_head))
            results = torch.einsum("bhpd,mhd->hbpm", z, out)
            mid = x + results.sum(0)
            normed = norm(layer.post_attention_layernorm, read(mid), rules)
            gate, up = layer.mlp.gate_proj(normed), layer.mlp.up_proj(normed)
            active = gate * (silu(gate) / gate).detach() if rules.ratios else silu(gate)
            mlp = layer.mlp.down_proj(half(active, up, rules.gate) if rules.gate != 1 else active * up)
            written += [*results, mlp]
            x = mid + mlp
        return network.lm_head(norm(body.norm, read(x), rules))[:, -1], torch.stack(written).detach(), reads


@pytest.mark.parametrize("rules", [PLAIN, *RULES.values(), Rules(temperature=3.0), Rules(ratios=True, gate=0.5)])
def test_scores_are_those_of_the_rules_written_out(rules, llama):
    model, network = llama
    batch, graph = pair_of_prompts(), model.graph
    logits, clean, reads = by_hand(network, batch.clean, rules)
    _, corrupt, _ = by_hand(network, batch.corrupt, rules)
    gradients = torch.autograd.grad(score_of(logits, batch), reads, allow_unused=True)
    expected = np.zeros(graph.valid.shape)
    for slot, gradient in enumerate(gradients):
        n = graph.n_reaching(slot)
        if gradient is not None:
            expected[:n, slot] = torch.einsum("sbpd,bpd->s", corrupt[:n] - clean[:n], gradient)
    largest = np.abs(expected).max()
    assert largest > 1e-2
    ruled = model.under(rules)
    for found in (eap(ruled, [batch], LOGIT_DIFF), eap(ruled, [prepare(model, batch)], LOGIT_DIFF)):
        np.testing.assert_allclose(found.values, expected, atol=1e-6 * largest)


def test_relevance_is_conserved_at_every_depth(llama):
    """Without biases: what crosses between any two layers, from all sources before to all slots after, is m itself."""
    model, _ = llama
    graph, batch = model.graph, pair_of_prompts()
    written, crossing = run_clean(model, batch).contributions, {}

    def use(name, ends, _delta, _share):
        crossing[name] = scores_at(model.under(RULES["relp"]), ends, written, max_bytes=None)[0]

    gradient_passes(model.under(RULES["relp"]), batch, LOGIT_DIFF, None, None, 0, partial(use, "relp"))
    gradient_passes(model, batch, LOGIT_DIFF, None, None, 0, partial(use, "gradient"))
    logits = model.logits(batch.clean)[:, -1]
    whole = float(LOGIT_DIFF(logits, targets_of(batch, logits)).sum())
    for layer in range(graph.n_layers):
        before, after = graph.heads_of(layer).start, graph.head_slots_of(layer).start
        assert crossing["relp"][:before, after:].sum() == pytest.approx(whole, abs=1e-5)
    assert abs(crossing["gradient"][:1].sum() - whole) > 0.01


@pytest.mark.parametrize("method", RULES)
@pytest.mark.parametrize("name", ["gpt2", "gemma3", "qwen3", "olmo2", "neox, parallel", "phi3"])
def test_families_run_under_the_rules_and_say_the_same_forward(method, name, family):
    """Logits are the model's; scores are those of plain autograd under the rules, with a stream for every head."""
    model, _ = family(name)
    batch, ruled = pair_of_prompts(), model.under(RULES[method])
    torch.testing.assert_close(ruled.forward(batch.clean), model.forward(batch.clean), atol=2e-5, rtol=0)
    found, expected = eap(ruled, [batch], LOGIT_DIFF).values, eap_by_definition(ruled, [batch], LOGIT_DIFF).values
    assert np.abs(expected).max() > 1e-3
    np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(expected).max())
    assert np.abs(found - eap(model, [batch], LOGIT_DIFF).values).max() > 1e-3 * np.abs(expected).max()


def test_rules_that_change_nothing_are_the_gradient(llama):
    model, _ = llama
    batch = pair_of_prompts()
    plain = eap(model, [batch], LOGIT_DIFF).values
    np.testing.assert_allclose(eap(model.under(PLAIN), [batch], LOGIT_DIFF).values, plain, atol=1e-9)


def test_attention_weights_are_constants_to_relp(llama):
    model, _ = llama
    values = score(model, [pair_of_prompts()], LOGIT_DIFF, Scoring("relp")).values
    n, n_heads = model.graph.n_layers, model.graph.n_heads
    starts = [model.graph.head_slots_of(layer).start for layer in range(n)]
    queries_and_keys = [start + i for start in starts for i in range(2 * n_heads)]
    assert not values[:, queries_and_keys].any()
    assert score(model, [pair_of_prompts()], LOGIT_DIFF, Scoring("gim")).values[:, queries_and_keys].any()


@pytest.mark.parametrize("method", RULES)
def test_scores_come_in_parts(method, llama):
    model, _ = llama
    whole = score(model, [pair_of_prompts()], LOGIT_DIFF, Scoring(method)).values
    parts = score_parts(model, [pair_of_prompts()], LOGIT_DIFF, Scoring(method), by="row")
    np.testing.assert_allclose(parts.values.mean(0), whole, atol=1e-5 * np.abs(whole).max())


def test_what_has_no_rules_is_refused_with_what_to_do(family):
    model, _ = family("mixtral")
    with pytest.raises(ModelError, match="mixture of experts, for which there are no backward rules"):
        score(model, [pair_of_prompts()], LOGIT_DIFF, Scoring("gim"))
    with pytest.raises(OptionError, match="kl has zero gradient at the clean run, so one gradient there"):
        score(model, [pair_of_prompts()], METRICS["kl"], Scoring("relp"))


def test_the_model_itself_is_left_alone(llama):
    model, _ = llama
    before = partial(eap, model, [pair_of_prompts()], LOGIT_DIFF)
    first = before().values
    score(model, [pair_of_prompts()], LOGIT_DIFF, Scoring("relp"))
    np.testing.assert_array_equal(before().values, first)
    assert model.rules is None
    assert all(block.rules is None for block in model.blocks)
