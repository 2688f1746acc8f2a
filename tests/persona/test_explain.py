"""Verdicts, their numbers and causal tests: against planted causes, slow computations, and the world's generator."""

import dataclasses
import json
import math
import re

import numpy as np
import pytest
import torch
from conftest import CRAFTGPT, DATA, ROOT
from scipy.stats import hypergeom
from sklearn.metrics import cohen_kappa_score
from typer.testing import CliRunner

from persona_circuits.circuit.errors import FileError, OptionError, TaskError
from persona_circuits.circuit.model import load_model
from persona_circuits.circuit.storage import Kept
from persona_circuits.circuit.task import Task, encode
from persona_circuits.models.planted import OPTIONS, planted_models, write_planted
from persona_circuits.persona.data import load_items
from persona_circuits.persona.explanation import (
    NO_EFFECT,
    TESTS,
    VERDICTS,
    Asked,
    ExplainOptions,
    Numbers,
    Verdict,
    agreement,
    beyond_asking,
    confusion_rows,
    expected_of,
    explain,
    explain_figures,
    explain_record,
    fits,
    flip_gain,
    judge,
    load_thresholds,
    look_inside,
    run_test,
    write_explanation,
)
from persona_circuits.persona.explanation import causal as explain_causal
from persona_circuits.persona.explanation import runs as explain_runs

PLANTED = {planted.name: planted for planted in planted_models()}
LIMITS = load_thresholds()
QUICK = {"n_resamples": 50}
DATASETS = ROOT / "datasets"


