"""Pairs of unequal length, pairs of one persona's paraphrases, and the question under no persona."""

import json
import re
from collections import Counter

import numpy as np
import pytest
import torch
from conftest import CRAFTGPT, ROOT
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast
from typer.testing import CliRunner

from persona_circuits.circuit.errors import OptionError, TaskError
from persona_circuits.circuit.task import encode, load_task
from persona_circuits.persona.data import (
    Persona,
    Question,
    Template,
    TokenizerOnly,
    load_templates,
    load_tokenizer,
    preferred,
    read_personas,
    read_questions,
)
from persona_circuits.persona.pairs import (
    PairOptions,
    build_pairs,
    built_in_wordings,
    default_null,
    read_neutral_wordings,
    write_pairs,
)

DATASETS = ROOT / "datasets"
ROLES = ROOT.parent / "shared" / "data" / "assistant_axis" / "roles_instructions"
TEXT = " ".join(built_in_wordings()) + (
    " be a monk good king queen prays and rules for all of us here now tea wine cake what do you take say"
    " it rained today outside so very much the who old name"
)
WORDS = sorted({form for word in re.findall("[A-Za-z]+", TEXT) for form in (word, f" {word}", word.lower())})
TAKES = {"monk": "tea", "king": "wine", "queen": "cake"}
ASKED = Question("drink", ("what do you take",), ("tea", "wine", "cake"), TAKES)
PLAIN = Template("plain", "{persona}. {filler}. {question} {cue}", "say", fillers=("it rained today", "it rained"))
# A word is a token and so is a full stop: "be a monk" has three.
MONK = Persona("monk", ("be a monk", "be a good monk", "be a monk and a good monk"))
KING = Persona("king", ("be a king who rules", "be a good king who rules", "be the king"))


@pytest.fixture(scope="module")
def words():
    """One token a word, with or without the space before it."""
    vocab = {text: i for i, text in enumerate(["<unk>", *(chr(c) for c in range(32, 65)), "\n", *WORDS])}
    inner = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Split(Regex(" ?[A-Za-z]+|[^A-Za-z]"), "isolated")
    return PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="<unk>")


@pytest.fixture(scope="module")
def world():
    return load_tokenizer(str(ROOT / "models" / "persona-world"))


@pytest.fixture(scope="module")
def right(world):
    """Pairs of the shipped data of which half the personas have short, the others long descriptions only."""
    found = read_personas(DATASETS / "personas.jsonl")
    cut = [Persona(p.name, p.wordings[(i % 2) :: 2], p.traits) for i, p in enumerate(found)]
    templates = load_templates(str(DATASETS / "templates.json"), world.tokenizer)
    options = PairOptions(max_pairs=80, filler=1, align="right", neutral=True, null=True)
    return build_pairs(cut, read_questions(DATASETS / "questions.jsonl"), world, templates, options=options)


def build(tokenizer, people=(MONK, KING), asked=(ASKED,), template=PLAIN, neutral_wordings=(), **options):
    chosen = PairOptions(**{"test_share": 0.0, "align": "right", **options})
    return build_pairs(people, asked, tokenizer, template, options=chosen, neutral_wordings=neutral_wordings)


def ids(tokenizer, text):
    return tokenizer(text)["input_ids"]


def task_of(built, folder, null=False):
    files = write_pairs(built, folder / "pairs.jsonl")
    return load_task(files["null_out" if null else "out"])


def outside(tokenizer, row, side):
    """The tokens of a prompt before and after its persona, by the text alone."""
    start, end = row["spans"][side]["persona"]["chars"]
    return ids(tokenizer, row[side][:start]), ids(tokenizer, row[side][end:])


# Unequal lengths


def test_equal_lengths_come_first_and_the_nearest_where_there_are_none(words):
    tall = Persona("king", ("be a good king who rules now", "be the king who prays"))
    (row,) = build(words, (MONK, tall)).rows
    assert (row["wording_a"], row["wording_b"], row["unequal"]) == (2, 0, False), "both are of seven words"
    (row,) = build(words, (Persona("monk", MONK.wordings[:2]), tall)).rows
    assert (row["wording_a"], row["wording_b"], row["unequal"]) == (1, 1, True), "four and five words"
    assert row["n_tokens_corrupt"] - row["n_tokens"] == 1
    assert [len(ids(words, row[side])) for side in ("clean", "corrupt")] == [row["n_tokens"], row["n_tokens_corrupt"]]


