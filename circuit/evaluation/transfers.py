"""Does a circuit generalise, and is it specific to this contrast?

Transfer: the same circuit on other pairs, personas, questions, templates or domains, each
beside random circuits of its size that are made of edges outside it. A circuit transfers where it explains the
other pairs and circuits of units outside it do not: that control is run, and where none can be made (the circuit
leaves no path from ``input`` to ``logits`` outside it) nothing is claimed.

Specificity: every circuit is ablated (its edges cut, all others kept) on every contrast. A contrast should break under
its own circuit (low on the diagonal) and go on under the others' (near 1 off it).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from persona_circuits.circuit.evaluation.faithfulness import median_of_ratios, pairwise
from persona_circuits.circuit.evaluation.matched import random_circuits
from persona_circuits.circuit.forward import Prepared, Rounding, measure
from persona_circuits.circuit.model import Model
from persona_circuits.circuit.progress import Progress
from persona_circuits.circuit.statistics import Clusters, Interval, PairSample, is_zero
from persona_circuits.circuit.subgraph import Circuit
from persona_circuits.metrics import Metric

__all__ = ["INTACT", "Pairs", "Transfer", "measured", "transfer", "transfer_within"]

Pairs = Callable[[], Iterable[Prepared]]
"""Gives the batches of a contrast; called once."""
EXPLAINS = 0.5
"""Least share of the effect that a circuit must explain to transfer to other pairs."""
INTACT = 0.8
"""Least share of its effect that a contrast must keep to survive an ablation."""


@dataclass(frozen=True)
class Transfer:
    """One circuit on one set of pairs.

    ``faithfulness`` and ``outside`` (circuits made of edges outside it, of its size or as near as there are;
    ``n_outside_edges`` is their mean size) are ratios of means, None and none where the pairs have no effect to
    explain; ``median_of_ratios`` is of the pairs' own. ``interval`` is over what ``Clusters`` of the pairs draw.
    ``holds``: the circuit explains at least half and its interval lies above every outside circuit; None without an
    interval or a control.
    """

    name: str
    n_pairs: int
    effect: float
    faithfulness: float | None
    interval: Interval | None
    median_of_ratios: float | None
    outside: tuple[float, ...]
    n_outside_edges: float | None
    holds: bool | None

    def as_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {**asdict(self), "outside": list(self.outside)}


def transfer(
    model: Model,
    circuit: Circuit,
    grounds: Mapping[str, Pairs],
    metric: Metric,
    *,
    clusters: Mapping[str, Clusters] | None = None,
    n_outside: int = 10,
    seed: int = 0,
    progress: Progress | None = None,
) -> tuple[Transfer, ...]:
    """The circuit on every set of pairs, beside random circuits of its size that share no edge with it.

    Parameters
    ----------
    grounds
        The sets of pairs by name.
    clusters
        By the same names, which of the pairs share personas and questions, for the intervals.
    n_outside
        Random circuits outside.
    """
    masks, size = _beside(circuit, n_outside, seed)
    transfers = []
    for name, pairs in grounds.items():
        values, rounding = measured(model, pairs(), masks, metric)
        transfers.append(_transfer(values, size, PairSample(name, (clusters or {}).get(name), seed), rounding))
        if progress is not None:
            progress(len(transfers), len(grounds))
    return tuple(transfers)


def transfer_within(
    model: Model,
    circuit: Circuit,
    pairs: Pairs,
    parts: Mapping[str, Sequence[int]],
    metric: Metric,
    *,
    clusters: Mapping[str, Clusters] | None = None,
    n_outside: int = 10,
    seed: int = 0,
) -> tuple[Transfer, ...]:
    """``transfer`` to parts of one set of pairs, each given by the places of its pairs; the model runs once for all."""
    masks, size = _beside(circuit, n_outside, seed)
    values, rounding = measured(model, pairs(), masks, metric)
    samplings = (PairSample(name, (clusters or {}).get(name), seed) for name in parts)
    return tuple(
        _transfer(values[:, list(places)], size, sampling, rounding)
        for sampling, places in zip(samplings, parts.values(), strict=True)
    )


def measured(
    model: Model, prepared: Iterable[Prepared], masks: Sequence[np.ndarray], metric: Metric
) -> tuple[np.ndarray, float]:
    """The metric of circuits on each pair, ``[mask, pair]``, and how far rounding alone moves it."""
    watch = Rounding(model, metric)
    values = pairwise(measure(model, watch.watched(prepared), masks, metric), metric)
    return values, watch.floor


def _beside(circuit: Circuit, n_outside: int, seed: int) -> tuple[list[np.ndarray], float | None]:
    """The full, the empty and this circuit, and random ones outside it; and the mean size of those."""
    outside = random_circuits(circuit.graph, len(circuit), n_outside, seed=seed, outside=circuit)
    fixed = (Circuit.full(circuit.graph), Circuit.empty(circuit.graph), circuit)
    size = float(np.mean([len(subgraph) for subgraph in outside])) if outside else None
    return [subgraph.mask for subgraph in (*fixed, *outside)], size


def _transfer(values: np.ndarray, size: float | None, sample: PairSample, rounding: float) -> Transfer:
    full, empty, own = values[:3]
    span = full - empty
    defined = not is_zero(span, rounding)
    interval = sample.ratio(own - empty, span) if defined else None
    ratio = float((own - empty).mean() / span.mean()) if defined else None
    outside = tuple(float((other - empty).mean() / span.mean()) for other in values[3:]) if defined else ()
    median = median_of_ratios(own - empty, span, rounding) if defined else None
    holds = None
    if ratio is not None and interval is not None and outside:
        holds = bool(ratio >= EXPLAINS and interval.low > max(outside))
    return Transfer(sample.split, values.shape[1], float(span.mean()), ratio, interval, median, outside, size, holds)
