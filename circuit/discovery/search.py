"""The main job: from a model and prompt pairs to a circuit with its faithfulness.

pairs -> token ids, checked -> scores per edge -> circuit -> faithfulness on held-out pairs
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from persona_circuits.circuit.attribution import ActivationCost, Completeness, ScoreParts
from persona_circuits.circuit.discovery import kept as keeping
from persona_circuits.circuit.discovery import stages, values
from persona_circuits.circuit.discovery.below import neurons_of, opened_heads, opened_mlps
from persona_circuits.circuit.discovery.options import MeasureOptions, Options
from persona_circuits.circuit.discovery.own_metrics import metric_of
from persona_circuits.circuit.discovery.record import description
from persona_circuits.circuit.discovery.summary import strongest_edges, summary
from persona_circuits.circuit.discovery.tasks import ablation_for, check_graph, rows_of, split_of
from persona_circuits.circuit.discovery.writing import title_of, write_discovery
from persona_circuits.circuit.drawing import draw
from persona_circuits.circuit.errors import OptionError
from persona_circuits.circuit.evaluation import (
    Certificate,
    FaithfulnessReport,
    Missed,
    NodeSets,
    NullRun,
    OpenedHeads,
    OpenedMlps,
    PathShares,
    Signal,
    SpanStudy,
    heads_of,
    null_run,
    with_certificate,
)
from persona_circuits.circuit.evaluation.curves import Smallest, Sweep
from persona_circuits.circuit.figures import picked
from persona_circuits.circuit.forward import Ablation
from persona_circuits.circuit.io import StoredCircuit, circuit_record, with_parts
from persona_circuits.circuit.model import Model
from persona_circuits.circuit.page import CircuitPage, circuit_page
from persona_circuits.circuit.printable import html_table, signed
from persona_circuits.circuit.progress import Stage, untold_stage
from persona_circuits.circuit.pruning import Finished
from persona_circuits.circuit.scores import Scores
from persona_circuits.circuit.storage import replace_folder
from persona_circuits.circuit.subgraph import Circuit, SpanCircuit
from persona_circuits.circuit.task import Overlap, Task, encode

__all__ = ["ACDC", "Discovery", "discover", "evaluate_on", "report_of"]


ACDC, FINISH, NEURONS = "acdc.state", "finish.state", "neurons.state"
"""The files, in a search's folder, of what ACDC, an exact finish, and the choice of neurons have done so far."""


