"""Everything that a circuit has to stand: faithfulness, hypothesis tests, completeness, stability, pairs, transfer.

1. *stability*: the search's own pairs are resampled, or ACDC's order changed (``circuit.assessment.stability``)
2. *hypothesis tests* and *completeness* on the pairs asked for
3. *pairs*: the same circuit pair by pair, flat pairs apart, groups of pairs that use other edges
4. *transfer*: the circuit on all of these pairs and on every value of their keys, beside circuits outside it

What is found goes into the circuit's file, with what it was measured on, so that a
circuit is never seen without it. Stability is of the search, not of the pairs asked for: it stands at the top of the
file, with frequency and part (core or fringe) at every edge.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from persona_circuits.circuit.assessment.options import EvaluationOptions
from persona_circuits.circuit.assessment.stability import (
    NOT_SEARCHED,
    Searched,
    Subject,
    marked_record,
    rule_of,
    scores_of,
    search_again,
)
from persona_circuits.circuit.discovery import pairs_of
from persona_circuits.circuit.errors import TaskError
from persona_circuits.circuit.evaluation import (
    FaithfulnessReport,
    NullRun,
    PairScores,
    PairsView,
    Transfer,
    divergences_of,
    measured_pairs,
    null_run,
    pairs_view,
    transfer,
)
from persona_circuits.circuit.evaluation.completeness import (
    CompletenessOptions,
    CompletenessReport,
    completeness_report,
)
from persona_circuits.circuit.evaluation.hypothesis import HypothesisOptions, HypothesisReport, hypothesis_tests
from persona_circuits.circuit.forward import Ablation, Prepared, Progress, Rounding
from persona_circuits.circuit.model import Model
from persona_circuits.circuit.statistics import Clusters
from persona_circuits.circuit.subgraph import Circuit
from persona_circuits.circuit.task import Overlap, Task
from persona_circuits.metrics import METRICS, Metric

__all__ = [
    "Battery",
    "battery",
    "with_evaluation",
]

AXES = ("held_out", "domain", "template", "placement")
"""Keys of the pairs by which transfer is looked at where no other is asked for."""
DRAWS, QUICK_DRAWS = 199, 39
"""Of the test for groups of pairs."""


@dataclass(frozen=True, eq=False)
class Battery:
    """The tests of one circuit on one set of pairs.

    ``transfer`` is by the values of keys of the pairs; under ``pairs`` it is all of them. ``null`` is the run on
    paraphrases, if one was asked for, and ``searched`` the stability of the circuit's search, if its file was given.
    """

    tests: HypothesisReport
    completeness: CompletenessReport
    transfer: Mapping[str, tuple[Transfer, ...]]
    pairs: PairsView
    null: NullRun | None = None
    searched: Searched = NOT_SEARCHED

    def as_dict(self) -> dict[str, Any]:
        """Plain values, as the circuit's file holds them; stability apart."""
        return {
            "tests": self.tests.as_dict(),
            "completeness": self.completeness.as_dict(),
            "pairs": self.pairs.as_dict(),
            "null": None if self.null is None else self.null.as_dict(),
            "transfer": {key: [part.as_dict() for part in parts] for key, parts in self.transfer.items()},
        }


def battery(
    model: Model,
    task: Task,
    subject: Subject,
    options: EvaluationOptions,
    *,
    ablation: Ablation | None = None,
    null: Task | None = None,
    state: Path | None = None,
    stage: Callable[[str], Progress] | None = None,
) -> Battery:
    """Run all of it on the pairs of ``task``.

    Parameters
    ----------
    subject
        The circuit; its stability is known only with its record and the pair file of its search.
    ablation
        That of ``options``, with its constants; None for corrupt activations.
    null
        Pairs of two paraphrases of one persona: D is flat within twice its spread over them.
    state
        Measurements are kept beside this path, to go on from after a stop.

    Raises
    ------
    TaskError, OptionError
        A key that no pair has; an impossible number.
    """
    options = options.settled()
    stage = stage or (lambda _name: lambda _done, _total: None)
    metric, clusters = METRICS[str(options.metric)], Clusters.of(task.pairs)
    how: dict[str, Any] = {"align": options.align, "ablation": ablation, "batch_size": options.batch_size}
    pairs = pairs_of(model, task, metric, **how)
    quiet = None
    if null is not None:
        quiet = null_run(model, null, align=str(options.align), batch_size=options.batch_size)
    names = ("search", "tests", "complete")
    kept = {name: None if state is None else state.with_name(f"{state.name}.{name}") for name in names}
    searched = search_again(model, subject, options, state=kept["search"], stage=stage)
    what, few = (model, pairs, metric, subject.circuit), {"seed": options.seed, "quick": options.quick}
    asked = HypothesisOptions(n_random=options.n_tested, **few)
    tests = hypothesis_tests(*what, asked, clusters=clusters, state=kept["tests"], progress=stage("tests"))
    more = {"clusters": clusters, "state": kept["complete"], "progress": stage("completeness")}
    complete = completeness_report(*what, CompletenessOptions(**few), **more)
    known = _same_pairs(searched.scores, subject, task, options, ablation)
    method = {"scores": "eap"} if options.quick else (subject.record or {}).get("method")
    scores = known or scores_of(model, task, metric, method=method, stage=stage, **how)
    sigma_0 = None if quiet is None else quiet.sigma_0
    view = _view(what, task, scores, subject, sigma_0, options, stage("groups of pairs"))
    moved = _transfers(model, task, subject.circuit, metric, options, how, stage)
    return Battery(tests, complete, moved, view, quiet, searched)