def test_with_equal_there_is_no_such_pair(words):
    people = (Persona("monk", MONK.wordings[:1]), Persona("king", KING.wordings[:2]))
    with pytest.raises(TaskError, match=r"unequal length: .*--align right \(such as monk and king, drink: tokens monk"):
        build(words, people, align="equal")
    assert build(words, people).report()["unequal"] == {"pairs": 1, "by_tokens": {"2": 1}}


def test_a_text_without_an_option_goes_before_equal_length(words):
    leaky = Persona("king", ("take tea now", "be a king who rules"))
    (row,) = build(words, (Persona("monk", MONK.wordings[:1]), leaky)).rows
    assert (row["wording_b"], row["unequal"], row["leak"]) == (1, True, False)


def test_unequal_pairs_fit_the_model_and_only_the_persona_differs(right, world, tmp_path):
    task = task_of(right, tmp_path)
    rows = encode(task, world, align="right")
    unequal = [len(row.clean) != len(row.corrupt) for row in rows]
    assert unequal == [row["unequal"] for row in right.rows]
    assert 10 < sum(unequal) < 70
    with pytest.raises(TaskError, match="use --align right"):
        encode(task, world)
    for row in right.rows:
        before, after = outside(world.tokenizer, row, "clean")
        assert (before, after) == outside(world.tokenizer, row, "corrupt")
        start = len(before)
        for side, length in (("clean", row["n_tokens"]), ("corrupt", row["n_tokens_corrupt"])):
            assert row["spans"][side]["persona"]["tokens"] == [start, length - len(after)]
            assert row["spans"][side]["cue"]["tokens"][1] == length
            for name, span in row["spans"][side].items():
                shown = world.tokenizer.decode(ids(world.tokenizer, row[side])[slice(*span["tokens"])])
                assert shown.strip() == row[side][slice(*span["chars"])].strip(), name


def test_the_report_counts_unequal_pairs_by_tokens(right):
    gaps = Counter(abs(row["n_tokens"] - row["n_tokens_corrupt"]) for row in right.rows)
    del gaps[0]
    found = right.report()["unequal"]
    assert found == {"pairs": sum(gaps.values()), "by_tokens": {str(gap): gaps[gap] for gap in sorted(gaps)}}


def test_prompts_that_end_in_the_persona_cannot_be_aligned(words):
    people = (Persona("monk", ("be a monk",)), Persona("king", ("be a good king",)))
    last = Template("last", "{question}. {persona}")
    with pytest.raises(TaskError, match=r"1 × no common end: .*let the template end in a cue"):
        build(words, people, template=last)
    assert build(words, people, template=Template("cue", "{question}. {persona}. {cue}", "say")).rows[0]["unequal"]


def test_a_part_that_merges_with_the_persona_in_one_prompt_only():
    inner = Tokenizer(models.BPE({c: i for i, c in enumerate("abcdqx: ")} | {"aq": 8}, [("a", "q")]))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner)
    asked = Question("q", ("q",), ("a", "x"), {"p": "a", "r": "x"})
    template = Template("t", "{persona}{question}(")
    with pytest.raises(TaskError, match="parts on other tokens: the prompts differ outside the persona"):
        build(tokenizer, [Persona("p", ("bba",)), Persona("r", ("b",))], [asked], template)
    (row,) = build(tokenizer, [Persona("p", ("bbb",)), Persona("r", ("b",))], [asked], template).rows
    assert row["spans"]["clean"]["question"]["tokens"] == [3, 4]
    assert row["spans"]["corrupt"]["question"]["tokens"] == [1, 2]


def test_a_question_in_other_tokens_of_the_same_number():
    """The one persona takes the question's first letter, and what is left of it falls into other tokens."""
    vocab = {c: i for i, c in enumerate("abqrstx: (")} | {"aq": 10, "qr": 11, "st": 12}
    inner = Tokenizer(models.BPE(vocab, [("a", "q"), ("q", "r"), ("s", "t")]))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner)
    asked = Question("q", ("qrst",), ("a", "x"), {"p": "a", "r": "x"})
    for align in ("equal", "right"):
        with pytest.raises(TaskError, match=r"persona on \(0, 1\) and \(0, 1\)"):
            build(
                tokenizer,
                [Persona("p", ("b",)), Persona("r", ("a",))],
                [asked],
                Template("t", "{persona}{question}("),
                align=align,
            )


