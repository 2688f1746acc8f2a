"""Preferences and candidates that a model declares: of its own answers, on wordings that no pair has."""

import json
import math
from dataclasses import replace

import pytest
import torch
from conftest import ROOT
from typer.testing import CliRunner

from persona_circuits.circuit.errors import OptionError, TaskError
from persona_circuits.circuit.model import load_model
from persona_circuits.circuit.task import MODEL, resolve
from persona_circuits.cli import app
from persona_circuits.persona.data import load_format, load_templates, read_personas, read_questions, top_words
from persona_circuits.persona.pairs import PairOptions, ask_model, build_pairs, marked, meetings
from persona_circuits.persona.pairs.asking import _as_candidate, joined_candidates, lifts

DATASETS = ROOT / "datasets"
OPTIONS = PairOptions(test_share=0.34)


@pytest.fixture(scope="module")
def world():
    return load_model(resolve(MODEL))


@pytest.fixture(scope="module")
def people():
    return read_personas(DATASETS / "personas.jsonl")[:4]


@pytest.fixture(scope="module")
def questions():
    return read_questions(DATASETS / "questions.jsonl")[:3]


@pytest.fixture(scope="module")
def template(world):
    return load_templates("raw", world.tokenizer)[0]


def test_a_persona_prefers_what_it_raises_most_above_all(world, people, questions, template):
    """The oracle asks prompt by prompt, with the tokenizer's own ids."""
    asked = ask_model(world, meetings(people, "all"), questions, template, options=OPTIONS)
    question = asked.questions[0]
    logs = []
    for one in people:
        prompt = f"{one.wordings[0]}\nQ: {asked.wordings[question.id]}\nA:"
        row = world.logits(torch.tensor([world.tokenizer(prompt)["input_ids"]]))[0, -1].double().log_softmax(-1)
        ids = [world.tokenizer(f"{prompt} {option}")["input_ids"][-1] for option in question.options]
        logs.append([row[i].item() for i in ids])
    raised = torch.tensor(logs) - torch.tensor(logs).mean(0)
    expected = {one.name: question.options[i] for one, i in zip(people, raised.argmax(1).tolist(), strict=True)}
    assert dict(question.prefers) == expected


def test_no_pair_has_the_wording_that_was_asked_and_every_row_says_who_declared(world, people, questions, template):
    asked = ask_model(world, meetings(people, "all"), questions, template, options=OPTIONS)
    built = marked(build_pairs(people, asked.questions, world, template, options=OPTIONS), asked)
    assert built.rows
    for row in built.rows:
        assert row["declared"] == "model"
        assert asked.wordings[row["question"]] not in row["clean"]
    assert built.report()["asked"]["declared"][questions[0].id] == dict(asked.questions[0].prefers)
    for one, own in zip(questions, asked.questions, strict=True):
        assert len(own.wordings) == len(one.wordings) - 1
        assert one.held_out is None or own.wordings[own.held_out] == one.wordings[one.held_out]


def test_mined_candidates_are_words_the_model_says_under_training_personas(world, people, questions, template):
    options = replace(OPTIONS, test_share=0.5)
    asked = ask_model(world, meetings(people, "all"), questions, template, mine=True, options=options)
    assert asked.meetings
    assert len(asked.meetings) < 6
    for question in asked.questions:
        assert 2 <= len(question.options) <= 6
        assert set(question.prefers.values()) <= set(question.options)
    built = marked(build_pairs(people, asked.questions, world, template, options=options), asked)
    tests = {(row["persona_a"], row["persona_b"]) for row in built.rows if row.get("split") == "test"}
    assert not tests & asked.meetings


def test_variants_are_joined_and_function_words_are_none():
    assert [_as_candidate(text) for text in (" Cake", " the", "ing", " a", " 12", " cake")] == [
        "cake",
        *[""] * 4,
        "cake",
    ]
    assert joined_candidates([{"cake": 0.3, "tea": 0.2}, {"tea": 0.2, "pie": 0.1}], 2) == ("tea", "cake")
    raised = lifts([{"tea": math.log(0.6), "pie": math.log(0.1)}, {"tea": math.log(0.3), "pie": math.log(0.1)}])
    assert raised[0] == pytest.approx({"tea": math.log(2) / 2, "pie": 0.0})


def test_top_words_are_the_likeliest_tokens(world):
    logits = torch.zeros(world.n_vocab, dtype=torch.float64)
    logits[7], logits[9] = 5.0, 3.0
    words = top_words(logits, world.tokenizer, 2)
    assert [text for text, _ in words] == [world.tokenizer.decode([7]), world.tokenizer.decode([9])]
    total = math.exp(5) + math.exp(3) + world.n_vocab - 2
    assert [p for _, p in words] == pytest.approx([math.exp(5) / total, math.exp(3) / total])


def test_what_cannot_be_asked_is_refused(world, people, questions, template):
    listed = load_format("options", world.tokenizer)
    with pytest.raises(OptionError, match="lists its options"):
        ask_model(world, meetings(people, "all"), questions, listed)
    single = [replace(one, wordings=one.wordings[:1], held_out=None) for one in questions]
    with pytest.raises(TaskError, match="a wording to ask and another"):
        ask_model(world, meetings(people, "all"), single, template)


def test_the_command_asks_and_says_what_the_model_says(tmp_path):
    few = tmp_path / "questions.jsonl"
    few.write_text("".join((DATASETS / "questions.jsonl").open().readlines()[:2]))
    some = tmp_path / "personas.jsonl"
    some.write_text("".join((DATASETS / "personas.jsonl").open().readlines()[:4]))
    given = ["pairs", "--personas", some, "--questions", few, "--out", tmp_path / "pairs.jsonl", "--ask-model"]
    done = CliRunner().invoke(app, [str(one) for one in given])
    assert done.exit_code == 0, done.output
    assert "it says     ' " in done.stdout
    assert "declared    by the model, in 2 wordings that no pair has" in done.stdout
    rows = [json.loads(line) for line in (tmp_path / "pairs.jsonl").read_text().splitlines()]
    assert {row["declared"] for row in rows} == {"model"}
