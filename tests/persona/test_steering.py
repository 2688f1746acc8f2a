"""Steering: what is added is what is said, measured at the output, beside controls; gain against the required gain."""

import contextlib
import json
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
from conftest import DATA, ROOT
from safetensors.numpy import save_file
from safetensors.torch import save_file as save_torch
from transformers import AutoTokenizer, Gemma2Config, GPTNeoXConfig, LlamaConfig
from typer.testing import CliRunner

from persona_circuits import metrics
from persona_circuits.circuit.errors import FileError, OptionError, TaskError
from persona_circuits.circuit.task import encode, load_task
from persona_circuits.cli import app
from persona_circuits.persona.data import load_examples
from persona_circuits.persona.responses import (
    Sampling,
    SpokenTokens,
    continuations,
    log_likelihoods,
    perplexity,
    read_responses,
    repetition,
)
from persona_circuits.persona.responses.rating import Rated, Ratings, summarise_ratings
from persona_circuits.persona.steering import (
    SteeredPrompts,
    SteerOptions,
    added,
    check_has_parts,
    generate_steered,
    readability,
    runs,
    set_parts,
    some_pairs,
    steered_layers,
    steered_logits,
    steered_prompts,
    study_steering,
    without_direction,
    write_steering,
)
from persona_circuits.persona.streams import on_streams
from persona_circuits.persona.vectors import controls, default_kind, find_directions, prompt_end_streams

PAIRS = DATA / "tiny_pairs.json"
FAST = {"n_controls": 1, "n_resamples": 20}
SHORT = Sampling(max_new_tokens=4, temperature=0.0)


def by_hand(model, ids, layer, vector, positions):
    """Last logits with a vector added behind a block, from the engine's own parts: no hook, no cache."""
    with torch.no_grad():
        resid, context = model.start(torch.tensor([list(ids)]))
        for block in model.blocks:
            normed = block.attn_norm(resid)
            z = block.attention(*(block.project(slot, normed) for slot in "qkv"), context)
            after = resid + block.attn_out(z)
            resid = after + block.mlp(resid if block.parallel else after)
            if block.layer == layer:
                resid = resid.clone()
                resid[:, slice(None) if positions == "all" else slice(-1, None)] += vector
        return model.unembed(resid[0, -1]).double()


@pytest.fixture(scope="module")
def pairs(tiny64):
    return load_examples(PAIRS, tiny64)


@pytest.fixture(scope="module")
def study(tiny64, pairs):
    return study_steering(tiny64, pairs, pairs, "pair", SteerOptions((0, 2), **FAST))


def outcome(study, layer, strength, control="direction", draw=None):
    return next(
        one for one in study.outcomes
        if one.layers == (layer,) and one.strength == strength and one.control == control and draw in (None, one.draw)
    )  # fmt: skip


@pytest.mark.parametrize("positions", ["prompt-end", "all"])
@pytest.mark.parametrize("layer", [0, 1, 2])
def test_a_vector_is_added_where_it_is_said(tiny64, layer, positions):
    rng = torch.Generator().manual_seed(0)
    prompts = [torch.randint(2, 60, (n,), generator=rng).tolist() for n in (1, 5, 5, 8, 5)]
    vectors = torch.randn(2, 5, tiny64.d_model, generator=rng, dtype=torch.float64)

    def changes(cells):
        return added({layer: torch.stack([vectors[v, i] for v, i in cells])}, positions)

    seen = set()
    for only_last in {False, positions == "prompt-end"}:
        for cells, logits in steered_logits(tiny64, prompts, 2, changes, only_last=only_last, batch_size=2):
            for (v, i), row in zip(cells, logits, strict=True):
                expected = by_hand(tiny64, prompts[i], layer, vectors[v, i], positions)
                torch.testing.assert_close(row, expected, atol=2e-5, rtol=1e-5)
                seen.add((v, i, only_last))
    assert len(seen) == 10 * (2 if positions == "prompt-end" else 1)


