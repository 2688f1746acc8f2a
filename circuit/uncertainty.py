"""Intervals of numbers over pairs that share personas and questions.

Pairs that share a persona, on either side, or a question are not independent: resampled as
if they were, they give intervals that are too short. No bootstrap is exact for crossed
clusters (McCullagh 2000), so two known parts are put together:

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

A way with fewer than two degrees of freedom (two personas, two questions) says nothing of
others and is not drawn; where neither is, pairs are resampled, and their spread is widened in the
same way: by the t quantile of n - 1 degrees of freedom, and from the bootstrap's variance to the unbiased
one. ``Interval.by`` and ``Clusters.note`` say what was drawn. Coverage, by simulation: ``docs/statistics.md``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray
from scipy import sparse, stats

from circuit.permutations import Permutations, permutations_of
from circuit.task import PromptPair

__all__ = [
    "N_BOOTSTRAP",
    "Clusters",
    "Interval",
    "Statistic",
    "blocks",
    "cluster_codes",
    "drawn",
    "interval",
    "is_zero",
    "ratio_interval",
    "ratio_intervals",
    "ratio_p_values",
    "weighted_mean",
]

N_BOOTSTRAP = 2000
BLOCK = 250  # resamples at a time, so that memory stays small
CANCELS = 1e-7  # of the influence's size: draws under which it varies by less cancel it but for rounding
NOTHING = 1e-9  # of the mean |value|: a smaller mean is a sum that cancels but for rounding in float64
LEAST_SHARE = 1e-4  # of a denominator: draws under which less of it is left are left out
STEP = 1e-6  # of a finite difference in one pair's weight
LEAST_FREEDOM = 2.0 - 1e-6
NORMAL = 1.959963984540054  # its 97.5th percentile

Statistic = Callable[[NDArray[np.float64]], NDArray[np.float64]]
"""From weights ``[draw, pair]``, each row of sum one, to one number a draw; nan where it is not defined."""


@dataclass(frozen=True)
class Interval:
    """A 95 % bootstrap interval; ``by`` says what was drawn: ``pairs``, or what they share."""

    low: float
    high: float
    by: str = "pairs"


@dataclass(frozen=True, eq=False)
class Clusters:
    """Which pairs share a persona, on either side, or a question.

    ``personas`` (of A and of B) and ``questions`` are codes from 0, ``[pair]`` each, None where
    they are not drawn; ``note`` says why not. ``all_named`` are the codes of whatever is named for every pair, drawn
    or not.
    """

    n: int
    personas: tuple[NDArray[np.int64], NDArray[np.int64]] | None
    questions: NDArray[np.int64] | None
    note: str = ""
    all_named: tuple[tuple[NDArray[np.int64], NDArray[np.int64]] | None, NDArray[np.int64] | None] = (None, None)

    @classmethod
    def of(cls, pairs: Sequence[PromptPair]) -> Clusters:
        """The clusters that the pairs name."""
        return cls.named(
            [pair.persona_a for pair in pairs], [pair.persona_b for pair in pairs], [pair.question for pair in pairs]
        )

    @classmethod
    def named(cls, persona_a: Sequence[str], persona_b: Sequence[str], question: Sequence[str]) -> Clusters:
        """The clusters of these names, one per pair in each list; an empty name is none."""
        n = len(question)
        both, n_personas = cluster_codes([*persona_a, *persona_b])
        asked, n_questions = cluster_codes(question)
        personas = _Ways(n, personas=(both[:n], both[n:])).enough() if all((*persona_a, *persona_b)) else None
        questions = _Ways(n, questions=asked).enough() if all(question) else None
        notes = [
            f"{name} are not named for every pair" if found is None else f"{name} too few to be drawn ({count})"
            for name, found, count in (("personas", personas, n_personas), ("questions", questions, n_questions))
            if not found
        ]
        codes = (both[:n], both[n:]) if all((*persona_a, *persona_b)) else None, asked if all(question) else None
        drawn = codes[0] if personas else None, codes[1] if questions else None
        return cls(n, *drawn, "; ".join(notes), codes)

    @property
    def by(self) -> str:
        """What is drawn."""
        names = [name for name in ("personas", "questions") if getattr(self, name) is not None]
        return " and ".join(names) or "pairs"

    def describe(self) -> str:
        """One line for people: what is drawn, how many there are, and why not more."""
        counts = [f"{self.n} pairs"]
        if self.personas is not None:
            counts.append(f"{len(np.unique(self.personas))} personas")
        if self.questions is not None:
            counts.append(f"{len(np.unique(self.questions))} questions")
        return f"{self.by}, of {', '.join(counts)}" + (f"; {self.note}" if self.note else "")

    def draws(self, *, n_draws: int = N_BOOTSTRAP, seed: int = 0) -> Float[np.ndarray, "draw pair"]:
        """Pigeonhole weights of sum one; a draw that holds no pair at all is drawn again."""
        rng = np.random.default_rng(seed)
        counts = np.zeros((0, self.n))
        while len(counts) < n_draws:
            more = np.concatenate([self._counts(rng, rows) for rows in blocks(n_draws - len(counts))])
            counts = np.concatenate([counts, more[more.sum(axis=1) > 0]])
        return counts / counts.sum(axis=1, keepdims=True)

    def weights(
        self,
        influence: Float[np.ndarray, "pair number"],
        *,
        n_draws: int = N_BOOTSTRAP,
        seed: int = 0,
        confident: bool = False,
    ) -> Float[np.ndarray, "draw pair"]:
        """Drawn weights under which numbers spread as they should, their variances added up.

        ``influence`` is what each pair adds to each number, of mean zero over pairs: the number
        changes by ``weights @ influence``. ``confident`` widens by the t quantile over the
        normal one, as an interval needs.
        """
        found = self.draws(n_draws=n_draws, seed=seed)
        own = float((found @ influence).var(axis=0).sum()) ** 0.5
        varies = own > CANCELS * float((influence**2).sum(axis=1).mean()) ** 0.5
        stretch = self.spread(influence, confident=confident) / own if varies else 1.0
        return 1 / self.n + stretch * (found - 1 / self.n)

    def spread(self, influence: Float[np.ndarray, "pair number"], *, confident: bool = False) -> float:
        """The root of the cluster-robust variances of all numbers together, the widest of all kinds of sharing."""
        return max(way.spread(influence, confident) for way in self._usable)

    def p_value(self, size: float, influence: Float[np.ndarray, " pair"], negligible: float = 0.0) -> float:
        """Two-sided p that a number of this size is no larger than ``negligible``, the largest over all ways."""
        return max(way.p_value(size, influence, negligible) for way in self._usable)

    def p_above(self, value: float, influence: Float[np.ndarray, " pair"]) -> float:
        """One-sided p that a number is at most zero, by a t test with the spread, the largest over all ways."""
        return max(way.p_above(value, influence) for way in self._usable)

    def effective(self, influence: Float[np.ndarray, " pair"]) -> float:
        """How many pairs that share nothing would tell a mean as well as these do (Korn and Graubard 1998).

        n over the design effect, times the square of the t quantile of n - 1 degrees of freedom over that of the
        widest way; where nothing varies, ``independent``. At most n.
        """
        own = self._usable[0].spread(influence[:, None], confident=True)
        if own <= 0:
            return self.independent
        return self.n * (own / self.spread(influence[:, None], confident=True)) ** 2

    @property
    def independent(self) -> float:
        """The number of independent clusters of the coarsest way: its degrees of freedom and one."""
        return min(way.freedom + 1 for way in self._usable)

    @cached_property
    def permutations(self) -> Permutations:
        """Those under which what pairs share stays as it is."""
        return permutations_of(self.n, *self.all_named)

    @cached_property
    def _usable(self) -> list[_Way]:
        return _Ways(self.n, self.personas, self.questions).usable()

    def _counts(self, rng: np.random.Generator, rows: int) -> Float[np.ndarray, "draw pair"]:
        """How often each pair is drawn."""
        if self.by == "pairs":
            return drawn(rng, self.n, rows)
        counts = np.ones((rows, self.n))
        if self.personas is not None:
            first, second = self.personas
            times = drawn(rng, 1 + int(max(first.max(), second.max())), rows)
            counts *= times[:, first] * np.where(first == second, 1.0, times[:, second])
        if self.questions is not None:
            counts *= drawn(rng, 1 + int(self.questions.max()), rows)[:, self.questions]
        return counts


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
    None for a single pair, and where the number is not defined under any draw.
    """
    if clusters.n < 2:
        return None
    if influence is None:
        influence = _influence(statistic, clusters.n)
    weights = clusters.weights(influence[:, None], n_draws=n_draws, seed=seed, confident=True)
    found = np.concatenate([statistic(part) for part in np.array_split(weights, len(blocks(len(weights))))])
    found = found[np.isfinite(found)]
    if not len(found):
        return None
    low, high = np.percentile(found, [2.5, 97.5])
    return Interval(float(low), float(high), clusters.by)


