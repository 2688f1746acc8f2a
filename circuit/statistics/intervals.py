"""Intervals of numbers over pairs that share personas and questions.

Pairs that share a persona, on either side, or a question are not independent: resampled as if they were, they give
intervals that are too narrow. No bootstrap is exact for crossed clusters (McCullagh 2000), so two known parts are put
together:

1. *draws*: the pigeonhole bootstrap (Owen 2007, arXiv:0712.1111). Personas and questions are
   drawn with replacement and a pair counts as often as its clusters were drawn, multiplied:
   w[persona_a] w[persona_b] w[question] (for pairs of units: Davezies, D'Haultfoeuille and
   Guyonvarch 2021, arXiv:1906.11293). They give the interval its shape. Alone they are up to
   seven times too wide in variance, since a pair's own noise is drawn three times.
2. *spread*: the cluster-robust variance, in which any two pairs that share a cluster may be
   correlated (Cameron, Gelbach and Miller 2011, by inclusion and exclusion; for personas on
   either side Aronow, Samii and Assenova 2015, arXiv:1312.3398). Its bias and its degrees of
   freedom follow from a model in which every cluster has an effect of its own (Bell and
   McCaffrey 2002; Imbens and Kolesar 2016). Where effects are nested it can
   come out too small, even below zero; so the widest of five is taken: of sharing anything, a
   persona, both personas, a question, and nothing.

The drawn weights are moved towards equal ones, or away from them, until the number's spread is, to
first order, the robust one times the t quantile of its degrees of freedom. The interval goes from the
2.5th to the 97.5th percentile of the number under these weights.

Clusters with fewer than two degrees of freedom (two personas, two questions) do not generalise and are not drawn; where
neither is, pairs are resampled, and their spread is widened in the same way: by the t quantile of n - 1 degrees of
freedom, and from the bootstrap's variance to the unbiased one. ``Interval.by`` and ``Clusters.note`` say what was
drawn. Coverage, by simulation: ``docs/statistics.md``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray

from persona_circuits.circuit.statistics.clusters import N_BOOTSTRAP, Clusters, blocks

__all__ = [
    "LEAST_SHARE",
    "Interval",
    "PairSample",
    "detectable_ratio",
    "interval",
    "is_zero",
    "ratio_interval",
    "ratio_intervals",
    "ratio_p_values",
    "weighted_mean",
]

NOTHING = 1e-9  # of the mean |value|: a smaller mean is a sum that cancels but for rounding in float64
LEAST_SHARE = 1e-4  # of a denominator: draws under which less of it is left are left out
MOST_UNDEFINED = 0.05  # of the draws: where more of them have no denominator, an end could lie anywhere
STEP = 1e-6  # of a finite difference in one pair's weight
Statistic = Callable[[NDArray[np.float64]], NDArray[np.float64]]
"""From weights ``[draw, pair]``, each row of sum one, to one number per draw; nan where it is not defined."""


@dataclass(frozen=True)
class Interval:
    """A 95 % bootstrap interval; ``by`` says what was drawn: ``pairs``, or what they share."""

    low: float
    high: float
    by: str = "pairs"


def interval(
    statistic: Statistic,
    clusters: Clusters,
    *,
    influence: Float[np.ndarray, " pair"] | None = None,
    n_draws: int = N_BOOTSTRAP,
    seed: int = 0,
) -> Interval | None:
    """The interval of any number that is a smooth function of the pairs' weights.

    Parameters
    ----------
    statistic
        The number under weights ``[draw, pair]``.
    influence
        What each pair adds to it, of mean zero; from finite differences if it is not given.

    Returns
    -------
    None for a single pair, where the number is not defined under any draw, and where clusters are too few to know the
    spread of a difference (``Clusters.between``).
    """
    if clusters.n < 2:
        return None
    if influence is None:
        influence = _influence(statistic, clusters.n)
    if not np.isfinite(clusters.spread(influence[:, None])):
        return None
    weights = clusters.weights(influence[:, None], n_draws=n_draws, seed=seed, confident=True)
    values = np.concatenate([statistic(part) for part in np.array_split(weights, len(blocks(len(weights))))])
    values = values[np.isfinite(values)]
    if not len(values):
        return None
    low, high = np.percentile(values, [2.5, 97.5])
    return Interval(float(low), float(high), clusters.by)


def ratio_interval(
    numerator: Float[np.ndarray, " pair"],
    denominator: Float[np.ndarray, " pair"],
    clusters: Clusters,
    *,
    n_draws: int = N_BOOTSTRAP,
    seed: int = 0,
) -> Interval | None:
    """The interval of a ratio of means; draws whose denominator is zero or of the other sign are left out.

    None where these are more than a twentieth: beyond the pole a ratio comes back from the other side, and an interval
    would have to hold both (Fieller 1954).
    """
    if is_zero(denominator):
        return None
    below, undefined = denominator.mean(), 0

    def ratio(weights: NDArray[np.float64]) -> NDArray[np.float64]:
        nonlocal undefined
        bottom = weights @ denominator
        known = bottom / below > LEAST_SHARE
        undefined += int((~known).sum())
        return np.divide(weights @ numerator, bottom, out=np.full(len(bottom), np.nan), where=known)

    influence = (numerator - numerator.mean() / below * denominator) / below
    if np.abs(influence).max() < NOTHING:  # one ratio on every pair: rounding is no spread
        influence = np.zeros_like(influence)
    bounds = interval(ratio, clusters, influence=influence, n_draws=n_draws, seed=seed)
    return bounds if undefined <= MOST_UNDEFINED * n_draws else None


@dataclass(frozen=True, eq=False)
class PairSample:
    """The pairs that a number is of, as a sample of such pairs: what its intervals are drawn from.

    ``split`` is its name, ``clusters`` what the pairs share, in the order of their rows; without it pairs are drawn
    as if they shared nothing. ``seed`` is that of whatever is drawn.
    """

    split: str = "all"
    clusters: Clusters | None = None
    seed: int = 0

    def over(self, n: int) -> Clusters:
        """What ``n`` pairs share."""
        return self.clusters or Clusters(n, None, None)

    def ratio(self, numerator: Float[np.ndarray, " pair"], denominator: Float[np.ndarray, " pair"]) -> Interval | None:
        """The interval of a ratio of means; None for a single pair."""
        n = len(numerator)
        return None if n < 2 else ratio_interval(numerator, denominator, self.over(n), seed=self.seed)


def ratio_intervals(
    numerators: Float[np.ndarray, "number pair"],
    denominator: Float[np.ndarray, " pair"],
    clusters: Clusters,
    *,
    n_draws: int = N_BOOTSTRAP,
    seed: int = 0,
) -> tuple[Interval | None, ...]:
    """``ratio_interval`` of many numerators over one denominator, the same numbers from one set of draws."""
    if is_zero(denominator) or clusters.n < 2:
        return (None,) * len(numerators)
    weights = clusters.draws(n_draws=n_draws, seed=seed)
    below = weights @ denominator
    intervals = []
    for numerator, influence in zip(numerators, _ratio_influences(numerators, denominator), strict=True):
        own = float((weights @ influence).std())
        stretch = clusters.spread(influence[:, None], confident=True) / own if own > NOTHING else 1.0
        above = numerator.mean() + stretch * (weights @ numerator - numerator.mean())
        bottom = denominator.mean() + stretch * (below - denominator.mean())
        known = bottom / denominator.mean() > LEAST_SHARE
        enough = known.mean() >= 1 - MOST_UNDEFINED
        ends = np.percentile(above[known] / bottom[known], [2.5, 97.5]) if enough else None
        intervals.append(None if ends is None else Interval(float(ends[0]), float(ends[1]), clusters.by))
    return tuple(intervals)


def ratio_p_values(
    numerators: Float[np.ndarray, "number pair"],
    denominator: Float[np.ndarray, " pair"],
    clusters: Clusters,
    *,
    negligible: float = 0.0,
) -> Float[np.ndarray, " number"]:
    """Two-sided p, per number, that its ratio of means is no larger in size than ``negligible``.

    A t test with the cluster-robust spread, to first order: the largest p over all kinds of sharing, as
    intervals take the widest. With ``negligible`` 0 and pairs that share nothing it is the one-sample t test
    of numerator - ratio * denominator. 1 for a single pair and where the denominator is zero.
    """
    if is_zero(denominator) or clusters.n < 2:
        return np.ones(len(numerators))
    ratios = np.abs(numerators.mean(1) / denominator.mean())
    influences = _ratio_influences(numerators, denominator)
    return np.array(
        [clusters.p_value(ratio, influence, negligible) for ratio, influence in zip(ratios, influences, strict=True)]
    )


def detectable_ratio(
    numerators: Float[np.ndarray, "number pair"],
    denominator: Float[np.ndarray, " pair"],
    clusters: Clusters,
    *,
    level: float,
    negligible: float = 0.0,
) -> float:
    """The smallest ratio that ``ratio_p_values`` gives a p of ``level``, with the spread that these numbers have.

    The median over the numbers, infinite where p is 1 whatever the ratio. A ratio as large in truth is found half of
    the time.
    """
    if is_zero(denominator) or clusters.n < 2:
        return float("inf")
    influences = _ratio_influences(numerators, denominator)
    return float(np.median([clusters.detectable(level, influence, negligible) for influence in influences]))


def is_zero(values: Float[np.ndarray, " pair"], rounding: float = 0.0) -> bool:
    """Whether the mean is zero up to rounding, here and in the passes that gave the values."""
    return bool(abs(values.mean()) <= max(rounding, NOTHING * float(np.abs(values).mean())))


def _ratio_influences(
    numerators: Float[np.ndarray, "number pair"], denominator: Float[np.ndarray, " pair"]
) -> Float[np.ndarray, "number pair"]:
    below = denominator.mean()
    return (numerators - numerators.mean(1, keepdims=True) / below * denominator) / below


def _influence(statistic: Statistic, n: int) -> Float[np.ndarray, " pair"]:
    """What each pair adds to a number: its change where that pair's weight grows, by central differences."""
    slopes = []
    for part in np.array_split(np.arange(n), len(blocks(n))):
        step = STEP * (np.eye(n)[part] - 1 / n)
        slopes.append((statistic(1 / n + step) - statistic(1 / n - step)) / (2 * STEP))
    influence = np.concatenate(slopes)
    influence = np.where(np.isfinite(influence), influence, 0.0)
    return influence - influence.mean()


def weighted_mean(weights: NDArray[np.float64], values: NDArray[np.float64]) -> NDArray[np.float64]:
    """The mean under each row of weights, nan where a row is all zero."""
    total = weights.sum(1)
    return np.divide(weights @ values, total, out=np.full(len(total), np.nan), where=total > 0)
