"""What probes are to read, and what is held out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int

from persona_circuits.circuit.errors import OptionError
from persona_circuits.circuit.model import Model
from persona_circuits.circuit.progress import Progress, Stage
from persona_circuits.persona.data import ExampleFile, Persona, Placed, seen, without_persona
from persona_circuits.persona.lens import read_out_direction
from persona_circuits.persona.probing.folds import Fold, Sample, explicit_fold, folds_by_group
from persona_circuits.persona.probing.options import HOLD_OUTS, KINDS, ProbeOptions
from persona_circuits.persona.streams import collect, id_table

__all__ = ["Data", "Planned", "Target", "planned_probes"]


@dataclass(frozen=True, eq=False)
class Target:
    """Labels of all examples, -1 where the target does not apply."""

    name: str
    kind: str
    labels: Int[np.ndarray, " example"]
    types: tuple[str, ...]
    classes: tuple[str, ...]
    directions: Float[np.ndarray, "example d_model"] | None = None

    def features(self, streams: Float[np.ndarray, "example d_model"]) -> Float[np.ndarray, "example d_model"]:
        x = streams.astype(np.float64)
        return x if self.directions is None else x * self.directions

    @property
    def symmetric(self) -> bool:
        return self.directions is not None


class Data:
    """All examples with their streams, with and without the persona's text, and what stands for them as groups."""

    def __init__(
        self,
        model: Model,
        file: ExampleFile,
        positions: tuple[str, ...],
        personas: Sequence[Persona],
        options: ProbeOptions,
        stage: Stage,
    ) -> None:
        self.model, self.file, self.positions, self.options = model, file, positions, options
        self.examples = file.examples
        self.personas = [item.persona or f"pair {item.pair} {'AB'[not item.is_clean]}" for item in self.examples]
        self.questions = [item.question for item in self.examples]
        self.traits = {persona.name: persona.traits for persona in personas}
        self._samples: dict[tuple[str, str], Sample] = {}
        n = model.graph.n_layers
        self.at = tuple(sorted({*range(0, n, options.every), n}))
        placed = [item.placed for item in self.examples]
        self.streams = _streams(model, placed, positions, self.at, options, stage("reading"))
        self.without = tuple(name for name in positions if name != "persona-end")
        every = (without_persona(item.placed, model) for item in self.examples)
        bare = [item for item in every if item is not None and set(self.without) <= set(item.places)]
        known = len(bare) == len(self.examples)
        self.bare = (
            _streams(model, bare, self.without, self.at, options, stage("reading without the persona"))
            if known and self.without
            else None
        )

    def sample_of(self, kind: str, position: str) -> Sample:
        """The clusters to resample; not the personas where they are the classes."""
        if (key := (kind, position)) not in self._samples:
            clusters = [""] * len(self.examples) if kind == "identity" else self.personas
            draws = {"n_draws": self.options.n_resamples, "seed": self.options.seed}
            self._samples[key] = Sample(clusters, self.groups("question", kind, position), **draws)
        return self._samples[key]

    @property
    def resampled(self) -> str:
        """What intervals are resampled over, in words."""
        both, questions = (self.sample_of(kind, self.positions[-1]).clusters for kind in ("trait", "identity"))
        return (
            f"{both.describe('prompts')}; of identity over {questions.by.replace('pairs', 'prompts')} alone, since the "
            "personas are its classes"
        )

    def rows(self, kind: str, position: str) -> list[int]:
        """For every example, the first with the same features: its prompt is the same up to the position."""
        keys = [(seen(x.placed, position), x.sides if kind == "preference" else ()) for x in self.examples]
        first: dict[object, int] = {}
        return [first.setdefault(key, i) for i, key in enumerate(keys)]

    def groups(self, hold_out: str, kind: str, position: str) -> list[str]:
        """The group of every example; features that occur in several groups form a group of their own."""
        labels = self.personas if hold_out == "persona" else [str(getattr(x, hold_out)) for x in self.examples]
        names: dict[int, set[str]] = {}
        rows = self.rows(kind, position)
        for row, name in zip(rows, labels, strict=True):
            names.setdefault(row, set()).add(name)
        return [name if len(names[row]) == 1 else f"prompts like {row}" for row, name in zip(rows, labels, strict=True)]

    def lengths(self) -> Float[np.ndarray, "example feature"]:
        """Token counts and the indices of the named positions: everything that length could give away."""
        rows = [
            [len(example.placed.ids), example.placed.persona_tokens[1] - example.placed.persona_tokens[0]]
            + [example.placed.places[name] for name in self.positions]
            for example in self.examples
        ]
        return np.array(rows, dtype=np.float64)


def _streams(
    model: Model,
    placed: Sequence[Placed],
    positions: Sequence[str],
    at: Sequence[int],
    options: ProbeOptions,
    progress: Progress,
) -> Float[np.ndarray, "example point position d_model"]:
    """The streams of all prompts; every distinct one is run once."""
    keys = [(prompt.ids, tuple(prompt.places[name] for name in positions)) for prompt in placed]
    distinct = list(dict.fromkeys(keys))
    prompts, places = [ids for ids, _ in distinct], [where for _, where in distinct]
    values = collect(model, prompts, places, batch_size=options.batch_size, progress=progress).numpy()
    place = {key: i for i, key in enumerate(distinct)}
    return values[[place[key] for key in keys]][:, list(at)]


@dataclass(frozen=True, eq=False)
class Planned:
    """A probe that is to be fitted: its folds, and the places of the examples that they count."""

    target: Target
    hold_out: str
    position: str
    folds: tuple[Fold, ...]
    here: Int[np.ndarray, " here"]


