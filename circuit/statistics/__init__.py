"""Intervals and tests over pairs that share personas and questions."""

from persona_circuits.circuit.statistics.clusters import Clusters, blocks, cluster_codes
from persona_circuits.circuit.statistics.intervals import (
    LEAST_SHARE,
    Interval,
    Sampling,
    detectable_ratio,
    interval,
    is_zero,
    ratio_interval,
    ratio_intervals,
    ratio_p_values,
    weighted_mean,
)
from persona_circuits.circuit.statistics.permutations import Permutations, permutations_of

__all__ = [
    "LEAST_SHARE",
    "Clusters",
    "Interval",
    "Permutations",
    "Sampling",
    "blocks",
    "cluster_codes",
    "detectable_ratio",
    "interval",
    "is_zero",
    "permutations_of",
    "ratio_interval",
    "ratio_intervals",
    "ratio_p_values",
    "weighted_mean",
]
