"""Every format that is read, on small files written here and on the samples of others where they are present."""

import json
import re

import pytest
from conftest import ROOT

from persona_circuits.circuit.errors import TaskError
from persona_circuits.persona.data import (
    Persona,
    Question,
    preferred,
    read_answers,
    read_contrast,
    read_personas,
    read_questions,
    with_answers,
)

SAMPLES = ROOT.parent / "shared" / "data"
AXIS, EVALS = SAMPLES / "assistant_axis", SAMPLES / "anthropic_evals_persona" / "persona"
needs_samples = pytest.mark.skipif(not SAMPLES.is_dir(), reason="the samples are not at ../shared/data")


@pytest.fixture
def write(tmp_path):
    """Writes a file from text, a JSON value, or a list of JSON lines."""

    def put(name, content):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        if isinstance(content, list):
            content = "".join(json.dumps(item) + "\n" for item in content)
        path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
        return path

    return put


def statement(yes=" Yes", no=" No", **other):
    text = {"question": 'Would you say this?\n"I like it"', "statement": "I like it", "label_confidence": 0.9}
    return text | {"answer_matching_behavior": yes, "answer_not_matching_behavior": no} | other


def test_the_shipped_personas_and_questions_prefer_what_their_world_says():
    from persona_circuits.models.world import build_world

    world = build_world()
    personas = read_personas(ROOT / "datasets" / "personas.jsonl")
    questions = read_questions(ROOT / "datasets" / "questions.jsonl")
    assert [p.name for p in personas] == [p.id for p in world.personas]
    assert questions[0].wordings[questions[0].held_out] == "Which dessert do you prefer?"
    for persona, original in zip(personas, world.personas, strict=True):
        for question, asked in zip(questions, world.questions, strict=True):
            best = world.preferred(original, asked)
            assert preferred(question, persona) == (None if best is None else asked.words[best])


def test_a_line_may_say_itself_what_is_preferred(write):
    people = read_personas(write("p.jsonl", [{"name": "a", "wordings": ["You are a.", " You are a. "]}]))
    assert people == (Persona("a", ("You are a.",)),)
    row = {"id": "q", "wordings": ["Tea?"], "options": ["tea", " wine"], "prefers": {"a": "wine"}, "cue": "I take"}
    (question,) = read_questions(write("q.jsonl", [row]))
    assert question.options == ("tea", "wine")
    assert question.cue == "I take"
    assert preferred(question, people[0]) == "wine"
    assert preferred(question, Persona("b", ("You are b.",))) is None


def test_a_tie_is_no_preference():
    question = Question("q", ("?",), ("x", "y"), affinities={"x": {"bold": 1.0}, "y": {"bold": 1.0}})
    assert preferred(question, Persona("a", ("A.",), traits={"bold": 1.0})) is None


def test_csv_rows_of_one_name_are_paraphrases(write):
    path = write("p.csv", '\ufeffname,wording\nmonk,You are a monk.\nmonk,"As a monk, you pray."\nactor,You act.\n')
    assert read_personas(path) == (
        Persona("monk", ("You are a monk.", "As a monk, you pray.")),
        Persona("actor", ("You act.",)),
    )


def test_csv_questions(write):
    path = write(
        "q.csv", "id,wording,options,prefers\ndrink,Tea?,tea | wine,monk=tea|actor=wine\ndrink,Or?,tea|wine,\n"
    )
    (question,) = read_questions(path)
    assert question.wordings == ("Tea?", "Or?")
    assert question.options == ("tea", "wine")
    assert question.prefers == {"monk": "tea", "actor": "wine"}
    assert question.cue is None


def test_a_statement_of_the_evals_is_a_yes_no_question(write):
    path = write("risk-seeking.jsonl", [statement(), statement(" No", " Yes")])
    first, second = read_questions(path)
    assert first.id == "risk-seeking-0001"
    assert first.options == second.options == ("Yes", "No")
    assert first.prefers == {"risk-seeking": "Yes", "not-risk-seeking": "No"}
    assert second.prefers == {"risk-seeking": "No", "not-risk-seeking": "Yes"}
    seeking, averse = read_personas(path)
    assert (seeking.opposite, averse.opposite) == ("not-risk-seeking", "risk-seeking")
    assert seeking.wordings[0] == 'People describe you as high in "risk seeking".'
    assert len(seeking.wordings) == len(averse.wordings) == 3