def call(*arguments):
    from persona_circuits.cli import app

    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def lines(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize(("causal", "seconds"), [(True, "15 s"), (False, "7.6 s")])
def test_it_says_beforehand_how_long_it_takes(tmp_path, monkeypatch, causal, seconds):
    """Asking takes two seconds here, by a clock of the test's own."""
    from persona_circuits.circuit.progress import untold

    times, told = iter([10.0, 12.0]), []
    monkeypatch.setattr("time.monotonic", lambda: next(times, 12.0))
    path = lines(tmp_path / "pairs.jsonl", rows_of(PLANTED["copy"].pairs[:4]))
    options = ExplainOptions(("pair",), causal=causal, **QUICK)
    stage = lambda name: (told.append(name), untold)[1]  # noqa: E731
    explain(PLANTED["copy"].model(), load_items(path), options=options, stage=stage)
    assert told[:2] == ["asking", f"looking inside; with all tests, about {seconds}"]


def test_a_paraphrase_is_counted_with_the_tests_that_it_is_put_to(tmp_path):
    pairs = PLANTED["copy"].pairs
    rows = rows_of(pairs[:1]) + rows_of(pairs[1:2], control="paraphrase")
    pair, alike = load_items(lines(tmp_path / "pairs.jsonl", rows)).items
    whole, half, untested = beyond_asking([pair]), beyond_asking([pair, alike]), beyond_asking([alike], causal=False)
    assert half - untested == pytest.approx(2 * (whole - untested))  # three tests and one, over two pairs


def rows_of(pairs, **more):
    keys = ("id", "clean", "corrupt", "answers", "wrong_answers", "persona_a", "persona_b", "question")
    return [{**{key: getattr(pair, key) for key in keys}, "candidates": OPTIONS, **more} for pair in pairs]


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    """A planted model and its explanation, made once."""
    made = {}

    def of(name):
        if name not in made:
            model = PLANTED[name].model()
            path = lines(tmp_path_factory.mktemp(name) / "pairs.jsonl", rows_of(PLANTED[name].pairs))
            made[name] = model, explain(model, load_items(path), options=ExplainOptions(("pair",), **QUICK))
        return made[name]

    return of


@pytest.fixture(scope="module")
def tiny_inside(tiny64, tiny_task):
    """What is inside the tiny model, and its rows."""
    rows = encode(tiny_task, tiny64)
    return rows, look_inside(tiny64, rows, batch_size=3)


def both_of(model, rows, gradients=True):
    """Each row in a batch of its own."""
    return [next(explain_runs.both_runs(model, [row], 1, gradients=gradients)) for row in rows]


# The planted causes


@pytest.mark.parametrize("name", PLANTED)
def test_the_verdict_is_the_planted_cause_and_the_causal_test_agrees(planted, name):
    _, found = planted(name)
    assert {row.verdict.name for row in found.pairs} == {PLANTED[name].cause}
    assert [(row.outcome.test, row.outcome.agrees) for row in found.pairs] == [
        (TESTS[PLANTED[name].cause], True) for _ in found.pairs
    ]
    assert found.overall.verdict == PLANTED[name].cause
    assert len(found.groups) == len(found.pairs) == found.overall.agree


def test_the_ablation_stands_beside_random_nodes_of_the_same_layers(planted):
    """In the planted cancellation the opposing nodes are the only ones whose absence restores D."""
    model, found = planted("cancel")
    (test,) = [one for one in found.tests.values() if one.test == "ablation"]
    assert test.random_share < 0.5 < test.agree / test.ran == 1.0
    row = found.pairs[0].outcome
    assert row.says["D without"] > row.says["D without random"]
    chosen = torch.zeros(3, model.graph.n_src, dtype=torch.bool)
    layers = torch.tensor([node.layer for node in model.graph.src_nodes])
    chosen[0, 1], chosen[1, [1, 3]], chosen[2, 0] = True, True, True
    drawn = [explain_causal._alike(chosen, layers, [4, 5, 6], draw) for draw in range(20)]
    for one in drawn:
        for row, own in zip(one, chosen, strict=True):
            assert layers[row].tolist() == layers[own].tolist()
    assert len({tuple(one[0].tolist()) for one in drawn}) > 1
    assert torch.equal(drawn[0][[1]], explain_causal._alike(chosen[[1]], layers, [5], 0))  # whatever the batch


@pytest.mark.parametrize("name", PLANTED)
def test_so_it_is_for_the_files_as_they_are_written(tmp_path, name):
    write_planted(PLANTED[name], tmp_path / name)
    found = explain(
        PLANTED[name].model(),
        load_items(tmp_path / name / "pairs.jsonl"),
        options=ExplainOptions(causal=False, **QUICK),
    )
    assert {row.verdict.name for row in found.pairs} == {PLANTED[name].cause}
    assert all(row.outcome.agrees is None and row.outcome.why == "not asked for" for row in found.pairs)
    assert found.overall.not_run == len(found.pairs)


AGREE = {
    "patching": {"copy", "two-hop", "keys", "saturated"},
    "ablation": {"cancel"},
    "nearness": {"weak"},
    "steering": {"bottleneck", "weak", "cancel"},
}


@pytest.mark.parametrize("test", AGREE)
def test_a_causal_test_agrees_where_its_cause_is_and_hardly_elsewhere(planted, test):
    """Steering also works where D is small for another cause and grows too slowly; ``gain`` is below."""
    agreed = set()
    for name in PLANTED:
        model, found = planted(name)
        outcomes = run_test(model, test, asked_of(model, found), LIMITS)
        assert len({outcome.agrees for outcome in outcomes}) == 1
        agreed |= {name} if outcomes[0].agrees else set()
    assert agreed == AGREE[test]


def asked_of(model, found):
    rows = encode(Task(tuple(row.item.pair for row in found.pairs), "the pairs", ""), model)
    ids = [model.tokenizer(option)["input_ids"][0] for option in OPTIONS]
    restored = LIMITS.restored(None)
    return [
        Asked(row, tuple(ids), one.inside, one.flip_gain, restored) for row, one in zip(rows, found.pairs, strict=True)
    ]


def test_no_gain_parts_a_saturated_reader_but_the_predicted_one_parts_a_linear_one(planted):
    model, found = planted("bottleneck")
    blocked = run_test(model, "gain", asked_of(model, found), LIMITS)
    assert not any(outcome.agrees for outcome in blocked)
    assert all(outcome.says["agrees in the final stream"] for outcome in blocked)
    model, found = planted("prior")
    assert all(outcome.agrees for outcome in run_test(model, "gain", asked_of(model, found), LIMITS))
    wrong = [
        dataclasses.replace(one, flip_gain=gain * one.flip_gain) for one in asked_of(model, found) for gain in (0.5, 2)
    ]
    assert not any(outcome.agrees for one in wrong for outcome in run_test(model, "gain", [one], LIMITS))


def test_raised_attention_does_what_a_late_placement_does(planted):
    """The weak model's own control: the same personas named after the question."""
    model, found = planted("weak")
    late = PLANTED["weak"].control_pairs
    assert all(pair.clean.index("which") < pair.clean.index(pair.persona_a) for pair in late)
    rows = encode(Task(late, "late", ""), model)
    restored = [one.divergence for one in _measures(model, late)]
    assert min(restored) > LIMITS.restored(None)
    seen = look_inside(model, rows)
    assert all(inside.slope / d < LIMITS.access for inside, d in zip(seen, restored, strict=True))
    for row in found.pairs:
        assert row.numbers.access == pytest.approx(1, abs=0.1)
        assert row.outcome.says["D at 8"] > LIMITS.restored(None) > row.measure.divergence


def _measures(model, pairs):
    from persona_circuits.persona.behaviour import measure_pairs
    from persona_circuits.persona.data.items import Item

    return measure_pairs(model, [Item(pair, OPTIONS, {}) for pair in pairs])


def test_paraphrases_that_shrink_with_the_cause_do_not_hide_it(tmp_path):
    """Two words of one persona in the cancelling model: D is above that null, but small, and kappa is high."""
    pairs = PLANTED["cancel"].pairs
    swap = {"minimalist": "ascetic", "lavish": "opulent", "ascetic": "frugal", "opulent": "spendthrift"}
    controls = [
        dataclasses.replace(pair, id=f"p{pair.id}", corrupt=pair.clean.replace(word, swap[word]))
        for pair in pairs
        for word in swap
        if word in pair.clean.split()
    ]
    found = explain(
        PLANTED["cancel"].model(),
        load_items(lines(tmp_path / "pairs.jsonl", rows_of(pairs))),
        controls=load_items(lines(tmp_path / "controls.jsonl", rows_of(controls, control="paraphrase"))),
        options=ExplainOptions(**QUICK),
    )
    assert found.null.n == len(controls) > 2
    assert all(row.measure.divergence > row.numbers.null == 2 * found.null.sigma_0 for row in found.pairs)
    assert {row.verdict.name for row in found.pairs} == {"cancellation"}


# The numbers


def test_contributions_are_those_of_a_norm_that_is_written_out_and_add_up_to_the_divergence(tiny64, tiny_inside):
    rows, found = tiny_inside
    network = tiny64.bridge.original_model
    weight, gain = network.lm_head.weight.detach(), network.transformer.ln_f.weight.detach()
    for row, inside, both in zip(rows, found, both_of(tiny64, rows), strict=True):
        want = 0
        for run, sign in zip(both.runs, (1, -1), strict=True):
            final = run.streams[-1][0, -1]
            scale = (final.var(unbiased=False) + network.transformer.ln_f.eps).sqrt()
            side = [weight[list(ids)].mean(0) for ids in (row.answers, row.wrong_answers)]
            parts = run.contributions[:, 0, -1]
            want = want + sign * ((parts - parts.mean(-1, keepdim=True)) / scale * gain) @ (side[0] - side[1])
        assert inside.contributions == pytest.approx(want.tolist(), abs=1e-8)
        assert abs(inside.conservation) < 1e-8
        d = margin(tiny64, row.clean, row) - margin(tiny64, row.corrupt, row)
        assert sum(inside.contributions) + inside.remainder == pytest.approx(d, abs=1e-8)
        assert inside.sides == pytest.approx((float(want.clamp(min=0).sum()), float(want.clamp(max=0).sum())))
        assert inside.cancellation == pytest.approx(1 - abs(want.sum()) / want.abs().sum())


def margin(model, tokens, row):
    """By the host's own forward pass."""
    logits = model.logits(torch.tensor([tokens]))[0, -1]
    return (logits[list(row.answers)].mean() - logits[list(row.wrong_answers)].mean()).item()


def test_alignment_is_that_of_a_gradient_by_finite_differences(tiny64, tiny_inside):
    rows, found = tiny_inside
    row, inside, both = rows[0], found[0], both_of(tiny64, rows[:1])[0]
    for layer in range(4):
        gradient = torch.zeros(tiny64.d_model)
        for run in both.runs:
            for axis in range(tiny64.d_model):
                ends = []
                for step in (1e-5, -1e-5):
                    stream = run.streams[layer].clone()
                    stream[0, -1, axis] += step
                    logits = explain_runs.replay(tiny64, stream, run.context, layer=layer)
                    ends.append(explain_runs.margins(logits, both.batch).item())
                gradient[axis] += (ends[0] - ends[1]) / 2e-5
        gap = (both.clean.streams[layer] - both.corrupt.streams[layer])[0, -1]
        want = 0.0 if not gap.any() else float(gap @ gradient.double() / gap.norm() / gradient.double().norm())
        assert inside.alignment[layer] == pytest.approx(want, abs=1e-5)
    assert row.index == 0


def test_the_chance_of_eta_is_that_of_random_tokens_by_autograd_through_the_whole_head(tiny64, tiny_inside):
    rows, found = tiny_inside
    tokens = torch.randint(tiny64.bridge.unembed.W_U.shape[1], (256, 2), generator=torch.Generator().manual_seed(0))
    for row, inside, both in zip(rows[:3], found[:3], both_of(tiny64, rows[:3]), strict=True):
        answers = {*row.answers, *row.wrong_answers}
        etas = []
        for first, second in tokens.tolist():
            if first == second or answers & {first, second}:
                continue
            gradient = 0
            for run in both.runs:
                final = run.streams[-1][0, -1].clone().requires_grad_(True)
                logits = tiny64.unembed(final)
                gradient = gradient + torch.autograd.grad(logits[first] - logits[second], final)[0]
            gap = (both.clean.streams[-1] - both.corrupt.streams[-1])[0, -1]
            etas.append(float(gap @ gradient / gap.norm() / gradient.norm()))
        assert inside.chance == pytest.approx(np.sqrt(np.mean(np.square(etas))), rel=1e-6)


def test_where_streams_differ_along_what_no_token_reads_the_bar_of_eta_shrinks_with_eta(tiny64, tiny_inside):
    """Layer norm takes the mean off, so D stays as it is; random directions would still say 2 / sqrt(d_model)."""
    from persona_circuits.persona.explanation.chance import chance_alignment

    rows, found = tiny_inside
    both = both_of(tiny64, rows[:1])[0]
    moved = both.clean.streams[-1] + 10 * both.difference(3)[:, -1].norm()
    clean = dataclasses.replace(both.clean, streams=(*both.clean.streams[:-1], moved))
    tilted = dataclasses.replace(both, clean=clean)
    assert torch.allclose(tiny64.unembed(moved), tiny64.unembed(both.clean.streams[-1]))
    lengths = [one.difference(3)[:, -1].norm().item() for one in (both, tilted)]
    chance = chance_alignment(tiny64, tilted).item()
    assert chance / found[0].chance == pytest.approx(lengths[0] / lengths[1], rel=1e-3)
    assert LIMITS.aligned(chance, tiny64.d_model) < 2 / math.sqrt(tiny64.d_model) / 10


def test_the_signal_is_the_difference_against_that_of_any_two_prompts(tiny64, tiny_inside):
    rows, found = tiny_inside
    runs = both_of(tiny64, rows)
    for layer in range(4):
        last = [run.streams[layer][0, -1] for both in runs for run in both.runs]
        other = torch.stack([(a - b).square().sum() for a in last for b in last]).mean().sqrt()
        for inside, both in zip(found, runs, strict=True):
            a, b = (run.streams[layer][0] for run in both.runs)
            want = float((a[-1] - b[-1]).norm() / other) if other > 1e-9 else 0.0
            assert inside.signal["answer"][layer] == pytest.approx(want, abs=1e-6)
    for row, inside in zip(rows, found, strict=True):
        differ = [i for i, (a, b) in enumerate(zip(row.clean, row.corrupt, strict=True)) if a != b]
        assert inside.persona == (differ[0], differ[-1])
        assert inside.n_tokens == len(row.clean)


def test_the_slope_is_that_of_attention_written_out(tiny64, tiny_inside):
    """Boosted attention by hand in a plain loop over the layers, one head's softmax at a time."""
    rows, found = tiny_inside
    both = both_of(tiny64, rows[:1])[0]
    first, last = found[0].persona

    def d_at(boost):
        ms = []
        for run in both.runs:
            stream = run.streams[0]
            for block in tiny64.blocks:
                q, k, v = (block.project(slot, block.attn_norm(stream))[0] for slot in "qkv")
                scores = torch.einsum("qhd,khd->hqk", q, k) / q.shape[-1] ** 0.5
                scores[:, last + 1 :, first : last + 1] += boost
                scores.masked_fill_(torch.ones(scores.shape[1:]).triu(1).bool(), -torch.inf)
                z = torch.einsum("hqk,khd->qhd", scores.softmax(-1), v)[None]
                stream = stream + block.attn_out(z)
                stream = stream + block.mlp(stream)
            ms.append(explain_runs.margins(tiny64.unembed(stream[:, -1]), both.batch).item())
        return ms[0] - ms[1]

    assert found[0].slope == pytest.approx(d_at(0.5) - d_at(-0.5), abs=1e-9)
    assert abs(found[0].slope) > 1e-4


@pytest.mark.parametrize("n", [2, 3, 5])
def test_the_gain_that_parts_the_choices_is_where_they_part(n):
    rng = np.random.default_rng(n)
    for _ in range(50):
        a, b = rng.normal(size=(2, n))
        gain = flip_gain(a.tolist(), b.tolist())
        level, half = (a + b) / 2, (a - b) / 2
        for factor, apart in ((0.99, False), (1.01, True)):
            g = factor * gain
            assert ((level + g * half).argmax() != (level - g * half).argmax()) == apart
        assert (a.argmax() != b.argmax()) == (gain < 1)
        if n == 2:
            d, prior = (a - b)[0] - (a - b)[1], (a + b)[0] / 2 - (a + b)[1] / 2
            assert gain == pytest.approx(2 * abs(prior) / abs(d))
    assert flip_gain([1.0, 0.0], [2.0, 1.0]) == math.inf


# Passes with one thing changed


def test_nothing_changed_gives_the_host_s_logits(tiny64, tiny_inside):
    rows, _ = tiny_inside
    for both in explain_runs.both_runs(tiny64, rows, 4, gradients=False):
        ones = torch.ones(len(both.batch), dtype=torch.float64)
        scaled = explain_runs.scaled(tiny64, both, ones)
        for run, same in zip(both.runs, scaled, strict=True):
            host = tiny64.logits(both.batch.clean if run is both.clean else both.batch.corrupt)[:, -1]
            nobody = explain_runs.Removed(
                torch.zeros(len(both.batch), tiny64.graph.n_src).bool(), run.contributions[:, :, -1]
            )
            for got in (
                same,
                *(explain_runs.replay(tiny64, run.streams[layer], run.context, layer=layer) for layer in range(4)),
                explain_runs.replay(tiny64, run.streams[0], explain_runs.nearer(run.context, both, 0.0)),
                explain_runs.replay(tiny64, run.streams[0], run.context, removed=nobody),
            ):
                torch.testing.assert_close(got, host, rtol=0, atol=1e-9)


def test_removing_every_difference_at_the_answer_leaves_one_and_the_same_answer(tiny64, tiny_inside):
    rows, _ = tiny_inside
    both = both_of(tiny64, rows[:1])[0]
    mean = torch.stack([run.contributions[:, :, -1] for run in both.runs]).mean(0)
    everyone = explain_runs.Removed(torch.ones(1, tiny64.graph.n_src).bool(), mean)
    a, b = (explain_runs.replay(tiny64, run.streams[0], run.context, removed=everyone) for run in both.runs)
    torch.testing.assert_close(a, b, rtol=0, atol=1e-9)
    assert not torch.allclose(both.clean.logits, both.corrupt.logits)


def test_a_gain_of_nothing_takes_away_what_attention_brings(tiny64, tiny_inside):
    """The two runs' answers then get the same from attention, and so are one, since their last tokens are."""
    rows, _ = tiny_inside
    both = both_of(tiny64, rows[:1])[0]
    a, b = explain_runs.scaled(tiny64, both, torch.zeros(1, dtype=torch.float64))
    torch.testing.assert_close(a, b, rtol=0, atol=1e-9)


def test_a_row_s_numbers_do_not_depend_on_its_batch(tiny64, tiny_inside):
    rows, found = tiny_inside
    again = look_inside(tiny64, rows, batch_size=1)
    for one, other in zip(found, again, strict=True):
        assert one.contributions == pytest.approx(other.contributions, abs=1e-9)
        assert one.slope == pytest.approx(other.slope, abs=1e-9)
        assert one.signal["persona"] == pytest.approx(other.signal["persona"], abs=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float64", "bfloat16"])
def test_every_test_runs_in_every_precision_and_by_batches_as_by_rows(tiny_task, dtype):
    model = load_model(DATA / "tiny-gpt2", dtype=dtype)
    rows = encode(tiny_task, model)[:5]
    asked = [
        Asked(row, (*row.answers, *row.wrong_answers), inside, 1.5, 1.0)
        for row, inside in zip(rows, look_inside(model, rows), strict=True)
    ]
    for test in TESTS.values():
        together = run_test(model, test, asked, LIMITS)
        assert {outcome.test for outcome in together} == {test}
        assert all(
            type(outcome.agrees) is bool and np.isfinite(list(outcome.says.values())).all() for outcome in together
        )
        if dtype == "float64":
            alone = run_test(model, test, asked[::-1], LIMITS, batch_size=1)[::-1]
            for one, other in zip(together, alone, strict=True):
                assert (one.agrees, one.why) == (other.agrees, other.why)
                assert one.says == pytest.approx(other.says, abs=1e-9)


def test_the_opposing_nodes_are_the_fewest_that_make_the_share():
    chosen = explain_causal._opposing([3.0, -1.0, -5.0, 0.0, -4.0], 0.9)
    assert chosen.tolist() == [False, False, True, False, True]
    assert not explain_causal._opposing([1.0, 2.0], 0.9).any()


def test_equal_prompts_are_refused(tmp_path):
    pair = PLANTED["copy"].pairs[0]
    same = dataclasses.replace(pair, corrupt=pair.clean)
    file = load_items(lines(tmp_path / "pairs.jsonl", rows_of([same])))
    with pytest.raises(TaskError, match="clean and corrupt are the same tokens"):
        explain(PLANTED["copy"].model(), file, options=ExplainOptions(**QUICK))


def test_a_model_whose_attention_takes_no_mask_is_said_to_have_none(planted, monkeypatch, tmp_path):
    for module in ("persona_circuits.persona.explanation.inside", "persona_circuits.persona.explanation.causal"):
        monkeypatch.setattr(f"{module}.can_come_nearer", lambda context: False)
    pairs = load_items(lines(tmp_path / "pairs.jsonl", rows_of(PLANTED["copy"].pairs[:2])))
    found = explain(PLANTED["copy"].model(), pairs, options=ExplainOptions(**QUICK))
    assert found.overall.access is None
    assert any("takes no mask" in note for note in found.notes)
    model, weak = planted("weak")
    assert [one.agrees for one in run_test(model, "nearness", asked_of(model, weak)[:1], LIMITS)] == [None]


def test_contributions_that_do_not_add_up_are_not_used(monkeypatch, tmp_path):
    """As under a soft cap: the sums miss D."""
    from persona_circuits.persona.explanation import study as module

    seen = module.look_inside
    monkeypatch.setattr(
        module, "look_inside", lambda *a, **k: tuple(dataclasses.replace(x, conservation=0.1) for x in seen(*a, **k))
    )
    pairs = load_items(lines(tmp_path / "pairs.jsonl", rows_of(PLANTED["cancel"].pairs[:2])))
    found = explain(PLANTED["cancel"].model(), pairs, options=ExplainOptions(**QUICK))
    assert {row.verdict.name for row in found.pairs} == {"bottleneck"}
    assert found.overall.cancellation is None
    assert any("do not add up" in note for note in found.notes)


# The rule


BASE = Numbers(
    divergence=4.0,
    null=0.5,
    mass=0.9,
    one_choice=False,
    signal_persona=1.0,
    signal_answer=0.5,
    arrived=0.1,
    access=0.1,
    alignment=0.5,
    aligned=0.1,
    cancellation=0.2,
    stronger_side=5.0,
    opposed=1.4,
)
LOW = {"one_choice": True, "divergence": 0.4}
RULES = [
    ({}, "no collapse"),
    ({"cancellation": 0.95, "alignment": 0.0}, "no collapse"),
    ({"one_choice": True}, "prior dominance"),
    ({"one_choice": True, "divergence": 0.6}, "prior dominance"),
    ({"one_choice": True, "cancellation": None, "stronger_side": None}, "prior dominance"),
    ({"one_choice": True, "cancellation": 0.8}, "prior dominance"),
    ({"one_choice": True, "alignment": 0.05}, "undecided"),
    ({"one_choice": True, "cancellation": 0.8, "divergence": 1.3}, "cancellation"),
    ({"one_choice": True, "cancellation": 0.8, "divergence": 1.3, "opposed": 5.1}, "prior dominance"),
    ({"one_choice": True, "alignment": 0.05, "divergence": 1.3}, "bottleneck"),
    ({"divergence": -0.5}, "reversed"),
    ({"divergence": -4.0, "one_choice": True}, "reversed"),
    ({"mass": 0.19}, "not a preference"),
    ({"mass": 0.19, "divergence": -4.0}, "not a preference"),
    (LOW | {"cancellation": 0.8}, "cancellation"),
    (LOW | {"divergence": -0.4, "cancellation": 0.8, "signal_answer": 0.0}, "cancellation"),
    (LOW | {"cancellation": 0.8, "stronger_side": 1.38}, "undecided"),
    (LOW | {"cancellation": 0.8, "opposed": 5.1}, "undecided"),
    (LOW | {"signal_answer": 0.09}, "weak or transient"),
    (LOW | {"arrived": 0.51}, "weak or transient"),
    (LOW | {"access": 0.5}, "weak or transient"),
    (LOW | {"access": 0.5, "alignment": 0.0}, "weak or transient"),
    (LOW | {"alignment": 0.09}, "bottleneck"),
    (LOW | {"alignment": 0.09, "access": None, "cancellation": None}, "bottleneck"),
    (LOW | {"alignment": 0.09, "signal_answer": 0.09}, "weak or transient"),
    (LOW, "undecided"),
]


@pytest.mark.parametrize(("changes", "name"), RULES)
def test_every_row_of_the_table(changes, name):
    verdict = judge(dataclasses.replace(BASE, **changes), LIMITS)
    assert verdict.name == name, verdict.why
    assert verdict.why


def test_the_rows_above_reach_every_verdict():
    assert {name for _, name in RULES} == set(VERDICTS)


@pytest.mark.parametrize("changes", [row for row, _ in RULES if row.get("one_choice")])
def test_without_one_choice_there_is_no_cause(changes):
    verdict = judge(dataclasses.replace(BASE, **changes | {"one_choice": False}), LIMITS)
    assert verdict.name in ("no collapse", "reversed", "undecided")


def test_the_null_is_of_paraphrases_and_the_floor_stands_for_it():
    assert LIMITS.null(0.3) == 2 * 0.3
    assert LIMITS.null(None) == LIMITS.divergence_floor == 2 * math.log(2)
    assert LIMITS.restored(0.3) == LIMITS.divergence_floor
    assert LIMITS.restored(5.0) == 10
    assert LIMITS.aligned(0.006, 640) == 0.012
    assert LIMITS.aligned(0.0, 400) == 0.1


def test_the_shipped_thresholds_say_why_and_bear_their_hash():
    import hashlib

    raw = (ROOT / "persona" / "explanation" / "thresholds.json").read_bytes()
    assert LIMITS.sha256 == hashlib.sha256(raw).hexdigest()
    assert all(len(entry["why"]) > 40 for entry in json.loads(raw)["thresholds"].values())


def altered(tmp_path, change):
    record = json.loads((ROOT / "persona" / "explanation" / "thresholds.json").read_text())
    change(record["thresholds"])
    path = tmp_path / "limits.json"
    path.write_text(json.dumps(record))
    return path


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda t: t.pop("signal"), "'signal' is missing"),
        (lambda t: t.update(mood={"value": 1, "why": "x"}), "'mood' is not a threshold"),
        (lambda t: t.update(signal={"value": 0.1}), "'why'"),
        (lambda t: t.update(signal={"value": True, "why": "x"}), "'signal' is True; expected a number"),
        (lambda t: t.update(signal={"value": [0.1], "why": "x"}), "expected a number"),
        (lambda t: t.update(nearness={"value": 4, "why": "x"}), "expected a list of numbers"),
        (lambda t: t.update(nearness={"value": [], "why": "x"}), "expected numbers above 0"),
        (lambda t: t.update(majority={"value": 1.1, "why": "x"}), "a share is at most 1"),
        (lambda t: t.update(patched_layers={"value": [0.5, 2], "why": "x"}), "a share is at most 1"),
        (lambda t: t.update(gain_margin={"value": 1, "why": "x"}), "must be above 1"),
    ],
)
def test_faulty_thresholds_are_named(tmp_path, change, says):
    with pytest.raises(FileError, match=says):
        load_thresholds(altered(tmp_path, change))


