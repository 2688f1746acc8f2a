"""The main job: from a model and prompt pairs to a circuit with its faithfulness.

pairs -> token ids, checked -> scores per edge -> circuit -> faithfulness on held-out pairs
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from circuit import ranks
from circuit.ablation import ABLATIONS, CONSTANT, Ablation, make_ablation
from circuit.attribution import (
    ACTIVATIONS,
    IG_RULES,
    METHODS,
    ActivationCost,
    Completeness,
    ScoreParts,
    activation_cost,
    completeness_of,
    score,
    score_parts,
)
from circuit.budget import OTHER, PLAIN, shown_bytes
from circuit.errors import OptionError
from circuit.estimate import held_bytes
from circuit.faithfulness import FaithfulnessReport, evaluate
from circuit.files import circuit_record
from circuit.grid import LINEAR, Grid, grid_eap, grids_of, passes_of
from circuit.model import Model
from circuit.null_run import NullRun, null_run
from circuit.options import PlainNumbers
from circuit.overlap import Overlap, overlap
from circuit.patching import Prepared, Progress, effects, is_plain, prepare_each
from circuit.pruning import PRUNERS, acdc, check_tau, greedy, threshold, top_n
from circuit.rounding import Rounding
from circuit.scores import Scores
from circuit.sizes import Smallest, Sweep, check_target, smallest
from circuit.sizes import sweep as nested
from circuit.span_study import SpanStudy, span_study
from circuit.subgraph import Circuit
from circuit.task import ALIGNMENTS, Batch, Row, Task, batches, encode, with_swap_rows
from circuit.uncertainty import Clusters
from metrics import METRICS, Metric

__all__ = [
    "Discovery",
    "Options",
    "Stage",
    "ablation_for",
    "batches_of",
    "discover",
    "evaluate_on",
    "pairs_of",
    "split_of",
]

logger = logging.getLogger(__name__)
MUCH_BYTES = 1 << 30
"""From here on it is said what ACDC holds."""
ORDERS = {
    "threshold": "|score|, largest first",
    "top-n": "|score|, largest first",
    "greedy": "|score|, largest first, backward from logits",
}
Stage = Callable[[str], Progress]
"""Called when a stage of the work begins, with its name; gives the stage's progress callback."""


