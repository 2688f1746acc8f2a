"""Training: the fast pass equals the model's own, resuming gives the same bits, errors are sentences."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from persona_circuits.circuit.errors import FileError, OptionError
from persona_circuits.models.training import SMOKE, TrainingConfig, build_model, logits_at
from persona_circuits.models.training.train import main, train
from persona_circuits.models.world import CUES, BatchMaker, build_tokenizer, build_world

TINY = TrainingConfig(steps=6, tokens=256, d_model=24, n_layers=2, n_heads=2, seed=3)


@pytest.fixture(scope="module")
def made():
    world = build_world()
    tokenizer = build_tokenizer(world)
    return tokenizer, BatchMaker(world, tokenizer, seed=1, tokens=2048, exact=True)


def test_the_fast_pass_is_the_model_s_own():
    model = build_model(vocab_size=50, d_model=24, n_positions=32, n_layers=3, n_heads=4)
    ids = torch.arange(60).view(3, 20) % 50
    rows = torch.tensor([0, 17, 25, 59])
    with torch.no_grad():
        expected = model(ids).logits.flatten(0, 1)[rows]
        torch.testing.assert_close(logits_at(model, ids, rows, bfloat16=False), expected, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(logits_at(model, ids, rows), expected, atol=0.05, rtol=0.05)


def test_building_a_model_is_seeded_and_leaves_the_random_state_alone():
    torch.manual_seed(11)
    expected = torch.rand(3)
    torch.manual_seed(11)
    shape = {"vocab_size": 30, "d_model": 12, "n_positions": 8, "n_layers": 1, "n_heads": 2}
    first, again, other = (build_model(**shape, seed=seed).state_dict() for seed in (1, 1, 2))
    assert torch.equal(torch.rand(3), expected)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["transformer.wte.weight"], other["transformer.wte.weight"])


def test_a_batch_depends_on_seed_and_step_alone(made):
    tokenizer, maker = made
    fresh = BatchMaker(build_world(), tokenizer, seed=1, tokens=2048, exact=True)
    assert torch.equal(maker.batch(7).ids, fresh.batch(7).ids)
    assert not torch.equal(maker.batch(8).ids.flatten()[:99], fresh.batch(7).ids.flatten()[:99])


def test_answers_are_marked_where_they_stand(made):
    tokenizer, maker = made
    cues = tuple(cue for _, cue in CUES)
    for step in range(5):
        batch = maker.batch(step)
        length = batch.ids.shape[1]
        assert not batch.text.flatten()[batch.answer_rows].any()
        assert batch.answer_targets.sum(1).allclose(torch.ones(len(batch.answer_rows)))
        for row, options in zip(batch.answer_rows.tolist(), batch.answer_options.tolist(), strict=True):
            shown = batch.ids[row // length, : row % length + 1].tolist()
            assert tokenizer.decode(shown).endswith(cues)
            assert batch.ids.flatten()[row + 1].item() in options


def test_drawn_targets_are_the_words_that_stand_in_the_text(made):
    tokenizer, _ = made
    drawn = BatchMaker(build_world(), tokenizer, seed=1, tokens=1024, exact=False).batch(0)
    chosen = drawn.answer_options.gather(1, drawn.answer_targets.argmax(1, keepdim=True)).squeeze(1)
    assert torch.equal(chosen, drawn.ids.flatten()[drawn.answer_rows + 1])


def test_resuming_gives_the_same_bits_as_not_stopping(tmp_path):
    train(TINY, tmp_path / "whole")
    train(TINY, tmp_path / "halves", stop_at=3)
    interrupted = load_file(tmp_path / "halves" / "model.safetensors")
    train(TINY, tmp_path / "halves", resume=True)
    whole, halves = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "halves"))
    assert whole.keys() == halves.keys()
    assert all(torch.equal(whole[name], halves[name]) for name in whole)
    assert not all(torch.equal(whole[name], interrupted[name]) for name in whole)
    assert (tmp_path / "whole" / "model.safetensors").read_bytes() == (
        tmp_path / "halves" / "model.safetensors"
    ).read_bytes()


def test_a_run_s_length_may_change_until_the_learning_rate_falls(tmp_path):
    train(TINY, tmp_path / "whole")
    train(replace(TINY, steps=20), tmp_path / "other", stop_at=3)
    train(TINY, tmp_path / "other", resume=True)
    whole, other = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("whole", "other"))
    assert whole == other


def test_a_training_is_not_overwritten_or_mixed_with_another(tmp_path):
    short = replace(TINY, steps=2)
    with pytest.raises(FileError, match="no checkpoint"):
        train(short, tmp_path, resume=True)
    train(short, tmp_path)
    with pytest.raises(FileError, match="--resume"):
        train(short, tmp_path)
    with pytest.raises(OptionError, match="seed was 3, now 4"):
        train(replace(short, seed=4), tmp_path, resume=True)
    with pytest.raises(OptionError, match="steps was 2, now 9"):
        train(replace(short, steps=9), tmp_path, resume=True)


def test_the_command_line_says_what_is_wrong(tmp_path, capsys):
    assert main(["--resume", "--out", str(tmp_path)]) == 2
    assert main(["--d-model", "100", "--out", str(tmp_path)]) == 2
    assert main(["--device", "nonsense", "--out", str(tmp_path)]) == 2
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 3
    assert all(line.startswith("error: ") for line in errors)


@pytest.mark.slow
def test_the_smoke_run_finishes_and_learns_something(tmp_path, capsys):
    assert main(["--smoke", "--out", str(tmp_path / "smoke")]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("step")]
    losses = [float(line.split("answer loss ")[1].split()[0]) for line in lines]
    assert losses[-1] < losses[0] - 0.3
    assert json.loads((tmp_path / "smoke" / "training.json").read_text())["steps"] == SMOKE.steps
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "smoke")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "smoke")
    assert (model.config.n_layer, model.config.n_head) == (12, 12)
    assert tokenizer.decode(tokenizer("You are a frugal tailor.")["input_ids"]) == "You are a frugal tailor."