def test_files_that_are_no_thresholds(tmp_path):
    with pytest.raises(FileError, match="cannot be read"):
        load_thresholds(tmp_path / "none.json")
    (tmp_path / "a.json").write_text("{")
    with pytest.raises(FileError, match="not JSON"):
        load_thresholds(tmp_path / "a.json")
    for text in ("[]", "{}", '{"format": "persona-circuits/thresholds", "thresholds": []}'):
        (tmp_path / "a.json").write_text(text)
        with pytest.raises(FileError, match="1 fault"):
            load_thresholds(tmp_path / "a.json")


def test_other_thresholds_give_other_verdicts(planted, tmp_path):
    path = altered(tmp_path, lambda t: t["candidate_mass"].update(value=0.999))
    strict = load_thresholds(path)
    assert (strict.candidate_mass, strict.source) == (0.999, str(path))
    assert strict.sha256 != LIMITS.sha256
    row = planted("copy")[1].pairs[0]
    assert judge(row.numbers, strict).name == "not a preference"


# Groups and truth


def test_groups_have_the_majority_s_verdict(planted):
    from persona_circuits.persona.explanation import group_of

    rows = list(planted("copy")[1].pairs[:4])
    other = Verdict("prior dominance", "for the test")
    mixed = [dataclasses.replace(row, verdict=other) if i < 2 else row for i, row in enumerate(rows)]
    settings = {"majority": 0.5, "tests": {}, "n_resamples": 10, "seed": 0}
    half = group_of("k", "v", mixed, **settings)
    assert (half.verdict, half.share, half.verdicts) == ("undecided", 0.5, {"no collapse": 2, "prior dominance": 2})
    most = group_of("k", "v", [*mixed[1:]], **settings)
    assert (most.verdict, most.n, most.agree) == ("no collapse", 3, 3)
    assert most.divergence.value == pytest.approx(np.mean([row.measure.divergence for row in mixed[1:]]))


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({"generator": {"divergence": 2.5, "collapses": False}}, "no collapse"),
        ({"generator": {"divergence": 2, "collapses": True}}, "prior dominance"),
        ({"generator": {"divergence": 0.0, "collapses": True}, "control": "irrelevant"}, NO_EFFECT),
        ({"generator": {"divergence": -1.0, "collapses": True}}, "reversed"),
        ({"generator": {"divergence": 0.0, "collapses": True}, "control": "paraphrase"}, None),
        ({"generator": {"divergence": True, "collapses": True}}, None),
        ({"generator": {"divergence": 1.0}}, None),
        ({"generator": "the world"}, None),
        ({}, None),
    ],
)
def test_what_a_row_expects(keys, expected):
    assert expected_of(keys) == expected


