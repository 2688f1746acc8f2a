"""A comparison of two circuits as tables."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from persona_circuits.circuit.assessment.comparison import Comparison, Null
from persona_circuits.circuit.table import Column, Table, to

__all__ = ["comparison_tables"]


def _by_chance(label: str, null: Callable[[Any], Null | None], places: int) -> tuple[Column, Column]:
    """The mean of a null with its standard deviation, and p."""
    spread = Column(label, null, lambda cell: f"{cell.mean:.{places}f} (sd {cell.sd:.{places}f})")
    return spread, Column("p", null, lambda cell: f"{cell.p:.3f}")


SETTINGS = (
    Column("found with other settings", "key"),
    Column("A", lambda item: _plain(item.a)),
    Column("B", lambda item: _plain(item.b)),
)
OVERLAP = (
    Column("", 0),
    Column("A", lambda row: row[1].a, ","),
    Column("B", lambda row: row[1].b, ","),
    Column("shared", lambda row: row[1].shared, ","),
    Column("Jaccard", lambda row: row[1].jaccard, ".3f", "undefined"),
    Column("at most", lambda row: row[1].possible, ".3f"),
    *_by_chance("random circuits", lambda row: row[1].random, 1),
    *_by_chance("heads exchanged", lambda row: row[1].exchanged, 1),
)
CORRELATIONS = (
    Column("scores (Spearman)", lambda item: {"all": "all edges", "union": "of either circuit"}[item.over]),
    Column("edges", "n", ","),
    Column("rho", "signed", "+.3f", "undefined"),
    *_by_chance("heads exchanged", lambda item: item.null_signed, 3),
    Column("rho of |score|", "absolute", "+.3f", "undefined"),
    *_by_chance("heads exchanged", lambda item: item.null_absolute, 3),
)
SIGNS = (
    Column("edges of", lambda item: {"shared": "both circuits", "union": "either circuit"}[item.over]),
    Column("scored", "n", ","),
    Column("A - B +", "minus_plus", ","),
    Column("A + B -", "plus_minus", ","),
    Column("opposite", "opposite", ","),
    Column("by chance", "expected", ".1f"),
    Column("p of more", "p_more", ".3f"),
    Column("p of fewer", "p_fewer", ".3f"),
)
EDGES = (
    Column("edge", "edge"),
    Column("in", lambda row: {"only_a": "A", "only_b": "B"}.get(row["group"], "both")),
    Column("score A", "score_a", "+.4f", "unknown"),
    Column("score B", "score_b", "+.4f", "unknown"),
)
CROSS = (
    Column("circuit", "circuit"),
    Column("on the pairs of", lambda cell: f"{cell.pairs} ({cell.report.n_pairs}, {cell.report.split})"),
    Column("edges", "report.circuit.n_edges", ","),
    Column("faithfulness", "report.circuit.ratio_of_means", ".3f", "undefined"),
    Column("95 % interval", "report.circuit.interval", to(3)),
    Column("median of ratios", "report.circuit.median_of_ratios", ".3f", "undefined"),
    Column("random circuits", "report.random_mean", ".3f"),
)


def comparison_tables(comparison: Comparison) -> Iterator[Table]:
    """Settings that differ, overlap, correlation, signs, the strongest edges, each circuit on both sides' pairs."""
    if comparison.settings:
        yield Table("warning: not found alike", SETTINGS, comparison.settings, 3)
    n_draws = comparison.edges.random.n if comparison.edges.random else 0
    overlaps = [("edges", comparison.edges), ("nodes", comparison.nodes)]
    yield Table(f"overlap, chance over {n_draws} draws", OVERLAP, overlaps)
    if comparison.correlations:
        yield Table("rank correlation", CORRELATIONS, comparison.correlations)
        yield Table("edges of opposite sign", SIGNS, comparison.signs)
    for title, opposite in (("strongest shared edges", False), ("strongest edges of opposite sign", True)):
        if rows := _both(comparison, opposite=opposite):
            yield Table(title, EDGES, rows, 2)
    for letter in "AB":
        if rows := _own(comparison, letter):
            yield Table(f"strongest edges of {letter} alone", EDGES, rows, 2)
    if comparison.cross:
        known = dict.fromkeys((cell.pairs, cell.report.resampled) for cell in comparison.cross)
        over = "; ".join(f"on {pairs} {by}" for pairs, by in known)
        note = f"faithfulness is a ratio of means; intervals over {over}"
        yield Table("each circuit on each one's held-out pairs", CROSS, comparison.cross, 2, [note])


def _both(comparison: Comparison, *, opposite: bool, count: int = 8) -> list[dict[str, Any]]:
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

    return sorted(chosen, key=lambda row: (-strength(row), row["edge"]))[:count]


def _own(comparison: Comparison, side: str, *, count: int = 8) -> list[dict[str, Any]]:
    """The strongest edges of ``A`` or ``B`` that the other circuit does not have, by that side's own |score|."""
    group, key = {"A": ("only_a", "score_a"), "B": ("only_b", "score_b")}[side]
    chosen = [row for row in comparison.edge_rows() if row["group"] == group and row[key] is not None]
    return sorted(chosen, key=lambda row: (-abs(row[key]), row["edge"]))[:count]


def _scored_rows(comparison: Comparison) -> list[dict[str, Any]]:
    return [row for row in comparison.edge_rows() if row["score_a"] is not None and row["score_b"] is not None]


def _plain(value: Any) -> str:
    text = "none" if value is None else str(value)
    return text if len(text) <= 24 else f"{text[:23]}…"
