"""Models in GGUF files: their weights are those that the library which wrote them gives back, and results say so."""

import hashlib
import json
import shutil

import pytest
import torch
from conftest import DATA
from typer.testing import CliRunner

pytest.importorskip("gguf", reason="the package gguf is not installed")

from persona_circuits import cli, load_model
from persona_circuits.circuit.errors import ModelError
from persona_circuits.circuit.io import faults_of, read_circuit
from persona_circuits.circuit.model import gguf as reading
from persona_circuits.circuit.model import load_skeleton, origin_at
from persona_circuits.persona.data import load_tokenizer
from tests.tests_gguf import network, words, write_gguf

TOKENS = torch.arange(3, 21).view(2, 9)


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    return write_gguf(tmp_path_factory.mktemp("gguf") / "tiny.Q8_0.gguf", network())


@pytest.fixture(scope="module")
def model(file):
    return load_model(file)


def test_logits_are_those_of_the_network_that_was_written(model):
    with torch.no_grad():
        expected = network()(TOKENS).logits
    torch.testing.assert_close(model.logits(TOKENS), expected, atol=1e-4, rtol=1e-4)
    with torch.no_grad():
        other = network(seed=1)(TOKENS).logits
    assert (model.logits(TOKENS) - other).abs().max() > 1.0


def test_the_tokenizer_is_the_files(model, file):
    tokens, _ = words()
    for tokenizer in (model.tokenizer, load_tokenizer(str(file)).tokenizer):
        ids = tokenizer("a mat", add_special_tokens=False)["input_ids"]
        assert [tokens[one] for one in ids] == ["a", "\u0120m", "a", "t"]
    assert len(tokens) == model.n_vocab


def test_its_origin_is_known(model, file):
    assert model.origin == origin_at(file)
    assert model.origin.quantisation == "Q8_0"
    assert model.origin.file == file.name
    assert model.origin.sha256 == hashlib.sha256(file.read_bytes()).hexdigest()
    assert load_model(DATA / "tiny-gpt2").origin is None


def test_a_folder_that_holds_one_is_read_too(model, file, tmp_path):
    shutil.copy(file, tmp_path / "one.gguf")
    assert load_model(tmp_path).fingerprint == model.fingerprint
    assert load_skeleton(tmp_path)[0].config.num_key_value_heads == 2
    shutil.copy(file, tmp_path / "two.gguf")
    with pytest.raises(ModelError, match=r"holds 2 GGUF files; give one of them, such as .*one\.gguf"):
        load_model(tmp_path)


@pytest.mark.parametrize("dtype", ["float64", "bfloat16-weights"])
def test_in_other_formats(model, file, dtype):
    gap = (load_model(file, dtype=dtype).logits(TOKENS).float() - model.logits(TOKENS)).abs().max()
    assert gap < (1e-3 if dtype == "float64" else 0.2) * model.logits(TOKENS).abs().max()


def test_inspect_and_the_circuits_file_say_what_was_done_to_the_weights(file, tmp_path):
    said = CliRunner().invoke(cli.app, ["inspect", str(file)])
    assert said.exit_code == 0, said.output
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    assert f"weights: quantised (Q8_0), dequantised; {file.name}, SHA-256 {digest}" in said.stdout
    assert "comes apart into nodes: yes" in said.stdout
    assert "Converting" not in said.output
    row = {"clean": "a happy cook", "corrupt": "a happy king", "answers": [" t"], "wrong_answers": [" m"]}
    pairs, out = tmp_path / "pairs.jsonl", tmp_path / "run"
    pairs.write_text(json.dumps(row) + "\n")
    options = ["--method", "eap", "--prune", "top-n", "--top-n", "40", "--n-random", "1", "--out", str(out)]
    done = CliRunner().invoke(cli.app, ["discover", "--model", str(file), "--pairs", str(pairs), *options])
    assert done.exit_code == 0, done.output
    assert not faults_of(out / "circuit.json")
    origin = read_circuit(out / "circuit.json").record["model"]["origin"]
    assert (origin["quantisation"], origin["sha256"]) == ("Q8_0", digest)
    assert "(quantised Q8_0, dequantised)" in (out / "graph.svg").read_text()


def test_what_cannot_be_read_is_one_sentence(file, tmp_path, monkeypatch):
    other = write_gguf(tmp_path / "rwkv.gguf", network(), architecture="rwkv6")
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(file.read_bytes()[:2000])
    (tmp_path / "text.gguf").write_text("no such thing")
    for read in (load_model, load_skeleton, load_tokenizer):
        for name, says in {
            other: r"architecture 'rwkv6', which transformers does not read from GGUF; it reads .*qwen2, .*stablelm",
            broken: "is damaged or no GGUF file",
            tmp_path / "text.gguf": "does not begin with GGUF",
            tmp_path / "none.gguf": "there is no file .*none.gguf",
        }.items():
            with pytest.raises(ModelError, match=says) as caught:
                read(str(name))
            assert "\n" not in str(caught.value)
    monkeypatch.setattr(reading.importlib.util, "find_spec", lambda _name: None)
    with pytest.raises(ModelError, match="package gguf, which is not installed; pip install gguf"):
        load_model(file)
