"""What can be read off the residual stream, by layer and position: who the persona is, its traits, its preference.

    identity      which persona: one class each
    trait         which pole of a trait the persona has, a probe per trait; personas without it are left out
    preference    which of the pair's two answers the persona is to prefer. Answers differ between
                  questions, so the features are the stream times the direction in which the two
                  answers are read out, coordinate by coordinate: one probe serves all questions,
                  and the logit lens is the probe with equal weights

Held out, so that no group is on both sides: ``question``, ``template``, ``wording`` (of the
persona), ``persona`` (not for identity), and ``split``: fitted on the file's ``train`` pairs
(or the whole file) and tested on its ``test`` pairs (or those of a second file). Nor are
the two prompts of a pair on two sides.

Controls, asked with the same folds at the layers that the probe chose:

    shuffled      labels permuted among the prompts
    control task  a random label for every type (identity: persona's text; trait: persona;
                  preference: persona and question); selectivity = probe - control task, arXiv:1909.03368
    dropped       the same prompts without the persona's text, under the same labels
    length        token counts and places alone; anything above chance is a fault of the file

A probe at chance does not say that the model has lost the persona; see arXiv:2102.12452.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int

from circuit.errors import OptionError
from circuit.model import Model
from circuit.options import PlainNumbers
from persona.activations import Progress, collect, point_names
from persona.examples import ExampleFile, shared_positions
from persona.geometry import Place, geometry_by_place
from persona.items import Item
from persona.lens import read_out_direction
from persona.positions import POSITIONS, Placed, without_persona
from persona.probe_fit import (
    Fold,
    Scored,
    cross_validate,
    explicit_fold,
    folds_by_group,
    joined,
    mean_scores,
    predict_chosen,
    probe_directions,
    score,
    two_way_weights,
)
from persona.sources import Persona
from persona.statistics import Estimate

__all__ = ["HOLD_OUTS", "KINDS", "Cell", "Controls", "ProbeOptions", "ProbeStudy", "study_probes"]

KINDS = ("identity", "trait", "preference")
HOLD_OUTS = ("question", "template", "wording", "persona", "split")
ANSWER = "prompt-end"
Stage = Callable[[str], Progress]


@dataclass(frozen=True)
class ProbeOptions(PlainNumbers):
    """``targets``, ``hold_outs`` and ``positions``: all that the file has, if empty.

    ``every`` leaves out layers: every so many blocks, the first and the last point always.
    ``penalty`` is scikit-learn's C. ``repeats`` counts the shuffles, and the control tasks.
    """

    targets: tuple[str, ...] = ()
    hold_outs: tuple[str, ...] = ()
    positions: tuple[str, ...] = ()
    every: int = 1
    folds: int = 5
    penalty: float = 0.1
    repeats: int = 3
    n_resamples: int = 500
    batch_size: int = 32
    seed: int = 0

    def checked(self) -> ProbeOptions:
        """These options.

        Raises:
            OptionError: one of them makes no sense.
        """
        for option, given, known in (("targets", self.targets, KINDS), ("hold-out", self.hold_outs, HOLD_OUTS)):
            if unknown := [name for name in given if name not in known]:
                raise OptionError(f"--{option}: {unknown[0]!r} is not one of {', '.join(known)}")
        for option, value, least in (
            ("every", self.every, 1),
            ("folds", self.folds, 2),
            ("repeats", self.repeats, 1),
            ("n-resamples", self.n_resamples, 100),
            ("batch-size", self.batch_size, 1),
        ):
            if value < least:
                raise OptionError(f"--{option} must be at least {least}, got {value}")
        if not self.penalty > 0:
            raise OptionError(f"--penalty must be above 0, got {self.penalty:g}")
        return self


@dataclass(frozen=True)
class Controls:
    """Balanced accuracies; intervals of ``shuffled`` and ``task`` are the least and the most of the repeats.

    ``dropped`` is None at the persona's own end, which is not there without the persona.
    """

    shuffled: Estimate
    task: Estimate
    dropped: Estimate | None
    length: Estimate

    def selectivity(self, balanced: float) -> float:
        """How much better the probe is than one that could only learn each type's label by heart."""
        return balanced - self.task.value


