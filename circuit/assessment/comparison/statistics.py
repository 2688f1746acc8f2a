"""What two circuits share, compared with random circuits."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy  # whose parts are loaded when they are used: scipy.stats takes a second
from jaxtyping import Bool, Float

from persona_circuits.circuit.assessment.comparison.sides import Move, Side
from persona_circuits.circuit.evaluation import random_circuits
from persona_circuits.circuit.graph import Graph
from persona_circuits.circuit.model import Model
from persona_circuits.circuit.progress import Progress
from persona_circuits.circuit.scores import Scores
from persona_circuits.circuit.subgraph import Circuit
from persona_circuits.circuit.task import Task

__all__ = ["Correlation", "Ground", "Null", "Overlap", "Signs", "all_correlations", "all_overlaps", "all_signs"]


@dataclass(frozen=True)
class Null:
    """The null distribution: mean and standard deviation over ``n`` draws, and the p of as much or more."""

    n: int
    mean: float
    sd: float
    p: float


@dataclass(frozen=True)
class Overlap:
    """How many edges (or nodes) two circuits share.

    ``jaccard`` is shared / union, None where both are empty; ``possible`` is the largest that their sizes allow.
    ``random`` and ``exchanged`` are of the number shared, None where a circuit is empty; of ``random`` it is the less
    favourable of one circuit against random ones of the other's size.
    """

    a: int
    b: int
    shared: int
    jaccard: float | None
    possible: float | None
    random: Null | None
    exchanged: Null | None


@dataclass(frozen=True)
class Correlation:
    """Spearman's rho of two circuits' scores over ``n`` edges; None where either is constant there.

    ``absolute`` is that of |score|. The nulls exchange heads within their layers and take
    the edges anew each time: over the union of two circuits chance is below zero, as an
    edge that is weak in both is in neither. They are None unless both have scored every edge.
    """

    over: str
    n: int
    signed: float | None
    absolute: float | None
    null_signed: Null | None
    null_absolute: Null | None


@dataclass(frozen=True)
class Signs:
    """Edges scored in both, not 0: how many with opposite signs, and how many by chance.

    ``minus_plus`` are below zero in A and above in B: they carry what A's pairs contrast
    and work against what B's do. ``expected`` is the mean over shuffled scores of B;
    ``p_more`` and ``p_fewer`` the p of at least and of at most as many. None without edges.
    """

    over: str
    n: int
    minus_plus: int
    plus_minus: int
    expected: float | None
    p_more: float | None
    p_fewer: float | None

    @property
    def opposite(self) -> int:
        """Edges of opposite sign."""
        return self.minus_plus + self.plus_minus


@dataclass(frozen=True, eq=False)
class Ground:
    """Pairs to measure on, in this model, with the metric and ablation of the search that ``record`` is of."""

    name: str
    model: Model
    task: Task
    record: Mapping[str, Any]


def all_overlaps(
    a: Circuit, b: Circuit, moves: Sequence[Move], seed: int, progress: Progress
) -> tuple[Overlap, Overlap]:
    """Of edges and of nodes."""
    n, observed = len(moves), _counts(a.mask, b.mask)
    edges, nodes = (len(a), len(b)), (int(_nodes(a.mask).sum()), int(_nodes(b.mask).sum()))
    if not (len(a) and len(b)):
        return _overlap(*edges, observed[0], None, None), _overlap(*nodes, observed[1], None, None)
    against_b = _random_draws(a.graph, b.mask, len(a), n, seed, lambda done: progress(done, 2 * n))
    against_a = _random_draws(a.graph, a.mask, len(b), n, seed, lambda done: progress(n + done, 2 * n))
    exchanged = np.array([_counts(a.mask, b.mask[move]) for move in moves], dtype=float)

    def overlap(i: int, sizes: tuple[int, int]) -> Overlap:
        nulls = [_null(float(observed[i]), draws[:, i]) for draws in (against_b, against_a)]
        worse = max(nulls, key=lambda null: (null.p, null.mean))
        return _overlap(*sizes, observed[i], worse, _null(float(observed[i]), exchanged[:, i]))

    return overlap(0, edges), overlap(1, nodes)


def _random_draws(
    graph: Graph, mask: np.ndarray, n_edges: int, n: int, seed: int, progress: Callable[[int], None]
) -> Float[np.ndarray, "draw 2"]:
    """Edges and nodes that random circuits of ``n_edges`` edges share with a circuit."""
    draws = []
    for circuit in random_circuits(graph, n_edges, n, seed=seed):
        draws.append(_counts(mask, circuit.mask))
        progress(len(draws))
    return np.array(draws, dtype=float)


def _counts(first: np.ndarray, second: np.ndarray) -> tuple[int, int]:
    """Shared edges and shared nodes."""
    return int((first & second).sum()), int((_nodes(first) & _nodes(second)).sum())


def _nodes(mask: np.ndarray) -> Bool[np.ndarray, " src"]:
    """The sources of a circuit's edges. In a circuit without dead ends these are all its nodes but ``logits``."""
    return np.asarray(mask.any(axis=1))


