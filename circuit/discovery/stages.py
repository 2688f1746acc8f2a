"""The stages of a search: each takes the results of earlier ones, and returns a named value.

set_up    Setting    pairs checked against the tokenizer, splits, what cut edges carry
effect    Effect     every training prompt run plain once: D, m(full) - m(empty), the threshold in its units
score     Scored     a number for every edge
prune     Pruned     the circuit
measure   Measured   faithfulness on pairs searched on and held out, beside controls; nested circuits
control   Controls   checks of the scores: completeness, half-precision formats, parts of the prompt
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from persona_circuits.circuit import parallel
from persona_circuits.circuit.attribution import (
    LINEAR,
    Grid,
    Scoring,
    activation_cost,
    completeness_of,
    grid_eap,
    grids_of,
    mean_of,
    passes_of,
    score,
    score_parts,
)
from persona_circuits.circuit.cost import OTHER, PLAIN, held_bytes, runs_of_scores, shown_bytes
from persona_circuits.circuit.discovery.options import MeasureOptions, Options
from persona_circuits.circuit.discovery.own_metrics import metric_of
from persona_circuits.circuit.discovery.tasks import named_ablation, own_rows, rows_of, split_of
from persona_circuits.circuit.discovery.values import Controls, Effect, Measured, Part, Pruned, Scored, Setting
from persona_circuits.circuit.discovery.weights import couple_weights, weighed
from persona_circuits.circuit.errors import OptionError, TaskError
from persona_circuits.circuit.evaluation import (
    Certificate,
    FaithfulnessReport,
    Missed,
    NodeSets,
    NullRun,
    PathShares,
    Removal,
    Rule,
    SignalWatch,
    Units,
    certify,
    evaluate,
    measured_paths,
    measured_sets,
    pair_scores,
    span_study,
)
from persona_circuits.circuit.evaluation.curves import smallest, sweep
from persona_circuits.circuit.evaluation.missed import missed
from persona_circuits.circuit.forward import (
    Ablation,
    KeptRuns,
    Prepared,
    Rounding,
    bare,
    effects,
    is_plain,
    prepare_each,
)
from persona_circuits.circuit.model import Model
from persona_circuits.circuit.progress import Progress, Stage, about
from persona_circuits.circuit.pruning import (
    Schedule,
    Terms,
    Trials,
    acdc,
    check_n,
    finish,
    greedy,
    learn,
    threshold,
    top_n,
)
from persona_circuits.circuit.scores import Scores
from persona_circuits.circuit.subgraph import Circuit, SpanCircuit, Spans, SpanScores
from persona_circuits.circuit.task import Batch, Row, Task, batches, encode, forms_left_out
from persona_circuits.circuit.task.overlap import overlap
from persona_circuits.metrics import Metric

__all__ = [
    "certified",
    "control",
    "effect_of",
    "finish_off",
    "measure",
    "part_of",
    "prune",
    "prune_at_parts",
    "report_on",
    "score_edges",
    "set_up",
]

logger = logging.getLogger(__name__)
LEARNED = 4
"""Gates are trained to so many times fewer edges than scores need; the size they need is then searched for."""
GATE_GRID = 32
"""Sizes of learned gates to try before the search between two of them, as f is not monotonic in them."""
MUCH_BYTES = 1 << 30
"""Memory of ACDC from which a warning is logged."""


def set_up(model: Model, task: Task, options: Options, stage: Stage) -> Setting:
    """Pairs and options checked against the model, and the ablation's constants, learned once."""
    metric = metric_of(options.metric)
    if options.top_n is not None and options.resolution == "edge":
        check_n(options.top_n, model.graph)
    task = task.where(**dict(options.where))
    names = [split_of(task, options.train_split, "train"), split_of(task, options.eval_split, "test")]
    rows = {
        name: rows_of(encode(task.of_split(name), model, align=options.align), metric) for name in dict.fromkeys(names)
    }
    shared = overlap(*(rows[name] for name in names))
    _warn(task.of_split(names[0]), rows[names[0]])
    groups = batches(own_rows(rows[names[0]], metric), options.batch_size, model.device)
    if options.resolution == "span":
        _check_parts(Spans.of(groups), options.top_n, model)
    ablation = named_ablation(options.ablation, model, groups, stage)
    if options.prune in ("acdc", "eap-acdc") or options.finish is not None:
        _check_held(model, groups, ablation)
    parts = {
        name: part_of(model, task.of_split(name), rows[name], name, metric, ablation, options.batch_size)
        for name in rows
    }
    return Setting(model, metric, options, stage, ablation, parts[names[0]], parts[names[1]], shared)


