"""Plain summaries of results, for people's tables and for machines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from persona_circuits.circuit.attribution import Completeness
from persona_circuits.circuit.evaluation import (
    Faithfulness,
    FaithfulnessReport,
    NodeSets,
    OpenedHeads,
    OpenedMlps,
    PathShares,
    Share,
)
from persona_circuits.circuit.evaluation.curves import Smallest
from persona_circuits.circuit.printable import signed, visible
from persona_circuits.circuit.table import Column, Table, to

if TYPE_CHECKING:
    from persona_circuits.circuit.discovery.search import Discovery

__all__ = [
    "completeness_lines",
    "faithfulness_table",
    "head_tables",
    "neuron_tables",
    "path_table",
    "set_table",
    "size_table",
    "strongest_edges",
    "summary",
]


def summary(discovery: Discovery) -> dict[str, Any]:
    """The content of ``summary.json`` and of ``discover --json``."""
    record = discovery.record
    return {
        "model": record["model"]["name"],
        "pairs": record["task"]["source"],
        "metric": record["task"]["metric"],
        "n_pairs": record["task"]["n_pairs"],
        "divergence": discovery.divergence,
        "signal": None if discovery.signal is None else discovery.signal.as_dict(),
        "tau": discovery.tau,
        "counts": record["counts"],
        "nodes": discovery.circuit.src_names(),
        "connected": len(discovery.circuit) > 0,
        "acdc": discovery.acdc_cost,
        "held_out": discovery.held_out,
        "shared": None if discovery.shared is None else discovery.shared.as_dict(),
        "faithfulness": record["faithfulness"],
        "strongest_edges": strongest_edges(discovery),
        "strongest_paths": None if discovery.paths is None else discovery.paths.as_dict(),
    } | _asked_for(discovery)


def _asked_for(discovery: Discovery) -> dict[str, Any]:
    record: dict[str, Any] = {"null": discovery.null.as_dict()} if discovery.null else {}
    if discovery.at_parts is not None:
        record["spans"] = discovery.record["spans"]
    if discovery.smallest is not None:
        record["target"] = {**discovery.smallest.as_dict(), "confirmed": discovery.confirmed}
    if cautions := [report.caution for report in discovery.reports if report.caution]:
        record["cautions"] = cautions
    if discovery.completeness is not None:
        record["completeness"] = discovery.completeness.as_dict()
    if discovery.certificate is not None:
        record["certificate"] = discovery.certificate.as_dict()
    if discovery.sets is not None:
        record["node_sets"] = discovery.sets.as_dict()
    if discovery.opened is not None:
        record["neurons"] = discovery.opened.as_dict()
    if discovery.heads is not None:
        record["heads"] = discovery.heads.as_dict()
    if discovery.missed is not None:
        record["missed"] = discovery.missed.as_dict()
    if discovery.finished is not None:
        record["finish"] = discovery.finished.as_dict()
    return record | ({"sweep": discovery.sweep.as_dict()} if discovery.sweep else {})


def completeness_lines(check: Completeness) -> list[str]:
    """What EAP-IG's scores sum to, and a warning where that is more than 5 % off."""
    if check.gap is None:
        return [f"EAP-IG      edges that leave input sum to {signed(check.attributed)}; unchecked: {check.reason}"]
    line = (
        f"EAP-IG      edges that leave input sum to {signed(check.attributed)} of {check.effect:+.3f}: "
        f"{check.gap:.1%} off with {check.steps} steps"
    )
    warning = f"warning: more than {check.MOST:.0%} off: the points are too few; use --steps {4 * check.steps} or more"
    return [line, warning] if check.wide else [line]


def strongest_edges(discovery: Discovery, count: int = 10) -> list[dict[str, Any]]:
    """The edges of the circuit with the largest |score|; empty without scores."""
    if discovery.scores is None:
        return []
    edges = sorted(discovery.record["edges"], key=lambda item: (-abs(item["score"]), item["edge"]))
    return edges[:count]


