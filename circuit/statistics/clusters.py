"""Which pairs share personas and questions, and how far a number over them may vary.

Pairs that share a persona, on either side, or a question are not independent.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray
from scipy import sparse, special

from persona_circuits.circuit.statistics.permutations import Permutations, permutations_of
from persona_circuits.circuit.task import PromptPair

__all__ = ["N_BOOTSTRAP", "Clusters", "blocks", "cluster_codes"]

N_BOOTSTRAP = 2000
BLOCK = 250  # resamples at a time, so that memory stays small
CANCELS = 1e-7  # of the influence's size: draws under which it varies by less cancel it but for rounding
LEAST_FREEDOM = 2.0 - 1e-6
LEAST_KNOWN = 1.0 - 1e-6  # of a difference: with fewer its spread is not known
NORMAL = 1.959963984540054  # its 97.5th percentile


@dataclass(frozen=True, eq=False)
class Clusters:
    """Which pairs share a persona, on either side, or a question.

    ``personas`` (of A and of B) and ``questions`` are codes from 0, ``[pair]`` each, None where they are not drawn;
    ``note`` says why not. ``all_named`` are the codes of whatever is named for every pair, drawn or not. ``design`` is
    that of a regression whose last coefficient is the estimate; without it the estimate is a mean.
    """

    n: int
    personas: tuple[NDArray[np.int64], NDArray[np.int64]] | None
    questions: NDArray[np.int64] | None
    note: str = ""
    all_named: tuple[tuple[NDArray[np.int64], NDArray[np.int64]] | None, NDArray[np.int64] | None] = (None, None)
    design: Float[np.ndarray, "pair column"] | None = None

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
        question_codes, n_questions = cluster_codes(question)
        personas = _Ways(n, personas=(both[:n], both[n:])).enough() if all((*persona_a, *persona_b)) else None
        questions = _Ways(n, questions=question_codes).enough() if all(question) else None
        notes = [
            f"{name} are not named for every pair" if known is None else f"{name} too few to be drawn ({count})"
            for name, known, count in (("personas", personas, n_personas), ("questions", questions, n_questions))
            if not known
        ]
        codes = (
            (both[:n], both[n:]) if all((*persona_a, *persona_b)) else None,
            question_codes if all(question) else None,
        )
        drawn = codes[0] if personas else None, codes[1] if questions else None
        return cls(n, *drawn, "; ".join(notes), codes)

    def among(self, places: Sequence[int] | NDArray[np.int64]) -> Clusters:
        """The clusters of some of the pairs, by their places; where nothing is named, none."""
        personas, questions = self.all_named
        if personas is None and questions is None:
            return Clusters(len(places), None, None)
        chosen = np.asarray(places, dtype=np.int64)

        def names(codes: NDArray[np.int64] | None) -> list[str]:
            return [""] * len(chosen) if codes is None else [str(code) for code in codes[chosen]]

        sides = (None, None) if personas is None else personas
        return Clusters.named(names(sides[0]), names(sides[1]), names(questions))

    def between(self, is_first: NDArray[Any], strata: NDArray[np.int64] | None = None) -> Clusters:
        """The same pairs, for a difference of two groups, with its degrees of freedom.

        With ``strata``, codes from 0, the difference is within those.
        """
        inside = np.zeros(self.n, dtype=np.int64) if strata is None else strata
        design = np.column_stack([np.eye(1 + int(inside.max()))[inside], np.asarray(is_first, dtype=np.float64)])
        return replace(self, design=design)

    def coefficient(self, values: Float[np.ndarray, " pair"]) -> tuple[float, Float[np.ndarray, " pair"]]:
        """The last coefficient of the regression on ``design``, and what each pair adds to it, of mean zero."""
        assert self.design is not None
        row = np.linalg.pinv(self.design)[-1]
        rest = values - self.design @ np.linalg.lstsq(self.design, values, rcond=None)[0]
        return float(row @ values), self.n * row * rest

    @property
    def by(self) -> str:
        """What is drawn."""
        names = [name for name in ("personas", "questions") if getattr(self, name) is not None]
        return " and ".join(names) or "pairs"

    def describe(self, unit: str = "pairs") -> str:
        """One line: what is drawn, how many there are, and why not more; ``unit`` is what is counted."""
        counts = [f"{self.n} {unit}"]
        if self.personas is not None:
            counts.append(f"{len(np.unique(self.personas))} personas")
        if self.questions is not None:
            counts.append(f"{len(np.unique(self.questions))} questions")
        by = unit if self.by == "pairs" else self.by
        return f"{by}, of {', '.join(counts)}" + (f"; {self.note}" if self.note else "")

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

        ``influence`` is what each pair adds to each number, of mean zero over pairs: the number changes by ``weights @
        influence``. ``confident`` widens by the t quantile over the normal one, as an interval needs.
        """
        weights = self.draws(n_draws=n_draws, seed=seed)
        own = float((weights @ influence).var(axis=0).sum()) ** 0.5
        varies = own > CANCELS * float((influence**2).sum(axis=1).mean()) ** 0.5
        stretch = self.spread(influence, confident=confident) / own if varies else 1.0
        return 1 / self.n + stretch * (weights - 1 / self.n)

    def spread(self, influence: Float[np.ndarray, "pair number"], *, confident: bool = False) -> float:
        """The root of the cluster-robust variances of all numbers together, the widest of all kinds of sharing."""
        return max(way.spread(influence, confident) for way in self._usable)

    def p_value(self, size: float, influence: Float[np.ndarray, " pair"], negligible: float = 0.0) -> float:
        """Two-sided p that a number of this size is no larger than ``negligible``, the largest over all ways."""
        return max(way.p_value(size, influence, negligible) for way in self._usable)

    def detectable(self, level: float, influence: Float[np.ndarray, " pair"], negligible: float = 0.0) -> float:
        """The smallest size whose ``p_value`` with this influence is ``level``: infinite where there is none.

        An effect that is as large in truth is found half of the time.
        """
        return max(way.detectable(level, influence, negligible) for way in self._usable)

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
        """Permutations that preserve what pairs share."""
        return permutations_of(self.n, *self.all_named)

    @cached_property
    def _usable(self) -> list[_Way]:
        return _Ways(self.n, self.personas, self.questions, self.design).usable()

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