def test_a_test_that_agrees_on_paraphrases_as_often_confirms_nothing():
    from persona_circuits.persona.explanation.causal import Outcome
    from persona_circuits.persona.explanation.null import causal_test, expected_agreement

    def outcomes(agree, ran):
        return [Outcome("steering", i < agree, {}) for i in range(ran)] + [Outcome("steering", None, {})]

    same = causal_test("bottleneck", outcomes(16, 18), outcomes(25, 28))
    assert (same.agree, same.ran, same.null_agree, same.null_ran) == (16, 18, 25, 28)
    assert same.p == pytest.approx(hypergeom(46, 41, 18).sf(15))
    assert not same.tells
    assert causal_test("bottleneck", outcomes(16, 18), outcomes(2, 28)).tells
    alone = causal_test("bottleneck", outcomes(16, 18), [])
    assert (alone.p, alone.null_share, alone.tells) == (None, None, True)
    assert expected_agreement(outcomes(16, 18), {"steering": same}) == 25 / 28
    assert expected_agreement(outcomes(16, 18), {"steering": alone}) is None


def test_the_causal_test_decides_what_is_shown_first(planted):
    from persona_circuits.persona.explanation import group_of, group_rows
    from persona_circuits.persona.explanation.causal import Outcome
    from persona_circuits.persona.explanation.null import causal_test

    rows = planted("copy")[1].pairs[:5]
    failing = [dataclasses.replace(row, outcome=Outcome("patching", i == 0, {})) for i, row in enumerate(rows)]
    settings = {"majority": 0.5, "n_resamples": 10, "seed": 0}
    good, bad = ([row.outcome for row in some] for some in (rows, failing))
    for some, null, headline in (
        (rows, [], "no collapse"),
        (rows, bad * 4, "no collapse"),
        (rows, good * 4, "unconfirmed"),
        (failing, [], "unconfirmed"),
    ):
        own = [row.outcome for row in some]
        group = group_of("k", "v", some, tests={"patching": causal_test("no collapse", own, null)}, **settings)
        assert (group.headline, group.verdict) == (headline, "no collapse")
        assert group_rows([group])[0][1].startswith(headline)


