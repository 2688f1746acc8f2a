"""One package is installed, and nothing of a working folder gets in its way."""

import subprocess
import sys
import zipfile

import pytest
from conftest import ROOT

SCRIPT = """
import sys
from persona_circuits import Graph, Options, __version__, load_task
import persona_circuits, persona_circuits.circuit.graph, persona_circuits.metrics, persona_circuits.persona
assert len(load_task(sys.argv[1]).pairs) > 0
from persona_circuits.circuit.task import shipped
assert shipped("models/persona-world").is_dir()
assert not {"metrics", "models", "circuit", "persona", "cli", "commands", "datasets"} & set(sys.modules)
print(persona_circuits.__file__)
"""


@pytest.fixture
def research_folder(tmp_path):
    """A folder whose own modules have the names of this project's folders."""
    for name in ("metrics", "models", "circuit", "persona", "commands"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise RuntimeError('a module of the working folder')\n")
    (tmp_path / "cli.py").write_text("raise RuntimeError('a module of the working folder')\n")
    (tmp_path / "script.py").write_text(SCRIPT)
    return tmp_path


def run(folder, *command, **how):
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, **how)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    copy = folder / "checkout"
    names = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\n")
    for name in filter(None, names):
        if (ROOT / name).is_file() and not name.startswith(("tests/", "logs/", "notebooks/", "docs/")):
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            (copy / name).write_bytes((ROOT / name).read_bytes())
    build = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--no-deps",
        "--no-build-isolation",
        "-q",
        "-w",
        str(folder),
        str(copy),
    ]
    done = subprocess.run(build, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return next(folder.glob("*.whl"))


def test_a_script_beside_modules_of_the_same_names_runs_against_the_checkout(research_folder):
    pairs = str(ROOT / "datasets" / "pairs_demo.jsonl")
    assert run(research_folder, sys.executable, "script.py", pairs) == str(ROOT / "__init__.py")


@pytest.mark.slow
def test_and_against_the_wheel(research_folder, wheel, tmp_path):
    place = tmp_path / "site"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(place)
    pairs = str(ROOT / "datasets" / "pairs_demo.jsonl")
    found = run(research_folder, sys.executable, "script.py", pairs, env={"PYTHONPATH": str(place), "PATH": ""})
    assert found == str(place / "persona_circuits" / "__init__.py")


@pytest.mark.slow
def test_the_wheel_holds_what_the_checkout_holds(wheel):
    names = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\n")
    folders = ("circuit/", "commands/", "metrics/", "models/", "persona/", "datasets/")
    wanted = {
        name
        for name in names
        if name.startswith(folders) or name in ("cli.py", "__init__.py", "__init__.pyi", "py.typed")
    }
    with zipfile.ZipFile(wheel) as archive:
        held = {name.removeprefix("persona_circuits/") for name in archive.namelist() if ".dist-info/" not in name}
        tops = {name.split("/")[0] for name in archive.namelist() if ".dist-info/" not in name}
    assert tops == {"persona_circuits"}
    assert wanted <= held, sorted(wanted - held)
    assert {name for name in held - wanted if not name.startswith("benchmarks/peers/")} == set()


def test_the_command_line_runs_from_a_checkout(research_folder):
    assert "discover" in run(research_folder, sys.executable, str(ROOT / "cli.py"), "--help")
