"""The house rules that a machine can check: directions of imports, no work at import, nothing pickled."""

import ast
import re
import subprocess
import sys
from importlib import import_module

import pytest
from conftest import ROOT

FLOORS = [
    {
        "circuit.choices",
        "circuit.errors",
        "circuit.glossary",
        "circuit.parallel",
        "circuit.printable",
        "circuit.progress",
        "metrics",
    },
    {"circuit.catalogue", "circuit.graph", "circuit.options", "circuit.storage", "circuit.table"},
    {"circuit.cost", "circuit.figures", "circuit.paths", "circuit.scores", "circuit.task", "models.world"},
    {"circuit.model", "circuit.statistics", "circuit.subgraph", "models.training"},
    {
        "circuit.drawing",
        "circuit.fetching",
        "circuit.forward",
        "circuit.io",
        "models.planted",
        "persona.data",
        "persona.streams",
    },
    {
        "circuit.attribution",
        "circuit.page",
        "circuit.pruning",
        "persona.behaviour",
        "persona.lens",
        "persona.pairs",
        "persona.responses",
    },
    {
        "circuit.evaluation",
        "circuit.viewing",
        "persona.explanation",
        "persona.formats",
        "persona.inside",
        "persona.probing",
    },
    {"circuit.discovery", "circuit.profiling", "persona.patching", "persona.vectors"},
    {"circuit.peers", "persona.steering"},
    {"circuit.assessment", "persona.neurons"},
    {"circuit.reporting", "persona.bridge"},
    {"persona.study"},
    {"commands"},
    {"cli"},
]
"""Packages from the ground up: each imports lower floors only."""
NAME = "persona_circuits."
HEAVY = ("torch", "transformer_lens", "transformers", "pygraphviz", "networkx", "jsonschema", "scipy", "sklearn")
LIGHT = ("errors", "choices", "printable", "progress", "table")
"""Of the standard library only."""
SOURCES = [
    *sorted(
        path
        for folder in ("circuit", "metrics", "persona", "models", "commands")
        for path in (ROOT / folder).rglob("*.py")
    ),
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


def room(module):
    """The room of a module of this project: the first two parts of its name, one for metrics, commands and cli."""
    parts = module.split(".")
    return ".".join(parts[:2]) if parts[0] in ("circuit", "persona", "models") else parts[0]


def module_of(path):
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def imported_rooms(path):
    """The rooms that a file imports from, itself left out."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and f"{node.module}.".startswith(NAME):
            inner = node.module[len(NAME) :]
            known = inner if "." in inner or inner in ("metrics", "commands") else None
            yield from ({room(known)} if known else {room(f"{inner}.{a.name}".lstrip(".")) for a in node.names})


def test_every_room_has_its_floor():
    rooms = {room(module_of(path)) for path in SOURCES} - {"circuit", "persona", "models"}
    assert rooms == set().union(*FLOORS)
    assert sum(map(len, FLOORS)) == len(rooms)


@pytest.mark.parametrize("path", [p for p in SOURCES if p.name != "__init__.py"], ids=module_of)
def test_imports_lead_downward_only(path):
    floor = {name: i for i, names in enumerate(FLOORS) for name in names}
    own = room(module_of(path))
    for name in set(imported_rooms(path)) - {own}:
        assert floor[name] < floor[own], f"{module_of(path)} imports {name}"


@pytest.mark.parametrize("path", SOURCES, ids=module_of)
def test_everything_is_imported_by_its_whole_name(path):
    own = {"circuit", "metrics", "persona", "models", "commands", "cli"}
    assert not own & {name.split(".")[0] for name, _ in imports(path)}


def test_metrics_are_a_leaf():
    for path in (ROOT / "metrics").glob("*.py"):
        for name, _ in imports(path):
            assert not name.startswith(NAME) or name.startswith(f"{NAME}metrics")
            assert name.split(".")[0] in {
                "persona_circuits",
                "torch",
                "jaxtyping",
                "__future__",
                "collections",
                "dataclasses",
            }


def test_only_the_model_package_knows_the_host_library():
    for path in SOURCES:
        if "transformer_lens" in {name.split(".")[0] for name, _ in imports(path)}:
            assert path.parent.name == "model"


@pytest.mark.parametrize("path", [ROOT / "cli.py", *sorted((ROOT / "commands").glob("*.py"))], ids=lambda p: p.stem)
def test_the_command_line_imports_nothing_heavy_at_the_top(path):
    for name, at_top in imports(path):
        assert not at_top or name.split(".")[0] not in {*HEAVY, "numpy"}
        light = name.startswith((f"{NAME}commands", *(f"{NAME}circuit.{one}" for one in LIGHT)))
        assert not at_top or not name.startswith(NAME) or light or name.endswith(".options")


def test_the_tests_that_the_conventions_name_are_there():
    named = set(re.findall(r"`(test_\w+(?:\.py)?)`", (ROOT / "docs" / "conventions.md").read_text()))
    paths = list((ROOT / "tests").rglob("test_*.py"))
    known = {path.name for path in paths} | {
        name for path in paths for name in re.findall(r"def (test_\w+)", path.read_text())
    }
    assert named <= known, named - known


@pytest.mark.parametrize("path", [p for p in SOURCES if p.stem in ("options", "choices")], ids=module_of)
def test_options_import_nothing_heavy_at_the_top(path):
    """The command line's signatures are made of them, and ``--help`` answers at once."""
    for name, at_top in imports(path):
        assert not at_top or name.split(".")[0] not in {*HEAVY, "numpy", "jaxtyping"}
        inner = name.removeprefix(NAME)
        assert not at_top or inner == name or inner.split(".")[-1] in ("options", "choices", "errors"), name


def test_help_loads_nothing_heavy():
    """That of every command, as all signatures are made when the command line is imported."""
    code = (
        "import sys; sys.argv = ['persona-circuits', '--help']\n"
        "try:\n from persona_circuits import cli; cli.main()\nexcept SystemExit: pass\n"
        f"loaded = [name for name in {(*HEAVY, 'numpy')!r} if name in sys.modules]; assert not loaded, loaded"
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
LISTS_OF_MODELS = {"sizes.py": "MODELS", "process.py": "check_model", "catalogue.py": "CATALOGUE"}
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


@pytest.mark.parametrize(
    "path", [path for path in SOURCES if room(module_of(path)).split(".")[0] != "models"], ids=module_of
)
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
    import persona_circuits

    for package in (persona_circuits, persona_circuits.circuit, persona_circuits.metrics, persona_circuits.persona):
        for name in package.__all__:
            assert getattr(package, name) is not None
    with pytest.raises(AttributeError, match="nothing"):
        persona_circuits.nothing  # noqa: B018
    for path in SOURCES:
        module = import_module((NAME + module_of(path)).removesuffix(".__init__"))
        assert all(hasattr(module, name) for name in getattr(module, "__all__", ())), path


@pytest.mark.parametrize("path", [p for p in SOURCES if p.name == "__init__.py"], ids=module_of)
def test_a_packages_first_file_only_names_what_it_offers(path):
    for node in ast.parse(path.read_text()).body:
        assert isinstance(node, (ast.Expr, ast.Import, ast.ImportFrom, ast.Assign)), ast.unparse(node)


def test_no_file_is_long():
    assert not [module_of(path) for path in SOURCES if len(path.read_text().splitlines()) > 500]
