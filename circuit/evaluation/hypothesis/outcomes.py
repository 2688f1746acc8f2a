"""What a test of a circuit says: passed, failed or undecided, with its numbers."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Float

__all__ = [
    "ALPHA",
    "EPS",
    "FAILED",
    "NEGLIGIBLE",
    "NOT_APPLICABLE",
    "PASSED",
    "QUANTILE",
    "UNDECIDED",
    "Outcome",
    "holm",
]

PASSED, FAILED, UNDECIDED, NOT_APPLICABLE = "passed", "failed", "undecided", "not applicable"
ALPHA, EPS, QUANTILE, NEGLIGIBLE = 0.05, 0.1, 0.9, 0.01


@dataclass(frozen=True)
class Outcome:
    """One test: what was tested at which level, what came out, and in words.

    ``decision`` is about the circuit: passed, failed, undecided or not applicable. ``p_holm`` is the p that the
    decision goes by, corrected for the other tests of the circuit; ``could_show`` what the sample could have shown.
    """

    name: str
    hypothesis: str
    alpha: float
    statistic: float | None
    p: float | None
    decision: str
    sentence: str
    details: dict[str, Any] = field(default_factory=dict)
    p_holm: float | None = None
    could_show: str = ""

    @property
    def deciding(self) -> float | None:
        """The p that a rejection goes by: of equivalence the smaller one of its two opposite hypotheses."""
        return self.p if self.p is None else min(self.p, self.details.get("p_shown", 1.0))


def holm(p: Float[np.ndarray, " test"]) -> Float[np.ndarray, " test"]:
    """Holm's step-down adjusted p-values: those at or below alpha are rejected with family-wise error alpha."""
    order = np.argsort(p, kind="stable")
    scaled = p[order] * np.arange(len(p), 0, -1)
    adjusted = np.empty(len(p))
    adjusted[order] = np.minimum(np.maximum.accumulate(scaled), 1.0)
    return adjusted