def test_roles_and_traits_of_the_axis(write, tmp_path):
    write(
        "axis/pirate.json", {"instruction": [{"pos": "You are a pirate."}, {"pos": "Be a pirate."}], "questions": ["?"]}
    )
    write("axis/casual.json", {"instruction": [{"pos": "Be casual.", "neg": "Be formal."}]})
    write(
        "axis/default.json", {"instruction": [{"pos": ""}, {"pos": "You are {model_name}."}, {"pos": "Be yourself."}]}
    )
    casual, formal, default, pirate = read_personas(tmp_path / "axis")
    assert (casual.name, casual.wordings, casual.opposite) == ("casual", ("Be casual.",), "not-casual")
    assert (formal.name, formal.wordings, formal.opposite) == ("not-casual", ("Be formal.",), "casual")
    assert pirate == Persona("pirate", ("You are a pirate.", "Be a pirate."))
    assert default.wordings == ("Be yourself.",)
    assert [re.search("empty|placeholder", note)[0] for note in default.notes] == ["empty", "placeholder"]
    (question,) = read_questions(tmp_path / "axis" / "pirate.json")
    assert question == Question("pirate-0", ("?",), ())


def test_open_questions_take_their_options_from_answers(write):
    questions = read_questions(write("open.jsonl", [{"question": "What is good?", "id": 0}]))
    assert questions == (Question("0", ("What is good?",), ()),)
    people = [Persona("a", ("A.",)), Persona("b", ("B.",))]
    answers = read_answers(write("a.csv", "persona,question,option\na,0,duty\nb,0,joy\n"))
    (question,) = with_answers(questions, answers, people)
    assert question.options == ("duty", "joy")
    assert [preferred(question, person) for person in people] == ["duty", "joy"]


def test_answers_that_fit_nothing_are_all_listed():
    question = Question("q", ("?",), ("tea", "wine"))
    answers = {("a", "q"): "beer", ("z", "q"): "tea", ("a", "y"): "tea"}
    with pytest.raises(TaskError, match=r"3 fault") as caught:
        with_answers([question], answers, [Persona("a", ("A.",))])
    for part in ("z, q: no such persona", "a, y: no such question", "'beer' is not one of the options tea, wine"):
        assert part in str(caught.value)


def test_contrast(write):
    assert read_contrast(write("c.csv", "persona_a,persona_b\nmonk,actor\n")) == (("monk", "actor"),)


FAULTS = [
    (
        read_personas,
        "p.jsonl",
        '{"id": "a"}\n{"id": "b", "descriptions": [""]}\nno\n[]\n',
        ["line 1", "line 2", "line 3: not JSON", "line 4: expected an object"],
    ),
    (read_personas, "p.jsonl", '{"id": "a", "descriptions": ["A."]}\n' * 2, ["persona 'a' occurs 2 times"]),
    (
        read_personas,
        "p.jsonl",
        '{"id": "a", "descriptions": ["A."], "traits": ["x"], "opposite": 1}\n',
        ["'traits'", "'opposite'"],
    ),
    (read_personas, "p.jsonl", "\n", ["holds no personas"]),
    (read_personas, "p.csv", "who,text\na,A.\n", ["line 1: no column name, wording"]),
    (
        read_personas,
        "p.csv",
        "name,wording\na,\na,You, too.\na,A.\na,A.\n",
        ["line 2: wording is empty", "line 3: more cells", "line 5: a has this"],
    ),
    (read_personas, "p.json", '{"instruction": [{"pos": 1}]}', ["p.json: instruction[0].pos must be a string"]),
    (read_personas, "p.json", '{"instruction": [{"pos": "A.", "neg": "B."}, {"pos": "C."}]}', ["instruction[1].neg"]),
    (read_personas, "p.json", '{"roles": []}', ["expected 'instruction'"]),
    (read_personas, "p.json", "{", ["line 1: not JSON"]),
    (read_personas, "p.json", '{"instruction": [{"pos": " "}]}', ["no prompt that can be used"]),
    (
        read_questions,
        "q.csv",
        "id,wording,options,prefers\nq,?,tea,\nr,?,tea|tea,\ns,?,x|y,monk\nt,?,x|y,monk=z\n",
        ["line 2", "line 3", "line 4: prefers", "line 5: monk prefers 'z'"],
    ),
    (
        read_questions,
        "q.jsonl",
        '{"id": "q"}\n{"id": "r", "wordings": ["?"], "options": [1, 2]}\n',
        ["line 1: expected the keys", "line 2: an option"],
    ),
    (
        read_questions,
        "q.jsonl",
        '{"id": "r", "wordings": ["?"], "options": ["x", "y"], "held_out_wording": 3, "prefers": 1}\n',
        ["'held_out_wording'", "'prefers'"],
    ),
    (
        read_questions,
        "e.jsonl",
        json.dumps(statement(no=" Yes")) + "\n" + json.dumps(statement(yes=None)),
        ["line 1: expected two", "line 2: answer_matching"],
    ),
    (read_questions, "o.jsonl", '{"question": "", "id": 1}\n', ["line 1: 'question'"]),
    (read_questions, "q.json", '{"questions": "?"}', ["expected 'questions'"]),
    (read_answers, "a.csv", "persona,question,option\na,q,x\na,q,y\n", ["line 3: a already prefers 'x'"]),
    (
        read_contrast,
        "c.csv",
        "persona_a,persona_b\na,a\na,b\nb,a\n",
        ["line 2: a cannot", "line 4: the pair b and a occurs twice"],
    ),
]


