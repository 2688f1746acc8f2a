"""Which neurons tell two personas apart: pooled differences, a null, and the control of false discoveries.

x_i = activation under A - activation under B, for pair i. Pairs of the same two personas are averaged
first, g = 1 … G, so that a couple that was asked more does not count for more. Two ways to pool:

    mean   T = |mean of the G means|                     A is of one kind throughout
    rms    T = root of the mean of the squared means     any two personas, in whatever order

Z = T / (s + median of s over neurons), s being a neuron's spread; the median keeps neurons of tiny spread
from the top (Tusher, Tibshirani and Chu 2001). p is a permutation p over draws of a null, of all
neurons together, since each is in units of its own spread: p = (1 + b) / (1 + B). Two nulls:

    sign-flip    for ``mean``: the G means with random signs, s their root mean square. Couples that have a persona in
                 common must not be flipped independently: the draws are widened by the ratio of the cluster-robust
                 spread of all neurons together to that of couples that share nothing (``circuit.statistics``).
                 Neurons are correlated, and all signs agree by chance in 2^(1-G) of draws, for all of them at
                 once: with few couples a low q is no proof
    paraphrase   G times a paraphrase pair's persona is drawn, with a random sign, s being the root mean square
                 over these personas; for the draws it is computed on the other half of them, so that it is
                 as independent as T's

``rms`` has the paraphrase null alone. ``mean`` has to pass both where there are paraphrases: p is the larger
one, since where personas differ by more than wordings do, so does their mean, whatever its sign.
Neurons are ranked by Z, the smaller of both where there are two nulls, or by T alone, the absolute difference; what is
selected, cross-validated and held out is ranked by one and the same number.

q is Benjamini and Hochberg's (1995). A neuron whose T is within ``ROUNDING`` units in the last place of
its activation (``COARSE`` in half precision) is at rounding level: it has no Z, no p, and no rank.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import scipy  # whose parts are loaded when they are used: scipy.stats takes a second
from jaxtyping import Bool, Float, Int

from persona_circuits.circuit.statistics import Clusters
from persona_circuits.persona.neurons.options import NeuronOptions

__all__ = [
    "COARSE",
    "LEAST_NULL",
    "ROUNDING",
    "Overlap",
    "Paraphrases",
    "Ranking",
    "at_rounding",
    "effect_size",
    "grouped_means",
    "overlap",
    "pooled",
    "rank_neurons",
    "ranks",
    "score_of",
]

ROUNDING = 64  # units in the last place: a sum of thousands of terms, rounded at each, is off by tens of them
COARSE = 8  # of formats whose sums are kept in a finer one, and rounded once
FINE = 2.0**-23  # epsilon of float32
LEAST_NULL = 4  # personas with paraphrases, two in each half
Differences = Float[np.ndarray, "pair neuron"]


@dataclass(frozen=True, eq=False)
class Ranking:
    """Of every neuron T, Z, p and q; nan where ``rounding``. ``order`` are the ranked ones, the largest ``by`` first.

    ``scale`` is what T was divided by, ``null_scale`` what of paraphrases stands beside it for ``mean``; ``null`` is
    ``paraphrase``, ``sign-flip`` or both, ``n_groups`` is G.
    """

    size: Float[np.ndarray, " neuron"]
    z: Float[np.ndarray, " neuron"]
    p: Float[np.ndarray, " neuron"]
    q: Float[np.ndarray, " neuron"]
    scale: Float[np.ndarray, " neuron"]
    null_scale: Float[np.ndarray, " neuron"] | None
    by: str
    rounding: Bool[np.ndarray, " neuron"]
    order: Int[np.ndarray, " ranked"]
    null: str
    n_groups: int


@dataclass(frozen=True)
class Overlap:
    """What two lists out of ``universe`` share; ``p`` is hypergeometric, of sharing as many or more.

    ``first`` and ``second`` are their lengths, ``expected`` is how many two random lists share;
    ``jaccard`` is None where both are empty.
    """

    first: int
    second: int
    shared: int
    universe: int
    expected: float
    jaccard: float | None
    p: float


class Paraphrases(NamedTuple):
    """Pairs of paraphrases: their differences, and the persona of each as a code from 0, ``LEAST_NULL`` at least."""

    differences: Differences
    personas: Int[np.ndarray, " pair"]


def rank_neurons(
    differences: Differences,
    groups: Int[np.ndarray, " pair"],
    rounding: Bool[np.ndarray, " neuron"],
    options: NeuronOptions,
    *,
    null: Paraphrases | None = None,
    clusters: Clusters | None = None,
) -> Ranking:
    """Rank neurons by Z, or by T.

    Parameters
    ----------
    differences, groups
        x_i, and the couple of personas of each pair as a code from 0.
    options
        How groups are pooled, by what neurons are ranked, and the draws of the null.
    clusters
        Of the groups in the order of their codes, where they share personas.
    null
        Without paraphrases signs alone are flipped, which ``rms`` does not allow.
    """
    pool, n_draws = options.pool, options.n_draws
    assert pool == "mean" or null is not None, "the signs of squares cannot be flipped"
    means = grouped_means(differences, groups)
    size = pooled(means, pool)
    live = ~rounding
    rng = np.random.default_rng(options.seed)
    nulls: list[tuple[np.ndarray, np.ndarray]] = []
    scale, null_scale = _spread_of(differences, means, live), None
    if pool == "mean":
        wider = 1.0 if clusters is None else _design_effect(means[:, live] / scale[live], clusters)
        nulls.append((size / scale, wider * _flipped(means, n_draws, rng) / scale))
    if null is not None:
        among = grouped_means(null.differences, null.personas)
        noise = _steadied(np.sqrt(np.square(among).mean(0)), live)
        nulls.append((size / noise, _paraphrased(among, len(means), live, pool, n_draws, rng)))
        scale, null_scale = (scale, noise) if pool == "mean" else (noise, None)
    p, q = np.full(len(size), np.nan), np.full(len(size), np.nan)
    if live.any():
        p[live] = np.max([_pooled_p(values[live], draws[:, live]) for values, draws in nulls], axis=0)
        q[live] = scipy.stats.false_discovery_control(p[live])
    z = np.where(live, np.min([values for values, _ in nulls], axis=0), np.nan)
    names = ("sign-flip",) if null is None else ("paraphrase",) if pool == "rms" else ("paraphrase", "sign-flip")
    ranked = np.flatnonzero(live)
    order = ranked[np.argsort(-(z if options.rank_by == "z" else size)[ranked], kind="stable")]
    return Ranking(size, z, p, q, scale, null_scale, options.rank_by, rounding, order, " and ".join(names), len(means))


def score_of(
    differences: Differences, groups: Int[np.ndarray, " pair"], ranking: Ranking, pool: str
) -> Float[np.ndarray, " neuron"]:
    """What ``ranking`` ranks by, of other pairs: Z or T, nan for neurons that the ranking leaves out.

    The spread is the paraphrases' for ``rms``; for ``mean`` that of the pairs' own couples (of the pairs where there
    are fewer than three couples), or the paraphrases' where that is larger.
    """
    means = grouped_means(differences, groups)
    size = pooled(means, pool)
    if ranking.by == "z":
        scale = ranking.scale
        if pool == "mean":
            scale = _spread_of(differences, means, ~ranking.rounding)
            scale = scale if ranking.null_scale is None else np.maximum(scale, ranking.null_scale)
        size = size / scale
    return np.where(ranking.rounding, np.nan, size)


def _spread_of(
    differences: Differences, means: Float[np.ndarray, "group neuron"], live: Bool[np.ndarray, " neuron"]
) -> Float[np.ndarray, " neuron"]:
    """Root mean square among the couples, or among the pairs where there are fewer than three couples."""
    return _steadied(np.sqrt(np.square(means if len(means) > 2 else differences).mean(0)), live)


def grouped_means(values: Differences, groups: Int[np.ndarray, " pair"]) -> Float[np.ndarray, "group neuron"]:
    """The mean of every group, in the order of their codes."""
    codes = np.unique(groups, return_inverse=True)[1]
    sums = np.zeros((int(codes.max()) + 1, values.shape[1]))
    np.add.at(sums, codes, values)
    return sums / np.bincount(codes)[:, None]


def pooled(means: Float[np.ndarray, "*draw group neuron"], pool: str) -> Float[np.ndarray, "*draw neuron"]:
    """T of groups' means."""
    return np.abs(means.mean(-2)) if pool == "mean" else np.sqrt(np.square(means).mean(-2))


