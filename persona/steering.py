"""Steering: a direction added to the residual stream, what it does to preferences, and what it breaks.

With strength s and a pair's direction v, persona A's prompt gets s v and persona B's -s v:

    D(s)    margin of A's prompt minus margin of B's; D(0) is the model as it is
    gain    D(s) / D(0)
    b(s)    the mean of both margins: what s moves besides the persona's effect
    parted  A's margin above zero and B's below it: the two tokens part
    KL      KL(model || steered model) of the next token of neutral prompts, at the output, s and -s

For its tokens to part a pair needs the gain g* = 2 |b| / |D|: below 1 it parts by itself. Steering
that acts on the persona's effect alone leaves b where it is, and then a pair must part exactly
where its own gain D(s)/D(0) is above its g*. The share of pairs of which that is true is
reported; it can fail.

Beside every direction stand controls of the same length, drawn at random and drawn with the
covariance of the model's own activity. Ablation takes the direction out of the stream behind
every block from the layer on (arXiv:2406.11717).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

import metrics
from circuit.errors import OptionError, TaskError, listed
from circuit.finite import check_finite, of_prompts
from circuit.model import Model
from circuit.options import PlainNumbers
from persona.activations import grouped, id_table
from persona.directions import Directions, controls, find_directions, prompt_end_streams
from persona.examples import ExampleFile
from persona.lens import read_out_direction
from persona.positions import without_persona
from persona.statistics import Estimate, two_way_mean
from persona.streams import Change, on_streams

__all__ = [
    "POSITIONS",
    "Bound",
    "Measured",
    "Outcome",
    "SteerOptions",
    "SteeredPrompts",
    "SteeringStudy",
    "added",
    "some_pairs",
    "steered_logits",
    "steered_prompts",
    "study_steering",
    "without_direction",
]

POSITIONS = ("prompt-end", "all")
REFINEMENTS = 4
SINGLE_TOKENS = 4  # rows of one token behind a cache that share a pass, for each row of a whole prompt
Progress = Callable[[int, int], None]
Cell = tuple[int, int]  # a variant and a prompt, by their places
Changes = Callable[[Sequence[Cell]], Mapping[int, Change]]
Vectors = Mapping[int, np.ndarray]  # by layer, a row per pair
Margins = Float[np.ndarray, "2 pair"]  # A's prompts, B's prompts


@dataclass(frozen=True)
class SteerOptions(PlainNumbers):
    """What is steered and how; fixed before the run.

    ``layers`` are steered one at a time, or all at once if ``together``. ``positions`` is
    where the direction is added: at the ``prompt-end`` and every token after it, or at ``all``.
    """

    layers: tuple[int, ...]
    strengths: tuple[float, ...] = (0.5, 1.0, 2.0, 4.0)
    positions: str = "prompt-end"
    together: bool = False
    ablate: bool = True
    n_controls: int = 3
    kl_bound: float = 0.1
    n_resamples: int = 2000
    seed: int = 0
    batch_size: int = 32

    def checked(self) -> SteerOptions:
        """Itself, layers and strengths in order.

        Raises:
            OptionError: a number is out of range, or nothing would be steered.
        """
        if not self.layers or not self.strengths:
            raise OptionError("nothing to steer: name a layer and a strength")
        if min(self.strengths) <= 0 or not np.isfinite(self.strengths).all():
            raise OptionError("strengths must be above 0; each is used with both signs")
        if self.positions not in POSITIONS:
            raise OptionError(f"positions {self.positions!r} is not one of {', '.join(POSITIONS)}")
        for name, least in (("n_controls", 1), ("n_resamples", 1), ("batch_size", 1), ("seed", 0)):
            if getattr(self, name) < least:
                raise OptionError(f"{name.replace('_', '-')} is {getattr(self, name)}; it must be at least {least}")
        if not self.kl_bound > 0:
            raise OptionError(f"kl-bound is {self.kl_bound:g} nats; it must be above 0")
        return replace(self, layers=tuple(sorted(set(self.layers))), strengths=tuple(sorted(set(self.strengths))))


@dataclass(frozen=True, eq=False)
class SteeredPrompts:
    """The prompts of all pairs: A's, B's, and the neutral one beside each pair, with the two tokens' ids.

    ``sides[k]`` are the ids of A's (0) and B's (1) prompts; ``answers[k]`` those of the
    tokens that A's and B's persona is to prefer, several of a side averaged.
    """

    sides: tuple[tuple[tuple[int, ...], ...], tuple[tuple[int, ...], ...]]
    neutral: tuple[tuple[int, ...], ...]
    answers: tuple[tuple[tuple[int, ...], ...], tuple[tuple[int, ...], ...]]
    texts: tuple[tuple[str, ...], tuple[str, ...]]  # of the neutral prompts, and of B's
    personas: tuple[tuple[str, str], ...]
    questions: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.neutral)

    @property
    def all(self) -> tuple[tuple[int, ...], ...]:
        """Every pair's neutral prompt, then every A's, then every B's."""
        return (*self.neutral, *self.sides[0], *self.sides[1])


