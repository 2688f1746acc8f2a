"""The natural personas and questions: what the card says of them, and that both real tokenizers can be asked."""

import hashlib
import json
from pathlib import Path

import pytest
from conftest import ROOT

from persona_circuits.circuit.errors import TaskError
from persona_circuits.persona.data import load_tokenizer, read_personas, read_questions
from persona_circuits.persona.pairs import leak_finder

DATASETS = ROOT / "datasets"
FOLDERS = [Path.home() / "models" / name for name in ("smollm2", "gemma")]


@pytest.fixture(scope="module")
def people():
    return read_personas(DATASETS / "natural_personas.jsonl")


@pytest.fixture(scope="module")
def controls():
    return read_personas(DATASETS / "natural_controls.jsonl")


@pytest.fixture(scope="module")
def asked():
    return read_questions(DATASETS / "natural_questions.jsonl")


def test_personas_are_opposed_in_pairs_and_worded_in_different_lengths(people):
    by_name = {one.name: one for one in people}
    assert len(people) == 28
    for one in people:
        assert by_name[one.opposite].opposite == one.name
        assert len(one.wordings) >= 4
        assert len({len(text.split()) for text in one.wordings}) >= 3, one.name
        assert all(text.startswith("You are a") and text.endswith(".") for text in one.wordings)


def test_every_question_has_three_wordings_each_with_a_cue_of_its_own(asked):
    assert len(asked) >= 36
    for one in asked:
        assert len(one.wordings) == len(set(one.wordings)) == len(one.cues) == len(set(one.cues)) == 3
        assert 4 <= len(one.options) <= 7


def test_answers_are_declared_for_pairs_with_a_reason_each(people, asked):
    opposite = {one.name: one.opposite for one in people}
    rows = [json.loads(line) for line in (DATASETS / "natural_questions.jsonl").read_text().splitlines()]
    declared = dict.fromkeys(opposite, 0)
    for row in rows:
        pairs = [tuple(names.split("~")) for names in row["reasons"]]
        assert all(len(reason.split()) >= 3 for reason in row["reasons"].values())
        named = [name for pair in pairs for name in pair]
        assert sorted(named) == sorted(name for name in row["prefers"] if name in opposite)
        for a, b in pairs:
            assert opposite[a] == b
            assert row["prefers"][a] != row["prefers"][b]
            declared[a], declared[b] = declared[a] + 1, declared[b] + 1
    assert min(declared.values()) >= 9


def test_no_persona_holds_an_option_of_any_question(people, controls, asked):
    leaks = leak_finder(tuple(dict.fromkeys(option for one in asked for option in one.options)))
    assert not {text: found for one in (*people, *controls) for text in one.wordings if (found := leaks(text))}


def test_controls_are_nonsense_irrelevant_and_neutral(controls, asked):
    assert {one.name.split("-")[0] for one in controls} == {"nonsense", "irrelevant", "neutral"}
    for one in asked:
        for kind in ("nonsense", "irrelevant"):
            assert [one.prefers[f"{kind}-{side}"] for side in "ab"] == list(one.options[:2])


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda one: one.name)
def test_options_are_one_token_behind_every_cue_and_both_personas_have_wordings_of_one_length(folder, people, asked):
    if not folder.is_dir():
        pytest.skip(f"the tokenizer of {folder.name} is not at {folder}")
    tokenizer = load_tokenizer(str(folder)).tokenizer
    several = []
    for one in asked:
        for cue in (*one.cues, "Answer:"):
            before = tokenizer(cue)["input_ids"]
            several += [
                (cue, option) for option in one.options if tokenizer(f"{cue} {option}")["input_ids"][:-1] != before
            ]
        assert len({tokenizer(f"Answer: {option}")["input_ids"][-1] for option in one.options}) == len(one.options)
    assert not several
    by_name = {one.name: one for one in people}
    lengths = {one.name: [len(tokenizer(text)["input_ids"]) for text in one.wordings] for one in people}
    for name, own in lengths.items():
        assert len(set(own)) < len(own), f"{name}: no two paraphrases of equal length, so no null pair"
        assert set(own) & set(lengths[by_name[name].opposite]), name


def test_the_card_counts_and_hashes_what_is_there():
    card = (DATASETS / "NATURAL.md").read_text()
    for path in sorted(DATASETS.glob("natural_*.jsonl")):
        content = path.read_bytes()
        row = next(line for line in card.splitlines() if f"`{path.name}`" in line and "|" in line)
        assert [cell.strip() for cell in row.split("|")[2:4]] == [
            str(content.count(b"\n")),
            f"`{hashlib.sha256(content).hexdigest()}`",
        ]


SAMPLES = ROOT.parent / "shared" / "data"


def test_statements_of_a_survey_are_answered_by_both_sides_of_their_domain(tmp_path):
    path = tmp_path / "questions.json"
    items = [
        {"id": "a", "text": "Worry about things", "keyed": "plus", "domain": "N", "facet": 1},
        {"id": "b", "text": "Keep my promises", "keyed": "minus", "domain": "C", "facet": 2},
    ]
    path.write_text(json.dumps(items))
    assert [one.name for one in read_personas(path)] == [
        *("high-neuroticism", "low-neuroticism", "high-conscientiousness", "low-conscientiousness")
    ]
    first, second = read_questions(path)
    assert first.wordings[0] == 'Does this describe you: "Worry about things"?'
    assert dict(first.prefers) == {"high-neuroticism": "Yes", "low-neuroticism": "No"}
    assert dict(second.prefers) == {"high-conscientiousness": "No", "low-conscientiousness": "Yes"}
    path.write_text(json.dumps([{**items[0], "keyed": "both"}]))
    with pytest.raises(TaskError, match="'keyed' plus or minus"):
        read_questions(path)


def test_outcomes_are_asked_four_at_a_time(tmp_path):
    path = tmp_path / "options.json"
    path.write_text(json.dumps({"Health": ["a b", "c", "d", "e", "f", "g"], "Other": ["x"]}))
    found = read_questions(path)
    assert [one.options for one in found] == [("a b", "c", "d", "e"), ("f", "g")]
    assert {one.domain for one in found} == {"Health"}


@pytest.mark.skipif(not SAMPLES.is_dir(), reason="the samples are not at ../shared/data")
def test_the_published_files_of_surveys_are_read():
    items = SAMPLES / "ipip_neo_120" / "data" / "en" / "questions.json"
    assert (len(read_personas(items)), len(read_questions(items))) == (10, 120)
    folder = SAMPLES / "emergent_values" / "utility_analysis" / "shared_options"
    assert len(read_questions(folder / "options_hierarchical.json")) > 100
