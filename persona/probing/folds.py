"""Folds by group, and what examples share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from persona_circuits.circuit.statistics import Clusters

__all__ = ["Features", "Fold", "Labels", "Places", "Sample", "explicit_fold", "folds_by_group"]

Labels = Int[np.ndarray, " example"]
Features = Float[np.ndarray, "example feature"]
Places = Int[np.ndarray, " _"]


@dataclass(frozen=True, eq=False)
class Fold:
    """Places of the examples to fit on and to test on, and the same again within the training part."""

    train: Int[np.ndarray, " train"]
    test: Int[np.ndarray, " test"]
    inner: tuple[tuple[Places, Places], ...]


def folds_by_group(
    groups: Sequence[str], pairs: Sequence[int], fallback: Sequence[str], *, n_outer: int = 5, n_inner: int = 3
) -> tuple[Fold, ...]:
    """Folds with no group in two of them; none where all examples are of one group.

    ``pairs`` names the pair of each example. The inner folds are by the same groups, or by
    ``fallback`` where a training part has one group only. Folds without anything to be
    fitted on are left out.
    """
    if len(set(groups)) < 2:
        return ()
    names = _Names(np.asarray(groups, dtype=object), np.asarray(pairs), np.asarray(fallback, dtype=object))
    outer = _group_split(np.arange(len(groups)), names.groups, names.pairs, n_outer)
    return tuple(Fold(train, test, _inner(train, names, n_inner)) for train, test in outer)


def explicit_fold(
    train: Sequence[int], test: Sequence[int], groups: Sequence[str], pairs: Sequence[int], *, n_inner: int = 3
) -> tuple[Fold, ...]:
    """One fold of given parts, its inner folds by group."""
    fit, names = np.asarray(train, dtype=np.int64), np.asarray(groups, dtype=object)
    known = _Names(names, np.asarray(pairs), np.asarray(pairs).astype(object))
    return (Fold(fit, np.asarray(test, dtype=np.int64), _inner(fit, known, n_inner)),)


class Sample:
    """What examples share, and how their intervals are drawn: over personas and questions (``circuit.statistics``)."""

    def __init__(self, personas: Sequence[str], questions: Sequence[str], *, n_draws: int = 500, seed: int = 0) -> None:
        self.clusters = Clusters.named(personas, personas, questions)
        self.n_draws, self.seed = n_draws, seed
        self._known: dict[bytes, Clusters] = {}

    def among(self, places: Places) -> Clusters:
        """The clusters of some examples, cached per set."""
        key = np.asarray(places, dtype=np.int64).tobytes()
        if key not in self._known:
            self._known[key] = self.clusters.among(places)
        return self._known[key]


@dataclass(frozen=True, eq=False)
class _Names:
    groups: np.ndarray
    pairs: np.ndarray
    fallback: np.ndarray


def _group_split(
    places: Int[np.ndarray, " place"], names: np.ndarray, pairs: np.ndarray, most: int
) -> list[tuple[Places, Places]]:
    from sklearn.model_selection import GroupKFold

    codes = np.unique(names[places].astype(str), return_inverse=True)[1]
    splitter = GroupKFold(min(most, int(codes.max()) + 1))
    splits = ((places[fit], places[held]) for fit, held in splitter.split(places, groups=codes))
    separated = ((fit[~np.isin(pairs[fit], pairs[held])], held) for fit, held in splits)
    return [(fit, held) for fit, held in separated if len(fit)]


def _inner(train: Int[np.ndarray, " train"], names: _Names, n_inner: int) -> tuple[tuple[Places, Places], ...]:
    for candidate in (names.groups, names.fallback):
        if len(set(candidate[train])) > 1:
            return tuple(_group_split(train, candidate, names.pairs, n_inner))
    return ()