@dataclass(frozen=True, repr=False)
class Discovery:
    """The result of a search: the circuit, every edge's score (None for plain ACDC), and its faithfulness.

    ``divergence`` is m(clean) - m(corrupt) on the training pairs, ``tau`` the threshold in the metric's units,
    ``acdc_cost`` patched passes and circuits tried. ``held_out`` says whether all pairs of ``reports[-1]`` are pairs
    that the search did not see. ``parts`` are the scores by part of the prompt and ``spans`` what they say by layer,
    ``null`` the run on paraphrases, if requested; ``cost`` is the effect of half-precision activations on the scores of
    the first batch. ``smallest`` is the search for the size that reaches a faithfulness, ``finished`` what an exact
    finish did, ``sweep`` the nested circuits over thresholds. ``shared`` is what pairs searched on and pairs measured
    on have in common, ``completeness`` how nearly EAP-IG's scores add up to the effect, None for other scores,
    ``signal`` whether the pairs searched on hold an effect worth a search, ``certificate`` which edges stay when
    personas or questions go, ``missed`` a bound on edges outside that matter. ``reused`` is the file of scores that
    were reused, None where they were computed here; ``made_of`` is what determines them. ``paths`` are the strongest
    paths from ``input`` to ``logits``, each measured alone, None without scores; ``sets`` the named sets of nodes,
    without and alone. ``at_parts`` says at which parts of the prompt the circuit has its edges, where not at all;
    ``circuit`` is then of those that it has at any. ``opened`` are MLPs as their neurons, ``heads`` the parts of heads
    and why they attend, if requested.
    """

    circuit: Circuit
    scores: Scores | None
    divergence: float
    tau: float | None
    acdc_cost: dict[str, int] | None
    reports: tuple[FaithfulnessReport, ...]
    held_out: bool
    record: dict[str, Any]
    parts: ScoreParts | None = None
    spans: SpanStudy | None = None
    null: NullRun | None = None
    cost: ActivationCost | None = None
    smallest: Smallest | None = None
    sweep: Sweep | None = None
    shared: Overlap | None = None
    completeness: Completeness | None = None
    finished: Finished | None = None
    certificate: Certificate | None = None
    missed: Missed | None = None
    signal: Signal | None = None
    reused: Path | None = None
    made_of: Mapping[str, Any] | None = None
    paths: PathShares | None = None
    sets: NodeSets | None = None
    at_parts: SpanCircuit | None = None
    opened: OpenedMlps | None = None
    heads: OpenedHeads | None = None

    def __repr__(self) -> str:
        task = self.record["task"]
        reports = ", ".join(f"{report.circuit.shown} ({report.split})" for report in self.reports)
        held = "held out" if self.held_out else "not held out"
        effect = f"{task['metric']} {self.divergence:+.3f} on {task['n_pairs']} pairs ({task['split']})"
        return f"Discovery({self.circuit!r}, {reports}, {held}; {effect})"

    def _repr_html_(self) -> str:
        edges = [(item["edge"], signed(item["score"], 4)) for item in strongest_edges(self)]
        table = html_table("the strongest edges", ("edge", "score"), edges) if edges else ""
        reports = "".join(report._repr_html_() for report in self.reports)
        picture = self._repr_svg_() or ""
        return f"{picture[picture.find('<svg') :]}{html_table(repr(self), (), ())}{reports}{table}"

    def _repr_svg_(self) -> str | None:
        """The picture; None of an empty circuit."""
        if not len(self.circuit):
            return None
        return draw(self.circuit, scores=self.scores, title=title_of(self.record)).svg

    def page(self, *, inside: Mapping[str, Any] | None = None) -> CircuitPage:
        """The page that explains the circuit, shown in a notebook's cell; ``inside`` is what ``look_inside`` found."""
        stored = StoredCircuit(self.circuit, self.scores, self.record, Path())
        sweep = None if self.sweep is None else self.sweep.as_dict()
        groups = None if self.sets is None else self.sets.groups
        below = {"neurons": self.opened, "heads": self.heads}
        opened = {name: one.as_dict() for name, one in below.items() if one is not None}
        how: dict[str, Any] = {"inside": inside, "opened": opened, "groups": groups}
        return circuit_page(stored, self.scores, sweep=sweep, summary=summary(self), **how)

    @property
    def confirmed(self) -> bool | None:
        """Whether the faithfulness reached in the search is reached on held-out pairs too; None without either."""
        ratio = self.reports[-1].circuit.ratio_of_means
        if self.smallest is None or not self.smallest.reached or not self.held_out or ratio is None:
            return None
        return ratio >= self.smallest.target

    def write(self, folder: str | Path, *, strongest: int | None = None) -> None:
        """Write what the command ``discover`` writes: circuit, nodes, scores, pictures, summary; all or nothing.

        The folder is made if it is not there. The picture has the ``strongest`` edges at most, or as many as can be
        followed.

        Raises:
            WriteError: the folder cannot be written.
        """
        with replace_folder(folder) as staging:
            write_discovery(self, staging, strongest=strongest)
        (Path(folder) / keeping.STATE).unlink(missing_ok=True)


def discover(
    model: Model,
    task: Task,
    options: Options,
    *,
    null: Task | None = None,
    groups: Mapping[str, Sequence[str]] | None = None,
    scores: Scores | str | Path | None = None,
    state: Path | None = None,
    stage: Stage | None = None,
) -> Discovery:
    """Find the circuit of a task in a model and measure it on held-out pairs.

    Parameters
    ----------
    task
        The pairs, those to search on and those held out in splits of their own (``train`` and ``test``, or as the
        options say); without splits all of them are both.
    options
        How edges are scored and pruned, the metric, the ablation; ``Options()`` is what the command does.
    null
        Pairs of paraphrases of one persona, of equal and of unequal length: what the contrast and its alignment give
        where there is nothing to find.
    groups
        Nodes by the names of sets, as ``read_groups`` gives them: what each carries, without and alone.
    scores
        Of an earlier search of the same method on the same model and training pairs, to be pruned again: the scores, or
        the folder of the run, whose settings are checked. Without them edges are scored here.
    state
        An existing folder: scores are saved in it as soon as they are made, and the states of ACDC, of a finish and of
        the choice of neurons, to resume from after a stop. Scores of this same search in it or in a folder beside it
        are reused, unless ``scores`` is ``"new"``.
    stage
        Called when a stage of the work begins, with its name; returns the function that receives its progress.

    Returns
    -------
    The circuit, every edge's score, the faithfulness on either split beside its controls, and the record of all of
    it, which ``write`` puts into files.

    Raises
    ------
    OptionError, TaskError
        Before any long work; also where the pairs hold no effect to be explained, with ``force=False``.

    Examples
    --------
    >>> found = discover(model, task, Options(metric="logit-diff", n_random=2))
    >>> found.circuit.edge_names()
    ['input->m0', 'm0->a1.h3<v>', 'a1.h3->logits']
    >>> round(found.reports[-1].circuit.ratio_of_means, 3)
    1.0
    """
    options, stage = _checked(options, groups), stage or untold_stage
    setting = stages.set_up(model, task, options, stage)
    named, heads = neurons_of(setting), heads_of(options.open_heads, model.graph)
    null_noise = null_run(model, null, align=options.align, batch_size=options.batch_size) if null else None
    effect = stages.effect_of(setting, null_noise)
    scored, reused = _scored(setting, scores, state, effect)
    pruned = _pruned(setting, scored, effect, state)
    measured = stages.measure(setting, scored.scores, pruned.at_parts or pruned.circuit, groups)
    controls = stages.control(setting, scored, effect, pruned.circuit)
    certificate = stages.certified(setting, scored, pruned)
    opened = opened_mlps(setting, effect, pruned.circuit, named, state / NEURONS if state else None)
    details = description(setting, task, effect, pruned, measured, controls)
    if opened is not None:
        details["neurons"] = opened.in_circuit()
    record = circuit_record(pruned.circuit, scored.scores, details)
    if pruned.at_parts is not None and scored.at_parts is not None:
        record = with_parts(record, pruned.at_parts, scored.at_parts)
    return Discovery(
        circuit=pruned.circuit,
        scores=scored.scores,
        divergence=effect.divergence,
        tau=effect.tau,
        **picked(pruned, "acdc_cost", "smallest", "finished"),
        **picked(measured, "reports", "sweep", "paths", "sets"),
        **picked(controls, "spans", "cost", "completeness", "missed"),
        held_out=setting.shared.held_out,
        record=with_certificate(record, certificate),
        parts=scored.parts,
        null=null_noise,
        shared=setting.shared,
        certificate=certificate,
        signal=effect.signal,
        reused=reused,
        made_of=keeping.made(setting),
        at_parts=pruned.at_parts,
        opened=opened,
        heads=opened_heads(setting, pruned.circuit, scored.scores, heads),
    )