@dataclass(frozen=True)
class Options(PlainNumbers):
    """What ``discover`` does, with the defaults of the command line.

    ``threshold`` is in units of the metric (``threshold_on="score"``) or a share of
    |m(full) - m(empty)| on the training pairs (``"share"``; with persona metrics that is |D|).
    ``target_faithfulness`` takes the place of a size: the smallest circuit by |score| that reaches it on
    the training pairs. ``sweep`` measures nested circuits over thresholds besides.
    """

    method: str = "eap-ig"
    prune: str = "threshold"
    threshold: float | None = None
    threshold_on: str = "share"
    top_n: int | None = None
    target_faithfulness: float | None = None
    sweep: bool = False
    metric: str = "persona-divergence"
    ablation: str = "corrupt"
    align: str = "equal"
    by_span: bool = False
    activations: str = "float32"
    steps: int = 5
    ig_rule: str = "midpoint"
    seed: int = 0
    batch_size: int = 32
    candidates: int | None = None
    n_random: int = 10
    train_split: str | None = None
    eval_split: str | None = None
    where: tuple[tuple[str, str], ...] = ()

    DEFAULT_SHARE = 0.003

    def checked(self) -> Options:
        """These options with the default threshold filled in.

        Raises:
            OptionError: a value is unknown or impossible, or an option would have no effect.
        """
        for name, value, allowed in (
            ("method", self.method, METHODS),
            ("prune", self.prune, PRUNERS),
            ("threshold-on", self.threshold_on, ("score", "share")),
            ("metric", self.metric, tuple(METRICS)),
            ("ig-rule", self.ig_rule, IG_RULES),
            ("ablation", self.ablation, ABLATIONS),
            ("align", self.align, ALIGNMENTS),
            ("activations", self.activations, ACTIVATIONS),
        ):
            if value not in allowed:
                raise OptionError(f"--{name} {value!r} is not one of {', '.join(allowed)}")
        for name, number in (("steps", self.steps), ("batch-size", self.batch_size), ("candidates", self.candidates)):
            if number is not None and number < 1:
                raise OptionError(f"--{name} must be at least 1, got {number}")
        if self.n_random < 0:
            raise OptionError(f"--n-random must not be negative, got {self.n_random}")
        self._check_size()
        if METRICS[self.metric].flat_at_clean and self.method == "eap" and self.prune != "acdc":
            raise OptionError(
                f"--metric {self.metric} has zero gradient at the clean run, so plain EAP would score every edge "
                "zero; use --method eap-ig or exact, or another --metric"
            )
        if self.by_span and (self.prune == "acdc" or self.method not in ("eap", "eap-ig")):
            raise OptionError("--by-span needs scores that are sums over positions: --method eap or eap-ig")
        if self.activations != "float32" and (
            self.by_span or self.prune == "acdc" or self.method not in ("eap", "eap-ig")
        ):
            raise OptionError("--activations bfloat16 is for the scores of --method eap or eap-ig, without --by-span")
        if self.threshold is None and self._uses_threshold():
            return Options(**{**asdict(self), "threshold": self.DEFAULT_SHARE})
        return self

    def _uses_threshold(self) -> bool:
        return self.target_faithfulness is None and self.prune in ("threshold", "acdc", "eap-acdc")

    def _check_size(self) -> None:
        if self.sweep and self.prune == "acdc":
            raise OptionError("--sweep puts edges in the order of their scores, and --prune acdc has none")
        if self.target_faithfulness is not None:
            check_target(self.target_faithfulness)
            for name, given in (("threshold", self.threshold), ("top-n", self.top_n)):
                if given is not None:
                    raise OptionError(f"--{name} and --target-faithfulness both set the size; give one of them")
            if self.prune not in ("threshold", "top-n"):
                raise OptionError(
                    f"--target-faithfulness keeps the first edges by |score|, --prune {self.prune} chooses others; "
                    "leave one of them out"
                )
            return
        if self._uses_threshold():
            if self.method == "random" and self.prune != "acdc" and self.threshold_on == "share":
                raise OptionError(
                    "random scores have no unit, so a share of |D| keeps all of them or none; use --prune top-n "
                    "--top-n N, or --threshold-on score, in standard deviations"
                )
            if self.top_n is not None:
                raise OptionError(f"--top-n has no effect with --prune {self.prune}; use --threshold, or --prune top-n")
            if self.threshold is not None:
                check_tau(self.threshold)
            elif self.threshold_on == "score":
                raise OptionError("--threshold-on score needs --threshold, in units of the metric")
        elif self.top_n is None:
            raise OptionError(f"--prune {self.prune} needs --top-n, the number of edges to keep")
        elif self.threshold is not None:
            raise OptionError(f"--threshold has no effect with --prune {self.prune}; use --top-n, or --prune threshold")


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
    stage = stage or _silent
    metric = METRICS[options.metric]
    task = task.where(**dict(options.where))
    train_split, test_split = split_of(task, options.train_split, "train"), split_of(task, options.eval_split, "test")
    train, held_out = task.of_split(train_split), task.of_split(test_split)
    rows, held_rows = (_rows(encode(part, model, align=options.align), metric) for part in (train, held_out))
    common = overlap(rows, held_rows)
    quiet = null_run(model, null, align=options.align, batch_size=options.batch_size) if null else None
    groups = batches(_share(rows, metric), options.batch_size, model.device)
    ablation = _ablation(options.ablation, model, groups, stage)
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
    about = _about(model, task, options, train_split, len(train.pairs), d, tau, reports)
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


def _silent(_name: str) -> Progress:
    return lambda _done, _total: None


def _ablation(name: str, model: Model, groups: Sequence[Batch], stage: Stage) -> Ablation | None:
    """The ablation of that name, with its constants from ``groups``; None for the corrupt one, which needs nothing."""
    if name == "corrupt":
        return None
    progress = stage(f"{name} ablation") if name in CONSTANT else None
    if model.budget is not None:
        if name == "optimal":
            raise OptionError(
                "--ablation optimal learns on 16 prompts at a time and cannot be held to --max-memory; use another "
                "ablation, or leave --max-memory out"
            )
        longest = max((batch.n_tokens for batch in groups), default=1)
        groups = [part for batch in groups for part in batch.parts(model.budget.circuit_rows(longest, plain=False))]
    return make_ablation(name, model, groups, progress=progress)


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
    stage = stage or _silent
    task = task.where(**(where or {}))
    name = split_of(task, split, "test")
    part = task.of_split(name)
    rows = _rows(encode(part, model, align=align), METRICS[metric])
    made = ablation_for(
        ablation, model, task, metric=metric, align=align, train_split=train_split, batch_size=batch_size, stage=stage
    )
    tell = stage(f"faithfulness on {name}")
    return _report(model, rows, METRICS[metric], made, circuit, scores, name, options, tell, Clusters.of(part.pairs))


def ablation_for(
    name: str,
    model: Model,
    task: Task,
    *,
    metric: str,
    align: str = "equal",
    where: Mapping[str, str] | None = None,
    train_split: str | None = None,
    batch_size: int = 32,
    seed: int = 0,
    stage: Stage | None = None,
) -> Ablation | None:
    """The ablation of that name; its constants are of ``train_split`` (``train`` if there is one, else all pairs)."""
    source: Sequence[Row] = ()
    if name in CONSTANT:
        task = task.where(**(where or {}))
        train = task.of_split(split_of(task, train_split, "train"))
        source = _rows(encode(train, model, align=align), METRICS[metric])
    return _ablation(name, model, batches(_share(source, METRICS[metric]), batch_size, model.device), stage or _silent)