@dataclass(frozen=True, eq=False)
class Cell:
    """One target, held out in one way, at one position.

    ``curve`` is by point. ``best`` joins the folds' predictions, each at the layer that was
    best on its training part; ``layers`` are those points, ``layer`` the most common of them.
    ``classes`` are the names of the labels. ``directions`` are the probe's at ``layer``, fitted
    on all examples; None for preference, whose weights are of products. ``n_targets`` is above
    one for the mean over traits.
    """

    target: str
    kind: str
    hold_out: str
    position: str
    n: int
    n_classes: int
    n_groups: int
    curve: tuple[Scored, ...]
    best: Scored
    layers: tuple[int, ...]
    controls: Controls
    classes: tuple[str, ...] = ()
    directions: Float[np.ndarray, "direction d_model"] | None = None
    n_targets: int = 1

    @property
    def layer(self) -> int:
        """The point that most folds chose, the first of equals."""
        return max(sorted(set(self.layers)), key=self.layers.count)

    @property
    def chance(self) -> float:
        """The balanced accuracy of guessing."""
        return 1.0 / self.n_classes


@dataclass(frozen=True, eq=False)
class ProbeStudy:
    """Everything that was measured.

    ``at`` says how many blocks have run at each point; cells and places count points by
    their index in it. ``cka`` is between all points of all positions, position by position.
    """

    model: str
    fingerprint: str
    sources: tuple[tuple[str, str], ...]
    options: ProbeOptions
    n_layers: int
    at: tuple[int, ...]
    positions: tuple[str, ...]
    n_examples: int
    n_personas: int
    n_questions: int
    cells: tuple[Cell, ...]
    traits: tuple[Cell, ...]
    places: tuple[Place, ...]
    cka: Float[np.ndarray, "place place"]
    notes: tuple[str, ...]

    @property
    def points(self) -> tuple[str, ...]:
        """The names of the points, ``embedding`` first."""
        names = point_names(self.n_layers)
        return tuple(names[point] for point in self.at)


@dataclass(frozen=True, eq=False)
class _Target:
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


def study_probes(
    model: Model,
    found: ExampleFile,
    *,
    test: ExampleFile | None = None,
    personas: Sequence[Persona] = (),
    options: ProbeOptions | None = None,
    stage: Stage | None = None,
) -> ProbeStudy:
    """Fit and test probes at every layer and named position, and measure the personas' geometry there.

    Parameters
    ----------
    found
        Of ``load_examples``, which has checked it against this model's tokenizer.
    test
        Prompts of a second file, to be held out as ``split``.
    personas
        Who has which traits; without them there are no trait probes.
    stage
        Called with what begins; gives the function that is told of progress.

    Raises
    ------
    OptionError
        An option makes no sense, or nothing that was asked for can be held out in this file.
    """
    options, stage = (options or ProbeOptions()).checked(), stage or _no_stage
    everything = _together(found, test)
    positions = shared_positions(everything, options.positions)
    data = _Data(model, everything, positions, personas, options, stage)
    notes: list[str] = []
    plan = _plan(data, len(found.examples), test is not None, notes)
    progress, cells = stage("fitting probes"), []
    total = len(plan) * len(positions)
    for target, hold_out, folds, here in plan:
        for position in range(len(positions)):
            cells.append(_cell(data, target, hold_out, folds, here, position))
            progress(len(cells), total)
    places, cka = geometry_by_place(
        data.streams,
        data.personas,
        data.questions,
        data.traits,
        answer=positions.index(ANSWER) if ANSWER in positions else None,
        n_permutations=options.n_resamples,
        seed=options.seed,
        progress=stage("geometry"),
    )
    own = tuple(cell for cell in cells if cell.kind != "trait")
    traits = tuple(cell for cell in cells if cell.kind == "trait")
    shown = tuple(sorted((*own, *_mean_traits(traits)), key=lambda cell: _order(cell, positions)))
    return ProbeStudy(
        model=model.name,
        fingerprint=model.fingerprint,
        sources=tuple((one.source, one.sha256) for one in (found, test) if one is not None),
        options=options,
        n_layers=model.graph.n_layers,
        at=data.at,
        positions=positions,
        n_examples=len(data.examples),
        n_personas=len({one.persona for one in data.examples if one.persona}),
        n_questions=len(set(data.questions)),
        cells=shown,
        traits=traits,
        places=places,
        cka=cka,
        notes=(*notes, *_notes(data, shown)),
    )


def _together(found: ExampleFile, test: ExampleFile | None) -> ExampleFile:
    if test is None:
        return found
    moved = tuple(replace(one, pair=one.pair + len(found.items)) for one in test.examples)
    items: tuple[Item, ...] = (*found.items, *test.items)
    return ExampleFile(items, (*found.examples, *moved), f"{found.source} and {test.source}", found.sha256)


class _Data:
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
        self.weights = two_way_weights(
            self.personas, self.questions, n_resamples=options.n_resamples, seed=options.seed
        )
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


_Planned = tuple[_Target, str, tuple[Fold, ...], Int[np.ndarray, " here"]]


