"""The stability of a stored circuit: its search's pairs scored again, one by one, and its rule applied to resamples.

Everything is as the circuit's file says: pairs and split, metric, alignment, ablation, scores, pruning. What the file
does not say, or this model or pair file cannot repeat, is not guessed: ``None`` with the reason.

    scores and a rule     pairs are resampled, no pass is repeated (``circuit.evaluation.stability.report``)
    ACDC                  the search is repeated in random orders; each run costs what the search did
    random scores         nothing to resample: they do not depend on pairs
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from persona_circuits.circuit.assessment.options import EvaluationOptions
from persona_circuits.circuit.attribution import Scoring
from persona_circuits.circuit.choices import BY_ROW
from persona_circuits.circuit.discovery import MeasureOptions, ablation_for, batches_of
from persona_circuits.circuit.evaluation import (
    Certificate,
    PairScores,
    Removal,
    Rule,
    Units,
    certify,
    pair_scores,
    with_certificate,
)
from persona_circuits.circuit.evaluation.stability import (
    StabilityReport,
    order_dependence,
    order_report,
    random_orders,
    stability_report,
)
from persona_circuits.circuit.forward import Ablation, prepare_each
from persona_circuits.circuit.model import Model
from persona_circuits.circuit.progress import Stage, untold_stage
from persona_circuits.circuit.pruning import threshold
from persona_circuits.circuit.statistics import Clusters
from persona_circuits.circuit.subgraph import Circuit
from persona_circuits.circuit.task import Task
from persona_circuits.metrics import METRICS, Metric

__all__ = ["NOT_SEARCHED", "Searched", "Subject", "marked_record", "rule_of", "scores_of", "search_again"]

QUICK_RESAMPLES, QUICK_EDGES = 100, 600
"""With ``quick``: the number of resamples, and the most edges with which ACDC is repeated, in one random order."""


@dataclass(frozen=True, eq=False)
class Searched:
    """What ``search_again`` found: ``report`` and the pairs' scores, or ``reason`` why there is no report."""

    report: StabilityReport | None
    scores: PairScores | None = None
    reason: str = ""
    certificate: Certificate | None = None


NOT_SEARCHED = Searched(None, reason="it is not said how the circuit was found")


@dataclass(frozen=True, eq=False)
class Subject:
    """A circuit to test; if known, the ``record`` in its file, and its ``search``'s whole pair file."""

    circuit: Circuit
    record: Mapping[str, Any] | None = None
    search: Task | None = None


def search_again(
    model: Model,
    subject: Subject,
    options: EvaluationOptions,
    *,
    ablation: Ablation | None = None,
    state: Path | None = None,
    stage: Stage | None = None,
) -> Searched:
    """The stability of a circuit, whose record says which pairs of its search's file were searched on.

    ``ablation`` is that of the record, if it exists already. ACDC saves its state next to ``state``, to resume from
    after a stop. With ``options.quick`` there are at most 100 resamples, and one order where ACDC has at most 600 edges
    to try.

    Raises
    ------
    OptionError, TaskError
        The pairs do not fit the model, or a number is impossible.
    """
    task, circuit, record = subject.search, subject.circuit, subject.record
    if task is None or record is None:
        return NOT_SEARCHED
    stage = stage or untold_stage
    reason = _not_repeatable(model, task, record)
    if reason:
        return Searched(None, reason=reason)
    task_record = record["task"]
    train = task.where(**task_record.get("where", {})).of_split(task_record["split"])
    how: dict[str, Any] = {"method": record["method"], "align": task_record["align"], "batch_size": options.batch_size}
    setting = MeasureOptions(train_split=task_record["split"], batch_size=options.batch_size).settled(record)
    how |= {"ablation": ablation or ablation_for(model, task, setting), "stage": stage}
    if record["method"]["prune"] in ("acdc", "eap-acdc"):
        return _orders(model, train, circuit, record, options, state, how)
    if record["method"]["scores"] == "random":
        return Searched(None, reason="random scores do not depend on the pairs, so there is nothing to resample")
    scores = scores_of(model, train, METRICS[task_record["metric"]], **how)
    report = stability_report(
        scores,
        circuit,
        Rule.of_record(record["method"]),
        clusters=Clusters.of(train.pairs),
        n_resamples=min(options.n_resamples, QUICK_RESAMPLES) if options.quick else options.n_resamples,
        seed=options.seed,
        progress=stage("circuits of resampled pairs"),
    )
    certificate = None
    if options.certify:
        removal, rule = Removal(options.certify, options.seed), Rule.of_record(record["method"])
        certificate = certify(scores, circuit, rule, Units.of(train.pairs), removal, progress=stage("certificate"))
    return Searched(report, scores, certificate=certificate)


