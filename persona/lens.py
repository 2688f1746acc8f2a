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

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor

import metrics
from circuit.errors import OptionError
from circuit.graph import Graph
from circuit.model import Model
from circuit.options import PlainNumbers
from persona.activations import Progress, grouped, id_table, point_names, trace
from persona.examples import Example, ExampleFile, shared_positions
from persona.items import Item
from persona.positions import POSITIONS
from persona.statistics import Estimate, two_way_mean

__all__ = [
    "Attribution",
    "Decision",
    "LensOptions",
    "LensStudy",
    "component_names",
    "decision",
    "read_out",
    "read_out_direction",
    "study_lens",
]

ANSWER = "prompt-end"
N_SKETCHES = 8  # read-outs from which the norm's scale is found
TOLERANCE = 1e-3  # of what the attributions may miss, in logits or relative to the largest of them


@dataclass(frozen=True)
class LensOptions(PlainNumbers):
    """``positions`` are the named positions to look at, all that every prompt has if empty."""

    positions: tuple[str, ...] = ()
    batch_size: int = 32
    n_resamples: int = 2000
    seed: int = 0

    def checked(self) -> LensOptions:
        """These options.

        Raises:
            OptionError: one of them makes no sense.
        """
        for name, least in (("batch_size", 1), ("n_resamples", 100)):
            if getattr(self, name) < least:
                option = name.replace("_", "-")
                raise OptionError(f"--{option} must be at least {least}, got {getattr(self, name)}")
        return self


