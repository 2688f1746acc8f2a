"""Numbers that the study cites of its circuits."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from persona_circuits.circuit.assessment import CircuitTests
from persona_circuits.circuit.assessment.comparison import Comparison
from persona_circuits.circuit.discovery import Discovery
from persona_circuits.circuit.evaluation import Specificity
from persona_circuits.persona.study.numbers import StageNumbers, slug

__all__ = [
    "METRIC",
    "comparison_numbers",
    "discovery_numbers",
    "faithfulness_of",
    "specificity_numbers",
    "tests_numbers",
]

METRIC = "persona-divergence"


def discovery_numbers(numbers: StageNumbers, name: str, discovery: Discovery, source: str) -> None:
    """Size and faithfulness of one search under ``name``."""
    circuit, graph = discovery.circuit, discovery.circuit.graph
    about = {"source": source}
    n = discovery.record["task"]["n_pairs"]
    numbers.add(f"{name}.divergence", discovery.divergence, "D on the pairs searched on", unit="logits", n=n, **about)
    numbers.add(f"{name}.edges", len(circuit), "edges", n=graph.n_edges, **about)
    numbers.add(f"{name}.edges_share", len(circuit) / graph.n_edges, "share of all edges", unit="share", **about)
    nodes = circuit.nodes()
    numbers.add(f"{name}.nodes", len(nodes), "nodes", n=graph.n_src + 1, **about)
    for kind, key in (("head", "heads"), ("mlp", "mlps")):
        numbers.add(f"{name}.{key}", sum(node.kind == kind for node in nodes), f"nodes that are {key}", **about)
    first, last = discovery.reports[0], discovery.reports[-1]
    faithfulness_of(numbers, f"{name}.f.train", first.circuit, f"faithfulness ({first.split})", first.n_pairs, source)
    if not discovery.held_out:
        numbers.notes.append(f"{name}: measured on pairs that it was found on; name splits train and test in the file")
        return
    faithfulness_of(numbers, f"{name}.f.test", last.circuit, f"faithfulness ({last.split})", last.n_pairs, source)
    what = "faithfulness of all other edges"
    faithfulness_of(numbers, f"{name}.f.complement", last.complement, what, last.n_pairs, source)
    n = len(last.random)
    numbers.add(f"{name}.f.random", last.random_mean, "mean over matched random circuits", unit="share", n=n, **about)
    gap = {"estimate": last.random_gap_interval, "unit": "share", "n": last.n_pairs, "source": source}
    numbers.add(f"{name}.f.above_random", last.random_gap, "faithfulness minus that of random circuits", **gap)


def tests_numbers(numbers: StageNumbers, results: CircuitTests) -> None:
    """Hypothesis tests one by one, completeness, and transfer by axis."""
    assert results.tests is not None, "a study has all the time that it needs"
    source, n = "circuit/circuit.json", results.tests.n_pairs
    decided = [outcome.decision for outcome in results.tests.outcomes]
    for outcome in results.tests.outcomes:
        name = f"circuit.test.{slug(outcome.name).replace('partial_', '')}"
        about = {"p": outcome.p, "n": n, "source": source}
        numbers.add(name, outcome.statistic, f"statistic of {outcome.name}: {outcome.decision}", **about)
        if outcome.decision in ("passed", "failed"):
            numbers.add(f"{name}.passed", outcome.decision == "passed", outcome.sentence, **about)
    for key in ("passed", "failed"):
        numbers.add(f"circuit.test.{key}", decided.count(key), f"hypothesis tests {key}", n=len(decided), source=source)
    edges = results.tests.edges
    if edges:
        share = float(np.mean([edge.superfluous for edge in edges]))
        about = {"unit": "share", "n": len(edges), "source": source}
        numbers.add("circuit.test.superfluous", share, "share of tested edges that are superfluous", **about)
    _completeness(numbers, results, source)
    _stability(numbers, results, source)
    _transfer(numbers, results, source)


def comparison_numbers(numbers: StageNumbers, comparison: Comparison) -> None:
    """The circuit of D (A) and that of b (B): overlap against chance, scores, signs, each on the other's pairs."""
    source = "circuit/prior/comparison.json"
    for prefix, overlap in (("", comparison.edges), ("nodes_", comparison.nodes)):
        what = "nodes" if prefix else "edges"
        name = f"circuit.prior.{prefix}"
        numbers.add(f"{name}jaccard", overlap.jaccard, f"shared {what} over all of either", unit="share", source=source)
        numbers.add(f"{name}shared", overlap.shared, f"shared {what}", n=min(overlap.a, overlap.b), source=source)
        for key in ("random", "exchanged"):
            chance = getattr(overlap, key)
            if chance is not None:
                about = {"n": chance.n, "p": chance.p, "source": source}
                text = f"shared {what} by chance ({key}); p of as many"
                numbers.add(f"{name}shared_{key}", chance.mean, text, **about)
    for ranks in comparison.correlations:
        if ranks.over == "union":
            kinds = (("", ranks.signed, ranks.null_signed), ("_abs", ranks.absolute, ranks.null_absolute))
            for key, value, null in kinds:
                about = {"n": ranks.n, "p": None if null is None else null.p, "source": source}
                what = f"rank correlation of {'|score|' if key else 'scores'} over {ranks.over}"
                numbers.add(f"circuit.prior.correlation{key}", value, what, **about)
    _signs(numbers, comparison, source)
    names = {"A": "persona", "B": "prior", "shared": "shared"}
    for cell in comparison.cross:
        what = f"faithfulness of the circuit {names[cell.circuit]} on held-out pairs of {names[cell.pairs]}"
        name = f"circuit.prior.f.{names[cell.circuit]}_on_{names[cell.pairs]}"
        faithfulness_of(numbers, name, cell.report.circuit, what, cell.report.n_pairs, source)


