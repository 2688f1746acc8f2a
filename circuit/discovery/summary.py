"""Plain summaries of results, for people's tables and for machines."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from persona_circuits.circuit.attribution import Completeness
from persona_circuits.circuit.evaluation import Faithfulness, FaithfulnessReport, NodeSets, PathShares, Share
from persona_circuits.circuit.printable import signed

if TYPE_CHECKING:
    from persona_circuits.circuit.discovery.search import Discovery

__all__ = [
    "PATHS",
    "SETS",
    "completeness_lines",
    "faithfulness_rows",
    "path_rows",
    "set_rows",
    "strongest_edges",
    "summary",
]


def summary(discovery: Discovery) -> dict[str, Any]:
    """What ``discover --json`` prints and ``summary.json`` holds."""
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
    found: dict[str, Any] = {"null": discovery.null.as_dict()} if discovery.null else {}
    if discovery.at_parts is not None:
        found["spans"] = discovery.record["spans"]
    if discovery.smallest is not None:
        found["target"] = {**discovery.smallest.as_dict(), "confirmed": discovery.confirmed}
    if discovery.completeness is not None:
        found["completeness"] = discovery.completeness.as_dict()
    if discovery.certificate is not None:
        found["certificate"] = discovery.certificate.as_dict()
    if discovery.sets is not None:
        found["node_sets"] = discovery.sets.as_dict()
    if discovery.missed is not None:
        found["missed"] = discovery.missed.as_dict()
    if discovery.finished is not None:
        found["finish"] = discovery.finished.as_dict()
    return found | ({"sweep": discovery.sweep.as_dict()} if discovery.sweep else {})


def completeness_lines(found: Completeness) -> list[str]:
    """What EAP-IG's scores sum to, and a warning where that is more than 5 % off."""
    if found.gap is None:
        return [f"EAP-IG      edges that leave input sum to {signed(found.attributed)}; unchecked: {found.reason}"]
    line = (
        f"EAP-IG      edges that leave input sum to {signed(found.attributed)} of {found.effect:+.3f}: "
        f"{found.gap:.1%} off with {found.steps} steps"
    )
    warning = f"warning: more than {found.MOST:.0%} off: the points are too few; use --steps {4 * found.steps} or more"
    return [line, warning] if found.wide else [line]


def strongest_edges(discovery: Discovery, count: int = 10) -> list[dict[str, Any]]:
    """The edges of the circuit with the largest |score|; empty without scores."""
    if discovery.scores is None:
        return []
    edges = sorted(discovery.record["edges"], key=lambda item: (-abs(item["score"]), item["edge"]))
    return edges[:count]


def faithfulness_rows(report: FaithfulnessReport) -> list[tuple[str, ...]]:
    """A line each for a circuit and its controls: name, edges, m, f, interval, mean and median of ratios."""
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
    return rows


PATHS = ("path", "weakest edge", "share of D", "95 % interval", "other heads")


def path_rows(found: PathShares) -> list[tuple[str, ...]]:
    """A line per path: its weakest edge, its share of D alone with interval, and that of a path through other heads.

    The last line is all of them together.
    """
    rows: list[tuple[str, ...]] = [
        (
            path.name,
            f"{path.weakest:.4f}",
            _number(path.share),
            "" if path.interval is None else f"{path.interval.low:.3f} to {path.interval.high:.3f}",
            "" if path.random is None else f"{path.random:z.3f}",
        )
        for path in found.paths
    ]
    return rows if len(rows) < 2 else [*rows, (f"these {len(rows)} together", "", _number(found.together), "", "")]


SETS = (
    "set", "nodes", "edges", "of all", "of the circuit's f", "lost without", "95 % interval", "random", "p", "alone",
    "95 % interval", "random",
)  # fmt: skip


def set_rows(found: NodeSets) -> list[tuple[str, ...]]:
    """A line per set: its part of the circuit, what the whole model loses without it, what it does alone."""
    return [
        (
            one.name,
            str(len(one.nodes)),
            f"{one.n_edges:,}",
            "-" if one.of_edges is None else f"{one.of_edges:.1%}",
            _number(one.of_circuit),
            *_shared(one.lost),
            "-" if one.lost.p is None else f"{one.lost.p:.2g}",
            *_shared(one.alone),
        )
        for one in found.sets
    ]


def _shared(share: Share) -> tuple[str, str, str]:
    """Value, interval, and the mean of random sets with their largest."""
    random = share.random and f"{sum(share.random) / len(share.random):z.3f}, most {max(share.random):z.3f}"
    interval = "" if share.interval is None else f"{share.interval.low:z.3f} to {share.interval.high:z.3f}"
    return _number(share.value), interval, random or "no other set"


def _row(name: str, value: Faithfulness) -> tuple[str, ...]:
    interval = "" if value.interval is None else f"{value.interval.low:.3f} to {value.interval.high:.3f}"
    return (
        name,
        f"{value.n_edges:,}",
        signed(value.m),
        _number(value.ratio_of_means),
        interval,
        _number(value.mean_of_ratios),
        _number(value.median_of_ratios),
    )


def _number(value: float | None) -> str:
    return "undefined" if value is None else f"{value:z.3f}"  # the sign of a zero is rounding's