def at_rounding(
    size: Float[np.ndarray, " neuron"],
    largest: Float[np.ndarray, " neuron"],
    layers: Int[np.ndarray, " neuron"],
    epsilon: float,
) -> Bool[np.ndarray, " neuron"]:
    """Whether a difference is within ``ROUNDING`` units in the last place of its activation.

    ``largest`` is a neuron's largest |activation|; where that is below the root mean square of
    these over its layer the latter stands in: an activation is a sum whose terms are as large as
    the layer's, and so are its errors. ``epsilon`` is the format's.
    """
    bound = largest.copy()
    for layer in np.unique(layers):
        inside = layers == layer
        bound[inside] = np.maximum(largest[inside], np.sqrt(np.square(largest[inside]).mean()))
    units = ROUNDING if epsilon <= FINE else COARSE
    return size <= units * epsilon * bound


def effect_size(differences: Differences) -> Float[np.ndarray, " neuron"]:
    """Mean over standard deviation of paired differences (Cohen's d_z); nan where that is zero or there is one pair."""
    if len(differences) < 2:
        return np.full(differences.shape[1], np.nan)
    spread = differences.std(0, ddof=1)
    return np.divide(differences.mean(0), spread, out=np.full(len(spread), np.nan), where=spread > 0)


def ranks(z: Float[np.ndarray, " neuron"]) -> Int[np.ndarray, " neuron"]:
    """Places from 1, the largest first; 0 where there is no number."""
    places = np.zeros(len(z), dtype=np.int64)
    known = np.flatnonzero(np.isfinite(z))
    places[known[np.argsort(-z[known], kind="stable")]] = np.arange(1, len(known) + 1)
    return places