@dataclass(frozen=True, eq=False)
class Measured:
    """The raw numbers of one direction: margins of both sides under +s v and under -s v, KL under both."""

    plus: Margins
    minus: Margins
    kl: Float[np.ndarray, "2 pair"]

    def margins(self, sign: int) -> Margins:
        """A steered by sign s v, B by -sign s v."""
        return np.stack([self.plus[0], self.minus[1]]) if sign > 0 else np.stack([self.minus[0], self.plus[1]])


@dataclass(frozen=True)
class Outcome:
    """One layer, direction and signed strength over all pairs.

    ``draw`` numbers the controls; the direction itself has -1. ``strength`` is None for ablation.
    ``switched``: share of prompts whose margin has another sign than unsteered. Of the
    ``n_asked`` pairs with D > 0 unsteered ``above`` is the share whose gain is above their g*,
    ``agree`` the share that part exactly if it is. Of the ``n_collapsed`` among them that do
    not part unsteered ``flipped`` is the share that part now. None where there is no such pair.
    """

    layers: tuple[int, ...]
    control: str
    draw: int
    strength: float | None
    divergence: Estimate
    gain: float
    prior_shift: float
    parted: float
    switched: float
    kl: Estimate
    n_asked: int
    above: float | None
    agree: float | None
    n_collapsed: int
    flipped: float | None


@dataclass(frozen=True)
class Bound:
    """The largest strength whose mean KL on neutral prompts is within the bound, and what it does.

    ``is_largest``: even the largest strength of the sweep is within, so there may be more room.
    ``gains`` are those of the controls at the same strength.
    """

    layers: tuple[int, ...]
    strength: float
    is_largest: bool
    outcome: Outcome
    gains: Mapping[str, tuple[float, ...]]


