"""The evaluation of a circuit, given the circuit, its model, and optionally other pairs.

Defaults come from the circuit's file: pairs, metric, ablation, alignment, conditions.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from persona_circuits.circuit.assessment.budget import OWN, Clock, Plan, Workload, least, pace_of, plan, spread_over
from persona_circuits.circuit.assessment.evaluation import CircuitTests, Ground, all_tests, with_evaluation
from persona_circuits.circuit.assessment.options import EvaluationOptions
from persona_circuits.circuit.assessment.stability import Subject
from persona_circuits.circuit.discovery import Discovery, ablation_for, metric_of, report_of, split_of
from persona_circuits.circuit.discovery.tasks import check_graph
from persona_circuits.circuit.discovery.writing import title_of
from persona_circuits.circuit.drawing import Marks, draw
from persona_circuits.circuit.errors import OptionError, TaskError
from persona_circuits.circuit.evaluation import FaithfulnessReport
from persona_circuits.circuit.evaluation.measurements import PART
from persona_circuits.circuit.forward import Ablation
from persona_circuits.circuit.io import StoredCircuit, read_circuit, write_circuit
from persona_circuits.circuit.model import Model
from persona_circuits.circuit.printable import html_table
from persona_circuits.circuit.progress import Stage, first_told, untold_stage
from persona_circuits.circuit.scores import Scores
from persona_circuits.circuit.storage import replace_folder
from persona_circuits.circuit.subgraph import Circuit, SpanCircuit
from persona_circuits.circuit.task import CONTROLS, MODEL, Overlap, Task, fitting, load_task, overlap_of_tasks, resolve

__all__ = ["Evaluation", "evaluate_circuit"]


@dataclass(frozen=True, eq=False, repr=False)
class Evaluation:
    """A circuit's faithfulness on a set of pairs, and the results of its tests.

    ``results`` are the tests, None where only faithfulness was requested. ``shared`` is what the pairs have in
    common with those searched on, where these are known. ``record`` is the circuit's file with this in it, None for a
    circuit without one. ``notes`` tell of rows of the pair files that are not used.
    """

    report: FaithfulnessReport
    results: CircuitTests | None
    shared: Overlap | None
    record: dict[str, Any] | None
    task: Task
    notes: tuple[str, ...] = ()

    def __repr__(self) -> str:
        tested = "" if self.results is None else f", {self.results!r}"
        return f"Evaluation({self.report!r}{tested})"

    def _repr_html_(self) -> str:
        if self.results is None or self.results.tests is None:
            return self.report._repr_html_()
        tests = self.results.tests
        rows = [(outcome.name, outcome.decision, outcome.sentence) for outcome in tests.outcomes]
        more = html_table(f"hypothesis tests on {tests.n_pairs} pairs", ("test", "circuit", "says"), rows)
        return f"{self.report._repr_html_()}{more}"

    def as_dict(self) -> dict[str, Any]:
        """Plain values, as the command ``evaluate`` prints them."""
        record = self.report.as_dict()
        if self.results is not None:
            stability = self.results.searched.report
            known = {"reason": self.results.searched.reason} if stability is None else stability.as_dict()
            record |= {"stability": known, **self.results.as_dict()}
            if (certificate := self.results.searched.certificate) is not None:
                record["certificate"] = certificate.as_dict()
        record |= self.task.counts
        return record | (
            {} if self.shared is None else {"held_out": self.shared.held_out, "shared": self.shared.as_dict()}
        )

    def save(self, path: str | Path, *, strongest: int | None = None) -> None:
        """Write the evaluation into the circuit's file; pictures beside it are drawn again, with its marks.

        Raises:
            OptionError: the circuit has no file.
            WriteError: the folder cannot be written.
        """
        if self.record is None:
            raise OptionError("the circuit was given without its file, so there is none to write its evaluation into")
        path = Path(path)
        with replace_folder(path.parent) as staging:
            write_circuit(self.record, staging / path.name)
            marked = read_circuit(staging / path.name)
            for name in ("graph.svg", "graph.png") if marked.fringe is not None else ():
                if path.with_name(name).exists():
                    how: dict[str, Any] = {"scores": marked.scores, "marks": Marks(fringe=marked.fringe)}
                    draw(marked.circuit, staging / name, strongest=strongest, title=title_of(self.record), **how)


def evaluate_circuit(
    model: Model,
    circuit: StoredCircuit | Discovery | Circuit,
    task: Task | None = None,
    options: EvaluationOptions | None = None,
    *,
    null: Task | None = None,
    tested: bool = True,
    state: Path | None = None,
    stage: Stage | None = None,
) -> Evaluation:
    """Put a circuit to the test: all that the command ``evaluate`` does.

    Parameters
    ----------
    circuit
        What ``discover`` or ``read_circuit`` gave, or a bare ``Circuit``, of whose search nothing is known.
    task
        The pairs to measure on; by default the file that the circuit was found on, of which a split can be held out.
    options
        By default as the circuit's file says.
    tested
        False leaves out every test beyond faithfulness and its random circuits.
    null
        Pairs of paraphrases of one persona: |D| within twice their spread is flat. By default the shipped ones for
        the shipped model.
    state
        Measurements are saved next to this path, to resume from after a stop.

    Returns
    -------
    The report of faithfulness, the tests, and the circuit's record with both in it; ``save`` writes that.

    Raises
    ------
    OptionError
        The circuit is of another graph than the model, an option is unknown, or no pairs are given or named.
    TaskError
        The pairs do not fit the model, or have no such key or split.
    """
    stage = stage or untold_stage
    request = _asked(model, circuit, task, options or EvaluationOptions(), _null_task(null, model) if tested else None)
    subject, options = request.subject, request.options
    if request.at_parts is not None and tested:
        raise OptionError(
            "this circuit has its edges at parts of the prompt, and the tests take edges at all of them; give "
            "--only-faithfulness, which measures it as it is"
        )
    clock = Clock(options.budget)
    ablation = ablation_for(model, request.task, options, stage)
    report, pace = None, 0.0
    if options.budget is not None:
        request, tested, report = _within(clock, request, model, ablation, tested, stage)
        options, state = request.options, None
    if report is None:
        report, pace = _timed_report(request, model, ablation, stage)
    results = None
    if tested:
        own = ablation if request.searches_ablation else None
        timed = first_told(
            clock.watched(stage), "all tests", pace * len(request.chosen.pairs) * passes_of_tests(options)
        )
        ground = Ground(model, request.chosen, subject, options, metric_of(options.metric), ablation, state, timed, own)
        ground = replace(ground, repeated=request.repeated, clock=clock)
        results = all_tests(ground, request.null)
    request = replace(request, left_out=(*request.left_out, *clock.left_out))
    record = None
    if subject.record is not None:
        stamp = {"model": model.name, "fingerprint": model.fingerprint, "where": dict(options.where)}
        stamp |= {"metric": metric_of(options.metric).name}
        stamp |= {name: getattr(options, name) for name in ("ablation", "align", "seed", "quick")}
        record = with_evaluation(subject.record, request.task, report.split, report, results, request.shared, **stamp)
    return Evaluation(report, results, request.shared, record, request.task, request.notes)


@dataclass(frozen=True, eq=False)
class _Asked:
    """The request, with defaults filled in from the circuit's file; ``options`` are settled."""

    subject: Subject
    scores: Scores | None
    task: Task
    chosen: Task
    split: str
    null: Task | None
    shared: Overlap | None
    options: EvaluationOptions
    repeated: bool = True
    left_out: tuple[str, ...] = ()
    at_parts: SpanCircuit | None = None

    @property
    def notes(self) -> tuple[str, ...]:
        """The notes of all pair files, each once, and of work for which there was no time."""
        short = (f"left out by --budget: {', '.join(self.left_out)}",) if self.left_out else ()
        return (*self._of_files, *short)

    @property
    def _of_files(self) -> tuple[str, ...]:
        tasks = [task for task in (self.task, self.null, self.subject.search) if task is not None]
        return tuple(dict.fromkeys(f"{task.source}: {note}" for task in tasks for note in task.notes))

    @property
    def searches_ablation(self) -> bool:
        """Whether the constants made for these pairs are those of the circuit's search."""
        record, options = self.subject.record, self.options
        if record is None or self.subject.search is not self.task:
            return False
        task_record = record["task"]
        own = (record["ablation"], task_record["align"], task_record.get("where", {}), task_record["split"])
        return own == (options.ablation, options.align, dict(options.where), split_of(self.task, None, "train"))


