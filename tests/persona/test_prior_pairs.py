"""Prior pairs: one persona, two questions, margins without topic and without the persona's own taste."""

from __future__ import annotations

import json
from collections import Counter

import numpy as np
import pytest
import torch
from conftest import CRAFTGPT, ROOT
from typer.testing import CliRunner

from persona_circuits.circuit.errors import OptionError, TaskError
from persona_circuits.circuit.model import load_model
from persona_circuits.circuit.task import encode, load_task
from persona_circuits.cli import app
from persona_circuits.models.world import build_world
from persona_circuits.persona.data import load_items, load_neutral, load_templates, read_personas, read_questions
from persona_circuits.persona.pairs import (
    PairOptions,
    PriorOptions,
    build_pairs,
    build_prior_pairs,
    write_pairs,
    write_prior_pairs,
)
from persona_circuits.persona.pairs.prior_choice import REASONS

DATASETS = ROOT / "datasets"
QUESTIONS = {question.id: question for question in build_world().questions}
PEOPLE = ("humble monk", "frugal tailor")


@pytest.fixture(scope="module")
def model():
    return load_model(ROOT / "models" / "persona-world", device="cpu")


@pytest.fixture(scope="module")
def neutral():
    return load_neutral(DATASETS / "questions.jsonl")


@pytest.fixture(scope="module")
def grid(model, tmp_path_factory):
    """Persona pairs of a few personas, asked the questions with a prior and some without, as ``pairs`` writes them."""
    people = read_personas(DATASETS / "personas.jsonl")[::5]
    wanted = [q.id for q in QUESTIONS.values() if " " not in q.noun and not q.ignores_persona]
    wanted = [q for q in wanted if QUESTIONS[q].prior_level >= 2] + [q for q in wanted if not QUESTIONS[q].prior_level][
        :4
    ]
    asked = [q for q in read_questions(DATASETS / "questions.jsonl") if q.id in wanted]
    forms = load_templates("raw", model.tokenizer)
    path = tmp_path_factory.mktemp("pairs") / "pairs.jsonl"
    write_pairs(build_pairs(people, asked, model, forms, options=PairOptions(max_pairs=150, test_share=0.4)), path)
    return path


@pytest.fixture(scope="module")
def built(model, grid, neutral):
    return build_prior_pairs(model, load_items(grid), neutral, options=PriorOptions(max_pairs=40))


def row(question, answers, *, wording=0, people=PEOPLE, texts=None, options=None, before="", **more):
    """A persona pair on a question of the world, by hand."""
    asked = QUESTIONS[question]
    text = (f"Which {asked.noun} do you prefer?", "", f"What is your favourite {asked.noun}?")[wording]
    clean, corrupt = (f"You are a {who}.\n{before}Q: {text}\nA:" for who in texts or people)
    return {
        "id": f"{question}.{wording}.{'-'.join(people)}",
        "clean": clean,
        "corrupt": corrupt,
        "answers": [f" {answers[0]}"],
        "wrong_answers": [f" {answers[1]}"],
        "persona_a": people[0],
        "persona_b": people[1],
        "question": question,
        "candidates": [f" {word}" for word in (options or asked.words)],
        **more,
    }


def make(model, tmp_path, rows, neutral, **options):
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(item) + "\n" for item in rows))
    return build_prior_pairs(model, load_items(path), neutral, options=PriorOptions(**options))


# --- what every pair promises ----------------------------------------------------------------


def test_prompts_are_those_of_the_file_met_another_way(built, grid):
    source = [json.loads(line) for line in grid.read_text().splitlines()]
    known = {
        (item[f"persona_{side}"], item["question"], item[text], item["split"])
        for item in source
        for side, text in (("a", "clean"), ("b", "corrupt"))
    }
    assert len(built.rows) > 20
    for item in built.rows:
        assert item["persona_a"] == item["persona_b"]
        for name, text in zip(item["question"].split("~"), ("clean", "corrupt"), strict=True):
            assert (item["persona_a"], name, item[text], item["split"]) in known