def specificity_numbers(numbers: StageNumbers, results: Specificity) -> None:
    """What is left of each contrast when each circuit is ablated."""
    for cell in results.cells:
        about = {"estimate": cell.interval, "unit": "share", "source": "circuit/specificity/specificity.json"}
        what = f"left of {cell.contrast} when the circuit of {cell.circuit} is ablated"
        numbers.add(f"circuit.specificity.{slug(cell.circuit)}.on_{slug(cell.contrast)}", cell.left, what, **about)
    numbers.notes += [f"specificity: {text}" for text in results.findings]


def faithfulness_of(numbers: StageNumbers, name: str, part: Any, what: str, n: int, source: str) -> None:
    about = {"estimate": part.interval, "unit": "share", "n": n, "source": source}
    numbers.add(name, part.ratio_of_means, what, **about)


def _completeness(numbers: StageNumbers, results: CircuitTests, source: str) -> None:
    report = results.completeness
    assert report is not None, "a study has all the time that it needs"
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
            numbers.add(f"circuit.complete.{key}", share.value, what, **about)
    taking = {backup.node for backup in report.backup.nodes if backup.takes_over}
    if report.backup.parts:
        numbers.add("circuit.complete.backup", len(taking), "nodes outside that take over", source=source)


def _stability(numbers: StageNumbers, results: CircuitTests, source: str) -> None:
    """Would other pairs have given another circuit: of the search's pairs, resampled."""
    report = results.searched.report
    if report is None:
        numbers.notes.append(f"stability: {results.searched.reason}")
        return
    about = {"unit": "share", "n": report.n_pairs, "source": source}
    what = f"edges that two resamples of {report.by} share, over those that either has"
    numbers.add("circuit.stability.jaccard", report.jaccard, what, **about)
    if len(report.circuit):
        share = len(report.core) / len(report.circuit)
        numbers.add("circuit.stability.core", share, "edges selected in at least 90 % of the resamples", **about)
    numbers.notes += [f"stability: {note}" for note in report.notes]


def _transfer(numbers: StageNumbers, results: CircuitTests, source: str) -> None:
    parts = [(axis, part) for axis, parts in results.transfer.items() for part in parts]
    for axis, part in parts:
        name = f"circuit.transfer.{slug(axis)}.{slug(part.name)}"
        about = {"unit": "share", "n": part.n_pairs, "source": source}
        what = f"faithfulness on pairs with {axis} {part.name}"
        numbers.add(name, part.faithfulness, what, estimate=part.interval, **about)
        best = max(part.outside, default=None)
        numbers.add(f"{name}.outside", best, "the best circuit of edges outside, on the same pairs", **about)
        numbers.add(f"{name}.holds", part.holds, "at least half, and above all circuits outside", source=source)
    defined = [part for _, part in parts if part.holds is not None]
    if defined:
        held = sum(bool(part.holds) for part in defined)
        what = "parts to which the circuit transfers"
        numbers.add("circuit.transfer.holds", held, what, n=len(defined), source=source)
        numbers.add("circuit.transfer.n", len(defined), "parts on which transfer is defined", source=source)


def _signs(numbers: StageNumbers, comparison: Comparison, source: str) -> None:
    """Opposite signs among the edges of both circuits."""
    shared = [signs for signs in comparison.signs if "both" in signs.over or "shared" in signs.over]
    for signs in shared[:1]:
        if signs.n:
            about = {"unit": "share", "n": signs.n, "source": source}
            what = f"opposite signs over {signs.over}; p of at least as many"
            numbers.add("circuit.prior.opposite", signs.opposite / signs.n, what, p=signs.p_more, **about)
            expected = None if signs.expected is None else signs.expected / signs.n
            numbers.add("circuit.prior.opposite_expected", expected, "by chance", **about)