def _check_parts(spans: Spans, top_n: int | None, model: Model) -> None:
    """Check that the prompts have several parts, and enough edges at them."""
    if len(spans.names) < 2:
        raise TaskError(f"--resolution span needs prompts of several parts, and these have {spans.shown or 'none'}")
    possible = int(spans.valid(model.graph).sum())
    if top_n is not None and not 1 <= top_n <= possible:
        raise OptionError(f"--top-n must be from 1 to {possible:,}, the edges at parts of the prompt, got {top_n}")


def _warn(task: Task, rows: Sequence[Row]) -> None:
    """Warn before the search of pairs that are not used, or not enough for a claim."""
    orders_by_group: dict[str, set[str]] = {}
    for pair in task.pairs:
        if isinstance(options := pair.row.get("options"), list) and "orders_of" in pair.row:
            orders_by_group.setdefault(f"{len(options)} {pair.row['orders_of']}", set()).add(str(pair.row.get("order")))
    if few := sum(len(orders) < int(name.split()[0]) for name, orders in orders_by_group.items()):
        logger.warning(
            "%d of %d pairs list their options and are not asked in all cyclic orders: the place in the list counts, "
            "too, and the circuit may be that of the place; pairs --format options or letters writes all orders",
            few,
            len(orders_by_group),
        )
    by_pair = {row.id: row.forms.left_out for row in rows if row.forms is not None}
    for note in forms_left_out(list(by_pair.values())):
        logger.warning("%s", note)


def part_of(
    model: Model,
    task: Task,
    rows: Sequence[Row],
    split: str,
    metric: Metric,
    ablation: Ablation | None,
    batch_size: int,
) -> Part:
    """The pairs of one split, in batches."""
    groups = batches(own_rows(rows, metric), batch_size, model.device)
    return Part(split, task, tuple(rows), KeptRuns(model, groups, ablation))


def _check_held(model: Model, groups: Sequence[Batch], ablation: Ablation | None) -> None:
    """Check that what ACDC, or a finish, keeps of all prompts is within the budget; without one, log its size."""
    plain = all(is_plain(batch, ablation) for batch in groups)
    lengths = [batch.n_tokens for batch in groups for _ in batch.indices]
    if model.budget is not None:
        model.budget.check_held(lengths, plain=plain)
        return
    needed = held_bytes(model.architecture(), lengths, model.format, runs=PLAIN if plain else OTHER)
    if needed > MUCH_BYTES:
        logger.warning(
            "exact pruning keeps the runs of all %d prompts: about %s beside the weights; use fewer pairs (--where) or "
            "--max-memory to bound it",
            len(lengths),
            shown_bytes(needed),
        )


def effect_of(setting: Setting, null: NullRun | None = None) -> Effect:
    """The plain runs of the training prompts, and the effect in them; ``null`` is the run on paraphrases.

    Raises:
        TaskError: they show no effect, and the options do not force a search.
    """
    watch, seen = Rounding(setting.model, setting.metric), SignalWatch(setting.metric)
    start = time.perf_counter()
    divergence, whole = effects(seen.watched(watch.watched(setting.train.runs())), setting.metric)
    seconds = time.perf_counter() - start
    signal = seen.signal(setting.train.clusters, null=null, rounding=watch.floor)
    if signal.nothing and not setting.options.force:
        raise TaskError(f"nothing to find: {signal.shown}: {signal.sentence}; --force searches all the same")
    if not signal.enough:
        logger.warning("before the search: %s", signal.sentence)
    weights, scored = None, whole
    if setting.options.weigh == "couples" and setting.options.prune != "acdc":
        weights = couple_weights(seen.effects(), setting.train.task.pairs)
        kept, metric = weighed(setting.train.runs.batches, setting.metric, weights)
        scored = effects(prepare_each(setting.model, kept, setting.ablation), metric)[1]
    return Effect(divergence, whole, _tau(setting.options, scored, watch.floor), signal, seconds, weights, scored)