def test_prompts_have_equal_length_and_differ_from_the_question_on(built, model):
    for item in built.rows:
        clean, corrupt = (model.tokenizer(item[side])["input_ids"] for side in ("clean", "corrupt"))
        assert len(clean) == len(corrupt) == item["n_tokens"]
        start = item["spans"]["clean"]["question"]["tokens"][0]
        assert clean[:start] == corrupt[:start]
        assert clean != corrupt


def test_defaults_are_the_generator_s(built):
    """The model was not told them: they are what it prefers without a persona, in other wordings."""
    seen = Counter()
    for name, found in built.about["defaults"].items():
        question = QUESTIONS[name]
        if question.prior_level >= 1:
            (default,) = found["default"]
            seen[default.strip() == question.words[question.default]] += 1
    assert seen[True] > 15
    assert seen[False] == 0


def test_each_default_stands_against_an_option_of_its_own_question(built):
    for item in built.rows:
        first, second = ([f" {word}" for word in QUESTIONS[name].words] for name in item["question"].split("~"))
        (default_1, other_2), (default_2, other_1) = item["answers"], item["wrong_answers"]
        assert {default_1, other_1} <= set(first)
        assert {default_2, other_2} <= set(second)
        assert item["form"] == "balanced"
        assert min(item["leads"]) >= 1


def test_both_personas_get_a_pair_of_the_same_words(built):
    words = Counter((item["question"], *item["answers"], *item["wrong_answers"]) for item in built.rows)
    assert all(count % 2 == 0 for count in words.values())
    for first, second in zip(built.rows[::2], built.rows[1::2], strict=True):
        assert (first["answers"], first["question"]) == (second["answers"], second["question"])
        assert first["persona_a"] != second["persona_a"]


def test_the_model_s_divergence_is_what_the_neutral_wordings_said(built, model, tmp_path):
    write_prior_pairs(built, tmp_path / "prior.jsonl")
    found = []
    for item in encode(load_task(tmp_path / "prior.jsonl"), model):
        logits = model.logits(torch.tensor([item.clean, item.corrupt]))[:, -1].double()
        margins = logits[:, list(item.answers)].mean(1) - logits[:, list(item.wrong_answers)].mean(1)
        found.append(float(margins[0] - margins[1]))
    expected = np.array([item["expected"] for item in built.rows])
    assert min(found) > 0
    assert np.corrcoef(found, expected)[0, 1] > 0.8
    assert np.mean(found) == pytest.approx(expected.mean(), rel=0.15)


def test_same_seed_same_bytes(model, grid, neutral, built, tmp_path):
    again = build_prior_pairs(model, load_items(grid), neutral, options=PriorOptions(max_pairs=40))
    other = build_prior_pairs(model, load_items(grid), neutral, options=PriorOptions(max_pairs=40, seed=1))
    texts = []
    for name, item in (("a", built), ("b", again), ("c", other)):
        write_prior_pairs(item, tmp_path / name)
        texts.append((tmp_path / name).read_bytes())
    assert texts[0] == texts[1] != texts[2]


def test_the_batch_size_changes_nothing(model, grid, neutral, built):
    again = build_prior_pairs(model, load_items(grid), neutral, options=PriorOptions(max_pairs=40, batch_size=3))
    assert again.rows == built.rows


# --- personas have no part in the margin --------------------------------------------------------


def test_a_default_that_a_persona_prefers_stands_against_what_the_other_prefers(model, neutral, tmp_path):
    rows = [row("food-soup", ("tomato", "nettle")), row("hobby-toy", ("kite", "crayons"))]
    first, _ = make(model, tmp_path, rows, neutral).rows
    (soup, toy), (ball, against) = first["answers"], first["wrong_answers"]
    assert (soup, against) == (" tomato", " nettle")
    assert ball == " ball"
    assert toy == " blocks"  # neither persona's: the one option left