def planned_probes(data: Data, n_first: int, has_test: bool, notes: list[str]) -> list[Planned]:
    """All probes to fit; why others cannot be fitted is added to ``notes``."""
    targets = [target for kind in data.options.targets or KINDS for target in _targets(data, kind, notes)]
    plan: list[Planned] = []
    missing: dict[tuple[str, str], dict[str, list[str]]] = {}
    for hold_out in data.options.hold_outs or HOLD_OUTS:
        for target in targets:
            if hold_out == "persona" and target.kind == "identity":
                continue
            for position in data.positions:
                here, folds, why = _held_out(data, target, hold_out, position, n_first if has_test else None)
                if folds:
                    plan.append(Planned(target, hold_out, position, folds, here))
                elif why and (hold_out in data.options.hold_outs or hold_out != "split"):
                    missing.setdefault((hold_out, why), {}).setdefault(target.name, []).append(position)
    for (hold_out, why), names in missing.items():
        which = "" if len(names) == len(targets) else f" ({', '.join(names)})"
        where = [name for name in data.positions if any(name in at for at in names.values())]
        at = "" if len(where) == len(data.positions) else f" at {', '.join(where)}"
        notes.append(f"not held out by {hold_out}{at}: {why}{which}")
    if not plan:
        raise OptionError("no probe can be fitted: " + "; ".join(notes or ["the file has too few prompts"]))
    return plan


def _held_out(
    data: Data, target: Target, hold_out: str, position: str, n_first: int | None
) -> tuple[Int[np.ndarray, " here"], tuple[Fold, ...], str]:
    """The examples that count, their folds (as places among those), or why there are none."""
    rows = np.array(data.rows(target.kind, position))
    if hold_out != "split":
        groups = np.asarray(data.groups(hold_out, target.kind, position), dtype=object)
    else:
        sides = _sides(data, n_first, position)
        if sides is None:
            return np.arange(0), (), "the file names no train and test split; give --test-pairs"
        groups = np.where(sides[0], "train", np.where(sides[1], "test", ""))
    here = np.flatnonzero((target.labels >= 0) & (groups != ""))
    here = here[np.sort(np.unique(rows[here], return_index=True)[1])]
    # A class of one group would be tested without having been seen.
    groups_of = {label: set(groups[here[target.labels[here] == label]]) for label in np.unique(target.labels[here])}
    here = here[[len(groups_of[label]) > 1 for label in target.labels[here]]] if len(here) else here
    if len(set(target.labels[here].tolist())) < 2:
        kinds = len(set(groups[target.labels >= 0].tolist()))
        return (
            here,
            (),
            f"there is only one {hold_out}" if kinds < 2 else f"fewer than two classes are in two {hold_out}s",
        )
    questions, pairs = [data.questions[i] for i in here], [data.examples[i].pair for i in here]
    if hold_out == "split":
        fit, held = (np.flatnonzero(groups[here] == name).tolist() for name in ("train", "test"))
        return here, explicit_fold(fit, held, questions, pairs), ""
    return here, folds_by_group(groups[here].tolist(), pairs, questions, n_outer=data.options.folds), ""


def _sides(data: Data, n_first: int | None, position: str) -> tuple[np.ndarray, np.ndarray] | None:
    """Which examples are for fitting and which for testing; a prompt of both, so far, is for fitting only."""
    place = np.arange(len(data.examples))
    splits = np.array([example.split for example in data.examples])
    train, test = (splits == "train", splits == "test") if n_first is None else (place < n_first, place >= n_first)
    prompts = [seen(example.placed, position) for example in data.examples]
    known = {prompts[i] for i in np.flatnonzero(train)}
    test = test & ~np.array([prompt in known for prompt in prompts])
    return (train, test) if train.any() and test.any() else None


def _targets(data: Data, kind: str, notes: list[str]) -> list[Target]:
    if kind == "identity":
        if not all(example.persona for example in data.examples):
            notes.append("no identity probes: the file does not name its personas (persona_a, persona_b)")
            return []
        names, labels = np.unique(data.personas, return_inverse=True)
        texts = tuple(example.placed.persona for example in data.examples)
        return [Target("identity", kind, labels.astype(np.int64), texts, tuple(names.tolist()))]
    return _trait_targets(data, notes) if kind == "trait" else [_preference(data)]


def _trait_targets(data: Data, notes: list[str]) -> list[Target]:
    names = sorted({trait for traits in data.traits.values() for trait in traits})
    targets = []
    for name in names:
        values = np.array([data.traits.get(persona, {}).get(name, 0.0) for persona in data.personas])
        labels = np.where(values == 0, -1, (values > 0).astype(np.int64))
        people = [len({data.personas[i] for i in np.flatnonzero(labels == side)}) for side in (0, 1)]
        if min(people) >= 2:
            targets.append(Target(name, "trait", labels, tuple(data.personas), (f"not {name}", name)))
    if not targets:
        notes.append("no trait probes: no trait has two personas on either side; give --personas with traits")
    return targets


def _preference(data: Data) -> Target:
    sides = list(zip(*(example.sides for example in data.examples), strict=True))
    width = max(len(ids) for side in sides for ids in side)
    tables = [id_table(side, width=width).to(data.model.device).split(data.options.batch_size) for side in sides]
    parts = [read_out_direction(data.model, *batch) for batch in zip(*tables, strict=True)]
    directions = torch.cat(parts).double().cpu().numpy()
    labels = np.array([int(example.is_clean) for example in data.examples])
    types = tuple(f"{persona} {question}" for persona, question in zip(data.personas, data.questions, strict=True))
    return Target("preference", "preference", labels, types, ("the other's answer", "its own answer"), directions)