SMALL = {"vocab_size": 62, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "bos_token_id": 0}
SMALL |= {"eos_token_id": 0, "intermediate_size": 48, "max_position_embeddings": 64}
FAMILIES = {
    "llama": LlamaConfig(**SMALL, num_key_value_heads=2),
    "gemma2": Gemma2Config(**SMALL, num_key_value_heads=2, head_dim=8, sliding_window=4, pad_token_id=0),
    "neox": GPTNeoXConfig(**SMALL),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_the_cached_way_is_the_whole_way_in_other_families(family):
    from transformers import AutoModelForCausalLM

    from persona_circuits.circuit.model import wrap_model

    torch.manual_seed(1)
    network = AutoModelForCausalLM.from_config(FAMILIES[family], attn_implementation="eager").double()
    model = wrap_model(network, AutoTokenizer.from_pretrained(DATA / "tiny-gpt2"), name=family)
    prompts = torch.randint(2, 60, (3, 9), generator=torch.Generator().manual_seed(0)).tolist()
    vectors = torch.randn(4, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(1))

    def changes(cells):
        return added({0: torch.stack([vectors[v] for v, _ in cells])}, "prompt-end")

    ways = []
    for only_last in (True, False):
        found = steered_logits(model, prompts, 4, changes, only_last=only_last, batch_size=6)
        ways.append({cell: row for cells, logits in found for cell, row in zip(cells, logits, strict=True)})
    assert len(ways[0]) == 12
    for cell, row in ways[0].items():
        torch.testing.assert_close(row, ways[1][cell], atol=2e-5, rtol=1e-4)


def test_the_pair_s_own_difference_behind_the_last_block_takes_one_prompt_to_the_other(study):
    """At -1 both prompts change places, at -1/2 they meet: D is exactly -D and 0, and b does not move."""
    assert outcome(study, 2, -1.0).gain == pytest.approx(-1, abs=1e-6)
    assert outcome(study, 2, -1.0).prior_shift == pytest.approx(0, abs=1e-6)
    assert outcome(study, 2, -0.5).divergence.value == pytest.approx(0, abs=1e-6)
    assert outcome(study, 2, 0.5).gain > 1
    plain, swapped = study.plain, study.margins["2"][2]  # -4, -2, -1, …
    np.testing.assert_allclose(swapped, plain[::-1], atol=1e-6)


def test_plain_margins_are_the_model_s(tiny64, study, pairs):
    rows = encode(load_task(PAIRS), tiny64)
    for i, row in enumerate(rows):
        for side, ids in enumerate((row.clean, row.corrupt)):
            logits = tiny64.logits(torch.tensor([ids]))[:, -1]
            margin = metrics.logit_diff(logits, torch.tensor([row.answers]), torch.tensor([row.wrong_answers]))
            assert study.plain[side, i] == pytest.approx(margin.item(), abs=1e-5)
    assert some_pairs(pairs, 99) is pairs
    assert [item.pair.id for item in some_pairs(pairs, 3).items] == [pairs.items[i].pair.id for i in (0, 4, 7)]
    assert len(some_pairs(pairs, 3).examples) == 6


def test_kl_is_measured_at_the_output_not_where_the_vector_goes_in(tiny64, pairs):
    """A huge vector that the final norm takes out changes nothing that the model says: its KL is 0."""
    prompts = steered_prompts(pairs, tiny64)
    n, last = len(prompts), tiny64.graph.n_layers - 1
    options = SteerOptions((0,), **FAST).checked()
    from persona_circuits.persona.steering.study import unsteered

    run = runs.Run(tiny64, prompts, options, *unsteered(tiny64, prompts, 32), lambda *_: None, 1, 1)
    ones = np.ones((n, tiny64.d_model))
    [unseen] = run.measure([({last: ones}, 100.0)])
    np.testing.assert_allclose(unseen.kl, 0, atol=1e-8)
    np.testing.assert_allclose(unseen.plus, run.plain, atol=1e-4)
    drawn = np.random.default_rng(0).normal(size=(n, tiny64.d_model))
    [seen] = run.measure([({1: drawn}, 1.0)])
    for i, ids in enumerate(prompts.neutral):
        reference = by_hand(tiny64, ids, 0, 0.0, "all")
        for place, sign in ((0, 1), (1, -1)):
            steered = by_hand(tiny64, ids, 1, sign * torch.from_numpy(drawn[i]), "prompt-end")
            assert seen.kl[place, i] == pytest.approx(metrics.kl(reference, steered).item(), rel=1e-3)


@pytest.mark.slow
def test_the_largest_strength_within_the_bound(tiny64, pairs):
    for limit in (0.02, 0.3):
        found = study_steering(tiny64, pairs, pairs, "pair", SteerOptions((1,), kl_bound=limit, ablate=False, **FAST))
        [bound] = found.bounds
        swept = {one.strength: one.kl.value for one in found.outcomes if one.control == "direction"}
        if bound.is_largest:
            assert max(swept.values()) <= limit
        else:
            assert 0.8 * limit <= bound.outcome.kl.value <= limit
            assert swept[min(s for s in swept if s > bound.strength)] > limit
    wide = study_steering(tiny64, pairs, pairs, "pair", SteerOptions((1,), kl_bound=99.0, ablate=False, **FAST))
    assert wide.bounds[0].is_largest
    assert wide.bounds[0].strength == 4


def test_controls_are_as_long_and_as_typical_as_they_claim():
    rng = np.random.default_rng(0)
    directions = rng.normal(size=(5, 30)) * np.arange(1, 6)[:, None]
    plane = rng.normal(size=(40, 2)) @ rng.normal(size=(2, 30)) + 100
    found = controls(directions, plane, n=3, seed=0)
    for rows in found.values():
        assert rows.shape == (3, 5, 30)
        np.testing.assert_allclose(
            np.linalg.norm(rows, axis=-1), np.linalg.norm(directions, axis=-1)[None].repeat(3, 0)
        )
        unit = rows / np.linalg.norm(rows, axis=-1, keepdims=True)
        np.testing.assert_allclose(unit[:, :1], unit[:, 1:2], atol=1e-12)  # one direction per draw, for all pairs
    basis = np.linalg.svd(plane - plane.mean(0))[2][:2]
    inside = found["covariance"] @ basis.T @ basis
    np.testing.assert_allclose(inside, found["covariance"], atol=1e-9)
    assert np.abs(found["random"] @ basis.T @ basis - found["random"]).max() > 0.1
    for kind, rows in controls(directions, plane, n=3, seed=0).items():
        np.testing.assert_array_equal(rows, found[kind])
    assert not np.allclose(controls(directions, plane, n=3, seed=1)["random"], found["random"])


def named(examples, rows):
    """The first examples under other names: (persona, question) of each."""
    return [replace(examples[i], persona=persona, question=question) for i, (persona, question) in enumerate(rows)]


def test_persona_directions_are_differences_whatever_questions_personas_meet(pairs):
    """Streams made of a part per question and a part per persona, unevenly met: the persona's part comes out."""
    rng = np.random.default_rng(0)
    who = {name: rng.normal(size=(3, 32)) for name in "abc"}
    what = {name: 10 * rng.normal(size=(3, 32)) for name in "xyz"}
    rows = [("a", "x"), ("b", "x"), ("a", "y"), ("c", "y"), ("b", "z"), ("c", "z"), ("a", "z"), ("c", "z")]
    examples = named(pairs.examples, rows)
    streams = np.stack([who[p] + what[q] for p, q in rows])
    found = find_directions("personas", examples, streams, examples[:4], streams[:4])
    np.testing.assert_allclose(found.vectors[0], who["a"] - who["b"], atol=1e-9)
    np.testing.assert_allclose(found.vectors[1], who["a"] - who["c"], atol=1e-9)
    own = find_directions("pair", examples, streams, examples[:4], streams[:4])
    np.testing.assert_allclose(own.vectors[1], who["a"] - who["c"], atol=1e-9)
    pooled = find_directions("pooled", examples, streams, examples[:4], streams[:4])
    np.testing.assert_allclose(pooled.vectors[0], (streams[::2] - streams[1::2]).mean(0))
    assert pooled.shared
    stranger = named(pairs.examples, [("a", "x"), ("d", "x")])
    with pytest.raises(TaskError, match="not fitted on: d"):
        find_directions("personas", examples, streams, stranger, streams[:2])
    assert default_kind(examples, stranger) == "pooled"
    assert default_kind(examples, examples[:2]) == "contrast"
    apart = named(pairs.examples, [("b", "x"), ("c", "x")])
    assert default_kind(examples[:4], apart) == "personas"
    turned = named(pairs.examples, [("b", "x"), ("a", "x"), ("a", "y"), ("b", "y")])
    contrast = find_directions("contrast", turned, streams[:4], turned, streams[:4])
    mean = ((streams[1] - streams[0]) + (streams[2] - streams[3])) / 2
    np.testing.assert_allclose(contrast.vectors, np.stack([-mean, mean]))
    assert not contrast.shared
    with pytest.raises(TaskError, match="no pair of b and c is fitted on"):
        find_directions("contrast", examples[:4], streams[:4], apart, streams[:2])
    with pytest.raises(TaskError, match="is zero"):
        find_directions("pair", examples, streams, examples[:2], streams[[0, 0]])


def test_directions_from_files(pairs, tmp_path):
    rng = np.random.default_rng(0)
    streams = rng.normal(size=(8, 3, 32))
    examples, apart = named(pairs.examples, [("a", "x"), ("b", "x")] * 4), streams[::2] - streams[1::2]
    weights = rng.normal(size=(2, 32)).astype(np.float32)
    weights[0] *= -np.sign((apart.mean(0) @ weights[0]).sum())
    save_file({"w": weights, "bad": weights[:, :5], "zero": np.zeros((1, 32), np.float32)}, tmp_path / "p.safetensors")
    path = f"{tmp_path}/p.safetensors"
    for row in (0, 1):
        found = find_directions(f"{path}:w:{row}", examples, streams, examples[:2], streams[:2])
        for layer in range(3):
            unit = weights[row] / np.linalg.norm(weights[row])
            vector = found.vectors[0, layer]
            assert abs(vector @ unit) == pytest.approx(np.linalg.norm(vector), rel=1e-6)  # along the weights
            assert np.linalg.norm(vector) == pytest.approx(np.abs(apart[:, layer] @ unit).mean(), rel=1e-6)
            assert apart[:, layer].mean(0) @ vector >= 0  # from B to A
    for spec, error in (
        (f"{path}:w", "name a row"),
        (f"{path}:none", "it has bad, w, zero"),
        (f"{path}:w:9", "no row 9"),
        (f"{path}:zero", "is zero"),
        (f"{tmp_path}/none.safetensors:w", "cannot be read"),
        (path, "cannot be used"),
    ):
        with pytest.raises(FileError, match=error):
            find_directions(spec, examples, streams, examples[:2], streams[:2])
    torch_file = {"half": torch.tensor(weights[:1]).bfloat16(), "nan": torch.full((32,), float("nan"))}
    torch_file |= {"inf": torch.full((32,), float("inf")), "f8": torch.tensor(weights[1:2]).to(torch.float8_e4m3fn)}
    save_torch(torch_file, tmp_path / "t.SAFETENSORS")
    for name in ("half", "f8"):
        found = find_directions(f"{tmp_path}/t.SAFETENSORS:{name}", examples, streams, examples[:2], streams[:2])
        unit = torch_file[name][0].double().numpy()
        cosine = found.vectors[0, 0] @ unit / np.linalg.norm(found.vectors[0, 0]) / np.linalg.norm(unit)
        assert abs(cosine) == pytest.approx(1, abs=1e-6)
    (tmp_path / "v.pt").write_bytes(b"PK")
    (tmp_path / "v.gguf").write_bytes(b"GGUF")
    for spec, error in (
        (f"{tmp_path}/t.SAFETENSORS:nan", r"nan of .* holds nan \(at \[0, 0\]\)"),
        (f"{tmp_path}/t.SAFETENSORS:inf", "holds inf"),
        (f"{tmp_path}/v.pt", "PyTorch pickle.*save_file"),
        (f"{tmp_path}/v.gguf:w", "GGUF.*save_file"),
    ):
        with pytest.raises(FileError, match=error):
            find_directions(spec, examples, streams, examples[:2], streams[:2])
    for spec, toward, error in (
        ("mean", None, "not one of"),
        ("pair", ("a", "b"), "--toward"),
        (f"{path}:w", ("a", "b"), "rows"),
    ):
        with pytest.raises(OptionError, match=error):
            find_directions(spec, examples, streams, examples[:2], streams[:2], toward=toward)


def test_what_nodes_write_of_a_direction_is_added_alone_and_left_out(tiny64, pairs):
    """Against the outputs of the network's own MLPs, added by hand; all nodes are the whole, and sets add up."""
    options = SteerOptions((1,), strengths=(1.0,), ablate=False, n_controls=3, n_resamples=20)
    study = study_steering(tiny64, pairs, pairs, "pair", options)
    nodes = [str(node) for node in tiny64.graph.src_nodes]
    mlps, others = ["m0", "m1"], [name for name in nodes if name not in ("m0", "m1")]
    groups = {"all": nodes, "mlps": mlps, "others": others, "behind": ["m2", "logits"]}
    every, own, rest, behind = set_parts(tiny64, study, pairs, pairs, groups)
    [bound] = study.bounds
    assert (every.alone.value, every.without.value) == pytest.approx((bound.outcome.gain, 1), abs=1e-6)
    assert every.share.value == pytest.approx(1) == own.share.value + rest.share.value
    assert (own.without.value, rest.without.value) == pytest.approx((rest.alone.value, own.alone.value))
    assert (behind.share.value, behind.alone.value) == pytest.approx((0, 1), abs=1e-9)
    assert behind.without.value == pytest.approx(bound.outcome.gain, abs=1e-6)
    assert (len(own.share.random), len(every.share.random)) == (2, 0)  # of three MLPs, two others; no other whole

    def written(ids):
        with torch.no_grad(), contextlib.ExitStack() as stack:
            found = []
            for block in tiny64.bridge.original_model.transformer.h[:2]:
                keep = block.mlp.register_forward_hook(lambda _m, _i, out: found.append(out[0, -1].clone()))
                stack.callback(keep.remove)
            tiny64.logits(torch.tensor([list(ids)]))
        return sum(found)

    moved = []
    for one, other in zip(pairs.examples[::2], pairs.examples[1::2], strict=True):
        push = bound.strength * (written(one.placed.ids) - written(other.placed.ids))
        for sign, side in ((1, one), (-1, other)):
            logits = by_hand(tiny64, side.placed.ids, 1, sign * push, "prompt-end")
            moved.append(sign * (logits[list(one.answers)].mean() - logits[list(one.others)].mean()).item())
    assert own.alone.value == pytest.approx(sum(moved) / (study.plain[0] - study.plain[1]).sum(), abs=1e-5)
    assert abs(own.alone.value - 1) > 1e-3
    with pytest.raises(OptionError, match=r"--groups splits a direction .* --direction readout is not one"):
        check_has_parts("readout")


@pytest.mark.parametrize("kind", ["contrast", "personas", "pooled"])
def test_parts_of_fitted_directions_add_up(tiny64, pairs, kind):
    rows = [("abc"[(i // 2 + i % 2) % 3], f"q{i // 2}") for i in range(len(pairs.examples))]
    pairs = replace(pairs, examples=tuple(named(pairs.examples, rows)))
    study = study_steering(tiny64, pairs, pairs, kind, SteerOptions((0, 2), strengths=(1.0,), ablate=False, **FAST))
    nodes = [str(node) for node in tiny64.graph.src_nodes]
    for one in set_parts(tiny64, study, pairs, pairs, {"all": nodes}):
        bound = next(bound for bound in study.bounds if bound.layers == one.layers)
        assert (one.share.value, one.alone.value) == pytest.approx((1, bound.outcome.gain), abs=1e-6)


@pytest.mark.parametrize("position", ["persona-end", "question-end"])
def test_a_direction_is_fitted_and_added_at_the_named_token_alone(tiny64, pairs, position):
    """Against the model run by hand with the vector added to that one token of that layer's stream."""
    at = [position in one.placed.places for one in pairs.examples]
    has = [i for i in range(len(pairs.items)) if at[2 * i] and at[2 * i + 1]]
    examples = tuple(pairs.examples[2 * i + k] for i in has for k in (0, 1))
    pairs = replace(pairs, items=tuple(pairs.items[i] for i in has), examples=examples)
    options = SteerOptions((1,), strengths=(1.0,), positions=position, ablate=False, **FAST)
    study = study_steering(tiny64, pairs, pairs, "pair", options)
    streams = prompt_end_streams(tiny64, pairs.examples, position=position)
    vectors = streams[::2, 1] - streams[1::2, 1]
    np.testing.assert_allclose(study.directions.vectors[:, 1], vectors)
    moved = 0.0
    for i, (one, other) in enumerate(zip(pairs.examples[::2], pairs.examples[1::2], strict=True)):
        margins = []
        for sign, side in ((1, one), (-1, other)):
            place = side.placed.places[position]
            push = sign * torch.from_numpy(vectors[i])

            def add(stream, place=place, push=push):
                stream = stream.clone()
                stream[:, place] += push
                return stream

            with on_streams(tiny64, {1: add}):
                logits = tiny64.logits(torch.tensor([list(side.placed.ids)]))[0, -1]
            margins.append((logits[list(one.answers)].mean() - logits[list(one.others)].mean()).item())
        found = study.margins["1"][-1][:, i]
        np.testing.assert_allclose(found, margins, atol=1e-6)
        moved = max(moved, abs(found - study.plain[:, i]).max())
    assert moved > 1e-3
    texts = generate_steered(tiny64, study, study.streams, n_pairs=1, sampling=SHORT, strengths=(50.0,))
    assert any(one.changed for one in texts if one.control == "direction")


@pytest.mark.parametrize("kind", ["contrast", "personas", "pooled"])
def test_prompts_that_are_the_same_up_to_the_position_are_fitted_on_once(tiny64, pairs, kind):
    """A persona's text that is asked three questions is one stream where it ends: three are fitted on as one is."""

    def only(*places):
        examples = [replace(pairs.examples[2 * i + k], persona=f"{i} {k}") for i in places for k in (0, 1)]
        return replace(pairs, items=tuple(pairs.items[i] for i in places), examples=tuple(examples))

    def asked(one, token):
        """The same prompt with a token more, another question."""
        placed, last = one.placed, {"prompt-end": len(one.placed.ids)}
        longer = replace(placed, ids=(*placed.ids, token), places={**placed.places, **last})
        return replace(one, placed=longer, question=str(token))

    at = "persona-end"
    options = SteerOptions((1,), strengths=(1.0,), positions=at, ablate=False, **FAST)
    two = [i for i in range(len(pairs.items)) if all(at in pairs.examples[2 * i + k].placed.places for k in (0, 1))][:2]
    plain, more = only(*two), only(two[0], two[0], *two)
    tokens = [5, 5, 6, 6]
    more = replace(more, examples=(*map(asked, more.examples[:4], tokens), *more.examples[4:]))
    found, same = (study_steering(tiny64, plain, fit, kind, options) for fit in (more, plain))
    np.testing.assert_allclose(found.directions.vectors, same.directions.vectors, atol=1e-9)
    assert f"{at}: 4 pairs have 2 pairs of different streams there, each of which is counted once" in found.notes
    assert not [note for note in same.notes if at in note]
    assert more.once("prompt-end") is more


def test_a_position_that_a_prompt_does_not_have_is_refused(tiny64, pairs):
    places = {"prompt-end": 1}
    bare = [replace(one, placed=replace(one.placed, places=places)) for one in pairs.examples]
    with pytest.raises(OptionError, match=r"persona-end.*has no such token; it has prompt-end"):
        prompt_end_streams(tiny64, bare, position="persona-end")


def test_steered_texts_are_rated_by_condition(tiny64, pairs, tmp_path):
    study = study_steering(tiny64, pairs, pairs, "pair", SteerOptions((1,), strengths=(1.0,), ablate=False, **FAST))
    texts = generate_steered(tiny64, study, study.streams, n_pairs=2, sampling=SHORT, strengths=(1.0,))
    rows = [json.dumps(asdict(one) | {"perplexity": None}) + "\n" for one in texts]
    (tmp_path / "generations.jsonl").write_text("".join(rows))
    said = read_responses(tmp_path / "generations.jsonl")
    assert [one.text for one in said] == [one.text for one in texts]
    assert list(dict.fromkeys(one.condition for one in said)) == ["unsteered", "direction +1", "random +1"]
    first = pairs.examples[0]
    assert said[0].exchange.persona == first.persona
    assert (said[0].exchange.system, said[0].exchange.user) == (first.placed.persona, first.placed.question)
    rated = tuple(Rated(one, float(place % 3), None) for place, one in enumerate(said))
    whole, each = summarise_ratings(Ratings("r", "nats", rated, 0, {}, {}))
    assert [one.persona for one in each] == ["unsteered", "direction +1", "random +1"]
    assert sum(one.n for one in each) == whole.n == len(texts)
    assert each[0].rating.value == np.mean([one.rating for one in rated if one.response.condition == "unsteered"])


def test_the_readout_is_what_separates_the_two_answers(tiny64, pairs):
    """Each pair's own, from the unembedding; as long as the fitting pairs differ along theirs; beyond a random one."""
    study = study_steering(tiny64, pairs, pairs, "readout", SteerOptions((2,), strengths=(1.0,), ablate=False, **FAST))
    streams = prompt_end_streams(tiny64, pairs.examples)
    apart = streams[::2] - streams[1::2]
    for i, one in enumerate(pairs.examples[::2]):
        zero = torch.zeros(1, tiny64.d_model, dtype=tiny64.dtype, requires_grad=True)
        logits = tiny64.unembed(zero)[0]
        slope = torch.autograd.grad(logits[list(one.answers)].mean() - logits[list(one.others)].mean(), zero)[0][0]
        unit = (slope / slope.norm()).numpy()
        found = study.directions.vectors[i, 2]
        assert found / np.linalg.norm(found) == pytest.approx(unit, abs=1e-9)
    units = study.directions.vectors[:, 2] / np.linalg.norm(study.directions.vectors[:, 2], axis=-1, keepdims=True)
    length = np.abs((apart[:, 2] * units).sum(-1)).mean()
    assert np.linalg.norm(study.directions.vectors[:, 2], axis=-1) == pytest.approx(np.full(len(units), length))
    assert outcome(study, 2, 1.0).gain > outcome(study, 2, 1.0, "random").gain
    assert outcome(study, 2, -1.0).gain < 1


def test_directions_from_persona_vectors(pairs, tmp_path):
    from persona_circuits.circuit.figures import write_arrays

    rng = np.random.default_rng(0)
    streams, means = rng.normal(size=(4, 3, 32)), rng.normal(size=(3, 3, 32)).astype(np.float32)
    lists = {"n_responses": [1, 1, 1], "n_tokens": [1, 1, 1], "prompt_lengths": [1.0, 1.0, 1.0]}
    about = {"personas": ["a", "b", "c"], "questions": ["q"], "model": "m", "fingerprint": "f", "left_out": {}}
    about |= lists | {"layer": 0, "baseline": None}
    write_arrays({"means": means, "halves": np.stack([means] * 2)}, about, tmp_path / "vectors.safetensors")
    examples = named(pairs.examples, [("a", "x"), ("b", "x"), ("c", "x"), ("a", "x")])
    found = find_directions(str(tmp_path), examples, streams, examples, streams)
    np.testing.assert_allclose(found.vectors, np.stack([means[0] - means[1], means[2] - means[0]]), atol=1e-6)
    assert not find_directions(str(tmp_path), examples, streams, examples, streams, fingerprint="f").notes
    assert (
        "other weights"
        in find_directions(str(tmp_path), examples, streams, examples, streams, fingerprint="g").notes[0]
    )
    fixed = find_directions(str(tmp_path), examples, streams, examples, streams, toward=("c", "b"))
    np.testing.assert_allclose(fixed.vectors, np.stack([means[2] - means[1]] * 2), atol=1e-6)
    with pytest.raises(TaskError, match="no vector of d"):
        find_directions(str(tmp_path), examples, streams, examples, streams, toward=("c", "d"))
    with pytest.raises(FileError, match="shape"):
        find_directions(str(tmp_path), examples, streams[:, :2], examples, streams[:, :2])


def run_of(plain):
    """A run whose unsteered margins are given; nothing of it is run."""
    n = plain.shape[1]
    empty = tuple(() for _ in range(n))
    names = tuple(f"p{i}" for i in range(n))
    both = tuple((name, name) for name in names)
    prompts = SteeredPrompts((empty, empty), empty, (empty, empty), (names, names), both, names)
    options = SteerOptions((0,), **FAST).checked()
    run = object.__new__(runs.Run)
    run.prompts, run.options, run.plain = prompts, options, plain
    return run


def test_flips_happen_exactly_above_the_required_gain():
    """With b held and D times g, pairs part for g > g* and for no other; with b moved they need not."""
    rng = np.random.default_rng(0)
    d, b = rng.uniform(0.5, 3, size=60), rng.normal(size=60) * 2
    plain = np.stack([b + d / 2, b - d / 2])
    run, item = run_of(plain), runs.Named("direction", -1, {})
    needed = metrics.required_gain(torch.from_numpy(b), torch.from_numpy(d)).numpy()
    for gain in (-1.0, 0.5, 1.0, 1.7, 3.0):
        found = run._outcome((0,), item, 1.0, np.stack([b + gain * d / 2, b - gain * d / 2]), np.zeros(60))
        assert found.gain == pytest.approx(gain)
        assert found.agree == 1
        assert found.above == found.parted == pytest.approx((gain > needed).mean())
        assert found.n_collapsed == (needed >= 1).sum()
        assert found.flipped == pytest.approx((gain > needed)[needed >= 1].mean())
        assert found.prior_shift == pytest.approx(0, abs=1e-9)
    moved = run._outcome((0,), item, 1.0, np.stack([0 * b + 1.7 * d / 2, 0 * b - 1.7 * d / 2]), np.zeros(60))
    assert moved.parted == 1
    assert moved.agree < 0.9
    assert moved.prior_shift == pytest.approx(np.abs(b).mean())


def test_pairs_without_a_persona_effect_are_not_asked():
    plain = np.array([[1.0, -1.0, 2.0], [2.0, 1.0, 1.0]])  # D = -1, -2, 1
    found = run_of(plain)._outcome((0,), runs.Named("direction", -1, {}), 1.0, plain, np.zeros(3))
    assert found.n_asked == 1
    assert (found.above, found.flipped, found.n_collapsed) == (0, 0, 1)
    none = run_of(plain[:, :2])._outcome((0,), runs.Named("direction", -1, {}), 1.0, plain[:, :2], np.zeros(2))
    assert (none.above, none.agree, none.flipped) == (None, None, None)


def test_ablation_takes_out_the_direction_and_nothing_else(tiny64):
    rng = torch.Generator().manual_seed(0)
    stream = torch.randn(2, 5, 32, generator=rng, dtype=torch.float64)
    vectors = torch.randn(2, 32, generator=rng, dtype=torch.float64)
    [change] = without_direction({1: vectors}).values()
    left = change(stream)
    torch.testing.assert_close(torch.einsum("bpd,bd->bp", left, vectors), torch.zeros(2, 5, dtype=torch.float64))
    torch.testing.assert_close(change(left), left)
    torch.testing.assert_close(change(stream + 7 * vectors[:, None]), left)  # whatever there was along it
    tokens = torch.randint(2, 60, (2, 6), generator=rng)
    plain = tiny64.logits(tokens)
    with on_streams(tiny64, without_direction({0: vectors})):
        assert not torch.allclose(tiny64.logits(tokens), plain, atol=1e-3)
    torch.testing.assert_close(tiny64.logits(tokens), plain)


@pytest.mark.slow
def test_every_option_does_something(tiny64, pairs):
    def numbers(**options):
        found = study_steering(
            tiny64, pairs, pairs, "pair", SteerOptions(**{"layers": (0, 1), "strengths": (1.0,)} | FAST | options)
        )
        return [(one.layers, one.control, one.draw, one.strength, one.divergence.value) for one in found.outcomes]

    base = numbers()
    assert numbers() == base
    assert numbers(positions="all") != base
    assert numbers(seed=1) != base
    assert {key[0] for key in numbers(together=True)} == {(0, 1)}
    assert None not in {key[3] for key in numbers(ablate=False)}
    assert {key[2] for key in numbers(n_controls=2)} == {-1, 0, 1}
    assert numbers(layers=(1, 0, 1)) == base


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"layers": ()}, "nothing to steer"),
        ({"strengths": ()}, "nothing to steer"),
        ({"strengths": (0.0, 1.0)}, "above 0"),
        ({"strengths": (float("inf"),)}, "above 0"),
        ({"positions": "middle"}, "not one of"),
        ({"n_controls": 0}, "n-controls"),
        ({"kl_bound": 0.0}, "kl-bound"),
        ({"layers": (3,)}, "layer 3"),
    ],
)
def test_options_out_of_range(tiny64, pairs, options, says):
    with pytest.raises(OptionError, match=says):
        study_steering(tiny64, pairs, pairs, "pair", SteerOptions(**{"layers": (0,)} | options))


def test_neutral_prompts(tiny64, pairs):
    own = steered_prompts(pairs, tiny64)
    assert own.texts[0][0] == "you choose red or blue? answer:"
    assert tiny64.tokenizer.decode(own.neutral[0]).split() == own.texts[0][0].split()
    given = steered_prompts(pairs, tiny64, ["they like tea", "you"])
    assert given.texts[0][:3] == ("they like tea", "you", "they like tea")
    assert len(given.all) == 3 * len(given)
    with pytest.raises(TaskError, match=r"'you you .*: a prompt has 60 tokens, the model's context holds"):
        steered_prompts(pairs, tiny64, ["they like tea", " ".join(["you"] * 60)])


def test_what_is_fitted_on_what_is_steered_is_called_so(tiny64, pairs, study):
    assert not study.held_out
    assert "each pair's own" in " ".join(study.notes)
    some, others = some_pairs(pairs, 2), replace(pairs, items=pairs.items[2:4], examples=pairs.examples[4:8])
    assert study_steering(tiny64, some, others, "pooled", SteerOptions((0,), **FAST)).held_out
    same = study_steering(tiny64, some, some, "pooled", SteerOptions((0,), **FAST))
    assert not same.held_out
    assert "not held out" in " ".join(same.notes)


def test_texts_before_and_after(tiny64, pairs, study):
    sampling = Sampling(max_new_tokens=6, temperature=0.0)
    texts = generate_steered(tiny64, study, study.streams, n_pairs=3, sampling=sampling, strengths=(0.5, 8.0))
    assert len(texts) == 3 * 2 * (1 + 2 * 2)
    layers = steered_layers(study)
    best = max(study.bounds, key=lambda bound: bound.outcome.gain)
    assert layers == best.layers
    for one in texts:
        i = study.ids.index(one.pair)
        ids = study.prompts.sides[1][i] if one.kind == "B" else study.prompts.neutral[i]
        if one.control == "unsteered":
            [plain] = continuations(tiny64, [ids], sampling, keys=["x"])
            assert (one.text, one.n_tokens, one.changed) == (plain.text, len(plain.ids), False)
            base = plain
        if one.control == "direction" and one.strength == 8.0:
            vector = torch.from_numpy(8.0 * study.directions.vectors[[i], layers[0]])
            said, logits = [], by_hand(tiny64, ids, layers[0], vector[0], "prompt-end")
            for _ in range(2):  # the prompt's last token and the first one that is made are both steered
                said.append(int(logits.argmax()))
                with on_streams(tiny64, {layers[0]: steer_from(len(ids) - 1, vector)}):
                    logits = tiny64.logits(torch.tensor([[*ids, *said]]))[0, -1]
            assert one.text.startswith(tiny64.tokenizer.decode(said)) or 0 in said
            assert one.changed == (one.text != base.text)
    summaries = {(one.control, one.strength): one for one in readability(texts)}
    assert summaries["unsteered", 0.0].n == 6
    assert summaries["unsteered", 0.0].changed == 0
    assert summaries["direction", 8.0].changed > 0


def steer_from(first, vector):
    def change(stream):
        return torch.cat([stream[:, :first], stream[:, first:] + vector[:, None]], dim=1)

    return change


def test_likelihood_is_the_model_s_and_repetition_what_it_says(tiny64):
    rows = [SpokenTokens((4, 9, 3, 7, 8), 2), SpokenTokens((4, 9), 1), SpokenTokens((5, 9, 3, 7, 8), 5)]
    found = log_likelihoods(tiny64, rows, batch_size=1)
    for row, values in zip(rows, found, strict=True):
        assert len(values) == len(row.ids) - row.start
        for place, value in enumerate(values, row.start):
            logits = tiny64.logits(torch.tensor([row.ids[:place]]))[0, -1]
            assert value == pytest.approx(logits.log_softmax(-1)[row.ids[place]].item(), abs=1e-5)
    together = log_likelihoods(tiny64, rows, batch_size=8)
    for one, other in zip(found, together, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6)
    assert perplexity(np.log([0.5, 0.125])) == pytest.approx(4)
    assert np.isnan(perplexity(np.empty(0)))
    assert repetition([1, 2, 3, 4]) == 0
    assert repetition([1, 2, 1, 2, 1, 2]) == pytest.approx(0.5)
    assert repetition([7] * 12) == pytest.approx(0.9)
    assert np.isnan(repetition([1, 2, 3]))


def test_files_are_the_same_bytes(tiny64, study, tmp_path):
    texts = generate_steered(
        tiny64, study, study.streams, n_pairs=2, sampling=Sampling(max_new_tokens=4, temperature=0.0)
    )
    for name in "ab":
        (tmp_path / name).mkdir()
        write_steering(study, texts, {"pairs": "x"}, tmp_path / name)
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes(), path.name
    record = json.loads((tmp_path / "a" / "steer.json").read_text())
    assert len(record["outcomes"]) == len(study.outcomes) == 2 * 3 * 9
    assert len((tmp_path / "a" / "generations.jsonl").read_text().splitlines()) == len(texts)


def call(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_the_command(tmp_path):
    tiny = ["steer", "--model", DATA / "tiny-gpt2", "--pairs", PAIRS, "--n-controls", 1, "--n-resamples", 20]
    done = call(*tiny, "--out", tmp_path / "a", "--layer", 1, "--generate", 2, "--max-new-tokens", 4)
    assert done.exit_code == 0, done.output
    for part in ("along pooled", "largest strength", "ablated", "unsteered", "not held out"):
        assert part in done.stdout
    done = call(*tiny, "--out", tmp_path / "b", "--direction", "pair", "--generate", 0, "--json", "--strengths", "1")
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["direction"] == "pair"
    assert (tmp_path / "b" / "generations.jsonl").read_text() == ""
    for options, says in (
        (["--strengths", "1,x"], "numbers separated by commas"),
        (["--strengths", "-1"], "above 0"),
        (["--layer", 7], "layer 7"),
        (["--direction", "nothing"], "not one of"),
        (["--direction", "personas"], "not fitted on"),
        (["--toward", "a"], "go together"),
        (["--neutral", tmp_path / "none"], "cannot be read"),
        (["--split", "test"], "no pair of split"),
        (["--max-pairs", 0], "max-pairs"),
    ):
        done = call(*tiny, "--out", tmp_path / "x", *options)
        assert done.exit_code == 2, (options, done.output)
        assert says in done.stderr, done.stderr


def test_a_real_model_is_steered_to_moods_that_it_was_not_fitted_on(craftgpt):
    """Held-out personas and questions: the pooled direction amplifies and removes their effect, controls do not."""
    path = ROOT / "datasets" / "craftgpt_weather.jsonl"
    fitting, steered = (load_examples(path, craftgpt, split=split) for split in ("train", "test"))
    options = SteerOptions((4,), strengths=(0.5, 1.0), n_controls=2, n_resamples=20)
    study = study_steering(craftgpt, steered, fitting, "pooled", options)
    assert study.held_out
    assert outcome(study, 4, 0.5).gain > 1.8
    assert outcome(study, 4, -0.5).gain < 0.2
    assert abs(outcome(study, 4, None).gain) < 0.4
    assert outcome(study, 4, 0.5).agree > 0.8
    for draw in (0, 1):
        assert 0.7 < outcome(study, 4, 0.5, "random", draw).gain < 1.3
        assert 0.8 < outcome(study, 4, None, "random", draw).gain < 1.2
    assert study.bounds[0].outcome.flipped > 0.3


def test_streams_at_the_prompt_s_end(tiny64, pairs):
    found = prompt_end_streams(tiny64, pairs.examples, batch_size=3)
    for one, rows in zip(pairs.examples[:4], found[:4], strict=True):
        seen = []
        with on_streams(tiny64, dict.fromkeys(range(3), lambda stream, seen=seen: seen.append(stream[0, -1]))):
            tiny64.logits(torch.tensor([one.placed.ids]))
        np.testing.assert_allclose(rows, torch.stack(seen), atol=1e-9)


def test_pooling_is_called_wrong_where_couples_have_no_direction_in_common():
    from persona_circuits.persona.vectors.directions import _pooling_notes

    rng = np.random.default_rng(0)
    names = [(f"a{i // 2}", f"b{i // 2}") for i in range(24)]
    noise, common = rng.normal(size=(24, 2, 40)), rng.normal(size=(2, 40))
    assert _pooling_notes(noise + common, names) == ()
    (note,) = _pooling_notes(noise * np.where(np.arange(24) < 12, 1, -1)[:, None, None], names)
    assert "pooling is wrong here" in note
    turned = (noise * 0.1 + common) * np.where(np.arange(24) < 12, 1, -1)[:, None, None]  # no order of A and B
    (note,) = _pooling_notes(turned, names)
    assert "pooling is wrong here" in note
    (note,) = _pooling_notes(noise[:4], names[:4])
    assert "2 couple(s)" in note