def _asked(
    model: Model,
    given: StoredCircuit | Discovery | Circuit,
    task: Task | None,
    options: EvaluationOptions,
    null: Task | None,
) -> _Asked:
    circuit, scores, record = (
        (given, None, None) if isinstance(given, Circuit) else (given.circuit, given.scores, given.record)
    )
    check_graph(circuit, model)
    options = options.settled(record).checked()
    metric_of(options.metric)
    task = _own_task(record) if task is None else task
    fit = bool(task.unfit or (record or {"task": {}})["task"].get("unfit"))
    whole, quiet, search = (
        read if read is None or read.unfit or not fit else fitting(read, model, align=str(options.align))
        for read in (task, null, _searched_task(record, task))
    )
    assert whole is not None
    if search is not None and search.sha256 == whole.sha256:
        search = whole
    chosen = whole.where(**dict(options.where))
    split = split_of(chosen, options.split, "test")
    chosen = chosen.of_split(split)
    shared = _shared_with_search(record, search, chosen, model)
    at_parts = None if isinstance(given, Circuit) else given.at_parts
    subject = Subject(circuit, record, search)
    return _Asked(subject, scores, whole, chosen, split, quiet, shared, options, at_parts=at_parts)


TEST_PASSES, QUICK_PASSES = 1500, 150
"""Upper bounds on the passes per pair of all tests, in full and in their quick form, for a few keys of the pairs."""
SLICE = 0.1
"""Largest share of the remaining time for one batch; the time is checked between batches."""