def test_an_unknown_token_that_also_writes_spaces():
    vocab = {c: i for i, c in enumerate("_abcqxy")} | {"_x": 7, "_y": 8}
    inner = Tokenizer(models.WordPiece(vocab, unk_token="_", continuing_subword_prefix=""))
    inner.normalizer, inner.decoder = normalizers.Replace(" ", "_"), decoders.Replace("_", " ")
    inner.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="_")
    asked = Question("q", ("q",), ("x", "y"), {"p": "x", "r": "y"})
    template = Template("t", "{persona}{question}(")
    people = [Persona("p", ("a b",)), Persona("r", ("a b c",))]
    assert build(tokenizer, people, [asked], template).rows[0]["unequal"]
    with pytest.raises(TaskError, match=r"unknown word: .*'ü'"):
        build(tokenizer, [people[0], Persona("r", ("aüb",))], [asked], template)


def test_a_space_that_is_also_the_unknown_token_is_no_unknown_word():
    if not CRAFTGPT.is_dir():
        pytest.skip(f"{CRAFTGPT.name} is not at ../shared/models")
    people = [Persona("happy", ("you are a happy person.",)), Persona("lazy", ("you are a lazy person.",))]
    asked = Question("rain", ("how do you feel about the rain?",), ("nice", "not"), {"happy": "nice", "lazy": "not"})
    template = Template("chat", "_[inst] {persona} {question}_[/inst] {cue}", "the rain is")
    reader = load_tokenizer(str(CRAFTGPT))
    (row,) = build(reader, people, [asked], template, neutral=True).rows
    assert row["n_tokens_corrupt"] - row["n_tokens"] == 3, "the tokenizer writes lazy in four tokens"
    with pytest.raises(TaskError, match="unknown word"):
        build(reader, people, [asked], Template("chat", "☃ {persona} {question} {cue}", "the rain is"))


# Null pairs


def test_null_pairs_are_paraphrases_of_one_persona_asked_as_an_actual_pair(right, world, tmp_path):
    actual = {row["id"]: row for row in right.rows}
    rows = right.null.rows
    assert len({row["id"] for row in rows}) == len(rows) > 100
    for row in rows:
        pair = actual[row["id"].rsplit("/", 2)[0]]
        assert row["persona_a"] == row["persona_b"] in (pair["persona_a"], pair["persona_b"])
        assert row["control"] == "paraphrase"
        assert row["wording_a"] != row["wording_b"]
        for key in ("question", "wording", "template", "filler", "answers", "wrong_answers", "candidates", "split"):
            assert row[key] == pair[key], key
        assert outside(world.tokenizer, row, "clean") == outside(world.tokenizer, pair, "clean")
        assert outside(world.tokenizer, row, "corrupt") == outside(world.tokenizer, pair, "clean")
        lengths = [len(ids(world.tokenizer, row[side])) for side in ("clean", "corrupt")]
        assert row["unequal"] == (lengths[0] != lengths[1])
    assert len({frozenset((r["clean"], r["corrupt"], *r["answers"], *r["wrong_answers"])) for r in rows}) == len(rows)
    task = task_of(right, tmp_path, null=True)
    encoded = encode(task, world, align="right")
    assert [len(e.clean) != len(e.corrupt) for e in encoded] == [row["unequal"] for row in rows]
    about = right.report()["null"]
    assert about["pairs"] == about["equal"] + about["unequal"] == len(rows)
    assert about["unequal"] == sum(row["unequal"] for row in rows) == sum(about["by_tokens"].values())


def test_a_null_pair_is_as_unequal_as_its_pair_where_paraphrases_allow(words):
    monk = Persona("monk", ("be a monk", "be a good monk", "be a monk and a good monk"))
    king = Persona("king", ("be the king who rules and prays for all here",))
    built = build(words, (monk, king), null=True)
    assert built.rows[0]["n_tokens_corrupt"] - built.rows[0]["n_tokens"] == 3
    (row,) = built.null.rows
    assert (row["wording_a"], row["wording_b"]) == (1, 2), "three words apart, the longer one second, as in the pair"


