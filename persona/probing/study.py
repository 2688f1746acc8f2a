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

A probe at chance does not show that the model has lost the persona; see arXiv:2102.12452.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from persona_circuits.circuit.model import Model
from persona_circuits.circuit.progress import Stage, untold_stage
from persona_circuits.persona.data import POSITIONS, Estimate, ExampleFile, Persona, shared_positions
from persona_circuits.persona.data.items import Item
from persona_circuits.persona.probing.fit import (
    balanced_accuracy,
    cross_validate,
    joined,
    mean_scores,
    predict_chosen,
    probe_directions,
    score,
)
from persona_circuits.persona.probing.folds import Sample
from persona_circuits.persona.probing.geometry import geometry_by_place
from persona_circuits.persona.probing.options import HOLD_OUTS, KINDS, ProbeOptions
from persona_circuits.persona.probing.results import ANSWER, Cell, Controls, ProbeStudy
from persona_circuits.persona.probing.targets import Data, Planned, Target, planned_probes

__all__ = ["study_probes"]


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

    Returns
    -------
    Accuracies by layer and position, with intervals and the null of permuted labels, and the geometry.

    Raises
    ------
    OptionError
        An option makes no sense, or nothing that was asked for can be held out in this file.
    """
    options, stage = (options or ProbeOptions()).checked(), stage or untold_stage
    everything = _together(found, test)
    positions = shared_positions(everything, options.positions)
    data = Data(model, everything, positions, personas, options, stage)
    notes: list[str] = []
    plan = planned_probes(data, len(found.examples), test is not None, notes)
    cells = _cells(data, plan, stage("fitting probes"))
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
    rest = tuple(cell for cell in cells if cell.kind != "trait")
    traits = tuple(cell for cell in cells if cell.kind == "trait")
    shown = tuple(sorted((*rest, *_mean_traits(traits, data)), key=lambda cell: _order(cell, positions)))
    return ProbeStudy(
        model=model.name,
        fingerprint=model.fingerprint,
        sources=tuple((item.source, item.sha256) for item in (found, test) if item is not None),
        options=options,
        n_layers=model.graph.n_layers,
        at=data.at,
        positions=positions,
        n_examples=len(data.examples),
        n_personas=len({item.persona for item in data.examples if item.persona}),
        n_questions=len(set(data.questions)),
        resampled=data.resampled,
        cells=shown,
        traits=traits,
        places=places,
        cka=cka,
        notes=(*notes, *_notes(data, shown)),
    )


def _cells(data: Data, plan: Sequence[Planned], progress: Callable[[int, int], None]) -> list[Cell]:
    """Every planned probe."""
    cells: list[Cell] = []
    for planned in plan:
        cells.append(_cell(data, planned))
        progress(len(cells), len(plan))
    return cells


def _together(file: ExampleFile, test: ExampleFile | None) -> ExampleFile:
    if test is None:
        return file
    moved = tuple(replace(example, pair=example.pair + len(file.items)) for example in test.examples)
    items: tuple[Item, ...] = (*file.items, *test.items)
    return ExampleFile(items, (*file.examples, *moved), f"{file.source} and {test.source}", file.sha256)


def _cell(data: Data, planned: Planned) -> Cell:
    target, folds, here = planned.target, planned.folds, planned.here
    settings: dict[str, Any] = {"penalty": data.options.penalty, "symmetric": target.symmetric}
    present, labels = np.unique(target.labels[here], return_inverse=True)
    labels = labels.astype(np.int64)
    layers = _layers(target, data.streams[:, :, data.positions.index(planned.position)], here)
    by_layer, chosen = cross_validate(layers, labels, folds, **settings)
    sample = data.sample_of(target.kind, planned.position)
    curve = tuple(score(predicted, sample, here) for predicted in by_layer)
    groups = data.groups(planned.hold_out, target.kind, planned.position)
    cell = Cell(
        target=target.name,
        kind=target.kind,
        hold_out=planned.hold_out,
        position=planned.position,
        n=int(sum(len(fold.test) for fold in folds)),
        n_classes=int(labels.max()) + 1,
        n_groups=len({groups[i] for i in here}),
        curve=curve,
        best=score(joined(by_layer, chosen), sample, here),
        layers=tuple(chosen),
        controls=_controls(data, planned, layers, labels, chosen),
        classes=tuple(target.classes[label] for label in present),
    )
    if target.symmetric:
        return cell
    return replace(cell, directions=probe_directions(layers[cell.layer], labels, penalty=data.options.penalty))


def _layers(
    target: Target, streams: Float[np.ndarray, "example point d_model"], here: Int[np.ndarray, " here"]
) -> list[Float[np.ndarray, "here d_model"]]:
    return [target.features(streams[:, point])[here] for point in range(streams.shape[1])]


def _controls(
    data: Data, planned: Planned, layers: Sequence[np.ndarray], labels: Int[np.ndarray, " here"], chosen: Sequence[int]
) -> Controls:
    target, folds, here, name = planned.target, planned.folds, planned.here, planned.position
    settings: dict[str, Any] = {"penalty": data.options.penalty, "symmetric": target.symmetric}
    rng, sample = np.random.default_rng(data.options.seed), data.sample_of(target.kind, name)
    types = [target.types[i] for i in here]
    repeats = []
    for _ in range(data.options.repeats):
        wrong = rng.permutation(labels), _random_by_type(types, labels, rng)
        repeats.append([balanced_accuracy(predict_chosen(layers, x, folds, chosen, **settings)) for x in wrong])
    shuffled, task = zip(*repeats, strict=True)
    dropped = None
    if data.bare is not None and name in data.without:
        bare = _layers(target, data.bare[:, :, data.without.index(name)], here)
        dropped = score(predict_chosen(bare, labels, folds, chosen, **settings), sample, here).balanced
    counted = predict_chosen([data.lengths()[here]], labels, folds, [0] * len(folds), penalty=data.options.penalty)
    length = score(counted, sample, here).balanced
    return Controls(_over_repeats(shuffled), _over_repeats(task), dropped, length)


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


def _mean_traits(cells: Sequence[Cell], data: Data) -> list[Cell]:
    """The mean over traits of every hold-out and position."""
    together: dict[tuple[str, str], list[Cell]] = {}
    for cell in cells:
        together.setdefault((cell.hold_out, cell.position), []).append(cell)
    return [_mean_cell(several, data.sample_of("trait", at)) for (_, at), several in together.items()]


def _mean_cell(cells: Sequence[Cell], sample: Sample) -> Cell:
    controls = [cell.controls for cell in cells]
    dropped = [control.dropped for control in controls if control.dropped is not None]
    return replace(
        cells[0],
        target="trait",
        n=sum(cell.n for cell in cells),
        n_targets=len(cells),
        curve=tuple(mean_scores(scored, sample) for scored in zip(*(cell.curve for cell in cells), strict=True)),
        best=mean_scores([cell.best for cell in cells], sample),
        layers=tuple(layer for cell in cells for layer in cell.layers),
        directions=None,
        controls=Controls(
            _mean_estimate([control.shuffled for control in controls]),
            _mean_estimate([control.task for control in controls]),
            _mean_estimate(dropped) if dropped else None,
            _mean_estimate([control.length for control in controls]),
        ),
    )


def _mean_estimate(several: Sequence[Estimate]) -> Estimate:
    """Means of values and of interval ends: wider than the interval of the mean."""
    ends = [[getattr(x, end) for x in several if getattr(x, end) is not None] for end in ("low", "high")]
    low, high = (float(np.mean(values)) if values else None for values in ends)
    return Estimate(float(np.mean([x.value for x in several])), low, high)


def _order(cell: Cell, positions: Sequence[str]) -> tuple[int, int, int]:
    return KINDS.index(cell.kind), HOLD_OUTS.index(cell.hold_out), positions.index(cell.position)


def _notes(data: Data, cells: Sequence[Cell]) -> list[str]:
    notes = [
        f"{position}: {len(rows)} prompts have {n} different streams there; a probe counts each once, in one of its "
        "folds; the geometry counts prompts"
        for position in data.positions
        if (n := len(set(rows := data.rows("trait", position)))) < len(rows)
    ]
    if not data.options.positions and len(data.positions) < len(POSITIONS):
        missing = ", ".join(name for name in POSITIONS if name not in data.positions)
        notes.append(f"not every prompt has such a place: {missing}")
    if data.file.uneven:
        notes.append(f"{data.file.uneven} of {len(data.file.items)} pairs have prompts of different length")
    if data.bare is None:
        notes.append("no control without the persona: its text was not found in every prompt")
    texts = {(example.persona, example.placed.persona) for example in data.examples}
    if len(texts) == len(set(data.personas)) and any(cell.kind == "identity" for cell in cells):
        notes.append("each persona has one wording: identity's control task is the probe itself, so selectivity is 0")
    notes += _leaks(cells, "length", "prompt length alone tells it")
    notes += _leaks(cells, "dropped", "it can be told without the persona's text")
    return notes


def _leaks(cells: Sequence[Cell], control: str, says: str) -> list[str]:
    """Controls whose whole interval is above chance."""
    largest: dict[tuple[str, str], float] = {}
    for cell in cells:
        estimate = getattr(cell.controls, control)
        if estimate is not None and estimate.low is not None and estimate.low > cell.chance:
            key = (cell.target, cell.hold_out)
            largest[key] = max(largest.get(key, 0.0), estimate.value)
    return [
        f"{target}, held out by {hold_out}: {says} (balanced accuracy {value:.2f})"
        for (target, hold_out), value in largest.items()
    ]
