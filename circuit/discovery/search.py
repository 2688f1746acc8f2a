"""The main job: from a model and prompt pairs to a circuit with its faithfulness.

pairs -> token ids, checked -> scores per edge -> circuit -> faithfulness on held-out pairs
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from persona_circuits.circuit import parallel as ranks
from persona_circuits.circuit.attribution import (
    LINEAR,
    ActivationCost,
    Completeness,
    Grid,
    ScoreParts,
    activation_cost,
    completeness_of,
    grid_eap,
    grids_of,
    passes_of,
    score,
    score_parts,
)
from persona_circuits.circuit.cost import OTHER, PLAIN, held_bytes, shown_bytes
from persona_circuits.circuit.discovery.options import Options
from persona_circuits.circuit.discovery.record import description
from persona_circuits.circuit.discovery.tasks import ablation_for, named_ablation, own_rows, rows_of, split_of
from persona_circuits.circuit.errors import OptionError
from persona_circuits.circuit.evaluation import FaithfulnessReport, NullRun, SpanStudy, evaluate, null_run, span_study
from persona_circuits.circuit.evaluation.curves import Smallest, Sweep, smallest
from persona_circuits.circuit.evaluation.curves import sweep as nested
from persona_circuits.circuit.forward import Ablation, Prepared, Rounding, effects, is_plain, prepare_each
from persona_circuits.circuit.io import circuit_record
from persona_circuits.circuit.model import Model
from persona_circuits.circuit.progress import Progress, Stage, untold_stage
from persona_circuits.circuit.pruning import acdc, greedy, threshold, top_n
from persona_circuits.circuit.scores import Scores
from persona_circuits.circuit.statistics import Clusters
from persona_circuits.circuit.subgraph import Circuit
from persona_circuits.circuit.task import Batch, Overlap, Row, Task, batches, encode, overlap
from persona_circuits.metrics import METRICS, Metric

__all__ = [
    "Discovery",
    "discover",
    "evaluate_on",
]

logger = logging.getLogger(__name__)
MUCH_BYTES = 1 << 30
"""From here on it is said what ACDC holds."""


@dataclass(frozen=True)
class Discovery:
    """What was found: the circuit, every edge's score (None for plain ACDC), and how good it is where.

    ``divergence`` is m(clean) - m(corrupt) on the training pairs, ``tau`` the threshold in
    the metric's units, ``acdc_cost`` patched passes and circuits tried. ``held_out``
    says whether all pairs of ``reports[-1]`` are pairs that the search did not see.
    ``parts`` are the scores by part of the prompt and ``spans`` what they say by layer,
    ``null`` the run on paraphrases, if they were asked for; ``cost`` is what activations in
    a shorter format did to the scores of the first batch. ``smallest`` is the search for
    the size that reaches a faithfulness, ``sweep`` the nested circuits over thresholds. ``shared`` is
    what pairs searched on and pairs measured on have in common, ``completeness`` how nearly EAP-IG's
    scores add up to the effect, None for other scores.
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

    @property
    def confirmed(self) -> bool | None:
        """Whether the faithfulness aimed at is reached on held-out pairs too; None without either."""
        found = self.reports[-1].circuit.ratio_of_means
        if self.smallest is None or not self.held_out or found is None:
            return None
        return found >= self.smallest.target