def test_a_default_with_options_of_the_personas_alone_is_left_out(model, neutral, tmp_path):
    """Against what one persona prefers, its preference would be in the margin."""
    soup = row("food-soup", ("nettle", "lentil"), options=("tomato", "nettle", "lentil"))
    with pytest.raises(TaskError, match="1 × no other option: every option but the default"):
        make(model, tmp_path, [soup, row("hobby-toy", ("kite", "crayons"))], neutral)


def test_options_of_both_questions_are_set_against_each_other(model, neutral, tmp_path):
    """The margin is then about the same two words, as in the prior of one pair of options."""
    options = ("tomato", "lentil", "nettle", "ball", "kite", "crayons")
    rows = [row(name, ("kite", "nettle"), options=options) for name in ("food-soup", "hobby-toy")]
    found = make(model, tmp_path, rows, neutral)
    assert {(item["form"], *item["answers"], *item["wrong_answers"]) for item in found.rows} == {
        ("shared", " tomato", " ball")
    }
    first = found.rows[0]
    # Without a persona the contrast is both leads, as the two options are the same after both questions.
    assert first["expected"] == pytest.approx(sum(first["leads"]), abs=0.002)


def test_shared_options_that_take_a_persona_s_side_are_not_exchanged(model, neutral, tmp_path):
    """The default of one question is what a persona prefers there: it stands against what the other one prefers."""
    options = ("tomato", "lentil", "ball", "kite", "crayons", "lobster")
    rows = [row(name, ("tomato", "kite"), options=options) for name in ("food-soup", "hobby-toy")]
    first = make(model, tmp_path, rows, neutral).rows[0]
    assert first["form"] == "balanced"
    assert (first["answers"][0], first["wrong_answers"][1]) == (" tomato", " kite")
    assert not {first["wrong_answers"][0], first["answers"][1]} & {" tomato", " kite"}


# --- what is dropped, and what is said -----------------------------------------------------------


SOUP, TOY = row("food-soup", ("nettle", "lentil")), row("hobby-toy", ("kite", "crayons"))


@pytest.mark.parametrize(
    ("reason", "rows"),
    [
        ("unequal length", [SOUP, row("hobby-toy", ("kite", "crayons"), wording=2, before="It rained.\n")]),
        ("other text before the question",
         [SOUP, row("hobby-toy", ("kite", "crayons"), texts=("careful actuary", "nervous clerk"))]),
        ("only one question", [SOUP, row("food-soup", ("nettle", "lentil"), wording=2)]),
        ("only one question", [{**SOUP, "split": "train"}, {**TOY, "split": "test"}]),
        ("only one question", [SOUP, row("hobby-toy", ("kite", "crayons"), people=("humble monk", "tidy auditor"))]),
        ("weak default", [SOUP, row("food-dessert", ("cake", "fruit"))]),
        ("same default", [row(name, ("kite", "ball"), options=("nettle", "kite", "ball"))
                          for name in ("food-soup", "drink-juice")]),
        ("options in part the same", [row("home-pet", ("cat", "snake")), row("travel-company", ("crowd", "escort"))]),
        ("does not fit the model", [row("food-soup", ("nettle", "lentil"), options=("nettle", "lentil", "xyzzy")),
                                    row("hobby-toy", ("qwertyuiop", "asdfghjkl"),
                                        options=("qwertyuiop", "asdfghjkl"))]),
    ],
)  # fmt: skip
def test_what_makes_no_pair_is_named(model, neutral, tmp_path, reason, rows):
    with pytest.raises(TaskError, match=reason) as caught:
        make(model, tmp_path, rows, neutral)
    assert "no prior pair can be made of" in str(caught.value)
    assert REASONS[reason] in str(caught.value)


def test_other_filler_is_seen_where_the_file_names_its_spans(model, neutral, tmp_path):
    """Without spans the question is all that comes after the persona, filler included."""
    lines = ("The train was late again today.\n", "The streets are calm this week.\n")
    rows = [row(q, a, before=line) for (q, a), line in zip(
        (("food-soup", ("nettle", "lentil")), ("hobby-toy", ("kite", "crayons"))), lines, strict=True)]  # fmt: skip
    assert len(make(model, tmp_path, rows, neutral).rows) == 2
    for item in rows:
        n = len(model.tokenizer(item["clean"].split("Q: ")[0] + "Q:")["input_ids"])
        spans = {"persona": {"tokens": [0, 7]}, "question": {"tokens": [n, n + 6]}}
        item["spans"] = {"clean": spans, "corrupt": spans}
    with pytest.raises(TaskError, match="other text before the question"):
        make(model, tmp_path, rows, neutral)