def overlap(first: Sequence[int], second: Sequence[int], universe: int) -> Overlap:
    """How much two lists share, against random lists of their lengths."""
    a, b = set(first), set(second)
    shared, union = len(a & b), len(a | b)
    p = float(scipy.stats.hypergeom.sf(shared - 1, universe, len(a), len(b)))
    expected = len(a) * len(b) / universe if universe else 0.0
    return Overlap(len(a), len(b), shared, universe, expected, shared / union if union else None, min(p, 1.0))


def _steadied(spread: Float[np.ndarray, " neuron"], live: Bool[np.ndarray, " neuron"]) -> Float[np.ndarray, " neuron"]:
    """The spread plus its median over neurons above rounding; one where that leaves zero, which divides zeros alone."""
    whole = spread + (np.median(spread[live]) if live.any() else 0.0)
    return np.where(whole > 0, whole, 1.0)


def _flipped(
    means: Float[np.ndarray, "group neuron"], n_draws: int, rng: np.random.Generator
) -> Float[np.ndarray, "draw neuron"]:
    signs = rng.choice((-1.0, 1.0), size=(n_draws, len(means)))
    return np.abs(signs @ means) / len(means)


def _design_effect(means: Float[np.ndarray, "group neuron"], clusters: Clusters) -> float:
    """How much wider the neurons' means spread than if groups shared nothing; never below one."""
    influence = means - means.mean(0)
    alone = Clusters(clusters.n, None, None).spread(influence)
    return max(1.0, clusters.spread(influence) / alone) if alone > 0 else 1.0


def _paraphrased(
    among: Float[np.ndarray, "group neuron"],
    n_groups: int,
    live: Bool[np.ndarray, " neuron"],
    pool: str,
    n_draws: int,
    rng: np.random.Generator,
) -> Float[np.ndarray, "draw neuron"]:
    """Z of draws of the null: T from one half of the personas, the spread from the other."""
    draws = []
    for _ in range(n_draws):
        halves = np.array_split(rng.permutation(len(among)), 2)
        from_, other = halves if rng.random() < 0.5 else halves[::-1]
        drawn = among[rng.choice(from_, size=n_groups)] * rng.choice((-1.0, 1.0), size=(n_groups, 1))
        scale = _steadied(np.sqrt(np.square(among[other]).mean(0)), live)
        draws.append(pooled(drawn, pool) / scale)
    return np.stack(draws)


def _pooled_p(z: Float[np.ndarray, " neuron"], draws: Float[np.ndarray, "draw neuron"]) -> Float[np.ndarray, " neuron"]:
    """(1 + b) / (1 + B), over the draws of all neurons together."""
    every = np.sort(draws.ravel())
    at_least = len(every) - np.searchsorted(every, z * (1 - 1e-9), side="left")
    return (1.0 + at_least) / (1.0 + len(every))