def _tau(options: Options, whole: float, rounding: float) -> float | None:
    if options.threshold is None:
        return None
    if options.threshold_on == "score":
        return options.threshold
    return _share_of(options.threshold, whole, "--threshold-on share", rounding)


def _share_of(share: float, whole: float, name: str, rounding: float = 0.0) -> float:
    if abs(whole) <= rounding:
        raise OptionError(
            f"the metric is the same with every edge ablated as with none, so a share of the gap, {name}, is nothing; "
            "use --threshold-on score, or other pairs"
        )
    return share * abs(whole)


def score_edges(setting: Setting, seconds: float = 0.0, weights: np.ndarray | None = None) -> Scored:
    """A score for every edge, by the method of the options; ``seconds`` is what the plain runs took.

    ``weights`` are those of the pairs.
    """
    model, metric, options = setting.model, setting.metric, setting.options
    kept = setting.train.runs.batches
    if weights is not None:
        kept, metric = weighed(kept, metric, weights)
    if options.prune == "acdc":
        return Scored(None)
    long = about(seconds * _plain_runs(setting)) if seconds >= 1 else ""
    if options.certify is not None:
        report = setting.stage(f"{options.method} scores, pair by pair{long}")
        pairs = pair_scores(model, kept, metric, _scoring(options), ablation=setting.ablation, progress=report)
        return Scored(pairs.mean(), pairs=pairs)
    if weights is None and (grids := _grids(setting)):
        progress = setting.stage(f"{options.method} scores of {len(grids)} persona grids{long}")
        return Scored(grid_eap(model, parallel.share(grids), metric, batch_size=options.batch_size, progress=progress))
    how: dict[str, Any] = {"ablation": setting.ablation, "progress": setting.stage(f"{options.method} scores{long}")}
    if options.method == "mean-of":
        return Scored(mean_of([_one_of(setting, name, weights) for name in options.of], options.normalise))
    if options.by_span:
        parts = score_parts(model, kept, metric, _scoring(options), by="span", **how)
        if options.resolution == "edge":
            return Scored(parts.total(), parts)
        spans = Spans.of(map(bare, setting.train.runs.batches))
        assert spans.names == parts.names
        return Scored(parts.total(), parts, at_parts=SpanScores(model.graph, spans, parts.values))
    if options.activations != "float32":  # whose plain runs are in half precision too
        kept = [bare(batch) for batch in kept]
    return Scored(score(model, kept, metric, _scoring(options), **how))


def _one_of(setting: Setting, method: str, weights: np.ndarray | None) -> Scores:
    """The scores of one of several methods, as a search by it alone makes them."""
    scores = score_edges(replace(setting, options=replace(setting.options, method=method, of=())), 0.0, weights).scores
    assert scores is not None
    return scores


def _plain_runs(setting: Setting) -> float:
    """How many times the operations of both plain runs the scores of a pair take."""
    options = setting.options
    tokens = max((len(row.clean) for row in setting.train.rows), default=1)
    return runs_of_scores(setting.model.architecture(), tokens, options.method, steps=options.steps)


def _scoring(options: Options) -> Scoring:
    return Scoring(options.method, options.steps, options.ig_rule, options.seed, options.activations)


def _grids(setting: Setting) -> Sequence[Grid]:
    """The persona grids of plain EAP, where they have fewer prompts than rows: the same scores from fewer passes.

    None where memory is limited, as a grid holds the runs of all of its prompts, and where answers are sets of forms.
    """
    options, rows = setting.options, setting.train.rows
    if setting.model.budget is not None or any(row.forms is not None for row in rows):
        return ()
    plain = options.ablation == "corrupt" and options.align == "equal" and options.activations == "float32"
    scored = options.method == "eap" and options.prune != "acdc" and not options.by_span
    if not (plain and scored) or setting.metric.name not in LINEAR:
        return ()
    grids = grids_of(rows)
    return grids if passes_of(grids).forwards < len(rows) else ()


def prune_at_parts(setting: Setting, scores: SpanScores, tau: float | None) -> Pruned:
    """From scores by part of the prompt to a circuit whose edges are at some parts."""
    options, target = setting.options, setting.options.target_faithfulness
    if target is not None:
        return _by_target(setting, scores, target)
    if options.top_n is not None:
        return Pruned.of(scores.top_n(options.top_n))
    assert tau is not None
    return Pruned.of(scores.threshold(tau))