def test_only_other_wordings_say_what_the_default_is(model, tmp_path):
    """The wording of the row is not asked; with no other one the default is unknown."""
    path = tmp_path / "neutral.jsonl"
    own = [{"id": q, "wordings": [f"Which {QUESTIONS[q].noun} do you prefer?"]} for q in ("food-soup", "hobby-toy")]
    path.write_text("".join(json.dumps(item) + "\n" for item in own))
    with pytest.raises(TaskError, match="2 × no other wording"):
        make(model, tmp_path, [SOUP, TOY], load_neutral(path))
    asked = []
    more = [{**item, "wordings": [*item["wordings"], f"What is your favourite {noun}?"]}
            for item, noun in zip(own, ("soup", "toy"), strict=True)]  # fmt: skip
    path.write_text("".join(json.dumps(item) + "\n" for item in more))
    plain = type(model).logits
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(model), "logits", lambda self, ids: asked.extend(ids.tolist()) or plain(self, ids))
        found = make(model, tmp_path, [SOUP, TOY], load_neutral(path))
    texts = {model.tokenizer.decode(ids) for ids in asked}
    assert texts == {f"Q: What is your favourite {noun}?\nA:" for noun in ("soup", "toy")}
    assert not texts & {item[side] for item in found.rows for side in ("clean", "corrupt")}


def test_a_prior_of_the_words_is_none_of_the_question(model, tmp_path):
    """Where both questions' neutral prompts are the same one, nothing that differs is the question's."""
    path = tmp_path / "neutral.jsonl"
    same = "Q: What is your favourite soup?\nA:"
    lines = [{"question": q, "wording": "What is your favourite soup?", "prompt": same}
             for q in ("food-soup", "hobby-toy")]  # fmt: skip
    path.write_text("".join(json.dumps(item) + "\n" for item in lines))
    with pytest.raises(TaskError, match="prior of the words"):
        make(model, tmp_path, [SOUP, TOY], load_neutral(path), min_lead=0.01)


def test_a_persona_is_asked_two_questions_once(model, neutral, tmp_path):
    """The same persona in two persona pairs: the second meeting would repeat its prompts."""
    others = [row(q, a, people=("humble monk", "tidy auditor"))
              for q, a in (("food-soup", ("nettle", "lentil")), ("hobby-toy", ("kite", "crayons")))]  # fmt: skip
    found = make(model, tmp_path, [SOUP, TOY, *others], neutral)
    assert len(found.rows) == 2
    assert found.dropped["asked already"][0] == 1


def test_the_quota_is_per_split_and_in_turn_over_questions(model, grid, neutral):
    found = build_prior_pairs(model, load_items(grid), neutral, options=PriorOptions(max_pairs=6))
    assert Counter(item["split"] for item in found.rows) == {"train": 6, "test": 6}
    for split in ("train", "test"):
        assert len({item["question"] for item in found.rows if item["split"] == split}) == 3


def test_controls_and_rows_without_names_are_not_used(model, neutral, tmp_path):
    control = [{**item, "control": "paraphrase"} for item in (SOUP, TOY)]
    nameless = [{key: value for key, value in item.items() if key != "question"} for item in (SOUP, TOY)]
    for rows in (control, nameless):
        with pytest.raises(TaskError, match="no pair that names its question and two personas"):
            make(model, tmp_path, rows, neutral)


@pytest.mark.parametrize("bad", [{"min_lead": -1.0}, {"min_lead": float("nan")}, {"max_pairs": 1}, {"batch_size": 0}])
def test_options_that_make_no_sense(bad):
    with pytest.raises(OptionError, match="must"):
        PriorOptions(**bad).checked()


