"""Formats: what each says, for chat and plain tokenizers; orders of options; and frames of a persona."""

import json
import re
from dataclasses import replace

import pytest
import torch
from conftest import ROOT
from test_pairs import ACTOR, CHATML, CORPUS, DRINK, MONK, NO_SYSTEM, build, tokenizer_of

from persona_circuits.circuit.choices import FRAMES, PROMPT_FORMATS
from persona_circuits.circuit.errors import OptionError, TaskError
from persona_circuits.circuit.task import encode, load_task
from persona_circuits.persona.behaviour import averaged, measure_pairs, order_effect
from persona_circuits.persona.data import first_person, load_format, load_items
from persona_circuits.persona.pairs import PairOptions, framed, write_rows

AGAIN = {"monk": "You are a good monk.", "actor": "You are a good actor."}
ANSWERS = ("answers", "wrong_answers")
ASKED = replace(DRINK, cue="My answer is")


@pytest.fixture
def small():
    return tokenizer_of(CORPUS + "Answer: A Answer: B Answer: C\n")


def rows_of(tokenizer, name, **more):
    return build(tokenizer, asked=(ASKED,), template=load_format(name, tokenizer), **more).rows


@pytest.mark.parametrize("name", PROMPT_FORMATS)
def test_every_format_makes_sound_pairs_that_differ_in_the_persona_only(small, name):
    small.chat_template = CHATML
    rows = rows_of(small, name)
    assert len(rows) == (len(ASKED.options) if name in ("options", "letters") else 1)
    for row in rows:
        both = [small(row[side])["input_ids"] for side in ("clean", "corrupt")]
        at = [row["spans"][side]["persona"]["tokens"] for side in ("clean", "corrupt")]
        assert both[0] != both[1]
        assert next(ids[: a[0]] + ids[a[1] :] for ids, a in zip(both, at, strict=True)) == (
            both[1][: at[1][0]] + both[1][at[1][1] :]
        )


def test_the_persona_is_a_system_turn_the_head_of_the_users_turn_or_the_first_person(small):
    assert rows_of(small, "first-person")[0]["clean"] == "I am a humble monk. My answer is"
    assert "Guest: I am a humble monk.\n" in rows_of(small, "interview")[0]["clean"]
    assert rows_of(small, "cue")[0]["clean"].startswith("You are a humble monk.\nQuestion: Which")
    with pytest.raises(OptionError, match="no chat template"):
        load_format("chat-cue", small)
    assert "Choose one: tea, wine or cake.\nAnswer: My answer is" in rows_of(small, "options")[0]["clean"]
    small.chat_template = CHATML
    system = rows_of(small, "chat-cue")[0]["clean"]
    assert system.startswith("<|turn|>system\nYou are a humble monk.<|end|>")
    assert system.endswith("<|turn|>assistant\nMy answer is")
    small.chat_template = NO_SYSTEM
    assert rows_of(small, "chat-cue")[0]["clean"].startswith("<|turn|>user\nYou are a humble monk.\n\nWhich")


def test_examples_name_no_option(small):
    text = rows_of(small, "few-shot")[0]["clean"]
    assert text.count("Answer:") == 4
    assert text.endswith("Which drink do you take?\nAnswer:")
    asked = replace(ASKED, options=("tea", "wine", "Rome"))
    made = build(small, asked=(asked,), template=load_format("few-shot", small)).rows[0]["clean"]
    assert "Rome" not in made
    assert made.count("Answer:") == 4


def test_a_format_of_cues_alone_drops_a_question_without_one(small):
    with pytest.raises(TaskError, match="no cue"):
        build(small, template=load_format("first-person", small))


@pytest.mark.parametrize(
    ("said", "spoken"),
    [
        ("You are a cook who likes you.", "I am a cook who likes I."),  # word by word, as it says
        ("You were poor, and your son helps you.", "I was poor, and my son helps I."),
        ("Your home is far. People speak of you.", "My home is far. People speak of me."),
        ("You trust yourself.", "I trust myself."),
    ],
)
def test_you_becomes_i(said, spoken):
    assert first_person(said) == spoken


@pytest.mark.parametrize("name", ["options", "letters"])
def test_every_option_stands_in_every_place_once_and_answers_follow_it(small, name):
    rows = rows_of(small, name)
    assert [row["order"] for row in rows] == [0, 1, 2]
    assert len({row["orders_of"] for row in rows}) == 1
    for place in range(3):
        assert {row["options"][place] for row in rows} == set(ASKED.options)
    for row in rows:
        meant = dict(zip(row["candidates"], row["options"], strict=True))
        assert (meant[row["answers"][0]], meant[row["wrong_answers"][0]]) == ("tea", "wine")
        if name == "letters":
            letter = row["answers"][0].strip()
            assert re.search(rf"^{letter}\. tea$", row["clean"], re.MULTILINE)


