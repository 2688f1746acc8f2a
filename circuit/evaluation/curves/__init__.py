"""Faithfulness against size."""

from persona_circuits.circuit.evaluation.curves.nested import measured
from persona_circuits.circuit.evaluation.curves.points import (
    LEVELS,
    ORDERS,
    SHARES,
    Band,
    BandPoint,
    CurveKinds,
    FaithfulnessCurve,
    NodeScores,
    Point,
    Pool,
    Scorer,
    Spread,
    area,
    check_scorers,
    ranked_edges,
)
from persona_circuits.circuit.evaluation.curves.report import CurveReport, curve_report
from persona_circuits.circuit.evaluation.curves.sizes import Smallest, Sweep, check_target, pareto, smallest, sweep

__all__ = [
    "LEVELS",
    "ORDERS",
    "SHARES",
    "Band",
    "BandPoint",
    "CurveKinds",
    "CurveReport",
    "FaithfulnessCurve",
    "NodeScores",
    "Point",
    "Pool",
    "Scorer",
    "Smallest",
    "Spread",
    "Sweep",
    "area",
    "check_scorers",
    "check_target",
    "curve_report",
    "measured",
    "pareto",
    "ranked_edges",
    "smallest",
    "sweep",
]