def test_either_persona_has_its_turn(words):
    people = [Persona(f"p{i}", (f"be a {w} monk", f"be a {w} king")) for i, w in enumerate(("good", "old"))]
    texts = ["what do you take", "what do you take now"] * 2 + ["what do you take"]
    takes = {"p0": "tea", "p1": "wine"}
    asked = [Question(f"q{i}", (text,), ("tea", "wine"), takes) for i, text in enumerate(texts)]
    built = build(words, people, asked, null=True, align="equal")
    asked_of = [row["persona_a"] for row in built.null.rows]
    assert asked_of == ["p0", "p1", "p1", "p0"], "in turn, but the same prompts do not come twice"
    assert built.report()["null"]["pairs_without"] == {"equal": 1}
    assert not any(row["unequal"] for row in built.null.rows)


def test_who_has_no_paraphrases_is_said(words):
    people = (
        Persona("monk", ("be a monk",)),
        Persona("king", ("be a king", "be a good king")),
        Persona("queen", ("be a queen", "be the queen")),
    )
    about = build(words, people, null=True).report()["null"]
    assert about["personas_without"] == {
        "a second paraphrase": ["monk"],
        "two paraphrases of equal length": ["king"],
        "two paraphrases of unequal length": ["queen"],
    }
    assert about["pairs_without"]["equal"] + about["pairs_without"]["unequal"] + about["pairs"] == 2 * 3


def test_a_description_that_the_source_sets_aside_is_no_null(words, tmp_path):
    source = {"id": "monk", "descriptions": [" be a queen", "be a king", "be a monk "], "held_out_description": 0}
    (tmp_path / "p.jsonl").write_text(json.dumps(source))
    (monk,) = read_personas(tmp_path / "p.jsonl")
    assert monk.held_out == 0
    built = build(words, (monk, Persona("king", ("be a monk",))), null=True)
    assert built.rows[0]["wording_a"] == 0
    assert {built.null.rows[0]["wording_a"], built.null.rows[0]["wording_b"]} == {1, 2}
    (tmp_path / "p.jsonl").write_text(json.dumps(source | {"held_out_description": 3}))
    with pytest.raises(TaskError, match="'held_out_description' must be the index of a description, got 3"):
        read_personas(tmp_path / "p.jsonl")


def test_a_leaking_paraphrase_is_no_null(words):
    monk = Persona("monk", ("be a monk", "be a tea"))
    people = (monk, Persona("king", ("be a king",)))
    assert build(words, people, null=True).null.rows == ()
    (row,) = build(words, people, null=True, leaks="keep").null.rows
    assert row["leak"]
    assert row["leaked"] == ["tea"]


def test_files_of_null_pairs(words, tmp_path):
    built = build(words, null=True)
    files = write_pairs(built, tmp_path / "pairs.jsonl")
    assert files["null_out"] == default_null(tmp_path / "pairs.jsonl") == tmp_path / "pairs.null.jsonl"
    assert json.loads(files["report"].read_text())["null"]["file"] == str(files["null_out"])
    first = files["null_out"].read_bytes()
    assert write_pairs(build(words, null=True), tmp_path / "again.jsonl")["null_out"].read_bytes() == first

    single = build(words, (Persona("monk", ("be a monk",)), Persona("king", ("be a king",))), null=True)
    assert "null_out" not in write_pairs(single, tmp_path / "pairs.jsonl")
    assert not files["null_out"].exists(), "null pairs of other pairs must not stay beside these"
    with pytest.raises(TaskError, match=r"no null pair can be made for .*n\.jsonl: 2 persona\(s\) have not a second"):
        write_pairs(single, tmp_path / "new.jsonl", null=tmp_path / "n.jsonl")
    with pytest.raises(TaskError, match="none was asked for"):
        write_pairs(build(words), tmp_path / "new.jsonl", null=tmp_path / "n.jsonl")
    with pytest.raises(OptionError, match="must be different files"):
        write_pairs(built, tmp_path / "new.jsonl", null=tmp_path / "new.jsonl")
    assert not (tmp_path / "new.jsonl").exists()


