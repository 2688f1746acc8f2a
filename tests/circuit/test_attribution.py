from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import DATA, pairs_that_begin_alike
from tests_reference import Reference

from persona_circuits.circuit.attribution import (
    Completeness,
    Scoring,
    activation_cost,
    eap,
    eap_by_definition,
    eap_ig,
    exact,
    random_scores,
    score,
    score_parts,
)
from persona_circuits.circuit.discovery import Options, discover
from persona_circuits.circuit.errors import OptionError
from persona_circuits.circuit.forward import first_difference, measure, prepare
from persona_circuits.circuit.graph import Graph
from persona_circuits.circuit.reporting import completeness_lines
from persona_circuits.circuit.subgraph import Circuit
from persona_circuits.circuit.task import batches, encode, token_ids, with_swap_rows
from persona_circuits.metrics import METRICS

LOGIT_DIFF = METRICS["logit-diff"]


def groups(task, model, size=4, *, swap=False):
    rows = encode(task, model)
    return batches(with_swap_rows(rows) if swap else rows, size, "cpu")


def relative_error(ours, theirs):
    return np.abs(ours - theirs).max() / np.abs(theirs).max()


def as_array(graph, scores):
    return np.array([scores[str(edge)] for edge in graph.edges()])


def test_eap_is_the_gradient_with_respect_to_the_edge_mask(tiny64, tiny_task):
    """d m / d alpha at alpha = 1 is (current - corrupt) . gradient, by autograd through an independent forward."""
    from transformers import AutoModelForCausalLM

    reference = Reference(AutoModelForCausalLM.from_pretrained(DATA / "tiny-gpt2"))
    graph = tiny64.graph
    expected = np.zeros(graph.n_edges)
    for batch in groups(tiny_task, tiny64):
        alpha = {str(edge): torch.ones((), dtype=torch.float64, requires_grad=True) for edge in graph.edges()}
        logits = reference.run(batch.clean, reference.plain(batch.corrupt), alpha)["logits"]
        margin = logits.gather(1, batch.answers) - logits.gather(1, batch.wrong_answers)
        margin.sum().backward()
        expected -= np.array([alpha[str(edge)].grad.item() for edge in graph.edges()]) / len(tiny_task.pairs)
    ours = as_array(graph, eap(tiny64, groups(tiny_task, tiny64), LOGIT_DIFF).as_dict())
    assert relative_error(ours, expected) < 1e-10


def test_eap_is_its_definition(tiny64, tiny_task):
    """Each head with a stream of its own, and nothing shared between runs."""
    parts = groups(tiny_task, tiny64, swap=True)
    expected = eap_by_definition(tiny64, parts, LOGIT_DIFF).values
    assert np.abs(expected).max() > 1e-2
    assert relative_error(eap(tiny64, parts, LOGIT_DIFF).values, expected) < 1e-10


@pytest.mark.slow
@pytest.mark.parametrize("metric", ["logit-diff", "kl"])
def test_eap_ig_is_its_definition(tiny64, tiny_task, metric):
    parts = groups(tiny_task, tiny64)
    for rule, points in (("midpoint", (1 / 6, 3 / 6, 5 / 6)), ("authors", (0.0, 1 / 3, 2 / 3))):
        expected = eap_by_definition(tiny64, parts, METRICS[metric], points).values
        found = eap_ig(tiny64, parts, METRICS[metric], steps=3, rule=rule).values
        assert relative_error(found, expected) < 1e-10


def test_eap_is_the_central_difference_of_partial_corruption(tiny64, tiny_task):
    """No autograd anywhere: a tenth of a thousandth of an edge is corrupted, both ways, in the reference."""
    from transformers import AutoModelForCausalLM

    reference = Reference(AutoModelForCausalLM.from_pretrained(DATA / "tiny-gpt2"))
    scores = eap(tiny64, groups(tiny_task, tiny64), LOGIT_DIFF)
    for edge in ("input->a0.h1<k>", "a0.h2->a2.h3<q>", "m0->a1.h0<v>", "a1.h1->m1", "m1->m2", "a2.h0->logits"):
        difference = 0.0
        for batch in groups(tiny_task, tiny64):
            corrupt = reference.plain(batch.corrupt)
            for step in (1e-4, -1e-4):
                logits = reference.run(batch.clean, corrupt, {edge: 1.0 - step})["logits"]
                margin = logits.gather(1, batch.answers) - logits.gather(1, batch.wrong_answers)
                difference += margin.sum().item() / (2 * step) / len(tiny_task.pairs)
        assert scores[edge] == pytest.approx(difference, rel=1e-5, abs=1e-9)


