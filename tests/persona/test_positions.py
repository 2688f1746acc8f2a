"""Named positions: by the file's spans, and by comparing the two prompts of a pair."""

import json

import pytest
from conftest import CRAFTGPT, DATA, ROOT

from persona_circuits.circuit.errors import OptionError, TaskError
from persona_circuits.circuit.task import PromptPair, load_task
from persona_circuits.persona.data import (
    POSITIONS,
    TokenizerOnly,
    load_examples,
    load_tokenizer,
    locate,
    read_personas,
    shared_positions,
    without_persona,
)

DATASETS = ROOT / "datasets"


@pytest.fixture(scope="module")
def world():
    return load_tokenizer(str(ROOT / "models" / "persona-world"))


@pytest.fixture(scope="module")
def small():
    return load_tokenizer(str(DATA / "tiny-gpt2"))


def pair(clean, corrupt, **more):
    return PromptPair(clean, corrupt, (" tea",), (" coffee",), id="one", line=1, **more)


def tokens_at(placed, reader):
    return {name: reader.tokenizer.decode([placed.ids[place]]) for name, place in placed.places.items()}


@pytest.mark.parametrize("name", ["pairs_test.jsonl", "pairs_controls.jsonl", "pairs_demo.jsonl"])
def test_every_shipped_prompt_is_taken_apart_as_it_was_made(world, name):
    """Comparing the two prompts finds exactly a description of the sources, and exactly a wording."""
    people = [json.loads(line) for line in (DATASETS / "personas.jsonl").read_text().splitlines()]
    descriptions = {text for who in people for text in (*who["descriptions"], *who["mentions"])}
    questions = [json.loads(line) for line in (DATASETS / "questions.jsonl").read_text().splitlines()]
    wordings = {text for question in questions for text in question["wordings"]}
    for one in load_task(DATASETS / name).pairs:
        for placed in locate(one, world):
            assert placed.persona in descriptions
            assert placed.text[slice(*placed.spans["question"])] in wordings
            assert list(placed.places) == list(POSITIONS)
            found = tokens_at(placed, world)
            assert found["persona-end"] == "."
            assert found["question-end"] in "?."
            assert found["question-word"].strip().isalnum()
            assert placed.places["prompt-end"] == len(placed.ids) - 1


@pytest.mark.parametrize(
    ("clean", "corrupt", "persona", "question"),
    [
        (
            "You are a monk.\nQ: Tea or milk?\nA:",
            "You are a poet.\nQ: Tea or milk?\nA:",
            "You are a monk.",
            "Tea or milk?",
        ),
        (
            "Rain.\nYou are old.\nName tea.\nI like",
            "Rain.\nYou are new.\nName tea.\nI like",
            "You are old.",
            "Name tea.",
        ),
        ("Which drink?\nYou are old.\nA:", "Which drink?\nYou are new.\nA:", "You are old.", "Which drink?"),
        ("<|s|>You are old<|e|>\n<|u|>Tea?<|e|>\n", "<|s|>You are new<|e|>\n<|u|>Tea?<|e|>\n", "You are old", "Tea?"),
        ("[INST] be old. be calm. tea? [/INST]", "[INST] be new. be wild. tea? [/INST]", "be old. be calm.", "tea?"),
        ("Question: a or b\nI am 3.5 m.\nA:", "Question: a or b\nI am 2.5 m.\nA:", "I am 3.5 m.", "a or b"),
        ("You are old. Late? Name tea.\nA:", "You are new. Late? Name tea.\nA:", "You are old.", "Late?"),
        ("You are very old. Tea?", "You are old. Tea?", "You are very old.", "Tea?"),
        ("You are old and like", "You are new and like", "You are old and like", None),
    ],
)
def test_persona_and_question_are_found_in_the_text(small, clean, corrupt, persona, question):
    placed = locate(pair(clean, corrupt), small)[0]
    assert placed.persona == persona
    assert placed.text[slice(*placed.spans["question"])] == question if question else "question" not in placed.spans
    assert ("question-end" in placed.places) == bool(question)


def test_one_prompt_twice_has_no_persona(small):
    placed, _ = locate(pair("Say tea.\nA:", "Say tea.\nA:"), small)
    assert "persona-end" not in placed.places
    assert without_persona(placed, small) is None


def test_the_files_own_spans_win(world):
    text = "You like it.\nQ: Tea?\nA:"
    spans = {side: {"persona": {"chars": [0, 8]}, "question": {"chars": [16, 20]}} for side in ("clean", "corrupt")}
    placed, _ = locate(pair(text, text), world, spans)
    assert placed.persona == "You like"
    assert tokens_at(placed, world)["persona-end"] == " like"
    broken = {**spans, "corrupt": {"persona": {"chars": [0, 999]}, "question": {"chars": [16, 20]}}}
    assert locate(pair(text, text), world, broken)[0].persona == ""


def test_a_bos_that_the_tokenizer_adds_moves_every_place_by_one():
    from tokenizers.processors import TemplateProcessing
    from transformers import AutoTokenizer

    plain = load_tokenizer(str(DATA / "tiny-gpt2"))
    tokenizer = AutoTokenizer.from_pretrained(DATA / "tiny-gpt2", bos_token="red")
    added = TemplateProcessing(single="red $A", special_tokens=[("red", tokenizer.bos_token_id)])
    tokenizer.backend_tokenizer.post_processor = added
    one = pair("you are a happy cook. tea or coffee? answer:", "you are a sad cook. tea or coffee? answer:")
    without, behind = (locate(one, reader)[0] for reader in (plain, TokenizerOnly(tokenizer)))
    assert behind.ids == (tokenizer.bos_token_id, *without.ids)
    assert behind.places == {name: place + 1 for name, place in without.places.items()}


