"""The house rules that a machine can check: directions of imports, no work at import, nothing pickled."""

import ast
import re
import subprocess
import sys

import pytest
from conftest import ROOT

LEVELS = [
    {"errors", "meter", "printable"},
    {"checkpoint", "finite", "float64", "graph", "held", "options", "permutations", "ranks", "reading", "storage"},
    {"scores", "shipped", "alignment", "estimate"},
    {"budget", "subgraph"},
    {"model"},
    {"task"},
    {"inspection", "overlap", "peer_process", "runs", "uncertainty"},
    {"ablation", "gradients", "null_run"},
    {"patching"},
    {"attribution", "node_patching", "rounding"},
    {"grid", "pruning"},
    {"matched"},
    {"faithfulness", "pair_scores"},
    {"bench", "curves", "files", "draw", "measurements", "pairs_view", "span_study", "stability", "transfer"},
    {"completeness", "hypothesis", "mib", "sizes"},
    {"discovery", "ground_truth", "peer_files"},
    {"stability_study"},
    {"battery", "comparison", "crosscheck", "curve_study", "curve_tables", "report"},
    {"battery_tables", "comparison_tables"},
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


def test_the_tests_that_the_conventions_name_are_there():
    named = set(re.findall(r"`(test_\w+(?:\.py)?)`", (ROOT / "docs" / "conventions.md").read_text()))
    paths = list((ROOT / "tests").rglob("test_*.py"))
    known = {path.name for path in paths} | {
        name for path in paths for name in re.findall(r"def (test_\w+)", path.read_text())
    }
    assert named <= known, named - known


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


FAMILY = re.compile(
    r"gpt|llama|qwen|gemma|mistral|mixtral|olmo|neox|pythia|\bphi\d*\b|granite|cohere|falcon|bloom|stablelm|\bopt\b",
    re.I,
)
LISTS_OF_MODELS = {"estimate.py": "MODELS", "peer_process.py": "check_model"}
"""Where models are named: examples of sizes to print, and what the other program can be given."""


def family_names(path):
    """Names of model families in what a module computes with: identifiers and strings, docstrings left out."""
    tree = ast.parse(path.read_text())
    texts = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in texts:
            found = node.value.replace("such as gpt2", "")
        else:
            found = getattr(node, "id", "") or getattr(node, "attr", "") or getattr(node, "arg", "") or ""
        if FAMILY.search(str(found)):
            yield getattr(node, "lineno", 0), str(found)


@pytest.mark.parametrize("path", [path for path in SOURCES if "models" not in path.parts[-2:-1]], ids=lambda p: p.stem)
def test_nothing_depends_on_a_familys_name(path):
    """What the engine needs it asks the host library or the configuration."""
    named = list(family_names(path))
    if path.name in LISTS_OF_MODELS:
        places = [node for node in ast.walk(ast.parse(path.read_text())) if is_called(node, LISTS_OF_MODELS[path.name])]
        named = [one for one in named if not any(node.lineno <= one[0] <= node.end_lineno for node in places)]
    assert not named


def is_called(node, name):
    return getattr(node, "name", "") == name or (
        isinstance(node, ast.Assign) and any(getattr(target, "id", "") == name for target in node.targets)
    )


def test_a_familys_name_would_be_found(tmp_path):
    path = tmp_path / "bad.py"
    path.write_text('"""Of Llama."""\nif config.model_type == "gemma2":\n    use_phi = 1\n    is_gpt2(x)\n')
    assert [line for line, _ in family_names(path)] == [2, 4]


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