def test_all_orders_of_a_pair_have_the_same_paraphrases_as_null(small):
    monk = replace(MONK, wordings=("You are a humble monk.", "You are a humble Tea.", "You are a good judge."))
    options = PairOptions(test_share=0.0, null=True, leaks="keep")
    built = build(small, (monk, ACTOR), (ASKED,), load_format("options", small), options=options)
    assert built.null is not None
    assert {row["order"] for row in built.null.rows} == {0, 1, 2}
    assert len({(row["wording_a"], row["wording_b"]) for row in built.null.rows}) == 1


def test_a_bias_for_a_place_cancels_in_the_mean_over_orders(tmp_path, tiny):
    """A model whose logit of an option is its own plus its place's: D is the options' own, the effect the places'."""
    rows, own, place = [], {"a": (2.0, -1.0), "b": (-1.0, 1.5), "c": (0.0, 0.0)}, (4.0, 0.0, -1.0)
    items = load_items(tmp_path_pairs(tmp_path))
    plain = measure_pairs(tiny, items.items)
    for order, one in enumerate(plain):
        options = one.item.pair.row["options"]
        logits = torch.tensor([[own[o][side] + place[i] for i, o in enumerate(options)] for side in (0, 1)])
        found = logits.double()
        rows.append(replace(one, log_probs_a=tuple(found[0].tolist()), log_probs_b=tuple(found[1].tolist())))
        assert one.item.pair.row["order"] == order
    (mean,) = averaged(rows)
    assert mean.divergence == pytest.approx((2 - -1) - (-1 - 1.5))  # m(x) = l_a - l_b, of the options alone
    assert (mean.choice_a, mean.choice_b) == ("a", "b")
    margins = torch.tensor([4.0 - 0.0, -1.0 - 4.0, 0.0 - -1.0])  # the place of a less that of b, in the three orders
    assert order_effect([mean]) == pytest.approx(margins.var(unbiased=False).sqrt().item())
    assert mean.n_orders == 3
    assert averaged(plain[:1])[0].order_spread == 0
    assert order_effect([]) is None


def tmp_path_pairs(tmp_path):
    base = json.loads((ROOT / "tests" / "data" / "tiny_pairs.json").read_text())["prompts"][0]
    words = [*base["answers"][:1], *base["wrong_answers"][:1]]
    others = json.loads((ROOT / "tests" / "data" / "tiny_pairs.json").read_text())["prompts"]
    third = next(w for p in others for w in (*p["answers"], *p["wrong_answers"]) if w not in words)
    listed = [words[0], words[1], third]
    rows = []
    for order in range(3):
        names = ["a", "b", "c"][order:] + ["a", "b", "c"][:order]
        said = dict(zip(names, listed, strict=True))  # letters: the same words stand for other options
        rows.append(
            {"id": f"x/order-{order}", "clean": base["clean"], "corrupt": base["corrupt"], "answers": [said["a"]]}
            | {"wrong_answers": [said["b"]], "candidates": listed, "options": names, "orders_of": "x", "order": order}
        )
    path = tmp_path / "orders.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_frames_say_the_persona_of_others_with_equally_many_tokens_where_that_is_possible(small, tmp_path):
    rows = rows_of(small, "cue")
    people = [replace(one, wordings=(*one.wordings, AGAIN[one.name])) for one in (MONK, ACTOR)]
    found = framed(rows, FRAMES, build_reader(small), personas=people)
    said = {row["variant"]: row["clean"].split("\n")[0] for row in found.rows}
    assert said["friend"].endswith("friend is a humble monk.")
    assert said["nobody"].startswith("Nobody")
    assert said["again"] != said["you"]
    assert said["again"] == AGAIN["monk"]
    assert "not" in said["not"] or "n't" in said["not"]
    lengths = {len(small(row["clean"])["input_ids"]) for row in found.rows}
    assert found.rows[0]["frame_matched"] == (len(lengths) == 1)
    write_rows(found.rows, tmp_path / "framed.jsonl")
    assert len(encode(load_task(tmp_path / "framed.jsonl"), build_reader(small))) == len(FRAMES)
    first = framed(rows_of(small, "first-person"), ["you", "friend"], build_reader(small))
    assert first.rows[1]["clean"].split(" My answer")[0].endswith("riend is a humble monk.")


