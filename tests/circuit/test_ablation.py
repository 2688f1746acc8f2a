from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import DATA
from tests_reference import Reference

from persona_circuits.circuit.attribution import eap, eap_ig, exact
from persona_circuits.circuit.discovery import MeasureOptions, Options, discover, evaluate_on
from persona_circuits.circuit.errors import OptionError, TaskError
from persona_circuits.circuit.evaluation import evaluate
from persona_circuits.circuit.forward import ABLATIONS, effects, make_ablation, mean, optimal, patched_logits, prepare
from persona_circuits.circuit.statistics import PairSample
from persona_circuits.circuit.subgraph import Circuit
from persona_circuits.circuit.task import Span, batches, encode, token_ids, with_swap_rows
from persona_circuits.metrics import METRICS, kl

LOGIT_DIFF = METRICS["logit-diff"]


@pytest.fixture(scope="module")
def reference():
    from transformers import AutoModelForCausalLM

    return Reference(AutoModelForCausalLM.from_pretrained(DATA / "tiny-gpt2"))


@pytest.fixture(scope="module")
def task(tiny_task, tiny64):
    """The tiny pairs with two named parts, and each pair's corrupt prompt with one word changed as the neutral one."""
    pairs = []
    for pair in tiny_task.pairs:
        n = len(token_ids(pair.clean, tiny64))
        spans = (Span("start", 0, 2), Span("end", n - 2, n))
        neutral = tiny_task.pairs[0].clean if n == len(token_ids(tiny_task.pairs[0].clean, tiny64)) else pair.corrupt
        pairs.append(replace(pair, spans=spans, corrupt_spans=spans, neutral=neutral))
    return replace(tiny_task, pairs=tuple(pairs))


@pytest.fixture(scope="module")
def groups(task, tiny64):
    return batches(encode(task, tiny64), 3, "cpu")


def made(name, model, groups):
    return optimal(model, groups, steps=5, n_prompts=4) if name == "optimal" else make_ablation(name, model, groups)