def faithfulness_table(report: FaithfulnessReport) -> Table:
    """A row each for a circuit and its controls."""
    rows = [_row("circuit", report.circuit), _row("complement", report.complement)]
    if report.complement_with_reads is not None:
        rows.append(_row("and layer 0's reads", report.complement_with_reads))
    if report.everywhere is not None:
        rows.append(_row("the same edges at all parts", report.everywhere))
    if report.without_edge is not None:
        rows.append(_row(f"all but {report.edge}", report.without_edge))
    if report.random_mean is not None:
        spread = "" if report.random_sd is None else f"sd {report.random_sd:.3f}"
        name = f"random, {'matched' if report.matching else 'other heads'} ({len(report.random)})"
        rows.append((name, f"{report.circuit.n_edges:,}", "", f"{report.random_mean:.3f}", spread, "", ""))
    title = f"faithfulness on {report.n_pairs} pairs ({report.split}), m = {report.metric}: full "
    title += f"{signed(report.m_full)}, empty {signed(report.m_empty)}"
    title += "" if report.n_reversed is None else f"; {report.n_reversed} reversed"
    columns = ("", "edges", "m", "faithfulness", "95 % interval", "mean of ratios", "median of ratios")
    note = f"faithfulness is a ratio of means; intervals over {report.resampled}"
    return Table(title, columns, rows, 1, [note, *filter(None, (report.caution, report.reversal))])


def size_table(least: Smallest) -> Table:
    """A row per size that was tried, from the smallest on."""
    columns = (
        Column("first edges", "n", ","),
        Column("without dead ends", "n_edges", ","),
        Column("f", "faithfulness", ".3f"),
    )
    return Table("nested circuits by |score|, on the pairs searched on", columns, least.tried, 0)


PATHS = (
    Column("path", "name"),
    Column("weakest edge", "weakest", ".4f"),
    Column("share of D", "share", "z.3f", "undefined"),
    Column("95 % interval", "interval", to(3)),
    Column("other heads", "random", "z.3f"),
)
"""The last column is the same path through others of the same layers' heads."""


def path_table(shares: PathShares) -> Table:
    """A row per path, and one of all together where there are several."""
    n = len(shares.paths)
    together = {
        "name": f"these {n} together",
        "share": shares.together,
        "weakest": None,
        "interval": None,
        "random": None,
    }
    title = f"strongest paths from input to logits, each kept alone, on {shares.n_pairs} pairs ({shares.split})"
    notes = [
        "share of D: (m(path) - m(empty)) / (m(full) - m(empty)), a ratio of means; shares do not add up",
        f"intervals over {shares.drawn_over}; other heads: the same path through others of the same layers",
    ]
    return Table(title, PATHS, shares.paths if n < 2 else [*shares.paths, together], 1, notes)


def set_table(node_sets: NodeSets) -> Table:
    """A row per set: its part of the circuit, what the whole model loses without it, what it does alone."""
    title = (
        f"named sets of nodes on {node_sets.n_pairs} pairs ({node_sets.split}): what leaves them cut, and they alone"
    )
    notes = [
        "edges: the circuit's that leave the set; lost without, alone: shares of D in the whole model, ratios of means",
        f"intervals over {node_sets.drawn_over}; random: as many heads of each layer, MLPs of any",
    ]
    return Table(title, SETS, node_sets.sets, 1, notes)


def neuron_tables(opened: OpenedMlps) -> list[Table]:
    """Which neurons of the opened MLPs are kept, and what the circuit is worth with sets of them."""
    tables = []
    for measured in opened.measured:
        title = (
            f"the circuit with neurons of {', '.join(opened.n_neurons)} on {measured.n_pairs} pairs ({measured.split})"
        )
        notes = [
            "of what they carry: (m - m(none)) / (m(all) - m(none)), a ratio of means; what is not kept is ablated",
            f"intervals over {measured.drawn_over}; random: as many of each MLP, drawn from those with a score",
        ]
        tables.append(Table(title, NEURON_SETS, measured.rows, 1, notes))
    return [*tables, _neuron_table(opened)]


def _neuron_table(opened: OpenedMlps) -> Table:
    """A row per kept neuron, the strongest ones."""
    left = "" if len(opened.kept) <= MOST_NEURONS else f", the {MOST_NEURONS} strongest"
    title = f"neurons that keep {opened.asked:g} of what their MLPs carry: {len(opened.kept):,}{left}"
    sums = [
        f"{name}: {sum(neuron.name.startswith(f'{name}.') for neuron in opened.kept):,} of {n:,} neurons, with "
        f"{signed(opened.kept_scores[name])} of the MLP's score of {signed(opened.scores[name])} ({opened.method})"
        for name, n in opened.n_neurons.items()
    ]
    return Table(title, NEURONS, opened.kept[:MOST_NEURONS], 1, [*sums, *opened.notes])


