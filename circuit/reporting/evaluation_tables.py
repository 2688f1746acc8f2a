"""The tests of a circuit as tables for people and rows for CSV."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

from persona_circuits.circuit.assessment import CircuitTests
from persona_circuits.circuit.evaluation import PairRow, PairsView, Transfer
from persona_circuits.circuit.evaluation.stability import StabilityReport
from persona_circuits.circuit.statistics import Interval
from persona_circuits.circuit.table import Column, Table, to

__all__ = ["evaluations_table", "pair_tables", "stability_table", "tables", "transfer_table"]

ANSWERS = {True: "yes", False: "no", None: "undefined"}
STABILITY = (
    Column("drawn", "by"),
    Column("repeats", "n"),
    Column("mean Jaccard", "jaccard", ".3f", "undefined"),
    Column("5 % to 95 %", "ends", lambda ends: f"{ends[0]:.3f} to {ends[1]:.3f}"),
    Column("with the circuit", "to_circuit", ".3f", "undefined"),
    Column("edges, least to most", "sizes"),
)
AVERAGES = (
    Column("pairs", 0),
    Column("", lambda row: row[1].n_pairs),
    Column("m(full) - m(empty)", lambda row: row[1].effect, "+.3f", "undefined"),
    Column("ratio of means", lambda row: row[1].ratio_of_means, ".3f", "undefined"),
    Column("mean of ratios", lambda row: row[1].mean_of_ratios, ".3f", "undefined"),
    Column("median of ratios", lambda row: row[1].median_of_ratios, ".3f", "undefined"),
)
QUANTILES = ("f of single pairs", "least", "5 %", "25 %", "median", "75 %", "95 %", "most")
WORST = (
    Column("pair", "id"),
    Column("personas", lambda row: f"{row.persona_a}, {row.persona_b}" if row.persona_a or row.persona_b else ""),
    Column("question", "question"),
    Column("D", "divergence", "+.2f"),
    Column("f", "faithfulness", "+.2f", "undefined"),
    Column("group", "group"),
)
GROUPS = (
    Column("group", 0),
    Column("questions", lambda row: ", ".join(f"{name} ({n})" for name, n in row[1].questions[:3])),
    Column("pairs", lambda row: row[1].averages.n_pairs),
    Column("faithfulness", lambda row: row[1].averages.ratio_of_means, ".3f", "undefined"),
    Column("95 % interval", lambda row: row[1].interval, to()),
    Column("median of ratios", lambda row: row[1].averages.median_of_ratios, ".3f", "undefined"),
    Column("edges of its own", lambda row: row[1].own_edges, ","),
    Column("Jaccard with the circuit", lambda row: row[1].own_jaccard, ".3f"),
)
TRANSFER = (
    Column("holds", lambda part: ANSWERS[part.holds]),
    Column("pairs", "n_pairs"),
    Column("faithfulness", "faithfulness", ".3f", "undefined"),
    Column("95 % interval", "interval", to()),
    Column("median of ratios", "median_of_ratios", ".3f", "undefined"),
    Column("best outside", lambda part: max(part.outside, default=None), "+.3f", "none"),
)
EVALUATIONS = (
    Column("pairs", lambda one: f"{one['source']}{_where(one)}"),
    Column("split", "split"),
    Column("model", lambda one: str(one.get("model", ""))),
    Column("holds", lambda one: ANSWERS[held["holds"]] if (held := _transferred(one)) else "not tested"),
    Column("n", "faithfulness.n_pairs"),
    Column("faithfulness", "faithfulness.circuit.ratio_of_means", ".3f", "undefined"),
    Column("95 % interval", "faithfulness.circuit.interval", lambda ends: f"{ends['low']:.2f} to {ends['high']:.2f}"),
    Column("median of ratios", lambda one: one["faithfulness"]["circuit"].get("median_of_ratios"), ".3f"),
    Column("best outside", lambda one: _outside(_transferred(one))),
)


def stability_table(report: StabilityReport) -> Table:
    """A row per way of resampling, and one for ACDC's orders."""
    rows: list[dict[str, Any]] = [
        {
            "by": resampling.by,
            "n": resampling.n_resamples,
            "jaccard": resampling.jaccard,
            "ends": None if resampling.low is None or resampling.high is None else (resampling.low, resampling.high),
            "to_circuit": resampling.to_circuit,
            "sizes": f"{resampling.sizes[0]:,}, {resampling.sizes[1]:,g}, {resampling.sizes[2]:,}",
        }
        for resampling in report.resamplings
    ]
    if (order := report.order) is not None:
        sizes = sorted(order.sizes)
        edges = f"{sizes[0]:,}, {sizes[len(sizes) // 2]:,}, {sizes[-1]:,}"
        named = {"by": "orders of ACDC", "n": order.n_orders + 1, "ends": None, "sizes": edges}
        rows.append({**named, "jaccard": order.jaccard, "to_circuit": order.to_circuit})
    title = f"stability: {report.rule}, {report.n_pairs} pairs searched on"
    return Table(title, STABILITY, rows, 1, [report.sentence, *(f"note: {note}" for note in report.notes)])


