"""Shared fixtures. Shapes in signatures are checked; in production nothing is, and it costs nothing.

The check doubles what a small model takes, so a test of many cases has it in its first, and tests of whole commands,
which call what others call with shapes checked, have none.
"""

from jaxtyping import config as jaxtyping_config
from jaxtyping import install_import_hook

_HOOK = install_import_hook(
    [f"persona_circuits.{name}" for name in ("circuit", "metrics", "persona")], "beartype.beartype"
)

import json  # noqa: E402
import signal  # noqa: E402
import warnings  # noqa: E402
from functools import cache  # noqa: E402
from pathlib import Path  # noqa: E402

import pytest  # noqa: E402
import torch  # noqa: E402

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # a run in the background, whose children would ignore Ctrl-C too
    signal.signal(signal.SIGINT, signal.default_int_handler)
torch.set_num_threads(1)  # the models here are so small that threads only wait for each other

ROOT = Path(__file__).resolve().parent.parent
WHOLE_COMMANDS = tuple(
    f"test_{name}.py"
    for name in ("bench", "budget", "cli", "fuzz", "index", "library", "load", "one_reading", "page", "page_browser",
                 "page_opened", "shipped", "study", "viewing")
)  # fmt: skip
"""Files whose tests run whole commands, many times over: shapes are checked where the parts are tested."""
DATA = ROOT / "tests" / "data"
CRAFTGPT = ROOT.parent / "shared" / "models" / "craftgpt-5m"


def pytest_runtest_setup(item):
    """Shapes are checked in the first case of every test that is not slow."""
    repeated = hasattr(item, "callspec") and any(item.callspec.indices.values())
    slow = item.get_closest_marker("slow") is not None or item.path.name in WHOLE_COMMANDS
    jaxtyping_config.update("jaxtyping_disable", repeated or slow)


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
