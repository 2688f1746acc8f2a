"""Predictions against numbers: every condition on either side of its bound, and every fault of a plan."""

import json

import pytest

from persona_circuits.circuit.errors import FileError
from persona_circuits.persona.study import Number, load_plan, outcome_records, outcomes

NUMBERS = {
    "a": Number(0.5, "", low=0.4, high=0.6, p=0.01, p_holm=0.2),
    "b": Number(3.0, "", p=0.01),
    "c": Number(-1.0, "", low=-2.0, high=-0.5),
}
CASES = [
    ("a", ">=", 0.5, "supported"),
    ("a", ">=", 0.51, "refuted"),
    ("a", "<=", 0.5, "supported"),
    ("a", "<=", 0.49, "refuted"),
    ("a", "between", [0.5, 0.7], "supported"),
    ("a", "between", [0.51, 0.7], "refuted"),
    ("a", "interval above", 0.39, "supported"),
    ("a", "interval above", 0.4, "undecided"),
    ("a", "interval above", 0.5, "undecided"),
    ("a", "interval above", 0.6, "refuted"),
    ("a", "interval below", 0.61, "supported"),
    ("a", "interval below", 0.5, "undecided"),
    ("a", "interval below", 0.4, "refuted"),
    ("a", "interval within", [0.4, 0.6], "supported"),
    ("a", "interval within", [0.45, 0.9], "undecided"),
    ("a", "interval within", [0.7, 0.9], "refuted"),
    ("c", "interval below", 0, "supported"),
    ("a", "p below", 0.3, "supported"),
    ("a", "p below", 0.05, "undecided"),  # the corrected p counts
    ("b", "p below", 0.05, "supported"),
    ("b", "interval above", 0, "not tested"),
    ("c", "p below", 0.05, "not tested"),
    ("x", ">=", 0, "not tested"),
]


def plan(tmp_path, rows, name="plan.json"):
    path = tmp_path / name
    path.write_text(json.dumps(rows))
    return load_plan(path, label="plan")


def row(number, is_, value, **more):
    return {"id": "H", "says": "it is so", "number": number, "is": is_, "value": value, **more}


@pytest.mark.parametrize(("number", "is_", "value", "expected"), CASES)
def test_every_condition_decides_as_it_says(number, is_, value, expected, tmp_path):
    (found,) = outcomes(plan(tmp_path, [row(number, is_, value)]), NUMBERS)
    assert found.outcome == expected
    assert number in found.why[0]
    (soft,) = outcomes(plan(tmp_path, [row(number, is_, value, **{"else": "undecided"})]), NUMBERS)
    assert soft.outcome == ("undecided" if expected == "refuted" else expected)


def test_of_several_conditions_the_worst_counts(tmp_path):
    yes, no = {"number": "a", "is": ">=", "value": 0}, {"number": "a", "is": ">=", "value": 9}
    open_, absent = {"number": "a", "is": "interval above", "value": 0.5}, {"number": "x", "is": ">=", "value": 0}
    for conditions, expected in (
        ([yes, yes], "supported"),
        ([yes, open_], "undecided"),
        ([yes, absent, open_], "not tested"),
        ([absent, no, open_], "refuted"),
    ):
        (found,) = outcomes(plan(tmp_path, [{"id": "H", "says": "all", "all": conditions}]), NUMBERS)
        assert found.outcome == expected
        assert len(found.why) == len(conditions)


def test_a_record_counts_outcomes(tmp_path):
    made = plan(tmp_path, [row("a", ">=", 0, id="1"), row("x", ">=", 0, id="2")])
    record = outcome_records(made, outcomes(made, NUMBERS))
    assert record["counts"] == {"supported": 1, "refuted": 0, "undecided": 0, "not tested": 1}
    assert [one["id"] for one in record["predictions"]] == ["1", "2"]
    assert json.dumps(record)


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        ({"id": "H"}, "is not of type 'array'"),
        ([], "non-empty"),
        ([{"says": "no id", "number": "a", "is": ">=", "value": 1}], r"\[0\].*'id' is a required property"),
        ([row("a", "is about", 1)], r"\[0\]"),
        ([row("a", ">=", "big")], r"\[0\]"),
        ([row("a", ">=", [0, 1])], r"\[0\] \(H\): '>=' needs one number"),
        ([row("a", "between", 1)], "needs a value"),
        ([row("a", "between", [2, 1])], "needs a value"),
        ([row("a", ">=", 1, wrong=1)], "wrong"),
        ([row("a", ">=", 1, **{"else": "supported"})], "else"),
        ([{"id": "H", "says": "nothing to hold"}], "give either number"),
        ([row("a", ">=", 1, all=[{"number": "a", "is": ">=", "value": 1}])], "give either number"),
        ([row("a", ">=", 1), row("b", ">=", 1)], "'H' stands there 2 times"),
    ],
)
def test_every_fault_is_named_with_its_place(rows, says, tmp_path):
    with pytest.raises(FileError, match=says):
        plan(tmp_path, rows)


def test_faults_are_all_listed(tmp_path):
    with pytest.raises(FileError, match="2 fault") as error:
        plan(tmp_path, [row("a", ">=", "x"), row("a", "nearly", 1, id="I")])
    assert "[0]" in str(error.value)
    assert "[1]" in str(error.value)


def test_a_file_that_is_no_plan_is_an_error(tmp_path):
    (tmp_path / "x.json").write_text("[")
    for name, says in (("x.json", "not JSON"), ("none.json", "cannot be read")):
        with pytest.raises(FileError, match=says):
            load_plan(tmp_path / name)