@pytest.mark.parametrize(("name", "folder"), [("tiny", "tiny-gpt2"), ("craftgpt", None)])
def test_eap_equals_auto_circuit(request, frozen, name, folder):
    from persona_circuits.circuit.task import load_task

    model = request.getfixturevalue(name)
    task = load_task(DATA / f"{name}_pairs.json")
    scores = eap(model, groups(task, model), LOGIT_DIFF)
    peer = frozen(f"autocircuit_{name}")
    assert len(peer["scores"]) == model.graph.n_edges
    theirs = np.array([peer["scores"][str(edge)] for edge in model.graph.edges()])
    assert relative_error(as_array(model.graph, scores.as_dict()), theirs) < 1e-5
    prepared = [prepare(model, part) for part in groups(task, model)]
    clean = measure(model, prepared, [Circuit.full(model.graph).mask], LOGIT_DIFF).mean()
    assert clean == pytest.approx(peer["clean_mean"], abs=1e-4)


def test_eap_equals_transformer_lens_own_attribution(tiny64, tiny_task):
    import sys

    sys.path.insert(0, str(DATA.parent.parent / "benchmarks" / "peers"))
    from transformerlens_scores import transformerlens_eap

    prompts = [
        {"clean": p.clean, "corrupt": p.corrupt, "answers": list(p.answers), "wrong_answers": list(p.wrong_answers)}
        for p in tiny_task.pairs
    ]
    theirs = transformerlens_eap(DATA / "tiny-gpt2", prompts, dtype="float64")
    ours = as_array(tiny64.graph, eap(tiny64, groups(tiny_task, tiny64), LOGIT_DIFF).as_dict())
    assert relative_error(ours, as_array(tiny64.graph, theirs)) < 1e-9


@pytest.mark.slow
@pytest.mark.parametrize("metric", ["persona-divergence", "kl", "prob-diff"])
def test_ig_scores_of_input_edges_sum_to_the_change_of_the_metric(tiny64, tiny_task, metric):
    metric = METRICS[metric]
    parts = groups(tiny_task, tiny64, swap=metric.swap_rows)
    values = measure(
        tiny64,
        [prepare(tiny64, part) for part in parts],
        [Circuit.full(tiny64.graph).mask, Circuit.empty(tiny64.graph).mask],
        metric,
    ).mean(axis=1)
    gap = {}
    for rule in ("midpoint", "authors"):
        scores = eap_ig(tiny64, parts, metric, steps=40, rule=rule)
        gap[rule] = abs(scores.values[0].sum() - (values[1] - values[0]))
    assert gap["midpoint"] < 1e-3 * abs(values[1] - values[0])
    assert gap["midpoint"] < gap["authors"]


@pytest.mark.slow
@pytest.mark.parametrize("ablation", ["corrupt", "neutral"])
def test_completeness_is_an_independent_sum_and_closes_with_the_steps(tiny64, tiny_task, ablation):
    """The names of edges, and Hugging Face's own logits, against what discover prints."""
    pairs = tuple(replace(pair, neutral=pair.clean.replace(" happy", " calm")) for pair in tiny_task.pairs)
    task, gaps = replace(tiny_task, pairs=pairs), []
    effect = np.mean([margin_of(tiny64, p, getattr(p, ablation)) - margin_of(tiny64, p, p.clean) for p in task.pairs])
    for steps in (1, 5, 40):
        options = Options(metric="logit-diff", ablation=ablation, steps=steps, n_random=0)
        found = discover(tiny64, task, options)
        by_name = found.scores.as_dict()
        total = sum(score for edge, score in by_name.items() if edge.startswith("input->"))
        summed = found.completeness
        assert summed.attributed == pytest.approx(total, rel=1e-12)
        assert summed.effect == pytest.approx(effect, rel=1e-9)
        assert summed.gap == pytest.approx(abs(total - effect) / abs(effect), rel=1e-9)
        assert found.record["method"]["completeness"] == summed.as_dict()
        gaps.append(summed.gap)
    assert gaps[0] > gaps[1] > 10 * gaps[2]
    assert gaps[2] < 0.01


