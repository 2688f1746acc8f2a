"""One prompt that does not fit stops nothing that was asked to go on with the others, and all of them are counted."""

import json

import pytest
from conftest import DATA
from typer.testing import CliRunner

from persona_circuits.circuit.errors import TaskError
from persona_circuits.circuit.io import read_circuit
from persona_circuits.circuit.task import load_task
from persona_circuits.cli import app
from persona_circuits.persona.behaviour import fitting_items, measure_pairs
from persona_circuits.persona.data import leak, load_examples, load_items

TINY = str(DATA / "tiny-gpt2")
QUICK = ["--threshold", "0.05", "--n-random", "2"]


def call(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture
def mixed(tmp_path):
    """Auto-circuit's format: eight pairs that fit, and three that do not."""
    rows = json.loads((DATA / "tiny_pairs.json").read_text())["prompts"]
    unfit = [
        {**rows[0], "clean": rows[0]["clean"] + " red", "question": "longer"},
        {**rows[1], "answers": [" red blue", " tea cats"]},
        {**rows[2], "corrupt": rows[2]["clean"]},
    ]
    every = [rows[0], unfit[0], *rows[1:5], *unfit[1:], *rows[5:]]
    named = [{"persona_a": f"a{i}", "persona_b": f"b{i}", **row} for i, row in enumerate(every)]
    path = tmp_path / "mixed.json"
    path.write_text(json.dumps({"prompts": named}))
    return path


FIT = ["1", "3", "4", "5", "6", "9", "10", "11"]


def test_inspect_counts_pairs_and_writes_those_that_fit(mixed, tmp_path):
    asked = ["inspect", TINY, "--config-only", "--pairs", mixed]
    done = call(*asked)
    assert done.exit_code == 1
    for part in ("3 of 11 pairs do not, 4 fault(s)", "prompt 2 (id 2)", "--write-fitting"):
        assert part in done.stdout
    out = tmp_path / "fit.jsonl"
    done = call(*asked, "--write-fitting", out)
    assert done.exit_code == 0, done.output
    assert "8 of 11 pairs" in done.stderr
    whole = json.loads(mixed.read_text())["prompts"]
    assert [json.loads(line) for line in out.read_text().splitlines()] == [whole[int(i) - 1] for i in FIT]
    assert call("inspect", TINY, "--config-only", "--pairs", out).exit_code == 0
    found = json.loads(call(*asked, "--json").stdout)["pairs"]
    assert (found["n_pairs"], found["fitting"]) == (11, 8)


def test_inspect_says_which_option_is_missing_and_writes_no_empty_file(mixed, tmp_path):
    out = tmp_path / "fit.jsonl"
    assert call("inspect", TINY, "--config-only", "--write-fitting", out).exit_code == 2
    rows = json.loads(mixed.read_text())["prompts"]
    (tmp_path / "none.json").write_text(json.dumps({"prompts": [rows[1]]}))
    done = call("inspect", TINY, "--config-only", "--pairs", tmp_path / "none.json", "--write-fitting", out)
    assert done.exit_code == 2
    assert "no pair of" in done.stderr
    assert not out.exists()


def test_discover_and_evaluate_go_on_and_the_record_counts(mixed, tmp_path):
    run = ["discover", "--force", "--model", TINY, "--pairs", mixed, "--out", tmp_path / "run", *QUICK]
    refused = call(*run)
    assert refused.exit_code == 2
    assert "--fitting" in refused.stderr
    assert not (tmp_path / "run").exists()
    done = call(*run, "--fitting")
    assert done.exit_code == 0, done.output
    assert "3 of 11 pairs do not fit and are left out" in done.stderr
    about = read_circuit(tmp_path / "run").record["task"]
    assert (about["n_pairs"], about["unfit"]) == (8, 3)
    plain = call(
        "discover", "--force", "--model", TINY, "--pairs", DATA / "tiny_pairs.json", "--out", tmp_path / "plain", *QUICK
    )
    assert plain.exit_code == 0
    assert read_circuit(tmp_path / "plain").record["edges"] == read_circuit(tmp_path / "run").record["edges"]
    # the record says that some are left out, so evaluate need not be told
    again = call("evaluate", tmp_path / "run", "--only-faithfulness", "--json")
    assert again.exit_code == 0, again.output
    assert json.loads(again.stdout)["unfit"] == 3
    assert read_circuit(tmp_path / "run").record["evaluations"][-1]["unfit"] == 3
    assert call("validate", tmp_path / "run" / "circuit.json").exit_code == 0


def test_items_that_fit_are_asked_and_the_source_counts_them(mixed, tiny):
    items = load_items(mixed, label="mixed")
    with pytest.raises(TaskError, match="3 of 11 pairs do not"):
        measure_pairs(tiny, items.items, source=items.source)
    found = fitting_items(items, tiny)
    assert [item.pair.id for item in found.items] == FIT
    assert found.source == "mixed (8 of 11 pairs, that fit)"
    assert len(measure_pairs(tiny, found.items)) == 8
    assert [item.pair.row["persona_a"] for item in found.items] == [f"a{int(i) - 1}" for i in FIT]


def test_examples_that_fit_are_kept_by_pair(mixed, tiny):
    with pytest.raises(TaskError, match="2 of 11 pairs do not"):  # a prompt alone may be of any length
        load_examples(mixed, tiny)
    found = load_examples(mixed, tiny, label="mixed", fitting=True)
    assert [item.pair.id for item in found.items] == sorted([*FIT, "2"], key=int)
    assert [one.pair for one in found.examples] == [i // 2 for i in range(18)]
    assert found.source == "mixed (9 of 11 pairs, that fit)"
    beside = load_examples(mixed, tiny, label="mixed", fitting=True, align="equal")
    assert [item.pair.id for item in beside.items] == FIT
    assert beside.source == "mixed (8 of 11 pairs, that fit)"
    same = load_examples(DATA / "tiny_pairs.json", tiny, label="all", fitting=True)
    assert (len(same.items), same.source) == (len(load_task(DATA / "tiny_pairs.json").pairs), "all")


@pytest.mark.parametrize("command", ["collapse", "lens"])
def test_a_command_of_personas_goes_on(command, mixed, tmp_path):
    asked = [command, "--model", TINY, "--pairs", mixed, "--out", tmp_path / "out"]
    refused = call(*asked)
    assert refused.exit_code == 2
    assert "--fitting" in refused.stderr
    done = call(*asked, "--fitting", "--n-resamples", "100")
    assert done.exit_code == 0, done.output
    assert any("of 11 pairs, that fit" in path.read_text() for path in (tmp_path / "out").glob("*.json"))


def test_examples_of_one_file_leak_into_those_of_another_by_their_tokens(tiny, tmp_path):
    rows = json.loads((DATA / "tiny_pairs.json").read_text())["prompts"]
    files = []
    for name, some in (("fit", rows[:4]), ("held", rows[3:6]), ("apart", rows[4:])):
        path = tmp_path / f"{name}.jsonl"
        path.write_text("".join(json.dumps({**row, "id": f"{name} {i}"}) + "\n" for i, row in enumerate(some)))
        files.append(load_examples(path, tiny))
    fit, held, apart = files
    assert leak(fit, held).startswith("not held out: 1 of the 3 pairs measured on")
    assert leak(fit, apart) == ""
