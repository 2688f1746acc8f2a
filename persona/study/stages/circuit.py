"""Stage ``circuit`` of a study: which edges carry the persona, which the prior, and how the circuit fares in tests.

.               EAP-IG, threshold, found on train and measured on test; the tests of ``evaluate`` in its file
smallest/       the smallest circuit by |score| that reaches the target on train
acdc/           ACDC on what the threshold leaves
prior/          the circuit of the generic prior, and how it compares with that of the persona
specificity/    circuits of two domains, of persona and prior, each ablated on the pairs of all
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from persona_circuits.circuit.assessment import EvaluationOptions, Subject, run_tests, with_evaluation
from persona_circuits.circuit.assessment.comparison import (
    Comparison,
    Ground,
    Side,
    compare,
    cross_faithfulness,
    draw_difference,
    read_side,
)
from persona_circuits.circuit.discovery import Discovery, MeasureOptions, Options, discover, pairs_of, split_of
from persona_circuits.circuit.errors import OptionError
from persona_circuits.circuit.evaluation import Transfer, specificity, transfer_within
from persona_circuits.circuit.io import write_circuit
from persona_circuits.circuit.reporting import strongest_edges, write_specificity
from persona_circuits.circuit.scores import Scores
from persona_circuits.circuit.statistics import Clusters
from persona_circuits.circuit.storage import write_json
from persona_circuits.circuit.subgraph import Circuit
from persona_circuits.circuit.task import Task
from persona_circuits.metrics import METRICS
from persona_circuits.persona.study.context import AXES, Context, some_of
from persona_circuits.persona.study.numbers import StageNumbers, slug
from persona_circuits.persona.study.stages.circuit_numbers import (
    METRIC,
    comparison_numbers,
    discovery_numbers,
    faithfulness_of,
    specificity_numbers,
    tests_numbers,
)

__all__ = ["compared", "run_circuit", "search"]

FEWEST = 4
"""A domain needs so many pairs to search on and to measure on to have a circuit of its own."""


def run_circuit(context: Context, folder: Path) -> StageNumbers:
    """All searches and tests, the main circuit's files in ``folder`` and the others' in folders of their names."""
    numbers, options = StageNumbers(), context.options
    with numbers.attempt("circuit"):
        how: dict[str, Any] = {"n_random": options.n_random, "threshold": options.threshold}
        main = search(context, context.main_task, folder, **how)
        discovery_numbers(numbers, "circuit", main, "circuit/circuit.json")
        _extras(numbers, main)
        with numbers.attempt("transfer and tests"):
            _tests(context, numbers, main, folder)
        with numbers.attempt("smallest circuit"):
            _smallest(context, numbers, main, folder / "smallest")
        with numbers.attempt("ACDC"):
            _acdc(context, numbers, main, folder / "acdc")
        prior = None
        if context.prior is None:
            numbers.notes.append("circuit of the prior: no prior pairs; give a file with --prior-pairs")
        else:
            with numbers.attempt("circuit of the prior"):
                prior = _prior(context, numbers, main, folder)
        with numbers.attempt("specificity"):
            _specificity(context, numbers, main, prior, folder / "specificity")
    return numbers


def search(
    context: Context, task: Task, folder: Path, *, scores: Scores | None = None, n_random: int = 0, **how: Any
) -> Discovery:
    """One search with its files in ``folder``."""
    options = context.options
    common: dict[str, Any] = {
        "steps": options.steps,
        "seed": options.seed,
        "batch_size": options.batch_size,
        "n_random": n_random,
    }
    chosen = Options(**common, **how).checked()
    state = context.kept(f"{folder.name}/") if scores is None else None
    discovery = discover(context.model, task, chosen, scores=scores, state=state, stage=context.stage)
    discovery.write(folder)
    return discovery


def compared(context: Context, *circuits: tuple[str, Discovery]) -> Comparison:
    """Two circuits by their names, beside chance."""
    return _beside_chance(context, *(Side(name, d.circuit, d.scores, None, d.record) for name, d in circuits))


def _beside_chance(context: Context, a: Side, b: Side) -> Comparison:
    n_draws = 20 if context.options.quick else 200
    return compare(a, b, n_draws=n_draws, seed=context.options.seed, progress=context.stage("chance overlap"))


def _few_of(context: Context, task: Task) -> Task:
    """Held-out pairs, at most ``max_pairs``, or all of them where it is thorough."""
    part = task.of_split(split_of(task, None, "test"))
    return part if context.options.thorough else some_of(part, context.options.max_pairs)


def _few(context: Context, task: Task) -> Task:
    """At most ``max_pairs`` pairs to search on, the same number to measure on, or all of them where it is thorough."""
    options = context.options
    if options.thorough:
        return task
    names = dict.fromkeys(context.fitted_and_held_out)
    parts = [some_of(task.of_split(name), options.max_pairs).pairs for name in names]
    return replace(task, pairs=tuple(pair for part in parts for pair in part))


def _extras(numbers: StageNumbers, main: Discovery) -> None:
    numbers.extras["nodes"] = main.circuit.src_names()
    numbers.extras["strongest_edges"] = strongest_edges(main)
    numbers.extras["held_out"] = main.held_out


def _tests(context: Context, numbers: StageNumbers, main: Discovery, folder: Path) -> None:
    """Transfer on all held-out pairs, the tests that try many circuits on some of them; into the circuit's file."""
    options, task = context.options, context.main_task
    chosen, few = task.of_split(split_of(task, None, "test")), _few_of(context, task)
    subject = Subject(main.circuit) if options.quick else Subject(main.circuit, main.record, task)
    settings: dict[str, Any] = {"batch_size": options.batch_size, "seed": options.seed}
    asked = EvaluationOptions(metric=METRIC, by=(), quick=not options.thorough, **settings)
    results = run_tests(context.model, few, subject, asked, stage=context.stage)
    results = replace(results, transfer=_transfers(context, main.circuit, few if options.quick else chosen))
    stamp: dict[str, Any] = {
        "model": context.model.name,
        "fingerprint": context.model.fingerprint,
        "where": {},
        "metric": METRIC,
    }
    stamp |= {"ablation": "corrupt", "align": "equal", "seed": options.seed, "quick": not options.thorough}
    report = main.reports[-1]
    record = with_evaluation(main.record, task, report.split, report, results, **stamp)
    write_circuit(record, folder / "circuit.json")
    tests_numbers(numbers, results)


