"""Scores in parts: by span of the prompt, or by pair."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from persona_circuits.circuit.graph import Graph
from persona_circuits.circuit.scores import Scores

__all__ = ["PARTS", "ScoreParts"]

PARTS = ("row", "span")


@dataclass(frozen=True, eq=False)
class ScoreParts:
    """Scores that add up to those of all prompts and positions.

    ``values`` is ``[part, src, dst]``, rows in float32, spans in float64. ``by="row"``: part i is the score of the row
    with index i alone, and the whole is their mean. ``by="span"``: part i is what the
    positions of the part ``names[i]`` of the prompts give, and the whole is their sum.
    """

    graph: Graph
    by: str
    names: tuple[str, ...]
    values: Float[np.ndarray, "part src dst"]

    def total(self) -> Scores:
        """The scores of all prompts and positions."""
        whole = self.values.astype(np.float64)
        return Scores(self.graph, whole.mean(axis=0) if self.by == "row" else whole.sum(axis=0))