def margin_of(model, pair, text):
    logits = model.bridge.original_model(torch.tensor([token_ids(text, model)])).logits[0, -1]
    answer, wrong = (token_ids(words[0], model)[-1] for words in (pair.answers, pair.wrong_answers))
    return float(logits[answer] - logits[wrong])


def test_completeness_says_where_it_does_not_hold(tiny, tiny_task):
    how = {"metric": "logit-diff", "n_random": 0, "steps": 1}
    zero = discover(tiny, tiny_task, Options(ablation="zero", **how))
    assert (zero.completeness.effect, zero.completeness.gap) == (None, None)
    assert "--ablation zero changes more than the embeddings" in completeness_lines(zero.completeness)[0]
    assert discover(tiny, tiny_task, Options(method="eap", **how | {"steps": 5})).completeness is None
    first, *others = tiny_task.pairs
    longer = replace(tiny_task, pairs=(replace(first, clean=first.clean.replace(" ", " very ", 1)), *others))
    uneven = discover(tiny, longer, Options(align="right", **how))
    assert "unequal length" in uneven.completeness.reason


def test_a_wide_gap_is_warned_of_with_what_to_do():
    near, far = (Completeness(5, -1.0, -1.0 - gap, gap) for gap in (0.049, 0.06))
    assert len(completeness_lines(near)) == 1
    (line, warning) = completeness_lines(far)
    assert "6.0% off with 5 steps" in line
    assert "use --steps 20 or more" in warning


def test_ig_with_the_authors_rule_starts_at_the_corrupt_end(tiny, tiny_task):
    """One step of it is the gradient at the corrupt run: EAP of the swapped pair with the sign turned."""
    from dataclasses import replace

    parts = groups(tiny_task, tiny)
    turned = [replace(part, clean=part.corrupt, corrupt=part.clean) for part in parts]
    ours = eap_ig(tiny, parts, LOGIT_DIFF, steps=1, rule="authors").values
    np.testing.assert_allclose(ours, -eap(tiny, turned, LOGIT_DIFF).values, atol=1e-5)


@pytest.mark.slow
def test_exact_is_one_patched_pass_per_edge(tiny64, tiny_task):
    parts = groups(tiny_task, tiny64)
    scores = exact(tiny64, parts, LOGIT_DIFF)
    prepared = [prepare(tiny64, part) for part in parts]
    edges = list(tiny64.graph.edges())[::23]
    masks = [Circuit.of(tiny64.graph, [edge]).complement().mask for edge in edges]
    whole = measure(tiny64, prepared, [Circuit.full(tiny64.graph).mask], LOGIT_DIFF).mean()
    np.testing.assert_allclose(
        [scores[edge] for edge in edges], measure(tiny64, prepared, masks, LOGIT_DIFF).mean(axis=1) - whole, atol=1e-10
    )


def test_exact_equals_eap_on_a_linear_model(linear):
    """Uniform attention, linear MLPs, and norms whose scale hardly moves: nothing is left to differ."""
    model, task = linear
    parts = groups(task, model)
    first_order, whole = eap(model, parts, LOGIT_DIFF).values, exact(model, parts, LOGIT_DIFF).values
    assert np.abs(whole).max() > 1e-3
    assert relative_error(first_order, whole) < 1e-3


@pytest.mark.slow
def test_exact_differs_from_eap_on_a_model_that_is_not_linear(tiny64, tiny_task):
    parts = groups(tiny_task, tiny64)
    assert relative_error(eap(tiny64, parts, LOGIT_DIFF).values, exact(tiny64, parts, LOGIT_DIFF).values) > 0.05


@pytest.mark.slow
@pytest.mark.parametrize("method", ["eap", "eap-ig", "exact"])
def test_scores_do_not_depend_on_the_batch_size(tiny64, tiny_task, method):
    one, many = (
        score(tiny64, groups(tiny_task, tiny64, size), LOGIT_DIFF, Scoring(method, 3)).values for size in (1, 8)
    )
    np.testing.assert_allclose(one, many, atol=1e-10)


