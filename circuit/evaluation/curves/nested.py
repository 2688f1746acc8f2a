"""Nested circuits, each measured once for all curves."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray

from persona_circuits.circuit.evaluation.curves.points import Pool, area
from persona_circuits.circuit.evaluation.faithfulness import median_of_ratios, pairwise
from persona_circuits.circuit.forward import Prepared, Rounding, measure
from persona_circuits.circuit.model import Model
from persona_circuits.circuit.progress import Progress
from persona_circuits.circuit.statistics import LEAST_SHARE, Clusters, Interval, PairSample, is_zero
from persona_circuits.circuit.statistics import interval as interval_of
from persona_circuits.metrics import Metric

__all__ = ["Measured", "measured"]


@dataclass(frozen=True, eq=False)
class Measured:
    """What every circuit of a pool scores on every pair, and f; ``f`` is None where m(full) - m(empty) is zero."""

    pool: Pool
    values: Float[np.ndarray, "circuit pair"]
    f: Float[np.ndarray, " circuit"] | None
    sample: PairSample
    rounding: float = 0.0

    @property
    def clusters(self) -> Clusters:
        """What the pairs share."""
        return self.sample.over(self.n_pairs)

    @property
    def n_pairs(self) -> int:
        """The number of pairs."""
        return int(self.values.shape[1])

    def m(self, place: int) -> float:
        """The mean metric of a circuit."""
        return float(self.values[place].mean())

    def faithfulness(self, place: int) -> float | None:
        """The ratio of means of a circuit."""
        return None if self.f is None else float(self.f[place])

    def interval(self, place: int) -> Interval | None:
        """Its 95 % interval."""
        if self.f is None:
            return None
        full, empty = self.values[self.pool.full], self.values[self.pool.empty]
        return self.sample.ratio(self.values[place] - empty, full - empty)

    def median_of_ratios(self, place: int) -> float | None:
        """The median of the pairs' own ratios."""
        if self.f is None:
            return None
        full, empty = self.values[self.pool.full], self.values[self.pool.empty]
        return median_of_ratios(self.values[place] - empty, full - empty, self.rounding)

    def areas(self, places: Sequence[int], shares: Sequence[float]) -> tuple[float, float] | None:
        """CPR and CMD of the circuits at these places."""
        if self.f is None:
            return None
        values = self.f[list(places)]
        return float(area(shares, values)), float(area(shares, np.abs(1 - values)))

    def area_intervals(self, places: Sequence[int], shares: Sequence[float]) -> tuple[Interval | None, Interval | None]:
        """Their 95 % intervals."""
        if self.f is None:
            return None, None

        def cpr(weights: NDArray[np.float64]) -> NDArray[np.float64]:
            return np.asarray(area(shares, self._under(weights, places)))

        def cmd(weights: NDArray[np.float64]) -> NDArray[np.float64]:
            return np.asarray(area(shares, np.abs(1 - self._under(weights, places))))

        how: dict[str, Any] = {"clusters": self.clusters, "seed": self.sample.seed}
        return interval_of(cpr, **how), interval_of(cmd, **how)

    def _under(self, weights: NDArray[np.float64], places: Sequence[int]) -> NDArray[np.float64]:
        """f of some circuits under weights of the pairs, ``[draw, circuit]``; nan where it is not defined."""
        full, empty = self.values[self.pool.full], self.values[self.pool.empty]
        below, whole = (weights @ (full - empty))[:, None], abs(float((full - empty).mean()))
        above = weights @ (self.values[list(places)] - empty).T
        return np.divide(above, below, out=np.full_like(above, np.nan), where=np.abs(below) > LEAST_SHARE * whole)


def measured(
    model: Model,
    prepared: Iterable[Prepared],
    metric: Metric,
    pool: Pool,
    sample: PairSample | None = None,
    *,
    progress: Progress | None = None,
) -> Measured:
    """Measure all circuits of a pool in one pass over the batches; both directions of a pair are averaged first."""
    order, masks = pool.by_size(progress)
    watch = Rounding(model, metric)
    rows = pairwise(measure(model, watch.watched(prepared), masks, metric), metric)
    values = np.empty_like(rows)
    values[order] = rows
    means = values.mean(axis=1)
    span = means[pool.full] - means[pool.empty]
    defined = not is_zero(values[pool.full] - values[pool.empty], watch.floor)
    f = (means - means[pool.empty]) / span if defined else None
    return Measured(pool, values, f, sample or PairSample(), watch.floor)
