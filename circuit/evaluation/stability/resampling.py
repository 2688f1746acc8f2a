"""How often an edge is chosen when personas and questions are drawn again."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float
from scipy import sparse

from persona_circuits.circuit.subgraph import Circuit

__all__ = ["CORE", "N_RESAMPLES", "STABLE", "Resampling", "jaccard_of", "mean_jaccard", "resampling_of"]

N_RESAMPLES = 200
CORE = 0.9
"""Share of resamples in which an edge of the core is selected."""
STABLE = 0.8
"""Mean pairwise Jaccard below which a circuit is called unstable."""


@dataclass(frozen=True, eq=False)
class Resampling:
    """The result of one way of resampling.

    ``by`` is what was drawn. ``frequency[src, dst]`` is the share of resamples that select an edge.
    ``jaccard`` is the mean over pairs of resamples, ``low`` and ``high`` the 5th and the 95th percentile,
    ``to_circuit`` the mean against the circuit itself; None where no resample selects an edge. ``n_empty`` resamples
    select none. ``sizes`` are the least, the median and the largest number of edges.
    """

    by: str
    n_resamples: int
    n_empty: int
    frequency: Float[np.ndarray, "src dst"]
    jaccard: float | None
    low: float | None
    high: float | None
    to_circuit: float | None
    sizes: tuple[int, float, int]

    def as_dict(self) -> dict[str, Any]:
        """Plain values, without the frequencies."""
        names = ("by", "n_resamples", "n_empty", "jaccard", "low", "high", "to_circuit")
        return {**{name: getattr(self, name) for name in names}, "sizes": list(self.sizes)}


def mean_jaccard(masks: sparse.csr_array) -> float | None:
    """Mean Jaccard over pairs of rows of ``[circuit, edge]``; two empty ones are left out, None if all are."""
    jaccards = _jaccards(masks)
    return float(jaccards.mean()) if len(jaccards) else None


def jaccard_of(first: Circuit, second: Circuit) -> float | None:
    """Edges that both have over edges that either has; None where both are empty."""
    joint = int((first.mask | second.mask).sum())
    return int((first.mask & second.mask).sum()) / joint if joint else None


def resampling_of(by: str, masks: sparse.csr_array, circuit: Circuit) -> Resampling:
    jaccards = _jaccards(masks)
    own = sparse.csr_array(circuit.mask.reshape(1, -1).astype(np.float64))
    sizes = masks.sum(axis=1)
    shared = (masks @ own.T).toarray()[:, 0]
    joint = sizes + len(circuit) - shared
    to_circuit = shared[joint > 0] / joint[joint > 0]
    low, high = np.percentile(jaccards, [5, 95]).tolist() if len(jaccards) else (None, None)
    return Resampling(
        by=by,
        n_resamples=masks.shape[0],
        n_empty=int((sizes == 0).sum()),
        frequency=(masks.sum(axis=0) / masks.shape[0]).reshape(circuit.mask.shape),
        jaccard=float(jaccards.mean()) if len(jaccards) else None,
        low=low,
        high=high,
        to_circuit=float(to_circuit.mean()) if len(to_circuit) else None,
        sizes=(int(sizes.min()), float(np.median(sizes)), int(sizes.max())),
    )


def _jaccards(masks: sparse.csr_array) -> Float[np.ndarray, " both"]:
    masks = masks.astype(np.float64)
    shared, sizes = (masks @ masks.T).toarray(), masks.sum(axis=1)
    first, second = np.triu_indices(len(sizes), k=1)
    joint = sizes[first] + sizes[second] - shared[first, second]
    return shared[first, second][joint > 0] / joint[joint > 0]