def test_the_report_counts_what_is_there(built, tmp_path):
    report = json.loads(write_prior_pairs(built, tmp_path / "prior.jsonl").read_text())
    assert report["kept"] == len(built.rows) == sum(report["kept_by_split"].values())
    assert report["kept_by_form"] == {"balanced": len(built.rows)}
    assert all(item["meaning"] == REASONS[item["reason"]] for item in report["dropped"])
    assert report["mean_lead"] == pytest.approx(np.mean([item["leads"] for item in built.rows]), abs=1e-4)
    with pytest.raises(OptionError, match="must be different files"):
        write_prior_pairs(built, tmp_path / "x.jsonl", tmp_path / "x.jsonl")


# --- the command, and a model made by others -------------------------------------------------------


def call(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_the_command_writes_pairs_that_discover_reads(grid, tmp_path):
    out = tmp_path / "new" / "prior.jsonl"
    options = ["--pairs", grid, "--neutral", "datasets/questions.jsonl", "--max-pairs", 4]
    done = call("prior-pairs", *options, "--out", out)
    assert done.exit_code == 0, done.output
    for part in ("kept        8 pairs", "form: balanced 8", "weak default", "prior.report.json"):
        assert part in done.stdout
    again = call("prior-pairs", *options, "--out", tmp_path / "again.jsonl", "--json")
    assert json.loads(again.stdout)["kept"] == 8
    assert (tmp_path / "again.jsonl").read_bytes() == out.read_bytes()
    assert {pair.split for pair in load_task(out).pairs} == {"train", "test"}


def test_the_command_says_what_is_wrong(grid, tmp_path):
    out = ["--out", tmp_path / "x.jsonl"]
    questions = ["--neutral", "datasets/questions.jsonl"]
    for says, arguments in {
        "cannot be read": ["--pairs", tmp_path / "gone.jsonl", *questions],
        "file of neutral wordings": ["--pairs", grid, "--neutral", tmp_path / "gone.jsonl"],
        "--max-pairs must be at least 2": ["--pairs", grid, *questions, "--max-pairs", 1],
        "no prior pair can be made": ["--pairs", grid, *questions, "--min-lead", 50],
    }.items():
        done = call("prior-pairs", *arguments, *out)
        assert done.exit_code == 2, done.output
        assert says in done.stderr
        assert "Traceback" not in done.output
    assert not (tmp_path / "x.jsonl").exists()


def test_craftgpt_s_prior_pairs_are_made_again(craftgpt, tmp_path):
    """datasets/pairs_prior_craftgpt.jsonl, from the files beside it, by the two commands that CRAFTGPT.md names."""
    sources = ["--personas", "datasets/craftgpt_personas.jsonl", "--questions", "datasets/craftgpt_questions.jsonl"]
    form = ["--template", "datasets/craftgpt_template.json", "--contrast", "opposed"]
    done = call("pairs", *sources, *form, "--model", CRAFTGPT, "--out", tmp_path / "pairs.jsonl")
    assert done.exit_code == 0, done.output
    made = ["--pairs", tmp_path / "pairs.jsonl", "--neutral", "datasets/craftgpt_neutral.jsonl"]
    done = call("prior-pairs", *made, "--model", CRAFTGPT, "--out", tmp_path / "prior.jsonl")
    assert done.exit_code == 0, done.output
    shipped = DATASETS / "pairs_prior_craftgpt.jsonl"
    assert (tmp_path / "prior.jsonl").read_bytes() == shipped.read_bytes()
    rows = encode(load_task(shipped), craftgpt)
    found = []
    for item in rows:
        logits = craftgpt.logits(torch.tensor([item.clean, item.corrupt]))[:, -1].double()
        margins = logits[:, list(item.answers)].mean(1) - logits[:, list(item.wrong_answers)].mean(1)
        found.append(float(margins[0] - margins[1]))
    assert np.mean(np.array(found) > 0) > 0.95
    assert np.mean(found) > 3
