"""Where commands write: checked before a model is loaded; and what they say when they are stopped."""

import re
import shutil

import pytest
from conftest import ROOT
from test_cli import PLAIN, RUN, call, fails
from tests_disks import mounted

from persona_circuits.circuit import model as model_package
from persona_circuits.circuit.errors import TaskError, WriteError
from persona_circuits.commands.evaluation import _state_beside
from persona_circuits.persona.study import StageNumbers

DATASETS = ROOT / "datasets"
TEXTS = ["--personas", DATASETS / "personas.jsonl", "--questions", DATASETS / "questions.jsonl"]
TO_FOLDERS = {
    "discover": [],
    "collapse": [],
    "explain": [],
    "probe": [],
    "lens": [],
    "patch": [],
    "study": [],
    "respond": [],
    "vectors": [],
    "steer": [],
    "neurons": [],
    "rate": ["--responses", "RESPONSES"],
    "curves": ["RUN"],
    "bridge": ["RUN"],
    "specificity": ["RUN", "RUN", "--names", "a,b"],
    "export": ["RUN", "--to", "mib"],
    "formats": ["--model", "models/persona-world"],
}
TO_FILES = {
    "evaluate": ["RUN"],
    "compare": ["RUN", "RUN"],
    "export": ["RUN", "--to", "eap-ig"],
    "bench": [],
    "pairs": [*TEXTS, "--template", "raw"],
    "vary": ["--pairs", DATASETS / "pairs_test.jsonl", "--rules", DATASETS / "study_craftgpt_variants.json"],
    "prior-pairs": ["--pairs", DATASETS / "pairs_test.jsonl", "--neutral", DATASETS / "questions.jsonl"],
}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    out = tmp_path_factory.mktemp("run") / "run"
    assert call("discover", *RUN, "--out", out, "--threshold", "0.05", "--n-random", "2").exit_code == 0
    return out


@pytest.fixture
def given(run, tmp_path, monkeypatch):
    """Arguments with places put in; no model may be loaded."""
    line = '{"persona": "a", "question": "q", "user": "Hi?", "system": "You are a.", "response": "Yes."}\n'
    (tmp_path / "said.jsonl").write_text(line)
    monkeypatch.setattr(model_package, "load_model", lambda *_, **__: pytest.fail("a model was loaded"))
    places = {"RUN": run, "RESPONSES": tmp_path / "said.jsonl"}
    return lambda arguments: [places.get(one, one) for one in arguments]


@pytest.mark.parametrize("command", TO_FOLDERS)
@pytest.mark.parametrize(
    ("place", "says"), [("file", "it is a file"), ("link", "does not exist"), ("n" * 256, "File name too long")]
)
def test_a_folder_is_checked_before_work(given, tmp_path, command, place, says):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "link").symlink_to(tmp_path / "gone")
    done = fails(says, command, *given(TO_FOLDERS[command]), "--out", tmp_path / place)
    assert str(tmp_path / place) in done.stderr
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize("command", TO_FOLDERS)
def test_an_empty_name_is_refused(given, command):
    fails("working folder itself", command, *given(TO_FOLDERS[command]), "--out", "")


@pytest.mark.parametrize("command", TO_FILES)
@pytest.mark.parametrize(("place", "says"), [("folder.json", "it is a folder"), ("link.json", "does not exist")])
def test_a_file_is_checked_before_work(given, tmp_path, command, place, says):
    (tmp_path / "folder.json").mkdir()
    (tmp_path / "link.json").symlink_to(tmp_path / "gone")
    option = "--file" if command in ("export", "pairs", "vary", "prior-pairs") else "--out"
    done = fails(says, command, *given(TO_FILES[command]), option, tmp_path / place)
    assert str(tmp_path / place) in done.stderr


@pytest.mark.parametrize("command", ["draw", "compare"])
def test_a_picture_is_checked_before_work(given, tmp_path, command):
    (tmp_path / "folder.svg").mkdir()
    arguments = {"draw": ["RUN", "--file"], "compare": ["RUN", "RUN", "--picture"]}[command]
    option = [command, *given(arguments)]
    fails("it is a folder", *option, tmp_path / "folder.svg")
    fails("format is 'bmp'", *option, tmp_path / "x.bmp")


def test_a_folder_in_the_place_of_a_file_is_found_before_work(given, tmp_path):
    (tmp_path / "circuit.json").mkdir()
    fails(r"circuit\.json in it is a folder", "discover", "--out", tmp_path)
    (tmp_path / "circuit.json").rmdir()
    (tmp_path / "behaviour").write_text("mine")
    (tmp_path / "journal.jsonl").mkdir()
    fails(r"journal\.jsonl in it is a folder", "respond", "--out", tmp_path)


def test_a_run_whose_folder_is_read_only(run, tmp_path, monkeypatch):
    (tmp_path / "disk").mkdir()
    with mounted(tmp_path / "disk") as remount:
        there = shutil.copytree(run, tmp_path / "disk" / "run")
        before = {path.name: path.read_bytes() for path in there.iterdir()}
        remount("ro")
        assert call("evaluate", there, *PLAIN).exit_code == 0
        assert _state_beside(there / "circuit.json") is None
        monkeypatch.setattr(model_package, "load_model", lambda *_, **__: pytest.fail("a model was loaded"))
        fails(r"disk/run/circuit\.json: Read-only file system", "evaluate", there, "--only-faithfulness")
        assert {path.name: path.read_bytes() for path in there.iterdir()} == before


def test_a_stage_that_cannot_be_written_is_no_note():
    found = StageNumbers()
    with found.attempt("a part"):
        raise TaskError("these pairs do not allow it")
    assert found.notes == ["a part: these pairs do not allow it"]
    with pytest.raises(WriteError), found.attempt("a part"):
        raise WriteError("the disk is full")


STOPPED = {"lens": "no file is half-written; .* begins anew", "study": "are kept in .*out; .* goes on from there"}


@pytest.mark.parametrize("command", STOPPED)
def test_a_stopped_command_says_what_is_kept(tmp_path, monkeypatch, command):
    def stop(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(model_package, "load_model", stop)
    done = fails(f"^stopped: .*{STOPPED[command]}$", command, "--out", tmp_path / "out", code=130)
    assert re.fullmatch(r"[^\n]+\n", done.stderr)


def test_a_full_disk_elsewhere_is_one_sentence(tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device", "/tmp/x")

    monkeypatch.setattr(model_package, "load_model", full)
    fails("cannot write /tmp/x: No space left on device; free some space", "lens", "--out", tmp_path / "out")
