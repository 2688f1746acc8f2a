"""Permutations of pairs that preserve what the pairs share.

Two numbers per pair that have nothing to do with each other look dependent where both follow the personas and the
questions that pairs share: pairs are then not exchangeable, and a test that permutes them all rejects too often. What
is exchangeable are the names. A permutation of personas and one of questions that map the pairs onto the pairs carry
one number to other pairs and leave its own dependence among pairs as it is (a test is exact under such a group:
Hoeffding 1952; for arrays of rows and columns, Aldous 1981). Two names can be exchanged where they occur in the same
pairs but for themselves:

    every persona pair with every question    persona pairs among each other, and questions among each other
    questions of one persona pair alone       questions within their persona pair
    every two of some personas                personas among each other
    no names                                  all pairs

Where hardly any names can be exchanged, because pairs share them irregularly, only pairs that share nothing with each
other are used, and permuted freely. Of the two schemes the one with more permutations is taken.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Int
from numpy.typing import NDArray
from scipy.special import gammaln

__all__ = ["Permutations", "permutations_of"]

Codes = NDArray[np.int64]
Classes = tuple[Codes, ...]


@dataclass(frozen=True, eq=False)
class Permutations:
    """Of the pairs at ``places``, all of them or those that share nothing; ``log_count`` is of how many there are."""

    places: Codes
    log_count: float
    what: str
    _draw: Callable[[np.random.Generator, int], Codes] = field(repr=False)

    def draws(self, rng: np.random.Generator, count: int) -> Int[np.ndarray, "draw place"]:
        """``count`` random ones, each the number in ``places`` of the pair whose value goes there."""
        return self._draw(rng, count)

    @property
    def least_p(self) -> float:
        """The smallest possible p."""
        return float(np.exp(-self.log_count))


def permutations_of(
    n: int, personas: tuple[Codes, Codes] | None = None, questions: Codes | None = None
) -> Permutations:
    """Of ``n`` pairs with these codes, from 0, of their personas on either side and questions; None where unnamed."""
    alone = _apart(n, personas, questions)
    apart = Permutations(
        alone,
        float(gammaln(len(alone) + 1)),
        "pairs" if len(alone) == n else f"the {len(alone)} of {n} pairs that share no persona or question",
        lambda rng, count: rng.permuted(np.tile(np.arange(len(alone)), (count, 1)), axis=1),
    )
    if len(alone) == n:
        return apart
    names = _Names.of(n, personas, questions)
    named = Permutations(np.arange(n), names.log_count, names.what, names.draws)
    return named if named.log_count >= apart.log_count else apart


@dataclass(frozen=True, eq=False)
class _Names:
    """Names that can be exchanged: ``units`` are personas, or persona pairs where no persona stands in two of them."""

    what: str
    units: tuple[Codes, Codes]
    questions: Codes
    unit_classes: Classes
    question_classes: Classes

    @classmethod
    def of(cls, n: int, personas: tuple[Codes, Codes] | None, questions: Codes | None) -> _Names:
        none = np.zeros(n, dtype=np.int64)
        first, second = (none, none) if personas is None else personas
        question_codes = none if questions is None else questions
        both = np.sort(np.stack([first, second]), axis=0)
        couples, inverse = np.unique(both, axis=1, return_inverse=True)
        couple = inverse.reshape(-1).astype(np.int64)
        apart = len(np.unique(couples)) == sum(len({*two}) for two in couples.T.tolist())
        what = "persona pairs" if apart else "personas"
        units = (couple, couple) if apart else (first, second)
        description = f"{what} and questions within what they share"
        return cls(
            description,
            units,
            question_codes,
            _classes(*units, question_codes),
            _classes(question_codes, question_codes, couple),
        )

    @property
    def log_count(self) -> float:
        sizes = [len(members) for members in (*self.unit_classes, *self.question_classes)]
        cells = np.unique(self._cells(*self.units, self.questions), return_counts=True)[1]
        return float(gammaln(np.array([*sizes, *cells.tolist()]) + 1).sum())

    def draws(self, rng: np.random.Generator, count: int) -> Codes:
        """Exchange names, and give every pair the value of one of the pairs with its new names."""
        units = _exchanged(self.unit_classes, rng, count)
        questions = _exchanged(self.question_classes, rng, count)
        cells = self._cells(units[:, self.units[0]], units[:, self.units[1]], questions[:, self.questions])
        to = np.argsort(cells + rng.random(cells.shape), axis=1)
        source = np.argsort(self._cells(*self.units, self.questions), kind="stable")
        orders = np.empty_like(to)
        np.put_along_axis(orders, to, np.broadcast_to(source, to.shape), axis=1)
        return orders

    def _cells(self, first: Codes, second: Codes, questions: Codes) -> Codes:
        """One number for both names, in whatever order, and the question."""
        n_units, n_questions = 1 + max(int(codes.max()) for codes in self.units), 1 + int(self.questions.max())
        return (np.minimum(first, second) * n_units + np.maximum(first, second)) * n_questions + questions


def _exchanged(classes: Classes, rng: np.random.Generator, count: int) -> Int[np.ndarray, "draw code"]:
    """What each code becomes."""
    codes = np.empty((count, sum(len(members) for members in classes)), dtype=np.int64)
    for members in classes:
        codes[:, members] = rng.permuted(np.tile(members, (count, 1)), axis=1)
    return codes


def _classes(first: Codes, second: Codes, other: Codes) -> Classes:
    """Codes any two of which can be exchanged: the pairs of both, but for themselves, are the same."""
    partners: list[Counter[tuple[int, int]]] = [Counter() for _ in range(1 + int(max(first.max(), second.max())))]
    for a, b, third in zip(first.tolist(), second.tolist(), other.tolist(), strict=True):
        partners[a][b if a != b else -1, third] += 1
        if a != b:
            partners[b][a, third] += 1
    classes: list[list[int]] = []
    for code in range(len(partners)):
        same = (members for members in classes if _can_be_exchanged(code, members[0], partners))
        home = next(same, None)
        if home is None:
            classes.append([code])
        else:
            home.append(code)
    return tuple(np.array(members, dtype=np.int64) for members in classes)


def _can_be_exchanged(a: int, b: int, partners: Sequence[Counter[tuple[int, int]]]) -> bool:
    if partners[a].total() != partners[b].total():
        return False
    of_a, of_b = ({key: n for key, n in partners[x].items() if key[0] != y} for x, y in ((a, b), (b, a)))
    return of_a == of_b


def _apart(n: int, personas: tuple[Codes, Codes] | None, questions: Codes | None) -> Codes:
    """Pairs no two of which share a name: first those that share with the fewest others (a greedy independent set)."""
    shares = np.zeros((n, n), dtype=bool)
    if personas is not None:
        for codes in personas:
            for other in personas:
                shares |= codes[:, None] == other
    if questions is not None:
        shares |= questions[:, None] == questions
    np.fill_diagonal(shares, val=False)
    free, chosen = np.ones(n, dtype=bool), []
    while free.any():
        degrees = np.where(free, shares[:, free].sum(1), n + 1)
        place = int(degrees.argmin())
        chosen.append(place)
        free &= ~shares[place]
        free[place] = False
    return np.array(sorted(chosen), dtype=np.int64)
