"""Pair files from personas, questions and templates: what is kept is sound, what is dropped is named."""

import datetime
import json
import re

import pytest
from conftest import DATA, ROOT
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from persona_circuits.circuit.errors import OptionError, TaskError
from persona_circuits.circuit.task import encode, load_task
from persona_circuits.persona.data import (
    PARTS,
    Persona,
    Question,
    Template,
    TokenizerOnly,
    load_templates,
    load_tokenizer,
    option_list,
    preferred,
    read_personas,
    read_questions,
)
from persona_circuits.persona.pairs import PairOptions, build_pairs, default_report, write_pairs
from persona_circuits.persona.pairs.matching import REASONS

DATASETS = ROOT / "datasets"
CORPUS = """You are a humble monk. You are a famous actor. You are a monk, and you pray. You like tea and cake.
You are a humble Tea. You are a good judge. You are a humble tea.
Which drink do you take? Which food do you take? Which game is good? It rained. The lamp is on.
A: tea A: wine A: cake A: bread Answer with one word: tea, wine or cake.
Today is 01 Jan 2025
tea
wine
cake
(tea (wine (cake
"""
CHATML = (
    "{% for m in messages %}<|turn|>{{ m.role }}\n{{ m.content }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|turn|>assistant\n{% endif %}"
)
NO_SYSTEM = "{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}" + CHATML
IGNORES_SYSTEM = CHATML.replace("in messages %}", "in messages if m.role == 'user' %}")

MONK = Persona("monk", ("You are a humble monk.", "You are a monk, and you pray."))
ACTOR = Persona("actor", ("You are a famous actor.",))
TAKES = {"monk": "tea", "actor": "wine"}
DRINK = Question("drink", ("Which drink do you take?",), ("tea", "wine", "cake"), TAKES)
ALL = PairOptions(test_share=0.0)


@pytest.fixture(scope="module")
def world():
    return load_tokenizer(str(ROOT / "models" / "persona-world"))


@pytest.fixture(scope="module")
def personas():
    return read_personas(DATASETS / "personas.jsonl")


@pytest.fixture(scope="module")
def questions():
    return read_questions(DATASETS / "questions.jsonl")


@pytest.fixture(scope="module")
def built(world, personas, questions):
    templates = load_templates(str(DATASETS / "templates.json"), world.tokenizer)
    return build_pairs(personas, questions, world, templates, options=PairOptions(max_pairs=120, filler=2))


@pytest.fixture
def small():
    """A byte-level tokenizer that knows the words of CORPUS, and a start token that it adds itself."""
    return tokenizer_of(CORPUS)


def tokenizer_of(corpus):
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    special = ["<s>", "<|turn|>", "<|end|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=1000, initial_alphabet=alphabet, special_tokens=special, show_progress=False
    )
    inner.train_from_iterator([corpus] * 3, trainer)
    inner.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return PreTrainedTokenizerFast(tokenizer_object=inner, bos_token="<s>")


def build(tokenizer, people=(MONK, ACTOR), asked=(DRINK,), template=None, options=ALL, **more):
    templates = (template,) if template else load_templates("raw", tokenizer)
    return build_pairs(people, asked, tokenizer, templates, options=options, **more)


def test_the_pairs_fit_the_model_they_are_built_for(built, world, tmp_path):
    write_pairs(built, tmp_path / "pairs.jsonl")
    task = load_task(tmp_path / "pairs.jsonl")
    assert len(encode(task, world)) == len(built.rows) == 120
    assert task.splits == ("train", "test")
    assert len(task.of_split("test").pairs) == 24


def test_a_bare_tokenizer_and_a_whole_model_give_the_same(personas, questions, world):
    from persona_circuits.circuit.model import load_model

    some = personas[:6], questions[:6]
    templates = load_templates("raw", world.tokenizer)
    whole = load_model(ROOT / "models" / "persona-world")
    assert whole.n_context == world.n_context
    rows = [build_pairs(*some, given, templates).rows for given in (world.tokenizer, world, whole)]
    assert rows[0] == rows[1] == rows[2]