def test_swapped_rows_cancel_a_prior(tiny64, tiny_task):
    """The sum of scores over both directions does not change when a constant is added to every answer's logit."""
    parts = groups(tiny_task, tiny64, swap=True)
    before = eap(tiny64, parts, METRICS["persona-divergence"]).values
    np.testing.assert_allclose(eap(tiny64, parts, LOGIT_DIFF).values, before, atol=0)
    values = measure(tiny64, [prepare(tiny64, p) for p in parts], [Circuit.full(tiny64.graph).mask], LOGIT_DIFF)[0]
    plain = groups(tiny_task, tiny64)
    both = measure(
        tiny64,
        [prepare(tiny64, p) for p in plain],
        [Circuit.full(tiny64.graph).mask, Circuit.empty(tiny64.graph).mask],
        LOGIT_DIFF,
    )
    np.testing.assert_allclose(values.reshape(-1, 2).mean(axis=1), (both[0] - both[1]) / 2, atol=1e-10)


def test_no_difference_between_the_prompts_scores_nothing(tiny, tiny_task):
    from dataclasses import replace

    parts = [replace(part, corrupt=part.clean) for part in groups(tiny_task, tiny)]
    for method in ("eap", "eap-ig", "exact"):
        assert np.abs(score(tiny, parts, LOGIT_DIFF, Scoring(method)).values).max() < 1e-6


def test_plain_eap_refuses_kl_and_says_what_to_do(tiny, tiny_task):
    with pytest.raises(OptionError, match="use --method eap-ig"):
        eap(tiny, groups(tiny_task, tiny), METRICS["kl"])


@pytest.mark.parametrize(
    ("options", "says"),
    [({"steps": 0}, "at least one step"), ({"rule": "simpson"}, "simpson"), ({"method": "magic"}, "magic")],
)
def test_options_that_make_no_sense(tiny, tiny_task, options, says):
    with pytest.raises(OptionError, match=says):
        score(tiny, groups(tiny_task, tiny), LOGIT_DIFF, Scoring(**options))


def test_random_scores_are_seeded():
    graph = Graph(2, 2)
    assert (random_scores(graph, seed=1).values == random_scores(graph, seed=1).values).all()
    assert (random_scores(graph, seed=1).values != random_scores(graph, seed=2).values).any()


def test_progress_is_reported_to_the_end(tiny, tiny_task):
    for method in ("eap", "eap-ig", "exact"):
        seen = []
        score(tiny, groups(tiny_task, tiny), LOGIT_DIFF, Scoring(method), progress=lambda *a, seen=seen: seen.append(a))
        assert seen[-1][0] == seen[-1][1] > 0