@dataclass(frozen=True, eq=False)
class SteeringStudy:
    """Everything that was found.

    ``margins`` and ``kl`` are those of the direction, of every pair, by layers; strengths are
    signed and in order in ``margins``, unsigned (and both signs on the next axis) in ``kl``.
    ``streams`` are the fitting prompts' at their ends, ``first_personas`` those of side A.
    """

    model: str
    fingerprint: str
    options: SteerOptions
    directions: Directions
    prompts: SteeredPrompts
    ids: tuple[str, ...]
    first_personas: tuple[str, ...]
    streams: Float[np.ndarray, "example layer d_model"]
    plain: Margins
    outcomes: tuple[Outcome, ...]
    bounds: tuple[Bound, ...]
    margins: Mapping[str, Float[np.ndarray, "signed 2 pair"]]
    kl: Mapping[str, Float[np.ndarray, "strength 2 pair"]]
    held_out: bool
    notes: tuple[str, ...]


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
    prompts = steered_prompts(steered, model, neutral)
    size = options.batch_size
    there = prompt_end_streams(model, fitting.examples, batch_size=size)
    here = there if fitting is steered else prompt_end_streams(model, steered.examples, batch_size=size)
    readouts = (_readouts(model, fitting), _readouts(model, steered)) if kind == "readout" else None
    how: dict[str, Any] = {"toward": toward, "readouts": readouts, "fingerprint": model.fingerprint}
    found = find_directions(kind, fitting.examples, there, steered.examples, here, **how)
    plain, reference = _unsteered(model, prompts, size)
    groups = [options.layers] if options.together else [(layer,) for layer in options.layers]
    named = [
        (layers, item)
        for layers in groups
        for item in _named({layer: found.vectors[:, layer] for layer in layers}, there, options)
    ]
    run = _Run(model, prompts, options, plain, reference, progress or _silent, len(groups), len(named))
    swept = run.measure([(item.vectors, s) for _, item in named for s in options.strengths])
    steps = len(options.strengths)
    of_each = [swept[i * steps : (i + 1) * steps] for i in range(len(named))]
    own = {layers: each for (layers, item), each in zip(named, of_each, strict=True) if item.draw < 0}
    outcomes = [
        outcome
        for (layers, item), each in zip(named, of_each, strict=True)
        for outcome in run.outcomes(layers, item, each)
    ]
    bounds = run.bounds(named, own)
    if options.ablate:
        outcomes += run.ablations(named)
    margins = {
        _name(layers): np.stack([m.margins(sign) for sign in (-1, 1) for m in each[::sign]])
        for layers, each in own.items()
    }
    kl = {_name(layers): np.stack([m.kl for m in each]) for layers, each in own.items()}
    held_out = kind not in ("pair",) and not _shared_prompts(steered, fitting)
    return SteeringStudy(
        model=model.name,
        fingerprint=model.fingerprint,
        options=options,
        directions=found,
        prompts=prompts,
        ids=tuple(item.pair.id for item in steered.items),
        first_personas=tuple(one.persona for one in steered.examples[::2]),
        streams=there,
        plain=plain,
        outcomes=tuple(outcomes),
        bounds=tuple(bounds),
        margins=margins,
        kl=kl,
        held_out=held_out,
        notes=_notes(found, held_out),
    )


def steered_prompts(file: ExampleFile, model: Model, neutral: Sequence[str] = ()) -> SteeredPrompts:
    """The prompts of a file's pairs, each with a neutral one: the given ones in turn, or its own without its persona.

    A pair in which no persona is found has the neutral prompt of another.

    Raises:
        TaskError: no neutral prompt is given or found, or a given one cannot be put to the model.
    """
    from circuit.task import prompt_faults, token_ids

    firsts, seconds = file.examples[::2], file.examples[1::2]
    if neutral:
        texts = tuple(neutral[i % len(neutral)] for i in range(len(firsts)))
        plainly = tuple(tuple(token_ids(text, model)) for text in texts)
        at_fault = dict.fromkeys(zip(texts, plainly, strict=True))
        faults = [f"{text[:80]!r}: {fault}" for text, ids in at_fault for fault in prompt_faults([*ids], model)]
        if faults:
            raise TaskError(listed(f"neutral prompts cannot be put to {model.name}:", faults))
    else:
        taken_out = [without_persona(one.placed, model) for one in firsts]
        there = [one for one in taken_out if one is not None]
        if not there:
            raise TaskError(
                f"in no pair of {file.source} a persona was found that could be left out; give prompts with --neutral"
            )
        filled = [one or there[i % len(there)] for i, one in enumerate(taken_out)]
        texts, plainly = tuple(one.text for one in filled), tuple(one.ids for one in filled)
    return SteeredPrompts(
        (tuple(one.placed.ids for one in firsts), tuple(one.placed.ids for one in seconds)),
        plainly,
        (tuple(one.answers for one in firsts), tuple(one.others for one in firsts)),
        (texts, tuple(one.placed.text for one in seconds)),
        tuple((a.persona, b.persona) for a, b in zip(firsts, seconds, strict=True)),
        tuple(one.question for one in firsts),
    )


def some_pairs(file: ExampleFile, n: int) -> ExampleFile:
    """At most ``n`` of the pairs, evenly taken.

    Raises:
        OptionError: ``n`` is below 1.
    """
    if n < 1:
        raise OptionError(f"max-pairs is {n}; it must be at least 1")
    every = len(file.items)
    if n >= every:
        return file
    chosen = np.unique(np.linspace(0, every - 1, n).round().astype(int)).tolist()
    examples = tuple(file.examples[2 * i + side] for i in chosen for side in (0, 1))
    return replace(file, items=tuple(file.items[i] for i in chosen), examples=examples)


