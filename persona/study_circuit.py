"""Stage ``circuit`` of a study: which edges carry the persona, which the prior, and what that circuit has to stand.

    .               EAP-IG, threshold, found on train and measured on test; the tests of ``evaluate`` in its file
    smallest/       the smallest circuit by |score| that reaches the target on train
    acdc/           ACDC on what the threshold leaves
    prior/          the circuit of the generic prior, and how it compares with that of the persona
    specificity/    circuits of two domains, of persona and prior, each ablated on every one's pairs
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from circuit.battery import Battery, battery, with_evaluation
from circuit.comparison import Comparison, Ground, compare, cross_faithfulness, draw_difference, read_side
from circuit.discovery import Discovery, Options, discover, pairs_of, split_of
from circuit.errors import OptionError
from circuit.files import write_circuit, write_json
from circuit.report import strongest_edges
from circuit.subgraph import Circuit
from circuit.task import Task
from circuit.transfer import Specificity, specificity
from metrics import METRICS
from persona.discovery_files import write_discovery
from persona.span_figures import write_specificity
from persona.study_context import AXES, Context
from persona.study_numbers import Found, slug

__all__ = [
    "battery_numbers",
    "comparison_numbers",
    "discovery_numbers",
    "run_circuit",
    "specificity_numbers",
]

METRIC = "persona-divergence"
FEWEST = 4
"""A domain needs so many pairs to search on and to measure on to have a circuit of its own."""


def run_circuit(context: Context, folder: Path) -> Found:
    """All searches and tests, the main circuit's files in ``folder`` and the others' in folders of their names."""
    found, options = Found(), context.options
    with found.attempt("circuit"):
        main = _search(context, found, "circuit", _main_task(context), folder, prune="threshold",
                       threshold=options.threshold)  # fmt: skip
        _extras(found, main)
        with found.attempt("battery"):
            _battery(context, found, main, folder)
        with found.attempt("smallest circuit"):
            _smallest(context, found, folder / "smallest")
        with found.attempt("ACDC"):
            _acdc(context, found, main, folder / "acdc")
        prior = None
        if context.prior is None:
            found.notes.append("circuit of the prior: no prior pairs; give a file with --prior-pairs")
        else:
            with found.attempt("circuit of the prior"):
                prior = _prior(context, found, main, folder)
        with found.attempt("specificity"):
            _specificity(context, found, main, prior, folder / "specificity")
    return found


def discovery_numbers(found: Found, name: str, discovery: Discovery, source: str) -> None:
    """Size and faithfulness of one search under ``name``."""
    circuit, graph = discovery.circuit, discovery.circuit.graph
    about = {"source": source}
    n = discovery.record["task"]["n_pairs"]
    found.add(f"{name}.divergence", discovery.divergence, "D on the pairs searched on", unit="logits", n=n, **about)
    found.add(f"{name}.edges", len(circuit), "edges", n=graph.n_edges, **about)
    found.add(f"{name}.edges_share", len(circuit) / graph.n_edges, "share of all edges", unit="share", **about)
    nodes = circuit.nodes()
    found.add(f"{name}.nodes", len(nodes), "nodes", n=graph.n_src + 1, **about)
    for kind, key in (("head", "heads"), ("mlp", "mlps")):
        found.add(f"{name}.{key}", sum(node.kind == kind for node in nodes), f"nodes that are {key}", **about)
    first, last = discovery.reports[0], discovery.reports[-1]
    _faithfulness(found, f"{name}.f.train", first.circuit, f"faithfulness ({first.split})", first.n_pairs, source)
    if not discovery.held_out:
        found.notes.append(f"{name}: measured on pairs that it was found on; name splits train and test in the file")
        return
    _faithfulness(found, f"{name}.f.test", last.circuit, f"faithfulness ({last.split})", last.n_pairs, source)
    what = "faithfulness of all other edges"
    _faithfulness(found, f"{name}.f.complement", last.complement, what, last.n_pairs, source)
    n = len(last.random)
    found.add(f"{name}.f.random", last.random_mean, "mean over random circuits of the size", unit="share", n=n, **about)
    gap = {"estimate": last.random_gap_interval, "unit": "share", "n": last.n_pairs, "source": source}
    found.add(f"{name}.f.above_random", last.random_gap, "faithfulness minus that of random circuits", **gap)


def battery_numbers(found: Found, results: Battery) -> None:
    """Hypothesis tests one by one, completeness, and transfer by axis."""
    source, n = "circuit/circuit.json", results.tests.n_pairs
    decided = [one.decision for one in results.tests.outcomes]
    for one in results.tests.outcomes:
        name = f"circuit.test.{slug(one.name).replace('partial_', '')}"
        found.add(name, one.statistic, f"statistic of {one.name}: {one.decision}", p=one.p, n=n, source=source)
        if one.decision in ("passed", "failed"):
            found.add(f"{name}.passed", one.decision == "passed", one.sentence, p=one.p, n=n, source=source)
    for key in ("passed", "failed"):
        found.add(f"circuit.test.{key}", decided.count(key), f"hypothesis tests {key}", n=len(decided), source=source)
    edges = results.tests.edges
    if edges:
        share = float(np.mean([edge.superfluous for edge in edges]))
        about = {"unit": "share", "n": len(edges), "source": source}
        found.add("circuit.test.superfluous", share, "share of tested edges that are superfluous", **about)
    _completeness(found, results, source)
    _transfer(found, results, source)


def comparison_numbers(found: Found, both: Comparison) -> None:
    """The circuit of D (A) and that of b (B): overlap against chance, scores, signs, each on the other's pairs."""
    source = "circuit/prior/comparison.json"
    for prefix, overlap in (("", both.edges), ("nodes_", both.nodes)):
        what = "nodes" if prefix else "edges"
        name = f"circuit.prior.{prefix}"
        found.add(f"{name}jaccard", overlap.jaccard, f"shared {what} over all of either", unit="share", source=source)
        found.add(f"{name}shared", overlap.shared, f"shared {what}", n=min(overlap.a, overlap.b), source=source)
        for key in ("random", "exchanged"):
            chance = getattr(overlap, key)
            if chance is not None:
                about = {"n": chance.n, "p": chance.p, "source": source}
                found.add(f"{name}shared_{key}", chance.mean, f"shared {what} by chance ({key}); p of as many", **about)
    for one in both.correlations:
        if one.over == "union":
            for key, value, null in (
                ("", one.signed, one.null_signed),
                ("_abs", one.absolute, one.null_absolute),
            ):
                about = {"n": one.n, "p": None if null is None else null.p, "source": source}
                what = f"rank correlation of {'|score|' if key else 'scores'} over {one.over}"
                found.add(f"circuit.prior.correlation{key}", value, what, **about)
    _signs(found, both, source)
    names = {"A": "persona", "B": "prior", "shared": "shared"}
    for cell in both.cross:
        what = f"faithfulness of the circuit {names[cell.circuit]} on held-out pairs of {names[cell.pairs]}"
        name = f"circuit.prior.f.{names[cell.circuit]}_on_{names[cell.pairs]}"
        _faithfulness(found, name, cell.report.circuit, what, cell.report.n_pairs, source)