# The question under no persona


def test_neutral_prompts_have_the_length_of_the_pair(world, tmp_path):
    templates = load_templates(str(DATASETS / "templates.json"), world.tokenizer)
    options = PairOptions(max_pairs=60, filler=1, neutral=True)
    sources = read_personas(DATASETS / "personas.jsonl"), read_questions(DATASETS / "questions.jsonl")
    built = build_pairs(*sources, world, templates, options=options)
    for row, encoded in zip(built.rows, encode(task_of(built, tmp_path), world), strict=True):
        assert len(encoded.neutral) == len(encoded.clean) == row["n_tokens"]
        before, after = outside(world.tokenizer, row, "clean")
        assert list(encoded.neutral[: len(before)]) == before
        assert list(encoded.neutral[-len(after) :]) == after
        lines = row["neutral_wording"].split("\n")
        assert set(lines) <= set(templates[0].fillers)
        assert row["filler"] not in lines
    counts = built.report()["neutral"]
    assert counts == {"the template": Counter(row["neutral_wording"] for row in built.rows)}
    assert len(counts["the template"]) > 3


def test_under_the_neutral_prompts_the_shipped_model_answers_by_its_prior(right):
    from persona_circuits.circuit.model import load_model
    from persona_circuits.models.world import build_world

    model, made = load_model(ROOT / "models" / "persona-world"), build_world()
    questions = {question.id: question for question in made.questions}
    gaps = {"neutral": [], "clean": []}
    for row in right.rows[:25]:
        prior = np.array(made.probabilities(None, questions[row["question"]]))
        tokens = [ids(model.tokenizer, option)[0] for option in row["candidates"]]
        for side, found in gaps.items():
            with torch.no_grad():
                logits = model.logits(torch.tensor([ids(model.tokenizer, row[side])]))[0, -1, tokens]
            found.append(float((prior * (np.log(prior) - logits.log_softmax(-1).double().numpy())).sum()))
    assert max(gaps["neutral"]) < 0.01
    assert np.mean(gaps["clean"]) > 0.1


def test_with_right_the_nearest_neutral_wording_is_taken(words, right):
    people = (Persona("monk", ("be a monk",)), Persona("king", ("be the king who prays",)))
    given = ("be so very very old now today outside", "be so old outside here now", "be")
    (row,) = build(words, people, neutral=True, neutral_wordings=given).rows
    assert row["neutral_wording"] == given[1], "six words, against three and five"
    assert row["n_tokens_neutral"] == len(ids(words, row["neutral"])) == row["n_tokens_corrupt"] + 1
    assert all(row["n_tokens_neutral"] for row in right.rows)


def test_where_no_neutral_wording_is_of_equal_length(words):
    people = (Persona("monk", ("be a monk",)), Persona("king", ("be a king",)))
    with pytest.raises(TaskError, match=r"1 × no neutral wording of equal length: .*tokens, from --neutral-wordings"):
        build(words, people, align="equal", neutral=True, neutral_wordings=("be somebody",))
    assert (
        build(words, people, neutral=True, neutral_wordings=("be somebody",)).rows[0]["neutral"].startswith("be some")
    )


def test_the_next_paraphrases_are_taken_where_a_neutral_wording_fits_them(words):
    monk = Persona("monk", ("be a monk", "be a good monk", "be a very good monk"))
    king = Persona("king", ("be a king", "be a good king", "be a very good king"))
    (row,) = build(words, (monk, king), align="equal").rows
    assert (row["wording_a"], row["wording_b"]) == (1, 1), "of median length"
    (row,) = build(words, (monk, king), align="equal", neutral=True, neutral_wordings=("be very very old now",)).rows
    assert (row["wording_a"], row["wording_b"]) == (2, 2)


def test_a_neutral_wording_holds_no_option_and_no_filler(words):
    people = (Persona("monk", ("be a monk",)), Persona("king", ("be a king",)))
    leaky, repeated, good = "be a Tea", "it rained today", "be so old"
    built = build(words, people, align="equal", neutral=True, neutral_wordings=(leaky, repeated, good), filler=2)
    assert built.rows[0]["neutral_wording"] == good
    with pytest.raises(TaskError, match=r"no neutral wording: .*each holds an option"):
        build(words, people, neutral=True, neutral_wordings=(leaky,))
    with pytest.raises(TaskError, match=r"no neutral wording: .*unknown word, ' snow'"):
        build(words, people, neutral=True, neutral_wordings=("be a snow",), align="equal")