def added(vectors: Mapping[int, Float[Tensor, "batch d_model"]], positions: str) -> dict[int, Change]:
    """Changes that add each row's vector behind the named blocks: at every position of a pass, or at its last one."""

    def change(vector: Tensor) -> Change:
        def add(stream: Tensor) -> Tensor:
            more = vector.to(stream.device, stream.dtype)[:, None]
            if positions == "all":
                return stream + more
            return torch.cat([stream[:, :-1], stream[:, -1:] + more], dim=1)

        return add

    return {layer: change(vector) for layer, vector in vectors.items()}


def without_direction(vectors: Mapping[int, Float[Tensor, "batch d_model"]]) -> dict[int, Change]:
    """Changes that take each row's direction out of the stream, at every position."""

    def change(vector: Tensor) -> Change:
        unit = vector / vector.norm(dim=-1, keepdim=True).clamp(min=torch.finfo(vector.dtype).tiny)

        def remove(stream: Tensor) -> Tensor:
            along = unit.to(stream.device, stream.dtype)
            return stream - torch.einsum("bpd,bd->bp", stream, along)[..., None] * along[:, None]

        return remove

    return {layer: change(vector) for layer, vector in vectors.items()}


def steered_logits(
    model: Model,
    prompts: Sequence[Sequence[int]],
    n_variants: int,
    changes: Changes,
    *,
    only_last: bool,
    batch_size: int,
) -> Iterator[tuple[list[Cell], Float[Tensor, "batch vocab"]]]:
    """Logits behind each prompt, at the output, under every variant.

    Parameters
    ----------
    changes
        What is changed in the rows of a batch, given as ``(variant, prompt)``.
    only_last
        The changes touch the last token alone. All before it is then run once per prompt and
        kept in the model's own cache, and a variant costs one token.

    Yields
    ------
    Cells ``(variant, prompt)`` and their logits in float64 on the CPU, in batches of one length.
    """
    for group in grouped([len(ids) for ids in prompts], batch_size):
        tokens = torch.tensor([list(prompts[i]) for i in group], device=model.device)
        before = _cache_of(model, tokens[:, :-1]) if only_last and tokens.shape[1] > 1 else None
        most = batch_size if before is None else batch_size * SINGLE_TOKENS
        at_a_time = max(1, most // len(group))
        for first in range(0, n_variants, at_a_time):
            variants = range(first, min(first + at_a_time, n_variants))
            cells = [(v, i) for i in group for v in variants]
            rows = (tokens if before is None else tokens[:, -1:]).repeat_interleave(len(variants), dim=0)
            with on_streams(model, changes(cells)):
                logits = _last(model, rows, before, len(variants))
            check_finite(logits, lambda row, cells=cells: of_prompts(model, prompts)(cells[row][1]))
            yield cells, logits  # the changes end here: whoever asks may run the model in between


def _cache_of(model: Model, tokens: Tensor) -> Any:
    with torch.no_grad():
        return model.bridge.original_model(tokens, use_cache=True).past_key_values


def _last(model: Model, tokens: Tensor, cache: Any, repeats: int) -> Float[Tensor, "batch vocab"]:
    """Logits of the last token behind a copy of the cache; the host appends to what it is given."""
    if cache is None:
        return model.logits(tokens)[:, -1].float().cpu().double()
    own = copy.deepcopy(cache)
    own.batch_repeat_interleave(repeats)
    with torch.no_grad():
        out = model.bridge.original_model(tokens, past_key_values=own, use_cache=True)
    return out.logits[:, -1].float().cpu().double()


@dataclass(frozen=True, eq=False)
class _Named:
    """The direction (draw -1) or a control, as vectors ``[pair, d_model]`` by layer."""

    control: str
    draw: int
    vectors: Vectors


class _Run:
    """One study's measurements: the same prompts, under other changes."""

    def __init__(
        self,
        model: Model,
        prompts: SteeredPrompts,
        options: SteerOptions,
        plain: Margins,
        reference: Float[Tensor, "pair vocab"],
        progress: Progress,
        n_groups: int,
        n_named: int,
    ) -> None:
        self.model, self.prompts, self.options = model, prompts, options
        self.plain, self.reference, self.progress = plain, reference, progress
        self.done = 0
        of_all = n_named * (2 * (len(options.strengths) + 1) + options.ablate)
        self.total = len(prompts) * (3 * of_all + 2 * n_groups * REFINEMENTS)

    def measure(self, steps: Sequence[tuple[Vectors, float]]) -> list[Measured]:
        """All prompts under plus and minus the vectors, for every vectors and strength."""
        signed = [(vectors, sign * strength) for vectors, strength in steps for sign in (1, -1)]
        found = self._under(signed, self._adding)
        return [
            Measured(plus[0], minus[0], np.stack([plus[1], minus[1]]))
            for plus, minus in zip(found[::2], found[1::2], strict=True)
        ]

    def outcomes(self, layers: tuple[int, ...], item: _Named, found: Sequence[Measured]) -> list[Outcome]:
        """Both signs of every strength, from the most negative."""
        signed = [(sign, s, m) for s, m in zip(self.options.strengths, found, strict=True) for sign in (-1, 1)]
        signed.sort(key=lambda each: each[0] * each[1])
        return [self._outcome(layers, item, sign * s, m.margins(sign), m.kl.mean(0)) for sign, s, m in signed]

    def ablations(self, named: Sequence[tuple[tuple[int, ...], _Named]]) -> list[Outcome]:
        """The direction, and every control, taken out behind every block from the first of its layers on."""
        n = self.model.graph.n_layers
        each = [
            ({layer: item.vectors.get(layer, item.vectors[layers[0]]) for layer in range(layers[0], n)}, 1.0)
            for layers, item in named
        ]
        found = self._under(each, without_direction, only_last=False)
        return [self._outcome(layers, item, None, *one) for (layers, item), one in zip(named, found, strict=True)]

    def bounds(
        self, named: Sequence[tuple[tuple[int, ...], _Named]], swept: Mapping[tuple[int, ...], Sequence[Measured]]
    ) -> list[Bound]:
        """The largest strength within the KL bound, found in the sweep's first step out of it by regula falsi."""
        strengths, limit = self.options.strengths, self.options.kl_bound
        first_over = {
            layers: next((i for i, m in enumerate(found) if m.kl.mean() > limit), None)
            for layers, found in swept.items()
        }
        ends = {layers: _ends(first_over[layers], strengths, found) for layers, found in swept.items()}
        vectors = {layers: item.vectors for layers, item in named if item.draw < 0}
        for _ in range(REFINEMENTS):
            guesses = {layers: _between(*at, limit) for layers, at in ends.items()}
            signed = [(vectors[layers], sign * guess) for layers, guess in guesses.items() for sign in (1, -1)]
            found = self._under(signed, self._adding, only_neutral=True)
            for place, (layers, guess) in enumerate(guesses.items()):
                here = guess, float(np.mean([kl for _, kl in found[2 * place : 2 * place + 2]]))
                ends[layers] = (here, ends[layers][1]) if here[1] <= limit else (ends[layers][0], here)
        measured = self.measure([(item.vectors, ends[layers][0][0]) for layers, item in named])
        return [
            self._bound(layers, ends[layers][0][0], over is None, [
                (item, m) for (its, item), m in zip(named, measured, strict=True) if its == layers
            ])
            for layers, over in first_over.items()
        ]  # fmt: skip

    def _bound(
        self, layers: tuple[int, ...], strength: float, is_largest: bool, found: Sequence[tuple[_Named, Measured]]
    ) -> Bound:
        (own, measured), *others = found
        gains: dict[str, tuple[float, ...]] = {}
        for item, other in others:
            gains[item.control] = (*gains.get(item.control, ()), self._gain(other.margins(1)))
        outcome = self._outcome(layers, own, strength, measured.margins(1), measured.kl.mean(0))
        return Bound(layers, strength, is_largest, outcome, gains)

    def _adding(self, rows: Mapping[int, Tensor]) -> Mapping[int, Change]:
        return added(rows, self.options.positions)

    def _under(
        self,
        variants: Sequence[tuple[Vectors, float]],
        changing: Callable[[Mapping[int, Tensor]], Mapping[int, Change]],
        *,
        only_neutral: bool = False,
        only_last: bool = True,
    ) -> list[tuple[Margins, Float[np.ndarray, " pair"]]]:
        """Margins of both sides and KL of the neutral prompts under every variant: vectors per pair, times a number."""
        n = len(self.prompts)
        prompts = self.prompts.neutral if only_neutral else self.prompts.all
        layers = sorted({layer for vectors, _ in variants for layer in vectors})
        nothing = np.zeros(self.model.d_model)

        def changes(cells: Sequence[Cell]) -> Mapping[int, Change]:
            picked = [(*variants[v], i % n) for v, i in cells]
            rows = {
                layer: np.stack(
                    [number * vectors[layer][i] if layer in vectors else nothing for vectors, number, i in picked]
                )
                for layer in layers
            }
            return changing({layer: torch.from_numpy(each) for layer, each in rows.items() if each.any()})

        margins, kl = np.full((len(variants), 2, n), np.nan), np.empty((len(variants), n))
        for cells, logits in steered_logits(
            self.model,
            prompts,
            len(variants),
            changes,
            only_last=only_last and self.options.positions == "prompt-end",
            batch_size=self.options.batch_size,
        ):
            _enter(cells, logits, self.prompts, self.reference, margins, kl)
            self.done += len(cells)
            self.progress(self.done, self.total)
        return list(zip(margins, kl, strict=True))

    def _gain(self, margins: Margins) -> float:
        whole = float((self.plain[0] - self.plain[1]).mean())
        return float((margins[0] - margins[1]).mean()) / whole if whole else float("nan")

    def _outcome(
        self,
        layers: tuple[int, ...],
        item: _Named,
        strength: float | None,
        margins: Margins,
        kl: Float[np.ndarray, " pair"],
    ) -> Outcome:
        before, now = _Sides(self.plain), _Sides(margins)
        asked = before.divergence > 0
        gains = now.divergence[asked] / before.divergence[asked]
        needed = 2 * np.abs(before.prior[asked]) / before.divergence[asked]
        parted, above = now.parted[asked], gains > needed
        collapsed = asked & ~before.parted
        return Outcome(
            layers,
            item.control,
            item.draw,
            strength,
            self._estimate(now.divergence),
            self._gain(margins),
            float(np.abs(now.prior - before.prior).mean()),
            float(now.parted.mean()),
            float(((margins > 0) != (self.plain > 0)).mean()),
            self._estimate(kl),
            int(asked.sum()),
            float(above.mean()) if asked.any() else None,
            float((parted == above).mean()) if asked.any() else None,
            int(collapsed.sum()),
            float(now.parted[collapsed].mean()) if collapsed.any() else None,
        )

    def _estimate(self, values: Float[np.ndarray, " pair"]) -> Estimate:
        options, prompts = self.options, self.prompts
        found = two_way_mean(
            values.tolist(), prompts.personas, prompts.questions, n_resamples=options.n_resamples, seed=options.seed
        )
        assert found is not None, "there is a pair"
        return found


class _Sides:
    """Both sides' margins as D, b, and whether the tokens part."""

    def __init__(self, margins: Margins) -> None:
        self.divergence: Float[np.ndarray, " pair"] = margins[0] - margins[1]
        self.prior: Float[np.ndarray, " pair"] = margins.mean(0)
        self.parted: Bool[np.ndarray, " pair"] = (margins[0] > 0) & (margins[1] < 0)


def _ends(
    over: int | None, strengths: Sequence[float], found: Sequence[Measured]
) -> tuple[tuple[float, float], tuple[float, float]]:
    """The last strength within the bound and the first out of it, each with its KL; the same twice if none is out."""
    known = [(0.0, 0.0), *((s, float(m.kl.mean())) for s, m in zip(strengths, found, strict=True))]
    return (known[-1], known[-1]) if over is None else (known[over], known[over + 1])


def _between(low: tuple[float, float], high: tuple[float, float], limit: float) -> float:
    """Where the KL would reach the bound if it grew with the square of the strength, as it does while it is small."""
    roots = [np.sqrt(kl) for _, kl in (low, high)]
    share = (np.sqrt(limit) - roots[0]) / (roots[1] - roots[0]) if roots[1] > roots[0] else 0.5
    return low[0] + 0.995 * float(np.clip(share, 0.05, 1.0)) * (high[0] - low[0])


def _name(layers: tuple[int, ...]) -> str:
    return "+".join(map(str, layers))


def _named(
    vectors: Vectors, streams: Float[np.ndarray, "example layer d_model"], options: SteerOptions
) -> list[_Named]:
    """The direction, and every control with a vector of its own behind each layer."""
    by_layer = {
        layer: controls(each, streams[:, layer], n=options.n_controls, seed=options.seed * 1000 + layer)
        for layer, each in vectors.items()
    }
    return [_Named("direction", -1, vectors)] + [
        _Named(kind, draw, {layer: drawn[kind][draw] for layer, drawn in by_layer.items()})
        for kind in next(iter(by_layer.values()))
        for draw in range(options.n_controls)
    ]


def _unsteered(model: Model, prompts: SteeredPrompts, batch_size: int) -> tuple[Margins, Float[Tensor, "pair vocab"]]:
    """Margins of both sides, and the neutral prompts' logits, computed as the steered ones are."""
    n = len(prompts)
    margins, reference = np.empty((1, 2, n)), None
    for cells, logits in steered_logits(model, prompts.all, 1, lambda _: {}, only_last=True, batch_size=batch_size):
        if reference is None:
            reference = logits.new_empty((n, logits.shape[-1]), dtype=torch.float32)
        neutral = [place for place, (_, i) in enumerate(cells) if i < n]
        reference[[cells[place][1] for place in neutral]] = logits[neutral].float()
        _enter(cells, logits, prompts, None, margins, np.empty((1, n)))
    assert reference is not None, "there is a pair"
    return margins[0], reference


def _enter(
    cells: Sequence[Cell],
    logits: Float[Tensor, "batch vocab"],
    prompts: SteeredPrompts,
    reference: Float[Tensor, "pair vocab"] | None,
    margins: Float[np.ndarray, "variant 2 pair"],
    kl: Float[np.ndarray, "variant pair"],
) -> None:
    """Write a batch's numbers to their places: the KL of neutral prompts, the margins of the sides'."""
    n = len(prompts)
    for kind in range(3):
        here = [place for place, (_, i) in enumerate(cells) if i // n == kind]
        variant, pair = ([part(cells[place]) for place in here] for part in (lambda c: c[0], lambda c: c[1] % n))
        if not here:
            continue
        if kind:
            margins[variant, kind - 1, pair] = _margins(logits[here], prompts, pair)
        elif reference is not None:
            kl[variant, pair] = metrics.kl(reference[pair].double(), logits[here]).clamp(min=0.0).numpy()


def _readouts(model: Model, file: ExampleFile) -> Float[np.ndarray, "pair d_model"]:
    """The direction, of length one, in which each pair's two answers are read out, A's minus B's."""
    firsts = file.examples[::2]
    sides = [
        id_table(rows).to(model.device) for rows in ([one.answers for one in firsts], [one.others for one in firsts])
    ]
    return read_out_direction(model, *sides).double().cpu().numpy()


def _margins(
    logits: Float[Tensor, "batch vocab"], prompts: SteeredPrompts, group: Sequence[int]
) -> Float[np.ndarray, " batch"]:
    sides = [id_table([answers[i] for i in group]) for answers in prompts.answers]
    return metrics.logit_diff(logits, *sides).numpy()


def _shared_prompts(first: ExampleFile, second: ExampleFile) -> bool:
    return bool({one.placed.text for one in first.examples} & {one.placed.text for one in second.examples})


def _notes(found: Directions, held_out: bool) -> tuple[str, ...]:
    notes = list(found.notes)
    if not held_out and found.kind != "pair":
        notes.append("not held out: directions were fitted on prompts that are steered")
    return tuple(notes)


def _silent(done: int, total: int) -> None:
    """No progress is wanted."""
