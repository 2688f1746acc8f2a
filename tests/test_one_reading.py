"""A command opens its pair file once: whatever is made of the pairs is made of what was read then."""

import builtins
import itertools
import json

import pytest
from conftest import DATA
from typer.testing import CliRunner

from persona_circuits.circuit.storage import reading
from persona_circuits.cli import app

TINY = DATA / "tiny-gpt2"
PEOPLE = [(" happy", " sad"), (" calm", " angry"), (" bold", " shy"), (" kind", " tired")]
ASKED = {"drink": (" tea", " milk"), "pet": (" dogs", " cats")}
COMMANDS = {
    "discover": ["--force", "--steps", "2", "--n-random", "1"],
    "collapse": ["--n-resamples", "100"],
    "explain": ["--n-resamples", "100", "--no-causal"],
    "probe": ["--n-resamples", "100", "--folds", "2"],
    "lens": ["--n-resamples", "100"],
    "steer": ["--n-resamples", "100", "--layer", "1", "--strengths", "1", "--n-controls", "1"],
}


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    path = tmp_path_factory.mktemp("pairs") / "pairs.jsonl"
    rows = [
        {
            "id": f"{i}-{question}",
            "clean": f"you are a{a} cook. now the {question} is",
            "corrupt": f"you are a{b} cook. now the {question} is",
            "answers": [first],
            "wrong_answers": [second],
            "candidates": [first, second],
            "persona_a": a.strip(),
            "persona_b": b.strip(),
            "question": question,
            "domain": question,
            "split": "train" if i % 2 else "test",
        }
        for (i, (a, b)), (question, (first, second)) in itertools.product(enumerate(PEOPLE), ASKED.items())
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def opened(monkeypatch):
    """The files that the one reading function opens, in their order."""
    found = []

    def counted(path, *how, **options):
        found.append(str(path))
        return builtins.open(path, *how, **options)

    monkeypatch.setattr(reading, "open", counted, raising=False)
    return found


def done(*arguments):
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output
    return result


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_opens_its_pair_file_once(name, pairs, opened, tmp_path):
    done(name, "--model", TINY, "--pairs", pairs, "--out", tmp_path / "out", *COMMANDS[name])
    assert opened.count(str(pairs)) == 1, opened


def test_so_does_the_evaluation_of_a_circuit(pairs, opened, tmp_path):
    done("discover", "--model", TINY, "--pairs", pairs, "--out", tmp_path / "out", *COMMANDS["discover"])
    opened.clear()
    done("evaluate", tmp_path / "out", "--quick", "--n-random", "1")
    assert opened.count(str(pairs)) == 1, opened


@pytest.mark.slow
def test_so_does_a_study_for_all_its_stages(pairs, opened, tmp_path):
    done(
        "study",
        "--model",
        TINY,
        "--pairs",
        pairs,
        "--out",
        tmp_path / "out",
        "--quick",
        "--only",
        "behaviour,patch,steering",
    )
    assert opened.count(str(pairs)) == 1, opened
