"""All tests of a circuit: faithfulness, hypothesis tests, completeness, stability, pairs, transfer.

1. *stability*: the search's own pairs are resampled, or ACDC's order changed (``circuit.assessment.stability``)
2. *hypothesis tests* and *completeness* on the requested pairs
3. *pairs*: the same circuit pair by pair, flat pairs apart, groups of pairs that use other edges
4. *transfer*: the circuit on all of these pairs and on every value of their keys, beside circuits outside it

The results go into the circuit's file, with what they were measured on, so that a circuit is never seen without them.
Stability is of the search, not of the requested pairs: it is at the top of the file, with frequency and part (core or
fringe) at every edge.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from persona_circuits.circuit.assessment.budget import SEARCHED, Clock
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
from persona_circuits.circuit.discovery import batches_of, metric_of, pairs_of
from persona_circuits.circuit.errors import TaskError
from persona_circuits.circuit.evaluation import (
    FaithfulnessReport,
    GroupSearch,
    NullRun,
    PairScores,
    PairSignal,
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
from persona_circuits.circuit.forward import Ablation, KeptRuns, Prepared, Rounding
from persona_circuits.circuit.model import Model
from persona_circuits.circuit.progress import Stage, untold_stage
from persona_circuits.circuit.statistics import Clusters
from persona_circuits.circuit.task import Overlap, Task
from persona_circuits.metrics import Metric

__all__ = ["CircuitTests", "Ground", "all_tests", "run_tests", "with_evaluation"]

AXES = ("held_out", "domain", "template", "placement")
"""The default keys of pairs for transfer."""
Source = Callable[[], Iterable[Prepared]]
LEFT_OUT = Searched(None, reason="left out by --budget")
DRAWS, QUICK_DRAWS = 199, 39
"""Random draws of the test for groups of pairs, in full and in the quick form."""


@dataclass(frozen=True, eq=False, repr=False)
class CircuitTests:
    """The tests of one circuit on one set of pairs.

    ``transfer`` is by the values of keys of the pairs; under ``pairs`` it is all of them. ``null`` is the run on
    paraphrases, if requested, and ``searched`` the stability of the circuit's search, if its file was given. Results
    for which there was no time are None or missing.
    """

    tests: HypothesisReport | None
    completeness: CompletenessReport | None
    transfer: Mapping[str, tuple[Transfer, ...]]
    pairs: PairsView | None
    null: NullRun | None = None
    searched: Searched = NOT_SEARCHED

    def __repr__(self) -> str:
        stability = self.searched.report
        unstable = None if stability is None else stability.unstable
        verdict = {None: "unknown", True: "unstable", False: "stable"}[unstable]
        return f"CircuitTests({self.tests!r}, {self.pairs!r}, stability {verdict})"

    def as_dict(self) -> dict[str, Any]:
        """Plain values, as the circuit's file holds them; stability apart."""
        return {
            **{
                name: part.as_dict()
                for name, part in (("tests", self.tests), ("completeness", self.completeness), ("pairs", self.pairs))
                if part is not None
            },
            "null": None if self.null is None else self.null.as_dict(),
            "transfer": {key: [part.as_dict() for part in parts] for key, parts in self.transfer.items()},
        }