def discover(
    model: Model,
    task: Task,
    options: Options,
    *,
    null: Task | None = None,
    scores: Scores | None = None,
    state: Path | None = None,
    stage: Stage | None = None,
) -> Discovery:
    """Find the circuit of a task in a model and measure it on held-out pairs.

    ``scores`` are those of an earlier search of the same method on the same model and training pairs, to be
    pruned anew; without them edges are scored here. ``null`` are pairs of paraphrases of one persona, of
    equal and of unequal length: what the contrast and its alignment give where there is nothing to find.
    ``state`` is a file in which ACDC keeps its state, to go on from it after being stopped.

    Raises:
        OptionError, TaskError: before any long work.
    """
    options = options.checked()
    stage = stage or untold_stage
    metric = METRICS[options.metric]
    task = task.where(**dict(options.where))
    train_split, test_split = split_of(task, options.train_split, "train"), split_of(task, options.eval_split, "test")
    train, held_out = task.of_split(train_split), task.of_split(test_split)
    rows, held_rows = (rows_of(encode(part, model, align=options.align), metric) for part in (train, held_out))
    common = overlap(rows, held_rows)
    quiet = null_run(model, null, align=options.align, batch_size=options.batch_size) if null else None
    groups = batches(own_rows(rows, metric), options.batch_size, model.device)
    ablation = named_ablation(options.ablation, model, groups, stage)
    if options.prune in ("acdc", "eap-acdc"):
        _check_held(model, groups, ablation)
    watch = Rounding(model, metric)
    d, whole = effects(watch.watched(prepare_each(model, groups, ablation)), metric)
    tau = _tau(options, whole, watch.floor)
    parts = None
    if scores is None:
        grids = _grids(model, rows, metric, options)
        scores, parts = _scores(model, groups, grids, metric, ablation, options, stage)
    summed = None
    if scores is not None and options.method == "eap-ig":
        summed = completeness_of(scores, groups, whole, steps=options.steps, ablation=options.ablation)
    lost = None
    if options.activations != "float32" and groups:
        how: dict[str, Any] = {"method": options.method, "steps": options.steps, "rule": options.ig_rule}
        lost = activation_cost(model, groups[0], metric, options.activations, ablation=ablation, **how)
    spans = None
    if parts is not None:
        spans = span_study(model, parts, prepare_each(model, groups), metric, seed=options.seed)
    least = None
    if options.target_faithfulness is not None:
        assert scores is not None
        tell = stage("smallest circuit")
        batched = partial(prepare_each, model, groups, ablation)
        least = smallest(model, batched, metric, scores, options.target_faithfulness, progress=tell)
        circuit, cost = least.circuit, None
    else:
        circuit, cost = _prune(model, groups, metric, scores, ablation, options, tau, state, stage)
    splits = [(train_split, rows), (test_split, held_rows)] if test_split != train_split else [(train_split, rows)]
    shared = {train_split: Clusters.of(train.pairs), test_split: Clusters.of(held_out.pairs)}
    reports = tuple(
        _report(
            model,
            part,
            metric,
            ablation,
            circuit,
            scores,
            split,
            options,
            stage(f"faithfulness on {split}"),
            shared[split],
        )
        for split, part in splits
    )
    row = _sweep(model, splits, metric, ablation, scores, options, shared, stage) if options.sweep else None
    about = description(model, task, options, train_split, len(train.pairs), d, tau, reports)
    if least is not None:
        about["method"] |= {"prune": "top-n", "top_n": least.n, "target_faithfulness": least.target}
    if summed is not None:
        about["method"] |= {"completeness": summed.as_dict()}
    record = circuit_record(circuit, scores, about)
    measured = (d, tau, cost, reports, common.held_out)
    return Discovery(circuit, scores, *measured, record, parts, spans, quiet, lost, least, row, common, summed)


def _check_held(model: Model, groups: Sequence[Batch], ablation: Ablation | None) -> None:
    """That what ACDC keeps of all prompts is within the budget; where there is none, how much that is."""
    plain = all(is_plain(batch, ablation) for batch in groups)
    lengths = [batch.n_tokens for batch in groups for _ in batch.indices]
    if model.budget is not None:
        model.budget.check_held(lengths, plain=plain)
        return
    needed = held_bytes(model.architecture(), lengths, model.format, runs=PLAIN if plain else OTHER)
    if needed > MUCH_BYTES:
        logger.warning(
            "ACDC keeps the runs of all %d prompts: about %s beside the weights; use fewer pairs (--where) or "
            "--max-memory to bound it",
            len(lengths),
            shown_bytes(needed),
        )


def _scores(
    model: Model,
    groups: Sequence[Batch],
    grids: Sequence[Grid],
    metric: Metric,
    ablation: Ablation | None,
    options: Options,
    stage: Stage,
) -> tuple[Scores | None, ScoreParts | None]:
    if options.prune == "acdc":
        return None, None
    if grids:
        progress = stage(f"{options.method} scores of {len(grids)} persona grids")
        return grid_eap(model, ranks.share(grids), metric, batch_size=options.batch_size, progress=progress), None
    progress = stage(f"{options.method} scores")
    how: dict[str, Any] = {"method": options.method, "steps": options.steps, "rule": options.ig_rule}
    if options.by_span:
        parts = score_parts(model, groups, metric, by="span", ablation=ablation, progress=progress, **how)
        return parts.total(), parts
    how |= {"seed": options.seed, "activations": options.activations}
    return score(model, groups, metric, ablation=ablation, progress=progress, **how), None


def _grids(model: Model, rows: Sequence[Row], metric: Metric, options: Options) -> Sequence[Grid]:
    """The persona grids of plain EAP, where they have fewer prompts than rows: the same scores from fewer passes.

    None where memory is limited: a grid holds the runs of all of its prompts.
    """
    if model.budget is not None:
        return ()
    plain = options.ablation == "corrupt" and options.align == "equal" and options.activations == "float32"
    if options.method != "eap" or options.prune == "acdc" or options.by_span or not plain or metric.name not in LINEAR:
        return ()
    grids = grids_of(rows)
    return grids if passes_of(grids).forwards < len(rows) else ()