@pytest.mark.parametrize(
    ("text", "other", "left"),
    [
        ("You are old.\nQ: Tea?\nA:", "You are new.\nQ: Tea?\nA:", "Q: Tea?\nA:"),
        ("[INST] You are old. Tea? [/INST]", "[INST] You are new. Tea? [/INST]", "[INST] Tea? [/INST]"),
        ("Tea?\nYou are old.\nA:", "Tea?\nYou are new.\nA:", "Tea?\nA:"),
    ],
)
def test_without_the_persona_the_rest_stays_as_it_is(small, text, other, left):
    placed = locate(pair(text, other), small)[0]
    bare = without_persona(placed, small)
    assert bare.text == left
    assert bare.text[slice(*bare.spans["question"])] == "Tea?"
    assert bare.ids[bare.places["question-end"]] == placed.ids[placed.places["question-end"]]


def test_examples_carry_what_folds_are_made_of(world):
    people = read_personas(DATASETS / "personas.jsonl")
    found = load_examples(DATASETS / "pairs_test.jsonl", world, personas=people)
    assert len(found.examples) == 2 * len(found.items) == 240
    assert {one.template for one in found.examples} == {"Q: {question}\nA:"}
    assert {one.wording for one in found.examples} <= set("0123456")
    first, second = found.examples[:2]
    assert first.answers == second.others
    assert first.candidates == second.candidates
    assert world.tokenizer.decode(list(first.answers)) == found.items[0].pair.answers[0]
    assert shared_positions(found) == POSITIONS


def test_keys_of_the_pairs_command_are_used(world, tmp_path):
    row = json.loads((DATASETS / "pairs_test.jsonl").read_text().splitlines()[0])
    path = tmp_path / "pairs.jsonl"
    path.write_text(json.dumps({**row, "template": "mine", "wording_a": 4, "wording_b": 5}) + "\n")
    first, second = load_examples(path, world).examples
    assert (first.template, first.wording, second.wording) == ("mine", "4", "5")


def test_faults_are_listed_together(world, tmp_path):
    rows = [json.loads(line) for line in (DATASETS / "pairs_test.jsonl").read_text().splitlines()[:2]]
    rows[0] |= {"answers": [" loft cottage"], "candidates": [" loft cottage", " cottage"]}
    rows[1]["clean"] = "word " * 300 + rows[1]["clean"]
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(TaskError, match=r"(?s)2 fault.*line 1.*2 tokens here.*line 2.*context holds 128"):
        load_examples(path, world)


def test_two_bos_tokens_are_a_fault(world, tmp_path):
    row = json.loads((DATASETS / "pairs_test.jsonl").read_text().splitlines()[0])
    bos = world.tokenizer.bos_token
    path = tmp_path / "pairs.jsonl"
    path.write_text(json.dumps({**row, "clean": 2 * bos + row["clean"], "corrupt": bos + row["corrupt"]}) + "\n")
    with pytest.raises(TaskError, match=r"1 fault.*\n.*two BOS tokens"):
        load_examples(path, world)


def test_personas_that_the_tokenizer_cannot_write_are_a_fault(small, tmp_path):
    """A template's letters may be unknown to it, what the prompts differ in may not."""
    row = {"clean": "you are a happy cook.\nQ: red or blue?\nA:", "answers": [" blue"], "wrong_answers": [" red"]}
    row["corrupt"] = row["clean"].replace("happy", "sad")
    path = tmp_path / "pairs.jsonl"
    path.write_text(json.dumps(row) + "\n")
    assert len(load_examples(path, small).examples) == 2
    path.write_text(json.dumps({**row, "corrupt": row["clean"].replace("happy", "wry")}) + "\n")
    with pytest.raises(TaskError, match="cannot write 'wry', in which prompts differ"):
        load_examples(path, small)


def test_positions_that_are_not_there_are_refused_by_name(small, tmp_path):
    path = tmp_path / "pairs.jsonl"
    row = {"clean": "you are happy and like", "corrupt": "you are sad and like"}
    path.write_text(json.dumps({**row, "answers": [" tea"], "wrong_answers": [" blue"]}) + "\n")
    found = load_examples(path, small)
    assert shared_positions(found) == ("persona-end", "prompt-end")
    with pytest.raises(OptionError, match="question-end: there is no such place in line 1"):
        shared_positions(found, ("question-end",))
    with pytest.raises(OptionError, match="'answer' is not one of"):
        shared_positions(found, ("answer",))


@pytest.mark.skipif(not CRAFTGPT.is_dir(), reason="craftgpt-5m is not at ../shared/models")
def test_a_chat_format_is_taken_apart():
    reader = load_tokenizer(str(CRAFTGPT))
    found = load_examples(DATASETS / "craftgpt_weather.jsonl", reader)
    first = found.examples[0]
    assert first.placed.persona == "you are a happy person."
    assert first.template == "_[inst] {persona} {question}_[/inst] the weather is"
    assert shared_positions(found) == POSITIONS
    assert len({one.template for one in found.examples}) == 13
