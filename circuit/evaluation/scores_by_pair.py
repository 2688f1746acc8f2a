"""Edge scores of every pair, kept so that pairs can be resampled without running the model again.

A circuit found on other pairs, or on the same ones counted differently, is then a weighted mean of
rows and the pruning rule (``Rule``), and no pass.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float
from scipy import sparse

from persona_circuits.circuit import parallel
from persona_circuits.circuit.attribution import Scoring, score_parts
from persona_circuits.circuit.errors import OptionError
from persona_circuits.circuit.forward import Ablation, Prepared, bare, prepare_each
from persona_circuits.circuit.graph import Graph
from persona_circuits.circuit.model import Model
from persona_circuits.circuit.progress import Progress
from persona_circuits.circuit.pruning import check_tau, greedy, threshold, top_n
from persona_circuits.circuit.scores import Scores
from persona_circuits.circuit.subgraph import Circuit
from persona_circuits.circuit.task import Batch
from persona_circuits.metrics import Metric

__all__ = ["PairScores", "Rule", "pair_scores"]

MAX_BYTES = 1 << 30
NO_EFFECT = 1e-9
"""Share of the largest |score| below which a whole effect is rounding and no threshold can be a share of it."""


@dataclass(frozen=True, eq=False)
class PairScores:
    """The scores of each pair, both directions of a swapped pair averaged.

    ``values`` is float32 ``[pair, edge]``, edges in the order of the graph's valid places, dense or sparse.
    Scores below ``floor`` were stored as zero to stay within memory, so that a mean over pairs is off by less
    than ``floor``; 0 where all are there. ``whole`` is m(full) - m(empty) of each pair, in metric units.
    """

    graph: Graph
    values: Float[np.ndarray, "pair edge"] | sparse.csr_array
    whole: Float[np.ndarray, " pair"]
    floor: float = 0.0

    def __len__(self) -> int:
        return len(self.whole)

    def mean(self, weights: Float[np.ndarray, " pair"] | None = None) -> Scores:
        """The mean scores of all pairs, or a weighted mean; weights sum to one."""
        weights = np.full(len(self), 1 / len(self)) if weights is None else weights
        values = np.zeros(self.graph.valid.shape)
        values[self.graph.valid] = weights.astype(np.float32) @ self.values
        return Scores(self.graph, values)

    def gram(self) -> Float[np.ndarray, "pair pair"]:
        """Products of the pairs' scores, summed over edges."""
        product = self.values @ self.values.T
        return np.asarray(product.toarray() if sparse.issparse(product) else product, dtype=np.float64)


@dataclass(frozen=True)
class Rule:
    """How a circuit is made of scores: ``threshold`` with ``tau`` or ``share``, ``top-n`` or ``greedy`` with ``n``.

    ``tau`` is in metric units, ``share`` of |m(full) - m(empty)| on the very pairs that are scored.

    Raises:
        OptionError: the rule needs the model (ACDC), or its number is missing or impossible.
    """

    prune: str
    tau: float | None = None
    share: float | None = None
    n: int | None = None

    def __post_init__(self) -> None:
        if self.prune in ("acdc", "eap-acdc", "learn"):
            raise OptionError(
                f"--prune {self.prune} decides by running the model, so it cannot be repeated on resampled scores; "
                "ask how it depends on the order of its edges instead, or prune by threshold, top-n or greedy"
            )
        if self.prune not in ("threshold", "top-n", "greedy"):
            raise OptionError(f"pruning rule {self.prune!r} is not one of threshold, top-n, greedy")
        sizes = (self.tau, self.share) if self.prune == "threshold" else (self.n,)
        if sum(value is not None for value in sizes) != 1:
            raise OptionError(f"--prune {self.prune} needs one of {self._needs()}, got {self}")
        for value in (self.tau, self.share):
            if value is not None:
                check_tau(value)

    @classmethod
    def of_record(cls, method: Mapping[str, Any]) -> Rule:
        """The rule in the ``method`` of a circuit's file.

        Raises:
            OptionError: it needs the model.
        """
        if method["prune"] != "threshold":
            return cls(method["prune"], n=method["top_n"])
        share = method["threshold_on"] == "share"
        return cls("threshold", share=method["threshold"]) if share else cls("threshold", tau=method["threshold"])

    def circuit(self, scores: Scores, whole: float) -> Circuit:
        """The circuit of these scores, empty where ``whole`` is zero and a share of it is asked for."""
        if self.prune == "top-n":
            assert self.n is not None
            return top_n(scores, self.n)
        if self.prune == "greedy":
            assert self.n is not None
            return greedy(scores, self.n)
        if self.tau is not None:
            return threshold(scores, self.tau)
        assert self.share is not None
        if abs(whole) <= NO_EFFECT * float(np.abs(scores.values).max()):
            return Circuit.empty(scores.graph)
        return threshold(scores, self.share * abs(whole))

    def __str__(self) -> str:
        if self.prune != "threshold":
            return f"{self.prune} {self.n}"
        return f"threshold {self.tau:g}" if self.tau is not None else f"threshold {self.share:g} of the effect"

    def _needs(self) -> str:
        return "tau and share" if self.prune == "threshold" else "n"


