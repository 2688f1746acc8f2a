"""The logit lens: against Hugging Face's hidden states, the norm's formula, and hand-made curves."""

import csv
import json
import re

import numpy as np
import pytest
import torch
from conftest import CRAFTGPT, DATA, ROOT
from safetensors.numpy import load_file
from typer.testing import CliRunner

from persona_circuits import metrics
from persona_circuits.circuit.errors import FileError, OptionError
from persona_circuits.circuit.forward import run
from persona_circuits.circuit.model import wrap_model
from persona_circuits.cli import app
from persona_circuits.persona.data import load_examples
from persona_circuits.persona.lens import (
    LensOptions,
    component_names,
    decision,
    lens_figures,
    lens_record,
    lens_tables,
    read_out,
    read_out_direction,
    study_lens,
    write_lens,
)
from persona_circuits.persona.streams import collect, grouped, trace

QUICK = LensOptions(n_resamples=100)
PAIRS = DATA / "tiny_pairs.json"


@pytest.fixture(scope="module")
def found(tiny):
    return load_examples(PAIRS, tiny, label="tiny pairs")


@pytest.fixture(scope="module")
def study(tiny, found):
    return study_lens(tiny, found, options=QUICK)


@pytest.fixture(scope="module")
def network(tiny):
    return tiny.bridge.original_model


def hidden(network, ids):
    """Hugging Face's streams between the blocks; its last one is after the final norm."""
    with torch.no_grad():
        return network(torch.tensor([ids]), output_hidden_states=True).hidden_states


def written(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


ROW = {
    "clean": "you are a happy cook. you choose red or blue? answer:",
    "corrupt": "you are a sad cook. you choose red or blue? answer:",
    "answers": [" blue"],
    "wrong_answers": [" red"],
}


# Words


def test_words_are_those_of_hugging_faces_streams_read_out(study, tiny, found, network):
    """By point and side the mean probability over prompts, of the ten most likely of each."""
    rows = lens_tables(study)[1].cells()
    assert [row[0] for row in rows] == list(study.points)
    for side in (0, 1):
        prompts = [one.placed.ids for one in found.examples[side::2]]
        for point in range(len(study.points) - 1):
            total = {}
            for ids in prompts:
                stream = hidden(network, ids)[point][0, -1]
                probabilities = torch.softmax(network.lm_head(network.transformer.ln_f(stream)).double(), -1)
                for token in probabilities.argsort(descending=True)[:10].tolist():
                    text = tiny.tokenizer.decode([token])
                    total[text] = total.get(text, 0.0) + probabilities[token].item() / len(prompts)
            expected = sorted(total.values(), reverse=True)[:10]
            words = study.words[point][side]
            np.testing.assert_allclose([probability for _, probability in words], expected, atol=1e-5)
            assert repr(words[0][0]) in rows[point][1 + side]


# Streams


def test_streams_are_hugging_faces_at_the_named_places(tiny, found, network):
    one = found.examples[0].placed
    places = [3, len(one.ids) - 1]
    streams = collect(tiny, [one.ids], [places])[0]
    for point, expected in enumerate(hidden(network, one.ids)[:-1]):
        torch.testing.assert_close(streams[point], expected[0, places], atol=1e-5, rtol=1e-5)
    normed = network.transformer.ln_f(streams[-1])
    torch.testing.assert_close(normed, hidden(network, one.ids)[-1][0, places], atol=1e-5, rtol=1e-5)


def test_no_number_depends_on_what_shares_a_batch(tiny, found):
    """Nothing is padded: a prompt alone and among prompts of other lengths has the same streams."""
    prompts = [one.placed.ids for one in found.examples]
    assert len(set(map(len, prompts))) > 1
    places = [[len(ids) - 1] for ids in prompts]
    calls = []
    together = collect(tiny, prompts, places, batch_size=5, progress=lambda done, total: calls.append((done, total)))
    alone = torch.cat([collect(tiny, [ids], [at]) for ids, at in zip(prompts, places, strict=True)])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-5)
    assert calls[-1] == (16, 16)
    groups = list(grouped([4, 3, 4, 4], 2))
    assert groups == [[1], [0, 2], [3]]


def test_parts_and_biases_sum_to_the_final_stream(tiny64, found):
    ids = torch.tensor([found.examples[0].placed.ids])
    seen = trace(tiny64, ids, torch.tensor([[ids.shape[1] - 1]]), with_parts=True)
    torch.testing.assert_close(seen.parts.sum(0) + seen.biases.sum(0), seen.streams[-1, :, 0])
    assert float(seen.biases.abs().max()) > 1e-3
    assert len(component_names(tiny64.graph)) == len(seen.parts) + len(seen.biases)