def ratio_interval(
    numerator: Float[np.ndarray, " pair"],
    denominator: Float[np.ndarray, " pair"],
    clusters: Clusters,
    *,
    n_draws: int = N_BOOTSTRAP,
    seed: int = 0,
) -> Interval | None:
    """The interval of a ratio of means; draws whose denominator is zero are left out."""
    if is_zero(denominator):
        return None
    below = denominator.mean()

    def ratio(weights: NDArray[np.float64]) -> NDArray[np.float64]:
        bottom = weights @ denominator
        known = np.abs(bottom) > LEAST_SHARE * abs(below)
        return np.divide(weights @ numerator, bottom, out=np.full(len(bottom), np.nan), where=known)

    influence = (numerator - numerator.mean() / below * denominator) / below
    return interval(ratio, clusters, influence=influence, n_draws=n_draws, seed=seed)


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
    found = []
    for numerator, influence in zip(numerators, _ratio_influences(numerators, denominator), strict=True):
        own = float((weights @ influence).std())
        stretch = clusters.spread(influence[:, None], confident=True) / own if own > 0 else 1.0
        above = numerator.mean() + stretch * (weights @ numerator - numerator.mean())
        bottom = denominator.mean() + stretch * (below - denominator.mean())
        known = np.abs(bottom) > LEAST_SHARE * abs(denominator.mean())
        ends = np.percentile(above[known] / bottom[known], [2.5, 97.5]) if known.any() else None
        found.append(None if ends is None else Interval(float(ends[0]), float(ends[1]), clusters.by))
    return tuple(found)


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