@pytest.mark.parametrize(("reader", "name", "content", "says"), FAULTS)
def test_all_faults_of_a_file_are_named_with_their_places(write, reader, name, content, says):
    with pytest.raises(TaskError) as caught:
        reader(write(name, content))
    for part in says:
        assert part in str(caught.value)
    assert name in str(caught.value)


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("p.tsv", "name\twording\na\tA.\n", "separated by tabs; .tsv is read as"),
        ("p.csv", "name;wording\na;A, B.\n", "separated by semicolons; a .csv must be separated by commas"),
        ("p.txt", "name,wording\na,A.\n" * 500, "separated by commas; .txt is read as"),
    ],
)
def test_a_table_of_another_kind_is_one_sentence(write, name, content, says):
    with pytest.raises(TaskError, match=re.escape(says)) as caught:
        read_personas(write(name, content))
    assert "header name,wording" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_suffixes_are_of_either_case_and_separators_stay_in_texts(write):
    assert read_personas(write("P.CSV", "\ufeffname,wording\r\na,A.\r\n")) == (Persona("a", ("A.",)),)
    assert read_personas(write("R.JSON", {"instruction": [{"pos": "A."}]})) == (Persona("R", ("A.",)),)
    line = json.dumps({"id": "a", "wordings": ["A\u2028b\u0085."]}, ensure_ascii=False)
    assert read_personas(write("p.jsonl", f"\ufeff{line}\r\n"))[0].wordings == ("A\u2028b\u0085.",)


def test_null_is_no_key(write):
    row = {"id": "a", "wordings": ["A."], "traits": None, "opposite": None}
    assert read_personas(write("p.jsonl", [row])) == (Persona("a", ("A.",)),)
    asked = {"id": "q", "wordings": ["Q?"], "options": None, "prefers": None, "cue": None, "domain": None}
    assert read_questions(write("q.jsonl", [asked])) == (Question("q", ("Q?",), ()),)


def test_the_wording_that_is_held_out_is_found_among_those_that_differ(write):
    row = {"id": "q", "wordings": ["A?", " A?", "B?"], "options": ["x", "y"], "held_out_wording": 2}
    (question,) = read_questions(write("q.jsonl", [row]))
    assert question.wordings[question.held_out] == "B?"


@pytest.mark.parametrize("reader", [read_personas, read_questions, read_answers, read_contrast])
def test_a_file_that_cannot_be_read(reader, tmp_path):
    with pytest.raises(TaskError, match="cannot be read"):
        reader(tmp_path / "nothing.csv")
    (tmp_path / "latin.csv").write_bytes(b"name,wording\n\xe9,x\n")
    with pytest.raises(TaskError, match="not UTF-8"):
        reader(tmp_path / "latin.csv")


@needs_samples
@pytest.mark.parametrize("path", sorted(EVALS.glob("*.jsonl")), ids=lambda path: path.stem)
def test_the_evals_as_they_are(path):
    questions, personas = read_questions(path), read_personas(path)
    assert len(questions) == 1000
    answers = [[preferred(question, persona) for persona in personas] for question in questions]
    assert sorted(map(tuple, answers)) == [("No", "Yes")] * 500 + [("Yes", "No")] * 500


@needs_samples
def test_the_axis_as_it_is():
    roles, traits = read_personas(AXIS / "roles_instructions"), read_personas(AXIS / "traits_instructions")
    assert len(roles) == 276
    assert sum(len(role.notes) for role in roles) == 2
    assert len(traits) == 480
    assert {persona.opposite for persona in traits} == {persona.name for persona in traits}
    questions = read_questions(AXIS / "extraction_questions.jsonl")
    assert len(questions) == 240
    assert not any(question.options for question in questions)