def test_frames_need_a_known_name_and_a_persona_that_begins_as_one(small):
    rows = [dict(rows_of(small, "cue")[0])]
    with pytest.raises(OptionError, match="'neighbour' is not one of"):
        framed(rows, ["neighbour"], build_reader(small))
    with pytest.raises(OptionError, match="give the personas' file with --personas"):
        framed(rows, ["you", "again"], build_reader(small))
    alone = [replace(one, wordings=one.wordings[:1]) for one in (MONK, ACTOR)]
    with pytest.raises(TaskError, match="no other paraphrases of one length"):
        framed(rows, ["you", "again"], build_reader(small), personas=alone)
    for spans in (None, {}, {"clean": {}, "corrupt": {}}):
        with pytest.raises(TaskError, match="does not say where its persona stands"):
            framed([rows[0] | {"spans": spans}], ["friend"], build_reader(small))


@pytest.mark.parametrize("name", PROMPT_FORMATS)
def test_frames_find_the_persona_of_a_row_without_spans_where_its_prompts_differ(small, name):
    small.chat_template = CHATML
    rows = rows_of(small, name)
    people = [replace(one, wordings=(*one.wordings, AGAIN[one.name])) for one in (MONK, ACTOR)]
    frames = [frame for frame in FRAMES if frame != "again" or name != "first-person"]
    bare = [{key: value for key, value in row.items() if key != "spans"} for row in rows]
    found, said = (framed(some, frames, build_reader(small), personas=people) for some in (bare, rows))
    assert found == said


@pytest.mark.parametrize(
    ("clean", "corrupt", "reason"),
    [
        ("You are a monk. What is tea?", "You are an actor. What is wine?", "do not differ in one stretch"),
        ("You are a monk. I like", "You are a monk. I like", "do not differ in one stretch"),
        ("You are a monk.\nI like tea", "You are an actor.\nI like wine", "do not differ in one stretch"),
        ("Say: you are a monk. I like", "Say: you are an actor. I like", "does not begin with 'You are'"),
        ("You are old. You pray. I like", "You are old. You act. I like", "does not begin with 'You are'"),
    ],
)
def test_frames_refuse_a_row_without_spans_whose_persona_is_not_plain(small, clean, corrupt, reason):
    row = {"id": "x", "clean": clean, "corrupt": corrupt, "answers": [" tea"], "wrong_answers": [" wine"]}
    with pytest.raises(TaskError, match=reason):
        framed([row], ["friend"], build_reader(small))


def test_frames_of_the_shipped_natural_pairs_change_the_personas_words_alone():
    file = ROOT / "datasets" / "natural_pairs_smollm2.jsonl"
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    words = [row[side] + row[key][0] for row in rows for side in ("clean", "corrupt") for key in ANSWERS]
    reader = build_reader(tokenizer_of("\n".join([*words, *words, "Your friend is", "Nobody is", "You really are"])))
    found = framed(rows, ["you", "friend", "nobody"], reader)
    assert not any("spans" in reason or "begin" in reason for reason in found.dropped)
    base = {row["id"]: row for row in rows}
    for row in found.rows:
        for side in ("clean", "corrupt"):
            turn, rest = row[side].split("<|im_end|>", 1)
            own, same = base[row["base"]][side].split("<|im_end|>", 1)
            assert rest == same
            assert turn.split(" is " if row["variant"] != "you" else " are ")[1] == own.split("You are ")[1]


def build_reader(tokenizer):
    from persona_circuits.persona.data import TokenizerOnly

    return TokenizerOnly(tokenizer)


@pytest.fixture(scope="module")
def study():
    from persona_circuits.circuit.model import load_model
    from persona_circuits.circuit.task import MODEL, resolve
    from persona_circuits.persona.data import read_personas, read_questions
    from persona_circuits.persona.formats import FormatOptions, study_formats

    model = load_model(resolve(MODEL))
    people = read_personas(ROOT / "datasets" / "personas.jsonl")[:8]
    questions = [replace(one, cue="A:") for one in read_questions(ROOT / "datasets" / "questions.jsonl")[:6]]
    options = FormatOptions(formats=("chat-cue", "cue", "interview"), max_pairs=3, n_answers=1, n_resamples=50)
    return study_formats(model, people, questions, contrast="all", options=options)


def test_a_study_measures_what_can_be_asked_and_says_why_the_rest_cannot(study):
    assert "no chat template" in study.skipped["chat-cue"]
    assert {row.format for row in study.rows} | set(study.skipped) == {"chat-cue", "cue", "interview"}
    for row in study.rows:
        assert row.n == 3
        assert 0 <= row.mass <= 1
        assert row.sigma_0 is not None
        assert row.friend is not None
        assert row.order_effect is None
        assert row.named in (0.0, 1.0)
    assert study.held_out is not None
    assert (study.held_out.format, study.held_out.split) == (study.best, "test")


