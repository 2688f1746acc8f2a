"""Every alpha and layer of a steering study, measured."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from persona_circuits import metrics
from persona_circuits.circuit.model import Model
from persona_circuits.circuit.progress import Progress
from persona_circuits.persona.data import Estimate, two_way_mean
from persona_circuits.persona.steering.options import SteerOptions
from persona_circuits.persona.steering.passes import added, steered_logits, without_direction
from persona_circuits.persona.steering.results import (
    REFINEMENTS,
    Bound,
    Cell,
    Margins,
    Measured,
    Outcome,
    SteeredPrompts,
    Vectors,
)
from persona_circuits.persona.streams import Change, id_table

__all__ = ["Named", "Run", "enter"]


@dataclass(frozen=True, eq=False)
class Named:
    """The direction (draw -1) or a control, as vectors ``[pair, d_model]`` by layer."""

    control: str
    draw: int
    vectors: Vectors


class Run:
    """One study's measurements: the same prompts under different changes."""

    def __init__(
        self,
        model: Model,
        prompts: SteeredPrompts,
        options: SteerOptions,
        plain: Margins,
        reference: Float[Tensor, "pair vocab"],
        progress: Progress,
        n_groups: int = 0,
        n_named: int = 0,
    ) -> None:
        self.model, self.prompts, self.options = model, prompts, options
        self.plain, self.reference, self.progress = plain, reference, progress
        self.done = 0
        of_all = n_named * (2 * (len(options.strengths) + 1) + options.ablate)
        self.total = len(prompts) * (3 * of_all + 2 * n_groups * REFINEMENTS)

    def measure(self, steps: Sequence[tuple[Vectors, float]]) -> list[Measured]:
        """All prompts under plus and minus the vectors, for every step: vectors and a strength."""
        signed = [(vectors, sign * strength) for vectors, strength in steps for sign in (1, -1)]
        measured = self._under(signed, self._adding)
        return [
            Measured(plus[0], minus[0], np.stack([plus[1], minus[1]]))
            for plus, minus in zip(measured[::2], measured[1::2], strict=True)
        ]

    def outcomes(self, layers: tuple[int, ...], item: Named, measured: Sequence[Measured]) -> list[Outcome]:
        """Both signs of every strength, from the most negative."""
        signed = [(sign, s, m) for s, m in zip(self.options.strengths, measured, strict=True) for sign in (-1, 1)]
        signed.sort(key=lambda step: step[0] * step[1])
        return [self._outcome(layers, item, sign * s, m.margins(sign), m.kl.mean(0)) for sign, s, m in signed]

    def ablations(self, named: Sequence[tuple[tuple[int, ...], Named]]) -> list[Outcome]:
        """The direction, and every control, taken out after every block from the first of its layers on."""
        n = self.model.graph.n_layers
        variants = [
            ({layer: item.vectors.get(layer, item.vectors[layers[0]]) for layer in range(layers[0], n)}, 1.0)
            for layers, item in named
        ]
        results = self._under(variants, lambda rows, _: without_direction(rows), only_last=False)
        return [self._outcome(layers, item, None, *x) for (layers, item), x in zip(named, results, strict=True)]

    def bounds(
        self, named: Sequence[tuple[tuple[int, ...], Named]], swept: Mapping[tuple[int, ...], Sequence[Measured]]
    ) -> list[Bound]:
        """The largest strength within the KL bound, found in the sweep's first step out of it by regula falsi."""
        strengths, limit = self.options.strengths, self.options.kl_bound
        first_over = {
            layers: next((i for i, m in enumerate(results) if m.kl.mean() > limit), None)
            for layers, results in swept.items()
        }
        ends = {layers: _ends(first_over[layers], strengths, results) for layers, results in swept.items()}
        vectors = {layers: item.vectors for layers, item in named if item.draw < 0}
        for _ in range(REFINEMENTS):
            guesses = {layers: _between(*at, limit) for layers, at in ends.items()}
            signed = [(vectors[layers], sign * guess) for layers, guess in guesses.items() for sign in (1, -1)]
            results = self._under(signed, self._adding, only_neutral=True)
            for place, (layers, guess) in enumerate(guesses.items()):
                here = guess, float(np.mean([kl for _, kl in results[2 * place : 2 * place + 2]]))
                ends[layers] = (here, ends[layers][1]) if here[1] <= limit else (ends[layers][0], here)
        measured = self.measure([(item.vectors, ends[layers][0][0]) for layers, item in named])
        return [
            self._bound(layers, ends[layers][0][0], over is None, [
                (item, m) for (group, item), m in zip(named, measured, strict=True) if group == layers
            ])
            for layers, over in first_over.items()
        ]  # fmt: skip

    def _bound(
        self, layers: tuple[int, ...], strength: float, is_largest: bool, results: Sequence[tuple[Named, Measured]]
    ) -> Bound:
        (direction, measured), *others = results
        gains: dict[str, tuple[float, ...]] = {}
        for item, other in others:
            gains[item.control] = (*gains.get(item.control, ()), self.gain(other.margins(1)))
        outcome = self._outcome(layers, direction, strength, measured.margins(1), measured.kl.mean(0))
        return Bound(layers, strength, is_largest, outcome, gains)

    def _adding(self, rows: Mapping[int, Tensor], places: Sequence[int]) -> Mapping[int, Change]:
        return added(rows, self.options.positions, places)

    def _under(
        self,
        variants: Sequence[tuple[Vectors, float]],
        changing: Callable[[Mapping[int, Tensor], Sequence[int]], Mapping[int, Change]],
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
            tensors = {layer: torch.from_numpy(array) for layer, array in rows.items() if array.any()}
            return changing(tensors, [self.prompts.places[i] for _, i in cells] if self.options.named else ())

        margins, kl = np.full((len(variants), 2, n), np.nan), np.empty((len(variants), n))
        for cells, logits in steered_logits(
            self.model,
            prompts,
            len(variants),
            changes,
            only_last=only_last and self.options.positions == "prompt-end",
            batch_size=self.options.batch_size,
        ):
            enter(cells, logits, self.prompts, self.reference, margins, kl)
            self.done += len(cells)
            self.progress(self.done, self.total)
        return list(zip(margins, kl, strict=True))

    def gain(self, margins: Margins) -> float:
        """D of these margins over D unsteered."""
        whole = float((self.plain[0] - self.plain[1]).mean())
        return float((margins[0] - margins[1]).mean()) / whole if whole else float("nan")

    def _outcome(
        self,
        layers: tuple[int, ...],
        item: Named,
        strength: float | None,
        margins: Margins,
        kl: Float[np.ndarray, " pair"],
    ) -> Outcome:
        before, now = _Sides(self.plain), _Sides(margins)
        positive = before.divergence > 0
        gains = now.divergence[positive] / before.divergence[positive]
        needed = 2 * np.abs(before.prior[positive]) / before.divergence[positive]
        differ, above = now.parted[positive], gains > needed
        collapsed = positive & ~before.parted
        return Outcome(
            layers,
            item.control,
            item.draw,
            strength,
            self._estimate(now.divergence),
            self.gain(margins),
            float(np.abs(now.prior - before.prior).mean()),
            float(now.parted.mean()),
            float(((margins > 0) != (self.plain > 0)).mean()),
            self._estimate(kl),
            int(positive.sum()),
            float(above.mean()) if positive.any() else None,
            float((differ == above).mean()) if positive.any() else None,
            int(collapsed.sum()),
            float(now.parted[collapsed].mean()) if collapsed.any() else None,
        )

    def _estimate(self, values: Float[np.ndarray, " pair"]) -> Estimate:
        options, prompts = self.options, self.prompts
        estimate = two_way_mean(
            values.tolist(), prompts.personas, prompts.questions, n_resamples=options.n_resamples, seed=options.seed
        )
        assert estimate is not None, "there is a pair"
        return estimate


class _Sides:
    """Both sides' margins as D, b, and whether the two personas answer differently."""

    def __init__(self, margins: Margins) -> None:
        self.divergence: Float[np.ndarray, " pair"] = margins[0] - margins[1]
        self.prior: Float[np.ndarray, " pair"] = margins.mean(0)
        self.parted: Bool[np.ndarray, " pair"] = (margins[0] > 0) & (margins[1] < 0)


def _ends(
    over: int | None, strengths: Sequence[float], measured: Sequence[Measured]
) -> tuple[tuple[float, float], tuple[float, float]]:
    """The last strength within the bound and the first out of it, each with its KL; the same twice if none is out."""
    known = [(0.0, 0.0), *((s, float(m.kl.mean())) for s, m in zip(strengths, measured, strict=True))]
    return (known[-1], known[-1]) if over is None else (known[over], known[over + 1])


def _between(low: tuple[float, float], high: tuple[float, float], limit: float) -> float:
    """Where the KL would reach the bound if it grew with the square of the strength, as it does while it is small."""
    roots = [np.sqrt(kl) for _, kl in (low, high)]
    share = (np.sqrt(limit) - roots[0]) / (roots[1] - roots[0]) if roots[1] > roots[0] else 0.5
    return low[0] + 0.995 * float(np.clip(share, 0.05, 1.0)) * (high[0] - low[0])


def enter(
    cells: Sequence[Cell],
    logits: Float[Tensor, "batch vocab"],
    prompts: SteeredPrompts,
    reference: Float[Tensor, "pair vocab"] | None,
    margins: Float[np.ndarray, "variant 2 pair"],
    kl: Float[np.ndarray, "variant pair"],
) -> None:
    """Write a batch's results into the arrays: the KL of neutral prompts, the margins of A's and B's."""
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


def _margins(
    logits: Float[Tensor, "batch vocab"], prompts: SteeredPrompts, group: Sequence[int]
) -> Float[np.ndarray, " batch"]:
    sides = [id_table([answers[i] for i in group]) for answers in prompts.answers]
    return metrics.logit_diff(logits, *sides).numpy()