def pair_tables(view: PairsView) -> Iterator[Table]:
    """Both orders of averaging, over all pairs, those with a signal, flat ones; then quantiles, the worst, groups."""
    named = (("all", view.every), ("signal", view.signal), ("flat", view.flat))
    averages = [row for row in named if row[1].n_pairs or row[0] == "all"]
    tables = [Table(f"pair by pair; flat: |D| within {view.null:.3g} ({view.null_source})", AVERAGES, averages)]
    if view.quantiles is not None:
        row = ("not flat", *(f"{value:+.2f}" for value in view.quantiles.values()))
        tables.append(Table("distribution", QUANTILES, [row]))
    if view.worst:
        tables.append(Table("worst pairs", WORST, view.worst[:5], 3))
    notes = [f"note: {note}" for note in view.notes]
    if len(view.groups) > 1:
        over = drawn(group.interval for group in view.groups)
        tables.append(Table("groups of pairs", GROUPS, list(enumerate(view.groups)), 2, [over]))
    *first, last = tables
    yield from first
    yield replace(last, notes=[*last.notes, *notes])


def drawn(intervals: Iterable[Interval | None]) -> str:
    """What intervals were drawn over, each way once."""
    by = (
        ", or ".join(dict.fromkeys(interval.by for interval in intervals if interval is not None))
        or "nothing: there is none"
    )
    return f"faithfulness is a ratio of means; intervals over {by}"


def transfer_table(key: str, parts: tuple[Transfer, ...]) -> Table:
    """A row per set of pairs: those of every value of ``key``, or of the circuit's own ``pairs``."""
    named = Column("on" if key == "pairs" else key, "name")
    title = "transfer: all of these pairs" if key == "pairs" else f"transfer by {key}"
    return Table(title, (named, *TRANSFER), parts, 2, [drawn(part.interval for part in parts)])


def evaluations_table(record: Mapping[str, Any]) -> Table:
    """What the circuit's file says of every set of pairs and model that it was evaluated on."""
    rows = record.get("evaluations", [])
    ends = (entry["faithfulness"]["circuit"]["interval"] for entry in rows)
    by = ", or ".join(dict.fromkeys(entry.get("by", "pairs") for entry in ends if entry)) or "nothing: there is none"
    note = f"faithfulness is a ratio of means; intervals over {by}"
    return Table("all evaluations in the circuit's file", EVALUATIONS, rows, 4, [note])


def _where(entry: Mapping[str, Any]) -> str:
    where = ", ".join(f"{key}={value}" for key, value in entry.get("where", {}).items())
    return f" ({where})" if where else ""


def _transferred(entry: Mapping[str, Any]) -> Any:
    rows = (entry.get("transfer") or {}).get("pairs")
    return rows[0] if rows else None


def _outside(transfer: Any) -> str:
    if transfer is None:
        return "not run"
    return f"{max(transfer['outside']):+.3f}" if transfer["outside"] else "none"


def tables(results: CircuitTests) -> dict[str, list[dict[str, Any]]]:
    """Every table in full, by name, for CSV."""
    report, tests, complete = results.searched.report, results.tests, results.completeness
    tables = {
        "tests": [] if tests is None else tests.rows(),
        "minimality": [] if tests is None else tests.edge_rows(),
        "completeness": [] if complete is None else complete.rows(),
        "knockouts": [] if complete is None else complete.knockout_rows(),
        "backup": [] if complete is None else complete.backup_rows(),
        "pairs": [] if results.pairs is None else [_plain(row) for row in results.pairs.rows],
        "transfer": [_transfer_record(key, part) for key, parts in results.transfer.items() for part in parts],
        "edges": [] if report is None else report.rows(),
    }
    return {name: rows for name, rows in tables.items() if rows}


def _plain(row: PairRow) -> dict[str, Any]:
    names = ("id", "persona_a", "persona_b", "question", "divergence", "effect", "faithfulness", "flat", "group")
    return {name: getattr(row, name) for name in names}


def _transfer_record(key: str, part: Transfer) -> dict[str, Any]:
    bounds = part.interval
    low, high, over = (None, None, None) if bounds is None else (bounds.low, bounds.high, bounds.by)
    best = max(part.outside, default=None)
    values = {"key": key, "value": part.name, "n_pairs": part.n_pairs, "effect": part.effect}
    values |= {"faithfulness": part.faithfulness, "low": low, "high": high, "over": over}
    values |= {"median_of_ratios": part.median_of_ratios, "best_outside": best}
    return values | {"n_outside": len(part.outside), "n_outside_edges": part.n_outside_edges, "holds": part.holds}