def run_tests(
    model: Model,
    task: Task,
    subject: Subject,
    options: EvaluationOptions,
    *,
    ablation: Ablation | None = None,
    null: Task | None = None,
    state: Path | None = None,
    stage: Stage | None = None,
) -> CircuitTests:
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
        Measurements are saved next to this path, to resume from after a stop.

    Raises
    ------
    TaskError, OptionError
        A key that no pair has; an impossible number.
    """
    options = options.settled()
    stage = stage or untold_stage
    ground = Ground(model, task, subject, options, metric_of(options.metric), ablation, state, stage)
    return all_tests(ground, null)


@dataclass(frozen=True, eq=False)
class Ground:
    """What all tests of one circuit share: pairs, settled options, and where measurements are saved.

    ``searched_with`` is the ablation of the circuit's search, where it is made already; ``repeated`` is whether that
    search is made again on resampled pairs. ``clock`` stops what would take too long.
    """

    model: Model
    task: Task
    subject: Subject
    options: EvaluationOptions
    metric: Metric
    ablation: Ablation | None = None
    state: Path | None = None
    stage: Stage = field(default=untold_stage)
    searched_with: Ablation | None = None
    repeated: bool = True
    clock: Clock = field(default_factory=Clock)

    @property
    def how(self) -> dict[str, Any]:
        """How pairs become batches."""
        return {"align": self.options.align, "ablation": self.ablation, "batch_size": self.options.batch_size}

    def kept(self, name: str) -> Path | None:
        """Where the measurements of one test are saved, to resume from after a stop."""
        return None if self.state is None else self.state.with_name(f"{self.state.name}.{name}")

    def runs(self) -> KeptRuns:
        """The pairs, run plain once for all tests."""
        align, size = str(self.options.align), self.options.batch_size
        groups = batches_of(self.model, self.task, self.metric, align=align, batch_size=size)
        return KeptRuns(self.model, groups, self.ablation)


def all_tests(ground: Ground, null: Task | None) -> CircuitTests:
    """All tests, one after the other; ``null`` are pairs of paraphrases of one persona.

    The search is repeated first, as its scores may serve the pairs here; with a time budget it comes last.
    """
    options, within = ground.options, ground.clock.within
    how: dict[str, Any] = {"align": options.align, "batch_size": options.batch_size}
    quiet = within("paraphrases", lambda: null_run(ground.model, null, **how)) if null is not None else None
    searched = LEFT_OUT if options.budget is not None else _searched(ground)
    runs = ground.runs()
    what = (ground.model, lambda: ground.clock.over(runs()), ground.metric, ground.subject.circuit)
    more: dict[str, Any] = {"clusters": Clusters.of(ground.task.pairs)}

    def tests() -> HypothesisReport:
        test_options = HypothesisOptions(n_random=options.n_tested, seed=options.seed, quick=options.quick)
        return hypothesis_tests(*what, test_options, state=ground.kept("tests"), progress=ground.stage("tests"), **more)

    def complete() -> CompletenessReport:
        few = CompletenessOptions(seed=options.seed, quick=options.quick)
        state = ground.kept("complete")
        return completeness_report(*what, few, state=state, progress=ground.stage("completeness"), **more)

    def view() -> PairsView:
        return _pair_by_pair(ground, what[1], _same_pairs(ground, searched.scores), quiet)

    results: Any = [
        within(name, work)
        for name, work in (("hypothesis tests", tests), ("completeness", complete), ("pair by pair", view))
    ]
    moved: Any = within("transfer", lambda: _transfers(ground)) or {}
    if options.budget is not None and ground.repeated:
        searched = within(SEARCHED, lambda: _searched(ground)) or LEFT_OUT
    return CircuitTests(results[0], results[1], moved, results[2], quiet, searched)


def _searched(ground: Ground) -> Searched:
    known: dict[str, Any] = {"ablation": ground.searched_with, "state": ground.kept("search"), "stage": ground.stage}
    return search_again(ground.model, ground.subject, ground.options, **known)


def _pair_by_pair(ground: Ground, runs: Source, known: PairScores | None, null: NullRun | None) -> PairsView:
    """The circuit on every pair alone, and groups of pairs that use other edges."""
    model, task, metric, options = ground.model, ground.task, ground.metric, ground.options
    circuit, record = ground.subject.circuit, ground.subject.record
    method = {"scores": "eap"} if options.quick else (record or {}).get("method")
    scores = known or scores_of(model, task, metric, method=method, stage=ground.stage, **ground.how)
    group_search = GroupSearch(scores, rule_of(record), QUICK_DRAWS if options.quick else DRAWS, options.seed)
    watch = Rounding(model, metric)
    values = measured_pairs(model, runs(), metric, circuit, watch=watch)
    divergences = divergences_of(runs(), swapped=metric.swap_rows)
    signal = PairSignal(divergences, None if null is None else null.sigma_0, watch.floor)
    progress = ground.stage("groups of pairs")
    return pairs_view(values, task.pairs, circuit, signal=signal, sought=group_search, progress=progress)


def _transfers(ground: Ground) -> dict[str, tuple[Transfer, ...]]:
    """On all pairs, and on those of every value of the keys."""
    transfers: dict[str, tuple[Transfer, ...]] = {}
    by = ground.options.by
    for key in ("pairs", *(_axes(ground.task) if by is None else by)):
        parts = {"all": ground.task} if key == "pairs" else ground.task.groups(key)
        made = {value: pairs_of(ground.model, part, ground.metric, **ground.how) for value, part in parts.items()}
        grounds = {value: partial(_stepping, ground.clock, pairs) for value, pairs in made.items()}
        clusters = {value: Clusters.of(part.pairs) for value, part in parts.items()}
        more: dict[str, Any] = {"clusters": clusters, "seed": ground.options.seed}
        more |= {"n_outside": 3 if ground.options.quick else 10}
        progress = ground.stage("transfer" if key == "pairs" else f"transfer by {key}")
        transfers[key] = transfer(
            ground.model, ground.subject.circuit, grounds, ground.metric, progress=progress, **more
        )
    return transfers


def _stepping(clock: Clock, pairs: Source) -> Iterator[Prepared]:
    return clock.over(pairs())


def _same_pairs(ground: Ground, scores: PairScores | None) -> PairScores | None:
    """The search's scores, where these are its pairs and its setting."""
    record, search = ground.subject.record, ground.subject.search
    if scores is None or search is None or record is None or ground.ablation is not None:
        return None
    task_record = record["task"]
    own = (task_record["metric"], record["ablation"], task_record["align"])
    searched = search.where(**task_record.get("where", {})).of_split(task_record["split"])
    same = own == (ground.metric.name, "corrupt", ground.options.align)
    return scores if same and searched.pairs == ground.task.pairs else None


def with_evaluation(
    record: Mapping[str, Any],
    task: Task,
    split: str,
    report: FaithfulnessReport,
    results: CircuitTests | None,
    shared: Overlap | None = None,
    **stamp: Any,
) -> dict[str, Any]:
    """The circuit's record with this evaluation; it replaces an earlier one of the same pairs, split and setting.

    ``shared`` is what its pairs have in common with those searched on, where these are known. Its stability, and
    frequency and part of every edge, are written where they are known.
    """
    what = {"source": task.source, "sha256": task.sha256, "split": split, **stamp}
    earlier = [
        entry for entry in record.get("evaluations", []) if any(entry.get(key) != value for key, value in what.items())
    ]
    known = {} if shared is None else {"held_out": shared.held_out, "shared": shared.as_dict()}
    new = {**what, **task.counts, **known, "faithfulness": report.as_dict(), **(results.as_dict() if results else {})}
    how = {"seed": stamp.get("seed", 0), "quick": stamp.get("quick", False)}
    searched = results.searched if results else NOT_SEARCHED
    marked = marked_record(record, searched.report, certificate=searched.certificate, **how)
    return {**marked, "evaluations": [*earlier, new]}


def _axes(task: Task) -> list[str]:
    """The default keys that split these pairs into several parts."""
    axes = []
    for key in AXES:
        try:
            groups = task.groups(key)
        except TaskError:
            continue
        if len(groups) > 1:
            axes.append(key)
    return axes
