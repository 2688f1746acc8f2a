"""The logit lens on both prompts of a pair: where along the depth the preference appears, and who writes it.

For the stream x after p blocks at a named position (nostalgebraist 2020; the final norm
included, as in arXiv:2303.08112, section 2):

    lens(x) = unembed(final norm(x)),  after the last block the model's own logits
    m(x)    = mean logit of persona A's answers - mean logit of B's
    D       = m under A - m under B
    KL      = KL(final || lens), final: the model's own distribution at the same position, in nats

The decision, per pair and read off D at the prompt's end with its final sign:

    pivot         the first point where D has its final sign and at least half its final size
    largest jump  the block that moves D most towards its final sign
    stable from   the first point from which on D keeps its final sign
    choice        the first point from which on the most likely candidate stays the final one, per persona

Direct logit attribution: with the final norm's scale of each run held fixed, m is a sum
over what every node wrote, and so is D = sum over nodes of a(A) - a(B). The norm's map and
scale are found from ``unembed`` itself: a layer norm or root-mean-square norm is
x -> r(x) W P x + b with W and P constant, so the gradient at x = 0 is that map but for a
factor, and r(x) follows from any other read-out. The sum is checked against D on every pair.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor

from persona_circuits import metrics
from persona_circuits.circuit.errors import OptionError
from persona_circuits.circuit.graph import Graph
from persona_circuits.circuit.model import Model
from persona_circuits.circuit.progress import Progress
from persona_circuits.circuit.task import FormTable, form_table, forms_left_out
from persona_circuits.persona.data import (
    POSITIONS,
    Estimate,
    Example,
    ExampleFile,
    firsts,
    seen,
    shared_positions,
    two_way_mean,
)
from persona_circuits.persona.data.items import Item
from persona_circuits.persona.data.words import Words, mean_words, top_words
from persona_circuits.persona.lens.options import LensOptions
from persona_circuits.persona.lens.readout import Decision, decision, read_out
from persona_circuits.persona.streams import grouped, id_table, point_names, trace

__all__ = ["ANSWER", "LensStudy", "study_lens"]

ANSWER = "prompt-end"
TOLERANCE = 1e-3  # of what the attributions may miss, in logits or relative to the largest of them


@dataclass(frozen=True, eq=False)
class Attribution:
    """Direct logit attribution of D, in logits.

    ``values`` are ``[pair, component]`` in the order of ``component_names``; ``error`` is the
    largest |sum - D| of a pair, ``conserved`` whether that is rounding. Where it is not (the
    model caps its logits, or its norm is of another kind) the values are not to be used.
    """

    values: NDArray[np.float64]
    estimates: tuple[Estimate, ...]
    error: float
    conserved: bool


@dataclass(frozen=True, eq=False)
class LensStudy:
    """Everything that was measured.

    ``margin``, ``kl`` and ``mass`` are ``[side, pair, point, position]`` (sides: A, B),
    ``log_probs`` the candidates', ``[side, pair, point, position, candidate]``, nan where a
    question has fewer; ``top`` the most likely token of all, same shape as ``margin``.
    ``answer`` and ``other`` are the probabilities of the answers of a prompt's own persona
    and of the other one. ``curves`` are means over pairs with their intervals, by name,
    ``[point][position]``. ``words`` are the most likely words of every point at the last position, under A and under
    B, probabilities averaged over prompts; a word beyond a prompt's first ``N_WORDS`` counts as zero there.
    """

    model: str
    fingerprint: str
    source: str
    sha256: str
    tokens: tuple[str, str] | None
    options: LensOptions
    graph: Graph
    positions: tuple[str, ...]
    items: tuple[Item, ...]
    margin: NDArray[np.float64]
    log_probs: NDArray[np.float64]
    answer: NDArray[np.float64]
    other: NDArray[np.float64]
    mass: NDArray[np.float64]
    kl: NDArray[np.float64]
    top: NDArray[np.int64]
    top_texts: tuple[tuple[str, str], ...]
    words: tuple[tuple[Words, Words], ...]
    decisions: tuple[Decision, ...]
    curves: dict[str, tuple[tuple[Estimate, ...], ...]]
    attribution: Attribution
    notes: tuple[str, ...] = field(default=())

    @property
    def divergence(self) -> NDArray[np.float64]:
        """D, ``[pair, point, position]``, in logits."""
        return self.margin[0] - self.margin[1]

    @property
    def points(self) -> tuple[str, ...]:
        """The names of the points, ``embedding`` first."""
        return point_names(self.graph.n_layers)


def study_lens(
    model: Model,
    found: ExampleFile,
    *,
    tokens: tuple[str, str] | None = None,
    options: LensOptions | None = None,
    progress: Progress | None = None,
) -> LensStudy:
    """Read every prompt of ``found`` through the lens, and attribute D to the nodes.

    Parameters
    ----------
    found
        Of ``load_examples``, which has checked it against this model's tokenizer.
    tokens
        The words that were given to ``load_examples`` too, for the record.
    progress
        Called with the number of prompts done and of all.

    Returns
    -------
    By layer and position, what the stream says of the answers; what every node adds to D, in logits.

    Raises
    ------
    OptionError
        An option makes no sense, or a position is asked for that a prompt does not have.
    """
    options = (options or LensOptions()).checked()
    positions = _positions(found, options)
    readings = _Readings(model, found, positions)
    total, done = len(found.examples), 0
    for group in grouped([len(_with_forms(example)) for example in found.examples], options.batch_size):
        readings.add(group)
        done += len(group)
        if progress is not None:
            progress(done, total)
    margin = readings.by_side(readings.margin)
    decisions = _decisions(readings, margin) if ANSWER in positions else ()
    names: list[Sequence[Any]] = [[item.personas for item in found.items], [item.question for item in found.items]]
    attribution = _attribution(readings, names, options)
    return LensStudy(
        model=model.name,
        fingerprint=model.fingerprint,
        source=found.source,
        sha256=found.sha256,
        tokens=tokens,
        options=options,
        graph=model.graph,
        positions=positions,
        items=found.items,
        margin=margin,
        log_probs=readings.by_side(readings.log_probs),
        answer=readings.by_side(readings.answer),
        other=readings.by_side(readings.other),
        mass=readings.by_side(readings.mass),
        kl=readings.by_side(readings.kl),
        top=readings.by_side(readings.top),
        top_texts=readings.final_texts(),
        words=readings.mean_words(),
        decisions=decisions,
        curves=_curves(readings, margin, names, options),
        attribution=attribution,
        notes=_notes(found, positions, options, attribution),
    )


def _positions(file: ExampleFile, options: LensOptions) -> tuple[str, ...]:
    """The positions to read; options of several tokens can be valued only where the prompt ends.

    Raises:
        OptionError: another position is asked for there, or only some of the pairs have such options.
    """
    if all(example.forms is None for example in file.examples):
        return shared_positions(file, options.positions)
    if set(options.positions) - {ANSWER}:
        raise OptionError(f"--positions: options with 'forms' are read at {ANSWER} alone; leave the others out")
    if any(example.forms is None for example in file.examples):
        raise OptionError("some pairs give their options 'forms' and others do not; read them in two runs")
    return (ANSWER,)


def _with_forms(example: Example) -> tuple[int, ...]:
    return (*example.placed.ids, *(() if example.forms is None else example.forms.forced))


class _Readings:
    """The arrays of a study while they are filled, a row per prompt."""

    def __init__(self, model: Model, file: ExampleFile, positions: tuple[str, ...]) -> None:
        self.model, self.examples, self.positions = model, file.examples, positions
        n, points = len(file.examples), len(model.blocks) + 1
        self.forms = any(example.forms is not None for example in file.examples)
        shape = (n, points, len(positions))
        self.most = max(len(example.candidates) for example in file.examples)
        self.margin, self.answer, self.other, self.mass, self.kl = (np.full(shape, np.nan) for _ in range(5))
        self.log_probs = np.full((*shape, self.most), np.nan)
        self.top = np.zeros(shape, dtype=np.int64)
        self.words: list[list[Words]] = [[()] * n for _ in range(points)]
        self.attributed = np.zeros((n, model.graph.n_src + model.graph.n_layers))
        self.final_margin = np.zeros(n)

    def add(self, group: list[int]) -> None:
        """Run prompts of one length and read them."""
        model, examples = self.model, [self.examples[i] for i in group]
        tokens = torch.tensor([_with_forms(x) for x in examples], device=model.device)
        sides = [id_table([x.sides[turn] for x in examples]).to(model.device) for turn in (0, 1)]
        if self.forms:
            table = form_table([x.forms for x in examples if x.forms is not None], model.device)
            ends = torch.arange(tokens.shape[1] - table.n_read, tokens.shape[1], device=model.device)
            streams = trace(model, tokens, ends.expand(len(examples), -1), forms=table).streams
            self._read(group, examples, streams, 0, sides, table)
            return
        at = torch.tensor([[x.placed.places[name] for name in self.positions] for x in examples], device=model.device)
        last = torch.full((len(examples), 1), tokens.shape[1] - 1, device=model.device)
        traced = trace(model, tokens, torch.cat([at, last], dim=1), with_parts=True)
        for place in range(len(self.positions)):
            self._read(group, examples, traced.streams[:, :, place : place + 1], place, sides)
        resid = traced.streams[-1, :, -1].contiguous()
        direction = read_out(model, resid, *sides)
        assert traced.parts is not None
        assert traced.biases is not None
        parts = torch.cat([traced.parts, traced.biases])
        self.attributed[group] = torch.einsum("cbd,bd->bc", parts.double(), direction.double()).cpu().numpy()
        with torch.no_grad():
            self.final_margin[group] = metrics.logit_diff(model.unembed(resid).double(), *sides).cpu().numpy()

    def _read(
        self,
        group: list[int],
        examples: Sequence[Example],
        streams: Float[Tensor, "point batch read d_model"],
        place: int,
        sides: Sequence[Int[Tensor, "batch n"]],
        forms: FormTable | None = None,
    ) -> None:
        """One position at every point, the last point first: the others are compared with its distribution."""
        candidates = id_table([example.candidates for example in examples], width=self.most).to(self.model.device)
        final: Tensor | None = None
        for point in reversed(range(len(streams))):
            with torch.no_grad():
                logits = self.model.answer(streams[point].contiguous(), forms)
            log_probs = logits.double().log_softmax(-1)
            final = log_probs if final is None else final
            here = (group, point, place)
            self.margin[here] = metrics.logit_diff(logits.double(), *sides).cpu().numpy()
            self.kl[here] = (final.exp() * (final - log_probs)).sum(-1).clamp(min=0.0).cpu().numpy()
            self.top[here] = logits.argmax(-1).cpu().numpy()
            if place == len(self.positions) - 1:
                for i, row in zip(group, log_probs, strict=True):
                    self.words[point][i] = top_words(row, self.model.tokenizer, names=self._names(i))
            shown = metrics.candidate_logits(log_probs, candidates)
            self.mass[here] = shown.exp().sum(-1).cpu().numpy()
            self.log_probs[here] = shown.masked_fill(candidates < 0, torch.nan).cpu().numpy()
            both = [metrics.candidate_logits(log_probs, ids).exp().sum(-1).cpu().numpy() for ids in sides]
            is_clean = np.array([example.is_clean for example in examples])
            self.answer[here], self.other[here] = np.where(is_clean, *both), np.where(is_clean, *reversed(both))

    def _names(self, prompt: int) -> dict[int, str]:
        """Names of the columns after the vocabulary, for a prompt whose options are sets of forms."""
        forms = self.examples[prompt].forms
        return {} if forms is None else dict(enumerate(forms.names, self.model.n_vocab))

    def by_side(self, values: NDArray) -> NDArray:
        """``[prompt, …]`` as ``[side, pair, …]``."""
        return np.stack([values[0::2], values[1::2]])

    def mean_words(self) -> tuple[tuple[Words, Words], ...]:
        """By point, under A and under B."""
        return tuple((mean_words(of_point[0::2]), mean_words(of_point[1::2])) for of_point in self.words)

    def final_texts(self) -> tuple[tuple[str, str], ...]:
        """The model's own most likely next token of every pair, under A and B; empty without the answer's place."""
        if ANSWER not in self.positions:
            return ()
        ids = self.top[:, -1, self.positions.index(ANSWER)]
        named = [self._names(i).get(int(token)) for i, token in enumerate(ids)]
        texts = [name or self.model.tokenizer.decode([int(token)]) for name, token in zip(named, ids, strict=True)]
        return tuple(zip(texts[0::2], texts[1::2], strict=True))


def _decisions(readings: _Readings, margin: NDArray[np.float64]) -> tuple[Decision, ...]:
    place = readings.positions.index(ANSWER)
    divergence = (margin[0] - margin[1])[..., place]
    best = readings.by_side(np.nanargmax(readings.log_probs[:, :, place], axis=-1))
    return tuple(
        decision(divergence[pair], best[0, pair].tolist(), best[1, pair].tolist()) for pair in range(len(divergence))
    )


def _curves(
    lens: _Readings, margin: NDArray[np.float64], names: Sequence[Sequence[Any]], options: LensOptions
) -> dict[str, tuple[tuple[Estimate, ...], ...]]:
    answer, other, kl, mass = (lens.by_side(x) for x in (lens.answer, lens.other, lens.kl, lens.mass))
    values = {
        "divergence": margin[0] - margin[1],
        "prior": margin.mean(0),
        "answer": answer.mean(0),
        "other": other.mean(0),
        "mass": mass.mean(0),
        "kl": kl.mean(0),
    }
    means: dict[str, list[tuple[Estimate, ...]]] = {name: [] for name in values}
    first = [
        firsts([(seen(example.placed, position), example.sides, example.candidates) for example in lens.examples])
        for position in lens.positions
    ]
    for name, array in values.items():
        for point in range(array.shape[1]):
            means[name].append(
                tuple(
                    _mean(array[rows, point, place], [[x[i] for i in rows] for x in names], options)
                    for place, rows in enumerate(first)
                )
            )
    return {name: tuple(points) for name, points in means.items()}


def _mean(values: NDArray[np.float64], names: Sequence[Sequence[Any]], options: LensOptions) -> Estimate:
    estimate = two_way_mean(values.tolist(), *names, n_resamples=options.n_resamples, seed=options.seed)
    assert estimate is not None, "a file of pairs has a pair"
    return estimate


def _attribution(readings: _Readings, names: Sequence[Sequence[Any]], options: LensOptions) -> Attribution:
    """a(A) - a(B) of every component, held against D."""
    values = readings.attributed[0::2] - readings.attributed[1::2]
    divergence = readings.final_margin[0::2] - readings.final_margin[1::2]
    missed = np.abs(values.sum(1) - divergence)
    within = missed <= TOLERANCE * np.maximum(1.0, np.abs(values).max(1))  # False for nan too
    estimates = tuple(_mean(column, names, options) for column in values.T)
    return Attribution(values, estimates, float(missed.max()), bool(within.all()) and not readings.forms)


def _notes(
    file: ExampleFile, positions: Sequence[str], options: LensOptions, attribution: Attribution
) -> tuple[str, ...]:
    notes = []
    formed = any(example.forms is not None for example in file.examples)
    if not formed and not options.positions and len(positions) < len(POSITIONS):
        missing = ", ".join(name for name in POSITIONS if name not in positions)
        notes.append(f"not every prompt has such a place: {missing}")
    if file.uneven:
        notes.append(f"{file.uneven} of {len(file.items)} pairs have prompts of different length")
    notes += forms_left_out([example.forms.left_out for example in file.examples[::2] if example.forms is not None])
    if formed:
        notes.append("options are sets of forms, so D is no sum over what nodes write: no attributions are written")
    elif not attribution.conserved:
        notes.append(
            f"the attributions miss D by up to {attribution.error:.3g} logits and are not written: the model caps its "
            "logits, its final norm is of another kind, or the format is too coarse"
        )
    return tuple(notes)