def passes_of_tests(options: EvaluationOptions) -> int:
    """The number of passes per pair, without the repeated search."""
    return QUICK_PASSES if options.quick else TEST_PASSES


def _timed_report(
    request: _Asked, model: Model, ablation: Ablation | None, stage: Stage
) -> tuple[FaithfulnessReport, float]:
    """The faithfulness, and the time that one pass of a pair took."""
    reports: list[FaithfulnessReport] = []

    def once() -> None:
        what = (request.options, ablation, request.split, request.scores, stage)
        reports.append(report_of(model, request.chosen, request.at_parts or request.subject.circuit, *what))

    pace = pace_of(once, (OWN + request.options.n_random) * len(request.chosen.pairs))
    return reports[0], pace


def _within(
    clock: Clock, request: _Asked, model: Model, ablation: Ablation | None, tested: bool, stage: Stage
) -> tuple[_Asked, bool, FaithfulnessReport]:
    """The part of the request that fits the time, whether there is time for tests, and the faithfulness.

    The faithfulness on a few pairs is measured in any case and gives the time of a pass. That on more pairs replaces it
    if it finishes in time.
    """
    request = replace(request, options=replace(request.options, quick=True))
    work = _workload(request, model, tested)
    affordable = least(work)
    report, pace = _timed_report(_shortened(request, affordable), model, ablation, stage)
    more = plan(work, clock.left, pace)
    request = replace(request, options=_in_slices(request.options, clock.left, pace))

    def larger() -> tuple[FaithfulnessReport, float]:
        return _timed_report(_shortened(request, more), model, ablation, clock.watched(stage))

    if more.n_pairs > affordable.n_pairs and (done := clock.within("", larger, more.alone(pace))):
        affordable, (report, pace) = more, done
    clock.left_out.clear()
    fits = affordable.tested and QUICK_PASSES * affordable.n_pairs * pace <= clock.left
    affordable = (
        affordable if fits == affordable.tested else replace(affordable, tested=False, searched=False).told(work)
    )
    return _shortened(request, affordable), affordable.tested, report


def _workload(request: _Asked, model: Model, tested: bool) -> Workload:
    record, search = request.subject.record, request.subject.search
    method = (record or {}).get("method", {})
    per_pair = 3 * (1 + (method.get("steps") or 1))
    repeats = 2 * per_pair * len(search.pairs) if tested and search is not None and record is not None else 0
    if method.get("prune") in ("acdc", "eap-acdc"):
        repeats = max(repeats, 2 * model.graph.n_edges)
    return Workload(len(request.chosen.pairs), request.options.n_random, QUICK_PASSES if tested else 0, repeats)


def _shortened(request: _Asked, affordable: Plan) -> _Asked:
    chosen, options = (
        spread_over(request.chosen, affordable.n_pairs),
        replace(request.options, n_random=affordable.n_random),
    )
    return replace(request, options=options, chosen=chosen, repeated=affordable.searched, left_out=affordable.left_out)


def _in_slices(options: EvaluationOptions, seconds: float, pace: float) -> EvaluationOptions:
    """Reduce the batch size so that one batch, with all circuits measured at once, takes a slice of the time."""
    rows = int(2 * SLICE * seconds / max(PART * pace, 1e-9))
    return replace(options, batch_size=max(1, min(options.batch_size, rows)))


def _own_task(record: Mapping[str, Any] | None) -> Task:
    if record is None:
        raise OptionError("the circuit does not say which pairs it was found on; give the pairs to measure on")
    return _named(str(record["task"]["source"]))


def _named(source: str) -> Task:
    return load_task(resolve(source), label=source)


def _null_task(null: Task | None, model: Model) -> Task | None:
    """Paraphrases of one persona: those given, or the shipped ones for the shipped model."""
    if null is not None:
        return null
    return _named(CONTROLS).where(control="paraphrase") if model.name == MODEL else None


def _searched_task(record: Mapping[str, Any] | None, task: Task) -> Task | None:
    """The whole pair file of the circuit's search; None where other pairs are asked for and its stability is known.

    Where that file is missing the result is ``task``, and the reason is given later.
    """
    if record is None or task.sha256 == record["task"]["sha256"]:
        return task
    if "stability" in record and not record["stability"]["quick"]:
        return None
    try:
        return _named(record["task"]["source"])
    except TaskError:
        return task


def _shared_with_search(
    record: Mapping[str, Any] | None, searched: Task | None, chosen: Task, model: Model
) -> Overlap | None:
    """What the pairs have in common with those that the circuit was found on; None where these are not known."""
    if record is None or searched is None or searched.sha256 != record["task"]["sha256"]:
        return None
    found_on = searched.where(**record["task"].get("where", {})).of_split(record["task"]["split"])
    return overlap_of_tasks(found_on, chosen, model)