def _checked(options: Options, groups: Mapping[str, Sequence[str]] | None) -> Options:
    options = options.checked()
    if groups and options.resolution == "span":
        raise OptionError("--groups is of edges at all parts of the prompt; leave it out of --resolution span")
    return options


def _pruned(
    setting: values.Setting, scored: values.Scored, effect: values.Effect, folder: Path | None
) -> values.Pruned:
    """The circuit, after an exact finish if one is requested."""
    if scored.at_parts is None:
        pruned = stages.prune(setting, scored.scores, effect.tau, folder / ACDC if folder else None)
    else:
        pruned = stages.prune_at_parts(setting, scored.at_parts, effect.tau)
    return stages.finish_off(setting, pruned, scored.scores, effect.whole, folder / FINISH if folder else None)


def _scored(
    setting: values.Setting, given: Scores | str | Path | None, folder: Path | None, effect: values.Effect
) -> tuple[values.Scored, Path | None]:
    """Scores, and the file they are from: those given, those kept by an earlier search like this one, or new ones."""
    if isinstance(given, Scores):
        if setting.options.certify is not None:
            raise OptionError("certify needs scores pair by pair, and the given ones are of all pairs; leave one out")
        return values.Scored(given), None
    is_new = given == keeping.NEW
    if given is not None and not is_new:
        scores, path = keeping.scores_at(Path(given), setting)
        return values.Scored(scores), path
    if not is_new and (stored := keeping.scores_near(folder, setting)) is not None:
        return values.Scored(stored[0]), stored[1]
    scored = stages.score_edges(setting, effect.seconds, effect.weights)
    keeping.keep(scored.scores, folder, setting)
    return scored, None


def evaluate_on(
    model: Model,
    task: Task,
    circuit: Circuit | SpanCircuit,
    setting: MeasureOptions | None = None,
    *,
    scores: Scores | None = None,
    stage: Stage | None = None,
) -> FaithfulnessReport:
    """Faithfulness of a circuit on the pairs of one split (``test`` if there is one, else all).

    ``scores``, of its edges, say which of them are cut alone.

    Constants of an ablation are taken from the setting's ``train_split`` (``train`` if there is one, else all).

    Returns
    -------
    The report of faithfulness, in units of the metric, beside random circuits and the complement.

    Raises
    ------
    OptionError, TaskError
        The metric is unknown, or the pairs do not fit the model.
    """
    setting = (setting or MeasureOptions()).checked()
    stage = stage or untold_stage
    task = task.where(**dict(setting.where))
    name = split_of(task, setting.split, "test")
    ablation = ablation_for(model, task, setting, stage)
    return report_of(model, task.of_split(name), circuit, setting, ablation, name, scores, stage)


def report_of(
    model: Model,
    part: Task,
    circuit: Circuit | SpanCircuit,
    setting: MeasureOptions,
    ablation: Ablation | None,
    split: str,
    scores: Scores | None,
    stage: Stage,
) -> FaithfulnessReport:
    """Faithfulness on all pairs of ``part``, which is called ``split``, with an ablation that is made already.

    Raises:
        OptionError: the circuit is of another graph than the model.
    """
    check_graph(circuit, model)
    metric = metric_of(setting.metric)
    rows = rows_of(encode(part, model, align=str(setting.align)), metric)
    here = stages.part_of(model, part, rows, split, metric, ablation, setting.batch_size)
    return stages.report_on(model, here, metric, circuit, scores, setting, stage)