def is_zero(values: Float[np.ndarray, " pair"], rounding: float = 0.0) -> bool:
    """Whether the mean is zero: within what rounding alone moves it, here and in the passes that gave the values."""
    return bool(abs(values.mean()) <= max(rounding, NOTHING * float(np.abs(values).mean())))


def _ratio_influences(
    numerators: Float[np.ndarray, "number pair"], denominator: Float[np.ndarray, " pair"]
) -> Float[np.ndarray, "number pair"]:
    below = denominator.mean()
    return (numerators - numerators.mean(1, keepdims=True) / below * denominator) / below


@dataclass(frozen=True, eq=False)
class _Way:
    """One kind of sharing: signed memberships whose products add up to 1 for pairs that share, and a model of it.

    ``terms`` are signs with memberships ``[pair, cluster]``; ``effects`` ``[pair, effect]`` says which
    independent effects of equal size are in which pair.
    """

    terms: tuple[tuple[float, sparse.csr_array], ...]
    effects: sparse.csr_array

    def spread(self, influence: Float[np.ndarray, "pair number"], confident: bool) -> float:
        found = sum(sign * float(((members.T @ influence) ** 2).sum()) for sign, members in self.terms)
        widening = stats.t.ppf(0.975, self.freedom) / NORMAL if confident else 1.0
        return widening * (self.correction * max(found, 0.0)) ** 0.5 / self.effects.shape[0]

    def p_value(self, size: float, influence: Float[np.ndarray, " pair"], negligible: float) -> float:
        spread = self.spread(influence[:, None], confident=False)
        if spread <= 0:  # nothing varies along this way: it can only say whether the number is there
            return float(size <= negligible)
        ends = np.array([size - negligible, size + negligible]) / spread
        return min(1.0, float(stats.t.sf(ends, self.freedom).sum()))

    def p_above(self, value: float, influence: Float[np.ndarray, " pair"]) -> float:
        spread = self.spread(influence[:, None], confident=False)
        return float(stats.t.sf(value / spread, self.freedom)) if spread > 0 else float(value <= 0)

    @property
    def freedom(self) -> float:
        """Degrees of freedom (Satterthwaite) of the estimated variance under the model."""
        return self._moments[1]

    @property
    def correction(self) -> float:
        """The variance over its expected estimate under the model; residuals are from the mean of all pairs."""
        return self._moments[0]

    @cached_property
    def _moments(self) -> tuple[float, float]:
        sums = self.effects.sum(axis=0)
        form = np.zeros((len(sums), len(sums)))
        for sign, members in self.terms:
            sizes = members.sum(axis=0)
            product = (members.T @ self.effects).toarray() - np.outer(sizes, sums) / self.effects.shape[0]
            form += sign * product.T @ product
        whole, expected = float((sums**2).sum()), float(np.trace(form))
        if expected <= 1e-9 * whole:
            return 0.0, 0.0
        return whole / expected, expected**2 / float((form**2).sum())


