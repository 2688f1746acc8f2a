"""Leaks are found by tokens, repeats are counted, reversed contrasts are told of."""

import json

import pytest
from conftest import DATA
from typer.testing import CliRunner

from persona_circuits.circuit.io import read_circuit
from persona_circuits.circuit.task import Overlap, Row, encode, load_task, overlap_of_tasks
from persona_circuits.circuit.task.overlap import overlap
from persona_circuits.cli import app

TINY = str(DATA / "tiny-gpt2")
QUICK = ["--threshold", "0.05", "--n-random", "2"]


@pytest.fixture(scope="module")
def prompts():
    return json.loads((DATA / "tiny_pairs.json").read_text())["prompts"]


def written(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def call(*arguments):
    done = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert done.exit_code == 0, done.output
    return done


def turned(row):
    return {**row, "clean": row["corrupt"], "corrupt": row["clean"]} | {
        "answers": row["wrong_answers"],
        "wrong_answers": row["answers"],
    }


def row(clean, corrupt):
    return Row(0, clean, corrupt, (8,), (9,))


A, B, C, D = (1, 2), (1, 3), (1, 4), (1, 5)


@pytest.mark.parametrize(
    ("searched", "measured", "found"),
    [
        ([row(A, B)], [row(C, D)], Overlap(0, 1, 0, 2)),
        ([row(A, B)], [row(A, B), row(C, D)], Overlap(1, 2, 2, 4)),
        ([row(A, B)], [row(B, A)], Overlap(1, 1, 2, 2)),
        ([row(A, B)], [row(A, C)], Overlap(0, 1, 1, 2)),
        ([row(A, B), row(C, D)], [row(A, C)], Overlap(0, 1, 2, 2)),
    ],
)
def test_pairs_in_either_direction_and_single_prompts_are_counted(searched, measured, found):
    assert overlap(searched, measured) == found
    assert overlap([*searched, *searched], [*measured, *measured]) == found
    assert found.held_out is (found.pairs == 0)


def test_the_same_prompts_under_other_ids_are_no_held_out_pairs(prompts, tmp_path):
    rows = [{**one, "split": "train", "id": f"a{i}"} for i, one in enumerate(prompts[:4])]
    seen = [prompts[0], turned(prompts[1])]
    rows += [{**one, "split": "test", "id": f"b{i}"} for i, one in enumerate([*seen, prompts[5]])]
    path = written(tmp_path / "pairs.jsonl", rows)
    done = call("discover", "--force", "--model", TINY, "--pairs", path, "--out", tmp_path / "run", *QUICK)
    assert "not held out: 2 of the 3 pairs" in done.stdout
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert (summary["held_out"], summary["shared"]["pairs"]) == (False, 2)
    curves = call("curves", "--model", TINY, "--pairs", path, "--out", tmp_path / "c", "--scorers", "eap")
    assert "not held out: 2 of the 3 pairs" in curves.stdout


def test_evaluate_warns_of_pairs_that_the_circuit_was_found_on(prompts, tmp_path):
    rows = [{**one, "split": "test" if i % 2 else "train"} for i, one in enumerate(prompts)]
    path = written(tmp_path / "pairs.jsonl", rows)
    call("discover", "--force", "--model", TINY, "--pairs", path, "--out", tmp_path / "run", *QUICK)
    for split, apart in (("test", True), ("train", False)):
        done = call("evaluate", tmp_path / "run", "--split", split, "--only-faithfulness")
        assert ("not held out: the circuit was measured on pairs that it was found on" in done.stdout) is not apart
        found = read_circuit(tmp_path / "run").record["evaluations"][-1]
        assert (found["held_out"], found["shared"]["pairs"]) == (apart, 0 if apart else 4)
        done = call("evaluate", tmp_path / "run", "--split", split, "--only-faithfulness", "--no-save", "--json")
        assert json.loads(done.stdout)["held_out"] is apart
    assert call("validate", tmp_path / "run" / "circuit.json")


def test_overlap_of_tasks_is_that_of_their_rows(tiny, prompts, tmp_path):
    first = load_task(written(tmp_path / "a.jsonl", prompts[:4]))
    second = load_task(written(tmp_path / "b.jsonl", prompts[2:]))
    assert overlap_of_tasks(first, second, tiny) == overlap(encode(first, tiny), encode(second, tiny))
    assert overlap_of_tasks(first, second, tiny).pairs == 2


def test_rows_that_say_the_same_are_left_out_and_counted(prompts, tmp_path):
    once = written(tmp_path / "once.jsonl", prompts)
    again = [{**one, "id": f"again {i}"} for i, one in enumerate(prompts)]
    twice = written(tmp_path / "twice.jsonl", [*prompts, *again])
    assert load_task(once).repeated == 0
    task = load_task(twice)
    assert (len(task.pairs), task.repeated) == (len(prompts), len(prompts))
    reports = []
    for path in (once, twice):
        done = call("discover", "--force", "--model", TINY, "--pairs", path, "--out", tmp_path / path.stem, *QUICK)
        reports.append(read_circuit(tmp_path / path.stem).record)
    assert f"{len(prompts)} pairs say the same as others before them and are left out" in done.stderr
    assert reports[1]["task"]["repeated"] == len(prompts)
    assert "repeated" not in reports[0]["task"]
    assert reports[0]["faithfulness"] == reports[1]["faithfulness"]  # no interval is narrower


def test_the_same_row_in_two_splits_is_a_leak_and_no_repeat(prompts, tmp_path):
    both = [(split, i, one) for split in ("train", "test") for i, one in enumerate(prompts)]
    rows = [{**one, "split": split, "id": f"{split} {i}"} for split, i, one in both]
    assert load_task(written(tmp_path / "pairs.jsonl", rows)).repeated == 0


def test_a_contrast_the_wrong_way_round_is_told_of(prompts, tmp_path, tiny):
    path = written(tmp_path / "pairs.jsonl", prompts)
    done = call("discover", "--force", "--model", TINY, "--pairs", path, "--out", tmp_path / "run", *QUICK)
    report = read_circuit(tmp_path / "run").record["faithfulness"][0]
    wrong = [{**one, "answers": one["wrong_answers"], "wrong_answers": one["answers"]} for one in prompts]
    other = written(tmp_path / "wrong.jsonl", wrong)
    done_wrong = call("discover", "--force", "--model", TINY, "--pairs", other, "--out", tmp_path / "wrong", *QUICK)
    against = read_circuit(tmp_path / "wrong").record["faithfulness"][0]
    assert report["n_reversed"] + against["n_reversed"] == len(prompts)
    said = {"reversed: m(full) is below" in text for text in (done.stdout, done_wrong.stdout)}
    assert said == {True, False}
    assert f"; {report['n_reversed']} reversed" in done.stdout