def specificity_numbers(found: Found, results: Specificity) -> None:
    """What is left of each contrast when each circuit is ablated."""
    for cell in results.cells:
        about = {"estimate": cell.interval, "unit": "share", "source": "circuit/specificity/specificity.json"}
        what = f"left of {cell.contrast} when the circuit of {cell.circuit} is ablated"
        found.add(f"circuit.specificity.{slug(cell.circuit)}.on_{slug(cell.contrast)}", cell.left, what, **about)
    found.notes += [f"specificity: {text}" for text in results.findings]


def _main_task(context: Context) -> Task:
    kept = {item.pair.line for item in context.main}
    return replace(context.task, pairs=tuple(pair for pair in context.task.pairs if pair.line in kept))


def _search(context: Context, found: Found | None, name: str, task: Task, folder: Path, **how: Any) -> Discovery:
    """One search with its files in ``folder``; its numbers under ``name`` in ``found``, if given."""
    options = context.options
    common = {"steps": options.steps, "seed": options.seed, "batch_size": options.batch_size}
    discovery = discover(context.model, task, Options(**common, **how).checked(), stage=context.stage)
    folder.mkdir(exist_ok=True)
    write_discovery(discovery, folder)
    if found is not None:
        discovery_numbers(found, name, discovery, f"{name.replace('.', '/')}/circuit.json")
    return discovery


