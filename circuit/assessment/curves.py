"""Curves of a model and a pair file: scores from the training pairs, faithfulness on the held-out ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from persona_circuits.circuit import parallel
from persona_circuits.circuit.assessment.options import CurveOptions
from persona_circuits.circuit.attribution import Scoring, score
from persona_circuits.circuit.choices import RULED, STEPPED
from persona_circuits.circuit.cost import runs_of_scores
from persona_circuits.circuit.discovery import MeasureOptions, ablation_for, pairs_of, split_of
from persona_circuits.circuit.errors import OptionError
from persona_circuits.circuit.evaluation.curves import (
    SHARES,
    CurveKinds,
    CurveReport,
    Scorer,
    check_scorers,
    curve_report,
)
from persona_circuits.circuit.forward import Ablation, seconds_a_pass
from persona_circuits.circuit.io import read_scores
from persona_circuits.circuit.model import Model
from persona_circuits.circuit.peers import read_submission
from persona_circuits.circuit.progress import Stage, first_told, untold_stage
from persona_circuits.circuit.scores import Scores
from persona_circuits.circuit.statistics import Clusters, PairSample
from persona_circuits.circuit.subgraph import Circuit
from persona_circuits.circuit.task import Batch, Overlap, Row, Task, batches, encode, with_swap_rows
from persona_circuits.circuit.task.overlap import overlap
from persona_circuits.metrics import METRICS, Metric

__all__ = ["CurveStudy", "curve_study", "read_scorer"]


@dataclass(frozen=True, eq=False)
class CurveStudy:
    """The curves, the scores computed for them by name, and a record of their inputs."""

    report: CurveReport
    scores: dict[str, Scores]
    about: dict[str, Any]

    def as_dict(self) -> dict[str, Any]:
        """Plain values, without the scores."""
        return {**self.about, **self.report.as_dict()}


def curve_study(
    model: Model,
    task: Task,
    options: CurveOptions,
    *,
    given: Mapping[str, Scorer] | None = None,
    marks: Mapping[str, Circuit] | None = None,
    stage: Stage | None = None,
) -> CurveStudy:
    """Score on the training split, measure every scorer's circuits on the other.

    Parameters
    ----------
    given
        Further scorers by name: scores that are there already, or the circuits of a submission.
    marks
        Circuits to measure beside the curves.

    Raises
    ------
    OptionError, TaskError
        Before any long work.
    """
    options = options.checked()
    if doubled := set(given or {}) & set(options.scorers):
        raise OptionError(f"two scorers are called {min(doubled)}; rename the file or folder of scores")
    if not options.scorers and not given:
        raise OptionError("--scorers names no scorer; expected some of eap, eap-ig, exact, random, or files of scores")
    check_scorers(model.graph, given or {}, options.levels, options.orders)
    stage = stage or untold_stage
    metric = METRICS[str(options.metric)]
    chosen = task.where(**dict(options.where))
    train, held_out = split_of(chosen, options.train_split, "train"), split_of(chosen, options.eval_split, "test")
    rows = encode(chosen.of_split(train), model, align=str(options.align))
    shared = overlap(rows, encode(chosen.of_split(held_out), model, align=str(options.align)))
    rows = with_swap_rows(rows) if metric.swap_rows else rows
    groups = batches(parallel.share(rows), options.batch_size, model.device)
    how: dict[str, Any] = {"align": options.align, "batch_size": options.batch_size}
    setting = MeasureOptions(metric=metric.name, ablation=options.ablation, train_split=train, **how)
    ablation = ablation_for(model, chosen, setting, stage)
    prepared = pairs_of(model, chosen.of_split(held_out), metric, ablation=ablation, **how)
    pace = seconds_a_pass(model, groups, ablation)
    stage = first_told(stage, "all of it", pace * _passes(model, options, rows, chosen.of_split(held_out), given))
    scores = _scores(model, groups, metric, options, ablation, stage)
    report = curve_report(
        model,
        prepared,
        metric,
        {**scores, **(given or {})},
        CurveKinds(options.levels, options.orders, options.n_random if "random" in options.scorers else 0),
        PairSample(held_out, Clusters.of(chosen.of_split(held_out).pairs), options.seed),
        marks=marks,
        progress=stage(f"circuits on {held_out}"),
    )
    return CurveStudy(report, scores, _about(model, chosen, options, train, shared))


PATCHED = 1.8
"""Bare passes that a circuit takes; docs/performance.md."""


def _passes(
    model: Model, options: CurveOptions, rows: Sequence[Row], held_out: Task, given: Mapping[str, Scorer] | None
) -> float:
    """About how many passes of a prompt the curves take: those of the scores, and those of the circuits."""
    arch, tokens = model.architecture(), max((len(row.clean) for row in rows), default=1)
    methods = [name for name in dict.fromkeys(options.scorers) if name != "random"]
    scored = sum(runs_of_scores(arch, tokens, name, steps=options.steps) for name in methods)
    curves = (len(methods) + len(given or {})) * len(options.orders) + ("random" in options.scorers) * options.n_random
    circuits = curves * len(options.levels) * len(SHARES)
    both = 2 if METRICS[str(options.metric)].swap_rows else 1
    return 2 * len(rows) * scored + both * len(held_out.pairs) * circuits * PATCHED


def _scores(
    model: Model,
    groups: Sequence[Batch],
    metric: Metric,
    options: CurveOptions,
    ablation: Ablation | None,
    stage: Stage,
) -> dict[str, Scores]:
    """Those of every method that scores edges."""
    scoring = Scoring(steps=options.steps, rule=options.ig_rule)
    return {
        name: score(
            model, groups, metric, replace(scoring, method=name), ablation=ablation, progress=stage(f"{name} scores")
        )
        for name in dict.fromkeys(options.scorers)
        if name != "random"
    }


def read_scorer(path: str | Path) -> Scorer:
    """Scores or circuits from a ``scores.safetensors``, a run's folder with one in it, or a submission to MIB.

    Raises:
        FileError: it is none of these, or faulty.
    """
    path = Path(path)
    if path.suffix == ".safetensors":
        return read_scores(path)
    file = path / "scores.safetensors"
    return read_scores(file) if file.is_file() else read_submission(path)


def _about(model: Model, task: Task, options: CurveOptions, train: str, shared: Overlap) -> dict[str, Any]:
    return {
        "model": {"name": model.name, "revision": model.revision, "fingerprint": model.fingerprint},
        "pairs": {"source": task.source, "sha256": task.sha256, "where": dict(options.where), **task.counts},
        "scored_on": train,
        "held_out": shared.held_out,
        "shared": shared.as_dict(),
        "ablation": options.ablation,
        "align": options.align,
        "steps": options.steps if {*STEPPED} & {*options.scorers} else None,
        "ig_rule": options.ig_rule if {*RULED} & {*options.scorers} else None,
        "seed": options.seed,
    }
