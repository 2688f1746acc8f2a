"""What a steered model says: the same prompts and random numbers, before and after.

Persona B's prompt and the neutral prompt of a pair are steered towards A. Readability is
the unsteered model's own: the perplexity that it has on the text, and how much of it is
repeated. A vector that breaks the model shows in both, whatever it does to preferences.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch

from persona_circuits.circuit.model import Model
from persona_circuits.circuit.progress import Progress
from persona_circuits.persona.responses import (
    Said,
    Sampling,
    SpokenTokens,
    continuations,
    log_likelihoods,
    perplexity,
    repetition,
)
from persona_circuits.persona.steering.passes import added, evenly
from persona_circuits.persona.steering.results import SteeringStudy
from persona_circuits.persona.streams import Change, grouped, on_streams
from persona_circuits.persona.vectors import controls

__all__ = ["Generation", "Readability", "generate_steered", "readability", "steered_layers"]

PLAIN = "unsteered"


@dataclass(frozen=True)
class Generation:
    """One continuation. ``kind`` is ``B`` or ``neutral``; ``control`` is ``unsteered``, ``direction`` or ``random``.

    ``perplexity`` is the unsteered model's, ``repetition`` the share of trigrams that occurred
    before; nan where the text is too short. ``changed``: it is not the unsteered text. ``question`` and
    ``persona_text`` are what was asked and what is said of the persona steered to: ``rate`` reads them.
    """

    pair: str
    kind: str
    toward: str
    control: str
    strength: float
    layers: tuple[int, ...]
    prompt: str
    text: str
    n_tokens: int
    finish: str
    perplexity: float
    repetition: float
    changed: bool
    question: str
    persona_text: str


@dataclass(frozen=True)
class Readability:
    """The generations of one control and strength: medians and means over those that have a number, None without."""

    control: str
    strength: float
    n: int
    tokens: float
    ended: float
    perplexity: float | None
    repetition: float | None
    changed: float


def steered_layers(study: SteeringStudy) -> tuple[int, ...]:
    """The layers whose gain at the KL bound is largest: where text is generated."""
    return max(study.bounds, key=lambda bound: bound.outcome.gain).layers


def generate_steered(
    model: Model,
    study: SteeringStudy,
    streams: np.ndarray,
    *,
    n_pairs: int,
    sampling: Sampling,
    strengths: Sequence[float] = (),
    progress: Progress | None = None,
) -> tuple[Generation, ...]:
    """Continue the prompts of ``n_pairs`` pairs, evenly taken, unsteered, steered, and with a random control.

    Parameters
    ----------
    streams
        ``[example, layer, d_model]``, for the control.
    strengths
        Without them the largest within the KL bound and the largest of the sweep.
    """
    layers = steered_layers(study)
    bound = next(item for item in study.bounds if item.layers == layers)
    used = tuple(sorted(set(strengths or (bound.strength, study.options.strengths[-1]))))
    directions = {layer: study.directions.vectors[:, layer] for layer in layers}
    random = {
        layer: controls(each, streams[:, layer], n=1, seed=study.options.seed * 1000 + layer)["random"][0]
        for layer, each in directions.items()
    }
    plan = [
        (PLAIN, 0.0, directions),
        *((name, s, each) for s in used for name, each in (("direction", directions), ("random", random))),
    ]
    chosen = evenly(range(len(study.prompts)), n_pairs)
    prompts = [(i, "B", study.prompts.sides[1][i]) for i in chosen]
    prompts += [(i, "neutral", study.prompts.neutral[i]) for i in chosen]
    said: dict[tuple[int, int], Said] = {}
    for turn, (_, strength, vectors) in enumerate(plan):
        for group in grouped([len(ids) for _, _, ids in prompts], study.options.batch_size):
            rows = {
                layer: torch.from_numpy(strength * each[[prompts[k][0] for k in group]])
                for layer, each in vectors.items()
            }
            places = [study.prompts.place(prompts[k][0], prompts[k][1] == "B") for k in group]
            changes = added(rows, study.options.positions, places) if strength else {}
            texts = continuations(
                model,
                [prompts[k][2] for k in group],
                sampling,
                keys=[f"{sampling.seed} {prompts[k][0]} {prompts[k][1]}" for k in group],
                changed=partial(_changed, model, changes, study.options.named),
            )
            said |= {(turn, k): continuation for k, continuation in zip(group, texts, strict=True)}
        if progress is not None:
            progress(turn + 1, len(plan))
    return _generations(model, study, layers, plan, prompts, said)


def readability(generations: Sequence[Generation]) -> tuple[Readability, ...]:
    """A summary per control and strength, in order of appearance."""
    groups: dict[tuple[str, float], list[Generation]] = {}
    for generation in generations:
        groups.setdefault((generation.control, generation.strength), []).append(generation)
    return tuple(
        Readability(
            control,
            strength,
            len(rows),
            float(np.mean([generation.n_tokens for generation in rows])),
            float(np.mean([generation.finish == "stop" for generation in rows])),
            _finite([generation.perplexity for generation in rows], np.median),
            _finite([generation.repetition for generation in rows], np.mean),
            float(np.mean([generation.changed for generation in rows])),
        )
        for (control, strength), rows in groups.items()
    )


def _changed(model: Model, changes: Mapping[int, Change], named: bool, first: int) -> AbstractContextManager[None]:
    """The changes of one pass; a named token is in the prompt, so it is changed in the first pass only."""
    return on_streams(model, {} if named and first else changes)


def _generations(
    model: Model,
    study: SteeringStudy,
    layers: tuple[int, ...],
    plan: Sequence[tuple[str, float, Mapping[int, np.ndarray]]],
    prompts: Sequence[tuple[int, str, tuple[int, ...]]],
    said: Mapping[tuple[int, int], Said],
) -> tuple[Generation, ...]:
    order = [(turn, k) for k in range(len(prompts)) for turn in range(len(plan))]
    rows = [SpokenTokens((*prompts[k][2], *said[turn, k].ids), len(prompts[k][2])) for turn, k in order]
    values = log_likelihoods(model, rows, batch_size=study.options.batch_size)
    results = []
    for (turn, k), row, likely in zip(order, rows, values, strict=True):
        (i, kind, _), text, (control, strength, _) = prompts[k], said[turn, k], plan[turn]
        results.append(
            Generation(
                pair=study.ids[i],
                kind=kind,
                toward=study.first_personas[i],
                control=control,
                strength=strength,
                layers=layers,
                prompt=study.prompts.texts[kind == "B"][i],
                text=text.text,
                n_tokens=len(text.ids),
                finish=text.finish,
                perplexity=perplexity(likely),
                repetition=repetition(row.ids[row.start :]),
                changed=text.ids != said[0, k].ids,
                question=study.prompts.said[i][1],
                persona_text=study.prompts.said[i][0],
            )
        )
    return tuple(results)


def _finite(values: Sequence[float], average: Callable[[Sequence[float]], np.floating]) -> float | None:
    known = [value for value in values if np.isfinite(value)]
    return float(average(known)) if known else None