def test_agreement_is_cohen_s_kappa_of_the_classes():
    lost = ("weak or transient", "bottleneck", "cancellation")
    rng = np.random.default_rng(0)
    truth = [str(name) for name in rng.choice(["no collapse", "prior dominance", NO_EFFECT], size=80)]
    right = [str(rng.choice(lost)) if name == NO_EFFECT else name for name in truth]
    other = [str(name) for name in rng.choice(["no collapse", "undecided", *lost], size=80)]
    verdicts = [right[i] if i % 2 else other[i] for i in range(80)]
    found = agreement(truth, verdicts, n_permutations=400)
    classes = [NO_EFFECT if verdict in lost else verdict for verdict in verdicts]
    assert found.kappa == pytest.approx(cohen_kappa_score(truth, classes))
    assert found.share == np.mean([fits(t, v) for t, v in zip(truth, verdicts, strict=True)])
    assert sum(sum(row.values()) for row in found.table.values()) == found.n == 80
    assert found.p == 1 / 401


def test_shuffled_verdicts_agree_by_chance_alone():
    rng = np.random.default_rng(1)
    truth = rng.choice(["no collapse", "prior dominance"], size=60).tolist()
    ps = [agreement(truth, rng.permutation(truth).tolist(), n_permutations=99).p for _ in range(60)]
    assert np.mean(np.array(ps) <= 0.1) < 0.25
    assert np.mean(ps) > 0.35
    assert agreement([], []) is None
    assert agreement(["no collapse"] * 3, ["no collapse"] * 3).kappa is None


