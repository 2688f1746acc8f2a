"""Two circuits side by side: what they share, against what chance shares."""

from persona_circuits.circuit.assessment.comparison.sides import (
    GROUPS,
    Side,
    groups,
    read_side,
    relative_scores,
    settings_apart,
)
from persona_circuits.circuit.assessment.comparison.statistics import Ground, Null, Overlap
from persona_circuits.circuit.assessment.comparison.study import (
    Comparison,
    compare,
    cross_faithfulness,
    draw_difference,
)
from persona_circuits.circuit.assessment.comparison.within import compare_in_time, cross_in_time

__all__ = [
    "GROUPS",
    "Comparison",
    "Ground",
    "Null",
    "Overlap",
    "Side",
    "compare",
    "compare_in_time",
    "cross_faithfulness",
    "cross_in_time",
    "draw_difference",
    "groups",
    "read_side",
    "relative_scores",
    "settings_apart",
]
