"""Uncertainty of means over pairs that share personas and questions.

Pairs with the same personas, or with the same question, are not independent. The
two-way cluster bootstrap (Owen 2007, "the pigeonhole bootstrap") draws both kinds of
clusters with replacement; a pair counts as often as its two clusters were drawn,
multiplied. The sign-flip permutation turns the sign of all pairs of a cluster together.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from circuit.uncertainty import Clusters, blocks, cluster_codes, drawn, is_zero, ratio_intervals, weighted_mean

__all__ = ["Estimate", "ratio_of_means", "sign_flip", "two_way_difference", "two_way_mean"]

Statistic = Callable[[NDArray[np.float64]], NDArray[np.float64]]


@dataclass(frozen=True)
class Estimate:
    """A number with its 95 % percentile interval; the interval is None where it cannot be known."""

    value: float
    low: float | None
    high: float | None


def two_way_mean(
    values: Sequence[float],
    first: Sequence[str],
    second: Sequence[str],
    *,
    n_resamples: int = 2000,
    seed: int = 0,
) -> Estimate | None:
    """Mean of ``values`` with a two-way cluster bootstrap interval; None without values.

    ``first`` and ``second`` name the clusters of each value. A single cluster of both
    kinds gives no interval: nothing could be drawn differently.
    """
    x = np.asarray(values, dtype=np.float64)
    if not len(x):
        return None
    return _estimate(lambda weights: weighted_mean(weights, x), len(x), first, second, n_resamples, seed)


def two_way_difference(
    values: Sequence[float],
    is_second_group: Sequence[bool],
    first: Sequence[str],
    second: Sequence[str],
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

    return _estimate(difference, len(x), first, second, n_resamples, seed)


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
            float(one.mean() / below) if not is_zero(denominator) else float("nan"),
            *((None, None) if ends is None else (ends.low, ends.high)),
        )
        for one, ends in zip(numerators, bounds, strict=True)
    )


def sign_flip(
    values: Sequence[float], clusters: Sequence[str], *, n_resamples: int = 2000, seed: int = 0
) -> float | None:
    """Two-sided p of a mean of zero under random signs per cluster: (1 + b) / (1 + B); None without values.

    b of B draws have an |mean| of at least the one found, so p is never 0. With k
    clusters p can hardly fall below 2^(1-k).
    """
    x = np.asarray(values, dtype=np.float64)
    if not len(x):
        return None
    codes, n_clusters = cluster_codes(clusters)
    sums = np.bincount(codes, weights=x, minlength=n_clusters)
    rng = np.random.default_rng(seed)
    found, extreme = abs(sums.sum()), 0
    for block in blocks(n_resamples):
        signs = rng.choice((-1.0, 1.0), size=(block, n_clusters))
        extreme += int((np.abs(signs @ sums) >= found * (1 - 1e-9)).sum())
    return (1 + extreme) / (1 + n_resamples)


def _estimate(
    statistic: Statistic, n: int, first: Sequence[str], second: Sequence[str], n_resamples: int, seed: int
) -> Estimate:
    value = float(statistic(np.ones((1, n)))[0])
    (codes_1, n_1), (codes_2, n_2) = cluster_codes(first), cluster_codes(second)
    if n_1 == 1 and n_2 == 1:
        return Estimate(value, None, None)
    rng = np.random.default_rng(seed)
    found = [
        statistic(drawn(rng, n_1, block)[:, codes_1] * drawn(rng, n_2, block)[:, codes_2])
        for block in blocks(n_resamples)
    ]
    known = np.concatenate(found)
    known = known[np.isfinite(known)]  # a draw that holds no pair at all says nothing
    if not len(known):
        return Estimate(value, None, None)
    low, high = np.percentile(known, (2.5, 97.5))
    return Estimate(value, float(low), float(high))