def _plan(data: _Data, n_first: int, has_test: bool, notes: list[str]) -> list[_Planned]:
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
    data: _Data, target: _Target, hold_out: str, n_first: int, has_test: bool
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


def _sides(data: _Data, n_first: int, has_test: bool) -> tuple[np.ndarray, np.ndarray] | None:
    """Which examples are for fitting and which for testing; a prompt of both is for fitting only."""
    place = np.arange(len(data.examples))
    splits = np.array([one.split for one in data.examples])
    train, test = (place < n_first, place >= n_first) if has_test else (splits == "train", splits == "test")
    seen = {data.examples[i].placed.ids for i in np.flatnonzero(train)}
    test = test & ~np.array([one.placed.ids in seen for one in data.examples])
    return (train, test) if train.any() and test.any() else None


def _targets(data: _Data, kind: str, notes: list[str]) -> list[_Target]:
    if kind == "identity":
        if not all(one.persona for one in data.examples):
            notes.append("no identity probes: the file does not name its personas (persona_a, persona_b)")
            return []
        names, labels = np.unique(data.personas, return_inverse=True)
        texts = tuple(one.placed.persona for one in data.examples)
        return [_Target("identity", kind, labels.astype(np.int64), texts, tuple(names.tolist()))]
    return _trait_targets(data, notes) if kind == "trait" else [_preference(data)]


def _trait_targets(data: _Data, notes: list[str]) -> list[_Target]:
    names = sorted({trait for traits in data.traits.values() for trait in traits})
    found = []
    for name in names:
        values = np.array([data.traits.get(persona, {}).get(name, 0.0) for persona in data.personas])
        labels = np.where(values == 0, -1, (values > 0).astype(np.int64))
        people = [len({data.personas[i] for i in np.flatnonzero(labels == side)}) for side in (0, 1)]
        if min(people) >= 2:
            found.append(_Target(name, "trait", labels, tuple(data.personas), (f"not {name}", name)))
    if not found:
        notes.append("no trait probes: no trait has two personas on either side; give --personas with traits")
    return found


def _preference(data: _Data) -> _Target:
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
    return _Target("preference", "preference", labels, types, ("the other's answer", "its own answer"), directions)


def _cell(
    data: _Data, target: _Target, hold_out: str, folds: tuple[Fold, ...], here: Int[np.ndarray, " here"], position: int
) -> Cell:
    settings: dict[str, Any] = {"penalty": data.options.penalty, "symmetric": target.symmetric}
    kept, labels = np.unique(target.labels[here], return_inverse=True)
    labels = labels.astype(np.int64)
    layers = _layers(target, data.streams[:, :, position], here)
    by_layer, chosen = cross_validate(layers, labels, folds, **settings)
    weights = data.weights[:, here]
    curve = tuple(score(one, weights) for one in by_layer)
    n_groups = len({data.groups(hold_out)[i] for i in here})
    cell = Cell(
        target=target.name,
        kind=target.kind,
        hold_out=hold_out,
        position=data.positions[position],
        n=int(sum(len(fold.test) for fold in folds)),
        n_classes=int(labels.max()) + 1,
        n_groups=n_groups,
        curve=curve,
        best=score(joined(by_layer, chosen), weights),
        layers=tuple(chosen),
        controls=_controls(data, target, layers, labels, folds, chosen, here, position),
        classes=tuple(target.classes[label] for label in kept),
    )
    if target.symmetric:
        return cell
    return replace(cell, directions=probe_directions(layers[cell.layer], labels, penalty=data.options.penalty))


def _layers(
    target: _Target, streams: Float[np.ndarray, "example point d_model"], here: Int[np.ndarray, " here"]
) -> list[Float[np.ndarray, "here d_model"]]:
    return [target.features(streams[:, point])[here] for point in range(streams.shape[1])]


def _controls(
    data: _Data,
    target: _Target,
    layers: Sequence[np.ndarray],
    labels: Int[np.ndarray, " here"],
    folds: tuple[Fold, ...],
    chosen: Sequence[int],
    here: Int[np.ndarray, " here"],
    position: int,
) -> Controls:
    settings: dict[str, Any] = {"penalty": data.options.penalty, "symmetric": target.symmetric}
    weights, once = data.weights[:, here], data.weights[:1, here]
    rng = np.random.default_rng(data.options.seed)
    shuffled: list[float] = []
    task: list[float] = []
    for _ in range(data.options.repeats):
        for found, wrong in (
            (shuffled, rng.permutation(labels)),
            (task, _random_by_type([target.types[i] for i in here], labels, rng)),
        ):
            found.append(score(predict_chosen(layers, wrong, folds, chosen, **settings), once).balanced.value)
    name, dropped = data.positions[position], None
    if data.bare is not None and name in data.without:
        bare = _layers(target, data.bare[:, :, data.without.index(name)], here)
        dropped = score(predict_chosen(bare, labels, folds, chosen, **settings), weights).balanced
    counted = predict_chosen([data.lengths()[here]], labels, folds, [0] * len(folds), penalty=data.options.penalty)
    return Controls(_over_repeats(shuffled), _over_repeats(task), dropped, score(counted, weights).balanced)