def test_the_largest_divergence_among_those_with_mass_is_recommended(study):
    from persona_circuits.persona.data import Estimate
    from persona_circuits.persona.formats import recommended

    rows = [
        replace(study.rows[0], format=name, mass=mass, divergence=Estimate(d, None, None))
        for name, mass, d in (("a", 0.01, 9.0), ("b", 0.2, 2.0), ("c", 0.9, 0.3))
    ]
    assert recommended(rows, 0.05).format == "b"
    assert recommended(rows, 0.5).format == "c"
    assert recommended(rows, 0.95).format == "a"


def test_the_files_of_a_study(study, tmp_path):
    from persona_circuits.persona.formats import format_table, write_formats

    write_formats(study, tmp_path)
    record = json.loads((tmp_path / "formats.json").read_text())
    assert record["recommended"] == study.best
    assert (tmp_path / "formats.csv").read_text().count("\n") == len(format_table(study).cells()) + 1
    assert (tmp_path / "formats.png").stat().st_size > 1000
    assert (tmp_path / "formats.html").exists()


@pytest.mark.parametrize(
    ("answer", "choice", "same"),
    [(" the Cake, of course", " cake", True), (" I like cake", " cake", False), (" B.", " B", True), ("", " B", False)],
)
def test_an_answer_names_the_option_that_it_begins_with(answer, choice, same):
    from persona_circuits.persona.formats.study import _names

    assert _names(answer, choice) is same


def test_pairs_of_a_model_are_put_in_the_format_that_the_model_answers_in(tmp_path):
    """The default is what ``recommended`` says of the same rows; a template that is given is not touched."""
    from typer.testing import CliRunner

    from persona_circuits.cli import app

    lines = {name: (ROOT / "datasets" / f"{name}.jsonl").read_text().splitlines() for name in ("personas", "questions")}
    questions = [json.dumps({**json.loads(line), "cue": "A:"}) for line in lines["questions"][:3]]
    (tmp_path / "people.jsonl").write_text("\n".join(lines["personas"][:4]))
    (tmp_path / "questions.jsonl").write_text("\n".join(questions))
    model = ROOT / "models" / "persona-world"
    given = ["pairs", "--personas", tmp_path / "people.jsonl", "--questions", tmp_path / "questions.jsonl"]
    given += ["--model", model, "--out", tmp_path / "pairs.jsonl", "--json"]
    done = CliRunner().invoke(app, [str(one) for one in given])
    assert done.exit_code == 0, done.output
    record = json.loads((tmp_path / "pairs.report.json").read_text())["calibration"]
    by_d = sorted(record["formats"], key=lambda row: -row["divergence"]["value"])
    enough = [row for row in by_d if row["mass"] >= record["options"]["min_mass"]] or by_d
    assert record["recommended"] == enough[0]["format"]
    rows = load_task(tmp_path / "pairs.jsonl").pairs
    assert {pair.row["template"] for pair in rows} == {record["recommended"]}
    done = CliRunner().invoke(app, [*map(str, given), "--template", "raw"])
    assert done.exit_code == 0, done.output
    assert "calibration" not in json.loads((tmp_path / "pairs.report.json").read_text())
    assert {pair.row["template"] for pair in load_task(tmp_path / "pairs.jsonl").pairs} == {"raw"}


def test_a_json_template_for_chat_says_the_users_turn(small, tmp_path):
    from persona_circuits.persona.data import FIELDS, load_templates
    from persona_circuits.persona.responses.plan import rendered

    small.chat_template = CHATML
    path = tmp_path / "turn.json"
    path.write_text(json.dumps({"user": "Tell me:\n{question}", "cue": "I take"}))
    (row,) = build(small, asked=(DRINK,), template=load_templates(str(path), small)[0]).rows
    assert row["clean"].startswith("<|turn|>system\nYou are a humble monk.<|end|>\n<|turn|>user\nTell me:\nWhich")
    assert row["clean"].endswith("<|turn|>assistant\nI take")
    (template,) = load_templates(str(path), small)
    assert "user\nTell me:\nWhich?<|end|>" in rendered(template, "You are a monk.", "Which?")
    path.write_text(json.dumps({"user": "{persona} Tell me: {question}"}))
    (inside,) = load_templates(str(path), small)
    values = dict.fromkeys(FIELDS, "") | {"persona": "You are a monk.", "question": "Which?"}
    assert inside.render(values).text.startswith("<|turn|>user\nYou are a monk. Tell me: Which?<|end|>")
    path.write_text(json.dumps({"user": "{question}", "template": "{persona} {question}"}))
    with pytest.raises(TaskError, match="'user' is a turn of the chat template and 'template' a raw one"):
        load_templates(str(path), small)
    small.chat_template = None
    path.write_text(json.dumps({"user": "{question}"}))
    with pytest.raises(OptionError, match="no chat template"):
        load_templates(str(path), small)