def _extras(found: Found, main: Discovery) -> None:
    found.extras["nodes"] = main.circuit.src_names()
    found.extras["strongest_edges"] = strongest_edges(main)
    found.extras["held_out"] = main.held_out


def _battery(context: Context, found: Found, main: Discovery, folder: Path) -> None:
    task, options = _main_task(context), context.options
    chosen = task.of_split(split_of(task, None, "test"))
    axes = [axis for axis in AXES if len({pair.axis(axis) for pair in chosen.pairs} - {""}) > 1]
    how: dict[str, Any] = {"batch_size": options.batch_size, "seed": options.seed, "quick": options.quick}
    results = battery(
        context.model,
        chosen,
        main.circuit,
        metric=METRIC,
        by=axes,
        n_random=options.n_random,
        state=folder / "circuit.json.state",
        stage=context.stage,
        **how,
    )
    stamp = {"model": context.model.name, "fingerprint": context.model.fingerprint, "where": {}, "metric": METRIC}
    stamp |= {"ablation": "corrupt", "align": "equal", "seed": options.seed, "quick": options.quick}
    report = main.reports[-1]
    record = with_evaluation(main.record, task, report.split, report, results, **stamp)
    write_circuit(record, folder / "circuit.json")
    battery_numbers(found, results)


def _smallest(context: Context, found: Found, folder: Path) -> None:
    target = context.options.target
    least = _search(context, None, "", _main_task(context), folder, target_faithfulness=target)
    name, source = "circuit.smallest", "circuit/smallest/circuit.json"
    _size_and_faithfulness(found, name, least, source)
    what = f"whether f >= {target:g} on held-out pairs too"
    found.add(f"{name}.confirmed", least.confirmed, what, source=source)


def _acdc(context: Context, found: Found, main: Discovery, folder: Path) -> None:
    share = context.options.threshold
    other = _search(context, None, "", _main_task(context), folder, prune="eap-acdc", threshold=share)
    name, source = "circuit.acdc", "circuit/acdc/circuit.json"
    _size_and_faithfulness(found, name, other, source)
    shared, either = (int(op(main.circuit.mask, other.circuit.mask).sum()) for op in (np.logical_and, np.logical_or))
    found.add(f"{name}.shared", shared, "edges shared with the threshold circuit", n=len(other.circuit), source=source)
    jaccard = shared / either if either else None
    found.add(f"{name}.jaccard", jaccard, "shared edges over all of either", unit="share", source=source)


def _size_and_faithfulness(found: Found, name: str, discovery: Discovery, source: str) -> None:
    n_edges = discovery.circuit.graph.n_edges
    found.add(f"{name}.edges", len(discovery.circuit), "edges", n=n_edges, source=source)
    found.add(f"{name}.share", len(discovery.circuit) / n_edges, "share of all edges", unit="share", source=source)
    for key, report in zip(("train", "test"), discovery.reports, strict=False):
        what = f"faithfulness ({report.split})"
        _faithfulness(found, f"{name}.f.{key}", report.circuit, what, report.n_pairs, source)


def _prior(context: Context, found: Found, main: Discovery, folder: Path) -> Discovery:
    """The circuit of the prior's pairs, and its comparison with the persona's."""
    assert context.prior is not None
    options, place = context.options, folder / "prior"
    other = _search(context, found, "circuit.prior", context.prior, place, prune="threshold",
                    threshold=options.threshold)  # fmt: skip
    sides = [replace(read_side(path), name=name) for path, name in ((folder, "persona"), (place, "prior"))]
    n_draws = 20 if options.quick else 200
    both = compare(*sides, n_draws=n_draws, seed=options.seed, progress=context.stage("chance overlap"))
    tasks = (_main_task(context), context.prior)
    grounds = [
        Ground(letter, context.model, task, one.record)
        for letter, task, one in zip("AB", tasks, (main, other), strict=True)
    ]
    numbers = {"batch_size": options.batch_size, "n_random": 0, "seed": options.seed}
    both = both.with_cross(cross_faithfulness(*sides, grounds, stage=context.stage, **numbers))
    write_json(both.as_dict(), place / "comparison.json")
    draw_difference(both, place / "difference.png")
    comparison_numbers(found, both)
    return other