def _random_by_type(
    types: Sequence[str], labels: Int[np.ndarray, " here"], rng: np.random.Generator
) -> Int[np.ndarray, " here"]:
    """One random label for every type, drawn as often as the labels are; every label occurs."""
    names, codes = np.unique(np.asarray(types, dtype=object).astype(str), return_inverse=True)
    needed = np.arange(int(labels.max()) + 1)[: len(names)]
    drawn = np.concatenate([needed, rng.choice(labels, size=len(names) - len(needed))])
    return rng.permutation(drawn)[codes]


def _over_repeats(values: Sequence[float]) -> Estimate:
    return Estimate(float(np.mean(values)), float(min(values)), float(max(values)))


def _mean_traits(cells: Sequence[Cell]) -> list[Cell]:
    """The mean over traits of every hold-out and position."""
    together: dict[tuple[str, str], list[Cell]] = {}
    for cell in cells:
        together.setdefault((cell.hold_out, cell.position), []).append(cell)
    return [_mean_cell(several) for several in together.values()]


def _mean_cell(cells: Sequence[Cell]) -> Cell:
    controls = [cell.controls for cell in cells]
    dropped = [one.dropped for one in controls if one.dropped is not None]
    return replace(
        cells[0],
        target="trait",
        n=sum(cell.n for cell in cells),
        n_targets=len(cells),
        curve=tuple(mean_scores(scored) for scored in zip(*(cell.curve for cell in cells), strict=True)),
        best=mean_scores([cell.best for cell in cells]),
        layers=tuple(layer for cell in cells for layer in cell.layers),
        directions=None,
        controls=Controls(
            _mean_estimate([one.shuffled for one in controls]),
            _mean_estimate([one.task for one in controls]),
            _mean_estimate(dropped) if dropped else None,
            _mean_estimate([one.length for one in controls]),
        ),
    )


def _mean_estimate(several: Sequence[Estimate]) -> Estimate:
    """Means of values and of ends: wider than the interval of the mean."""
    ends = [[getattr(one, end) for one in several if getattr(one, end) is not None] for end in ("low", "high")]
    low, high = (float(np.mean(values)) if values else None for values in ends)
    return Estimate(float(np.mean([one.value for one in several])), low, high)


def _order(cell: Cell, positions: Sequence[str]) -> tuple[int, int, int]:
    return KINDS.index(cell.kind), HOLD_OUTS.index(cell.hold_out), positions.index(cell.position)


def _notes(data: _Data, cells: Sequence[Cell]) -> list[str]:
    notes = []
    if not data.options.positions and len(data.positions) < len(POSITIONS):
        missing = ", ".join(name for name in POSITIONS if name not in data.positions)
        notes.append(f"not every prompt has such a place: {missing}")
    if data.found.uneven:
        notes.append(f"{data.found.uneven} of {len(data.found.items)} pairs have prompts of different length")
    if data.bare is None:
        notes.append("no control without the persona: its text was not found in every prompt")
    texts = {(one.persona, one.placed.persona) for one in data.examples}
    if len(texts) == len(set(data.personas)) and any(cell.kind == "identity" for cell in cells):
        notes.append("each persona has one wording: identity's control task is the probe itself, so selectivity is 0")
    notes += _leaks(cells, "length", "prompt length alone tells it")
    notes += _leaks(cells, "dropped", "it can be told without the persona's text")
    return notes


def _leaks(cells: Sequence[Cell], control: str, says: str) -> list[str]:
    """Controls whose whole interval is above chance."""
    found: dict[tuple[str, str], float] = {}
    for cell in cells:
        estimate = getattr(cell.controls, control)
        if estimate is not None and estimate.low is not None and estimate.low > cell.chance:
            key = (cell.target, cell.hold_out)
            found[key] = max(found.get(key, 0.0), estimate.value)
    return [
        f"{target}, held out by {hold_out}: {says} (balanced accuracy {value:.2f})"
        for (target, hold_out), value in found.items()
    ]


def _no_stage(name: str) -> Progress:
    return lambda done, total: None
