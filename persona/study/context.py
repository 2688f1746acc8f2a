"""What the stages of a study share: the model, the files, the options, and what more than one stage needs."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from persona_circuits import metrics
from persona_circuits.circuit.errors import TaskError
from persona_circuits.circuit.model import Model
from persona_circuits.circuit.progress import Stage
from persona_circuits.circuit.storage import Kind, read_bytes
from persona_circuits.circuit.task import Task, task_of, without_forms
from persona_circuits.persona.behaviour import PARAPHRASE, PairMeasure, measure_pairs
from persona_circuits.persona.data import ExampleFile, ItemFile, Persona, examples_of, items_of, read_personas
from persona_circuits.persona.data.items import Item
from persona_circuits.persona.steering import some_pairs
from persona_circuits.persona.steering.passes import evenly
from persona_circuits.persona.study.bias import DerivedBias, derived_bias, with_bias
from persona_circuits.persona.study.options import StudyOptions

__all__ = ["AXES", "NO_FRAMES", "NO_WORDINGS", "PASSES", "Context", "StudyFile", "StudyFiles", "axes_of", "some_of"]

AXES = ("contrast", "bias", "placement", "domain", "held_out", "prior_level")
PASSES = 4
"""So many times ``max_pairs`` where passes are plain: persistence, steering, patched heads."""
QUICK_PAIRS = 12
NO_FRAMES = "no pairs in frames; give a file of 'vary --frame' with --frames"
NO_WORDINGS = "no pairs in other wordings; give a file of 'pairs --variants --add-neutral' with --wordings"
OWNERS: Mapping[str, tuple[str, ...]] = {
    "wordings": ("causes", "prediction", "prior"),
    "prior": ("circuit", "gates"),
    "gate_edges": ("gates",),
    "gate_steps": ("gates",),
    "least_mass": (),
}
"""Files and options on which only these stages depend; all stages depend on the others."""


@dataclass(frozen=True)
class StudyFile:
    """A file of the study: where it lies, what results call it, its SHA-256, and what it held when it was read."""

    path: str
    label: str
    sha256: str
    content: bytes = field(repr=False, compare=False)

    def task(self) -> Task:
        """The pairs that it holds.

        Raises:
            TaskError: it is malformed; all faults are listed.
        """
        return task_of(self.content, self.path, label=self.label)

    @classmethod
    def at(cls, path: str, label: str | None = None) -> StudyFile:
        """The file of that path.

        Raises:
            TaskError: it cannot be read.
        """
        content = read_bytes(path, Kind("file", TaskError), label=label)
        return cls(path, label or path, hashlib.sha256(content).hexdigest(), content)


@dataclass(frozen=True)
class StudyFiles:
    """What is studied. ``pairs`` alone is needed; ``personas`` give probes their traits and wordings."""

    pairs: StudyFile
    controls: StudyFile | None = None
    variants: StudyFile | None = None
    prior: StudyFile | None = None
    personas: StudyFile | None = None
    frames: StudyFile | None = None
    wordings: StudyFile | None = None

    def as_dict(self) -> dict[str, dict[str, str] | None]:
        """Names and SHA-256, by role."""
        return {
            role: None if (file := getattr(self, role)) is None else {"source": file.label, "sha256": file.sha256}
            for role in (field.name for field in fields(self))
        }


class Context:
    """One study's model, files and options. What several stages need is computed once, when first asked for.

    Raises:
        TaskError: a pair file is malformed; all its faults are listed.
    """

    def __init__(
        self, model: Model, files: StudyFiles, options: StudyOptions, stage: Stage, work: Path | None = None
    ) -> None:
        self.model, self.files, self.options, self.stage, self.work = model, files, options, stage, work
        self.seconds: float | None = None
        self.task = files.pairs.task()
        without_forms(self.task.pairs, "study")
        self.whole = self.pairs = items_of(self.task, files.pairs.path)
        self.controls, self.variants = _items(files.controls), _items(files.variants)
        self.frames, self.wordings = _items(files.frames), _items(files.wordings)
        self.prior = None if files.prior is None else files.prior.task()
        self.personas: tuple[Persona, ...] = () if files.personas is None else read_personas(files.personas.path)
        if options.quick:
            self._take_few()

    def digest(self, stage: str) -> str:
        """What a finished stage depends on, as one SHA-256: model, files and options."""
        values = {name: value for name, value in asdict(self.options).items() if stage in OWNERS.get(name, (stage,))}
        files = {
            role: value if stage in OWNERS.get(role, (stage,)) else None for role, value in self.files.as_dict().items()
        }
        if files["wordings"] is None:  # what was run before there was such a file is still finished
            del files["wordings"]
        about = {"stage": stage, "model": self.model.fingerprint, "files": files, "options": values}
        return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()

    def kept(self, name: str) -> Path | None:
        """The file, or with a slash at its end the folder, in which a stopped stage keeps what it has done."""
        if self.work is None:
            return None
        path = self.work / name
        (path if name.endswith("/") else path.parent).mkdir(parents=True, exist_ok=True)
        return path

    @cached_property
    def studied(self) -> ItemFile:
        """The pairs that are asked and explained, held out where a split is named ``test``; with a derived bias."""
        return with_bias(self.pairs, self.bias).of_split(self.fitted_and_held_out[1])

    @cached_property
    def main(self) -> tuple[Item, ...]:
        """The pairs of the study itself, without controls."""
        return tuple(item for item in self.studied.items if item.control == "none")

    @cached_property
    def bias(self) -> DerivedBias | None:
        """High or low bias by line, where rows have neutral prompts and no bias of their own; else None."""
        return derived_bias(self.model, self.pairs, batch_size=self.options.batch_size, stage=self.stage)

    @property
    def draws(self) -> dict[str, int]:
        """Draws and seed of bootstraps and permutations."""
        return {"n_resamples": self.options.n_resamples, "seed": self.options.seed}

    @property
    def fitted_and_held_out(self) -> tuple[str, str]:
        """The splits to search and to measure on; ``all`` twice where none are named."""
        splits = self.task.splits
        fitted = "train" if "train" in splits else "all"
        return fitted, "test" if "test" in splits else "all"

    @cached_property
    def measures(self) -> tuple[PairMeasure, ...]:
        """What the model answers to every pair, followed by the controls."""
        controls = () if self.controls is None else self.controls.items
        items = [*self.studied.items, *(item for item in controls if item.control != "none")]
        how: dict[str, Any] = {"source": self.pairs.source, "batch_size": self.options.batch_size}
        return measure_pairs(self.model, items, progress=self.stage("asking"), **how)

    @cached_property
    def worded(self) -> tuple[PairMeasure, ...]:
        """What the model answers to the pairs in several wordings, and to their neutral prompts."""
        assert self.wordings is not None
        items = [item for item in self.wordings.items if item.control == "none"]
        how: dict[str, Any] = {"source": self.wordings.source, "batch_size": self.options.batch_size}
        return measure_pairs(self.model, items, progress=self.stage("asking in every wording"), **how)

    @cached_property
    def sigma_0(self) -> float | None:
        """The spread of D over paraphrases; None without any."""
        null = [m.divergence for m in self.measures if m.item.control == PARAPHRASE]
        return metrics.paraphrase_null(torch.tensor(null, dtype=torch.float64)).item() if null else None

    @cached_property
    def main_task(self) -> Task:
        """The pairs of all splits without controls, for circuits; with a derived bias among their keys."""
        items = with_bias(self.pairs, self.bias).items
        biases = {item.pair.line: item.axes.get("bias", "") for item in items if item.control == "none"}
        pairs = tuple(pair for pair in self.task.pairs if pair.line in biases)
        if self.bias is not None:
            pairs = tuple(replace(pair, axes=(*pair.axes, ("bias", biases[pair.line]))) for pair in pairs)
        return replace(self.task, pairs=pairs)

    @cached_property
    def plain_task(self) -> Task:
        """The pairs of ``main``, their parts found by comparing the prompts: before, contrast, after, last."""
        kept = {item.pair.line for item in self.main}
        pairs = tuple(pair.bare() for pair in self.task.pairs if pair.line in kept)
        return replace(self.task, pairs=pairs)

    def examples(self, split: str = "all") -> ExampleFile:
        """The prompts of the pair file, laid out for the model's tokenizer.

        Raises:
            TaskError: they do not fit it.
        """
        examples = examples_of(self.whole, self.model, split=split, personas=self.personas)
        return some_pairs(examples, 2 * QUICK_PAIRS) if self.options.quick else examples

    def _take_few(self) -> None:
        """A few pairs of every split, controls of every kind, and bases with all their variants."""
        self.pairs = _few(self.pairs, lambda item: item.pair.split or item.control, QUICK_PAIRS)
        lines = {item.pair.line for item in self.pairs.items}
        self.task = replace(self.task, pairs=tuple(pair for pair in self.task.pairs if pair.line in lines))
        if self.controls is not None:
            self.controls = _few(self.controls, lambda item: item.control, QUICK_PAIRS // 2)
        if self.variants is not None:
            self.variants = _few(self.variants, _variant, QUICK_PAIRS // 2)
        if self.frames is not None:
            self.frames = _few(self.frames, lambda item: (_variant(item), item.pair.split), QUICK_PAIRS // 2)
        if self.wordings is not None:
            self.wordings = _few(self.wordings, lambda item: item.persona_pair, QUICK_PAIRS // 2)
        if self.prior is not None:
            parts = [some_of(self.prior.of_split(name), QUICK_PAIRS // 2) for name in self.prior.splits or ("all",)]
            self.prior = replace(self.prior, pairs=tuple(pair for part in parts for pair in part.pairs))


def some_of(task: Task, n: int) -> Task:
    """At most ``n`` of a task's pairs, evenly taken."""
    return replace(task, pairs=tuple(evenly(task.pairs, n)))


def _variant(item: Item) -> object:
    return item.pair.row.get("variant")


def _items(file: StudyFile | None) -> ItemFile | None:
    return None if file is None else items_of(file.task(), file.path)


def _few(file: ItemFile, kind: Callable[[Item], object], n: int) -> ItemFile:
    """The first ``n`` rows of every kind, in the file's order."""
    seen: dict[object, int] = {}
    kept = []
    for item in file.items:
        name = kind(item)
        seen[name] = seen.get(name, 0) + 1
        if seen[name] <= n:
            kept.append(item)
    return replace(file, items=tuple(kept))


def axes_of(items: Sequence[Item]) -> dict[str, list[str]]:
    """The axes on which these pairs differ, each with its values: as ``AXES`` says, values in alphabetic order."""
    axes: dict[str, list[str]] = {}
    for axis in AXES:
        values = sorted({item.axes.get(axis, "") for item in items} - {""})
        if len(values) > 1:
            axes[axis] = values
    return axes
