"""Shared fixtures.

``PERSONA_CIRCUITS_SHAPES=1`` checks the shapes in signatures at every call. That doubles what a small model takes, so
only the first cases of some tests run then, the same ones every time. In production nothing is checked.
"""

import json
import os
import signal
import warnings
from functools import cache
from pathlib import Path
from zlib import crc32

import pytest
import torch

SHAPES = bool(os.environ.get("PERSONA_CIRCUITS_SHAPES"))
if SHAPES:
    from jaxtyping import install_import_hook

    install_import_hook([f"persona_circuits.{name}" for name in ("circuit", "metrics", "persona")], "beartype.beartype")

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # a run in the background, whose children would ignore Ctrl-C too
    signal.signal(signal.SIGINT, signal.default_int_handler)
torch.set_num_threads(1)  # the models here are so small that threads only wait for each other

ROOT = Path(__file__).resolve().parent.parent
DATA = ROOT / "tests" / "data"
CRAFTGPT = ROOT.parent / "shared" / "models" / "craftgpt-5m"
WHOLE_COMMANDS = tuple(
    f"test_{name}.py"
    for name in ("bench", "budget", "cli", "fuzz", "index", "library", "load", "one_reading", "page", "page_browser",
                 "page_opened", "shipped", "study", "viewing")
)  # fmt: skip
"""Files whose tests run whole commands, many times over: shapes are checked where the parts are tested."""
ONE_IN = 12


def pytest_collection_modifyitems(config, items):
    """Where shapes are checked: the first case of one test in so many, of those that are not slow."""
    if not SHAPES:
        return

    def chosen(item):
        repeated = hasattr(item, "callspec") and any(item.callspec.indices.values())
        slow = item.get_closest_marker("slow") is not None or item.path.name in WHOLE_COMMANDS
        return not repeated and not slow and crc32(item.originalname.encode()) % ONE_IN == 0

    config.hook.pytest_deselected(items=[item for item in items if not chosen(item)])
    items[:] = [item for item in items if chosen(item)]


@pytest.fixture(scope="session")
def tiny():
    """A seeded 3-layer, 4-head GPT-2 with perturbed norms and biases."""
    from persona_circuits.circuit.model import load_model

    return load_model(DATA / "tiny-gpt2")


@pytest.fixture(scope="session")
def tiny64():
    """The same in float64."""
    from persona_circuits.circuit.model import load_model

    return load_model(DATA / "tiny-gpt2", dtype="float64")


@pytest.fixture(scope="session")
def family(tmp_path_factory):
    """A model of a family of architectures (``families.FAMILIES``) by its name, in float64, each made once."""
    from families import save

    from persona_circuits.circuit.model import load_model

    @cache
    def load(name):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return load_model(save(name, tmp_path_factory.mktemp("family")), dtype="float64")

    return load


@pytest.fixture(scope="session")
def tiny_task():
    """Eight pairs of several lengths, in auto-circuit's format."""
    from persona_circuits.circuit.task import load_task

    return load_task(DATA / "tiny_pairs.json")


@pytest.fixture(scope="module")
def browser():
    """Chromium, where it and Playwright are there."""
    from tests_browser import CHROMIUM

    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if CHROMIUM is None:
        pytest.skip("there is no chromium on this machine")
    with playwright.sync_playwright() as started:
        found = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield found
        found.close()


@pytest.fixture(scope="session")
def craftgpt():
    """The real chat model, where it is present."""
    if not CRAFTGPT.is_dir():
        pytest.skip(f"{CRAFTGPT.name} is not at ../shared/models")
    from persona_circuits.circuit.model import load_model

    return load_model(CRAFTGPT)


@pytest.fixture(scope="session")
def frozen():
    """Numbers frozen from other programs, by name."""
    return lambda name: json.loads((DATA / f"{name}.json").read_text())


def pairs_that_begin_alike(vocab, *, rows=4, length=9, shared=3):
    """Random pairs of token ids whose first ones are the same in all of them."""
    from persona_circuits.circuit.task import Batch

    clean, corrupt = torch.randint(0, vocab, (2, rows, length), generator=torch.Generator().manual_seed(5))
    clean[:, :shared] = corrupt[:, :shared] = clean[0, :shared]
    corrupt[:, shared] = (clean[:, shared] + 1) % vocab
    answers = torch.arange(1, rows + 1)[:, None]
    return Batch(tuple(range(rows)), clean, corrupt, answers, answers + 5)


def woven(graph, n, seed=0):
    """A circuit of random paths, of at least so many edges, and scores in which it stands out."""
    import numpy as np

    from persona_circuits.circuit.scores import Scores
    from persona_circuits.circuit.subgraph import Circuit

    random = np.random.default_rng(seed)
    mask = np.zeros_like(graph.valid)
    while mask.sum() < n:
        between = sorted(random.choice(graph.n_src - 1, random.integers(1, 5), replace=False) + 1)
        at = 0
        for node in between:
            slots = [slot for slot in graph.slots_by_source[node] if graph.valid[at, slot]]
            if slots:
                mask[at, random.choice(slots)] = True
                at = node
        mask[at, -1] = True
    values = 0.01 * random.standard_normal(mask.shape) * graph.valid
    values[mask] = random.choice([-1, 1], mask.sum()) * random.uniform(0.1, 2, mask.sum())
    return Circuit(graph, mask), Scores(graph, values)