def scores_of(
    model: Model,
    part: Task,
    metric: Metric,
    *,
    method: Mapping[str, Any] | None = None,
    align: str = "equal",
    ablation: Ablation | None = None,
    batch_size: int = 32,
    stage: Stage | None = None,
) -> PairScores:
    """Every pair's scores on ``part``, as ``method``, that of a circuit's file, scores edges.

    Where that has no scores of single pairs (ACDC, random) or none of this metric, those of EAP-IG.
    """
    stage = stage or untold_stage
    named = (method or {}).get("scores")
    known = named if named in BY_ROW else "eap-ig"
    scored = "eap-ig" if metric.flat_at_clean and known != "exact" else known
    return pair_scores(
        model,
        batches_of(model, part, metric, align=align, batch_size=batch_size),
        metric,
        Scoring(scored, (method or {}).get("steps") or 5, (method or {}).get("ig_rule") or "midpoint"),
        ablation=ablation,
        progress=stage(f"{scored} scores, pair by pair"),
    )


def rule_of(record: Mapping[str, Any] | None) -> Rule | None:
    """The rule by which the circuit of this file follows from scores; None where it does not, or is unknown."""
    if (
        record is None
        or record["method"].keys() & {"finish", "of", "weigh", "resolution"}
        or record["method"]["prune"] in ("acdc", "eap-acdc", "learn")
    ):
        return None
    return Rule.of_record(record["method"])


def marked_record(
    record: Mapping[str, Any],
    report: StabilityReport | None,
    *,
    certificate: Certificate | None = None,
    seed: int = 0,
    quick: bool = False,
) -> dict[str, Any]:
    """The circuit's record with its stability, and with frequency and part of every edge, in place of earlier ones.

    A new certificate also replaces an earlier one.

    Without a report the record keeps what it has. ``seed`` and ``quick`` are those of the report.
    """
    if report is None:
        return dict(record)
    core = report.core
    edges: list[dict[str, Any]] = []
    for item in record["edges"]:
        plain = {key: value for key, value in item.items() if key not in ("frequency", "part")}
        frequency = report.of_edge(item["edge"])
        if frequency is not None:
            inside = bool(core.mask[core.graph.index(item["edge"])])
            plain |= {"frequency": frequency, "part": "core" if inside else "fringe"}
        edges.append(plain)
    marked = {**record, "stability": {**report.as_dict(), "seed": seed, "quick": quick}, "edges": edges}
    return with_certificate(marked, certificate)


def _not_repeatable(model: Model, task: Task, record: Mapping[str, Any]) -> str:
    """Why this model and pair file cannot repeat the search; empty where they can."""
    if task.sha256 != record["task"]["sha256"]:
        return f"{task.source} is not the file that the circuit was found on, so its search is not repeated"
    if record["task"]["metric"] not in METRICS:
        return (
            f"the circuit was found with a metric of its own, {record['task']['metric']}, so its search is not repeated"
        )
    if record["method"]["prune"] == "learn":
        return "learned gates are not trained again on resampled pairs"
    if "of" in record["method"]:
        return "the mean of several scorers is not made again pair by pair"
    if "weigh" in record["method"]:
        return "scores in which couples of personas weigh alike are not made again on resampled pairs"
    if "finish" in record["method"]:
        return "an exact finish is not repeated on resampled pairs"
    if model.fingerprint != record["model"]["fingerprint"]:
        return f"the circuit was found in other weights than {model.name} has, so its search is not repeated"
    return ""


def _orders(
    model: Model,
    train: Task,
    circuit: Circuit,
    record: Mapping[str, Any],
    options: EvaluationOptions,
    state: Path | None,
    how: Mapping[str, Any],
) -> Searched:
    """ACDC again in random orders, from the same start."""
    n_orders = options.orders
    method, metric = record["method"], METRICS[record["task"]["metric"]]
    start, scores = None, None
    if method["prune"] == "eap-acdc":
        if method["scores"] == "random":
            return Searched(None, reason="ACDC began with a choice by random scores, which is not repeated")
        scores = scores_of(model, train, metric, **how)
        start = threshold(scores.mean(), method["tau"])
    n_tried = model.graph.n_edges if start is None else len(start)
    if options.quick:
        n_orders = min(n_orders, 1 if n_tried <= QUICK_EDGES else 0)
    if not n_orders:
        why = f"ACDC, with {n_tried:,} edges to try, is not repeated in other orders"
        return Searched(None, scores, f"{why} with --quick" if options.quick else why)
    groups = batches_of(model, train, metric, align=how["align"], batch_size=how["batch_size"])
    prepared = list(prepare_each(model, groups, how["ablation"]))
    orders = random_orders(start or Circuit.full(model.graph), n_orders, seed=options.seed)
    progress = how["stage"](f"ACDC in {n_orders} other order(s)")
    order = order_dependence(
        model, prepared, metric, method["tau"], orders, default=circuit, state=state, progress=progress
    )
    rule = f"{method['prune']} {method['tau']:.4g}"
    return Searched(order_report(circuit, order, rule, len(train.pairs)), scores)
