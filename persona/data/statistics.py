"""Uncertainty of means over pairs that share personas and questions.

Pairs that share a persona, on either side, or a question are not independent: two persona pairs with one
persona in common have half of what they are in common. Intervals and tests are those of the engine
(``circuit.statistics.intervals``), over personas and questions. ``docs/statistics.md`` has
coverage and levels by simulation.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from persona_circuits.circuit.statistics import (
    Clusters,
    blocks,
    cluster_codes,
    interval,
    is_zero,
    ratio_intervals,
    weighted_mean,
)

__all__ = ["Estimate", "clusters_of", "drawn_over", "ratio_of_means", "sign_flip", "two_way_difference", "two_way_mean"]

ENDS = ("low", "high")
Statistic = Callable[[NDArray[np.float64]], NDArray[np.float64]]
Name = str | tuple[str, str]
"""One persona, or the two of a pair in any order."""


@dataclass(frozen=True)
class Estimate:
    """A number with its 95 % percentile interval; the interval is None where it cannot be known."""

    value: float
    low: float | None
    high: float | None


def two_way_mean(
    values: Sequence[float],
    personas: Sequence[Name],
    questions: Sequence[str],
    *,
    within: tuple[float, float] = (-np.inf, np.inf),
    n_resamples: int = 2000,
    seed: int = 0,
) -> Estimate | None:
    """Mean of ``values`` with its interval over personas and questions; None without values.

    The interval ends where a mean of such values must end: ``within``, as 0 to 1 for shares.

    ``personas`` and ``questions`` name what each value is of. A single name of both
    kinds gives no interval: nothing could be drawn differently.
    """
    x = np.asarray(values, dtype=np.float64)
    if not len(x):
        return None
    estimate = _estimate(lambda weights: weights @ x, personas, questions, n_resamples, seed)
    ends = {name: None if (end := getattr(estimate, name)) is None else float(np.clip(end, *within)) for name in ENDS}
    return replace(estimate, value=float(x.mean()), **ends)


def two_way_difference(
    values: Sequence[float],
    is_second_group: Sequence[bool],
    personas: Sequence[Name],
    questions: Sequence[str],
    *,
    n_resamples: int = 2000,
    seed: int = 0,
) -> Estimate | None:
    """Mean of the second group minus mean of the rest, both under the same draws; None if either is empty."""
    x, late = np.asarray(values, dtype=np.float64), np.asarray(is_second_group, dtype=bool)
    if late.all() or not late.any():
        return None

    def difference(weights: NDArray[np.float64]) -> NDArray[np.float64]:
        return weighted_mean(weights[:, late], x[late]) - weighted_mean(weights[:, ~late], x[~late])

    return _estimate(difference, personas, questions, n_resamples, seed, late)


def ratio_of_means(
    numerators: NDArray[np.float64], denominator: NDArray[np.float64], clusters: Clusters, *, seed: int = 0
) -> tuple[Estimate, ...]:
    """Ratios of means over pairs, of ``numerators`` ``[number, pair]``, with their intervals over ``clusters``.

    nan without an interval where the denominator's mean is zero.
    """
    below = float(denominator.mean())
    bounds = ratio_intervals(numerators, denominator, clusters, seed=seed)
    return tuple(
        Estimate(
            float(values.mean() / below) if not is_zero(denominator) else float("nan"),
            *((None, None) if ends is None else (ends.low, ends.high)),
        )
        for values, ends in zip(numerators, bounds, strict=True)
    )


def sign_flip(
    values: Sequence[float],
    personas: Sequence[Name],
    questions: Sequence[str] | None = None,
    *,
    n_resamples: int = 2000,
    seed: int = 0,
) -> float | None:
    """Two-sided p of a mean of zero; None without values.

    The signs of all values of a persona pair are flipped together, or of a question where there is one persona pair
    alone: (1 + b) / (1 + B), where b of B draws have an |mean| of at least the one found, so p is never 0 and with k
    of them hardly below 2^(1-k). Without ``questions`` none are shared. Persona pairs with a persona in common
    must not be flipped apart, so p is no smaller than that of a t test with the cluster-robust spread over
    personas and questions.
    """
    x = np.asarray(values, dtype=np.float64)
    if not len(x):
        return None
    questions = [""] * len(x) if questions is None else questions
    clusters = clusters_of(personas, questions)
    pairs = [" / ".join(sorted(names)) for names in map(_both, personas)]
    codes, n_clusters = cluster_codes(pairs if len(set(pairs)) > 1 else questions)
    sums = np.bincount(codes, weights=x, minlength=n_clusters)
    rng = np.random.default_rng(seed)
    observed, extreme = abs(sums.sum()), 0
    for block in blocks(n_resamples):
        signs = rng.choice((-1.0, 1.0), size=(block, n_clusters))
        extreme += int((np.abs(signs @ sums) >= observed * (1 - 1e-9)).sum())
    p = (1 + extreme) / (1 + n_resamples)
    return p if clusters.by == "pairs" else max(p, clusters.p_value(abs(float(x.mean())), x - x.mean()))


def _estimate(
    statistic: Statistic,
    personas: Sequence[Name],
    questions: Sequence[str],
    n_resamples: int,
    seed: int,
    groups: NDArray[np.bool_] | None = None,
) -> Estimate:
    n = len(questions)
    value = float(statistic(np.full((1, n), 1 / n))[0])
    if len({frozenset(names) for names in map(_both, personas)}) == len(set(questions)) == 1:
        return Estimate(value, None, None)
    clusters = clusters_of(personas, questions)
    bounds = interval(
        statistic, clusters if groups is None else clusters.between(groups), n_draws=n_resamples, seed=seed
    )
    return Estimate(value, None, None) if bounds is None else Estimate(value, bounds.low, bounds.high)


def drawn_over(personas: Sequence[Name], questions: Sequence[str]) -> str:
    """What intervals over these pairs are drawn over, in words."""
    return clusters_of(personas, questions).describe()


def clusters_of(personas: Sequence[Name], questions: Sequence[str]) -> Clusters:
    """What values share that are each of these personas and this question."""
    first, second = zip(*map(_both, personas), strict=True)
    return Clusters.named(first, second, questions)


def _both(name: Name) -> tuple[str, str]:
    return (name, name) if isinstance(name, str) else name
