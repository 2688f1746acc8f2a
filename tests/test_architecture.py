"""The house rules that a machine can check: directions of imports, no work at import, nothing pickled."""

import ast
import subprocess
import sys

import pytest
from conftest import ROOT

LEVELS = [
    {"errors", "meter"},
    {"graph", "held", "ranks", "storage"},
    {"scores", "shipped", "alignment", "estimate"},
    {"budget", "subgraph"},
    {"model"},
    {"task"},
    {"inspection", "peer_process", "runs", "uncertainty"},
    {"ablation", "null_run"},
    {"patching"},
    {"attribution", "node_patching"},
    {"grid", "pruning"},
    {"faithfulness", "matched"},
    {"bench", "curves", "files", "draw", "measurements", "span_study", "transfer"},
    {"completeness", "hypothesis", "mib", "sizes"},
    {"discovery", "ground_truth", "peer_files"},
    {"battery", "comparison", "crosscheck", "curve_study", "curve_tables", "report"},
    {"comparison_tables"},
]
HEAVY = ("torch", "transformer_lens", "transformers", "pygraphviz", "networkx", "jsonschema", "scipy", "sklearn")
SOURCES = [
    *sorted(path for folder in ("circuit", "metrics", "persona", "models") for path in (ROOT / folder).rglob("*.py")),
    ROOT / "cli.py",
]


def imports(path):
    """Imported modules, and whether each import stands at the top of the file."""
    tree = ast.parse(path.read_text())
    top = set(tree.body)
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node in top) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from ((f"{node.module}", node in top) for _ in node.names[:1])


def level(module):
    return next(i for i, names in enumerate(LEVELS) if module in names)


def test_every_module_of_the_engine_has_its_place():
    modules = {path.stem for path in (ROOT / "circuit").glob("*.py")} - {"__init__"}
    assert modules == set().union(*LEVELS)


@pytest.mark.parametrize("path", sorted((ROOT / "circuit").glob("[!_]*.py")), ids=lambda p: p.stem)
def test_the_engine_imports_downward_only(path):
    for name, _ in imports(path):
        if name.startswith("circuit."):
            assert level(name.split(".")[1]) < level(path.stem), f"{path.stem} imports {name}"
        assert not name.startswith(("persona", "models", "cli")), f"{path.stem} imports {name}"


def test_metrics_are_a_leaf():
    for path in (ROOT / "metrics").glob("*.py"):
        for name, _ in imports(path):
            assert name.split(".")[0] in {"metrics", "torch", "jaxtyping", "__future__", "collections", "dataclasses"}


def test_only_the_model_module_knows_the_host_library():
    for path in SOURCES:
        if "transformer_lens" in {name.split(".")[0] for name, _ in imports(path)}:
            assert path.name == "model.py"


def test_the_command_line_imports_nothing_heavy_at_the_top():
    top = {name.split(".")[0] for name, at_top in imports(ROOT / "cli.py") if at_top}
    assert not top & {*HEAVY, "circuit", "metrics", "models", "persona", "numpy"} - {"circuit"}
    assert "torch" not in top


def test_help_loads_nothing_heavy():
    code = (
        "import sys; sys.argv = ['persona-circuits', '--help']\n"
        "try:\n import cli; cli.main()\nexcept SystemExit: pass\n"
        f"loaded = [name for name in {HEAVY!r} if name in sys.modules]; assert not loaded, loaded"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "discover" in done.stdout


def test_datasets_is_no_package():
    """It would shadow Hugging Face's library of that name, which TransformerLens needs."""
    assert not list((ROOT / "datasets").rglob("__init__.py"))


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_nothing_is_pickled_and_no_device_is_spelt_out(path):
    names = {name.split(".")[0] for name, _ in imports(path)}
    assert not names & {"pickle", "dill", "joblib"}
    text = path.read_text()
    assert "torch.load(" not in text
    assert 'device="cuda' not in text


def test_public_names_exist():
    import circuit
    import metrics

    for module in (circuit, metrics):
        for name in module.__all__:
            assert getattr(module, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        circuit.nothing  # noqa: B018
    for path in (ROOT / "circuit").glob("[!_]*.py"):
        module = __import__(f"circuit.{path.stem}", fromlist=["__all__"])
        assert all(hasattr(module, name) for name in module.__all__), path
