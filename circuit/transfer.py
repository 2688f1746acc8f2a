"""Does a circuit hold elsewhere, and is it of this contrast alone?

Transfer: the same circuit on other pairs, personas, questions, templates or domains, each
beside random circuits of its size. A circuit transfers where it explains the other pairs
and circuits of units outside it do not.

Specificity: every circuit is ablated (its edges cut, all others kept) on every contrast. A
contrast should break under its own circuit (low on the diagonal) and go on under the
others' (near 1 off it).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from circuit.faithfulness import Interval, bootstrap_ratio, pairwise, random_circuits
from circuit.model import Model
from circuit.patching import Prepared, measure
from circuit.subgraph import Circuit
from metrics import Metric

__all__ = ["Cell", "Specificity", "Transfer", "specificity", "transfer", "transfer_within"]

Pairs = Callable[[], Iterable[Prepared]]
"""Gives the batches of a contrast; called once."""
INTACT = 0.8
"""A contrast goes on under an ablation where it keeps at least this share of its effect."""


@dataclass(frozen=True)
class Transfer:
    """One circuit on one set of pairs.

    ``faithfulness`` and ``outside`` (the best of the circuits made of edges outside it, of its
    size) are ratios of means, None where the pairs have no effect to explain. ``holds``:
    the circuit explains at least half and its interval lies above every outside circuit.
    """

    name: str
    n_pairs: int
    effect: float
    faithfulness: float | None
    interval: Interval | None
    outside: tuple[float, ...]
    holds: bool | None

    def as_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {**asdict(self), "outside": list(self.outside)}


@dataclass(frozen=True)
class Cell:
    """What is left of a contrast when a circuit is ablated: f of the circuit's complement on it."""

    circuit: str
    contrast: str
    left: float | None
    interval: Interval | None


@dataclass(frozen=True)
class Specificity:
    """The matrix of circuits and contrasts, and what it says."""

    names: tuple[str, ...]
    cells: tuple[Cell, ...]
    findings: tuple[str, ...]

    def matrix(self) -> np.ndarray:
        """``[circuit, contrast]``; nan where a contrast has no effect to explain."""
        left = [np.nan if cell.left is None else cell.left for cell in self.cells]
        return np.array(left).reshape(len(self.names), len(self.names))

    def as_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def transfer(
    model: Model,
    circuit: Circuit,
    grounds: Mapping[str, Pairs],
    metric: Metric,
    *,
    n_outside: int = 10,
    seed: int = 0,
) -> tuple[Transfer, ...]:
    """The circuit on every set of pairs, beside random circuits of its size that share no edge with it."""
    outside = _outside(circuit, n_outside, seed)
    masks = [Circuit.full(model.graph).mask, Circuit.empty(model.graph).mask, circuit.mask, *(c.mask for c in outside)]
    return tuple(
        _transfer(name, pairwise(measure(model, pairs(), masks, metric), metric), seed)
        for name, pairs in grounds.items()
    )


def transfer_within(
    model: Model,
    circuit: Circuit,
    pairs: Pairs,
    parts: Mapping[str, Sequence[int]],
    metric: Metric,
    *,
    n_outside: int = 10,
    seed: int = 0,
) -> tuple[Transfer, ...]:
    """``transfer`` to parts of one set of pairs, each given by the places of its pairs; the model runs once for all."""
    outside = _outside(circuit, n_outside, seed)
    masks = [Circuit.full(model.graph).mask, Circuit.empty(model.graph).mask, circuit.mask, *(c.mask for c in outside)]
    values = pairwise(measure(model, pairs(), masks, metric), metric)
    return tuple(_transfer(name, values[:, list(places)], seed) for name, places in parts.items())


def specificity(model: Model, contrasts: Mapping[str, tuple[Circuit, Pairs, Metric]], *, seed: int = 0) -> Specificity:
    """Ablate each contrast's circuit on each contrast's pairs, with the contrast's own metric."""
    names = tuple(contrasts)
    masks = [Circuit.full(model.graph).mask, Circuit.empty(model.graph).mask]
    masks += [circuit.complement().mask for circuit, _, _ in contrasts.values()]
    columns = []
    for name, (_, pairs, metric) in contrasts.items():
        values = pairwise(measure(model, pairs(), masks, metric), metric)
        columns.append([_cell(names[i], name, part, values[0], values[1], seed) for i, part in enumerate(values[2:])])
    cells = tuple(columns[j][i] for i in range(len(names)) for j in range(len(names)))
    return Specificity(names, cells, tuple(_findings(names, cells)))


def _outside(circuit: Circuit, count: int, seed: int) -> list[Circuit]:
    """Random connected circuits of the circuit's size, without its edges; smaller where they overlap it."""
    found = random_circuits(circuit.graph, len(circuit), count, seed=seed)
    return [Circuit(circuit.graph, other.mask & ~circuit.mask).without_dead_ends() for other in found]


def _transfer(name: str, values: np.ndarray, seed: int) -> Transfer:
    full, empty, own = values[:3]
    span = full - empty
    interval = bootstrap_ratio(own - empty, span, seed)
    defined = abs(span.mean()) > 1e-4
    ratio = float((own - empty).mean() / span.mean()) if defined else None
    outside = tuple(float((other - empty).mean() / span.mean()) for other in values[3:]) if defined else ()
    holds = None
    if ratio is not None and interval is not None:
        holds = bool(ratio >= 0.5 and interval.low > max(outside, default=-np.inf))
    return Transfer(name, values.shape[1], float(span.mean()), ratio, interval, outside, holds)


def _cell(circuit: str, contrast: str, values: np.ndarray, full: np.ndarray, empty: np.ndarray, seed: int) -> Cell:
    span = full - empty
    if abs(span.mean()) <= 1e-4:
        return Cell(circuit, contrast, None, None)
    left = float((values - empty).mean() / span.mean())
    return Cell(circuit, contrast, left, bootstrap_ratio(values - empty, span, seed))


def _findings(names: Sequence[str], cells: Sequence[Cell]) -> list[str]:
    """A sentence for every circuit that does not break its own contrast, or breaks another's."""
    found = []
    for cell in cells:
        low, high = (cell.interval.low, cell.interval.high) if cell.interval else (cell.left, cell.left)
        if cell.left is None:
            text = f"{cell.contrast}: no effect to explain, so nothing can be said of the circuit of {cell.circuit}"
        elif cell.circuit == cell.contrast and high is not None and high >= INTACT:
            text = f"not necessary: ablating the circuit of {cell.circuit} leaves {cell.left:.2f} of its own effect"
        elif cell.circuit != cell.contrast and low is not None and low < INTACT:
            own, other = cell.circuit, cell.contrast
            text = f"no dissociation: ablating the circuit of {own} leaves only {cell.left:.2f} of {other}"
        else:
            continue
        if text not in found:
            found.append(text)
    return found or [f"every circuit breaks its own contrast and leaves at least {INTACT} of the others"]
