"""The study's write-up: every number in it is in a results file, every prediction of a plan was held against one."""

import hashlib
import json
import operator
import re
import subprocess
import sys

import pytest
from conftest import ROOT
from tests_numbers import unfound_numbers

LOGS = ROOT / "logs"
FIRST = LOGS / "first_study"
RESULTS = [*sorted(FIRST.glob("*/numbers.json")), *sorted(FIRST.glob("*/*/groups.csv"))]
STUDIES = sorted([*LOGS.glob("smollm2*/numbers.json"), *LOGS.glob("gemma*/numbers.json")])
SECOND = {
    "smollm2-chat-cue": ["plan_v1.smollm2.json", "plan_v1.causes.json", "plan_v1.heads.json"],
    "smollm2-few-shot": ["plan_v1.held_out_format.json"],
    "gemma-few-shot": ["plan_v1.held_out_format.json"],
    "gemma-first-person": ["plan_v1.gemma.json", "plan_v1.causes.json", "plan_v1.heads.json"],
}
ROUNDS = {
    "persona-world": "plan_v1.persona-world.json",
    "craftgpt": "plan_v1.craftgpt.json",
    "persona-world_draw2": "plan_v2.persona-world.json",
    "persona-world_mentions": "plan_v2.mentions.json",
    "craftgpt_yesno": "plan_v2.craftgpt.json",
    "persona-world_draw3": "plan_v3.persona-world.json",
    "craftgpt_verb": "plan_v3.craftgpt.json",
}


@pytest.mark.parametrize("name", ["documentation.md", "review.md"])
def test_every_number_of_the_write_up_is_in_a_results_file(name):
    unfound = unfound_numbers((FIRST / name).read_text(), RESULTS)
    assert not unfound, "\n".join(map(str, unfound))


def test_a_number_that_no_file_holds_is_found_out():
    text = (FIRST / "documentation.md").read_text().replace("4.75 (4.18 to 5.41)", "7.773 (4.18 to 5.41)")
    assert unfound_numbers(text, RESULTS)


@pytest.mark.parametrize("name", ["documentation.md", "review.md"])
def test_every_number_of_the_study_of_real_models_is_in_its_results(name):
    unfound = unfound_numbers((LOGS / name).read_text(), STUDIES)
    assert not unfound, "\n".join(map(str, unfound))


def comparisons(text):
    """Claims as data: a line each in comments that begin with ``compared:``, such as ``a.b < smollm2-few-shot/c.d``."""
    blocks = re.findall(r"<!-- compared:\n(.*?)-->", text, re.S)
    return [line.split() for block in blocks for line in block.splitlines() if line.strip()]


def value_of(name):
    """A number as it is written, or the result of that name; ``name.low`` and ``.high`` are its interval's ends."""
    try:
        return float(name)
    except ValueError:
        folder, _, key = name.rpartition("/")
        numbers = json.loads((LOGS / (folder or "smollm2-chat-cue") / "numbers.json").read_text())["numbers"]
        stem, _, end = key.rpartition(".")
        return numbers[stem][end] if end in ("low", "high", "p") and stem in numbers else numbers[key]["value"]


def does_not_hold(claims):
    holds = {"<": operator.lt, ">": operator.gt, "<=": operator.le, ">=": operator.ge}
    return [" ".join(claim) for claim in claims if not holds[claim[1]](value_of(claim[0]), value_of(claim[2]))]


def test_every_comparison_of_the_write_up_has_the_sign_that_the_results_have():
    claims = comparisons((LOGS / "documentation.md").read_text())
    assert len(claims) >= 12
    assert not does_not_hold(claims)
    turned = [[a, {"<": ">", ">": "<", "<=": ">", ">=": "<"}[sign], b] for a, sign, b in claims]
    assert len(does_not_hold(turned)) == len(claims)


def test_the_write_up_has_a_summary_of_its_length_seven_parts_and_figures_that_are_there():
    text = (LOGS / "documentation.md").read_text()
    parts = text.split("\n## ")
    assert len(parts) == 8
    summary = re.sub(r"<!--.*?-->", "", parts[0].split("\n", 1)[1], flags=re.S)
    assert 200 <= len(summary.split()) <= 300
    figures = re.findall(r"!\[[^\]]+\]\(([^)]+)\)", text)
    assert 3 <= len(figures) <= 10
    assert all((LOGS / path).is_file() for path in figures)


@pytest.mark.parametrize(("folder", "plan"), ROUNDS.items())
def test_every_prediction_of_a_plan_has_its_outcome(folder, plan):
    check_outcomes(FIRST, folder, [plan])


@pytest.mark.parametrize(("folder", "plans"), SECOND.items())
def test_every_prediction_on_real_models_has_its_outcome(folder, plans):
    check_outcomes(LOGS, folder, plans)


def check_outcomes(root, folder, plans):
    every = json.loads((root / folder / "predictions.json").read_text())["plans"]
    for held, plan in zip(every, plans, strict=True):
        planned = json.loads((root / plan).read_text())
        found = held["predictions"]
        assert held["sha256"] == hashlib.sha256((root / plan).read_bytes()).hexdigest()
        assert [one["id"] for one in found] == [one["id"] for one in planned]
        assert {one["outcome"] for one in found} <= {"supported", "refuted", "undecided", "not tested"}


def test_the_code_in_the_code_walk_runs():
    """Anywhere: from the repository's root, and in notebooks/ as the notebook made of it."""
    blocks = re.findall(r"^```python\n(.*?)^```", (LOGS / "code_walk.md").read_text(), re.M | re.S)
    for folder in (ROOT, ROOT / "notebooks"):
        code = [sys.executable, "-c", "\n".join(blocks)]
        done = subprocess.run(code, cwd=folder, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert done.stdout.split() == ["(157,", "445)", "32491"]
