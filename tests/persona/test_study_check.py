"""Numbers of a text that are in the results, and those that are not."""

import json

import pytest
from tests_numbers import result_values, unfound_numbers

from persona_circuits.circuit.errors import FileError

RESULTS = {
    "a": {"value": 5.7412, "low": -1.25, "n": 160, "p": 0.0005, "name": "77", "flag": True},
    "b": [0.8719, 12345.6, 2.5e-7],
}


@pytest.fixture
def results(tmp_path):
    (tmp_path / "numbers.json").write_text(json.dumps(RESULTS))
    (tmp_path / "rows.csv").write_text("name,value\nx,0.333333\n")
    return [tmp_path / "numbers.json", tmp_path / "rows.csv"]


FOUND = [
    "D is 5.74 logits, or 5.7, or 6.",
    "D is +5.7412.",
    "from -1.25 to 5.74, or −1.2 to 5.7 (a minus sign), or -1.3",  # halves may be rounded either way
    "It fell by 1.25 logits.",  # the size of a negative result
    "87 %, 87.2%, 87.19 percent and .87 are one number",
    "in 160 of 160 pairs, p = 0.0005 or 5e-4",
    "12,345.6 edges, some 12,346",
    "2.5e-07, and a third: .33 and 33 %",
    "a range 5.74-160, 5.74–160 and [5.74, 160]",
]
WRONG = [
    ("D is 5.75 logits.", ["5.75"]),
    ("D is 5.741 and 5.742.", ["5.742"]),
    ("D is -5.74.", ["-5.74"]),
    ("low is +1.25", ["+1.25"]),
    ("88 % of them", ["88 %"]),
    ("0.5 and 161 pairs, then 160", ["0.5", "161"]),
    ("12,346.6 edges", ["12,346.6"]),
    ("77 is only a name, and 2 nothing", ["77", "2"]),
    ("| 5.74 | 5.99 |", ["5.99"]),
    ("**9.87** and _9.86_ or (9.85)", ["9.87", "9.86", "9.85"]),
    ("1. 9.87 stands in a list", ["9.87"]),
    ("# 2.1 Results: 9.87 logits", ["9.87"]),
]
IGNORED = [
    "`9.87` and ``9.8 `7` 6``",
    "```\nD 9.87\n```\n",
    '~~~ json\n{"x": 9.87}\n~~~\n',
    "text\n\n    D 9.87\n    E 8.76\n\nmore",
    "[5.74](runs/9.87/x.json) and ![figure](f-9.87.png)",
    "see https://example.org/9.87/page and <https://example.org/8.76>",
    "on 2026-11-27, and in 2025-03",
    "arXiv:2410.13032",
    "## 3. Results\n\n3. third\n- 5.74",
    "a10.h5, m11, GPT-2, v1.2.3, L3, 3B, x_9, layer9, sha256",
    "the 95 % interval",
    "<!-- 9.87 -->",
]


@pytest.mark.parametrize("text", FOUND)
def test_what_is_in_the_results_is_found(text, results):
    assert unfound_numbers(text, results) == []


@pytest.mark.parametrize(("text", "expected"), WRONG)
def test_a_wrong_number_is_reported(text, expected, results):
    assert [one.number for one in unfound_numbers(text, results)] == expected


@pytest.mark.parametrize("text", IGNORED)
def test_what_is_no_result_is_left_alone(text, results):
    assert unfound_numbers(text, results) == []


def test_a_report_says_where(results):
    (one,) = unfound_numbers("# Title\n\n```\n1\n```\n\nThe rate is 0.41 here.\n", results)
    assert (one.line, one.number) == (7, "0.41")
    assert "line 7: 0.41 is in no result: The rate is 0.41 here." in str(one)


def test_more_may_be_allowed(results):
    assert unfound_numbers("3 of 9 seeds", results, allowed=("3", "9")) == []
    assert [one.number for one in unfound_numbers("the 95 % interval", results, allowed=())] == ["95 %"]


def test_every_digit_of_a_right_text_matters(results):
    """Each digit changed in turn is caught, but where another result happens to fit."""
    text = "mean 5.7412 in 12345.6"
    assert unfound_numbers(text, results) == []
    for place, char in enumerate(text):
        if char.isdigit():
            wrong = text[:place] + str((int(char) + 3) % 10) + text[place + 1 :]
            assert len(unfound_numbers(wrong, results)) == 1, wrong


def test_values_are_numbers_of_json_and_cells_of_csv(results):
    assert result_values(results).tolist() == sorted([5.7412, -1.25, 160, 0.0005, 0.8719, 12345.6, 2.5e-7, 0.333333])


def test_bad_results_are_errors(tmp_path):
    (tmp_path / "x.json").write_text("{")
    with pytest.raises(FileError, match=r"is not JSON: .*expected a \.csv, or JSON"):
        unfound_numbers("1", [tmp_path / "x.json"])
    with pytest.raises(FileError, match="cannot be read"):
        unfound_numbers("1", [tmp_path / "none.json"])