def _view(
    what: tuple[Model, Callable[[], Iterator[Prepared]], Metric, Circuit],
    task: Task,
    scores: PairScores,
    subject: Subject,
    sigma_0: float | None,
    options: EvaluationOptions,
    progress: Progress,
) -> PairsView:
    """The circuit pair by pair."""
    model, pairs, metric, circuit = what
    watch = Rounding(model, metric)
    values = measured_pairs(model, pairs(), metric, circuit, watch=watch)
    return pairs_view(
        values,
        task.pairs,
        circuit,
        scores=scores,
        rule=rule_of(subject.record),
        divergences=divergences_of(pairs(), swapped=metric.swap_rows),
        sigma_0=sigma_0,
        rounding=watch.floor,
        n_draws=QUICK_DRAWS if options.quick else DRAWS,
        seed=options.seed,
        progress=progress,
    )


def _transfers(
    model: Model,
    task: Task,
    circuit: Circuit,
    metric: Metric,
    options: EvaluationOptions,
    how: Mapping[str, Any],
    stage: Callable[[str], Progress],
) -> dict[str, tuple[Transfer, ...]]:
    """On all pairs, and on those of every value of the keys."""
    found: dict[str, tuple[Transfer, ...]] = {}
    for key in ("pairs", *(_axes(task) if options.by is None else options.by)):
        parts = {"all": task} if key == "pairs" else task.groups(key)
        grounds = {value: pairs_of(model, part, metric, **how) for value, part in parts.items()}
        clusters = {value: Clusters.of(part.pairs) for value, part in parts.items()}
        more = {"clusters": clusters, "n_outside": 3 if options.quick else 10, "seed": options.seed}
        tell = stage("transfer" if key == "pairs" else f"transfer by {key}")
        found[key] = transfer(model, circuit, grounds, metric, progress=tell, **more)
    return found


def _same_pairs(
    scores: PairScores | None, subject: Subject, task: Task, options: EvaluationOptions, ablation: Ablation | None
) -> PairScores | None:
    """The search's scores, where these are its pairs and its setting."""
    record, search = subject.record, subject.search
    if scores is None or search is None or record is None or ablation is not None:
        return None
    about = record["task"]
    own = (about["metric"], record["ablation"], about["align"])
    searched = search.where(**about.get("where", {})).of_split(about["split"])
    same = own == (options.metric, "corrupt", options.align)
    return scores if same and searched.pairs == task.pairs else None


def with_evaluation(
    record: Mapping[str, Any],
    task: Task,
    split: str,
    report: FaithfulnessReport,
    results: Battery | None,
    shared: Overlap | None = None,
    **stamp: Any,
) -> dict[str, Any]:
    """The circuit's record with this evaluation; an earlier one of the same pairs, split and setting gives way.

    ``shared`` is what its pairs have in common with those searched on, where these are known. Its stability, and
    frequency and part of every edge, are written where they are known.
    """
    what = {"source": task.source, "sha256": task.sha256, "split": split, **stamp}
    earlier = [
        one for one in record.get("evaluations", []) if any(one.get(key) != value for key, value in what.items())
    ]
    known = {} if shared is None else {"held_out": shared.held_out, "shared": shared.as_dict()}
    new = {**what, **task.counts, **known, "faithfulness": report.as_dict(), **(results.as_dict() if results else {})}
    how = {"seed": stamp.get("seed", 0), "quick": stamp.get("quick", False)}
    marked = marked_record(record, results.searched.report if results else None, **how)
    return {**marked, "evaluations": [*earlier, new]}


def _axes(task: Task) -> list[str]:
    """Of the usual keys those by which these pairs fall into several parts."""
    found = []
    for key in AXES:
        try:
            groups = task.groups(key)
        except TaskError:
            continue
        if len(groups) > 1:
            found.append(key)
    return found
