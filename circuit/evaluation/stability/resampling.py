"""How often an edge is chosen when personas and questions are drawn again."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float
from scipy import sparse

from persona_circuits.circuit import parallel as ranks
from persona_circuits.circuit.forward import Prepared
from persona_circuits.circuit.model import Model
from persona_circuits.circuit.storage import read_state, state_metadata, tell_damaged, write_bytes
from persona_circuits.circuit.subgraph import Circuit
from persona_circuits.metrics import Metric

__all__ = [
    "CORE",
    "N_RESAMPLES",
    "STABLE",
    "Kept",
    "Resampling",
    "jaccard_of",
    "mean_jaccard",
    "resampling_of",
]

N_RESAMPLES = 200
CORE = 0.9
"""Share of resamples in which an edge of the core is selected."""
STABLE = 0.8
"""Mean pairwise Jaccard below which a circuit is called unstable."""


@dataclass(frozen=True, eq=False)
class Resampling:
    """What one way of resampling gave.

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
    found = _jaccards(masks)
    return float(found.mean()) if len(found) else None


def jaccard_of(first: Circuit, second: Circuit) -> float | None:
    """Edges that both have over edges that either has; None where both are empty."""
    joint = int((first.mask | second.mask).sum())
    return int((first.mask & second.mask).sum()) / joint if joint else None


def resampling_of(by: str, masks: sparse.csr_array, circuit: Circuit) -> Resampling:
    found = _jaccards(masks)
    own = sparse.csr_array(circuit.mask.reshape(1, -1).astype(np.float64))
    sizes = masks.sum(axis=1)
    shared = (masks @ own.T).toarray()[:, 0]
    joint = sizes + len(circuit) - shared
    to_circuit = shared[joint > 0] / joint[joint > 0]
    low, high = np.percentile(found, [5, 95]).tolist() if len(found) else (None, None)
    return Resampling(
        by=by,
        n_resamples=masks.shape[0],
        n_empty=int((sizes == 0).sum()),
        frequency=(masks.sum(axis=0) / masks.shape[0]).reshape(circuit.mask.shape),
        jaccard=float(found.mean()) if len(found) else None,
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


class Kept:
    """Circuits of finished runs, in a file until all are there; one of another search is not used."""

    def __init__(
        self,
        state: Path | None,
        model: Model,
        prepared: Sequence[Prepared],
        metric: Metric,
        setting: str,
        mask: Bool[np.ndarray, "src dst"],
    ) -> None:
        self.state, self.graph = state, model.graph
        digest = hashlib.sha256(f"{model.fingerprint} {metric.name} {setting}".encode() + np.packbits(mask).tobytes())
        for item in prepared:
            digest.update(
                item.batch.clean.cpu().numpy().tobytes() + item.ablated.logits.float().cpu().numpy().tobytes()
            )
        own = digest.hexdigest()
        self.search = hashlib.sha256("".join(sorted(ranks.gathered({own: own}))).encode()).hexdigest()
        self.found = ranks.gathered(self._read() if ranks.is_first() else {}) if state else {}

    def of(self, turn: int) -> Circuit | None:
        """What the run of that number found, None where it is still to do."""
        mask = self.found.get(str(turn))
        return None if mask is None else Circuit(self.graph, mask)

    def path(self, turn: int) -> Path | None:
        """Where the run of that number keeps its own state."""
        return None if self.state is None else self.state.with_name(f"{self.state.name}.{turn}")

    def add(self, turn: int, circuit: Circuit) -> None:
        """Remember a finished run."""
        self.found[str(turn)] = circuit.mask.copy()
        if self.state is not None and ranks.is_first():
            from safetensors.numpy import save

            write_bytes(save(self.found, metadata=state_metadata(self.search, self.found)), self.state)

    def _read(self) -> dict[str, np.ndarray]:
        assert self.state is not None
        found = read_state(self.state, self.search)
        if any(mask.shape != self.graph.valid.shape or mask.dtype != np.bool_ for mask in found.values()):
            tell_damaged(self.state, "it does not hold circuits of this model")
            return {}
        return found

    def done(self) -> None:
        """All runs are known: the file goes."""
        if self.state is not None and ranks.is_first():
            self.state.unlink(missing_ok=True)