def test_answers_are_the_declared_preferences(built, personas, questions):
    people, asked = {p.name: p for p in personas}, {q.id: q for q in questions}
    for row in built.rows:
        question = asked[row["question"]]
        assert row["answers"] == [" " + preferred(question, people[row["persona_a"]])]
        assert row["wrong_answers"] == [" " + preferred(question, people[row["persona_b"]])]
        assert row["candidates"] == [f" {option}" for option in question.options]


def test_spans_hold_what_they_say(built, world, personas, questions):
    people, asked = {p.name: p for p in personas}, {q.id: q for q in questions}
    for row in built.rows:
        for side, which in (("clean", "a"), ("corrupt", "b")):
            text, spans = row[side], row["spans"][side]
            assert list(spans) == ["prefix", *PARTS, "cue"]
            said = {name: text[slice(*span["chars"])] for name, span in spans.items()}
            assert said["persona"] == people[row[f"persona_{which}"]].wordings[row[f"wording_{which}"]]
            assert said["question"] == asked[row["question"]].wordings[row["wording"]]
            assert said["filler"] == row["filler"] != ""
            assert said["cue"].strip() in ("A:", "I would choose", "My answer is")
            ids = world.tokenizer(text)["input_ids"]
            for name, span in spans.items():
                assert world.tokenizer.decode(ids[slice(*span["tokens"])]).strip() == said[name].strip()
            assert spans["cue"]["tokens"][1] == len(ids) == row["n_tokens"]


def test_only_the_persona_differs(built, world):
    for row in built.rows:
        clean, corrupt = (world.tokenizer(row[side])["input_ids"] for side in ("clean", "corrupt"))
        start, end = row["spans"]["clean"]["persona"]["tokens"]
        assert len(clean) == len(corrupt)
        assert clean[start:end] != corrupt[start:end]
        assert clean[:start] + clean[end:] == corrupt[:start] + corrupt[end:]
        tokens = [{name: span["tokens"] for name, span in row["spans"][side].items()} for side in ("clean", "corrupt")]
        assert tokens[0] == tokens[1]


def test_filler_does_not_depend_on_the_personas(built):
    chosen = {}
    for row in built.rows:
        assert chosen.setdefault((row["question"], row["template"]), row["filler"]) == row["filler"]
    assert len(set(chosen.values())) > 20


def test_train_and_test_share_no_persona_pair_and_no_wording(built, questions):
    held = {question.id: question.held_out for question in questions}
    pairs = {"train": set(), "test": set()}
    for row in built.rows:
        pairs[row["split"]].add((row["persona_a"], row["persona_b"]))
        assert (row["wording"] == held[row["question"]]) == (row["split"] == "test")
    assert not pairs["train"] & pairs["test"]


def test_questions_of_one_wording_are_held_out_whole(small):
    asked = [Question(f"q{i}", (text,), ("tea", "wine"), TAKES) for i, text in enumerate(CORPUS.split(". ")[:6])]
    rows = build(small, asked=asked, options=PairOptions(test_share=0.34)).rows
    by_split = {name: {row["question"] for row in rows if row["split"] == name} for name in ("train", "test")}
    assert len(by_split["train"]) == 4
    assert len(by_split["test"]) == 2
    assert not by_split["train"] & by_split["test"]


def test_what_cannot_be_held_out_is_said(small):
    one = build(small, options=PairOptions())
    assert "split" not in one.rows[0]
    assert one.report()["splits"]["held_out"].startswith("nothing: there is one")
    two = Question("drink", ("Which drink do you take?", "Which food do you take?"), ("tea", "wine"), TAKES)
    shared = build(small, asked=[two], options=PairOptions())
    assert [row["split"] for row in shared.rows] == ["train", "test"]
    assert len({row["id"] for row in shared.rows}) == 2
    assert "the one persona pair is in both" in shared.report()["splits"]["held_out"]


def test_a_question_without_a_preference_is_never_what_is_tested(small):
    people = [MONK, ACTOR]
    asked = [Question(f"q{i}", (f"Which {'food ' * i}do you take?",), ("tea", "wine"), SAME) for i in range(20)]
    asked += [Question(f"r{i}", (f"Which {'game ' * i}is good?",), ("tea", "wine"), TAKES) for i in range(2)]
    for seed in range(5):
        rows = build(small, people, asked, options=PairOptions(seed=seed)).rows
        assert [row["split"] for row in rows] == ["train", "test"]


