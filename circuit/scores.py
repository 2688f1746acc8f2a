"""Scores: one number per edge, the effect on the metric of corrupting that edge alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from persona_circuits.circuit.errors import GraphError
from persona_circuits.circuit.graph import Edge, Graph
from persona_circuits.circuit.storage import frame_of

__all__ = ["Scores"]


@dataclass(frozen=True, eq=False, repr=False)
class Scores:
    """``values[src, dst]`` is m(edge corrupted) - m(clean), or an estimate of it, in metric units.

    float64, shape ``[n_src, n_dst]``, zero where there is no edge, read-only. A
    score above zero means that corrupting the edge raises the metric; as persona
    metrics are higher for the clean prompt's persona, edges that carry it are negative.
    """

    graph: Graph
    values: np.ndarray

    def __post_init__(self) -> None:
        values = np.array(self.values, dtype=np.float64)
        if values.shape != self.graph.valid.shape:
            raise GraphError(f"scores of shape {values.shape}, expected {self.graph.valid.shape}")
        values[~self.graph.valid] = 0.0
        if not np.isfinite(values).all():
            src, dst = np.argwhere(~np.isfinite(values))[0].tolist()
            raise GraphError(
                f"the score of {self.graph.edge(src, dst)} is {values[src, dst]}; scores must be finite. "
                "Load the model in float32 if it ran in half precision"
            )
        values.setflags(write=False)
        object.__setattr__(self, "values", values)

    def __repr__(self) -> str:
        if not self.values.any():
            return f"Scores({self.graph.n_edges:,} edges, all zero)"
        src, dst = np.unravel_index(int(np.abs(self.values).argmax()), self.values.shape)
        strongest = f"{self.graph.edge(int(src), int(dst))} {self.values[src, dst]:+.4g}"
        return f"Scores({self.graph.n_edges:,} edges, the strongest {strongest})"

    def to_frame(self) -> Any:
        """A pandas table with a row per edge: ``edge``, ``source``, ``slot`` and ``score``, the strongest first.

        Raises:
            OptionError: pandas is not installed.
        """
        by_size = sorted(self.as_dict().items(), key=lambda item: -abs(item[1]))
        columns = ("edge", "source", "slot", "score")
        return frame_of(
            [dict(zip(columns, (name, *name.split("->"), score), strict=True)) for name, score in by_size], columns
        )

    def __getitem__(self, edge: Edge | str) -> float:
        return float(self.values[self.graph.index(edge)])

    @classmethod
    def of(cls, graph: Graph, scores: Mapping[str, float]) -> Scores:
        """Scores from a mapping of edge names to numbers; edges that are not named score zero."""
        values = np.zeros(graph.valid.shape)
        for name, score in scores.items():
            values[graph.index(name)] = score
        return cls(graph, values)

    def as_dict(self) -> dict[str, float]:
        """Edge names to scores, for every edge of the graph."""
        sources, slots = self.graph.src_names, self.graph.slot_names
        return {
            f"{source}->{slot}": score
            for dst, slot in enumerate(slots)
            for source, score in zip(sources, self.values[: self.graph.n_reaching(dst), dst].tolist(), strict=False)
        }
