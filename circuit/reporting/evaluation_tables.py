"""What a circuit was put to, as rows of tables, for people and for CSV."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from persona_circuits.circuit.assessment import Battery
from persona_circuits.circuit.evaluation import Averages, PairRow, PairsView, Transfer
from persona_circuits.circuit.evaluation.stability import StabilityReport
from persona_circuits.circuit.statistics import Interval

__all__ = [
    "evaluated_over",
    "evaluation_rows",
    "tables",
]

Rows = list[tuple[str, ...]]
STABILITY = ("drawn", "repeats", "mean Jaccard", "5 % to 95 %", "with the circuit", "edges, least to most")
AVERAGES = ("pairs", "", "m(full) - m(empty)", "ratio of means", "mean of ratios", "median of ratios")
QUANTILES = ("f of single pairs", "least", "5 %", "25 %", "median", "75 %", "95 %", "most")
WORST = ("pair", "personas", "question", "D", "f", "group")
GROUPS = (
    "group",
    "questions",
    "pairs",
    "faithfulness",
    "95 % interval",
    "median of ratios",
    "edges of its own",
    "Jaccard with the circuit",
)
TRANSFER = ("holds", "pairs", "faithfulness", "95 % interval", "median of ratios", "best outside")
EVALUATIONS = ("pairs", "split", "model", "holds", "n", *TRANSFER[2:])
ANSWERS = {True: "yes", False: "no", None: "undefined"}


def stability_rows(report: StabilityReport) -> Rows:
    """A line per way of resampling, and one for ACDC's orders."""
    found: Rows = [
        (
            one.by,
            str(one.n_resamples),
            _number(one.jaccard),
            "" if one.low is None or one.high is None else f"{one.low:.3f} to {one.high:.3f}",
            _number(one.to_circuit),
            f"{one.sizes[0]:,}, {one.sizes[1]:,g}, {one.sizes[2]:,}",
        )
        for one in report.resamplings
    ]
    if (order := report.order) is not None:
        sizes = sorted(order.sizes)
        middle = sizes[len(sizes) // 2]
        edges = f"{sizes[0]:,}, {middle:,}, {sizes[-1]:,}"
        runs = str(order.n_orders + 1)
        found.append(("orders of ACDC", runs, _number(order.jaccard), "", _number(order.to_circuit), edges))
    return found


def average_rows(view: PairsView) -> Rows:
    """Both orders of averaging, over all pairs, over those with a signal, and over flat ones."""
    named = (("all", view.every), ("signal", view.signal), ("flat", view.flat))
    return [_averages(name, part) for name, part in named if part.n_pairs or name == "all"]


def quantile_rows(view: PairsView) -> Rows:
    """One line, of the pairs that are not flat; none where all are."""
    if view.quantiles is None:
        return []
    return [("not flat", *(f"{value:+.2f}" for value in view.quantiles.values()))]


def worst_rows(view: PairsView, *, count: int = 5) -> Rows:
    """The pairs furthest from f = 1, by name."""
    return [_worst(row) for row in view.worst[:count]]


def group_rows(view: PairsView) -> Rows:
    """A line per group of pairs, where there are several."""
    if len(view.groups) < 2:
        return []
    return [
        (
            str(place),
            ", ".join(f"{name} ({n})" for name, n in group.questions[:3]),
            str(group.averages.n_pairs),
            _number(group.averages.ratio_of_means),
            _interval(group.interval),
            _number(group.averages.median_of_ratios),
            "" if group.own_edges is None else f"{group.own_edges:,}",
            _number(group.own_jaccard, missing=""),
        )
        for place, group in enumerate(view.groups)
    ]


def transfer_rows(parts: tuple[Transfer, ...]) -> Rows:
    """A line per set of pairs: its name, and the columns of ``TRANSFER``."""
    return [
        (
            part.name,
            ANSWERS[part.holds],
            str(part.n_pairs),
            _number(part.faithfulness),
            _interval(part.interval),
            _number(part.median_of_ratios),
            f"{max(part.outside):+.3f}" if part.outside else "none",
        )
        for part in parts
    ]


def evaluation_rows(record: Mapping[str, Any]) -> Rows:
    """What the circuit's file says of every set of pairs and model that it was evaluated on: the transfer table."""
    return [_evaluation(one) for one in record.get("evaluations", [])]


def evaluated_over(record: Mapping[str, Any]) -> str:
    """What the intervals of ``evaluation_rows`` are drawn over, each way once."""
    found = (one["faithfulness"]["circuit"]["interval"] for one in record.get("evaluations", []))
    return ", or ".join(dict.fromkeys(one.get("by", "pairs") for one in found if one)) or "nothing: there is none"


def tables(results: Battery) -> dict[str, list[dict[str, Any]]]:
    """Every table in full, by name, for CSV."""
    report, tests, complete = results.searched.report, results.tests, results.completeness
    found = {
        "tests": [] if tests is None else tests.rows(),
        "minimality": [] if tests is None else tests.edge_rows(),
        "completeness": [] if complete is None else complete.rows(),
        "knockouts": [] if complete is None else complete.knockout_rows(),
        "backup": [] if complete is None else complete.backup_rows(),
        "pairs": [] if results.pairs is None else [_plain(row) for row in results.pairs.rows],
        "transfer": [_transfer_record(key, part) for key, parts in results.transfer.items() for part in parts],
        "edges": [] if report is None else report.rows(),
    }
    return {name: rows for name, rows in found.items() if rows}


def _averages(name: str, part: Averages) -> tuple[str, ...]:
    effect = "undefined" if part.effect is None else f"{part.effect:+.3f}"
    ratios = (part.ratio_of_means, part.mean_of_ratios, part.median_of_ratios)
    return name, str(part.n_pairs), effect, *map(_number, ratios)


def _worst(row: PairRow) -> tuple[str, ...]:
    personas = f"{row.persona_a}, {row.persona_b}" if row.persona_a or row.persona_b else ""
    d = "" if row.divergence is None else f"{row.divergence:+.2f}"
    f = "undefined" if row.faithfulness is None else f"{row.faithfulness:+.2f}"
    return row.id, personas, row.question, d, f, "" if row.group is None else str(row.group)


def _evaluation(one: Mapping[str, Any]) -> tuple[str, ...]:
    circuit = one["faithfulness"]["circuit"]
    everything = (one.get("transfer") or {}).get("pairs")
    outside, holds = "not run", "not tested"
    if everything:
        outside = f"{max(everything[0]['outside']):+.3f}" if everything[0]["outside"] else "none"
        holds = ANSWERS[everything[0]["holds"]]
    bounds = circuit["interval"]
    where = ", ".join(f"{key}={value}" for key, value in one.get("where", {}).items())
    return (
        f"{one['source']}{f' ({where})' if where else ''}",
        one["split"],
        str(one.get("model", "")),
        holds,
        str(one["faithfulness"]["n_pairs"]),
        _number(circuit["ratio_of_means"]),
        "" if bounds is None else f"{bounds['low']:.2f} to {bounds['high']:.2f}",
        _number(circuit.get("median_of_ratios"), missing=""),
        outside,
    )


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


def _interval(interval: Interval | None) -> str:
    return "" if interval is None else f"{interval.low:.2f} to {interval.high:.2f}"


def _number(value: float | None, *, missing: str = "undefined") -> str:
    return missing if value is None else f"{value:.3f}"
