"""Logits, streams and metrics that are no numbers are refused by every command; nothing is written."""

import json
import re

import numpy as np
import pytest
import torch
from conftest import DATA
from typer.testing import CliRunner

from persona_circuits import cli
from persona_circuits.circuit.errors import ModelError
from persona_circuits.circuit.forward import measure, prepare
from persona_circuits.circuit.model import load_model, of_prompts
from persona_circuits.circuit.model.finite import check_finite
from persona_circuits.circuit.task import batches, encode, with_swap_rows
from persona_circuits.metrics import METRICS, Metric

DISCOVER = ["--force", "--threshold", "0.05"]
COMMANDS = {
    "discover": DISCOVER,
    "discover eap": ["--method", "eap", *DISCOVER],
    "discover exact": ["--method", "exact", *DISCOVER],
    "discover zero": ["--ablation", "zero", *DISCOVER],
    "curves": ["--scorers", "eap"],
    "evaluate": ["--only-faithfulness", "--no-save"],
    "collapse": [],
    "explain": [],
    "probe": [],
    "lens": [],
    "patch": [],
    "steer": [],
    "neurons": [],
    "bridge": [],
}


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    """The tiny pairs, with personas and questions named."""
    rows = json.loads((DATA / "tiny_pairs.json").read_text())["prompts"]
    named = [
        {**row, "persona_a": f"a{i % 3}", "persona_b": f"b{i % 3}", "question": f"q{i % 4}"}
        for i, row in enumerate(rows)
        if len(row["clean"]) and i < 6
    ]
    path = tmp_path_factory.mktemp("finite") / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in named))
    return path


@pytest.fixture(scope="module")
def run_folder(pairs):
    out = pairs.parent / "run"
    found = CliRunner().invoke(
        cli.app, ["discover", "--model", str(DATA / "tiny-gpt2"), "--pairs", str(pairs), "--out", str(out), *DISCOVER]
    )
    assert found.exit_code == 0, found.output
    return out


def overflowing(value=3e38):
    """Finite weights that loading accepts; what the second layer's MLP writes is beyond what the format holds."""
    model = load_model(DATA / "tiny-gpt2")
    with torch.no_grad():
        model.bridge.original_model.transformer.h[1].mlp.c_proj.weight.fill_(value)
        model.bridge.original_model.transformer.h[1].mlp.c_fc.weight.mul_(100.0)
    return model


@pytest.mark.parametrize("command", COMMANDS)
def test_no_command_makes_a_result_of_values_that_are_no_numbers(command, pairs, run_folder, tmp_path, monkeypatch):
    monkeypatch.setattr("persona_circuits.circuit.model.load_model", lambda *_, **__: overflowing())
    name, out = command.split()[0], tmp_path / "out"
    given = [str(run_folder)] if name in ("evaluate", "bridge") else []
    model = [] if name == "evaluate" else ["--model", str(DATA / "tiny-gpt2")]
    written = ["--out", str(out)]
    asked = [name, *given, *model, "--pairs", str(pairs), *written, *COMMANDS[command]]
    done = CliRunner().invoke(cli.app, asked)
    assert done.exit_code == 2, done.output
    says = r"of (pair \S+|the prompt '.*').* (nan|inf|-inf); \w+ must be finite"
    assert re.search(says, done.stderr), done.stderr
    assert "Load the model in float32" in done.stderr
    assert not out.exists()


def test_a_circuit_whose_metric_is_no_number_names_its_pair(tiny, tiny_task):
    """One row's targets ask for the logarithm of nothing; the rows beside it are sound."""
    rows = with_swap_rows(encode(tiny_task, tiny))
    batch = max(batches(rows, 4, tiny.device), key=len)
    item = prepare(tiny, batch)
    sound = METRICS["logit-diff"]

    def function(logits, targets):
        values = sound(logits, targets).clone()
        values[1] = torch.nan
        return values

    full = tiny.graph.valid
    assert measure(tiny, [item], [full], sound).shape == (1, len(batch))
    with pytest.raises(ModelError, match=f"values of broken of {batch.name(1)} are nan"):
        measure(tiny, [item], [full], Metric("broken", function, "logits"))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("kind", [np.asarray, torch.tensor, lambda x: torch.tensor(x, dtype=torch.float16)])
def test_one_value_anywhere_is_found_and_its_row_named(value, kind):
    values = np.zeros((3, 2, 4))
    check_finite(kind(values), str)
    check_finite(kind(values)[:0], str)
    values[1, 1, 2] = value
    with pytest.raises(ModelError, match=f"the streams of row 1 are {value}; streams must be finite"):
        check_finite(kind(values), lambda row: f"row {row}", "streams")


def test_a_long_prompt_is_shown_from_its_end(tiny):
    ids = tiny.tokenizer("you are a happy cook. " * 9 + "answer:")["input_ids"]
    shown = of_prompts(tiny, [ids])(0)
    assert shown.endswith("answer:'")
    assert len(shown) < 90