def evaluate_on(
    model: Model,
    task: Task,
    circuit: Circuit,
    *,
    metric: str,
    ablation: str = "corrupt",
    align: str = "equal",
    split: str | None = None,
    train_split: str | None = None,
    where: Mapping[str, str] | None = None,
    batch_size: int = 32,
    n_random: int = 10,
    seed: int = 0,
    scores: Scores | None = None,
    stage: Stage | None = None,
) -> FaithfulnessReport:
    """Faithfulness of a circuit on the pairs of one split (``test`` if there is one, else all).

    ``scores``, of its edges, say which of them are cut alone.

    Constants of an ablation are taken from ``train_split`` (``train`` if there is one, else all).

    Raises:
        OptionError, TaskError: the metric is unknown, or the pairs do not fit the model.
    """
    options = Options(
        metric=metric,
        ablation=ablation,
        align=align,
        batch_size=batch_size,
        n_random=n_random,
        seed=seed,
        top_n=1,
        prune="top-n",
    ).checked()
    if circuit.graph != model.graph:
        raise OptionError(
            f"the circuit is of a model with {circuit.graph.n_layers} layers and {circuit.graph.n_heads} heads, but "
            f"{model.name} has {model.graph.n_layers} and {model.graph.n_heads}; give the model it was found in"
        )
    stage = stage or untold_stage
    task = task.where(**(where or {}))
    name = split_of(task, split, "test")
    part = task.of_split(name)
    rows = rows_of(encode(part, model, align=align), METRICS[metric])
    made = ablation_for(
        ablation, model, task, metric=metric, align=align, train_split=train_split, batch_size=batch_size, stage=stage
    )
    tell = stage(f"faithfulness on {name}")
    return _report(model, rows, METRICS[metric], made, circuit, scores, name, options, tell, Clusters.of(part.pairs))


def _tau(options: Options, whole: float, rounding: float) -> float | None:
    if options.threshold is None:
        return None
    if options.threshold_on == "score":
        return options.threshold
    if abs(whole) <= rounding:
        raise OptionError(
            "the metric is the same with every edge ablated as with none, so a share of the gap is no threshold; "
            "use --threshold-on score, or other pairs"
        )
    return options.threshold * abs(whole)


def _prune(
    model: Model,
    groups: Sequence[Batch],
    metric: Metric,
    scores: Scores | None,
    ablation: Ablation | None,
    options: Options,
    tau: float | None,
    state: Path | None,
    stage: Stage,
) -> tuple[Circuit, dict[str, int] | None]:
    if options.prune == "top-n":
        assert scores is not None
        assert options.top_n is not None
        return top_n(scores, options.top_n), None
    if options.prune == "greedy":
        assert scores is not None
        assert options.top_n is not None
        return greedy(scores, options.top_n), None
    assert tau is not None
    if options.prune == "threshold":
        assert scores is not None
        return threshold(scores, tau), None
    start = threshold(scores, tau) if scores is not None else None
    prepared = list(prepare_each(model, groups, ablation))
    how: dict[str, Any] = {"start": start, "candidates": options.candidates, "state": state, "progress": stage("ACDC")}
    found = acdc(model, prepared, metric, tau, **how)
    return found.circuit, {"passes": found.passes, "evaluated": found.evaluated, "wasted": found.wasted}


def _sweep(
    model: Model,
    splits: Sequence[tuple[str, Sequence[Row]]],
    metric: Metric,
    ablation: Ablation | None,
    scores: Scores | None,
    options: Options,
    clusters: Mapping[str, Clusters],
    stage: Stage,
) -> Sweep:
    assert scores is not None
    prepared = {}
    for name, rows in splits:
        groups = batches(own_rows(rows, metric), options.batch_size, model.device)
        prepared[name] = partial(prepare_each, model, groups, ablation)
    how: dict[str, Any] = {"seed": options.seed, "clusters": clusters, "progress": stage("nested circuits")}
    return nested(model, prepared, metric, scores, **how)


def _report(
    model: Model,
    rows: Sequence[Row],
    metric: Metric,
    ablation: Ablation | None,
    circuit: Circuit,
    scores: Scores | None,
    split: str,
    options: Options,
    progress: Progress,
    clusters: Clusters,
) -> FaithfulnessReport:
    groups = batches(own_rows(rows, metric), options.batch_size, model.device)

    def prepared() -> Iterator[Prepared]:
        for done, group in enumerate(groups, 1):
            yield from prepare_each(model, [group], ablation)
            progress(done, len(groups))

    how: dict[str, Any] = {"n_random": options.n_random, "seed": options.seed, "clusters": clusters, "scores": scores}
    return evaluate(model, prepared, metric, circuit, split=split, **how)
