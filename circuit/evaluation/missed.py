"""What a search missed: edges outside the circuit, drawn at random, each patched exactly.

Scores are estimates, and those of AtP* come with a bound on what they may have missed (arXiv:2403.00745). Here it
rests on random sampling alone: of N edges outside n are patched, k of them move the metric by tau or more, and K, the
number of all that do, is at most the largest for which k or fewer would be drawn with a chance above 1 - confidence
(hypergeometric, one-sided). It holds for any scorer and any pruner.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import scipy  # whose parts are loaded when they are used: scipy.stats takes a second

from persona_circuits.circuit import parallel
from persona_circuits.circuit.errors import OptionError
from persona_circuits.circuit.forward import Prepared, measure_rows
from persona_circuits.circuit.model import Model
from persona_circuits.circuit.progress import Progress
from persona_circuits.circuit.subgraph import Circuit
from persona_circuits.metrics import Metric

__all__ = ["Missed", "missed", "most_of"]

CONFIDENCE = 0.95
AT_ONCE = 16


@dataclass(frozen=True)
class Missed:
    """Of ``n_outside`` edges ``n_checked`` were patched; ``n_found`` of these move the metric by ``tau`` or more.

    ``most`` is how many of all outside do at most, with the confidence. ``largest`` is the largest effect seen, m(edge
    ablated) - m(full), that of ``edge``.
    """

    n_outside: int
    n_checked: int
    tau: float
    n_found: int
    most: int
    largest: float
    edge: str
    confidence: float = CONFIDENCE

    def as_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)

    @property
    def sentence(self) -> str:
        """The result in words."""
        moving = "none moves" if not self.n_found else f"{self.n_found:,} move{'s' if self.n_found == 1 else ''}"
        return (
            f"{self.n_checked:,} of {self.n_outside:,} edges outside, drawn at random, were patched exactly: {moving} "
            f"the metric by {self.tau:.3g} or more, the largest {self.edge} by {self.largest:+.3g}; with confidence "
            f"{self.confidence:g} at most {self.most:,} of all outside do ({self.most / self.n_outside:.2%})"
        )


def missed(
    model: Model,
    prepared: Sequence[Prepared],
    metric: Metric,
    circuit: Circuit,
    tau: float,
    n: int,
    *,
    seed: int = 0,
    progress: Progress | None = None,
) -> Missed | None:
    """Patch ``n`` edges outside the circuit, or all there are; None where there is none.

    Raises
    ------
    OptionError
        ``n`` is below one.
    """
    if n < 1:
        raise OptionError(f"--checks must be at least 1, got {n}")
    places = np.argwhere(circuit.complement().mask)
    if not len(places):
        return None
    chosen = np.random.default_rng(seed).permutation(places)[:n]
    effects = np.concatenate([
        _effects(model, prepared, metric, chosen[i : i + AT_ONCE], progress, (i, len(chosen)))
        for i in range(0, len(chosen), AT_ONCE)
    ])  # fmt: skip
    first, n_moving = int(np.abs(effects).argmax()), int((np.abs(effects) >= tau).sum())
    most = most_of(len(places), len(chosen), n_moving)
    edge = str(model.graph.edge(*chosen[first].tolist()))
    return Missed(len(places), len(chosen), tau, n_moving, most, float(effects[first]), edge)


def most_of(n_all: int, n_drawn: int, n_found: int, confidence: float = CONFIDENCE) -> int:
    """The upper end of an exact one-sided interval for how many of ``n_all`` are of the kind that was found.

    Examples
    --------
    >>> most_of(1000, 100, 0), most_of(100, 100, 3)
    (28, 3)
    """
    low, high = n_found, n_all - (n_drawn - n_found)
    while low < high:
        middle = (low + high + 1) // 2
        if scipy.stats.hypergeom.cdf(n_found, n_all, middle, n_drawn) > 1 - confidence:
            low = middle
        else:
            high = middle - 1
    return low


def _effects(
    model: Model,
    prepared: Sequence[Prepared],
    metric: Metric,
    places: np.ndarray,
    progress: Progress | None,
    done: tuple[int, int],
) -> np.ndarray:
    """m(without the edge) - m(full) of each, mean over all prompts."""
    masks = [model.graph.valid]
    for src, dst in places.tolist():
        masks.append(model.graph.valid.copy())
        masks[-1][src, dst] = False
    columns = parallel.gathered(measure_rows(model, prepared, masks, metric))
    values = np.mean(list(columns.values()), axis=0)
    if progress is not None:
        progress(done[0] + len(places), done[1])
    return np.asarray(values[1:] - values[0])