def _overlap(a: int, b: int, shared: int, random: Null | None, exchanged: Null | None) -> Overlap:
    union = a + b - shared
    return Overlap(
        a=a,
        b=b,
        shared=shared,
        jaccard=shared / union if union else None,
        possible=min(a, b) / max(a, b) if union else None,
        random=random,
        exchanged=exchanged,
    )


def _null(observed: float, draws: np.ndarray) -> Null:
    """Mean, standard deviation and the p of a draw that is as large or larger."""
    beyond = int((draws >= observed - 1e-12).sum())
    spread = float(draws.std(ddof=1)) if len(draws) > 1 else 0.0
    return Null(len(draws), float(draws.mean()), spread, (1 + beyond) / (1 + len(draws)))


# --- scores ----------------------------------------------------------------------------------


def all_correlations(a: Side, b: Side, moves: Sequence[Move]) -> tuple[Correlation, ...]:
    """Over all edges that both have scored, and over those of either circuit among them."""
    if a.scores is None or b.scores is None:
        return ()
    known = a.known & b.known
    if not (known == a.circuit.graph.valid).all():
        moves = ()
    everywhere, mask_a, mask_b = np.ones_like(known), a.circuit.mask, b.circuit.mask
    return (
        _correlation("all", a.scores, b.scores, known, everywhere, everywhere, moves),
        _correlation("union", a.scores, b.scores, known, mask_a, mask_b, moves),
    )


def _correlation(
    over: str, a: Scores, b: Scores, known: np.ndarray, mask_a: np.ndarray, mask_b: np.ndarray, moves: Sequence[Move]
) -> Correlation:
    """Over the known edges of either mask, where ``yours`` moves with B's scores."""

    def rho(first: np.ndarray, second: np.ndarray) -> tuple[float | None, Null | None]:
        correlate = _spearman
        if mask_a.all():  # the same edges in every draw, so they are ranked once
            first, second, correlate = _ranked(first, known), _ranked(second, known), _pearson

        def over_union(values: np.ndarray, mask: np.ndarray) -> float | None:
            where = known & (mask_a | mask)
            return correlate(first[where], values[where])

        observed = over_union(second, mask_b)
        return observed, _null_of(observed, [over_union(second[move], mask_b[move]) for move in moves])

    signed, null_signed = rho(a.values, b.values)
    absolute, null_absolute = rho(abs(a.values), abs(b.values))
    n = int((known & (mask_a | mask_b)).sum())
    return Correlation(over, n, signed, absolute, null_signed, null_absolute)


def _null_of(observed: float | None, draws: Sequence[float | None]) -> Null | None:
    usable = [draw for draw in draws if draw is not None]
    return None if observed is None or not usable else _null(observed, np.array(usable))


def _spearman(first: np.ndarray, second: np.ndarray) -> float | None:
    """Pearson's correlation of the ranks, ties at their mean."""
    return _pearson(scipy.stats.rankdata(first), scipy.stats.rankdata(second))


def _pearson(first: np.ndarray, second: np.ndarray) -> float | None:
    """None for fewer than 3 values or a constant."""
    if len(first) < 3 or np.ptp(first) == 0 or np.ptp(second) == 0:
        return None
    return float(np.corrcoef(first, second)[0, 1])


def _ranked(values: np.ndarray, where: np.ndarray) -> np.ndarray:
    """The ranks of the values there, in their places."""
    ranked = np.zeros_like(values)
    ranked[where] = scipy.stats.rankdata(values[where])
    return ranked


def all_signs(a: Side, b: Side, n: int, rng: np.random.Generator) -> tuple[Signs, ...]:
    """Over the edges of both circuits, and over those of either."""
    if a.scores is None or b.scores is None:
        return ()
    masks = {"shared": a.circuit.mask & b.circuit.mask, "union": a.circuit.mask | b.circuit.mask}
    return tuple(_signs(a, b, over, mask, n, rng) for over, mask in masks.items())


def _signs(a: Side, b: Side, over: str, mask: np.ndarray, n: int, rng: np.random.Generator) -> Signs:
    assert a.scores is not None
    assert b.scores is not None
    where = mask & a.known & b.known & (a.scores.values != 0) & (b.scores.values != 0)
    first, second = a.scores.values[where] > 0, b.scores.values[where] > 0
    minus_plus, plus_minus = int((~first & second).sum()), int((first & ~second).sum())
    if not len(first):
        return Signs(over, 0, 0, 0, None, None, None)
    draws = (rng.permuted(np.tile(second, (n, 1)), axis=1) != first).sum(axis=1)
    n_opposite = minus_plus + plus_minus
    more, fewer = ((1 + int(beyond.sum())) / (1 + n) for beyond in (draws >= n_opposite, draws <= n_opposite))
    return Signs(over, len(first), minus_plus, plus_minus, float(draws.mean()), more, fewer)