@dataclass(frozen=True, eq=False)
class _Way:
    """One kind of sharing: signed memberships whose products add up to 1 for pairs that share, and a model of it.

    ``terms`` are signs with memberships ``[pair, cluster]``; ``effects`` ``[pair, effect]`` says which
    independent effects of equal size are in which pair.
    """

    terms: tuple[tuple[float, sparse.csr_array], ...]
    effects: sparse.csr_array
    design: Float[np.ndarray, "pair column"] | None = None

    def asked(self, design: Float[np.ndarray, "pair column"]) -> _Way:
        """The same for a coefficient: what is taken off for pairs that share twice would cancel too much of it."""
        return replace(self, terms=tuple(term for term in self.terms if term[0] > 0), design=design)

    def spread(self, influence: Float[np.ndarray, "pair number"], confident: bool) -> float:
        if self.freedom < LEAST_KNOWN:
            return float("inf")
        variance = sum(sign * float(((members.T @ influence) ** 2).sum()) for sign, members in self.terms)
        widening = special.stdtrit(self.freedom, 0.975) / NORMAL if confident else 1.0
        return widening * (self.correction * max(variance, 0.0)) ** 0.5 / self.effects.shape[0]

    def p_value(self, size: float, influence: Float[np.ndarray, " pair"], negligible: float) -> float:
        spread = self.spread(influence[:, None], confident=False)
        if spread <= 0:  # nothing varies along this way: it can only say whether the number is there
            return float(size <= negligible)
        return self._p_of(size, spread, negligible)

    def detectable(self, level: float, influence: Float[np.ndarray, " pair"], negligible: float) -> float:
        from scipy import optimize  # slow to import

        spread = self.spread(influence[:, None], confident=False)
        if spread <= 0 or not np.isfinite(spread):
            return negligible if spread <= 0 else float("inf")
        most = negligible - 1.01 * spread * float(special.stdtrit(self.freedom, level / 2))  # there p is below it
        return float(optimize.brentq(lambda size: self._p_of(size, spread, negligible) - level, negligible, most))

    def _p_of(self, size: float, spread: float, negligible: float) -> float:
        ends = np.array([size - negligible, size + negligible]) / spread
        return min(1.0, float(special.stdtr(self.freedom, -ends).sum()))

    def p_above(self, value: float, influence: Float[np.ndarray, " pair"]) -> float:
        spread = self.spread(influence[:, None], confident=False)
        return float(special.stdtr(self.freedom, -value / spread)) if spread > 0 else float(value <= 0)

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
        n = self.effects.shape[0]
        if self.design is None or (moments := self._moments_of(np.linalg.pinv(self.design)[-1], self.design)) is None:
            moments = self._moments_of(np.full(n, 1 / n), np.ones((n, 1)))
        return moments or (0.0, 0.0)

    def _moments_of(
        self, row: Float[np.ndarray, " pair"], design: Float[np.ndarray, "pair column"]
    ) -> tuple[float, float] | None:
        """Of the number ``row @ values``, residuals being those from ``design``; None where effects cancel."""
        basis = np.linalg.svd(design, full_matrices=False)[0][:, : np.linalg.matrix_rank(design)]
        sums, along = self.effects.T @ row, self.effects.T @ basis
        whole = float((sums**2).sum())
        if whole <= CANCELS * float((row**2).sum()):
            return None
        form = np.zeros((len(sums), len(sums)))
        for sign, members in self.terms:
            weighted = members.multiply(row[:, None]).T.tocsr()
            product = (weighted @ self.effects).toarray() - (weighted @ basis) @ along.T
            form += sign * product.T @ product
        expected = float(np.trace(form))
        if expected <= 1e-9 * whole:
            return 0.0, 0.0
        return whole / expected, expected**2 / float((form**2).sum())