# The embedded model, whose generator is known


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Every fifth test pair and control, and every fourth paraphrase, of the shipped model."""
    folder = tmp_path_factory.mktemp("world")
    study = [json.loads(line) for line in (DATASETS / "pairs_test.jsonl").read_text().splitlines()][::5]
    given = [json.loads(line) for line in (DATASETS / "pairs_controls.jsonl").read_text().splitlines()]
    controls = [row for i, row in enumerate(given) if i % (4 if row["control"] == "paraphrase" else 5) == 0]
    files = [lines(folder / f"{name}.jsonl", rows) for name, rows in (("pairs", study), ("controls", controls))]
    model = load_model(ROOT / "models" / "persona-world")
    pairs, more = map(load_items, files)
    options = ExplainOptions(("prior_level", "pair"), n_resamples=500)
    return explain(model, pairs, controls=more, options=options)


@pytest.mark.slow
def test_verdicts_agree_with_the_generator_far_better_than_chance(world):
    found = world.agreement
    assert found.n == 40
    assert found.kappa > 0.7
    assert found.share - found.chance > 0.4
    assert found.p == 1 / 501
    columns, rows = confusion_rows(world)
    assert columns == ("verdict", "no collapse", "prior dominance", NO_EFFECT)
    assert sum(int(cell) for row in rows for cell in row[1:]) == 40


def test_without_a_prior_nothing_collapses_and_a_strong_one_dominates(world):
    by_level = {group.value: group for group in world.groups if group.by == "prior_level"}
    assert (by_level["0"].verdict, by_level["3"].verdict) == ("no collapse", "prior dominance")
    assert by_level["0"].flip_gain < 1 < by_level["3"].flip_gain
    ran = [row for row in world.pairs if row.outcome.agrees is not None]
    assert sum(row.outcome.agrees for row in ran) / len(ran) > 0.8


def test_the_files_hold_everything_and_are_the_same_again(world, tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        write_explanation(world, tmp_path / name)
    names = {"explain.json", "explain.html", "pairs.csv", "groups.csv", "rates.csv", "confusion.csv"}
    figures = set(explain_figures(world))
    assert figures == {"verdicts", "numbers", "signal", "alignment", "confusion"}
    assert {path.name for path in (tmp_path / "a").iterdir()} == names | {f"{figure}.png" for figure in figures}
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes(), path.name
    record = json.loads((tmp_path / "a" / "explain.json").read_text())
    assert record == explain_record(world)
    assert record["thresholds"]["sha256"] == LIMITS.sha256
    assert record["thresholds"]["values"]["candidate_mass"] == LIMITS.candidate_mass
    assert len(record["pairs"]) == len(world.pairs) + len(world.control_pairs)
    first = record["pairs"][0]
    assert first["verdict"] == world.pairs[0].verdict.name
    assert len(first["inside"]["signal"]["answer"]) == len(first["inside"]["alignment"]) == 13
    page = (tmp_path / "a" / "explain.html").read_text()
    assert page.count("Plotly.newPlot") == 5
    assert 'src="http' not in page


# The command


def test_the_command_explains_and_groups(tmp_path):
    write_planted(PLANTED["prior"], tmp_path / "prior")
    pairs = lines(tmp_path / "pairs.jsonl", rows_of(PLANTED["prior"].pairs[:3], level=3))
    common = (
        "explain",
        "--model",
        tmp_path / "prior",
        "--pairs",
        pairs,
        "--n-resamples",
        20,
        "--out",
        tmp_path / "out",
    )
    done = call(*common, "--by", "level", "--by", "pair")
    assert done.exit_code == 0, done.output
    assert "by level" in done.stdout
    assert len(re.findall(r"prior\b.* 3 of 3|prior\b.* 1 of 1", done.stdout)) >= 5  # the cells are wrapped
    assert "no paraphrase controls" in done.stdout
    assert (tmp_path / "out" / "explain.html").is_file()
    assert not (tmp_path / "out" / "confusion.csv").exists()
    done = call(*common, "--no-causal", "--json")
    record = json.loads(done.stdout)
    assert [group["by"] for group in record["groups"]] == ["all", "question", "question", "question"]
    assert record["groups"][0]["not_run"] == 3


@pytest.mark.parametrize("part", ["inside", "gain"])
def test_a_stopped_command_goes_on_to_the_same_files(part, tmp_path, monkeypatch):
    """Stopped after the second batch of either kind of work; what is done is not done again."""
    write_planted(PLANTED["prior"], tmp_path / "prior")
    pairs = lines(tmp_path / "pairs.jsonl", rows_of(PLANTED["prior"].pairs[:5]))
    common = ("explain", "--model", tmp_path / "prior", "--pairs", pairs, "--n-resamples", 20, "--batch-size", 2)
    assert call(*common, "--out", tmp_path / "whole").exit_code == 0
    made, real = [], Kept.add

    def stop(self, parts):
        real(self, parts)
        made.extend(name for name in parts if name != "spread")
        if sum(name.startswith(part) for name in made) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(Kept, "add", stop)
    done = call(*common, "--out", tmp_path / "out")
    assert done.exit_code == 130, done.output
    assert f"what is done so far is kept in {tmp_path / 'out' / 'explain.state'}" in done.stderr
    before = len(made)
    monkeypatch.setattr(Kept, "add", lambda self, parts: real(self, parts) or made.extend(parts))
    assert call(*common, "--out", tmp_path / "out").exit_code == 0
    made = [name for name in made if name != "spread"]
    assert len(made) == len(set(made)) > before
    files = sorted(path.name for path in (tmp_path / "whole").iterdir())
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == files
    for name in files:
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name


def fails(says, *arguments):
    done = call("explain", *arguments)
    assert done.exit_code == 2, done.output
    assert says in done.stderr
    assert "Traceback" not in done.output


def test_bad_input_is_said_with_what_to_do(tmp_path):
    tiny = ("--model", DATA / "tiny-gpt2", "--out", tmp_path / "out")
    pairs = DATA / "tiny_pairs.json"
    fails("--model needs --pairs", "--model", DATA / "tiny-gpt2")
    fails("no pair of", *tiny, "--pairs", pairs, "--by", "mood")
    fails("its keys are: pair", *tiny, "--pairs", pairs, "--by", "mood")
    fails("cannot be read", *tiny, "--pairs", tmp_path / "none.jsonl")
    fails("thresholds", *tiny, "--pairs", pairs, "--thresholds", pairs)
    fails("has no pair of split", *tiny, "--pairs", pairs, "--split", "test")
    fails("--batch-size must be at least 1", *tiny, "--pairs", pairs, "--batch-size", 0)
    controls = lines(tmp_path / "c.jsonl", rows_of(PLANTED["copy"].pairs[:1], control="paraphrase"))
    write_planted(PLANTED["copy"], tmp_path / "copy")
    fails("none is left to explain", "--model", tmp_path / "copy", "--out", tmp_path / "out", "--pairs", controls)
    longer = dataclasses.replace(PLANTED["copy"].pairs[0], corrupt="listen . i want the")
    uneven = lines(tmp_path / "u.jsonl", rows_of([longer]))
    fails("tokens and the corrupt one", "--model", tmp_path / "copy", "--pairs", uneven, "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_options_out_of_range():
    for changes in ({"batch_size": 0}, {"n_resamples": 0}, {"seed": -1}):
        with pytest.raises(OptionError):
            ExplainOptions(**changes).checked()


def test_a_split_keeps_its_rows_keys(tiny, tmp_path):
    rows = rows_of(PLANTED["copy"].pairs[:4])
    for i, row in enumerate(rows):
        row.update(split="test" if i % 2 else "train", number=i)
    file = load_items(lines(tmp_path / "pairs.jsonl", rows))
    assert [item.pair.row["number"] for item in file.of_split("test").items] == [1, 3]
    with pytest.raises(OptionError, match=r"its keys are: pair, .*\bnumber\b") as said:
        explain(tiny, file, options=ExplainOptions(by=("colour",)))
    assert "clean" not in str(said.value)
    with pytest.raises(TaskError):
        file.of_split("validation")


def test_a_real_model(craftgpt, tmp_path):
    """Twelve weather pairs: contributions add up, most answers are no preference, and what is one has a verdict."""
    assert CRAFTGPT.is_dir()
    chosen = (DATASETS / "craftgpt_weather.jsonl").read_text().splitlines()[:16]
    (tmp_path / "pairs.jsonl").write_text("\n".join(chosen))
    found = explain(craftgpt, load_items(tmp_path / "pairs.jsonl"), options=ExplainOptions(**QUICK))
    assert all(abs(row.inside.conservation) < 1e-3 for row in found.pairs)
    pairs = tuple(row.item.pair for row in found.pairs)
    for row, ids in zip(found.pairs, encode(Task(pairs, "", ""), craftgpt), strict=True):
        d = margin(craftgpt, ids.clean, ids) - margin(craftgpt, ids.corrupt, ids)
        assert row.measure.divergence == pytest.approx(d, abs=1e-3)
        assert (row.verdict.name == "not a preference") == (row.numbers.mass < LIMITS.candidate_mass)
    assert {"not a preference", "no collapse"} <= {row.verdict.name for row in found.pairs}