def _specificity(
    context: Context, found: Found, main: Discovery, prior: Discovery | None, folder: Path
) -> None:
    model, task, metric = context.model, _main_task(context), METRICS[METRIC]
    size = context.options.batch_size
    contrasts: dict[str, tuple[Circuit, Any, Any]] = {}
    for domain in _domains(context, task):
        where = (("domain", domain),)
        own = _search(context, None, "", task, folder / slug(domain), where=where, threshold=context.options.threshold)
        part = task.where(domain=domain)
        pairs = pairs_of(model, part.of_split(split_of(part, None, "test")), metric, batch_size=size)
        contrasts[domain] = (own.circuit, pairs, metric)
    if prior is not None:
        assert context.prior is not None
        for name, one, source in (("persona", main, task), ("prior", prior, context.prior)):
            pairs = pairs_of(model, source.of_split(split_of(source, None, "test")), metric, batch_size=size)
            contrasts[name] = (one.circuit, pairs, metric)
    if len(contrasts) < 2:
        raise OptionError("there are no two contrasts with pairs enough: two domains, or pairs for the prior")
    context.stage("every circuit on every contrast")
    results = specificity(model, contrasts, seed=context.options.seed)
    folder.mkdir(exist_ok=True)
    write_specificity(results, folder)
    specificity_numbers(found, results)


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


def _faithfulness(found: Found, name: str, part: Any, what: str, n: int, source: str) -> None:
    about = {"estimate": part.interval, "unit": "share", "n": n, "source": source}
    found.add(name, part.ratio_of_means, what, **about)


def _completeness(found: Found, results: Battery, source: str) -> None:
    report = results.completeness
    named: Mapping[str, tuple[Any, str]] = {
        "circuit": (report.circuit, "what the circuit does of what the model does"),
        "complement": (report.complement, "what the model does without the circuit"),
        "mean_gap": (report.mean_gap, "mean |F(C without K) - F(M without K)|, random parts K"),
        "worst_gap": (report.worst and report.worst.gap, "the same, the worst random part or type"),
        "greedy_gap": (report.greedy and report.greedy.gap, "the same, for a part chosen to differ"),
    }
    for key, (share, what) in named.items():
        if share is not None:
            about = {"estimate": share.interval, "unit": "share", "n": report.n_pairs, "source": source}
            found.add(f"circuit.complete.{key}", share.value, what, **about)
    taking = {one.node for one in report.backup.nodes if one.takes_over}
    if report.backup.parts:
        found.add("circuit.complete.backup", len(taking), "nodes outside that take over", source=source)


def _transfer(found: Found, results: Battery, source: str) -> None:
    parts = [(axis, part) for axis, parts in results.transfer.items() for part in parts]
    for axis, part in parts:
        name = f"circuit.transfer.{slug(axis)}.{slug(part.name)}"
        about = {"unit": "share", "n": part.n_pairs, "source": source}
        what = f"faithfulness on pairs with {axis} {part.name}"
        found.add(name, part.faithfulness, what, estimate=part.interval, **about)
        best = max(part.outside, default=None)
        found.add(f"{name}.outside", best, "the best circuit of edges outside, on the same pairs", **about)
        found.add(f"{name}.holds", part.holds, "at least half, and above all circuits outside", source=source)
    defined = [part for _, part in parts if part.holds is not None]
    if defined:
        held = sum(bool(part.holds) for part in defined)
        found.add("circuit.transfer.holds", held, "parts to which the circuit transfers", n=len(defined), source=source)
        found.add("circuit.transfer.n", len(defined), "parts on which transfer is defined", source=source)


def _signs(found: Found, both: Comparison, source: str) -> None:
    """Opposite signs among the edges of both circuits."""
    shared = [one for one in both.signs if "both" in one.over or "shared" in one.over]
    for one in shared[:1]:
        if one.n:
            about = {"unit": "share", "n": one.n, "source": source}
            what = f"opposite signs over {one.over}; p of at least as many"
            found.add("circuit.prior.opposite", one.opposite / one.n, what, p=one.p_more, **about)
            expected = None if one.expected is None else one.expected / one.n
            found.add("circuit.prior.opposite_expected", expected, "by chance", **about)
