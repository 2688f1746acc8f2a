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
from persona_circuits.persona.data import ExampleFile, Persona, Placed, without_persona
from persona_circuits.persona.lens import read_out_direction
from persona_circuits.persona.probing.folds import Fold, Sample, explicit_fold, folds_by_group
from persona_circuits.persona.probing.options import HOLD_OUTS, KINDS, ProbeOptions
from persona_circuits.persona.streams import collect

__all__ = [
    "Data",
    "Target",
    "planned_probes",
]


@dataclass(frozen=True, eq=False)
class Target:
    """Labels of all examples, -1 where the question does not arise."""

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
        found: ExampleFile,
        positions: tuple[str, ...],
        personas: Sequence[Persona],
        options: ProbeOptions,
        stage: Stage,
    ) -> None:
        self.model, self.found, self.positions, self.options = model, found, positions, options
        self.examples = found.examples
        self.personas = [one.persona or f"pair {one.pair} {'AB'[not one.is_clean]}" for one in self.examples]
        self.questions = [one.question for one in self.examples]
        self.traits = {persona.name: persona.traits for persona in personas}
        draws = {"n_draws": options.n_resamples, "seed": options.seed}
        self.sample = Sample(self.personas, self.questions, **draws)
        self.of_questions = Sample([""] * len(self.examples), self.questions, **draws)
        n = model.graph.n_layers
        self.at = tuple(sorted({*range(0, n, options.every), n}))
        placed = [one.placed for one in self.examples]
        self.streams = _streams(model, placed, positions, self.at, options, stage("reading"))
        self.without = tuple(name for name in positions if name != "persona-end")
        every = (without_persona(one.placed, model) for one in self.examples)
        bare = [one for one in every if one is not None and set(self.without) <= set(one.places)]
        known = len(bare) == len(self.examples)
        self.bare = (
            _streams(model, bare, self.without, self.at, options, stage("reading without the persona"))
            if known and self.without
            else None
        )

    def sample_of(self, target: Target) -> Sample:
        """What is drawn; not the personas where they are the classes."""
        return self.of_questions if target.kind == "identity" else self.sample

    @property
    def resampled(self) -> str:
        """What intervals are drawn over, for people."""
        return (
            f"{self.sample.clusters.describe('prompts')}; of identity over "
            f"{self.of_questions.clusters.by.replace('pairs', 'prompts')} alone, since the personas are its classes"
        )

    def groups(self, hold_out: str) -> list[str]:
        """What no two folds share."""
        if hold_out == "persona":
            return self.personas
        return [str(getattr(one, hold_out)) for one in self.examples]

    def lengths(self) -> Float[np.ndarray, "example feature"]:
        """Token counts, and the places of the named positions: all that length could give away."""
        rows = [
            [len(one.placed.ids), one.placed.persona_tokens[1] - one.placed.persona_tokens[0]]
            + [one.placed.places[name] for name in self.positions]
            for one in self.examples
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
    """Every distinct prompt is run once."""
    keys = [(one.ids, tuple(one.places[name] for name in positions)) for one in placed]
    distinct = list(dict.fromkeys(keys))
    prompts, places = [ids for ids, _ in distinct], [where for _, where in distinct]
    values = collect(model, prompts, places, batch_size=options.batch_size, progress=progress).numpy()
    place = {key: i for i, key in enumerate(distinct)}
    return values[[place[key] for key in keys]][:, list(at)]


_Planned = tuple[Target, str, tuple[Fold, ...], Int[np.ndarray, " here"]]


def planned_probes(data: Data, n_first: int, has_test: bool, notes: list[str]) -> list[_Planned]:
    """What is to be fitted: target, hold-out, its folds, and the places of the examples that they count."""
    targets = [target for kind in data.options.targets or KINDS for target in _targets(data, kind, notes)]
    plan: list[_Planned] = []
    missing: dict[tuple[str, str], list[str]] = {}
    for hold_out in data.options.hold_outs or HOLD_OUTS:
        for target in targets:
            if hold_out == "persona" and target.kind == "identity":
                continue
            here, folds, why = _held_out(data, target, hold_out, n_first, has_test)
            if folds:
                plan.append((target, hold_out, folds, here))
            elif why and (hold_out in data.options.hold_outs or hold_out != "split"):
                missing.setdefault((hold_out, why), []).append(target.name)
    for (hold_out, why), names in missing.items():
        who = "" if len(names) == len(targets) else f" ({', '.join(names)})"
        notes.append(f"not held out by {hold_out}: {why}{who}")
    if not plan:
        raise OptionError("no probe can be fitted: " + "; ".join(notes or ["the file has too few prompts"]))
    return plan


def _held_out(
    data: Data, target: Target, hold_out: str, n_first: int, has_test: bool
) -> tuple[Int[np.ndarray, " here"], tuple[Fold, ...], str]:
    """The examples that count, their folds (as places among those), or why there are none."""
    groups = np.asarray(data.groups(hold_out), dtype=object)
    if hold_out == "split":
        sides = _sides(data, n_first, has_test)
        if sides is None:
            return np.arange(0), (), "the file names no train and test split; give --test-pairs"
        groups = np.where(sides[0], "train", np.where(sides[1], "test", ""))
    here = np.flatnonzero((target.labels >= 0) & (groups != ""))
    # A class of one group would be tested without having been seen.
    apart = {label: set(groups[here[target.labels[here] == label]]) for label in np.unique(target.labels[here])}
    here = here[[len(apart[label]) > 1 for label in target.labels[here]]] if len(here) else here
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


def _sides(data: Data, n_first: int, has_test: bool) -> tuple[np.ndarray, np.ndarray] | None:
    """Which examples are for fitting and which for testing; a prompt of both is for fitting only."""
    place = np.arange(len(data.examples))
    splits = np.array([one.split for one in data.examples])
    train, test = (place < n_first, place >= n_first) if has_test else (splits == "train", splits == "test")
    seen = {data.examples[i].placed.ids for i in np.flatnonzero(train)}
    test = test & ~np.array([one.placed.ids in seen for one in data.examples])
    return (train, test) if train.any() and test.any() else None


def _targets(data: Data, kind: str, notes: list[str]) -> list[Target]:
    if kind == "identity":
        if not all(one.persona for one in data.examples):
            notes.append("no identity probes: the file does not name its personas (persona_a, persona_b)")
            return []
        names, labels = np.unique(data.personas, return_inverse=True)
        texts = tuple(one.placed.persona for one in data.examples)
        return [Target("identity", kind, labels.astype(np.int64), texts, tuple(names.tolist()))]
    return _trait_targets(data, notes) if kind == "trait" else [_preference(data)]


def _trait_targets(data: Data, notes: list[str]) -> list[Target]:
    names = sorted({trait for traits in data.traits.values() for trait in traits})
    found = []
    for name in names:
        values = np.array([data.traits.get(persona, {}).get(name, 0.0) for persona in data.personas])
        labels = np.where(values == 0, -1, (values > 0).astype(np.int64))
        people = [len({data.personas[i] for i in np.flatnonzero(labels == side)}) for side in (0, 1)]
        if min(people) >= 2:
            found.append(Target(name, "trait", labels, tuple(data.personas), (f"not {name}", name)))
    if not found:
        notes.append("no trait probes: no trait has two personas on either side; give --personas with traits")
    return found


def _preference(data: Data) -> Target:
    first, second = (
        [one.answers if one.is_clean == side else one.others for one in data.examples] for side in (True, False)
    )
    width = max(map(len, (*first, *second)))
    tables = [
        torch.tensor([[*ids, *[-1] * (width - len(ids))] for ids in side], device=data.model.device)
        for side in (first, second)
    ]
    size = data.options.batch_size
    parts = [read_out_direction(data.model, *(t[i : i + size] for t in tables)) for i in range(0, len(first), size)]
    directions = torch.cat(parts).double().cpu().numpy()
    labels = np.array([int(one.is_clean) for one in data.examples])
    types = tuple(f"{who} {question}" for who, question in zip(data.personas, data.questions, strict=True))
    return Target("preference", "preference", labels, types, ("the other's answer", "its own answer"), directions)