# The lens


def test_the_last_row_is_the_models_logits_exactly(tiny, found):
    """The read-out after the last block, final norm and all, is the very tensor that the model's own pass gives."""
    group = next(grouped([len(one.placed.ids) for one in found.examples], 8))
    tokens = torch.tensor([found.examples[i].placed.ids for i in group])
    last = torch.full((len(tokens), 1), tokens.shape[1] - 1)
    lens = tiny.unembed(trace(tiny, tokens, last).streams[-1, :, 0].contiguous())
    with torch.no_grad():
        assert torch.equal(lens, run(tiny, *tiny.start(tokens)).logits)
    torch.testing.assert_close(lens, tiny.logits(tokens)[:, -1], atol=1e-5, rtol=1e-5)


def test_neither_the_final_norm_nor_the_last_block_is_left_out(tiny, found, study, network):
    """Every row is the norm and the unembedding of Hugging Face's stream; without either the numbers are others."""
    place = study.positions.index("prompt-end")
    wrong = {"no norm": 0.0, "a block early": 0.0}
    for i, one in enumerate(found.examples[:6]):
        states = hidden(network, one.placed.ids)
        a, b = (one.answers[0], one.others[0])[:: 1 if one.is_clean else -1]
        for point in range(4):
            stream = states[point][0, -1]
            logits = network.lm_head(network.transformer.ln_f(stream) if point < 3 else stream)
            margin = float(logits[a] - logits[b])
            measured = study.margin[i % 2, i // 2, point, place]
            assert measured == pytest.approx(margin, abs=1e-4)
            if point < 3:
                bare = network.lm_head(stream)
                wrong["no norm"] = max(wrong["no norm"], abs(float(bare[a] - bare[b]) - measured))
        before = study.margin[i % 2, i // 2, 2, place]
        wrong["a block early"] = max(wrong["a block early"], abs(before - study.margin[i % 2, i // 2, 3, place]))
    assert min(wrong.values()) > 0.01


def test_probabilities_and_kl_are_of_the_whole_vocabulary(tiny, found, study):
    one = found.examples[1]
    place = study.positions.index("prompt-end")
    streams = collect(tiny, [one.placed.ids], [[len(one.placed.ids) - 1]])[0, :, 0]
    log_probs = tiny.unembed(streams).double().log_softmax(-1).detach()
    target = log_probs[-1]
    for point in range(4):
        kl = torch.nn.functional.kl_div(log_probs[point], target, log_target=True, reduction="sum")
        assert study.kl[1, 0, point, place] == pytest.approx(float(kl), abs=1e-6)
        assert study.answer[1, 0, point, place] == pytest.approx(
            float(log_probs[point][one.answers[0]].exp()), abs=1e-6
        )
        assert study.other[1, 0, point, place] == pytest.approx(float(log_probs[point][one.others[0]].exp()), abs=1e-6)
        shown = log_probs[point][list(one.candidates)].numpy()
        np.testing.assert_allclose(study.log_probs[1, 0, point, place], shown, atol=1e-6)
        assert study.top[1, 0, point, place] == int(log_probs[point].argmax())
    assert (study.kl[:, :, -1] == 0).all()
    assert (study.kl[:, :, 0] > 0.01).all()


def test_divergence_is_that_of_the_behavioural_study():
    from persona_circuits.circuit.model import load_model
    from persona_circuits.persona.behaviour import measure_pairs
    from persona_circuits.persona.data import load_items

    world = load_model(ROOT / "models" / "persona-world")
    path = ROOT / "datasets" / "pairs_demo.jsonl"
    study = study_lens(world, load_examples(path, world), options=QUICK)
    expected = [one.divergence for one in measure_pairs(world, load_items(path).items)]
    np.testing.assert_allclose(study.divergence[:, -1, -1], expected, atol=1e-4)
    assert study.attribution.conserved
    assert study.attribution.error < 1e-4
    curve = [row[-1] for row in study.curves["divergence"]]
    assert curve[0].value == pytest.approx(0.0, abs=1e-6)  # the answer's place holds the same token
    assert curve[-1].low <= curve[-1].value <= curve[-1].high
    assert np.median([one.pivot for one in study.decisions]) > 6


@pytest.mark.parametrize(
    ("curve", "pivot", "jump", "stable"),
    [
        ([0.0, 1.0, 2.0, 4.0], 2, 2, 1),
        ([0.0, -1.0, 3.0, 2.0], 2, 1, 2),
        ([0.0, 1.0, -1.0, -4.0], 3, 2, 2),
        ([-1.0, -2.0, -3.0, -4.0], 1, 0, 0),
        ([5.0, 4.0, 3.0, 2.0], 0, None, 0),
        ([1.0, 2.0, 1.0, 0.0], None, None, None),
    ],
)
def test_the_decision_of_hand_made_curves(curve, pivot, jump, stable):
    found = decision(np.array(curve), [0, 1, 1, 1], [1, 1, 0, 1])
    assert (found.pivot, found.jump, found.stable_from) == (pivot, jump, stable)
    assert (found.choice_a, found.choice_b) == (1, 3)


# Attribution


def test_the_read_out_is_the_norms_formula(tiny64, found):
    """LayerNorm: v = P (w * (u_a - u_b)) / sqrt(variance + eps), P taking the mean."""
    model, network = tiny64, tiny64.bridge.original_model
    x = torch.randn(3, model.d_model, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    a, b = torch.tensor([[5], [6], [7]]), torch.tensor([[8, 9], [10, 11], [12, -1]])
    norm, table = network.transformer.ln_f, network.lm_head.weight
    u = torch.stack(
        [table[5] - (table[8] + table[9]) / 2, table[6] - (table[10] + table[11]) / 2, table[7] - table[12]]
    )
    plain = norm.weight * u
    plain = (plain - plain.mean(-1, keepdim=True)) / (x.var(-1, unbiased=False, keepdim=True) + norm.eps).sqrt()
    torch.testing.assert_close(read_out(model, x, a, b), plain.detach(), atol=1e-10, rtol=1e-10)
    direction = read_out_direction(model, a, b)
    torch.testing.assert_close(direction, plain.detach() / plain.detach().norm(dim=-1, keepdim=True))


def test_attributions_sum_to_d_in_float64(tiny64):
    study = study_lens(tiny64, load_examples(PAIRS, tiny64), options=QUICK)
    place = study.positions.index("prompt-end")
    np.testing.assert_allclose(study.attribution.values.sum(1), study.divergence[:, -1, place], atol=1e-10)
    assert study.attribution.conserved
    assert study.attribution.error < 1e-10


def test_conservation_fails_when_a_component_is_left_out(tiny64, monkeypatch):
    """The check is no identity: without the attention biases the sum is another."""
    from persona_circuits.persona.lens import study as lens

    def without_biases(*arguments, **settings):
        seen = trace(*arguments, **settings)
        return type(seen)(seen.streams, seen.parts, seen.biases * 0)

    monkeypatch.setattr(lens, "trace", without_biases)
    monkeypatch.setattr(lens, "TOLERANCE", 1e-9)
    study = study_lens(tiny64, load_examples(PAIRS, tiny64), options=QUICK)
    assert not study.attribution.conserved
    assert "miss D" in " ".join(study.notes)


@pytest.mark.parametrize("family", ["llama", "neox, parallel", "gemma2, capped", "gemma2, not capped"])
def test_other_families_conserve_d_or_say_that_they_do_not(family, tiny):
    from transformers import AutoModelForCausalLM, Gemma2Config, GPTNeoXConfig, LlamaConfig

    size = len(tiny.tokenizer)
    small = {"vocab_size": size, "hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    small |= {"intermediate_size": 64, "max_position_embeddings": 64}
    gemma = {**small, "num_key_value_heads": 2, "head_dim": 12, "pad_token_id": 0}
    config = {
        "llama": LlamaConfig(**small, num_key_value_heads=2),
        "neox, parallel": GPTNeoXConfig(**small),
        "gemma2, capped": Gemma2Config(**gemma, final_logit_softcapping=0.5),
        "gemma2, not capped": Gemma2Config(**gemma, final_logit_softcapping=None),
    }[family]
    torch.manual_seed(0)
    network = AutoModelForCausalLM.from_config(config, attn_implementation="eager").double()
    with torch.no_grad():
        for name, weight in network.named_parameters():
            weight.normal_(mean=1.0 if "norm" in name and weight.dim() == 1 else 0.0, std=0.15)
    model = wrap_model(network, tiny.tokenizer, name=family)
    study = study_lens(model, load_examples(PAIRS, model), options=QUICK)
    assert study.attribution.conserved == (family != "gemma2, capped")
    if study.attribution.conserved:
        assert study.attribution.error < 1e-5
    else:
        assert "caps its logits" in study.notes[-1]
        assert len(lens_tables(study)) == 2
        assert "attribution" not in lens_figures(study)


# Words


def test_words_given_are_taken_behind_the_prompt_and_never_at_index_zero(tiny, tmp_path, monkeypatch):
    """With a tokenizer that adds a BOS, the first id of any word alone is the BOS: D would be zero throughout."""
    from tokenizers.processors import TemplateProcessing
    from transformers import AutoTokenizer

    name = "they"
    tokenizer = AutoTokenizer.from_pretrained(DATA / "tiny-gpt2", bos_token=name)
    bos = tokenizer.bos_token_id
    assert bos == tiny.tokenizer.convert_tokens_to_ids(name)
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single=f"{name} $A", special_tokens=[(name, bos)])
    monkeypatch.setattr(tiny, "tokenizer", tokenizer)
    path = written(tmp_path / "pairs.jsonl", {**ROW, "answers": [" tea"], "wrong_answers": [" blue"]})
    found = load_examples(path, tiny, tokens=(" coffee", " dogs"))
    assert tokenizer(" coffee")["input_ids"][0] == bos
    for one in found.examples:
        assert one.placed.ids[0] == bos
        assert one.placed.ids[1] != bos
        assert tokenizer.decode(list(one.candidates)) == " coffee dogs"
        assert bos not in one.candidates
    study = study_lens(tiny, found, tokens=(" coffee", " dogs"), options=QUICK)
    assert abs(study.divergence[0, -1, -1]) > 1e-4


def test_words_take_the_place_of_the_files_answers(tiny, tmp_path, study):
    found = load_examples(PAIRS, tiny, tokens=(" tea", " coffee"))
    own = study_lens(tiny, found, tokens=(" tea", " coffee"), options=QUICK)
    second = found.items[1].pair
    assert (second.answers, second.wrong_answers) == ((" coffee",), (" tea",))
    np.testing.assert_allclose(own.divergence[1], -study.divergence[1], atol=1e-5)
    assert lens_record(own)["tokens"] == [" tea", " coffee"]
    assert not np.allclose(own.divergence[0], study.divergence[0])


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ((" tea coffee", " blue"), r"line 1.*' tea coffee' is 2 tokens here"),
        (("", " blue"), "is 0 tokens here"),
        ((" tea", " tea"), "is the answer of both personas"),
        ((" tea", " xyzzy"), "the tokenizer has no token for ' xyzzy'"),
    ],
)
def test_a_word_of_several_tokens_is_refused(tiny, tmp_path, words, says):
    with pytest.raises(OptionError, match=f"(?s){says}"):
        load_examples(written(tmp_path / "pairs.jsonl", ROW), tiny, tokens=words)


def test_prompts_of_different_length_are_named(tiny, tmp_path):
    longer = {**ROW, "clean": ROW["clean"].replace("happy", "happy happy")}
    study = study_lens(tiny, load_examples(written(tmp_path / "pairs.jsonl", longer), tiny), options=QUICK)
    assert "1 of 1 pairs have prompts of different length" in study.notes
    assert study.curves["divergence"][-1][-1].low is None  # one pair: no interval


# Files and the command line


@pytest.fixture(scope="module")
def folder(study, tmp_path_factory):
    path = tmp_path_factory.mktemp("lens")
    write_lens(study, path)
    return path


def test_the_same_study_gives_the_same_files(study, folder, tmp_path):
    write_lens(study, tmp_path)
    names = sorted(path.name for path in folder.iterdir())
    pictures = [f"{name}.png" for name in lens_figures(study)]
    assert names == sorted(
        [*pictures, "components.csv", "curves.csv", "lens.html", "lens.json", "lens.safetensors", "pairs.csv"]
    )
    for name in names:
        assert (tmp_path / name).read_bytes() == (folder / name).read_bytes()
    with pytest.raises(FileError):
        write_lens(study, tmp_path / "absent")


def test_files_hold_what_was_measured(study, folder):
    arrays = load_file(folder / "lens.safetensors")
    np.testing.assert_array_equal(arrays["divergence"], study.divergence)
    np.testing.assert_allclose(arrays["attribution"].sum(1), study.divergence[:, -1, -1], atol=1e-4)
    curves = list(csv.DictReader((folder / "curves.csv").open()))
    assert len(curves) == 4 * len(study.positions)
    last = next(row for row in curves if (row["after"], row["position"]) == ("block 2", "prompt-end"))
    assert float(last["divergence.value"]) == pytest.approx(study.divergence[:, -1, -1].mean(), abs=1e-6)
    assert float(last["kl.value"]) == 0
    pairs = list(csv.DictReader((folder / "pairs.csv").open()))
    assert [row["id"] for row in pairs] == [item.pair.id for item in study.items]
    components = list(csv.DictReader((folder / "components.csv").open()))
    assert sorted(row["component"] for row in components) == sorted(component_names(study.graph))
    assert sum(float(row["share"]) for row in components) == pytest.approx(1.0, abs=1e-3)
    record = json.loads((folder / "lens.json").read_text())
    assert record["attribution"]["conserved"]
    assert record["decision"]["pivot"]["n"] == 8


def test_the_tables_hold_the_studys_numbers(study):
    curves, words, components = lens_tables(study)
    assert curves.cells()[-1][0] == "block 2"
    assert curves.cells()[-1][1] == f"{study.curves['divergence'][-1][-1].value:+.2f}"
    assert {len(row) for row in components.cells()} == {4}
    assert any(line.startswith("block that moves D most: block") for line in words.notes)


def test_positions_can_be_chosen(tiny, found):
    study = study_lens(tiny, found, options=LensOptions(("prompt-end",), n_resamples=100))
    assert study.margin.shape == (2, 8, 4, 1)
    assert study.positions == ("prompt-end",)
    other = study_lens(tiny, found, options=LensOptions(("persona-end",), n_resamples=100))
    assert other.decisions == ()
    assert other.attribution.conserved
    with pytest.raises(OptionError, match="--n-resamples must be at least 100, got 5"):
        study_lens(tiny, found, options=LensOptions(n_resamples=5))


def call(*arguments):
    return CliRunner().invoke(app, ["lens", *map(str, arguments)])


def test_the_command_writes_and_prints(tmp_path):
    model = ["--model", DATA / "tiny-gpt2", "--pairs", PAIRS, "--n-resamples", 100]
    done = call(*model, "--out", tmp_path / "out", "--tokens", " tea", " coffee", "--json")
    assert done.exit_code == 0, done.output
    record = json.loads(done.stdout)
    assert record["tokens"] == [" tea", " coffee"]
    assert (tmp_path / "out" / "lens.html").is_file()
    done = call(*model, "--out", tmp_path / "out", "--positions", "prompt-end")
    assert re.search(r"conserved\s+the parts sum to D within", done.stdout)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--model", DATA / "tiny-gpt2"], "--model needs --pairs"),
        (["--model", DATA / "tiny-gpt2", "--pairs", PAIRS, "--tokens", " tea coffee", " blue"], "2 tokens here"),
        (["--model", DATA / "tiny-gpt2", "--pairs", PAIRS, "--positions", "here"], "'here' is not one of"),
        (["--model", DATA / "tiny-gpt2", "--pairs", PAIRS, "--split", "dev"], "no pair of split 'dev'"),
        (["--model", DATA / "tiny-gpt2", "--pairs", DATA / "absent.jsonl"], "cannot be read"),
        (["--pairs", PAIRS, "--batch-size", "0"], "--batch-size must be at least 1"),
    ],
)
def test_bad_input_is_one_message_and_exit_code_two(arguments, says, tmp_path):
    done = call(*arguments, "--out", tmp_path / "out")
    assert done.exit_code == 2
    assert says in done.stderr
    assert "Traceback" not in done.output
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(not CRAFTGPT.is_dir(), reason="craftgpt-5m is not at ../shared/models")
def test_a_real_model_conserves_d(craftgpt):
    found = load_examples(ROOT / "datasets" / "craftgpt_weather.jsonl", craftgpt)
    study = study_lens(craftgpt, found, options=QUICK)
    assert study.attribution.error < 1e-4
    last = study.divergence[:, -1, -1]
    ids = torch.tensor([found.examples[0].placed.ids, found.examples[1].placed.ids])
    logits = craftgpt.logits(ids)[:, -1]
    a, b = (torch.tensor([list(side)] * 2) for side in (found.examples[0].answers, found.examples[0].others))
    margins = metrics.logit_diff(logits, a, b)
    assert last[0] == pytest.approx(float(margins[0] - margins[1]), abs=1e-4)