def head_tables(heads: OpenedHeads) -> list[Table]:
    """What the parts of heads carry in the circuit, and why the heads attend where they do."""
    where = f"on {heads.n_pairs} pairs ({heads.split})"
    lost = (
        "lost without: share of D that the circuit loses, a ratio of means; the head then attends, or moves, as ablated"
    )
    inside = {part.head for part in heads.parts if part.n_edges}
    outside = dict.fromkeys(part.head for part in heads.parts if part.head not in inside)
    about = [lost, f"intervals over {heads.drawn_over}", *(f"{head} is not in the circuit" for head in outside)]
    parts = Table(f"parts of heads {where}", HEAD_PARTS, heads.parts, 2, about)
    notes = [
        "score: q.k of the part's tokens minus the mean over all, A minus B: the sum over what writes the query, and",
        "over what writes the keys, of which the largest is named; norms are frozen; intervals as above",
    ]
    title = f"why heads attend at the answer, on {heads.n_attended} pairs"
    return [parts, Table(title, ATTENDED, heads.attended, 2, notes)]


HEAD_PARTS = (
    Column("head", "head"),
    Column("part", "part"),
    Column("edges into it", "n_edges", ","),
    Column("their scores", "score", "+.4f"),
    Column("lost without", "lost.value", "z.3f", "undefined"),
    Column("95 % interval", "lost.interval", to(3)),
)
ATTENDED = (
    Column("head", "head"),
    Column("part of the prompt", "span"),
    Column("attention, A", "attention_a", ".1%"),
    Column("B", "attention_b", ".1%"),
    Column("score, A - B", "score", "+.3f"),
    Column("95 % interval", "interval", to(2)),
    Column("by the query", "query", lambda terms: _first(_largest(terms))),
    Column("by the keys", "key", lambda terms: _first(_largest(terms))),
)


def _largest(terms: Mapping[str, float]) -> dict[str, float]:
    return dict(sorted(terms.items(), key=lambda item: -abs(item[1])))


def _first(scores: Mapping[str, float]) -> str:
    """The first edge; they are in the order of |score|."""
    return next((f"{name} {signed(score)}" for name, score in scores.items()), "")


def _words(tokens: Sequence[str]) -> str:
    return " ".join(visible(token).strip() for token in tokens[:3])


MOST_NEURONS = 12
NEURON_SETS = (
    Column("neurons", "name"),
    Column("number", "n_neurons", ","),
    Column("m", "m", signed),
    Column("faithfulness", "f", "z.3f", "undefined"),
    Column("95 % interval", "interval", to(3)),
    Column("of what they carry", "carried.value", "z.3f", "undefined"),
    Column("95 % interval", "carried.interval", to(3)),
    Column("random", lambda one: _random(one.carried) if one.carried.random else None),
    Column("p", "carried.p", ".2g"),
)
NEURONS = (
    Column("neuron", "name"),
    Column("score", "score", "+.4f"),
    Column("most from", "sources", _first),
    Column("most to", "destinations", _first),
    Column("promotes", "promotes", _words),
    Column("demotes", "demotes", _words),
)


def _random(share: Share) -> str:
    """The mean of random sets with their largest."""
    drawn = share.random
    return f"{sum(drawn) / len(drawn):z.3f}, most {max(drawn):z.3f}" if drawn else "no other set"


SETS = (
    Column("set", "name"),
    Column("nodes", lambda one: len(one.nodes)),
    Column("edges", "n_edges", ","),
    Column("of all", "of_edges", ".1%", "-"),
    Column("of the circuit's f", "of_circuit", "z.3f", "undefined"),
    Column("lost without", "lost.value", "z.3f", "undefined"),
    Column("95 % interval", "lost.interval", to(3)),
    Column("random", lambda one: _random(one.lost)),
    Column("p", "lost.p", ".2g", "-"),
    Column("alone", "alone.value", "z.3f", "undefined"),
    Column("95 % interval", "alone.interval", to(3)),
    Column("random", lambda one: _random(one.alone)),
)


def _row(name: str, value: Faithfulness) -> tuple[str, ...]:
    return (
        name,
        f"{value.n_edges:,}",
        signed(value.m),
        _number(value.ratio_of_means),
        "" if value.interval is None else to(3)(value.interval),
        _number(value.mean_of_ratios),
        _number(value.median_of_ratios),
    )


def _number(value: float | None) -> str:
    return "undefined" if value is None else f"{value:z.3f}"  # the sign of a zero is rounding's