def test_a_split_that_comes_out_empty_is_not_named(small):
    spices = {"monk": "ginger", "actor": "saffron"}
    asked = [DRINK, Question("spice", ("Which food do you take?",), ("ginger", "saffron"), spices)]
    made = build(small, asked=asked, options=PairOptions())
    assert "split" not in made.rows[0]
    assert re.match("nothing: no pair was left for (train|test)", made.report()["splits"]["held_out"])


def test_same_seed_same_bytes(world, personas, questions, tmp_path):
    def file(name, seed):
        options = PairOptions(seed=seed, max_pairs=30)
        made = build_pairs(personas, questions, world, load_templates("raw", None), options=options)
        write_pairs(made, tmp_path / name)
        return (tmp_path / name).read_bytes()

    assert file("a.jsonl", 1) == file("b.jsonl", 1) != file("c.jsonl", 2)
    report = default_report(tmp_path / "a.jsonl").read_bytes()
    assert report == default_report(tmp_path / "b.jsonl").read_bytes()


def test_nothing_is_lost_without_being_counted(built, personas, questions):
    report = built.report()
    everything = len(personas) * (len(personas) - 1) // 2 * len(questions) * 3
    assert report["kept"] + report["dropped_total"] == report["tried"]
    assert report["tried"] + sum(report["not_tried"].values()) == everything
    assert {item["reason"] for item in report["dropped"]} == {"no declared preference", "same preference"}


def test_limits(small, personas, questions, world):
    people = [Persona(f"p{i}", (f"You are a {word} monk.",)) for i, word in enumerate(["humble", "famous", "good"])]
    takes = {"p0": "tea", "p1": "wine", "p2": "cake"}
    asked = [
        Question(name, (f"Which {name} do you take?",), ("tea", "wine", "cake"), takes) for name in ("drink", "food")
    ]
    rows = build(small, people, asked, options=PairOptions(test_share=0.0, per_question=2)).rows
    assert [[row["question"] for row in rows].count(name) for name in ("drink", "food")] == [2, 2]
    limited = build(small, people, asked, options=PairOptions(test_share=0.0, max_pairs=2))
    assert {row["question"] for row in limited.rows} == {"drink", "food"}
    assert limited.report()["not_tried"] == {"beyond --max-pairs": 4}


def test_contrast(small):
    people = (MONK, ACTOR, Persona("judge", ("You are a good judge.",), opposite="monk"))
    asked = [Question("drink", DRINK.wordings, ("tea", "wine"), TAKES | {"judge": "wine"})]
    given = build(small, people, asked, contrast=[("actor", "monk")]).rows
    assert [(row["persona_a"], row["persona_b"]) for row in given] == [("actor", "monk")]
    with pytest.raises(TaskError, match="no persona is called 'king'"):
        build(small, people, asked, contrast=[("actor", "king")])
    with pytest.raises(TaskError, match="as its opposite"):
        build(small, contrast="opposed")
    met = (Persona("monk", MONK.wordings, opposite="actor"), ACTOR, people[2])
    assert len(build(small, met, asked, contrast="opposed").rows) == 1


def test_of_equal_lengths_the_wording_without_an_option_is_taken(small):
    leaky = Persona("monk", ("You are a humble Tea.", "You are a humble monk."))
    (row,) = build(small, (leaky, ACTOR)).rows
    assert (row["wording_a"], row["leak"]) == (1, False)
    (row,) = build(small, (leaky, ACTOR), options=PairOptions(test_share=0.0, leaks="only")).rows
    assert (row["wording_a"], row["leak"], row["leaked"]) == (0, True, ["tea"])


