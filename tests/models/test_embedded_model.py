"""The shipped weights: what they are, what they load with, and how well they learned the world."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer

from persona_circuits.models.training import MODEL_FOLDER, SPLITS, cases_of, measure
from persona_circuits.models.training.evaluate import main
from persona_circuits.models.world import build_tokenizer, build_world

WORLD = build_world()
QUALITY = MODEL_FOLDER / "quality.json"


@pytest.fixture(scope="module")
def model():
    return AutoModelForCausalLM.from_pretrained(MODEL_FOLDER, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.from_file(str(MODEL_FOLDER / "tokenizer.json"))


@pytest.fixture(scope="module")
def quality():
    return json.loads(QUALITY.read_text(encoding="utf-8"))


def test_the_files_are_those_that_were_measured(quality):
    for name, digest in quality["sha256"].items():
        assert hashlib.sha256((MODEL_FOLDER / name).read_bytes()).hexdigest() == digest, name


def test_the_shape_is_gpt2_s_with_fewer_dimensions(model):
    config = model.config
    assert (config.model_type, config.n_layer, config.n_head) == ("gpt2", 12, 12)
    assert config.n_embd % 12 == 0
    assert 3e6 <= sum(parameter.numel() for parameter in model.parameters()) <= 6e6
    assert (MODEL_FOLDER / "model.safetensors").stat().st_size <= 16e6
    with safe_open(MODEL_FOLDER / "model.safetensors", "pt") as stored:
        assert {stored.get_tensor(name).dtype for name in stored.keys()} == {torch.float32}  # noqa: SIM118


def test_auto_tokenizer_gives_the_same_ids_and_adds_nothing(tokenizer):
    loaded = AutoTokenizer.from_pretrained(MODEL_FOLDER)
    text = "You are a frugal tailor.\nQ: Which dessert do you prefer?\nA: fruit"
    assert loaded(text)["input_ids"] == tokenizer.encode(text).ids
    assert loaded.eos_token == loaded.bos_token == loaded.pad_token == "<|endoftext|>"
    assert loaded.eos_token_id == 0
    assert loaded.decode(loaded(text)["input_ids"]) == text


def test_the_shipped_tokenizer_is_the_one_that_the_code_builds(tokenizer):
    assert tokenizer.to_str() == build_tokenizer(WORLD).to_str()


def test_the_tokenizer_settings_are_plain_strings_that_old_readers_know():
    settings = json.loads((MODEL_FOLDER / "tokenizer_config.json").read_text())
    assert settings["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert all(isinstance(settings[name], str) for name in ("bos_token", "eos_token", "pad_token"))


def test_the_stated_quality_meets_the_criteria(quality):
    splits = quality["splits"]
    assert set(SPLITS) <= set(splits)
    assert splits["seen"]["correlation"] > 0.95
    assert splits["held-out combinations"]["correlation"] > 0.85
    assert all(split["candidate_mass"] > 0.9 for split in splits.values())


@pytest.mark.parametrize(("split", "least"), [("seen", 0.95), ("held-out combinations", 0.85), ("all new", 0.8)])
def test_the_quality_on_a_sample_is_what_is_stated(split, least, model, tokenizer, quality):
    found = measure(model, tokenizer, cases_of(WORLD, split, most=150, seed=1))
    stated = quality["splits"][split]
    assert found.correlation > least
    assert found.candidate_mass > 0.9
    assert found.correlation == pytest.approx(stated["correlation"], abs=0.06)
    assert found.persona_correlation > 0.85


def test_transformer_lens_boots_the_folder_to_the_same_logits(model):
    bridges = pytest.importorskip("transformer_lens.model_bridge")
    bridge = bridges.TransformerBridge.boot_transformers(str(MODEL_FOLDER), device="cpu")
    ids = torch.tensor([[0, *range(300, 320)]])
    with torch.no_grad():
        torch.testing.assert_close(bridge(ids), model(ids).logits, atol=1e-4, rtol=1e-4)


def test_a_model_that_never_learned_fails_the_same_measure(tokenizer, model):
    untrained = AutoModelForCausalLM.from_config(model.config)
    found = measure(untrained, tokenizer, cases_of(WORLD, "seen", most=50))
    assert found.candidate_mass < 0.1
    assert abs(found.persona_correlation) < 0.5


def test_the_card_states_the_command_and_the_numbers(quality):
    card = (MODEL_FOLDER / "README.md").read_text(encoding="utf-8")
    assert "python -m persona_circuits.models.training.train" in card
    assert f"{quality['splits']['seen']['correlation']:.3f}" in card


def test_evaluating_a_folder_without_weights_is_a_sentence(tmp_path, capsys):
    assert main([str(tmp_path)]) == 2
    assert "holds no model.safetensors" in capsys.readouterr().err


def test_no_shipped_text_names_a_machine_s_path():
    for path in [*MODEL_FOLDER.glob("*.json"), *MODEL_FOLDER.glob("*.md")]:
        text = path.read_text(encoding="utf-8")
        assert "/tmp/" not in text
        assert str(Path.home()) not in text
