"""How much of the behaviour a circuit explains, with the raw terms beside every ratio.

    f(C) = (m(C) - m(empty)) / (m(full) - m(empty))

The headline is the ratio of means over pairs; the mean of the pairs' ratios is a
different number and stands beside it. Both directions of a swapped pair belong
to one pair: they are averaged first and resampled together.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np

from circuit.graph import Graph
from circuit.model import Model
from circuit.patching import Prepared, Progress, measure
from circuit.pruning import greedy
from circuit.attribution import random_scores
from circuit.subgraph import Circuit
from metrics import Metric

__all__ = ["Faithfulness", "FaithfulnessReport", "Interval", "evaluate", "random_circuits"]

N_BOOTSTRAP = 2000
FLAT = 1e-6


@dataclass(frozen=True)
class Interval:
    """A percentile bootstrap interval over pairs."""

    low: float
    high: float


@dataclass(frozen=True)
class Faithfulness:
    """One circuit's faithfulness.

    ``m`` is the mean metric. ``ratio_of_means`` and ``mean_of_ratios`` are None where
    the behaviour to explain, m(full) - m(empty), is zero; pairs whose own is zero are
    left out of the mean of ratios (``n_ratios`` are in).
    """

    n_edges: int
    m: float
    ratio_of_means: float | None
    interval: Interval | None
    mean_of_ratios: float | None
    n_ratios: int


@dataclass(frozen=True)
class FaithfulnessReport:
    """A circuit, its complement and random circuits of its size on a set of pairs.

    ``random_mean`` and ``random_sd`` are over the random circuits' ``ratio_of_means``;
    ``random`` holds each.
    """

    metric: str
    split: str
    n_pairs: int
    m_full: float
    m_empty: float
    circuit: Faithfulness
    complement: Faithfulness
    random: tuple[float, ...]
    random_mean: float | None
    random_sd: float | None


def evaluate(
    model: Model,
    prepared: Callable[[], Iterable[Prepared]],
    metric: Metric,
    circuit: Circuit,
    *,
    split: str,
    n_random: int = 10,
    seed: int = 0,
    progress: Progress | None = None,
) -> FaithfulnessReport:
    """Faithfulness of a circuit, of its complement, and of random circuits of the same size.

    Parameters
    ----------
    prepared
        Gives the batches; called once.
    n_random
        Number of random circuits, each connected and of (about) the circuit's size.
    seed
        Of the random circuits and of the bootstrap.
    """
    graph = model.graph
    fixed = [Circuit.full(graph), Circuit.empty(graph), circuit, circuit.complement()]
    controls = random_circuits(graph, len(circuit), n_random, seed=seed)
    masks = [c.mask for c in (*fixed, *controls)]
    values = _per_pair(measure(model, prepared(), masks, metric, progress=progress), metric)
    full, empty = values[0], values[1]

    def faithfulness(index: int, size: int) -> Faithfulness:
        return _faithfulness(values[index], full, empty, size, seed)

    random = [faithfulness(4 + i, len(control)).ratio_of_means for i, control in enumerate(controls)]
    known = [value for value in random if value is not None]
    return FaithfulnessReport(
        metric=metric.name,
        split=split,
        n_pairs=values.shape[1],
        m_full=float(full.mean()),
        m_empty=float(empty.mean()),
        circuit=faithfulness(2, len(circuit)),
        complement=faithfulness(3, len(fixed[3])),
        random=tuple(known),
        random_mean=float(np.mean(known)) if known else None,
        random_sd=float(np.std(known, ddof=1)) if len(known) > 1 else None,
    )


def random_circuits(graph: Graph, n_edges: int, count: int, *, seed: int) -> list[Circuit]:
    """Connected random circuits of ``n_edges`` edges: random scores, grown backward from ``logits``.

    Growing drops what does not reach ``input``, so it is given more edges until the
    size is reached; the size is then that of the nearest try.
    """
    if n_edges == 0:
        return []
    return [_random_circuit(graph, n_edges, seed + 1 + i) for i in range(count)]


def _random_circuit(graph: Graph, n_edges: int, seed: int) -> Circuit:
    scores = random_scores(graph, seed=seed)
    low, high = 1, graph.n_edges
    while low < high:
        middle = (low + high) // 2
        if len(greedy(scores, middle)) < n_edges:
            low = middle + 1
        else:
            high = middle
    return min((greedy(scores, n) for n in (max(1, low - 1), low)), key=lambda c: abs(len(c) - n_edges))


def _per_pair(values: np.ndarray, metric: Metric) -> np.ndarray:
    """Average the two directions of each pair; ``[mask, pair]``."""
    return values.reshape(len(values), -1, 2).mean(axis=2) if metric.swap_rows else values


def _faithfulness(values: np.ndarray, full: np.ndarray, empty: np.ndarray, n_edges: int, seed: int) -> Faithfulness:
    span = full - empty
    usable = np.abs(span) > FLAT
    ratios = (values - empty)[usable] / span[usable]
    defined = abs(span.mean()) > FLAT
    return Faithfulness(
        n_edges=n_edges,
        m=float(values.mean()),
        ratio_of_means=float((values - empty).mean() / span.mean()) if defined else None,
        interval=_bootstrap(values - empty, span, seed) if defined else None,
        mean_of_ratios=float(ratios.mean()) if len(ratios) else None,
        n_ratios=len(ratios),
    )


def _bootstrap(numerator: np.ndarray, denominator: np.ndarray, seed: int) -> Interval | None:
    """95 % percentile interval of the ratio of means over resampled pairs; None for a single pair."""
    n = len(numerator)
    if n < 2:
        return None
    picks = np.random.default_rng(seed).integers(0, n, size=(N_BOOTSTRAP, n))
    below = denominator[picks].mean(axis=1)
    ratios = numerator[picks].mean(axis=1)[np.abs(below) > FLAT] / below[np.abs(below) > FLAT]
    low, high = np.percentile(ratios, [2.5, 97.5]) if len(ratios) else (np.nan, np.nan)
    return Interval(float(low), float(high)) if len(ratios) else None