def test_leaks_are_dropped_or_flagged_and_listed(small):
    people = (Persona("monk", ("You are a humble Tea.",)), ACTOR)
    with pytest.raises(TaskError, match="option in the persona"):
        build(small, people)
    kept = build(small, people, options=PairOptions(test_share=0.0, leaks="keep"))
    assert kept.rows[0]["leak"]
    assert kept.report()["leaks"] == [{"what": "monk: 'tea' in 'You are a humble Tea.'", "combinations": 1}]
    words = Question("drink", DRINK.wordings, ("tea", "wine", "humb"), TAKES)
    assert not build(small, asked=[words]).rows[0]["leak"], "humb is no whole word of humble"


@pytest.mark.parametrize("text", ["an ice cream", "an Ice-Cream!", "an icecream", "ICE  CREAM"])
def test_an_option_is_found_in_any_case_and_spacing(text):
    from persona_circuits.persona.pairs import leak_finder

    assert leak_finder(("ice cream", "tea"))(f"You like {text}") == ["ice cream"]
    assert leak_finder(("ice cream", "tea"))("You like nice creams and steam") == []


def test_an_option_s_letter_is_not_leaked_by_an_article():
    from persona_circuits.persona.pairs import leak_finder

    assert leak_finder(("A", "B"))("You are a chef. Bring a pan.") == []
    assert leak_finder(("A", "B"))("You always take plan A.") == ["A"]


def test_an_option_that_is_no_candidate_is_left_out_and_listed(small):
    asked = Question("drink", DRINK.wordings, ("tea", "wine", "ginger"), TAKES)
    made = build(small, asked=[asked])
    assert made.rows[0]["candidates"] == [" tea", " wine"]
    (left_out,) = made.report()["candidates_left_out"]
    assert "' ginger' is" in left_out["what"]


OTHER = {"monk": "tea", "actor": "ginger"}
SAME = {"monk": "tea", "actor": "tea"}
BAD = [
    ("open question", {"asked": [Question("drink", DRINK.wordings, ())]}),
    ("no declared preference", {"asked": [Question("drink", DRINK.wordings, ("tea", "wine"), {"monk": "tea"})]}),
    ("same preference", {"asked": [Question("drink", DRINK.wordings, ("tea", "wine"), SAME)]}),
    ("unequal length", {"people": [MONK, Persona("actor", ("You are a famous actor. It rained. It rained.",))]}),
    ("candidate merges", {"template": Template("t", "{persona} {question} A: ")}),
    ("candidate of several tokens", {"asked": [Question("drink", DRINK.wordings, ("tea", "ginger"), OTHER)]}),
    ("two BOS tokens", {"template": Template("t", "<s><s>{persona} {question} A:")}),
    ("option in the persona", {"people": [Persona("monk", ("You are a humble tea.",)), ACTOR]}),
]


@pytest.mark.parametrize(("reason", "given"), BAD, ids=[reason for reason, _ in BAD])
def test_an_empty_result_names_its_reasons(small, reason, given):
    with pytest.raises(TaskError, match=r"no pair is left of \d+ combination") as caught:
        build(small, **given)
    assert f"1 × {reason}: {REASONS[reason]}" in str(caught.value)
    assert "drink" in str(caught.value)


def test_what_is_dropped_beside_what_is_kept_is_reported(small):
    asked = [DRINK, Question("food", ("Which food do you take?",), ("tea", "wine"), SAME)]
    (dropped,) = build(small, asked=asked).dropped
    assert (dropped.reason, dropped.count, dropped.examples) == ("same preference", 1, ("monk and actor, food: tea",))


def test_words_that_the_tokenizer_cannot_write():
    tiny = load_tokenizer(str(DATA / "tiny-gpt2"))
    people = [Persona("a", ("you are a pirate.",)), Persona("b", ("you are a wizard.",))]
    asked = Question("q", ("do you drink?",), ("tea", "milk"), {"a": "tea", "b": "milk"})
    with pytest.raises(TaskError, match="unknown word"):
        build(tiny, people, [asked])


def test_a_prompt_that_does_not_fit(small):
    with pytest.raises(TaskError, match=r"too long.*context holds 8"):
        build(TokenizerOnly(small, n_context=8), template=load_templates("raw", small)[0])
    with pytest.raises(TaskError, match=r"beyond the embedding.*beyond the model's 9 embeddings"):
        build(TokenizerOnly(small, n_vocab=9), template=load_templates("raw", small)[0])


