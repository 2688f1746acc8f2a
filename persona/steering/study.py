"""Steering: a direction added to the residual stream, what it does to preferences, and what it breaks.

With strength s and a pair's direction v, persona A's prompt gets s v and persona B's -s v:

    D(s)    margin of A's prompt minus margin of B's; D(0) is the model as it is
    gain    D(s) / D(0)
    b(s)    the mean of both margins: what s moves besides the persona's effect
    parted  A's margin above zero and B's below it: the two personas answer differently
    KL      KL(model || steered model) of the next token of neutral prompts, at the output, s and -s

For its two answers to differ a pair needs the gain g* = 2 |b| / |D|: below 1 they differ by themselves. Steering
that acts on the persona's effect alone leaves b where it is, and then a pair's answers differ exactly
where its own gain D(s)/D(0) is above its g*. The share of pairs for which that is true is
reported; it can fail.

Beside every direction stand controls of the same length, drawn at random and drawn with the
covariance of the model's own activity. Ablation takes the direction out of the stream after
every block from the layer on (arXiv:2406.11717).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from persona_circuits.circuit.errors import OptionError
from persona_circuits.circuit.model import Model
from persona_circuits.circuit.progress import Progress, untold
from persona_circuits.persona.data import ExampleFile, told_once
from persona_circuits.persona.lens import read_out_direction
from persona_circuits.persona.steering.options import SteerOptions
from persona_circuits.persona.steering.passes import steered_logits, steered_prompts
from persona_circuits.persona.steering.results import Margins, Measured, Outcome, SteeredPrompts, SteeringStudy, Vectors
from persona_circuits.persona.steering.runs import Named, Run, enter
from persona_circuits.persona.streams import id_table
from persona_circuits.persona.vectors import Directions, controls, find_directions, prompt_end_streams

__all__ = ["study_steering", "unsteered"]


def study_steering(
    model: Model,
    steered: ExampleFile,
    fitting: ExampleFile,
    kind: str,
    options: SteerOptions,
    *,
    toward: tuple[str, str] | None = None,
    neutral: Sequence[str] = (),
    progress: Progress | None = None,
) -> SteeringStudy:
    """Fit directions on one set of pairs, steer another, and measure.

    Parameters
    ----------
    kind, toward
        As for ``find_directions``.
    neutral
        Prompts for the KL; without them every pair's own prompt with the persona taken out.

    Returns
    -------
    Margins, gains and KL for every strength and direction, beside controls.

    Raises
    ------
    OptionError
        An option is out of range or a direction cannot be.
    TaskError
        Nothing can be fitted, or there is no neutral prompt.
    """
    options = options.checked()
    if beyond := [layer for layer in options.layers if not 0 <= layer < model.graph.n_layers]:
        raise OptionError(f"layer {beyond[0]} is not one of 0 to {model.graph.n_layers - 1}")
    prompts, at = steered_prompts(steered, model, neutral, position=options.fitted_at), options.fitted_at
    size, repeats = options.batch_size, told_once(fitting, options.fitted_at)
    held_out = kind != "pair" and not _shared_prompts(steered, fitting)
    fitting = fitting.once(at)
    read = partial(prompt_end_streams, model, position=at, batch_size=size)
    streams = read(fitting.examples)
    steered_streams = streams if fitting is steered else read(steered.examples)
    readouts = (_readouts(model, fitting), _readouts(model, steered)) if kind == "readout" else None
    settings: dict[str, Any] = {"toward": toward, "readouts": readouts, "fingerprint": model.fingerprint}
    directions = find_directions(kind, fitting.examples, streams, steered.examples, steered_streams, **settings)
    plain, reference = unsteered(model, prompts, size)
    groups, named = _named_by_layers(directions, streams, options)
    run = Run(model, prompts, options, plain, reference, progress or untold, len(groups), len(named))
    measured, outcomes = _swept(run, named)
    bounds = run.bounds(named, measured)
    if options.ablate:
        outcomes += run.ablations(named)
    return SteeringStudy(
        model=model.name,
        fingerprint=model.fingerprint,
        options=options,
        directions=directions,
        prompts=prompts,
        ids=tuple(item.pair.id for item in steered.items),
        first_personas=tuple(example.persona for example in steered.examples[::2]),
        streams=streams,
        plain=plain,
        outcomes=tuple(outcomes),
        bounds=tuple(bounds),
        margins={
            _name(layers): np.stack([m.margins(sign) for sign in (-1, 1) for m in each[::sign]])
            for layers, each in measured.items()
        },
        kl={_name(layers): np.stack([m.kl for m in each]) for layers, each in measured.items()},
        held_out=held_out,
        notes=(*repeats, *_notes(directions, held_out)),
    )


def _named_by_layers(
    directions: Directions, streams: Float[np.ndarray, "example layer d_model"], options: SteerOptions
) -> tuple[list[tuple[int, ...]], list[tuple[tuple[int, ...], Named]]]:
    """Which layers are steered at once, and the direction and its controls for each of these."""
    groups: list[tuple[int, ...]] = [options.layers] if options.together else [(layer,) for layer in options.layers]
    return groups, [
        (layers, item)
        for layers in groups
        for item in _named({layer: directions.vectors[:, layer] for layer in layers}, streams, options)
    ]


def _swept(
    run: Run, named: Sequence[tuple[tuple[int, ...], Named]]
) -> tuple[dict[tuple[int, ...], list[Measured]], list[Outcome]]:
    """Every direction at every strength: the direction's own measurements by layers, and the outcomes of all."""
    strengths = run.options.strengths
    swept = run.measure([(item.vectors, s) for _, item in named for s in strengths])
    steps = len(strengths)
    of_each = [swept[i * steps : (i + 1) * steps] for i in range(len(named))]
    by_layers = {layers: measures for (layers, item), measures in zip(named, of_each, strict=True) if item.draw < 0}
    outcomes = [
        outcome
        for (layers, item), measures in zip(named, of_each, strict=True)
        for outcome in run.outcomes(layers, item, measures)
    ]
    return by_layers, outcomes