@dataclass(frozen=True, eq=False)
class _Ways:
    """All kinds of sharing among ``n`` pairs with these codes."""

    n: int
    personas: tuple[NDArray[np.int64], NDArray[np.int64]] | None = None
    questions: NDArray[np.int64] | None = None

    def enough(self) -> bool:
        """Whether each of the codes that are given has enough clusters to be drawn."""
        return all(way.freedom >= LEAST_FREEDOM for way in self._simple())

    def usable(self) -> list[_Way]:
        """Those with enough degrees of freedom; sharing nothing but oneself is always among them."""
        own = sparse.eye_array(self.n, format="csr")
        ways = [*self._simple(), *self._compound()]
        return [_Way(((1.0, own),), own), *(way for way in ways if way.freedom >= LEAST_FREEDOM)]

    def _simple(self) -> list[_Way]:
        found = []
        if self.personas is not None:
            one = self._of_personas()
            found.append(_Way(((1.0, one), (-1.0, self._of_couples())), one))
        if self.questions is not None:
            asked = _members(self.questions)
            found.append(_Way(((1.0, asked),), asked))
        return found

    def _compound(self) -> list[_Way]:
        """Both personas; and a persona or a question: sharing one, plus the other, minus both."""
        if self.personas is None:
            return []
        one, couples = self._of_personas(), self._of_couples(own=True)
        found = [_Way(((1.0, couples),), couples)]
        if self.questions is not None:
            asked = _members(self.questions)
            crossed = ((-1.0, self._of_personas(self.questions)), (1.0, self._of_couples(self.questions)))
            terms = ((1.0, one), (-1.0, self._of_couples()), (1.0, asked), *crossed)
            found.append(_Way(terms, sparse.hstack([one, asked], format="csr")))
        return found

    def _of_personas(self, crossed: NDArray[np.int64] | None = None) -> sparse.csr_array:
        """Membership of every persona, or of every persona under every question; once for a pair with itself."""
        assert self.personas is not None
        first, second = self.personas
        names = np.stack([np.concatenate([first, second]), np.tile(_or_zero(crossed, self.n), 2)])
        codes = np.unique(names, axis=1, return_inverse=True)[1].reshape(-1)
        keep = np.concatenate([np.ones(self.n, dtype=bool), first != second])
        places = np.tile(np.arange(self.n), 2)[keep], codes[keep]
        return sparse.csr_array((np.ones(int(keep.sum())), places), shape=(self.n, int(codes.max()) + 1))

    def _of_couples(self, crossed: NDArray[np.int64] | None = None, *, own: bool = False) -> sparse.csr_array:
        """Membership of every two personas, in whatever order; pairs of one persona are in none, unless ``own``."""
        assert self.personas is not None
        first, second = (np.minimum(*self.personas), np.maximum(*self.personas))
        names = np.stack([first, second, _or_zero(crossed, self.n)])
        codes = np.unique(names, axis=1, return_inverse=True)[1].reshape(-1)
        keep = np.flatnonzero((first != second) | own)
        return sparse.csr_array((np.ones(len(keep)), (keep, codes[keep])), shape=(self.n, int(codes.max()) + 1))


def _or_zero(codes: NDArray[np.int64] | None, n: int) -> NDArray[np.int64]:
    return np.zeros(n, dtype=np.int64) if codes is None else codes


def _members(codes: NDArray[np.int64]) -> sparse.csr_array:
    return sparse.csr_array((np.ones(len(codes)), (np.arange(len(codes)), codes)))


def _influence(statistic: Statistic, n: int) -> Float[np.ndarray, " pair"]:
    """What each pair adds to a number: its change where that pair's weight grows, by central differences."""
    found = []
    for part in np.array_split(np.arange(n), len(blocks(n))):
        step = STEP * (np.eye(n)[part] - 1 / n)
        found.append((statistic(1 / n + step) - statistic(1 / n - step)) / (2 * STEP))
    influence = np.concatenate(found)
    influence = np.where(np.isfinite(influence), influence, 0.0)
    return influence - influence.mean()


def drawn(rng: np.random.Generator, n_clusters: int, rows: int) -> NDArray[np.float64]:
    """How often each cluster is drawn, ``[rows, n_clusters]``."""
    return rng.multinomial(n_clusters, np.full(n_clusters, 1 / n_clusters), size=rows).astype(np.float64)


def weighted_mean(weights: NDArray[np.float64], values: NDArray[np.float64]) -> NDArray[np.float64]:
    """The mean under each row of weights, nan where a row is all zero."""
    total = weights.sum(1)
    return np.divide(weights @ values, total, out=np.full(len(total), np.nan), where=total > 0)


def cluster_codes(clusters: Sequence[str]) -> tuple[NDArray[np.int64], int]:
    """Numbers from 0 for names, in alphabetic order, and how many names there are."""
    names, codes = np.unique(np.asarray(clusters, dtype=object).astype(str), return_inverse=True)
    return codes.astype(np.int64), len(names)


def blocks(total: int) -> list[int]:
    """``total`` resamples in portions, so that memory stays small."""
    return [min(BLOCK, total - start) for start in range(0, total, BLOCK)]
