"""A comparison of two circuits as rows of tables, for people."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from persona_circuits.circuit.assessment.comparison import Comparison, Null, Overlap

__all__ = [
    "drawn_over",
    "edge_rows",
    "overlap_rows",
    "setting_rows",
]

Rows = list[tuple[str, ...]]
SETTINGS = ("found with other settings", "A", "B")
OVERLAP = ("", "A", "B", "shared", "Jaccard", "at most", "random circuits", "p", "heads exchanged", "p")
CORRELATIONS = ("scores (Spearman)", "edges", "rho", "heads exchanged", "p", "rho of |score|", "heads exchanged", "p")
SIGNS = ("edges of", "scored", "A - B +", "A + B -", "opposite", "by chance", "p of more", "p of fewer")
EDGES = ("edge", "in", "score A", "score B")
CROSS = ("circuit", "on the pairs of", "edges", "faithfulness", "95 % interval", "median of ratios", "random circuits")


def setting_rows(comparison: Comparison) -> Rows:
    """What was set differently: key, A's value, B's value."""
    return [(item.key, _plain(item.a), _plain(item.b)) for item in comparison.settings]


def overlap_rows(comparison: Comparison) -> Rows:
    """Of edges and of nodes; chance as the mean number shared and its standard deviation."""
    return [_overlap("edges", comparison.edges), _overlap("nodes", comparison.nodes)]


def correlation_rows(comparison: Comparison) -> Rows:
    """Over all edges and over those of either circuit."""
    return [
        (
            {"all": "all edges", "union": "of either circuit"}[item.over],
            f"{item.n:,}",
            _signed(item.signed),
            *_chance(item.null_signed, 3),
            _signed(item.absolute),
            *_chance(item.null_absolute, 3),
        )
        for item in comparison.correlations
    ]


def sign_rows(comparison: Comparison) -> Rows:
    """Over the edges of both circuits and over those of either."""
    return [
        (
            {"shared": "both circuits", "union": "either circuit"}[item.over],
            f"{item.n:,}",
            f"{item.minus_plus:,}",
            f"{item.plus_minus:,}",
            f"{item.opposite:,}",
            _number(item.expected, 1),
            _number(item.p_more, 3),
            _number(item.p_fewer, 3),
        )
        for item in comparison.signs
    ]


def edge_rows(comparison: Comparison, *, opposite: bool, count: int = 8) -> Rows:
    """The strongest edges of either circuit whose scores have opposite signs, or that both circuits share.

    Strongest by the smaller of the two |score|, each as a share of that side's largest.
    """
    known = _scored_rows(comparison)
    if opposite:
        chosen = [row for row in known if row["score_a"] * row["score_b"] < 0]
    else:
        chosen = [row for row in known if row["group"] in ("shared", "opposite")]
    largest = [max((abs(row[key]) for row in known), default=0.0) or 1.0 for key in ("score_a", "score_b")]

    def strength(row: dict[str, Any]) -> float:
        return min(abs(row["score_a"]) / largest[0], abs(row["score_b"]) / largest[1])

    names = {"shared": "both", "opposite": "both", "only_a": "A", "only_b": "B"}
    return [
        (row["edge"], names[row["group"]], f"{row['score_a']:+.4f}", f"{row['score_b']:+.4f}")
        for row in sorted(chosen, key=lambda row: (-strength(row), row["edge"]))[:count]
    ]


def own_rows(comparison: Comparison, side: str, *, count: int = 8) -> Rows:
    """The strongest edges of ``A`` or ``B`` that the other circuit does not have, by that side's own |score|."""
    group, key = {"A": ("only_a", "score_a"), "B": ("only_b", "score_b")}[side]
    chosen = [row for row in comparison.edge_rows() if row["group"] == group and row[key] is not None]
    return [
        (row["edge"], side, *(_score(row[name]) for name in ("score_a", "score_b")))
        for row in sorted(chosen, key=lambda row: (-abs(row[key]), row["edge"]))[:count]
    ]


def _scored_rows(comparison: Comparison) -> list[dict[str, Any]]:
    return [row for row in comparison.edge_rows() if row["score_a"] is not None and row["score_b"] is not None]


def _score(value: float | None) -> str:
    return "unknown" if value is None else f"{value:+.4f}"


def cross_rows(comparison: Comparison) -> Rows:
    """Each circuit on the pairs of each side."""
    return [_cross(cell.circuit, cell.pairs, cell.report) for cell in comparison.cross]


def drawn_over(comparison: Comparison) -> str:
    """What the intervals of ``cross_rows`` are drawn over, by the pairs, for people."""
    known = dict.fromkeys((cell.pairs, cell.report.resampled) for cell in comparison.cross)
    return "; ".join(f"on {pairs} {over}" for pairs, over in known)


def _cross(circuit: str, pairs: str, report: Any) -> tuple[str, ...]:
    found = report.circuit
    interval = "" if found.interval is None else f"{found.interval.low:.3f} to {found.interval.high:.3f}"
    where = f"{pairs} ({report.n_pairs}, {report.split})"
    ratio = _number(found.ratio_of_means, 3) or "undefined"
    median = _number(found.median_of_ratios, 3) or "undefined"
    return circuit, where, f"{found.n_edges:,}", ratio, interval, median, _number(report.random_mean, 3)


def _overlap(name: str, item: Overlap) -> tuple[str, ...]:
    sizes: Sequence[str] = (f"{item.a:,}", f"{item.b:,}", f"{item.shared:,}")
    jaccard = (_number(item.jaccard, 3) or "undefined", _number(item.possible, 3))
    return name, *sizes, *jaccard, *_chance(item.random, 1), *_chance(item.exchanged, 1)


def _chance(null: Null | None, digits: int) -> tuple[str, str]:
    if null is None:
        return "", ""
    return f"{null.mean:.{digits}f} (sd {null.sd:.{digits}f})", f"{null.p:.3f}"


def _number(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def _signed(value: float | None) -> str:
    return "undefined" if value is None else f"{value:+.3f}"


def _plain(value: Any) -> str:
    text = "none" if value is None else str(value)
    return text if len(text) <= 24 else f"{text[:23]}…"