def prune(setting: Setting, scores: Scores | None, tau: float | None, state: Path | None) -> Pruned:
    """From scores, or for ACDC from the model itself, to a circuit."""
    options = setting.options
    if options.prune == "learn":
        assert scores is not None
        return _learned(setting, scores, state)
    if options.target_faithfulness is not None:
        assert scores is not None
        return _by_target(setting, scores, options.target_faithfulness)
    if options.prune in ("top-n", "greedy"):
        assert scores is not None
        assert options.top_n is not None
        return Pruned((top_n if options.prune == "top-n" else greedy)(scores, options.top_n))
    assert tau is not None
    start = threshold(scores, tau) if scores is not None else None
    if options.prune == "threshold":
        assert start is not None
        return Pruned(start)
    trials, progress = Trials(candidates=options.candidates), setting.stage("ACDC")
    what = (setting.model, list(setting.train.runs()), setting.metric, tau, start)
    result = acdc(*what, trials=trials, state=state, progress=progress)
    return Pruned(result.circuit, {"passes": result.passes, "evaluated": result.evaluated, "wasted": result.wasted})


def _by_target(setting: Setting, scores: Scores | SpanScores, target: float) -> Pruned:
    """The smallest circuit by score that reaches the target on the training pairs, as far as it is looked for."""
    how: dict[str, Any] = {"up_to": setting.options.up_to, "progress": setting.stage("smallest circuit")}
    least = smallest(setting.model, setting.train.runs, setting.metric, scores, target, **how)
    return Pruned.of(least.circuit, least)


