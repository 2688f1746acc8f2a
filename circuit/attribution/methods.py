"""Scores by the name of their method, whole or in parts, and the cost of half-precision activations."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool
from torch import Tensor

from persona_circuits.circuit import parallel
from persona_circuits.circuit.attribution.atp_star import atp_star, atp_star_rows
from persona_circuits.circuit.attribution.eap import (
    ACTIVATIONS,
    ceap,
    clean_corrupted,
    eap,
    eap_ig,
    eap_ig_activations,
    fitting,
    gradient_passes,
    n_rows_of,
    points_of,
    report,
    scores_at,
)
from persona_circuits.circuit.attribution.exact import exact, exact_rows, rows_of_all
from persona_circuits.circuit.attribution.gradients import Ends
from persona_circuits.circuit.attribution.parts import PARTS, ScoreParts
from persona_circuits.circuit.choices import GRADIENTS, METHODS
from persona_circuits.circuit.errors import OptionError, meant
from persona_circuits.circuit.forward import Ablation, Prepared, bare, first_difference, in_halves
from persona_circuits.circuit.graph import Graph
from persona_circuits.circuit.model import RULES, Model
from persona_circuits.circuit.progress import Progress
from persona_circuits.circuit.scores import Scores
from persona_circuits.circuit.task import Batch
from persona_circuits.metrics import Metric

__all__ = [
    "METHODS",
    "ActivationCost",
    "Completeness",
    "Scoring",
    "activation_cost",
    "completeness_of",
    "random_scores",
    "score",
    "score_parts",
]


@dataclass(frozen=True)
class Scoring:
    """How edges are scored; options that a method does not have are ignored.

    ``steps`` are the points of EAP-IG, and ``rule`` where they lie; ``seed`` is that of random scores.
    ``activations="bfloat16"`` multiplies matrices in that format (torch's autocast) and adds up in float32;
    ``activation_cost`` measures how that changes the scores. ``max_bytes`` bounds the scratch memory of their products.
    """

    method: str = "eap-ig"
    steps: int = 5
    rule: str = "midpoint"
    seed: int = 0
    activations: str = "float32"
    max_bytes: int | None = None


def score(
    model: Model,
    batches: Sequence[Batch | Prepared],
    metric: Metric,
    scoring: Scoring | None = None,
    *,
    ablation: Ablation | None = None,
    progress: Progress | None = None,
) -> Scores:
    """A score for every edge, by EAP-IG by default.

    Raises:
        OptionError: the method or an option of it is unknown or makes no sense.
    """
    scoring = scoring or Scoring()
    method, steps, rule = scoring.method, scoring.steps, scoring.rule
    more: dict[str, Any] = {"ablation": ablation, "max_bytes": scoring.max_bytes, "progress": progress}
    if method in GRADIENTS:
        with _activations(model, scoring.activations):
            if method == "eap-ig":
                return eap_ig(model, batches, metric, steps=steps, rule=rule, **more)
            if method == "eap-ig-activations":
                return eap_ig_activations(model, batches, metric, steps=steps, rule=rule, **more)
            if method == "ceap":
                return ceap(model, batches, metric, steps=steps, **more)
            if method == "clean-corrupted":
                return clean_corrupted(model, batches, metric, **more)
            return eap(ruled(model, method), batches, metric, **more)
    if method == "atp-star":
        return atp_star(model, batches, metric, ablation=ablation, progress=progress)
    if method == "exact":
        return exact(model, batches, metric, ablation=ablation, progress=progress)
    if method == "random":
        return random_scores(model.graph, seed=scoring.seed)
    raise OptionError(f"method {method!r} is not one of {', '.join(METHODS)}{meant(method, METHODS)}")


def score_parts(
    model: Model,
    batches: Sequence[Batch | Prepared],
    metric: Metric,
    scoring: Scoring | None = None,
    *,
    by: str,
    ablation: Ablation | None = None,
    progress: Progress | None = None,
) -> ScoreParts:
    """Scores by gradients per row or per named part of the prompts, exact ones per row, at the cost of the plain ones.

    Raises:
        OptionError: the method has no parts, or an option makes no sense.
    """
    scoring = scoring or Scoring()
    method, max_bytes = scoring.method, scoring.max_bytes
    if by == "row" and method == "exact":
        return exact_rows(model, batches, metric, ablation, progress)
    if by == "row" and method == "atp-star":
        rows: dict[int, np.ndarray] = {}
        for some in atp_star_rows(model, batches, metric, ablation=ablation, progress=progress):
            rows |= {index: values.astype(np.float32) for index, values in some.items()}
        return rows_of_all(rows, model.graph)
    if by not in PARTS or method not in GRADIENTS:
        raise OptionError(f"scores per {by} of --method {method}: expected row or span, of {', '.join(GRADIENTS)}")
    model = ruled(model, method)
    points = points_of(metric, method, scoring.steps, scoring.rule)
    names = _part_names([bare(batch) for batch in batches], by)
    values = np.zeros((len(names), *model.graph.valid.shape), dtype=np.float32 if by == "row" else np.float64)
    n_rows = n_rows_of(batches)
    place = {name: i for i, name in enumerate(names)}

    def of_batch(batch: Batch | Prepared) -> np.ndarray:
        cells, first = _cells_of(bare(batch), by), first_difference(batch, ablation)
        total = np.zeros((len(cells), *model.graph.valid.shape))
        masks = [mask[:, first:] for _, mask in cells]

        def add(ends: Ends, delta: Tensor, share: float) -> None:
            total[:] += scores_at(model, ends, delta, max_bytes=max_bytes, cells=masks) * share

        gradient_passes(model, batch, metric, points, ablation, first, add)
        values[[place[name] for name, _ in cells]] += total if by == "row" else total / n_rows
        return total

    for done, batch in enumerate(batches, 1):
        for part in fitting(model, batch, points, ablation):
            in_halves(of_batch, part)
        report(progress, done, len(batches))
    if by == "span":
        return ScoreParts(model.graph, by, names, parallel.summed(values))
    return rows_of_all({int(name): value for name, value in zip(names, values, strict=True)}, model.graph)


@dataclass(frozen=True)
class ActivationCost:
    """Scores in half precision against float32: Pearson's r, and the largest difference over the largest score."""

    activations: str
    n_prompts: int
    correlation: float
    largest: float


def activation_cost(
    model: Model, batch: Batch, metric: Metric, scoring: Scoring, ablation: Ablation | None = None
) -> ActivationCost:
    """How far scores with activations in this format agree with float32, on one batch.

    Raises:
        OptionError: the model is not in float32, or there is no such format.
    """
    valid = model.graph.valid
    long, short = (
        score(model, [batch], metric, replace(scoring, activations=name), ablation=ablation).values[valid]
        for name in ("float32", scoring.activations)
    )
    r = float(np.corrcoef(long, short)[0, 1]) if long.any() and short.any() else float("nan")
    return ActivationCost(
        scoring.activations, len(batch), r, float(np.abs(long - short).max() / max(np.abs(long).max(), 1e-12))
    )


@dataclass(frozen=True)
class Completeness:
    """How well EAP-IG's points suffice: the scores of the edges that leave ``input`` sum to the effect in the limit.

    The completeness of integrated gradients (Sundararajan et al. 2017, arXiv:1703.01365). ``attributed`` is that sum,
    ``effect`` m(ablated) - m(clean), and ``gap`` the difference as a share of |effect|. Where the path between the
    embeddings does not end in the ablated run, ``effect`` and ``gap`` are None and ``reason`` says why.
    """

    steps: int
    attributed: float
    effect: float | None = None
    gap: float | None = None
    reason: str = ""

    MOST = 0.05

    @property
    def wide(self) -> bool:
        """Whether the gap is larger than 5 %."""
        return self.gap is not None and self.gap > self.MOST

    def as_dict(self) -> dict[str, Any]:
        """Plain values, as the circuit file holds them."""
        return {"attributed": self.attributed, "effect": self.effect, "gap": self.gap, "reason": self.reason}


def completeness_of(
    scores: Scores, batches: Sequence[Batch | Prepared], whole: float, *, steps: int, ablation: str = "corrupt"
) -> Completeness:
    """How far EAP-IG's scores miss ``-whole``, m(full) - m(empty) on the same prompts, without a further pass.

    It holds where a run from the ablated embeddings is the ablated run: the corrupt or the neutral prompt's, of the
    clean one's length. With constants, and with prompts of unequal length, more is ablated than the embeddings.
    """
    attributed = float(scores.values[0].sum())
    moved = {"corrupt": "corrupt_to_clean", "neutral": "neutral_to_clean"}.get(ablation)
    if moved is None:
        return Completeness(steps, attributed, reason=f"--ablation {ablation} changes more than the embeddings")
    if any(getattr(batch, moved) is not None for batch in map(bare, batches)):
        return Completeness(steps, attributed, reason="prompts of unequal length are aligned onto each other's places")
    gap = abs(attributed + whole) / abs(whole) if whole else None
    return Completeness(steps, attributed, -whole, gap, "" if whole else "the ablation has no effect")


def ruled(model: Model, method: str) -> Model:
    """The model under the method's backward rules; the model itself for a method without any."""
    return model.under(RULES[method]) if method in RULES else model


def random_scores(graph: Graph, *, seed: int) -> Scores:
    """Standard normal scores, the control.

    Returns
    -------
    A score for every edge; the same seed gives the same ones.
    """
    return Scores(graph, np.random.default_rng(seed).standard_normal(graph.valid.shape))


def _activations(model: Model, name: str) -> AbstractContextManager[Any]:
    if name not in ACTIVATIONS:
        raise OptionError(f"--activations {name!r} is not one of {', '.join(ACTIVATIONS)}")
    if name == "float32":
        return nullcontext()
    if model.dtype != torch.float32:
        raise OptionError(f"--activations {name} needs --dtype float32, the model is in {model.dtype}")
    return torch.autocast(model.device.type, torch.bfloat16)


def _part_names(batches: Sequence[Batch], by: str) -> tuple[str, ...]:
    if by == "row":
        return tuple(str(index) for index in sorted(index for batch in batches for index in batch.indices))
    here = {(i, name): name for batch in batches for i, name in enumerate(batch.span_names)}
    return tuple(dict.fromkeys(name for _, name in sorted(parallel.gathered(here).items())))


def _cells_of(batch: Batch, by: str) -> list[tuple[str, Bool[Tensor, "batch pos"]]]:
    """The places of a batch that belong to each part; places that are padding belong to none."""
    if by == "span":
        assert batch.spans is not None
        return [(name, batch.spans == batch.span_names.index(name)) for name in batch.span_names]
    rows = torch.arange(len(batch), device=batch.clean.device)[:, None].expand(batch.clean.shape)
    return [(str(index), rows == i) for i, index in enumerate(batch.indices)]
