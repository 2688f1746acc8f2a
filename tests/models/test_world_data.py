"""The files in datasets/: reproducible byte for byte, and what every pair promises."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer

from persona_circuits.models.world import build_world, held_out_description, held_out_wording, world_files, write_world

ROOT = Path(__file__).parents[2]
WORLD = build_world()
MAIN = ("train", "validation", "test", "demo")


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.from_file(str(ROOT / "models" / "persona-world" / "tokenizer.json"))


def rows_of(name):
    text = (ROOT / "datasets" / f"pairs_{name}.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def test_the_command_rewrites_every_file_byte_for_byte(tmp_path):
    for path in write_world(tmp_path):
        assert path.read_bytes() == (ROOT / "datasets" / path.name).read_bytes(), path.name
    assert {path.name for path in tmp_path.iterdir()} == set(world_files(WORLD))


def test_datasets_is_no_package():
    assert not (ROOT / "datasets" / "__init__.py").exists()


@pytest.mark.parametrize("name", [*MAIN, "controls"])
def test_every_pair_has_equal_lengths_and_single_token_answers(name, tokenizer):
    for row in rows_of(name):
        clean, corrupt = (tokenizer.encode(row[side]).ids for side in ("clean", "corrupt"))
        assert len(clean) == len(corrupt), row["id"]
        assert clean != corrupt, row["id"]
        ends = []
        for text in row["answers"] + row["wrong_answers"]:
            for side, ids in (("clean", clean), ("corrupt", corrupt)):
                after = tokenizer.encode(row[side] + text).ids
                assert after[:-1] == ids, row["id"]
            ends.append(after[-1])
        assert len(set(ends)) == 2, row["id"]


@pytest.mark.parametrize("name", [*MAIN, "controls"])
def test_the_generator_s_numbers_are_the_world_s(name):
    personas = {persona.id: persona for persona in WORLD.personas}
    questions = {question.id: question for question in WORLD.questions}
    for row in rows_of(name):
        question = questions[row["question"]]
        assert row["candidates"] == [f" {word}" for word in question.words]
        for side in ("a", "b"):
            persona = None if row["control"] == "neighbour" else personas[row[f"persona_{side}"]]
            expected = WORLD.probabilities(persona, question)
            assert row["generator"][f"p_{side}"] == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("name", MAIN)
def test_main_pairs_keep_what_their_axes_say(name):
    for row in rows_of(name):
        low, high = (5.0, np.inf) if row["contrast"] == "strong" else (1.0, 3.75)
        assert low - 1e-6 <= row["generator"]["divergence"] <= high + 1e-6, row["id"]
        assert (row["bias"] == "high") == (row["prior_level"] >= 2)
        assert row["control"] == "none"
        assert row["persona_a"] != row["persona_b"]


def test_the_axes_of_the_main_files_are_balanced():
    for name, size in (("train", 200), ("validation", 80), ("test", 120)):
        rows = rows_of(name)
        assert len(rows) == size
        assert {row["split"] for row in rows} == {name}
        cells = [(row["contrast"], row["bias"], row["placement"], row["held_out"]) for row in rows]
        assert len({cells.count(cell) for cell in set(cells)}) == 1


def test_test_pairs_show_what_training_held_out_and_the_others_do_not():
    personas = {persona.id: persona for persona in WORLD.personas}
    questions = {question.id: question for question in WORLD.questions}
    for name in (*MAIN, "controls"):
        for row in rows_of(name):
            question, both = questions[row["question"]], [personas[row[f"persona_{side}"]] for side in "ab"]
            fresh = [WORLD.is_held_out(persona, question) for persona in both]
            assert fresh == [row["held_out"] == "combination"] * 2, row["id"]
            if row["held_out"] == "description":
                assert held_out_description(WORLD, both[0]) == held_out_description(WORLD, both[1])


def test_held_out_descriptions_and_wordings_stand_in_the_prompts():
    files = world_files(WORLD)
    personas = {p["id"]: p for p in map(json.loads, files["personas.jsonl"].splitlines())}
    questions = {q["id"]: q for q in map(json.loads, files["questions.jsonl"].splitlines())}
    for name in (*MAIN, "controls"):
        for row in rows_of(name):
            persona, question = personas[row["persona_a"]], questions[row["question"]]
            described = persona["descriptions"][persona["held_out_description"]]
            asked = question["wordings"][
                held_out_wording(WORLD, WORLD.questions[list(questions).index(question["id"])])
            ]
            assert (described in row["clean"].splitlines()) == (row["held_out"] == "description"), row["id"]
            assert (f"Q: {asked}" in row["clean"].splitlines()) == (row["held_out"] == "wording"), row["id"]


def test_controls_have_no_effect_in_the_generator():
    rows = rows_of("controls")
    assert {row["control"] for row in rows} == {"paraphrase", "irrelevant", "neighbour"}
    assert all(row["generator"]["divergence"] == pytest.approx(0, abs=1e-9) for row in rows)
    assert any(row["generator"]["divergence"] > 5 for row in rows_of("train"))


def test_collapse_occurs_and_does_not_occur():
    collapsing = [row["generator"]["collapses"] for row in rows_of("train")]
    assert 0.2 < np.mean(collapsing) < 0.8
    assert not any(row["generator"]["collapses"] for row in rows_of("demo"))


def test_the_demo_has_one_length_and_both_splits(tokenizer):
    rows = rows_of("demo")
    assert {row["split"] for row in rows} == {"train", "test"}
    assert len(rows) == 32
    assert len({len(tokenizer.encode(row["clean"]).ids) for row in rows}) == 1


def test_no_pair_stands_in_two_files():
    prompts = [(row["clean"], row["corrupt"]) for name in (*MAIN, "controls") for row in rows_of(name)]
    assert len(set(prompts)) == len(prompts)
