"""Groups of pairs that a circuit treats alike."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.cluster import hierarchy
from scipy.spatial.distance import squareform

from persona_circuits.circuit.evaluation.scores_by_pair import PairScores
from persona_circuits.circuit.progress import Progress
from persona_circuits.circuit.statistics import Interval

__all__ = ["LEAST_PAIRS", "Averages", "Grouping", "PairGroup", "group_pairs"]

MOST_GROUPS = 6
LEAST_PAIRS = 8
"""Fewest pairs for a search for groups."""
LEAST_GROUP, LEAST_SHARE = 3, 0.1
"""The least number and the least share of pairs in a group; a few outliers are no group."""
MOST_PAIRS = 500
"""Most pairs in a search for groups, a random sample of more: the work is quadratic in them."""
ALIKE = 1e-9
"""Normalised scores with a smaller mean squared distance from their mean differ by rounding alone: one group."""
LEAST_COVERED = 0.9
"""Share of the pairs that must be in groups for a cut to count."""
ALPHA = 0.05


@dataclass(frozen=True)
class Averages:
    """Ratio of means, and mean and median of ratios, over some pairs; None where the mean, or each effect, is zero."""

    n_pairs: int
    effect: float | None
    ratio_of_means: float | None
    mean_of_ratios: float | None
    median_of_ratios: float | None = None


@dataclass(frozen=True, eq=False)
class Grouping:
    """How pairs fall into groups by their own scores.

    ``labels`` are -1 where a pair was left out, else the group, from 0, the largest first. ``explained`` is the share
    of variance between two groups and ``p`` that of its test. ``silhouette`` is the largest mean silhouette of 2 to 6
    groups, ``n_best`` the number of groups it was found at. There is one group where p is above .05.
    """

    labels: Int[np.ndarray, " pair"]
    n_groups: int
    n_best: int | None
    explained: float | None
    silhouette: float | None
    p: float | None


@dataclass(frozen=True)
class PairGroup:
    """The circuit on one group of pairs.

    ``personas`` and ``questions`` are the most frequent with their counts. With a pruning rule ``own_edges`` is the
    size of the circuit of this group's scores alone, ``own_jaccard`` what it shares with the circuit.
    """

    averages: Averages
    interval: Interval | None
    personas: tuple[tuple[str, int], ...]
    questions: tuple[tuple[str, int], ...]
    own_edges: int | None
    own_jaccard: float | None


def group_pairs(
    scores: PairScores,
    places: Int[np.ndarray, " some"] | None = None,
    *,
    n_draws: int = 199,
    seed: int = 0,
    progress: Progress | None = None,
) -> Grouping:
    """Groups among the pairs at ``places`` by the cosine of their scores, one group unless the test says more.

    Pairs without any score are left out, and those beyond 500; fewer than eight pairs are one group.
    """
    gram = scores.gram()
    chosen = np.arange(len(scores)) if places is None else places
    chosen = chosen[np.diag(gram)[chosen] > 0]
    rng, reached = np.random.default_rng(seed), 0
    if len(chosen) > MOST_PAIRS:
        chosen = np.sort(rng.permutation(chosen)[:MOST_PAIRS])
    labels = np.full(len(scores), -1, dtype=np.int64)
    labels[chosen] = 0
    if len(chosen) < LEAST_PAIRS:
        return Grouping(labels, int(len(chosen) > 0), None, None, None, None)
    own = _cosines(gram[np.ix_(chosen, chosen)])
    if float(np.diag(_centred(own)).mean()) < ALIKE:
        return Grouping(labels, 1, None, None, None, None)
    cut = _cut(own)
    for turn in range(n_draws):
        mixing = _without_groups(own, rng)
        reached += _cut(mixing @ own @ mixing.T).explained >= cut.explained - 1e-9
        if progress is not None:
            progress(turn + 1, n_draws)
    p = (1 + reached) / (1 + n_draws)
    n_best = int(cut.groups.max()) + 1
    if p <= ALPHA:
        labels[chosen] = cut.groups
    known = cut.explained > -1
    return Grouping(
        labels,
        n_groups=n_best if p <= ALPHA else 1,
        n_best=n_best if known else None,
        explained=cut.explained if known else None,
        silhouette=cut.silhouette if known else None,
        p=p,
    )


def _cosines(gram: Float[np.ndarray, "pair pair"]) -> Float[np.ndarray, "pair pair"]:
    lengths = np.sqrt(np.maximum(np.diag(gram), 1e-300))
    return gram / lengths / lengths[:, None]


def _centred(gram: Float[np.ndarray, "pair pair"]) -> Float[np.ndarray, "pair pair"]:
    """The same products of the deviations from the mean."""
    return gram - gram.mean(axis=0) - gram.mean(axis=1)[:, None] + gram.mean()


def _without_groups(gram: Float[np.ndarray, "pair pair"], rng: np.random.Generator) -> Float[np.ndarray, "new pair"]:
    """Makes points of the sample's points that have their mean, their covariance and their distances, but no groups.

    A new point is the mean plus a normal mixture of all deviations from it, times the distance from
    the mean of one of the points, each used once, so that outliers stay outliers.
    """
    n = len(gram)
    distances = np.sqrt(np.maximum(np.diag(_centred(gram)), 0.0))
    scale = rng.permutation(distances) / max(float(np.sqrt((distances**2).mean())), 1e-150)
    noise = rng.standard_normal((n, n)) / np.sqrt(n - 1)
    return 1 / n + scale[:, None] * (noise - noise.mean(axis=1, keepdims=True))


@dataclass(frozen=True, eq=False)
class _Cut:
    """How points cluster: the share of variance that two groups explain, and the groups with the largest silhouette.

    ``explained`` is -1 where there are no two groups at any height, and ``silhouette`` then too.
    """

    explained: float
    silhouette: float
    groups: Int[np.ndarray, " pair"]


def _cut(gram: Float[np.ndarray, "pair pair"]) -> _Cut:
    """Two groups, and 2 to 6 groups, by Ward's method; the largest group first.

    What is too small for a group is no group: such pairs have no part in the numbers and go to the
    nearest group. A cut that leaves more than a tenth of the pairs in none is skipped.
    """
    apart = _distances(gram)
    tree = hierarchy.linkage(squareform(apart, checks=False), method="ward")
    n = len(apart)
    explained, best, groups = -1.0, -1.0, np.ones((n, 1), dtype=bool)
    for k in range(2, min(2 * MOST_GROUPS, n // 2) + 1):
        labels = hierarchy.fcluster(tree, k, criterion="maxclust")
        member = labels[:, None] == np.arange(1, k + 1)
        member = member[:, member.sum(axis=0) >= max(LEAST_GROUP, LEAST_SHARE * n)]
        if member.sum() < LEAST_COVERED * n:
            continue
        if member.shape[1] == 2:
            explained = max(explained, _explained(apart, member))
        if 2 <= member.shape[1] <= MOST_GROUPS and (value := _silhouette(apart, member)) > best:
            best, groups = value, member
    groups = groups[:, np.argsort(-groups.sum(axis=0), kind="stable")]
    nearest = (apart @ groups / groups.sum(axis=0)).argmin(axis=1)
    return _Cut(explained, best, np.where(groups.any(axis=1), groups.argmax(axis=1), nearest))


def _explained(apart: Float[np.ndarray, "pair pair"], member: Bool[np.ndarray, "pair group"]) -> float:
    """The share of the variance of the pairs in a group that lies between the groups."""
    inside = member.any(axis=1)
    squared, member = apart[np.ix_(inside, inside)] ** 2, member[inside].astype(np.float64)
    sizes = member.sum(axis=0)
    within = float((np.einsum("ig,ij,jg->g", member, squared, member) / (2 * sizes)).sum())
    whole = float(squared.sum()) / (2 * len(squared))
    return 1 - within / whole if whole > 0 else -1.0


def _distances(gram: Float[np.ndarray, "pair pair"]) -> Float[np.ndarray, "pair pair"]:
    """Euclidean distances of points from their products."""
    sizes = np.diag(gram)
    squared = np.maximum(sizes[:, None] + sizes - gram - gram.T, 0.0)
    np.fill_diagonal(squared, 0.0)
    return np.sqrt(squared)


def _silhouette(apart: Float[np.ndarray, "pair pair"], member: Bool[np.ndarray, "pair group"]) -> float:
    """Mean silhouette of the pairs that are in a group, each of at least two pairs."""
    inside = member.any(axis=1)
    apart, member = apart[np.ix_(inside, inside)], member[inside]
    sums, sizes = apart @ member, member.sum(axis=0)
    within = sums[member] / (sizes[member.argmax(axis=1)] - 1)
    nearest = np.where(member, np.inf, sums / sizes).min(axis=1)
    largest = np.maximum(within, nearest)
    return float(np.divide(nearest - within, largest, out=np.zeros(len(largest)), where=largest > 0).mean())
