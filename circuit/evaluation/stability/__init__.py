"""Which edges stay when data or order change."""

from persona_circuits.circuit.evaluation.stability.orders import order_dependence, random_orders
from persona_circuits.circuit.evaluation.stability.report import StabilityReport, order_report, stability_report
from persona_circuits.circuit.evaluation.stability.resampling import CORE, N_RESAMPLES, jaccard_of, mean_jaccard

__all__ = [
    "CORE",
    "N_RESAMPLES",
    "StabilityReport",
    "jaccard_of",
    "mean_jaccard",
    "order_dependence",
    "order_report",
    "random_orders",
    "stability_report",
]