def _name(layers: tuple[int, ...]) -> str:
    return "+".join(map(str, layers))


def _named(vectors: Vectors, streams: Float[np.ndarray, "example layer d_model"], options: SteerOptions) -> list[Named]:
    """The direction, and every control with a vector of its own after each layer."""
    by_layer = {
        layer: controls(direction, streams[:, layer], n=options.n_controls, seed=options.seed * 1000 + layer)
        for layer, direction in vectors.items()
    }
    return [Named("direction", -1, vectors)] + [
        Named(kind, draw, {layer: drawn[kind][draw] for layer, drawn in by_layer.items()})
        for kind in next(iter(by_layer.values()))
        for draw in range(options.n_controls)
    ]


def unsteered(model: Model, prompts: SteeredPrompts, batch_size: int) -> tuple[Margins, Float[Tensor, "pair vocab"]]:
    """Margins of both sides, and the neutral prompts' logits, computed as the steered ones are."""
    n = len(prompts)
    margins, reference = np.empty((1, 2, n)), None
    for cells, logits in steered_logits(model, prompts.all, 1, lambda _: {}, only_last=True, batch_size=batch_size):
        if reference is None:
            reference = logits.new_empty((n, logits.shape[-1]), dtype=torch.float32)
        neutral = [place for place, (_, i) in enumerate(cells) if i < n]
        reference[[cells[place][1] for place in neutral]] = logits[neutral].float()
        enter(cells, logits, prompts, None, margins, np.empty((1, n)))
    assert reference is not None, "there is a pair"
    return margins[0], reference


def _readouts(model: Model, file: ExampleFile) -> Float[np.ndarray, "pair d_model"]:
    """The direction, of length one, in which each pair's two answers are read out, A's minus B's."""
    sides = [id_table([x.sides[turn] for x in file.examples[::2]]).to(model.device) for turn in (0, 1)]
    return read_out_direction(model, *sides).double().cpu().numpy()


def _shared_prompts(first: ExampleFile, second: ExampleFile) -> bool:
    return bool({x.placed.text for x in first.examples} & {x.placed.text for x in second.examples})


def _notes(directions: Directions, held_out: bool) -> tuple[str, ...]:
    notes = list(directions.notes)
    if not held_out and directions.kind != "pair":
        notes.append("not held out: directions were fitted on prompts that are steered")
    return tuple(notes)