@pytest.fixture(scope="module")
def linear():
    """A two-layer GPT-2 in float64 whose only nonlinearity, the norms' scale, is swamped by a constant."""
    from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel

    from persona_circuits.circuit.model import wrap_model
    from persona_circuits.circuit.task import load_task

    tokenizer = AutoTokenizer.from_pretrained(DATA / "tiny-gpt2")
    config = GPT2Config(
        n_layer=2, n_head=2, n_embd=16, vocab_size=len(tokenizer), n_positions=32, activation_function="linear",
        tie_word_embeddings=False, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    torch.manual_seed(0)
    network = GPT2LMHeadModel(config).double()
    with torch.no_grad():
        for block in network.transformer.h:
            block.attn.c_attn.weight[:, :32] = 0.0
            block.attn.c_attn.weight[:, 32:].normal_(std=0.5)
            block.mlp.c_fc.weight.normal_(std=0.3)
        network.transformer.wte.weight.normal_()
        network.lm_head.weight.normal_()
        network.transformer.wpe.weight[:, 0], network.transformer.wpe.weight[:, 1] = 1e3, -1e3
        for name, norm in network.named_parameters():
            if "ln_" in name and name.endswith("weight"):
                norm.fill_(1e3 * (2 / 16) ** 0.5)
    return wrap_model(network, tokenizer, name="linear"), load_task(DATA / "tiny_pairs.json")


@pytest.mark.parametrize("max_bytes", [1, 50_000, 1 << 28])
def test_scores_do_not_depend_on_the_bound_on_memory(tiny64, tiny_task, max_bytes):
    expected = eap(tiny64, groups(tiny_task, tiny64), LOGIT_DIFF).values
    found = eap(tiny64, groups(tiny_task, tiny64), LOGIT_DIFF, max_bytes=max_bytes).values
    np.testing.assert_allclose(found, expected, atol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("worth", [1, 1 << 30])
@pytest.mark.parametrize("swap", [False, True])
def test_scores_do_not_depend_on_what_is_run_once(tiny64, tiny_task, monkeypatch, worth, swap):
    """Positions that both prompts share: a pass of their own, the corrupt prompts' run, or each prompt's own."""
    together = [*groups(tiny_task, tiny64, 8, swap=swap), pairs_that_begin_alike(50)]
    methods = (eap, eap_ig, lambda *a: score_parts(*a, Scoring("eap"), by="row").total())
    with monkeypatch.context() as patch:
        patch.setattr("persona_circuits.circuit.attribution.methods.first_difference", lambda *_: 0)
        expected = [method(tiny64, together, LOGIT_DIFF).values for method in methods]
    monkeypatch.setattr("persona_circuits.circuit.forward.plain.WORTH_A_PASS", worth)
    for method, whole in zip(methods, expected, strict=True):
        assert np.abs(whole).max() > 1e-3
        np.testing.assert_allclose(method(tiny64, together, LOGIT_DIFF).values, whole, atol=1e-7 * np.abs(whole).max())


def test_a_layer_that_lies_elsewhere_gives_the_same(tiny64, tiny_task, monkeypatch):
    """What is written into place where a layer's weights are at hand is copied there where they are not."""
    batch = groups(tiny_task, tiny64, 8)[0]
    masks = [tiny64.graph.valid & (np.random.default_rng(i).random(tiny64.graph.valid.shape) < 0.5) for i in range(2)]

    def values():
        return eap(tiny64, [batch], LOGIT_DIFF).values, measure(tiny64, [prepare(tiny64, batch)], masks, LOGIT_DIFF)

    expected = values()
    monkeypatch.setattr(type(tiny64.blocks[0]), "_plain", lambda *_: False)
    for found, wanted in zip(values(), expected, strict=True):
        np.testing.assert_allclose(found, wanted, atol=1e-10)


def test_shared_positions_are_run_once(tiny, tiny_task, monkeypatch):
    """As many positions as every way needs, counted in the first layer's MLP."""
    ran = []
    block = type(tiny.blocks[0])
    original = block.mlp

    def counted(self, x):
        if self.layer == 0:
            ran.append(x.shape[:-1].numel())
        return original(self, x)

    monkeypatch.setattr(block, "mlp", counted)
    alone = pairs_that_begin_alike(50, rows=4, length=9, shared=3)
    clean, corrupt = torch.cat([alone.clean, alone.corrupt]), torch.cat([alone.corrupt, alone.clean])
    swapped = replace(
        alone,
        indices=tuple(range(8)),
        clean=clean,
        corrupt=corrupt,
        answers=alone.answers.repeat(2, 1),
        wrong_answers=alone.wrong_answers.repeat(2, 1),
    )
    assert first_difference(alone, None) == first_difference(swapped, None) == 3
    for method, batch, worth, expected in (
        (eap, alone, 1 << 30, [4 * 9, 4 * 6]),  # corrupt, clean
        (eap, alone, 1, [3, 4 * 6, 4 * 6]),  # what all share, clean, corrupt
        (eap, swapped, 1 << 30, [8 * 9]),
        (eap, swapped, 1, [3, 8 * 6]),
        (lambda *a: eap_ig(*a, steps=2), alone, 1, [4 * 9, *[4 * 6] * 3]),  # clean, corrupt, two between
        (lambda *a: eap_ig(*a, steps=2), swapped, 1, [8 * 9, *[8 * 6] * 2]),
    ):
        monkeypatch.setattr("persona_circuits.circuit.forward.plain.WORTH_A_PASS", worth)
        ran.clear()
        method(tiny, [batch], LOGIT_DIFF)
        assert ran == expected


def test_the_bound_on_memory_bounds_the_gradients_held_at_a_time(tiny, tiny_task, monkeypatch):
    held = []
    block = type(tiny.blocks[0])
    original = block.slot_gradients

    def watched(self, gradients, along, x, out, start):
        held.append(len(out))
        original(self, gradients, along, x, out, start)

    monkeypatch.setattr(block, "slot_gradients", watched)
    for max_bytes, most in ((1, 1), (1 << 28, 3 * tiny.graph.n_heads)):
        held.clear()
        eap(tiny, groups(tiny_task, tiny), LOGIT_DIFF, max_bytes=max_bytes)
        assert max(held) == most


class OnePlus(torch.nn.Module):
    """A root-mean-square norm whose factor is one more than its weight, as Gemma's."""

    def __init__(self, size):
        super().__init__()
        self.eps, self.weight = 0.1, torch.nn.Parameter(torch.zeros(size, dtype=torch.float64))

    def forward(self, x):
        return torch.nn.functional.rms_norm(x, x.shape[-1:], 1 + self.weight, self.eps)


class Wrapped(torch.nn.Module):
    """As the host library holds a norm."""

    def __init__(self, module):
        super().__init__()
        self.original_component = module

    def forward(self, x):
        return self.original_component(x)


@pytest.mark.parametrize("kind", ["LayerNorm", "RMSNorm", "one plus", "other"])
def test_a_norm_taken_back_by_its_form_is_the_norm_taken_back_by_autograd(kind):
    from persona_circuits.circuit.model import Pullback

    norms = {
        "LayerNorm": torch.nn.LayerNorm(12, eps=0.1, dtype=torch.float64),
        "RMSNorm": torch.nn.RMSNorm(12, eps=0.1, dtype=torch.float64),
        "one plus": OnePlus(12),
        "other": torch.nn.Tanh(),
    }
    module = norms[kind]
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter)
    form = Pullback.of(Wrapped(module), 12, torch.zeros(1, dtype=torch.float64))
    if kind == "other":
        assert form is None
        return
    x, gradient = torch.randn(2, 3, 12, dtype=torch.float64), torch.randn(2, 3, 5, 4, dtype=torch.float64)
    weights, bias = torch.randn(5, 12, 4, dtype=torch.float64), torch.randn(5, 4, dtype=torch.float64)

    def project(_slot, normed):
        return torch.einsum("bpd,hdk->bphk", normed, weights) + bias

    block = SimpleNamespace(attn_norm=module, project=project, weights=dict.fromkeys("qkv", weights))
    form = form.of_projections(block)
    each = x[:, :, None].expand(2, 3, 5, 12).clone().requires_grad_()
    projected = torch.einsum("bphd,hdk->bphk", module(each), weights) + bias
    expected = torch.autograd.grad(projected, each, gradient)[0].permute(2, 0, 1, 3)
    along = form.along("k", gradient, project("k", module(x)))
    for some in (slice(0, 5), slice(1, 3)):
        out = torch.empty_like(expected[some])
        form.write("k", gradient[:, :, some], along[:, :, some], form.parts(x), weights[some], out, some)
        torch.testing.assert_close(out, expected[some])


def test_short_activations_say_what_they_cost(tiny, tiny64, tiny_task):
    batch = groups(tiny_task, tiny)[0]
    same = activation_cost(tiny, batch, LOGIT_DIFF, Scoring("eap"))
    assert (same.correlation, same.largest) == (pytest.approx(1.0), 0.0)
    cost = activation_cost(tiny, batch, LOGIT_DIFF, Scoring("eap-ig", 2, activations="bfloat16"))
    assert 0.9 < cost.correlation < 1.0
    assert 0.0 < cost.largest < 0.3
    with pytest.raises(OptionError, match="needs --dtype float32"):
        score(tiny64, [batch], LOGIT_DIFF, Scoring("eap", activations="bfloat16"))
    with pytest.raises(OptionError, match="is not one of float32, bfloat16"):
        score(tiny, [batch], LOGIT_DIFF, Scoring("eap", activations="int8"))