def _learned(setting: Setting, scores: Scores, state: Path | None) -> Pruned:
    """Gates trained to a size; for a faithfulness to a part of what the scores need, and their order is searched."""
    options, runs, target = setting.options, setting.train.runs, setting.options.target_faithfulness
    what = (setting.model, runs, setting.metric)
    n = options.top_n
    if target is not None:
        n = max(1, smallest(*what, scores, target, progress=setting.stage("smallest circuit by score")).n // LEARNED)
    assert n is not None
    schedule = Schedule(n, steps=options.train_steps, seed=options.seed, nodes_above=options.nodes_above)
    how: dict[str, Any] = {"ablation": setting.ablation, "state": state, "progress": setting.stage("learned gates")}
    learned = learn(setting.model, runs.batches, setting.metric, scores, schedule, **how)
    if target is None:
        return Pruned(learned.circuit)
    how = {"n_grid": GATE_GRID, "progress": setting.stage("smallest circuit by gate")}
    least = smallest(*what, learned.open, target, **how)
    return Pruned.of(least.circuit, least)


def finish_off(setting: Setting, pruned: Pruned, scores: Scores | None, whole: float, state: Path | None) -> Pruned:
    """The exact finish, if requested; ``whole`` is m(full) - m(empty), of which an edge must be worth a share.

    Raises:
        OptionError: it is zero.
    """
    options = setting.options
    if options.finish is None:
        return pruned
    tau = _share_of(options.finish, whole, "--finish")
    terms, what = Terms(tau, options.target_faithfulness, options.candidates), list(setting.train.runs())
    how: dict[str, Any] = {"scores": scores, "state": state, "progress": setting.stage("exact finish")}
    finished = finish(setting.model, what, setting.metric, pruned.circuit, terms, **how)
    return replace(pruned, circuit=finished.circuit, finished=finished)


def certified(setting: Setting, scored: Scored, pruned: Pruned) -> Certificate | None:
    """Which edges stay when personas or questions are taken away, if requested."""
    options, least = setting.options, pruned.smallest
    if options.certify is None or scored.pairs is None:
        return None
    method: dict[str, Any] = {
        "prune": "top-n" if least else options.prune,
        "top_n": least.n if least else options.top_n,
    }
    method |= {"threshold": options.threshold, "threshold_on": options.threshold_on}
    units = Units.of(setting.train.task.pairs)
    removal, progress = Removal(options.certify, options.seed), setting.stage("certificate")
    return certify(scored.pairs, pruned.circuit, Rule.of_record(method), units, removal, progress=progress)


def measure(
    setting: Setting,
    scores: Scores | None,
    circuit: Circuit | SpanCircuit,
    groups: Mapping[str, Sequence[str]] | None = None,
) -> Measured:
    """Faithfulness on every part, and if requested nested circuits of the scores and named sets of nodes."""
    reports = tuple(
        report_on(setting.model, part, setting.metric, circuit, scores, setting.options, setting.stage)
        for part in setting.parts
    )
    paths, sets = _paths(setting, scores, circuit), _sets(setting, circuit, groups)
    if not setting.options.sweep:
        return Measured(reports, None, paths, sets)
    assert scores is not None
    runs = {part.split: part.runs for part in setting.parts}
    clusters = {part.split: part.clusters for part in setting.parts}
    how: dict[str, Any] = {"seed": setting.options.seed, "clusters": clusters}
    progress = setting.stage("nested circuits")
    nested = sweep(setting.model, runs, setting.metric, scores, progress=progress, **how)
    return Measured(reports, nested, paths, sets)


def _paths(setting: Setting, scores: Scores | None, circuit: Circuit | SpanCircuit) -> PathShares | None:
    """The circuit's strongest paths, each alone, on the pairs held out; none where its edges are at parts."""
    if scores is None or isinstance(circuit, SpanCircuit) or not len(circuit.without_dead_ends()):
        return None
    part = setting.parts[-1]
    source = _told(part.runs, setting.stage(f"strongest paths on {part.split}"))
    return measured_paths(setting.model, source, setting.metric, circuit, scores, part.sample(setting.options.seed))


def _sets(
    setting: Setting, circuit: Circuit | SpanCircuit, groups: Mapping[str, Sequence[str]] | None
) -> NodeSets | None:
    """Named sets of nodes, without and alone, on the pairs held out."""
    if not groups or isinstance(circuit, SpanCircuit):
        return None
    part, options = setting.parts[-1], setting.options
    source = _told(part.runs, setting.stage(f"named sets on {part.split}"))
    what = (setting.model, source, setting.metric, circuit, groups)
    return measured_sets(*what, part.sample(options.seed), n_random=options.n_random)


def report_on(
    model: Model,
    part: Part,
    metric: Metric,
    circuit: Circuit | SpanCircuit,
    scores: Scores | None,
    options: Options | MeasureOptions,
    stage: Stage,
) -> FaithfulnessReport:
    """The circuit's faithfulness on one part, beside its controls."""
    source = partial(_told, part.runs, stage(f"faithfulness on {part.split}"))
    own = part.sample(options.seed)
    return evaluate(model, source, metric, circuit, own, n_random=options.n_random, scores=scores)


def _told(runs: KeptRuns, progress: Progress) -> Iterator[Prepared]:
    """The batches one after the other, with a report of progress after each."""
    for place in range(len(runs)):
        yield from runs.of(place)
        progress(place + 1, len(runs))


def control(setting: Setting, scored: Scored, effect: Effect, circuit: Circuit) -> Controls:
    """Checks of the scores, as far as they apply to the method."""
    model, metric, options, groups = setting.model, setting.metric, setting.options, setting.train.runs.batches
    summed = lost = spans = None
    if scored.scores is not None and options.method == "eap-ig":
        how: dict[str, Any] = {"steps": options.steps, "ablation": options.ablation}
        summed = completeness_of(scored.scores, groups, effect.scored, **how)
    if options.activations != "float32" and groups:
        lost = activation_cost(model, bare(groups[0]), metric, _scoring(options), setting.ablation)
    if scored.parts is not None:
        plain = groups if setting.ablation is None else [bare(batch) for batch in groups]
        spans = span_study(model, scored.parts, prepare_each(model, plain), metric, setting.train.sample(options.seed))
    return Controls(summed, lost, spans, _missed(setting, effect, circuit))


def _missed(setting: Setting, effect: Effect, circuit: Circuit) -> Missed | None:
    """Edges outside against the threshold, or the default one where the circuit had none."""
    options = setting.options
    if options.checks is None:
        return None
    tau = options.DEFAULT_SHARE * abs(effect.whole) if effect.tau is None else effect.tau
    how: dict[str, Any] = {"seed": options.seed, "progress": setting.stage("edges outside")}
    return missed(setting.model, list(setting.train.runs()), setting.metric, circuit, tau, options.checks, **how)