def test_parts_on_other_tokens():
    """Equal lengths by accident: one persona's end merges with what follows it, the other's does not."""
    inner = Tokenizer(
        models.BPE({c: i for i, c in enumerate("abcdqx: ")} | {"aq": 8, "cd": 9}, [("a", "q"), ("c", "d")])
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner)
    people = [Persona("p", ("bba",)), Persona("r", ("cdb",))]
    asked = Question("q", ("q",), ("a", "x"), {"p": "a", "r": "x"})
    with pytest.raises(TaskError, match="parts on other tokens"):
        build(tokenizer, people, [asked], template=Template("t", "{persona}{question}("))


def test_one_persona_is_not_enough(small):
    with pytest.raises(TaskError, match=r"two personas, the source holds 1 \(monk\)"):
        build(small, [MONK])


def test_chat_without_a_chat_template(small):
    with pytest.raises(OptionError, match="no chat template"):
        load_templates("chat", small)


@pytest.mark.parametrize("chat", [CHATML, NO_SYSTEM, IGNORES_SYSTEM, "{{ bos_token }}" + CHATML])
def test_chat(small, chat):
    small.chat_template = chat
    (template,) = load_templates("chat", small)
    built = build(small, template=template)
    (row,) = built.rows
    content = "Which drink do you take?\nAnswer with one word: tea, wine or cake."
    persona = "You are a humble monk."
    turns = [{"role": "system", "content": persona}, {"role": "user", "content": content}]
    if chat in (NO_SYSTEM, IGNORES_SYSTEM):
        turns = [{"role": "user", "content": f"{persona}\n\n{content}"}]
    assert row["clean"] == small.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    assert row["answers"] == ["tea"], "no space after a line feed"
    spans = {name: row["clean"][slice(*span["chars"])] for name, span in row["spans"]["clean"].items()}
    assert spans["persona"] == persona
    assert spans["question"] == "Which drink do you take?"
    assert spans["options"] == "tea, wine or cake"
    assert spans["cue"].endswith("<|turn|>assistant\n")
    (about,) = built.report()["templates"]
    assert about["system_turn"] == (len(turns) == 2)
    assert re.fullmatch("[0-9a-f]{64}", about["chat_template_sha256"])
    ids = encode(load(row), TokenizerOnly(small))[0].clean
    assert ids.count(small.bos_token_id) == 1


def load(row):
    from persona_circuits.circuit.task import PromptPair, Task

    pair = PromptPair(row["clean"], row["corrupt"], tuple(row["answers"]), tuple(row["wrong_answers"]))
    return Task((pair,), "here", "")


@pytest.mark.parametrize(
    "date",
    [
        "{{ strftime_now('%d %b %Y') }}",
        "{% if date_string is not defined %}{% set date_string = strftime_now('%d %b %Y') %}{% endif %}"
        "{{ date_string }}",
    ],
)
def test_the_date_is_pinned(small, date):
    small.chat_template = f"Today is {date}\n{CHATML}"
    today = datetime.datetime.now().strftime("%d %b %Y")
    assert today in small.apply_chat_template([{"role": "user", "content": "x"}], tokenize=False)
    (template,) = load_templates("chat", small)
    (row,) = build(small, template=template).rows
    assert row["clean"].startswith("Today is 01 Jan 2025\n<|turn|>system\n")
    assert "01 Jan 2025" in template.about()["settings"].values()


def test_a_chat_template_that_changes_the_text(small):
    small.chat_template = CHATML.replace("m.content", "m.content | upper")
    with pytest.raises(TaskError, match="changes the text"):
        build(small, template=load_templates("chat", small)[0])


def test_a_broken_chat_template(small):
    small.chat_template = "{{ raise_exception('never') }}"
    with pytest.raises(OptionError, match="cannot be rendered"):
        load_templates("chat", small)


def test_the_cue_begins_the_answer(small):
    small.chat_template = CHATML
    (template,) = load_templates("chat", small, cue="A:")
    (row,) = build(small, template=template).rows
    assert row["clean"].endswith("<|turn|>assistant\nA:")
    assert row["answers"] == [" tea"]


