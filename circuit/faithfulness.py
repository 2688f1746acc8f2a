"""How much of the behaviour a circuit explains, with the raw terms beside every ratio.

    f(C) = (m(C) - m(empty)) / (m(full) - m(empty))

The headline is the ratio of means over pairs; the mean of the pairs' ratios is a
different number, and so is their median, which no pair with a tiny effect can move: both
stand beside it. Both directions of a swapped pair belong
to one pair: they are averaged first and resampled together. Pairs that share personas
or questions are resampled by those, where the pair file names them (``circuit.uncertainty``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from circuit.graph import Graph
from circuit.model import Model
from circuit.patching import Prepared, measure
from circuit.pruning import slots_by_source
from circuit.rounding import Rounding, tolerance
from circuit.subgraph import Circuit
from circuit.uncertainty import Clusters, Interval, is_zero, ratio_interval
from metrics import Metric

MOST_TRIES = 200
"""Random circuits, and paths, that are tried for one of exactly the size; only outside a circuit can there be none."""

__all__ = [
    "Faithfulness",
    "FaithfulnessReport",
    "Interval",
    "bootstrap_ratio",
    "evaluate",
    "pairwise",
    "random_circuits",
]


@dataclass(frozen=True)
class Faithfulness:
    """One circuit's faithfulness.

    ``m`` is the mean metric. ``ratio_of_means`` and ``mean_of_ratios`` are None where
    the behaviour to explain, m(full) - m(empty), is zero; pairs whose own is zero are
    left out of the mean and the median of ratios (``n_ratios`` are in). Zero is what rounding alone may leave
    (``circuit.rounding``), for a pair also less than 1e-4 of the mean.
    """

    n_edges: int
    m: float
    ratio_of_means: float | None
    interval: Interval | None
    mean_of_ratios: float | None
    n_ratios: int
    median_of_ratios: float | None = None


@dataclass(frozen=True)
class FaithfulnessReport:
    """A circuit, its complement and random circuits of its size on a set of pairs.

    ``random_mean`` and ``random_sd`` are over the random circuits' ``ratio_of_means``;
    ``random`` holds each. ``effect_interval`` is of m(full) - m(empty), which with persona
    metrics and the corrupt ablation is D. ``random_gap`` is the circuit's ratio of means minus
    ``random_mean``, on the same pairs and draws. ``resampled`` says what the intervals are drawn over,
    ``rounding`` how far rounding alone moves the metric. ``n_reversed`` counts the pairs on which m(full) is below
    m(empty): with persona metrics and the corrupt ablation those of negative D.
    """

    metric: str
    split: str
    n_pairs: int
    m_full: float
    m_empty: float
    circuit: Faithfulness
    complement: Faithfulness
    random: tuple[float, ...]
    random_mean: float | None
    random_sd: float | None
    effect_interval: Interval | None = None
    random_gap: float | None = None
    random_gap_interval: Interval | None = None
    resampled: str = "pairs"
    n_reversed: int | None = None
    rounding: float = 0.0

    @property
    def reversal(self) -> str:
        """What is to be said of a contrast that runs the other way as a whole; empty where it does not."""
        if self.m_full >= self.m_empty:
            return ""
        return (
            f"reversed: m(full) is below m(empty) by {self.m_empty - self.m_full:.3f}, so the model prefers the wrong "
            "answers more under the clean prompts; see whether answers and wrong_answers, or clean and corrupt, are "
            "the wrong way round"
        )

    def as_dict(self) -> dict[str, Any]:
        """Plain values, as the circuit file holds them."""
        return {**asdict(self), "random": list(self.random)}


def evaluate(
    model: Model,
    prepared: Callable[[], Iterable[Prepared]],
    metric: Metric,
    circuit: Circuit,
    *,
    split: str,
    n_random: int = 10,
    seed: int = 0,
    clusters: Clusters | None = None,
) -> FaithfulnessReport:
    """Faithfulness of a circuit, of its complement, and of random circuits of the same size.

    Parameters
    ----------
    prepared
        Gives the batches; called once.
    n_random
        Number of random circuits, each connected and of the circuit's size.
    seed
        Of the random circuits and of the bootstrap.
    clusters
        Which of the pairs, in the order of their rows, share personas and questions; without
        them pairs are resampled as if they shared nothing.
    """
    graph = model.graph
    fixed = [Circuit.full(graph), Circuit.empty(graph), circuit, circuit.complement()]
    controls = random_circuits(graph, len(circuit), n_random, seed=seed)
    masks = [c.mask for c in (*fixed, *controls)]
    watch = Rounding(model, metric)
    values = pairwise(measure(model, watch.watched(prepared()), masks, metric), metric)
    rounding = watch.floor
    full, empty = values[0], values[1]

    span = full - empty

    def faithfulness(index: int, size: int) -> Faithfulness:
        return _faithfulness(values[index], full, empty, size, seed, clusters, rounding)

    random = [faithfulness(4 + i, len(control)).ratio_of_means for i, control in enumerate(controls)]
    known = [value for value in random if value is not None]
    found = faithfulness(2, len(circuit))
    gap = values[2] - values[4:].mean(axis=0) if known else None
    return FaithfulnessReport(
        metric=metric.name,
        split=split,
        n_pairs=values.shape[1],
        m_full=float(full.mean()),
        m_empty=float(empty.mean()),
        circuit=found,
        complement=faithfulness(3, len(fixed[3])),
        random=tuple(known),
        random_mean=float(np.mean(known)) if known else None,
        random_sd=float(np.std(known, ddof=1)) if len(known) > 1 else None,
        effect_interval=bootstrap_ratio(span, np.ones_like(span), seed, clusters),
        random_gap=None if gap is None else float(gap.mean() / span.mean()),
        random_gap_interval=None if gap is None else bootstrap_ratio(gap, span, seed, clusters),
        resampled=(clusters or Clusters(len(span), None, None)).describe(),
        n_reversed=int((span < 0).sum()),
        rounding=rounding,
    )


def random_circuits(
    graph: Graph, n_edges: int, count: int, *, seed: int, outside: Circuit | None = None
) -> list[Circuit]:
    """Random circuits of exactly ``n_edges`` edges without dead ends; none where there is no edge to place.

    Each is a union of random paths from ``input`` to ``logits``, filled up with
    random edges between the nodes on them. Circuits of more than half of all edges
    are plain random subsets: hardly anything is a dead end there.

    With ``outside`` they are made of edges that are not in that circuit: fewer than ``n_edges`` where fewer lie on
    paths there, or hang together, more where not even one path is so short, and none where no path from ``input``
    to ``logits`` is left outside it.
    """
    free = (Circuit.full(graph) if outside is None else outside.complement().without_dead_ends()).mask
    seeds = np.random.SeedSequence(seed).spawn(count) if n_edges and free.any() else []
    return [_random_circuit(graph, free, n_edges, np.random.default_rng(one)) for one in seeds]


def _random_circuit(graph: Graph, free: np.ndarray, n_edges: int, rng: np.random.Generator) -> Circuit:
    n_free = int(free.sum())
    if n_edges > n_free // 2:
        places = np.argwhere(free)
        return _with_edges(graph, rng.permutation(places)[:n_edges])
    best = Circuit.empty(graph)
    for _ in range(MOST_TRIES):
        mask = _random_paths(graph, free, n_edges, rng)
        circuit = Circuit(graph, mask | _fill(graph, free, mask, n_edges - int(mask.sum()), rng))
        if len(circuit) >= n_edges:  # more where not even one path is so short
            return circuit
        best = max(best, circuit, key=len)
    return best


def _random_paths(graph: Graph, free: np.ndarray, n_edges: int, rng: np.random.Generator) -> np.ndarray:
    """Random paths for as long as they fit into ``n_edges`` edges; one path where none is so short."""
    mask = np.zeros_like(graph.valid)
    for _ in range(MOST_TRIES):
        longer = mask.copy()
        longer[tuple(np.transpose(_random_path(graph, free, rng)))] = True
        if longer.sum() <= n_edges:
            mask = longer
        elif mask.any():
            return mask
    return mask if mask.any() else longer


def _random_path(graph: Graph, free: np.ndarray, rng: np.random.Generator) -> list[tuple[int, int]]:
    """Edges from ``logits`` back to ``input``, every step uniform over what can be read."""
    slots = slots_by_source(graph)
    path, slot = [], graph.n_dst - 1
    while True:
        readable = np.flatnonzero(free[:, slot])
        src = int(readable[rng.integers(len(readable))])
        path.append((src, slot))
        if src == 0:
            return path
        slot = int(rng.choice([one for one in slots[src] if free[:, one].any()]))


def _fill(graph: Graph, free: np.ndarray, mask: np.ndarray, n: int, rng: np.random.Generator) -> np.ndarray:
    """At most ``n`` more random edges between nodes that are already on a path."""
    if n <= 0:
        return np.zeros_like(mask)
    sources = np.asarray(mask.any(axis=1))
    slots = slots_by_source(graph)
    readable = np.zeros(graph.n_dst, dtype=bool)
    readable[[graph.n_dst - 1, *(slot for src in np.flatnonzero(sources) for slot in slots[src])]] = True
    open_places = np.argwhere(free & ~mask & sources[:, None] & readable[None, :])
    return _with_edges(graph, rng.permutation(open_places)[:n]).mask


def _with_edges(graph: Graph, places: np.ndarray) -> Circuit:
    mask = np.zeros_like(graph.valid)
    mask[tuple(places.T)] = True
    return Circuit(graph, mask)


def pairwise(values: np.ndarray, metric: Metric) -> np.ndarray:
    """From one value per row to one per pair: the two directions of a swapped pair are averaged; ``[mask, pair]``."""
    return values.reshape(len(values), -1, 2).mean(axis=2) if metric.swap_rows else values


def _faithfulness(
    values: np.ndarray,
    full: np.ndarray,
    empty: np.ndarray,
    n_edges: int,
    seed: int,
    clusters: Clusters | None,
    rounding: float = 0.0,
) -> Faithfulness:
    span = full - empty
    usable = np.abs(span) > tolerance(span, rounding)
    ratios = (values - empty)[usable] / span[usable]
    defined = not is_zero(span, rounding)
    return Faithfulness(
        n_edges=n_edges,
        m=float(values.mean()),
        ratio_of_means=float((values - empty).mean() / span.mean()) if defined else None,
        interval=bootstrap_ratio(values - empty, span, seed, clusters) if defined else None,
        mean_of_ratios=float(ratios.mean()) if len(ratios) else None,
        n_ratios=len(ratios),
        median_of_ratios=float(np.median(ratios)) if len(ratios) else None,
    )


def bootstrap_ratio(
    numerator: np.ndarray, denominator: np.ndarray, seed: int, clusters: Clusters | None = None
) -> Interval | None:
    """95 % interval of a ratio of means over pairs, over ``clusters`` where they are given; None for a single pair."""
    if len(numerator) < 2:
        return None
    return ratio_interval(numerator, denominator, clusters or Clusters(len(numerator), None, None), seed=seed)