def pair_scores(
    model: Model,
    batches: Sequence[Batch | Prepared],
    metric: Metric,
    scoring: Scoring | None = None,
    *,
    ablation: Ablation | None = None,
    max_bytes: int = MAX_BYTES,
    progress: Progress | None = None,
) -> PairScores:
    """The scores and m(full) - m(empty) of every pair of all processes, in the order of the pairs.

    The method is ``eap``, ``eap-ig`` or ``exact``. Batches are scored one after the other and only the pairs' scores
    are kept: in float32, four bytes for each pair and edge, where that fits ``max_bytes``. Where it does not, scores
    are kept sparse and, whenever there are too many, the smaller half of those kept is dropped; ``floor`` is the
    largest of the dropped.

    Raises:
        OptionError: the method has no scores per pair, or an option makes no sense.
    """
    both = 2 if metric.swap_rows else 1
    counts = parallel.gathered({bare(batch).indices[0]: (len(batch), len(batches)) for batch in batches})
    n_pairs = sum(size for size, _ in counts.values()) // both
    n_rounds = max(number for _, number in counts.values())
    store = _Store(model.graph, n_pairs, max_bytes)
    waiting: dict[int, np.ndarray] = {}
    for turn in range(n_rounds):
        parts = score_parts(model, batches[turn : turn + 1], metric, scoring, by="row", ablation=ablation)
        for name, values in zip(parts.names, parts.values, strict=True):
            pair, row = int(name) // both, values[model.graph.valid]
            if both == 1 or pair in waiting:
                store.put(pair, row if both == 1 else (row + waiting.pop(pair)) / 2)
            else:
                waiting[pair] = row
        if progress is not None:
            progress(turn + 1, n_rounds)
    values, floor = store.finished()
    return PairScores(model.graph, values, _whole(model, batches, metric, ablation, both), floor)


def _whole(
    model: Model, batches: Sequence[Batch | Prepared], metric: Metric, ablation: Ablation | None, both: int
) -> Float[np.ndarray, " pair"]:
    """m(full) - m(empty) of every pair, from the plain runs."""
    gaps: dict[int, float] = {}
    for item in prepare_each(model, batches, ablation):
        gap = metric(item.clean.logits, item.targets) - metric(item.ablated.logits, item.targets)
        gaps |= dict(zip(item.batch.indices, gap.cpu().double().tolist(), strict=True))
    gaps = parallel.gathered(gaps)
    return np.array([gaps[index] for index in sorted(gaps)]).reshape(-1, both).mean(axis=1)


class _Store:
    """Rows of scores as they arrive: dense where all fit, else sparse above a floor that rises as needed."""

    def __init__(self, graph: Graph, n_pairs: int, max_bytes: int) -> None:
        self.shape, self.max_bytes, self.floor = (n_pairs, graph.n_edges), max_bytes, 0.0
        self.dense = np.zeros(self.shape, dtype=np.float32) if 4 * n_pairs * graph.n_edges <= max_bytes else None
        self.rows: dict[int, tuple[np.ndarray, np.ndarray]] = {}

    def put(self, pair: int, row: np.ndarray) -> None:
        if self.dense is not None:
            self.dense[pair] = row
            return
        self.rows[pair] = self._above(np.arange(len(row), dtype=np.int32), row.astype(np.float32))
        while 8 * sum(len(values) for _, values in self.rows.values()) > self.max_bytes:
            self.floor = float(np.median(np.abs(np.concatenate([values for _, values in self.rows.values()]))))
            self.rows = {pair: self._above(*kept) for pair, kept in self.rows.items()}

    def finished(self) -> tuple[Any, float]:
        if self.dense is not None:
            return self.dense, 0.0
        order = range(self.shape[0])
        ends = np.cumsum([0, *(len(self.rows[pair][0]) for pair in order)])
        columns, values = (np.concatenate([self.rows[pair][i] for pair in order]) for i in (0, 1))
        return sparse.csr_array((values, columns, ends), shape=self.shape), self.floor

    def _above(self, places: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        keep = np.abs(values) > self.floor
        return places[keep], values[keep]