def _transfers(context: Context, circuit: Circuit, task: Task) -> dict[str, tuple[Transfer, ...]]:
    """The circuit on every value of every axis, by key; the model runs once for all."""
    parts = {
        (axis, value): [place for place, pair in enumerate(task.pairs) if pair.axis(axis) == value]
        for axis in AXES
        for value in sorted({pair.axis(axis) for pair in task.pairs} - {""})
    }
    axes = [axis for axis in AXES if sum(axis == key for key, _ in parts) > 1]
    if not axes:
        return {}
    context.stage("transfer")
    names = {f"{axis}={value}": places for (axis, value), places in parts.items() if axis in axes}
    pairs = pairs_of(context.model, task, METRICS[METRIC], batch_size=context.options.batch_size)
    clusters = {name: Clusters.of([task.pairs[place] for place in places]) for name, places in names.items()}
    how: dict[str, Any] = {"clusters": clusters, "n_outside": context.options.n_random, "seed": context.options.seed}
    every = transfer_within(context.model, circuit, pairs, names, METRICS[METRIC], **how)
    return {
        axis: tuple(
            replace(part, name=part.name.removeprefix(f"{axis}=")) for part in every if part.name.startswith(f"{axis}=")
        )
        for axis in axes
    }


def _smallest(context: Context, numbers: StageNumbers, main: Discovery, folder: Path) -> None:
    """The sizes are tried on some of the training pairs with the scores of all; measured on some held-out ones."""
    target = context.options.target
    least = search(context, _few(context, context.main_task), folder, scores=main.scores, target_faithfulness=target)
    name, source = "circuit.smallest", "circuit/smallest/circuit.json"
    _size_and_faithfulness(numbers, name, least, source)
    what = f"whether f >= {target:g} on held-out pairs too"
    numbers.add(f"{name}.confirmed", least.confirmed, what, source=source)


