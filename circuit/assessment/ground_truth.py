"""How well every scorer and pruner finds circuits that are known.

    model with known edges -> scores by every method -> AUROC and average precision of |score|
                           -> circuits by every pruner -> precision, recall, exact recovery

A known edge is *true* if corrupting it alone moves the persona divergence D by more
than a share of |D|. Where edges stand in for each other that would miss them all; the
models this is meant for have no such edges, and `support` shows it.

This module knows no model. What it is given has a name, a task, true edges and a model: see `GroundTruth`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from sklearn.metrics import average_precision_score, roc_auc_score

from persona_circuits.circuit.attribution import METHODS, Scoring, random_scores, score
from persona_circuits.circuit.forward import Prepared, divergence, prepare
from persona_circuits.circuit.model import Model
from persona_circuits.circuit.progress import Progress
from persona_circuits.circuit.pruning import Trials, acdc, greedy, threshold, top_n
from persona_circuits.circuit.scores import Scores
from persona_circuits.circuit.subgraph import Circuit
from persona_circuits.circuit.task import Batch, Task, batches, encode, with_swap_rows
from persona_circuits.metrics import METRICS, Metric

__all__ = ["BAR", "GroundTruth", "calibrate", "support"]

BAR = 0.95
SHARE = 0.01
BATCH_SIZE = 64
CANDIDATES = 8
MOST_NOTED = 4
N_DRAWS = 30
DIVERGENCE = METRICS["persona-divergence"]
SEARCHES = {"acdc": DIVERGENCE, "acdc-kl": METRICS["kl"]}


@runtime_checkable
class GroundTruth(Protocol):
    """A model whose circuit is known, with the prompt pairs it is true of."""

    @property
    def name(self) -> str:
        """What the table calls it."""

    @property
    def task(self) -> Task:
        """The prompt pairs."""

    @property
    def true_edges(self) -> frozenset[str]:
        """Names of the edges that carry the persona."""

    def model(self) -> Model:
        """The model itself."""


@dataclass(frozen=True)
class Recovery:
    """A pruner's circuit against the true one; ``precision`` of an empty circuit is 0."""

    prune: str
    n_edges: int
    precision: float
    recall: float
    exact: bool


@dataclass(frozen=True)
class CalibrationRow:
    """One method on one model.

    ``auroc`` and ``average_precision`` are of |score| against the true edges, over all edges of the graph; for
    ``random`` their mean over 30 draws. For ACDC the score of an edge is the change that its removal made when it was
    tried, 0 where it was not. ``span`` is m(full) - m(empty): D in logits, but KL(full || empty) in nats for
    ``acdc-kl``. ``note`` says which edges fall on the wrong side of the threshold and why; it is empty where none does.
    """

    planted: str
    method: str
    n_true: int
    span: float
    auroc: float
    average_precision: float
    recoveries: tuple[Recovery, ...]
    note: str

    @property
    def reaches_bar(self) -> bool:
        """Whether the AUROC is at least 0.95."""
        return self.auroc >= BAR

    def as_dict(self) -> dict[str, Any]:
        """As plain values, for JSON."""
        return {**asdict(self), "recoveries": [asdict(r) for r in self.recoveries], "reaches_bar": self.reaches_bar}


def calibrate(
    planted: Sequence[GroundTruth],
    *,
    steps: int = 5,
    share: float = SHARE,
    seed: int = 0,
    progress: Progress | None = None,
) -> list[CalibrationRow]:
    """Every scorer with every pruner, and ACDC alone, on every model.

    Parameters
    ----------
    planted
        Models with their true edges.
    steps
        Points of EAP-IG, by the midpoint rule.
    share
        Threshold of pruning, as a share of |m(full) - m(empty)|: of |D|, and for
        ``acdc-kl`` of KL(full || empty). top-n and greedy get the true number of edges.
    seed
        Of the random scores.
    progress
        Called after every row.

    Returns
    -------
    For each model a row for each of ``eap``, ``eap-ig``, ``exact``, ``random``, ``acdc`` (with
    |change of D|) and ``acdc-kl``. Runs on one thread: the models are too small to share.
    """
    rows: list[CalibrationRow] = []
    total = len(planted) * (len(METHODS) + len(SEARCHES))
    with _one_thread():
        for truth in planted:
            for row in _rows_of(truth, steps, share, seed):
                rows.append(row)
                if progress is not None:
                    progress(len(rows), total)
    return rows


def support(scores: Scores, divergence: float, share: float = SHARE) -> frozenset[str]:
    """The edges with ``|score|`` above ``share`` of ``|divergence|``; with exact scores, what is true."""
    return frozenset(name for name, value in scores.as_dict().items() if abs(value) > share * abs(divergence))