@dataclass(frozen=True)
class Decision:
    """Where D is decided: points count blocks that ran, ``jump`` is a block; None where D is 0 or does not move."""

    pivot: int | None
    jump: int | None
    stable_from: int | None
    choice_a: int
    choice_b: int


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
    ``[point][position]``.
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

    Raises
    ------
    OptionError
        An option makes no sense, or a position is asked for that a prompt does not have.
    """
    options = (options or LensOptions()).checked()
    positions = shared_positions(found, options.positions)
    seen = _Seen(model, found, positions)
    total, done = len(found.examples), 0
    for group in grouped([len(one.placed.ids) for one in found.examples], options.batch_size):
        seen.add(group)
        done += len(group)
        if progress is not None:
            progress(done, total)
    margin = seen.by_side(seen.margin)
    decisions = _decisions(seen, margin) if ANSWER in positions else ()
    names = [[item.personas for item in found.items], [item.question for item in found.items]]
    attribution = _attribution(seen, names, options)
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
        log_probs=seen.by_side(seen.log_probs),
        answer=seen.by_side(seen.answer),
        other=seen.by_side(seen.other),
        mass=seen.by_side(seen.mass),
        kl=seen.by_side(seen.kl),
        top=seen.by_side(seen.top),
        top_texts=seen.final_texts(),
        decisions=decisions,
        curves=_curves(seen, margin, names, options),
        attribution=attribution,
        notes=_notes(found, positions, options, attribution),
    )


def component_names(graph: Graph) -> tuple[str, ...]:
    """What D is shared among: ``input`` (with positions), heads, MLPs, then ``b0`` …, the attention biases."""
    return (*map(str, graph.src_nodes), *(f"b{layer}" for layer in range(graph.n_layers)))


def decision(divergence: Float[np.ndarray, " point"], choices_a: Sequence[int], choices_b: Sequence[int]) -> Decision:
    """The decision of one pair, from D by point and the most likely candidates by point."""
    final = divergence[-1]
    signed = divergence * np.sign(final)
    steps = np.diff(signed)
    moved = final != 0
    return Decision(
        pivot=int(np.argmax(signed >= abs(final) / 2)) if moved else None,
        jump=int(np.argmax(steps)) if moved and steps.max(initial=0.0) > 0 else None,
        stable_from=_stable_from(signed > 0) if moved else None,
        choice_a=_stable_from(np.asarray(choices_a) == choices_a[-1]),
        choice_b=_stable_from(np.asarray(choices_b) == choices_b[-1]),
    )


def read_out(
    model: Model,
    resid: Float[Tensor, "batch d_model"],
    answers: Int[Tensor, "batch n_answers"],
    wrong_answers: Int[Tensor, "batch n_wrong"],
) -> Float[Tensor, "batch d_model"]:
    """The direction v of each row in which the final stream is read: m(resid) = v . resid + constant.

    The norm's scale is that of ``resid`` and held fixed, so v shares the margin among what
    was added to the stream. The constant (the biases' margin) depends on the answers alone.
    """
    slope = _slope_at_zero(model, resid, lambda logits: metrics.logit_diff(logits, answers, wrong_answers))
    return slope * _norm_scale(model, resid)[:, None]


def read_out_direction(
    model: Model, answers: Int[Tensor, "batch n_answers"], wrong_answers: Int[Tensor, "batch n_wrong"]
) -> Float[Tensor, "batch d_model"]:
    """The direction of ``read_out`` but for the norm's scale, the same for every stream; length one."""
    like = torch.zeros(len(answers), model.d_model, device=model.device, dtype=model.dtype)
    slope = _slope_at_zero(model, like, lambda logits: metrics.logit_diff(logits, answers, wrong_answers))
    return slope / slope.norm(dim=-1, keepdim=True)


def _slope_at_zero(
    model: Model, like: Float[Tensor, "batch d_model"], functional: Callable[[Tensor], Tensor]
) -> Float[Tensor, "batch d_model"]:
    """The gradient of a functional of the logits, one number a row, where the stream is zero."""
    with torch.enable_grad():
        zero = torch.zeros_like(like, requires_grad=True)
        (slope,) = torch.autograd.grad(functional(model.unembed(zero)).sum(), zero)
    return slope


def _norm_scale(model: Model, resid: Float[Tensor, "batch d_model"]) -> Float[Tensor, " batch"]:
    """r(resid) / r(0), by least squares over a few random read-outs that have nothing to do with the answers."""
    with torch.no_grad():
        at_x, at_zero = model.unembed(resid), model.unembed(torch.zeros_like(resid[:1]))
    generator = torch.Generator().manual_seed(0)
    weights = torch.randn(N_SKETCHES, at_x.shape[-1], generator=generator, dtype=torch.float64)
    weights = weights.to(device=at_x.device, dtype=at_x.dtype)
    slopes = torch.cat([_slope_at_zero(model, resid[:1], partial(torch.matmul, other=w)) for w in weights])
    moved, linear = (at_x - at_zero) @ weights.T, resid @ slopes.T
    return (moved * linear).sum(-1) / linear.square().sum(-1)


class _Seen:
    """The arrays of a study while they are filled, a row per prompt."""

    def __init__(self, model: Model, found: ExampleFile, positions: tuple[str, ...]) -> None:
        self.model, self.examples, self.positions = model, found.examples, positions
        n, points = len(found.examples), len(model.blocks) + 1
        shape = (n, points, len(positions))
        self.most = max(len(one.candidates) for one in found.examples)
        self.margin, self.answer, self.other, self.mass, self.kl = (np.full(shape, np.nan) for _ in range(5))
        self.log_probs = np.full((*shape, self.most), np.nan)
        self.top = np.zeros(shape, dtype=np.int64)
        self.attributed = np.zeros((n, model.graph.n_src + model.graph.n_layers))
        self.final_margin = np.zeros(n)

    def add(self, group: list[int]) -> None:
        """Run prompts of one length and read them."""
        model, own = self.model, [self.examples[i] for i in group]
        tokens = torch.tensor([one.placed.ids for one in own], device=model.device)
        at = torch.tensor([[one.placed.places[name] for name in self.positions] for one in own], device=model.device)
        last = torch.full((len(own), 1), tokens.shape[1] - 1, device=model.device)
        seen = trace(model, tokens, torch.cat([at, last], dim=1), with_parts=True)
        sides = [id_table([one.sides[turn] for one in own]).to(model.device) for turn in (0, 1)]
        for place in range(len(self.positions)):
            self._read(group, own, seen.streams[:, :, place], place, sides)
        resid = seen.streams[-1, :, -1].contiguous()
        direction = read_out(model, resid, *sides)
        assert seen.parts is not None
        assert seen.biases is not None
        parts = torch.cat([seen.parts, seen.biases])
        self.attributed[group] = torch.einsum("cbd,bd->bc", parts.double(), direction.double()).cpu().numpy()
        with torch.no_grad():
            self.final_margin[group] = metrics.logit_diff(model.unembed(resid).double(), *sides).cpu().numpy()

    def _read(
        self,
        group: list[int],
        own: Sequence[Example],
        streams: Float[Tensor, "point batch d_model"],
        place: int,
        sides: Sequence[Int[Tensor, "batch n"]],
    ) -> None:
        """One position at every point, the last point first: its distribution is what the others are held against."""
        candidates = id_table([one.candidates for one in own], width=self.most).to(self.model.device)
        final: Tensor | None = None
        for point in reversed(range(len(streams))):
            with torch.no_grad():
                logits = self.model.unembed(streams[point].contiguous())
            log_probs = logits.double().log_softmax(-1)
            final = log_probs if final is None else final
            here = (group, point, place)
            self.margin[here] = metrics.logit_diff(logits.double(), *sides).cpu().numpy()
            self.kl[here] = (final.exp() * (final - log_probs)).sum(-1).clamp(min=0.0).cpu().numpy()
            self.top[here] = logits.argmax(-1).cpu().numpy()
            shown = metrics.candidate_logits(log_probs, candidates)
            self.mass[here] = shown.exp().sum(-1).cpu().numpy()
            self.log_probs[here] = shown.masked_fill(candidates < 0, torch.nan).cpu().numpy()
            both = [metrics.candidate_logits(log_probs, ids).exp().sum(-1).cpu().numpy() for ids in sides]
            is_clean = np.array([one.is_clean for one in own])
            self.answer[here], self.other[here] = np.where(is_clean, *both), np.where(is_clean, *reversed(both))

    def by_side(self, values: NDArray) -> NDArray:
        """``[prompt, …]`` as ``[side, pair, …]``."""
        return np.stack([values[0::2], values[1::2]])

    def final_texts(self) -> tuple[tuple[str, str], ...]:
        """The model's own most likely next token of every pair, under A and B; empty without the answer's place."""
        if ANSWER not in self.positions:
            return ()
        ids = self.top[:, -1, self.positions.index(ANSWER)]
        texts = [self.model.tokenizer.decode([int(token)]) for token in ids]
        return tuple(zip(texts[0::2], texts[1::2], strict=True))


def _decisions(seen: _Seen, margin: NDArray[np.float64]) -> tuple[Decision, ...]:
    place = seen.positions.index(ANSWER)
    divergence = (margin[0] - margin[1])[..., place]
    best = seen.by_side(np.nanargmax(seen.log_probs[:, :, place], axis=-1))
    return tuple(
        decision(divergence[pair], best[0, pair].tolist(), best[1, pair].tolist()) for pair in range(len(divergence))
    )


def _stable_from(holds: NDArray[np.bool_]) -> int:
    """The first place from which on all hold; the last one always does."""
    broken = np.flatnonzero(~holds)
    return int(broken[-1]) + 1 if len(broken) else 0


def _curves(
    seen: _Seen, margin: NDArray[np.float64], names: Sequence[Sequence[str]], options: LensOptions
) -> dict[str, tuple[tuple[Estimate, ...], ...]]:
    answer, other, kl, mass = (seen.by_side(x) for x in (seen.answer, seen.other, seen.kl, seen.mass))
    values = {
        "divergence": margin[0] - margin[1],
        "prior": margin.mean(0),
        "answer": answer.mean(0),
        "other": other.mean(0),
        "mass": mass.mean(0),
        "kl": kl.mean(0),
    }
    return {
        name: tuple(
            tuple(_mean(array[:, point, place], names, options) for place in range(array.shape[2]))
            for point in range(array.shape[1])
        )
        for name, array in values.items()
    }


def _mean(values: NDArray[np.float64], names: Sequence[Sequence[str]], options: LensOptions) -> Estimate:
    found = two_way_mean(values.tolist(), *names, n_resamples=options.n_resamples, seed=options.seed)
    assert found is not None, "a file of pairs has a pair"
    return found


def _attribution(seen: _Seen, names: Sequence[Sequence[str]], options: LensOptions) -> Attribution:
    """a(A) - a(B) of every component, held against D."""
    values = seen.attributed[0::2] - seen.attributed[1::2]
    divergence = seen.final_margin[0::2] - seen.final_margin[1::2]
    missed = np.abs(values.sum(1) - divergence)
    within = missed <= TOLERANCE * np.maximum(1.0, np.abs(values).max(1))  # False for nan too
    estimates = tuple(_mean(column, names, options) for column in values.T)
    return Attribution(values, estimates, float(missed.max()), bool(within.all()))


def _notes(
    found: ExampleFile, positions: Sequence[str], options: LensOptions, attribution: Attribution
) -> tuple[str, ...]:
    notes = []
    if not options.positions and len(positions) < len(POSITIONS):
        missing = ", ".join(name for name in POSITIONS if name not in positions)
        notes.append(f"not every prompt has such a place: {missing}")
    if found.uneven:
        notes.append(f"{found.uneven} of {len(found.items)} pairs have prompts of different length")
    if not attribution.conserved:
        notes.append(
            f"the attributions miss D by up to {attribution.error:.3g} logits and are not written: the model caps its "
            "logits, its final norm is of another kind, or the format is too coarse"
        )
    return tuple(notes)