def test_a_raw_template_from_a_file(small, tmp_path):
    path = tmp_path / "late.txt"
    path.write_text("{filler}\n{question} [{options}]\n{persona}\n{cue}\n")
    (template,) = load_templates(str(path), small, cue="A: (")
    (row,) = build(small, template=template).rows
    assert row["clean"] == "Which drink do you take? [tea, wine or cake]\nYou are a humble monk.\nA: ("
    assert row["answers"] == ["tea"], "no space after an opening bracket"
    assert row["template"] == "late"


def test_templates_from_json(small, tmp_path):
    path = tmp_path / "mine.json"
    texts = {"x": "{persona} {question} A:", "y": "{question}\n{filler}\n{persona}\nA:"}
    path.write_text(json.dumps({"templates": texts, "filler": ["It rained."]}))
    assert [template.name for template in load_templates(str(path), small)] == ["x", "y"]
    with pytest.raises(OptionError, match="template x has 1 filler"):
        build_pairs((MONK, ACTOR), [DRINK], small, load_templates(str(path), small), options=PairOptions(filler=1))
    assert len(build_pairs((MONK, ACTOR), [DRINK], small, load_templates(str(path), small), options=ALL).rows) == 2


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("t.txt", "{persona} {query}", "unknown field 'query'"),
        ("t.txt", "{persona} }{question}", "lone brace"),
        ("t.txt", "{question}", "no {persona}"),
        ("t.txt", "{persona}{persona}{question}", "more than once"),
        ("t.json", "{", "not JSON"),
        ("t.json", '{"form": ""}', "expected 'template'"),
        ("t.json", '{"template": 1}', "must be a string"),
    ],
)
def test_a_template_with_faults(small, tmp_path, name, content, says):
    (tmp_path / name).write_text(content)
    with pytest.raises(TaskError, match=re.escape(says)):
        load_templates(str(tmp_path / name), small)


def test_a_template_that_is_not_there(small):
    with pytest.raises(TaskError, match="expected raw, chat or the path"):
        load_templates("chatty", small)


@pytest.mark.parametrize(
    "wrong", [{"max_pairs": 0}, {"per_question": 0}, {"test_share": 1.0}, {"leaks": "hide"}, {"filler": -1}]
)
def test_options_that_make_no_sense(wrong):
    with pytest.raises(OptionError):
        PairOptions(**wrong).checked()


def test_a_list_of_options():
    assert [option_list(["a", "b", "c"][:n]) for n in range(4)] == ["", "a", "a or b", "a, b or c"]


def test_variants_are_other_wordings_in_fresh_paraphrases_and_the_first_row_stays(small):
    monk = Persona("monk", ("You are a humble monk.", "You are a good monk.", "You are a famous monk."))
    actor = Persona("actor", ("You are a famous actor.", "You are a humble actor.", "You are a good actor."))
    asked = Question("drink", ("Which drink do you take?", "Which drink is good?"), DRINK.options, TAKES)

    def rows(variants, **more):
        options = PairOptions(test_share=0.0, variants=variants, null=True, **more)
        found = build(small, people=(monk, actor), asked=(asked,), options=options)
        return found.rows, found.null.rows

    (first,), (only,) = rows(1)
    four, null = rows(4)
    assert four[0] == first
    assert len({row["id"] for row in four}) == len({(row["clean"], row["corrupt"]) for row in four}) == 4
    assert [row["wording"] for row in four] == [four[0]["wording"], four[1]["wording"]] * 2
    assert {row["wording"] for row in four} == {0, 1}
    for side in ("wording_a", "wording_b"):
        assert {row[side] for row in four[:3]} == {0, 1, 2}  # none again before all had their turn
    assert [len({row[name] for row in four}) for name in ("persona_a", "persona_b", "question")] == [1, 1, 1]
    assert null[0] == only
    assert len({row["persona_a"] for row in null}) == 1
    assert len(null) > 1
    assert len(rows(99)[0]) == 18  # 3 by 3 paraphrases in 2 wordings, and no more
    assert len(rows(4, max_pairs=3)[0]) == 3