def _acdc(context: Context, numbers: StageNumbers, main: Discovery, folder: Path) -> None:
    """ACDC tries every edge that the threshold leaves, on some of the training pairs."""
    share = context.options.threshold
    few = _few(context, context.main_task)
    other = search(context, few, folder, scores=main.scores, prune="eap-acdc", threshold=share)
    name, source = "circuit.acdc", "circuit/acdc/circuit.json"
    _size_and_faithfulness(numbers, name, other, source)
    shared, either = (int(op(main.circuit.mask, other.circuit.mask).sum()) for op in (np.logical_and, np.logical_or))
    what = "edges shared with the threshold circuit"
    numbers.add(f"{name}.shared", shared, what, n=len(other.circuit), source=source)
    jaccard = shared / either if either else None
    numbers.add(f"{name}.jaccard", jaccard, "shared edges over all of either", unit="share", source=source)


def _size_and_faithfulness(numbers: StageNumbers, name: str, discovery: Discovery, source: str) -> None:
    n_edges = discovery.circuit.graph.n_edges
    numbers.add(f"{name}.edges", len(discovery.circuit), "edges", n=n_edges, source=source)
    numbers.add(f"{name}.share", len(discovery.circuit) / n_edges, "share of all edges", unit="share", source=source)
    for key, report in zip(("train", "test"), discovery.reports, strict=False):
        what = f"faithfulness ({report.split})"
        faithfulness_of(numbers, f"{name}.f.{key}", report.circuit, what, report.n_pairs, source)


def _prior(context: Context, numbers: StageNumbers, main: Discovery, folder: Path) -> Discovery:
    """The circuit of the prior's pairs, and its comparison with the persona's."""
    assert context.prior is not None
    options, place = context.options, folder / "prior"
    other = search(context, context.prior, place, n_random=options.n_random, threshold=options.threshold)
    discovery_numbers(numbers, "circuit.prior", other, "circuit/prior/circuit.json")
    sides = [replace(read_side(path), name=name) for path, name in ((folder, "persona"), (place, "prior"))]
    comparison = _beside_chance(context, *sides)
    tasks = (_few(context, context.main_task), _few_of(context, context.prior))
    grounds = [
        Ground(letter, context.model, task, discovery.record)
        for letter, task, discovery in zip("AB", tasks, (main, other), strict=True)
    ]
    setting = MeasureOptions(batch_size=options.batch_size, n_random=0, seed=options.seed)
    comparison = comparison.with_cross(cross_faithfulness(sides[0], sides[1], grounds, setting, stage=context.stage))
    write_json(comparison.as_dict(), place / "comparison.json")
    draw_difference(comparison, place / "difference.png")
    comparison_numbers(numbers, comparison)
    return other


def _specificity(
    context: Context, numbers: StageNumbers, main: Discovery, prior: Discovery | None, folder: Path
) -> None:
    model, task, metric = context.model, context.main_task, METRICS[METRIC]
    circuits: dict[str, tuple[Circuit, Task]] = {}
    for domain in _domains(context, task):
        where = (("domain", domain),)
        part = _few(context, task.where(domain=domain))
        own = search(context, part, folder / slug(domain), where=where, threshold=context.options.threshold)
        circuits[domain] = (own.circuit, part)
    if prior is not None:
        assert context.prior is not None
        circuits |= {"persona": (main.circuit, task), "prior": (prior.circuit, context.prior)}
    contrasts, clusters = {}, {}
    for name, (circuit, source) in circuits.items():
        part = _few_of(context, source)
        contrasts[name] = (circuit, pairs_of(model, part, metric, batch_size=context.options.batch_size), metric)
        clusters[name] = Clusters.of(part.pairs)
    if len(contrasts) < 2:
        raise OptionError("there are no two contrasts with pairs enough: two domains, or pairs for the prior")
    context.stage("every circuit on every contrast")
    results = specificity(model, contrasts, clusters=clusters, seed=context.options.seed)
    folder.mkdir(exist_ok=True)
    write_specificity(results, folder)
    specificity_numbers(numbers, results)


def _domains(context: Context, task: Task) -> list[str]:
    """The two domains with the most pairs, the first of equals, where both splits have enough of them; else none."""
    counts: dict[str, int] = {}
    for domain in dict.fromkeys(pair.axis("domain") for pair in task.pairs):
        here = [pair for pair in task.pairs if pair.axis("domain") == domain]
        sizes = [sum(split in (pair.split, "all") for pair in here) for split in context.fitted_and_held_out]
        if domain and min(sizes) >= FEWEST:
            counts[domain] = len(here)
    chosen = sorted(counts, key=lambda name: -counts[name])[:2]
    return chosen if len(chosen) == 2 else []
