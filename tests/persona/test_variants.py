"""Pairs said in other ways: by rules, checked, compared base by base."""

import json

import pytest
from conftest import ROOT

from persona_circuits.circuit.errors import OptionError, TaskError
from persona_circuits.circuit.task import MODEL, encode, load_task
from persona_circuits.persona.data import load_tokenizer
from persona_circuits.persona.pairs import read_rules, vary, write_rows

PAIRS = ROOT / "datasets" / "pairs_demo.jsonl"


@pytest.fixture(scope="module")
def reader():
    return load_tokenizer(MODEL)


def rules(tmp_path, content):
    path = tmp_path / "rules.json"
    path.write_text(json.dumps(content))
    return read_rules(path)


def test_every_base_stands_in_every_variant_with_its_own_answers(tmp_path, reader):
    named = rules(tmp_path, {"identity": [], "late": [[r"(?s)^(You are .*?\.)\n(.*)\nA:$", r"\2\n\1\nA:"]]})
    varied = vary(PAIRS, named, reader)
    base = [json.loads(line) for line in PAIRS.read_text().splitlines()]
    assert len(varied.rows) == 2 * len(base)
    assert not varied.dropped
    for row, same, late in zip(base, varied.rows[::2], varied.rows[1::2], strict=True):
        assert same["clean"] == row["clean"]
        assert same["base"] == late["base"] == row["id"]
        assert (late["variant"], late["answers"]) == ("late", row["answers"])
        persona, question, cue = row["clean"].split("\n")
        assert late["clean"] == "\n".join([question, persona, cue])
    write_rows(varied.rows, tmp_path / "varied.jsonl")
    assert len(encode(load_task(tmp_path / "varied.jsonl"), reader)) == len(varied.rows)


def test_a_base_that_fails_in_one_variant_is_dropped_in_all(tmp_path, reader):
    named = rules(tmp_path, {"identity": [], "farmers": [["You are a (?=[^.]*farmer)", "You were a "]]})
    with pytest.raises(TaskError, match="found 0 times, expected once"):
        vary(PAIRS, named, reader)  # farmers meet nobody of their own kind
    named = rules(tmp_path, {"identity": [], "a": [["You are a (?!n)", "Imagine that you are a "]]})
    varied = vary(PAIRS, named, reader)
    assert {row["variant"] for row in varied.rows} == {"identity", "a"}
    lost = {base for bases in varied.dropped.values() for base in bases}
    assert lost
    assert not lost & {row["base"] for row in varied.rows}


def test_prompts_that_part_in_length_are_no_pair(tmp_path, reader):
    first = json.loads(PAIRS.read_text().splitlines()[0])
    word = first["clean"].split("\n")[0].split()[-1]
    named = rules(tmp_path, {"longer": [[rf"({word[:-1]})?\.\n", r"\1.\1\n"]]})  # one role is said twice
    varied = vary(PAIRS, named, reader)
    assert any("unequal length" in reason for reason in varied.dropped)


def test_one_split_alone(tmp_path, reader):
    named = rules(tmp_path, {"identity": []})
    assert {row["split"] for row in vary(PAIRS, named, reader, split="test").rows} == {"test"}
    with pytest.raises(TaskError, match="no pair of split nowhere"):
        vary(PAIRS, named, reader, split="nowhere")


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ([], "expected an object"),
        ({"a": [["(", "x"]]}, "no regular expression"),
        ({"a": "b"}, "expected a list of"),
        ({"a": [["b"]], "c": [[1, 2]]}, "2 fault"),
    ],
)
def test_faults_of_rules_are_named(tmp_path, content, says):
    with pytest.raises(OptionError, match=says):
        rules(tmp_path, content)


def test_files_that_are_not_pairs(tmp_path, reader):
    (tmp_path / "bad.jsonl").write_text('{"id": "x"}\n')
    with pytest.raises(TaskError, match="line 1"):
        vary(tmp_path / "bad.jsonl", {"identity": ()}, reader)
    with pytest.raises(TaskError, match="cannot be read"):
        vary(tmp_path / "nothing.jsonl", {"identity": ()}, reader)
