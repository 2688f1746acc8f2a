"""Models that tracr compiled: converted without loss, with the edges that their programs use; tracr is not needed."""

import json
import sys

import numpy as np
import pytest
import torch
from conftest import ROOT

from persona_circuits.circuit.assessment import GroundTruth, support
from persona_circuits.circuit.attribution import Scoring, eap, score
from persona_circuits.circuit.discovery import Options, discover
from persona_circuits.circuit.model import load_model
from persona_circuits.circuit.subgraph import Circuit
from persona_circuits.circuit.task import batches, encode, load_task, with_swap_rows
from persona_circuits.metrics import METRICS

sys.path.insert(0, str(ROOT / "benchmarks"))

import tracr_circuits
from tracr_models import LAVISH, THRIFTY, compiled_programs

PROGRAMS = {program.name: program for program in compiled_programs()}
DIVERGENCE = METRICS["persona-divergence"]


def batches_of(program, model):
    return batches(with_swap_rows(encode(program.task, model)), 64, "cpu")


@pytest.mark.parametrize("name", PROGRAMS)
def test_the_converted_model_says_what_tracr_says(name):
    """At every position of random inputs, beside what tracr's own code puts out in float64; other logits are 0."""
    program = PROGRAMS[name]
    expected = program.arrays["expected"]
    if name == "balance":
        expected = np.concatenate([expected, -expected], axis=-1)
    assert np.ptp(expected) > 0.9
    answers = [program.vocabulary[word] for word in program.outputs]
    for network, tolerance in ((program.network(), 1e-5), (program.network().float(), 5e-5)):
        with torch.no_grad():
            logits = network(torch.tensor(program.arrays["tokens"])).logits.double().numpy()
        np.testing.assert_allclose(logits[..., answers], expected, atol=tolerance)
        assert np.abs(np.delete(logits, answers, axis=-1)).max(initial=0) < 1e-5


def answer_of(name, words, persona):
    """The programs themselves, in Python."""
    words = [persona if word == "{}" else word for word in words]
    if name in ("balance", "majority"):
        return words.count("frugal") - words.count("lavish")
    if name == "answer":
        return "plain" if (persona in THRIFTY) != ("house" in words) else "golden"
    return words[3 if persona in THRIFTY else 4]


@pytest.mark.parametrize("name", PROGRAMS)
def test_pairs_have_the_answers_of_the_program(name):
    for pair in PROGRAMS[name].task.pairs:
        clean, corrupt = (answer_of(name, pair.question.split(), word) for word in (pair.persona_a, pair.persona_b))
        if name in ("balance", "majority"):
            assert name == "balance" or (clean > 0) != (corrupt > 0)
            clean, corrupt = ("plain", "golden") if clean > corrupt else ("golden", "plain")
        assert (pair.answers, pair.wrong_answers) == ((f" {clean}",), (f" {corrupt}",))
        assert {pair.persona_a, pair.persona_b} & set(LAVISH)


def test_true_edges_are_read_off_the_programs():
    assert PROGRAMS["pointer"].true_edges == {"input->m0", "m0->a1.h0<v>", "a1.h0->a2.h0<q>", "a2.h0->logits"}
    assert all(isinstance(program, GroundTruth) for program in PROGRAMS.values())


@pytest.mark.parametrize("name", PROGRAMS)
def test_exact_patching_finds_the_true_edges_and_no_other(name):
    """Weights say which edges count, runs of the engine say the same."""
    program = PROGRAMS[name]
    model = program.model()
    scores = score(model, batches_of(program, model), DIVERGENCE, Scoring("exact"))
    span = 2 / 3 if name == "balance" else 2.0
    assert support(scores, span) == program.true_edges
    assert support(scores, span, share=1e-4) == program.true_edges
    truth = Circuit.of(model.graph, program.true_edges)
    assert tracr_circuits.ranking(scores, truth) == (1.0, 1.0)


def test_what_the_norm_leaves_of_a_flat_gradient_is_not_counted():
    """The step of `majority` has no slope; what is left, under a millionth of the effect, ranks the edges rightly."""
    program = PROGRAMS["majority"]
    model = program.model()
    truth, scores = Circuit.of(model.graph, program.true_edges), eap(model, batches_of(program, model), DIVERGENCE)
    assert tracr_circuits.ranking(scores, truth)[0] > 0.99
    counted = [
        tracr_circuits.ranking(draw, truth)[0] for draw in tracr_circuits.floored(scores, 2 * tracr_circuits.FLOOR)
    ]
    assert 0.4 < np.mean(counted) < 0.75


def test_a_written_model_is_read_by_the_engine(tmp_path):
    assert tracr_circuits.main(["--program", "pointer", "--write", str(tmp_path)]) == 0
    folder, program = tmp_path / "pointer", PROGRAMS["pointer"]
    task, truth = load_task(folder / "pairs.jsonl"), json.loads((folder / "truth.json").read_text())
    assert [pair.clean for pair in task.pairs] == [pair.clean for pair in program.task.pairs]
    found = discover(load_model(folder), task, Options(threshold=0.01, n_random=0))
    assert set(found.circuit.edge_names()) == program.true_edges == set(truth["edges"])


@pytest.mark.slow
def test_the_table_is_written_with_its_controls(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("<!-- tracr:begin -->\n<!-- tracr:end -->\n")
    assert tracr_circuits.main(["--program", "answer", "--page", str(page)]) == 0
    rows = {row[1]: row for line in page.read_text().splitlines() if len(row := line.strip("| ").split(" | ")) > 9}
    for name in ("eap", "eap-ig", "exact"):
        assert rows[name][2:] == ["1.000", "1.000", "4", "4", "4", "4", "4", "46"]
    for name in ("eap-ig, learned gates", "acdc"):
        assert rows[name][-4:] == ["4", "4", "4", "46"]
    assert 0.3 < float(rows["random"][2]) < 0.7
    assert int(rows["random"][6]) > 10
