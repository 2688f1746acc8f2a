"""The measures of models.evaluate, on predictions whose quality is known beforehand."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM

from persona_circuits.models.training import (
    MODEL_FOLDER,
    SPLITS,
    build_model,
    cases_of,
    divergences,
    next_token_logits,
    quality_of,
)
from persona_circuits.models.world import build_world, held_out_wording, wordings

WORLD = build_world()
CASES = cases_of(WORLD, "seen", most=600)
DATASETS = Path(__file__).parents[2] / "datasets"


def test_the_generator_itself_is_perfect():
    found = quality_of(CASES, [np.array(case.probabilities) for case in CASES])
    assert found.correlation == pytest.approx(1)
    assert found.persona_correlation == pytest.approx(1)
    assert found.excess_loss == pytest.approx(0, abs=1e-9)
    assert found.candidate_mass == pytest.approx(1)
    assert found.agreement == 1
    assert all(rates["model"] == rates["generator"] for rates in found.collapse.values())


def test_the_prior_alone_passes_for_no_persona_learning():
    prior = [np.array(WORLD.probabilities(None, case.question)) for case in CASES]
    found = quality_of(CASES, prior)
    assert found.correlation > 0.6
    assert abs(np.nan_to_num(found.persona_correlation)) < 1e-6
    assert all(rates["model"] == 1 for rates in found.collapse.values())


def test_mass_outside_the_options_lowers_mass_and_raises_loss_but_not_correlation():
    halved = [np.array(case.probabilities) / 2 for case in CASES]
    found = quality_of(CASES, halved)
    assert found.candidate_mass == pytest.approx(0.5)
    assert found.excess_loss == pytest.approx(np.log(2))
    assert found.correlation == pytest.approx(1)


def test_the_splits_hold_what_their_names_say():
    for split in SPLITS:
        cases = cases_of(WORLD, split, most=200)
        assert len({(case.persona.id, case.question.id) for case in cases}) == len(cases)
        fresh = split in ("held-out combinations", "all new")
        assert all(WORLD.is_held_out(case.persona, case.question) == fresh for case in cases)
        new = [wordings(case.question)[held_out_wording(WORLD, case.question)] in case.prompt for case in cases]
        assert all(new) if split in ("held-out wordings", "all new") else not any(new)


def test_cases_are_the_same_every_time_and_all_are_used():
    assert cases_of(WORLD, "all new", seed=3) == cases_of(WORLD, "all new", seed=3)
    assert len(cases_of(WORLD, "all new")) == len(WORLD.held_out)
    assert len(cases_of(WORLD, "seen")) == 48 * 72 - len(WORLD.held_out)


def test_padding_does_not_touch_the_next_token():
    model = build_model(vocab_size=40, d_model=12, n_positions=16, n_layers=2, n_heads=2).eval()
    texts = [[3, 5, 7], list(range(12)), [1]]
    alone = torch.cat([next_token_logits(model, [text]) for text in texts])
    torch.testing.assert_close(next_token_logits(model, texts), alone, atol=1e-5, rtol=1e-5)


def test_the_shipped_model_follows_the_persona_and_not_the_controls():
    model = AutoModelForCausalLM.from_pretrained(MODEL_FOLDER, dtype=torch.float32).eval()
    tokenizer = Tokenizer.from_file(str(MODEL_FOLDER / "tokenizer.json"))
    demo, controls = (
        [json.loads(line) for line in (DATASETS / f"pairs_{name}.jsonl").read_text(encoding="utf-8").splitlines()]
        for name in ("demo", "controls")
    )
    asked = divergences(model, tokenizer, demo)
    assert (asked > 1).all()
    assert np.abs(divergences(model, tokenizer, controls)).mean() < 0.1 * asked.mean()