def pairs_of(
    model: Model,
    task: Task,
    metric: Metric,
    *,
    align: str = "equal",
    ablation: Ablation | None = None,
    batch_size: int = 32,
) -> Callable[[], Iterator[Prepared]]:
    """What gives a task's batches, prepared one after the other, each time it is called.

    Raises:
        TaskError: the pairs do not fit the model.
    """
    groups = batches_of(model, task, metric, align=align, batch_size=batch_size)
    return lambda: prepare_each(model, groups, ablation)


def batches_of(model: Model, task: Task, metric: Metric, *, align: str = "equal", batch_size: int = 32) -> list[Batch]:
    """This process's batches of a task, both directions of a pair in them where the metric wants both.

    Raises:
        TaskError: the pairs do not fit the model.
    """
    rows = _rows(encode(task, model, align=align), metric)
    return batches(_share(rows, metric), batch_size, model.device)


def split_of(task: Task, wanted: str | None, default: str) -> str:
    """The split to use: the one asked for, else ``default`` if the file has it, else all pairs."""
    return wanted if wanted is not None else default if default in task.splits else "all"


def _rows(rows: Sequence[Row], metric: Metric) -> tuple[Row, ...]:
    return with_swap_rows(rows) if metric.swap_rows else tuple(rows)


def _share(rows: Sequence[Row], metric: Metric) -> tuple[Row, ...]:
    """This process's rows; both directions of a pair stay together, as they share their forward passes."""
    width = 2 if metric.swap_rows else 1
    pairs = [rows[i : i + width] for i in range(0, len(rows), width)]
    return tuple(row for pair in ranks.share(pairs) for row in pair)


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
        groups = batches(_share(rows, metric), options.batch_size, model.device)
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
    groups = batches(_share(rows, metric), options.batch_size, model.device)

    def prepared() -> Iterator[Prepared]:
        for done, group in enumerate(groups, 1):
            yield from prepare_each(model, [group], ablation)
            progress(done, len(groups))

    how: dict[str, Any] = {"n_random": options.n_random, "seed": options.seed, "clusters": clusters, "scores": scores}
    return evaluate(model, prepared, metric, circuit, split=split, **how)


def _about(
    model: Model,
    task: Task,
    options: Options,
    split: str,
    n_pairs: int,
    divergence: float,
    tau: float | None,
    reports: Sequence[FaithfulnessReport],
) -> dict[str, Any]:
    metric = METRICS[options.metric]
    scored = options.prune != "acdc"
    uses_ig = scored and options.method == "eap-ig"
    return {
        "model": {
            "name": model.name,
            "revision": model.revision,
            "dtype": model.format,
            "fingerprint": model.fingerprint,
            "n_layers": model.graph.n_layers,
            "n_heads": model.graph.n_heads,
            "parallel": model.graph.parallel,
        },
        "task": {
            "source": task.source,
            "sha256": task.sha256,
            "split": split,
            "n_pairs": n_pairs,
            "metric": metric.name,
            "unit": metric.unit,
            "swap_rows": metric.swap_rows,
            "align": options.align,
            "where": dict(options.where),
            "divergence": divergence,
            **task.counts,
        },
        "method": {
            "scores": options.method if scored else None,
            "steps": options.steps if uses_ig else None,
            "ig_rule": options.ig_rule if uses_ig else None,
            "prune": options.prune,
            "threshold": options.threshold,
            "threshold_on": options.threshold_on if options.threshold is not None else None,
            "tau": tau,
            "top_n": options.top_n,
        },
        "ablation": options.ablation,
        "seed": options.seed,
        "stamp": _stamp(options, metric, split),
        "faithfulness": [report.as_dict() for report in reports],
        "versions": _versions(),
        "computation": {
            "threads": torch.get_num_threads(),
            "batch_size": options.batch_size,
            "processes": ranks.size(),
        },
    }


def _stamp(options: Options, metric: Metric, split: str) -> dict[str, Any]:
    """What two circuits must share to be compared number by number."""
    searched = options.prune in ("acdc", "eap-acdc")
    if options.target_faithfulness is not None:
        size = f"smallest with faithfulness >= {options.target_faithfulness:g}"
    elif options.top_n is not None:
        size = f"{options.top_n} edges"
    else:
        size = f"threshold {options.threshold:g}" + (" of the effect" if options.threshold_on == "share" else "")
    return {
        "ablation": options.ablation,
        "metric": metric.name,
        "direction": "noising",
        "averaging": f"scores: mean over pairs{', both directions' if metric.swap_rows else ''}; f: ratio of means",
        "split": split,
        "size": size,
        "order": "reverse topological, last source first" if searched else ORDERS[options.prune],
        "seed": options.seed,
    }


def _versions() -> dict[str, str]:
    from importlib.metadata import PackageNotFoundError, version

    found = {}
    for name in ("persona-circuits", "torch", "transformer-lens", "transformers", "numpy"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found