def test_answers_are_checked_behind_the_neutral_prompt():
    """The prompts end in the persona, and the neutral one in a letter that takes the space of the answer."""
    inner = Tokenizer(models.BPE({c: i for i, c in enumerate("abcdqxy ")} | {"a ": 8, " x": 9, " y": 10}, MERGES))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner)
    people = [Persona("p", ("bbb",)), Persona("r", ("cdb",))]
    asked = Question("q", ("q",), ("x", "y"), {"p": "x", "r": "y"})
    template = Template("t", "{question}{persona}")
    assert build(tokenizer, people, [asked], template, ("ccb",), align="equal", neutral=True).rows
    with pytest.raises(TaskError, match="1 × candidate merges"):
        build(tokenizer, people, [asked], template, ("cca",), align="equal", neutral=True)


MERGES = [("a", " "), (" ", "x"), (" ", "y")]


def test_personas_that_the_source_calls_neutral_meet_nobody(words):
    nobody = Persona("Default", ("be here now", "be here"))
    built = build(words, (nobody, MONK, KING), neutral=True)
    assert {row["persona_a"] for row in built.rows} == {"monk"}
    assert built.report()["neutral"] == {"persona Default": {"be here now": 1}}
    assert build(words, (nobody, MONK, KING)).report()["dropped"][0]["reason"] == "no declared preference"
    with pytest.raises(TaskError, match="two personas, the source holds 1"):
        build(words, (nobody, MONK), neutral=True)


@pytest.mark.skipif(not ROLES.is_dir(), reason="the samples are not at ../shared/data")
def test_the_roles_of_assistant_axis(world, tmp_path):
    for name in ("default", "pirate", "actor", "accountant"):
        (tmp_path / f"{name}.json").write_bytes((ROLES / f"{name}.json").read_bytes())
    people = read_personas(tmp_path)
    takes = {"pirate": "milk", "actor": "wine", "accountant": "tea"}
    asked = [Question("drink", ("Which drink do you take?",), ("tea", "wine", "milk"), takes)]
    built = build(world, people, asked, load_templates("raw", None), neutral=True, null=True)
    assert len(built.rows) == 3
    assert len(encode(task_of(built, tmp_path), world, align="right")) == 3
    assert {row["persona_a"] for row in built.rows} <= {*takes}
    assert "a prompt with a placeholder" in " ".join(built.report()["wordings_left_out"])


def test_without_any_source_the_built_in_list_is_used(words):
    people = (Persona("monk", ("be a very good monk",)), Persona("king", KING.wordings[:1]))
    (row,) = build(words, people, neutral=True, align="equal").rows
    assert row["neutral_wording"] in {text.lower() for text in built_in_wordings()}, "the personas are in lower case"
    assert len(ids(words, row["neutral"])) == row["n_tokens"]
    lengths = {len(ids(words, text)) for text in built_in_wordings()}
    assert set(range(4, 50)) <= lengths, "an ordinary prompt finds one of its own length"
    assert len(built_in_wordings()) == len(set(built_in_wordings()))


def test_a_template_may_hold_neutral_wordings(words, tmp_path):
    path = tmp_path / "t.json"
    text = "{persona}. {question} {cue}"
    path.write_text(json.dumps({"template": text, "cue": "say", "neutral": ["be here now today"]}))
    built = build(words, (MONK, KING), template=load_templates(str(path), None), neutral=True)
    assert built.report()["neutral"] == {"the template": {"be here now today": 1}}
    for wrong in ([" "], [3]):
        path.write_text(json.dumps({"template": text, "neutral": wrong}))
        with pytest.raises(TaskError, match="every neutral wording must be a string that says something"):
            load_templates(str(path), None)


def test_a_neutral_wording_does_not_depend_on_the_personas(right):
    chosen = {}
    for row in right.rows:
        lengths = tuple(sorted((row["n_tokens"], row["n_tokens_corrupt"])))
        key = row["question"], row["wording"], row["template"], lengths
        assert chosen.setdefault(key, row["neutral_wording"]) == row["neutral_wording"]