@dataclass(frozen=True, eq=False)
class _Case:
    """A model with its prompts under one metric; ``tau`` is the share of ``span``, m(full) - m(empty)."""

    truth: GroundTruth
    model: Model
    metric: Metric
    batches: list[Batch]
    prepared: list[Prepared]
    span: float
    tau: float

    @property
    def circuit(self) -> Circuit:
        return Circuit.of(self.model.graph, self.truth.true_edges)


def _rows_of(truth: GroundTruth, steps: int, share: float, seed: int) -> Iterator[CalibrationRow]:
    """The scorers' rows, then ACDC's."""
    model = truth.model()
    case = _case(truth, model, DIVERGENCE, share)
    oracle = score(model, case.batches, DIVERGENCE, Scoring("exact"))
    for method in METHODS:
        scores = oracle
        if method != "exact":
            scores = score(model, case.batches, DIVERGENCE, Scoring(method, steps, seed=seed))
        drawn = [random_scores(model.graph, seed=seed + i) for i in range(N_DRAWS)] if method == "random" else [scores]
        yield _row(case, method, drawn, _pruned(case, scores), oracle)
    for method, metric in SEARCHES.items():
        own = _case(truth, model, metric, share)
        search = acdc(model, own.prepared, metric, own.tau, trials=Trials(candidates=CANDIDATES))
        changes = Scores(model.graph, np.nan_to_num(search.changes))
        yield _row(own, method, [changes], {"acdc": search.circuit}, oracle)


def _case(truth: GroundTruth, model: Model, metric: Metric, share: float) -> _Case:
    rows = encode(truth.task, model)
    groups = batches(with_swap_rows(rows) if metric.swap_rows else rows, BATCH_SIZE, model.device)
    prepared = [prepare(model, group) for group in groups]
    span = divergence(prepared, metric)
    return _Case(truth, model, metric, groups, prepared, span, share * abs(span))


def _pruned(case: _Case, scores: Scores) -> dict[str, Circuit]:
    """What every pruner that starts from scores makes of them."""
    n, start = len(case.circuit), threshold(scores, case.tau)
    search = acdc(case.model, case.prepared, case.metric, case.tau, start, trials=Trials(candidates=CANDIDATES))
    return {"threshold": start, "top-n": top_n(scores, n), "greedy": greedy(scores, n), "eap-acdc": search.circuit}


def _row(
    case: _Case, method: str, drawn: Sequence[Scores], circuits: dict[str, Circuit], oracle: Scores
) -> CalibrationRow:
    truth = case.circuit
    auroc, average_precision = np.mean([_ranking(scores, truth) for scores in drawn], axis=0)
    return CalibrationRow(
        planted=case.truth.name,
        method=method,
        n_true=len(truth),
        span=case.span,
        auroc=float(auroc),
        average_precision=float(average_precision),
        recoveries=tuple(_recovery(prune, circuit, truth) for prune, circuit in circuits.items()),
        note="the control" if method == "random" else _note(method, case, drawn[0], oracle),
    )


def _ranking(scores: Scores, truth: Circuit) -> tuple[float, float]:
    """AUROC and average precision of |score| over the graph's edges."""
    valid = scores.graph.valid
    is_true, strength = truth.mask[valid], np.abs(scores.values[valid])
    return float(roc_auc_score(is_true, strength)), float(average_precision_score(is_true, strength))


def _recovery(prune: str, circuit: Circuit, truth: Circuit) -> Recovery:
    hits = int((circuit.mask & truth.mask).sum())
    return Recovery(
        prune=prune,
        n_edges=len(circuit),
        precision=hits / len(circuit) if len(circuit) else 0.0,
        recall=hits / len(truth),
        exact=circuit == truth,
    )


def _note(method: str, case: _Case, scores: Scores, oracle: Scores) -> str:
    """Which edges fall on the wrong side of tau, with their score and their exact effect, and why."""
    wrong = case.truth.true_edges ^ support(scores, case.tau, share=1.0)
    parts = [
        f"{edge} scored {scores[edge]:+.3f}, exact {oracle[edge]:+.3f}{_reason(method, edge in case.truth.true_edges)}"
        for edge in map(str, scores.graph.edges())
        if edge in wrong
    ]
    more = f"; and {len(parts) - MOST_NOTED} more" if len(parts) > MOST_NOTED else ""
    return "; ".join(parts[:MOST_NOTED]) + more


def _reason(method: str, is_true: bool) -> str:
    """Why a gradient can be wrong about an edge."""
    clean = "at the clean prompt"
    where = {"eap": clean, "gim": clean, "eap-ig": "at the points between the prompts"}.get(method)
    if where is None:
        return ""
    return f" (flat {where})" if is_true else f" (steep {where}, no effect in sum)"


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """Many threads on matrices this small cost tens of times what they save where cores are shared."""
    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(n_threads)