@pytest.mark.parametrize("name", ABLATIONS)
@pytest.mark.parametrize("share", [0.03, 0.5, 0.95])
def test_circuits_under_every_ablation_equal_the_edge_by_edge_reference(tiny64, groups, reference, name, share):
    """Nodes that read ablated values only are among them: what they write is computed, not taken from another run."""
    ablation = made(name, tiny64, groups)
    wpe = reference.weights["transformer.wpe.weight"]
    for item in [prepare(tiny64, batch, ablation) for batch in groups][::2]:
        values = dict(zip([str(node) for node in tiny64.graph.src_nodes], item.ablated.contributions, strict=True))
        values["input"] = values["input"] - wpe[: item.batch.clean.shape[1]]
        masks = [
            tiny64.graph.valid & (np.random.default_rng(s).random(tiny64.graph.valid.shape) < share) for s in (0, 1)
        ]
        ours = patched_logits(tiny64, item, torch.from_numpy(np.stack(masks)))
        for mask, logits in zip(masks, ours, strict=True):
            cut = Circuit(tiny64.graph, mask).complement()
            theirs = reference.run(item.batch.clean, values, {str(edge): 0.0 for edge in cut.edges()})["logits"]
            torch.testing.assert_close(logits, theirs, atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("name", ABLATIONS)
def test_a_circuit_costs_the_same_alone_and_among_others(tiny64, groups, name):
    """What is not run must not depend on which circuits share the pass."""
    item = prepare(tiny64, groups[0], made(name, tiny64, groups))
    small = Circuit.of(tiny64.graph, ["m0->a2.h1<v>", "a2.h1->logits", "a1.h0->m1", "m1->logits"]).mask
    empty, full = Circuit.empty(tiny64.graph).mask, Circuit.full(tiny64.graph).mask
    together = patched_logits(tiny64, item, torch.from_numpy(np.stack([small, empty, full])))
    for mask, logits in zip((small, empty, full), together, strict=True):
        torch.testing.assert_close(
            patched_logits(tiny64, item, torch.from_numpy(mask[None].copy()))[0], logits, atol=1e-10, rtol=1e-9
        )
    torch.testing.assert_close(together[1], item.ablated.logits, atol=1e-10, rtol=1e-9)
    torch.testing.assert_close(together[2], item.clean.logits, atol=1e-10, rtol=1e-9)


def test_zero_leaves_positions_and_biases_only(tiny64, groups, reference):
    item = prepare(tiny64, groups[0], make_ablation("zero", tiny64, groups))
    assert not item.ablated.contributions[1:].any()
    n = item.batch.clean.shape[1]
    wpe = reference.weights["transformer.wpe.weight"][:n]
    torch.testing.assert_close(item.ablated.contributions[0], wpe.expand_as(item.ablated.contributions[0]))
    biases = sum(reference.weights[f"transformer.h.{layer}.attn.c_proj.bias"] for layer in range(3))
    torch.testing.assert_close(item.ablated.streams[-1][0], wpe + biases, atol=1e-12, rtol=1e-9)


def test_means_are_over_all_prompts_of_either_side_per_position_from_the_end(tiny64, task, groups, reference):
    item = prepare(tiny64, groups[0], mean(tiny64, groups))
    n = item.batch.clean.shape[1]
    for name in ("input", "a1.h2", "m2"):
        total, count = torch.zeros(n, 32, dtype=torch.float64), torch.zeros(n)
        for pair in task.pairs:
            for text in (pair.clean, pair.corrupt):
                values = reference.plain(torch.tensor([token_ids(text, tiny64)]))[name][0]
                width = min(n, len(values))
                total[n - width :] += values[-width:]
                count[n - width :] += 1
        ours = item.ablated.contributions[[str(x) for x in tiny64.graph.src_nodes].index(name)][0]
        if name == "input":
            ours = ours - reference.weights["transformer.wpe.weight"][:n]
        torch.testing.assert_close(ours, total / count[:, None], atol=1e-12, rtol=1e-9)


def test_span_means_are_one_vector_for_all_positions_of_a_part(tiny64, task, groups, reference):
    item = prepare(tiny64, groups[-1], make_ablation("span-mean", tiny64, groups))
    values = [reference.plain(torch.tensor([token_ids(pair.clean, tiny64)]))["m1"][0] for pair in task.pairs]
    ours = item.ablated.contributions[[str(x) for x in tiny64.graph.src_nodes].index("m1")][0]
    torch.testing.assert_close(
        ours[:2], torch.cat([v[:2] for v in values]).mean(0).expand(2, -1), atol=1e-12, rtol=1e-9
    )
    torch.testing.assert_close(
        ours[-2:], torch.cat([v[-2:] for v in values]).mean(0).expand(2, -1), atol=1e-12, rtol=1e-9
    )
    rest = torch.cat([v[2:-2] for v in values]).mean(0)
    torch.testing.assert_close(ours[2:-2], rest.expand(len(ours) - 4, -1), atol=1e-12, rtol=1e-9)


def test_learned_constants_keep_the_output_better_than_means_and_no_direction_improves_them(tiny64, groups):
    """The loss is KL(whole || one node replaced); at its minimum every directional derivative is small."""
    first = [groups[0]]
    best = optimal(tiny64, first, steps=300, n_prompts=len(groups[0]))
    clean = prepare(tiny64, groups[0]).clean

    def loss(ablation, src, shift=None):
        item = prepare(tiny64, groups[0], ablation)
        contributions = item.ablated.contributions.clone()
        if shift is not None:
            contributions[src] += shift
        moved = replace(item, ablated=replace(item.ablated, contributions=contributions, idle=None))
        mask = torch.from_numpy(tiny64.graph.valid.copy())
        mask[src] = False
        return float(kl(clean.logits, patched_logits(tiny64, moved, mask[None])[0]).mean())

    by_mean = optimal(tiny64, first, steps=0, n_prompts=len(groups[0]))
    generator = torch.Generator().manual_seed(0)
    for src in (0, 1, 6, 8, tiny64.graph.n_src - 1):
        here = loss(best, src)
        assert here < 0.5 * loss(by_mean, src) + 1e-4
        for _ in range(5):
            step = torch.randn(32, generator=generator, dtype=torch.float64)
            step *= 0.05 * clean.contributions[src].square().mean().sqrt()
            assert loss(best, src, step) > 0.8 * here - 1e-4


def test_neutral_takes_both_sides_to_one_run_so_that_half_the_divergence_is_left(tiny64, task):
    rows = with_swap_rows(encode(task, tiny64))
    prepared = [prepare(tiny64, batch, make_ablation("neutral", tiny64, [])) for batch in batches(rows, 8, "cpu")]
    d, whole = effects(prepared, METRICS["persona-divergence"])
    assert whole == pytest.approx(d / 2, rel=1e-9)
    for item in prepared:
        torch.testing.assert_close(item.ablated.logits, tiny64.logits(item.batch.neutral)[:, -1], atol=1e-10, rtol=1e-9)


@pytest.mark.parametrize("name", ["zero", "mean"])
def test_scores_are_first_order_in_the_ablation(tiny64, groups, name):
    """Where values move only a little towards the ablated ones, EAP is what exact patching finds."""
    ablation = make_ablation(name, tiny64, groups)

    def slightly(model, batch, clean):
        from persona_circuits.circuit.forward import ablated_by

        ablated = ablation(model, batch, clean)
        return ablated_by(model, clean, clean.contributions + 1e-5 * (ablated.contributions - clean.contributions))

    one = groups[:1]
    estimate, truth = (score(tiny64, one, LOGIT_DIFF, ablation=slightly).values for score in (eap, exact))
    valid = tiny64.graph.valid
    assert np.abs(estimate - truth)[valid].max() < 1e-3 * np.abs(truth[valid]).max()
    assert (
        np.abs(eap_ig(tiny64, one, LOGIT_DIFF, ablation=slightly).values - truth)[valid].max()
        < 1e-3 * np.abs(truth[valid]).max()
    )
    np.testing.assert_allclose(
        eap(tiny64, one, LOGIT_DIFF, ablation=slightly).values * 1e5,
        eap(tiny64, one, LOGIT_DIFF, ablation=ablation).values,
        atol=1e-6,
    )


@pytest.mark.parametrize("name", ABLATIONS)
def test_faithfulness_is_normalised_by_what_the_empty_circuit_scores(tiny64, task, groups, name):
    ablation = made(name, tiny64, groups)
    report = evaluate(
        tiny64,
        lambda: (prepare(tiny64, b, ablation) for b in groups),
        LOGIT_DIFF,
        Circuit.full(tiny64.graph),
        PairSample(),
        n_random=0,
    )
    empty = float(
        np.concatenate(
            [LOGIT_DIFF(prepare(tiny64, b, ablation).ablated.logits, prepare(tiny64, b).targets) for b in groups]
        ).mean()
    )
    assert report.m_empty == pytest.approx(empty, abs=1e-9)
    assert report.circuit.ratio_of_means == pytest.approx(1.0, abs=1e-9)
    assert report.complement.ratio_of_means == pytest.approx(0.0, abs=1e-9)


def test_discover_and_evaluate_take_the_same_constants(tiny, task):
    both = replace(task, pairs=tuple(replace(p, split="train" if i < 5 else "test") for i, p in enumerate(task.pairs)))
    options = Options(method="eap", ablation="mean", metric="logit-diff", n_random=1)
    found = discover(tiny, both, options)
    how = MeasureOptions(metric="logit-diff", ablation="mean", n_random=1)
    again = evaluate_on(tiny, both, found.circuit, how, scores=found.scores)
    assert again == found.reports[-1]
    assert found.record["ablation"] == "mean"
    other = evaluate_on(tiny, both, found.circuit, replace(how, ablation="zero"))
    assert other.m_empty != again.m_empty


def test_what_an_ablation_lacks_is_said(tiny64, tiny_task, groups):
    bare = batches(encode(tiny_task, tiny64), 8, "cpu")
    with pytest.raises(TaskError, match="needs a 'neutral' prompt in every pair"):
        prepare(tiny64, bare[0], make_ablation("neutral", tiny64, bare))
    with pytest.raises(TaskError, match="no mean was taken over part"):
        prepare(tiny64, groups[0], make_ablation("span-mean", tiny64, bare))
    with pytest.raises(OptionError, match="--ablation 'none' is not one of corrupt, neutral"):
        make_ablation("none", tiny64, bare)
    shortest, longest = groups[0], groups[-1]
    assert shortest.clean.shape[1] < longest.clean.shape[1]
    with pytest.raises(TaskError, match="the means were taken over prompts of at most"):
        prepare(tiny64, longest, mean(tiny64, [shortest]))