def test_neutral_wordings_from_a_file(tmp_path):
    path = tmp_path / "n.txt"
    path.write_text("You are a person.\n\n You are somebody. \nYou are a person.\n")
    assert read_neutral_wordings(path) == ("You are a person.", "You are somebody.")
    path.write_text("\n")
    with pytest.raises(TaskError, match="holds no neutral wording"):
        read_neutral_wordings(path)
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(TaskError, match="not UTF-8"):
        read_neutral_wordings(path)
    with pytest.raises(TaskError, match="check the path"):
        read_neutral_wordings(tmp_path / "none.txt")


def test_options_are_checked(words):
    with pytest.raises(OptionError, match="--align 'left' is not one of equal, right"):
        build(words, align="left")


def test_a_prompt_that_does_not_fit_is_left_for_a_shorter_one(words):
    people = (Persona("monk", ("be a monk",)), Persona("king", ("be a king", "be the king who rules and prays")))
    short = TokenizerOnly(words, n_context=14)
    (row,) = build(short, people, null=True).rows
    assert row["wording_b"] == 0
    assert build(short, people, null=True).null.rows == ()


# The command line


def call(*arguments):
    return CliRunner().invoke(app(), [str(argument) for argument in arguments])


def app():
    from persona_circuits.cli import app

    return app


def test_the_command_writes_null_pairs_and_neutral_prompts(tmp_path):
    (tmp_path / "nobody.txt").write_text("There was fog over the river.\n")
    sources = ["--personas", DATASETS / "personas.jsonl", "--questions", DATASETS / "questions.jsonl"]
    common = ["pairs", *sources, "--max-pairs", 6, "--align", "right", "--out", tmp_path / "p.jsonl"]
    done = call(*common, "--neutral-wordings", tmp_path / "nobody.txt")
    assert done.exit_code == 0, done.output
    assert re.search(r"null +12 pairs of one persona's paraphrases \(6 of equal length, 6 of unequal", done.stdout)
    assert "neutral     wordings: 1 of --neutral-wordings" in done.stdout
    assert str(tmp_path / "p.null.jsonl") in done.stdout
    row = json.loads((tmp_path / "p.jsonl").read_text().splitlines()[0])
    assert row["neutral"].startswith("There was fog over the river.\nQ: ")
    elsewhere = tmp_path / "new" / "null.jsonl"
    shown = json.loads(call(*common, "--null", elsewhere, "--json").stdout)
    assert shown["null_out"] == str(elsewhere)
    assert shown["null"]["pairs"] == len(elsewhere.read_text().splitlines()) == 12


def test_the_command_says_what_cannot_be_had(tmp_path):
    (tmp_path / "p.csv").write_text("name,wording\nmonk,You are a monk.\nactor,You are a famous actor.\n")
    (tmp_path / "q.csv").write_text("id,wording,options,prefers\nd,Which drink?,tea|wine,monk=tea|actor=wine\n")
    out = tmp_path / "pairs.jsonl"
    common = ["pairs", "--personas", tmp_path / "p.csv", "--questions", tmp_path / "q.csv", "--out", out]
    done = call(*common)
    assert done.exit_code == 2
    assert "add paraphrases, or use --align right" in done.stderr
    done = call(*common, "--align", "right", "--null", tmp_path / "null.jsonl")
    assert done.exit_code == 2
    assert "no null pair can be made" in done.stderr
    assert not out.exists()
    done = call(*common, "--align", "right")
    assert done.exit_code == 0, done.output
    assert "unequal     1 pairs, by" in done.stdout
    assert "2 persona(s) have not a second paraphrase: monk, actor" in done.stdout
    assert not (tmp_path / "pairs.null.jsonl").exists()


def test_preferences_are_those_of_the_sources(right):
    people = {p.name: p for p in read_personas(DATASETS / "personas.jsonl")}
    asked = {q.id: q for q in read_questions(DATASETS / "questions.jsonl")}
    for row in right.rows:
        assert row["answers"] == [f" {preferred(asked[row['question']], people[row['persona_a']])}"]
