"""Options of the suite, the subjects that it measures, and how a measurement is kept for the tables.

--tiny       two layers of two heads, one round: tries the code
--threads N  threads of torch, here and in auto-circuit's process (default 1)
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent / "peers"))

from shapes import GPT2, GPT2_64, GROUPED, SMALL, SMOLLM2, Shape, rows_of
from steps import Beside, kl_threshold

from persona_circuits.circuit.errors import OptionError
from persona_circuits.circuit.forward import prepare
from persona_circuits.circuit.peers import AutoCircuit, peers_python
from persona_circuits.circuit.profiling import Step, machine, peak_bytes, seconds_of


def pytest_addoption(parser):
    parser.addoption("--tiny", action="store_true", help="smallest shapes, one round")
    parser.addoption("--threads", type=int, default=1, help="threads of torch")


def pytest_collection_modifyitems(items):
    """All tests of a shape together, in the order of the files, so that one model is in memory at a time."""

    items.sort(key=lambda item: SHAPES.index(item.callspec.params["subject"]))


@pytest.fixture(scope="session", autouse=True)
def threads(request):
    count = request.config.getoption("--threads")
    torch.set_num_threads(count)
    return count


SHAPES = (GPT2, GPT2_64, GROUPED, SMOLLM2, SMALL)


class Subject:
    """A shape with everything made of it, each part when it is first asked for."""

    def __init__(self, shape: Shape, folder: Path, threads: int) -> None:
        self.shape, self.folder, self.threads = shape, folder, threads
        self.batch = shape.batch()
        self.bare = shape.network()
        self.model = shape.model()
        self.found: dict[str, Any] = {}  # results to compare with peers', by name
        self._process: AutoCircuit | None = None

    @cached_property
    def item(self):
        return prepare(self.model, self.batch)

    @cached_property
    def tau(self) -> float:
        return kl_threshold(self.item, 1e-2 if self.model.graph.n_edges < 1000 else 1e-4)

    @cached_property
    def saved(self) -> Path:
        return self.shape.save(self.folder)

    @cached_property
    def bridge(self):
        """TransformerLens' own model, for its own attribution."""
        from transformerlens_scores import boot

        return boot(self.saved, "float32")

    @cached_property
    def autocircuit(self) -> AutoCircuit:
        """auto-circuit's process with this model and these pairs in one batch; skips where there is none."""
        try:
            python = peers_python()
        except OptionError as error:
            pytest.skip(f"{error}")
        self._process = AutoCircuit(python).__enter__()
        rows = rows_of(self.batch)
        self._process.load(self.saved, rows, batch_size=len(rows), threads=self.threads)
        return self._process

    def close(self) -> None:
        if self._process is not None:
            self._process.__exit__(None, None, None)


@pytest.fixture(scope="module")
def make_subject(request, tmp_path_factory, threads) -> Iterator[Any]:
    made: dict[str, Subject] = {}
    tiny = request.config.getoption("--tiny")

    def make(shape: Shape) -> Subject:
        if shape.name not in made:
            for other in made.values():
                other.close()
            made.clear()  # one model at a time
            folder = tmp_path_factory.mktemp("model")
            made[shape.name] = Subject(shape.tiny() if tiny else shape, folder, threads)
        return made[shape.name]

    yield make
    for subject in made.values():
        subject.close()


@pytest.fixture
def subject(request, make_subject) -> Subject:
    """The subject of a shape; tests name their shapes with ``on``."""
    return make_subject(request.param)


@pytest.fixture
def keep(benchmark, request):
    """Time a step and keep with it what the tables need."""
    tiny = request.config.getoption("--tiny")

    def measured(
        subject: Subject,
        name: str,
        what: str,
        step: Step,
        *,
        rounds: int,
        beside: Beside | None = None,
        per: int = 1,
        peak: bool = True,
        peak_bytes_there: int | None = None,
    ) -> None:
        seconds: list[float] = []
        benchmark.group = subject.shape.title
        benchmark.pedantic(
            step,
            setup=None if beside is None else lambda: seconds.append(seconds_of(beside.step, "cpu")),
            rounds=1 if tiny else rounds,
            warmup_rounds=0 if tiny or rounds == 1 else 1,
        )
        subject.model.forget()
        benchmark.extra_info |= {
            "shape": subject.shape.title,
            "name": name,
            "what": what,
            "machine": machine("cpu"),
            "per": per,
            "peak_bytes": peak_bytes(step, "cpu") if peak else peak_bytes_there,
        }
        if beside is not None:
            own = benchmark.stats.stats.data
            ratios = [t / per / (b * beside.times) for t, b in zip(own, seconds[-len(own) :], strict=True)]
            benchmark.extra_info |= {"beside": beside.name, "ratios": ratios}

    measured.info = benchmark.extra_info
    return measured
