"""Shares of a circuit's effect, with their intervals."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from persona_circuits.circuit.statistics import Clusters, Interval, ratio_interval

__all__ = ["MOST_EXHAUSTIVE", "NOT_APPLICABLE", "N_SIGNS", "Share", "growth_p", "shares"]

NOT_APPLICABLE = "not applicable"
MOST_EXHAUSTIVE = 16
"""Up to so many pairs the sign-flip test tries all signs, else ``N_SIGNS`` random ones."""
N_SIGNS = 50_000
SIGNS_AT_A_TIME = 4096


@dataclass(frozen=True)
class Share:
    """A ratio of means over pairs with its 95 % bootstrap interval; none from a single pair."""

    value: float
    interval: Interval | None


def shares(
    values: Float[np.ndarray, "row pair"],
    span: Float[np.ndarray, " pair"],
    *,
    clusters: Clusters | None = None,
    seed: int = 0,
) -> tuple[Share, ...]:
    """Each row's mean as a share of the mean of ``span``, with its interval; pairs are drawn without ``clusters``."""
    drawn = clusters or Clusters(len(span), None, None)
    return tuple(Share(float(row.mean() / span.mean()), ratio_interval(row, span, drawn, seed=seed)) for row in values)


def growth_p(
    growth: Float[np.ndarray, "node pair"], *, seed: int = 0, clusters: Clusters | None = None
) -> Float[np.ndarray, " node"]:
    """One-sided sign-flip p per node, of H0 that its growth is symmetric about zero or below.

    With at most 16 pairs the share of all 2^n sign patterns whose mean is at least the
    one found; with more, (1 + b) / (1 + B) over B = 50,000 random patterns. With n pairs p is at least 2^-n.
    Pairs that share personas or questions cannot be flipped independently: with ``clusters`` p is no smaller
    than that of a t test with their spread, nor than 2^-k with k independent clusters.
    """
    p = _flipped(growth, seed)
    if clusters is None or clusters.by == "pairs":
        return p
    means = growth.mean(1)
    shared = [clusters.p_above(float(mean), row - mean) for mean, row in zip(means, growth, strict=True)]
    return np.maximum(np.maximum(p, shared), 0.5**clusters.independent)


def _flipped(growth: Float[np.ndarray, "node pair"], seed: int) -> Float[np.ndarray, " node"]:
    n = growth.shape[1]
    observed = growth.sum(1) - 1e-9 * np.abs(growth).sum(1)
    at_least, tried = np.zeros(len(growth)), 0
    for signs in _signs(n, seed):
        at_least += (signs @ growth.T >= observed).sum(0)
        tried += len(signs)
    return at_least / tried if n <= MOST_EXHAUSTIVE else (1 + at_least) / (1 + tried)


def _signs(n: int, seed: int) -> Iterator[Float[np.ndarray, "pattern pair"]]:
    if n <= MOST_EXHAUSTIVE:
        for start in range(0, 2**n, SIGNS_AT_A_TIME):
            codes = np.arange(start, min(start + SIGNS_AT_A_TIME, 2**n))
            yield 1.0 - 2.0 * (codes[:, None] >> np.arange(n) & 1)
        return
    rng = np.random.default_rng(seed)
    for start in range(0, N_SIGNS, SIGNS_AT_A_TIME):
        yield rng.choice((-1.0, 1.0), size=(min(SIGNS_AT_A_TIME, N_SIGNS - start), n))