@dataclass(frozen=True, eq=False)
class _Ways:
    """All kinds of sharing among ``n`` pairs with these codes."""

    n: int
    personas: tuple[NDArray[np.int64], NDArray[np.int64]] | None = None
    questions: NDArray[np.int64] | None = None
    design: Float[np.ndarray, "pair column"] | None = None

    def enough(self) -> bool:
        """Whether each of the codes that are given has enough clusters to be drawn."""
        return all(way.freedom >= LEAST_FREEDOM for way in self._simple())

    def usable(self) -> list[_Way]:
        """Those with enough degrees of freedom; sharing nothing but oneself is always among them."""
        own = sparse.eye_array(self.n, format="csr")
        ways = [*self._simple(), *self._compound()]
        kept = [_Way(((1.0, own),), own), *(way for way in ways if way.freedom >= LEAST_FREEDOM)]
        return kept if self.design is None else [way.asked(self.design) for way in kept]

    def _simple(self) -> list[_Way]:
        ways = []
        if self.personas is not None:
            personas = self._of_personas()
            ways.append(_Way(((1.0, personas), (-1.0, self._of_couples())), personas))
        if self.questions is not None:
            by_question = _members(self.questions)
            ways.append(_Way(((1.0, by_question),), by_question))
        return ways

    def _compound(self) -> list[_Way]:
        """Both personas; and a persona or a question: sharing one, plus the other, minus both."""
        if self.personas is None:
            return []
        personas, couples = self._of_personas(), self._of_couples(own=True)
        ways = [_Way(((1.0, couples),), couples)]
        if self.questions is not None:
            by_question = _members(self.questions)
            crossed = ((-1.0, self._of_personas(self.questions)), (1.0, self._of_couples(self.questions)))
            terms = ((1.0, personas), (-1.0, self._of_couples()), (1.0, by_question), *crossed)
            ways.append(_Way(terms, sparse.hstack([personas, by_question], format="csr")))
        return ways

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


def drawn(rng: np.random.Generator, n_clusters: int, rows: int) -> NDArray[np.float64]:
    """How often each cluster is drawn, ``[rows, n_clusters]``."""
    return rng.multinomial(n_clusters, np.full(n_clusters, 1 / n_clusters), size=rows).astype(np.float64)


def cluster_codes(clusters: Sequence[str]) -> tuple[NDArray[np.int64], int]:
    """Numbers from 0 for names, in alphabetic order, and how many names there are."""
    names, codes = np.unique(np.asarray(clusters, dtype=object).astype(str), return_inverse=True)
    return codes.astype(np.int64), len(names)


def blocks(total: int) -> list[int]:
    """``total`` resamples in portions, so that memory stays small."""
    return [min(BLOCK, total - start) for start in range(0, total, BLOCK)]
